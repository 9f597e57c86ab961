"""The sections of the page: what stands in each, in the report's order, where there are data."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from landscape.findings import Findings
from landscape.report import (
    available,
    captions,
    connection,
    correlation,
    curves,
    diagonal,
    digits,
    dynamics,
    eigenvalue_map,
    figures,
    layers,
    measures,
    planes,
    tables,
    theme,
    topology,
    trajectory,
)
from landscape.report.cells import label_of, line_sample, symbol
from landscape.report.drawing import Figure
from landscape.report.embedding import embedded_arrays
from landscape.report.methods import methods_html
from landscape.report.static_planes import surface_png
from landscape.report.text import clean, cut, escaped, shown


@dataclass(frozen=True)
class Section:
    """One part of the page: its anchor, its heading and its content in HTML."""

    name: str
    title: str
    html: str


@dataclass
class Page:
    """The findings being rendered, and the figures that the rendered sections have asked for."""

    findings: Findings
    drawn: dict[str, Figure] = field(default_factory=dict)

    def plot(self, name: str, figure: Figure, label: str) -> str:
        """The place of a figure, under the id `plot-NAME`; the page's script draws it there."""
        self.drawn[name] = figure
        height = figure["layout"]["height"]
        return (
            f'<div class="plot" id="plot-{name}" role="img" aria-label="{escaped(label)}" '
            f'style="height:{height}px"></div>'
        )

    def figure(self, name: str, figure: Figure, *, title: str, caption: str) -> str:
        """A figure with its title above and its caption, in HTML, below."""
        words = clean(_words(title))
        below = f"<figcaption>{caption}</figcaption>" if caption else ""
        return (
            f'<figure><div class="figure-head"><h3>{title}</h3>{_save(name, words)}</div>'
            f"{self.plot(name, figure, words)}{below}</figure>"
        )


def _save(name: str, words: str) -> str:
    return (
        f'<button type="button" class="save" data-save="{name}" '
        f'aria-label="Save figure: {escaped(words)}">Save</button>'
    )


def _words(markup: str) -> str:
    """A title without its markup, for a label that is read aloud."""
    return html.unescape(re.sub(r"<[^>]*>", "", markup))


def _comparison(page: Page) -> list[Section]:
    findings = page.findings
    comparison = findings.document.get("comparison")
    parts = []
    if comparison and any(entry["num_seeds"] > 1 for entry in comparison["methods"]):
        parts.append(captions.verdict(findings, comparison))
        parts.append(tables.method_table(findings, comparison, name="table-methods"))
        panels = available.compared_measures(findings)
        parts.append(
            '<p class="hint">Small markers are seeds, large ones the mean with its 95 % interval: '
            'the numbers of the table.</p><div class="grid three">'
            + "".join(
                page.figure(
                    f"comparison-{i}",
                    figures.comparison(findings, measure.name),
                    title=symbol(measure.title),
                    caption="",
                )
                for i, measure in enumerate(panels)
            )
            + "</div>"
        )
        parts.append("<h3>Each checkpoint</h3>")
    if findings.checkpoints:
        parts.append(
            '<p class="tools"><button type="button" data-copy="csv">Copy as CSV</button> '
            '<button type="button" data-download="csv">Download CSV</button>'
            '<span class="said" role="status" aria-live="polite"></span></p>'
        )
        parts.append(tables.checkpoint_table(findings))
    return [Section("comparison", "Comparison", "".join(parts))] if parts else []


def _spectrum(page: Page) -> list[Section]:
    if not available.has_spectrum(page.findings):
        return []
    content = page.figure(
        "spectrum",
        figures.spectrum(page.findings),
        title=f"Eigenvalues of the {captions.matrix(page.findings)}, all checkpoints",
        caption=captions.spectrum(page.findings),
    )
    below = captions.density_table(page.findings) + diagonal.table(page.findings)
    return [Section("spectrum", "Spectrum", content + below)]


def _dynamics(page: Page) -> list[Section]:
    findings = page.findings
    having = dynamics.with_dynamics(findings)
    if not having:
        return []
    content = ""
    if any(dynamics.curvatures(findings, c) for c in having):
        content = page.figure(
            "dynamics",
            dynamics.figure(findings),
            title="Curvatures at the weights, and where descent turns unstable"
            if dynamics.has_edge(findings)
            else "Curvatures at the weights",
            caption=dynamics.caption(findings),
        )
    return [Section("dynamics", "Dynamics", content + dynamics.table(findings))]


def _slices(page: Page) -> list[Section]:
    if not available.with_lines(page.findings):
        return []
    content = page.figure(
        "slices",
        planes.slices(page.findings),
        title="Loss along each direction",
        caption=captions.slices(page.findings),
    )
    return [Section("slices", "One-dimensional slices", content)]


def _contours(page: Page) -> list[Section]:
    findings = page.findings
    identifiers = available.with_surfaces(findings)
    if not identifiers:
        return []
    styles = theme.styles_of(findings)
    by_id = {str(c["id"]): c for c in findings.checkpoints}
    cells = []
    for identifier in identifiers:
        cells.append(
            page.figure(
                f"contour-{identifier}",
                planes.contour(findings, identifier, scale="linear"),
                title=label_of(by_id[identifier], styles),
                caption=captions.surface(by_id[identifier]),
            )
        )
    start = planes.default_scale(findings)
    controls = (
        '<div class="controls" role="group" aria-label="Contours">'
        f"{_choice('contour-scale', 'Colour', {'linear': 'linear', 'log': 'log'}, start)}"
        f"{_choice('contour-shared', 'Scale', {'shared': 'shared', 'own': 'own'}, 'shared')}"
        "</div>"
    )
    cross = (
        '<h3>Row and column through the crosshair</h3><p class="hint">Click a contour, or move '
        'the sliders, to place the crosshair in all panels.</p><div class="controls">'
        '<label>direction 1 <input type="range" id="cross-x" min="0" max="1000" value="500">'
        '<output id="cross-x-value">0</output></label>'
        '<label>direction 2 <input type="range" id="cross-y" min="0" max="1000" value="500">'
        '<output id="cross-y-value">0</output></label></div><div class="grid two">'
    )
    for axis, word in (("x", "Row"), ("y", "Column")):
        cross += page.figure(
            f"cross-{axis}",
            planes.cross_slices(findings, axis),
            title=word,
            caption=captions.cross(axis),
        )
    content = f'{controls}<div class="grid three">{"".join(cells)}</div>{cross}</div>'
    if topology.with_topology(findings):
        content += f"<h3>Minima, saddles and maxima</h3>{topology.table(findings)}"
        content += topology.minima_table(findings)
    return [Section("contours", "Loss surface", captions.surfaces(findings) + content)]


def _trajectory(page: Page) -> list[Section]:
    findings = page.findings
    having = trajectory.with_trajectory(findings)
    if not having:
        return []
    styles = theme.styles_of(findings)
    cells = "".join(
        page.figure(
            f"trajectory-{c['id']}",
            planes.trajectory_contour(findings, str(c["id"])),
            title=label_of(c, styles),
            caption=trajectory.caption(findings, c),
        )
        for c in having
    )
    content = (
        f"{trajectory.cautions(findings)}{trajectory.share_table(findings)}"
        f'<div class="grid two">{cells}</div>{trajectory.distance_table(findings)}'
    )
    return [Section("trajectory", "Trajectory of the training", content)]


def _maps(page: Page) -> list[Section]:
    findings = page.findings
    having = eigenvalue_map.with_maps(findings)
    if not having:
        return []
    styles = theme.styles_of(findings)
    parts = [f"<p>{eigenvalue_map.caption(findings)}</p>"]
    for part, words in eigenvalue_map.PARTS.items():
        cells = "".join(
            page.figure(
                f"map-{part}-{c['id']}".replace("_", "-"),
                eigenvalue_map.figure(findings, str(c["id"]), part),
                title=label_of(c, styles),
                caption="",
            )
            for c in having
        )
        parts.append(f'<h3>{symbol(words)}</h3><div class="grid three">{cells}</div>')
    parts.append(eigenvalue_map.table(findings))
    return [Section("maps", "Curvature over the plane", "".join(parts))]


def _paths(page: Page) -> list[Section]:
    findings = page.findings
    if not connection.drawn_pairs(findings):
        return []
    content = f"<p>{connection.verdict(findings)} {connection.alignment(findings)}</p>"
    content += page.figure(
        "paths",
        connection.figure(findings),
        title="Loss along each path",
        caption=connection.caption(findings),
    )
    if connection.has_accuracy(findings):
        content += page.figure(
            "paths-accuracy",
            connection.figure(findings, "accuracy"),
            title="Accuracy along each path",
            caption="On the same points.",
        )
    return [Section("paths", "Path between minima", content + connection.table(findings))]


def _surfaces(page: Page) -> list[Section]:
    findings = page.findings
    identifiers = available.with_surfaces(findings)
    if not identifiers:
        return []
    by_id = {str(c["id"]): c for c in findings.checkpoints}
    labels = {i: by_id[i].get("label") or i for i in identifiers}
    pictures = "".join(
        f'<img class="static-surface" data-surface="{i}" alt="{escaped(cut(labels[i]))}: loss '
        'over the plane, in three dimensions" src="data:image/png;base64,'
        f'{base64.b64encode(surface_png(findings, i)).decode()}">'
        for i in identifiers
    )
    cells = []
    # Browsers keep few WebGL contexts alive: three cells, each with a choice where there are more.
    for number, identifier in enumerate(identifiers[:3]):
        head = f"surface {number + 1}"
        plot = page.plot(f"surface-{number}", _base(findings, identifier), head)
        options = "".join(
            f'<option value="{i}"{" selected" if i == identifier else ""}>'
            f"{escaped(cut(labels[i], 40))}</option>"
            for i in identifiers
        )
        cells.append(
            f'<figure class="space" data-cell="{number}"><div class="figure-head"><h3><label>'
            f'<span class="hidden">Surface {number + 1}</span><select>{options}</select>'
            f"</label></h3>{_save(f'surface-{number}', head)}</div>{plot}"
            '<p class="no-webgl" hidden>This browser has no WebGL, which the turning 3D view '
            "needs; here is the static picture of the same surface.</p>"
            '<div class="static-place"></div><figcaption></figcaption></figure>'
        )
    controls = (
        '<div class="controls" role="group" aria-label="Surfaces">'
        + _choice(
            "surface-scale",
            "Height",
            {"linear": "linear", "log": "log", "clipped": "clipped"},
            planes.default_scale(findings),
        )
        + _choice("surface-shared", "Scale", {"shared": "shared", "own": "own"}, "shared")
        + "</div>"
    )
    clip = digits.number(planes.clip_level(findings), 3)
    grid = f'<div class="grid three">{"".join(cells)}</div>'
    content = (
        '<p class="hint">The same numbers as the contours, with height. “Clipped” ends at L = '
        f"{clip}, the median over all points drawn, so that the walls do not flatten the basin. "
        f"Drag to turn: the cells turn together.</p>{controls}{grid}"
        f'<div class="static-surfaces">{pictures}</div>'
    )
    return [Section("surfaces", "Surface in three dimensions", content)]


def _base(findings: Findings, identifier: str) -> Figure:
    return planes.surface(findings, identifier, scale="linear")


def _training(page: Page) -> list[Section]:
    findings = page.findings
    if not findings.runs:
        return []
    comparison = (findings.document.get("training") or {}).get("comparison")
    parts = [f"<p>{captions.runs(findings)}{captions.probe(comparison or {})}</p>"]
    if comparison and comparison.get("variants"):
        normal = tables.training_comparison(comparison)
        draw = tables.method_rows if curves.is_crowded(findings) else tables.method_table
        parts.append(draw(findings, normal, name="table-variants"))
    if curves.is_crowded(findings):
        parts.append(_picker(findings))
    cells = [
        page.figure(
            f"training-{name}",
            curves.training(findings, name),
            title=captions.TRAINING_TITLES[name],
            caption=captions.training(findings, name),
        )
        for name in curves.drawable(findings)
    ]
    cells += [
        page.figure(
            f"signal-{i}",
            curves.switching_signal(findings, variant),
            title=f"Switching signal, {shown(variant, 28)}",
            caption=captions.signal(findings, variant),
        )
        for i, variant in enumerate(available.with_signal(findings))
    ]
    parts.append(f'<div class="grid two">{"".join(cells)}</div>')
    if short := captions.one_signal(findings):
        parts.append(f'<p class="hint">{short}</p>')
    return [Section("training", "Training", "".join(parts))]


def _picker(findings: Findings) -> str:
    """Buttons that put variants in colour; the curves of the others stay, in grey."""
    styles = {style.method: style for style in theme.styles_of(findings).values()}
    chosen = curves.in_colour(findings)
    variants = dict.fromkeys(theme.method_of(run) for run in findings.runs)
    buttons = "".join(
        f'<button type="button" class="curve" data-curve="{styles[variant].order}" '
        f'aria-pressed="{"true" if variant in chosen else "false"}">'
        f"{line_sample(styles[variant])}{shown(variant, 28)}</button>"
        for variant in variants
    )
    choices = "".join(
        f'<button type="button" data-curves="{word.lower()}">{word}</button>'
        for word in ("Best", "All", "None")
    )
    return (
        '<p class="hint">In colour: the reference and the best by test accuracy. Choose others '
        "here, for all figures below; a grey curve says its name under the pointer.</p>"
        '<div class="controls curves" role="group" aria-label="Variants in colour">'
        f"{buttons}{choices}</div>"
    )


def _generalisation(page: Page) -> list[Section]:
    findings = page.findings
    cells = [
        page.figure(
            f"generalisation-{i}",
            figures.generalisation(findings, measure.name),
            title=symbol(measure.title),
            caption=correlation.sentence(findings, measure.name),
        )
        for i, measure in enumerate(measures.flatness_measures(findings))
        if available.has_scatter(findings, measure.name)
    ]
    if not cells:
        return []
    content = (
        f'<p>{captions.generalisation(findings)}</p><div class="grid three">{"".join(cells)}</div>'
        f"{correlation.table(findings)}"
    )
    return [Section("generalisation", "Flatness against generalisation", content)]


def _layers(page: Page) -> list[Section]:
    findings = page.findings
    parts = layers.drawn_parts(findings)
    if not parts:
        return []
    cells = "".join(
        page.figure(
            f"layers-{part}".replace("_", "-"),
            layers.figure(findings, part),
            title=symbol(layers.title_of(findings, part)),
            caption=layers.caption(findings, part),
        )
        for part in parts
    )
    words = (
        f"<p>Each layer’s own block of the {captions.matrix(findings)}, the other layers held "
        "fixed.</p>"
    )
    grid = f'<div class="grid two">{cells}</div>'
    return [Section("layers", "Layers", words + grid + layers.table(findings))]


def _second_opinion(page: Page) -> list[Section]:
    if not any(c.get("second_opinion") for c in page.findings.checkpoints):
        return []
    content = captions.opinions(page.findings) + tables.opinion_table(page.findings)
    return [Section("second-opinion", "Second opinion", content)]


def _methods(page: Page) -> list[Section]:
    return [Section("methods", "Methods", methods_html(page.findings))]


def _data(page: Page) -> list[Section]:
    document = page.findings.document
    command = document.get("command")
    parts = []
    if command:
        parts.append(
            "<h3>The command that made this</h3>"
            f'<div class="command"><pre><code id="command">{escaped(command)}</code></pre>'
            '<button type="button" data-copy="command">Copy</button></div>'
        )
    parts.append(
        '<p class="tools"><button type="button" data-download="json">Download result.json</button> '
        '<button type="button" data-download="arrays">Download arrays.nc</button> '
        '<button type="button" data-download="csv">Download table as CSV</button>'
        '<span class="said" role="status" aria-live="polite"></span></p>'
        "<p class=hint>All numbers of this page are inside it. Both files in one folder open with "
        "<code>landscape.load_findings(folder)</code>; arrays.nc opens in xarray."
        f"{_left_out(page.findings)}</p>"
    )
    parts.append(captions.provenance_tables(page.findings))
    return [Section("data", "Data and provenance", "".join(parts))]


def _left_out(findings: Findings) -> str:
    missing = sorted(set(findings.arrays) - set(embedded_arrays(findings)))
    if not missing:
        return ""
    return (
        f" {len(missing)} arrays of one number a parameter are too large for a page that can be "
        "mailed (the entries of diagonals): they are in the arrays.nc beside it alone."
    )


SECTIONS: tuple[Callable[[Page], list[Section]], ...] = (
    _comparison,
    _spectrum,
    _dynamics,
    _slices,
    _contours,
    _trajectory,
    _maps,
    _surfaces,
    _paths,
    _training,
    _generalisation,
    _layers,
    _second_opinion,
    _methods,
    _data,
)


def _choice(name: str, title: str, options: Mapping[str, str], chosen: str) -> str:
    """A group of radio buttons: one Tab stop, arrows choose, as keyboards expect."""
    buttons = "".join(
        f'<label><input type="radio" name="{name}" value="{value}"'
        f"{' checked' if value == chosen else ''}><span>{text}</span></label>"
        for value, text in options.items()
    )
    return f'<fieldset class="choice"><legend>{title}</legend>{buttons}</fieldset>'
