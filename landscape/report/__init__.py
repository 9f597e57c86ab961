"""The report: one self-contained HTML page, and static figures for papers, from Findings alone."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_EXPORTS = {
    "write_report": "landscape.report.page",
    "render_report": "landscape.report.page",
    "write_figures": "landscape.report.static",
}

__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    # Lazy (PEP 562): plotly and matplotlib take half a second that --help does not have.
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)
