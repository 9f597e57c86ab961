"""What the stages take that look at the weights alone: spectrum, dynamics, layers, PyHessian."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from landscape.estimate import Cost
from landscape.plan import ProbePlan
from landscape.stages.dynamics import BATCH_SIZE, NOISE_GROUPS, ROW_BY_ROW
from landscape.stages.layers import worst_case_of
from landscape.stages.spectrum import SAMPLING_GROUPS, SAMPLING_PROBES, no_sampling_because

from .counts import Passes, Probed, Spent, StageCost, at_most, exact, matrix_name
from .measures import Known, measure_cost
from .searches import eigenpairs, krylov, num_pairs, trace_products


def test_passes(probed: Probed) -> Cost:
    """What test loss and accuracy take beside the pass that is counted for them.

    An objective of its own looks at its data before it is one: two passes, over as many rows as the
    test data have.
    """
    if not probed.num_test_rows:
        return Cost()
    return Cost(forwards=2 * probed.num_test_rows / probed.num_rows - 1)


def spectrum_costs(plan: ProbePlan, probed: Probed, *, whole: bool) -> Iterator[StageCost]:
    """Of the plan's matrix: self-check, eigenvalues, trace, sampling, diagonal, density."""
    size, density = probed.num_parameters, whole and bool(plan.density_runs)
    if not (plan.eigenvalues or plan.trace_probes or plan.diagonal_probes or density):
        return
    name = matrix_name(plan)
    passes = Passes(name)
    differences = 4 if plan.matrix == "hessian" and not probed.has_kinks else 0
    gradients = differences + (4 if plan.approximate else 0)
    yield StageCost(
        "self-check", "", exact(products=3, gradients=gradients), passes, num_vectors=10
    )
    if plan.eigenvalues:
        yield StageCost(
            "eigenvalues",
            f"{plan.eigenvalues} at {'each end' if plan.ends == 'both' else f'the {plan.ends}'}",
            eigenpairs(
                size,
                num=plan.eigenvalues,
                ends=plan.ends,
                tolerance=plan.tolerance,
                matrix=plan.matrix,
            ),
            passes,
            num_bases=1,
            num_wanted=num_pairs(plan, size),
            num_vectors=3,
        )
    if plan.trace_probes:
        yield _trace_cost(plan, probed, passes)
    if plan.eigenvalues:
        yield _sampling_cost(plan, probed, name)
    if plan.diagonal_probes:
        spent = exact(products=plan.diagonal_probes)
        yield StageCost("diagonal", "", spent, passes, num_vectors=15)
    if density:
        steps = min(plan.density_steps, size)
        yield StageCost(
            "density",
            f"{plan.density_runs} runs of {steps} steps",
            krylov(plan.density_runs, steps, probed),
            passes,
            num_bases=plan.density_runs,
            num_vectors=2 * steps + 4,  # the last run's basis is still there during the next
        )


def _trace_cost(plan: ProbePlan, probed: Probed, passes: Passes) -> StageCost:
    products = trace_products(plan, probed.num_parameters)
    spent = exact(products=products)
    if plan.trace_method == "hutchinson":
        return StageCost("trace", "", spent, passes, num_vectors=6)
    held = products // (3 if plan.trace_method == "hutchpp" else 2)
    if plan.trace_method == "xtrace" and products < probed.num_parameters:
        spent = krylov(2, held, probed)  # a product less for each direction that is none
    return StageCost("trace", plan.trace_method, spent, passes, num_bases=1, num_vectors=held + 6)


def _sampling_cost(plan: ProbePlan, probed: Probed, matrix: str) -> StageCost:
    reason = no_sampling_because(plan, num_rows=probed.num_rows, population=probed.population)
    if reason is not None:
        return StageCost("sampling", "", Spent(), note=f"none: {reason}")
    probes = 0 if plan.quick else min(plan.trace_probes, SAMPLING_PROBES)
    products = num_pairs(plan, probed.num_parameters) + probes
    return StageCost(
        "sampling",
        f"{SAMPLING_GROUPS} groups",
        _of_separate_rows(plan, probed, exact(products=products, gradients=2, forwards=1)),
        Passes(matrix, rows=_group_rows(probed, SAMPLING_GROUPS)),
        num_vectors=probes + 6,
        note="none where the rows depend on each other",
    )


def _of_separate_rows(plan: ProbePlan, probed: Probed, spent: Spent) -> Spent:
    """What is refused, and then not counted, where rows turn out to depend on each other.

    Statistics of each batch and random numbers for each batch may make them so.
    """
    unsure = plan.batch_norm == "batch" or plan.fix_seeds or probed.num_rows < 2
    return replace(spent, adaptive=unsure)


def dynamics_costs(plan: ProbePlan, probed: Probed) -> Iterator[StageCost]:
    """Of what the training at these weights does next: sharpness of parts and of batches, noise."""
    size = probed.num_parameters
    yield StageCost("dynamics", "along the gradient", exact(products=1, gradients=1), num_vectors=8)
    if probed.has_outputs:
        for name in ("ggn", "remainder"):
            spent = eigenpairs(size, tolerance=plan.tolerance, matrix=name)
            yield StageCost(
                "dynamics", f"lambda_max, {name}", spent, Passes(name), num_bases=1, num_vectors=3
            )
    groups = probed.num_rows if probed.num_rows <= ROW_BY_ROW else NOISE_GROUPS
    yield StageCost(
        "dynamics",
        "gradient noise",
        _of_separate_rows(plan, probed, exact(gradients=2, forwards=1)),
        Passes(rows=_group_rows(probed, groups)),
        num_vectors=8,
        note="none where the rows depend on each other",
    )
    if plan.batch_norm != "batch" or probed.num_batches == 1:
        rows = min(plan.noise_batch_size or probed.training_batch or BATCH_SIZE, probed.num_rows)
        share, batches = rows / probed.num_rows, 10
        spent = eigenpairs(size, tolerance=1e-2) + exact(forwards=1)
        yield StageCost(
            "dynamics",
            f"lambda_max of {batches} batches",
            spent.times(batches * share),
            Passes(rows=rows),
            num_bases=batches,
            num_vectors=3,
        )


def layers_cost(plan: ProbePlan, probed: Probed) -> StageCost:
    """Of the largest eigenvalue, the trace and the worst case of every layer alone."""
    climb = worst_case_of(plan)
    spent = Spent()
    for size in probed.layers:
        known = Known(size, probed, pair_ends=("top",), matrix=plan.matrix)
        spent += eigenpairs(size, tolerance=plan.tolerance, matrix=plan.matrix)
        spent += exact(products=plan.trace_probes) + measure_cost(climb, known)
    num = len(probed.layers)
    return StageCost(
        "layers",
        f"{num} layers" if num != 1 else "1 layer",
        spent,
        Passes(matrix_name(plan), one_layer=True),
        uncounted=Cost(forwards=num),  # an objective each, which surveys the data
        num_bases=num,
        num_vectors=3,
    )


def second_opinion_cost(probed: Probed) -> StageCost:
    """Of PyHessian's eigenvalues and trace."""
    # Three eigenvalues and two spare ones of at most 200 products each, 100 probes of the trace.
    probes, eigenvalues = 100, min(5, probed.num_parameters)
    spent = at_most(Cost(products=probes + 200 * eigenvalues), Cost(products=230))
    return StageCost(
        "second-opinion",
        "PyHessian",
        spent,
        Passes(one_batch=True),
        note="its products stand in no result",
    )


def _group_rows(probed: Probed, num_groups: int) -> int:
    return max(1, round(probed.num_rows / num_groups))
