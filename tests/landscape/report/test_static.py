"""Static figures: two widths, embedded fonts, fixed dates, the same bytes each time."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import matplotlib as mpl
import pytest

from landscape.findings import Findings
from landscape.report import static, static_planes, write_figures
from landscape.report.drawing import plain_number
from landscape.report.static import WIDTHS, static_figures
from landscape.report.static_drawing import paper_style
from landscape.report.static_planes import surface_png
from tests.landscape.report.sample import (
    HOSTILE,
    crowded_findings,
    full_findings,
    probe_findings,
    training_findings,
)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    findings = full_findings(methods=("erm", "sam"), seeds=2, names={"erm": HOSTILE}, surface=9)
    return write_figures(findings, tmp_path_factory.mktemp("figures"))


@pytest.mark.slow
def test_every_figure_comes_as_pdf_and_png_at_both_widths(written: list[Path]) -> None:
    names = {path.name for path in written}
    figures = static_figures(full_findings(surface=5))
    assert names == {f"{f}-{w:g}in.{k}" for f in figures for w in WIDTHS for k in ("pdf", "png")}
    assert {"comparison", "spectrum", "slices", "contours", "surfaces", "training"} <= set(figures)
    assert {"paths", "eigenvalue-maps", "trajectories"} <= set(figures)


@pytest.mark.slow
def test_pictures_have_the_width_of_their_name(written: list[Path]) -> None:
    for path in written:
        width = float(path.stem.rsplit("-", 1)[1].removesuffix("in"))
        if path.suffix == ".png":
            pixels = struct.unpack(">I", path.read_bytes()[16:20])[0]
            assert pixels == pytest.approx(300 * width, abs=1), path.name
        else:
            box = re.search(rb"/MediaBox \[([\d. ]+)\]", path.read_bytes())
            assert box is not None
            assert float(box.group(1).split()[2]) == pytest.approx(72 * width, abs=0.1), path.name


@pytest.mark.slow
def test_fonts_are_embedded_as_truetype_and_dates_are_fixed(written: list[Path]) -> None:
    for path in written:
        raw = path.read_bytes()
        if path.suffix == ".pdf":
            assert b"/FontFile2" in raw, path.name
            assert b"/Type3" not in raw, path.name
            assert re.findall(rb"/CreationDate \(D:(\d{8})", raw) == [b"20000101"], path.name
        else:
            assert b"Matplotlib" not in raw, path.name


@pytest.mark.slow
def test_equal_findings_give_equal_pictures(tmp_path: Path) -> None:
    for name in ("a", "b"):
        findings = probe_findings(methods=("sam",), seeds=1, surface=7)
        write_figures(findings, tmp_path / name)
    left, right = (sorted((tmp_path / name).iterdir()) for name in ("a", "b"))
    assert [path.name for path in left] == [path.name for path in right]
    assert len(left) == 4 * len(static_figures(probe_findings(methods=("sam",), seeds=1)))
    for a, b in zip(left, right, strict=True):
        assert a.read_bytes() == b.read_bytes(), a.name


def test_a_logarithmic_axis_on_paper_names_its_ticks() -> None:
    with paper_style():
        axes = static.training(training_findings(epochs=4), 6.8).axes[0]
        axes.figure.draw_without_rendering()
    assert axes.get_yscale() == "log"
    labels = [tick.get_text() for tick in axes.get_yticklabels()]
    assert labels == [plain_number(value) for value in axes.get_yticks()]
    assert len(labels) >= 3


def test_paths_on_paper_mark_the_barrier_of_each_pair() -> None:
    findings = probe_findings(seeds=1, surface=5)
    with paper_style():
        axes = static.paths(findings, 6.8).axes[0]
    pairs = findings.document["connection"]["pairs"]
    named = [line for line in axes.lines if not line.get_label().startswith("_")]
    for pair, line in zip(pairs, named, strict=True):
        (at,) = line.get_markevery()
        assert line.get_xdata()[at] == pytest.approx(pair["where"])
        assert line.get_ydata().tolist() == findings.arrays[f"path_{pair['id']}_loss"].tolist()


def test_a_trajectory_on_paper_runs_through_its_checkpoints() -> None:
    findings = probe_findings(methods=("sam",), seeds=1, surface=5)
    with paper_style():
        axes = static_planes.trajectories(findings, 3.3).axes[0]
    points = findings.arrays["trajectory_c0_coordinates"]
    assert axes.lines[0].get_xdata().tolist() == points[:, 0].tolist()
    assert axes.lines[0].get_ydata().tolist() == points[:, 1].tolist()
    assert {"1", "last"} <= {text.get_text() for text in axes.texts}


def test_eigenvalue_maps_on_paper_are_a_row_a_quantity() -> None:
    findings = probe_findings(seeds=1, surface=5)
    with paper_style():
        figure = static_planes.eigenvalue_maps(findings, 6.8)
    assert len(figure.axes) == 2 * 3 + 2  # and a colour bar each
    drawn = figure.axes[0].collections[0].get_array()
    assert drawn is not None
    assert bool(drawn.mask.flat[0])  # not finite there


def test_drawing_leaves_matplotlibs_settings_alone(tmp_path: Path) -> None:
    before = dict(mpl.rcParams)
    surface_png(probe_findings(methods=("sam",), seeds=1, surface=7), "c0")
    assert dict(mpl.rcParams) == before


def test_the_picture_of_a_surface_depends_on_the_surface() -> None:
    findings = probe_findings(seeds=1, surface=7)
    assert surface_png(findings, "c0") != surface_png(findings, "c1")


def test_nothing_measured_draws_nothing(tmp_path: Path) -> None:
    assert write_figures(Findings({}), tmp_path / "none") == []


def test_many_variants_have_their_legend_below_the_curves() -> None:
    figure = static.training(crowded_findings(), 7.0)
    (legend,) = figure.legends
    assert len(legend.get_texts()) == 12
    inside = [axes.get_legend() for axes in figure.axes if axes.get_legend()]
    assert [text.get_text() for one in inside for text in one.get_texts()] == ["2/lr"]
