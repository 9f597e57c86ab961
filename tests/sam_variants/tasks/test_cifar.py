import pickle
import struct

import numpy as np
import pytest
import torch

from sam_variants.tasks import build_task
from sam_variants.tasks.cifar import CropFlipCutout, read_python_batch


def images(num, seed):
    return np.random.default_rng(seed).integers(0, 256, size=(num, 3072), dtype=np.uint8)


def labels(num, num_classes, seed):
    return np.random.default_rng(seed + 100).integers(0, num_classes, size=num).tolist()


def write_python_version(folder, num_classes=10, num=6, protocol=2):
    folder.mkdir(parents=True)
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    names = names if num_classes == 10 else ["train", "test"]
    key = b"labels" if num_classes == 10 else b"fine_labels"
    for seed, name in enumerate(names):
        batch = {b"data": images(num, seed), key: labels(num, num_classes, seed)}
        batch |= {b"batch_label": b"x", b"filenames": [b"a.png"] * num}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=protocol))


def write_binary_version(folder, num_classes=10, num=6):
    folder.mkdir(parents=True)
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    names = names if num_classes == 10 else ["train", "test"]
    for seed, name in enumerate(names):
        records = b""
        for pixels, label in zip(images(num, seed), labels(num, num_classes, seed), strict=True):
            coarse = b"" if num_classes == 10 else bytes([label % 20])
            records += coarse + bytes([label]) + pixels.tobytes()
        (folder / f"{name}.bin").write_bytes(records)


@pytest.mark.parametrize("num_classes", [10, 100])
def test_python_and_binary_version_are_the_same_data(tmp_path, num_classes):
    inner = "cifar-10-batches-py" if num_classes == 10 else "cifar-100-python"
    write_python_version(tmp_path / "python" / inner, num_classes)
    write_binary_version(tmp_path / "binary", num_classes)  # the folder itself is found, too
    python = build_task(f"cifar{num_classes}", data_dir=tmp_path / "python")
    binary = build_task(f"cifar{num_classes}", data_dir=str(tmp_path / "binary"))
    assert python.sha256 == binary.sha256
    num_files = 5 if num_classes == 10 else 1
    assert python.train.inputs.shape == (6 * num_files, 3, 32, 32)
    assert python.train.targets.tolist() == [
        label for seed in range(num_files) for label in labels(6, num_classes, seed)
    ]
    raw = np.concatenate([images(6, seed) for seed in range(num_files)]).reshape(-1, 3, 32, 32)
    mean, deviation = raw.mean((0, 2, 3)), raw.std((0, 2, 3))
    expected = (raw - mean[:, None, None]) / deviation[:, None, None]
    np.testing.assert_allclose(python.train.inputs.numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("protocol", [0, 2, 3, 4, 5])
def test_a_batch_of_any_pickle_protocol_is_read(tmp_path, protocol):
    write_python_version(tmp_path / "c", protocol=protocol)
    pixels, found = read_python_batch(tmp_path / "c" / "data_batch_1", 10)
    np.testing.assert_array_equal(pixels.reshape(-1, 3072), images(6, 0))
    assert found.tolist() == labels(6, 10, 0)


def test_a_batch_written_by_python_2_is_read(tmp_path):
    # Protocol 2 as Python 2 spells it: byte strings for keys, codes and content.
    def string(text):
        return b"T" + struct.pack("<I", len(text)) + text

    pixels = images(2, 0)
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x02M\x00\x0c\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R"
        b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89" + string(pixels.tobytes())
    ) + b"tb"
    content = b"\x80\x02}(U\x04data" + array + b"U\x06labels](K\x03K\x07eu."
    path = tmp_path / "data_batch_1"
    path.write_bytes(content)
    found, found_labels = read_python_batch(path, 10)
    np.testing.assert_array_equal(found.reshape(-1, 3072), pixels)
    assert found_labels.tolist() == [3, 7]


class Canary:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        import os

        return os.system, (f"touch {self.path}",)


class Evaluated:
    def __reduce__(self):
        return eval, ("1 + 1",)


def test_a_pickle_executes_nothing(tmp_path):
    canary = tmp_path / "canary"
    for content in (
        pickle.dumps({b"data": Canary(canary), b"labels": [0]}),
        pickle.dumps(Canary(canary), protocol=0),
        pickle.dumps({b"data": Evaluated()}),
        pickle.dumps({b"data": np.array([Canary(canary)], dtype=object)}),
        b"\x80\x02cnumpy.f2py.diagnose\nrun\n.",
        b"\x80\x02cnumpy.core.multiarray\nfrombuffer\n.",
    ):
        path = tmp_path / "data_batch_1"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"names \S+; only numpy arrays are admitted"):
            read_python_batch(path, 10)
    assert not canary.exists()


def batch_file(tmp_path, batch):
    path = tmp_path / "data_batch_1"
    path.write_bytes(batch if isinstance(batch, bytes) else pickle.dumps(batch))
    return path


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (b"", "no CIFAR batch: EOFError"),
        (b"<html>", "data_batch_1"),
        (pickle.dumps({b"data": images(2, 0)})[:-900], "data_batch_1"),
        ([1, 2], "holds a list"),
        ({b"labels": [0]}, "lacks 'data'"),
        ({b"data": images(2, 0)}, "lacks 'labels'"),
        ({b"data": [1], b"labels": [0]}, "data is a list"),
        ({b"data": images(2, 0).astype(np.float64), b"labels": [0, 1]}, "dtype 'f8'"),
        ({b"data": np.array([[], [None]], dtype=object), b"labels": [0]}, "dtype 'O8'"),
        ({b"data": images(2, 0)[:, :100].copy(), b"labels": [0, 1]}, r"shape \(2, 100\)"),
        ({b"data": images(2, 0), b"labels": [0]}, "2 images but 1 labels"),
        ({b"data": images(2, 0), b"labels": [0, 10]}, "label 10 is not in 0 to 9"),
        ({b"data": images(2, 0), b"labels": [0, -1]}, "label -1 is not in 0 to 9"),
        ({b"data": images(2, 0), b"labels": ["a", "b"]}, "no list of whole numbers"),
    ],
)
def test_a_wrong_batch_is_refused_by_its_name(tmp_path, batch, message):
    with pytest.raises(ValueError, match=message):
        read_python_batch(batch_file(tmp_path, batch), 10)


def test_missing_folders_and_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="CIFAR-10 needs --data-dir"):
        build_task("cifar10")
    with pytest.raises(FileNotFoundError, match="is no folder"):
        build_task("cifar10", data_dir=tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="holds neither cifar-100-python nor"):
        build_task("cifar100", data_dir=tmp_path)
    write_python_version(tmp_path / "cifar-10-batches-py")
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").unlink()
    with pytest.raises(FileNotFoundError, match="lacks data_batch_3"):
        build_task("cifar10", data_dir=tmp_path)


def test_an_incomplete_binary_file_is_refused(tmp_path):
    write_binary_version(tmp_path / "b")
    path = tmp_path / "b" / "data_batch_2.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="no multiple of a record of 3073"):
        build_task("cifar10", data_dir=tmp_path / "b")


def test_every_augmented_image_is_a_crop_of_the_padded_one_or_of_its_mirror():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.rand(40, 3, 8, 8, generator=generator)
    black = (-1.0, -2.0, -3.0)
    augmented = CropFlipCutout(black, padding=2)(inputs, generator)
    offsets, flips = set(), set()
    for image, result in zip(inputs, augmented, strict=True):
        padded = torch.tensor(black).view(3, 1, 1).expand(3, 12, 12).clone()
        padded[:, 2:10, 2:10] = image
        found = [
            (top, left, flipped)
            for top in range(5)
            for left in range(5)
            for flipped in (False, True)
            if torch.allclose(
                result,
                (lambda crop, f: crop.flip(-1) if f else crop)(
                    padded[:, top : top + 8, left : left + 8], flipped
                ),
                atol=1e-6,
            )
        ]
        assert len(found) == 1
        offsets.add(found[0][:2])
        flips.add(found[0][2])
    assert flips == {False, True}
    assert {top for top, _ in offsets} == set(range(5))
    assert {left for _, left in offsets} == set(range(5))


def test_cutout_blanks_one_square_cut_at_the_edge():
    inputs = torch.ones(200, 3, 16, 16)
    generator = torch.Generator().manual_seed(0)
    augmented = CropFlipCutout((1.0, 1.0, 1.0), cutout=6)(inputs, generator)
    for image in augmented:
        blank = image == 0
        assert torch.equal(blank[0], blank[1])
        rows, columns = blank[0].any(1).nonzero()[:, 0], blank[0].any(0).nonzero()[:, 0]
        assert int(blank[0].sum()) == len(rows) * len(columns)  # a full rectangle
        for side in (rows, columns):
            assert len(side) == int(side.max() - side.min()) + 1
            assert len(side) == 6 or int(side.min()) == 0 or int(side.max()) == 15
    sizes = (augmented[:, 0] == 0).sum((1, 2))
    assert int(sizes.max()) == 36
    assert int(sizes.min()) < 36


def test_augmentation_is_a_function_of_its_generator_and_leaves_its_input(tmp_path):
    write_python_version(tmp_path / "c")
    task = build_task("cifar10:cutout=8", data_dir=tmp_path / "c")
    before, state = task.train.inputs.clone(), torch.get_rng_state()
    first = task.augment(task.train.inputs, torch.Generator().manual_seed(7))
    second = task.augment(task.train.inputs, torch.Generator().manual_seed(7))
    third = task.augment(task.train.inputs, torch.Generator().manual_seed(8))
    assert torch.equal(first, second)
    assert not torch.equal(first, third)
    assert torch.equal(task.train.inputs, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert first.shape == before.shape
    assert first.is_contiguous()
