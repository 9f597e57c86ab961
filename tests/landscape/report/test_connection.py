"""Paths between minima: every pair on the figure and in the matrix, each height a lower bound."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from landscape.findings import Findings
from landscape.report import connection
from tests.landscape.report.sample import HOSTILE, probe_findings


@pytest.fixture
def straight() -> Findings:
    return probe_findings(seeds=1)


@pytest.fixture
def curved() -> Findings:
    return probe_findings(seeds=1, connect="bezier")


@pytest.fixture
def many() -> Findings:
    """Paths between each two of five checkpoints: more than a legend holds."""
    return probe_findings(methods=("a", "b", "c", "d", "e"), seeds=1, surface=5)


def lines(figure: dict[str, Any]) -> list[dict[str, Any]]:
    return [t for t in figure["data"] if t["mode"] == "lines" and len(t["x"]) > 2]


def test_each_path_is_a_line_with_its_barrier_marked_where_it_is(straight: Findings) -> None:
    figure = connection.figure(straight)
    pairs = connection.drawn_pairs(straight)
    assert len(lines(figure)) == len(pairs) == 3
    tops = [t for t in figure["data"] if "markers" in t["mode"]]
    for pair, line, top in zip(pairs, lines(figure), tops, strict=True):
        loss = straight.arrays[f"path_{pair['id']}_loss"]
        assert line["y"] == pytest.approx(loss.tolist(), rel=1e-5)
        assert top["x"] == [pytest.approx(pair["where"], rel=1e-5)]
        chord = (1 - pair["where"]) * loss[0] + pair["where"] * loss[-1]
        assert top["y"][0] - chord == pytest.approx(pair["height"], rel=1e-4)
    assert "type" not in figure["layout"]["yaxis"]  # linear: a barrier is a difference


def test_the_chord_of_each_path_joins_the_losses_of_its_ends(straight: Findings) -> None:
    chords = [t for t in connection.figure(straight)["data"] if len(t["x"]) == 2]
    for pair, chord in zip(connection.drawn_pairs(straight), chords, strict=True):
        loss = straight.arrays[f"path_{pair['id']}_loss"]
        assert chord["y"] == pytest.approx([loss[0], loss[-1]], rel=1e-5)


def test_straight_lines_differ_in_dash_and_trained_curves_are_solid(
    straight: Findings, curved: Findings
) -> None:
    assert len({t["line"]["dash"] for t in lines(connection.figure(straight))}) == 3
    assert {t["line"]["dash"] for t in lines(connection.figure(curved))} == {"solid"}
    markers = [t["marker"]["symbol"] for t in connection.figure(curved)["data"] if "marker" in t]
    assert len(set(markers)) == 3


def test_the_straight_line_beside_a_trained_curve_is_dashed(curved: Findings) -> None:
    curved.arrays["path_p0_line_loss"] = 5 * curved.arrays["path_p0_loss"]
    dashed = [t for t in lines(connection.figure(curved)) if t["line"]["dash"] == "dash"]
    assert len(dashed) == 1
    assert dashed[0]["y"] == pytest.approx((5 * curved.arrays["path_p0_loss"]).tolist(), rel=1e-5)
    assert "dashed: the straight line" in connection.caption(curved)


def test_of_many_paths_the_highest_and_the_lowest_are_in_colour(many: Findings) -> None:
    looks = connection.in_colour(many)
    pairs = many.document["connection"]["pairs"]
    assert len(pairs) == 10
    assert list(looks) == ["p9", "p0"]
    figure = connection.figure(many)
    grey = [t for t in lines(figure) if t["line"]["color"] == "#8a8f98"]
    assert len(grey) == 8
    assert figure["data"][0] in grey  # behind the coloured ones
    assert "grey: the others" in connection.caption(many)


def test_a_path_that_rises_nowhere_has_no_marker_and_keeps_its_name(straight: Findings) -> None:
    for pair in straight.document["connection"]["pairs"]:
        pair.update(height=0.0, where=0.0)
    figure = connection.figure(straight)
    assert not any("markers" in trace["mode"] for trace in figure["data"])
    assert sum(trace.get("showlegend", True) for trace in figure["data"]) == 3
    assert connection.verdict(straight).startswith("No path rises above")
    assert "t =" not in connection.table(straight)


def test_points_that_are_not_finite_are_gaps(straight: Findings) -> None:
    straight.arrays["path_p0_loss"][3] = np.nan
    assert lines(connection.figure(straight))[0]["y"][3] is None


def test_a_path_without_a_finite_loss_is_not_drawn_and_said_to_be_missing(
    straight: Findings,
) -> None:
    straight.arrays["path_p0_loss"][:] = np.nan
    assert [pair["id"] for pair in connection.drawn_pairs(straight)] == ["p1", "p2"]
    assert "1 without a finite loss" in connection.caption(straight)


def test_accuracy_is_in_per_cent(straight: Findings) -> None:
    line = connection.figure(straight, "accuracy")["data"][0]
    assert line["y"] == pytest.approx(
        (100 * straight.arrays["path_p0_accuracy"]).tolist(), rel=1e-5
    )


def test_the_matrix_holds_each_pair_twice_with_t_from_the_rows_minimum(straight: Findings) -> None:
    pair = straight.document["connection"]["pairs"][0]
    pair["where"] = 0.25
    html = connection.table(straight)
    rows = html.split("<tr>")[2:]
    assert len(rows) == 3
    cells = [re.findall("<td.*?</td>", row) for row in rows]
    assert "t = 0.25" in cells[0][1]
    assert "t = 0.75" in cells[1][0]
    assert cells[0][0] == cells[1][1] == cells[2][2] == "<td>–</td>"
    values = [float(v) for v in re.findall(r'data-value="([^"]+)"', html)]
    assert sorted(values) == sorted(
        2 * [p["height"] for p in straight.document["connection"]["pairs"]]
    )


def test_every_height_is_called_a_lower_bound_and_none_exact(curved: Findings) -> None:
    html = connection.table(curved)
    assert html.count("≥") == 2 * 3 * 2 + 1  # each height, its straight line's, and the note
    assert "lower bound" in html
    assert "exact" not in html + connection.method(curved).text + connection.caption(curved)
    assert "≥" in connection.verdict(curved)


def test_a_height_that_half_of_the_points_miss_says_so(straight: Findings) -> None:
    html = connection.table(straight)
    assert html.count("half of the points:") == 2
    assert "would grow with more points" in html


def test_what_was_not_aligned_says_what_its_barrier_also_measures(
    straight: Findings, curved: Findings
) -> None:
    assert "not aligned" in connection.alignment(straight)
    assert "40 to 42 units moved" in connection.alignment(curved)
    assert "after alignment" in connection.table(curved)


def test_methods_name_budget_and_sources_of_what_was_run(
    straight: Findings, curved: Findings
) -> None:
    line, curve = connection.method(straight), connection.method(curved)
    assert "3 paths of 25 points" in line.text
    assert line.sources == ("frankle2020", "entezari2022")
    assert "200 steps" in curve.text
    assert "Seed 0" in curve.text
    assert curve.sources == ("frankle2020", "entezari2022", "garipov2018", "ainsworth2023")


def test_44_hostile_names_are_text_on_paths_and_in_the_matrix() -> None:
    findings = probe_findings(seeds=1, names={"erm": HOSTILE})
    words = (
        connection.table(findings),
        connection.verdict(findings),
        str(connection.figure(findings)),
    )
    for text in words:
        assert "<img" not in text
        assert "</script" not in text
