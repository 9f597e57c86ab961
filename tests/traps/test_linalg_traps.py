"""Traps of spectra and traces. Each check passes on ours and fails on the wrong way beside it."""

import math

import numpy as np
import pytest
import torch

from landscape.linalg import (
    MatrixOperator,
    hutchinson_trace,
    lanczos,
    power_iteration,
    slq_density,
    tridiagonalise,
)
from landscape.linalg.operator import gaussian, rademacher, seeded
from tests.references import PrescribedSpectrum

# -- 7: power iteration finds the largest magnitude ------------------------------------------------


def check_lambda_max(lambda_max):
    operator = PrescribedSpectrum(np.r_[6.0, 4.0, np.linspace(-1, 1, 60), -10.0])
    assert lambda_max(operator) == pytest.approx(6.0, rel=1e-3)


def test_trap_07_power_iteration_hides_lambda_max_behind_a_negative_eigenvalue():
    check_lambda_max(lambda operator: float(lanczos(operator, num_eigenpairs=1).values[0]))

    def wrong(operator):
        return float(power_iteration(operator, num_eigenpairs=1).values[0])

    with pytest.raises(AssertionError):
        check_lambda_max(wrong)


# -- 8: Lanczos without re-orthogonalisation -------------------------------------------------------


def check_no_ghosts(top_values):
    operator = PrescribedSpectrum(np.r_[100.0, 50.0, 25.0, np.linspace(0, 1, 300)])
    np.testing.assert_allclose(top_values(operator, 3), [100, 50, 25], rtol=1e-3)


def three_term_lanczos(operator, num_values):
    """The textbook recurrence alone: orthogonal to the last two, to the others in theory."""
    previous = torch.zeros(operator.size, dtype=operator.dtype)
    vector = gaussian(operator, seeded(0))
    vector /= vector.norm()
    diagonal, beside, beta = [], [], 0.0
    for _ in range(120):
        product = operator @ vector - beta * previous
        alpha = float(vector @ product)
        product -= alpha * vector
        beta = float(product.norm())
        diagonal.append(alpha)
        beside.append(beta)
        previous, vector = vector, product / beta
    matrix = np.diag(diagonal) + np.diag(beside[:-1], 1) + np.diag(beside[:-1], -1)
    return np.linalg.eigvalsh(matrix)[::-1][:num_values]


def test_trap_08_without_reorthogonalisation_the_top_eigenvalue_comes_again():
    check_no_ghosts(lambda operator, k: lanczos(operator, num_eigenpairs=k).values.numpy())
    with pytest.raises(AssertionError):
        check_no_ghosts(three_term_lanczos)


# -- 9: counting Ritz values -----------------------------------------------------------------------

ONE_PERCENT_NEGATIVE = np.r_[np.linspace(-3, -1, 10), np.linspace(0.1, 1, 990)]


def check_negative_share(negative_share):
    density = slq_density(PrescribedSpectrum(ONE_PERCENT_NEGATIVE), num_runs=20, num_steps=30)
    assert negative_share(density) == pytest.approx(0.01, abs=0.005)


def test_trap_09_counting_negative_ritz_values_is_no_share_of_the_spectrum():
    check_negative_share(lambda density: density.mass_below(0.0).value)
    with pytest.raises(AssertionError):
        check_negative_share(lambda density: float((density.nodes < 0).double().mean()))


# -- 10: squares of the whole eigenvector matrix ---------------------------------------------------


def check_quadrature(nodes_and_weights):
    operator = PrescribedSpectrum(ONE_PERCENT_NEGATIVE)
    moments = []
    for seed in range(20):
        nodes, weights = nodes_and_weights(operator, seed)
        moments.append(weights @ nodes)
    error = np.std(moments, ddof=1) / math.sqrt(20)
    assert abs(np.mean(moments) - ONE_PERCENT_NEGATIVE.mean()) < 4 * error + 1e-9


def test_trap_10_quadrature_weights_are_squared_first_components_only():
    def ours(operator, seed):
        density = slq_density(operator, num_runs=2, num_steps=20, seed=seed)
        return density.nodes[0].numpy(), density.weights[0].numpy()

    def wrong(operator, seed):
        found = tridiagonalise(operator, gaussian(operator, seeded(seed)), num_steps=20)
        nodes, vectors = np.linalg.eigh(found.matrix)
        return nodes, (vectors**2).mean(axis=0)  # over all components: 1 / steps each

    check_quadrature(ours)
    with pytest.raises(AssertionError):
        check_quadrature(wrong)


# -- 11: a trace stopped on successive means -------------------------------------------------------


def check_trace_interval(trace_and_error):
    """A stated error holds: nine in ten runs at the least within 2.5 of it."""
    matrix = torch.randn(80, 80, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    matrix = (matrix + matrix.T) / 40
    matrix += (1.5 - matrix.trace()) / 80 * torch.eye(80, dtype=torch.float64)
    within = 0
    for seed in range(60):
        value, error = trace_and_error(MatrixOperator(matrix), seed)
        within += abs(value - 1.5) <= 2.5 * error
    assert within >= 54


def stopped_on_successive_means(operator, seed):
    generator, samples, mean = seeded(seed), [], math.nan
    while len(samples) < 200:
        probe = rademacher(operator, generator)
        samples.append(float(probe @ (operator @ probe)))
        if abs(np.mean(samples) - mean) <= 1e-2 * abs(mean):
            break
        mean = np.mean(samples)
    return np.mean(samples), 1e-2 * abs(mean)


def test_trap_11_a_trace_is_not_exact_when_two_running_means_agree():
    def ours(operator, seed):
        trace = hutchinson_trace(operator, num_probes=200, seed=seed, tolerance=1e-2)
        return trace.value, trace.standard_error

    check_trace_interval(ours)
    with pytest.raises(AssertionError):
        check_trace_interval(stopped_on_successive_means)


# -- 12: momentum in the Rayleigh quotient ---------------------------------------------------------


def check_fifty(lambda_max):
    operator = PrescribedSpectrum(np.r_[50.0, 40.0, np.linspace(0, 20, 80)])
    assert lambda_max(operator) == pytest.approx(50.0, abs=0.01)


def test_trap_12_momentum_left_in_the_rayleigh_quotient_biases_it():
    def wrong(operator):
        vector, previous = gaussian(operator, seeded(0)), torch.zeros(operator.size).double()
        for _ in range(100):
            vector = vector / vector.norm()
            product = operator @ vector - 0.25 * previous
            value = float(vector @ product)  # of A v less the momentum, not of A v
            previous, vector = vector, product
        return value

    check_fifty(lambda operator: float(power_iteration(operator).values[0]))
    check_fifty(lambda operator: float(lanczos(operator, num_eigenpairs=1).values[0]))
    with pytest.raises(AssertionError):
        check_fifty(wrong)


# -- 19: float32 -----------------------------------------------------------------------------------


def check_error_is_stated(smallest_with_error):
    """lambda_min is 1e-8 of lambda_max: in float32 the number is noise, and the error says so."""
    spectrum = np.r_[100.0, 10.0, np.linspace(1, 2, 60), 1e-6]
    operator = PrescribedSpectrum(spectrum, dtype=torch.float32)
    value, error = smallest_with_error(operator)
    assert abs(value - 1e-6) <= error


def test_trap_19_small_eigenvalues_in_float32_are_noise_and_called_so():
    def ours(operator):
        pairs = lanczos(operator, num_eigenpairs=1, ends="bottom")
        return float(pairs.values[0]), float(pairs.residuals[0])

    def wrong(operator):  # a relative tolerance is believed without a look at the precision
        pairs = lanczos(operator, num_eigenpairs=1, ends="bottom")
        return float(pairs.values[0]), 1e-3 * abs(float(pairs.values[0]))

    check_error_is_stated(ours)
    with pytest.raises(AssertionError):
        check_error_is_stated(wrong)


# -- 26: seeds -------------------------------------------------------------------------------------


def check_seeds(draw):
    operator = PrescribedSpectrum(np.ones(200))
    torch.manual_seed(1)  # one rank ...
    first = draw(operator, 5)
    torch.manual_seed(2)  # ... and another, whose global generator stands elsewhere
    assert torch.equal(draw(operator, 5), first)
    assert not torch.equal(draw(operator, 6), first)


@pytest.mark.parametrize("ours", [gaussian, rademacher])
def test_trap_26_the_same_seed_gives_the_same_probe_on_every_rank_and_another_seed_another(ours):
    check_seeds(lambda operator, seed: ours(operator, seeded(seed)))
    # Never seeded: the same probe at every "random" restart.
    with pytest.raises(AssertionError):
        check_seeds(lambda operator, seed: ours(operator, torch.Generator()))
    # The global generator: another probe on every rank.
    with pytest.raises(AssertionError):
        check_seeds(lambda operator, seed: torch.randn(operator.size))


def test_trap_26_solvers_draw_from_their_seed_alone():
    operator = PrescribedSpectrum(np.r_[9.0, 4.0, np.linspace(0, 1, 50)])

    def check(measure):
        torch.manual_seed(1)
        first = measure(0)
        torch.manual_seed(2)
        assert measure(0) == first
        assert measure(1) != first

    check(lambda seed: hutchinson_trace(operator, seed=seed).value)
    check(lambda seed: slq_density(operator, num_steps=5, seed=seed).mean)
    check(lambda seed: float(lanczos(operator, num_eigenpairs=1, seed=seed).vectors[0, 0]))
    check(lambda seed: float(power_iteration(operator, seed=seed).vectors[0, 0]))
    with pytest.raises(AssertionError):
        check(lambda seed: float(torch.rand(1)))
