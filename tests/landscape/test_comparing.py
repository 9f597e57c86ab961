"""compare_checkpoints: methods over seeds, paired differences, Kendall's tau."""

import math

import pytest

from landscape.comparing import compare_checkpoints, generalisation_gap, scalars


def checkpoint(method, seed, top, gap):
    return {
        "method": method,
        "seed": seed,
        "loss": 0.1,
        "accuracy": 0.9,
        "test_loss": 0.5,
        "test_accuracy": 0.9 - gap,
        "gradient_norm": 0.01,
        "eigenvalues": [
            {"value": top, "end": "top"},
            {"value": top / 2, "end": "top"},
            {"value": -0.2, "end": "bottom"},
            {"value": -0.3, "end": "bottom"},
        ],
        "trace": {"value": 3 * top},
        "sharpness": {"sam": {"value": top / 10}, "lambda-max": {"value": top}},
    }


def study():
    return [
        checkpoint("erm", 0, 8.0, 0.20),
        checkpoint("erm", 1, 9.0, 0.25),
        checkpoint("sam", 0, 4.0, 0.10),
        checkpoint("sam", 1, 4.5, 0.12),
        checkpoint("sam", 2, 4.2, 0.11),
    ]


def test_methods_are_summarised_over_their_seeds():
    comparison = compare_checkpoints(study())
    erm, sam = comparison["methods"]
    assert comparison["reference"] == "erm"
    assert (erm["num_seeds"], sam["num_seeds"]) == (2, 3)
    assert erm["values"]["lambda-max"]["mean"] == 8.5
    assert sam["values"]["lambda-min"]["mean"] == pytest.approx(-0.3)
    assert erm["paired"] is None


def test_differences_are_paired_by_seed_and_not_by_position():
    shuffled = [study()[i] for i in (0, 1, 4, 3, 2)]
    sam = compare_checkpoints(shuffled)["methods"][1]
    assert sam["paired"]["lambda-max"]["difference"] == pytest.approx(-4.25)
    assert sam["paired"]["lambda-max"]["num_pairs"] == 2


def test_tau_with_the_gap_counts_concordant_pairs():
    comparison = compare_checkpoints(study())
    tau = {entry["measure"]: entry["tau"] for entry in comparison["correlation"]}
    assert tau["lambda-max"] == pytest.approx(1.0)
    flipped = study()
    flipped[0]["test_accuracy"] = 0.9 - 0.01
    tau = {e["measure"]: e["tau"] for e in compare_checkpoints(flipped)["correlation"]}
    assert tau["lambda-max"] == pytest.approx((7 - 3) / 10)


def many(num_methods=5, num_seeds=3):
    """Curvature and gap rise together over the methods; within a method one falls as one rises."""
    return [
        checkpoint(f"sam:rho={method}", seed, 10.0 * method + seed, 0.1 * method - 0.01 * seed)
        for method in range(num_methods)
        for seed in range(num_seeds)
    ]


def correlation_of(entries, measure="lambda-max"):
    found = {entry["measure"]: entry for entry in compare_checkpoints(entries)["correlation"]}
    return found[measure]


def test_the_cells_of_tau_are_the_methods_with_their_options():
    entry = correlation_of(many())
    assert (entry["num_checkpoints"], entry["num_cells"], entry["num_missing"]) == (15, 5, 0)
    assert entry["tau"] == pytest.approx((90 - 15) / 105)
    assert entry["within"] == -1
    low, high = entry["interval"]
    assert -1 < low < entry["tau"] < high < 1
    assert entry["interval_skipped"] is None
    assert entry["within_interval"] is None
    assert entry["within_interval_skipped"].startswith("every draw of cells")


def test_two_methods_have_a_tau_without_an_interval_and_say_why():
    entry = correlation_of(study())
    assert (entry["num_cells"], entry["interval"], entry["within_interval"]) == (2, None, None)
    assert entry["interval_skipped"] == "2 cells: an interval from resampling them needs 4"
    assert entry["within"] == pytest.approx(1.0)


def test_methods_of_one_seed_have_no_tau_within():
    entry = correlation_of(many(num_methods=6, num_seeds=1))
    assert (entry["tau"], entry["within"], entry["within_interval"]) == (1, None, None)
    assert entry["within_interval_skipped"] == "there are no cells of two or more"


def test_a_measure_that_a_checkpoint_lacks_is_correlated_over_the_others():
    entries = many()
    entries[0]["trace"] = None
    entries[1]["sharpness"]["sam"]["value"] = math.inf
    entries[1]["sharpness"]["worst-case"] = {"value": 1.0}
    entry = correlation_of(entries, "trace")
    assert (entry["num_checkpoints"], entry["num_missing"]) == (14, 1)
    assert entry["tau"] == pytest.approx(correlation_of(entries[1:], "trace")["tau"])
    assert correlation_of(entries, "sam")["num_missing"] == 1
    assert correlation_of(entries)["num_missing"] == 0
    rare = correlation_of(entries, "worst-case")  # the first checkpoint does not have it
    assert (rare["tau"], rare["num_checkpoints"], rare["num_missing"]) == (None, 1, 14)
    assert rare["interval_skipped"] == "it and a gap are known of 1 checkpoint(s): a tau needs 4"


def test_a_checkpoint_without_a_gap_counts_as_missing():
    entries = many()
    entries[2]["test_accuracy"] = entries[2]["test_loss"] = None
    assert correlation_of(entries)["num_missing"] == 1
    for entry in entries:
        entry["test_accuracy"] = entry["test_loss"] = None
    assert compare_checkpoints(entries)["correlation"] is None


def test_a_measure_that_one_seed_lacks_is_summarised_over_the_others_and_said():
    entries = study()
    entries[3]["trace"] = None
    comparison = compare_checkpoints(entries)
    erm, sam = comparison["methods"]
    assert erm["values"]["trace"]["num_missing"] == 0
    assert sam["values"]["trace"]["num_missing"] == 1
    assert sam["values"]["trace"]["mean"] == pytest.approx(3 * (4.0 + 4.2) / 2)
    assert sam["paired"]["trace"]["num_missing"] == 1
    assert sam["paired"]["trace"]["num_pairs"] == 1
    assert sam["paired"]["trace"]["difference"] == pytest.approx(3 * (4.0 - 8.0))
    assert sam["paired"]["lambda-max"]["num_missing"] == 0
    assert comparison["warnings"] == [
        "trace is missing or not finite in 1 of 3 checkpoints of sam: its mean and differences are "
        "over the others"
    ]


def test_a_measure_that_a_whole_method_lacks_is_left_out_for_it_alone():
    entries = study()
    for entry in entries[2:]:
        entry["trace"] = None
    comparison = compare_checkpoints(entries)
    erm, sam = comparison["methods"]
    assert "trace" in erm["values"]
    assert "trace" not in sam["values"]
    assert "trace" not in sam["paired"]
    assert comparison["warnings"] == []


def test_a_single_checkpoint_is_not_compared():
    assert compare_checkpoints(study()[:1]) is None


def test_the_gap_without_accuracies_is_that_of_the_losses():
    entry = checkpoint("erm", 0, 1.0, 0.1)
    assert generalisation_gap(entry) == pytest.approx(0.1)
    entry["accuracy"] = None
    assert generalisation_gap(entry) == pytest.approx(0.4)
    entry["test_loss"] = None
    assert generalisation_gap(entry) is None


def test_what_has_no_seed_is_paired_with_nothing():
    entries = [checkpoint("a", None, 1.0, 0.1), checkpoint("a", None, 1.1, 0.1)]
    entries += [checkpoint("b", None, 0.5, 0.1), checkpoint("b", None, 0.6, 0.1)]
    assert compare_checkpoints(entries)["methods"][1]["paired"] == {}


def test_lambda_min_is_the_last_of_a_whole_spectrum():
    entry = checkpoint("erm", 0, 8.0, 0.2)
    entry["eigenvalues"] = [{"value": v, "end": "top"} for v in (3.0, 1.0, -2.0)]
    entry["num_parameters"] = 3
    assert scalars(entry)["lambda-min"] == -2.0
    entry["num_parameters"] = 4
    assert "lambda-min" not in scalars(entry)
