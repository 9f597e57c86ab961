"""probe: the conductor's numbers against the dense Hessian, its plan, its partial results."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, hessian
from torch.nn import functional as F

from landscape import ProbePlan, load_findings, probe, save_findings
from landscape.probing import BudgetSpent, Subject, probe_all


def net(seed=0, scale=1.0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(scale)
    return model


def data(num=50, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num, 5, generator=generator, dtype=torch.float64)
    return x, torch.randint(3, (num,), generator=generator)


def uneven(x, y, sizes=(20, 23, 7)):
    return list(zip(x.split(sizes), y.split(sizes), strict=True))


def dense_hessian(model):
    x, y = data()
    names = [name for name, _ in model.named_parameters()]
    shapes = [p.shape for p in model.parameters()]
    theta = torch.cat([p.detach().reshape(-1) for p in model.parameters()])

    def value(theta):
        parts = theta.split([s.numel() for s in shapes])
        weights = {n: p.view(s) for n, p, s in zip(names, parts, shapes, strict=True)}
        return F.cross_entropy(functional_call(model, weights, (x,)), y)

    return hessian(value)(theta)


TIGHT = ProbePlan(
    eigenvalues=4, tolerance=1e-9, trace_probes=200, density_runs=10, density_steps=30, surface=7,
    line=5, exact=True,
)  # fmt: skip


@pytest.fixture(scope="module")
def findings():
    return probe(net(), F.cross_entropy, uneven(*data()), plan=TIGHT, label="net")


@pytest.fixture(scope="module")
def spectrum():
    return torch.linalg.eigvalsh(dense_hessian(net())).flip(0)


def test_eigenvalues_of_both_ends_are_the_dense_ones(findings, spectrum):
    entries = findings.checkpoints[0]["eigenvalues"]
    top = [e["value"] for e in entries if e["end"] == "top"]
    bottom = [e["value"] for e in entries if e["end"] == "bottom"]
    assert top == pytest.approx(spectrum[:4].tolist(), abs=1e-8)
    assert bottom == pytest.approx(spectrum[-4:].tolist(), abs=1e-8)
    assert all(e["converged"] and e["confirmed"] for e in entries)


def test_the_trace_lies_within_three_standard_errors(findings, spectrum):
    trace = findings.checkpoints[0]["trace"]
    assert 0 < trace["standard_error"] < 0.1
    assert abs(trace["value"] - float(spectrum.sum())) < 3 * trace["standard_error"]
    assert trace["num_matvecs"] == 200


def test_the_density_has_mass_one_and_the_mean_of_the_spectrum(findings, spectrum):
    density = findings.checkpoints[0]["density"]
    grid, value = (findings.arrays[f"density_c0_{name}"] for name in ("grid", "value"))
    assert density["mass"] == pytest.approx(1.0, abs=5e-3)
    assert np.trapezoid(value, grid) == pytest.approx(1.0, abs=5e-3)
    error = density["mean_standard_error"]
    assert abs(density["mean"] - float(spectrum.mean())) < 3 * error
    lower, upper = (findings.arrays[f"density_c0_{name}"] for name in ("lower", "upper"))
    assert np.all(lower <= value)
    assert np.all(value <= upper)


def test_loss_accuracy_and_gradient_are_those_of_the_plain_model(findings):
    model, (x, y) = net(), data()
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    gradient = torch.cat([p.grad.reshape(-1) for p in model.parameters()])
    entry = findings.checkpoints[0]
    assert entry["loss"] == pytest.approx(loss.item(), rel=1e-12)
    assert entry["accuracy"] == pytest.approx(float((model(x).argmax(1) == y).double().mean()))
    assert entry["gradient_norm"] == pytest.approx(float(gradient.norm()), rel=1e-12)
    assert entry["num_parameters"] == 57


def test_the_planes_centre_is_the_loss_and_slices_cut_it(findings):
    entry = findings.checkpoints[0]
    surface = findings.arrays["surface_c0_loss"]
    x = findings.arrays["surface_c0_x"]
    assert surface.shape == (7, 7)
    assert x[3] == 0
    assert surface[3, 3] == pytest.approx(entry["loss"], rel=1e-12)
    line_t, line = findings.arrays["line_c0_t"], findings.arrays["line_c0_loss"]
    assert line_t[0] == pytest.approx(x[0])
    assert line[0, 0] == pytest.approx(surface[3, 0], rel=1e-12)  # direction 1 runs along x
    assert line[1, 0] == pytest.approx(surface[0, 3], rel=1e-12)  # direction 2 runs along y


def test_findings_survive_the_disk(findings, tmp_path):
    save_findings(findings, tmp_path)
    again = load_findings(tmp_path)
    assert again.checkpoints[0]["eigenvalues"] == findings.checkpoints[0]["eigenvalues"]
    assert np.array_equal(again.arrays["surface_c0_loss"], findings.arrays["surface_c0_loss"])


def test_the_same_seed_gives_the_same_findings():
    plan = dataclasses.replace(
        TIGHT, trace_probes=8, density_runs=2, density_steps=5, tolerance=1e-3
    )
    first, second = (
        probe(net(), F.cross_entropy, uneven(*data()), plan=plan, label="net") for _ in range(2)
    )
    for findings in (first, second):
        for entry in findings.checkpoints:
            entry.pop("provenance")
            entry.pop("costs")
            for measured in entry["sharpness"].values():
                measured.pop("cost")
    assert first.document == second.document
    for name, array in first.arrays.items():
        assert np.array_equal(array, second.arrays[name], equal_nan=True), name


def test_the_caller_model_keeps_its_mode_and_gradients():
    model = net().train()
    x, y = data()
    plan = dataclasses.replace(TIGHT, density_runs=0, surface=0, line=0)
    state = torch.get_rng_state()
    probe(model, F.cross_entropy, [(x, y)], plan=plan)
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def subjects():
    batches = uneven(*data())
    made = []
    for method, scale in (("flat", 0.5), ("sharp", 2.0)):
        for seed in (0, 1):
            made.append(
                Subject(
                    net(seed, scale),
                    F.cross_entropy,
                    batches,
                    label=f"{method} {seed}",
                    method=method,
                    seed=seed,
                    test_batches=[data(30, seed=2)],
                )
            )
    return made


SMALL = ProbePlan.quick_look(surface=5, line=5, metrics=("sam", "gradient-norm"), density_steps=4)


def test_several_subjects_share_planes_and_axes_and_are_compared():
    findings = probe_all(subjects(), plan=SMALL)
    axes = [array for name, array in findings.arrays.items() if name.endswith("_x")]
    assert len(axes) == 2  # the first seed of each method alone
    assert np.array_equal(axes[0], axes[1])
    methods = findings.document["comparison"]["methods"]
    assert [entry["num_seeds"] for entry in methods] == [2, 2]
    mean = np.mean([c["eigenvalues"][0]["value"] for c in findings.checkpoints[2:]])
    assert methods[1]["values"]["lambda-max"]["mean"] == pytest.approx(mean)
    assert findings.checkpoints[0]["test_loss"] != findings.checkpoints[0]["loss"]


def test_a_spent_budget_keeps_what_was_measured_and_says_so():
    seen = []

    def progress(what, done, total):
        seen.append(what)
        if what == "flat 1: trace":
            raise BudgetSpent

    findings = probe_all(subjects(), plan=SMALL, progress=progress)
    assert not findings.document["complete"]
    assert "Partial result" in findings.document["warnings"][0]
    assert [c["label"] for c in findings.checkpoints] == ["flat 0", "flat 1"]
    assert findings.checkpoints[0]["trace"] is not None
    assert findings.checkpoints[1]["trace"] is None
    assert findings.checkpoints[1]["eigenvalues"]
    assert "flat 0: eigenvalues" in seen


def test_the_cost_counts_what_was_asked_for():
    plan = ProbePlan(
        eigenvalues=0, trace_probes=12, density_runs=2, density_steps=5, surface=3, line=5,
        exact=True, metrics=("sam",), range=0.5,
    )  # fmt: skip
    provenance = probe(net(), F.cross_entropy, [data()], plan=plan).checkpoints[0]["provenance"]
    assert provenance["matvecs"] == 3 + 12 + 2 * 5  # the self-check takes three
    assert provenance["forwards"] >= 9 + 2 * 5 + 1


def test_weights_where_the_loss_is_not_finite_are_refused_by_name():
    model = net()
    with torch.no_grad():
        model[2].bias.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="broken: the loss at the weights is nan"):
        probe(model, F.cross_entropy, [data()], label="broken")


def test_unused_and_frozen_parameters_are_warned_of():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(5, 3).double(), nn.Linear(2, 2).double()
            self.used.bias.requires_grad_(False)

        def forward(self, x):
            return self.used(x)

    plan = ProbePlan.quick_look(surface=0, line=0, density_runs=0, metrics=())
    warnings = probe(Net(), F.cross_entropy, [data()], plan=plan).checkpoints[0]["warnings"]
    assert any("2 parameters are unused (unused.weight, unused.bias)" in w for w in warnings)
    assert any("1 parameters are frozen (used.bias)" in w for w in warnings)


def test_eigen_and_gradient_directions_are_unit_vectors_at_right_angles():
    for word in ("eigen", "gradient", "random"):
        plan = ProbePlan.quick_look(
            surface=3, line=0, density_runs=0, trace_probes=0, metrics=(), directions=word
        )
        surface = probe(net(), F.cross_entropy, [data()], plan=plan).checkpoints[0]["surface"]
        assert surface["norms"] == pytest.approx([1.0, 1.0])
        assert surface["angle_degrees"] == pytest.approx(90, abs=1e-3)


def test_a_steeper_axis_than_the_other_is_the_eigenvectors():
    plan = ProbePlan.quick_look(
        surface=3,
        line=0,
        density_runs=0,
        trace_probes=0,
        metrics=(),
        directions="eigen",
        range=1e-3,
    )
    findings = probe(net(), F.cross_entropy, [data()], plan=plan)
    loss, values = findings.arrays["surface_c0_loss"], findings.checkpoints[0]["eigenvalues"]
    curvature = [
        (loss[1, 0] + loss[1, 2] - 2 * loss[1, 1]) / 1e-6,
        (loss[0, 1] + loss[2, 1] - 2 * loss[1, 1]) / 1e-6,
    ]
    assert curvature == pytest.approx([values[0]["value"], values[1]["value"]], rel=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ends": "left"}, "ends must be one of top, bottom, both"),
        ({"directions": "up"}, "directions must be one of filter"),
        ({"directions": "eigen", "eigenvalues": 1}, "need two eigenvalues"),
        ({"metrics": ("sharpnes",)}, "unknown metric 'sharpnes'"),
        ({"metrics": ("sam:rho=-1",)}, "rho must be"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        ProbePlan(**changes)


def test_one_radius_reaches_every_measure_that_gives_none_itself():
    plan = ProbePlan(metrics=("sam", "sam:rho=0.2", "trace"), rho=0.1)
    assert [spec.options.get("rho") for spec in plan.specs] == [0.1, 0.2, None]
    assert [spec.label for spec in plan.specs] == ["sam", "sam:rho=0.2", "trace"]


def test_a_loss_that_never_rises_enough_gets_the_range_one_and_a_warning():
    def bounded(out, target):
        return 1 + torch.sigmoid(out).mean()

    plan = ProbePlan.quick_look(
        surface=3, line=0, density_runs=0, trace_probes=0, eigenvalues=0, metrics=()
    )
    findings = probe(net(), bounded, [data()], plan=plan)
    assert findings.arrays["surface_c0_x"].tolist() == [-1, 0, 1]
    warnings = findings.checkpoints[0]["warnings"]
    assert any("Range of the plane set to 1" in warning for warning in warnings)
