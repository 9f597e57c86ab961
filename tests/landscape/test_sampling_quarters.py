"""Sampling intervals of eigenvalues over random quarters of the demo's 4,000 signals."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from landscape import Hessian, Objective, lanczos, sampling_errors
from tests.landscape.test_demo_surfaces import demo_checkpoint

NUM_QUARTERS = 40


def holds(interval, truth):
    low, high = interval
    return low <= truth <= high


@pytest.mark.slow
def test_the_whole_datas_top_three_lie_in_34_of_40_intervals_of_random_quarters():
    """An interval that holds 95 % does so in fewer than 34 of 40 once in 300 such tests.

    Seen, with eigenvalues to 1e-2: erm 38, 37 and 40; sam 38, 39 and 39; ae-sam 40, 40 and 39;
    values 1 to 4 % high on average, standard errors 4 to 5 %.
    """
    model, data = demo_checkpoint("erm")
    whole = Objective(model, F.cross_entropy, [(data.inputs, data.targets)])
    assert whole.num_samples == 4000
    pairs = lanczos(Hessian(whole), num_eigenpairs=3)
    assert pairs.complete
    truths = pairs.values.tolist()
    held, by_residual, ratios, errors = [], [], [], []
    for seed in range(NUM_QUARTERS):
        rows = torch.randperm(4000, generator=torch.Generator().manual_seed(seed))[:1000]
        quarter = whole.over_rows(rows.tolist())
        found = lanczos(Hessian(quarter), num_eigenpairs=3, tolerance=2e-2, seed=seed)
        assert found.complete
        estimates = sampling_errors(
            quarter, vectors=found.vectors, population=4000, seed=seed
        ).eigenvalues
        held.append(
            [holds(e.details["interval"], t) for e, t in zip(estimates, truths, strict=True)]
        )
        residuals = torch.stack([found.values - found.residuals, found.values + found.residuals])
        by_residual.append(
            [holds(pair, t) for pair, t in zip(residuals.T.tolist(), truths, strict=True)]
        )
        ratios.append([e.value / t for e, t in zip(estimates, truths, strict=True)])
        errors.append([e.standard_error / t for e, t in zip(estimates, truths, strict=True)])
    print(f"held {np.sum(held, axis=0)} of 40; ratios {np.mean(ratios, axis=0).round(3)}")
    assert (np.sum(held, axis=0) >= 34).all()
    assert (np.sum(by_residual, axis=0) < 34).all()  # the solver's error is another one
    assert np.abs(np.mean(ratios, axis=0) - 1).max() < 0.1
    # The stated error is the spread that the quarters have.
    assert np.mean(errors) == pytest.approx(np.mean(np.std(ratios, axis=0)), rel=0.3)
