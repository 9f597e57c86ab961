"""Maps of lambda_max and lambda_min beside dense matrices and closed forms."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, hessian
from torch.nn import functional as F

from landscape.curvature import Hessian
from landscape.directions import random_directions
from landscape.eigenvalue_map import QUANTITIES, eigenvalue_map
from landscape.linalg import lanczos
from landscape.objective import Objective
from landscape.surface import GridPoints, scan_plane
from tests.references import CountingObjective, coupled_matrix

X = [-1.0, 0.0, 0.5]
Y = [-0.5, 0.0, 1.0, 2.0]  # as many points as no other axis, and no symmetry


def quartic(num_parameters=7, seed=0):
    """L = sum_i c_i theta_i^4 / 12 + theta'A theta / 2: H = diag(c_i theta_i^2) + A."""
    generator = torch.Generator().manual_seed(seed)
    c = torch.randn(num_parameters, generator=generator, dtype=torch.float64)
    a = torch.randn(num_parameters, num_parameters, generator=generator, dtype=torch.float64)
    a = (a + a.T) / 2
    theta = torch.randn(num_parameters, generator=generator, dtype=torch.float64)

    def loss(at):
        return (c * at**4).sum() / 12 + at @ a @ at / 2

    def matrix(at):
        return torch.diag(c * at**2) + a

    return CountingObjective(loss, theta), matrix


def directions(objective, seed=3):
    first, second = random_directions(objective.theta, seed=seed)
    return first, 0.5 * second + first


def dense_map(matrix, theta, d1, d2, x=X, y=Y):
    """The extreme eigenvalues by numpy, each (ny, nx)."""
    spectra = [[np.linalg.eigvalsh(matrix(theta + a * d1 + b * d2).numpy()) for a in x] for b in y]
    return np.array(spectra)[..., -1], np.array(spectra)[..., 0]


# -- Truth ----------------------------------------------------------------------------------------


def test_a_quartic_has_the_eigenvalues_of_its_dense_hessians_rows_along_y():
    objective, matrix = quartic()
    d1, d2 = directions(objective)
    found = eigenvalue_map(objective, d1, d2, X, Y, tolerance=1e-6)
    top, bottom = dense_map(matrix, objective.theta, d1, d2)
    assert found.ratio.shape == (4, 3)
    np.testing.assert_allclose(found.lambda_max.numpy(), top, rtol=1e-10)
    np.testing.assert_allclose(found.lambda_min.numpy(), bottom, rtol=1e-10)
    np.testing.assert_allclose(found.ratio.numpy(), np.abs(bottom) / np.abs(top), rtol=1e-10)
    assert found.converged.all()
    assert found.num_nonfinite == 0
    for j, b in enumerate(Y):
        for i, a in enumerate(X):
            loss = float(objective.function(objective.theta + a * d1 + b * d2))
            assert float(found.loss[j, i]) == pytest.approx(loss, rel=1e-12)
    assert found.center_loss == float(found.loss[1, 1])
    assert found.norms == pytest.approx((1.0, math.sqrt(1.25)))
    assert found.angle_degrees == pytest.approx(math.degrees(math.atan(0.5)))
    assert found.x.tolist() == X
    assert found.y.tolist() == Y


def small_net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 4)).double()
        x = torch.randn(50, 6, dtype=torch.float64)
        y = torch.randint(4, (50,))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
        for _ in range(40):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    objective = Objective(model, F.cross_entropy, [(x[:30], y[:30]), (x[30:], y[30:])])

    def matrix(theta):
        def loss(at):
            return F.cross_entropy(functional_call(model, objective.space.unflatten(at), x), y)

        return hessian(loss)(theta).detach()

    return objective, matrix


@pytest.mark.parametrize("tolerance", [1e-1, 1e-2])
def test_a_net_has_the_eigenvalues_of_torch_func_hessian_within_the_stated_errors(tolerance):
    objective, matrix = small_net()
    d1, d2 = (2 * d for d in directions(objective))
    found = eigenvalue_map(objective, d1, d2, X, Y, tolerance=tolerance)
    top, bottom = dense_map(matrix, objective.theta, d1, d2)
    assert found.converged.all()
    width = top - bottom
    for ours, residuals, truth in (
        (found.lambda_max, found.lambda_max_residual, top),
        (found.lambda_min, found.lambda_min_residual, bottom),
    ):
        off = np.abs(ours.numpy() - truth)
        assert (off <= residuals.numpy()).all()
        assert (residuals.numpy() <= tolerance * width).all()
        assert off.max() > 0
    ratio = np.abs(bottom / top)
    assert (np.abs(found.ratio.numpy() - ratio) <= found.ratio_error.numpy()).all()
    assert (found.ratio_error.numpy() < 4 * tolerance * width / top).all()
    assert ratio.min() < 0.2 < ratio.max()


def test_the_centre_has_the_eigenvalues_that_lanczos_gives():
    objective, _ = small_net()
    d1, d2 = directions(objective)
    found = eigenvalue_map(objective, d1, d2, [-1.0, 0.0], [0.0, 1.0], tolerance=1e-5)
    pairs = lanczos(Hessian(objective), num_eigenpairs=1, ends="both", tolerance=1e-5)
    assert float(found.lambda_max[0, 1]) == pytest.approx(float(pairs.values[0]), rel=1e-8)
    assert float(found.lambda_min[0, 1]) == pytest.approx(float(pairs.values[1]), rel=1e-6)


# -- Spectra that a relative residual is wrong for ------------------------------------------------


def spectrum_objective(spectrum):
    """L = theta'A theta / 2 with that spectrum in no special basis."""
    size = len(spectrum)
    rng = np.random.default_rng(0)
    u = torch.from_numpy(rng.standard_normal(size))
    u /= u.norm()
    values = torch.from_numpy(np.array(spectrum, dtype=np.float64))

    def loss(at):
        reflected = at - 2 * (u @ at) * u
        return (values * reflected**2).sum() / 2

    return CountingObjective(loss, torch.ones(size, dtype=torch.float64))


def plane_of(objective):
    return torch.eye(objective.num_parameters, dtype=torch.float64)[:2]


def test_a_convex_loss_does_not_ask_for_the_last_digit_of_a_zero():
    """A bottom at 0 is a dense end, where a residual relative to the eigenvalue never ends."""
    spectrum = np.r_[9.0, 5.0, 2.0, np.geomspace(1, 1e-9, 400)]
    objective = spectrum_objective(spectrum)
    found = eigenvalue_map(objective, *plane_of(objective), [0.0, 1.0], [0.0, 1.0])
    assert found.converged.all()
    assert float(found.ratio.max()) <= 1e-2
    assert found.cost.products == objective.products <= 4 * 75
    relative = {"num_eigenpairs": 1, "ends": "both", "tolerance": 1e-2, "max_products": 150}
    assert not lanczos(Hessian(objective), **relative).at("bottom").converged.any()


@pytest.mark.parametrize(
    ("spectrum", "top", "bottom"),
    [
        ([3.0] * 30, 3.0, 3.0),
        ([-3.0] * 30, -3.0, -3.0),
        (np.linspace(-7, -0.0, 40), 0.0, -7.0),
        (np.linspace(1000.0, 1001.0, 40), 1001.0, 1000.0),
        ([1.0, -4.0], 1.0, -4.0),
        ([2.0, 2.0, 2.0, -2.0], 2.0, -2.0),
    ],
    ids=["identity", "minus identity", "concave", "narrow", "P = 2", "both ends alike"],
)
def test_other_spectra_are_right_too(spectrum, top, bottom):
    objective = spectrum_objective(spectrum)
    found = eigenvalue_map(objective, *plane_of(objective), [0.0, 1.0], [0.0, 1.0])
    allowed = 1e-2 * max(top - bottom, abs(top), abs(bottom)) + 1e-12
    assert found.converged.all()
    assert float((found.lambda_max - top).abs().max()) <= allowed
    assert float((found.lambda_min - bottom).abs().max()) <= allowed


def test_a_loss_without_curvature_has_no_ratio_but_is_finite():
    objective = CountingObjective(
        lambda at: at.sum() + 0 * at.square().sum(), torch.ones(5).double()
    )
    found = eigenvalue_map(objective, *plane_of(objective), [0.0, 1.0], [0.0, 1.0])
    assert (found.lambda_max == 0).all()
    assert (found.lambda_min == 0).all()
    assert found.ratio.isnan().all()
    assert found.num_nonfinite == 0
    assert found.converged.all()


# -- Holes, budgets, progress ---------------------------------------------------------------------


@pytest.mark.parametrize("part", ["loss", "curvature"])
def test_points_that_are_not_finite_stay_holes_and_are_counted(part):
    theta = torch.full((5,), 0.5, dtype=torch.float64)

    def loss(at):
        base = (at**4).sum()
        if (at - theta)[0] <= 0.75:
            return base
        if part == "loss":
            return base + torch.inf
        return base + (at[1] - at[1].detach()).abs() ** 1.5  # adds 0, whose curvature is infinite

    objective = CountingObjective(loss, theta)
    found = eigenvalue_map(objective, *plane_of(objective), [0.0, 0.5, 1.0], [-1.0, 0.0])
    holes = [[False, False, True]] * 2
    assert found.lambda_max.isnan().tolist() == holes
    assert found.ratio.isnan().tolist() == holes
    assert found.ratio_error.isnan().tolist() == holes
    assert found.converged.tolist() == [[True, True, False]] * 2
    assert found.num_nonfinite == 2
    assert found.loss.isnan().any().item() is (part == "loss")


def test_a_map_without_a_finite_point_advises_a_smaller_range():
    theta = torch.ones(4, dtype=torch.float64)

    def loss(at):
        return at.square().sum() * (1.0 if torch.equal(at, theta) else torch.nan)

    objective = CountingObjective(loss, theta)
    with pytest.raises(
        FloatingPointError, match="at any of the 4 points of the map: use a smaller"
    ):
        eigenvalue_map(objective, *plane_of(objective), [1.0, 2.0], [1.0, 2.0])
    objective = CountingObjective(lambda at: at.sum() * torch.nan, theta)
    with pytest.raises(FloatingPointError, match="the loss at the centre is nan"):
        eigenvalue_map(objective, *plane_of(objective), [0.0, 1.0], [0.0, 1.0])


def test_a_spent_budget_is_a_result_that_says_so():
    objective = spectrum_objective(np.linspace(-1, 1, 300))
    found = eigenvalue_map(objective, *plane_of(objective), [0.0, 1.0], [0.0, 1.0], max_products=8)
    assert not found.converged.any()
    assert found.lambda_max.isfinite().all()
    assert (found.lambda_max_residual > 1e-2 * 2).all()
    assert found.cost.products == objective.products == 4 * (6 + 8)


def test_progress_counts_every_point_and_the_cost_every_pass():
    objective, _ = quartic()
    d1, d2 = directions(objective)
    calls = []
    found = eigenvalue_map(objective, d1, d2, X, Y, progress=lambda *c: calls.append(c))
    assert calls == [(done, 12) for done in range(1, 13)]
    assert found.cost.products == objective.products
    assert found.cost.forwards == objective.forwards == 12 + 2


def test_a_loss_that_moves_during_the_map_is_an_error():
    calls = iter(range(1000))
    objective = CountingObjective(lambda at: at.square().sum(), torch.ones(3, dtype=torch.float64))
    objective.value = lambda theta: 1 + 1e-3 * next(calls)
    with pytest.raises(RuntimeError, match="something besides theta moves"):
        eigenvalue_map(objective, *plane_of(objective), [0.0, 1.0], [0.0, 1.0])


def test_the_seed_fixes_every_bit():
    objective, _ = quartic(num_parameters=50)
    d1, d2 = directions(objective)
    first, again, other = (
        eigenvalue_map(objective, d1, d2, [0.0, 1.0], [0.0, 1.0], tolerance=0.1, seed=seed)
        for seed in (1, 1, 2)
    )
    assert torch.equal(first.lambda_min, again.lambda_min)
    assert not torch.equal(first.lambda_min, other.lambda_min)


# -- A stopped map goes on ------------------------------------------------------------------------


class Stopped(Exception):
    pass


def stop_after(num_points):
    calls = iter(range(1, num_points + 1))

    def progress(done, total):
        if next(calls) == num_points:
            raise Stopped

    return progress


def test_a_stopped_map_goes_on_to_the_same_bits():
    objective, _ = quartic(num_parameters=50)
    d1, d2 = directions(objective)
    expected = eigenvalue_map(objective, d1, d2, X, Y, seed=4)
    points = GridPoints(X, Y, quantities=QUANTITIES)
    for stop in (2, 5):
        with pytest.raises(Stopped):
            eigenvalue_map(objective, d1, d2, X, Y, seed=4, known=points, progress=stop_after(stop))
    points = GridPoints.from_arrays(points.as_arrays())
    assert points.num_known == 7
    calls = []
    found = eigenvalue_map(
        objective, d1, d2, X, Y, seed=4, known=points, progress=lambda *c: calls.append(c)
    )
    assert calls == [(done, 12) for done in range(8, 13)]
    for name in expected.__dataclass_fields__.keys() - {"cost"}:
        ours, theirs = getattr(found, name), getattr(expected, name)
        same = torch.equal(ours, theirs) if isinstance(theirs, torch.Tensor) else ours == theirs
        assert same, name
    assert 0 < found.cost.products < expected.cost.products
    assert found.cost.forwards == 5 + 2


def test_known_points_of_another_map_are_refused():
    objective, _ = quartic()
    d1, d2 = directions(objective)
    points = GridPoints(X, Y, quantities=QUANTITIES)
    eigenvalue_map(objective, d1, d2, X, Y, known=points)

    def go_on(d1=d1, d2=d2, x=X, **options):
        return eigenvalue_map(objective, d1, d2, x, Y, known=points, **options)

    assert go_on().cost.products == 0
    with pytest.raises(ValueError, match=r"other options: tolerance 0\.01, .* and not tolerance"):
        go_on(tolerance=1e-3)
    with pytest.raises(ValueError, match=r"seed 0 and not .* seed 1"):
        go_on(seed=1)
    with pytest.raises(ValueError, match=r"max_products 0, .* and not .* max_products 9"):
        go_on(max_products=9)
    with pytest.raises(ValueError, match="lie at other values of x"):
        go_on(x=[-1.0, 0.0, 1.0])
    with pytest.raises(ValueError, match="lie on another plane"):
        go_on(d1=d2, d2=d1)
    with pytest.raises(ValueError, match="other weights or data"):
        go_on(theta=objective.theta + d1)
    with pytest.raises(ValueError, match="hold loss, accuracy, and not loss, lambda_max"):
        eigenvalue_map(objective, d1, d2, X, Y, known=GridPoints(X, Y))
    net, _ = small_net()
    with pytest.raises(ValueError, match="and not loss, accuracy"):
        scan_plane(net, *directions(net), x=X, y=Y, exact=True, known=points)


# -- The door -------------------------------------------------------------------------------------


def test_directions_axes_and_a_hessian_that_is_not_symmetric_are_refused():
    objective, _ = quartic()
    d1, d2 = directions(objective)
    with pytest.raises(ValueError, match="they span a line"):
        eigenvalue_map(objective, d1, -2 * d1, X, Y)
    with pytest.raises(ValueError, match="direction 2 is zero"):
        eigenvalue_map(objective, d1, 0 * d1, X, Y)
    with pytest.raises(ValueError, match="y must be finite and increasing"):
        eigenvalue_map(objective, d1, d2, X, [0.0, 0.0])
    with pytest.raises(ValueError, match=r"at x = -1, y = -0\.5: tolerance must be in \(0, 1\)"):
        eigenvalue_map(objective, d1, d2, X, Y, tolerance=2.0)
    skew = torch.triu(coupled_matrix(7, spectrum=range(1, 8)))
    objective.hvp = lambda theta, v: skew @ v
    with pytest.raises(ValueError, match=r"at x = -1, y = -0\.5: operator is not symmetric"):
        eigenvalue_map(objective, d1, d2, X, Y)


def test_float32_weights_and_float64_directions_work_together():
    objective = CountingObjective(lambda at: (at**4).sum() / 12, torch.full((30,), 2.0))
    d1, d2 = torch.eye(30, dtype=torch.float64)[:2]
    found = eigenvalue_map(objective, d1, d2, [0.0, 1.0], [0.0, 2.0])
    np.testing.assert_allclose(found.lambda_max.numpy(), [[4, 9], [16, 16]], rtol=2e-2)
    np.testing.assert_allclose(found.lambda_min.numpy(), [[4, 4], [4, 4]], rtol=5e-2)
    assert found.lambda_max.dtype == torch.float64


def test_the_result_is_frozen():
    objective, _ = quartic()
    found = eigenvalue_map(objective, *directions(objective), X, Y)
    with pytest.raises(AttributeError):
        found.loss = None
