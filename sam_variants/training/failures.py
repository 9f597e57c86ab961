"""What can end a training, each with what is wrong, where, and what to do. No torch."""

from __future__ import annotations

from pathlib import Path


class TrainingFailure(Exception):
    """Any of the endings below; its text is one line for the user."""


class BadInputError(TrainingFailure):
    """Data, a file or user code that cannot be trained on or resumed from."""


class FolderError(TrainingFailure):
    """The output folder is in use, belongs to another recipe or cannot be written."""


class DivergedError(TrainingFailure):
    """A loss that is no number; the last good checkpoint is kept."""


class DeviceError(TrainingFailure):
    """A device that is not there, or options that do not go together."""


class SaveError(TrainingFailure):
    """A file could not be written; the last good one is kept."""


class WorkerError(TrainingFailure):
    """A worker process that died (killed, out of memory) or met a fault of ours."""


class Interrupted(TrainingFailure):
    """A signal ended the training after saving.

    Attributes:
        signal: its number.
    """

    def __init__(self, signal: int, message: str) -> None:
        super().__init__(message)
        self.signal = signal


def save_failed(path: Path, error: BaseException) -> SaveError:
    """The SaveError that says which file and why."""
    reason = getattr(error, "strerror", None) or (str(error).splitlines() or ["unknown"])[0]
    if "unexpected pos" in str(error):
        reason = "no space left on device"
    return SaveError(
        f"could not write {path}: {reason}; what was there is kept: free some space, then --resume"
    )
