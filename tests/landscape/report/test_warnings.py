"""grouped_warnings: told once, with whom they are about."""

from landscape.findings import Findings
from landscape.report.warnings import grouped_warnings


def findings(*warnings, whole=()):
    checkpoints = [
        {"id": f"c{i}", "label": f"net {i}", "warnings": list(given)}
        for i, given in enumerate(warnings)
    ]
    return Findings({"warnings": list(whole), "checkpoints": checkpoints}, {})


def told(*warnings, whole=()):
    found = findings(*warnings, whole=whole)
    return [(g.owner(len(found.checkpoints)), g.message) for g in grouped_warnings(found)]


def test_warnings_alike_but_for_their_numbers_are_told_once():
    assert told(["|g| is 0.337"], ["|g| is 0.31"], ["|g| is 1e-3"], ["other"]) == [
        ("net 0, net 1, net 2 (the numbers are those of net 0)", "|g| is 0.337"),
        ("net 3", "other"),
    ]


def test_what_all_have_is_said_of_all():
    assert told(["kinks"], ["kinks"]) == [("All checkpoints", "kinks")]


def test_many_but_not_all_are_counted():
    four = [["rough"]] * 4
    assert told(*four, []) == [("4 checkpoints", "rough")]


def test_a_warning_about_the_whole_has_no_owner_and_comes_first():
    assert told(["a"], whole=["partial"]) == [("", "partial"), ("net 0", "a")]
