import numpy as np
import pytest

from sam_variants.tasks.splitting import noisy_labels, stratified_split


def test_a_stratified_split_gives_each_class_its_share_and_loses_nothing():
    labels = np.repeat([0, 1, 2], [70, 20, 10])
    first, second = stratified_split(labels, 20, seed=0)
    assert np.bincount(labels[second]).tolist() == [14, 4, 2]
    assert sorted([*first, *second]) == list(range(100))


def test_quotas_are_rounded_by_largest_remainders():
    labels = np.repeat([0, 1, 2], [5, 3, 2])  # shares of 4: 2.0, 1.2, 0.8
    _, second = stratified_split(labels, 4, seed=0)
    assert np.bincount(labels[second]).tolist() == [2, 1, 1]


def test_a_split_is_shuffled_and_a_function_of_its_seed():
    labels = np.repeat(np.arange(10), 50)
    first, second = stratified_split(labels, 100, seed=3)
    again, _ = stratified_split(labels, 100, seed=3)
    other, _ = stratified_split(labels, 100, seed=4)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert len(set(labels[first[:40]])) > 5
    assert len(set(labels[second[:40]])) > 5


@pytest.mark.parametrize("num_second", [0, 10, 11])
def test_an_empty_part_is_refused(num_second):
    with pytest.raises(ValueError, match="cannot split 10 samples"):
        stratified_split(np.zeros(10, dtype=np.int64), num_second, seed=0)


def test_a_share_of_a_fifth_corrupts_eighteen_percent_of_ten_classes():
    labels = np.repeat(np.arange(10), 4000)
    corrupted = [(noisy_labels(labels, 0.2, 10, seed=s) != labels).mean() for s in range(20)]
    # 0.2 of the labels are drawn, one in ten of them true again; binomial deviation 0.0003 a seed.
    error = np.std(corrupted, ddof=1) / np.sqrt(20)
    assert abs(np.mean(corrupted) - 0.18) < 4 * error
    assert error < 3e-4


def test_exactly_the_share_is_drawn_and_the_rest_is_untouched():
    labels = np.zeros(1000, dtype=np.int64)
    noisy = noisy_labels(labels, 0.5, 10**6, seed=0)  # the true class comes again almost never
    assert (noisy != 0).sum() == 500
    assert (labels == 0).all()


def test_full_noise_makes_the_labels_uniform():
    noisy = noisy_labels(np.zeros(20000, dtype=np.int64), 1.0, 4, seed=1)
    counts = np.bincount(noisy, minlength=4)
    assert (abs(counts - 5000) < 5 * np.sqrt(20000 * 0.25 * 0.75)).all()
