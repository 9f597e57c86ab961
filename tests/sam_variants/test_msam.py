import math

import numpy as np
import pytest
import torch
from torch import nn

from sam_variants import MSAM, SAM, AdaptiveThreshold, Every
from sam_variants.training.closure import batch_closure
from tests.references import coupled_matrix, unit
from tests.sam_variants.rule_steps import START, one_of_two_workers, sgd

COMMON = coupled_matrix()


class Centres(nn.Module):
    """x, in two parameters; row i of a batch (c_i, H_i) has the loss (x - c_i)'H_i(x - c_i) / 2."""

    def __init__(self):
        super().__init__()
        self.head = nn.Parameter(torch.tensor(START[:1], dtype=torch.float64))
        self.tail = nn.Parameter(torch.tensor(START[1:], dtype=torch.float64))

    @property
    def x(self):
        return torch.cat([self.head, self.tail])

    def forward(self, centres):
        return self.x - centres


def loss(moved, matrices):
    return 0.5 * torch.einsum("bi,bij,bj->b", moved, matrices, moved).mean()


def batch(num_rows, *, common=False):
    """Centres and Hessians of the rows: one Hessian for all, or one for each."""
    torch.manual_seed(0)
    centres = torch.randn(num_rows, 4, dtype=torch.float64)
    seeds = [0] * num_rows if common else range(num_rows)
    return centres, torch.stack([coupled_matrix(seed=seed) for seed in seeds])


def shards_of(num_rows, shards):
    return [list(rows) for rows in np.array_split(np.arange(num_rows), min(shards, num_rows))]


def by_hand(x, rows, shards, radii):
    """q and each shard's offset."""
    centres, matrices = rows
    q, offsets = torch.zeros_like(x), []
    for part in shards_of(len(centres), shards):

        def gradient(at, part=part):
            return torch.stack([matrices[i] @ (at - centres[i]) for i in part]).mean(0)

        offsets.append(radii * unit(gradient(x)))
        q += len(part) / len(centres) * gradient(x + offsets[-1])
    return q, offsets


def one_step(optimizer, model, rows):
    """The step's rows and offsets, request by request, and the gradient descended (at lr 1)."""
    home, asked = model.x.detach().clone(), []
    closure = batch_closure(model, loss, *rows)

    def watched(request):
        asked.append((request.rows, model.x.detach() - home))
        return closure(request)

    watched.num_rows = len(rows[0])
    optimizer.step(watched)
    return asked, home - model.x.detach()


@pytest.mark.parametrize("num_rows", [8, 10, 3, 1])
@pytest.mark.parametrize("shards", [1, 3, 4])
def test_each_shard_is_perturbed_by_itself_and_the_mean_weighs_its_rows(num_rows, shards):
    model, rows = Centres(), batch(num_rows)
    optimizer = MSAM(sgd(model.parameters(), lr=1.0), rho=0.4, shards=shards)
    expected, offsets = by_hand(model.x.detach(), rows, shards, 0.4)
    asked, q = one_step(optimizer, model, rows)
    torch.testing.assert_close(q, expected, rtol=1e-12, atol=1e-12)
    for part, offset, clean, worst in zip(
        shards_of(num_rows, shards), offsets, asked[::2], asked[1::2], strict=True
    ):
        assert list(range(num_rows))[clean[0]] == list(range(num_rows))[worst[0]] == part
        assert torch.equal(clean[1], torch.zeros(4, dtype=torch.float64))
        torch.testing.assert_close(worst[1], offset, rtol=1e-12, atol=1e-12)
    assert optimizer.counts.gradients == pytest.approx(2.0)


@pytest.mark.parametrize("when", [None, Every(3)])
def test_a_step_returns_the_loss_of_the_whole_batch(when):
    model, rows = Centres(), batch(10)
    optimizer = MSAM(sgd(model.parameters()), rho=0.4, shards=4, when=when)
    for _ in range(4):
        expected = loss(model(rows[0]), rows[1]).detach()
        got = optimizer.step(batch_closure(model, loss, *rows))
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=0.0)


def test_twenty_steps_follow_the_equations():
    model, rows = Centres(), batch(10)
    optimizer = MSAM(sgd(model.parameters(), lr=0.2), rho=0.4, shards=4)
    x = model.x.detach()
    for _ in range(20):
        x = x - 0.2 * by_hand(x, rows, 4, 0.4)[0]
        one_step(optimizer, model, rows)
        torch.testing.assert_close(model.x.detach(), x, rtol=1e-11, atol=1e-11)


def test_with_one_hessian_it_is_the_plain_gradient_and_the_mean_of_the_shards_unit_vectors():
    model, rows = Centres(), batch(8, common=True)
    x, rho = model.x.detach().clone(), 0.7
    means = rows[0].reshape(4, 2, 4).mean(1)
    turned = torch.stack([unit(COMMON @ (x - c)) for c in means]).mean(0)
    optimizer = MSAM(sgd(model.parameters(), lr=1.0), rho=rho, shards=4)
    asked, q = one_step(optimizer, model, rows)
    expected = COMMON @ (x - means.mean(0)) + rho * COMMON @ turned
    torch.testing.assert_close(q, expected, rtol=1e-12, atol=1e-12)
    mean_offset = torch.stack([offset for _, offset in asked[1::2]]).mean(0)
    assert mean_offset.norm() < rho - 1e-3


def trained(rule, rows, num=8, **options):
    model = Centres()
    optimizer = rule(sgd(model.parameters(), momentum=0.9, weight_decay=0.05), **options)
    for _ in range(num):
        optimizer.step(batch_closure(model, loss, *rows))
    return model.x.detach()


def test_one_shard_is_sam_bit_for_bit():
    rows = batch(10)
    assert torch.equal(trained(MSAM, rows, rho=0.4, shards=1), trained(SAM, rows, rho=0.4))


def test_identical_shards_are_sam():
    centres, matrices = batch(3)
    rows = centres.repeat(4, 1), matrices.repeat(4, 1, 1)
    torch.testing.assert_close(
        trained(MSAM, rows, rho=0.4, shards=4), trained(SAM, rows, rho=0.4), rtol=1e-13, atol=1e-13
    )


def test_different_shards_are_not_sam():
    rows = batch(12)
    gap = trained(MSAM, rows, rho=0.4, shards=4) - trained(SAM, rows, rho=0.4)
    assert gap.norm() > 1e-2


def test_as_many_shards_as_rows_is_sam_of_each_sample_and_more_change_nothing():
    rows = batch(5)
    x = Centres().x.detach()
    singles = [by_hand(x, (rows[0][i : i + 1], rows[1][i : i + 1]), 1, 0.4)[0] for i in range(5)]
    for shards in (5, 7):
        model = Centres()
        optimizer = MSAM(sgd(model.parameters(), lr=1.0), rho=0.4, shards=shards)
        asked, q = one_step(optimizer, model, rows)
        assert len(asked) == 10
        torch.testing.assert_close(q, torch.stack(singles).mean(0), rtol=1e-12, atol=1e-12)


def test_rho_zero_is_the_base():
    rows = batch(10)
    model = Centres()
    base = sgd(model.parameters(), momentum=0.9, weight_decay=0.05)
    for _ in range(8):
        base.zero_grad()
        loss(model(rows[0]), rows[1]).backward()
        base.step()
    got = trained(MSAM, rows, rho=0.0, shards=4)
    torch.testing.assert_close(got, model.x.detach(), rtol=1e-12, atol=1e-12)


def test_groups_share_a_shards_norm_and_use_their_own_rho():
    model, (centres, matrices) = Centres(), batch(6)
    scales = torch.diag(torch.tensor([1e3, 1.0, 1.0, 1e-2], dtype=torch.float64))
    rows = centres, scales @ matrices @ scales
    groups = [{"params": [model.head], "rho": 0.1}, {"params": [model.tail]}]
    radii = torch.tensor([0.1, 2.0, 2.0, 2.0], dtype=torch.float64)
    _, offsets = by_hand(model.x.detach(), rows, 2, radii)
    optimizer = MSAM(sgd(groups, lr=1e-9), rho=2.0, shards=2)
    asked, _ = one_step(optimizer, model, rows)
    for offset, (_, found) in zip(offsets, asked[1::2], strict=True):
        torch.testing.assert_close(found, offset, rtol=1e-12, atol=1e-12)


def test_a_policy_without_a_signal_leaves_plain_steps_on_the_whole_batch():
    model, rows = Centres(), batch(10)
    optimizer = MSAM(sgd(model.parameters(), lr=0.1), shards=4, when=Every(3))
    for t in range(6):
        asked, _ = one_step(optimizer, model, rows)
        assert len(asked) == (1 if t % 3 else 8)
        assert (asked[0][0] == slice(None)) == bool(t % 3)
    assert optimizer.counts.gradients == pytest.approx(2 * 2 + 4)


class Alternating(AdaptiveThreshold):
    """Reads the signal as AE-SAM does, and perturbs every other step."""

    def __init__(self):
        super().__init__(lambda1=1.0, lambda2=1.0)
        self.seen = []

    def decide(self, *, step, signal, **_):
        self.seen.append(signal())
        return step % 2 == 0


def test_a_policy_that_reads_the_gradient_sees_that_of_the_whole_batch():
    model, rows = Centres(), batch(10)
    optimizer = MSAM(sgd(model.parameters(), lr=1e-2), rho=0.4, shards=4, when=Alternating())
    zero = torch.zeros(4, dtype=torch.float64)
    for t in range(4):
        x = model.x.detach().clone()
        whole, _ = by_hand(x, rows, 1, 0.0)
        asked, moved = one_step(optimizer, model, rows)
        assert optimizer.policy.seen[-1] == pytest.approx((whole @ whole).item(), rel=1e-12)
        assert optimizer.last.gradient_norm.item() == pytest.approx(whole.norm().item())
        assert all(torch.equal(offset, zero) for _, offset in asked[:4])  # all clean ones first
        expected = whole if t % 2 else by_hand(x, rows, 4, 0.4)[0]
        assert len(asked) == (4 if t % 2 else 8)
        torch.testing.assert_close(moved, 1e-2 * expected, rtol=1e-9, atol=1e-14)
    assert optimizer.counts.gradients == pytest.approx(2 * 2 + 2)


@pytest.mark.parametrize("when", [None, Alternating()])
def test_a_local_ascent_syncs_the_second_gradients_alone(monkeypatch, when):
    averaged = one_of_two_workers(monkeypatch)
    model, rows = Centres(), batch(8)
    optimizer = MSAM(sgd(model.parameters(), lr=1e-2), shards=2, when=when, ascent="local")
    closure, steps = batch_closure(model, loss, *rows), []
    for _ in range(2):
        flags = []
        for request in optimizer.passes(num_rows=8):
            flags.append(request.sync)
            request.loss = closure(request)
        optimizer.step()
        steps.append(flags)
    if when is None:
        assert steps == [[False, True, False, True]] * 2
        assert averaged == []
    else:  # the signal of both steps, and the gradient of the plain one
        assert steps == [[False, False, True, True], [False, False]]
        assert len(averaged) == 3
        assert torch.equal(
            torch.cat(list(averaged[-1])), torch.cat([model.head.grad, model.tail.grad])
        )


@pytest.mark.parametrize("when", [None, Every(3)])
def test_without_the_number_of_rows_the_first_step_says_what_to_do(when):
    model, rows = Centres(), batch(4)
    optimizer = MSAM(sgd(model.parameters()), when=when)

    def closure():
        optimizer.zero_grad()
        value = loss(model(rows[0]), rows[1])
        value.backward()
        return value

    with pytest.raises(RuntimeError, match="pass num_rows to"):
        optimizer.step(closure)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rho": -0.1}, "rho must be a number >= 0, got -0.1"),
        ({"rho": math.nan}, "rho must be a number >= 0"),
        ({"shards": 0}, "shards must be a whole number >= 1, got 0"),
    ],
)
def test_options_out_of_range_raise_with_the_range(options, message):
    with pytest.raises(ValueError, match=message):
        MSAM(sgd([nn.Parameter(torch.ones(1))]), **options)
