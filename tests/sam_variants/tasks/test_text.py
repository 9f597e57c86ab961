import hashlib
import sys

import pytest
import torch

from sam_variants.tasks import build_task


def spell(task, tokens):
    return "".join(task.vocabulary[int(token)] for token in tokens)


def test_targets_are_the_inputs_moved_on_by_one(tmp_path):
    path = tmp_path / "text.txt"
    text = "abcdefghij" * 20
    path.write_text(text, encoding="utf-8")
    task = build_task(f"text:{path}:context=8")
    assert task.vocabulary == "abcdefghij"
    assert task.num_classes == 10
    assert task.input_shape == (8,)
    assert spell(task, task.train.inputs.flatten()) == text[: len(task.train) * 8]
    assert spell(task, task.train.targets.flatten()) == text[1 : len(task.train) * 8 + 1]


def test_the_split_is_by_position_without_overlap(tmp_path):
    path = tmp_path / "text.txt"
    text = "".join(chr(33 + i % 90) for i in range(500))
    path.write_text(text, encoding="utf-8")
    task = build_task(f"text:{path}:context=16:train-share=0.8")
    train, test = text[:400], text[400:]
    assert spell(task, task.train.inputs.flatten()) == train[: (399 // 16) * 16]
    assert spell(task, task.test.inputs.flatten()) == test[: (99 // 16) * 16]
    assert spell(task, task.train.targets[-1]) in train


def test_the_loss_is_the_mean_over_tokens_and_knows_label_smoothing(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("ab" * 100, encoding="utf-8")
    task = build_task(f"text:{path}:context=4")
    logits = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(0)).double()
    targets = task.train.targets[:3]
    log_p = logits.log_softmax(-1)
    right = torch.stack([log_p[i, t, targets[i, t]] for i in range(3) for t in range(4)])
    torch.testing.assert_close(task.loss(logits, targets), -right.mean())
    smoothed = -(0.9 * right.mean() + 0.1 * log_p.mean())
    torch.testing.assert_close(task.loss(logits, targets, 0.1), smoothed)


def test_python_docs_records_the_hash_of_its_text():
    from pydoc_data.topics import topics

    task = build_task("python-docs")
    text = "\n".join(topics[name] for name in sorted(topics))
    assert hashlib.sha256(text.encode()).hexdigest()[:16] in task.description
    assert "statement" in spell(task, task.train.inputs.flatten())
    assert task.input_shape == (64,)
    assert len(task.train) > 8 * len(task.test)


def test_a_python_without_its_help_text_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(ValueError, match=r"carries no pydoc_data\.topics; use text:FILE"):
        build_task("python-docs")


def test_validation_windows_are_the_last_of_the_training_text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("".join(chr(33 + i % 90) for i in range(1000)), encoding="utf-8")
    whole = build_task(f"text:{path}:context=10")
    held = build_task(f"text:{path}:context=10", validation=0.25)
    assert torch.equal(torch.cat([held.train.inputs, held.validation.inputs]), whole.train.inputs)
    assert len(held.validation) == round(0.25 * len(whole.train))


def test_a_text_gives_clear_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.txt does not exist"):
        build_task(f"text:{tmp_path}/nothing.txt")
    with pytest.raises(ValueError, match="is a folder"):
        build_task(f"text:{tmp_path}")
    short = tmp_path / "short.txt"
    short.write_text("hello world", encoding="utf-8")
    with pytest.raises(ValueError, match="11 characters are too few for a window of 64"):
        build_task(f"text:{short}")
    binary = tmp_path / "binary.txt"
    binary.write_bytes(b"abc\xff\xfe")
    with pytest.raises(ValueError, match="not UTF-8 at byte 3"):
        build_task(f"text:{binary}")
    long = tmp_path / "long.txt"
    long.write_text("ab" * 400, encoding="utf-8")
    with pytest.raises(ValueError, match="label_noise needs class labels"):
        build_task(f"text:{long}", label_noise=0.1)
    with pytest.raises(ValueError, match="did you mean 'context'"):
        build_task(f"text:{long}:contest=4")
    with pytest.raises(ValueError, match=r"context must be a whole number in \[1, 4096\]"):
        build_task(f"text:{long}:context=0")
