"""Plotly figures of one line, surface, density or training, for `.plot()` in a notebook."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def line_figure(t: Floats, loss: Floats, *, center_loss: float) -> Any:
    """The loss along a line; a gap where it was not finite, a marker at the centre."""
    import plotly.graph_objects as go

    figure = go.Figure(
        [
            go.Scatter(x=t, y=loss, mode="lines", name="loss", connectgaps=False),
            go.Scatter(x=[0.0], y=[center_loss], mode="markers", name="centre", marker_symbol="x"),
        ]
    )
    return figure.update_layout(
        xaxis_title="t (directions)", yaxis_title="loss", template="simple_white"
    )


def surface_figure(
    x: Floats, y: Floats, loss: Floats, *, evaluated: NDArray[np.bool_] | None
) -> Any:
    """Contours of the loss, z[y, x]; a hole where it was not finite; evaluated points as dots.

    Colours go by log10 of the loss where it is positive everywhere, because a basin and its walls
    differ by orders of magnitude; the figure's hover text has the loss itself.
    """
    import plotly.graph_objects as go

    positive = bool(np.nanmin(loss) > 0)
    figure = go.Figure(
        go.Contour(
            x=x,
            y=y,
            z=np.log10(loss) if positive else loss,
            customdata=loss,
            colorscale="Cividis",
            colorbar_title="log10 loss" if positive else "loss",
            connectgaps=False,
            hovertemplate="x %{x:.3g}, y %{y:.3g}<br>loss %{customdata:.4g}<extra></extra>",
        )
    )
    if evaluated is not None:
        rows, columns = np.nonzero(evaluated)
        figure.add_scatter(
            x=x[columns],
            y=y[rows],
            mode="markers",
            name="evaluated",
            marker={"size": 2, "color": "white"},
            hoverinfo="skip",
        )
    return figure.update_layout(
        xaxis_title="x (first direction)",
        yaxis_title="y (second direction)",
        template="simple_white",
    )


def density_figure(grid: Floats, density: Floats, *, band: Floats | None) -> Any:
    """The spectral density on a log axis, with its 95 % band where there is one.

    The axis ends five decades below the peak: a Gaussian kernel's tails say nothing further down.
    """
    import plotly.graph_objects as go

    peak = float(density.max())
    floor = 1e-5 * peak
    figure = go.Figure()
    if band is not None:
        lower, upper = np.maximum(band, floor)
        figure.add_scatter(x=grid, y=lower, mode="lines", line_width=0, showlegend=False)
        figure.add_scatter(
            x=grid, y=upper, mode="lines", line_width=0, fill="tonexty", name="95 % band"
        )
    figure.add_scatter(x=grid, y=np.maximum(density, floor), mode="lines", name="density")
    figure.update_yaxes(
        type="log", range=[np.log10(floor), np.log10(2 * peak)], title="density (1 / eigenvalue)"
    )
    return figure.update_layout(
        xaxis_title="eigenvalue (loss / parameter²)", template="simple_white"
    )


def curvature_figure(rows: Sequence[Mapping[str, Any]]) -> Any:
    """lambda_max over the steps of a training with its edges of stability, and below it the loss.

    Open markers are lower bounds: eigenvalues that were not converged and confirmed. An edge has a
    gap where it was not known.

    Args:
        rows: of `CurvatureMonitor.table()`.
    """
    from plotly.subplots import make_subplots

    steps = [row["step"] for row in rows]
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, row_heights=[0.7, 0.3])
    sure = [row["converged"] and row["confirmed"] for row in rows]
    figure.add_scatter(
        x=steps,
        y=[row["lambda_max"] for row in rows],
        error_y={"type": "data", "array": [row["residual"] for row in rows]},
        mode="lines+markers",
        marker_symbol=["circle" if known else "circle-open" for known in sure],
        name="λmax ± residual" + ("" if all(sure) else " (open: a lower bound)"),
        row=1,
        col=1,
    )
    heuristic = any(row["sam_edge_heuristic"] for row in rows)
    for key, name, dash in (
        ("edge", "edge of SGD (2/lr)", "dash"),
        ("sam_edge", "edge of SAM" + (" (heuristic)" if heuristic else ""), "dot"),
    ):
        edges = [row[key] for row in rows]
        if any(edge is not None for edge in edges):
            figure.add_scatter(
                x=steps, y=edges, mode="lines", line_dash=dash, name=name, row=1, col=1
            )
    losses = [row["loss"] for row in rows]
    figure.add_scatter(x=steps, y=losses, mode="lines+markers", name="loss", row=2, col=1)
    figure.update_xaxes(title="step", row=2, col=1)
    figure.update_yaxes(title="λmax (loss / parameter²)", row=1, col=1)
    figure.update_yaxes(title="loss", row=2, col=1)
    return figure.update_layout(template="simple_white")
