import math

import pytest
import torch
from scipy import stats

from landscape.linalg import MatrixOperator, lanczos
from landscape.sharpness import Spectrum, measure
from tests.references import CountingObjective, quadratic_objective

F64 = torch.float64


def problem(slope=1.0):
    generator = torch.Generator().manual_seed(7)
    a = torch.randn(6, 6, generator=generator, dtype=F64)
    return a + a.T, slope * torch.randn(6, generator=generator, dtype=F64)


def test_it_is_unbiased_and_its_interval_covers_on_a_quadratic():
    h, g = problem()
    objective, truth = quadratic_objective(h, g), 0.4**2 * float(h.trace()) / 12
    estimates = [measure("average-case:rho=0.4", objective, seed=seed) for seed in range(300)]
    values = torch.tensor([estimate.value for estimate in estimates])
    assert abs(float(values.mean()) - truth) < 4 * float(values.std()) / math.sqrt(300)
    quantile = stats.t.ppf(0.975, 63)
    covered = sum(abs(e.value - truth) <= quantile * e.standard_error for e in estimates) / 300
    assert 0.90 <= covered <= 0.985
    # The stated error is the spread over seeds.
    mean_error = sum(e.standard_error for e in estimates) / 300
    assert mean_error == pytest.approx(float(values.std()), rel=0.2)


def test_the_gradient_as_control_variate_takes_the_whole_slope_off():
    h, _ = problem()
    steep = measure("average-case:rho=0.4", quadratic_objective(h, problem(100.0)[1]))
    flat = measure("average-case:rho=0.4", quadratic_objective(h, torch.zeros(6, dtype=F64)))
    assert steep.value == pytest.approx(flat.value, rel=1e-8)
    assert steep.details["plain_standard_error"] > 20 * steep.standard_error
    assert flat.details["plain_standard_error"] == pytest.approx(flat.standard_error)


def test_all_eigenpairs_leave_no_error_at_all_on_a_quadratic():
    h, g = problem()
    pairs = lanczos(MatrixOperator(h), num_eigenpairs=6, tolerance=1e-10)
    estimate = measure(
        "average-case:rho=0.4:num_draws=2",
        quadratic_objective(h, g),
        spectrum=Spectrum(eigenpairs=pairs),
    )
    assert estimate.value == pytest.approx(0.4**2 * float(h.trace()) / 12, rel=1e-6)
    assert estimate.standard_error < 1e-6
    assert estimate.details["control_eigenpairs"] == 6


def test_deliberately_wrong_eigenpairs_leave_it_unbiased():
    h, g = problem()
    wrong = lanczos(MatrixOperator(-h @ h), num_eigenpairs=3, tolerance=1e-8)
    objective, truth = quadratic_objective(h, g), 0.4**2 * float(h.trace()) / 12
    values = torch.tensor(
        [
            measure(
                "average-case:rho=0.4", objective, seed=seed, spectrum=Spectrum(eigenpairs=wrong)
            ).value
            for seed in range(300)
        ]
    )
    assert abs(float(values.mean()) - truth) < 4 * float(values.std()) / math.sqrt(300)


def test_the_mean_of_a_quartic_is_known_too():
    # E sum d^4 = 3 P (rho^2 / P)^2, which no second-order formula gives.
    objective = CountingObjective(lambda theta: (theta**4).sum(), torch.zeros(5, dtype=F64))
    estimate = measure("average-case:rho=2:num_draws=4000", objective)
    assert abs(estimate.value - 3 * 5 * (4 / 5) ** 2) < 4 * estimate.standard_error


def test_the_root_mean_square_length_of_the_noise_is_rho():
    objective = quadratic_objective(torch.eye(40, dtype=F64), torch.zeros(40, dtype=F64))
    measure("average-case:rho=0.3:num_draws=500", objective)
    lengths = torch.stack(objective.visited[1:]).sub(objective.theta).pow(2).sum(1)
    assert float(lengths.mean()) == pytest.approx(0.09, rel=0.04)


def test_it_costs_one_gradient_and_one_forward_pass_a_draw():
    objective = quadratic_objective(*problem())
    estimate = measure("average-case:num_draws=17", objective)
    assert (objective.gradients, objective.forwards, objective.products) == (1, 17, 0)
    assert (estimate.cost.gradients, estimate.cost.forwards) == (1, 17)


def test_a_draw_whose_loss_is_not_finite_makes_the_mean_so_and_is_named():
    objective = CountingObjective(
        lambda theta: theta.sum() + torch.where(theta[0] > 0.05, torch.nan, 0.0),
        torch.zeros(2, dtype=F64),
    )
    estimate = measure("average-case:num_draws=30", objective)
    assert math.isnan(estimate.value)
    assert math.isnan(estimate.standard_error)
    assert "of 30" in estimate.details["warnings"][0]
