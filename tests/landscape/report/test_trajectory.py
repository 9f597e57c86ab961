"""Trajectories: the path on the plane, its names, and the share that never stands alone."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from landscape.findings import Findings
from landscape.report import figures, planes, trajectory
from tests.landscape.report.sample import HOSTILE, probe_findings


@pytest.fixture
def findings() -> Findings:
    return probe_findings(seeds=1)


def path_of(figure: dict[str, Any]) -> dict[str, Any]:
    (found,) = (t for t in figure["data"] if t.get("name") == "path")
    return found


def test_the_path_runs_through_every_checkpoint_and_ends_in_a_star(findings: Findings) -> None:
    points = findings.arrays["trajectory_c0_coordinates"]
    for figure in (planes.contour(findings, "c0"), planes.trajectory_contour(findings, "c0")):
        path = path_of(figure)
        assert path["x"] == pytest.approx(points[:, 0].tolist(), rel=1e-5)
        assert path["y"] == pytest.approx(points[:, 1].tolist(), rel=1e-5)
        assert path["marker"]["symbol"] == ["circle"] * 11 + ["star"]


def test_names_stand_beside_the_ends_and_where_they_have_room(findings: Findings) -> None:
    names = findings.checkpoints[0]["trajectory"]["names"]
    path = path_of(planes.trajectory_contour(findings, "c0"))
    assert path["text"][0] == names[0]
    assert path["text"][-1] == names[-1]
    assert 3 <= sum(bool(text) for text in path["text"]) < len(names)
    points = findings.arrays["trajectory_c0_coordinates"]
    named = [point for point, text in zip(points, path["text"], strict=True) if text]
    gaps = [np.linalg.norm(a - b) for i, a in enumerate(named) for b in named[:i]]
    assert min(gaps) > 0.1 * np.ptp(points, axis=0).max()
    assert [data.split(",")[0] for data in path["customdata"]] == names  # the pointer finds all


def test_the_axes_of_a_trajectory_have_one_scale_and_hold_the_whole_path(
    findings: Findings,
) -> None:
    findings.arrays["trajectory_c0_coordinates"][0] = [-3.0, 0.2]
    layout = planes.trajectory_contour(findings, "c0")["layout"]
    assert layout["yaxis"]["scaleanchor"] == "x"
    assert layout["xaxis"]["range"][0] < -3.0
    assert layout["xaxis"]["range"][1] == 1.0  # the window's end, where the path stays inside
    assert trajectory.outside(findings, findings.checkpoints[0]) == 1
    assert "1 lie outside" in trajectory.caption(findings, findings.checkpoints[0])


def test_a_path_without_a_measured_surface_is_drawn_alone(findings: Findings) -> None:
    for part in ("x", "y", "loss"):
        del findings.arrays[f"surface_c0_{part}"]
    figure = planes.trajectory_contour(findings, "c0")
    assert {t["type"] for t in figure["data"]} == {"scatter"}
    assert "was not measured" in trajectory.caption(findings, findings.checkpoints[0])
    assert "trajectory c0" in figures.specifications(findings)


def test_the_captured_share_stands_with_its_caution_and_the_random_walks_interval(
    findings: Findings,
) -> None:
    html = trajectory.cautions(findings)
    assert html.count("the share alone does not show a path close to a plane") == 3
    row = trajectory.share_table(findings).split("<tr>")[2]
    for words in ("71.0 %", "20.0 %", "91.0 %", "90.3 %", "89.1 % to 91.5 %", "<b>no</b>"):
        assert words in row
    findings.checkpoints[0]["trajectory"]["exceeds_random_walk"] = True
    assert "<td>yes</td>" in trajectory.share_table(findings).split("<tr>")[2]


def test_the_distance_table_has_a_row_for_each_checkpoint_of_each_path(findings: Findings) -> None:
    html = trajectory.distance_table(findings)
    assert html.count("<tr>") == 1 + 3 * 12
    values = [float(v) for v in re.findall(r'data-value="([^"]+)"', html)]
    for part in ("distances", "radii"):
        for value in findings.arrays[f"trajectory_c1_{part}"]:
            assert float(value) in values


def test_a_point_without_a_name_is_called_by_its_number(findings: Findings) -> None:
    findings.checkpoints[0]["trajectory"]["names"] = ["start"]
    names = trajectory.names_of(findings, findings.checkpoints[0])
    assert names == ["start", *map(str, range(2, 13))]
    findings.checkpoints[0]["trajectory"]["names"] = [*names[:-1], "erm seed 0"]
    assert trajectory.names_of(findings, findings.checkpoints[0])[-1] == "last"  # itself


def test_planes_with_windows_of_their_own_share_no_axes(findings: Findings) -> None:
    assert planes.shares_axes(findings)
    findings.arrays["surface_c1_x"] = findings.arrays["surface_c1_x"] + 4.0
    assert not planes.shares_axes(findings)
    ranges = [planes.contour(findings, f"c{i}")["layout"]["xaxis"]["range"] for i in (0, 1)]
    assert ranges == [[-1.0, 1.0], [3.0, 5.0]]


def test_the_method_names_walks_seed_and_sources(findings: Findings) -> None:
    method = trajectory.method(findings)
    assert "12 checkpoints" in method.text
    assert "100 walks" in method.text
    assert "Seed 0" in method.text
    assert method.sources == ("li2018", "antognini2018")


def test_44_hostile_names_of_checkpoints_are_text_on_the_path(findings: Findings) -> None:
    entry = findings.checkpoints[0]["trajectory"]
    entry["names"] = [HOSTILE] * 12
    entry["caution"] = HOSTILE
    for text in (
        trajectory.distance_table(findings),
        trajectory.cautions(findings),
        trajectory.caption(findings, findings.checkpoints[0]),
        str(planes.trajectory_contour(findings, "c0")),
    ):
        assert "<img" not in text
        assert "</script" not in text
        assert "\u202e" not in text


def test_the_checkpoints_that_a_plane_goes_through_are_marked_by_name(findings: Findings) -> None:
    findings.checkpoints[0]["surface"]["points"] = [
        {"label": HOSTILE, "x": 0.0, "y": 0.0},
        {"label": "sam", "x": 0.7, "y": -0.2},
    ]
    figure = planes.contour(findings, "c0")
    (marks,) = (t for t in figure["data"] if t.get("name") == "checkpoints")
    assert (marks["x"], marks["y"]) == ([0.0, 0.7], [0.0, -0.2])
    assert marks["text"][1] == "sam"
    assert "<img" not in str(figure)
