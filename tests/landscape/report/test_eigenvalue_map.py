"""Eigenvalue maps: rows along y, one colour scale for all, holes where nothing was measured."""

from __future__ import annotations

import math

import numpy as np
import pytest

from landscape.findings import Findings
from landscape.report import eigenvalue_map
from tests.landscape.report.sample import probe_findings


@pytest.fixture
def findings() -> Findings:
    return probe_findings(seeds=1)


def test_maps_keep_rows_as_y_and_columns_as_x(findings: Findings) -> None:
    ratio = np.linspace(0.1, 1.0, 6).reshape(2, 3)
    findings.arrays["map_c1_x"] = np.array([-1.0, 0.0, 2.0])
    findings.arrays["map_c1_y"] = np.array([0.0, 5.0])
    findings.arrays["map_c1_ratio"] = ratio
    trace = eigenvalue_map.figure(findings, "c1", "ratio")["data"][0]
    assert (trace["x"], trace["y"]) == ([-1, 0, 2], [0, 5])
    assert np.array(trace["customdata"]) == pytest.approx(ratio)
    assert eigenvalue_map.scale(findings, "ratio") == "log"
    assert np.array(trace["z"]) == pytest.approx(np.log10(ratio), abs=1e-5)


def test_maps_of_one_quantity_share_their_colours(findings: Findings) -> None:
    for part in eigenvalue_map.PARTS:
        ends = {
            (t["zmin"], t["zmax"])
            for t in (eigenvalue_map.figure(findings, f"c{i}", part)["data"][0] for i in range(3))
        }
        assert len(ends) == 1, part


def test_24_points_without_a_finite_value_stay_empty(findings: Findings) -> None:
    trace = eigenvalue_map.figure(findings, "c0", "ratio")["data"][0]
    assert trace["z"][0][0] is None
    assert trace["customdata"][0][0] is None
    assert trace["z"][0][1] is not None


def test_a_negative_lambda_max_makes_the_scale_linear(findings: Findings) -> None:
    findings.arrays["map_c0_lambda_max"][1, 1] = -0.5
    assert eigenvalue_map.scale(findings, "lambda_max") == "linear"
    trace = eigenvalue_map.figure(findings, "c0", "lambda_max")["data"][0]
    assert trace["z"][1][1] == trace["customdata"][1][1] == -0.5


def test_the_table_has_the_value_at_theta_the_extremes_and_what_did_not_converge(
    findings: Findings,
) -> None:
    html = eigenvalue_map.table(findings)
    ratio, top = (findings.arrays[f"map_c0_{part}"] for part in eigenvalue_map.PARTS)
    for value in (ratio[3, 3], np.nanmax(ratio), top[3, 3], np.nanmin(top), np.nanmax(top)):
        assert f'data-value="{float(value)!r}"' in html
    assert "of 49" in html
    assert 'data-value="48"' in html  # finite points of c0
    assert html.count('data-value="2"') == 3


def test_a_grid_that_misses_theta_has_no_value_there(findings: Findings) -> None:
    for axis in "xy":
        findings.arrays[f"map_c0_{axis}"] = np.linspace(-1, 1.1, 7)
    first = eigenvalue_map.table(findings).split("<tr>")[2]
    assert first.count("<td>–</td>") == 2
    for checkpoint in findings.checkpoints[1:]:
        for axis in "xy":
            findings.arrays[f"map_{checkpoint['id']}_{axis}"] = np.linspace(-1, 1.1, 7)
    assert "at θ" not in eigenvalue_map.table(findings)


def test_a_map_without_a_finite_point_is_not_drawn(findings: Findings) -> None:
    findings.arrays["map_c0_ratio"][:] = math.nan
    assert [c["id"] for c in eigenvalue_map.with_maps(findings)] == ["c1", "c2"]
    assert "2 of 3 checkpoints" in eigenvalue_map.caption(findings)


def test_the_method_names_points_failures_and_source(findings: Findings) -> None:
    method = eigenvalue_map.method(findings)
    assert "49 points" in method.text
    assert "At 6 points" in method.text
    assert method.sources == ("li2018",)
