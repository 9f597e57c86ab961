"""python-docs and text:FILE: the next character, in windows of a text."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import Tensor

from .task import Request, Split, Task


def python_docs(request: Request, *, context: int = 64, train_share: float = 0.9) -> Task:
    """Next character of the English help text in CPython's `pydoc_data.topics` (0.5 million).

    The text changes with the Python version; its hash stands in the description. The topics are
    joined in the order of their names.

    Raises:
        ValueError: a Python without that module, or a context longer than a split.
    """
    try:
        from pydoc_data.topics import topics  # half a megabyte, for this task alone
    except ModuleNotFoundError:  # some distributions strip it
        raise ValueError("this Python carries no pydoc_data.topics; use text:FILE") from None
    text = "\n".join(topics[name] for name in sorted(topics))
    return _language_task(request, text, "help text of CPython", context, train_share)


def text_file(request: Request, *, context: int = 64, train_share: float = 0.9) -> Task:
    """Next character of the user's text.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a folder, not UTF-8, or too short for a window in each split.
    """
    path = Path(request.argument).expanduser()
    if path.is_dir():
        raise ValueError(f"text file {path} is a folder")
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise FileNotFoundError(f"text file {path} does not exist") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"text file {path} is not UTF-8 at byte {error.start}") from None
    return _language_task(request, text, f"text of {path.name}", context, train_share)


def _language_task(
    request: Request, text: str, title: str, context: int, train_share: float
) -> Task:
    """Windows of `context` characters side by side; training before test, in the text's order.

    A window's targets are its characters moved on by one. The vocabulary is every character of
    the text, sorted, so that the test split holds none that the model has no token for.
    """
    cut = int(train_share * len(text))
    if min(cut, len(text) - cut) < context + 1:
        raise ValueError(
            f"{title}: {len(text)} characters are too few for a window of {context} + 1 "
            f"in each split ({cut} training, {len(text) - cut} test); give a smaller context"
        )
    vocabulary = "".join(sorted(set(text)))
    token_of = {character: token for token, character in enumerate(vocabulary)}
    tokens = torch.tensor([token_of[character] for character in text])
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return Task(
        name=request.name,
        kind="language",
        train=_windows(tokens[:cut], context),
        test=_windows(tokens[cut:], context),
        num_classes=len(vocabulary),
        input_shape=(context,),
        description=(
            f"{title}, {len(text):,} characters of {len(vocabulary)}, windows of {context}, "
            f"text sha256 {digest[:16]}"
        ),
        vocabulary=vocabulary,
    )


def _windows(tokens: Tensor, context: int) -> Split:
    num = (len(tokens) - 1) // context
    length = num * context
    inputs = tokens[:length].view(num, context).clone()
    return Split(inputs, tokens[1 : length + 1].view(num, context).clone())
