"""Checkpoints that are sound: what each kind brings, and how it is described."""

import hashlib
import subprocess
import sys
from collections import OrderedDict

import pytest
import torch
from torch import nn

from landscape.checkpoints import CheckpointError, load_weights, own_checkpoint, read_checkpoint
from tests.landscape.checkpoints.nets import net, same_weights, saved, state


def own(**changes):
    content = {
        "format": "loss-landscape-toolkit/1",
        "recipe": {"task": "mnist1d", "model": "cnn1d"},
        "model": state(1),
        "history": [{"epoch": 1}],
        "run": {"label": "sam", "seed": 3},
        "optimizer": {"state": {}},
    }
    return {**content, **changes}


@pytest.mark.parametrize("zipped", [True, False])
def test_a_plain_state_dict_is_loaded_and_reported(tmp_path, zipped):
    path = saved(tmp_path, state(1), _use_new_zipfile_serialization=zipped)
    model = net(2)
    checkpoint = read_checkpoint(path)
    report = load_weights(model, checkpoint)
    assert same_weights(model, net(1))
    assert checkpoint.format == "state dict"
    assert checkpoint.recipe is None
    assert checkpoint.state_key is None
    assert checkpoint.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert report.matched == len(state())
    empty = {key for key, value in report.to_dict().items() if not value}
    assert empty == set(report.to_dict()) - {"format", "matched"}


def test_our_own_checkpoint_brings_its_recipe_and_history(tmp_path):
    checkpoint = read_checkpoint(saved(tmp_path, own()))
    model = net(2)
    report = load_weights(model, checkpoint)
    assert same_weights(model, net(1))
    assert checkpoint.recipe == {"task": "mnist1d", "model": "cnn1d"}
    assert checkpoint.history == [{"epoch": 1}]
    assert checkpoint.run == {"label": "sam", "seed": 3}
    assert (report.state_key, report.skipped) == ("model", [])


def test_another_state_dict_of_our_own_checkpoint_is_taken_when_asked_for(tmp_path):
    path = saved(tmp_path, own(average=state(5)))
    model = net(2)
    load_weights(model, read_checkpoint(path, state_key="average"))
    assert same_weights(model, net(5))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "loss-landscape-toolkit/99"}, "this version reads loss-landscape-toolkit/1"),
        ({"model": 3}, "'model' is missing or of another type"),
        ({"recipe": None}, "'recipe' is missing or of another type"),
        ({"model": {"w": "text"}}, "these keys hold no tensor: w"),
        ({"model": {**state(), "w": "text"}}, "these keys hold no tensor: w"),
    ],
)
def test_a_damaged_checkpoint_of_ours_is_named(tmp_path, changes, message):
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(saved(tmp_path, own(**changes)))


def test_plain_values_of_ours_that_are_none_or_have_no_end_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(own_checkpoint, "_MOST_VALUES", 10_000)
    endless = {}
    endless["again"] = endless
    many = [1.0]
    for _ in range(15):
        many = [many] * 30
    for history, message in (
        ([{"loss": torch.zeros(1)}], "'history' holds a Tensor, expected plain values"),
        ([endless], "'history' has no end"),
        (many, "'history' has no end"),
    ):
        with pytest.raises(CheckpointError, match=message):
            read_checkpoint(saved(tmp_path, own(history=history)))


def lightning(**changes):
    """What a Lightning trainer saves."""
    content = {
        "epoch": 1,
        "global_step": 10,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": state(1, prefix="model."),
        "loops": {"fit_loop": {}},
        "callbacks": {},
        "optimizer_states": [{"state": {0: {"momentum_buffer": torch.zeros(3)}}}],
        "lr_schedulers": [],
        "hyper_parameters": {"lr": 0.1},
    }
    return {**content, **changes}


def test_a_lightning_checkpoint_is_loaded_into_the_network_inside(tmp_path):
    checkpoint = read_checkpoint(saved(tmp_path, lightning(), "last.ckpt"))
    model = net(2)
    report = load_weights(model, checkpoint)
    assert same_weights(model, net(1))
    assert report.format == "Lightning checkpoint"
    assert report.state_key == "state_dict"
    assert report.prefixes_removed == ["model."]
    assert {"epoch", "optimizer_states", "hyper_parameters"} <= set(report.skipped)


def test_one_network_of_a_lightning_module_is_taken_by_the_start_of_its_names(tmp_path):
    weights = {**state(1, prefix="student."), **state(3, prefix="teacher.")}
    path = saved(tmp_path, lightning(state_dict=weights), "last.ckpt")
    with pytest.raises(CheckpointError, match="--state-key NAME takes the entries NAME"):
        load_weights(nn.ModuleDict({"student": net(2)}), read_checkpoint(path))
    model = net(2)
    report = load_weights(model, read_checkpoint(path, state_key="state_dict.teacher"))
    assert same_weights(model, net(3))
    assert "state_dict.student.0.weight" in report.skipped
    assert report.candidates == []


@pytest.mark.slow
def test_a_checkpoint_that_lightning_itself_wrote_is_read(tmp_path):
    pytest.importorskip("pytorch_lightning")
    script = """
import sys, torch
import pytorch_lightning as pl
class Module(pl.LightningModule):
    def __init__(self, width=3, nested=None):
        super().__init__()
        self.save_hyperparameters()
        self.net = torch.nn.Linear(4, width)
    def training_step(self, batch, index):
        return self.net(batch[0]).sum()
    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.1)
data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.ones(4, 4)))
trainer = pl.Trainer(max_steps=1, accelerator="cpu", logger=False, enable_progress_bar=False,
                     enable_model_summary=False, default_root_dir=sys.argv[1])
module = Module(nested={"a": [1]})
trainer.fit(module, data)
trainer.save_checkpoint(sys.argv[1] + "/last.ckpt")
torch.save(module.net.state_dict(), sys.argv[1] + "/plain.pt")
"""
    command = [sys.executable, "-c", script, str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    first, second = nn.Linear(4, 3), nn.Linear(4, 3)
    report = load_weights(first, read_checkpoint(tmp_path / "last.ckpt"))
    load_weights(second, read_checkpoint(tmp_path / "plain.pt"))
    assert same_weights(first, second)
    assert (report.format, report.prefixes_removed) == ("Lightning checkpoint", ["net."])


def test_parameters_that_require_gradients_come_as_plain_tensors(tmp_path):
    weights = net(1).state_dict(keep_vars=True)
    checkpoint = read_checkpoint(saved(tmp_path, weights))
    assert not any(tensor.requires_grad for tensor in checkpoint.weights.values())


class HidingItems:
    """Is unpickled as a dictionary whose methods are hidden behind attributes."""

    def __init__(self, items):
        self.items = items

    def __reduce__(self):
        hidden = {"items": torch.Size, "get": torch.Size}  # answer () when called
        return OrderedDict, (), hidden, None, iter(self.items.items())


def test_attributes_that_a_file_hangs_on_things_do_not_reach_the_reader(tmp_path):
    tensor = torch.arange(3.0)
    tensor.numel = torch.Size
    path = saved(tmp_path, HidingItems({"w": tensor}))
    handed_over = torch.load(path, weights_only=True)
    assert handed_over.items() == handed_over["w"].numel() == ()
    weights = read_checkpoint(path).weights
    assert weights["w"].numel() == 3
    assert vars(weights["w"]) == {}


@pytest.mark.parametrize("limit", [0, -1.0, float("nan")])
def test_a_limit_that_is_no_size_is_refused(tmp_path, limit):
    with pytest.raises(ValueError, match="max_gigabytes must be > 0"):
        read_checkpoint(saved(tmp_path, state()), max_gigabytes=limit)
