"""Dynamics: each curvature with its error, the edge where it is known, and what was skipped."""

from __future__ import annotations

from typing import Any

import pytest

from landscape.findings import Findings
from landscape.report import dynamics
from landscape.report.methods import methods_of
from tests.landscape.report.sample import HOSTILE, probe_findings


@pytest.fixture
def findings() -> Findings:
    return probe_findings(seeds=2, surface=5)


def by_name(figure: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {trace["name"]: trace for trace in figure["data"]}


def test_each_curvature_is_a_marker_on_its_checkpoints_row_with_its_error(
    findings: Findings,
) -> None:
    drawn = by_name(dynamics.figure(findings))
    assert list(drawn) == [
        *(dynamics.H, dynamics.G, dynamics.R, dynamics.ALONG, dynamics.BATCH, dynamics.EDGE)
    ]
    batch = [c["dynamics"]["batch_lambda_max"] for c in findings.checkpoints]
    assert drawn[dynamics.BATCH]["x"] == pytest.approx([b["value"] for b in batch], rel=1e-5)
    assert drawn[dynamics.BATCH]["error_x"]["array"] == pytest.approx(
        [b["standard_error"] for b in batch], rel=1e-5
    )
    assert drawn[dynamics.BATCH]["y"] == list(range(6))
    assert drawn[dynamics.EDGE]["x"] == [40.0] * 6
    looks = [trace["marker"]["symbol"] for trace in drawn.values()]
    closed = {(s if isinstance(s, str) else s[0]).removesuffix("-open") for s in looks}
    assert len(closed) == 6


def test_a_quantity_that_was_not_measured_is_no_marker_and_a_dash(findings: Findings) -> None:
    for checkpoint in findings.checkpoints:
        checkpoint["dynamics"].update(edge=None, lambda_max_ggn=None, cosine=None)
    drawn = by_name(dynamics.figure(findings))
    assert dynamics.EDGE not in drawn
    assert dynamics.G not in drawn
    assert not dynamics.has_edge(findings)
    assert dynamics.table(findings).split("<tr>")[2].count("<td>–</td>") == 3


def test_the_eigenvalue_of_another_matrix_is_not_called_that_of_the_hessian(
    findings: Findings,
) -> None:
    findings.document["settings"]["matrix"] = "ggn"
    assert dynamics.H not in by_name(dynamics.figure(findings))


def test_the_table_has_every_number_with_its_error_its_kind_and_its_batch(
    findings: Findings,
) -> None:
    entry = findings.checkpoints[0]["dynamics"]
    entry["batch_lambda_max"]["kind"] = "lower bound"
    entry["gradient_noise"]["noise_scale"] = None
    row = dynamics.table(findings).split("<tr>")[2]
    for value in (
        *(entry["curvature_along_gradient"], entry["lambda_max_ggn"], entry["edge"]),
        *(entry["lambda_max_remainder"], entry["gradient_noise"]["value"]),
        entry["batch_lambda_max"]["value"],
    ):
        assert f'data-value="{value}"' in row
    assert "≥" in row
    assert "100 samples" in row
    assert "data ± 0.41" in row
    assert "not defined" in row
    assert "95 % interval over batches" in row


@pytest.mark.parametrize("fact", ["converged", "confirmed"])
@pytest.mark.parametrize(
    ("part", "name"), [("ggn", dynamics.G), ("remainder", dynamics.R)], ids=["G", "R"]
)
def test_a_part_of_the_hessian_that_may_be_larger_is_marked_as_a_lower_bound(
    findings: Findings, part: str, name: str, fact: str
) -> None:
    entry = findings.checkpoints[0]["dynamics"]
    assert f'data-value="{entry[f"lambda_max_{part}"]}">≥' not in dynamics.table(findings)
    entry[f"lambda_max_{part}_{fact}"] = False
    rows = dynamics.table(findings).split("<tr>")
    assert f'data-value="{entry[f"lambda_max_{part}"]}">≥' in rows[2]
    assert "is a lower bound" in dynamics.table(findings)
    drawn = by_name(dynamics.figure(findings))[name]
    assert [symbol.endswith("-open") for symbol in drawn["marker"]["symbol"]] == [
        True,
        *[False] * 5,
    ]
    assert drawn["text"] == ["≥", *["="] * 5]
    assert "Open: a lower bound" in dynamics.caption(findings)


def test_batches_smaller_than_the_trainings_say_so(findings: Findings) -> None:
    findings.checkpoints[0]["dynamics"]["batch_lambda_max"]["wanted"] = 512
    rows = dynamics.table(findings).split("<tr>")
    assert "100 samples, 512 wanted" in rows[2]
    assert "wanted" not in rows[3]
    (method,) = (m for m in dynamics.methods(findings) if m.title == "Curvature of a batch")
    assert "Where fewer samples are probed, all of them" in method.text


def test_what_was_skipped_is_told_once_with_its_reason(findings: Findings) -> None:
    for checkpoint in findings.checkpoints:
        checkpoint["dynamics"]["skipped"] = {"gradient_noise": "rows are coupled"}
    findings.checkpoints[0]["dynamics"]["skipped"]["batch_lambda_max"] = "one batch"
    html = dynamics.skipped(findings)
    assert html.count("<li>") == 2
    assert "<b>gradient noise</b> was not measured for any checkpoint: rows are coupled" in html
    assert "λ<sub>max</sub> of batches</b> was not measured for erm seed 0: one batch" in html
    assert dynamics.skipped(probe_findings(seeds=1)) == ""


def test_44_hostile_reasons_and_names_are_text(findings: Findings) -> None:
    findings.checkpoints[0]["dynamics"]["skipped"] = {HOSTILE: HOSTILE}
    findings.checkpoints[0]["label"] = HOSTILE
    for text in (dynamics.table(findings), str(dynamics.figure(findings))):
        assert "<img" not in text
        assert "</script" not in text


def test_methods_cover_what_was_measured_with_budget_and_sources(findings: Findings) -> None:
    methods = {method.title: method for method in dynamics.methods(findings)}
    assert list(methods) == [
        "Curvature along the gradient",
        "Gauss–Newton part and remainder",
        "Gradient noise",
        "Curvature of a batch",
    ]
    assert methods["Gradient noise"].sources == ("mccandlish2018",)
    assert "1000 gradients of single samples" in methods["Gradient noise"].text
    assert "10 random ones of 100 samples" in dynamics.caption(findings)
    assert methods["Gauss–Newton part and remainder"].sources == ("schraudolph2002",)


def test_the_edge_of_stability_is_explained_where_its_line_is_drawn_alone(
    findings: Findings,
) -> None:
    assert "Edge of stability" in {m.title for m in methods_of(findings)}
    for checkpoint in findings.checkpoints:
        checkpoint["dynamics"]["edge"] = None
    assert "Edge of stability" not in {m.title for m in methods_of(findings)}
