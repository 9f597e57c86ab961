"""The self-check: one sentence, and a chip in the head where something is wrong."""

from __future__ import annotations

import math
from typing import Any

import pytest

from landscape.findings import Findings
from landscape.report import digits, self_check
from landscape.report.methods import methods_html
from landscape.report.page import render_report
from tests.landscape.report.sample import HOSTILE, probe_findings


@pytest.fixture
def findings() -> Findings:
    return probe_findings(seeds=1, surface=5)


def check_of(findings: Findings, position: int) -> dict[str, Any]:
    found: dict[str, Any] = findings.checkpoints[position]["self_check"]
    return found


def test_a_passed_check_is_one_sentence_in_the_methods_and_no_chip(findings: Findings) -> None:
    assert self_check.sentence(findings) == (
        "The operator passed its self-check: symmetry 1.2 × 10⁻⁸ (allowed 0.00035), determinism 0 "
        "(allowed 0.00012), difference of gradients skipped: kinks."
    )
    assert "The operator passed its self-check" in methods_html(findings)
    assert self_check.chips(findings) == []


def test_the_sentence_tells_the_largest_error_of_all_checkpoints(findings: Findings) -> None:
    check_of(findings, 1)["symmetry"]["relative_error"] = 3e-5
    assert "symmetry 3.0 × 10⁻⁵" in self_check.sentence(findings)


@pytest.mark.parametrize("error", [0.2, math.nan, math.inf])
def test_a_failed_check_is_named_with_its_checkpoint_and_its_chip(
    findings: Findings, error: float
) -> None:
    check_of(findings, 1).update(passed=False)
    check_of(findings, 1)["symmetry"].update(status="failed", relative_error=error)
    text = self_check.sentence(findings)
    assert text.startswith("<b>The operator failed its self-check</b> for sam seed 0")
    assert f"symmetry {digits.number(error, 2)} (allowed" in text  # the worst of all checkpoints
    assert ", failed" in text
    assert self_check.chips(findings) == ['<span class="chip warn">Self-check failed</span>']


def test_the_chip_of_a_failed_check_stands_in_the_head_of_the_page(findings: Findings) -> None:
    check_of(findings, 0)["passed"] = False
    page = render_report(findings)
    assert page.index("Self-check failed") < page.index("<table")


def test_approximate_products_say_how_far_off_they_are(findings: Findings) -> None:
    findings.checkpoints[0]["matrix_error"] = 0.0031
    findings.checkpoints[1]["matrix_error"] = 0.0002
    assert "Approximate products, off by 0.31 %" in "".join(self_check.chips(findings))
    assert "central differences" in self_check.sentence(findings)
    assert "up to 0.31 % of a product" in self_check.sentence(findings)


def test_without_a_check_nothing_is_claimed(findings: Findings) -> None:
    for checkpoint in findings.checkpoints:
        checkpoint["self_check"] = None
    assert self_check.sentence(findings) == ""
    assert "self-check" not in methods_html(findings)


def test_44_a_hostile_status_is_text(findings: Findings) -> None:
    for checkpoint in findings.checkpoints:
        checkpoint["self_check"]["difference"]["status"] = HOSTILE
        checkpoint["label"] = HOSTILE
    check_of(findings, 0)["passed"] = False
    assert "<img" not in self_check.sentence(findings)
