"""Plotly figures of one line or one surface, for `.plot()` in a notebook."""

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
