"""--approximate on nets that autograd differentiates but once, against twins of plain modules."""

import dataclasses

import pytest
import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from landscape import CentralDifference, GaussNewton, Hessian, Objective, ProbePlan
from landscape.curvature import DifferencedObjective
from landscape.eigenvalue_map import eigenvalue_map
from landscape.gradient_noise import batch_lambda_max
from landscape.linalg.operator import seeded
from landscape.probing import Subject, probe_all
from landscape.sharpness import measure
from tests.landscape.stages.nets import batches, data, dense_hessian, net, theta_of

pytestmark = pytest.mark.slow


class Tanh(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    @once_differentiable
    def backward(ctx, slope):
        return slope * (1 - ctx.saved_tensors[0].tanh() ** 2)


class Once(nn.Module):
    def forward(self, x):
        return Tanh.apply(x)


def once_net():
    """The twin of `net()`: the same weights and the same function."""
    return net(activation=Once)


def subject(model):
    return Subject(model, F.cross_entropy, batches(), label="net", data={"num_samples_total": 500})


def quick(**changes):
    return ProbePlan.quick_look(tolerance=1e-6, **changes)


def numbers(model, plan):
    return probe_all([subject(model)], plan=plan)


@pytest.fixture(scope="module")
def found():
    plan = quick(per_layer=True, dynamics=True, eigenvalue_map=3, diagonal_probes=8, range=1.0)
    once = numbers(once_net(), dataclasses.replace(plan, approximate=True))
    return once, numbers(net(), plan)


def test_the_default_quick_plan_finishes_with_the_numbers_of_the_twin(found):
    once, twin = (findings.checkpoints[0] for findings in found)
    truth = torch.linalg.eigvalsh(dense_hessian(net())).flip(0)[:3]
    assert [e["value"] for e in once["eigenvalues"]] == pytest.approx(truth.tolist(), rel=1e-3)
    assert once["trace"]["value"] == pytest.approx(twin["trace"]["value"], rel=1e-3)
    assert once["sampling"]["loss"]["interval"] == pytest.approx(
        twin["sampling"]["loss"]["interval"]
    )
    for one, other in zip(once["eigenvalues"], twin["eigenvalues"], strict=True):
        assert one["sampling_error"] == pytest.approx(other["sampling_error"], rel=1e-3)
    assert once["sharpness"].keys() == twin["sharpness"].keys() > {"worst-case", "gradient-norm"}
    for name, measured in once["sharpness"].items():
        assert measured["value"] == pytest.approx(twin["sharpness"][name]["value"], rel=1e-3), name
    one, other = (entry["sharpness"]["gradient-norm"] for entry in (once, twin))
    assert one["curvature_along"] == pytest.approx(other["curvature_along"], rel=1e-3)
    assert one["turning_distance"] == pytest.approx(other["turning_distance"], rel=1e-3)


def test_layers_and_the_eigenvalue_map_are_the_twins(found):
    once, twin = (findings.checkpoints[0] for findings in found)
    for one, other in zip(once["layers"], twin["layers"], strict=True):
        for name in ("lambda_max", "trace", "sharpness"):
            assert one[name] == pytest.approx(other[name], rel=1e-3), name
    for name in ("lambda_max", "lambda_min"):
        one, other = (findings.arrays[f"map_c0_{name}"] for findings in found)
        assert one == pytest.approx(other, rel=1e-3, abs=1e-3 * abs(other).max()), name


def test_a_point_of_the_map_where_differences_are_no_matrix_is_a_hole():
    objective = DifferencedObjective(once_net(), F.cross_entropy, batches())
    axes = [-26.0599, 0.0], [-26.0599, 0.0]
    d1, d2 = (
        torch.randn(objective.num_parameters, generator=seeded(seed), dtype=torch.float64)
        for seed in (0, 1)
    )
    found = eigenvalue_map(objective, d1, d2, *axes, seed=0)
    assert found.num_nonfinite == int(found.lambda_max.isnan().sum()) in (1, 2, 3)
    top = torch.linalg.eigvalsh(dense_hessian(net()))[-1]
    assert float(found.lambda_max[1, 1]) == pytest.approx(float(top), rel=1e-3)


class Asymmetric(Objective):
    """Products of no symmetric matrix."""

    def hvp(self, theta, v):
        return v * torch.arange(len(v)) + v.cumsum(0)


def test_products_that_are_not_symmetric_and_no_differences_end_the_map():
    objective = Asymmetric(net(), F.cross_entropy, batches())
    d1, d2 = torch.eye(objective.num_parameters, dtype=torch.float64)[:2]
    with pytest.raises(ValueError, match="at x = 0, y = 0: operator is not symmetric"):
        eigenvalue_map(objective, d1, d2, [0.0, 1.0], [0.0, 1.0])


def test_dynamics_are_the_twins_but_for_the_matrices_that_look_inside_the_loss(found):
    once, twin = (findings.checkpoints[0]["dynamics"] for findings in found)
    for name in ("curvature_along_gradient", "cosine"):
        assert once[name] == pytest.approx(twin[name], rel=1e-3)
    batch = once["batch_lambda_max"]["value"]
    assert batch == pytest.approx(twin["batch_lambda_max"]["value"], rel=1e-3)
    assert once["skipped"].keys() == {"lambda_max_ggn", "lambda_max_remainder"}
    assert "no second derivative" in once["skipped"]["lambda_max_ggn"]
    assert twin["skipped"] == {}


def test_the_numbers_say_that_they_are_approximate(found):
    once, twin = (findings.checkpoints[0] for findings in found)
    assert once["self_check"]["approximate"] is True
    assert once["self_check"]["passed"] is True
    assert 0 < once["matrix_error"] < 1e-4
    assert any("every number that rests on a Hessian product" in w for w in once["warnings"])
    assert not any("every number that rests on" in w for w in twin["warnings"])


@pytest.mark.parametrize(
    "word", ["lambda-max", "lambda-min", "spectral-norm", "trace", "negative-mass", "worst-case"]
)
def test_measures_that_seek_their_own_spectrum_take_the_differences(word):
    once = DifferencedObjective(once_net(), F.cross_entropy, batches())
    twin = Objective(net(), F.cross_entropy, batches())
    found, truth = measure(word, once), measure(word, twin)
    assert found.value == pytest.approx(truth.value, rel=1e-3)
    with pytest.raises(ValueError, match="no second derivative"):
        measure(word, Objective(once_net(), F.cross_entropy, batches()))


def test_without_eigenvalues_the_measures_of_a_plan_seek_them_by_differences():
    plan = quick(eigenvalues=0, trace_probes=0, density_runs=0, surface=0, line=0)
    entry = numbers(once_net(), dataclasses.replace(plan, approximate=True)).checkpoints[0]
    twin = numbers(net(), plan).checkpoints[0]
    for name, measured in entry["sharpness"].items():
        assert measured["value"] == pytest.approx(twin["sharpness"][name]["value"], rel=1e-3), name
    assert any("central differences" in warning for warning in entry["warnings"])


def test_products_of_a_differenced_objective_and_of_its_parts_are_the_differences():
    once = DifferencedObjective(once_net(), F.cross_entropy, batches())
    theta = theta_of(net())
    v = torch.randn(len(theta), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.equal(Hessian(once) @ v, CentralDifference(once) @ v)
    torch.testing.assert_close(Hessian(once) @ v, dense_hessian(net()) @ v, rtol=1e-7, atol=1e-8)
    assert Hessian(once).approximate is True
    assert Hessian(Objective(net(), F.cross_entropy, batches())).approximate is False
    part = once.over_rows(range(20))
    x, y = data()
    alone = Objective(net(), F.cross_entropy, [(x[:20], y[:20])])
    torch.testing.assert_close(part.hvp(theta, v), alone.hvp(theta, v), rtol=1e-7, atol=1e-8)
    assert Hessian(part).approximate is True
    twin = Objective(net(), F.cross_entropy, batches())
    one, other = (batch_lambda_max(o, theta, batch_size=20, seed=0).value for o in (once, twin))
    assert one == pytest.approx(other, rel=1e-5)


def test_a_matrix_that_looks_inside_the_loss_is_refused_by_a_differenced_objective():
    once = DifferencedObjective(once_net(), F.cross_entropy, batches())
    with pytest.raises(ValueError, match="Tanh is marked once_differentiable"):
        GaussNewton(once)


def test_a_differenced_objective_refuses_kinks_unless_asked_for():
    model = net(activation=nn.ReLU)
    with pytest.raises(ValueError, match="jumps across the kinks of Relu"):
        DifferencedObjective(model, F.cross_entropy, batches())
    objective = DifferencedObjective(model, F.cross_entropy, batches(), across_kinks=True)
    assert bool(objective.hvp(objective.theta, objective.theta).isfinite().all())


def test_kinks_are_refused_before_anything_is_measured():
    told = []
    plan = quick(approximate=True, eigenvalues=0, trace_probes=0, density_runs=0)
    with pytest.raises(ValueError, match="kinks of Relu"):
        probe_all(
            [subject(net(activation=nn.ReLU))],
            plan=plan,
            progress=lambda what, *_: told.append(what),
        )
    assert told == []


def test_without_approximate_the_refusal_names_it():
    message = r"`--approximate` \(approximate=True of a plan\), CentralDifference"
    with pytest.raises(ValueError, match=message):
        numbers(once_net(), quick())
