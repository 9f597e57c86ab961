"""Dynamics at the weights: curvature along the gradient, parts of the Hessian, gradient noise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from landscape.findings import Findings
from landscape.report import digits, theme
from landscape.report.cells import (
    Cell,
    bounds_note,
    cell_html,
    framed,
    interval_title,
    label_of,
    number_cell,
    plus_minus,
    row_head,
    sort_head,
)
from landscape.report.drawing import Figure, figure_of, rounded, rows_axis, trace, value_axis
from landscape.report.measures import bound_of, bound_of_pair
from landscape.report.references import Method, spread
from landscape.report.text import escaped, shown

H, G, R = "λ<sub>max</sub>(H)", "λ<sub>max</sub>(G)", "λ<sub>max</sub>(H\u00a0−\u00a0G)"
ALONG, BATCH, EDGE = "uᵀHu", "batch λ<sub>max</sub>", "2/lr"

# What each kind of curvature looks like in the figure, whatever the checkpoint.
_LOOKS = {
    H: ("circle", theme.OKABE_ITO[0]),
    G: ("square", theme.OKABE_ITO[1]),
    R: ("diamond", theme.OKABE_ITO[2]),
    ALONG: ("triangle-up", theme.OKABE_ITO[3]),
    BATCH: ("x", theme.OKABE_ITO[4]),
}
_PARTS = {G: "ggn", R: "remainder"}
_ASIDE = {H: -0.17, G: 0.17}  # of its row: H and G are often nearly equal
# What could not be measured, as the findings name it and as the page does.
_SKIPPED = {
    "alignment": "curvature along the gradient",
    "lambda_max_ggn": "λmax of G",
    "lambda_max_remainder": "λmax of H − G",
    "gradient_noise": "gradient noise",
    "batch_lambda_max": "λmax of batches",
    "curvature_along_gradient": "curvature along the gradient",
    "cosine": "cosine with v₁",
    "edge": "2/lr",
}


def with_dynamics(findings: Findings) -> list[dict[str, Any]]:
    return [c for c in findings.checkpoints if c.get("dynamics")]


def has_edge(findings: Findings) -> bool:
    """Whether the line 2/lr is drawn here."""
    return any(c["dynamics"].get("edge") is not None for c in with_dynamics(findings))


def curvatures(findings: Findings, checkpoint: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """Each known curvature of a checkpoint with its error, by the name that the figure gives it."""
    entry = checkpoint["dynamics"]
    batch = entry.get("batch_lambda_max") or {}
    top = _top_pair(findings, checkpoint)
    found = {
        H: (top.get("value"), top.get("residual")),
        G: (entry.get("lambda_max_ggn"), entry.get("lambda_max_ggn_residual")),
        R: (entry.get("lambda_max_remainder"), entry.get("lambda_max_remainder_residual")),
        ALONG: (entry.get("curvature_along_gradient"), None),
        BATCH: (batch.get("value"), batch.get("standard_error")),
    }
    return {name: (v, error or 0.0) for name, (v, error) in found.items() if v is not None}


def bound_at(findings: Findings, checkpoint: Mapping[str, Any], name: str) -> str:
    """ "lower" where that curvature of a checkpoint is but a lower bound, else ""."""
    entry = checkpoint["dynamics"]
    if name == H:
        return bound_of_pair(_top_pair(findings, checkpoint))
    if name in _PARTS:
        key = f"lambda_max_{_PARTS[name]}"
        return bound_of_pair(
            {fact: entry.get(f"{key}_{fact}", True) for fact in ("converged", "confirmed")}
        )
    return bound_of(entry.get("batch_lambda_max") or {}) if name == BATCH else ""


def _top_pair(findings: Findings, checkpoint: Mapping[str, Any]) -> Mapping[str, Any]:
    """The largest eigenvalue of the Hessian; empty where another matrix's was measured."""
    matrix = (findings.document.get("settings") or {}).get("matrix") or "hessian"
    pairs = [p for p in checkpoint.get("eigenvalues") or [] if p.get("end", "top") == "top"]
    return pairs[0] if pairs and matrix == "hessian" else {}


def figure(findings: Findings) -> Figure:
    """One row a checkpoint: its curvatures by kind, and the line 2/lr where plain descent ends."""
    having = [c for c in with_dynamics(findings) if curvatures(findings, c)]
    traces: list[Any] = []
    every: list[float] = []
    for name, (marker, color) in _LOOKS.items():
        points = [
            (row, *known[name], bound_at(findings, checkpoint, name))
            for row, checkpoint in enumerate(having)
            if name in (known := curvatures(findings, checkpoint))
        ]
        if not points:
            continue
        every += [value for _, value, _, _ in points]
        open_too = any(bound for *_, bound in points)
        symbols = [f"{marker}-open" if bound else marker for *_, bound in points]
        traces.append(
            trace(
                "scatter",
                x=rounded([value for _, value, _, _ in points]),
                y=[row + _ASIDE.get(name, 0.0) for row, *_ in points],
                mode="markers",
                name=name,
                marker={"symbol": symbols if open_too else marker, "size": 10, "color": color},
                error_x={
                    "type": "data",
                    "array": rounded([error for _, _, error, _ in points]),
                    "visible": any(error for _, _, error, _ in points),
                    "color": color,
                    "thickness": 1.2,
                    "width": 4,
                },
                text=["≥" if bound else "=" for *_, bound in points],
                hovertemplate=f"{name} %{{text}} %{{x:.4~g}}<extra></extra>",
            )
        )
    edges = [
        (row, float(c["dynamics"]["edge"]))
        for row, c in enumerate(having)
        if c["dynamics"].get("edge") is not None
    ]
    if edges:
        every += [edge for _, edge in edges]
        traces.append(
            trace(
                "scatter",
                x=rounded([edge for _, edge in edges]),
                y=[row for row, _ in edges],
                mode="markers",
                name=EDGE,
                marker={
                    "symbol": "line-ns",
                    "size": 22,
                    "line": {"width": 2.4, "color": "#8a8f98"},
                },
                hovertemplate="2/lr = %{x:.4~g}<extra></extra>",
            )
        )
    figure = figure_of(traces, height=110 + 30 * len(having))
    labels = [str(c.get("label") or c["id"]) for c in having]
    figure["layout"].update(
        hovermode="closest",
        xaxis={**value_axis(every), "title": {"text": "curvature  (loss / parameter²)"}},
        yaxis={**rows_axis(labels, length=24), "showgrid": True},
    )
    return figure


def table(findings: Findings) -> str:
    """One row a checkpoint: every number of its dynamics with its error."""
    styles = theme.styles_of(findings)
    rows = []
    for checkpoint in with_dynamics(findings):
        entry = checkpoint["dynamics"]
        noise = entry.get("gradient_noise") or {}
        batch = entry.get("batch_lambda_max") or {}
        top = _top_pair(findings, checkpoint)
        cosine = entry.get("cosine")
        cells = [
            number_cell(entry.get("curvature_along_gradient")),
            Cell(digits.number(None if cosine is None else abs(cosine), 3), cosine),
            number_cell(
                top.get("value"),
                plus_minus(top.get("residual")),
                bound=bound_of_pair(top) if top else "",
            ),
            *(
                number_cell(
                    entry.get(f"lambda_max_{part}"),
                    plus_minus(entry.get(f"lambda_max_{part}_residual")),
                    bound=bound_at(findings, checkpoint, name),
                )
                for name, part in _PARTS.items()
            ),
            number_cell(
                noise.get("value"),
                plus_minus(noise.get("standard_error")),
                plus_minus(noise.get("sampling_error"), "data"),
                bound=bound_of(noise),
                title=interval_title(noise.get("interval"), "over the data"),
            ),
            _scale(noise),
            number_cell(
                batch.get("value"),
                plus_minus(batch.get("standard_error")),
                _batch_of(batch),
                bound=bound_of(batch),
                title=interval_title(batch.get("interval"), "over batches"),
            ),
            number_cell(entry.get("edge")),
        ]
        label = label_of(checkpoint, styles)
        rows.append(f"<tr>{row_head(label)}{''.join(map(cell_html, cells))}</tr>")
    heads = [
        sort_head("checkpoint"),
        sort_head(ALONG, hint="curvature along the gradient, u = g/‖g‖"),
        sort_head("|cos(g,\u00a0v<sub>1</sub>)|", hint="gradient and top eigenvector"),
        sort_head(H, hint="± residual"),
        sort_head(G, hint="Gauss–Newton part, ± residual"),
        sort_head(R, hint="remainder, ± residual"),
        sort_head("tr S", hint="gradient noise, ± standard error"),
        sort_head("noise scale", hint="in samples"),
        sort_head(BATCH, hint="± standard error over batches"),
        sort_head(EDGE),
    ]
    note = (
        "u is the gradient’s direction, v<sub>1</sub> the top eigenvector, S the covariance of the "
        "gradients of single samples. The noise scale is the batch, in samples, at which noise is "
        "as long as the gradient; there is none where the gradient does not stand out of it. 2/lr, "
        "corrected for momentum and weight decay as in the training, is the curvature beyond which "
        "plain descent is unstable."
    )
    marks = bounds_note("".join(rows))
    return framed(
        "Dynamics", "table-dynamics", heads, rows, note + marks, kind="sortable dense"
    ) + skipped(findings)


def _batch_of(batch: Mapping[str, Any]) -> str:
    """The size of the batches, and what was wanted where the probed data are fewer."""
    size, wanted = batch.get("batch_size"), batch.get("wanted")
    if not size:
        return ""
    more = f", {digits.count(wanted)} wanted" if wanted and wanted > size else ""
    return f"{digits.count(size)} samples{more}"


def _scale(noise: Mapping[str, Any]) -> Cell:
    if not noise:
        return Cell(digits.MISSING)
    if noise.get("noise_scale") is None:
        return Cell("not defined", None, ("within its noise",))
    return Cell(digits.number(noise["noise_scale"], 3), noise["noise_scale"])


def skipped(findings: Findings) -> str:
    """What could not be measured, for whom and why, as a list; "" where everything was."""
    groups: dict[tuple[str, str], list[str]] = {}
    for checkpoint in with_dynamics(findings):
        for name, reason in (checkpoint["dynamics"].get("skipped") or {}).items():
            label = str(checkpoint.get("label") or checkpoint["id"])
            groups.setdefault((str(name), str(reason)), []).append(label)
    items = []
    for (name, reason), labels in groups.items():
        whose = ", ".join(shown(label, 28) for label in labels[:3])
        if len(labels) == len(findings.checkpoints) > 1:
            whose = "any checkpoint"
        elif len(labels) > 3:
            whose += f" and {len(labels) - 3} more"
        what = shown(_SKIPPED.get(name, name), 48).replace("λmax", "λ<sub>max</sub>")
        items.append(f"<li><b>{what}</b> was not measured for {whose}: {shown(reason, 300)}</li>")
    return f'<ul class="verdict">{"".join(items)}</ul>' if items else ""


def caption(findings: Findings) -> str:
    """What the figure shows, with the budgets of what was sampled."""
    entries = [c["dynamics"] for c in with_dynamics(findings)]
    words = (
        "Bars: residuals, for a batch the standard error over batches. H − G is what the "
        "Gauss–Newton matrix leaves out of the Hessian."
    )
    batches = [e["batch_lambda_max"] for e in entries if e.get("batch_lambda_max")]
    if batches:
        count = spread(digits.count, (b.get("num_batches") for b in batches))
        size = spread(digits.count, (b.get("batch_size") for b in batches))
        words += f" A batch: mean over {count} random ones of {size} samples, never below H’s own."
    if has_edge(findings):
        words += " Grey ticks: 2/lr."
    if any(
        bound_at(findings, c, name)
        for c in with_dynamics(findings)
        for name in curvatures(findings, c)
    ):
        words += " Open: a lower bound, not converged or not confirmed."
    return words


def methods(findings: Findings) -> list[Method]:
    entries = [c["dynamics"] for c in with_dynamics(findings)]
    seed = (findings.document.get("settings") or {}).get("seed")
    seeded = "" if seed is None else f" Seed {escaped(seed)}."
    found = []
    if any(e.get("curvature_along_gradient") is not None for e in entries):
        found.append(
            Method(
                "Curvature along the gradient",
                "uᵀHu, u = g/‖g‖; |cos(g, v₁)|",
                "One gradient and one product, exact on the probe data. uᵀHu = λ<sub>max</sub> "
                "where the gradient lies along the top eigenvector; an eigenvector has no sign.",
            )
        )
    if any(e.get("lambda_max_ggn") is not None for e in entries):
        found.append(
            Method(
                "Gauss–Newton part and remainder",
                "H = G + R, G = (1/N) Σ<sub>i</sub> J<sub>i</sub>ᵀ (∂²ℓ<sub>i</sub>/∂f²) "
                "J<sub>i</sub>, R = (1/N) Σ<sub>i</sub> Σ<sub>c</sub> (∂ℓ<sub>i</sub>/∂f<sub>c"
                "</sub>) ∇²f<sub>ic</sub>",
                "The largest eigenvalue of each by Lanczos, on the same data, to the tolerance of "
                f"the spectrum. R is formed on its own, so nothing cancels.{seeded}",
                ("schraudolph2002",),
            )
        )
    if any(e.get("gradient_noise") for e in entries):
        noise = [e["gradient_noise"] for e in entries if e.get("gradient_noise")]
        groups = spread(digits.count, (n.get("num_groups") for n in noise))
        kinds = {str(n.get("kind")) for n in noise}
        how = "single samples" if kinds == {"exact"} else "random groups of samples"
        found.append(
            Method(
                "Gradient noise",
                "tr S, S = (1/(n − 1)) Σ<sub>i</sub> (g<sub>i</sub> − g)(g<sub>i</sub> − g)ᵀ; "
                "noise scale = tr S / (‖g‖² − tr S/n)",
                f"From {groups} gradients of {how}, unbiased. A batch of B samples has a gradient "
                f"of covariance S/B. Kind: {escaped(', '.join(sorted(kinds)))}.{seeded}",
                ("mccandlish2018",),
            )
        )
    batches = [e["batch_lambda_max"] for e in entries if e.get("batch_lambda_max")]
    if batches:
        clipped = any((b.get("wanted") or 0) > (b.get("batch_size") or 0) for b in batches)
        found.append(
            Method(
                "Curvature of a batch",
                "E<sub>B</sub> λ<sub>max</sub>(H<sub>B</sub>)",
                "The mean over random batches of the training’s size; never below "
                "λ<sub>max</sub>(H), for the maximum of a mean is at most the mean of the maxima."
                + (" Where fewer samples are probed, all of them: λ<sub>max</sub>(H)." * clipped)
                + seeded,
            )
        )
    return found
