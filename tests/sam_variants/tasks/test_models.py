import math
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional

from sam_variants.tasks import MODELS, Split, Task, build_model
from sam_variants.tasks.pyramidnet import PyramidBlock
from sam_variants.tasks.resnet import BasicBlock, PaddedShortcut
from sam_variants.tasks.transformer import Attention
from sam_variants.tasks.wide_resnet import PreactivatedBlock


def task_of(*shape, num_classes=10, kind="classification"):
    if kind == "language":
        tokens = torch.randint(num_classes, (4, *shape), generator=torch.Generator().manual_seed(0))
        split = Split(tokens, tokens.roll(-1, 1))
    else:
        inputs = torch.randn(4, *shape, generator=torch.Generator().manual_seed(0))
        split = Split(inputs, torch.arange(4) % num_classes)
    return Task("test", kind, split, split, num_classes, shape, "made for a test")


CIFAR = task_of(3, 32, 32)
SIGNALS = task_of(1, 40)


def on_meta(name, task):
    """The model without memory: sizes and shapes are known, numbers are not."""
    with torch.device("meta"):
        return MODELS[name].load()(task, **MODELS[name].fixed)


def num_parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "task", "expected"),
    [
        ("logistic", SIGNALS, 410),
        ("mlp", SIGNALS, 15_210),
        ("cnn1d", SIGNALS, 5_210),
        ("resnet8", CIFAR, 75_290),
        ("resnet20", CIFAR, 269_722),  # 0.27 M in He et al. 2015, table 6
        ("resnet18", CIFAR, 11_173_962),
        ("wrn-16-4", CIFAR, 2_748_890),  # 2.7 M
        ("wrn-28-10", CIFAR, 36_479_194),  # 36.5 M in Zagoruyko and Komodakis 2016
        ("wrn-28-10", task_of(3, 32, 32, num_classes=100), 36_536_884),
        ("pyramidnet-110", CIFAR, 28_485_477),  # 28.5 M
        ("vit-tiny", CIFAR, 5_362_762),
    ],
)
def test_the_number_of_parameters_is_the_published_one(name, task, expected):
    model = on_meta(name, task)
    assert num_parameters(model) == expected
    assert model(torch.zeros(2, *task.input_shape, device="meta")).shape == (2, task.num_classes)


def test_the_weighted_layers_on_the_longest_path_give_the_depth_of_the_name():
    for name, depth in [
        ("resnet8", 8),
        ("resnet20", 20),
        ("resnet18", 18),
        ("wrn-16-4", 16),
        ("wrn-28-10", 28),
        ("pyramidnet-110", 110),
    ]:
        layers = [m for m in on_meta(name, CIFAR).modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        shortcuts = [m for m in layers if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1)]
        # The wide nets count the three projections instead of the first layers of their stages.
        extra = 3 if name.startswith("wrn") else 0
        assert len(layers) - len(shortcuts) + extra == depth + (1 if extra else 0)


def test_gpt_mini_counts_its_tied_embedding_once():
    task = task_of(64, num_classes=103, kind="language")
    model = on_meta("gpt-mini", task)
    assert num_parameters(model) == 6 * (12 * 192**2 + 13 * 192) + (103 + 64 + 2) * 192
    assert model.head.weight is model.tokens.weight
    assert {"head.weight", "tokens.weight"} <= set(model.state_dict())


def test_the_pyramid_widens_by_alpha_in_all():
    blocks = on_meta("pyramidnet-110", CIFAR).blocks
    assert [block.conv1.in_channels for block in blocks[:3]] == [16, 21, 26]
    assert len(blocks) == 54
    assert blocks[-1].conv2.out_channels == 286
    assert [i for i, block in enumerate(blocks) if block.stride == 2] == [18, 36]


def test_cnn1d_has_the_shapes_of_the_paper():
    model = build_model("cnn1d", SIGNALS, seed=0)
    x, lengths = SIGNALS.train.inputs, []
    for layer in model:
        x = layer(x)
        if isinstance(layer, nn.Conv1d):
            lengths.append(x.shape[-1])
            assert (layer.stride, layer.padding) == ((2,), (1,))
    assert lengths == [19, 10, 5]
    assert [m.kernel_size[0] for m in model if isinstance(m, nn.Conv1d)] == [5, 3, 3]


def randomised(module, seed=0):
    """The module with random statistics and affine numbers, in eval mode, float64."""
    generator = torch.Generator().manual_seed(seed)
    module = module.double().eval()
    with torch.no_grad():
        for tensor in [*module.parameters(), *module.buffers()]:
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator).double() + 0.5)
    return module


def normed(x, bn):
    scale = bn.weight / torch.sqrt(bn.running_var + bn.eps)
    return (x - bn.running_mean[:, None, None]) * scale[:, None, None] + bn.bias[:, None, None]


def pixels(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1)).double()


def test_a_basic_block_is_its_equation():
    block = randomised(BasicBlock(2, 4, 2, PaddedShortcut(2, 4, 2)))
    x = pixels(1, 2, 6, 6)
    inner = normed(functional.conv2d(x, block.conv1.weight, stride=2, padding=1), block.bn1)
    outer = normed(functional.conv2d(inner.clamp_min(0), block.conv2.weight, padding=1), block.bn2)
    shortcut = torch.zeros(1, 4, 3, 3).double()
    shortcut[:, 1:3] = x[:, :, ::2, ::2]
    torch.testing.assert_close(block(x), (outer + shortcut).clamp_min(0))


def test_a_preactivated_block_is_its_equation():
    x = pixels(1, 2, 6, 6)
    for block in (randomised(PreactivatedBlock(2, 4, 2)), randomised(PreactivatedBlock(2, 2, 1))):
        stride = 2 if block.projection is not None else 1
        activated = normed(x, block.bn1).clamp_min(0)
        inner = functional.conv2d(activated, block.conv1.weight, stride=stride, padding=1)
        outer = functional.conv2d(
            normed(inner, block.bn2).clamp_min(0), block.conv2.weight, padding=1
        )
        shortcut = (
            x
            if block.projection is None
            else functional.conv2d(activated, block.projection.weight, stride=2)
        )
        torch.testing.assert_close(block(x), outer + shortcut)


def test_a_pyramid_block_is_its_equation():
    block = randomised(PyramidBlock(2, 5, 2))
    x = pixels(1, 2, 6, 6)
    inner = functional.conv2d(normed(x, block.bn1), block.conv1.weight, stride=2, padding=1)
    inner = functional.conv2d(normed(inner, block.bn2).clamp_min(0), block.conv2.weight, padding=1)
    shortcut = torch.zeros(1, 5, 3, 3).double()
    shortcut[:, :2] = x.view(1, 2, 3, 2, 3, 2).mean((3, 5))
    torch.testing.assert_close(block(x), normed(inner, block.bn3) + shortcut)


@pytest.mark.parametrize("causal", [False, True])
def test_attention_equals_torchs_fused_one(causal):
    layer = Attention(12, 3, causal=causal).double()
    x = pixels(2, 5, 12)
    query, key, value = (
        part.view(2, 5, 3, 4).transpose(1, 2) for part in layer.qkv(x).chunk(3, dim=-1)
    )
    mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=causal)
    torch.testing.assert_close(layer(x), layer.out(mixed.transpose(1, 2).reshape(2, 5, 12)))


def test_gpt_sees_no_future():
    task = task_of(9, num_classes=11, kind="language")
    model = build_model("gpt-mini", task, seed=0, dim=24, depth=2, heads=3)
    tokens = task.train.inputs
    changed = tokens.clone()
    changed[:, 5:] = (changed[:, 5:] + 1) % 11
    before, after = model(tokens).detach(), model(changed).detach()
    torch.testing.assert_close(before[:, :5], after[:, :5])
    assert float((before[:, 5:] - after[:, 5:]).abs().max()) > 1e-3
    assert model(tokens[:, :4]).shape == (4, 4, 11)  # a shorter text is read, too


def test_gpt_starts_near_the_uniform_guess():
    task = task_of(16, num_classes=50, kind="language")
    model = build_model("gpt-mini", task, seed=0)
    loss = float(task.loss(model(task.train.inputs), task.train.targets).detach())
    assert abs(loss - math.log(50)) < 0.3


def test_convolutions_start_with_the_variance_of_he():
    weight = build_model("wrn-16-4", CIFAR, seed=0).blocks[2].conv1.weight  # 64 to 128
    expected = 2 / (weight.shape[0] * 9)
    weight = weight.detach()
    assert abs(float(weight.var()) / expected - 1) < 0.02  # 73,728 draws: deviation 0.5 %
    assert abs(float(weight.mean())) < 4 * math.sqrt(expected / weight.numel())


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (1, 40), (2, 12)])
def test_vit_takes_images_and_signals(shape):
    task = task_of(*shape)
    model = build_model("vit-tiny", task, seed=0, dim=12, depth=1, heads=3)
    assert model(task.train.inputs).shape == (4, 10)


@pytest.mark.parametrize("name", ["resnet8", "resnet20", "wrn-16-4"])
@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 9, 11)])
def test_image_models_take_small_grey_and_odd_images(name, shape):
    task = task_of(*shape, num_classes=3)
    assert build_model(name, task, seed=0)(task.train.inputs).shape == (4, 3)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 9, 11)])
def test_the_pyramid_takes_odd_images(shape):
    assert on_meta("pyramidnet-110", task_of(*shape))(
        torch.zeros(2, *shape, device="meta")
    ).shape == (2, 10)


def test_images_with_the_colours_last_are_told_so():
    with pytest.raises(ValueError, match="move the channels to the front"):
        build_model("resnet8", task_of(32, 32, 3), seed=0)


def test_a_signal_too_short_for_cnn1d_is_refused():
    assert build_model("cnn1d", task_of(1, 3), seed=0)(torch.zeros(2, 1, 3)).shape == (2, 10)
    with pytest.raises(ValueError, match="needs signals of 3 points"):
        build_model("cnn1d", task_of(1, 2), seed=0)


class FakeTimm:
    """What of timm we call, with one small model."""

    @staticmethod
    def list_models():
        return ["tinynet_a", "convnext_tiny"]

    @staticmethod
    def create_model(name, *, pretrained, in_chans, num_classes, drop=0.0):
        assert pretrained is False
        if drop > 1:
            raise TypeError("drop is a share")
        return nn.Sequential(
            nn.Conv2d(in_chans, 4, 3),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4, num_classes),
        )


def test_timm_models_get_the_channels_and_classes_of_the_task(monkeypatch):
    fake = SimpleNamespace(list_models=FakeTimm.list_models, create_model=FakeTimm.create_model)
    monkeypatch.setitem(sys.modules, "timm", fake)
    task = task_of(1, 8, 8, num_classes=7)
    model = build_model("timm:tinynet_a", task, seed=0)
    assert model(task.train.inputs).shape == (4, 7)
    with pytest.raises(
        ValueError, match="unknown timm model 'tinynet_b'; did you mean 'tinynet_a'"
    ):
        build_model("timm:tinynet_b", task, seed=0)
    with pytest.raises(ValueError, match="timm:tinynet_a: TypeError: drop is a share"):
        build_model("timm:tinynet_a", task, seed=0, drop=2)


def test_a_timm_that_fails_to_import_is_told_in_one_line(monkeypatch, tmp_path):
    (tmp_path / "timm.py").write_text("raise RuntimeError('operator nms\\ndoes not exist')")
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="cannot be imported: RuntimeError: operator nms does not"):
        build_model("timm:resnet18", CIFAR, seed=0)


def test_timm_asks_for_its_extra_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match=r"pip install 'loss-landscape-toolkit\[timm\]'"):
        build_model("timm:resnet18", CIFAR, seed=0)
