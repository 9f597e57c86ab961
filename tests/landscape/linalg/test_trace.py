import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy.stats import t as student_t

from landscape.linalg import MatrixOperator, hutchinson_trace, lanczos
from landscape.linalg.operator import rademacher, seeded
from tests.references import PrescribedSpectrum, hard_spectrum


@pytest.fixture(scope="module")
def operator():
    matrix = torch.randn(60, 60, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return MatrixOperator(matrix @ matrix.T / 60 + 0.3 * (matrix + matrix.T))


def test_the_value_is_the_mean_over_probes_and_the_error_its_standard_error(operator):
    generator = seeded(5)
    samples = np.array(
        [
            float(probe @ operator.matrix @ probe)
            for probe in (rademacher(operator, generator) for _ in range(12))
        ]
    )
    trace = hutchinson_trace(operator, num_probes=12, seed=5)
    error = samples.std(ddof=1) / math.sqrt(12)
    assert trace.value == pytest.approx(samples.mean())
    assert trace.standard_error == pytest.approx(error)
    half_width = student_t.ppf(0.975, 11) * error
    assert trace.details["interval"] == pytest.approx(
        [samples.mean() - half_width, samples.mean() + half_width]
    )
    assert trace.num_matvecs == 12
    assert trace.kind == "estimate"


def test_the_stated_error_is_that_of_the_estimate_in_theory(operator):
    off_diagonal = operator.matrix - operator.matrix.diag().diag()
    variance = 2 * float((off_diagonal**2).sum())  # of v'Av, Rademacher v
    trace = hutchinson_trace(operator, num_probes=2000)
    assert trace.standard_error == pytest.approx(math.sqrt(variance / 2000), rel=0.1)
    assert abs(trace.value - float(operator.matrix.trace())) < 4 * trace.standard_error


@pytest.mark.parametrize("tolerance", [None, 0.2])
def test_the_interval_covers_the_trace_in_95_of_100_runs(operator, tolerance):
    truth, num_runs = float(operator.matrix.trace()), 300
    covered = 0
    for seed in range(num_runs):
        trace = hutchinson_trace(operator, num_probes=24, seed=seed, tolerance=tolerance)
        low, high = trace.details["interval"]
        covered += low <= truth <= high
    assert covered / num_runs == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / num_runs))


def test_known_eigenpairs_take_their_part_of_the_variance():
    operator = PrescribedSpectrum(hard_spectrum("geometric"))
    truth = float(operator.eigenvalues.sum())
    pairs = lanczos(operator, num_eigenpairs=10)
    errors = {}
    for known in (None, pairs):
        traces = [
            hutchinson_trace(operator, num_probes=20, seed=seed, eigenpairs=known)
            for seed in range(10)
        ]
        errors[known is None] = np.mean([trace.standard_error for trace in traces])
        scores = [(trace.value - truth) / trace.standard_error for trace in traces]
        assert np.abs(scores).max() < 5
    assert errors[False] < 0.5 * errors[True]
    assert traces[0].details["num_deflated"] == 10
    assert traces[0].num_matvecs == 20


def test_deflation_by_deliberately_wrong_pairs_stays_unbiased(operator):
    pairs = lanczos(operator, num_eigenpairs=4)
    random = torch.Generator().manual_seed(1)
    wrong = dataclasses.replace(
        pairs,
        values=torch.tensor([30.0, -20.0, 5.0, 100.0], dtype=torch.float64),
        vectors=pairs.vectors + torch.randn(60, 4, generator=random, dtype=torch.float64) / 5,
    )
    truth = float(operator.matrix.trace())
    traces = [
        hutchinson_trace(operator, num_probes=100, seed=s, eigenpairs=wrong) for s in range(9)
    ]
    mean = np.mean([trace.value for trace in traces])
    error = np.mean([trace.standard_error for trace in traces]) / 3
    assert abs(mean - truth) < 3.5 * error
    assert error < 0.2 * abs(float((wrong.values * wrong.vectors.norm(dim=0) ** 2).sum()))


def test_a_tolerance_stops_on_the_error_and_never_before_ten_probes(operator):
    trace = hutchinson_trace(operator, num_probes=5000, tolerance=0.05)
    low, high = trace.details["interval"]
    assert (high - low) / 2 <= 0.05 * abs(trace.value)
    assert trace.details["stopped_on"] == "tolerance"
    assert 10 < trace.num_matvecs < 5000
    one_fewer = hutchinson_trace(operator, num_probes=trace.num_matvecs - 1, tolerance=0.05)
    assert one_fewer.details["stopped_on"] == "budget"
    loose = hutchinson_trace(operator, num_probes=5000, tolerance=100.0)
    assert loose.num_matvecs == 10
    few = hutchinson_trace(operator, num_probes=6, tolerance=100.0)
    assert few.num_matvecs == 6
    assert few.details["stopped_on"] == "budget"


def test_a_zero_variance_is_reported_as_such():
    diagonal = MatrixOperator(torch.diag(torch.linspace(-1, 3, 50, dtype=torch.float64)))
    trace = hutchinson_trace(diagonal, num_probes=40, tolerance=1e-3)
    assert trace.value == pytest.approx(50.0)
    assert trace.details["zero_variance"]
    assert trace.num_matvecs == 10
    assert hutchinson_trace(MatrixOperator(torch.zeros(3, 3)), num_probes=2).value == 0
    rotated = PrescribedSpectrum(np.linspace(-1, 3, 50))
    assert not hutchinson_trace(rotated, num_probes=40).details["zero_variance"]


def test_float32_products_are_summed_in_float64():
    spectrum = np.full(300_000, 0.1)
    operator = PrescribedSpectrum(spectrum, dtype=torch.float32)
    assert hutchinson_trace(operator, num_probes=2).value == pytest.approx(30_000, rel=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_probes": 1}, "num_probes must be >= 2, got 1"),
        ({"tolerance": 0.0}, "tolerance must be > 0, got 0.0"),
        ({"tolerance": math.nan}, "tolerance must be > 0, got nan"),
    ],
)
def test_bad_arguments_are_named(operator, options, message):
    with pytest.raises(ValueError, match=message):
        hutchinson_trace(operator, **options)


def test_eigenpairs_of_another_operator_are_refused(operator):
    pairs = lanczos(PrescribedSpectrum([3.0, 2.0, 1.0]), num_eigenpairs=1)
    with pytest.raises(ValueError, match="eigenpairs have size 3, the operator 60"):
        hutchinson_trace(operator, eigenpairs=pairs)
