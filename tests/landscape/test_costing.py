"""costing: what is predicted of a probe is what its solvers then spend, or a bound of it."""

import subprocess
import sys
from dataclasses import replace

import pyhessian
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from landscape import Objective, ProbePlan
from landscape.costing import (
    Known,
    Passes,
    Prediction,
    Probed,
    Rate,
    Rates,
    Spent,
    connection_cost,
    measure_cost,
    measure_rates,
    predict,
    predicted_costs,
    working_set,
)
from landscape.curvature import GaussNewton, Hessian
from landscape.estimate import Cost
from landscape.linalg import (
    MatrixOperator,
    SymmetricOperator,
    estimate_diagonal,
    hutchinson_trace,
    hutchpp_trace,
    lanczos,
    slq_density,
    xtrace,
)
from landscape.linalg.lanczos import Basis
from landscape.probing import Subject, probe_all
from landscape.sharpness import METRICS, Spectrum, measure, parse
from landscape.stages.record import Record
from landscape.surface import automatic_range, scan_plane
from sam_variants.tasks import build_model, build_task
from tests.references import CountingObjective, FunctionObjective, plane_objective

F64 = torch.float64
# Budgets that keep every measure quick; the counts follow from them.
BUDGETS = {"num_steps": 2, "num_restarts": 1, "num_draws": 3, "num_probes": 4, "rise": 0.05}
BUDGETS |= {"num_iterations": 2, "m": 30, "num_runs": 3, "num_lanczos_steps": 5}

pytestmark = pytest.mark.slow


def net(seed=0, activation=nn.Tanh):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 6), activation(), nn.Linear(6, 3)).double()


def norm_net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3)).double()


def data(batch_size=50):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(50, 5, generator=generator, dtype=F64)
    y = torch.randint(3, (50,), generator=generator)
    return list(zip(x.split(batch_size), y.split(batch_size), strict=True))


def subject(model=None, batches=None, **told):
    told = {"label": "net", "data": {"num_samples_total": 100}, **told}
    return Subject(model or net(), F.cross_entropy, batches or data(), **told)


@pytest.fixture(scope="module")
def signals():
    """cnn1d and a few of its signals: kinks, convolutions, float32."""
    task = build_task("mnist1d")
    x, y = task.train.inputs[:24], task.train.targets[:24]
    return build_model("cnn1d", task, seed=0), list(zip(x.split(20), y.split(20), strict=True))


def counts(cost):
    return cost.products, cost.gradients, cost.forwards


def assert_foretold(spent, actual, name):
    """Equal where the budget is fixed, and no more than said where it is not."""
    for said, typical in zip(counts(spent.most), counts(spent.typical), strict=True):
        assert typical == said if not spent.adaptive else 0 <= typical <= said
    for said, found in zip(counts(spent.most), counts(actual), strict=True):
        if spent.adaptive:
            assert found <= said * (1 + 1e-12), (name, said, found)
        else:
            assert found == pytest.approx(said, rel=1e-12), (name, said, found)


def by_stage(costs):
    found = {}
    for cost in costs:
        found[cost.stage] = found.get(cost.stage, Spent()) + cost.spent
    return found


# -- the measures ---------------------------------------------------------------------------------


def words(name, **changes):
    options = {key: v for key, v in {**BUDGETS, **changes}.items() if key in METRICS[name].options}
    return parse(":".join([name, *(f"{key}={value}" for key, value in options.items())]))


def knowledge(objective, *, of):
    """What a probe may know before the measures, and what `Known` is told of it."""
    probed = Probed(objective.num_parameters, objective.num_samples)
    known = Known(probed.num_parameters, probed)
    if of == "nothing":
        return None, known
    hessian = Hessian(objective)
    told = {"tolerance": 1e-2, "pair_ends": ("top", "bottom") if of == "everything" else ("top",)}
    if of == "top":
        return Spectrum(lanczos(hessian, num_eigenpairs=1, tolerance=1e-2)), replace(known, **told)
    pairs = lanczos(
        GaussNewton(objective) if of == "ggn" else hessian,
        num_eigenpairs=1, ends="both" if of == "everything" else "top", tolerance=1e-2,
    )  # fmt: skip
    matrix = "ggn" if of == "ggn" else "hessian"
    trace = hutchinson_trace(hessian, num_probes=4)
    density = slq_density(hessian, num_runs=3, num_steps=5)
    told |= {"trace": 4, "density": (3, 5), "matrix": matrix}
    return Spectrum(pairs, trace, density, matrix=matrix), replace(known, **told)


@pytest.fixture(scope="module")
def smooth():
    objective = Objective(net(), F.cross_entropy, data(40))
    return objective, {
        of: knowledge(objective, of=of) for of in ("nothing", "top", "everything", "ggn")
    }


@pytest.fixture(scope="module")
def kinked(signals):
    objective = Objective(signals[0], F.cross_entropy, signals[1])
    return objective, knowledge(objective, of="everything")


def test_every_measure_has_a_count():
    known = Known(63, Probed(63, 50))
    assert all(isinstance(measure_cost(parse(name), known), Spent) for name in METRICS)


@pytest.mark.parametrize("name", METRICS)
def test_a_measure_spends_what_was_foretold_whatever_is_known_before(smooth, name):
    objective, known_before = smooth
    for spectrum, known in known_before.values():
        actual = measure(words(name), objective, spectrum=spectrum).cost
        assert_foretold(measure_cost(words(name), known), actual, name)


@pytest.mark.parametrize("name", METRICS)
def test_so_it_does_on_a_net_with_kinks(kinked, name):
    objective, (spectrum, known) = kinked
    spec = words(name, m=24)
    assert_foretold(
        measure_cost(spec, known), measure(spec, objective, spectrum=spectrum).cost, name
    )


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        *((name, {"rho": 0}) for name, entry in METRICS.items() if "rho" in entry.options),
        *((name, {"tolerance": 1e-3}) for name, e in METRICS.items() if "tolerance" in e.options),
        ("worst-case", {"num_steps": 0}),
        ("worst-case", {"num_restarts": 0, "norm": "linf"}),
        ("adaptive-worst-case", {"logits": "normalised"}),
        ("epsilon-sharpness", {"epsilon": 0}),
        ("negative-mass", {"num_runs": 4}),
        ("negative-mass", {"num_lanczos_steps": 1000, "num_runs": 2}),
        ("trace", {"num_probes": 5}),
        ("sam-average-predicted", {"num_probes": 5}),
        ("m-sharpness", {"m": 100}),
        ("m-sharpness", {"m": 15, "num_groups": 2}),
        ("m-sharpness", {"num_groups": 1}),
        ("fisher-rao", {"fisher": "model"}),
        ("pac-bayes", {"noise": "magnitude", "rise": 1}),
        ("pac-bayes", {"noise": "magnitude", "eps": 0}),
        ("pac-bayes-loss", {"rise": 1e-30}),
        ("pac-bayes-loss", {"rise": 100}),
    ],
)
def test_so_it_does_with_options_that_change_its_course(smooth, name, changes):
    objective, known_before = smooth
    spec = words(name, **changes)
    for of in ("nothing", "everything"):
        spectrum, known = known_before[of]
        actual = measure(spec, objective, spectrum=spectrum).cost
        assert_foretold(measure_cost(spec, known), actual, name)


@pytest.mark.parametrize("name", ["trace", "negative-mass", "sam-average-predicted:num_draws=2"])
def test_budgets_that_nobody_gives_are_the_measures_own(smooth, name):
    objective, known_before = smooth
    spectrum, known = known_before["nothing"]
    actual = measure(name, objective, spectrum=spectrum).cost
    foretold = measure_cost(parse(name), known)
    assert foretold.most.products >= actual.products > 0.9 * foretold.most.products


def test_groups_of_rows_with_several_terms_are_bounded():
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(5, (12, 4), generator=generator)
    y = torch.where(torch.rand(12, 4, generator=generator) < 0.5, -100, x)
    torch.manual_seed(0)
    model = nn.Embedding(5, 5).double()
    tokens = Objective(model, lambda out, t: F.cross_entropy(out.flatten(0, 1), t.flatten()),
                       [(x, y)])  # fmt: skip
    probed = Probed(25, 12, one_term_a_row=tokens.num_terms == tokens.num_samples)
    assert not probed.one_term_a_row
    spec = words("m-sharpness", m=3, num_groups=2)
    foretold = measure_cost(spec, Known(25, probed))
    actual = measure(spec, tokens).cost
    assert_foretold(foretold, actual, "m-sharpness")
    assert foretold.typical.forwards == pytest.approx(0.5 * foretold.most.forwards)


# -- plans ----------------------------------------------------------------------------------------

BASE = {
    "eigenvalues": 1, "ends": "top", "tolerance": 1e-1, "trace_probes": 3, "density_runs": 2,
    "density_steps": 3, "surface": 0, "line": 0, "metrics": ("gradient-norm",), "search_steps": 1,
    "search_restarts": 0, "sampling": False,
}  # fmt: skip
NO_SPECTRUM = {"eigenvalues": 0, "trace_probes": 0, "density_runs": 0}
AROUND = {**NO_SPECTRUM, "surface": 3, "line": 3}


def assert_plan_foretold(plan, *subjects):
    """Every stage of every subject, and the paths between them; nothing happens unforetold."""
    findings = probe_all(list(subjects), plan=plan)
    assert findings.document["complete"]
    methods = [one.method for one in subjects]
    probed = None
    for position, (one, entry) in enumerate(zip(subjects, findings.checkpoints, strict=True)):
        probed = Probed.of(Record.of("c0", one, plan, None))
        whole = not plan.first_seed_only or methods.index(one.method) == position
        foretold = by_stage(predicted_costs(plan, probed, whole=whole, first=position == 0))
        actual = {stage: Cost(**cost) for stage, cost in entry["costs"].items()}
        for stage in foretold.keys() | actual.keys():
            assert_foretold(foretold.get(stage, Spent()), actual.get(stage, Cost()), stage)
    paths = connection_cost(plan, probed, len(subjects))
    if paths is None:
        assert findings.document["connection"] is None
    else:
        assert_foretold(paths.spent, Cost(**findings.document["connection"]["cost"]), "connection")
    return findings


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"eigenvalues": 40, "ends": "both"},
        {"ends": "both"},
        {"ends": "bottom"},
        *({"matrix": name} for name in ("ggn", "remainder", "fisher", "mc-fisher")),
        {"approximate": True},
        {"trace_probes": 0},
        {"trace_probes": 70},
        {"trace_method": "hutchpp", "trace_probes": 7},
        {"trace_method": "hutchpp", "trace_probes": 100},
        {"trace_method": "xtrace", "trace_probes": 7},
        {"trace_method": "xtrace", "trace_probes": 100},
        {"sampling": True, "ends": "top", "trace_probes": 20},
        {"sampling": True, "matrix": "ggn", "trace_probes": 0},
        {"sampling": True, "quick": True},
        {"sampling": True, "matrix": "mc-fisher"},
        {"sampling": True, "batch_norm": "batch"},
        {"sampling": True, "fix_seeds": True, "trace_probes": 0},
        {"diagonal_probes": 3},
        {"density_steps": 60},
        NO_SPECTRUM,
        {**NO_SPECTRUM, "diagonal_probes": 3},
        AROUND,
        {**AROUND, "surface": 0},
        {**AROUND, "line": 0},
        {**AROUND, "surface": 0, "line": 0, "eigenvalue_map": 2},
        {**AROUND, "exact": True},
        {**AROUND, "exact": False},
        {**AROUND, "surface": 26},
        {**AROUND, "surface": 26, "exact": False},
        {**AROUND, "surface": 26, "exact": True},
        {**AROUND, "range": 0.5},
        *({**AROUND, "directions": name} for name in ("layer", "random", "gradient")),
        {**AROUND, "directions": "eigen", "eigenvalues": 2},
        {"per_layer": True},
        {"per_layer": True, "matrix": "ggn", "rho": 0.1},
        {"per_layer": True, "rho": 0.0, "trace_probes": 0},
        {"dynamics": True, "noise_batch_size": 7, "eigenvalues": 0},
        {"dynamics": True, "batch_norm": "batch"},
        {"metrics": ()},
        {"metrics": ("gradient-norm:rho=0.1",)},
        {"metrics": ("worst-case", "min-sharpness", "trace", "negative-mass"), "rho": 0.1},
        {"metrics": ("worst-case",), "search_steps": 4, "search_restarts": 3, "ends": "bottom"},
        {"parameters": ("0.*",), "per_layer": True},
        {"dtype": "float32", "density_steps": 30},
    ],
    ids=str,
)  # fmt: skip
def test_a_probe_spends_in_each_stage_what_was_foretold(changes):
    assert_plan_foretold(ProbePlan(**{**BASE, **changes}), subject())


def test_a_kink_leaves_out_the_self_checks_difference(signals):
    model, batches = signals
    across = {"approximate": True, "across_kinks": True}
    for changes, gradients in (({}, 0), (across, 4)):  # of the difference's own error
        plan = ProbePlan(**{**BASE, **NO_SPECTRUM, "trace_probes": 2, **changes})
        found = assert_plan_foretold(plan, subject(model, batches)).checkpoints[0]
        assert found["costs"]["self-check"]["gradients"] == gradients


def test_a_loss_without_outputs_has_no_two_parts():
    x, y = data()[0]
    found = Subject(net(), lambda model, batch: F.cross_entropy(model(batch["x"]), batch["y"]),
                    [{"x": x, "y": y}], label="net")  # fmt: skip
    plan = ProbePlan(**{**BASE, **NO_SPECTRUM, "dynamics": True})
    skipped = assert_plan_foretold(plan, found).checkpoints[0]["dynamics"]["skipped"]
    assert {"lambda_max_ggn", "lambda_max_remainder"} <= set(skipped)


@pytest.mark.parametrize(
    "changes",
    [
        {"first_seed_only": True, "line": 3},
        {"directions": "checkpoints", **AROUND},
        {"connect": "line"},
        {"connect": "line", "align": True},
        {"connect": "bezier"},
    ],
    ids=str,
)
def test_several_checkpoints_spend_what_was_foretold_of_each_and_between_them(changes):
    plan = ProbePlan(**{**BASE, **NO_SPECTRUM, **changes})
    num = 2 if plan.connect == "bezier" else 3
    assert_plan_foretold(plan, *(subject(net(seed), label=f"seed {seed}") for seed in range(num)))


@pytest.mark.parametrize("connect", ["line", "bezier"])
def test_statistics_estimated_anew_take_a_pass_more_at_each_point(connect):
    plan = ProbePlan(**{**BASE, **AROUND, "recalibrate": True, "connect": connect})
    first, second = (subject(norm_net(seed), label=f"seed {seed}") for seed in range(2))
    assert_plan_foretold(plan, first, second)
    probed = Probed.of(Record.of("c0", first, plan, None))
    slices = next(cost for cost in predicted_costs(plan, probed) if cost.stage == "slices")
    assert slices.forwards == 2 * 2 * (plan.line + 2)
    paths = connection_cost(plan, probed, 2)
    assert paths.forwards == (2 * 25 if connect == "line" else 2 * 25 + 2 * 25 + 2 * 25)


def test_batch_statistics_leave_out_what_asks_for_single_rows():
    plan = ProbePlan(**{**BASE, "batch_norm": "batch", "dynamics": True, "sampling": True})
    findings = assert_plan_foretold(plan, subject(norm_net(), data(40)))
    assert set(findings.checkpoints[0]["dynamics"]["skipped"]) == {
        "gradient_noise", "batch_lambda_max"
    }  # fmt: skip


def test_the_plane_of_a_trajectory_has_its_own_window():
    earlier = [(str(seed), dict(net(seed).named_parameters())) for seed in (1, 2, 3)]
    plan = ProbePlan(**{**BASE, **AROUND, "directions": "pca"})
    assert_plan_foretold(plan, subject(trajectory=earlier))


def test_a_second_opinion_stays_within_its_products(monkeypatch):
    calls = []
    module = sys.modules[pyhessian.hessian.__module__]
    product = module.hessian_vector_product
    monkeypatch.setattr(
        module, "hessian_vector_product", lambda *given: calls.append(1) or product(*given)
    )
    plan = ProbePlan(**{**BASE, **NO_SPECTRUM, "second_opinion": True})
    assert_plan_foretold(plan, subject())
    cost = predicted_costs(plan, Probed(57, 50))[-1]
    assert cost.stage == "second-opinion"
    assert 100 < len(calls) <= cost.products


# -- the bounds of searches -----------------------------------------------------------------------


@pytest.mark.parametrize("num", [1, 30])
@pytest.mark.parametrize("ends", ["top", "both"])
def test_the_bound_of_eigenvalues_is_the_solvers_own_budget(num, ends):
    told = []
    lanczos(MatrixOperator(torch.diag(torch.arange(100.0, dtype=F64))), num_eigenpairs=num,
            ends=ends, progress=lambda done, most: told.append(most))  # fmt: skip
    plan = ProbePlan(eigenvalues=num, ends=ends)
    costs = {cost.stage: cost for cost in predicted_costs(plan, Probed(100, 50))}
    assert costs["eigenvalues"].products == told[0]
    assert costs["eigenvalues"].kind == "at most"
    assert costs["eigenvalues"].typical.products <= 150


@pytest.mark.parametrize("steepness", [1e22, 1e-21])
def test_the_bound_of_the_range_holds_for_the_steepest_and_the_flattest_loss(steepness):
    theta = torch.ones(4, dtype=F64)
    valley = FunctionObjective(lambda at: 1 + steepness * float((at - theta).square().sum()), theta)
    found = automatic_range(valley, torch.ones(4, dtype=F64))
    plan = ProbePlan(**{**BASE, **AROUND})
    bound = next(c for c in predicted_costs(plan, Probed(4, 50)) if c.stage == "range").forwards
    assert 40 < found.cost.forwards <= bound / 2  # of two directions


class Lying(CountingObjective):
    """Gradients that point anywhere, so that no line search ends by what it finds."""

    def value_and_gradient(self, theta):
        value, gradient = super().value_and_gradient(theta)
        signs = torch.sign(torch.sin(1e6 * theta.sum() + torch.arange(len(theta))))
        return value, gradient * signs


def test_the_bound_of_epsilon_sharpness_holds_where_line_searches_fail():
    theta = torch.linspace(-1, 1, 6, dtype=F64)
    rough = Lying(lambda at: 2 + (at**2).sum() + torch.sin(3e3 * at).sum(), theta)
    spec = parse("epsilon-sharpness:epsilon=0.1")
    actual = measure(spec, rough, theta).cost
    foretold = measure_cost(spec, Known(6, Probed(6, 50)))
    assert foretold.typical.gradients < actual.gradients <= foretold.most.gradients


def test_a_smooth_plane_takes_the_first_lattice_and_its_held_out_points():
    objective, e1, e2 = plane_objective(lambda x, y: 1 + x**2 + 2 * y**2)
    axis = torch.linspace(-1, 1, 51, dtype=F64)
    surface = scan_plane(objective, e1, e2, x=axis, y=axis, exact=False)
    plan = ProbePlan(surface=51, exact=False, range=1.0)
    cost = next(c for c in predicted_costs(plan, Probed(6, 50)) if c.stage == "surface")
    assert not surface.exact
    assert cost.typical.forwards == surface.cost.forwards
    assert cost.forwards == 51**2 + 2


def test_whether_a_plane_is_interpolated_is_foretold_by_the_time_of_a_pass():
    plan, probed = ProbePlan(surface=51), Probed(6, 50)

    def typical(seconds):
        costs = predicted_costs(plan, probed, seconds_per_forward=seconds)
        return next(cost.typical.forwards for cost in costs if cost.stage == "surface")

    assert typical(1e-3) == 51**2 + 3
    assert typical(1.0) == typical(None) == 13**2 + 12**2 + 3


# -- seconds and memory ---------------------------------------------------------------------------


def test_a_working_set_is_what_is_held_at_once():
    before = torch.ones(500)

    def call():
        first = torch.ones(1000)  # 4,000 bytes
        second = first * 2  # 8,000
        del first
        third = second.view(10, 100) + 1  # 8,000 again: a view holds nothing
        del second, third
        return before.sum()

    assert working_set(call).size == 8000


def test_a_products_working_set_grows_with_the_rows_of_a_batch():
    x, y = torch.randn(400, 5, dtype=F64), torch.zeros(400, dtype=torch.int64)

    def held(rows):
        objective = Objective(net(), F.cross_entropy, [(x[:rows], y[:rows])])
        return working_set(lambda: objective.hvp(objective.theta, objective.theta)).size

    activations = 200 * 8 * (6 + 6 + 3)  # two layers and the tangent between them, float64
    assert held(400) - held(200) > 2 * activations
    assert held(400) == pytest.approx(2 * held(200), rel=0.1)


def test_a_storage_that_a_call_is_given_is_not_its_own():
    given = torch.ones(1000)
    assert working_set(lambda: given.add_(1)).size == 0
    assert working_set(lambda: given.view(10, 100).t()).size == 0


@pytest.fixture
def hasty(monkeypatch):
    """Times no longer than it must."""
    monkeypatch.setattr("landscape.costing.rates._LEAST_SECONDS", 0.01)


def test_only_what_a_plan_needs_is_timed(hasty):
    plan = ProbePlan(**{**BASE, "eigenvalues": 0, "density_runs": 0, "matrix": "ggn",
                        "metrics": ("m-sharpness:m=7",)})  # fmt: skip
    record = Record.of("c0", subject(), plan, None)
    costs = predicted_costs(plan, Probed.of(record))
    rates = measure_rates(record, costs)
    assert rates.of.keys() == {Passes(), Passes("ggn"), Passes(rows=7)}
    of_groups, of_ggn, whole = rates.of[Passes(rows=7)], rates.of[Passes("ggn")], rates.of[Passes()]
    assert min(of_groups.product, of_groups.gradient, of_groups.forward) > 0
    assert (whole.product, of_ggn.forward) == (0.0, 0.0)
    assert of_ggn.product > whole.forward > 0
    assert of_ggn.working_set > whole.working_set > 0
    # Seven groups of seven rows are nine passes' worth of calls, each as dear as a small one is.
    assert of_groups.forward > 3 * whole.forward


def test_a_part_of_the_data_is_timed_and_scaled_up(monkeypatch):
    monkeypatch.setattr("landscape.costing.rates._PART_SECONDS", 0.0)
    monkeypatch.setattr("landscape.costing.rates._seconds", lambda call: 1.0)
    plan = ProbePlan(**{**BASE, "dynamics": True, "per_layer": True, "noise_batch_size": 10})
    record = Record.of("c0", subject(batches=data(40)), plan, None)
    rates = measure_rates(record, predicted_costs(plan, Probed.of(record)))
    assert rates.rows_timed == 40
    assert rates.of[Passes()].product == pytest.approx(50 / 40)
    assert rates.of[Passes(one_layer=True)].gradient == pytest.approx(50 / 40)
    assert rates.of[Passes(rows=10)].product == pytest.approx(50 / 10)
    assert rates.of[Passes(rows=1)].forward == pytest.approx(50)


def test_seconds_are_counts_times_rates_and_the_algebra_between():
    probed = Probed(1000, 100, population=400)
    plan = ProbePlan(trace_probes=5, density_runs=3, density_steps=4, metrics=("sam",), line=7,
                     surface=0, range=1.0)  # fmt: skip
    rate = Rate(product=2.0, gradient=0.5, forward=0.1, working_set=1e6)
    of_groups = Rate(product=7.0, gradient=3.0, forward=1.0)
    rates = Rates({Passes(): rate, Passes(rows=2): of_groups}, 1e-3, 1e-2, 100)
    found = Prediction(tuple(predicted_costs(plan, probed)), rates, probed)
    seconds = {cost.stage: found.seconds_of(cost) for cost in found.costs}
    assert seconds["trace"].typical == seconds["trace"].most == pytest.approx(5 * 2.0)
    assert seconds["slices"].typical == pytest.approx(2 * 9 * 0.1)
    assert seconds["sampling"].typical == pytest.approx(15 * 7.0 + 2 * 3.0 + 1.0)
    assert seconds["density"].typical == pytest.approx(12 * 2.0 + 3 * (0 + 1 + 2 + 3) * 1e-3)
    solving = 2 * 1e-2 * sum((m / 64) ** 3 / (1 + m // 64) for m in range(205))
    assert seconds["eigenvalues"].typical == pytest.approx(
        205 * 2.0 + 1e-3 * sum(range(205)) + solving
    )
    assert seconds["eigenvalues"].most > 1000 * 2.0
    every = [found.seconds_of(cost).typical for cost in found.costs]
    assert found.seconds.typical == pytest.approx(sum(every))


def test_memory_is_a_pass_and_the_vectors_of_the_dearest_stage():
    probed = Probed(1_000_000, 100)
    vector = 4_000_000
    plan = ProbePlan(eigenvalues=0, trace_probes=0, density_runs=2, density_steps=30, surface=0,
                     line=0, metrics=())  # fmt: skip
    rates = Rates({Passes(): Rate(working_set=1e8)}, 0.0, 0.0, 100)
    found = Prediction(tuple(predicted_costs(plan, probed)), rates, probed, overhead=5e6)
    assert found.memory.typical == found.memory.most == 1e8 + 5e6 + (2 * 30 + 4) * vector
    plan = replace(plan, eigenvalues=3, ends="top", density_runs=0)
    found = Prediction(tuple(predicted_costs(plan, probed)), rates, probed)
    assert found.memory.typical == pytest.approx(1e8 + (3 + 22) * vector)
    assert found.memory.most == pytest.approx(1e8 + 3 * vector + 2**30)


class Ramp(SymmetricOperator):
    """diag(0, ..., 1)."""

    def __init__(self, size):
        super().__init__(size, dtype=torch.float32, device=torch.device("cpu"))
        self.diagonal = torch.linspace(0, 1, size)

    def _matvec(self, vector):
        return self.diagonal * vector


def test_the_vectors_of_a_stage_are_those_that_its_solver_holds(monkeypatch):
    monkeypatch.setattr(Basis, "SLICE", 256)  # whose work space is nothing where P is large
    operator, probed = Ramp(20_000), Probed(20_000, 50)

    def foretold(stage, **changes):
        plan = ProbePlan(**{**BASE, **NO_SPECTRUM, **changes})
        return next(c for c in predicted_costs(plan, probed) if c.stage == stage).num_vectors

    def held(solver, **budget):
        return working_set(lambda: solver(operator, **budget)).size / (4 * operator.size)

    for steps in (2, 6):
        assert foretold("density", density_runs=3, density_steps=steps) == pytest.approx(
            held(slq_density, num_runs=3, num_steps=steps), abs=2
        )
    assert foretold("trace", trace_probes=3) == pytest.approx(
        held(hutchinson_trace, num_probes=3), abs=2
    )
    for name, solver in (("hutchpp", hutchpp_trace), ("xtrace", xtrace)):
        assert foretold("trace", trace_probes=12, trace_method=name) == pytest.approx(
            held(solver, num_products=12), abs=3
        )
    assert foretold("diagonal", diagonal_probes=3) == pytest.approx(
        held(estimate_diagonal, num_probes=3), abs=3
    )


def test_a_basis_never_has_less_than_the_pairs_and_twelve_spare_vectors():
    probed = Probed(100_000_000, 100)
    plan = ProbePlan(eigenvalues=5, trace_probes=0, density_runs=0, surface=0, line=0, metrics=())
    rates = Rates({Passes(): Rate()}, 0.0, 0.0, 100)
    found = Prediction(tuple(predicted_costs(plan, probed)), rates, probed)
    assert found.memory.most == pytest.approx((10 + 12 + 3) * 4e8)


def test_a_prediction_of_a_subject_leaves_it_untouched_and_names_every_stage(hasty):
    plan = ProbePlan.quick_look(metrics=("sam",), surface=3, line=3, connect="line")
    one = subject()
    state = {name: value.clone() for name, value in one.model.state_dict().items()}
    random_state = torch.get_rng_state()
    found = predict(one, plan, num_connected=2)
    assert all(torch.equal(value, one.model.state_dict()[name]) for name, value in state.items())
    assert torch.equal(random_state, torch.get_rng_state())
    stages = list(dict.fromkeys(cost.stage for cost in found.costs))
    assert stages == ["loss", "self-check", "eigenvalues", "trace", "sampling", "density",
                      "sharpness", "range", "slices", "surface", "connection"]  # fmt: skip
    assert 0 < found.seconds.typical < found.seconds.most
    assert 0 < found.memory.typical <= found.memory.most
    without = predict(one, plan, whole=False)
    assert [cost.stage for cost in without.costs][-1] == "sharpness"


def test_a_plan_that_a_matrix_refuses_is_refused_with_the_probes_words(signals, hasty):
    model, batches = signals
    plan = ProbePlan(**{**BASE, "approximate": True})
    with pytest.raises(ValueError, match="across_kinks=True takes it all the same"):
        predict(subject(model, batches), plan)


TRIES = 3  # the machine is shared: a try may fall together with what others do there


@pytest.mark.slow
def test_seconds_are_within_a_factor_of_one_and_a_half():
    task = build_task("mnist1d")
    x, y = task.train.inputs[:1000], task.train.targets[:1000]
    batches = list(zip(x.split(500), y.split(500), strict=True))
    one = subject(build_model("cnn1d", task, seed=0), batches, data={"num_samples_total": 4000})
    plan = ProbePlan.quick_look(surface=7, line=11, density_runs=4, trace_probes=8)
    ratios = []
    for _ in range(TRIES):
        foretold = predict(one, plan)
        entry = probe_all([one], plan=plan).checkpoints[0]
        seconds = sum(cost["seconds"] for cost in entry["costs"].values())
        assert seconds > 3
        trace = entry["costs"]["trace"]
        ratios.append(
            (
                foretold.seconds.typical / seconds,
                foretold.rates.of[Passes()].product / (trace["seconds"] / trace["products"]),
            )
        )
        if all(1 / 1.5 < ratio < 1.5 for ratio in ratios[-1]):
            return
    pytest.fail(f"foretold / actual seconds, of all and of a product: {ratios}")


# A net whose product holds some 200 MB, in a fresh process that says by how much it grew.
GROWTH = """
import sys
import pyhessian, scipy.linalg, scipy.optimize, torch
from torch import nn
from torch.nn import functional as F
from landscape import ProbePlan, costing
from landscape.probing import Subject, probe_all

def kilobytes(name):
    lines = open("/proc/self/status").read().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1])

torch.set_num_threads(1)
torch.manual_seed(0)
rows, width = map(int, sys.argv[2:])
model = nn.Sequential(nn.Linear(16, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(),
                      nn.Linear(width, 10))
x, y = torch.randn(rows, 16), torch.randint(10, (rows,))
one = Subject(model, F.cross_entropy, [(x, y)], label="net")
plan = ProbePlan(eigenvalues=0, trace_probes=2, density_runs=0, surface=0, line=3, range=0.5,
                 metrics=("sam", "average-case:num_draws=2"))
before = kilobytes("VmRSS")
if sys.argv[1] == "predict":
    found = costing.predict(one, plan)
    print(found.memory.typical, found.rates.working_set)
else:
    probe_all([one], plan=plan)
    print(1024 * (kilobytes("VmHWM") - before))
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(("rows", "width"), [(40_000, 128), (14_000, 384)])
def test_memory_is_within_a_factor_of_one_and_a_half_of_what_a_process_grows_by(rows, width):
    def told(what):
        done = subprocess.run(
            [sys.executable, "-c", GROWTH, what, str(rows), str(width)],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        return [float(word) for word in done.stdout.split()]

    (foretold, graph), (grown,) = told("predict"), told("probe")
    assert graph > 200e6
    assert 1 / 1.5 < foretold / grown < 1.5
