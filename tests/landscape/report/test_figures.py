"""The figures: right data on right axes, styles by method, nothing where nothing was measured."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest

from landscape.findings import Findings
from landscape.report import available, curves, figures, layers, planes, theme
from tests.landscape.report.sample import (
    HOSTILE,
    crowded_findings,
    full_findings,
    probe_findings,
    training_findings,
)


def strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    items = value.values() if isinstance(value, dict) else value
    return [s for v in items for s in strings(v)] if isinstance(value, (dict, list)) else []


def test_every_figure_is_valid_plotly_and_has_data() -> None:
    drawn = full_findings().show()
    assert len(drawn) > 25
    for name, figure in drawn.items():
        assert isinstance(figure, go.Figure), name
        assert len(figure.data) > 0, name


def test_equal_findings_give_equal_figures() -> None:
    assert figures.specifications(full_findings()) == figures.specifications(full_findings())


def test_a_training_alone_draws_training_figures_alone() -> None:
    names = figures.specifications(training_findings(epochs=3))
    assert {name.split()[0] for name in names} == {"training", "signal"}


def test_no_figure_is_drawn_for_what_was_not_measured() -> None:
    bare = {"id": "c0", "label": "net", "loss": 0.1, "eigenvalues": [], "sharpness": {}}
    assert figures.specifications(Findings({"checkpoints": [bare]})) == {}
    assert figures.specifications(Findings({"training": {"runs": []}})) == {}


def test_contours_keep_rows_as_y_and_columns_as_x() -> None:
    findings = probe_findings(methods=("sam",), seeds=1, surface=5)
    loss = np.arange(15.0).reshape(3, 5) + 1
    findings.arrays["surface_c0_x"] = np.linspace(-2, 2, 5)
    findings.arrays["surface_c0_y"] = np.linspace(-1, 1, 3)
    findings.arrays["surface_c0_loss"] = loss
    for draw in (planes.contour, planes.surface):
        trace = draw(findings, "c0", scale="linear")["data"][0]
        assert trace["x"] == [-2, -1, 0, 1, 2]
        assert trace["y"] == [-1, 0, 1]
        assert trace["z"] == loss.tolist()
    row = planes.cross_slices(findings, "x")["data"][0]
    assert (row["x"], row["y"]) == ([-2, -1, 0, 1, 2], [6, 7, 8, 9, 10])
    column = planes.cross_slices(findings, "y")["data"][0]
    assert (column["x"], column["y"]) == ([-1, 0, 1], [3, 8, 13])


def test_24_points_that_are_not_finite_stay_empty_and_out_of_the_colour_scale() -> None:
    findings = probe_findings(methods=("sam",), seeds=1, surface=5)
    loss = np.full((5, 5), 2.0)
    loss[0, 0], loss[4, 4], loss[2, 2] = math.inf, math.nan, 1.0
    findings.arrays["surface_c0_loss"] = loss
    for scale in ("linear", "log"):
        trace = planes.contour(findings, "c0", scale=scale)["data"][0]
        assert trace["z"][0][0] is None
        assert trace["z"][4][4] is None
        assert trace["z"][1][1] is not None
    assert trace["zmax"] == pytest.approx(math.log10(2), rel=1e-5)
    assert planes.color_view(findings, "c0", scale="linear", shared=True).high == 2.0


def test_a_surface_without_a_finite_point_is_not_drawn() -> None:
    findings = probe_findings(methods=("sam",), seeds=1, surface=5)
    findings.arrays["surface_c0_loss"] = np.full((5, 5), math.nan)
    assert available.with_surfaces(findings) == []
    assert not any(
        name.startswith(("contour", "surface")) for name in figures.specifications(findings)
    )


def test_contours_share_one_colour_scale_unless_each_has_its_own() -> None:
    findings = probe_findings(seeds=1)
    shared = [planes.contour(findings, f"c{i}")["data"][0]["zmax"] for i in range(3)]
    own = [planes.contour(findings, f"c{i}", shared=False)["data"][0]["zmax"] for i in range(3)]
    assert len(set(shared)) == 1
    assert len(set(own)) == 3
    assert max(own) == shared[0]


def test_a_logarithmic_colour_scale_is_labelled_in_losses() -> None:
    findings = probe_findings(seeds=1)
    view = planes.color_view(findings, "c0", scale="log", shared=True)
    for tick, label in zip(view.ticks, view.labels, strict=True):
        assert tick is not None
        assert float(label) == pytest.approx(10**tick, rel=1e-6)


def test_a_surface_with_losses_below_zero_is_never_shown_logarithmically() -> None:
    findings = probe_findings(methods=("sam",), seeds=1)
    assert planes.default_scale(findings) == "log"
    findings.arrays["surface_c0_loss"][3, 3] = -1e-3
    assert planes.default_scale(findings) == "linear"


def test_colour_dash_and_marker_stand_for_the_method_and_the_first_seed_leads() -> None:
    styles = theme.styles_of(probe_findings())
    assert [styles[f"c{i}"].lead for i in range(9)] == [True, False, False] * 3
    for part in ("color", "dash", "marker"):
        looks = [getattr(styles[f"c{i}"], part) for i in range(9)]
        assert looks[0] == looks[1] == looks[2]
        assert len(set(looks)) == 3


def test_a_run_and_a_checkpoint_of_one_method_look_alike() -> None:
    findings = full_findings()
    styles = theme.styles_of(findings)
    assert styles["c3"].method == styles["r3"].method == "sam"
    assert styles["c3"].color == styles["r3"].color


def test_twelve_methods_look_different_from_each_other() -> None:
    looks = {(s.color, s.dash, s.marker) for s in (theme.Style("m", i, True) for i in range(12))}
    assert len(looks) == 12


def test_each_method_stands_once_in_a_legend_whatever_its_seeds() -> None:
    drawn = full_findings()
    for figure in (
        planes.slices(drawn),
        layers.figure(drawn),
        figures.generalisation(drawn, "trace"),
    ):
        legend = [trace["name"] for trace in figure["data"] if trace.get("showlegend", True)]
        assert legend == ["erm", "sam", "ae-sam"]


def test_the_density_has_its_band_and_ends_below_one_eigenvalues_share() -> None:
    findings = probe_findings(methods=("sam",), seeds=1)
    figure = figures.spectrum(findings)
    band, curve = figure["data"][:2]
    grid = findings.arrays["density_c0_grid"]
    assert band["fill"] == "toself"
    assert len(band["x"]) == 2 * len(grid)
    assert curve["y"] == pytest.approx(
        np.maximum(findings.arrays["density_c0_value"], min(curve["y"])), rel=1e-5
    )
    width = findings.checkpoints[0]["density"]["kernel_width"]
    single = 1 / (5210 * width * math.sqrt(2 * math.pi))
    assert 10 ** figure["layout"]["yaxis"]["range"][0] == pytest.approx(single / 10)
    assert figure["layout"]["yaxis"]["type"] == "log"


def test_all_ritz_values_and_all_eigenvalues_are_drawn_with_their_residuals() -> None:
    findings = probe_findings()
    rows = [trace for trace in figures.spectrum(findings)["data"] if trace.get("yaxis") == "y2"]
    ticks = [t for t in rows if t.get("marker", {}).get("symbol") == "line-ns"]
    assert [len(trace["x"]) for trace in ticks] == [150, 150, 150]
    markers = [trace for trace in rows if trace["mode"] == "markers" and trace not in ticks]
    assert len(markers) == 9
    pairs = findings.checkpoints[4]["eigenvalues"]
    assert markers[4]["x"] == pytest.approx([pair["value"] for pair in pairs], rel=1e-5)
    assert markers[4]["error_x"]["array"] == pytest.approx(
        [pair["residual"] for pair in pairs], rel=1e-5
    )
    assert markers[4]["marker"]["symbol"] == ["square", "square", "square-open", "square"]


def test_the_comparison_shows_every_seed_and_the_interval_of_the_mean() -> None:
    findings = probe_findings()
    seeds, mean = figures.comparison(findings, "test_accuracy")["data"][2:4]
    own = [100 * c["test_accuracy"] for c in findings.checkpoints[3:6]]
    assert seeds["x"] == pytest.approx(own, rel=1e-5)
    assert mean["x"] == [pytest.approx(np.mean(own), rel=1e-5)]
    half = 4.302653 * np.std(own, ddof=1) / math.sqrt(3)
    assert mean["error_x"]["array"] == [pytest.approx(half, rel=1e-3)]
    assert mean["error_x"]["arrayminus"] == [pytest.approx(half, rel=1e-3)]


def test_a_scatter_holds_each_checkpoints_gap_in_per_cent_against_its_flatness() -> None:
    findings = probe_findings()
    points = figures.generalisation(findings, "trace")["data"]
    assert len(points) == 9
    for point, checkpoint in zip(points, findings.checkpoints, strict=True):
        gap = 100 * (checkpoint["accuracy"] - checkpoint["test_accuracy"])
        assert point["y"] == [pytest.approx(gap, rel=1e-5)]
        assert point["x"] == [pytest.approx(checkpoint["trace"]["value"], rel=1e-5)]
        error = checkpoint["trace"]["standard_error"]
        assert point["error_x"]["array"] == [pytest.approx(error, rel=1e-5)]


def test_training_curves_have_each_seed_and_their_mean() -> None:
    findings = training_findings(epochs=6)
    figure = curves.training(findings, "accuracy")
    thin = [trace for trace in figure["data"] if trace["line"]["width"] == 1]
    strong = [trace for trace in figure["data"] if trace["line"]["width"] > 2]
    assert (len(thin), len(strong)) == (9, 3)
    runs = findings.runs[3:6]
    mean = np.mean([[100 * line["test_accuracy"] for line in r["history"]] for r in runs], axis=0)
    assert strong[1]["y"] == pytest.approx(mean, rel=1e-5)
    assert strong[1]["name"] == "sam"


def test_runs_that_ended_at_different_times_have_no_mean_and_the_first_seed_leads() -> None:
    findings = training_findings(epochs=6)
    findings.runs[4]["history"].pop()
    figure = curves.training(findings, "accuracy")
    legend = [trace for trace in figure["data"] if trace.get("showlegend", True)]
    assert [trace["name"] for trace in legend] == ["erm", "sam", "ae-sam"]
    first = [100 * line["test_accuracy"] for line in findings.runs[3]["history"]]
    assert legend[1]["y"] == pytest.approx(first, rel=1e-5)


def test_accuracy_against_cost_moves_the_means_along_the_cost_axis() -> None:
    findings = training_findings(epochs=6)
    figure = curves.training(findings, "by-gradients")
    ends = {t["name"]: t["x"][-1] for t in figure["data"] if t["line"]["width"] > 2}
    assert ends == {"erm": 240, "sam": 480, "ae-sam": pytest.approx(350.4)}


def test_the_edge_is_drawn_once_and_each_sam_edge_says_that_it_is_heuristic() -> None:
    figure = curves.training(training_findings(epochs=6), "curvature")
    names = [trace["name"] for trace in figure["data"] if "edge" in trace["name"]]
    assert names == ["2/lr edge", "SAM edge, sam (heuristic)", "SAM edge, ae-sam (heuristic)"]


def test_many_variants_have_no_legend_and_the_best_are_in_colour() -> None:
    findings = crowded_findings()
    assert curves.is_crowded(findings)
    assert not curves.is_crowded(training_findings(epochs=3))
    figure = curves.training(findings, "accuracy")
    assert figure["layout"]["showlegend"] is False
    assert len({trace["meta"]["curve"] for trace in figure["data"]}) == 12
    # accuracy falls with the number in the name; the reference comes first
    assert curves.in_colour(findings) == ["v00", "v01", "v02", "v03", "v04"]


def test_curvature_that_was_measured_once_is_no_curve() -> None:
    findings = training_findings(epochs=6)
    for run in findings.runs:
        for line in run["history"][:-1]:
            line.pop("lambda_max", None)
    assert "curvature" not in curves.drawable(findings)
    assert "curvature" in curves.drawable(training_findings(epochs=6))


def test_logarithmic_axes_name_the_numbers_of_their_ticks() -> None:
    findings = full_findings()
    axes = [
        axis
        for figure in figures.specifications(findings).values()
        for name, axis in figure["layout"].items()
        if "axis" in name and axis.get("type") == "log"
    ]
    assert len(axes) >= 4
    for axis in axes:
        assert len(axis["tickvals"]) == len(axis["ticktext"]) >= 2
        assert "dtick" not in axis


def test_few_epochs_have_whole_ticks_and_a_share_its_whole_range() -> None:
    layout = curves.training(training_findings(epochs=4), "share")["layout"]
    assert layout["xaxis"]["dtick"] == 1
    assert layout["yaxis"]["range"] == [-4, 104]
    assert "dtick" not in curves.training(training_findings(epochs=30), "loss")["layout"]["xaxis"]


def test_an_axis_of_bounds_carries_their_mark() -> None:
    findings = probe_findings(surface=5)
    worst = figures.comparison(findings, "worst-case:rho=0.1")["layout"]["xaxis"]["title"]["text"]
    assert worst == "worst case, ρ = 0.1 (≥)"
    assert "(≥)" not in figures.comparison(findings, "sam")["layout"]["xaxis"]["title"]["text"]


def test_one_epoch_is_drawn_as_points() -> None:
    figure = curves.training(training_findings(epochs=1), "accuracy")
    assert {trace["mode"] for trace in figure["data"]} == {"markers"}


def test_the_switching_signal_has_its_mean_its_threshold_and_its_share() -> None:
    findings = training_findings(epochs=6)
    assert available.with_signal(findings) == ["ae-sam"]
    figure = curves.switching_signal(findings, "ae-sam")
    by_name = {trace["name"]: trace for trace in reversed(figure["data"])}
    history = findings.runs[6]["history"]
    for name, key in (("threshold", "threshold"), ("running mean", "signal_mean")):
        assert by_name[name]["y"] == pytest.approx([line[key] for line in history], rel=1e-5)
    share = [trace for trace in figure["data"] if trace.get("yaxis") == "y2"]
    assert share[0]["y"] == pytest.approx(
        [100 * line["perturbed_share"] for line in history], rel=1e-5
    )


def test_44_hostile_names_reach_no_figure_as_markup() -> None:
    findings = full_findings(names={"erm": HOSTILE})
    for name, figure in figures.specifications(findings).items():
        for text in strings(figure):
            assert "<img" not in text, name
            assert "<a " not in text, name
            assert "</script" not in text, name
            assert "\u202e" not in text, name
            assert len(text) < 250, name


def test_44_hostile_names_stay_out_of_plotlys_templates() -> None:
    findings = full_findings(names={"erm": "%{x} %{y} %{fullData.name}"})
    for figure in figures.specifications(findings).values():
        for trace in figure["data"]:
            assert "fullData" not in trace.get("hovertemplate", "")
