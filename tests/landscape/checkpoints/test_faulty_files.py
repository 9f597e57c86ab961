"""Files that are damaged, dangerous or something else: refused in one line, nothing executed."""

import json
import os
import struct
import sys
import types
import warnings
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from landscape.checkpoints import CheckpointError, load_weights, read_checkpoint, torch_content
from landscape.checkpoints.tensors import checked
from tests.landscape.checkpoints import bad_files
from tests.landscape.checkpoints.nets import net, saved, state


def refused(path, message, **options):
    """The message with which the path is refused: one line, which names the path."""
    with pytest.raises(CheckpointError, match=message) as caught:
        read_checkpoint(path, **options)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_path_that_is_not_there_is_named(tmp_path):
    # Row 1.
    refused(tmp_path / "gone.pt", "no such file or folder")


def test_a_folder_without_a_checkpoint_says_what_was_looked_for(tmp_path):
    # Row 1.
    assert "it holds" not in refused(tmp_path, r"looked for checkpoint\.pt, model\.safetensors")
    saved(tmp_path, state(), "epoch3.pt")
    refused(tmp_path, r"it holds epoch3\.pt: name one of them")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_is_not_waited_for(tmp_path):
    # Row 1.
    os.mkfifo(tmp_path / "pipe.pt")
    refused(tmp_path / "pipe.pt", "not a regular file")


def test_an_unreadable_file_is_named(tmp_path, monkeypatch):
    path = saved(tmp_path, state())

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(type(path), "open", refuse)
    refused(path, r"cannot be opened \(Permission denied\)")


@pytest.mark.parametrize("name", ["net.pt", "model.safetensors", "model.safetensors.index.json"])
def test_an_empty_file_is_empty(tmp_path, name):
    # Row 2.
    (tmp_path / name).write_bytes(b"")
    refused(tmp_path / name, "the file is empty; take an earlier checkpoint")


@pytest.mark.parametrize("share", [0.05, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_incomplete(tmp_path, share):
    # Row 3.
    path = bad_files.truncate(saved(tmp_path, state()), share)
    refused(path, "incomplete file .*; take an earlier checkpoint")


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_a_truncated_legacy_file_is_not_readable(tmp_path, share):
    # Row 3.
    path = saved(tmp_path, state(), _use_new_zipfile_serialization=False)
    refused(bad_files.truncate(path, share), "not a readable torch file")


@pytest.mark.parametrize("name", ["net.pt", "model.safetensors"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (bad_files.HTML, "an HTML page"),
        (b"\xef\xbb\xbf" + bad_files.HTML, "an HTML page"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "an XML page"),
        (bad_files.LFS_POINTER, "a Git-LFS pointer: run `git lfs pull`"),
        (b"\x89HDF\r\n\x1a\n" + bytes(64), "an HDF5 file"),
        (b"GGUF" + bytes(64), "a GGUF file"),
        (b"\x1f\x8b\x08" + bytes(64), "a gzip archive: unpack it first"),
    ],
)
def test_files_that_are_something_else_are_named(tmp_path, name, content, message):
    # Row 4.
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, message)


def test_an_archive_of_numpy_and_other_zip_files_are_named(tmp_path):
    # Row 4.
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("w.npy", b"")
    refused(tmp_path / "a.npz", r"a numpy archive without data\.pkl")
    with zipfile.ZipFile(tmp_path / "a.docx", "w") as archive:
        archive.writestr("word/document.xml", b"")
    refused(tmp_path / "a.docx", r"a zip file without data\.pkl")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not a checkpoint at all", "in no other known format"),
        (b"\x80\x04K\x01.", "a pickle that torch.save did not write"),
        (bytes(257) + b"ustar" + bytes(300), "a tar archive"),
    ],
)
def test_files_of_no_format_say_so(tmp_path, content, message):
    # Row 4.
    (tmp_path / "net.pt").write_bytes(content)
    refused(tmp_path / "net.pt", message)


def test_a_flipped_bit_is_found_by_its_checksum_and_the_member_named(tmp_path):
    # Row 5.
    path = bad_files.flip_bit_of_member(saved(tmp_path, {"w": torch.full((1000,), 0.05)}))
    assert torch.load(path, weights_only=True)["w"].max() > 1e30  # what torch makes of it
    refused(path, r"damaged in net/data/0 \(checksum\)")


def test_a_flipped_bit_of_a_safetensors_file_is_warned_of_by_name(tmp_path):
    # Row 6.
    path = tmp_path / "net.safetensors"
    save_file({name: tensor.clone() for name, tensor in state(1).items()}, path)
    assert load_weights(net(2), read_checkpoint(path)).warnings == []
    bad_files.flip_bit_of_safetensors(path, _place(path, "0.weight") // 4)
    model = net(2)
    (warning,) = load_weights(model, read_checkpoint(path)).warnings
    assert model[0].weight.abs().max() > 1e30
    assert warning.startswith("0.weight reaches")
    assert warning.endswith("the file may be damaged (compare it with another copy)")


def _place(path, name):
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length])[name]["data_offsets"][0]


# Code.


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_is_refused_and_nothing_in_it_runs(tmp_path, zipped, protocol):
    # Row 7.
    canary = tmp_path / "canary"
    path = bad_files.pickle_canary(tmp_path / "net.pt", canary, zipped=zipped, protocol=protocol)
    message = refused(path, r"would have to be executed: .*\.system; save model\.state_dict\(\)")
    assert not canary.exists()
    assert "--trust-pickle" in message
    read_checkpoint(path, trust_pickle=True)
    assert canary.exists()  # the file would have bitten


@pytest.mark.parametrize("name", ["model.safetensors", "net.bin", "pytorch_model.bin"])
def test_a_pickle_under_any_name_and_in_a_folder_runs_nothing(tmp_path, name):
    # Row 7.
    canary = tmp_path / "canary"
    path = bad_files.pickle_canary(tmp_path / name, canary)
    refused(path, "not a readable safetensors file|would have to be executed")
    if name != "net.bin":
        refused(tmp_path, "not a readable safetensors file|would have to be executed")
    assert not canary.exists()


def test_an_environment_that_forces_unsafe_loading_changes_nothing(tmp_path, monkeypatch):
    # Row 7.
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    canary = tmp_path / "canary"
    refused(bad_files.pickle_canary(tmp_path / "net.pt", canary), "would have to be executed")
    assert not canary.exists()


def test_what_other_libraries_have_allowed_torch_to_load_is_not_allowed_here(tmp_path):
    # Row 7.
    path = saved(tmp_path, bad_files.OTHER_THINGS["argparse.Namespace"]())
    with torch.serialization.safe_globals([type(bad_files._namespace())]):
        refused(path, r"argparse\.Namespace")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", list(bad_files.OTHER_THINGS))
def test_a_class_that_is_not_plain_is_named_and_trust_offered(tmp_path, name, zipped):
    # Row 8.
    content = bad_files.OTHER_THINGS[name]()
    path = saved(tmp_path, content, _use_new_zipfile_serialization=zipped)
    assert "give --trust-pickle" in refused(path, name)
    checkpoint = read_checkpoint(path, trust_pickle=True)
    assert checkpoint.weights
    (warning,) = checkpoint.warnings
    assert "code in the file was run" in warning
    assert name in warning


def test_trust_changes_nothing_where_it_is_not_needed(tmp_path):
    # Row 8.
    assert read_checkpoint(saved(tmp_path, state()), trust_pickle=True).warnings == []


def test_a_trusted_class_that_is_not_installed_is_named(tmp_path, monkeypatch):
    # Row 8.
    module = types.ModuleType("not_installed")
    module.Config = type("Config", (), {"__module__": "not_installed"})
    monkeypatch.setitem(sys.modules, "not_installed", module)
    path = saved(tmp_path, {"model": state(), "config": module.Config()})
    monkeypatch.delitem(sys.modules, "not_installed")
    refused(path, r"executed: not_installed\.Config")
    refused(path, "needs the module not_installed", trust_pickle=True)


@pytest.mark.parametrize("trust", [False, True])
def test_a_torchscript_archive_is_refused_with_advice(tmp_path, trust):
    # Row 11.
    path = bad_files.torchscript(tmp_path / "net.pt")
    refused(path, "a TorchScript model, which is code; export a state_dict", trust_pickle=trust)


def test_torch_is_told_to_execute_only_what_is_trusted_and_needs_it(tmp_path, monkeypatch):
    # Rows 7 and 8.
    load, told = torch.load, []

    def recording(*arguments, weights_only, **options):
        told.append(weights_only)
        return load(*arguments, weights_only=weights_only, **options)

    monkeypatch.setattr(torch, "load", recording)
    plain = saved(tmp_path, state(), "plain.pt")
    other = saved(tmp_path, bad_files.OTHER_THINGS["argparse.Namespace"](), "other.pt")
    read_checkpoint(plain)
    read_checkpoint(plain, trust_pickle=True)
    refused(other, "argparse")
    assert told == [True, True]
    read_checkpoint(other, trust_pickle=True)
    assert told == [True, True, False]


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_hides_its_names_from_us_meets_torchs_own_refusal(
    tmp_path, monkeypatch, zipped
):
    # Row 7.
    canary = tmp_path / "canary"
    path = bad_files.pickle_canary(tmp_path / "net.pt", canary, zipped=zipped)
    monkeypatch.setattr(torch_content, "names_called", lambda file: set())
    refused(path, "not a readable torch file")
    assert not canary.exists()


# Bombs.


def test_a_deflated_bomb_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    # Row 12.
    path = bad_files.zip_bomb(tmp_path / "bomb.pt")
    assert path.stat().st_size < 250_000
    unpacked = []
    monkeypatch.setattr(zipfile.ZipFile, "testzip", lambda self: unpacked.append(self))
    monkeypatch.setattr(torch, "load", lambda *_, **__: unpacked.append(1))
    refused(path, "bytes that unpack to 200000..., more than 100 times")
    refused(
        path,
        r"0\.2 GB to read, over the limit of 0\.1 GB; .*--max-checkpoint-gb",
        max_gigabytes=0.1,
    )
    assert unpacked == []


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors", "shards"])
def test_a_file_over_the_limit_is_refused(tmp_path, kind):
    # Row 12.
    weights = {"w": torch.zeros(1000)}
    path = tmp_path / "net.pt"
    if kind == "safetensors":
        path = tmp_path / "net.safetensors"
        save_file(weights, path)
    elif kind == "shards":
        path = tmp_path
        bad_files.sharded(
            tmp_path, {"a.safetensors": weights, "b.safetensors": {"v": weights["w"]}}
        )
    else:
        torch.save(weights, path, _use_new_zipfile_serialization=kind == "zip")
    read_checkpoint(path, max_gigabytes=1e-4)
    with pytest.raises(CheckpointError, match="over the limit of 3e-06 GB"):
        read_checkpoint(path, max_gigabytes=3e-6)


def test_an_archive_with_two_members_of_one_name_is_refused(tmp_path):
    # Row 12: the one that is checked may not be the one that torch reads.
    path = saved(tmp_path, state())
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("net/DATA.pkl", b"other")
    refused(path, "two members of one name")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_tensor_larger_than_its_memory_is_refused_before_it_is_copied(tmp_path, zipped):
    # Row 13.
    path = bad_files.stride_zero(tmp_path / "net.pt", zipped=zipped)
    assert torch.load(path, weights_only=True)["w"].numel() == 10**11  # torch itself loads it
    refused(path, r"w has shape \(100000000000,\) and holds 4 bytes")


def test_overlapping_views_larger_than_their_memory_are_refused(tmp_path):
    # Row 13.
    tensor = torch.zeros(1000).as_strided((500, 500), (1, 1))
    refused(saved(tmp_path, {"w": tensor}), "a view that repeats its numbers")


def test_a_slice_of_a_larger_tensor_is_no_bomb(tmp_path):
    # Row 13.
    whole = torch.arange(10.0)
    checkpoint = read_checkpoint(saved(tmp_path, {"a": whole[2:5], "b": whole[::2]}))
    assert checkpoint.weights["a"].tolist() == [2.0, 3.0, 4.0]
    assert checkpoint.weights["b"].tolist() == [0.0, 2.0, 4.0, 6.0, 8.0]


def test_memory_that_a_call_in_the_file_asks_for_is_refused(tmp_path):
    # Row 13: `weights_only=True` calls both of these.
    refused(bad_files.calling(tmp_path / "a.pt", bytearray, 10**11), "bytearray")
    path = tmp_path / "b.pt"
    torch.save({"w": bad_files._Call(torch.Tensor, 10**8)}, path)
    assert torch.load(path, weights_only=True)["w"].numel() == 10**8
    refused(path, "claim 400000000 bytes and the file holds")


# safetensors.


@pytest.mark.parametrize("name", list(bad_files.SAFETENSORS_ATTACKS))
def test_attacks_on_the_header_of_safetensors_are_the_librarys_error(tmp_path, name):
    # Row 14.
    path = bad_files.SAFETENSORS_ATTACKS[name](tmp_path / "net.safetensors")
    refused(path, "not a readable safetensors file")


def test_flipped_bytes_never_escape_as_anything_else(tmp_path):
    # Rows 3, 5, 6, 14.
    generator = torch.Generator().manual_seed(0)
    zipped, legacy = saved(tmp_path, state()), tmp_path / "legacy.pt"
    torch.save(state(), legacy, _use_new_zipfile_serialization=False)
    tensors = tmp_path / "net.safetensors"
    save_file({name: t.clone() for name, t in state().items()}, tensors)
    for path, share in ((zipped, 1.0), (legacy, 1.0), (legacy, 0.3), (tensors, 1.0)):
        whole = path.read_bytes()
        places = torch.randint(int(share * len(whole)), (60,), generator=generator)
        for place in places.tolist():
            bad_files.flip_bit(path, place, place % 8)
            try:
                load_weights(net(), read_checkpoint(path))
            except (CheckpointError, FloatingPointError) as error:
                assert str(path) in str(error)  # noqa: PT017
            path.write_bytes(whole)


# Entries that are no weights.


def _quantized():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)


@pytest.mark.parametrize("trust", [False, True])
@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (lambda: torch.empty(3, device="meta"), "w is a meta tensor"),
        (lambda: torch.eye(3).to_sparse(), r"w is sparse \(torch\.sparse_coo\); save tensor"),
        (lambda: torch.zeros(2, dtype=torch.complex64), r"w is complex \(torch\.complex64\)"),
        (_quantized, "holds quantized tensors"),
        (lambda: torch.zeros(2, dtype=torch.uint8).view(torch.float4_e2m1fn_x2), "cannot be cast"),
    ],
)
def test_entries_that_are_no_weights_are_refused_by_name(tmp_path, tensor, message, trust):
    # Row 20.
    refused(saved(tmp_path, {"model": {"w": tensor()}}), message, trust_pickle=trust)


def test_a_sparse_entry_of_the_optimizer_is_nobodys_business(tmp_path):
    # Row 20.
    content = {"model": state(1), "optimizer": {"w": torch.eye(3).to_sparse()}}
    load_weights(net(2), read_checkpoint(saved(tmp_path, content)))


def test_a_subclass_of_tensor_is_refused_by_its_name(tmp_path):
    # Row 20.
    class Marked(torch.Tensor):
        pass

    with pytest.raises(CheckpointError, match="w is a Marked, not a plain tensor"):
        checked(tmp_path, {"w": torch.zeros(2).as_subclass(Marked)})


def test_reading_from_memory_is_not_changed_by_a_file_written_again(tmp_path):
    path = tmp_path / "net.safetensors"
    save_file({"w": torch.ones(100_000)}, path)
    checkpoint = read_checkpoint(path)
    with path.open("r+b") as file:
        file.seek(200)
        file.write(b"\xff" * 1000)
    assert checkpoint.weights["w"].sum() == 100_000
