"""Under CI=true a skip that nobody allowed is a failure."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent

TESTS = """
import pytest
def test_listed(): pytest.skip("no wings")
def test_unlisted(): pytest.skip("no fins")
@pytest.mark.skipif(True, reason="no legs")
def test_marked(): pass
@pytest.mark.xfail
def test_expected(): assert False
def test_outside(cannot_run): cannot_run("no index")
def test_outside_unlisted(cannot_run): cannot_run("no index")
"""
LIST = "# a comment\ntest_a.py::test_listed  wings\n\ntest_a.py::test_outside  index\n"


@pytest.fixture
def run(tmp_path):
    shutil.copy(HERE / "conftest.py", tmp_path)
    (tmp_path / "allowed_skips.txt").write_text(LIST)
    (tmp_path / "test_a.py").write_text(TESTS)
    (tmp_path / "test_b.py").write_text("import pytest\npytest.importorskip('absent_module')\n")

    def outcome(ci):
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-rA", "--rootdir", ".",
             "-p", "no:cacheprovider", "--continue-on-collection-errors"],
            cwd=tmp_path, env={**os.environ, "CI": ci}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        return done.stdout

    return outcome


def outcomes(text, word):
    return set(re.findall(rf"^{word} (?:test_a\.py::)?(test_\w+)", text, re.MULTILINE))


def test_under_ci_only_what_is_listed_may_be_skipped(run):
    text = run("true")
    failed = outcomes(text, "FAILED")
    assert failed == {"test_unlisted", "test_outside", "test_outside_unlisted"}
    assert "skipped under CI=true and not in allowed_skips.txt: Skipped: no fins" in text
    assert "no legs" in text
    assert "absent_module" in text
    assert outcomes(text, "ERROR") == {"test_marked", "test_b"}  # before the test's own body


def test_elsewhere_a_skip_is_a_skip_and_what_needs_the_network_must_be_listed(run):
    text = run("")
    assert outcomes(text, "FAILED") == {"test_outside_unlisted"}
    assert outcomes(text, "ERROR") == set()


def test_the_list_names_tests_that_exist():
    lines = (HERE / "allowed_skips.txt").read_text().splitlines()
    for line in lines:
        if line.startswith("#"):
            continue
        identifier, reason = line.split(maxsplit=1)
        path, _, name = identifier.partition("::")
        assert f"def {name}(" in (HERE.parent / path).read_text(), identifier
        assert reason
