"""The diagonal of the curvature matrix: its spread over parameters, with the error of an entry."""

from __future__ import annotations

from typing import Any

from landscape.findings import Findings
from landscape.report import digits, theme
from landscape.report.cells import (
    Cell,
    cell_html,
    framed,
    label_of,
    number_cell,
    row_head,
    sort_head,
)
from landscape.report.measures import matrix_letter
from landscape.report.references import Method, spread
from landscape.report.text import escaped


def with_diagonal(findings: Findings) -> list[dict[str, Any]]:
    return [c for c in findings.checkpoints if c.get("diagonal")]


def table(findings: Findings) -> str:
    """One row a checkpoint: the ends and the mean of the entries; "" where none was estimated."""
    styles = theme.styles_of(findings)
    rows = []
    for checkpoint in with_diagonal(findings):
        entry = checkpoint["diagonal"]
        negative = entry.get("negative_share")
        cells = [
            *(number_cell(entry.get(key)) for key in ("min", "mean", "max")),
            Cell(digits.share(negative), negative),
            number_cell(entry.get("median_standard_error")),
            number_cell(entry.get("num_probes")),
        ]
        label = label_of(checkpoint, styles)
        rows.append(f"<tr>{row_head(label)}{''.join(map(cell_html, cells))}</tr>")
    if not rows:
        return ""
    words = ("diagonal of", "least", "mean", "largest", "below zero", "median ±", "probes")
    note = (
        "Estimates of the matrix’s own entries, one a parameter; “median ±” is the median of their "
        "standard errors. Ends and the share below zero are those of noisy estimates, and wider "
        "than the true ones."
    )
    return framed("Diagonals", "table-diagonals", [sort_head(w) for w in words], rows, note)


def method(findings: Findings) -> Method:
    letter = matrix_letter(findings)
    probes = spread(
        digits.count, (c["diagonal"].get("num_probes") for c in with_diagonal(findings))
    )
    seed = (findings.document.get("settings") or {}).get("seed")
    text = (
        f"{probes} probes of random signs, a product each, known eigenpairs taken out exactly. The "
        "errors of different entries are correlated."
    )
    if seed is not None:
        text += f" Seed {escaped(seed)}."
    formula = (
        f"{letter}<sub>ii</sub> ≈ (1/m) Σ<sub>j</sub> v<sub>ji</sub> ({letter}v<sub>j</sub>)"
        "<sub>i</sub>, v<sub>j</sub> ∈ {±1}ᴾ"
    )
    return Method("Diagonal", formula, text, ("bekas2007",))
