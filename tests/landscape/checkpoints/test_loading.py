"""Weights into a model: strict, all or none, and every liberty taken is reported."""

import pytest
import torch
from torch import nn

from landscape import Objective, ParameterSpace
from landscape.checkpoints import Checkpoint, CheckpointError, load_weights
from landscape.directions import filter_normalised
from tests.landscape.checkpoints.nets import net, same_weights, state


def checkpoint(weights, **fields):
    return Checkpoint("net.pt", "state dict", weights, sha256="0", **fields)


def altered(**changes):
    """The state with some entries changed; None takes one away. Double underscores are dots."""
    weights = {**state(1), **{key.replace("__", "."): value for key, value in changes.items()}}
    return {name: tensor for name, tensor in weights.items() if tensor is not None}


def renamed(pattern):
    return {pattern.format(name): tensor for name, tensor in state(1).items()}


# Prefixes.


@pytest.mark.parametrize(
    "prefix",
    [
        "module.",
        "_orig_mod.",
        "model.",
        "net.",
        "_orig_mod.module.",
        "module.module._orig_mod.",
        "model._orig_mod.",
        "_fsdp_wrapped_module._checkpoint_wrapped_module.",
    ],
)
def test_the_prefixes_of_wrappers_are_removed_and_reported(prefix):
    # Row 17.
    model = net(2)
    report = load_weights(model, checkpoint(renamed(prefix + "{}")))
    assert same_weights(model, net(1))
    assert report.prefixes_removed == [prefix]


def test_a_wrapped_submodule_is_unwrapped_in_the_middle_of_its_names():
    # Row 17.
    model = nn.ModuleDict({"features": net(2), "head": nn.Linear(2, 2)})
    other = nn.ModuleDict({"features": nn.DataParallel(net(1)), "head": nn.Linear(2, 2)})
    report = load_weights(model, checkpoint(other.state_dict()))
    assert same_weights(model["features"], net(1))
    assert report.prefixes_removed == ["module."]
    assert report.matched == len(model.state_dict())


def test_no_more_is_removed_than_the_model_needs():
    # Row 17.
    model = nn.ModuleDict({"model": net(2)})
    report = load_weights(model, checkpoint(renamed("module.model.{}")))
    assert same_weights(model["model"], net(1))
    assert report.prefixes_removed == ["module."]
    report = load_weights(model, checkpoint(renamed("model.{}")))
    assert report.prefixes_removed == []


def test_a_name_of_the_models_own_is_not_taken_for_a_wrapper():
    model = nn.ModuleDict({"model": nn.Linear(2, 2), "other": nn.Linear(2, 2)})
    other = {f"module.{name}": t + 1 for name, t in model.state_dict().items()}
    load_weights(model, checkpoint(other))
    assert torch.equal(model["model"].weight, other["module.model.weight"])
    assert torch.equal(model["other"].weight, other["module.other.weight"])


def test_of_two_names_that_removals_lead_to_the_one_with_fewer_is_meant():
    # Row 17.
    model = nn.ModuleDict({"model": nn.Linear(2, 2), "bare": nn.Linear(2, 2)})
    model.weight, model.bias = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(2))
    values = {f"module.{name}": t + 1 for name, t in model.state_dict().items()}
    load_weights(model, checkpoint(values))
    assert torch.equal(model["model"].weight, values["module.model.weight"])
    assert torch.equal(model.weight, values["module.weight"])


def test_an_averaged_model_of_torch_is_loaded_without_its_count():
    average = torch.optim.swa_utils.AveragedModel(net(1))
    model = net(2)
    report = load_weights(model, checkpoint(average.state_dict()))
    assert same_weights(model, net(1))
    assert report.skipped == ["n_averaged"]


@pytest.mark.parametrize(
    "weights",
    [
        {**state(1), **renamed("module.{}")},
        {**renamed("_orig_mod.{}"), **renamed("module.{}")},
    ],
)
def test_two_keys_that_become_one_are_refused(weights):
    # Row 18.
    model = net(2)
    with pytest.raises(CheckpointError, match=r"two keys become one .*both are the model's 0\.w"):
        load_weights(model, checkpoint(weights))
    assert same_weights(model, net(2))


# What does not fit.


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (altered(**{"0__weight": None}), r"1 missing \(0\.weight\); .*--allow-missing GLOB"),
        (altered(extra=torch.zeros(1)), r"1 unexpected \(extra\); .*--state-key NAME"),
        (
            altered(**{"0__bias": torch.zeros(5)}),
            r"1 of another shape \(0\.bias: \(5,\), the model has \(3,\)\)",
        ),
        (
            altered(**{"0__bias": None, "2__bias": torch.zeros(5), "extra": torch.zeros(1)}),
            r"1 missing \(0\.bias\), 1 unexpected \(extra\), 1 of another shape \(2\.bias",
        ),
        (altered(**{"0__bias": torch.zeros(3, dtype=torch.int8)}), "int8 into float32"),
        (altered(**{"1__num_batches_tracked": torch.tensor(0.5)}), "float32 into int64"),
        ({"other": torch.zeros(1)}, r"8 missing \(0\.weight, .*1 unexpected \(other\)"),
    ],
)
def test_weights_that_do_not_fit_leave_the_model_as_it_was(weights, message):
    # Row 19.
    model = net(2)
    with pytest.raises(CheckpointError, match=message):
        load_weights(model, checkpoint(weights))
    assert same_weights(model, net(2))


def test_the_first_ten_names_are_shown_with_the_count_and_the_report_has_them_all():
    # Row 19.
    extra = {f"x{i:02d}": torch.zeros(1) for i in range(25)}
    with pytest.raises(CheckpointError, match=r"25 unexpected \(x00, .*, x09, \.\.\.\)") as caught:
        load_weights(net(2), checkpoint({**state(1), **extra}))
    assert "x10" not in str(caught.value)
    assert caught.value.report.unexpected == list(extra)
    assert caught.value.report.matched == len(state())


class FailsHalfWay(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(2, 2)
        self.second = nn.Linear(2, 2)
        self.register_load_state_dict_post_hook(self.fail)

    def fail(self, *_):
        raise RuntimeError("the user's own hook")


def test_a_model_whose_own_loading_fails_is_put_back_as_it_was():
    # Row 19.
    model = FailsHalfWay()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    weights = {name: tensor + 1 for name, tensor in before.items()}
    with pytest.raises(CheckpointError, match=r"does not take its own entries \(the user's own"):
        load_weights(model, checkpoint(weights))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_model_without_numbers_yet_is_named():
    with pytest.raises(CheckpointError, match=r"without numbers yet \(weight, bias\)"):
        load_weights(nn.LazyLinear(2), checkpoint({"weight": torch.zeros(2, 2)}))
    with pytest.raises(CheckpointError, match="without numbers yet"):
        load_weights(nn.Linear(2, 2, device="meta"), checkpoint({"weight": torch.zeros(2, 2)}))


# What may be missing.


def test_allowed_entries_keep_the_models_values_and_are_warned_of():
    # Row 19.
    model = net(2)
    weights = altered(**{"2__weight": None, "2__bias": None})
    report = load_weights(model, checkpoint(weights), allow_missing=["2.*", "unused.*"])
    assert torch.equal(model[2].weight, net(2)[2].weight)
    assert torch.equal(model[0].weight, net(1)[0].weight)
    assert report.missing == ["2.weight", "2.bias"]
    (warning,) = report.warnings
    assert "2 entries are not in the file and keep the random values" in warning
    assert "2.weight, 2.bias" in warning


def test_a_glob_lets_nothing_else_be_missing_and_not_everything():
    # Row 19.
    weights = altered(**{"2__weight": None, "0__bias": None})
    with pytest.raises(CheckpointError, match=r"1 missing \(0\.bias\)"):
        load_weights(net(2), checkpoint(weights), allow_missing=["2.*"])
    with pytest.raises(CheckpointError, match="1 unexpected"):
        load_weights(net(2), checkpoint({"other": torch.zeros(1)}), allow_missing=["*"])
    with pytest.raises(CheckpointError, match="no name in common"):
        load_weights(net(2), checkpoint({}), allow_missing=["*"])


def test_a_count_of_batches_that_an_old_file_lacks_is_no_weight():
    model = net(2)
    weights = altered(**{"1__num_batches_tracked": None})
    for allowed in ([], ["1.*"]):
        report = load_weights(model, checkpoint(weights), allow_missing=allowed)
        assert report.missing == ["1.num_batches_tracked"]
        assert report.warnings == []
    assert model[1].num_batches_tracked == 0


def test_a_parameter_that_is_only_called_like_the_count_is_missed():
    model = nn.Module()
    model.num_batches_tracked = nn.Parameter(torch.ones(1))
    model.weight = nn.Parameter(torch.ones(1))
    with pytest.raises(CheckpointError, match="1 missing"):
        load_weights(model, checkpoint({"weight": torch.zeros(1)}))


class WithComputedBuffer(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))
        self.register_buffer("positions", torch.arange(3), persistent=False)


def test_a_buffer_that_the_model_computes_itself_may_be_in_the_file():
    weights = {"weight": torch.ones(2), "positions": torch.arange(3)}
    report = load_weights(WithComputedBuffer(), checkpoint(weights))
    assert report.skipped == ["positions"]
    with pytest.raises(CheckpointError, match=r"1 unexpected \(positions\)"):
        load_weights(WithComputedBuffer(), checkpoint({**weights, "positions": torch.ones(3)}))


# Kinds of numbers.


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_cast_is_reported(dtype):
    # Row 20.
    weights = {k: v.to(dtype) if v.is_floating_point() else v for k, v in state(1).items()}
    model = net(2)
    report = load_weights(model, checkpoint(weights))
    assert f"0.weight: {dtype} to float32".replace("torch.", "") in report.casts
    assert len(report.casts) == len(state()) - 1
    assert torch.equal(model[0].weight, weights["0.weight"].float())


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_eight_bit_floats_are_cast_with_a_note_and_checked(dtype):
    # Row 20.
    model = nn.Linear(4, 3, bias=False)
    weight = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    report = load_weights(model, checkpoint({"weight": weight}))
    assert torch.equal(model.weight, weight.float())
    assert report.casts == [f"weight: {dtype} to float32".replace("torch.", "")]
    broken = torch.full((3, 4), float("nan")).to(dtype)
    with pytest.raises(FloatingPointError, match="1 tensors hold nan or inf"):
        load_weights(model, checkpoint({"weight": broken}))


def test_integers_and_booleans_are_loaded_and_stay_what_they_are():
    # Row 20.
    model = WithComputedBuffer()
    model.register_buffer("mask", torch.zeros(3, dtype=torch.bool))
    model.register_buffer("steps", torch.zeros((), dtype=torch.int32))
    old_mask = torch.tensor([1, 0, 1], dtype=torch.uint8)
    weights = {"weight": torch.ones(2), "mask": old_mask, "steps": torch.tensor(7)}
    report = load_weights(model, checkpoint(weights))
    assert model.mask.dtype == torch.bool
    assert model.mask.tolist() == [True, False, True]
    assert model.steps.dtype == torch.int32
    assert model.steps == 7
    assert report.casts == ["mask: uint8 to bool", "steps: int64 to int32"]
    names = {name for name, _ in model.named_parameters()}
    assert names == {"weight"}


@pytest.mark.parametrize("value", [torch.tensor(2**40), torch.tensor(-(2**40))])
def test_an_integer_that_the_model_has_no_room_for_is_refused(value):
    # Row 20.
    model = WithComputedBuffer()
    model.register_buffer("steps", torch.zeros((), dtype=torch.int32))
    with pytest.raises(CheckpointError, match="1 of another kind of number"):
        load_weights(model, checkpoint({"weight": torch.ones(2), "steps": value}))


# Tied weights.


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x):
        return self.head(self.embedding(x))


@pytest.mark.parametrize(
    "names",
    [
        ("embedding.weight", "head.weight"),
        ("embedding.weight",),
        ("head.weight",),
    ],
)
def test_tied_weights_are_loaded_from_any_of_their_names(names):
    # Row 21.
    model, value = Tied(), torch.randn(5, 3)
    report = load_weights(model, checkpoint(dict.fromkeys(names, value)))
    assert torch.equal(model.embedding.weight, value)
    assert model.head.weight is model.embedding.weight
    assert report.matched == len(names)
    assert report.missing == []
    assert report.tied == ["embedding.weight = head.weight"]


def test_tied_weights_count_once_in_theta_in_directions_and_in_norms():
    # Row 21.
    model, value = Tied(), torch.randn(5, 3)
    load_weights(model, checkpoint(dict.fromkeys(("embedding.weight", "head.weight"), value)))
    space = ParameterSpace.of(model)
    assert space.size == 15
    batches = [(torch.tensor([0, 1]), torch.tensor([1, 0]))]
    objective = Objective(model, nn.functional.cross_entropy, batches)
    assert objective.theta.norm().item() == pytest.approx(value.norm().item())
    direction = filter_normalised(space, objective.theta, model=model, seed=0)
    assert direction.shape == (15,)
    assert direction.norm().item() == pytest.approx(value.norm().item())


def test_a_file_in_which_tied_weights_differ_is_refused():
    # Row 21.
    weights = {"embedding.weight": torch.zeros(5, 3), "head.weight": torch.ones(5, 3)}
    with pytest.raises(CheckpointError, match="1 tied in the model and different in the file"):
        load_weights(Tied(), checkpoint(weights))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float8_e5m2])
def test_tied_weights_may_be_written_in_two_types(dtype):
    # Row 21.
    ones = torch.ones(5, 3)
    weights = {"embedding.weight": ones, "head.weight": ones.to(dtype)}
    load_weights(Tied(), checkpoint(weights))


# Values.


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_weights_that_are_not_finite_are_refused_by_name_unless_let_in(value):
    # Row 22.
    weights = altered(**{"2__bias": torch.tensor([0.0, float(value)])})
    model = net(2)
    with pytest.raises(FloatingPointError, match=r"1 tensors hold nan or inf \(2\.bias\)"):
        load_weights(model, checkpoint(weights))
    assert same_weights(model, net(2))
    load_weights(model, checkpoint(weights), allow_nonfinite=True)
    assert not torch.isfinite(model[2].bias).all()


def test_a_number_that_is_not_finite_in_the_models_type_is_refused():
    # Row 22.
    weights = altered(**{"2__bias": torch.tensor([0.0, 1e300], dtype=torch.float64)})
    with pytest.raises(FloatingPointError, match=r"\(2\.bias\)"):
        load_weights(net(2), checkpoint(weights))


def test_a_mask_of_infinities_that_the_model_begins_with_is_let_in():
    # Row 22.
    model = WithComputedBuffer()
    model.register_buffer("mask", torch.full((2, 2), float("-inf")).triu(1))
    weights = {"weight": torch.ones(2), "mask": model.mask.clone()}
    load_weights(model, checkpoint(weights))
    with pytest.raises(FloatingPointError, match=r"\(mask\)"):
        load_weights(model, checkpoint({**weights, "mask": model.mask + float("-inf")}))


@pytest.mark.parametrize("place", [0, 5, 11])
def test_a_value_out_of_all_proportion_is_warned_of(place):
    # Row 6.
    weight = state(1)["0.weight"].clone()
    weight.view(-1)[place] = 1e20
    report = load_weights(net(2), checkpoint(altered(**{"0__weight": weight})))
    (warning,) = report.warnings
    assert warning.startswith("0.weight reaches 1e+20 where half of its elements")


@pytest.mark.parametrize(
    "values",
    [
        torch.tensor([0.0, 0.0, 3.0]),
        torch.tensor([1e-30, 1e-30, 0.5]),
        torch.full((3,), 1e9),
        torch.tensor([1e4, 2e-1, 3e2]),
        torch.zeros(3),
    ],
)
def test_ordinary_scales_are_not_warned_of(values):
    # Row 6: dead channels, pruned weights, large variances and constant masks.
    report = load_weights(net(2), checkpoint(altered(**{"1__running_var": values})))
    assert report.warnings == []


def test_the_report_is_made_of_plain_values_and_carries_what_was_read():
    fields = {"state_key": "model", "candidates": ["ema"], "skipped": ["epoch"], "warnings": ["w"]}
    document = load_weights(net(2), checkpoint(state(1), **fields)).to_dict()
    assert {key: document[key] for key in fields} == fields
    assert all(isinstance(value, (str, int, list)) for value in document.values())
