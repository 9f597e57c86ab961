"""The page as a file: one document, safe, complete, the same bytes each time."""

from __future__ import annotations

import base64
import copy
import itertools
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from landscape.findings import Findings, load_findings
from landscape.report import figures, render_report, write_report
from landscape.report.page import POLICY
from tests.landscape.report.sample import (
    HOSTILE,
    full_findings,
    probe_findings,
    training_findings,
)


class Elements(HTMLParser):
    """Every element of a page with its attributes, and the text of each script."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: dict[str, str] = {}
        self.words: list[str] = []
        self._script: str | None = None
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag == "script":
            self._script = dict(attrs).get("id") or f"script {len(self.scripts)}"
            self.scripts[self._script] = ""

    def handle_endtag(self, tag: str) -> None:
        if tag == "script":
            self._script = None

    def handle_data(self, data: str) -> None:
        if self._script is None:
            self.words.append(data)
        else:
            self.scripts[self._script] += data

    def tags(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.found if tag == name]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def ids(self) -> list[str]:
        return [a["id"] for _, a in self.found if a.get("id")]  # type: ignore[misc]


@pytest.fixture(scope="module")
def full() -> Elements:
    return Elements(render_report(full_findings()))


def test_equal_findings_give_equal_bytes() -> None:
    assert render_report(full_findings()) == render_report(copy.deepcopy(full_findings()))


def test_findings_that_went_through_a_folder_give_the_same_page(tmp_path: Path) -> None:
    from landscape.findings import save_findings

    save_findings(probe_findings(), tmp_path)
    assert render_report(load_findings(tmp_path)) == render_report(probe_findings())


def test_plotly_is_in_the_page_once_and_nothing_is_loaded(full: Elements) -> None:
    scripts = full.tags("script")
    assert all("src" not in script for script in scripts)
    assert sum("plotly.js v" in text for text in full.scripts.values()) == 1
    for attributes in full.tags("img"):
        assert (attributes["src"] or "").startswith("data:image/png;base64,")
    assert [link["href"] for link in full.tags("link")] == ["data:,"]
    assert all((a.get("href") or "").startswith("#") for a in full.tags("a"))
    assert "mathjax@" not in "".join(
        text for name, text in full.scripts.items() if "plotly.js v" not in text
    )


def test_embedded_data_hold_no_angle_bracket(full: Elements) -> None:
    for name in ("drawing", "findings", "arrays", "csv"):
        assert "<" not in full.scripts[name]
        assert ">" not in full.scripts[name]


def test_the_page_forbids_itself_every_request(full: Elements) -> None:
    policies = [m for m in full.tags("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert [policy["content"] for policy in policies] == [POLICY]
    assert POLICY == (
        "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
        "img-src data: blob:"
    )


def test_ids_are_unique_and_fixed(full: Elements) -> None:
    ids = full.ids()
    assert len(ids) == len(set(ids))
    again = Elements(render_report(full_findings())).ids()
    assert ids == again
    assert {"plot-spectrum", "plot-contour-c0", "plot-surface-2", "plot-signal-0"} <= set(ids)


def test_every_place_for_a_figure_has_its_figure(full: Elements) -> None:
    places = {name.removeprefix("plot-") for name in full.ids() if name.startswith("plot-")}
    assert places == set(json.loads(full.scripts["drawing"])["figures"])


def test_headings_go_down_one_level_at_a_time(full: Elements) -> None:
    levels = [int(tag[1]) for tag, _ in full.found if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert full.tags("html") == [{"lang": "en"}]


def test_warnings_come_before_every_number() -> None:
    page = render_report(full_findings())
    assert page.index('class="warnings"') < page.index("<table")
    assert "the gradient is not small" in page[: page.index("<table")]


def test_a_partial_result_says_so_in_its_head() -> None:
    findings = probe_findings(methods=("sam",), seeds=1)
    assert "Partial result" not in Elements(render_report(findings)).text
    findings.document["complete"] = False
    assert "Partial result" in Elements(render_report(findings)).text


def test_sections_come_in_order_and_only_with_data(full: Elements) -> None:
    sections = [attributes["id"] for attributes in full.tags("section")]
    assert sections == [
        "comparison",
        "spectrum",
        "dynamics",
        "slices",
        "contours",
        "trajectory",
        "maps",
        "surfaces",
        "paths",
        "training",
        "generalisation",
        "layers",
        "second-opinion",
        "methods",
        "data",
    ]
    training = Elements(render_report(training_findings(epochs=3)))
    assert [a["id"] for a in training.tags("section")] == ["training", "methods", "data"]


def test_findings_with_nothing_in_them_make_a_page() -> None:
    page = Elements(render_report(Findings({})))
    assert "Nothing has been measured yet." in page.text
    assert [a["id"] for a in page.tags("section")] == ["methods", "data"]


def test_a_single_checkpoint_makes_a_page_without_comparing_it_to_itself() -> None:
    page = Elements(render_report(probe_findings(methods=("sam",), seeds=1)))
    assert "flattest" not in re.sub("flattest mark", "", page.text)
    assert "table-methods" not in page.ids()
    assert "generalisation" not in [a["id"] for a in page.tags("section")]


def test_every_figure_has_a_table_or_a_sentence_beside_it(full: Elements) -> None:
    sections = {a["id"] for a in full.tags("section")}
    tables = {a["id"] for a in full.tags("table")}
    beside = {
        "dynamics": "table-dynamics",
        "contours": "table-topology",
        "trajectory": "table-distances",
        "maps": "table-maps",
        "paths": "table-barriers",
        "generalisation": "table-correlations",
        "layers": "table-layers",
        "data": "table-costs",
    }
    assert set(beside) <= sections
    assert set(beside.values()) <= tables


def test_paths_with_trained_curves_make_a_page() -> None:
    page = Elements(render_report(probe_findings(seeds=1, surface=5, connect="bezier")))
    assert "3 trained curves, 25 points each, 200 steps of training a curve" in page.text
    assert "straight line ≥" in page.text


def test_a_switching_signal_that_is_known_once_is_a_sentence_and_no_figure() -> None:
    page = Elements(render_report(training_findings(epochs=1)))
    assert not any(name.startswith("plot-signal") for name in page.ids())
    assert "The switching signal of ae-sam is known once a run" in page.text
    assert "plot-signal-0" in Elements(render_report(training_findings(epochs=2))).ids()


def test_the_embedded_files_are_the_findings(tmp_path: Path, full: Elements) -> None:
    findings = full_findings()
    (tmp_path / "result.json").write_text(full.scripts["findings"])
    (tmp_path / "arrays.nc").write_bytes(base64.b64decode(full.scripts["arrays"]))
    loaded = load_findings(tmp_path)
    assert loaded.document["checkpoints"] == findings.document["checkpoints"]
    assert loaded.document["training"] == findings.document["training"]
    assert set(loaded.arrays) == set(findings.arrays)


def test_nine_checkpoints_with_large_surfaces_stay_under_eight_megabytes() -> None:
    page = render_report(probe_findings(surface=51, surfaces="all"))
    assert len(page.encode()) < 8_000_000


def test_44_hostile_names_make_no_element_and_no_attribute() -> None:
    tame = Elements(render_report(full_findings()))
    wild = Elements(render_report(full_findings(names={"erm": HOSTILE})))
    count = {tag: len(tame.tags(tag)) for tag, _ in tame.found}
    # A name that is cut stands in a span for its title; nothing else may differ.
    for tag in ("script", "img", "a", "b", "section", "table", "td", "svg", "figure", "meta"):
        assert len(wild.tags(tag)) in (count[tag], count[tag] + 1), tag
    attributes = {name for _, found in wild.found for name in found}
    assert attributes <= {name for _, found in tame.found for name in found} | {"title"}
    assert not any(name.startswith("on") for name in attributes)


def everywhere_hostile(value: Any, key: str = "") -> Any:
    """The document with every string that a user or a file decides replaced by a hostile one."""
    ours = {"kind", "id", "end", "split", "scale", "key", "matrix"}
    if isinstance(value, str):
        return value if key in ours else HOSTILE
    if isinstance(value, dict):
        return {name: everywhere_hostile(item, name) for name, item in value.items()}
    if isinstance(value, list):
        return [everywhere_hostile(item, key) for item in value]
    return value


def test_44_no_string_of_the_document_can_be_markup() -> None:
    findings = full_findings()
    wild = Findings(everywhere_hostile(findings.document), findings.arrays)
    wild.document["settings"] = {HOSTILE: HOSTILE}
    wild.document["training"]["papers"] = {HOSTILE: HOSTILE}
    wild.document["connection"]["warnings"] = [HOSTILE]
    wild.document["comparison"]["warnings"] = [HOSTILE]
    for checkpoint in wild.document["checkpoints"]:
        checkpoint["sharpness"] = {HOSTILE: next(iter(checkpoint["sharpness"].values()))}
        checkpoint["costs"] = {HOSTILE: {"products": 1}}
        checkpoint["dynamics"]["skipped"] = {HOSTILE: HOSTILE}
        checkpoint["sampling_skipped"] = HOSTILE
        if checkpoint["surface"]:
            checkpoint["surface"]["points"] = [{"label": HOSTILE, "x": 0.1, "y": 0.2}]
    page = render_report(wild)
    for name, figure in figures.specifications(wild).items():
        assert "<img" not in str(figure), name
        assert "</script" not in str(figure), name
    elements = Elements(page)
    assert not any(name.startswith("on") for _, found in elements.found for name in found)
    assert all((a["src"] or "").startswith("data:") for a in elements.tags("img"))
    assert all((a.get("href") or "").startswith("#") for a in elements.tags("a"))
    assert len(elements.tags("script")) == 7
    assert "\u202e" not in page
    assert "<img src=x" in elements.text


def test_44_a_name_of_ten_thousand_letters_is_cut_and_stands_whole_in_a_title() -> None:
    page = Elements(render_report(probe_findings(names={"erm": HOSTILE})))
    assert "x" * 200 not in page.text
    assert any("x" * 10_000 in (found.get("title") or "") for _, found in page.found)


def test_a_report_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno
    import os

    path = tmp_path / "report.html"
    path.write_text("the last good one")

    def full_disk(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_report(training_findings(epochs=2), path)
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    assert path.read_text() == "the last good one"


def test_a_report_names_no_folder_of_the_machine_that_made_it(tmp_path: Path) -> None:
    page = write_report(training_findings(epochs=2), tmp_path / "report.html").read_text()
    assert str(tmp_path) not in page
    assert str(Path.home()) + "/" not in page
