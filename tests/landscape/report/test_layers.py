"""Layers: curvature, trace and worst case of each block, with errors and bounds as measured."""

from __future__ import annotations

import pytest

from landscape.findings import Findings
from landscape.report import layers
from tests.landscape.report.sample import HOSTILE, probe_findings


@pytest.fixture
def findings() -> Findings:
    return probe_findings(seeds=1, surface=5)


def test_each_quantity_has_its_figure_with_its_error(findings: Findings) -> None:
    assert layers.drawn_parts(findings) == ["lambda_max", "trace", "sharpness"]
    entries = findings.checkpoints[0]["layers"]
    for part, error in (("lambda_max", "lambda_max_residual"), ("trace", "trace_standard_error")):
        trace = layers.figure(findings, part)["data"][0]
        assert trace["x"] == pytest.approx([e[part] for e in entries], rel=1e-5)
        assert trace["error_x"]["array"] == pytest.approx([e[error] for e in entries], rel=1e-5)
    assert not layers.figure(findings, "sharpness")["data"][0]["error_x"]["visible"]


def test_an_eigenvalue_that_is_not_confirmed_is_open_and_a_lower_bound(findings: Findings) -> None:
    trace = layers.figure(findings, "lambda_max")["data"][0]
    assert trace["marker"]["symbol"] == ["circle", "circle-open", "circle"]
    assert "Open: not confirmed, a lower bound" in layers.caption(findings, "lambda_max")
    row = layers.table(findings).split("<tr>")[3]
    assert "not confirmed" in row
    assert row.count("≥") == 3 + 3  # lambda_max of conv2 and the worst case, of each checkpoint


def test_the_worst_case_names_its_radius_and_that_it_is_a_lower_bound(findings: Findings) -> None:
    assert layers.title_of(findings, "sharpness") == "worst case, ρ\u00a0=\u00a00.05"
    assert "lower bound" in layers.caption(findings, "sharpness")
    assert "(lower bound)" in layers.method(findings).text
    html = layers.table(findings)
    assert "≥</b> is a lower bound" in html
    for checkpoint in findings.checkpoints:
        for entry in checkpoint["layers"]:
            entry.update(sharpness_kind="exact", lambda_max_confirmed=True)
    assert "≥" not in layers.table(findings)


def test_quantities_that_no_layer_has_have_no_figure_and_no_column(findings: Findings) -> None:
    for checkpoint in findings.checkpoints:
        for entry in checkpoint["layers"]:
            entry.update(trace=None, sharpness=None)
    assert layers.drawn_parts(findings) == ["lambda_max"]
    assert "tr H" not in layers.table(findings)
    assert "worst case" not in layers.method(findings).text


def test_the_blocks_are_named_after_the_matrix_that_was_measured(findings: Findings) -> None:
    findings.document["settings"]["matrix"] = "ggn"
    assert layers.title_of(findings, "trace") == "tr G"
    assert layers.method(findings).formula.startswith("G<sub>ll</sub>")


def test_44_hostile_names_of_layers_are_text(findings: Findings) -> None:
    for checkpoint in findings.checkpoints:
        checkpoint["layers"][0]["name"] = HOSTILE
    for text in (layers.table(findings), *(str(layers.figure(findings, p)) for p in layers.PARTS)):
        assert "<img" not in text
        assert "</script" not in text
