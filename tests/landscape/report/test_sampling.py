"""Sampling errors on the page: beside each number, with how many rows of how many."""

from __future__ import annotations

import pytest

from landscape.findings import Findings
from landscape.report import captions, figures, sampling, tables
from tests.landscape.report.sample import HOSTILE, probe_findings


@pytest.fixture
def findings() -> Findings:
    return probe_findings(methods=("sam",), seeds=1, surface=5)


def test_eigenvalues_trace_loss_and_gradient_have_their_error_over_the_data(
    findings: Findings,
) -> None:
    html = tables.checkpoint_table(findings)
    assert html.count("data ±") == 4 + 1 + 1 + 1 + 1  # pairs, trace, loss, gradient, the note
    low, high = findings.checkpoints[0]["eigenvalues"][0]["sampling_interval"]
    assert f'title="95 % interval over the data: {low:.2f} to {high:.2f}"' in html
    assert "without what sampling noise adds to its length: 0.01170" in html


def test_without_sampling_errors_no_cell_and_no_note_speaks_of_them(findings: Findings) -> None:
    checkpoint = findings.checkpoints[0]
    checkpoint["sampling"] = None
    for entry in (*checkpoint["eigenvalues"], checkpoint["trace"]):
        entry.update(sampling_error=None, sampling_interval=None)
    html = tables.checkpoint_table(findings)
    assert "data ±" not in html
    assert "over the data" not in html
    assert not any("over the data" in t.get("name", "") for t in figures.spectrum(findings)["data"])


def test_the_caption_says_on_how_many_rows_of_how_many(findings: Findings) -> None:
    assert "1000 rows of 4000 in 40 random groups" in captions.spectrum(findings)
    findings.checkpoints[0]["sampling"]["population"] = None
    assert "taken as draws from a distribution" in sampling.caption(findings)


def test_what_has_no_error_over_the_data_says_why(findings: Findings) -> None:
    findings.checkpoints[0].update(sampling=None, sampling_skipped="all samples were probed")
    assert sampling.caption(findings) == (
        "No error over the data for any checkpoint: all samples were probed."
    )
    findings.checkpoints[0]["sampling_skipped"] = HOSTILE
    assert "<img" not in sampling.caption(findings)


def test_an_interval_over_the_data_is_a_bar_behind_each_lead_eigenvalue() -> None:
    findings = probe_findings(seeds=2, surface=5)
    bars = [
        t for t in figures.spectrum(findings)["data"] if t.get("name", "").endswith("over the data")
    ]
    assert len(bars) == 3
    intervals = [p["sampling_interval"] for p in findings.checkpoints[0]["eigenvalues"]]
    assert bars[0]["x"][:2] == pytest.approx(intervals[0], rel=1e-5)
    assert bars[0]["x"][2] is None
    assert len(bars[0]["x"]) == 3 * 4


def test_the_method_names_groups_rows_seed_and_source(findings: Findings) -> None:
    method = sampling.method(findings)
    assert "1000 rows of 4000 in 40 random groups" in method.text
    assert "Seed 0" in method.text
    assert method.sources == ("cochran1977",)
