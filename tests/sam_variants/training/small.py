"""A small training that every test of trainings can afford, and equality of its checkpoints."""

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sam_variants.training import Recipe, Trainer, load_checkpoint

CLOCK = ("seconds",)  # the only keys that may differ between two equal trainings


@cache
def small_task() -> str:
    """455 + 114 points of 30 numbers in two overlapping classes: no download, no slow import."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for split, size in (("train", 455), ("test", 114)):
        labels = rng.integers(0, 2, size)
        points = rng.normal(size=(size, 30)) + 0.25 * (2 * labels[:, None] - 1)
        arrays |= {f"x_{split}": points.astype(np.float32), f"y_{split}": labels}
    np.savez(folder / "small.npz", **arrays)
    return f"npz:{folder / 'small.npz'}"


def small(**changes: Any) -> Recipe:
    """8 steps an epoch; the last batch has 7 rows."""
    settings = {
        "variants": ("sam",),
        "task": small_task(),
        "model": "mlp:hidden=8:depth=1",
        "batch_size": 64,
        "lr": 0.05,
    }
    if not any(name in changes for name in ("max_steps", "max_gradients", "max_seconds")):
        settings["epochs"] = 3
    return Recipe(**{**settings, **changes})


def trainer_of(recipe: Recipe, folder: Path, **options: Any) -> Trainer:
    return Trainer(recipe, recipe.runs[0], folder, **options)


def trained(recipe: Recipe, folder: Path, *, stop_after: int | None = None, **options: Any) -> Any:
    """Trains, or goes on, until the end or the step given; returns the checkpoint."""
    trainer = trainer_of(recipe, folder, **options)

    def stop() -> int | None:
        return 15 if stop_after is not None and trainer.step >= stop_after else None

    ended = trainer.train(stop=stop, report=lambda share, line: None)
    assert ended == (None if trainer.complete else 15)
    return load_checkpoint(folder / "checkpoint.pt")


def assert_same(a: Any, b: Any, where: str = "checkpoint") -> None:
    """The same bits, the clock's aside."""
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            if key not in CLOCK:
                assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for index, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}[{index}]")
    else:
        assert a == b, where
