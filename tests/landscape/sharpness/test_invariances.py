"""What every measure does when the network is written otherwise and computes the same.

A whole ReLU layer pair times 10 and 1/10, and hidden units in another order: no output moves.
"""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from landscape.objective import Objective
from landscape.sharpness import METRICS, measure, parse

F64 = torch.float64

# Unchanged by the scale of a layer pair, with the options that make them so.
SCALE_FREE = {
    "adaptive-worst-case": "adaptive-worst-case:rho=0.3",
    "adaptive-average-case": "adaptive-average-case:rho=0.3:num_draws=16",
    "fisher-rao": "fisher-rao",
    "relative-flatness": "relative-flatness",
    "pac-bayes": "pac-bayes:noise=magnitude:eps=0",
    "pac-bayes-loss": "pac-bayes-loss:noise=magnitude:eps=0",
}
SHARES = {"negative-mass"}  # of the spectrum: moved a little
DRAWN = {
    "average-case", "adaptive-average-case", "pac-bayes", "pac-bayes-loss",
    "sam-average-predicted", "trace", "negative-mass",
}  # fmt: skip


def relu_net():
    generator = torch.Generator().manual_seed(3)
    net = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 6), nn.ReLU(), nn.Linear(6, 3)).to(
        F64
    )
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(0.7 * torch.randn(p.shape, generator=generator, dtype=F64))
    return net


def objective_of(net):
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(48, 5, generator=generator, dtype=F64)
    y = relu_net()(x).argmax(1)  # mostly right, so that there are errors to count
    y[::6] = (y[::6] + 1) % 3
    return Objective(net, F.cross_entropy, [(x[:20], y[:20]), (x[20:], y[20:])])


def rescaled(factor):
    """The last hidden layer times the factor, the layer after it divided by it."""
    net = relu_net()
    with torch.no_grad():
        net[2].weight.mul_(factor)
        net[2].bias.mul_(factor)
        net[4].weight.div_(factor)
    return net


def permuted():
    net = relu_net()
    first, second = torch.tensor([3, 0, 6, 1, 5, 2, 4]), torch.tensor([5, 2, 0, 4, 1, 3])
    with torch.no_grad():
        for layer, order in ((net[0], first), (net[2], second)):
            layer.weight.copy_(layer.weight[order].clone())
            layer.bias.copy_(layer.bias[order].clone())
        net[2].weight.copy_(net[2].weight[:, first].clone())
        net[4].weight.copy_(net[4].weight[:, second].clone())
    return net


@pytest.fixture(scope="module")
def as_it_stands():
    values = {}

    def value(word):
        if word not in values:
            values[word] = measure(word, objective_of(relu_net()))
        return values[word]

    return value


@pytest.mark.parametrize("other", [rescaled(10), rescaled(0.1), permuted()])
def test_the_networks_compute_the_same(other):
    x = torch.randn(30, 5, generator=torch.Generator().manual_seed(5), dtype=F64)
    torch.testing.assert_close(other(x), relu_net()(x), rtol=1e-12, atol=1e-12)
    weights = torch.cat([p.flatten() for p in other.parameters()])
    assert not torch.allclose(weights, torch.cat([p.flatten() for p in relu_net().parameters()]))


@pytest.mark.parametrize("factor", [10.0, pytest.param(0.1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", [name for name in METRICS if name not in SHARES])
def test_a_layer_pair_times_ten_and_a_tenth_changes_the_plain_measures_alone(
    as_it_stands, name, factor
):
    word = SCALE_FREE.get(name, name)
    before = as_it_stands(word).value
    after = measure(word, objective_of(rescaled(factor))).value
    assert before > 0 or name == "lambda-min"
    if name in SCALE_FREE:
        assert after == pytest.approx(before, rel=1e-4)
    else:
        assert abs(after / before - 1) > 0.1


def test_the_same_measures_without_those_options_do_change(as_it_stands):
    for word in (
        "adaptive-worst-case:rho=0.3:eta=0.1",
        "adaptive-average-case:rho=0.3:num_draws=16:eta=0.1",
        "pac-bayes",
        "pac-bayes-loss",
    ):
        after = measure(word, objective_of(rescaled(10.0))).value
        assert abs(after / as_it_stands(word).value - 1) > 0.05, word


@pytest.mark.slow
@pytest.mark.parametrize("name", METRICS)
def test_the_order_of_hidden_units_changes_nothing(as_it_stands, name):
    """Draws fall on other units: those measures are the same within their errors."""
    tight = "tolerance" in METRICS[name].options
    word = f"{name}:tolerance=1e-6" if tight else name
    before, after = as_it_stands(word), measure(word, objective_of(permuted()))
    if name in DRAWN:
        error = (before.standard_error**2 + after.standard_error**2) ** 0.5
        assert 0 < error < abs(before.value) + 0.2
        assert abs(after.value - before.value) < 4 * error
    else:
        assert after.value == pytest.approx(before.value, rel=1e-3)
        assert after.kind == before.kind
    assert parse(word).name == name


def test_one_unit_times_ten_changes_relative_flatness_and_not_the_adaptive_worst_case(
    as_it_stands,
):
    net = copy.deepcopy(relu_net())
    with torch.no_grad():
        net[2].weight[1].mul_(10)
        net[2].bias[1].mul_(10)
        net[4].weight[:, 1].div_(10)
    word = SCALE_FREE["adaptive-worst-case"]
    assert measure(word, objective_of(net)).value == pytest.approx(
        as_it_stands(word).value, rel=1e-4
    )
    ratio = (
        measure("relative-flatness", objective_of(net)).value
        / as_it_stands("relative-flatness").value
    )
    assert abs(ratio - 1) > 0.05
