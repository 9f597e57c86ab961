"""The examples' own loops serve every rule: what they answer is what the rule asks for."""

import runpy
import sys
import warnings
from pathlib import Path

import pytest

from sam_variants import VARIANTS

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(name, *arguments, monkeypatch, folder):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


@pytest.mark.slow
@pytest.mark.parametrize("rule", VARIANTS)
def test_the_loop_with_its_own_precision_and_pieces_serves_every_rule(
    rule, monkeypatch, tmp_path, capsys
):
    words = (rule, "--steps", "2", "--micro-batch", "50")
    run("amp_accumulation.py", *words, monkeypatch=monkeypatch, folder=tmp_path)
    assert "of 2 steps perturbed, 0 skipped" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["aace", "esam", "msam", "adasam", "sam-sps"])
def test_the_lightning_module_serves_rules_that_ask_for_more_than_a_gradient(
    rule, monkeypatch, tmp_path, capsys
):
    pytest.importorskip("pytorch_lightning")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's own, about what it calls and about workers
        words = (rule, "--epochs", "1")
        run("lightning_module.py", *words, monkeypatch=monkeypatch, folder=tmp_path)
    assert "40 of 40 steps perturbed" in capsys.readouterr().out
