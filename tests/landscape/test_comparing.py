"""compare_checkpoints: methods over seeds, paired differences, Kendall's tau."""

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


def test_a_measure_that_one_seed_lacks_is_left_out_for_its_method():
    entries = study()
    entries[3]["trace"] = None
    methods = compare_checkpoints(entries)["methods"]
    assert "trace" in methods[0]["values"]
    assert "trace" not in methods[1]["values"]


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
