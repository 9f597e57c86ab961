"""find_checkpoints: what a path stands for, without torch."""

import subprocess
import sys

import pytest

from landscape.checkpoints import CheckpointError, find_checkpoints


def files(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return folder


def test_a_file_stands_for_itself(tmp_path):
    files(tmp_path, "net.anything")
    assert find_checkpoints(tmp_path / "net.anything") == [tmp_path / "net.anything"]


def test_a_folder_stands_for_its_checkpoint_or_those_of_its_runs_in_order(tmp_path):
    files(tmp_path, *(f"{run}/checkpoint.pt" for run in ("sam-seed10", "sam-seed2", "erm-seed0")))
    found = [path.parent.name for path in find_checkpoints(tmp_path)]
    assert found == ["erm-seed0", "sam-seed2", "sam-seed10"]
    own = find_checkpoints(tmp_path / "sam-seed2")
    assert own == [tmp_path / "sam-seed2" / "checkpoint.pt"]


@pytest.mark.parametrize(
    "names",
    [
        ("config.json", "model.safetensors"),
        ("config.json", "pytorch_model.bin"),
        ("model.safetensors.index.json", "model-00001-of-00001.safetensors"),
        ("pytorch_model.bin.index.json",),
        (".metadata", "__0_0.distcp"),
        ("__0_0.distcp",),
    ],
)
def test_a_folder_that_is_one_checkpoint_stands_for_itself(tmp_path, names):
    assert find_checkpoints(files(tmp_path, *names)) == [tmp_path]


def test_a_folder_of_such_folders_stands_for_them_in_order(tmp_path):
    files(
        tmp_path,
        "checkpoint-1000/model.safetensors",
        "checkpoint-500/model.safetensors",
        "step-7/.metadata",
        "logs/events.txt",
    )
    names = [path.name for path in find_checkpoints(tmp_path)]
    assert names == ["checkpoint-500", "checkpoint-1000", "step-7"]


def test_the_model_of_a_folder_goes_before_the_checkpoints_on_the_way_to_it(tmp_path):
    files(tmp_path, "model.safetensors", "checkpoint-500/model.safetensors")
    assert find_checkpoints(tmp_path) == [tmp_path]


def test_a_path_that_is_not_there_is_named(tmp_path):
    # Row 1.
    with pytest.raises(CheckpointError, match=r"gone: no such file or folder"):
        find_checkpoints(tmp_path / "gone")


def test_a_folder_without_checkpoints_says_what_was_looked_for_and_what_is_there(tmp_path):
    # Row 1.
    looked = (
        r"looked for checkpoint\.pt, model\.safetensors, .*pytorch_model\.bin.*\.metadata "
        r"\(distributed checkpoint\) there and in its subfolders"
    )
    with pytest.raises(CheckpointError, match=f"{looked}$"):
        find_checkpoints(tmp_path)
    files(tmp_path, "last.ckpt", "epoch3.pth", "notes.txt")
    with pytest.raises(CheckpointError, match=r"it holds epoch3\.pth, last\.ckpt: name one"):
        find_checkpoints(tmp_path)


def test_finding_needs_no_torch(tmp_path):
    files(tmp_path, "run/model.safetensors")
    script = (
        "import sys; from landscape.checkpoints import find_checkpoints; "
        f"print(len(find_checkpoints({str(tmp_path)!r})), 'torch' in sys.modules)"
    )
    printed = subprocess.check_output([sys.executable, "-c", script], text=True)
    assert printed.split() == ["1", "False"]


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    def refuse(folder):
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(type(tmp_path), "iterdir", refuse)
    with pytest.raises(CheckpointError, match=r"cannot be read \(Permission denied\)"):
        find_checkpoints(tmp_path)
