"""Worst case and min-sharpness against the trust region's secular equation."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from landscape.linalg import MatrixOperator, lanczos
from landscape.sharpness import Spectrum, measure
from tests.references import CountingObjective, quadratic_objective, trust_region_maximum

F64 = torch.float64


def diagonal(*values):
    return torch.diag(torch.tensor(values, dtype=F64))


def random_problem(seed, size=8, slope=1.0):
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(size, size, generator=generator, dtype=F64)
    return (a + a.T) / 2, slope * torch.randn(size, generator=generator, dtype=F64)


def test_the_secular_equation_of_the_tests_beats_every_sampled_point():
    generator = np.random.default_rng(0)
    for seed in range(6):
        h, g = (part.numpy() for part in random_problem(seed, size=3, slope=0.3))
        for hessian in (h, -h @ h - np.eye(3)):  # indefinite, and a concave one: inside the ball
            points = generator.normal(size=(200_000, 3))
            points *= (0.7 * generator.random((200_000, 1)) ** (1 / 3)) / np.linalg.norm(
                points, axis=1, keepdims=True
            )
            rises = points @ g + np.einsum("ij,jk,ik->i", points, hessian, points) / 2
            truth = trust_region_maximum(hessian, g, 0.7)
            assert rises.max() <= truth + 1e-12
            assert rises.max() == pytest.approx(truth, rel=0.05)


@pytest.mark.parametrize("rho", [0.05, 0.5, 2.0])
@pytest.mark.parametrize("slope", [0.0, 0.01, 1.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_an_indefinite_quadratic_has_the_worst_case_of_the_secular_equation(seed, slope, rho):
    h, g = random_problem(seed, slope=slope)
    estimate = measure(f"worst-case:rho={rho}", quadratic_objective(h, g), seed=seed)
    assert estimate.value == pytest.approx(trust_region_maximum(h, g, rho), rel=1e-6)
    assert estimate.kind == "lower bound"
    assert estimate.standard_error is None


@pytest.mark.parametrize("rho", [0.05, 0.5, 2.0])
@pytest.mark.parametrize("slope", [0.0, 0.01, 1.0])
def test_min_sharpness_is_the_worst_case_of_the_loss_turned_over(slope, rho):
    h, g = random_problem(2, slope=slope)
    estimate = measure(f"min-sharpness:rho={rho}:num_steps=60", quadratic_objective(h, g))
    assert estimate.value == pytest.approx(trust_region_maximum(-h, -g, rho), rel=1e-5)


def test_min_sharpness_finds_a_minimum_inside_the_ball():
    h, g = diagonal(3.0, 2.0, 1.0), torch.tensor([0.3, -0.2, 0.1], dtype=F64)
    estimate = measure("min-sharpness:rho=5:num_steps=100", quadratic_objective(h, g))
    newton = float(g @ torch.linalg.solve(h, g)) / 2
    assert newton == pytest.approx(trust_region_maximum(-h, -g, 5.0))
    assert estimate.value == pytest.approx(newton, rel=1e-3)
    assert estimate.value <= newton + 1e-12


def test_a_minimum_is_left_along_the_top_eigenvector():
    # rho^2 lambda_max / 2 = 0.5, where the gradient alone answers 0.
    objective = quadratic_objective(diagonal(4.0, 2.0, 1.0, 0.25), torch.zeros(4, dtype=F64))
    estimate = measure("worst-case:rho=0.5:num_restarts=0", objective)
    assert estimate.value == pytest.approx(0.5, rel=1e-12)
    assert [run["start"] for run in estimate.details["starts"]] == ["+v1", "-v1"]


def test_the_hard_case_is_beyond_the_gradient_and_within_reach_of_the_eigenvector():
    # g is orthogonal to v1: from the gradient no step leaves that subspace.
    h, g = diagonal(4.0, 2.0, 1.0), torch.tensor([0.0, 0.6, 0.0], dtype=F64)
    estimate = measure("worst-case:rho=0.5:num_restarts=0", quadratic_objective(h, g))
    runs = {run["start"]: run["rise"] for run in estimate.details["starts"]}
    assert trust_region_maximum(h, g, 0.5) == pytest.approx(0.59)
    assert runs["gradient"] == pytest.approx(0.55)
    assert estimate.value == pytest.approx(0.59, rel=1e-4)
    assert estimate.details["spread"] == pytest.approx(0.04, rel=1e-2)


@pytest.mark.parametrize("sign", [1, -1])
def test_both_signs_of_the_eigenvector_are_tried(sign):
    # Uphill along -e1 only: a cubic makes the two ends of the same axis differ.
    def loss(theta):
        return theta[0] ** 2 - 0.9 * theta[0] ** 3 + 0.1 * theta[1] ** 2

    found = lanczos(MatrixOperator(diagonal(2.0, 0.2)), num_eigenpairs=1, tolerance=1e-8)
    pairs = dataclasses.replace(found, vectors=sign * found.vectors)
    estimate = measure(
        "worst-case:rho=1:num_steps=0:num_restarts=0",
        CountingObjective(loss, torch.zeros(2, dtype=F64)),
        spectrum=Spectrum(eigenpairs=pairs),
    )
    assert estimate.value == pytest.approx(1.9)
    assert estimate.details["spread"] == pytest.approx(1.8)


def test_random_starts_find_the_hill_that_no_derivative_at_theta_points_to():
    def loss(theta):  # flat at the centre to every order that a start could use, a hill at one side
        return torch.exp(-50 * ((theta[0] - 0.6) ** 2 + (theta[1] - 0.8) ** 2)) + theta[2] ** 2

    objective = CountingObjective(loss, torch.zeros(3, dtype=F64))
    without = measure("worst-case:rho=1:num_restarts=0", objective)
    with_them = measure("worst-case:rho=1:num_restarts=20", objective, seed=1)
    assert with_them.value >= without.value
    starts = [run["start"] for run in with_them.details["starts"]]
    assert starts[-20:] == [f"random {index}" for index in range(1, 21)]


def test_sharpness_is_never_below_zero():
    down = quadratic_objective(diagonal(-1.0, -2.0), torch.zeros(2, dtype=F64))
    uphill = measure("worst-case:rho=0.5", down)
    assert uphill.value == 0.0
    assert uphill.details["best_start"] == "theta itself"
    without_a_step = measure("worst-case:rho=0.5:num_steps=0", down)
    assert without_a_step.value == 0.0
    assert without_a_step.details["spread"] > 0
    bowl = quadratic_objective(diagonal(1.0, 2.0), torch.zeros(2, dtype=F64))
    assert measure("min-sharpness:rho=0.5", bowl).value == 0.0


def test_the_box_has_its_own_worst_case():
    # For H = diag(h) with h > 0 each coordinate goes to its corner: sum rho |g| + rho^2 h / 2.
    h, g = diagonal(1.0, 2.0, 3.0), torch.tensor([0.3, -0.2, 0.0], dtype=F64)
    estimate = measure("worst-case:rho=0.5:norm=linf", quadratic_objective(h, g))
    assert estimate.value == pytest.approx(0.5 * 0.5 + 0.125 * 6)
    assert estimate.details["norm"] == "linf"


def test_every_point_visited_lies_in_the_ball_that_is_stated():
    h, g = random_problem(4)
    for norm, order in (("l2", 2), ("linf", torch.inf)):
        for metric in ("worst-case", "min-sharpness"):
            objective = quadratic_objective(h, g)
            measure(f"{metric}:rho=0.3:norm={norm}", objective)
            norms = [
                float(torch.linalg.vector_norm(x - objective.theta, order))
                for x in objective.visited
            ]
            assert max(norms) == pytest.approx(0.3, rel=1e-9)


@pytest.mark.parametrize("num_steps", [0, 1, 7, 20])
def test_the_stated_cost_is_what_the_objective_was_asked_for(num_steps):
    objective = quadratic_objective(*random_problem(5))
    estimate = measure(f"worst-case:num_steps={num_steps}:num_restarts=3", objective)
    assert estimate.cost.gradients == objective.gradients == 1 + 6 * num_steps
    assert estimate.cost.forwards == objective.forwards == 6
    assert estimate.cost.products == objective.products <= 40
    assert estimate.cost.seconds > 0


def test_a_shared_spectrum_saves_its_products_and_serves_the_same_start():
    h, g = diagonal(4.0, 2.0, 1.0), torch.tensor([0.0, 0.6, 0.0], dtype=F64)
    pairs = lanczos(MatrixOperator(h), num_eigenpairs=1, ends="both", tolerance=1e-8)
    spectrum = Spectrum(eigenpairs=pairs)
    for metric in ("worst-case", "min-sharpness"):
        objective = quadratic_objective(h, g)
        shared = measure(f"{metric}:rho=0.5", objective, spectrum=spectrum)
        assert shared.cost.products == objective.products == 0
        assert shared.details["eigenvector"]["shared"]
        alone = measure(f"{metric}:rho=0.5", quadratic_objective(h, g))
        assert shared.value == pytest.approx(alone.value, rel=1e-4)


def test_the_downhill_search_does_not_take_a_top_eigenvector_for_a_bottom_one():
    h, g = diagonal(2.0, 1.0, -4.0), torch.zeros(3, dtype=F64)
    top = lanczos(MatrixOperator(h), num_eigenpairs=1, ends="top", tolerance=1e-8)
    estimate = measure(
        "min-sharpness:rho=0.5:num_steps=0:num_restarts=0",
        quadratic_objective(h, g),
        spectrum=Spectrum(eigenpairs=top),
    )
    assert estimate.value == pytest.approx(0.5)
    assert not estimate.details["eigenvector"]["shared"]


def test_an_infinite_loss_in_the_ball_is_the_worst_case_and_is_named():
    def loss(theta):
        return theta[0] + torch.where(theta[0] > 0.5, torch.inf, 0.0)

    objective = CountingObjective(loss, torch.zeros(2, dtype=F64))
    estimate = measure("worst-case:rho=1", objective)
    assert math.isinf(estimate.value)
    assert any(
        "loss is inf" in warning and "ascent from gradient" in warning
        for warning in estimate.details["warnings"]
    )


def test_a_nan_on_the_way_ends_its_run_is_named_and_never_becomes_the_value():
    def loss(theta):
        return 0.1 * theta[1] + torch.where(theta[0] > 0.5, torch.nan, 0.0) + theta[0] ** 2

    objective = CountingObjective(loss, torch.zeros(2, dtype=F64))
    estimate = measure("worst-case:rho=1:num_restarts=4", objective)
    assert math.isfinite(estimate.value)
    assert estimate.value > 0
    broken = [run for run in estimate.details["starts"] if run["stopped"]]
    assert broken
    assert len(estimate.details["warnings"]) == len(broken)
    assert "nan" in estimate.details["warnings"][0]


@pytest.mark.parametrize("sign", [1, -1])
def test_a_start_where_the_loss_is_nan_is_left_out_of_the_spread(sign):
    def loss(theta):
        return theta[1] ** 2 + torch.where(theta[0] > 0.1, torch.nan, 0.0) + 4 * theta[0] ** 2

    found = lanczos(MatrixOperator(diagonal(8.0, 2.0)), num_eigenpairs=1, tolerance=1e-8)
    pairs = dataclasses.replace(found, vectors=sign * found.vectors)
    estimate = measure(
        "worst-case:rho=1:num_restarts=0",
        CountingObjective(loss, torch.zeros(2, dtype=F64)),
        spectrum=Spectrum(eigenpairs=pairs),
    )
    rises = [run["rise"] for run in estimate.details["starts"]]
    assert sum(map(math.isnan, rises)) == 1
    assert estimate.value == pytest.approx(4.0)
    assert estimate.details["spread"] == 0
    assert estimate.details["best_start"] in ("+v1", "-v1")


@pytest.mark.parametrize("metric", ["worst-case", "min-sharpness", "sam", "average-case"])
def test_a_loss_that_is_not_finite_at_theta_has_no_sharpness(metric):
    objective = CountingObjective(lambda theta: theta.sum() * torch.nan, torch.ones(2, dtype=F64))
    with pytest.raises(FloatingPointError, match="the loss at theta is nan"):
        measure(metric, objective)


def test_a_gradient_that_is_not_finite_is_named():
    objective = CountingObjective(lambda theta: theta.abs().sqrt().sum(), torch.zeros(3).double())
    with pytest.raises(FloatingPointError, match="gradient at theta is not finite in 3 of 3"):
        measure("worst-case", objective)


def test_a_rise_within_the_rounding_of_the_loss_says_so():
    h, g = diagonal(1.0, 1.0).float(), torch.zeros(2)
    objective = quadratic_objective(h, g, theta=torch.zeros(2), offset=1.0)
    estimate = measure("worst-case:rho=0.001", objective)
    assert "within the rounding of a loss of 1 in float32" in estimate.details["warnings"][0]
    assert not measure("worst-case:rho=0.5", objective).details["warnings"]
