"""Means over seeds, paired differences and rank correlations, each with its interval. No torch."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CONFIDENCE = 0.95
FEWEST_CELLS = 4  # with three, `cell_tau`'s interval is most of [-1, 1] and says next to nothing
NUM_DRAWS = 2000


def mean(values: Sequence[float]) -> float:
    """The mean, summed without rounding on the way."""
    return math.fsum(values) / len(values)


def deviation(values: Sequence[float]) -> float:
    """The sample standard deviation s, with n - 1; nan for one value."""
    if len(values) < 2:
        return math.nan
    centre = mean(values)
    return math.sqrt(math.fsum((x - centre) ** 2 for x in values) / (len(values) - 1))


def half_width(values: Sequence[float]) -> float | None:
    """Half of the 95 % Student-t interval of the mean; None for fewer than two values.

    t_{0.975, n-1} s / sqrt(n),     s^2 = (1/(n-1)) sum_i (x_i - mean)^2
    """
    if len(values) < 2:
        return None
    from scipy.special import stdtrit

    quantile = float(stdtrit(len(values) - 1, 0.5 + CONFIDENCE / 2))
    return quantile * deviation(values) / math.sqrt(len(values))


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Mean, standard deviation and 95 % interval; the last two None for one value."""
    return {
        "mean": _finite(mean(values)),
        "standard_deviation": _finite(deviation(values)),
        "interval": _interval(values),
    }


def paired(values: Sequence[float], reference: Sequence[float]) -> dict[str, Any]:
    """The mean difference to the reference over the same seeds, with its 95 % interval.

    Both runs of a pair share what the seed decides (weights at the start, batch order), so what the
    seed adds to both drops out. The interval is None for one pair.
    """
    differences = [a - b for a, b in zip(values, reference, strict=True)]
    return {
        "difference": _finite(mean(differences)),
        "interval": _interval(differences),
        "num_pairs": len(differences),
    }


@dataclass(frozen=True)
class RankCorrelation:
    """Kendall's tau-b of measurements that come in cells.

    Attributes:
        tau: None where it is not defined: no pair, or one of the two measurements is constant.
        interval: of 95 %; None where resampling cells cannot give an honest one.
        num_cells: that hold a pair, on their own or with another cell.
        skipped: why there is no interval, or no tau; None where there are both.
    """

    tau: float | None
    interval: list[float] | None
    num_cells: int
    skipped: str | None


def cell_tau(
    first: Sequence[float], second: Sequence[float], cells: Sequence[Hashable], *, seed: int = 0
) -> RankCorrelation:
    """Kendall's tau-b over all pairs, with a 95 % interval from resampling whole cells.

        tau_b = sum_{i<j} a_ij b_ij / sqrt(sum_{i<j} a_ij^2  sum_{i<j} b_ij^2)
        a_ij = sign(x_i - x_j),   b_ij = sign(y_i - y_j)

    Measurements of one cell are no independent draws, cells are. A draw takes as many cells as
    there are, with replacement. With n_c copies of cell c it weighs a pair of two cells by n_c n_d
    and a pair within a cell by n_c: what two copies of one cell would add, each measurement beside
    its own copy among them, is left out, because it would count as pairs of different cells and is
    none. The standard deviation s over the draws makes the interval

        tanh(artanh(tau) +- t_{0.975, C-1} sqrt(C/(C-1)) s / (1 - tau^2))

    for C cells, with Student's quantile and the factor for what C draws of C cells vary too little.
    With fewer than four cells, and where all draws agree, there is none. On 28 clustered Gaussian
    models with 4 to 20 cells it held the true tau in 95 to 100 % of 1,000 samples each (94 to 100 %
    in `tau_within_cells`); percentiles of the same draws went down to 90 % (79 %).

    Args:
        first, second: x and y, one a thing.
        cells: the cell of each, any labels.
        seed: of the draws.
    """
    return _resampled(_PairSums.between_all(first, second, cells), seed)


def tau_within_cells(
    first: Sequence[float], second: Sequence[float], cells: Sequence[Hashable], *, seed: int = 0
) -> RankCorrelation:
    """Kendall's tau-b over the pairs of one cell alone, all cells' pairs together.

    What differs between cells (a method's options, say) then explains nothing. Cells with a single
    measurement have no pair and do not count. The interval is `cell_tau`'s.

    Source: the idea of Jiang et al. 2020, "Fantastic generalization measures", section 4: a measure
    must order the runs that differ in one thing alone. Theirs is the mean of one tau a group.
    """
    return _resampled(_PairSums.within_cells(first, second, cells), seed)


@dataclass(frozen=True)
class _PairSums:
    """Sums over pairs by the cells of the two: a draw of cells is then a product with its counts.

    Attributes:
        agreement: sum of a_ij b_ij; on the diagonal over the pairs within a cell.
        untied_first, untied_second: how many pairs have a_ij, b_ij other than 0.
        words: what is missing where there are too few cells.
    """

    agreement: NDArray[np.float64]  # (C, C)
    untied_first: NDArray[np.float64]  # (C, C)
    untied_second: NDArray[np.float64]  # (C, C)
    words: str

    @classmethod
    def between_all(
        cls, first: Sequence[float], second: Sequence[float], cells: Sequence[Hashable]
    ) -> _PairSums:
        import numpy as np

        x, y = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
        if not len(x) == len(y) == len(cells):
            raise ValueError(
                f"first, second and cells must be equally long, got {len(x)}, {len(y)} and "
                f"{len(cells)}"
            )
        order = {cell: index for index, cell in enumerate(dict.fromkeys(cells))}
        member = np.zeros((len(cells), len(order)))
        member[np.arange(len(cells)), [order[cell] for cell in cells]] = 1
        a, b = np.sign(x[:, None] - x), np.sign(y[:, None] - y)
        agreement, untied_first, untied_second = (
            member.T @ pairs @ member for pairs in (a * b, np.abs(a), np.abs(b))
        )
        for sums in (agreement, untied_first, untied_second):
            sums[np.diag_indices(len(order))] /= 2  # i, j and j, i
        return cls(agreement, untied_first, untied_second, words="cells")

    @classmethod
    def within_cells(
        cls, first: Sequence[float], second: Sequence[float], cells: Sequence[Hashable]
    ) -> _PairSums:
        import numpy as np

        whole = cls.between_all(first, second, cells)
        counts = [list(cells).count(cell) for cell in dict.fromkeys(cells)]
        several = np.flatnonzero(np.asarray(counts) > 1)
        agreement, untied_first, untied_second = (
            np.diag(np.diag(sums)[several])
            for sums in (whole.agreement, whole.untied_first, whole.untied_second)
        )
        return cls(agreement, untied_first, untied_second, words="cells of two or more")

    @property
    def num_cells(self) -> int:
        return len(self.agreement)

    def taus(self, counts: NDArray[np.float64]) -> NDArray[np.float64]:
        """tau_b of each draw; nan where it is not defined. Counts of shape (draws, C)."""
        import numpy as np

        totals = []
        for sums in (self.agreement, self.untied_first, self.untied_second):
            own = np.diag(sums)
            totals.append(((counts @ (sums - np.diag(own))) * counts).sum(1) / 2 + counts @ own)
        agreement, untied_first, untied_second = totals
        scale = np.sqrt(untied_first * untied_second)
        taus = np.full(len(counts), np.nan)
        np.divide(agreement, scale, out=taus, where=scale > 0)
        return taus


def _resampled(pairs: _PairSums, seed: int) -> RankCorrelation:
    import numpy as np
    from scipy.special import stdtrit

    size = pairs.num_cells
    tau = float(pairs.taus(np.ones((1, size)))[0])
    if math.isnan(tau):
        reason = "one of the two is the same in every pair"
        reason = reason if size else f"there are no {pairs.words}"
        return RankCorrelation(None, None, size, reason)
    if size < FEWEST_CELLS:
        reason = f"{size} {pairs.words}: an interval from resampling them needs {FEWEST_CELLS}"
        return RankCorrelation(tau, None, size, reason)
    generator = np.random.default_rng(seed)
    counts = generator.multinomial(size, np.full(size, 1 / size), size=NUM_DRAWS).astype(np.float64)
    taus = pairs.taus(counts)
    taus = taus[np.isfinite(taus)]
    if np.ptp(taus) == 0:
        reason = f"every draw of {pairs.words} has this tau: no draw says how far off it may be"
        return RankCorrelation(tau, None, size, reason)
    error = float(taus.std(ddof=1)) * math.sqrt(size / (size - 1)) / (1 - tau**2)
    half = float(stdtrit(size - 1, 0.5 + CONFIDENCE / 2)) * error
    centre = math.atanh(tau)
    return RankCorrelation(tau, [math.tanh(centre - half), math.tanh(centre + half)], size, None)


def _interval(values: Sequence[float]) -> list[float] | None:
    half = half_width(values)
    if half is None:
        return None
    centre = mean(values)
    low, high = centre - half, centre + half
    return [low, high] if math.isfinite(low) and math.isfinite(high) else None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
