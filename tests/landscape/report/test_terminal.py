"""The table in the terminal: bounds marked, plain text alone."""

from __future__ import annotations

from landscape.report.terminal import terminal_table
from tests.landscape.report.sample import HOSTILE, probe_findings


def column(table: str, name: str) -> list[str]:
    """The cells under a heading, which ends where they end."""
    head, *rows = table.splitlines()[:-1]
    end = head.index(f"{name}") + len(name)
    return [row[:end].rsplit("  ", 1)[1].strip() for row in rows]


def test_means_over_seeds_of_lower_bounds_are_marked() -> None:
    table = terminal_table(probe_findings(surface=5))
    assert all(cell.startswith("≥ ") for cell in column(table, "worst-case:rho=0.1"))
    assert not any("≥" in cell for cell in column(table, "lambda_max"))
    assert table.splitlines()[-1] == (
        "(± half of the 95 % interval over seeds; ≥ lower bound; lower is flatter)"
    )


def test_a_single_checkpoints_bounds_are_marked_and_the_others_keep_their_errors() -> None:
    findings = probe_findings(methods=("sam",), seeds=1, surface=5)
    findings.checkpoints[0]["eigenvalues"][3]["confirmed"] = False
    table = terminal_table(findings)
    assert column(table, "worst-case:rho=0.1")[0].startswith("≥ ")
    assert column(table, "lambda_min")[0].startswith("≤ ")
    assert "±" in column(table, "trace")[0]
    assert "≤ upper bound" in table


def test_without_a_bound_no_mark_is_explained() -> None:
    findings = probe_findings(methods=("sam",), seeds=1, surface=5)
    for entry in findings.checkpoints[0]["sharpness"].values():
        entry["kind"] = "exact"
    assert "bound" not in terminal_table(findings)


def test_44_a_hostile_name_is_one_cut_line() -> None:
    table = terminal_table(probe_findings(seeds=1, surface=5, names={"erm": HOSTILE}))
    assert len(table.splitlines()) == 1 + 3 + 1
    assert "\u202e" not in table
    assert "x" * 100 not in table
