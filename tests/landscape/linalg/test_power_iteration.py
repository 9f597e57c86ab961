import numpy as np
import pytest
import torch

from landscape.linalg import lanczos, power_iteration
from tests.references import PrescribedSpectrum

SPECTRUM = np.r_[-9.0, 7.0, 5.0, np.linspace(-2, 2, 60)]


def test_pairs_come_by_magnitude_and_not_by_value():
    operator = PrescribedSpectrum(SPECTRUM)
    pairs = power_iteration(operator, num_eigenpairs=3, tolerance=1e-6)
    np.testing.assert_allclose(pairs.values.numpy(), [-9, 7, 5], rtol=1e-9)
    assert pairs.ends == ("magnitude",) * 3
    assert pairs.num_matvecs == operator.num_products
    assert not pairs.confirmed.any()
    assert not pairs.complete
    gram = pairs.vectors.T @ pairs.vectors
    torch.testing.assert_close(gram, torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-12)


def test_stated_residuals_are_those_of_the_whole_operator():
    operator = PrescribedSpectrum(SPECTRUM)
    pairs = power_iteration(operator, num_eigenpairs=3, tolerance=1e-2)
    vectors = pairs.vectors
    true = (operator.matrix() @ vectors - vectors * pairs.values).norm(dim=0)
    assert (true <= pairs.residuals).all()
    np.testing.assert_allclose(pairs.residuals.numpy(), true.numpy(), rtol=1e-6)
    assert torch.equal(pairs.converged, pairs.residuals <= 1e-2 * pairs.values.abs())


def test_the_two_ways_agree_and_lanczos_is_far_cheaper():
    spectrum = np.r_[10.0, 8.5, 7.0, np.linspace(0, 3, 200)]
    slow = power_iteration(PrescribedSpectrum(spectrum), num_eigenpairs=3, tolerance=1e-4)
    fast = lanczos(PrescribedSpectrum(spectrum), num_eigenpairs=3, tolerance=1e-4)
    np.testing.assert_allclose(slow.values.numpy(), fast.values.numpy(), rtol=1e-6)
    assert slow.num_matvecs > 3 * fast.num_matvecs


def test_a_pair_of_opposite_values_is_found_out_as_not_converged():
    pairs = power_iteration(PrescribedSpectrum([6.0, -6.0, 1.0, 0.5]), max_products=50)
    assert pairs.num_matvecs == 50
    assert not pairs.converged.any()


def test_copies_zeros_and_more_pairs_than_the_size_are_exact():
    pairs = power_iteration(PrescribedSpectrum([4.0, 4.0, 1.0]), num_eigenpairs=9, tolerance=1e-9)
    np.testing.assert_allclose(pairs.values.numpy(), [4, 4, 1], rtol=1e-12)
    assert pairs.converged[:2].all()
    pairs = power_iteration(PrescribedSpectrum(np.zeros(5)), num_eigenpairs=2)
    assert pairs.values.tolist() == [0, 0]
    assert pairs.num_matvecs == 2


def test_the_seed_decides():
    first, again, other = (
        power_iteration(PrescribedSpectrum(SPECTRUM), seed=seed).vectors for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_eigenpairs": 0}, "num_eigenpairs must be >= 1, got 0"),
        ({"tolerance": 1.0}, r"tolerance must be in \(0, 1\), got 1.0"),
        ({"max_products": 0}, "max_products must be >= 1, got 0"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        power_iteration(PrescribedSpectrum([1.0]), **options)
