"""Plotly figures of one line, surface or density, for `.plot()` in a notebook."""

from __future__ import annotations

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
