import copy

import pytest
import torch
from torch import nn

from sam_variants import ASAM, SAM
from sam_variants.training.closure import batch_closure, evaluating
from tests.references import HeavyBall, Quadratic, coupled_matrix

START = [1.0, -2.0, 0.5, 3.0]


def sgd(parameters, **options):
    return torch.optim.SGD(parameters, **{"lr": 0.1, **options})


def named(q, names):
    return list(zip(names, q.parameters, strict=True))


def offset_of(q, parameters, **options):
    ASAM(sgd(parameters), **options).step(q.closure)
    return q.visited[1] - q.visited[0]


def test_twenty_steps_follow_the_equations_with_weights_and_biases():
    h, rho, eta = coupled_matrix(), 0.6, 0.05
    q = Quadratic(h, START, sizes=[1, 2, 1])
    x, base = q.x, HeavyBall(lr=0.2, momentum=0.9, weight_decay=0.05)
    optimizer = ASAM(
        sgd(
            named(q, ["a.weight", "a.bias", "norm.weight"]),
            lr=0.2,
            momentum=0.9,
            weight_decay=0.05,
        ),
        rho=rho,
        eta=eta,
    )
    for _ in range(20):
        g = h @ x
        t = torch.where(torch.tensor([True, False, False, True]), x.abs() + eta, 1.0)
        x = base(x, h @ (x + rho * t**2 * g / ((t * g).norm() + 1e-12)))
        optimizer.step(q.closure)
        torch.testing.assert_close(q.x, x, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("adapt", ["weights", "all"])
def test_with_eta_zero_the_offset_has_length_rho_in_units_of_the_weights(adapt):
    names = ["weight", "head.weight"] if adapt == "weights" else ["bias", "scale"]
    q = Quadratic(coupled_matrix(), START, sizes=[2, 2])
    offset = offset_of(q, named(q, names), rho=0.7, eta=0.0, adapt=adapt)
    assert (offset / q.visited[0].abs()).norm().item() == pytest.approx(0.7, rel=1e-11)


def test_where_no_tensor_is_a_weight_asam_is_sam():
    one, other = (Quadratic(coupled_matrix(), START, sizes=[1, 3]) for _ in range(2))
    asam = ASAM(sgd(named(one, ["bias", "scale"]), momentum=0.9), rho=0.3)
    sam = SAM(sgd(other.parameters, momentum=0.9), rho=0.3)
    for _ in range(10):
        asam.step(one.closure)
        sam.step(other.closure)
    assert torch.equal(one.x, other.x)


def test_without_names_matrices_are_weights_and_vectors_are_not():
    def offsets(with_names):
        torch.manual_seed(0)
        model = nn.Linear(3, 2).double()
        x = torch.randn(5, 3, dtype=torch.float64)
        parameters = model.named_parameters() if with_names else model.parameters()
        optimizer = ASAM(sgd(parameters), rho=0.5)
        seen = []
        for request in optimizer.passes():
            seen.append([p.detach().clone() for p in model.parameters()])
            loss = model(x).square().mean()
            loss.backward()
            request.loss = loss.detach()
        return [after - before for before, after in zip(*seen, strict=True)]

    for a, b in zip(offsets(True), offsets(False), strict=True):
        assert torch.equal(a, b)


def test_a_bias_at_zero_moves_under_weights_and_stays_under_all_with_eta_zero():
    for adapt, moves in (("weights", True), ("all", False)):
        q = Quadratic(coupled_matrix(), [1.0, 1.0, 0.0, 0.0], sizes=[2, 2])
        offset = offset_of(q, named(q, ["weight", "bias"]), eta=0.0, adapt=adapt)
        assert bool((offset[2:] != 0).all()) == moves


def test_rescaling_a_relu_net_rescales_the_perturbation_and_keeps_the_perturbed_loss():
    torch.manual_seed(0)
    plain = nn.Sequential(
        nn.Linear(4, 16, bias=False), nn.ReLU(), nn.Linear(16, 3, bias=False)
    ).double()
    scaled = copy.deepcopy(plain)
    with torch.no_grad():
        scaled[0].weight.mul_(8.0)
        scaled[2].weight.div_(8.0)
    x, y = torch.randn(32, 4, dtype=torch.float64), torch.randint(3, (32,))
    seen = []
    for model in (plain, scaled):
        optimizer = ASAM(sgd(model.named_parameters()), rho=0.5, eta=0.0)
        home = [p.detach().clone() for p in model.parameters()]
        for request in optimizer.passes(num_rows=32):
            with evaluating(model, request):
                loss = nn.functional.cross_entropy(model(x), y)
                loss.backward()
            request.loss = loss.detach()
            moved = [p.detach() - h for p, h in zip(model.parameters(), home, strict=True)]
        seen.append((loss.item(), moved))
    (loss, offset), (scaled_loss, scaled_offset) = seen
    assert loss == pytest.approx(scaled_loss, rel=1e-12)
    torch.testing.assert_close(scaled_offset[0], 8.0 * offset[0], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(scaled_offset[1], offset[1] / 8.0, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rho": -1.0}, "rho must be a number >= 0"),
        ({"eta": -0.1}, "eta must be a number >= 0"),
        ({"adapt": "biases"}, "adapt must be one of weights, all"),
    ],
)
def test_options_out_of_range_raise_with_the_range(options, message):
    with pytest.raises(ValueError, match=message):
        ASAM(sgd([nn.Parameter(torch.ones(1))]), **options)


def test_a_whole_training_runs_with_batch_norm_scales_as_weights():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    x, y = torch.randn(64, 4), torch.randint(3, (64,))
    optimizer = ASAM(sgd(model.named_parameters(), momentum=0.9))
    losses = [
        float(optimizer.step(batch_closure(model, nn.functional.cross_entropy, x, y)))
        for _ in range(40)
    ]
    assert losses[-1] < 0.9 * losses[0]
    assert optimizer._adapts() == [True, False, True, False, True, False]
