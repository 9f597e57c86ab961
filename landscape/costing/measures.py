"""What each sharpness measure takes, where so much is known before it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from landscape.estimate import Cost
from landscape.plan import ProbePlan
from landscape.sharpness import METRICS, MetricSpec

from .counts import NOTHING, Passes, Probed, Spent, StageCost, at_most, exact, times
from .searches import ENDS, eigenpairs, krylov, num_pairs, start, trace_products

_TRACE_PROBES, _DENSITY_RUNS, _DENSITY_STEPS = 64, 10, 40  # of measures that nobody gives them to
_SEARCH_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Known:
    """What the measures find measured already, and on what they look.

    Attributes:
        size: P.
        pair_ends: of the spectrum, whose eigenpairs are known; () for none.
        tolerance, matrix: of these pairs.
        num_pairs: how many.
        trace: products of the trace that is known; None: it is not.
        density: runs and steps of the density that is known.
    """

    size: int
    probed: Probed
    pair_ends: tuple[str, ...] = ()
    tolerance: float = 0.0
    matrix: str = "hessian"
    num_pairs: int = 0
    trace: int | None = None
    density: tuple[int, int] | None = None

    @classmethod
    def of(cls, plan: ProbePlan, probed: Probed, *, whole: bool) -> Known:
        size = probed.num_parameters
        density = (plan.density_runs, min(plan.density_steps, size))
        return cls(
            size=size,
            probed=probed,
            pair_ends=ENDS[plan.ends] if plan.eigenvalues else (),
            tolerance=plan.tolerance,
            matrix=plan.matrix,
            num_pairs=num_pairs(plan, size),
            trace=trace_products(plan, size) if plan.trace_probes else None,
            density=density if whole and plan.density_runs else None,
        )

    @property
    def of_the_hessian(self) -> Known:
        """The same without what is known of another matrix."""
        if self.matrix == "hessian":
            return self
        return Known(self.size, self.probed, num_pairs=self.num_pairs)

    def has(self, end: str, tolerance: float | None = None) -> bool:
        """Whether the pair at that end is known so exactly."""
        return end in self.pair_ends and (tolerance is None or tolerance >= self.tolerance)

    def search(self, end: str, tolerance: float | None) -> Spent:
        """Of one eigenpair at an end, free where it is known."""
        if self.has(end, tolerance):
            return Spent()
        return eigenpairs(self.size, ends=end, tolerance=tolerance or _SEARCH_TOLERANCE)


def measure_cost(spec: MetricSpec, known: Known) -> Spent:
    """What a sharpness measure takes where so much is known. KeyError for one that has no count."""
    return _MEASURES[spec.name]({**METRICS[spec.name].defaults(), **spec.options}, known)


def sharpness_costs(specs: Sequence[MetricSpec], known: Known) -> Iterator[StageCost]:
    """Of every measure, and of the gradient's length where no measure is that."""
    for spec in specs:
        yield StageCost(
            "sharpness",
            spec.label,
            measure_cost(spec, known),
            _passes_of(spec, known),
            uncounted=Cost(forwards=1) if spec.name == "m-sharpness" else NOTHING,
            num_bases=1,
            num_vectors=_vectors_of(spec, known),
        )
    if "gradient-norm" not in [spec.label for spec in specs]:
        yield StageCost("sharpness", "length of the gradient", exact(gradients=1), num_vectors=2)


def _passes_of(spec: MetricSpec, known: Known) -> Passes:
    if spec.name == "fisher-rao":
        return Passes("ggn")
    if spec.name == "m-sharpness":
        m = spec.options.get("m", METRICS[spec.name].options["m"].default)
        return Passes(rows=min(m, known.probed.num_rows))
    return Passes()


def _vectors_of(spec: MetricSpec, known: Known) -> float:
    """Beside the eigenpairs themselves, in vectors of the model's own precision."""
    if "average" in spec.name:  # the pairs twice in float64, while they are squared
        return 4 * known.num_pairs + 8
    if spec.name == "epsilon-sharpness":  # L-BFGS-B in float64, with ten pairs of corrections
        return 60
    return 12


Options = Mapping[str, Any]


def _gradient_norm(options: Options, known: Known) -> Spent:
    return exact(products=1, gradients=1)


def _lambda_max(options: Options, known: Known) -> Spent:
    return known.search("top", options["tolerance"])


def _lambda_min(options: Options, known: Known) -> Spent:
    return known.search("bottom", options["tolerance"])


def _spectral_norm(options: Options, known: Known) -> Spent:
    tolerance = options["tolerance"]
    both = known.has("top", tolerance) and known.has("bottom", tolerance)
    if both:
        return Spent()
    if known.pair_ends != ENDS["both"]:
        known = known.of_the_hessian
    top = known.search("top", tolerance)
    most = Cost(products=1000)  # the bottom end of a shifted matrix
    return top + at_most(most, Cost(products=min(60, known.size)))


def _negative_mass(options: Options, known: Known) -> Spent:
    runs, steps = options["num_runs"], options["num_lanczos_steps"]
    density = known.of_the_hessian.density
    if density is not None and runs in (None, density[0]) and steps in (None, density[1]):
        return Spent()
    runs, steps = runs or _DENSITY_RUNS, steps or _DENSITY_STEPS
    return krylov(runs, steps, known.probed)


def _trace(options: Options, known: Known) -> Spent:
    probes = options["num_probes"]
    if known.trace is not None and probes in (None, known.trace):
        return Spent()
    return exact(products=_TRACE_PROBES if probes is None else probes)


def _sam(options: Options, known: Known) -> Spent:
    return exact(gradients=1, forwards=1 if options["rho"] > 0 else 0)


def _climb(options: Options, known: Known, end: str) -> Spent:
    """Of `largest_rise`: from the gradient, plus and minus an eigenvector, and random points."""
    if options["rho"] == 0:
        return Spent()
    runs = 3 + options["num_restarts"]
    climbs = exact(gradients=1 + runs * options["num_steps"], forwards=runs)
    return climbs if known.of_the_hessian.has(end) else climbs + start(end)


def _worst_case(options: Options, known: Known) -> Spent:
    return _climb(options, known, "top")


def _min_sharpness(options: Options, known: Known) -> Spent:
    return _climb(options, known, "bottom")


def _bilateral(options: Options, known: Known) -> Spent:
    return _climb(options, known, "top") + _climb(options, known, "bottom")


def _adaptive_worst_case(options: Options, known: Known) -> Spent:
    return _climb(options, replace(known, pair_ends=()), "top")


def _average_case(options: Options, known: Known) -> Spent:
    return Spent() if options["rho"] == 0 else exact(gradients=1, forwards=options["num_draws"])


def _m_sharpness(options: Options, known: Known) -> Spent:
    rows = known.probed.num_rows
    groups = math.ceil(rows / options["m"])
    measured = min(options["num_groups"] or groups, groups)
    climbs = _adaptive_worst_case(options, known)
    if measured == groups:
        return climbs
    share = measured * options["m"] / rows
    # Where rows have several loss terms the groups that are drawn may hold more of them.
    if known.probed.one_term_a_row:
        return climbs.times(share)
    return at_most(climbs.most, times(climbs.typical, share))


def _epsilon_sharpness(options: Options, known: Known) -> Spent:
    if options["epsilon"] == 0:
        return Spent()
    runs, iterations = 3 + options["num_restarts"], options["num_iterations"]
    # A line search of L-BFGS-B has 20 points, and one that fails is begun again without memory.
    climbs = at_most(
        Cost(gradients=1 + runs * (1 + 40 * iterations)),
        Cost(gradients=1 + round(runs * (1 + 1.1 * iterations))),
    )
    return climbs if known.of_the_hessian.has("top") else climbs + start("top")


def _fisher_rao(options: Options, known: Known) -> Spent:
    return exact(products=1)


def _pac_bayes(options: Options, known: Known) -> Spent:
    # A first sigma, 23 halvings of it and 7 bisections to 1 %; noise of eps alone is tried too.
    sigmas = 31 + (options["noise"] == "magnitude" and options["eps"] > 0)
    draws = options["num_draws"]
    return at_most(Cost(forwards=1 + sigmas * draws), Cost(forwards=1 + 11 * draws))


def _relative_flatness(options: Options, known: Known) -> Spent:
    return exact(forwards=1)


def _sam_worst_predicted(options: Options, known: Known) -> Spent:
    top = known.of_the_hessian.search("top", None)
    return exact(gradients=1) + top + _worst_case(options, known)


def _sam_ascent_predicted(options: Options, known: Known) -> Spent:
    return exact(products=1, gradients=1) + _sam(options, known)


def _sam_average_predicted(options: Options, known: Known) -> Spent:
    return _trace(options, known.of_the_hessian) + _average_case(options, known)


_MEASURES: dict[str, Callable[[Options, Known], Spent]] = {
    "gradient-norm": _gradient_norm,
    "lambda-max": _lambda_max,
    "lambda-min": _lambda_min,
    "spectral-norm": _spectral_norm,
    "negative-mass": _negative_mass,
    "trace": _trace,
    "sam": _sam,
    "worst-case": _worst_case,
    "min-sharpness": _min_sharpness,
    "bilateral": _bilateral,
    "adaptive-worst-case": _adaptive_worst_case,
    "average-case": _average_case,
    "adaptive-average-case": _average_case,
    "m-sharpness": _m_sharpness,
    "epsilon-sharpness": _epsilon_sharpness,
    "fisher-rao": _fisher_rao,
    "pac-bayes": _pac_bayes,
    "pac-bayes-loss": _pac_bayes,
    "relative-flatness": _relative_flatness,
    "sam-worst-predicted": _sam_worst_predicted,
    "sam-ascent-predicted": _sam_ascent_predicted,
    "sam-average-predicted": _sam_average_predicted,
}
