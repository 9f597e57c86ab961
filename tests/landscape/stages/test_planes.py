"""Planes through given points, resumed planes, eigenvalue maps and paths between minima."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from landscape import Hessian, Objective, ProbePlan, lanczos
from landscape.probing import (
    BudgetSpent,
    Session,
    Subject,
    assemble,
    measured_by_position,
    probe_all,
)
from landscape.stages.connection import connect
from landscape.stages.planes import plane_of
from landscape.stages.record import Record
from tests.landscape.stages.nets import batches, net, theta_of

BARE = ProbePlan(
    eigenvalues=0, trace_probes=0, density_runs=0, metrics=(), surface=7, line=5, exact=True
)


def plan_of(**changes):
    return dataclasses.replace(BARE, **changes)


def subject(model=None, **told):
    return Subject(model or net(), F.cross_entropy, batches(), **{"label": "net", **told})


def trained(seed, steps=60, lr=0.5):
    model = net(seed, hidden=8)
    x, y = (torch.cat(part) for part in zip(*batches(), strict=True))
    for _ in range(steps):
        model.zero_grad()
        F.cross_entropy(model(x), y).backward()
        with torch.no_grad():
            for p in model.parameters():
                p -= lr * p.grad
    return model


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


# -- directions -----------------------------------------------------------------------------------


def test_the_plane_of_a_trajectory_shows_every_checkpoint_where_it_is():
    path = [(str(epoch), weights(trained(0, steps=epoch))) for epoch in (1, 3, 9, 27)]
    last = trained(0)
    findings = probe_all(
        [subject(last, trajectory=path)], plan=plan_of(directions="pca", surface=5)
    )
    entry = findings.checkpoints[0]["trajectory"]
    assert entry["names"] == ["1", "3", "9", "27", "net"]
    assert entry["total_captured"] == pytest.approx(sum(entry["captured"]))
    assert "random walk" in entry["caution"]
    coordinates = findings.arrays["trajectory_c0_coordinates"]
    assert coordinates[-1] == pytest.approx([0.0, 0.0])
    x, y = (findings.arrays[f"surface_c0_{axis}"] for axis in "xy")
    assert x[0] < coordinates[:, 0].min() <= coordinates[:, 0].max() < x[-1]
    assert y[0] < coordinates[:, 1].min() <= coordinates[:, 1].max() < y[-1]
    distances = findings.arrays["trajectory_c0_distances"]
    radii = findings.arrays["trajectory_c0_radii"]
    squares = (coordinates**2).sum(1) + distances**2
    assert squares == pytest.approx(radii**2, rel=1e-9, abs=1e-12)


def test_a_trajectory_of_one_checkpoint_is_refused():
    with pytest.raises(ValueError, match="--save-every"):
        probe_all([subject(trajectory=[("1", weights(net(1)))])], plan=plan_of(directions="pca"))


def test_a_plane_through_three_checkpoints_holds_all_of_them():
    models = [trained(seed) for seed in (0, 1, 2)]
    subjects = [subject(m, label=f"net {i}") for i, m in enumerate(models)]
    plan = plan_of(directions="checkpoints")
    landmarks = [(s.label, weights(s.model)) for s in subjects]
    record = Record.of("c0", dataclasses.replace(subjects[0], landmarks=landmarks), plan, None)
    plane = plane_of(record)
    for (label, x, y), model in zip(plane.points, models, strict=True):
        found = record.theta + x * plane.first + y * plane.second
        torch.testing.assert_close(found, theta_of(model), msg=label)
    (left, right), (low, high) = plane.window
    assert all(left < x < right and low < y < high for _, x, y in plane.points)

    findings = probe_all(subjects, plan=plan)
    assert [c["surface"] is not None for c in findings.checkpoints] == [True, False, False]
    points = findings.checkpoints[0]["surface"]["points"]
    assert [point["label"] for point in points] == ["net 0", "net 1", "net 2"]


def test_a_plane_through_two_checkpoints_has_a_random_second_direction():
    subjects = [subject(trained(seed), label=f"net {seed}") for seed in (0, 1)]
    findings = probe_all(subjects, plan=plan_of(directions="checkpoints"))
    points = findings.checkpoints[0]["surface"]["points"]
    assert points[0]["x"] == pytest.approx(0, abs=1e-9)
    distance = float((theta_of(subjects[0].model) - theta_of(subjects[1].model)).norm())
    assert points[1]["x"] ** 2 + points[1]["y"] ** 2 == pytest.approx(distance**2)
    with pytest.raises(ValueError, match="two or three checkpoints"):
        probe_all(subjects[:1], plan=plan_of(directions="checkpoints"))


def test_the_gradient_plane_is_orthonormal_and_begins_with_the_gradient():
    record = Record.of("c0", subject(), plan_of(directions="gradient"), None)
    plane = plane_of(record)
    gradient = record.objective.gradient(record.theta)
    torch.testing.assert_close(plane.first, gradient / gradient.norm())
    assert float(plane.first @ plane.second) == pytest.approx(0, abs=1e-12)
    assert float(plane.second.norm()) == pytest.approx(1)


# -- what a surface says --------------------------------------------------------------------------


def test_a_surface_comes_with_its_topology():
    entry = probe_all([subject(trained(0))], plan=plan_of(surface=9)).checkpoints[0]
    topology = entry["surface"]["topology"]
    assert topology["num_minima"] - topology["num_saddles"] + topology["num_maxima"] == 1
    assert len(topology["minima"]) == topology["num_minima"]
    assert topology["minima"][0]["persistence"] is None  # the essential one
    assert topology["minima"][0]["loss"] == pytest.approx(entry["surface"]["min"])
    assert 0 < topology["threshold"] < 1e-10  # exact: no pair can be the spline's, or rounding's


def test_the_eigenvalue_maps_centre_is_the_spectrum_at_the_weights():
    model = trained(0)
    plan = plan_of(surface=0, line=0, eigenvalue_map=3, range=0.5)
    findings = probe_all([subject(model)], plan=plan)
    operator = Hessian(Objective(model, F.cross_entropy, batches()))
    pairs = lanczos(operator, num_eigenpairs=1, ends="both", seed=0)
    top, bottom = float(pairs.values[0]), float(pairs.values[-1])
    found = findings.arrays["map_c0_lambda_max"]
    assert found.shape == (3, 3)
    assert found[1, 1] == pytest.approx(top, rel=2e-2)
    assert findings.arrays["map_c0_ratio"][1, 1] == pytest.approx(abs(bottom) / top, rel=5e-2)
    assert findings.checkpoints[0]["eigenvalue_map"]["num_points"] == 9
    assert findings.checkpoints[0]["eigenvalue_map"]["max_ratio"] == pytest.approx(
        np.nanmax(findings.arrays["map_c0_ratio"])
    )


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.body = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3))
        self.double()
        self.body(torch.cat([x for x, _ in batches()]))  # some running statistics

    def forward(self, x):
        return self.body(x)


def test_recalibrated_surfaces_are_those_of_statistics_estimated_at_each_point():
    model = Normed()
    stored, again = (
        probe_all([subject(model)], plan=plan_of(line=0, range=0.3, recalibrate=on))
        for on in (False, True)
    )
    x = torch.cat([inputs for inputs, _ in batches()])
    y = torch.cat([targets for _, targets in batches()])
    exact = copy.deepcopy(model)
    exact.eval()
    norm = exact.body[1]
    hidden = exact.body[0](x).detach()
    norm.running_mean.copy_(hidden.mean(0))
    norm.running_var.copy_(hidden.var(0, correction=1))
    surface = again.checkpoints[0]["surface"]
    assert surface["recalibrated"] is True
    with torch.no_grad():
        truth = float(F.cross_entropy(exact(x), y))
    assert surface["center_loss"] == pytest.approx(truth, rel=1e-12)
    assert stored.checkpoints[0]["surface"]["center_loss"] != surface["center_loss"]
    assert stored.checkpoints[0]["loss"] == again.checkpoints[0]["loss"]


# -- interruption ---------------------------------------------------------------------------------


class Stop:
    """Ends the budget at the n-th report of a stage."""

    def __init__(self, stage, after):
        self.stage, self.left = stage, after

    def __call__(self, what, done, total):
        if what.endswith(self.stage):
            self.left -= 1
            if self.left < 0:
                raise BudgetSpent


def same_numbers(first, second):
    assert first.arrays.keys() == second.arrays.keys()
    for name, array in first.arrays.items():
        np.testing.assert_array_equal(array, second.arrays[name], err_msg=name)
    for one, other in zip(first.checkpoints, second.checkpoints, strict=True):
        for key in one.keys() - {"costs", "provenance", "sharpness"}:
            assert one[key] == other[key], key
        for name, measured in one["sharpness"].items():
            assert measured["value"] == other["sharpness"][name]["value"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "after", "exact"),
    [
        ("eigenvalues", 2, True),
        ("range", 0, True),
        ("slices", 3, True),
        ("surface", 30, True),
        ("surface", 100, False),
        ("eigenvalue map", 2, True),
    ],
)
def test_an_interrupted_probe_goes_on_to_the_same_numbers(stage, after, exact):
    plan = plan_of(
        eigenvalues=2, trace_probes=4, metrics=("sam",), exact=exact, eigenvalue_map=2,
        surface=7 if exact else 27,
    )  # fmt: skip
    subjects = [subject(trained(0)), subject(trained(1), label="other")]
    whole = probe_all(subjects, plan=plan)
    partial = probe_all(subjects, plan=plan, progress=Stop(stage, after))
    assert partial.document["complete"] is False
    positions = dict(enumerate(subjects))
    session = Session(positions, plan, frozenset(positions), earlier=measured_by_position(partial))
    session.measure_around(session.measure_at_weights())
    assert session.complete
    results = session.results()
    again = assemble(results, plan, complete=True, data={}, command=None, title="")
    same_numbers(whole, again)


def test_a_resumed_surface_evaluates_only_what_is_missing():
    plan = plan_of(line=0, surface=11, range=0.5)
    partial = probe_all([subject()], plan=plan, progress=Stop("surface", 80))
    spent = []
    session = Session(
        {0: subject()}, plan, frozenset({0}), earlier=measured_by_position(partial),
        progress=lambda what, done, total: spent.append(what),
    )  # fmt: skip
    session.measure_around(session.measure_at_weights())
    surfaces = [what for what in spent if what.endswith("surface")]
    assert 121 - 85 <= len(surfaces) <= 121 - 75
    assert not any(name.startswith("points_") for name in session.results()[0].arrays)


# -- paths ----------------------------------------------------------------------------------------


def test_a_path_between_minima_of_a_convex_loss_has_no_barrier():
    models = []
    for seed in (0, 1, 2):
        torch.manual_seed(seed)
        models.append(nn.Linear(5, 3).double())
    found = connect([subject(m, label=f"net {i}") for i, m in enumerate(models)],
                    plan_of(connect="line"))  # fmt: skip
    pairs = found.section["pairs"]
    assert [(p["first"], p["second"]) for p in pairs] == [("c0", "c1"), ("c0", "c2"), ("c1", "c2")]
    assert all(pair["height"] == 0 for pair in pairs)
    assert all(pair["kind"] == "lower bound" for pair in pairs)
    loss = found.arrays["path_p1_loss"]
    objective = Objective(models[0], F.cross_entropy, batches())
    assert loss[0] == pytest.approx(objective.value(theta_of(models[0])))
    assert loss[-1] == pytest.approx(objective.value(theta_of(models[2])))


def test_a_trained_path_is_lower_than_the_straight_one():
    subjects = [subject(trained(seed, steps=300), label=f"net {seed}") for seed in (0, 1)]
    found = connect(subjects, plan_of(connect="bezier"))
    pair = found.section["pairs"][0]
    line = found.arrays["path_p0_line_loss"]
    chord = np.linspace(line[0], line[-1], len(line))
    assert (line - chord).max() == pytest.approx(pair["line_height"])
    assert pair["line_height"] > 0.05
    assert pair["height"] < 0.5 * pair["line_height"]
    assert pair["length"] > pair["distance"]


def test_alignment_undoes_a_reordering_of_the_hidden_units():
    model = trained(0, steps=200)
    other = copy.deepcopy(model)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        other[0].weight.copy_(model[0].weight[order])
        other[0].bias.copy_(model[0].bias[order] + 1e-6)
        other[2].weight.copy_(model[2].weight[:, order])
    subjects = [subject(model), subject(other, label="reordered")]
    apart, together = (
        connect(subjects, plan_of(connect="line", align=on)).section["pairs"][0]
        for on in (False, True)
    )
    assert apart["height"] > 0.01
    assert apart["num_moved"] is None
    assert together["height"] < 1e-6
    assert together["num_moved"] == 8 - int((order == torch.arange(8)).sum())
    assert together["distance"] == pytest.approx(1e-6 * 8**0.5, rel=1e-4)


def test_paths_of_nets_with_running_statistics_estimate_them_anew():
    subjects = [subject(Normed()), subject(Normed(), label="other")]
    with torch.no_grad():
        subjects[1].model.body[0].weight.neg_()
    section = connect(subjects, plan_of(connect="line")).section
    assert any("estimated anew" in warning for warning in section["warnings"])
    findings = probe_all(subjects, plan=plan_of(connect="line", surface=0, line=0))
    assert findings.document["warnings"] == section["warnings"]
    assert findings.document["connection"]["pairs"] == section["pairs"]


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ([], "two or more checkpoints"),
        ([nn.Linear(5, 3).double()], "another network"),
        ([net()], "same weights"),
    ],
)
def test_what_cannot_be_connected_is_refused(others, message):
    subjects = [subject(net())] + [subject(m, label="other") for m in others]
    with pytest.raises(ValueError, match=message):
        connect(subjects, plan_of(connect="line"))


# -- what must not be mixed -----------------------------------------------------------------------


def gone_on(partial, subjects, plan):
    positions = dict(enumerate(subjects))
    session = Session(positions, plan, frozenset(positions), earlier=measured_by_position(partial))
    session.measure_around(session.measure_at_weights())
    return session


def test_a_session_on_other_data_does_not_go_on():
    plan = plan_of(range=0.5)
    partial = probe_all([subject()], plan=plan, progress=Stop("surface", 20))
    x, y = (torch.cat(part) for part in zip(*batches(), strict=True))
    other = dataclasses.replace(subject(), batches=[(x, (y + 1) % 3)])
    with pytest.raises(RuntimeError, match="in this session"):
        gone_on(partial, [other], plan)
    named = [subject(data={"sha256": word}) for word in ("first", "second")]
    partial = probe_all(named[:1], plan=plan, progress=Stop("surface", 20))
    with pytest.raises(ValueError, match="earlier result has data_sha256 first, now it is second"):
        gone_on(partial, named[1:], plan)


def test_a_session_whose_axes_reach_further_does_not_go_on():
    plan = plan_of(line=3)
    near, far = subject(trained(0), label="near"), subject(net(1), label="far")
    partial = probe_all([near], plan=plan, progress=Stop("surface", 20))
    with pytest.raises(ValueError, match="the earlier result has axes to"):
        gone_on(partial, [near, far], plan)


def test_going_on_along_eigenvectors_keeps_the_sampling_errors():
    plan = plan_of(eigenvalues=2, ends="top", directions="eigen", range=0.3)
    one = subject(data={"num_samples_total": 200})
    partial = probe_all([one], plan=plan, progress=Stop("surface", 20))
    before = partial.checkpoints[0]["eigenvalues"]
    assert before[0]["sampling_error"] > 0
    assert gone_on(partial, [one], plan).results()[0].entry["eigenvalues"] == before


def test_an_interrupted_surface_is_charged_for():
    plan = plan_of(line=0, range=0.5)
    partial = probe_all([subject()], plan=plan, progress=Stop("surface", 20))
    spent = partial.checkpoints[0]["costs"]["surface"]["forwards"]
    whole = gone_on(partial, [subject()], plan).results()[0].entry["costs"]["surface"]["forwards"]
    assert spent >= 20
    assert whole >= 49


def test_a_plane_through_points_that_differ_in_what_does_not_move_is_refused():
    subjects = [subject(trained(seed), label=f"net {seed}") for seed in (0, 1, 2)]
    with pytest.raises(ValueError, match=r"net 1 differs in 0\.(weight|bias), which does not move"):
        probe_all(subjects, plan=plan_of(directions="checkpoints", parameters=("2.*",)))
    path = [(str(i), weights(trained(0, steps=i))) for i in (1, 2, 3)]
    with pytest.raises(ValueError, match="which does not move"):
        probe_all(
            [subject(trained(0), trajectory=path)],
            plan=plan_of(directions="pca", parameters=("2.*",)),
        )


def test_paths_between_runs_of_other_labels_say_whose_they_are():
    told = [{"data": {"sha256": "same", "noise_seed": seed}} for seed in (0, 1)]
    subjects = [subject(trained(i), label=f"net {i}", **told[i]) for i in (0, 1)]
    warnings = connect(subjects, plan_of(connect="line")).section["warnings"]
    assert any("labels of net 0" in warning for warning in warnings)
    same = [subject(trained(i), label=f"net {i}", **told[0]) for i in (0, 1)]
    assert connect(same, plan_of(connect="line")).section["warnings"] == []
    findings = probe_all(subjects, plan=plan_of(directions="checkpoints", line=0))
    assert any("label noise anew" in warning for warning in findings.checkpoints[0]["warnings"])


def test_micro_batches_and_paths_of_nets_with_batch_norm_go_together():
    other = Normed()
    with torch.no_grad():
        other.body[0].weight.neg_()
    subjects = [subject(Normed()), subject(other, label="other")]
    for kind in ("line", "bezier"):
        plan = plan_of(connect=kind, micro_batch=20)
        assert connect(subjects, plan).section["pairs"][0]["height"] >= 0


def test_other_running_statistics_than_batch_norms_are_the_firsts_and_said_so():
    def instance():
        body = nn.Sequential(nn.InstanceNorm1d(1, track_running_stats=True), nn.Flatten())
        return nn.Sequential(nn.Unflatten(1, (1, 5)), body, nn.Linear(5, 3)).double()

    torch.manual_seed(0)
    subjects = [subject(instance()), subject(instance(), label="other")]
    warnings = connect(subjects, plan_of(connect="line")).section["warnings"]
    assert any("running statistics of net" in warning for warning in warnings)


def test_what_is_no_plan_for_a_net_is_refused_before_any_measurement():
    told = []
    with pytest.raises(ValueError, match="no batch norm"):
        probe_all([subject()], plan=plan_of(recalibrate=True), progress=lambda *a: told.append(a))
    residual = nn.TransformerEncoderLayer(4, 1, 4, batch_first=True)
    with pytest.raises(ValueError):
        probe_all(
            [subject(residual), subject(copy.deepcopy(residual), label="b")],
            plan=plan_of(connect="line", align=True),
            progress=lambda *a: told.append(a),
        )
    assert told == []


def test_a_map_without_any_curvature_has_no_ratio():
    def distance(output, target):
        return (output - F.one_hot(target, 3)).abs().mean()

    one = Subject(nn.Linear(5, 3).double(), distance, batches(), label="flat")
    entry = probe_all([one], plan=plan_of(surface=0, line=0, eigenvalue_map=2, range=0.1))
    assert entry.checkpoints[0]["eigenvalue_map"]["max_ratio"] is None


def test_an_error_of_the_users_own_kind_is_told_as_what_it_is():
    def loss(output, target):
        raise UnicodeDecodeError("utf-8", b"x", 0, 1, "bad byte")

    with pytest.raises(ValueError, match=r"net: .*bad byte"):
        probe_all([Subject(net(), loss, batches(), label="net")], plan=BARE)


def test_a_range_beside_a_plane_that_shows_its_own_points_is_refused():
    with pytest.raises(ValueError, match="leave range out"):
        plan_of(directions="pca", range=1.0)
