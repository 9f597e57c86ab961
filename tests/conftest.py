"""What every test may rely on: that none is skipped unseen.

`allowed_skips.txt` names the tests that a machine may be unable to run, a line each: its id without
parameters, and why. Where CI=true every other skip is a failure.
"""

import functools
import os
from pathlib import Path

import pytest

ALLOWED = Path(__file__).with_name("allowed_skips.txt")


@functools.cache
def allowed_skips():
    """The reasons by test id; read once, before a test replaces what reads files."""
    lines = ALLOWED.read_text(encoding="utf-8").splitlines()
    rows = [line.split(maxsplit=1) for line in lines if line.strip() and line[0] != "#"]
    return dict(rows)


def is_ci():
    return os.environ.get("CI", "").lower() == "true"


def _refuse(report):
    """The report; that of a skip which is not allowed becomes one of a failure."""
    if not (report.skipped and is_ci()) or hasattr(report, "wasxfail"):
        return report
    if report.nodeid.partition("[")[0] not in allowed_skips():
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"skipped under CI=true and not in {ALLOWED.name}: {reason}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    return _refuse((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    return _refuse((yield))


@pytest.fixture
def cannot_run(request):
    """Ends the test for want of something outside: a skip if the list has it, a failure in CI."""

    def end(reason):
        if is_ci() or request.node.nodeid.partition("[")[0] not in allowed_skips():
            pytest.fail(reason)
        pytest.skip(reason)

    return end
