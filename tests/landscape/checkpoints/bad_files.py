"""Makers of bad checkpoints: each writes one and returns its path. Nothing here reads them back.

A canary is the path of a file that the checkpoint creates when something in it is run.
"""

import argparse
import io
import json
import os
import pathlib
import pickle
import struct
import warnings
import zipfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn
from torch.distributed.checkpoint.state_dict_saver import save

HTML = b"\n<!DOCTYPE html><html><head><title>404</title></head></html>"
LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


# Damage to a file that was good.


def truncate(path, share=0.7):
    """Cuts the end of the file off, as a full disk or a broken download does."""
    os.truncate(path, int(path.stat().st_size * share))
    return path


def flip_bit(path, place, bit=6):
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(bytes(content))
    return path


def flip_bit_of_member(path, ending="data/0", bit=6):
    """Flips a bit in the last byte of a member's content: for a float32 in its exponent."""
    with zipfile.ZipFile(path) as archive:
        member = next(m for m in archive.infolist() if m.filename.endswith(ending))
        content = archive.read(member)
    place = path.read_bytes().find(content, member.header_offset)
    return flip_bit(path, place + len(content) - 1, bit)


def flip_bit_of_safetensors(path, element=0, bit=6):
    """Flips an exponent bit of the element, counted in float32 over the whole data."""
    (length,) = struct.unpack("<Q", path.read_bytes()[:8])
    return flip_bit(path, 8 + length + 4 * element + 3, bit)


# Pickles that run something.


class Canary:
    """Creates a file when it is unpickled."""

    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch '{self.canary}'",)


def pickle_canary(path, canary, *, zipped=True, protocol=2):
    """A state dict with a call of os.system in it, in the zip or the legacy format."""
    content = {"weight": torch.zeros(3), "payload": Canary(canary)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    return path


def distributed_folder(folder, content):
    """A folder of torch.distributed.checkpoint, written by one process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is no process group
        save(content, checkpoint_id=folder, no_dist=True)
    return Path(folder)


def distributed_canary(folder, canary):
    """A folder of torch.distributed.checkpoint whose metadata calls os.system."""
    distributed_folder(folder, {"model": {"weight": torch.zeros(3)}})
    (folder / ".metadata").write_bytes(pickle.dumps(Canary(canary)))
    return folder


# Pickles of things that are not plain.


class OmegaConf(dict):
    """Stands for a configuration class of a library that may not be installed."""


OTHER_THINGS = {
    "torch.nn.modules.linear.Linear": lambda: nn.Linear(2, 2),
    "argparse.Namespace": lambda: {"state_dict": {"w": torch.zeros(2)}, "args": _namespace()},
    "pathlib": lambda: {"state_dict": {"w": torch.zeros(2)}, "dir": pathlib.PurePosixPath("runs")},
    "multiarray.scalar": lambda: {"state_dict": {"w": torch.zeros(2)}, "acc": np.float64(0.5)},
    "OmegaConf": lambda: {"state_dict": {"w": torch.zeros(2)}, "cfg": OmegaConf(lr=0.1)},
}


def _namespace():
    return argparse.Namespace(lr=0.1)


# Bombs: small files that become large.


def zip_bomb(path, num_bytes=200_000_000):
    """A deflated archive of a tensor of zeros: a thousand times smaller than its content."""
    stored = io.BytesIO()
    torch.save({"w": torch.zeros(1)}, stored)
    with zipfile.ZipFile(stored) as source, zipfile.ZipFile(path, "w") as archive:
        for member in source.infolist():
            if not member.filename.endswith("data/0"):
                archive.writestr(member, source.read(member))
                continue
            deflated = zipfile.ZipInfo(member.filename)
            deflated.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(deflated, "w", force_zip64=True) as target:
                for _ in range(num_bytes // 1_000_000):
                    target.write(bytes(1_000_000))
    return path


def stride_zero(path, num_elements=10**11, *, zipped=True):
    """One number that a view repeats."""
    tensor = torch.zeros(1).expand(num_elements)
    torch.save({"w": tensor}, path, _use_new_zipfile_serialization=zipped)
    return path


class _Call:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def calling(path, function, *arguments):
    """A state dict beside a call that `weights_only=True` makes."""
    torch.save({"w": torch.zeros(1), "x": _Call(function, *arguments)}, path)
    return path


def repeated_dictionaries(path, width=300, depth=6):
    """Dictionaries that hold one another so often that no walk over all ways ends."""
    content = {"w": 1}
    for _ in range(depth):
        content = {str(i): content for i in range(width)}
    torch.save(content, path)
    return path


# Archives of another kind.


def torchscript(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there are newer ways
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), str(path))
    return path


# safetensors by hand.


def safetensors(path, header, data=b"", length=None):
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(shape, start, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


SAFETENSORS_ATTACKS = {
    "a header of 2^62 bytes": lambda path: safetensors(path, {}, length=2**62),
    "overlapping tensors": lambda path: safetensors(
        path, {"a": entry([1], 0, 4), "b": entry([1], 0, 4)}, bytes(4)
    ),
    "trailing bytes": lambda path: safetensors(path, {"a": entry([1], 0, 4)}, bytes(8)),
    "missing bytes": lambda path: safetensors(path, {"a": entry([2], 0, 8)}, bytes(4)),
    "a shape that overflows": lambda path: safetensors(
        path, {"a": entry([2**62, 4], 0, 4)}, bytes(4)
    ),
    "a header that is no JSON": lambda path: safetensors(path, {}, length=1),
}


def sharded(folder, shards, places=None, index="model.safetensors.index.json"):
    """A folder of shards and their index; `places` says otherwise where a tensor lies."""
    for name, tensors in shards.items():
        if name.endswith(".safetensors"):
            save_file(tensors, folder / name)
        else:
            torch.save(tensors, folder / name)
    named = {key: name for name, tensors in shards.items() for key in tensors}
    content = {"metadata": {}, "weight_map": {**named, **(places or {})}}
    (folder / index).write_text(json.dumps(content))
    return folder
