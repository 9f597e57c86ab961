"""What there is to draw: which checkpoints, runs and measures of the findings have data."""

from __future__ import annotations

from typing import Any

import numpy as np

from landscape.comparing import generalisation_gap
from landscape.findings import Findings
from landscape.report import measures, theme


def has_spectrum(findings: Findings) -> bool:
    return any(c.get("density") or c.get("eigenvalues") for c in findings.checkpoints)


def with_densities(findings: Findings) -> list[dict[str, Any]]:
    return [c for c in findings.checkpoints if f"density_{c['id']}_value" in findings.arrays]


def with_lines(findings: Findings) -> list[dict[str, Any]]:
    return [c for c in findings.checkpoints if f"line_{c['id']}_loss" in findings.arrays]


def with_surfaces(findings: Findings) -> list[str]:
    """Ids of the checkpoints that have a surface with at least one finite point."""
    return [
        str(c["id"])
        for c in findings.checkpoints
        if f"surface_{c['id']}_loss" in findings.arrays
        and np.isfinite(findings.arrays[f"surface_{c['id']}_loss"]).any()
    ]


def with_layers(findings: Findings) -> list[dict[str, Any]]:
    return [c for c in findings.checkpoints if c.get("layers")]


def has_history(findings: Findings, key: str) -> bool:
    return any(line.get(key) is not None for run in findings.runs for line in run["history"])


def with_signal(findings: Findings) -> list[str]:
    """The variants whose switching signal is a curve: known more than once in some run."""
    return [variant for variant, count in _signals(findings).items() if count > 1]


def with_one_signal(findings: Findings) -> list[str]:
    """The variants whose signal is known once a run: a number and no curve."""
    return [variant for variant, count in _signals(findings).items() if count == 1]


def _signals(findings: Findings) -> dict[str, int]:
    """How often the signal of a variant is known, in the run that knows it most often."""
    counts: dict[str, int] = {}
    for run in findings.runs:
        known = sum(line.get("signal") is not None for line in run["history"])
        if known:
            variant = theme.method_of(run)
            counts[variant] = max(counts.get(variant, 0), known)
    return counts


def has_scatter(findings: Findings, measure: str) -> bool:
    points = [
        c
        for c in findings.checkpoints
        if generalisation_gap(c) is not None and measures.value_of(c, measure)[0] is not None
    ]
    return len(points) >= 2


def compared_measures(findings: Findings) -> list[measures.Measure]:
    """What the comparison shows one panel a measure of: fit, gap, then flatness."""
    if len(findings.checkpoints) < 2:
        return []
    fit = [
        measures.named(findings, name)
        for name in ("test_accuracy", "test_loss", "gap")
        if any(measures.value_of(c, name)[0] is not None for c in findings.checkpoints)
    ]
    return [*fit, *measures.flatness_measures(findings)]
