"""Adaptive measures: the trust region in units of |theta|, and the rescaling of a ReLU pair."""

import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional

from landscape.linalg import MatrixOperator, lanczos
from landscape.objective import Objective
from landscape.sharpness import Spectrum, measure
from landscape.sharpness.normalised_logits import NormalisedLogits, on_normalised_logits
from landscape.sharpness.rescaled import Rescaled
from tests.references import CountingObjective, quadratic_objective, trust_region_maximum

F64 = torch.float64


def random_problem(seed, size=7, slope=1.0, num_zeros=0):
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(size, size, generator=generator, dtype=F64)
    g = slope * torch.randn(size, generator=generator, dtype=F64)
    theta = torch.randn(size, generator=generator, dtype=F64)
    theta[:num_zeros] = 0.0
    return (a + a.T) / 2, g, theta


def in_units_of_size(h, g, theta, eta=0.0):
    """T H T and T g on the coordinates that move, dense."""
    t = theta.abs() + eta
    moves = t > 0
    t = t[moves]
    return t[:, None] * h[moves][:, moves] * t, t * g[moves]


def relu_pair(scale, *, num_zeros=0):
    """A trained-like ReLU net whose hidden units are multiplied by `scale` and undone after."""
    generator = torch.Generator().manual_seed(7)
    net = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3)).to(F64)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator, dtype=F64))
        net[0].bias[:num_zeros] = 0.0
        net[0].weight.mul_(scale)
        net[0].bias.mul_(scale)
        net[2].weight.div_(scale)
    inputs = torch.randn(40, 6, generator=generator, dtype=F64)
    targets = torch.randint(0, 3, (40,), generator=generator)
    return Objective(net, functional.cross_entropy, [(inputs, targets)])


# -- Coordinates ---------------------------------------------------------------------------------


@pytest.mark.parametrize("num_zeros", [0, 3])
def test_the_rescaled_loss_has_the_derivatives_of_the_chain_rule(num_zeros):
    h, g, theta = random_problem(0, num_zeros=num_zeros)
    scaled = Rescaled.by_size(quadratic_objective(h, g, theta=theta), theta, eta=0.0)
    hessian, gradient = in_units_of_size(h, g, theta)
    assert scaled.num_parameters == 7 - num_zeros
    u = torch.linspace(-1, 1, scaled.num_parameters, dtype=F64)
    value, slope = scaled.value_and_gradient(u)
    assert value == pytest.approx(1 + float(gradient @ u + u @ hessian @ u / 2))
    assert value == pytest.approx(scaled.value(u))
    torch.testing.assert_close(slope, gradient + hessian @ u)
    v = torch.linspace(2, -1, scaled.num_parameters, dtype=F64)
    torch.testing.assert_close(scaled.hvp(u, v), hessian @ v)
    there = scaled.there(u)
    assert torch.equal(there[:num_zeros], theta[:num_zeros])
    torch.testing.assert_close((there - theta)[num_zeros:], theta[num_zeros:].abs() * u)


# -- Worst case ----------------------------------------------------------------------------------


@pytest.mark.parametrize("rho", [0.1, 0.5, 2.0])
@pytest.mark.parametrize("slope", [0.0, 0.01, 1.0])
@pytest.mark.parametrize("num_zeros", [0, 2])
@pytest.mark.parametrize("eta", [0.0, 0.3])
def test_a_quadratic_has_the_worst_case_of_the_secular_equation(num_zeros, slope, rho, eta):
    h, g, theta = random_problem(1, slope=slope, num_zeros=num_zeros)
    objective = quadratic_objective(h, g, theta=theta)
    found = measure(f"adaptive-worst-case:rho={rho}:eta={eta}:num_steps=40", objective)
    truth = trust_region_maximum(*in_units_of_size(h, g, theta, eta), rho)
    assert found.value == pytest.approx(truth, rel=1e-5)
    assert found.value <= truth * (1 + 1e-12)
    assert found.kind == "lower bound"
    assert found.details["num_fixed"] == (num_zeros if eta == 0 else 0)
    assert found.details["num_parameters"] == 7
    assert found.cost.gradients == objective.gradients
    assert found.cost.products == objective.products


def test_the_cases_that_defeat_the_gradient_are_found_in_units_of_size_too():
    # In u = e / |theta| these are H = diag(1, 0.4874) at rho = 1: with g = 0 the truth is 0.5 and
    # the gradient alone finds 0; with g = (0, 0.3153) it is 0.597 and the gradient finds 0.559.
    theta = torch.tensor([-2.0, 0.5], dtype=F64)
    h = torch.diag(torch.tensor([1.0, 0.4874], dtype=F64) / theta**2)
    for slope, gradient_alone, truth in ((0.0, 0.0, 0.5), (0.3153, 0.559, 0.597)):
        g = torch.tensor([0.0, slope], dtype=F64) / theta.abs()
        objective = quadratic_objective(h, g, theta=theta)
        found = measure("adaptive-worst-case:rho=1:num_restarts=0", objective)
        runs = {run["start"]: run["rise"] for run in found.details["starts"]}
        assert runs.get("gradient", 0.0) == pytest.approx(gradient_alone, abs=1e-3)
        assert found.value == pytest.approx(truth, abs=5e-4)


def test_the_box_is_relative_to_each_parameter():
    theta = torch.tensor([-2.0, 0.5, 0.0], dtype=F64)
    h, g = torch.diag(torch.tensor([1.0, 2.0, 50.0], dtype=F64)), torch.zeros(3, dtype=F64)
    found = measure("adaptive-worst-case:rho=0.1:norm=linf", quadratic_objective(h, g, theta=theta))
    assert found.value == pytest.approx(0.01 * (1 * 4 + 2 * 0.25) / 2)
    assert found.details["norm"] == "linf of e / |theta|"


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("scale", [0.1, 10.0])
def test_rescaling_a_relu_pair_leaves_it_unchanged_and_changes_the_plain_one(scale, norm):
    before, after = relu_pair(1.0, num_zeros=2), relu_pair(scale, num_zeros=2)
    assert after.value(after.theta) == pytest.approx(before.value(before.theta), rel=1e-12)
    words = f"adaptive-worst-case:rho=0.2:norm={norm}"
    one, other = measure(words, before), measure(words, after)
    assert other.value == pytest.approx(one.value, rel=1e-4)
    assert one.details["rescaling_invariant"]
    assert one.details["num_fixed"] == 2
    assert one.details["warnings"] == []
    plain = f"worst-case:rho=0.2:norm={norm}"
    ratio = measure(plain, after).value / measure(plain, before).value
    assert not 0.8 < ratio < 1.25


@pytest.mark.parametrize("metric", ["adaptive-worst-case", "adaptive-average-case"])
def test_an_eta_voids_the_invariance_and_says_so(metric):
    before, after = relu_pair(1.0), relu_pair(10.0)
    words = f"{metric}:rho=0.2:eta=0.01"
    one, other = measure(words, before), measure(words, after)
    assert abs(other.value / one.value - 1) > 1e-3
    for found in (one, other):
        assert found.details["rescaling_invariant"] is False
        assert found.details["eta"] == 0.01
        assert found.details["norm"].endswith("of e / (|theta| + 0.01)")
        assert "eta = 0.01 is added" in found.details["warnings"][0]


def test_a_flip_of_the_weights_signs_is_no_rescaling_but_leaves_the_units_alone():
    h, g, theta = random_problem(3)
    flip = torch.tensor([1.0, -1, 1, -1, 1, -1, 1], dtype=F64)
    one = measure("adaptive-worst-case", quadratic_objective(h, g, theta=theta))
    other = measure("adaptive-worst-case", quadratic_objective(h, g, theta=flip * theta))
    assert other.value == pytest.approx(one.value, rel=1e-9)


@pytest.mark.parametrize("metric", ["adaptive-worst-case", "adaptive-average-case"])
def test_where_every_parameter_is_zero_none_can_move(metric):
    objective = quadratic_objective(
        torch.eye(3, dtype=F64), torch.ones(3, dtype=F64), theta=torch.zeros(3, dtype=F64)
    )
    found = measure(metric, objective)
    assert found.value == 0.0
    assert found.details["num_fixed"] == 3
    assert found.details["rho"] == 0.5
    assert "every parameter is zero" in found.details["warnings"][0]
    assert measure(f"{metric}:eta=0.1", objective).value > 0


def test_a_loss_that_is_not_finite_in_the_ball_is_named():
    objective = CountingObjective(
        lambda theta: theta[0] + torch.where(theta[0] > 2.5, torch.inf, 0.0),
        torch.tensor([2.0, 1.0], dtype=F64),
    )
    found = measure("adaptive-worst-case", objective)
    assert math.isinf(found.value)
    assert "loss is inf" in found.details["warnings"][0]


# -- Average case --------------------------------------------------------------------------------


@pytest.mark.parametrize("num_zeros", [0, 2])
def test_a_quadratic_with_known_eigenpairs_has_the_average_of_its_closed_form(num_zeros):
    h, g, theta = random_problem(4, num_zeros=num_zeros)
    spectrum = Spectrum(eigenpairs=lanczos(MatrixOperator(h), num_eigenpairs=7, tolerance=1e-12))
    objective = quadratic_objective(h, g, theta=theta)
    found = measure("adaptive-average-case:num_draws=4", objective, spectrum=spectrum)
    scaled, _ = in_units_of_size(h, g, theta)
    truth = 0.25 * float(scaled.trace()) / (2 * (7 - num_zeros))
    assert found.value == pytest.approx(truth, rel=1e-9)
    assert found.standard_error < 1e-9 * abs(truth)
    assert found.details["control_eigenpairs"] == 7
    assert (found.cost.gradients, found.cost.forwards) == (1, 4)


def test_without_eigenpairs_the_average_is_within_its_error_of_the_closed_form():
    h, g, theta = random_problem(5, num_zeros=1)
    scaled, _ = in_units_of_size(h, g, theta)
    truth = 0.25 * float(scaled.trace()) / 12
    scores = []
    for seed in range(20):
        found = measure("adaptive-average-case", quadratic_objective(h, g, theta=theta), seed=seed)
        scores.append((found.value - truth) / found.standard_error)
    assert max(map(abs, scores)) < 4.5
    assert abs(sum(scores)) / 20**0.5 < 4


def test_the_noise_has_the_stated_length_and_leaves_zeros_where_they_are():
    h, g, theta = random_problem(6, size=400, num_zeros=50)
    objective = quadratic_objective(h, g, theta=theta)
    measure("adaptive-average-case:rho=0.3:num_draws=20", objective)
    noise = torch.stack(objective.visited[1:]) - theta
    assert torch.equal(noise[:, :50], torch.zeros(20, 50, dtype=F64))
    squares = (noise[:, 50:] / theta[50:]).square().sum(1)
    assert float(squares.mean()) == pytest.approx(0.09, rel=0.05)


def test_rescaling_a_relu_pair_leaves_the_adaptive_average_unchanged():
    one, other = (measure("adaptive-average-case", relu_pair(scale)) for scale in (1.0, 10.0))
    assert other.value == pytest.approx(one.value, rel=1e-4)
    assert other.standard_error == pytest.approx(one.standard_error, rel=1e-4)
    plain = [measure("average-case", relu_pair(scale)).value for scale in (1.0, 10.0)]
    assert abs(plain[1] / plain[0] - 1) > 0.1


# -- Normalised logits ---------------------------------------------------------------------------

ADAPTIVE = ["adaptive-worst-case", "adaptive-average-case"]


def classifier(scale=1.0, *, loss=functional.cross_entropy, cuts=(23, 17), outputs=3):
    """A smooth net in float64 whose last linear layer, bias included, is multiplied by `scale`."""
    generator = torch.Generator().manual_seed(3)
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, outputs)).to(F64)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(0.7 * torch.randn(parameter.shape, generator=generator, dtype=F64))
        net[2].weight.mul_(scale)
        net[2].bias.mul_(scale)
    inputs = torch.randn(sum(cuts), 6, generator=generator, dtype=F64)
    targets = torch.randint(0, 3, (sum(cuts),), generator=generator)
    return Objective(net, loss, list(zip(inputs.split(cuts), targets.split(cuts), strict=True)))


@pytest.mark.parametrize("metric", ADAPTIVE)
@pytest.mark.parametrize("scale", [0.01, 30.0])
def test_scaling_the_last_layer_moves_the_raw_measure_and_not_the_normalised_one(metric, scale):
    before, after = classifier(), classifier(scale)
    raw, moved = (measure(f"{metric}:rho=0.3", one) for one in (before, after))
    assert not 0.5 < moved.value / raw.value < 2
    one, other = (measure(f"{metric}:rho=0.3:logits=normalised", o) for o in (before, after))
    assert other.value == pytest.approx(one.value, rel=1e-6)
    assert one.value > 1e-3
    assert one.value != pytest.approx(raw.value, rel=0.05)
    assert one.details["logits"] == "normalised"
    assert raw.details["logits"] == "raw"
    assert one.kind == raw.kind


class UnitLogits(nn.Module):
    """A net whose own outputs are centred and divided by their length, one row at a time."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, inputs):
        rows = []
        for row in self.net(inputs):
            row = row - sum(row) / len(row)
            rows.append(row / sum(row * row).sqrt())
        return torch.stack(rows)


@pytest.mark.parametrize("metric", ["adaptive-worst-case:num_steps=5", "adaptive-average-case"])
def test_it_is_the_plain_measure_of_a_net_that_ends_in_the_normalisation(metric):
    given = classifier(2.0, cuts=(12, 5))
    written = Objective(UnitLogits(given._model), functional.cross_entropy, given.batches)
    assert torch.equal(written.theta, given.theta)
    expected = measure(f"{metric}:rho=0.3", written)
    found = measure(f"{metric}:rho=0.3:logits=normalised", given)
    assert found.value == pytest.approx(expected.value, rel=1e-9)
    assert (found.cost.gradients, found.cost.forwards, found.cost.products) == (
        expected.cost.gradients, expected.cost.forwards, expected.cost.products
    )  # fmt: skip


def test_the_objective_itself_keeps_its_loss_and_a_spectrum_of_it_is_not_used():
    objective = classifier()
    value = objective.value(objective.theta)
    pairs = lanczos(MatrixOperator(torch.eye(len(objective.theta), dtype=F64)), num_eigenpairs=3)
    word = "adaptive-average-case:logits=normalised"
    found = measure(word, objective, spectrum=Spectrum(eigenpairs=pairs))
    assert found.details["control_eigenpairs"] == 0
    assert objective.loss is functional.cross_entropy
    assert objective.value(objective.theta) == value


def unit(z, dimension=-1):
    z = z - z.mean(dimension, keepdim=True)
    return z / z.square().sum(dimension, keepdim=True).sqrt()


def test_the_class_dimension_is_that_of_the_targets():
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(4, 5, 7, generator=generator, dtype=F64)
    indices = torch.randint(0, 5, (4, 7), generator=generator)
    found = NormalisedLogits(functional.cross_entropy)(z, indices)
    expected = functional.cross_entropy(unit(z, 1), indices)
    torch.testing.assert_close(found, expected)

    def of_tokens(output, target):
        return functional.cross_entropy(output.flatten(0, 1), target.flatten())

    tokens = torch.randint(0, 7, (4, 5), generator=generator)
    torch.testing.assert_close(NormalisedLogits(of_tokens)(z, tokens), of_tokens(unit(z), tokens))
    probabilities = torch.randn(4, 5, 7, generator=generator, dtype=F64).softmax(1)
    found = NormalisedLogits(nn.CrossEntropyLoss())(z, probabilities)
    torch.testing.assert_close(found, functional.cross_entropy(unit(z, 1), probabilities))


def test_shifted_and_scaled_logits_have_the_same_normalised_loss():
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(6, 4, generator=generator, dtype=F64)
    targets = torch.tensor([0, 1, 2, 3, 0, 1])
    loss = NormalisedLogits(partial(functional.cross_entropy, label_smoothing=0.1))
    factor = torch.rand(6, 1, generator=generator, dtype=F64) + 0.1
    torch.testing.assert_close(loss(z, targets), loss(factor * z + 5, targets))
    assert float(loss(z, targets)) != pytest.approx(float(loss(-z, targets)))


def test_weighted_and_ignored_targets_count_as_they_do_in_the_loss():
    weight = torch.tensor([0.2, 1.0, 3.0], dtype=F64)
    loss = nn.CrossEntropyLoss(weight=weight, ignore_index=1, reduction="sum")
    cut = on_normalised_logits(classifier(loss=loss, cuts=(9, 4)))
    whole = on_normalised_logits(classifier(loss=loss, cuts=(13,)))
    assert cut.value(cut.theta) == pytest.approx(whole.value(whole.theta), rel=1e-12)
    ((inputs, targets),) = whole.batches
    mean = nn.CrossEntropyLoss(weight=weight, ignore_index=1)
    expected = mean(unit(whole._model(inputs).detach()), targets)
    assert whole.value(whole.theta) == pytest.approx(float(expected), rel=1e-12)


def test_equal_logits_stay_at_zero_with_finite_derivatives():
    objective = on_normalised_logits(classifier(0.0))
    theta = objective.theta
    value, gradient = objective.value_and_gradient(theta)
    assert value == pytest.approx(math.log(3))
    assert bool(gradient.isfinite().all())
    assert bool(objective.hvp(theta, torch.ones_like(theta)).isfinite().all())


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("num_classes", [3, 7, 10, 1000])
def test_equal_logits_whose_mean_is_rounded_have_no_gradient(num_classes, dtype):
    level = torch.full((1, num_classes), 0.1, dtype=dtype)
    z = torch.cat([level, 1e4 * level, torch.eye(num_classes, dtype=dtype)[:1]]).requires_grad_()
    targets = torch.tensor([0, 1, 2])
    loss = NormalisedLogits(partial(functional.cross_entropy, reduction="sum"))(z, targets)
    (gradient,) = torch.autograd.grad(loss, z, create_graph=True)
    assert torch.equal(gradient[:2], torch.zeros_like(gradient[:2]))
    assert float(gradient[2].detach().abs().max()) > 0.1 / num_classes
    (second,) = torch.autograd.grad(gradient.square().sum(), z)
    assert bool(second.isfinite().all())
    expected = 2 * math.log(num_classes) + float(
        functional.cross_entropy(unit(z[2:]), targets[2:]).detach()
    )
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)


def called_by_the_loss(model, batch):
    return functional.cross_entropy(model(batch["x"]), batch["y"])


def without_classes():
    net = nn.Linear(3, 2).to(F64)
    inputs, targets = torch.ones(4, 3, dtype=F64), torch.ones(4, 2, dtype=F64)
    return Objective(net, functional.mse_loss, [(inputs, targets)])


def with_one_logit():
    inputs, targets = torch.ones(4, 3, dtype=F64), torch.zeros(4, 1, dtype=F64)
    loss = functional.binary_cross_entropy_with_logits
    return Objective(nn.Linear(3, 1).to(F64), loss, [(inputs, targets)])


def in_dictionaries():
    batch = {"x": torch.ones(4, 3, dtype=F64), "y": torch.zeros(4, dtype=torch.long)}
    return Objective(nn.Linear(3, 2).to(F64), called_by_the_loss, [batch])


REFUSED = {
    "needs batches of (inputs, targets)": [
        in_dictionaries,
        lambda: quadratic_objective(torch.eye(3, dtype=F64), torch.ones(3, dtype=F64)),
    ],
    "needs a classifier with two or more logits": [
        without_classes,
        with_one_logit,
        lambda: classifier(outputs=1, loss=lambda z, y: (z.squeeze(1) - y).square().mean()),
    ],
    "this loss takes log-probabilities": [
        lambda: classifier(loss=functional.nll_loss),
        lambda: classifier(loss=nn.NLLLoss()),
        lambda: classifier(loss=partial(functional.nll_loss, ignore_index=1)),
    ],
}


@pytest.mark.parametrize("metric", ADAPTIVE)
@pytest.mark.parametrize(
    ("reason", "made"), [(reason, made) for reason, several in REFUSED.items() for made in several]
)
def test_a_loss_without_logits_is_refused_with_the_reason(metric, reason, made):
    with pytest.raises(ValueError) as caught:
        measure(f"{metric}:logits=normalised", made())
    assert reason in str(caught.value)
    assert str(caught.value).startswith("logits=normalised needs")
