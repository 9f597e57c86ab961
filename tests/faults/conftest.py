"""What the fault tests share: a checkpoint to start from, and no report where none is asked for."""

import pytest
import torch

from tests.faults.attack import logistic_state


@pytest.fixture
def undrawn(monkeypatch):
    monkeypatch.setattr("cli.probe._draw", lambda findings, out: None)


@pytest.fixture
def saved(tmp_path):
    torch.save(logistic_state(), tmp_path / "net.pt")
    return tmp_path / "net.pt"
