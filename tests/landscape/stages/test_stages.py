"""The stages of a probe against dense matrices: what the report says of a checkpoint is so."""

import dataclasses
import math
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from landscape import ProbePlan
from landscape.curvature import Hessian
from landscape.linalg import lanczos
from landscape.probing import Subject, probe_all
from landscape.stages import dynamics as stages_dynamics
from landscape.stages import layers, spectrum
from tests.landscape.stages.nets import (
    batches,
    data,
    dense_gauss_newton,
    dense_hessian,
    net,
    outputs,
    sample_gradients,
    theta_of,
)

BARE = {"surface": 0, "line": 0, "density_runs": 0, "trace_probes": 0, "metrics": ()}
NAMES = ["0.weight", "0.bias", "2.weight", "2.bias"]


def probed(model=None, loss=F.cross_entropy, data=None, told=None, **plan):
    subject = Subject(
        model or net(), loss, batches() if data is None else data, label="net", **(told or {})
    )
    return probe_all([subject], plan=ProbePlan(**{**BARE, "tolerance": 1e-8, **plan}))


def entry_of(*args, **options):
    return probed(*args, **options).checkpoints[0]


def tops(entry):
    return [pair["value"] for pair in entry["eigenvalues"] if pair["end"] == "top"]


# -- the matrix -----------------------------------------------------------------------------------


def test_each_matrix_has_the_eigenvalues_of_its_dense_form():
    model = net()
    hessian, gauss_newton = dense_hessian(model), dense_gauss_newton(model)
    gradients = sample_gradients(model)
    dense = {
        "hessian": hessian,
        "ggn": gauss_newton,
        "remainder": hessian - gauss_newton,
        "fisher": gradients.T @ gradients / 50,
    }
    for name, matrix in dense.items():
        truth = torch.linalg.eigvalsh(matrix).flip(0)[:3]
        found = tops(entry_of(matrix=name, eigenvalues=3, ends="top"))
        assert found == pytest.approx(truth.tolist(), rel=1e-7), name


def test_the_monte_carlo_fisher_is_drawn_by_the_plans_seed():
    first, again, other = (
        tops(entry_of(matrix="mc-fisher", eigenvalues=1, ends="top", seed=seed))[0]
        for seed in (3, 3, 4)
    )
    assert first == again != other


def test_central_differences_are_near_the_hessian_and_marked():
    truth = torch.linalg.eigvalsh(dense_hessian(net()))[-1]
    entry = entry_of(approximate=True, eigenvalues=1, ends="top", tolerance=1e-5)
    assert tops(entry)[0] == pytest.approx(float(truth), rel=1e-5)
    assert entry["self_check"]["approximate"] is True
    assert 0 < entry["matrix_error"] < 1e-5
    assert any("central differences" in warning for warning in entry["warnings"])


def test_central_differences_across_kinks_are_refused_unless_asked_for():
    model = net(activation=nn.ReLU)
    with pytest.raises(ValueError, match="kinks of Relu"):
        probed(model, approximate=True, eigenvalues=1, ends="top")
    entry = entry_of(
        model, approximate=True, across_kinks=True, eigenvalues=1, ends="top", tolerance=1e-3
    )
    assert math.isfinite(tops(entry)[0])


def test_the_self_check_is_recorded_before_the_spectrum():
    entry = entry_of(eigenvalues=1, ends="top")
    checked = entry["self_check"]
    assert checked["passed"] is True
    assert checked["operator"] == "Hessian"
    assert {checked[name]["status"] for name in ("symmetry", "determinism", "difference")} == {
        "passed"
    }
    assert checked["difference"]["relative_error"] < 1e-6
    assert list(entry["costs"]).index("self-check") < list(entry["costs"]).index("eigenvalues")


def test_an_operator_twice_too_large_fails_the_self_check_and_is_warned_of(monkeypatch):
    class Doubled(Hessian):
        def _matvec(self, v):
            return 2 * super()._matvec(v)

    monkeypatch.setitem(spectrum._MATRICES, "hessian", Doubled)
    entry = entry_of(eigenvalues=1, ends="top")
    assert entry["self_check"]["passed"] is False
    assert any("failed its self-check" in warning for warning in entry["warnings"])


# -- the spectrum ---------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["hutchinson", "hutchpp", "xtrace"])
def test_each_trace_method_is_within_its_error(method):
    truth = float(dense_hessian(net()).trace())
    trace = entry_of(trace_method=method, trace_probes=48, eigenvalues=0)["trace"]
    assert trace["method"] == method
    assert trace["num_matvecs"] <= 48
    assert abs(trace["value"] - truth) <= 4 * trace["standard_error"] + 1e-9 * abs(truth)


def test_the_diagonal_is_the_dense_one_within_its_errors():
    findings = probed(diagonal_probes=400, eigenvalues=0)
    truth = dense_hessian(net()).diagonal().numpy()
    values, errors = (findings.arrays[f"diagonal_c0_{name}"] for name in ("values", "errors"))
    inside = abs(values - truth) <= 3 * errors
    assert inside.mean() > 0.95
    entry = findings.checkpoints[0]["diagonal"]
    assert entry["max"] == values.max()
    assert entry["mean"] == pytest.approx(truth.mean(), abs=4 * errors.mean())
    assert entry["negative_share"] == (values < 0).mean()


def test_a_part_of_the_data_gives_sampling_errors():
    entry = entry_of(
        eigenvalues=2, ends="top", trace_probes=16, told={"data": {"num_samples_total": 200}}
    )
    for pair in entry["eigenvalues"]:
        low, high = pair["sampling_interval"]
        assert low < pair["value"] < high
        assert 0 < pair["sampling_error"] < pair["value"]
    assert entry["trace"]["sampling_error"] > 0
    assert entry["sampling"]["num_rows"] == 50
    assert entry["sampling"]["population"] == 200
    assert entry["sampling"]["loss"]["standard_error"] > 0


def test_sampling_errors_shrink_with_the_part_that_is_left():
    errors = [
        entry_of(eigenvalues=1, ends="top", told={"data": {"num_samples_total": total}})[
            "eigenvalues"
        ][0]["sampling_error"]
        for total in (60, 10**9)
    ]
    assert errors[0] / errors[1] == pytest.approx(math.sqrt(1 - 50 / 60), rel=1e-6)


@pytest.mark.parametrize(
    ("told", "plan", "reason"),
    [
        ({}, {}, "not known"),
        ({"data": {"num_samples_total": 50}}, {}, "all samples"),
        ({"data": {"num_samples_total": 99}}, {"sampling": False}, "not asked"),
        ({"data": {"num_samples_total": 99}}, {"batch_norm": "batch"}, "couple"),
        ({"data": {"num_samples_total": 99}}, {"matrix": "mc-fisher"}, "drawn"),
    ],
)
def test_no_sampling_error_comes_with_the_reason(told, plan, reason):
    entry = entry_of(eigenvalues=1, ends="top", told=told, **plan)
    assert entry["sampling"] is None
    assert reason in entry["sampling_skipped"]
    assert entry["eigenvalues"][0]["sampling_error"] is None


def test_few_rows_have_no_sampling_error():
    entry = entry_of(
        data=batches(30), eigenvalues=1, ends="top", told={"data": {"num_samples_total": 99}}
    )
    assert "needs 40 rows" in entry["sampling_skipped"]


# -- layers ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_layers_numbers_are_those_of_its_block_of_the_dense_hessian():
    model = net()
    hessian = dense_hessian(model)
    entry = entry_of(model, per_layer=True, trace_probes=400, eigenvalues=0)
    first = 5 * 6 + 6
    blocks = {"0": hessian[:first, :first], "2": hessian[first:, first:]}
    assert [layer["name"] for layer in entry["layers"]] == ["0", "2"]
    for layer in entry["layers"]:
        block = blocks[layer["name"]]
        assert layer["num_parameters"] == len(block)
        assert layer["lambda_max"] == pytest.approx(float(torch.linalg.eigvalsh(block)[-1]))
        assert layer["lambda_max_confirmed"]
        error = abs(layer["trace"] - float(block.trace()))
        assert error < 4 * layer["trace_standard_error"]
        assert layer["sharpness_kind"] == "lower bound"
        assert layer["sharpness"] > 0


def test_a_layers_worst_case_is_no_larger_than_the_nets():
    entry = entry_of(per_layer=True, metrics=("worst-case",), rho=0.2, eigenvalues=1, ends="top")
    whole = entry["sharpness"]["worst-case"]["value"]
    assert all(layer["sharpness_rho"] == 0.2 for layer in entry["layers"])
    assert all(layer["sharpness"] <= whole * (1 + 1e-6) for layer in entry["layers"])


# -- dynamics -------------------------------------------------------------------------------------


def test_the_dynamics_are_those_of_the_dense_matrices():
    model = net()
    hessian, gauss_newton = dense_hessian(model), dense_gauss_newton(model)
    gradients = sample_gradients(model)
    gradient = gradients.mean(0)
    u = gradient / gradient.norm()
    values, vectors = torch.linalg.eigh(hessian)
    found = entry_of(
        model, dynamics=True, eigenvalues=1, ends="top",
        told={"training": {"batch_size": 25, "edge": 7.5}},
    )["dynamics"]  # fmt: skip
    assert found["skipped"] == {}
    assert found["curvature_along_gradient"] == pytest.approx(float(u @ hessian @ u))
    assert found["cosine"] == pytest.approx(abs(float(u @ vectors[:, -1])), rel=1e-5)
    assert found["gradient_norm"] == pytest.approx(float(gradient.norm()))
    top = torch.linalg.eigvalsh
    assert found["lambda_max_ggn"] == pytest.approx(float(top(gauss_newton)[-1]))
    assert found["lambda_max_remainder"] == pytest.approx(float(top(hessian - gauss_newton)[-1]))
    for part in ("ggn", "remainder"):
        assert found[f"lambda_max_{part}_converged"] is True
        assert found[f"lambda_max_{part}_confirmed"] is True
    noise = float(((gradients - gradient) ** 2).sum() / 49)
    assert found["gradient_noise"]["value"] == pytest.approx(noise)
    assert found["gradient_noise"]["kind"] == "exact"
    assert found["batch_lambda_max"]["batch_size"] == 25
    assert found["batch_lambda_max"]["wanted"] == 25
    assert found["batch_lambda_max"]["num_batches"] == 10
    assert found["batch_lambda_max"]["value"] >= float(values[-1]) * 0.98
    assert found["edge"] == 7.5


def test_a_part_whose_search_was_cut_short_says_so(monkeypatch):
    def unsure(*args, **options):
        pairs = lanczos(*args, **options)
        no = torch.zeros_like(pairs.confirmed)
        return dataclasses.replace(pairs, converged=no, confirmed=no)

    monkeypatch.setattr(stages_dynamics, "lanczos", unsure)
    found = entry_of(dynamics=True, eigenvalues=1, ends="top")["dynamics"]
    for part in ("ggn", "remainder"):
        assert found[f"lambda_max_{part}_converged"] is False
        assert found[f"lambda_max_{part}_confirmed"] is False


@pytest.mark.parametrize(
    ("plan", "training"), [({"noise_batch_size": 128}, {}), ({}, {"batch_size": 128})]
)
def test_a_batch_larger_than_the_probed_rows_is_told(plan, training):
    found = probed(dynamics=True, eigenvalues=1, ends="top", told={"training": training}, **plan)
    entry = found.checkpoints[0]
    batch = entry["dynamics"]["batch_lambda_max"]
    assert (batch["batch_size"], batch["wanted"]) == (50, 128)
    (words,) = (w for w in entry["warnings"] if "λmax of batches" in w)
    assert "128 samples were wanted and only 50 are probed" in words


def test_without_a_wanted_batch_size_nothing_is_told():
    entry = entry_of(dynamics=True, eigenvalues=1, ends="top")
    assert entry["dynamics"]["batch_lambda_max"]["wanted"] is None
    assert not any("λmax of batches" in w for w in entry["warnings"])


def test_what_a_loss_without_outputs_cannot_give_is_skipped_with_the_reason():
    x, y = data()
    whole = {"x": x, "y": y}
    entry = entry_of(
        loss=lambda model, batch: F.cross_entropy(model(batch["x"]), batch["y"]),
        data=[whole],
        dynamics=True,
        eigenvalues=1,
        ends="top",
    )
    found = entry["dynamics"]
    assert set(found["skipped"]) == {"lambda_max_ggn", "lambda_max_remainder"}
    assert "(inputs, targets)" in found["skipped"]["lambda_max_ggn"]
    assert found["lambda_max_ggn"] is None
    assert found["curvature_along_gradient"] is not None


def test_costs_by_stage_add_up_to_the_whole():
    entry = entry_of(eigenvalues=2, trace_probes=8, metrics=("sam", "average-case"), surface=3)
    for name, key in (("matvecs", "products"), ("gradients", "gradients")):
        total = sum(cost[key] for cost in entry["costs"].values())
        assert entry["provenance"][name] == total > 0
    assert entry["costs"]["trace"]["products"] == 8
    assert entry["provenance"]["seconds"] == pytest.approx(
        sum(cost["seconds"] for cost in entry["costs"].values())
    )


def test_the_references_agree_with_plain_backward():
    model = net()
    x, y = data()
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    own = torch.cat([p.grad.reshape(-1) for p in model.parameters()])
    torch.testing.assert_close(sample_gradients(model).mean(0), own)
    assert F.cross_entropy(outputs(model, x)(theta_of(model)), y).item() == loss.item()


@pytest.mark.slow
def test_the_interval_of_the_trace_is_around_the_trace():
    told = {"data": {"num_samples_total": 200}}
    for seed in range(5):
        trace = entry_of(eigenvalues=1, ends="top", trace_probes=32, seed=seed, told=told)["trace"]
        low, high = trace["sampling_interval"]
        assert (low + high) / 2 == pytest.approx(trace["value"])
        least = 1.96 * math.hypot(trace["sampling_error"], trace["standard_error"])
        assert least < (high - low) / 2 < 1.2 * least


def test_sampling_errors_need_no_eigenvalues():
    entry = entry_of(eigenvalues=0, told={"data": {"num_samples_total": 200}})
    assert entry["sampling"]["loss"]["standard_error"] > 0
    entry = entry_of(eigenvalues=0, trace_probes=8, told={"data": {"num_samples_total": 200}})
    assert entry["trace"]["sampling_error"] > 0


def test_all_the_mass_of_the_zero_matrix_lies_at_zero():
    model = nn.Linear(5, 3).double()
    entry = entry_of(model, lambda output, target: output.mean(), eigenvalues=1, density_runs=2)
    assert entry["density"]["near_zero_mass"] == pytest.approx(1)
    assert tops(entry) == [0]


# -- what a layer's numbers are qualified by ------------------------------------------------------


def deep(num_hidden):
    torch.manual_seed(0)
    hidden = [part for _ in range(num_hidden) for part in (nn.Linear(5, 5), nn.Tanh())]
    return nn.Sequential(*hidden, nn.Linear(5, 3)).double()


def test_a_layer_whose_lambda_max_is_not_converged_is_named(monkeypatch):
    def unsure(*args, **options):
        pairs = lanczos(*args, **options)
        return dataclasses.replace(pairs, converged=torch.zeros_like(pairs.converged))

    plain = entry_of(per_layer=True, eigenvalues=0)
    assert not any("is not converged" in warning for warning in plain["warnings"])
    monkeypatch.setattr(layers, "lanczos", unsure)
    entry = entry_of(per_layer=True, eigenvalues=0)
    told = [warning for warning in entry["warnings"] if "is not converged" in warning]
    assert [warning.split(":")[0] for warning in told] == ["0", "2"]
    value = entry["layers"][0]["lambda_max"]
    assert f"0: lambda_max {value:.4g} is not converged (residual " in told[0]


def test_a_layers_worst_case_that_is_rounding_is_told_of_a_few_layers_and_counted():
    entry = entry_of(deep(4), per_layer=True, eigenvalues=0, rho=1e-15)
    told = [warning for warning in entry["warnings"] if "within the rounding" in warning]
    assert len(told) == 3
    assert told[0].startswith("0: worst-case: a rise of ")
    assert "more layers)" not in told[1]
    assert told[2].endswith("(and so of 2 more layers)")


def test_what_python_warns_of_in_a_layer_is_kept_under_its_name(monkeypatch):
    def talking(*args, **options):
        warnings.warn("nearly singular", stacklevel=1)
        return lanczos(*args, **options)

    monkeypatch.setattr(layers, "lanczos", talking)
    entry = entry_of(per_layer=True, eigenvalues=0)
    assert [w for w in entry["warnings"] if "singular" in w] == [
        "0: nearly singular",
        "2: nearly singular",
    ]


def test_sentences_of_one_kind_are_told_once_a_layer_and_of_three_layers():
    said = [("a", "inf at step 1"), ("a", "inf at step 2"), ("b", "other"), ("b", "other")]
    assert layers.few_of_a_kind(said) == ["a: inf at step 1", "b: other"]
    many = [(name, f"off by {index}.5e-3") for index, name in enumerate("abcde")]
    assert layers.few_of_a_kind(many) == [
        "a: off by 0.5e-3",
        "b: off by 1.5e-3",
        "c: off by 2.5e-3 (and so of 2 more layers)",
    ]


def test_the_layers_worst_case_is_the_plans_own_with_its_radius():
    entry = entry_of(
        per_layer=True, metrics=("sam", "worst-case:rho=0.3"), rho=0.1, eigenvalues=1, ends="top"
    )
    whole = entry["sharpness"]["worst-case:rho=0.3"]
    assert whole["rho"] == 0.3
    assert all(layer["sharpness_rho"] == 0.3 for layer in entry["layers"])
    entry = entry_of(per_layer=True, metrics=("sam",), rho=0.1, eigenvalues=1, ends="top")
    assert all(layer["sharpness_rho"] == 0.1 for layer in entry["layers"])


# -- the loss beside the probed data --------------------------------------------------------------


def test_the_test_data_are_evaluated_in_micro_batches_and_charged():
    x, y = data(30, seed=2)
    sizes = []

    class Listening(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = net()

        def forward(self, x):
            sizes.append(len(x))
            return self.body(x)

    told = {"test_batches": [(x, y)]}
    entry = entry_of(Listening(), eigenvalues=0, micro_batch=8, told=told)
    assert max(sizes) == 8
    assert entry["test_loss"] == pytest.approx(F.cross_entropy(net()(x), y).item(), rel=1e-12)
    assert entry["costs"]["loss"]["forwards"] == 2
    assert entry_of(eigenvalues=0)["costs"]["loss"]["forwards"] == 1


# -- the second opinion ---------------------------------------------------------------------------


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.body = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3))
        self.double()
        self.body(torch.cat([x for x, _ in batches()]))  # some running statistics

    def forward(self, x):
        return self.body(x)


def opinion_of(model, **plan):
    options = {"eigenvalues": 2, "ends": "top", "trace_probes": 8, "second_opinion": True}
    entry = entry_of(model, **options, **plan)
    return entry["second_opinion"], [w for w in entry["warnings"] if "Second opinion" in w]


@pytest.mark.slow
def test_a_second_opinion_compares_where_the_function_is_the_same():
    for model, plan in (
        (net(), {}),
        (Normed(), {}),
        (Normed(), {"recalibrate": True}),  # changes surfaces alone
        (net(), {"batch_norm": "batch"}),  # there is none
        (net(), {"dtype": "float64"}),  # the model's own
        (net(), {"micro_batch": 7}),
    ):
        opinion, warned = opinion_of(model, **plan)
        assert opinion["agrees"] is True, plan
        assert "Not compared" not in opinion["message"]
        assert warned == []


@pytest.mark.parametrize(
    ("make", "plan", "reason"),
    [
        (Normed, {"batch_norm": "batch"}, "PyHessian uses running statistics"),
        (net, {"fix_seeds": True}, "does not seed the random numbers"),
        (net, {"approximate": True, "tolerance": 1e-4}, "differentiates twice"),
        (net, {"dtype": "float32", "tolerance": 1e-3}, "float64, and numbers here are in float32"),
        (net, {"matrix": "ggn"}, "knows the Hessian alone, and the matrix here is ggn"),
    ],
)  # fmt: skip
def test_a_second_opinion_on_another_function_compares_nothing_and_says_why(make, plan, reason):
    opinion, warned = opinion_of(make(), **plan)
    assert opinion["agrees"] is None
    assert opinion["difference"] is None
    assert len(opinion["eigenvalues"]) == 3
    assert set(opinion["partners"]) == {None}
    assert opinion["message"].startswith("nothing compared")
    assert ". Not compared: PyHessian " in opinion["message"]
    assert reason in opinion["message"]
    assert warned == []
