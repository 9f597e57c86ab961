import math
import weakref

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch.utils._python_dispatch import TorchDispatchMode

from landscape.linalg import MatrixOperator, SymmetricOperator, lanczos, tridiagonalise
from landscape.linalg.lanczos import Basis, _End, _Projection, _to_keep
from landscape.linalg.operator import CountedOperator, gaussian, seeded
from tests.references import (
    PrescribedSpectrum,
    digits_net_hessian,
    extremes,
    hard_spectrum,
)

ENDS = ("top", "bottom", "both")


def assert_pairs_are_true(pairs, operator, *, tolerance=1e-3):
    """Vectors orthonormal, residual bounds that bind, an eigenvalue within each."""
    vectors = pairs.vectors.double()
    eps = torch.finfo(operator.dtype).eps
    gram = vectors.T @ vectors
    assert (gram - torch.eye(len(pairs), dtype=torch.float64)).abs().max() < 100 * eps
    exact = operator.matrix().double()
    true_residuals = (exact @ vectors - vectors * pairs.values).norm(dim=0)
    assert (true_residuals <= pairs.residuals).all()
    spectrum = operator.eigenvalues.double()
    distances = (spectrum[:, None] - pairs.values).abs().amin(dim=0)
    assert (distances <= pairs.residuals).all()
    assert (pairs.values.diff() <= 0).all()
    if pairs.complete:
        floor = 64 * eps * float(spectrum.abs().max())
        allowed = (tolerance * pairs.values.abs()).clamp(min=floor)
        assert (pairs.residuals <= allowed + floor).all()


def assert_nothing_is_missed(operator, pairs, num_eigenpairs, ends):
    truth = extremes(operator.eigenvalues, num_eigenpairs, ends)
    assert pairs.complete
    scale = float(operator.eigenvalues.abs().max())
    np.testing.assert_allclose(pairs.values.numpy(), truth, rtol=1.001e-3, atol=1e-12 * scale)


# -- The kernel -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_tridiagonal_matrix_is_the_projection_of_the_operator(dtype):
    operator = PrescribedSpectrum(np.r_[100.0, -80.0, np.linspace(-1, 1, 60)], dtype=dtype)
    start = gaussian(operator, seeded(0))
    found = tridiagonalise(operator, start, num_steps=25)
    basis, matrix = found.vectors.double(), torch.from_numpy(found.matrix)
    tolerance = 1e3 * torch.finfo(dtype).eps
    torch.testing.assert_close(
        basis.T @ basis, torch.eye(25, dtype=torch.float64), rtol=0, atol=tolerance
    )
    torch.testing.assert_close(matrix, matrix.T)
    assert float(matrix.triu(2).abs().max()) == 0
    left = operator.matrix().double() @ basis - basis @ matrix
    assert left[:, :-1].norm() < 100 * tolerance
    assert float(left[:, -1].norm()) == pytest.approx(found.remainder, rel=1e-3)
    torch.testing.assert_close(basis[:, 0], (start / start.norm()).double())
    assert operator.num_products == 25


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e20])
def test_the_kernel_stops_when_the_space_is_invariant_whatever_the_scale(scale):
    operator = PrescribedSpectrum(scale * np.repeat([1.0, 2.0, -3.0], 20))
    found = tridiagonalise(operator, gaussian(operator, seeded(0)), num_steps=30)
    assert found.matrix.shape == (3, 3)
    np.testing.assert_allclose(np.linalg.eigvalsh(found.matrix) / scale, [-3, 1, 2], rtol=1e-9)
    assert found.remainder < 1e-13 * scale


# -- Values, vectors, residuals -------------------------------------------------------------------

SPECTRA = {
    "indefinite": np.r_[np.linspace(-5, 5, 150), 9.0, -7.0],
    "condition 1e8": np.logspace(0, -8, 150),
    "negative definite": -np.linspace(1, 20, 150),
    "rank 3": np.r_[50.0, 50.0, 3.0, np.zeros(150)],
    "clusters": np.repeat([8.0, 7.999, 4.0, -3.0, -3.0001], 30),
    "two values": np.repeat([1.0, -1.0], 40),
}


@pytest.mark.parametrize("ends", ENDS)
@pytest.mark.parametrize("name", SPECTRA)
def test_eigenpairs_are_those_of_the_dense_matrix(name, ends):
    for num_eigenpairs in (1, 4, 9):
        operator = PrescribedSpectrum(SPECTRA[name], seed=num_eigenpairs)
        pairs = lanczos(operator, num_eigenpairs=num_eigenpairs, ends=ends, seed=num_eigenpairs)
        assert_nothing_is_missed(operator, pairs, num_eigenpairs, ends)
        assert_pairs_are_true(pairs, operator)
        assert pairs.num_matvecs == operator.num_products


@pytest.mark.parametrize("ends", ENDS)
def test_the_least_memory_gives_the_same_eigenpairs(ends):
    spectrum = np.r_[20.0, 15.0, 11.0, np.linspace(-2, 8, 300), -9.0, -8.5]
    operator = PrescribedSpectrum(spectrum)
    pairs = lanczos(operator, num_eigenpairs=3, ends=ends, memory=0)
    assert_nothing_is_missed(operator, pairs, 3, ends)
    assert_pairs_are_true(pairs, operator)


def test_more_memory_saves_products_at_a_dense_end():
    spectrum = np.linspace(0, 1, 400) ** 0.5
    least, ample = PrescribedSpectrum(spectrum), PrescribedSpectrum(spectrum)
    assert lanczos(least, num_eigenpairs=3, memory=0).complete
    assert lanczos(ample, num_eigenpairs=3).complete
    assert ample.num_products < 0.8 * least.num_products


def test_a_tight_tolerance_gives_tight_values():
    operator = PrescribedSpectrum(np.r_[7.0, 6.0, np.linspace(-4, 3, 200), -5.0])
    pairs = lanczos(operator, num_eigenpairs=2, ends="both", tolerance=1e-10)
    assert pairs.complete
    np.testing.assert_allclose(pairs.values.numpy(), [7.0, 6.0, -4.0, -5.0], rtol=1e-12)
    truth = operator.eigenvector(0)
    assert abs(float(truth @ pairs.vectors[:, 0])) == pytest.approx(1.0, abs=1e-12)


def test_float32_products_give_values_within_their_residuals():
    spectrum = np.r_[100.0, 60.0, 30.0, np.linspace(-3, 3, 300), -40.0]
    operator = PrescribedSpectrum(spectrum, dtype=torch.float32)
    pairs = lanczos(operator, num_eigenpairs=3, ends="both", tolerance=1e-4)
    assert pairs.vectors.dtype == torch.float32
    assert pairs.values.dtype == torch.float64
    assert_pairs_are_true(pairs, operator, tolerance=1e-4)
    np.testing.assert_allclose(pairs.values[:3].numpy(), [100, 60, 30], rtol=1e-6)


def test_the_error_estimate_follows_the_error_and_the_residual_bounds_it():
    operator = PrescribedSpectrum(np.r_[10.0, 8.0, 6.0, np.linspace(0, 4, 300)])
    pairs = lanczos(operator, num_eigenpairs=3, tolerance=1e-2)
    errors = (pairs.values - torch.tensor([10.0, 8.0, 6.0], dtype=torch.float64)).abs()
    assert (pairs.error_estimates < pairs.residuals).all()
    assert (errors <= 2 * pairs.error_estimates + 1e-13).all()


def test_the_error_estimate_is_the_residual_where_there_is_no_gap():
    pairs = lanczos(PrescribedSpectrum(np.r_[3.0, 3.0, np.zeros(40)]), num_eigenpairs=2)
    assert torch.equal(pairs.error_estimates, pairs.residuals)


def test_an_eigenvector_almost_absent_from_the_start_is_found():
    operator = PrescribedSpectrum(np.r_[1.0, 0.999, np.linspace(0, 0.9, 200)])
    start = operator.eigenvector(1) + 1e-8 * operator.eigenvector(0)
    pairs = lanczos(operator, num_eigenpairs=1, tolerance=1e-4, start=start)
    assert pairs.complete
    assert float(pairs.values[0]) == pytest.approx(1.0, abs=1e-6)
    pairs = lanczos(operator, num_eigenpairs=2, tolerance=1e-4, start=operator.eigenvector(1))
    np.testing.assert_allclose(pairs.values.numpy(), [1.0, 0.999], atol=1e-6)


# -- Exact small answers --------------------------------------------------------------------------


@pytest.mark.parametrize("ends", ENDS)
@pytest.mark.parametrize("num_eigenpairs", [1, 3, 5, 12])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "spectrum",
    [[2.0], [-3.0], [0.0], [1.0, -1.0], [4.0, 4.0, 1.0, 0.0, -2.0, -2.0], [0.0] * 8, [1.0] * 30],
    ids=str,
)
def test_small_zero_and_identity_matrices_are_exact(spectrum, dtype, num_eigenpairs, ends):
    operator = PrescribedSpectrum(spectrum, dtype=dtype)
    pairs = lanczos(operator, num_eigenpairs=num_eigenpairs, ends=ends)
    truth = extremes(spectrum, num_eigenpairs, ends)
    np.testing.assert_allclose(pairs.values.numpy(), truth, atol=20 * torch.finfo(dtype).eps)
    assert pairs.complete
    assert len(pairs.ends) == pairs.vectors.shape[1] == len(truth)
    assert_pairs_are_true(pairs, operator)


def test_both_ends_list_every_pair_once_and_name_its_end():
    pairs = lanczos(PrescribedSpectrum([5.0, 4.0, 3.0, 2.0, 1.0]), num_eigenpairs=3, ends="both")
    assert pairs.ends == ("top", "top", "top", "bottom", "bottom")
    pairs = lanczos(PrescribedSpectrum(np.arange(40.0)), num_eigenpairs=2, ends="both")
    assert pairs.ends == ("top", "top", "bottom", "bottom")
    np.testing.assert_allclose(pairs.at("top").values.numpy(), [39, 38], rtol=1e-6)
    np.testing.assert_allclose(pairs.at("bottom").values.numpy(), [1, 0], atol=1e-6)
    assert pairs.at("bottom").vectors.shape == (40, 2)


def test_the_scale_of_the_matrix_changes_nothing():
    spectrum = hard_spectrum("copies, spread bulk")
    counts = set()
    for scale in (2.0**-300, 2.0**-40, 1.0, 2.0**40, 2.0**300):
        operator = PrescribedSpectrum(scale * spectrum)
        pairs = lanczos(operator, num_eigenpairs=4)
        np.testing.assert_allclose(pairs.values.numpy() / scale, [50, 50, 50, 20], rtol=1e-5)
        counts.add(pairs.num_matvecs)
    assert len(counts) == 1


# -- Nothing is missed ----------------------------------------------------------------------------


def mirrored(spectrum, ends):
    """The hard end at the bottom, or at both ends at once with other values."""
    return {"top": spectrum, "bottom": -spectrum, "both": np.r_[spectrum, -0.7 * spectrum]}[ends]


@pytest.mark.parametrize("ends", ENDS)
@pytest.mark.parametrize(
    "name",
    ["copies", "copies, spread bulk", "cluster", "cluster, spread bulk", "outliers", "geometric"],
)
def test_nothing_is_missed_on_hard_spectra(name, ends):
    for seed, num_eigenpairs in enumerate((3, 4, 5, 6)):
        operator = PrescribedSpectrum(mirrored(hard_spectrum(name, seed), ends), seed=seed)
        pairs = lanczos(operator, num_eigenpairs=num_eigenpairs, ends=ends, seed=seed)
        assert_nothing_is_missed(operator, pairs, num_eigenpairs, ends)


@pytest.mark.slow
@pytest.mark.parametrize("ends", ENDS)
@pytest.mark.parametrize("name", ["copies", "copies, spread bulk", "outliers", "geometric"])
@pytest.mark.parametrize("num_eigenpairs", [3, 4, 5, 7, 10])
def test_nothing_is_missed_over_40_seeds(name, num_eigenpairs, ends):
    for seed in range(40):
        operator = PrescribedSpectrum(mirrored(hard_spectrum(name, seed), ends), seed=seed)
        pairs = lanczos(operator, num_eigenpairs=num_eigenpairs, ends=ends, seed=seed)
        assert_nothing_is_missed(operator, pairs, num_eigenpairs, ends)


@pytest.mark.slow
@pytest.mark.parametrize("ends", ENDS)
@pytest.mark.parametrize("name", ["cluster", "cluster, spread bulk"])
@pytest.mark.parametrize("num_eigenpairs", [3, 4, 5, 6])
def test_no_member_of_a_cluster_is_missed_over_40_seeds(name, num_eigenpairs, ends):
    for seed in range(40):
        operator = PrescribedSpectrum(mirrored(hard_spectrum(name, seed), ends), seed=seed)
        pairs = lanczos(operator, num_eigenpairs=num_eigenpairs, ends=ends, seed=seed)
        assert_nothing_is_missed(operator, pairs, num_eigenpairs, ends)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["copies, spread bulk", "cluster, spread bulk", "outliers"])
def test_nothing_is_missed_in_the_least_memory_over_40_seeds(name):
    for seed in range(40):
        operator = PrescribedSpectrum(hard_spectrum(name, seed), seed=seed)
        pairs = lanczos(operator, num_eigenpairs=5, seed=seed, memory=0)
        assert_nothing_is_missed(operator, pairs, 5, "top")


def test_without_the_second_search_copies_are_missed():
    """The tests above can fail: the k first converged Ritz values are not the k largest."""
    operator = PrescribedSpectrum(hard_spectrum("copies"))
    found = tridiagonalise(operator, gaussian(operator, seeded(0)), num_steps=4)
    assert np.linalg.eigvalsh(found.matrix)[-2] < 21


@pytest.mark.parametrize("ends", ["top", "both"])
def test_the_bound_on_a_hidden_eigenvector_holds_through_restarts(ends):
    """What an eigenvector has of the random start is at most the bound at its eigenvalue."""
    tightest = math.inf
    for seed in range(30):
        random = np.random.default_rng(seed)
        operator = PrescribedSpectrum(np.r_[3.0, -3.0, random.uniform(-1, 1, 150)], seed=seed)
        counted = CountedOperator(operator, None, None)
        projection = _Projection(counted, Basis(operator, first_block=1, capacity=12))
        sought = [_End(1, 1, 1e-3), _End(-1, 1, 1e-3)][: 1 if ends == "top" else 2]
        for end in sought:
            end.level = 3.0
        start = gaussian(operator, seeded(seed))
        # Little of the two eigenvectors, so that no Ritz value gets to them before the end.
        for index in (0, 1):
            vector = operator.eigenvector(index)
            start -= (1 - 10.0 ** -random.integers(3, 12)) * (vector @ start) * vector
        start /= start.norm()
        projection.start(start)
        for _ in range(30):
            for index, end in enumerate(sought):
                vector = operator.eigenvector(index)
                inside = projection.basis.columns().T @ vector
                assert end.origin @ inside.numpy() == pytest.approx(float(start @ vector), rel=1e-4)
            projection.multiply()
            ritz = projection.ritz()
            for index, end in enumerate(sought):
                if np.abs(ritz.values).max() < 2.9:
                    component = abs(float(operator.eigenvector(index) @ start))
                    bound = end.hidden_component(ritz)
                    assert component <= bound * (1 + 1e-6) + 1e-14
                    tightest = min(tightest, bound / component)
            if projection.is_full:
                kept = _to_keep(projection.size, 1, sought)
                for end in sought:
                    end.follow_restart(ritz, kept)
                projection.restart(ritz.rotation[:, kept])
            else:
                for end in sought:
                    end.origin = np.append(end.origin, 0.0)
            projection.go_on()
    assert tightest < 1.5


# -- Budget, errors, determinism ------------------------------------------------------------------


def test_a_spent_budget_is_a_result_and_not_an_error():
    operator = PrescribedSpectrum(np.linspace(0, 1, 500))
    pairs = lanczos(operator, num_eigenpairs=5, max_products=20)
    assert operator.num_products == pairs.num_matvecs == 20
    assert not pairs.converged[-1]
    assert not pairs.confirmed.any()
    assert not pairs.complete
    assert_pairs_are_true(pairs, operator)
    pairs = lanczos(operator, num_eigenpairs=5, ends="both", max_products=3)
    assert len(pairs) == 3
    assert not pairs.complete


def test_an_end_that_does_not_settle_leaves_the_other_confirmed():
    spectrum = np.r_[50.0, 30.0, 30.0, 20.0, 10.0, 8.0, 7.0, np.geomspace(1, 1e-12, 700)]
    operator = PrescribedSpectrum(spectrum)
    pairs = lanczos(operator, num_eigenpairs=3, ends="both", max_products=90)
    np.testing.assert_allclose(pairs.at("top").values.numpy(), [50, 30, 30], rtol=1e-6)
    assert pairs.at("top").complete
    assert not pairs.at("bottom").converged.all()
    assert pairs.num_matvecs <= 90
    assert_pairs_are_true(pairs, operator)


def test_a_nan_product_stops_the_search_and_is_numbered():
    class Breaks(PrescribedSpectrum):
        def _matvec(self, vector):
            result = super()._matvec(vector)
            return result * torch.nan if self.num_products == 4 else result

    with pytest.raises(FloatingPointError, match="product 4 is not finite"):
        lanczos(Breaks(np.linspace(1, 2, 50)))


def test_an_operator_that_is_not_symmetric_is_refused():
    class Skew(SymmetricOperator):
        def _matvec(self, vector):
            return torch.roll(vector, 1) * torch.arange(1.0, 41.0, dtype=torch.float64)

    skew = Skew(40, dtype=torch.float64, device=torch.device("cpu"))
    with pytest.raises(ValueError, match="not symmetric"):
        lanczos(skew)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_eigenpairs": 0}, "num_eigenpairs must be >= 1, got 0"),
        ({"ends": "middle"}, "'top', 'bottom' or 'both', got 'middle'"),
        ({"tolerance": 0.0}, r"tolerance must be in \(0, 1\), got 0.0"),
        ({"max_products": 0}, "max_products must be >= 1, got 0"),
        ({"start": torch.zeros(3, dtype=torch.float64)}, "start must be finite, not zero"),
        ({"start": torch.ones(4, dtype=torch.float64)}, r"shape \(3,\); got shape \(4,\)"),
        ({"start": torch.full((3,), torch.nan, dtype=torch.float64)}, "start must be finite"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        lanczos(PrescribedSpectrum([3.0, 2.0, 1.0]), **options)


def test_the_same_seed_gives_the_same_bits_and_leaves_the_global_generator_alone():
    spectrum = hard_spectrum("copies, spread bulk")
    state = torch.get_rng_state()
    first = lanczos(PrescribedSpectrum(spectrum), seed=3)
    torch.rand(5)
    second = lanczos(PrescribedSpectrum(spectrum), seed=3)
    assert torch.equal(first.values, second.values)
    assert torch.equal(first.vectors, second.vectors)
    other = lanczos(PrescribedSpectrum(spectrum), seed=4)
    assert not torch.equal(first.vectors, other.vectors)
    torch.set_rng_state(state)


def test_progress_hears_of_every_product():
    heard = []
    pairs = lanczos(
        PrescribedSpectrum(np.r_[9.0, 5.0, np.linspace(0, 1, 60)]),
        num_eigenpairs=2,
        max_products=60,
        progress=lambda done, total: heard.append((done, total)),
    )
    assert heard == [(number + 1, 60) for number in range(pairs.num_matvecs)]


def test_an_operator_may_return_its_argument_or_its_work_space():
    class Echo(SymmetricOperator):
        def _matvec(self, vector):
            return vector

    pairs = lanczos(Echo(30, dtype=torch.float64, device=torch.device("cpu")), num_eigenpairs=3)
    np.testing.assert_allclose(pairs.values.numpy(), [1, 1, 1], rtol=1e-14)

    class Reused(PrescribedSpectrum):
        space = torch.empty(200, dtype=torch.float64)

        def _matvec(self, vector):
            return self.space.copy_(super()._matvec(vector))

    operator = Reused(np.r_[9.0, 9.0, 5.0, np.linspace(0, 1, 197)])
    pairs = lanczos(operator, num_eigenpairs=3)
    assert_pairs_are_true(pairs, operator)
    assert_nothing_is_missed(operator, pairs, 3, "top")


# -- Memory and products --------------------------------------------------------------------------


class LiveBytes(TorchDispatchMode):
    """The most bytes of tensor storage alive at once, of those allocated inside."""

    def __init__(self):
        super().__init__()
        self.alive, self.now, self.peak = {}, 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.register(tensor.untyped_storage())
        return result

    def register(self, storage):
        pointer = storage.data_ptr()
        if storage.nbytes() and pointer not in self.alive:
            self.alive[pointer] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self.release, pointer)

    def release(self, pointer):
        self.now -= self.alive.pop(pointer)


@pytest.mark.parametrize("ends", ["top", "both"])
def test_the_least_memory_is_twelve_vectors_beside_the_wanted_ones(ends):
    size = 200_000
    spectrum = np.r_[90.0, 70.0, 50.0, 30.0, np.linspace(-1, 1, size - 6), -30.0, -50.0]
    operator = PrescribedSpectrum(spectrum, dtype=torch.float32)
    operator @ torch.ones(size)
    with LiveBytes() as memory:
        pairs = lanczos(operator, num_eigenpairs=2, ends=ends, memory=0)
    assert pairs.complete
    held = len(pairs) + 12
    at_work = (
        4  # what the operator itself allocates in a product, and a random vector in the making
    )
    assert memory.peak <= (held + at_work) * size * 4 * 1.05
    assert memory.peak >= held * size * 4


class LiveVectors(LiveBytes):
    """The most vectors of this length alive at once, of those allocated inside."""

    def __init__(self, size):
        super().__init__()
        self.size = size

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor) and tensor.shape[-1:] == (self.size,):
                self.register(tensor.untyped_storage())
        return result

    @property
    def most(self):
        return self.peak / (8 * self.size)


@pytest.mark.parametrize("ends", ["top", pytest.param("both", marks=pytest.mark.slow)])
def test_a_memory_budget_bounds_the_basis_where_the_spectrum_needs_many_vectors(ends):
    """A dense end takes some hundred vectors when it may, and restarts in 15 to 24 when not."""
    size = 9000  # longer than the slices that sums are taken over
    edge = np.linspace(0, 1, 150) ** 0.5
    edges = edge if ends == "top" else np.r_[edge, -0.9 * edge]
    spectrum = np.r_[edges, np.zeros(size - len(edges))]
    most, products = {}, {}
    for budget in (0, 24, 1000):
        operator = PrescribedSpectrum(spectrum)
        operator @ torch.ones(size, dtype=torch.float64)
        operator.num_products = 0
        with LiveVectors(size) as vectors:
            pairs = lanczos(operator, num_eigenpairs=3, ends=ends, memory=budget * size * 8)
        most[budget], products[budget] = vectors.most, operator.num_products
        assert_nothing_is_missed(operator, pairs, 3, ends)
        assert (true_residuals(operator, pairs) <= pairs.residuals).all()
        at_work = 4  # in a product, and a random vector in the making
        assert most[budget] <= max(len(pairs) + 12, budget) + at_work
    assert most[1000] > 3 * (24 + at_work)
    assert products[0] > products[24] > products[1000]


def true_residuals(operator, pairs):
    """||A v - theta v|| of each pair, by the operator itself: the matrix would take 600 MB."""
    columns = zip(pairs.values, pairs.vectors.unbind(1), strict=True)
    return torch.stack([(operator @ v - value * v).norm() for value, v in columns])


def products_of_eigsh(eigenvalues, num_eigenpairs, error, seed):
    """The fewest products with which eigsh is as exact, over tolerances, chosen in hindsight."""
    truth = extremes(eigenvalues, num_eigenpairs, "top")
    fewest = math.inf
    for tolerance in 10.0 ** np.arange(-0.5, -11, -0.5):
        count = 0

        def product(vector):
            nonlocal count
            count += 1
            return eigenvalues * vector.reshape(-1)

        size = len(eigenvalues)
        found = eigsh(
            LinearOperator((size, size), matvec=product, dtype=float),
            k=num_eigenpairs,
            which="LA",
            tol=tolerance,
            return_eigenvectors=False,
            v0=np.random.default_rng(seed).normal(size=size),
        )
        if np.max(np.abs(np.sort(found)[::-1] / truth - 1)) <= error:
            fewest = min(fewest, count)
    return fewest


def mean_ratio_to_eigsh(eigenvalues, *, num_eigenpairs=5, num_seeds=10):
    ratios = []
    for seed in range(num_seeds):
        operator = PrescribedSpectrum(eigenvalues, seed=seed)
        pairs = lanczos(operator, num_eigenpairs=num_eigenpairs, seed=seed)
        assert_nothing_is_missed(operator, pairs, num_eigenpairs, "top")
        truth = extremes(eigenvalues, num_eigenpairs, "top")
        error = max(np.max(np.abs(pairs.values.numpy() / truth - 1)), 1e-14)
        ratios.append(
            pairs.num_matvecs / products_of_eigsh(eigenvalues, num_eigenpairs, error, seed)
        )
    return np.mean(ratios)


@pytest.mark.parametrize("name", ["outliers", "geometric"])
def test_top_five_of_an_outlier_spectrum_take_no_more_products_than_eigsh(name):
    assert mean_ratio_to_eigsh(hard_spectrum(name)) <= 1.05


@pytest.mark.slow
def test_top_five_of_a_net_take_no_more_products_than_eigsh():
    initial, trained = (torch.linalg.eigvalsh(hessian).numpy() for hessian in digits_net_hessian())
    assert mean_ratio_to_eigsh(trained) <= 1.05
    # Before training the fifth and sixth value are close, which only a confirmed search pays for.
    assert mean_ratio_to_eigsh(initial) <= 1.25


@pytest.mark.slow
def test_both_ends_of_a_net_cost_at_most_1_6_times_the_dearer_one():
    for hessian in digits_net_hessian():
        counts = {}
        for ends in ENDS:
            operator = MatrixOperator(hessian)
            pairs = lanczos(operator, num_eigenpairs=5, ends=ends)
            truth = extremes(torch.linalg.eigvalsh(hessian), 5, ends)
            np.testing.assert_allclose(pairs.values.numpy(), truth, rtol=1e-3)
            assert pairs.complete
            counts[ends] = pairs.num_matvecs
        assert counts["both"] <= 1.6 * max(counts["top"], counts["bottom"])
