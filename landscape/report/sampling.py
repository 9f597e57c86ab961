"""Sampling errors: what the probe data being a sample costs each number, beside that number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from landscape.findings import Findings
from landscape.report import digits
from landscape.report.cells import interval_title
from landscape.report.references import Method, spread
from landscape.report.text import escaped, shown


@dataclass(frozen=True)
class OverData:
    """The standard error over the data of one number, None where there is none, and its title."""

    error: float | None
    title: str


def of_measure(checkpoint: Mapping[str, Any], name: str) -> OverData:
    """The sampling error of a checkpoint's loss, gradient norm or trace; of others there is none.

    An eigenvalue's stands with the eigenvalue itself.
    """
    word = name.replace("_", "-")
    if word == "trace":
        trace = checkpoint.get("trace") or {}
        interval = trace.get("sampling_interval")
        return OverData(trace.get("sampling_error"), interval_title(interval, "over the data"))
    found = (checkpoint.get("sampling") or {}).get(word.replace("-", "_"))
    if word not in {"loss", "gradient-norm"} or not found:
        return OverData(None, "")
    title = interval_title(found.get("interval"), "over the data")
    if found.get("corrected") is not None:
        corrected = digits.number(found["corrected"])
        title += f"; without what sampling noise adds to its length: {corrected}"
    return OverData(found.get("standard_error"), title)


def caption(findings: Findings) -> str:
    """On how many rows of how many the errors over the data rest; whose could not be given."""
    entries = [c["sampling"] for c in findings.checkpoints if c.get("sampling")]
    words = []
    if entries:
        words.append(
            f"Pale bars: 95 % intervals over the data, from {_rows(entries)} in {_groups(entries)}."
        )
    skipped: dict[str, list[str]] = {}
    for checkpoint in findings.checkpoints:
        if checkpoint.get("sampling_skipped"):
            label = str(checkpoint.get("label") or checkpoint["id"])
            skipped.setdefault(str(checkpoint["sampling_skipped"]), []).append(label)
    for reason, labels in skipped.items():
        whose = (
            "any checkpoint"
            if len(labels) == len(findings.checkpoints)
            else ", ".join(shown(label, 24) for label in labels[:3])
            + (f" and {len(labels) - 3} more" if len(labels) > 3 else "")
        )
        words.append(f"No error over the data for {whose}: {shown(reason, 240)}.")
    return " ".join(words)


def method(findings: Findings) -> Method:
    entries = [c["sampling"] for c in findings.checkpoints if c.get("sampling")]
    text = (
        f"What the probe data being a sample adds, from {_rows(entries)} in "
        f"{_groups(entries)}: q<sub>b</sub> is a group’s loss, its vᵀH<sub>b</sub>v along an "
        "eigenvector, or its mean of such products over the probes of the trace, and w<sub>b</sub> "
        "its share of the loss terms. n rows out of N; without N the first factor is left out. "
        "Intervals are 95 % Student-t intervals, that of the trace with the error of its probes, "
        "that of the gradient for its length without what sampling noise adds. A sample’s largest "
        "eigenvalue tends to be too large, which no such error shows."
    )
    seeds = sorted({str(entry["seed"]) for entry in entries if entry.get("seed") is not None})
    if seeds:
        text += f" Seed {escaped(', '.join(seeds))}."
    return Method(
        "Error over the data",
        "se² = (1 − n/N) Σ<sub>b</sub> (G w<sub>b</sub> (q<sub>b</sub> − q))² / (G(G − 1)), "
        "b = 1, …, G groups of rows",
        text,
        ("cochran1977",),
    )


def _groups(entries: list[Mapping[str, Any]]) -> str:
    return f"{spread(digits.count, (e.get('num_groups') for e in entries))} random groups"


def _rows(entries: list[Mapping[str, Any]]) -> str:
    rows = f"{spread(digits.count, (e.get('num_rows') for e in entries))} rows"
    whole = [e["population"] for e in entries if e.get("population")]
    if not whole:
        return f"{rows} taken as draws from a distribution"
    return f"{rows} of {spread(digits.count, whole)}"
