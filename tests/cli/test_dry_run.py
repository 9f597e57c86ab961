"""dry_run: the document adds up, is strict JSON, and the table says no more than it does."""

import json

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cli.dry_run import Alike, dry_run_document, dry_run_table, foretell
from landscape import ProbePlan
from landscape.costing import (
    Passes,
    Prediction,
    Probed,
    Rate,
    Rates,
    connection_cost,
    predicted_costs,
)
from landscape.probing import Subject, measured_whole

PLAN = ProbePlan(
    eigenvalues=2, ends="top", trace_probes=8, density_runs=2, density_steps=5, surface=5, line=7,
    range=1.0, metrics=("gradient-norm", "sam"), connect="line", first_seed_only=True,
)  # fmt: skip
PROBED = Probed(5210, 1000)


def prediction(*, whole=True, num_connected=0, rows_timed=1000):
    costs = predicted_costs(PLAN, PROBED, whole=whole)
    paths = connection_cost(PLAN, PROBED, num_connected) if num_connected else None
    rates = Rates({Passes(): Rate(0.5, 0.2, 0.1, working_set=3e8)}, 0.0, 0.0, rows_timed)
    return Prediction((*costs, *([paths] if paths else [])), rates, PROBED, overhead=2e7)


@pytest.fixture(scope="module")
def document():
    first = Alike(["erm seed 0", "sam seed 0"], prediction(num_connected=5))
    others = Alike(["erm seed 1", "sam seed 1", "erm seed 2"], prediction(whole=False))
    return dry_run_document([first, others])


def test_it_is_plain_and_strict(document):
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert document["dry_run"] is True


def test_a_row_has_the_counts_of_its_stage(document):
    rows = {(row["stage"], row["part"]): row for row in document["checkpoints"][0]["stages"]}
    trace = rows["trace", ""]
    assert (trace["kind"], trace["times"]) == ("exact", 2)
    assert trace["typical"] == trace["at_most"]
    assert trace["typical"] == {"products": 8, "gradients": 0, "forwards": 0, "seconds": 4.0}
    eigenvalues = rows["eigenvalues", "2 at the top"]
    assert eigenvalues["kind"] == "at most"
    assert eigenvalues["typical"]["products"] < eigenvalues["at_most"]["products"] == 1000
    assert rows["connection", "10 pairs"]["times"] == 1


def test_the_total_is_of_all_checkpoints_and_of_the_paths_once(document):
    whole, rest = prediction(), prediction(whole=False)
    total = document["total"]
    for name in ("products", "gradients", "forwards"):
        expected = sum(
            times * getattr(cost.spent.typical, name)
            for times, costs in ((2, whole.costs), (3, rest.costs))
            for cost in costs
        )
        paths = 10 * 25 if name == "forwards" else 0
        assert total["typical"][name] == pytest.approx(expected + paths)
    seconds = 2 * whole.seconds.typical + 3 * rest.seconds.typical + 250 * 0.1
    assert total["typical"]["seconds"] == pytest.approx(seconds)
    assert total["at_most"]["seconds"] > total["typical"]["seconds"]


def test_processes_share_the_checkpoints_but_not_the_paths(document):
    alone = dry_run_document([Alike(["a", "b"], prediction(num_connected=2))])
    shared = dry_run_document([Alike(["a", "b"], prediction(num_connected=2))], jobs=8)
    assert (alone["jobs"], shared["jobs"]) == (1, 2)
    paths = 25 * 0.1
    assert shared["total"]["typical"]["seconds"] - paths == pytest.approx(
        (alone["total"]["typical"]["seconds"] - paths) / 2
    )
    assert shared["total"]["typical"]["products"] == alone["total"]["typical"]["products"]


def test_memory_is_that_of_the_dearest_checkpoint(document):
    assert document["memory"]["typical"] == prediction().memory.typical
    assert document["memory"]["at_most"] == prediction().memory.most


def test_the_table_has_a_line_a_part_with_both_ends(document):
    lines = dry_run_table(document).splitlines()
    assert lines[0] == "erm seed 0, sam seed 0: 5210 parameters, 1000 rows, each"
    assert lines[1].split() == ["stage", "products", "gradients", "forwards", "time"]
    by_name = {line.split("  ")[0]: line for line in lines}
    assert by_name["trace"].split()[1:] == ["8", "0", "0", "4.0", "s"]
    assert "20 (≤ 1000)" in by_name["eigenvalues: 2 at the top"]
    assert "(≤ 8 min 20 s)" in by_name["eigenvalues: 2 at the top"]
    assert by_name["density: 2 runs of 5 steps"].split()[-5:] == ["10", "0", "0", "5.0", "s"]
    assert by_name["connection: 10 pairs"].split()[-5:-2] == ["0", "0", "250"]
    assert "sampling: none: how many samples there are in all is not known" in lines
    assert sum(line.startswith("one checkpoint") for line in lines) == 2
    assert "timed: a product 0.50 s, a gradient 0.20 s, a forward pass 0.10 s" in "\n".join(lines)
    assert lines[-3] == "all checkpoints: about 2 min 11 s (≤ 43 min 01 s)"
    assert lines[-2] == "memory: about 320 MB (≤ 341 MB), beside the model and the data"


def test_the_table_names_what_was_timed_and_how_many_there_are():
    many = Alike([f"seed {seed}" for seed in range(12)], prediction(rows_timed=500))
    lines = dry_run_table(dry_run_document([many], jobs=3)).splitlines()
    assert lines[0] == (
        "seed 0, seed 1, seed 2 and 9 more: 5210 parameters, 1000 rows (500 of them timed), each"
    )
    assert lines[-3].endswith("in 3 processes")
    assert lines[-2].endswith("each, beside the model and the data")


def test_no_checkpoint_and_no_process_are_refused():
    with pytest.raises(ValueError, match="no checkpoint to probe"):
        dry_run_document([])
    with pytest.raises(ValueError, match="jobs must be >= 1, got 0"):
        dry_run_document([Alike(["a"], prediction())], jobs=0)


def subject(method, seed, *, hidden=4):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, hidden), nn.Tanh(), nn.Linear(hidden, 3))
    batch = torch.randn(30, 5), torch.randint(3, (30,))
    return Subject(model, F.cross_entropy, [batch], label=f"{method} {seed}", method=method)


@pytest.fixture
def hasty(monkeypatch):
    """Times no longer than it must."""
    monkeypatch.setattr("landscape.costing.rates._LEAST_SECONDS", 0.0)


def stages(part):
    return {cost.stage for cost in part.prediction.costs}


def test_checkpoints_that_take_the_same_are_foretold_together(hasty):
    subjects = [subject(method, seed) for method in ("erm", "sam") for seed in (0, 1)]
    subjects.append(subject("wide", 0, hidden=6))
    whole = measured_whole([one.method for one in subjects], PLAN)
    parts = foretell(subjects, PLAN, whole)
    assert [part.labels for part in parts] == [["erm 0", "sam 0"], ["erm 1", "sam 1"], ["wide 0"]]
    assert ["surface" in stages(part) for part in parts] == [True, False, True]
    assert ["connection" in stages(part) for part in parts] == [True, False, False]
    paths = next(cost for cost in parts[0].prediction.costs if cost.stage == "connection")
    assert paths.part == "10 pairs"
    assert parts[2].prediction.probed.num_parameters > parts[0].prediction.probed.num_parameters


def test_the_plane_through_checkpoints_is_that_of_the_first(hasty):
    plan = ProbePlan(directions="checkpoints", metrics=(), density_runs=0, surface=3, line=0)
    subjects = [subject("erm", seed) for seed in range(3)]
    parts = foretell(subjects, plan, frozenset(range(3)))
    assert [part.labels for part in parts] == [["erm 0"], ["erm 1", "erm 2"]]
    assert ["surface" in stages(part) for part in parts] == [True, False]
