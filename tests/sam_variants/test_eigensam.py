import math

import pytest
import torch
from torch import nn

from sam_variants import SAM, EigenSAM, Every
from tests.references import Quadratic, coupled_matrix, unit
from tests.sam_variants.rule_steps import (
    RADII,
    SCALES,
    START,
    H,
    base_steps,
    check_follows,
    check_plain_steps_average_the_gradient_of_a_local_ascent,
    one_of_two_workers,
    problem,
    scaled_groups,
    sgd,
    steps,
    synced,
)


def drawn(shapes, seed=0, dtype=torch.float64):
    """The first direction: a normal draw in the weights' dtype, tensor by tensor."""
    generator = torch.Generator().manual_seed(seed)
    draws = [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]
    return unit(torch.cat([draw.reshape(-1) for draw in draws]).double())


def iterated(v, matrix, num):
    for _ in range(num):
        v = unit(matrix @ v)
    return v


def turned(g, v, alpha):
    """eps / rho."""
    across = v - (v @ g) / (g @ g) * g
    return unit(g) + alpha * torch.sign(g @ v) * across


def direction(optimizer):
    return torch.cat([t.reshape(-1) for t in optimizer.recall("v")])


class ByHand:
    """q of every step with H itself: v refreshed at the given steps."""

    def __init__(self, refreshes, *, rho, alpha, iterations, every=1, seed=0):
        self.refreshes, self.every, self.rho, self.alpha = refreshes, every, rho, alpha
        self.iterations, self.v = iterations, drawn([1, 3], seed)

    def __call__(self, t, x):
        g = H @ x
        if t in self.refreshes:
            self.v = iterated(self.v, H, self.iterations)
        return g if t % self.every else H @ (x + self.rho * turned(g, self.v, self.alpha))


@pytest.mark.parametrize(
    ("every", "refreshes"),
    [(1, (0, 7, 14)), (3, (0, 9, 18))],  # at the first perturbed step seven steps on or later
)
def test_twenty_steps_follow_the_equations_on_coupled_coordinates(every, refreshes):
    q = problem()
    base = sgd(q.parameters, lr=0.2, momentum=0.9, weight_decay=0.05)
    optimizer = EigenSAM(
        base, rho=0.4, alpha=0.6, refresh_every=7, iterations=2, seed=5, when=Every(every)
    )
    by_hand = ByHand(refreshes, rho=0.4, alpha=0.6, iterations=2, every=every, seed=5)
    check_follows(optimizer, q, by_hand, tolerance=1e-9)
    torch.testing.assert_close(direction(optimizer), by_hand.v, rtol=0, atol=1e-9)


@pytest.mark.parametrize("spectrum", [(3.0, 1.0, 0.4, 0.05), (1.0, -3.0, 0.4, 0.05)])
def test_the_direction_becomes_the_eigenvector_of_the_largest_absolute_eigenvalue(spectrum):
    matrix = coupled_matrix(spectrum=spectrum)
    values, vectors = torch.linalg.eigh(matrix)
    top = vectors[:, values.abs().argmax()]
    q = Quadratic(matrix, START, sizes=[1, 3])
    optimizer = EigenSAM(sgd(q.parameters), iterations=40)
    optimizer.step(q.closure)
    v = direction(optimizer)
    assert v.norm().item() == pytest.approx(1.0, rel=1e-11)
    assert abs(v @ top).item() == pytest.approx(1.0, rel=1e-9)


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_the_differences_are_of_a_size_that_fits_the_weights(scale):
    torch.manual_seed(0)
    w = nn.Parameter(scale * torch.randn(6, dtype=torch.float64))
    mixing = coupled_matrix(6, spectrum=(3.0, 2.0, 1.0, 0.5, 0.2, 0.1)) / scale

    def loss_at(x):
        return torch.cosh(mixing @ x).log().sum()

    hessian = torch.autograd.functional.hessian(loss_at, w.detach())
    optimizer = EigenSAM(sgd([w]), iterations=200)

    def closure():
        w.grad = None
        loss = loss_at(w)
        loss.backward()
        return loss

    optimizer.step(closure)
    v = direction(optimizer)
    value = v @ hessian @ v
    assert (hessian @ v - value * v).norm() < 1e-4 * value


def at_a_kink(seed):
    """Data and weights of a ReLU net, float64; the first row lies where the first unit opens."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x, y = normal(1000, 6), torch.randint(3, (1000,), generator=generator)
    W, V, b, c = normal(8, 6) / 6**0.5, normal(3, 8) / 8**0.5, 0.1 * normal(8), normal(3)
    b[0] = -W[0] @ x[0]
    return x, y, [W, b, V, c]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_kink_within_reach_of_the_differences_is_not_taken_for_curvature(dtype, seed):
    x, y, tensors = at_a_kink(seed)
    shapes, sizes = [t.shape for t in tensors], [t.numel() for t in tensors]

    def loss_at(W, b, V, c):
        logits = torch.relu(x.to(W) @ W.T + b) @ V.T + c
        return nn.functional.cross_entropy(logits, y)

    def flat_loss_at(w):
        parts = zip(w.split(sizes), shapes, strict=True)
        return loss_at(*(part.view(shape) for part, shape in parts))

    w = torch.cat([t.reshape(-1) for t in tensors])
    hessian = torch.autograd.functional.hessian(flat_loss_at, w)  # of all rows off their kinks
    values, vectors = torch.linalg.eigh(hessian)
    top = vectors[:, values.abs().argmax()]
    parameters = [nn.Parameter(t.to(dtype)) for t in tensors]
    optimizer = EigenSAM(sgd(parameters), iterations=40)

    def closure():
        optimizer.zero_grad()
        loss = loss_at(*parameters)
        loss.backward()
        return loss

    optimizer.step(closure)
    exact = iterated(drawn(shapes, dtype=dtype), hessian, 40)
    assert abs(exact @ top).item() > 0.999
    assert abs(direction(optimizer).double() @ top).item() > 0.98  # 0.03 at h = 1e-5


def test_the_offset_is_the_unit_gradient_turned_by_alpha_towards_the_eigenvectors_side():
    for start in (START, [-s for s in START]):  # both signs of <g, v>
        q = Quadratic(H, start, sizes=[1, 3])
        optimizer = EigenSAM(sgd(q.parameters), rho=0.5, alpha=0.3, iterations=30)
        optimizer.step(q.closure)
        u, v = unit(H @ q.visited[0]), direction(optimizer)
        eps = q.visited[-1] - q.visited[0]
        across = v - (v @ u) * u
        assert (eps @ u).item() == pytest.approx(0.5, rel=1e-11)
        length = 0.5 * math.sqrt(1 + (0.3 * across.norm().item()) ** 2)
        assert eps.norm().item() == pytest.approx(length, rel=1e-11)
        assert ((eps @ v) * (u @ v)).item() > 0.5 * ((u @ v) ** 2).item()


def test_along_the_top_eigenvector_there_is_nothing_to_turn_to():
    values, vectors = torch.linalg.eigh(H)
    q = Quadratic(H, vectors[:, -1])
    optimizer = EigenSAM(sgd(q.parameters, lr=1.0), rho=0.5, alpha=0.9, iterations=40)
    x = q.x
    optimizer.step(q.closure)
    torch.testing.assert_close(x - q.x, values[-1] * 1.5 * x, rtol=1e-9, atol=1e-9)


def test_alpha_zero_is_sam_bit_for_bit():
    assert torch.equal(steps(EigenSAM, rho=0.3, alpha=0.0), steps(SAM, rho=0.3))


def test_rho_zero_is_the_base_bit_for_bit():
    assert torch.equal(steps(EigenSAM, rho=0.0), base_steps())


def test_a_linear_loss_has_no_curvature_to_turn_to_and_returns_its_slope():
    slope = torch.tensor([3.0, -4.0], dtype=torch.float64)
    q = Quadratic(torch.zeros(2, 2), [1.0, 2.0], slope=slope)
    optimizer = EigenSAM(sgd(q.parameters, lr=1.0), rho=0.5)
    x = q.x
    optimizer.step(q.closure)
    torch.testing.assert_close(x - q.x, slope)
    torch.testing.assert_close(q.visited[-1] - x, 0.5 * unit(slope))


def test_a_zero_gradient_perturbs_nothing_and_gives_no_nan():
    q = Quadratic(H, [0.0] * 4)
    EigenSAM(sgd(q.parameters)).step(q.closure)
    zero = torch.zeros(4, dtype=torch.float64)
    assert torch.equal(q.visited[-1], zero)
    assert torch.equal(q.x, zero)


def test_groups_share_one_norm_and_use_their_own_rho():
    q, groups = scaled_groups()
    x = q.x
    optimizer = EigenSAM(sgd(groups, lr=1e-4), rho=2.0, alpha=0.6, iterations=3)
    optimizer.step(q.closure)
    v = direction(optimizer)
    torch.testing.assert_close(v, iterated(drawn([2, 1, 1]), SCALES, 3), rtol=0, atol=1e-8)
    expected = RADII * turned(SCALES @ x, v, 0.6)
    torch.testing.assert_close(q.visited[-1] - x, expected, rtol=1e-9, atol=1e-9)


def test_parameters_without_a_gradient_have_no_part_in_the_eigenvector():
    q, alone = problem(), problem()
    rest = [nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3), requires_grad=False)]
    for each, parameters in ((q, [*q.parameters, *rest]), (alone, alone.parameters)):
        # it starts from another draw, but converges to the same
        optimizer = EigenSAM(sgd(parameters, momentum=0.9, weight_decay=0.1), iterations=60)
        for _ in range(6):
            optimizer.step(each.closure)
    torch.testing.assert_close(q.x, alone.x, rtol=1e-9, atol=1e-9)
    assert all(torch.equal(tensor, torch.ones_like(tensor)) for tensor in rest)


def test_refreshes_come_with_perturbed_steps_and_are_counted_apart():
    q = problem()
    optimizer = EigenSAM(sgd(q.parameters), refresh_every=6, iterations=3, when=Every(4))
    refreshed = []
    for t in range(17):
        before = optimizer.counts.refresh_gradients
        optimizer.step(q.closure)
        if optimizer.counts.refresh_gradients > before:
            assert optimizer.counts.refresh_gradients == before + 2 * 3
            refreshed.append(t)
    assert refreshed == [0, 8, 16]  # not at 12, a multiple of 6 but four steps after the last
    assert optimizer.counts.gradients == 17 + 5
    assert len(q.visited) == 17 + 5 + 3 * 6


def test_the_gradients_of_an_iteration_are_taken_h_up_and_down_the_direction():
    q = problem()
    EigenSAM(sgd(q.parameters), iterations=2).step(q.closure)
    x, v = q.visited[0], drawn([1, 3])
    h = 0.005 * (1 + x.norm())
    for plus, minus in (q.visited[1:3], q.visited[3:5]):
        torch.testing.assert_close((plus - x) / h, v, rtol=0, atol=1e-9)
        torch.testing.assert_close((minus - x) / h, -v, rtol=0, atol=1e-9)
        v = iterated(v, H, 1)


def test_steps_that_are_not_perturbed_are_plain_and_need_no_eigenvector():
    class Third(Every):
        def decide(self, *, step, **_):
            return step == 2

    q = problem()
    optimizer = EigenSAM(sgd(q.parameters), when=Third(5))
    for _ in range(2):
        x = q.x
        optimizer.step(q.closure)
        torch.testing.assert_close(q.x, x - 0.1 * H @ x)
    assert optimizer.recall("v") is None
    optimizer.step(q.closure)
    assert optimizer.counts.refresh_gradients == 10


def test_a_refresh_starts_from_the_direction_before_and_draws_only_once():
    q = problem()
    optimizer = EigenSAM(sgd(q.parameters), refresh_every=1, iterations=1)
    optimizer.step(q.closure)
    draws = optimizer.generator.get_state()
    for _ in range(2):
        expected = iterated(direction(optimizer), H, 1)
        optimizer.step(q.closure)
        torch.testing.assert_close(direction(optimizer), expected, rtol=0, atol=1e-9)
    assert torch.equal(optimizer.generator.get_state(), draws)


def test_a_local_ascent_syncs_what_is_kept_and_what_is_descended(monkeypatch):
    one_of_two_workers(monkeypatch)
    q = problem()
    optimizer = EigenSAM(sgd(q.parameters), iterations=2, ascent="local")
    assert synced(optimizer, q) == [False, True, True, True, True, True]


def test_steps_that_are_not_perturbed_average_the_gradient_of_a_local_ascent(monkeypatch):
    check_plain_steps_average_the_gradient_of_a_local_ascent(monkeypatch, EigenSAM)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rho": -0.1}, "rho must be a number >= 0, got -0.1"),
        ({"alpha": -0.1}, "alpha must be a number >= 0, got -0.1"),
        ({"refresh_every": 0}, "refresh_every must be a whole number >= 1, got 0"),
        ({"iterations": 0}, "iterations must be a whole number >= 1, got 0"),
    ],
)
def test_options_out_of_range_raise_with_the_range(options, message):
    with pytest.raises(ValueError, match=message):
        EigenSAM(sgd([nn.Parameter(torch.ones(1))]), **options)
