import numpy as np
import pytest
import torch

from sam_variants.tasks import build_task


def arrays(**changes):
    generator = np.random.default_rng(0)
    data = {
        "x_train": generator.standard_normal((30, 7)),
        "y_train": np.arange(30) % 3,
        "x_test": generator.standard_normal((9, 7)),
        "y_test": np.arange(9) % 3,
    }
    data |= changes
    return {name: value for name, value in data.items() if value is not None}


def saved(tmp_path, **changes):
    path = tmp_path / "data.npz"
    np.savez(path, **arrays(**changes))
    return f"npz:{path}"


def test_the_arrays_are_the_task(tmp_path):
    task = build_task(saved(tmp_path))
    assert task.num_classes == 3
    assert task.input_shape == (7,)
    expected = torch.from_numpy(arrays()["x_train"]).float()
    torch.testing.assert_close(task.train.inputs, expected, atol=0, rtol=0)
    assert task.test.targets.tolist() == [0, 1, 2] * 3
    assert task.test.targets.dtype == torch.int64


def test_bytes_are_scaled_to_one(tmp_path):
    image = np.full((30, 1, 4, 4), 51, dtype=np.uint8)
    task = build_task(saved(tmp_path, x_train=image, x_test=image[:9]))
    torch.testing.assert_close(task.train.inputs, torch.full((30, 1, 4, 4), 0.2))


def with_nan(row):
    x = arrays()["x_train"].copy()
    x[row, 2] = np.nan
    return x


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_test": None}, r"lacks x_test \(it has x_train, y_train, y_test\)"),
        ({"y_train": np.arange(29) % 3}, "x_train has 30 samples, y_train has 29 labels"),
        ({"y_train": np.arange(30) / 2}, "labels are whole numbers"),
        ({"y_train": np.arange(30) % 3 - 1}, r"label -1 of y_train \(sample 0\) is negative"),
        ({"y_test": np.array([0] * 8 + [3])}, "label 3 of y_test is out of range"),
        ({"y_train": np.zeros(30, dtype=int)}, "one single class"),
        ({"y_train": np.eye(3, dtype=int)[np.arange(30) % 3]}, r"shape \(30, 3\), expected \(n,\)"),
        ({"y_train": np.array(["a", "b", "c"] * 10)}, "dtype <U1, not numbers"),
        ({"y_train": np.arange(30) * 10**9}, "is out of range"),
        ({"x_train": np.zeros(30)}, r"x_train has shape \(30,\)"),
        ({"x_train": np.zeros((0, 7)), "y_train": np.zeros(0, dtype=int)}, "x_train is empty"),
        (
            {"x_train": np.zeros((30, 8))},
            r"training samples have shape \(8,\), test samples \(7,\)",
        ),
        ({"x_train": with_nan(4)}, "non-finite value .* in sample 4"),
        ({"x_train": np.full((30, 7), 1e300)}, "too large for float32"),
        ({"x_train": np.zeros((30, 7), dtype=complex)}, "dtype complex128, not numbers"),
        ({"x_train": np.array([[None] * 7] * 30)}, "x_train cannot be read"),
    ],
)
def test_wrong_arrays_are_named(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        build_task(saved(tmp_path, **changes))
    assert "\n" not in str(caught.value)


def test_an_object_array_is_never_unpickled(tmp_path):
    canary = tmp_path / "canary"

    class Touch:
        def __reduce__(self):
            import os

            return os.system, (f"touch {canary}",)

    word = saved(tmp_path, x_train=np.array([[Touch()]], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle=False"):
        build_task(word)
    assert not canary.exists()


@pytest.mark.parametrize("content", [b"", b"<html></html>", b"PK\x03\x04truncated", b"\x80\x02}."])
def test_a_file_that_is_none_is_refused(tmp_path, content):
    path = tmp_path / "data.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"incomplete or no \.npz file"):
        build_task(f"npz:{path}")


def test_a_missing_file_and_a_single_array_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        build_task(f"npz:{tmp_path}/none.npz")
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(ValueError, match="holds a single array"):
        build_task(f"npz:{tmp_path}/one.npy")


def test_a_flipped_bit_is_noticed(tmp_path):
    word = saved(tmp_path)
    path = tmp_path / "data.npz"
    content = bytearray(path.read_bytes())
    content[400] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(ValueError, match="cannot be read"):
        build_task(word)
