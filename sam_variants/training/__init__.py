"""Training with the sharpness-aware family: recipe, trainer, checkpoints, runs, comparison.

Exports are lazy: a recipe is read and checked without importing torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sam_variants.training.checkpoint import load_checkpoint, save_checkpoint
    from sam_variants.training.closure import batch_closure, evaluating, wrong_class_divergence
    from sam_variants.training.comparison import compare
    from sam_variants.training.recipe import Recipe, Run
    from sam_variants.training.sharded import load_sharded, save_sharded
    from sam_variants.training.study import train_study
    from sam_variants.training.trainer import Trainer

__all__ = [
    "Recipe",
    "Run",
    "Trainer",
    "batch_closure",
    "compare",
    "evaluating",
    "load_checkpoint",
    "load_sharded",
    "save_checkpoint",
    "save_sharded",
    "train_study",
    "wrong_class_divergence",
]

_LAZY = {
    "Recipe": "recipe",
    "Run": "recipe",
    "Trainer": "trainer",
    "batch_closure": "closure",
    "compare": "comparison",
    "evaluating": "closure",
    "load_checkpoint": "checkpoint",
    "save_checkpoint": "checkpoint",
    "load_sharded": "sharded",
    "save_sharded": "sharded",
    "train_study": "study",
    "wrong_class_divergence": "closure",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
