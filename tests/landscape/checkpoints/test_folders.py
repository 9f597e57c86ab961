"""Checkpoints of several files: shards, Hugging Face folders, distributed checkpoints."""

import hashlib
import json
import shutil
import subprocess

import pytest
import torch
from safetensors.torch import save_file

from landscape.checkpoints import CheckpointError, StateKeyError, load_weights, read_checkpoint
from landscape.checkpoints.files import sha256_of_files
from tests.landscape.checkpoints import bad_files
from tests.landscape.checkpoints.bad_files import distributed_folder, sharded
from tests.landscape.checkpoints.nets import net, same_weights, state


def halves(seed=1):
    """The small network's state in two parts."""
    items = [(name, tensor.clone()) for name, tensor in state(seed).items()]
    return dict(items[:4]), dict(items[4:])


def two_shards(folder, ending="safetensors", **options):
    first, second = halves()
    names = [f"model-0000{i}-of-00002.{ending}" for i in (1, 2)]
    return sharded(folder, dict(zip(names, (first, second), strict=True)), **options)


def refused(path, message, **options):
    with pytest.raises(CheckpointError, match=message) as caught:
        read_checkpoint(path, **options)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


# safetensors, in one file and in shards.


def test_a_safetensors_file_is_loaded(tmp_path):
    path = tmp_path / "net.safetensors"
    save_file({name: tensor.clone() for name, tensor in state(1).items()}, path)
    model = net(2)
    checkpoint = read_checkpoint(path)
    report = load_weights(model, checkpoint)
    assert same_weights(model, net(1))
    assert (report.format, report.state_key) == ("safetensors", None)
    assert checkpoint.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_safetensors_file_is_known_by_its_beginning(tmp_path):
    path = tmp_path / "4fa7c1"  # as the Hugging Face cache names its files
    save_file({name: tensor.clone() for name, tensor in state(1).items()}, path)
    assert read_checkpoint(path).format == "safetensors"


def test_part_of_a_flat_file_is_taken_by_the_start_of_its_names(tmp_path):
    path = tmp_path / "both.safetensors"
    both = {**state(1, "student."), **state(3, "teacher.")}
    save_file({name: tensor.clone() for name, tensor in both.items()}, path)
    model = net(2)
    report = load_weights(model, read_checkpoint(path, state_key="teacher"))
    assert same_weights(model, net(3))
    assert report.skipped == [name for name in sorted(both) if name.startswith("student.")]
    with pytest.raises(StateKeyError, match="nothing under the state key ema"):
        read_checkpoint(path, state_key="ema")


@pytest.mark.parametrize("named", ["folder", "index"])
def test_shards_are_put_together(tmp_path, named):
    two_shards(tmp_path)
    path = tmp_path if named == "folder" else tmp_path / "model.safetensors.index.json"
    model = net(2)
    checkpoint = read_checkpoint(path)
    load_weights(model, checkpoint)
    assert same_weights(model, net(1))
    assert checkpoint.path == str(path)
    assert "model.safetensors.index.json" in checkpoint.format


def test_the_hash_of_several_files_is_that_of_their_hashes(tmp_path):
    two_shards(tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    lines = [f"{hashlib.sha256((tmp_path / n).read_bytes()).hexdigest()}  {n}\n" for n in names]
    expected = hashlib.sha256("".join(lines).encode()).hexdigest()
    assert read_checkpoint(tmp_path).sha256 == expected
    assert sha256_of_files(tmp_path, names[::-1]) == expected
    if shutil.which("sha256sum"):
        command = "LC_ALL=C sha256sum * | sha256sum"
        printed = subprocess.check_output(command, shell=True, cwd=tmp_path, text=True)
        assert printed.split()[0] == expected


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_one_shard_by_itself_is_refused(tmp_path, ending):
    two_shards(tmp_path, ending)
    path = tmp_path / f"model-00001-of-00002.{ending}"
    refused(path, "one of 2 shards; name the folder, or its index.json")


@pytest.mark.parametrize(
    "name",
    [
        "../../etc/x",
        "../../secret.safetensors",
        "/etc/passwd",
        "inside/../../../secret.safetensors",
        "a\\..\\secret.safetensors",
        "C:secret.safetensors",
        "null\0byte",
        "link.safetensors",
        "loop.safetensors",
        "linked/secret.safetensors",
        "blob.safetensors",
    ],
)
def test_an_index_that_leads_out_of_its_folder_is_refused(tmp_path, name):
    # Row 15.
    folder = tmp_path / "models" / "model"
    folder.mkdir(parents=True)
    (tmp_path / "blobs").mkdir()
    save_file({"x": torch.zeros(1)}, tmp_path / "blobs" / "1")
    (folder / "blob.safetensors").symlink_to("../../blobs/1")
    save_file({"x": torch.zeros(1)}, tmp_path / "secret.safetensors")
    (folder / "link.safetensors").symlink_to(tmp_path / "secret.safetensors")
    (folder / "loop.safetensors").symlink_to(folder / "loop.safetensors")
    (folder / "linked").symlink_to(tmp_path)
    two_shards(folder, places={"x": name})
    refused(folder / "model.safetensors.index.json", "not inside its folder: refused")
    with pytest.raises(CheckpointError, match="not inside its folder: refused"):
        read_checkpoint(folder)


def test_the_links_of_the_hugging_face_cache_are_followed(tmp_path):
    # Row 15: snapshots/HASH holds links to ../../blobs, and to no other place.
    snapshot, blobs = tmp_path / "snapshots" / "abc", tmp_path / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    two_shards(snapshot)
    for index, file in enumerate(sorted(snapshot.iterdir())):
        file.rename(blobs / str(index))
        file.symlink_to(f"../../blobs/{index}")
    model = net(2)
    load_weights(model, read_checkpoint(snapshot))
    assert same_weights(model, net(1))
    other = tmp_path / "elsewhere"
    other.mkdir()
    (blobs / "0").rename(other / "0")
    first = min(snapshot.iterdir())
    first.unlink()
    first.symlink_to("../../elsewhere/0")
    refused(snapshot / "model.safetensors.index.json", "not inside its folder: refused")


def test_missing_shards_are_listed(tmp_path):
    # Row 15.
    two_shards(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    refused(tmp_path, r"1 of 2 shards missing \(model-00002-of-00002\.safetensors\)")


def test_a_shard_of_another_checkpoint_is_refused(tmp_path):
    # Row 15.
    two_shards(tmp_path)
    save_file({"other": torch.zeros(1)}, tmp_path / "model-00002-of-00002.safetensors")
    refused(tmp_path, "not the shard that model.safetensors.index.json describes")


def test_a_tensor_in_two_shards_is_refused(tmp_path):
    # Row 15.
    first, second = halves()
    shards = {"a.safetensors": first, "b.safetensors": {**second, "0.weight": first["0.weight"]}}
    refused(sharded(tmp_path, shards), r"not the shard .* describes: 0\.weight")


def test_two_names_of_one_shard_are_refused(tmp_path):
    # Row 15.
    first, _ = halves()
    sharded(tmp_path, {"a.safetensors": first}, places={"0.weight": "./a.safetensors"})
    refused(tmp_path, "two of its shards are one file")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not a readable index"),
        ("[" * 200_000, "not a readable index"),
        ("[]", "no weight_map of names to files"),
        ('{"weight_map": {}}', "no weight_map of names to files"),
        ('{"weight_map": {"a": 3}}', "no weight_map of names to files"),
        ('{"weight_map": {"a": "x", "a": "y"}}', "a name stands in it twice"),
        (b"\xff\xfe{}", "not a readable index"),
    ],
)
def test_an_index_that_is_none_says_so(tmp_path, text, message):
    path = tmp_path / "model.safetensors.index.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    refused(path, message)


def test_an_index_of_absurd_size_is_not_read(tmp_path):
    path = tmp_path / "model.safetensors.index.json"
    with path.open("wb") as file:
        file.write(b"{")
        file.truncate(200_000_000)
    refused(path, "larger than an index can be")


# Hugging Face folders.


@pytest.mark.parametrize("kind", ["safetensors", "bin", "sharded safetensors", "sharded bin"])
def test_a_hugging_face_folder_is_loaded(tmp_path, kind):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "net"}))
    weights = {name: tensor.clone() for name, tensor in state(1).items()}
    if kind == "safetensors":
        save_file(weights, tmp_path / "model.safetensors")
    elif kind == "bin":
        torch.save(weights, tmp_path / "pytorch_model.bin")
    elif kind == "sharded bin":
        two_shards(tmp_path, ending="bin", index="pytorch_model.bin.index.json")
    else:
        two_shards(tmp_path)
    model = net(2)
    checkpoint = read_checkpoint(tmp_path)
    load_weights(model, checkpoint)
    assert same_weights(model, net(1))
    assert checkpoint.path == str(tmp_path)
    assert checkpoint.format.startswith("folder with ")


def test_safetensors_are_preferred_to_a_pickle(tmp_path):
    canary = tmp_path / "canary"
    save_file({name: t.clone() for name, t in state(1).items()}, tmp_path / "model.safetensors")
    bad_files.pickle_canary(tmp_path / "pytorch_model.bin", canary)
    model = net(2)
    load_weights(model, read_checkpoint(tmp_path, trust_pickle=True))
    assert same_weights(model, net(1))
    assert not canary.exists()


def test_a_pickle_among_the_shards_is_refused_and_runs_nothing(tmp_path):
    # Row 7.
    canary = tmp_path / "canary"
    two_shards(tmp_path, ending="bin", index="pytorch_model.bin.index.json")
    bad_files.pickle_canary(tmp_path / "model-00002-of-00002.bin", canary)
    refused(tmp_path, "would have to be executed")
    assert not canary.exists()


def test_a_shard_with_other_things_than_tensors_is_refused(tmp_path):
    two_shards(tmp_path, ending="bin", index="pytorch_model.bin.index.json")
    torch.save({"model": state(1)}, tmp_path / "model-00002-of-00002.bin")
    refused(tmp_path, "holds more than the tensors of a shard")


def test_a_pointer_in_place_of_a_shard_is_named(tmp_path):
    # Row 4.
    two_shards(tmp_path)
    (tmp_path / "model-00001-of-00002.safetensors").write_bytes(bad_files.LFS_POINTER)
    refused(tmp_path, "a Git-LFS pointer")


# Distributed checkpoints.


def training_state():
    model = net(1)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(5, 4)).sum().backward()
    optimizer.step()
    return model, {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3}


def test_a_distributed_folder_is_put_together_when_trusted(tmp_path):
    model, content = training_state()
    distributed_folder(tmp_path, content)
    checkpoint = read_checkpoint(tmp_path, trust_pickle=True)
    other = net(2)
    report = load_weights(other, checkpoint)
    assert same_weights(other, model)
    assert (report.format, report.state_key) == ("distributed checkpoint", "model")
    assert report.skipped == ["optimizer", "epoch"]
    assert report.warnings == [".metadata was run as a pickle, as --trust-pickle allows"]
    names = [path.name for path in tmp_path.iterdir()]
    assert checkpoint.sha256 == sha256_of_files(tmp_path, names)


def test_a_flat_distributed_folder_and_one_of_several_are_chosen_from_alike(tmp_path):
    distributed_folder(tmp_path / "flat", state(1))
    model = net(2)
    load_weights(model, read_checkpoint(tmp_path / "flat", trust_pickle=True))
    assert same_weights(model, net(1))
    distributed_folder(tmp_path / "two", {"model": state(1), "ema": state(3)})
    with pytest.raises(StateKeyError, match="several state dicts"):
        read_checkpoint(tmp_path / "two", trust_pickle=True)
    load_weights(model, read_checkpoint(tmp_path / "two", trust_pickle=True, state_key="ema"))
    assert same_weights(model, net(3))


def test_a_distributed_folder_is_refused_without_trust_and_says_why(tmp_path):
    # Row 9.
    distributed_folder(tmp_path, {"model": state(1)})
    refused(tmp_path, r"\.metadata is a pickle that can run any code .*--trust-pickle")


def test_malicious_metadata_runs_nothing_without_trust(tmp_path):
    # Row 10.
    canary = tmp_path / "canary"
    folder = bad_files.distributed_canary(tmp_path / "folder", canary)
    refused(folder, r"\.metadata is a pickle")
    assert not canary.exists()
    refused(folder, r"\.metadata: not readable", trust_pickle=True)
    assert canary.exists()  # the file would have bitten


def test_an_unfinished_distributed_save_is_named(tmp_path):
    distributed_folder(tmp_path, {"model": state(1)})
    (tmp_path / ".metadata").unlink()
    refused(tmp_path, "the save did not finish")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda shard: shard.unlink(), "1 of 1 shards missing"),
        (lambda shard: bad_files.truncate(shard, 0.5), "a shard cannot be read"),
        (lambda shard: shard.write_bytes(bytes(5000)), "a shard cannot be read"),
        (lambda shard: bad_files.truncate(shard.parent / ".metadata", 0.5), "not readable"),
        (lambda shard: (shard.parent / ".metadata").write_bytes(b""), "the file is empty"),
    ],
)
def test_a_damaged_distributed_folder_is_refused(tmp_path, damage, message):
    distributed_folder(tmp_path, {"model": state(1)})
    damage(tmp_path / "__0_0.distcp")
    refused(tmp_path, message, trust_pickle=True)


def test_a_distributed_folder_over_the_limit_is_refused(tmp_path):
    # Row 12.
    distributed_folder(tmp_path, {"model": state(1)})
    refused(tmp_path, "over the limit", trust_pickle=True, max_gigabytes=1e-6)
