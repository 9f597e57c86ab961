"""Our numbers beside two programs that share no line with them, on the same nets and data.

pytorch-hessian-eigenthings has operators of its own (its Gauss-Newton product is by forward mode,
its Fisher by one gradient a sample) and its own Lanczos, trace and density. It averages batches
without weights and crashes on unused parameters, so it gets all data as one batch and the
parameters that are used. PyHessian has a power iteration in float32 habits: it is asked for what
it can do, and whether we hear of it when it disagrees.
"""

from dataclasses import replace

import hessian_eigenthings as theirs
import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from landscape import (
    EmpiricalFisher,
    GaussNewton,
    Hessian,
    Objective,
    ProbePlan,
    hutchinson_trace,
    hutchpp_trace,
    lanczos,
    probe,
    slq_density,
    xtrace,
)
from landscape.second_opinion import ask_pyhessian
from tests.landscape.test_curvature_cases import cases, normal

CLOSE = 1e-10  # both sides are float64: 1e-5 would do for any use of the numbers
NAMES = list(cases())
NO_FORWARD_MODE = {"transformer"}  # a fused encoder layer, which has no forward derivative
NO_SAMPLE_BY_SAMPLE = {"lstm"}  # torch.func.vmap cannot run it


@pytest.fixture(autouse=True)
def plain_attention():
    with sdpa_kernel(SDPBackend.MATH):
        yield


class Beside:
    """A case of the table as ours, and as one batch with the used parameters for theirs."""

    def __init__(self, name):
        self.name, self.case = name, cases()[name]
        self.objective = self.case.objective()
        space, unused = self.objective.space, set(self.objective.unused)
        self.used = torch.cat(
            [
                torch.full((n,), k not in unused)
                for k, n in zip(space.names, space.sizes, strict=True)
            ]
        )
        self.filter = {"param_filter": lambda name, _: name not in unused}
        self.batch = [(self.case.x, self.case.y)]

    def hessian(self):
        loss = theirs.supervised_loss(self.case.mean)
        return theirs.HessianOperator(self.case.model, self.batch, loss, **self.filter)

    def gauss_newton(self):
        loss = theirs.supervised_loss_of_output(self.case.mean)
        return theirs.GGNOperator(
            self.case.model, self.batch, theirs.supervised_forward, loss, **self.filter
        )

    def fisher(self):
        """Of g_i the gradient of a sample's own loss, and divided by the number of samples."""
        case = self.case
        indexed = case.softmax and not case.y.is_floating_point()
        ignored = getattr(case.loss, "ignore_index", -100)
        rows, *place = torch.where(case.y != ignored) if indexed else (torch.arange(len(case.x)),)
        where = place[0] if place else torch.zeros_like(rows)

        def of_one(model, sample):
            x, y, position = sample
            output = model(x[None])
            if place:  # a token: its logits alone
                output = output.index_select(2, position[None])[..., 0]
                y = y.index_select(0, position[None])[0]
            smoothing = getattr(case.loss, "keywords", {}).get("label_smoothing", 0.0)
            if indexed:  # so that a class weight cannot count twice
                return F.cross_entropy(output, y[None], label_smoothing=smoothing)
            return case.terms_per_row * case.mean(output, y[None])

        batch = [(case.x[rows], case.y[rows], where)]
        return theirs.EmpiricalFisherOperator(case.model, batch, of_one, **self.filter)


def assert_same_products(ours, other, used, *, factor=1.0):
    for seed in (9, 10):
        v = normal(ours.size, seed=seed) * used
        mine, beside = (ours @ v)[used], (other @ v[used]).detach()
        assert float(beside.abs().max()) > 0
        assert float((factor * mine - beside).abs().max()) < CLOSE * float(beside.abs().max())


# -- Products -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_hessian_products_are_those_of_hessian_eigenthings(name):
    beside = Beside(name)
    assert_same_products(Hessian(beside.objective), beside.hessian(), beside.used)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in NO_FORWARD_MODE])
def test_gauss_newton_products_are_those_of_hessian_eigenthings(name):
    beside = Beside(name)
    assert_same_products(GaussNewton(beside.objective), beside.gauss_newton(), beside.used)


@pytest.mark.parametrize(
    "name", [name for name in NAMES if name not in NO_SAMPLE_BY_SAMPLE | {"ce weighted"}]
)
def test_fisher_products_are_those_of_hessian_eigenthings(name):
    """Class weights apart, which it has no word for. A row of k terms counts k times in our N."""
    beside = Beside(name)
    ours, factor = EmpiricalFisher(beside.objective), float(beside.case.terms_per_row)
    assert_same_products(ours, beside.fisher(), beside.used, factor=factor)


def test_a_factor_in_our_product_would_be_seen(monkeypatch):
    honest = Objective.hvp
    monkeypatch.setattr(Objective, "hvp", lambda *arguments: (1 + 1e-9) * honest(*arguments))
    beside = Beside("ce")
    with pytest.raises(AssertionError):
        assert_same_products(Hessian(beside.objective), beside.hessian(), beside.used)


# -- Spectra --------------------------------------------------------------------------------------

SPECTRAL = ["mse", "ce ignoring", "convolution", "attention", "lstm", "tokens"]


@pytest.mark.slow
@pytest.mark.parametrize("name", SPECTRAL)
@pytest.mark.parametrize("matrix", ["hessian", "gauss_newton"])
def test_eigenvalues_and_vectors_are_those_of_its_lanczos(name, matrix):
    beside = Beside(name)
    ours = {"hessian": Hessian, "gauss_newton": GaussNewton}[matrix](beside.objective)
    other = getattr(beside, matrix)()
    pairs = lanczos(ours, num_eigenpairs=3, ends="both", tolerance=1e-8)
    assert pairs.complete
    # A Krylov space of everything, so that nothing depends on its own convergence rule. It sees one
    # of equal values: the many zeros of a Gauss-Newton matrix are not compared.
    ends = {"top": "LA", "bottom": "SA"} if matrix == "hessian" else {"top": "LA"}
    for end, which in ends.items():
        found = theirs.lanczos(
            other, k=3, max_iter=other.size, which=which, reorthogonalize=True, seed=0
        )
        mine, scale = pairs.at(end), float(pairs.values.abs().max())
        values, order = found.eigenvalues.sort(descending=True)
        assert float((mine.values - values).abs().max()) < 1e-7 * scale
        outermost = 0 if end == "top" else -1
        gap = float((values[outermost] - values[1]).abs())
        assert gap > 1e-3 * scale  # a vector of its own
        vector = found.eigenvectors[order[outermost]].detach()
        cosine = float(vector @ mine.vectors[:, outermost])
        assert abs(cosine) == pytest.approx(1, abs=1e-8)


@pytest.mark.parametrize("name", ["ce ignoring", "tokens"])
def test_traces_agree_within_their_errors_and_with_the_sum_of_its_diagonal(name):
    beside = Beside(name)
    ours, other = Hessian(beside.objective), beside.hessian()
    truth = sum(float((other @ e)[i]) for i, e in enumerate(torch.eye(other.size).double()))
    for method in ("hutchinson", "hutch++"):
        found = theirs.trace(other, num_matvecs=60, method=method, seed=0)
        assert abs(found.estimate - truth) < 4 * found.stderr
    for estimate in (
        hutchinson_trace(ours, num_probes=60),
        hutchpp_trace(ours, num_products=30),
        xtrace(ours, num_products=30),
    ):
        assert 0 < estimate.standard_error < abs(truth)
        assert abs(estimate.value - truth) < 4 * estimate.standard_error


@pytest.mark.slow
def test_the_density_puts_the_same_mass_above_a_cut_as_its_quadrature():
    beside = Beside("ce ignoring")
    ours, other = Hessian(beside.objective), beside.hessian()
    steps = other.size
    mine = slq_density(ours, num_runs=20, num_steps=steps)
    found = theirs.spectral_density(
        other, num_runs=20, lanczos_steps=steps, num_grid_points=100, seed=0
    )
    dense = np.linalg.eigvalsh(np.array([(other @ e).numpy() for e in torch.eye(steps).double()]))
    cuts = [0.5 * (dense[k] + dense[k + 1]) for k in (len(dense) // 2, len(dense) - 4)]
    for cut in cuts:
        truth = float((dense > cut).mean())
        share = mine.mass_between(cut, float("inf"))
        runs = (found.raw_weights * (found.raw_eigenvalues > cut)).sum(1)
        error = float(runs.std()) / 20**0.5
        assert abs(float(runs.mean()) - truth) < 4 * error
        assert abs(share.value - truth) < 4 * share.standard_error


# -- PyHessian ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_pyhessian_agrees_on_every_case_and_sees_a_factor_two(name):
    beside = Beside(name)
    case, objective = beside.case, beside.objective
    batches = list(zip(case.x.split(case.cuts), case.y.split(case.cuts), strict=True))
    operator = Hessian(objective)
    pairs = lanczos(operator, num_eigenpairs=3, ends="both")
    trace = hutchinson_trace(operator, num_probes=64, eigenpairs=pairs)

    def opinion(**given):
        return ask_pyhessian(
            case.model,
            case.loss,
            batches,
            num_terms=objective.num_terms,
            num_eigenvalues=1,
            num_probes=40,
            **given,
        )

    found = opinion(eigenpairs=pairs, trace=trace)
    assert found.agrees is True, found.message
    assert found.difference < 0.05
    doubled = opinion(eigenpairs=replace(pairs, values=2 * pairs.values))
    assert doubled.agrees is False
    assert doubled.difference == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_a_factor_two_in_our_products_raises_the_disagreement_warning_of_a_probe(
    monkeypatch, factor
):
    honest = Objective.hvp
    monkeypatch.setattr(Objective, "hvp", lambda *arguments: factor * honest(*arguments))
    case = cases()["ce"]
    plan = ProbePlan(
        eigenvalues=2,
        tolerance=1e-4,
        trace_probes=24,
        density_runs=0,
        line=0,
        surface=0,
        metrics=(),
        second_opinion=True,
    )
    document = probe(case.model, case.loss, [(case.x, case.y)], plan=plan).document
    entry = document["checkpoints"][0]
    warnings = [text for text in entry["warnings"] if "DISAGREES with PyHessian" in text]
    assert entry["second_opinion"]["agrees"] is (factor == 1)
    assert len(warnings) == (factor == 2)
