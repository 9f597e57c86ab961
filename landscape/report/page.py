"""write_report: Findings as one HTML file that opens from disk, offline, and can be mailed."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from landscape.findings import Findings, write_file
from landscape.report import captions, self_check, theme
from landscape.report.embedding import embedded
from landscape.report.sections import SECTIONS, Page
from landscape.report.text import clean, cut, escaped, shown
from landscape.report.warnings import grouped_warnings

POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
)


def write_report(findings: Findings, path: str | Path) -> Path:
    """Writes the report of the findings and returns its path.

    The file is whole or absent: it is written under a temporary name and renamed. Equal findings
    give equal bytes (with the same plotly and matplotlib).

    Raises:
        ValueError: the findings cannot be stored (see `save_findings`).
        OSError: the disk is full or the folder cannot be written.
    """
    return write_file(path, render_report(findings).encode())


def render_report(findings: Findings) -> str:
    """The report as HTML."""
    page = Page(findings)
    sections = [section for build in SECTIONS for section in build(page)]
    contents = "".join(
        f'<li><a href="#{section.name}">{section.title}</a></li>' for section in sections
    )
    body = "".join(
        f'<section id="{s.name}" aria-labelledby="{s.name}-heading">'
        f'<h2 id="{s.name}-heading">{s.title}</h2>{s.html}</section>'
        for s in sections
    )
    from plotly.offline import get_plotlyjs

    return _TEMPLATE.format(
        policy=POLICY,
        title=escaped(cut(_title(findings), 80)),
        variables=theme.css_variables(),
        style=_source("page.css"),
        header=_header(findings),
        contents=contents,
        body=body,
        plotly=get_plotlyjs(),
        data=embedded(findings, page.drawn),
        script=_source("page.js"),
    )


def _title(findings: Findings) -> str:
    return clean(findings.document.get("title") or "Loss landscape")


def _header(findings: Findings) -> str:
    document = findings.document
    chips = [
        "Training" if document.get("kind") == "training" else "Probe",
        '<span class="chip good">Complete</span>'
        if document.get("complete", True)
        else '<span class="chip warn">Partial result</span>',
    ]
    if document.get("quick"):
        chips.append('<span class="chip warn">Quick: small budgets</span>')
    chips += self_check.chips(findings)
    marks = "".join(c if c.startswith("<") else f'<span class="chip">{c}</span>' for c in chips)
    return (
        f'<p class="eyebrow">Loss landscape report</p><h1>{shown(_title(findings), 80)}</h1>'
        f'<p class="lead">{captions.lead(findings)}</p><p class="chips">{marks}</p>'
        f"{_warnings(findings)}"
    )


def _warnings(findings: Findings) -> str:
    """Everything that qualifies the numbers, before any of them."""
    groups = grouped_warnings(findings)
    if not groups:
        return (
            '<p class="no-warnings">No warnings: nothing here is known to qualify the numbers.</p>'
        )
    items = []
    for group in groups:
        owner = group.owner(len(findings.checkpoints))
        whose = f"<b>{shown(owner, 160)}:</b> " if owner else ""
        items.append(f"<li>{whose}{shown(group.message, 400)}</li>")
    head = "1 warning" if len(items) == 1 else f"{len(items)} warnings"
    return (
        f'<div class="warnings" role="note" aria-label="Warnings"><h2>{head}</h2>'
        f"<ul>{''.join(items)}</ul></div>"
    )


def _source(name: str) -> str:
    return (resources.files(__package__) / name).read_text(encoding="utf-8")


_TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>
{variables}{style}</style>
</head>
<body>
<a class="skip" href="#main">Skip to the content</a>
<div class="layout">
<nav aria-label="Contents"><p class="nav-title">Contents</p><ol>{contents}</ol>
<button type="button" id="theme" aria-pressed="false">Dark theme</button></nav>
<main id="main">
<header>{header}</header>
<noscript><p class="warnings">The figures need JavaScript; tables and texts do not.</p></noscript>
{body}
<footer>Made by loss-landscape-toolkit. This file is complete: it loads nothing.</footer>
</main>
</div>
<script>window.PlotlyConfig = {{MathJaxConfig: "local"}};</script>
<script>{plotly}</script>
{data}<script>
{script}</script>
</body>
</html>
"""
