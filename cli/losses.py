"""--loss: the functions that its words stand for, or a function of the user's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from landscape.table import Entry, unknown
from sam_variants.tasks import CODE, parse_model

_TORCH = "torch.nn.functional"
_USERS = "sam_variants.tasks.user_code:find_function"

# Each returns the mean over its terms (classes, or elements), in nats or squared units.
LOSSES: dict[str, Entry] = {
    "cross-entropy": Entry(
        f"{_TORCH}:cross_entropy",
        "of logits (n, classes, ...) and class labels (n, ...) or probabilities, in nats",
    ),
    "mse": Entry(f"{_TORCH}:mse_loss", "squared error of outputs and targets of one shape"),
    "bce": Entry(
        f"{_TORCH}:binary_cross_entropy_with_logits",
        "of logits and targets in [0, 1] of one shape: several labels a sample, in nats",
    ),
    "nll": Entry(
        f"{_TORCH}:nll_loss", "of log-probabilities (n, classes, ...) and class labels, in nats"
    ),
    CODE[0].replace("factory", "function"): Entry(
        _USERS, "yours: loss(output, target), or loss(model, batch) for batches of other forms"
    ),
    CODE[1].replace("factory", "function"): Entry(
        _USERS, "the same from a file of yours, with --allow-code"
    ),
}
WORDS = tuple(word for word, entry in LOSSES.items() if entry.target != _USERS)


@dataclass(frozen=True)
class Loss:
    """A loss as `Objective` takes it.

    Attributes:
        word: as the user gave it.
        function: (output, target) -> loss, or (model, batch) -> loss or (loss, num_terms).
        place: FILE:LINE of the user's own definition; None for a word of ours.
    """

    word: str
    function: Callable[..., Any]
    place: str | None = None

    @property
    def description(self) -> str:
        """One line for people."""
        if self.place is not None:
            return f"{self.word} at {self.place}"
        unit = "" if self.word == "mse" else " in nats"
        return f"mean {self.word}{unit}; weight decay is not in it"


def is_code(word: str | None) -> bool:
    """Whether a word of --model, --data or --loss is the user's own code."""
    try:
        parsed = parse_model(word or "")
    except ValueError:
        return False
    return parsed.key in CODE and not parsed.options


def check_loss(word: str) -> None:
    """Raises ValueError, with the nearest name, where the word stands for no loss. No torch."""
    if word not in WORDS and not is_code(word):
        raise ValueError(unknown(word, LOSSES, "loss"))


def build_loss(word: str, *, allow_code: bool = False) -> Loss:
    """The loss that a word names.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no such word or function; a file without `allow_code`; user code that fails; a
            class, which is no function of (output, target).
    """
    check_loss(word)
    if word in WORDS:
        return Loss(word, LOSSES[word].load())
    from sam_variants.tasks.user_code import defined_at, find_function

    function = find_function(word, allow_code)
    if isinstance(function, type):
        raise ValueError(
            f"{word} at {defined_at(function)} is a class; a loss is a function of (output, "
            "target), such as torch.nn.functional:huber_loss, or an instance of the class"
        )
    return Loss(word, function, defined_at(function))
