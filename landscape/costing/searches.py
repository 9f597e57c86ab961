"""What searches take: the budget of each, and beside it what it took on trained nets."""

from __future__ import annotations

import math
from dataclasses import replace

from landscape.estimate import Cost
from landscape.plan import ProbePlan

from .counts import Probed, Spent, at_most, exact

# Typical numbers are from trained nets of 650 to 17,610 parameters (cnn1d on mnist1d; MLPs with
# ReLU and tanh and logistic regression on digits, each by SGD and by SAM), on 300 to 500 rows.

_START_BUDGET = 40  # of the search for an eigenvector that an ascent starts from
_START_TYPICAL = {"top": 14, "bottom": 40}  # at the bottom it always ran out
ENDS = {"top": ("top",), "bottom": ("bottom",), "both": ("top", "bottom")}


def eigenpairs(
    size: int, *, num: int = 1, ends: str = "top", tolerance: float, matrix: str = "hessian"
) -> Spent:
    """Of `lanczos` with its own budget, max(1000, 50 x the number of wanted pairs)."""
    wanted = min(num * len(ENDS[ends]), size)
    most = max(1000, 50 * wanted)
    digits = -math.log10(tolerance)
    if ends == "top":
        typical = 10 + 2.5 * num + 1.5 * digits
        if matrix == "remainder":
            typical *= 2
    elif matrix in ("ggn", "fisher", "mc-fisher"):  # the bottom is a crowd at zero
        typical = 350 + 75 * (num - 1)
    else:
        typical = (95 + 22 * num) * (0.7 + 0.1 * digits)
    # A basis of all P vectors ends every search; locking and its confirmation come before.
    typical = min(typical, 1.5 * size, most)
    return at_most(Cost(products=most), Cost(products=round(typical)))


def krylov(runs: float, steps: int, probed: Probed) -> Spent:
    """Of so many runs of so many products each.

    A run ends early where the matrix has no more different eigenvalues than it has steps, which a
    matrix of few parameters or few rows may have.
    """
    found = exact(products=runs * min(steps, probed.num_parameters))
    few = min(probed.num_parameters, probed.num_rows)
    return replace(found, adaptive=2 * steps >= few)


def start(end: str) -> Spent:
    """Of the search for the eigenvector that an ascent starts from, at that end."""
    return at_most(Cost(products=_START_BUDGET), Cost(products=_START_TYPICAL[end]))


def trace_products(plan: ProbePlan, size: int) -> int:
    """Products that a plan's trace takes where P is `size`, at most."""
    if plan.trace_method == "hutchinson":
        return plan.trace_probes
    if plan.trace_probes >= size:  # unit vectors in the place of probes
        return size
    return plan.trace_probes if plan.trace_method == "hutchpp" else 2 * (plan.trace_probes // 2)


def num_pairs(plan: ProbePlan, size: int) -> int:
    """Eigenpairs that a plan finds where P is `size`."""
    return min(plan.eigenvalues * len(ENDS[plan.ends]), size)
