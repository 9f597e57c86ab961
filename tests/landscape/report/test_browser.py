"""The report in a real browser: drawn, quiet, safe, and usable from the keyboard.

Where there is no chromium these tests are skipped on a developer's machine and fail where `CI` is
set: a report that nobody has opened is not tested.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from landscape.findings import Findings, load_findings
from landscape.report import write_report
from tests.landscape.report.sample import (
    HOSTILE,
    crowded_findings,
    full_findings,
    probe_findings,
)

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        not (BROWSER and DRIVER) and not os.environ.get("CI"),
        reason="needs chromium and chromedriver",
    ),
]

Open = Callable[..., Any]


def launch(folder: Path, *arguments: str) -> Any:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    assert BROWSER, "no chromium on a machine that must have one"
    assert DRIVER, "no chromedriver on a machine that must have one"
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--use-gl=angle",
        "--use-angle=swiftshader",
        "--enable-unsafe-swiftshader",
        "--disable-background-networking",
        "--no-first-run",
        "--window-size=1300,1000",
        f"--user-data-dir={folder}",
        *arguments,
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    driver.set_script_timeout(60)
    return driver


def show(driver: Any, page: Path) -> Any:
    """Opens the page and waits until every figure is drawn."""
    driver.get(page.as_uri())
    wait(driver, "return document.documentElement.dataset.drawn === 'all'", seconds=120)
    return driver


def wait(driver: Any, script: str, *, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not driver.execute_script(script):
        assert time.monotonic() < end, f"never true: {script}"
        time.sleep(0.1)


def press(driver: Any, selector: str, key: str) -> None:
    """One key pressed on an element that has the focus; nothing is clicked."""
    from selenium.webdriver.common.by import By

    element = driver.find_element(By.CSS_SELECTOR, selector)
    driver.execute_script("arguments[0].focus()", element)
    assert driver.execute_script("return document.activeElement === arguments[0]", element)
    element.send_keys(key)


ENTER, SPACE, RIGHT, DOWN, END = "\ue007", " ", "\ue014", "\ue015", "\ue010"

# Fewer figures, quicker drawn: for the tests that press keys and look at one place.
BRIEF: dict[str, Any] = {"methods": ("erm", "sam", "ae-sam", "asam"), "seeds": 1, "surface": 9}


def brief_findings() -> Findings:
    findings = probe_findings(**BRIEF)
    findings.document["connection"] = None
    for checkpoint in findings.checkpoints:
        checkpoint.update(layers=None, dynamics=None, eigenvalue_map=None)
    kept = {n: a for n, a in findings.arrays.items() if not n.startswith(("map_", "path_"))}
    return Findings(findings.document, kept)


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    small = {"methods": ("erm", "sam"), "seeds": 2, "surface": 9}
    return {
        "brief": write_report(brief_findings(), folder / "brief.html"),
        "tame": write_report(full_findings(**small), folder / "tame.html"),
        "hostile": write_report(
            full_findings(**small, names={"erm": HOSTILE}), folder / "hostile.html"
        ),
    }


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    driver = launch(tmp_path_factory.mktemp("profile"))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def tame(browser: Any, pages: dict[str, Path]) -> Any:
    """The tame page, opened once: the tests that only look share it."""
    return show(browser, pages["tame"])


def plots(driver: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = driver.execute_script(
        """return [...document.querySelectorAll('.plot')].map((plot) => ({
          id: plot.id,
          traces: (plot.data || []).map((trace) => {
            const values = (trace.z ? trace.z.flat() : [...trace.x]).filter(Number.isFinite);
            return {type: trace.type, points: values.length};
          }),
          canvas: Boolean(plot.querySelector('canvas')),
          drawn: plot.querySelectorAll('.main-svg path, .main-svg image').length,
          width: plot.getBoundingClientRect().width,
        }))"""
    )
    return found


def test_every_figure_has_data_and_is_drawn(tame: Any) -> None:
    found = plots(tame)
    assert len(found) > 25
    for plot in found:
        assert plot["traces"], plot["id"]
        assert all(trace["points"] > 0 for trace in plot["traces"]), plot["id"]
        assert plot["drawn"] > 0 or plot["canvas"], plot["id"]
    kinds = {trace["type"] for plot in found for trace in plot["traces"]}
    assert kinds == {"scatter", "contour", "heatmap", "surface"}


def test_the_three_dimensional_cells_are_drawn_by_webgl(tame: Any) -> None:
    cells = [plot for plot in plots(tame) if plot["id"].startswith("plot-surface-")]
    assert len(cells) == 2
    assert all(cell["canvas"] for cell in cells)


def test_the_console_has_no_error_and_no_request_leaves_the_file(
    browser: Any, pages: dict[str, Path]
) -> None:
    browser.get_log("performance")
    browser.get_log("browser")
    show(browser, pages["tame"])
    errors = [e for e in browser.get_log("browser") if e["level"] == "SEVERE"]
    assert errors == []
    messages = (json.loads(e["message"])["message"] for e in browser.get_log("performance"))
    urls = {
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
    }
    assert pages["tame"].as_uri() in urls
    assert {url for url in urls if not url.startswith(("data:", "blob:"))} == {
        pages["tame"].as_uri()
    }


def test_the_console_would_show_an_error(browser: Any, pages: dict[str, Path]) -> None:
    show(browser, pages["brief"])
    browser.get_log("browser")
    browser.execute_script("fetch('https://example.invalid/').catch(() => {})")
    end = time.monotonic() + 10
    errors: list[Any] = []
    while not errors and time.monotonic() < end:
        errors = [e for e in browser.get_log("browser") if e["level"] == "SEVERE"]
        time.sleep(0.1)
    assert any("Content Security Policy" in e["message"] for e in errors)


def test_a_table_sorts_from_the_keyboard_both_ways_with_missing_values_last(
    browser: Any, pages: dict[str, Path]
) -> None:
    show(browser, pages["brief"])
    column = """const head = [...document.querySelectorAll('#table-checkpoints thead th')]
      .findIndex((th) => th.textContent.startsWith('test loss'));
      return [...document.querySelectorAll('#table-checkpoints tbody tr')]
        .map((row) => row.cells[head].dataset.value ?? null)"""
    browser.execute_script(
        """const head = [...document.querySelectorAll('#table-checkpoints thead th')]
        .findIndex((th) => th.textContent.startsWith('test loss'));
        document.querySelectorAll('#table-checkpoints thead button')[head].id = 'sort-me';
        delete document.querySelector('#table-checkpoints tbody tr').cells[head].dataset.value;"""
    )
    for direction in (1, -1):
        press(browser, "#sort-me", ENTER)
        values = browser.execute_script(column)
        numbers = [float(value) for value in values[:-1]]
        assert values[-1] is None
        assert numbers == sorted(numbers, reverse=direction < 0)
        assert len(set(numbers)) == 3
        head = browser.execute_script(
            "return document.getElementById('sort-me').closest('th').getAttribute('aria-sort')"
        )
        assert head == ("ascending" if direction > 0 else "descending")


def test_the_theme_toggle_redraws_the_figures_from_the_keyboard(
    browser: Any, pages: dict[str, Path]
) -> None:
    show(browser, pages["brief"])
    colors = """return [getComputedStyle(document.body).backgroundColor,
      document.getElementById('plot-spectrum')._fullLayout.font.color,
      document.getElementById('plot-surface-0')._fullLayout.scene.xaxis.gridcolor]"""
    before = browser.execute_script(colors)
    press(browser, "#theme", SPACE)
    wait(browser, "return document.documentElement.dataset.theme !== undefined")
    time.sleep(0.5)
    after = browser.execute_script(colors)
    assert all(a != b for a, b in zip(before, after, strict=True))
    pressed = browser.execute_script(
        "return document.getElementById('theme').getAttribute('aria-pressed')"
    )
    assert pressed == "true"
    press(browser, "#theme", SPACE)
    time.sleep(0.5)
    assert browser.execute_script(colors) == before


def test_a_system_in_dark_mode_gets_a_dark_page(browser: Any, pages: dict[str, Path]) -> None:
    preference = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", preference)
    try:
        show(browser, pages["brief"])
        color = browser.execute_script(
            "return document.getElementById('plot-spectrum')._fullLayout.font.color"
        )
        assert color == "#e7e9ec"
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_colour_scale_and_heights_change_from_the_keyboard(
    browser: Any, pages: dict[str, Path]
) -> None:
    show(browser, pages["brief"])
    tops = """return ['c0', 'c1'].map(
      (id) => document.getElementById(`plot-contour-${id}`)._fullData[0].zmax)"""
    shared = browser.execute_script(tops)
    assert shared[0] == shared[1]
    press(browser, "input[name=contour-shared]:checked", RIGHT)
    wait(browser, f"const t = (() => {{ {tops} }})(); return t[0] !== t[1]")

    peak = """const plot = document.getElementById('plot-surface-0');
      return Math.max(...plot._fullData[0].z.flat().filter(Number.isFinite))"""
    press(browser, "input[name=surface-scale][value=linear]", SPACE)
    wait(browser, f"return (() => {{ {peak} }})() > 3")
    press(browser, "input[name=surface-scale]:checked", RIGHT)
    wait(browser, f"return (() => {{ {peak} }})() < 1")
    press(browser, "input[name=surface-scale]:checked", RIGHT)
    clip = browser.execute_script(
        "return JSON.parse(document.getElementById('drawing').textContent).clip"
    )
    wait(browser, f"return Math.abs((() => {{ {peak} }})() - {clip}) < 1e-6")


def test_a_cell_shows_the_checkpoint_that_is_chosen(browser: Any, pages: dict[str, Path]) -> None:
    show(browser, pages["brief"])
    text = "return document.querySelector('[data-cell=\"0\"] figcaption').textContent"
    before = browser.execute_script(text)
    press(browser, '[data-cell="0"] select', DOWN)
    wait(browser, f"return (() => {{ {text} }})() !== {json.dumps(before)}")
    raw = "JSON.parse(document.getElementById('drawing').textContent).surfaces.c1.z[0][0]"
    wait(
        browser,
        f"return document.getElementById('plot-surface-0').data[0].customdata[0][0] === {raw}",
    )


def test_the_crosshair_moves_from_the_keyboard_and_its_row_is_the_surfaces_row(
    browser: Any, pages: dict[str, Path]
) -> None:
    show(browser, pages["brief"])
    press(browser, "#cross-y", END)  # End: the highest y
    wait(browser, "return document.getElementById('cross-y-value').textContent === '1.00'")
    same = """const z = JSON.parse(document.getElementById('drawing').textContent).surfaces.c1.z;
      return JSON.stringify(document.getElementById('plot-cross-x').data[1].y)
        === JSON.stringify(z[z.length - 1])"""
    wait(browser, same)
    shapes = browser.execute_script(
        "return document.getElementById('plot-contour-c0')._fullLayout.shapes.map((s) => s.y0)"
    )
    assert shapes == [0, 1]


def test_a_trajectory_follows_the_colour_scale_of_its_contour(
    browser: Any, pages: dict[str, Path]
) -> None:
    show(browser, pages["brief"])
    ends = """return ['contour-c1', 'trajectory-c1'].map(
      (name) => document.getElementById(`plot-${name}`)._fullData[0].zmax)"""
    before = browser.execute_script(ends)
    assert before[0] == before[1]
    press(browser, "input[name=contour-shared]:checked", RIGHT)
    wait(browser, f"const e = (() => {{ {ends} }})(); return e[0] < {before[0]} && e[0] === e[1]")
    shapes = "return document.getElementById('plot-trajectory-c1')._fullLayout.shapes.length"
    assert browser.execute_script(shapes) == 0  # the crosshair belongs to the contours


def test_the_first_column_stays_in_view_while_a_wide_table_scrolls(
    browser: Any, tmp_path: Path
) -> None:
    show(browser, write_report(crowded_findings(), tmp_path / "wide.html"))
    facts = """const table = document.getElementById('table-variants');
      const frame = table.closest('.scroll');
      const head = table.tBodies[0].rows[3].cells[0].getBoundingClientRect();
      return [frame.scrollLeft, head.left - frame.getBoundingClientRect().left,
        getComputedStyle(table.tBodies[0].rows[3].cells[0]).boxShadow !== 'none']"""
    left, place, raised = browser.execute_script(facts)
    assert (left, raised) == (0, False)
    browser.execute_script(
        "document.getElementById('table-variants').closest('.scroll').scrollLeft = 120"
    )
    wait(browser, f"return (() => {{ {facts} }})()[2]")
    moved = browser.execute_script(facts)
    assert moved[0] == 120
    assert moved[1] == pytest.approx(place, abs=1)


def test_the_crosshair_starts_at_the_origin_of_a_window_that_is_not_centred(
    browser: Any, tmp_path: Path
) -> None:
    findings = probe_findings(**{**BRIEF, "methods": ("erm",)})
    findings.arrays["surface_c0_x"] = findings.arrays["surface_c0_x"] + 0.75
    show(browser, write_report(findings, tmp_path / "aside.html"))
    values = "return ['x', 'y'].map((a) => document.getElementById(`cross-${a}-value`).textContent)"
    assert browser.execute_script(values) == ["0.00", "0.00"]


def test_downloads_from_the_keyboard_give_back_the_findings(
    browser: Any, pages: dict[str, Path], tmp_path: Path
) -> None:
    show(browser, pages["brief"])
    browser.execute_cdp_cmd(
        "Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)}
    )
    for kind in ("json", "arrays", "csv"):
        press(browser, f"#data [data-download={kind}]", ENTER)
    press(browser, '[data-save="spectrum"]', ENTER)
    names = {"result.json", "arrays.nc", "checkpoints.csv", "spectrum.svg"}
    end = time.monotonic() + 20
    while {path.name for path in tmp_path.iterdir()} != names:
        assert time.monotonic() < end, sorted(path.name for path in tmp_path.iterdir())
        time.sleep(0.1)
    loaded = load_findings(tmp_path)
    original = brief_findings()
    assert loaded.document["checkpoints"] == original.document["checkpoints"]
    assert (tmp_path / "checkpoints.csv").read_text("utf-8-sig").startswith("id,label,method")
    assert (tmp_path / "spectrum.svg").read_text().startswith("<svg")
    assert "Saved checkpoints.csv" in browser.execute_script(
        "return document.querySelector('#data .said').textContent"
    )


def test_copying_as_csv_puts_the_whole_table_on_the_clipboard(
    browser: Any, pages: dict[str, Path]
) -> None:
    show(browser, pages["brief"])
    browser.execute_script(
        "navigator.clipboard.writeText = async (text) => { window.copied = text; }"
    )
    press(browser, "[data-copy=csv]", ENTER)
    wait(browser, "return window.copied !== undefined")
    copied = browser.execute_script("return window.copied")
    assert copied.count("\r\n") == 1 + 4
    said = "return document.querySelector('#comparison .said').textContent"
    wait(browser, f"return (() => {{ {said} }})() === 'Copied'")


def test_44_a_hostile_name_is_text_and_runs_nothing(browser: Any, pages: dict[str, Path]) -> None:
    show(browser, pages["tame"])
    count = "return document.querySelectorAll('img, script, a, iframe, b, object').length"
    tame_elements = browser.execute_script(count)
    title = browser.title
    browser.get_log("browser")
    show(browser, pages["hostile"])
    assert browser.title == title
    assert browser.execute_script(count) == tame_elements
    facts = browser.execute_script(
        """return {
          errors: document.querySelectorAll('[onerror]').length,
          links: [...document.querySelectorAll('a, svg a')].map((a) => a.href?.baseVal ?? a.href)
            .filter((href) => !href.includes('#')),
          bold: [...document.querySelectorAll('.plot tspan')]
            .filter((t) => /bold/.test(t.style.fontWeight)).length,
          shown: [...document.querySelectorAll('.plot text')]
            .some((t) => t.textContent.startsWith('</script><img')),
          body: document.body.innerText,
        }"""
    )
    assert facts["errors"] == 0
    assert facts["links"] == []
    assert facts["bold"] == 0
    assert facts["shown"]
    assert "\u202e" not in facts["body"]
    assert "</script><img src=x" in facts["body"]
    assert [e for e in browser.get_log("browser") if e["level"] == "SEVERE"] == []


def test_a_phones_width_needs_no_sideways_scrolling(browser: Any, pages: dict[str, Path]) -> None:
    size = {"width": 400, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        for page in ("tame", "hostile"):
            show(browser, pages[page])
            assert browser.execute_script("return document.documentElement.scrollWidth") <= 400
            assert all(200 < plot["width"] <= 400 for plot in plots(browser))
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_print_is_light_and_swaps_webgl_for_the_static_pictures(
    browser: Any, pages: dict[str, Path]
) -> None:
    show(browser, pages["tame"])
    press(browser, "#theme", SPACE)
    visible = """return [...document.querySelectorAll('.static-surfaces img')]
      .filter((img) => img.getBoundingClientRect().width > 100 && img.naturalWidth > 100).length"""
    assert browser.execute_script(visible) == 0
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        browser.execute_script("window.dispatchEvent(new Event('beforeprint'))")
        assert browser.execute_script(visible) == 2
        facts = browser.execute_script(
            """return [getComputedStyle(document.body).backgroundColor,
              document.getElementById('plot-spectrum')._fullLayout.font.color,
              document.getElementById('plot-surface-0').getBoundingClientRect().width,
              getComputedStyle(document.querySelector('nav')).display,
              document.getElementById('plot-spectrum').querySelector('svg').clientWidth]"""
        )
        assert facts[:4] == ["rgb(255, 255, 255)", "#1a1d21", 0, "none"]
        assert 600 < facts[4] <= 700
        printed = browser.execute_cdp_cmd("Page.printToPDF", {})
        assert len(printed["data"]) > 50_000
        browser.execute_script("window.dispatchEvent(new Event('afterprint'))")
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    color = browser.execute_script(
        "return document.getElementById('plot-spectrum')._fullLayout.font.color"
    )
    assert color == "#e7e9ec"


def test_without_webgl_the_page_says_why_and_shows_the_static_picture(
    pages: dict[str, Path], tmp_path: Path
) -> None:
    driver = launch(tmp_path / "profile", "--disable-3d-apis")
    try:
        show(driver, pages["tame"])
        facts = driver.execute_script(
            """return [...document.querySelectorAll('figure.space')].map((cell) => ({
              why: cell.querySelector('.no-webgl').innerText,
              picture: cell.querySelector('.static-place img')?.getBoundingClientRect().width ?? 0,
              plots: cell.querySelectorAll('.plot').length,
            }))"""
        )
        assert len(facts) == 2
        for cell in facts:
            assert "no WebGL" in cell["why"]
            assert cell["picture"] > 100
            assert cell["plots"] == 0
        drawn = [plot for plot in plots(driver) if plot["id"].startswith("plot-contour-")]
        assert len(drawn) == 2
        assert all(plot["traces"][0]["points"] > 0 and plot["drawn"] for plot in drawn)
        assert [e for e in driver.get_log("browser") if e["level"] == "SEVERE"] == []
    finally:
        driver.quit()


def test_a_variant_of_many_is_put_in_colour_by_its_button(browser: Any, tmp_path: Path) -> None:
    show(browser, write_report(crowded_findings(), tmp_path / "crowd.html"))
    look = """
        const plot = document.getElementById('plot-training-accuracy');
        return plot.data.filter((t) => t.meta.curve === arguments[0] && t.meta.lead)
          .map((t) => [t.line.color, t.visible])[0];
    """
    seeds = """
        const plot = document.getElementById('plot-training-accuracy');
        return plot.data.filter((t) => t.meta.curve === arguments[0] && !t.meta.lead)
          .every((t) => t.visible);
    """
    grey = "#8a8f98"
    assert browser.execute_script(look, 1)[0] != grey
    assert browser.execute_script(look, 9) == [grey, True]
    assert not browser.execute_script(seeds, 9)
    press(browser, "[data-curve='9']", SPACE)
    wait(browser, "return document.querySelector(\"[data-curve='9']\").ariaPressed === 'true'")
    assert browser.execute_script(look, 9)[0] != grey
    assert browser.execute_script(seeds, 9)
    press(browser, "[data-curves='none']", ENTER)
    assert browser.execute_script(look, 1)[0] == grey
    press(browser, "[data-curves='best']", ENTER)
    assert browser.execute_script(look, 1)[0] != grey
    assert browser.execute_script(look, 9)[0] == grey
    overflow = "return document.documentElement.scrollWidth - window.innerWidth"
    assert browser.execute_script(overflow) <= 0
