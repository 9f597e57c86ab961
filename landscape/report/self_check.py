"""The self-check of the curvature operator, and how far an approximate one is off, in words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from landscape.findings import Findings
from landscape.report import digits
from landscape.report.text import shown

_QUESTIONS = {
    "symmetry": "symmetry",
    "determinism": "determinism",
    "difference": "difference of gradients",
}


def checks(findings: Findings) -> list[dict[str, Any]]:
    return [c["self_check"] for c in findings.checkpoints if c.get("self_check")]


def failed(findings: Findings) -> list[dict[str, Any]]:
    """The checkpoints whose operator failed."""
    return [
        c
        for c in findings.checkpoints
        if c.get("self_check") and c["self_check"].get("passed") is False
    ]


def matrix_error(findings: Findings) -> float | None:
    """The largest relative difference between the products of two step lengths, if approximate."""
    errors = [c["matrix_error"] for c in findings.checkpoints if c.get("matrix_error") is not None]
    return max(errors, default=None)


def is_approximate(findings: Findings) -> bool:
    return matrix_error(findings) is not None or any(c.get("approximate") for c in checks(findings))


def chips(findings: Findings) -> list[str]:
    """What of this the head of the page says, as chips in HTML."""
    found = []
    if failed(findings):
        found.append('<span class="chip warn">Self-check failed</span>')
    if is_approximate(findings):
        error = matrix_error(findings)
        how_far = "" if error is None else f", off by {digits.share(error, 2)}"
        found.append(f'<span class="chip warn">Approximate products{how_far}</span>')
    return found


def sentence(findings: Findings) -> str:
    """ "The operator passed its self-check: symmetry 2.1 × 10⁻⁸, ...": one for the methods."""
    found = checks(findings)
    if not found:
        return ""
    bad = failed(findings)
    if bad:
        labels = ", ".join(shown(c.get("label") or c["id"], 28) for c in bad[:3])
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        words = f"<b>The operator failed its self-check</b> for {labels}{more}"
    else:
        words = "The operator passed its self-check"
    answers = ", ".join(
        f"{name} {_answer([check.get(key) or {} for check in found])}"
        for key, name in _QUESTIONS.items()
    )
    return f"{words}: {answers}.{_approximation(findings)}"


def _approximation(findings: Findings) -> str:
    if not is_approximate(findings):
        return ""
    error = matrix_error(findings)
    how_far = (
        ""
        if error is None
        else f": along θ two step lengths differ by up to {digits.share(error, 2)} of a product"
    )
    return f" Products are central differences of gradients, an approximation{how_far}."


def _answer(checks_of_one: list[Mapping[str, Any]]) -> str:
    """The largest relative error of one question over all checkpoints, with its tolerance."""
    asked = [c for c in checks_of_one if c.get("relative_error") is not None]
    if not asked:
        status = next((str(c["status"]) for c in checks_of_one if c.get("status")), "not asked")
        return shown(status, 80)
    # A number that is not finite fails, and is the worst of all.
    worst = max(asked, key=lambda c: e if math.isfinite(e := c["relative_error"]) else math.inf)
    words = digits.number(worst["relative_error"], 2)
    if worst.get("tolerance") is not None:
        words += f" (allowed {digits.number(worst['tolerance'], 2)})"
    return words + (", failed" if any(c.get("status") == "failed" for c in asked) else "")
