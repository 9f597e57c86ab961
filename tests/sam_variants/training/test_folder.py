"""Files are whole or absent, and a folder belongs to one process at a time."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sam_variants.training.checkpoint import load_checkpoint, save_checkpoint
from sam_variants.training.failures import BadInputError, FolderError, SaveError
from sam_variants.training.folder import (
    locked,
    remove_temporaries,
    write_json,
    write_text,
    write_whole,
)


def test_a_write_that_fails_keeps_the_old_file_and_leaves_no_temporary(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "old")

    def fails(file) -> None:
        file.write(b"half of the new")
        raise OSError(28, "No space left on device")

    with pytest.raises(SaveError, match="No space left on device"):
        write_whole(path, fails)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_torchs_word_for_a_full_disk_is_understood(tmp_path: Path) -> None:
    def fails(file) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0")

    with pytest.raises(SaveError, match="no space left on device; what was there is kept"):
        write_whole(tmp_path / "x.pt", fails)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_really_full_disk_is_a_save_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open

    def full(path, mode="r", *args, **kwargs):
        return opened("/dev/full" if str(path).endswith(".tmp") else path, mode, *args, **kwargs)

    monkeypatch.setattr("builtins.open", full)
    with pytest.raises(SaveError, match="could not write"):
        save_checkpoint(tmp_path / "checkpoint.pt", {"model": {"w": torch.zeros(100_000)}})


def test_an_interrupted_write_leaves_no_temporary(tmp_path: Path) -> None:
    def interrupted(file) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "x", interrupted)
    assert list(tmp_path.iterdir()) == []


def test_stale_temporaries_are_cleaned_and_nothing_else(tmp_path: Path) -> None:
    run = tmp_path / "sam-seed0"
    run.mkdir()
    for path in (tmp_path / ".a.1.tmp", run / ".checkpoint.pt.99.tmp", run / "notes.tmp"):
        path.write_text("x")
    remove_temporaries(tmp_path)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["notes.tmp", "sam-seed0"]


def test_json_is_strict(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Out of range float"):
        write_json(tmp_path / "x.json", {"a": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_of_plain_types_comes_back(tmp_path: Path) -> None:
    save_checkpoint(
        tmp_path / "c.pt", {"model": {"w": torch.arange(3.0)}, "history": [{"a": None}]}
    )
    document = load_checkpoint(tmp_path / "c.pt")
    assert document["format"] == "loss-landscape-toolkit/1"
    assert torch.equal(document["model"]["w"], torch.arange(3.0))
    assert document["history"] == [{"a": None}]


@pytest.mark.parametrize("content", [b"", b"<html>", b"PK\x03\x04 cut off"])
def test_a_file_that_is_no_checkpoint_is_bad_input(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "c.pt"
    path.write_bytes(content)
    with pytest.raises(BadInputError, match=r"cannot read .*c\.pt"):
        load_checkpoint(path)


def test_a_truncated_checkpoint_is_bad_input(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    save_checkpoint(path, {"model": {"w": torch.zeros(1000)}})
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(BadInputError, match="cannot read"):
        load_checkpoint(path)


def test_a_foreign_checkpoint_is_bad_input_and_executes_nothing(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(2)}, tmp_path / "c.pt")
    with pytest.raises(BadInputError, match="not a checkpoint of this program"):
        load_checkpoint(tmp_path / "c.pt")

    class Canary:
        def __reduce__(self):
            return (os.system, (f"touch {tmp_path}/canary",))

    torch.save({"w": Canary()}, tmp_path / "c.pt")
    with pytest.raises(BadInputError, match="cannot read"):
        load_checkpoint(tmp_path / "c.pt")
    assert not (tmp_path / "canary").exists()


HOLD = """
import sys, time
from pathlib import Path
from sam_variants.training.folder import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_refused_by_name_and_a_killed_one_lets_go(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(FolderError, match=f"in use by process {holder.pid} on"),
            locked(tmp_path),
        ):
            pass
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    with locked(tmp_path):
        assert f"left by process {holder.pid}" in capsys.readouterr().err
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
    assert not (tmp_path / ".lock").exists()


def test_a_lock_of_another_host_is_refused_with_what_to_do(tmp_path: Path) -> None:
    lock = tmp_path / ".lock"
    lock.write_text(json.dumps({"pid": 1, "host": "elsewhere"}))
    with (
        pytest.raises(FolderError, match=f"cannot be checked from {socket.gethostname()}.*delete"),
        locked(tmp_path),
    ):
        pass
    assert lock.exists()


def test_the_lock_goes_when_the_work_fails(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="work"), locked(tmp_path):
        raise RuntimeError("work")
    with locked(tmp_path):
        pass
