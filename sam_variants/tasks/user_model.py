"""A module that a function of the user's returns."""

from __future__ import annotations

from typing import Any

from torch import nn

from .user_code import run_factory, where


def user_model(word: str, *, allow_code: bool = False, **arguments: Any) -> nn.Module:
    """What the user's `package.module:factory` or `FILE.py:factory` returns for the arguments.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the factory failed or returned no nn.Module; names the user's line.
    """
    returned = run_factory(word, allow_code=allow_code, **arguments)
    if not isinstance(returned, nn.Module):
        raise ValueError(
            f"{word} at {where(word, allow_code=allow_code)} returned a "
            f"{type(returned).__name__}, not a torch.nn.Module"
        )
    return returned
