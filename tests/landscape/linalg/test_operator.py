import numpy as np
import pytest
import torch
from scipy.sparse.linalg import eigsh

from landscape.linalg import DeflatedOperator, MatrixOperator, ShiftedOperator
from landscape.linalg.operator import CountedOperator, gaussian, rademacher, seeded
from tests.references import PrescribedSpectrum


@pytest.fixture
def matrix():
    full = torch.randn(7, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return full + full.T


def test_products_are_those_of_the_matrix(matrix):
    vector = torch.arange(7.0, dtype=torch.float64)
    several = torch.stack([vector, vector**2, -vector], dim=1)
    operator = MatrixOperator(matrix)
    assert torch.equal(operator.matvec(vector), matrix @ vector)
    assert torch.equal(operator @ vector, matrix @ vector)
    torch.testing.assert_close(operator.matmat(several), matrix @ several)
    torch.testing.assert_close(operator @ several, matrix @ several)


def test_an_operator_without_its_own_matmat_takes_the_columns_in_turn():
    operator = PrescribedSpectrum([3.0, 2.0, -1.0, 0.5])
    several = torch.randn(4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(operator @ several, operator.matrix() @ several)
    assert (operator @ several[:, :0]).shape == (4, 0)
    assert operator.num_products == 3


def test_a_shift_moves_every_eigenvalue_and_deflation_moves_known_ones_to_zero(matrix):
    values, vectors = torch.linalg.eigh(matrix)
    vector = torch.ones(7, dtype=torch.float64)
    eye = torch.eye(7, dtype=torch.float64)
    shifted = ShiftedOperator(MatrixOperator(matrix), -2.5)
    torch.testing.assert_close(shifted @ vector, (matrix - 2.5 * eye) @ vector)
    torch.testing.assert_close(shifted @ eye, matrix - 2.5 * eye)
    deflated = DeflatedOperator(MatrixOperator(matrix), vectors[:, -2:], values[-2:])
    left = torch.linalg.eigvalsh(deflated @ eye)
    expected = torch.cat([values[:-2], torch.zeros(2, dtype=torch.float64)]).sort().values
    torch.testing.assert_close(left, expected)
    torch.testing.assert_close(deflated @ vector, (deflated @ eye) @ vector)


def test_scipy_solves_with_the_same_matrix():
    operator = PrescribedSpectrum(np.r_[9.0, 7.0, np.linspace(0, 1, 40)])
    values = np.sort(eigsh(operator.to_scipy(), k=2, return_eigenvectors=False))
    np.testing.assert_allclose(values, [7.0, 9.0])
    several = np.random.default_rng(0).normal(size=(42, 2))
    np.testing.assert_allclose(operator.to_scipy() @ several, operator.matrix().numpy() @ several)
    single = PrescribedSpectrum([1.0, 2.0], dtype=torch.float32).to_scipy()
    assert single.dtype == np.float32


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        (torch.ones(6, dtype=torch.float64), r"takes shape \(7,\), got \(6,\)"),
        (torch.ones(6, 2, dtype=torch.float64), r"takes shape \(7, m\), got \(6, 2\)"),
        (torch.ones(7, 1, 1, dtype=torch.float64), r"takes shape \(7,\), got \(7, 1, 1\)"),
        (torch.ones(7), "takes torch.float64, got torch.float32"),
    ],
)
def test_another_shape_or_dtype_is_refused(matrix, argument, message):
    with pytest.raises(ValueError, match=message):
        MatrixOperator(matrix) @ argument


def test_matvec_takes_a_vector_and_matmat_a_matrix(matrix):
    vector = torch.ones(7, dtype=torch.float64)
    with pytest.raises(ValueError, match="takes shape"):
        MatrixOperator(matrix).matvec(vector[:, None])
    with pytest.raises(ValueError, match="takes shape"):
        MatrixOperator(matrix).matmat(vector)


def test_a_matrix_that_is_not_square_or_not_symmetric_is_refused():
    with pytest.raises(ValueError, match="square"):
        MatrixOperator(torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"symmetric, A and A' differ by up to 1\b"):
        MatrixOperator(torch.tensor([[0.0, 1.0], [0.0, 0.0]]))


def test_deflation_by_vectors_that_do_not_fit_is_refused(matrix):
    with pytest.raises(ValueError, match=r"shape \(7, 2\)"):
        DeflatedOperator(MatrixOperator(matrix), torch.ones(7, 3), torch.ones(2))


def test_a_product_that_is_not_finite_is_named_by_its_number():
    class FailsLater(MatrixOperator):
        calls = 0

        def _matvec(self, vector):
            self.calls += 1
            result = super()._matvec(vector)
            return result if self.calls < 3 else result.index_fill(0, torch.tensor([1]), torch.nan)

    counted = CountedOperator(FailsLater(torch.eye(4)), None, None)
    for _ in range(2):
        counted @ torch.ones(4)
    with pytest.raises(FloatingPointError, match="product 3 is not finite: 1 of 4 entries"):
        counted @ torch.ones(4)


def test_an_empty_matrix_is_refused():
    with pytest.raises(ValueError, match="empty"):
        MatrixOperator(torch.zeros(0, 0))


def test_probes_depend_on_the_seed_and_on_nothing_else():
    operator = PrescribedSpectrum(np.ones(500))
    for draw in (gaussian, rademacher):
        torch.manual_seed(1)
        first = draw(operator, seeded(7))
        torch.manual_seed(2)
        state = torch.get_rng_state()
        assert torch.equal(draw(operator, seeded(7)), first)
        assert not torch.equal(draw(operator, seeded(8)), first)
        assert torch.equal(torch.get_rng_state(), state)
    signs = rademacher(operator, seeded(0))
    assert set(signs.tolist()) == {-1.0, 1.0}
    assert abs(float(signs.mean())) < 4 / 500**0.5
