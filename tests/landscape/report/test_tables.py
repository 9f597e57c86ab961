"""The tables: the right rows, the right best, full numbers behind rounded ones."""

from __future__ import annotations

import csv
import io
import re

import pytest

from landscape.report import captions, layers, tables
from landscape.report.measures import common_bound, flatness_measures, measure_of, named
from landscape.report.methods import REFERENCES, methods_html, methods_of
from landscape.sharpness import METRICS
from tests.landscape.report.sample import (
    crowded_findings,
    full_findings,
    probe_findings,
    training_findings,
)


def test_the_checkpoint_table_has_a_row_each_with_sortable_full_numbers() -> None:
    findings = probe_findings()
    html = tables.checkpoint_table(findings)
    assert html.count("<tr>") == 1 + 9
    values = [float(v) for v in re.findall(r'data-value="([^"]+)"', html)]
    for checkpoint in findings.checkpoints:
        for value in (checkpoint["loss"], *(p["value"] for p in checkpoint["eigenvalues"])):
            assert value in values


def test_the_best_value_of_a_column_is_marked_in_words() -> None:
    findings = probe_findings()
    rows = tables.checkpoint_table(findings).split("<tr>")[2:]
    best = max(range(9), key=lambda i: findings.checkpoints[i]["test_accuracy"])
    flattest = min(range(9), key=lambda i: findings.checkpoints[i]["trace"]["value"])
    marked = [i for i, row in enumerate(rows) if ">best<" in row]
    assert best in marked
    assert ">flattest<" in rows[flattest]


def test_ties_missing_values_and_single_values_have_no_best() -> None:
    loss = measure_of("loss")
    assert tables.best_row([0.3, 0.1, 0.2], loss) == 1
    assert tables.best_row([0.1, 0.1, 0.2], loss) is None
    assert tables.best_row([None, 0.2], loss) is None
    assert tables.best_row([float("nan"), 0.2, 0.1], loss) == 2
    assert tables.best_row([0.9, 0.8], measure_of("test_accuracy")) == 0
    assert tables.best_row([0.9, 0.8], measure_of("gradient_norm")) is None


def test_an_eigenvalue_that_did_not_converge_says_so_in_its_cell() -> None:
    findings = probe_findings(methods=("sam",), seeds=1)
    pair = findings.checkpoints[0]["eigenvalues"][0]
    assert "not converged" not in tables.checkpoint_table(findings)
    pair["converged"] = False
    assert "not converged" in tables.checkpoint_table(findings)


def test_the_method_table_has_means_with_intervals_and_paired_differences() -> None:
    findings = probe_findings()
    comparison = findings.document["comparison"]
    html = tables.method_table(findings, comparison, name="t")
    accuracy = comparison["methods"][1]["values"]["test_accuracy"]
    low, high = accuracy["interval"]
    assert f"{100 * accuracy['mean']:.2f} [{100 * low:.2f}, {100 * high:.2f}] %" in html
    paired = comparison["methods"][1]["paired"]["test_accuracy"]
    assert f"Δ +{100 * paired['difference']:.2f} [" in html
    assert html.count("3 seeds") == 3
    assert html.count("reference") == 1


def test_a_method_table_of_single_seeds_claims_no_interval() -> None:
    findings = probe_findings(seeds=1)
    html = tables.method_table(findings, findings.document["comparison"], name="t")
    assert re.search(r"\d \[", html) is None


def test_the_training_comparison_reads_as_the_probes_comparison_does() -> None:
    comparison = training_findings().document["training"]["comparison"]
    normal = tables.training_comparison(comparison)
    assert [entry["method"] for entry in normal["methods"]] == ["erm", "sam", "ae-sam"]
    assert "test_accuracy" in normal["measures"]
    assert "seeds" not in normal["measures"]
    html = tables.method_table(training_findings(), normal, name="t")
    assert "47.0 [" in html or "46." in html  # the share of perturbed steps of ae-sam
    assert "gradients spent" in html


def test_csv_has_every_digit_and_starts_no_formula() -> None:
    findings = probe_findings(names={"erm": '=HYPERLINK("http://x")'}, seeds=1)
    rows = list(csv.DictReader(io.StringIO(tables.comparison_csv(findings))))
    assert rows[0]["label"].startswith("'=HYPERLINK(")
    assert float(rows[1]["lambda_1"]) == findings.checkpoints[1]["eigenvalues"][0]["value"]
    assert rows[0]["seed"] == "0"


def test_the_second_opinion_stands_beside_ours_with_its_difference() -> None:
    html = tables.opinion_table(probe_findings())
    assert html.count("<tr>") == 1 + 3 * 4
    assert "PyHessian 0.1" in html
    assert "−0.050 %" in html
    assert "3.0 %" in html


def test_layers_have_a_row_each_and_a_column_a_checkpoint() -> None:
    html = layers.table(probe_findings(seeds=1))
    assert html.count("<tr>") == 1 + 3
    assert html.count('<th scope="col">') == 3 + 3 * 3


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("lambda-max", "λmax"),
        ("lambda_max", "λmax"),
        ("worst-case:rho=0.1", "worst case, ρ = 0.1"),
        ("something-new:k=3", "something-new, k=3"),
    ],
)
def test_measures_have_titles_and_unknown_ones_their_own_name(name: str, title: str) -> None:
    assert measure_of(name).title == title


def test_a_sharpness_names_the_radius_that_it_was_measured_at() -> None:
    assert named(probe_findings(), "sam").title == "SAM sharpness, ρ = 0.05"


def test_the_gap_is_of_accuracies_and_of_losses_only_without_them() -> None:
    findings = probe_findings(methods=("sam",), seeds=1)
    assert named(findings, "gap").percent
    findings.checkpoints[0]["test_accuracy"] = None
    assert named(findings, "gap").title == "loss gap"
    assert "test loss" in captions.gap_words(findings)


def test_the_verdict_says_whether_intervals_are_apart() -> None:
    findings = probe_findings()
    text = captions.verdict(findings, findings.document["comparison"])
    assert "Highest mean test accuracy: <b>sam</b>" in text
    sam, ae = (findings.document["comparison"]["methods"][i]["values"]["trace"] for i in (1, 2))
    overlap = sam["interval"][1] >= ae["interval"][0]
    line = next(part for part in text.split("<li>") if "tr H" in part)
    assert ("overlap" in line) == overlap


def test_methods_are_written_from_what_was_run() -> None:
    html = methods_html(full_findings())
    for words in (
        "10 runs of 15 steps",
        "16 products a checkpoint",
        "60 gradients, 80 forward passes",
        "1 gradient, 1 forward pass over",
        "27 of 36 here",
        "N = 1000 loss terms",
        "59 held-out points",
        "5210 parameters, evaluated in float32",
    ):
        assert words in html, words


def test_methods_of_a_training_speak_of_no_hessian() -> None:
    titles = [method.title for method in methods_of(training_findings())]
    assert titles == [
        "Training",
        "Rules trained",
        "Edge of stability",
        "Switching signal",
        "Comparison",
    ]


def test_every_reference_is_cited_from_somewhere_and_every_citation_resolves() -> None:
    used: set[str] = set()
    for matrix, way in (("ggn", "hutchpp"), ("fisher", "xtrace"), ("mc-fisher", "hutchinson")):
        findings = full_findings(connect="bezier")
        findings.document["settings"]["matrix"] = matrix
        for name in METRICS:
            measured = {"value": 1.0, "kind": "estimate"}
            findings.checkpoints[0]["sharpness"].setdefault(name, measured)
        for checkpoint in findings.checkpoints:
            checkpoint["trace"]["method"] = way
        html = methods_html(findings)
        cited = {int(n) for n in re.findall(r'href="#reference-(\d+)"', html)}
        listed = {int(n) for n in re.findall(r'id="reference-(\d+)"', html)}
        assert cited == listed
        used |= {source for method in methods_of(findings) for source in method.sources}
    assert used == set(REFERENCES)


def test_keys_that_were_missing_when_loading_become_a_warning() -> None:
    report = {"missing": ["a.weight", "b.weight"], "unexpected": [], "casts": []}
    assert captions.load_notes({"load_report": report}) == [
        "2 keys were missing from the file: a.weight, b.weight"
    ]


def test_many_variants_are_rows_that_sort_with_the_same_numbers() -> None:
    findings = crowded_findings()
    normal = tables.training_comparison(findings.document["training"]["comparison"])
    html = tables.method_rows(findings, normal, name="t")
    assert html.count("<tr>") == 1 + 12
    head, first, *_ = html.split("<tr>")[1:]
    columns = re.findall(r'class="sort">([^<]*(?:<sub>max</sub>)?)', head)
    assert columns[0] == "variant"
    assert {"test accuracy", "λ<sub>max</sub>", "probe loss", "worst case, ρ = 0.05"} <= set(
        columns
    )
    assert "of them refreshes" not in columns  # there were none
    assert first.count("<td") == len(columns) - 1
    row = html.split("<tr>")[2 + 3]
    assert "Adam (amsgrad), lr 0.001" in row
    assert "SGD" not in html  # what most use is told once, elsewhere
    assert "Δ +0.0300" in row


def test_the_caption_of_many_variants_tells_the_ends_alone() -> None:
    findings = crowded_findings()
    assert re.fullmatch(r"At the end: v11 [\d.]+ % to v00 [\d.]+ %\.",
                        captions.training(findings, "accuracy"))  # fmt: skip
    assert captions.runs(findings).startswith("24 runs of 12 variants, 2 seeds each.")
    words = captions.probe(findings.document["training"]["comparison"])
    assert "on the same 500 training samples" in words
    assert captions.probe({}) == ""


def test_a_measure_of_the_spectrum_has_its_column_where_no_eigenpairs_show_it() -> None:
    findings = probe_findings(seeds=1)
    for checkpoint in findings.checkpoints:
        checkpoint["eigenvalues"] = [p for p in checkpoint["eigenvalues"] if p["end"] == "top"]
        checkpoint["sharpness"]["lambda-min"] = {"value": -0.25, "kind": "estimate"}
        checkpoint["sharpness"]["lambda-max"] = {"value": 7.0, "kind": "estimate"}
    html = tables.checkpoint_table(findings)
    assert html.count("λ<sub>min</sub>") == 1
    assert html.count("−0.2500") == 3
    assert 'data-value="7.0"' not in html  # that of the eigenpairs stands there
    assert any("v<sup>T</sup>" in m.formula or "vᵀHv" in m.formula for m in methods_of(findings))
    for checkpoint in findings.checkpoints:
        checkpoint["eigenvalues"] = []
    assert tables.checkpoint_table(findings).count('data-value="7.0"') == 3
    flatness = [measure.name for measure in flatness_measures(findings)]
    assert flatness.count("lambda-max") == 1
    assert "lambda-min" not in flatness


def test_bounds_are_marked_in_every_table_and_explained_below_it() -> None:
    findings = probe_findings()
    lower = findings.checkpoints[0]["sharpness"]["worst-case:rho=0.1"]["value"]
    html = tables.checkpoint_table(findings)
    assert re.search(rf'data-value="{lower}">≥\u00a0', html)
    assert html.count("≥\u00a0") == 9 + 9  # the worst case and the unconfirmed third eigenvalue
    assert "<b>≥</b> is a lower bound" in html
    assert "<b>≤</b>" not in html
    methods = tables.method_table(findings, findings.document["comparison"], name="t")
    (row,) = (r for r in methods.split("<tr>") if "worst case" in r)
    assert row.count("≥\u00a0") == 3
    assert "The difference of two bounds is no bound." in methods
    verdict = captions.verdict(findings, findings.document["comparison"])
    assert "worst case" not in verdict or "≥" in verdict
    assert named(findings, "worst-case:rho=0.1").bound == "lower"


def test_an_upper_bound_is_marked_as_one() -> None:
    findings = probe_findings(methods=("sam",), seeds=1)
    findings.checkpoints[0]["sharpness"]["average-case"]["kind"] = "upper bound"
    html = tables.checkpoint_table(findings)
    assert html.count("≤\u00a0") == 1
    assert "<b>≤</b> is an upper bound" in html


@pytest.mark.parametrize(
    ("kinds", "bound"),
    [
        (("lower bound", "lower bound"), "lower"),
        (("lower bound", "estimate"), "lower"),
        (("lower bound", "upper bound"), ""),
        (("exact", "estimate"), ""),
        ((None, None), "lower"),
    ],
)
def test_a_mean_is_a_bound_where_some_of_its_values_are(
    kinds: tuple[str | None, ...], bound: str
) -> None:
    checkpoints = [{"sharpness": {"worst-case": {"value": 1.0, "kind": kind}}} for kind in kinds]
    assert common_bound(checkpoints, "worst-case") == bound


def test_the_mean_of_eigenvalues_of_which_one_is_not_confirmed_is_a_lower_bound() -> None:
    findings = probe_findings()
    assert common_bound(findings.checkpoints, "lambda-max") == ""
    findings.checkpoints[4]["eigenvalues"][0]["confirmed"] = False
    assert common_bound(findings.checkpoints, "lambda-max") == "lower"
    findings.checkpoints[4]["eigenvalues"][3]["converged"] = False
    assert common_bound(findings.checkpoints, "lambda-min") == "upper"


def test_a_mean_over_fewer_seeds_than_its_method_has_says_so() -> None:
    findings = probe_findings()
    findings.document["comparison"]["methods"][1]["values"]["trace"]["num_missing"] = 1
    html = tables.method_table(findings, findings.document["comparison"], name="t")
    assert html.count("without 1 of its seeds") == 1


def test_the_trace_is_called_after_the_matrix_that_was_measured() -> None:
    findings = probe_findings(seeds=1)
    for matrix, letter in (("hessian", "H"), ("ggn", "G"), ("remainder", "R"), ("mc-fisher", "F")):
        findings.document["settings"]["matrix"] = matrix
        assert f"tr {letter}" in tables.checkpoint_table(findings)
        html = methods_html(findings)
        assert f"tr {letter} ≈" in html
    assert "Monte-Carlo Fisher matrix" in html
    assert captions.matrix(findings) == "Monte-Carlo Fisher matrix"


@pytest.mark.parametrize(
    ("way", "words", "source"),
    [
        ("hutchinson", "Rademacher probes", "hutchinson1990"),
        ("hutchpp", "Hutch++", "meyer2021"),
        ("xtrace", "XTrace", "epperly2024"),
        (None, "Rademacher probes", "hutchinson1990"),
    ],
)
def test_the_method_of_the_trace_is_the_one_that_was_run(
    way: str | None, words: str, source: str
) -> None:
    findings = probe_findings(seeds=1)
    for checkpoint in findings.checkpoints:
        checkpoint["trace"]["method"] = way
    (method,) = (m for m in methods_of(findings) if m.title == "Trace")
    assert words in method.text
    assert method.sources == (source,)


def test_the_papers_of_the_rules_trained_are_cited_once() -> None:
    findings = training_findings(epochs=2)
    papers = findings.document["training"]["papers"]
    papers.update({"sam-2": papers["sam"], "new": "Nobody et al. 2031, arXiv 3101.00001"})
    (method,) = (m for m in methods_of(findings) if m.title == "Rules trained")
    assert "sam, sam-2 after Foret et al. 2021, arXiv 2010.01412" in method.text
    # Foret 2021 and Jiang 2023 are references already; who is not is listed as given.
    assert method.sources == ("foret2021", "jiang2023", papers["new"])
    assert "<li id=" in methods_html(findings)
    assert "Nobody et al. 2031, arXiv 3101.00001</li>" in methods_html(findings)
    papers["sam"] = "Foret et al. 2021, arXiv 9999.99999"  # of another number: another paper
    (method,) = (m for m in methods_of(findings) if m.title == "Rules trained")
    assert papers["sam"] in method.sources


def test_what_the_running_training_loss_is_stands_with_it_and_in_the_methods() -> None:
    findings = training_findings(epochs=3)
    assert "on all training data" in captions.training(findings, "loss")
    assert "last weights" in measure_of("train_loss").title
    assert captions.TRAINING_TITLES["loss"] == "Training loss, running mean of each epoch"


def test_the_edge_and_the_signal_are_explained_only_where_they_are_drawn() -> None:
    titles = {method.title for method in methods_of(training_findings(epochs=1))}
    assert "Edge of stability" not in titles  # one point of lambda_max is no curve
    assert "Switching signal" not in titles


def test_a_second_opinion_with_nothing_to_compare_does_not_disagree() -> None:
    findings = probe_findings(seeds=1)
    findings.checkpoints[0]["second_opinion"]["agrees"] = None
    assert "erm seed 0 had nothing to compare" in captions.opinions(findings)


def test_a_density_of_few_runs_claims_no_band() -> None:
    findings = probe_findings(seeds=1, surface=5)
    assert "with its 95 % band" in captions.spectrum(findings)
    assert "The band is the 95 % t interval" in methods_html(findings)
    for name in [name for name in findings.arrays if name.endswith(("_lower", "_upper"))]:
        del findings.arrays[name]
    assert "too few for a band" in captions.spectrum(findings)
    assert "The band is" not in methods_html(findings)


@pytest.mark.parametrize("kind", ["pca", "checkpoints"])
def test_a_plane_through_points_of_its_own_does_not_claim_shared_axes(kind: str) -> None:
    findings = probe_findings(seeds=1, surface=5)
    assert "all share axes" in methods_html(findings)
    findings.document["settings"]["directions"] = kind
    assert "all share axes" not in methods_html(findings)


def test_a_share_has_its_error_in_per_cent_too() -> None:
    findings = probe_findings(seeds=1)
    for checkpoint in findings.checkpoints:
        checkpoint["sharpness"]["negative-mass:num_runs=4"] = {
            "value": 0.081,
            "standard_error": 0.005,
            "kind": "estimate",
        }
    html = tables.checkpoint_table(findings)
    assert "mass below zero, num_runs=4" in html
    assert "8.10 %" in html
    assert "± 0.500 %" in html
