"""Reading checkpoints: what fits is loaded whole, what does not is refused in one line."""

import zipfile

import pytest
import torch
from torch import nn

from landscape.checkpoints import (
    CheckpointError,
    find_checkpoints,
    load_weights,
    read_checkpoint,
)


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))


def same_weights(a, b):
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


def saved(tmp_path, content, name="net.pt", **options):
    path = tmp_path / name
    torch.save(content, path, **options)
    return path


@pytest.mark.parametrize("zipped", [True, False])
def test_a_plain_state_dict_is_loaded_and_reported(tmp_path, zipped):
    path = saved(tmp_path, net(1).state_dict(), _use_new_zipfile_serialization=zipped)
    model = net(2)
    checkpoint = read_checkpoint(path)
    report = load_weights(model, checkpoint)
    assert same_weights(model, net(1))
    assert checkpoint.format == "state dict"
    assert checkpoint.recipe is None
    assert report.matched == len(net().state_dict())
    assert report.to_dict()["missing"] == []


def test_our_own_checkpoint_brings_its_recipe_and_history(tmp_path):
    content = {
        "format": "loss-landscape-toolkit/1",
        "recipe": {"task": "mnist1d", "model": "cnn1d"},
        "model": net(1).state_dict(),
        "history": [{"epoch": 1}],
        "run": {"label": "sam", "seed": 3},
    }
    checkpoint = read_checkpoint(saved(tmp_path, content))
    model = net(2)
    load_weights(model, checkpoint)
    assert same_weights(model, net(1))
    assert checkpoint.recipe == {"task": "mnist1d", "model": "cnn1d"}
    assert checkpoint.history == [{"epoch": 1}]
    assert checkpoint.run == {"label": "sam", "seed": 3}


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "_orig_mod.module."])
def test_the_prefixes_of_wrappers_are_removed_and_reported(tmp_path, prefix):
    weights = {prefix + name: tensor for name, tensor in net(1).state_dict().items()}
    model = net(2)
    report = load_weights(model, read_checkpoint(saved(tmp_path, weights)))
    assert same_weights(model, net(1))
    assert "".join(report.prefixes_removed) == prefix


def test_a_cast_is_reported(tmp_path):
    weights = {k: v.half() if v.is_floating_point() else v for k, v in net(1).state_dict().items()}
    report = load_weights(net(2), read_checkpoint(saved(tmp_path, weights)))
    assert "0.weight: float16 to float32" in report.casts


def altered(change):
    weights = dict(net(1).state_dict())
    change(weights)
    return weights


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("0.weight"), r"1 missing \(0\.weight\)"),
        (lambda w: w.update(extra=torch.zeros(1)), r"1 unexpected \(extra\)"),
        (lambda w: w.update({"0.bias": torch.zeros(5)}), r"0\.bias: \(5,\), the model has \(3,\)"),
    ],
)
def test_weights_that_do_not_fit_leave_the_model_as_it_was(tmp_path, change, message):
    path = saved(tmp_path, altered(change))
    model = net(2)
    with pytest.raises(CheckpointError, match=message):
        load_weights(model, read_checkpoint(path))
    assert same_weights(model, net(2))


def test_weights_that_are_not_finite_are_refused_by_name_unless_let_in(tmp_path):
    weights = altered(lambda w: w["2.bias"].fill_(float("nan")))
    checkpoint = read_checkpoint(saved(tmp_path, weights))
    with pytest.raises(FloatingPointError, match=r"1 tensors hold nan or inf \(2\.bias\)"):
        load_weights(net(2), checkpoint)
    model = net(2)
    load_weights(model, checkpoint, allow_nonfinite=True)
    assert torch.isnan(model[2].bias).all()


def test_a_pickle_is_refused_and_nothing_in_it_runs(tmp_path):
    class Canary:
        def __reduce__(self):
            return open, (str(tmp_path / "canary"), "w")

    for zipped in (True, False):
        path = saved(tmp_path, {"a": Canary()}, _use_new_zipfile_serialization=zipped)
        with pytest.raises(CheckpointError, match="would have to be executed"):
            read_checkpoint(path)
    assert not (tmp_path / "canary").exists()


def test_a_whole_pickled_module_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"save model\.state_dict\(\) instead"):
        read_checkpoint(saved(tmp_path, net()))


def test_a_dictionary_with_other_things_than_tensors_is_no_state_dict(tmp_path):
    with pytest.raises(CheckpointError, match="these keys hold no tensor: epoch"):
        read_checkpoint(saved(tmp_path, {"epoch": 3, "w": torch.zeros(2)}))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"<!DOCTYPE html><html>404</html>", "an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "a Git-LFS pointer"),
        (b"not a checkpoint at all", "not a readable torch file"),
    ],
)
def test_files_that_are_something_else_are_named(tmp_path, content, message):
    path = tmp_path / "net.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(path)


def test_a_truncated_file_is_incomplete(tmp_path):
    path = saved(tmp_path, net().state_dict())
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(CheckpointError, match="incomplete file"):
        read_checkpoint(path)


def test_a_flipped_bit_is_found_by_its_checksum(tmp_path):
    path = saved(tmp_path, {"w": torch.arange(1000.0)})
    with zipfile.ZipFile(path) as archive:
        member = next(i for i in archive.infolist() if i.filename.endswith("data/0"))
    content = bytearray(path.read_bytes())
    content[member.header_offset + 2000] ^= 0x40
    path.write_bytes(bytes(content))
    with pytest.raises(CheckpointError, match=r"damaged in .*data/0"):
        read_checkpoint(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="no such file"):
        read_checkpoint(tmp_path / "gone.pt")


def test_a_folder_stands_for_its_checkpoint_or_those_of_its_runs_in_order(tmp_path):
    for name in ("sam-seed10", "sam-seed2", "erm-seed0"):
        (tmp_path / name).mkdir()
        saved(tmp_path / name, {}, "checkpoint.pt")
    found = [path.parent.name for path in find_checkpoints(tmp_path)]
    assert found == ["erm-seed0", "sam-seed2", "sam-seed10"]
    own = find_checkpoints(tmp_path / "sam-seed2")
    assert [path.name for path in own] == ["checkpoint.pt"]


def test_a_folder_without_checkpoints_says_what_was_looked_for(tmp_path):
    with pytest.raises(CheckpointError, match=r"looked for checkpoint\.pt"):
        find_checkpoints(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "loss-landscape-toolkit/99"}, "this version reads loss-landscape-toolkit/1"),
        ({"model": 3}, "'model' is missing or of another type"),
        ({"recipe": None}, "'recipe' is missing or of another type"),
        ({"model": {"w": "text"}}, "these keys hold no tensor: w"),
    ],
)
def test_a_damaged_checkpoint_of_ours_is_named(tmp_path, changes, message):
    content = {
        "format": "loss-landscape-toolkit/1",
        "recipe": {},
        "model": net().state_dict(),
        "history": [],
        "run": {},
    }
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(saved(tmp_path, {**content, **changes}))


def test_flipped_bytes_of_a_legacy_file_never_escape_as_anything_else(tmp_path):
    path = saved(tmp_path, net().state_dict(), _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    generator = torch.Generator().manual_seed(0)
    for place in torch.randint(len(whole), (150,), generator=generator).tolist():
        damaged = bytearray(whole)
        damaged[place] ^= 0x41
        path.write_bytes(bytes(damaged))
        try:
            read_checkpoint(path)
        except CheckpointError as error:
            assert str(path) in str(error)  # noqa: PT017
