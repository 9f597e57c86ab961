"""The benchmarks start and count rightly; what they time is printed, never asserted."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.slow
def test_the_counted_benchmark_runs_and_writes_its_table(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--only", "eigenpairs", "--json", tmp_path / "b.json"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "b.json").read_text())
    assert len(rows) == 4
    assert all(row["unit"] == "products" and row["ratio"] > 0 for row in rows)
