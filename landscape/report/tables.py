"""The report's tables: HTML whose cells carry the full number, and the same rows as CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from landscape.findings import Findings
from landscape.report import digits, measures, sampling, theme
from landscape.report.cells import (
    MARKS,
    Cell,
    bounds_note,
    cell_html,
    framed,
    head,
    interval_title,
    number_cell,
    plus_minus,
    row_head,
    sort_head,
    swatch,
    symbol,
)
from landscape.report.measures import Measure
from landscape.report.text import clean, shown


@dataclass(frozen=True)
class Column:
    """One column: its head in HTML, the cell of a checkpoint, and which end of it is the best."""

    head: str
    cell: Callable[[Mapping[str, Any]], Cell]
    measure: Measure | None = None
    hint: str = ""


def checkpoint_table(findings: Findings) -> str:
    """One row a checkpoint; sortable, the best value of each column marked in words."""
    styles = theme.styles_of(findings)
    columns = _columns(findings)
    rows = [(c, [column.cell(c) for column in columns]) for c in findings.checkpoints]
    best = [
        best_row([cells[i].value for _, cells in rows], column.measure)
        for i, column in enumerate(columns)
    ]
    body = []
    for number, (checkpoint, cells) in enumerate(rows):
        style = styles[str(checkpoint["id"])]
        label = shown(checkpoint.get("label") or checkpoint["id"], 40)
        parts = [f'<th scope="row">{swatch(style)}{label}</th>']
        for i, (cell, column) in enumerate(zip(cells, columns, strict=True)):
            word = column.measure.best if column.measure and best[i] == number else ""
            parts.append(cell_html(cell, word))
        body.append(f"<tr>{''.join(parts)}</tr>")
    heads = [sort_head("checkpoint"), *(sort_head(c.head, hint=c.hint) for c in columns)]
    return framed("Checkpoints", "table-checkpoints", heads, body, _checkpoint_note(body))


def _checkpoint_note(body: Sequence[str]) -> str:
    shown_rows = "".join(body)
    note = (
        "A head sorts by its column. <b>best</b> and <b>flattest</b> mark a column’s lowest value "
        "(for accuracies the highest); small type is the residual of an eigenvalue and the "
        "standard error of an estimate."
    )
    if "data ±" in shown_rows:
        note += (
            " “data ±” is the standard error from the probe data being a sample; its 95 % interval "
            "shows under the pointer."
        )
    return note + bounds_note(shown_rows)


def best_row(values: Sequence[float | str | None], measure: Measure | None) -> int | None:
    """Which of several values is the best; None for one value, a tie, or no better direction."""
    if measure is None or measure.better is None:
        return None
    finite = [
        (float(value), row)
        for row, value in enumerate(values)
        if isinstance(value, (int, float)) and math.isfinite(value)
    ]
    if len(finite) < 2:
        return None
    finite.sort(reverse=measure.better == "higher")
    return None if finite[0][0] == finite[1][0] else finite[0][1]


def _columns(findings: Findings) -> list[Column]:
    checkpoints = findings.checkpoints
    columns = []
    for name in ("loss", "accuracy", "test_loss", "test_accuracy", "gap", "gradient_norm"):
        if any(measures.value_of(c, name)[0] is not None for c in checkpoints):
            columns.append(_measured(measures.named(findings, name)))
    top = max((len(_pairs(c, "top")) for c in checkpoints), default=0)
    for i in range(top):
        measure = measures.measure_of("lambda-max") if i == 0 else None
        columns.append(Column(f"λ<sub>{i + 1}</sub>", _eigenvalue("top", i), measure, "± residual"))
    if any(_pairs(c, "bottom") for c in checkpoints):
        columns.append(Column("λ<sub>min</sub>", _eigenvalue("bottom", -1), None, "± residual"))
    if any(c.get("trace") for c in checkpoints):
        columns.append(_measured(measures.named(findings, "trace")))
    for name in measures.sharpness_names(findings):
        columns.append(_measured(measures.named(findings, name)))
    return columns


def _pairs(checkpoint: Mapping[str, Any], end: str) -> list[dict[str, Any]]:
    pairs = checkpoint.get("eigenvalues") or []
    return [pair for pair in pairs if pair.get("end", "top") == end]


def _eigenvalue(end: str, i: int) -> Callable[[Mapping[str, Any]], Cell]:
    def cell(checkpoint: Mapping[str, Any]) -> Cell:
        pairs = _pairs(checkpoint, end)
        if i >= len(pairs):
            return Cell(digits.MISSING)
        pair = pairs[i]
        return number_cell(
            pair["value"],
            plus_minus(pair.get("residual")),
            plus_minus(pair.get("sampling_error"), "data"),
            _unsettled(pair),
            bound=measures.bound_of_pair(pair),
            title=interval_title(pair.get("sampling_interval"), "over the data"),
        )

    return cell


def _unsettled(pair: Mapping[str, Any]) -> str:
    if not pair.get("converged", True):
        return "not converged"
    return "" if pair.get("confirmed", True) else "not confirmed"


def _measured(measure: Measure) -> Column:
    def cell(checkpoint: Mapping[str, Any]) -> Cell:
        value, error = measures.value_of(checkpoint, measure.name)
        if value is None:
            return Cell(digits.MISSING)
        if measure.percent:
            notes = (f"± {digits.share(error)}",) if error else ()
            return Cell(digits.share(value), value, notes)
        over_data = sampling.of_measure(checkpoint, measure.name)
        entry = (checkpoint.get("sharpness") or {}).get(measure.name) or {}
        return number_cell(
            value,
            plus_minus(error),
            plus_minus(over_data.error, "data"),
            bound=measures.bound_of(entry),
            title=over_data.title,
        )

    return Column(symbol(measure.title), cell, measure)


# Methods over seeds.


def method_table(findings: Findings, comparison: Mapping[str, Any], *, name: str) -> str:
    """Rows are measures, columns are methods: mean and 95 % interval, paired difference below."""
    methods = comparison["methods"]
    heads = [head("measure"), *(head(h) for h in _method_heads(findings, comparison))]
    body = []
    for word in comparison["measures"]:
        measure = measures.named(findings, word)
        cells = _method_cells(findings, methods, word, measure)
        if cells is not None:
            body.append(f"<tr>{row_head(symbol(measure.title))}{''.join(cells)}</tr>")
    note = _method_note(comparison) + bounds_note("".join(body))
    return framed("Methods", name, heads, body, note, kind="methods")


def method_rows(findings: Findings, comparison: Mapping[str, Any], *, name: str) -> str:
    """The same numbers for many methods: a row each, sortable by every measure."""
    methods = comparison["methods"]
    heads, columns = [sort_head("variant")], []
    for word in comparison["measures"]:
        measure = measures.named(findings, word)
        cells = _method_cells(findings, methods, word, measure)
        if cells is not None:
            heads.append(sort_head(symbol(measure.title)))
            columns.append(cells)
    body = [
        f"<tr>{row_head(name_of_row)}{''.join(cells)}</tr>"
        for name_of_row, *cells in zip(
            _method_heads(findings, comparison, brief=True), *columns, strict=True
        )
    ]
    note = f"A head sorts by its column. {_method_note(comparison)}{bounds_note(''.join(body))}"
    return framed("Methods", name, heads, body, note, kind="sortable dense")


def _method_heads(
    findings: Findings, comparison: Mapping[str, Any], *, brief: bool = False
) -> list[str]:
    looks = {style.method: style for style in theme.styles_of(findings).values()}
    heads = []
    for entry in comparison["methods"]:
        method = str(entry["method"])
        mark = swatch(looks[method]) if method in looks else ""
        notes = [f"{entry['num_seeds']} seed{'s' if entry['num_seeds'] != 1 else ''}"]
        if brief and entry["num_seeds"] == 1:
            notes = []
        if method == str(comparison.get("reference")):
            notes.append("reference")
        if entry.get("base"):
            notes.append(shown(entry["base"], 40))
        note = f'<span class="note">{", ".join(notes)}</span>' if notes else ""
        heads.append(f"{mark}{shown(method, 28)}{note}")
    return heads


def _method_cells(
    findings: Findings, methods: Sequence[Mapping[str, Any]], word: str, measure: Measure
) -> list[str] | None:
    """One measure of every method; None where no method has it."""
    values = [(entry.get("values") or {}).get(word) or {} for entry in methods]
    if all(value.get("mean") is None for value in values):
        return None
    best = best_row([value.get("mean") for value in values], measure)
    cells = []
    for i, (entry, value) in enumerate(zip(methods, values, strict=True)):
        own = [c for c in findings.checkpoints if theme.method_of(c) == str(entry["method"])]
        bound = measures.common_bound(own, word)
        cell = Cell(
            mean_and_interval(value, replace(measure, bound=bound)),
            value.get("mean"),
            tuple(
                filter(
                    None,
                    [_difference((entry.get("paired") or {}).get(word), measure), _missing(value)],
                )
            ),
        )
        cells.append(cell_html(cell, measure.best if i == best else ""))
    return cells


def _missing(summary: Mapping[str, Any]) -> str:
    """That a mean is over fewer seeds than its method has."""
    missing = summary.get("num_missing")
    return f"without {digits.count(missing)} of its seeds" if missing else ""


def _method_note(comparison: Mapping[str, Any]) -> str:
    reference = shown(comparison.get("reference") or "", 28)
    return (
        "Mean over seeds with its 95 % Student-t interval in brackets. Δ is the mean difference to "
        f"<b>{reference}</b> over the same seeds, with its own interval. <b>best</b> and "
        "<b>flattest</b> mark the best mean, whether or not intervals overlap."
    )


def mean_and_interval(summary: Mapping[str, Any], measure: Measure) -> str:
    """ "85.3 [84.1, 86.5] %": in per cent where the measure is a share."""
    mean, interval = summary.get("mean"), summary.get("interval")
    factor = 100 if measure.percent else 1
    if mean is None:
        return digits.MISSING
    ends = None if not interval else [factor * end for end in interval]
    text = digits.with_interval(factor * mean, ends) + (" %" if measure.percent else "")
    return MARKS[measure.bound] + text


def _difference(paired: Mapping[str, Any] | None, measure: Measure) -> str:
    if not paired or paired.get("difference") is None:
        return ""
    factor = 100 if measure.percent else 1
    interval = paired.get("interval")
    ends = None if not interval else [factor * end for end in interval]
    text = digits.with_interval(factor * paired["difference"], ends, 3)
    sign = "" if text.startswith(("−", "(−")) or paired["difference"] <= 0 else "+"
    return f"Δ {sign}{text}" + (" points" if measure.percent else "")


def training_comparison(comparison: Mapping[str, Any]) -> dict[str, Any]:
    """The content of comparison.json in the form of a probe's comparison."""
    variants = comparison.get("variants") or []
    names = dict.fromkeys(
        key
        for entry in variants
        for key, value in entry.items()
        if isinstance(value, Mapping) and "mean" in value
    )
    if not any((entry.get("refresh_gradients") or {}).get("mean") for entry in variants):
        names.pop("refresh_gradients", None)
    rho = comparison.get("sharpness_rho")
    words = {name: name for name in names}
    if rho is not None and "sharpness" in words:
        words["sharpness"] = f"worst-case:rho={rho:g}"
    bases = [entry.get("base") for entry in variants]
    common = max(bases, key=bases.count, default=None)
    return {
        "measures": list(words.values()),
        "reference": comparison.get("reference"),
        "methods": [
            {
                "method": entry["variant"],
                "num_seeds": len(entry.get("seeds") or []),
                "base": None if entry.get("base") == common else entry.get("base"),
                "values": {words[name]: entry[name] for name in words if entry.get(name)},
                "paired": _renamed(entry.get("paired") or {}, words) or None,
            }
            for entry in variants
        ],
    }


def _renamed(values: Mapping[str, Any], words: Mapping[str, str]) -> dict[str, Any]:
    return {words.get(name, name): value for name, value in values.items()}


# Smaller tables.


def opinion_table(findings: Findings) -> str:
    """Our eigenvalues and trace beside the second opinion's, one row a quantity."""
    rows = []
    for checkpoint in findings.checkpoints:
        opinion = checkpoint.get("second_opinion")
        if not opinion:
            continue
        label = shown(checkpoint.get("label") or checkpoint["id"], 32)
        theirs = opinion.get("eigenvalues") or []
        ours = _pairs(checkpoint, "top")
        for i, value in enumerate(theirs):
            own = ours[i]["value"] if i < len(ours) else None
            residual = ours[i].get("residual") if i < len(ours) else None
            rows.append(
                f'<tr><th scope="row">{label}</th><td>λ<sub>{i + 1}</sub></td>'
                f"<td>{digits.with_error(own, residual)}</td><td>{digits.number(value)}</td>"
                f"<td>{_relative(own, value)}</td></tr>"
            )
        if opinion.get("trace") is not None:
            trace = checkpoint.get("trace") or {}
            own, error = trace.get("value"), trace.get("standard_error")
            text = digits.with_error(opinion["trace"], opinion.get("trace_standard_error"))
            rows.append(
                f'<tr><th scope="row">{label}</th><td>tr H</td>'
                f"<td>{digits.with_error(own, error)}</td><td>{text}</td>"
                f"<td>{_relative(own, opinion['trace'])}</td></tr>"
            )
    source = next(c["second_opinion"] for c in findings.checkpoints if c.get("second_opinion"))
    theirs_head = shown(source.get("source") or "second opinion", 28)
    words = ("checkpoint", "quantity", "this toolkit", theirs_head, "difference")
    heads = [head(word) for word in words]
    return framed("Second opinion", "table-opinion", heads, rows, "", kind="opinion")


def _relative(own: float | None, other: float | None) -> str:
    if own is None or other is None or not own or not math.isfinite(own + other):
        return digits.MISSING
    return f"{digits.number(100 * (other - own) / abs(own), 2)} %"


def comparison_csv(findings: Findings) -> str:
    """`findings.table()` as CSV with full digits, for the copy and download buttons."""
    rows = findings.table()
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\r\n")
    columns = list(rows[0]) if rows else []
    writer.writerow([_csv_word(column) for column in columns])
    for row in rows:
        writer.writerow([_csv_word(row[column]) for column in columns])
    return buffer.getvalue()


def _csv_word(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, (int, float)):
        return repr(value)
    text = clean(value)
    # A spreadsheet runs a cell that begins so as a formula.
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text
