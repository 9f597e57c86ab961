"""What every entry of MODELS keeps, a user's factory included."""

import copy
import importlib.util
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from sam_variants.tasks import MODELS, Split, Task, build_model

FACTORY = """
from torch import nn
def net(hidden=4):
    return nn.Sequential(nn.Flatten(), nn.Linear(40, hidden), nn.Tanh(), nn.Linear(hidden, 10))
"""

# Big models are built at a fraction of their size where an option allows it.
SMALL = {
    "resnet8": {"width": 4},
    "resnet20": {"width": 4},
    "pyramidnet-110": {"alpha": 8},
    "vit-tiny": {"dim": 12, "depth": 2},
    "gpt-mini": {"dim": 12, "depth": 2, "heads": 3},
}
HAS_TIMM = importlib.util.find_spec("timm") is not None
# What we ask of timm, where it is not installed.
STAND_IN = SimpleNamespace(
    list_models=lambda: ["resnet10t"],
    create_model=lambda name, pretrained, in_chans, num_classes: nn.Sequential(
        nn.Conv2d(in_chans, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, num_classes)
    ),
)
IMAGE_MODELS = ("resnet", "wrn", "pyramidnet", "timm")
HUGE = ("wrn-28-10", "resnet18")


def classification(*shape):
    generator = torch.Generator().manual_seed(0)
    split = Split(torch.randn(4, *shape, generator=generator), torch.arange(4))
    return Task("random", "classification", split, split, 10, shape, "random samples")


def language():
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(17, (4, 6), generator=generator)
    split = Split(tokens, tokens.roll(-1, 1))
    return Task("random text", "language", split, split, 17, (6,), "random tokens")


def task_for(key):
    if key == "gpt-mini":
        return language()
    if key.startswith(IMAGE_MODELS) or key == "vit-tiny":
        return classification(3, 8, 8)
    return classification(1, 40)


def in_double(task):
    inputs = task.train.inputs
    return inputs.double() if inputs.is_floating_point() else inputs


@pytest.fixture
def build(tmp_path, monkeypatch):
    def built(key, seed=0):
        settings = SMALL.get(key, {})
        word = key
        if key.startswith("timm:"):
            if not HAS_TIMM:
                monkeypatch.setitem(sys.modules, "timm", STAND_IN)
            word = "timm:resnet10t"
        if key.endswith(":factory"):
            path = tmp_path / "contract_user_net.py"
            path.write_text(FACTORY, encoding="utf-8")
            monkeypatch.syspath_prepend(tmp_path)
            file = key.startswith("FILE")
            word = f"{path}:net" if file else "contract_user_net:net"
            settings = {"allow_code": file, "hidden": 5}
        return build_model(word, task_for(key), seed=seed, **settings)

    return built


@pytest.mark.parametrize("key", MODELS)
def test_a_model_maps_the_samples_of_its_task_to_finite_logits(key, build):
    task, model = task_for(key), build(key)
    outputs = model(task.train.inputs)
    assert outputs.shape == (*task.train.targets.shape, task.num_classes)
    assert bool(torch.isfinite(outputs).all())
    assert model.training
    assert all(p.device.type == "cpu" and p.dtype == torch.float32 for p in model.parameters())
    assert all(p.requires_grad and p.is_leaf for p in model.parameters())


@pytest.mark.parametrize("key", [key for key in MODELS if key not in HUGE])
def test_the_weights_are_a_function_of_the_seed_and_the_random_numbers_stay(key, build):
    torch.rand(3)
    state = torch.get_rng_state()
    first = build(key, seed=4).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    second = build(key, seed=4).state_dict()
    other = build(key, seed=5).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("key", [key for key in MODELS if key not in HUGE])
def test_every_weight_has_a_gradient_and_one_step_lowers_the_loss(key, build):
    task, model = task_for(key), build(key).eval().double()
    inputs = in_double(task)
    loss = task.loss(model(inputs), task.train.targets)
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(loss, parameters)
    assert all(bool(torch.isfinite(gradient).all()) for gradient in gradients)
    squared = sum(float(gradient.square().sum()) for gradient in gradients)
    assert squared > 0
    with torch.no_grad():
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter -= min(1e-3, 1e-3 / squared) * gradient
        after = task.loss(model(inputs), task.train.targets)
    assert float(after) < float(loss.detach())


@pytest.mark.parametrize("key", [key for key in MODELS if key not in HUGE])
def test_a_product_with_the_hessian_matches_differences_of_gradients(key, build):
    task, model = task_for(key), build(key).eval().double()
    inputs = in_double(task)
    if key not in ("mlp", "cnn1d") and not key.startswith(IMAGE_MODELS):
        check_product(task, model, inputs)
        return
    # Kinks of a ReLU: a product must exist and be finite, differences would cross the kinks.
    assert bool(torch.isfinite(product(task, model, inputs)[0]).all())


def product(task, model, inputs):
    parameters = list(model.parameters())
    generator = torch.Generator().manual_seed(1)
    vector = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]
    loss = task.loss(model(inputs), task.train.targets)
    gradient = torch.autograd.grad(loss, parameters, create_graph=True)
    inner = sum((g * v).sum() for g, v in zip(gradient, vector, strict=True))
    hvp = torch.autograd.grad(inner, parameters, allow_unused=True, materialize_grads=True)
    return torch.cat([h.flatten() for h in hvp]), vector


def check_product(task, model, inputs):
    hvp, vector = product(task, model, inputs)

    def gradient_at(step):
        moved = copy.deepcopy(model)
        with torch.no_grad():
            for parameter, direction in zip(moved.parameters(), vector, strict=True):
                parameter += step * direction
        loss = task.loss(moved(inputs), task.train.targets)
        gradient = torch.autograd.grad(loss, list(moved.parameters()))
        return torch.cat([g.flatten() for g in gradient])

    step = 1e-5
    difference = (gradient_at(step) - gradient_at(-step)) / (2 * step)
    torch.testing.assert_close(hvp, difference, rtol=1e-4, atol=1e-5 * float(hvp.abs().max()))


@pytest.mark.parametrize("key", [key for key in MODELS if not key.endswith(":factory")])
def test_a_task_that_makes_no_sense_is_refused_by_name(key):
    word = "timm:resnet18" if key.startswith("timm:") else key
    wrong = classification(30) if key == "gpt-mini" else language()
    with pytest.raises(ValueError, match=f"model {word} takes .* task random"):
        build_model(word, wrong, seed=0)
