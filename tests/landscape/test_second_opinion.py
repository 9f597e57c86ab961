"""PyHessian beside ours, checked against the dense Hessian of torch.func."""

import copy
import math
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional

import landscape.second_opinion as module
from landscape.estimate import Cost, Estimate
from landscape.second_opinion import ask_pyhessian

F64 = torch.float64


def make_net(*, seed=0, dtype=F64):
    generator = torch.Generator().manual_seed(seed)
    net = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).to(dtype)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(0.7 * torch.randn(parameter.shape, generator=generator, dtype=dtype))
    inputs = torch.randn(50, 5, generator=generator, dtype=dtype)
    targets = torch.randint(0, 3, (50,), generator=generator)
    return net, [(inputs[a:b], targets[a:b]) for a, b in ((0, 23), (23, 46), (46, 50))]


def dense_hessian(net, batches, loss=functional.cross_entropy):
    names = [name for name, p in net.named_parameters() if p.requires_grad]
    sizes = [net.get_parameter(name).numel() for name in names]
    shapes = [net.get_parameter(name).shape for name in names]
    inputs, targets = (torch.cat(part) for part in zip(*batches, strict=True))

    def of(theta):
        pieces = zip(names, theta.split(sizes), shapes, strict=True)
        weights = {name: piece.view(shape) for name, piece, shape in pieces}
        return loss(torch.func.functional_call(net, weights, (inputs,)), targets)

    theta = torch.cat([net.get_parameter(name).detach().reshape(-1) for name in names])
    return torch.func.hessian(of)(theta)


def ours(hessian, factor=1.0):
    values = factor * torch.linalg.eigvalsh(hessian).flip(0)
    trace = Estimate(factor * float(hessian.trace()), 0.0, "estimate", Cost())
    return {"eigenpairs": pairs(values[:3].tolist(), values[-3:].tolist()), "trace": trace}


def pairs(top, bottom=()):
    """What the adapter looks at in Eigenpairs."""
    values = torch.tensor([*top, *bottom], dtype=F64)
    return SimpleNamespace(values=values, ends=("top",) * len(top) + ("bottom",) * len(bottom))


def test_it_agrees_with_the_dense_hessian_on_uneven_batches():
    net, batches = make_net()
    dense = dense_hessian(net, batches)
    opinion = ask_pyhessian(net, functional.cross_entropy, batches, **ours(dense))
    assert opinion.agrees is True
    assert opinion.eigenvalues[0] == pytest.approx(
        float(torch.linalg.eigvalsh(dense)[-1]), rel=1e-2
    )
    assert opinion.difference == pytest.approx(0, abs=1e-2)
    assert abs(opinion.trace - float(dense.trace())) < 4 * opinion.trace_standard_error
    assert opinion.num_probes == 100
    assert opinion.source.startswith("PyHessian 0.")
    assert opinion.message.startswith("agrees with PyHessian")


def test_several_eigenvalues_are_paired_end_by_end():
    net, batches = make_net(seed=1)
    dense = dense_hessian(net, batches)
    values = torch.linalg.eigvalsh(dense)
    opinion = ask_pyhessian(
        net,
        functional.cross_entropy,
        batches,
        num_eigenvalues=4,
        max_iterations=2000,
        tolerance=1e-9,
        **ours(dense),
    )
    by_magnitude = values[values.abs().argsort(descending=True)][:4]
    assert sorted(opinion.eigenvalues) == pytest.approx(sorted(by_magnitude.tolist()), rel=1e-3)
    assert opinion.agrees is True


@pytest.mark.parametrize("planted", ["eigenpairs", "trace"])
def test_a_planted_factor_two_in_ours_is_a_disagreement(planted):
    net, batches = make_net()
    dense = dense_hessian(net, batches)
    wrong = {**ours(dense), planted: ours(dense, factor=2.0)[planted]}
    opinion = ask_pyhessian(net, functional.cross_entropy, batches, **wrong)
    assert opinion.agrees is False
    assert opinion.message.startswith("DISAGREES with PyHessian: ")
    assert ("eigenvalue" if planted == "eigenpairs" else "trace") in opinion.message
    if planted == "eigenpairs":
        assert opinion.difference == pytest.approx(0.5, abs=0.01)


def test_a_negative_eigenvalue_that_leads_by_magnitude_is_no_disagreement():
    weights = torch.tensor([1.0, -4.0, 0.5], dtype=F64)

    class Squares(nn.Module):
        def __init__(self):
            super().__init__()
            self.x = nn.Parameter(torch.tensor([0.3, 0.2, 0.1], dtype=F64))

        def forward(self, inputs):
            return (weights * self.x**2).sum() / 2 * inputs

    def loss(output, target):
        return (output - target).mean()

    batches = [(torch.ones(4, dtype=F64), torch.zeros(4, dtype=F64))]
    top_only = ask_pyhessian(Squares(), loss, batches, eigenpairs=pairs([1.0]), num_eigenvalues=1)
    assert top_only.eigenvalues == pytest.approx((-4.0,), rel=1e-4)
    assert top_only.agrees is None
    assert "no partner among ours" in top_only.message
    both = ask_pyhessian(
        Squares(), loss, batches, eigenpairs=pairs([1.0], [-4.0]), num_eigenvalues=2
    )
    assert both.agrees is True
    assert both.eigenvalues == pytest.approx((-4.0, 1.0), rel=1e-4)
    assert both.partners == (-4.0, 1.0)
    # A negative value at the end of a long top list is no bottom end.
    long = ask_pyhessian(
        Squares(), loss, batches, eigenpairs=pairs([1.0, 0.5, -0.1]), num_eigenvalues=1
    )
    assert long.partners == (None,)


def test_eigenvalues_found_in_another_order_are_sorted_before_they_are_compared(monkeypatch):
    net, batches = make_net()
    monkeypatch.setattr(
        "pyhessian.hessian.eigenvalues", lambda self, **_: ([2.75, 2.953, -0.1, 1.0, 0.9], None)
    )
    opinion = ask_pyhessian(
        net, functional.cross_entropy, batches, eigenpairs=pairs([2.953, 2.75]), num_probes=2
    )
    assert opinion.eigenvalues == (2.953, 2.75, 1.0)
    assert opinion.partners == (2.953, 2.75, None)
    assert opinion.agrees is True


def test_the_ends_of_our_spectrum_are_not_taken_for_each_other(monkeypatch):
    net, batches = make_net()
    monkeypatch.setattr("pyhessian.hessian.eigenvalues", lambda self, **_: ([3.0, 2.0], None))
    opinion = ask_pyhessian(
        net, functional.cross_entropy, batches, eigenpairs=pairs([3.0], [1.0]), num_probes=2
    )
    assert opinion.partners == (3.0, None)
    assert opinion.agrees is True


def test_a_model_in_training_mode_is_measured_in_eval_mode():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 3)).to(
        F64
    )
    _, batches = make_net()
    for inputs, _ in batches:
        net(inputs)
    dense = dense_hessian(net.eval(), batches)
    opinion = ask_pyhessian(net.train(), functional.cross_entropy, batches, **ours(dense))
    assert opinion.agrees is True
    assert opinion.difference < 1e-3


def test_the_callers_model_and_the_global_state_stay_as_they_were(capsys):
    class Talkative(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))
            self.drop = nn.Dropout(0.5)

        def forward(self, inputs):
            print("a print in the model")
            return self.drop(self.layers(inputs))

    torch.manual_seed(5)
    net, batches = Talkative(), make_net(dtype=torch.float32)[1]
    net.train()
    net.layers[0].eval()
    functional.cross_entropy(net(batches[0][0]), batches[0][1]).backward()
    capsys.readouterr()
    before = copy.deepcopy(net.state_dict())
    gradients = {name: p.grad.clone() for name, p in net.named_parameters()}
    modes = [module.training for module in net.modules()]
    random_state, dtype = torch.get_rng_state(), torch.get_default_dtype()

    ask_pyhessian(net, functional.cross_entropy, batches, num_probes=3)

    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert all(torch.equal(gradients[name], p.grad) for name, p in net.named_parameters())
    assert [module.training for module in net.modules()] == modes
    assert all(p.requires_grad for p in net.parameters())
    assert torch.equal(random_state, torch.get_rng_state())
    assert torch.get_default_dtype() == dtype
    assert capsys.readouterr().out == ""


def test_the_same_seed_gives_the_same_numbers_whatever_the_global_state():
    net, batches = make_net()
    first = ask_pyhessian(net, functional.cross_entropy, batches, seed=3, num_probes=4)
    torch.manual_seed(99)
    again = ask_pyhessian(net, functional.cross_entropy, batches, seed=3, num_probes=4)
    other = ask_pyhessian(net, functional.cross_entropy, batches, seed=4, num_probes=4)
    assert (first.eigenvalues, first.trace) == (again.eigenvalues, again.trace)
    assert first.trace != other.trace


class WithUnused(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, _ = make_net()
        self.spare = nn.Linear(7, 7, dtype=F64)

    def forward(self, inputs):
        return self.used(inputs)


def test_unused_parameters_are_kept_from_it_and_named():
    net, (_, batches) = WithUnused(), make_net()
    dense = dense_hessian(net.used, batches)
    opinion = ask_pyhessian(net, functional.cross_entropy, batches, **ours(dense))
    assert opinion.agrees is True
    assert "crashes on unused parameters: it was not shown spare.weight, spare.bias" in (
        opinion.message
    )


def test_a_parameter_that_only_some_batches_use_is_named_and_ends_nothing(monkeypatch):
    class Routed(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = nn.Linear(5, 3), nn.Linear(5, 3)

        def forward(self, inputs):
            return self.left(inputs) if len(inputs) > 10 else self.right(inputs)

    monkeypatch.setattr(module, "_ONE_BATCH_BYTES", 0)
    _, batches = make_net(dtype=torch.float32)
    opinion = ask_pyhessian(Routed(), functional.cross_entropy, batches, eigenpairs=pairs([1.0]))
    assert (opinion.agrees, opinion.eigenvalues, opinion.trace) == (None, (), None)
    assert "which only some batches use" in opinion.message


def test_a_subset_of_the_parameters_is_the_block_of_the_hessian():
    net, batches = make_net()
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(name.startswith("2."))
    block = dense_hessian(net, batches)
    for parameter in net.parameters():
        parameter.requires_grad_(True)
    opinion = ask_pyhessian(net, functional.cross_entropy, batches, parameters="2.*", **ours(block))
    assert opinion.agrees is True
    assert opinion.eigenvalues[0] == pytest.approx(
        float(torch.linalg.eigvalsh(block)[-1]), rel=1e-2
    )


def test_batches_too_large_for_one_are_weighted_by_rows_and_that_is_said(monkeypatch):
    monkeypatch.setattr(module, "_ONE_BATCH_BYTES", 0)
    net, batches = make_net()
    dense = dense_hessian(net, batches)
    opinion = ask_pyhessian(net, functional.cross_entropy, batches, **ours(dense))
    assert opinion.agrees is True
    assert "weights the 3 batches by their rows" in opinion.message


def test_a_loss_that_sums_is_divided_by_its_terms():
    net, batches = make_net()
    dense = dense_hessian(net, batches)
    summed = nn.CrossEntropyLoss(reduction="sum")
    opinion = ask_pyhessian(net, summed, batches, num_terms=50, **ours(dense))
    assert opinion.agrees is True
    without = ask_pyhessian(net, summed, batches, **ours(dense))
    assert without.agrees is None
    assert "the loss sums over its terms" in without.message


def test_ignored_targets_are_no_terms_here_either():
    net, batches = make_net()
    batches = [(inputs, targets.clone()) for inputs, targets in batches]
    batches[0][1][:20] = -100
    dense = dense_hessian(net, batches)
    opinion = ask_pyhessian(net, functional.cross_entropy, batches, **ours(dense))
    assert opinion.agrees is True


def test_what_it_cannot_take_is_said_and_ends_nothing():
    net, _ = make_net()
    opinion = ask_pyhessian(net, functional.cross_entropy, [{"x": torch.ones(2, 5)}])
    assert opinion.agrees is None
    assert "PyHessian gave no number: it takes batches (inputs, targets)" in opinion.message
    empty = ask_pyhessian(net, functional.cross_entropy, [])
    assert "the data hold no batch" in empty.message


def test_its_own_failure_is_reported_and_ends_nothing():
    net, batches = make_net()

    def linear(output, target):
        return output.sum() / len(target)  # the last layer's bias has no second derivative

    opinion = ask_pyhessian(net, linear, batches, eigenpairs=pairs([1.0]))
    assert opinion.agrees is None
    assert "PyHessian failed: RuntimeError" in opinion.message


def test_a_number_that_is_not_finite_is_a_disagreement():
    net, batches = make_net()
    with torch.no_grad():
        net[0].weight[0, 0] = math.nan
    opinion = ask_pyhessian(net, functional.cross_entropy, batches, eigenpairs=pairs([1.0]))
    assert opinion.agrees is False
    assert "not finite" in opinion.message


def test_a_zero_hessian_agrees_with_zero():
    net, _ = make_net()

    def flat(output, target):
        return (output**2).mean() * 0.0

    zero = Estimate(0.0, 0.0, "estimate", Cost())
    batches = [(torch.ones(4, 5, dtype=F64), torch.zeros(4, dtype=F64))]
    opinion = ask_pyhessian(net, flat, batches, eigenpairs=pairs([0.0]), trace=zero)
    assert opinion.agrees is True
    assert opinion.difference == 0


@pytest.mark.parametrize("wrong", [{"num_probes": 1}, {"num_eigenvalues": 0}])
def test_a_budget_that_can_say_nothing_is_refused(wrong):
    net, batches = make_net()
    with pytest.raises(ValueError, match="must be >="):
        ask_pyhessian(net, functional.cross_entropy, batches, **wrong)


def test_pyhessian_is_imported_only_when_it_is_asked():
    code = "import sys, landscape.second_opinion; print('pyhessian' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_batches_cast_to_another_precision_are_cast_back():
    net, batches = make_net(dtype=torch.float32)
    wide = [(inputs.double(), targets) for inputs, targets in batches]
    cast, raw = (
        ask_pyhessian(net, functional.cross_entropy, given, num_probes=2)
        for given in (wide, batches)
    )
    assert cast.eigenvalues == raw.eigenvalues
