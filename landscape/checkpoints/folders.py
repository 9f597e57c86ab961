"""What a folder holds, told by the names of its files. No torch."""

from __future__ import annotations

from pathlib import Path

RUN_FILE = "checkpoint.pt"
METADATA = ".metadata"
INDEX_ENDING = ".index.json"
# In the order of preference: safetensors cannot execute anything.
MODEL_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_WEIGHT_ENDINGS = {".pt", ".pth", ".ckpt", ".safetensors", ".bin", ".distcp"}


def model_file(folder: Path) -> Path | None:
    """The file or index of the weights in a folder as Hugging Face writes it."""
    return next((folder / name for name in MODEL_FILES if (folder / name).is_file()), None)


def is_distributed(folder: Path) -> bool:
    """Whether torch.distributed.checkpoint wrote the folder, all of it or a part."""
    return (folder / METADATA).is_file() or any(folder.glob("*.distcp"))


def is_checkpoint(folder: Path) -> bool:
    """Whether the folder as a whole is one checkpoint."""
    return folder.is_dir() and (is_distributed(folder) or model_file(folder) is not None)


def weight_files(folder: Path) -> list[str]:
    """The names of files in the folder that could hold weights."""
    return sorted(f.name for f in folder.iterdir() if f.suffix in _WEIGHT_ENDINGS)


def what_was_looked_for() -> str:
    return f"{RUN_FILE}, {', '.join(MODEL_FILES)}, {METADATA} (distributed checkpoint)"
