"""gradient-norm, sam, lambda-max and trace: what can be read off the derivatives at theta."""

import math

import pytest
import torch

from landscape.estimate import Cost, Estimate
from landscape.linalg import MatrixOperator, lanczos
from landscape.sharpness import Spectrum, measure
from tests.references import CountingObjective, quadratic_objective

F64 = torch.float64
H = torch.diag(torch.tensor([4.0, 2.0, 1.0, 0.25, 0.0], dtype=F64))
G = torch.tensor([0.3, -0.4, 0.0, 1.2, 0.0], dtype=F64)


def test_sam_is_its_closed_form_on_a_quadratic():
    u = G / 1.3
    for rho in (0.05, 0.7):
        estimate = measure(f"sam:rho={rho}", quadratic_objective(H, G))
        assert estimate.value == pytest.approx(rho * 1.3 + rho**2 * float(u @ H @ u) / 2)
        assert (estimate.cost.gradients, estimate.cost.forwards) == (1, 1)
        assert estimate.kind == "exact"


def test_sam_at_a_minimum_is_zero_and_says_that_it_has_no_direction():
    estimate = measure("sam", quadratic_objective(H, 0 * G))
    assert estimate.value == 0
    assert "no direction" in estimate.details["warnings"][0]


def test_sam_names_the_point_where_the_loss_is_not_finite():
    objective = CountingObjective(
        lambda theta: theta[0] + torch.where(theta[0] > 0.01, torch.inf, 0.0),
        torch.zeros(1, dtype=F64),
    )
    estimate = measure("sam", objective)
    assert math.isinf(estimate.value)
    assert "theta + rho g/||g|| is not finite" in estimate.details["warnings"][0]


def test_the_three_notions_differ_as_wen_ma_and_li_say():
    # At a minimum: worst rho^2 lambda_max / 2, average rho^2 tr / (2 P), ascent between
    # lambda_M / 2 (the smallest positive eigenvalue) and lambda_max / 2 times rho^2.
    rho = 0.1
    at_minimum = quadratic_objective(H, 0 * G)
    assert measure(f"worst-case:rho={rho}", at_minimum).value == pytest.approx(rho**2 * 2.0)
    pairs = lanczos(MatrixOperator(H), num_eigenpairs=5, tolerance=1e-10)
    average = measure(f"average-case:rho={rho}", at_minimum, spectrum=Spectrum(eigenpairs=pairs))
    assert average.value == pytest.approx(rho**2 * 7.25 / 10)

    def ascent(x):  # close to the minimum the slope's own part of the rise vanishes
        return measure(f"sam:rho={rho}", quadratic_objective(H, H @ (1e-9 * x))).value / rho**2

    axes = [ascent(axis) for axis in torch.eye(5, dtype=F64)[:4]]
    assert axes == pytest.approx([2.0, 1.0, 0.5, 0.125], rel=1e-6)
    generator = torch.Generator().manual_seed(0)
    random = [ascent(torch.randn(5, generator=generator, dtype=F64)) for _ in range(20)]
    assert all(0.125 < value < 2.0 for value in random)


def test_the_gradient_norm_is_the_norm_of_the_whole_gradient():
    estimate = measure("gradient-norm", quadratic_objective(H, G))
    assert estimate.value == pytest.approx(1.3)
    assert (estimate.cost.gradients, estimate.cost.products) == (1, 1)


def test_the_flag_compares_slope_and_curvature_at_the_radius():
    # Along e1: ||g|| = s, curvature 4, so small means s <= rho * 4 / 2.
    for slope, small in ((0.099, True), (0.101, False)):
        g = torch.tensor([slope, 0, 0, 0, 0], dtype=F64)
        estimate = measure("gradient-norm:rho=0.05", quadratic_objective(H, g))
        assert estimate.details["small"] is small
        assert estimate.details["turning_distance"] == pytest.approx(slope / 4)
        assert bool(estimate.details["warnings"]) is not small


def test_a_slope_along_negative_or_no_curvature_is_never_small():
    for h in (-H, torch.zeros(5, 5, dtype=F64)):
        g = torch.tensor([1e-6, 0, 0, 0, 0], dtype=F64)
        estimate = measure("gradient-norm", quadratic_objective(h, g))
        assert estimate.details["small"] is False
        assert math.isinf(estimate.details["turning_distance"])


def test_the_flag_does_not_depend_on_the_units_of_loss_or_parameters():
    def flag(loss_scale, parameter_scale, offset, slope):
        objective = quadratic_objective(
            loss_scale * H / parameter_scale**2,
            loss_scale * slope * G / parameter_scale,
            offset=offset,
        )
        estimate = measure(f"gradient-norm:rho={0.05 * parameter_scale}", objective)
        return estimate.details["small"]

    for slope in (0.001, 0.02, 0.1, 1.0):
        answers = {
            flag(*scales, slope) for scales in ((1, 1, 1), (1e4, 1, 0), (1, 30, 5), (1e-3, 0.1, 9))
        }
        assert len(answers) == 1
    assert flag(1, 1, 1, 0.001)
    assert not flag(1, 1, 1, 1.0)


def test_an_exact_minimum_is_small_and_needs_no_product():
    estimate = measure("gradient-norm", quadratic_objective(H, 0 * G))
    assert estimate.value == 0
    assert estimate.details["small"]
    assert estimate.cost.products == 0


def test_lambda_max_is_the_largest_algebraically():
    h = torch.diag(torch.tensor([3.0, 1.0, -5.0], dtype=F64))
    objective = quadratic_objective(h, torch.ones(3, dtype=F64))
    estimate = measure("lambda-max:tolerance=1e-6", objective)
    assert estimate.value == pytest.approx(3.0, rel=1e-6)
    assert estimate.kind == "estimate"
    assert estimate.cost.products == objective.products > 0


def test_lambda_max_of_a_shared_spectrum_costs_nothing_and_an_unsure_one_is_a_lower_bound():
    objective = quadratic_objective(H, G)
    pairs = lanczos(MatrixOperator(H), num_eigenpairs=2, ends="both", tolerance=1e-3)
    estimate = measure("lambda-max", objective, spectrum=Spectrum(eigenpairs=pairs))
    assert estimate.value == pytest.approx(4.0)
    assert estimate.details["shared"]
    assert (estimate.cost.products, objective.products) == (0, 0)

    finer = measure("lambda-max:tolerance=1e-6", objective, spectrum=Spectrum(eigenpairs=pairs))
    assert not finer.details["shared"]
    assert finer.cost.products == objective.products > 0

    generator = torch.Generator().manual_seed(0)
    a = torch.randn(80, 80, generator=generator, dtype=F64)
    unsure = lanczos(MatrixOperator(a @ a.T), num_eigenpairs=1, tolerance=1e-9, max_products=4)
    estimate = measure(
        "lambda-max",
        quadratic_objective(a @ a.T, a[0]),
        spectrum=Spectrum(eigenpairs=unsure),
    )
    assert estimate.kind == "lower bound"
    assert "may exist" in estimate.details["warnings"][0]
    assert estimate.value <= float(torch.linalg.eigvalsh(a @ a.T)[-1])


def test_the_trace_of_a_diagonal_matrix_needs_no_luck():
    objective = quadratic_objective(H, G)  # v'Hv = tr H for every vector of signs
    estimate = measure("trace:num_probes=10", objective)
    assert estimate.value == pytest.approx(7.25)
    assert estimate.standard_error == pytest.approx(0, abs=1e-12)
    assert estimate.cost.products == objective.products


def test_the_trace_lies_within_its_standard_errors_of_the_sum_of_the_diagonal():
    generator = torch.Generator().manual_seed(1)
    a = torch.randn(30, 30, generator=generator, dtype=F64)
    h = a @ a.T
    scores = []
    for seed in range(30):
        estimate = measure("trace", quadratic_objective(h, a[0]), seed=seed)
        scores.append((estimate.value - float(h.trace())) / estimate.standard_error)
    assert max(map(abs, scores)) < 4.5
    assert abs(sum(scores)) / 30**0.5 < 4


def test_a_shared_trace_is_taken_unless_another_budget_is_asked_for():
    objective = quadratic_objective(H, G)
    known = Estimate(7.5, 0.1, "estimate", Cost(products=16), {})
    shared = measure("trace", objective, spectrum=Spectrum(trace=known))
    assert (shared.value, shared.standard_error) == (7.5, 0.1)
    assert shared.cost == Cost()
    afresh = measure("trace:num_probes=20", objective, spectrum=Spectrum(trace=known))
    assert afresh.value == pytest.approx(7.25)
    assert afresh.cost.products == 20
