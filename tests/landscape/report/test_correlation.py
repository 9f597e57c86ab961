"""Rank correlations: tau with its interval, within methods, or why there is none."""

from __future__ import annotations

import pytest

from landscape.findings import Findings
from landscape.report import correlation
from landscape.report.methods import methods_of
from tests.landscape.report.sample import HOSTILE, probe_findings


@pytest.fixture
def findings() -> Findings:
    return probe_findings(methods=("a", "b", "c", "d", "e"), seeds=2, surface=5)


def test_each_measure_has_its_tau_its_interval_and_its_counts(findings: Findings) -> None:
    entries = correlation.entries(findings)
    assert len(entries) == 5
    entries[0].update(
        tau=0.5, interval=[0.1, 0.8], within=-0.25, within_interval=[-0.6, 0.2], num_cells=5
    )
    row = correlation.table(findings).split("<tr>")[2]
    assert "0.50 [0.10, 0.80]" in row
    assert "−0.25 [−0.60, 0.20]" in row
    assert 'data-value="10"' in row
    assert 'data-value="5"' in row
    text = correlation.sentence(findings, entries[0]["measure"])
    assert text == (
        "Kendall’s τ = 0.50 [0.10, 0.80] over 10 checkpoints. Within methods τ = −0.25 "
        "[−0.60, 0.20]."
    )


def test_a_tau_without_an_interval_says_so_and_the_note_says_why() -> None:
    findings = probe_findings(seeds=3, surface=5)
    html = correlation.table(findings)
    assert "no interval" in html
    assert "No interval where: 3 cells" in html
    assert ", no interval." in correlation.sentence(findings, "trace")


def test_a_measure_that_some_checkpoints_lack_says_how_many(findings: Findings) -> None:
    correlation.entries(findings)[0]["num_missing"] = 3
    assert "3 without it" in correlation.table(findings)


def test_without_enough_checkpoints_there_is_no_table() -> None:
    findings = probe_findings(seeds=1, surface=5)
    assert correlation.table(findings) == ""
    assert "Too few checkpoints" in correlation.sentence(findings, "trace")


def test_the_method_says_how_the_interval_was_found(findings: Findings) -> None:
    def words() -> str:
        (method,) = (m for m in methods_of(findings) if m.title == "Comparison")
        assert method.sources == ("jiang2020",)
        return method.text

    for entry in correlation.entries(findings):
        entry["interval"] = None
    assert "resampling" not in words()
    correlation.entries(findings)[0]["interval"] = [0.1, 0.8]
    assert "resampling whole cells" in words()


def test_44_a_hostile_reason_or_measure_is_text(findings: Findings) -> None:
    entry = findings.document["comparison"]["correlation"][0]
    entry.update(measure=HOSTILE, interval=None, interval_skipped=HOSTILE, tau=None)
    assert "<img" not in correlation.table(findings)
