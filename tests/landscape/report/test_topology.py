"""Topology on the page: minima numbered by depth, counts and persistence beside the contour."""

from __future__ import annotations

import re
from typing import Any

import pytest

from landscape.findings import Findings
from landscape.report import captions, planes, topology
from tests.landscape.report.sample import probe_findings


@pytest.fixture
def findings() -> Findings:
    return probe_findings(seeds=1)


def entry(findings: Findings) -> dict[str, Any]:
    found: dict[str, Any] = findings.checkpoints[0]["surface"]["topology"]
    return found


def test_minima_are_numbered_on_the_contour_the_deepest_first(findings: Findings) -> None:
    minima = entry(findings)["minima"]
    depths = [point["persistence"] for point in minima]
    assert depths[0] is None
    assert depths[1:] == sorted(depths[1:], reverse=True)
    (discs,) = (t for t in planes.contour(findings, "c0")["data"] if t.get("name") == "minima")
    assert discs["text"] == ["1", "2", "3"]
    assert discs["x"] == pytest.approx([point["x"] for point in minima])
    assert discs["y"] == pytest.approx([point["y"] for point in minima])
    assert "the deepest" in discs["customdata"][0]
    assert "persistence" in discs["customdata"][1]


def test_one_basin_needs_no_number(findings: Findings) -> None:
    assert entry(findings)["num_minima"] == 3
    assert findings.checkpoints[1]["surface"]["topology"]["num_minima"] == 1
    assert topology.marks(findings.checkpoints[1]) == []


def test_of_many_minima_the_contour_numbers_nine_and_the_table_lists_all(
    findings: Findings,
) -> None:
    entry(findings)["minima"] = [
        {"x": i, "y": 0.0, "loss": 1.0, "persistence": None if i == 0 else 1 / i, "on_border": True}
        for i in range(20)
    ]
    assert len(topology.marks(findings.checkpoints[0])[0]["x"]) == topology.MARKED
    html = topology.minima_table(findings)
    assert "Each minimum (20)" in html
    assert html.count("<tr>") == 1 + 20


def test_the_caption_counts_critical_points_and_says_how_deep(findings: Findings) -> None:
    text = captions.surface(findings.checkpoints[0])
    assert "3 minima, 2 saddles, 0 maxima deeper than 0.072, twice the error of a point" in text
    assert re.search(r"total persistence [\d.]+ % of the range", text)
    assert "1 minimum, 0 saddles" in captions.surface(findings.checkpoints[1])


def test_an_exact_surface_keeps_every_pair_and_names_no_threshold(findings: Findings) -> None:
    entry(findings)["threshold"] = 0.0
    assert "deeper" not in topology.sentence(findings.checkpoints[0])
    for checkpoint in findings.checkpoints:
        checkpoint["surface"]["topology"]["threshold"] = 0.0
    assert "every pair counts" in topology.method(findings).text


def test_the_table_has_counts_persistence_its_share_and_what_was_dropped(
    findings: Findings,
) -> None:
    found = entry(findings)
    row = topology.table(findings).split("<tr>")[2]
    for key in (
        *("num_minima", "num_saddles", "num_maxima", "total_persistence"),
        *("relative_persistence", "threshold", "num_dropped", "num_masked"),
    ):
        assert f'data-value="{found[key]}"' in row, key


def test_a_loss_that_is_the_same_to_rounding_has_no_relative_persistence(
    findings: Findings,
) -> None:
    entry(findings).update(relative_persistence=None, total_persistence=0.0)
    assert "the loss is the same everywhere, to rounding." in captions.surface(
        findings.checkpoints[0]
    )
    assert topology.table(findings).split("<tr>")[2].count("<td>–</td>") == 1


def test_a_surface_without_topology_has_no_words_and_no_row(findings: Findings) -> None:
    findings.checkpoints[0]["surface"]["topology"] = None
    assert topology.sentence(findings.checkpoints[0]) == ""
    assert topology.marks(findings.checkpoints[0]) == []
    assert [c["id"] for c in topology.with_topology(findings)] == ["c1", "c2"]


def test_the_method_names_the_threshold_and_the_sources(findings: Findings) -> None:
    method = topology.method(findings)
    assert "0.072" in method.text
    assert method.sources == ("edelsbrunner2010", "cohensteiner2007")
