"""What a pickle would call, read without running it."""

from __future__ import annotations

import pickletools
import re
from typing import IO

import torch

# What tensors and plain values are made of. A subset of what `weights_only=True` lets through: it
# also calls bytearray(n) and quantised tensors with strides of the file's choice, the one of which
# takes any amount of memory, the other reads outside of its own.
_PLAIN = frozenset(
    {
        "collections.OrderedDict",
        "collections.Counter",
        "builtins.set",
        "builtins.complex",
        "_codecs.encode",
        "torch.Size",
        "torch.Tensor",
        "torch.device",
        "torch.nn.parameter.Parameter",
        "torch.serialization._get_layout",
        "torch.storage.TypedStorage",
        "torch.storage.UntypedStorage",
        "torch._tensor._rebuild_from_type_v2",
        "torch._utils._rebuild_meta_tensor_no_storage",
        "torch._utils._rebuild_parameter",
        "torch._utils._rebuild_parameter_with_state",
        "torch._utils._rebuild_sparse_tensor",
        "torch._utils._rebuild_tensor",
        "torch._utils._rebuild_tensor_v2",
        "torch._utils._rebuild_tensor_v3",
    }
)
_STORAGE = re.compile(r"torch\.(cuda\.)?[A-Z][A-Za-z0-9]*Storage")
_PYTHON_2 = {"__builtin__": "builtins", "copy_reg": "copyreg"}


def names_called(file: IO[bytes]) -> set[str]:
    """The classes and functions that the next pickle in the file names, with their modules.

    Raises:
        ValueError: this is no pickle, or not all of one.
    """
    found = set()
    texts: list[str] = []
    memo: dict[int, str] = {}
    for code, argument, _ in pickletools.genops(file):
        if code.name in {"GLOBAL", "INST"}:
            module, _, name = str(argument).partition(" ")
            found.add(f"{_PYTHON_2.get(module, module)}.{name}")
        elif code.name == "STACK_GLOBAL":
            found.add(".".join(texts[-2:]) if len(texts) > 1 else "a computed name")
        elif isinstance(argument, str):
            texts = [*texts[-1:], argument]
        elif code.name == "MEMOIZE":
            memo[len(memo)] = texts[-1] if texts else ""
        elif code.name in {"BINGET", "LONG_BINGET", "GET"} and argument in memo:
            texts = [*texts[-1:], memo[argument]]
    return found


def is_plain(name: str) -> bool:
    """Whether a name is one of those that tensors and plain values are made of."""
    return (
        name in _PLAIN
        or _STORAGE.fullmatch(name) is not None
        or (name.startswith("torch.") and isinstance(getattr(torch, name[6:], None), torch.dtype))
    )
