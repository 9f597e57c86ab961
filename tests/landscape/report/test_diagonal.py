"""The diagonal: its spread in a row, its entries with the page while they are few."""

from __future__ import annotations

import numpy as np
import pytest

from landscape.report import diagonal
from landscape.report.embedding import MOST_NUMBERS, embedded_arrays
from landscape.report.page import render_report
from tests.landscape.report.sample import probe_findings


def test_the_table_has_a_row_a_checkpoint_with_the_error_of_an_entry() -> None:
    findings = probe_findings(surface=5)
    html = diagonal.table(findings)
    assert html.count("<tr>") == 1 + 3
    entry = findings.checkpoints[0]["diagonal"]
    for key, value in entry.items():
        assert f'data-value="{value}"' in html, key
    assert diagonal.method(findings).sources == ("bekas2007",)
    assert "32 probes" in diagonal.method(findings).text


def test_without_a_diagonal_there_is_no_table() -> None:
    findings = probe_findings(seeds=1, surface=5)
    for checkpoint in findings.checkpoints:
        checkpoint["diagonal"] = None
    assert diagonal.table(findings) == ""


@pytest.mark.parametrize("size", [100, MOST_NUMBERS])
def test_entries_that_are_too_many_for_a_page_stay_beside_it(size: int) -> None:
    findings = probe_findings(methods=("sam",), seeds=1, surface=5)
    for part in ("values", "errors"):
        findings.arrays[f"diagonal_c0_{part}"] = np.ones(size)
    kept = embedded_arrays(findings)
    are_kept = size == 100
    assert ("diagonal_c0_values" in kept) == are_kept
    assert "surface_c0_loss" in kept
    assert ("too large for a page" in render_report(findings)) != are_kept
