import torch

from sam_variants.tasks import build_task


def test_digits_are_stratified_images():
    task = build_task("digits")
    assert (len(task.train), len(task.test)) == (1437, 360)
    assert task.input_shape == (1, 8, 8)
    train, test = task.train.targets.bincount(), task.test.targets.bincount()
    share = test / (train + test)
    assert float((share - 360 / 1797).abs().max()) < 1 / 174  # one sample of the smallest class
    assert abs(float(task.train.inputs.double().mean())) < 1e-6
    assert abs(float(task.train.inputs.double().std(correction=0)) - 1) < 1e-6


def test_breast_cancer_is_standardised_by_the_training_split_alone():
    task = build_task("breast-cancer")
    assert (len(task.train), len(task.test)) == (455, 114)
    inputs = task.train.inputs.double()
    torch.testing.assert_close(inputs.mean(0), torch.zeros(30).double(), atol=1e-6, rtol=0)
    deviation = inputs.std(0, correction=0)
    torch.testing.assert_close(deviation, torch.ones(30).double(), atol=1e-6, rtol=0)
    assert float(task.test.inputs.double().mean(0).abs().max()) > 1e-3


def test_another_data_seed_splits_otherwise():
    first, second = build_task("digits"), build_task("digits", data_seed=1)
    assert first.sha256 != second.sha256
    together = [torch.cat([t.train.inputs, t.test.inputs]).sum() for t in (first, second)]
    # The same images: the sum differs by the standardisation of the training split alone.
    assert abs(float(together[0] - together[1])) < 1e3
