"""Costs: what each stage spent, summed over checkpoints, in the provenance."""

from __future__ import annotations

import re

from landscape.report import captions, costs
from tests.landscape.report.sample import HOSTILE, probe_findings


def test_stages_are_summed_over_checkpoints_with_the_paths_and_a_total() -> None:
    findings = probe_findings(seeds=1, surface=5)
    html = costs.table(findings)
    rows = {
        re.sub("<.*?>", "", row.split("</th>")[0]): [
            float(v) for v in re.findall(r'data-value="([^"]+)"', row)
        ]
        for row in html.split("<tr>")[2:]
    }
    assert rows["eigenvalues"][:3] == [3 * 71, 0, 0]
    assert rows["self check"][0] == 9
    assert rows["paths"] == [0, 0, 75, 14.0]
    for column in range(4):
        parts = sum(values[column] for name, values in rows.items() if name != "all stages")
        assert abs(rows["all stages"][column] - parts) < 1e-9


def test_costs_are_folded_into_the_provenance() -> None:
    html = captions.provenance_tables(probe_findings(seeds=1, surface=5))
    assert "<summary>Cost by stage</summary>" in html


def test_findings_that_say_no_costs_have_no_table() -> None:
    findings = probe_findings(seeds=1, surface=5)
    findings.document["connection"] = None
    for checkpoint in findings.checkpoints:
        del checkpoint["costs"]
    assert costs.table(findings) == ""
    assert "Cost by stage" not in captions.provenance_tables(findings)


def test_44_a_hostile_stage_is_text() -> None:
    findings = probe_findings(seeds=1, surface=5)
    findings.checkpoints[0]["costs"][HOSTILE] = {"products": 1}
    assert "<img" not in costs.table(findings)
