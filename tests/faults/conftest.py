"""What the fault tests share: a checkpoint to start from, and no report where none is asked for."""

import pytest
import torch

from tests.faults.attack import logistic_state

QUICK = ("test_checkpoint_files", "test_all_rows")  # what every look at the code should run


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.parent.name == "faults" and item.path.stem not in QUICK:
            item.add_marker(pytest.mark.slow)


@pytest.fixture
def undrawn(monkeypatch):
    monkeypatch.setattr("cli.probe._draw", lambda findings, out: None)


@pytest.fixture
def saved(tmp_path):
    torch.save(logistic_state(), tmp_path / "net.pt")
    return tmp_path / "net.pt"
