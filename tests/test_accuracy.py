"""The table of docs/accuracy.md: it can be remade, it can fail, and it has every measure."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import accuracy
from landscape import Objective
from landscape.estimate import Cost
from landscape.sharpness import METRICS

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs/accuracy.md").read_text("utf-8")
TABLE = PAGE.split("<!-- table:begin -->\n")[1].split("<!-- table:end -->")[0]
QUANTITIES = [line.split(" | ")[0].removeprefix("| ") for line in TABLE.splitlines()[2:]]


@pytest.mark.slow
def test_the_table_is_remade_and_every_row_of_it_holds(tmp_path):
    (tmp_path / "page.md").write_text(PAGE, "utf-8")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks.accuracy"),
            *("--json", tmp_path / "a.json", "--write", tmp_path / "page.md"),
        ],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "a.json").read_text())
    assert all(row["holds"] for row in rows)
    assert [row["quantity"] for row in rows] == QUANTITIES
    remade = (tmp_path / "page.md").read_text("utf-8")
    assert remade.split("<!-- table:begin -->")[0] == PAGE.split("<!-- table:begin -->")[0]
    assert [line.split(" | ")[:2] for line in remade.splitlines() if line.startswith("| ")] == [
        line.split(" | ")[:2] for line in PAGE.splitlines() if line.startswith("| ")
    ]


def test_the_page_has_every_measure_and_the_command_that_makes_it():
    named = {name for cell in QUANTITIES for name in re.findall(r"`([a-z-]+)", cell)}
    assert named == set(METRICS)
    assert "python -m benchmarks.accuracy --write docs/accuracy.md" in PAGE
    assert len(QUANTITIES) == len(set(QUANTITIES)) > 50
    for line in TABLE.splitlines():
        assert line.count(" | ") == len(accuracy.HEADER) - 1


@pytest.mark.parametrize(
    ("kind", "stated", "good", "bad"),
    [
        ("exact", None, 2.0 + 1e-12, 2.0 + 1e-6),
        ("standard error", 0.1, 2.39, 2.41),
        ("residual", 1e-3, 2.0009, 2.0011),
        ("lower bound", None, 1.999, 1.99),
        ("lower bound", None, 2.0, 2.0001),
        ("held-out error", 0.1, 1.61, 1.59),
        ("tolerance", 0.1, 2.09, 2.11),
        ("standard error", 0.1, 2.0, float("nan")),
    ],
)
def test_a_row_holds_as_long_as_its_error_is_what_its_kind_promises(kind, stated, good, bad):
    row = accuracy.compared("q", "s", 2.0, good, Cost(), stated=stated, kind=kind)
    assert row.holds
    assert not replace(row, value=bad, error=abs(bad - 2.0)).holds


def test_a_product_that_is_off_by_a_millionth_does_not_hold(monkeypatch):
    net = accuracy.small_net(num_steps=5)
    rows = list(accuracy.losses_and_matrices(net, accuracy.objective_of(net)))
    assert all(row.holds for row in rows)
    honest = Objective.hvp
    monkeypatch.setattr(Objective, "hvp", lambda *arguments: (1 + 1e-6) * honest(*arguments))
    rows = list(accuracy.losses_and_matrices(net, accuracy.objective_of(net)))
    assert [row.quantity for row in rows if not row.holds] == ["Hessian product"]


def test_a_page_without_its_markers_is_refused(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("no table", "utf-8")
    with pytest.raises(SystemExit, match="expected the two markers of the table once"):
        accuracy.put_into(page, "x")
