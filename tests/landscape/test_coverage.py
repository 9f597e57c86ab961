"""Intervals hold the truth as often as they say.

With 200 seeds and a true level of 95 % the number of intervals that hold the truth is binomial with
standard deviation 1.5 %: it leaves 92 to 98 % in 3 of 100 tests, and an interval that holds 88 %
passes in 5 of 100. Seeds are fixed, so that a test that passes goes on to; where they are cheap
there are 600.
"""

import math

import numpy as np
import pytest
import torch
from scipy.stats import t as student_t
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from landscape import Hessian, Objective
from landscape.gradient_noise import gradient_covariance_trace
from landscape.linalg import (
    MatrixOperator,
    hutchinson_trace,
    hutchpp_trace,
    lanczos,
    slq_density,
    xtrace,
)
from landscape.sampling import sampling_errors
from landscape.sharpness import Spectrum, measure
from tests.references import PrescribedSpectrum, quadratic_objective

pytestmark = pytest.mark.slow

NUM_SEEDS = 200


def holds(estimate, truth):
    low, high = estimate.details["interval"]
    return low <= truth <= high


def assert_level(held):
    share = np.mean(held)
    assert len(held) >= NUM_SEEDS
    assert 0.92 <= share <= 0.98, f"{share:.1%} of the intervals hold the truth"


# -- Random probes ---------------------------------------------------------------------------------


def rotated(spectrum, seed=0):
    random = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(random.standard_normal((len(spectrum), len(spectrum))))
    matrix = basis @ np.diag(spectrum) @ basis.T
    return MatrixOperator(torch.from_numpy((matrix + matrix.T) / 2))


# A few outliers, a decaying bulk, a negative tail: the Hessian of a trained net.
NETWORK = np.r_[[60, 42, 33, 21, 10], 8 / np.arange(1, 200) ** 0.7, np.linspace(-1, -0.1, 40)]


@pytest.mark.parametrize(
    "estimate",
    [
        lambda operator, seed, _: hutchinson_trace(operator, seed=seed),
        lambda operator, seed, _: hutchinson_trace(
            operator, num_probes=400, seed=seed, tolerance=0.15
        ),
        lambda operator, seed, pairs: hutchinson_trace(
            operator, num_probes=16, seed=seed, eigenpairs=pairs
        ),
        lambda operator, seed, _: hutchpp_trace(operator, num_products=60, seed=seed),
        lambda operator, seed, _: xtrace(operator, num_products=60, seed=seed),
    ],
    ids=["hutchinson", "hutchinson-tolerance", "hutchinson-deflated", "hutch++", "xtrace"],
)
def test_the_interval_of_the_trace(estimate):
    """Hutchinson over 2,400 seeds holds 95.0 %, but its first 200 alone 91 %."""
    operator = rotated(NETWORK)
    pairs = lanczos(operator, num_eigenpairs=5)
    truth = float(NETWORK.sum())
    assert_level([holds(estimate(operator, seed, pairs), truth) for seed in range(3 * NUM_SEEDS)])


def test_the_interval_of_xtrace_needs_the_covariance_of_its_summands():
    operator = rotated(np.arange(1, 201) ** -2.0)
    truth = float((np.arange(1, 201) ** -2.0).sum())
    ours, independent = [], []
    for seed in range(NUM_SEEDS):
        found = xtrace(operator, num_products=40, seed=seed)
        ours.append(holds(found, truth))
        low, high = found.details["interval"]
        variance = found.standard_error**2  # less the covariance: as if they were independent
        ratio = math.sqrt(1 - found.details["covariance"] / variance)
        independent.append(abs(found.value - truth) <= ratio * (high - low) / 2)
    assert_level(ours)
    with pytest.raises(AssertionError):
        assert_level(independent)


# Cuts in gaps, above 2, 22 and 122 of 400 eigenvalues.
DENSITY = np.r_[[50.0, 40.0], np.linspace(4, 9, 20), np.linspace(0.5, 1.5, 100), np.zeros(278)]


@pytest.fixture(scope="module")
def densities():
    operator = PrescribedSpectrum(DENSITY)
    return [
        slq_density(operator, num_runs=10, num_steps=24, seed=seed) for seed in range(3 * NUM_SEEDS)
    ]


@pytest.mark.parametrize("cut", [30.0, 3.0, 0.25])
def test_the_interval_of_the_spectral_mass_above_a_cut(densities, cut):
    truth = float((cut <= DENSITY).mean())
    assert_level([holds(density.mass_between(cut, np.inf), truth) for density in densities])


# -- Random draws around theta ---------------------------------------------------------------------


def t_holds(estimate, truth, *, num_draws, error=None):
    """Whether value +- t standard errors holds the truth, as a reader would make the interval."""
    if error is None:
        error = estimate.standard_error
        half_width = student_t.ppf(0.975, num_draws - 1) * error
        ends = [estimate.value - half_width, estimate.value + half_width]
        assert estimate.details["interval"] == pytest.approx(ends, rel=1e-9)
    return abs(estimate.value - truth) <= student_t.ppf(0.975, num_draws - 1) * error


def quadratic(*, deflated):
    """An indefinite quadratic with a slope, theta that has zeros, and what is known of H."""
    matrix = rotated(NETWORK).matrix
    generator = torch.Generator().manual_seed(1)
    theta = torch.randn(len(matrix), generator=generator, dtype=torch.float64)
    theta[::9] = 0
    slope = torch.randn(len(matrix), generator=generator, dtype=torch.float64)
    pairs = lanczos(MatrixOperator(matrix), num_eigenpairs=5) if deflated else None
    return quadratic_objective(matrix, slope, theta=theta), matrix, Spectrum(eigenpairs=pairs)


@pytest.mark.parametrize("deflated", [False, True])
@pytest.mark.parametrize("metric", ["average-case", "adaptive-average-case"])
def test_the_interval_of_the_average_case_of_a_quadratic(metric, deflated):
    """The truth is rho^2 tr(H) / 2P, of T H T on the weights that are not zero if adaptive."""
    objective, matrix, spectrum = quadratic(deflated=deflated)
    entries = matrix.diag()
    if metric == "adaptive-average-case":
        moves = objective.theta != 0
        entries = (entries * objective.theta**2)[moves]
    truth = 0.3**2 * float(entries.sum()) / (2 * len(entries))
    held, without, values, errors = [], [], [], []
    for seed in range(2 * NUM_SEEDS):
        word = f"{metric}:rho=0.3:num_draws=64"
        found = measure(word, objective, seed=seed, spectrum=spectrum)
        held.append(t_holds(found, truth, num_draws=64))
        values.append(found.value)
        errors.append(found.standard_error)
        plain = found.details["plain_standard_error"]  # of the mean without what is known
        without.append(t_holds(found, truth, num_draws=64, error=plain))
    assert_level(held)
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.1)
    with pytest.raises(AssertionError):
        assert_level(without)


def test_the_interval_of_the_average_case_of_a_net():
    """The truth from 200,000 draws of its own, by one batched forward pass for many of them."""
    inputs, targets = load_digits(return_X_y=True)
    x, y = torch.tensor(inputs[:80] / 16), torch.tensor(targets[:80])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(64, 6), nn.ReLU(), nn.Linear(6, 10)).double()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.3, momentum=0.9)
        for _ in range(80):
            optimizer.zero_grad()
            F.cross_entropy(net(x), y).backward()
            optimizer.step()
    w1, b1, w2, b2 = (p.detach() for p in net.parameters())
    rho, size = 3.0, sum(p.numel() for p in net.parameters())
    random, rises = torch.Generator().manual_seed(99), []

    def noise(like, num):
        draws = torch.randn(num, *like.shape, generator=random, dtype=torch.float64)
        return like + rho / math.sqrt(size) * draws

    with torch.no_grad():
        here = float(F.cross_entropy(net(x), y))
        for _ in range(200):
            one, other, second, last = (noise(p, 1000) for p in (w1, b1, w2, b2))
            hidden = (x @ one.mT + other[:, None]).relu()
            logits = hidden @ second.mT + last[:, None]
            nats = logits.logsumexp(2) - logits[:, torch.arange(80), y]
            rises.append(nats.mean(1) - here)
    rises = torch.cat(rises)
    truth, error = float(rises.mean()), float(rises.std()) / math.sqrt(len(rises))
    objective = Objective(net, F.cross_entropy, [(x, y)])
    found = [
        measure(f"average-case:rho={rho}:num_draws=64", objective, seed=seed)
        for seed in range(NUM_SEEDS)
    ]
    assert error < 0.1 * found[0].standard_error
    assert_level([t_holds(estimate, truth, num_draws=64) for estimate in found])


# -- The data as a sample --------------------------------------------------------------------------

SCALES = torch.tensor([3.0, 1.5, 1.0, 0.5], dtype=torch.float64)
SLOPE = torch.tensor([0.3, -0.4, 0.5, 1.0], dtype=torch.float64)  # theta less the true weights


def regression(seed, num_rows=400, *, away=1.0):
    """Draws from y = 1'x + noise; the model is `away` * SLOPE from the weights that made them."""
    generator = torch.Generator().manual_seed(seed)
    x = SCALES * torch.randn(num_rows, 4, generator=generator, dtype=torch.float64)
    y = x.sum(1, keepdim=True) + torch.randn(num_rows, 1, generator=generator, dtype=torch.float64)
    model = nn.Linear(4, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(1 + away * SLOPE)
    return Objective(model, F.mse_loss, [(x, y)])


@pytest.fixture(scope="module")
def regression_errors():
    found = []
    for seed in range(NUM_SEEDS):
        objective = regression(seed)
        pairs = lanczos(Hessian(objective), num_eigenpairs=2)
        found.append(
            sampling_errors(objective, vectors=pairs.vectors, num_trace_probes=8, seed=seed)
        )
    return found


@pytest.mark.parametrize("name", ["loss", "gradient_norm", "trace", "first", "second"])
def test_the_interval_over_draws_from_a_distribution(regression_errors, name):
    """With x ~ N(0, C) and b = theta - w: L = b'Cb + 1, g = 2Cb, H = 2C."""
    variances = SCALES**2
    truth = {
        "loss": float(SLOPE @ (variances * SLOPE)) + 1,
        "gradient_norm": float((2 * variances * SLOPE).norm()),
        "trace": float(2 * variances.sum()),
        "first": float(2 * variances[0]),
        "second": float(2 * variances[1]),
    }[name]
    estimates = [
        errors.eigenvalues[("first", "second").index(name)]
        if name in ("first", "second")
        else getattr(errors, name)
        for errors in regression_errors
    ]
    assert_level([holds(estimate, truth) for estimate in estimates])


def test_the_interval_of_a_gradient_that_is_zero_holds_zero():
    """At the minimum of the whole, a sample's gradient is noise: its own length misleads."""
    found = [sampling_errors(regression(seed, 200, away=0.0)).gradient_norm for seed in range(60)]
    assert np.mean([holds(estimate, 0.0) for estimate in found]) > 0.92
    lengths, corrected = (
        np.mean([estimate.value for estimate in found]),
        np.mean([estimate.details["corrected"] for estimate in found]),
    )
    assert corrected < 0.6 * lengths


def test_the_interval_over_quarters_of_a_known_whole():
    """Logistic regression: without the finite-population factor it would hold too often."""
    generator = torch.Generator().manual_seed(0)
    x = SCALES * torch.randn(1200, 4, generator=generator, dtype=torch.float64)
    y = (torch.rand(1200, 1, generator=generator, dtype=torch.float64) < 0.3).double()
    model = nn.Linear(4, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(SLOPE)
    loss = F.binary_cross_entropy_with_logits
    whole = Objective(model, loss, [(x, y)])
    truth = float(lanczos(Hessian(whole), num_eigenpairs=1).values[0])
    length = float(whole.gradient(whole.theta).norm())
    held, lengths, without = [], [], []
    for seed in range(NUM_SEEDS):
        rows = torch.randperm(1200, generator=torch.Generator().manual_seed(seed))[:600]
        half = whole.over_rows(rows.tolist())
        vectors = lanczos(Hessian(half), num_eigenpairs=1).vectors
        found = sampling_errors(half, vectors=vectors, population=1200, seed=seed)
        held.append(holds(found.eigenvalues[0], truth))
        lengths.append(holds(found.gradient_norm, length))
        plain = sampling_errors(half, vectors=vectors, seed=seed)
        without.append(holds(plain.eigenvalues[0], truth))
    assert_level(held)
    assert_level(lengths)
    with pytest.raises(AssertionError):
        assert_level(without)


def classification(seed, num_rows):
    """Draws of x and of P(y = 1 | x); the model is not the one that made them."""
    generator = torch.Generator().manual_seed(seed)
    x = SCALES * torch.randn(num_rows, 4, generator=generator, dtype=torch.float64)
    chances = torch.sigmoid(x @ SLOPE.flip(0))
    y = (torch.rand(num_rows, generator=generator, dtype=torch.float64) < chances).double()
    return x, chances, y


def test_the_interval_of_the_gradient_noise():
    """Logistic regression, g_i = (p_i - y_i) x_i; the truth from four million rows.

    |g_i|^2 has a long tail: the t interval of 1,000 rows holds 95 %, that of 240 rows 92 %.
    """
    x, chances, _ = classification(NUM_SEEDS, 4_000_000)
    p = torch.sigmoid(x @ SLOPE)
    squares = ((p - chances) ** 2 + chances * (1 - chances)) * (x**2).sum(1)
    truth = float(squares.mean() - (((p - chances)[:, None] * x).mean(0) ** 2).sum())
    held = []
    for seed in range(NUM_SEEDS):
        x, _, y = classification(seed, 1000)
        model = nn.Linear(4, 1, bias=False).double()
        with torch.no_grad():
            model.weight.copy_(SLOPE)
        objective = Objective(model, F.binary_cross_entropy_with_logits, [(x, y[:, None])])
        held.append(holds(gradient_covariance_trace(objective, num_groups=40, seed=seed), truth))
    assert_level(held)


def test_the_interval_of_eigenvalues_over_random_quarters_of_a_nets_data():
    """Of 40 quarters at least 34 hold the whole's: at 95 % fewer do so once in 300 tests.

    Seen: 37, 37 and 39, values on average 5, 7 and 1 % high, standard errors 10 to 12 %.
    """
    inputs, targets = load_digits(return_X_y=True)
    x, y = torch.tensor(inputs[:1600] / 16), torch.tensor(targets[:1600])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(64, 12), nn.Tanh(), nn.Linear(12, 10)).double()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.2, momentum=0.9)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
    whole = Objective(net, F.cross_entropy, [(x, y)])
    truths = lanczos(Hessian(whole), num_eigenpairs=3).values.tolist()
    length = float(whole.gradient(whole.theta).norm())
    held, lengths, ratios = [], [], []
    for seed in range(40):
        rows = torch.randperm(1600, generator=torch.Generator().manual_seed(seed))[:400]
        quarter = whole.over_rows(rows.tolist())
        pairs = lanczos(Hessian(quarter), num_eigenpairs=3)
        found = sampling_errors(quarter, vectors=pairs.vectors, population=1600, seed=seed)
        held.append([holds(e, t) for e, t in zip(found.eigenvalues, truths, strict=True)])
        lengths.append(holds(found.gradient_norm, length))
        ratios.append([e.value / t for e, t in zip(found.eigenvalues, truths, strict=True)])
    assert (np.sum(held, axis=0) >= 34).all()
    assert np.sum(lengths) >= 34
    assert np.abs(np.mean(ratios, axis=0) - 1).max() < 0.1
