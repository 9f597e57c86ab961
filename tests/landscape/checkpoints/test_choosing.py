"""Which state dict of a file is taken, and when that has to be said."""

import pytest
import torch
from torch import nn

from landscape.checkpoints import CheckpointError, StateKeyError, load_weights, read_checkpoint
from tests.landscape.checkpoints import bad_files
from tests.landscape.checkpoints.nets import net, same_weights, saved, state


@pytest.mark.parametrize(
    "key",
    ["state_dict", "model", "model_state_dict", "net", "module", "params", "ema", "state_dict_ema"],
)
def test_the_only_state_dict_is_taken_and_reported_with_what_was_left(tmp_path, key):
    path = saved(tmp_path, {"epoch": 3, key: state(1), "optimizer": {"state": {}}, "loss": 0.1})
    model = net(2)
    report = load_weights(model, read_checkpoint(path))
    assert same_weights(model, net(1))
    assert report.state_key == key
    assert report.skipped == ["epoch", "optimizer", "loss"]
    assert report.candidates == []


def test_a_name_of_its_own_does_as_well_where_there_is_one_state_dict(tmp_path):
    path = saved(tmp_path, {"generator": state(1), "epoch": 3})
    assert read_checkpoint(path).state_key == "generator"


def test_a_state_dict_further_inside_is_found(tmp_path):
    path = saved(tmp_path, {"ema": {"decay": 0.99, "module": state(1)}, "epoch": 1})
    checkpoint = read_checkpoint(path)
    assert checkpoint.state_key == "ema.module"
    assert checkpoint.skipped == ["epoch"]


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ({"model": state(1), "ema": state(3)}, r"model \(9\), ema \(9\)"),
        ({"state_dict": state(1), "averaged": state(3, "module.")}, r"averaged \(9\)"),
        ({"G": state(1), "D": {"w": torch.zeros(2)}}, r"G \(9\), D \(1\)"),
        ({**state(1), "model_ema": state(3)}, r"model_ema \(9\), \. \(9\) at the top level"),
    ],
)
def test_several_state_dicts_are_listed_and_the_key_is_asked_for(tmp_path, content, named):
    # Row 16.
    path = saved(tmp_path, content)
    with pytest.raises(StateKeyError, match=rf"{named}.*--state-key NAME"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("key", "seed"), [("model", 1), ("ema.module", 3), ("wrapped.inside", 4), (".", 5)]
)
def test_the_key_takes_one_of_several(tmp_path, key, seed):
    # Row 16.
    content = {
        "model": state(1),
        "ema": {"module": state(3), "decay": 0.9},
        "wrapped.inside": state(4),
        "epoch": 1,
        **state(5),
    }
    model = net(2)
    checkpoint = read_checkpoint(saved(tmp_path, content), state_key=key)
    load_weights(model, checkpoint)
    assert same_weights(model, net(seed))
    assert checkpoint.state_key == key
    others = {"model", "ema.module", "wrapped.inside"} - {key}
    assert set(checkpoint.candidates) == others
    assert "epoch" in checkpoint.skipped


def test_other_tensors_beside_the_weights_are_no_second_candidate(tmp_path):
    content = {
        "model": state(1),
        "statistics": {"mean": torch.zeros(3), "std": torch.ones(3)},
        "loss": torch.tensor(0.3),
    }
    checkpoint = read_checkpoint(saved(tmp_path, content))
    assert checkpoint.state_key == "model"
    assert checkpoint.candidates == ["statistics"]
    assert checkpoint.skipped == ["loss"]


def test_one_state_dict_under_two_names_is_one(tmp_path):
    weights = state(1)
    assert read_checkpoint(saved(tmp_path, {"model": weights, "net": weights})).state_key == "model"


def test_tensors_beside_other_things_are_a_state_dict(tmp_path):
    checkpoint = read_checkpoint(saved(tmp_path, {"epoch": 3, **state(1)}))
    assert checkpoint.state_key == "."
    assert checkpoint.skipped == ["epoch"]
    assert set(checkpoint.weights) == set(state())


def test_what_layers_keep_beside_their_tensors_is_skipped(tmp_path):
    content = {"model": {**state(1), "0._extra_state": {"scale": 1}}}
    checkpoint = read_checkpoint(saved(tmp_path, content))
    assert checkpoint.skipped == ["model.0._extra_state"]
    load_weights(net(2), checkpoint)
    named = read_checkpoint(saved(tmp_path, content), state_key="model")
    assert named.skipped == ["model.0._extra_state"]


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("ema", "nothing under the state key ema; there are model"),
        ("epoch", "no state dict, but one int, under the state key epoch; there are model"),
        ("args", "no state dict under the state key args; these keys hold no tensor: lr"),
        ("model.nothing", "nothing under the state key model.nothing"),
    ],
)
def test_a_key_that_leads_nowhere_says_what_there_is(tmp_path, key, message):
    path = saved(tmp_path, {"model": state(1), "epoch": 3, "args": {"lr": 0.1}})
    with pytest.raises(StateKeyError, match=message):
        read_checkpoint(path, state_key=key)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "an empty state dict"),
        ({"epoch": 3, "lr": 0.1}, "no state dict in it; these keys hold no tensor: epoch, lr"),
        ([torch.zeros(2)], r"holds no dictionary of weights; save model\.state_dict\(\)"),
        (torch.zeros(2), "holds no dictionary of weights"),
        ({"optimizer": {"w": torch.zeros(2)}}, "no state dict in it"),
    ],
)
def test_a_file_without_weights_says_what_it_holds(tmp_path, content, message):
    with pytest.raises(CheckpointError, match=message) as caught:
        read_checkpoint(saved(tmp_path, content))
    assert not isinstance(caught.value, StateKeyError)


def test_names_from_a_file_cannot_move_the_terminal_or_fill_it(tmp_path):
    content = {"\x1b[2J\u202e\n" + "x" * 10_000: 1}
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(saved(tmp_path, content))
    message = str(caught.value)
    assert r"\x1b[2J\u202e\nxxx" in message
    assert message.isprintable()
    assert len(message) < 400


def test_dictionaries_without_end_are_walked_through_once(tmp_path):
    with pytest.raises(CheckpointError, match="no state dict in it"):
        read_checkpoint(bad_files.repeated_dictionaries(tmp_path / "deep.pt"))
    endless = {"w": 1}
    endless["model"] = endless
    with pytest.raises(CheckpointError, match="no state dict in it"):
        read_checkpoint(saved(tmp_path, endless))


def test_a_trusted_module_brings_its_state_dict(tmp_path):
    path = saved(tmp_path, {"model": nn.Linear(2, 3), "epoch": 1})
    checkpoint = read_checkpoint(path, trust_pickle=True)
    assert set(checkpoint.weights) == {"weight", "bias"}
    assert checkpoint.state_key == "model"
