"""The driver: what holds for every rule, shown on small rules written here."""

import copy
import gc
import io
import itertools
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from sam_variants import (
    AESAM,
    SAM,
    AdaptiveThreshold,
    Coin,
    Evaluate,
    Every,
    LookSAM,
    ParameterVector,
    SharpnessAware,
    build,
)
from sam_variants import base as driver
from sam_variants.base import Counts
from sam_variants.schedules import Linear
from sam_variants.training.closure import batch_closure, evaluating
from tests.references import Quadratic, coupled_matrix, unit

START = [1.0, -2.0, 0.5, 3.0]
cross_entropy = nn.functional.cross_entropy


def sgd(parameters, **options):
    return torch.optim.SGD(parameters, **{"lr": 0.1, "momentum": 0.9, **options})


def problem(**options):
    return Quadratic(coupled_matrix(), START, **{"sizes": [1, 3], **options})


class Shards(SharpnessAware):
    """mSAM in miniature: each shard of rows perturbed by its own gradient."""

    name = "shards"

    def __init__(self, base, *, rho=0.1, shards=2, **common):
        super().__init__(base, options={"rho": rho, "shards": shards}, **common)

    def descent(self):
        total = None
        cuts = [round(i * self.num_rows / self.shards) for i in range(self.shards + 1)]
        for start, stop in itertools.pairwise(cuts):
            rows = slice(start, stop)
            clean = yield Evaluate(rows=rows)
            factor = self.rho / (clean.norm + 1e-12)
            worst = yield Evaluate(offset=clean.take().mul_(factor), rows=rows)
            part = worst.take().mul_((stop - start) / self.num_rows)
            total = part if total is None else total.add_(part)
        return total


class WorstRows(SharpnessAware):
    """ESAM's data half in miniature: forward alone at w + eps, then a gradient of chosen rows."""

    name = "worst-rows"
    remembers = ("chosen", "count")

    def __init__(self, base, *, rho=0.1, keep=0.5, **common):
        super().__init__(base, options={"rho": rho, "keep": keep}, **common)

    def descent(self):
        clean = yield Evaluate(per_sample=True)
        gradient = clean.take()
        offset = gradient.mul_(self.rho / (gradient.norm() + 1e-12))
        there = yield Evaluate(offset=offset.clone(), gradient=False, per_sample=True)
        number = math.ceil(self.keep * self.num_rows)
        rows = torch.topk(there.loss - clean.loss, number).indices
        self.remember(chosen=rows, count=(self.recall("count") or 0) + 1)
        worst = yield Evaluate(offset=offset, rows=rows)
        return worst.take()


class Averaging(SharpnessAware):
    """A rule with a running average of clean gradients, as in F-SAM, written before pass 2."""

    name = "averaging"
    keeps_clean_gradient = True
    remembers = ("m",)

    def __init__(self, base, *, rho=0.1, **common):
        super().__init__(base, options={"rho": rho}, **common)

    def descent(self):
        clean = yield Evaluate()
        old = self.recall("m")
        new = clean.gradient.clone() if old is None else old.mul(0.9).add_(clean.gradient, 0.1)
        self.remember(m=new)
        if not self.perturbs(clean):
            return clean.take()
        worst = yield Evaluate(offset=new.mul(self.times_rho(1.0 / (new.norm() + 1e-12))))
        return worst.take()


class Elsewhere(SharpnessAware):
    """A rule with no clean evaluation, as Momentum-SAM: one gradient at w + shift."""

    name = "elsewhere"
    starts_clean = False

    def __init__(self, base, *, shift=0.5, **common):
        super().__init__(base, options={"shift": shift}, **common)

    def descent(self):
        if not self.perturbs():
            plain = yield Evaluate()
            return plain.take()
        ones = ParameterVector(torch.full_like(p, self.shift) for p in self.parameters)
        moved = yield Evaluate(offset=ones)
        return moved.take()


def run_loop(optimizer, body, **options):
    """A loop over passes whose body is body(request) -> loss."""
    for request in optimizer.passes(**options):
        request.loss = body(request)


def halfway(optimizer, q):
    """A loop left where its second evaluation would run, its generator still alive."""
    held = optimizer.passes()
    request = next(held)
    request.loss = q.closure().detach()
    next(held, None)
    return held


# -- The way home


def bits(q):
    return q.x.clone()


@pytest.mark.parametrize("at", [0, 1])
def test_weights_return_home_when_the_loops_body_raises(at):
    q = problem()
    home, optimizer = bits(q), SAM(sgd(q.parameters), rho=0.3)

    def body(_):
        loss = q.closure().detach()
        if len(q.visited) == at + 1:
            raise ZeroDivisionError
        return loss

    with pytest.raises(ZeroDivisionError):
        run_loop(optimizer, body)
    assert torch.equal(q.x, home)
    optimizer.step(q.closure)
    reference = problem()
    SAM(sgd(reference.parameters), rho=0.3).step(reference.closure)
    assert torch.equal(q.x, reference.x)


def test_weights_return_home_when_a_closure_raises_on_the_ascent():
    q = problem()
    home, optimizer = bits(q), SAM(sgd(q.parameters), rho=0.3)

    def failing():
        if len(q.visited) == 1:
            raise ZeroDivisionError
        return q.closure()

    with pytest.raises(ZeroDivisionError):
        optimizer.step(failing)
    assert torch.equal(q.x, home)
    assert optimizer.counts == Counts(gradients=1.0)


@pytest.mark.parametrize(
    "leave", ["come_home", "state_dict", "zero_grad", "passes", "step", "load_state_dict"]
)
def test_weights_return_home_from_a_held_generator(leave):
    q = problem()
    home, optimizer = bits(q), SAM(sgd(q.parameters), rho=0.3)
    saved = optimizer.state_dict()
    held = halfway(optimizer, q)  # stays alive: nothing closes it for us
    assert not torch.equal(q.x, home)
    if leave == "step":
        with pytest.raises(RuntimeError, match="finished loop"):
            optimizer.step()
    elif leave == "load_state_dict":
        optimizer.load_state_dict(saved)
    else:
        getattr(optimizer, leave)()
    assert torch.equal(q.x, home)
    with pytest.raises(RuntimeError, match="sent home inside the loop"):
        next(held)
    assert torch.equal(q.x, home)


def test_a_loop_left_by_break_is_home_at_once_and_does_not_step():
    q = problem()
    home, optimizer = bits(q), SAM(sgd(q.parameters), rho=0.3)
    for request in optimizer.passes():
        if not request.first:
            break
        request.loss = q.closure().detach()
    gc.collect()
    assert torch.equal(q.x, home)
    with pytest.raises(RuntimeError, match=r"for request in optimizer\.passes"):
        optimizer.step()


def test_home_is_bit_for_bit_where_adding_and_subtracting_is_not():
    torch.manual_seed(0)
    w = nn.Parameter(torch.randn(1000))
    home = w.detach().clone()
    optimizer = SAM(torch.optim.SGD([w], lr=0.0), rho=3.0)

    def closure():
        optimizer.zero_grad()
        loss = w.square().sum()
        loss.backward()
        return loss

    for _ in range(20):
        optimizer.step(closure)
    assert torch.equal(w, home)


def test_the_perturbed_pass_sees_nan_and_weights_still_come_home():
    w = nn.Parameter(torch.tensor([1.0, 2.0]))
    optimizer = SAM(torch.optim.SGD([w], lr=0.0), rho=0.1)
    for request in optimizer.passes():
        loss = w.sum() if request.first else (w * math.nan).sum()
        loss.backward()
        request.loss = loss.detach()
    assert w.tolist() == [1.0, 2.0]


def test_zero_grad_inside_a_loop_is_an_error_that_says_what_to_do():
    q = problem()
    home, optimizer = bits(q), SAM(sgd(q.parameters), rho=0.3)

    def body(_):
        optimizer.zero_grad()
        return q.closure().detach()

    with pytest.raises(RuntimeError, match="driver clears gradients itself"):
        run_loop(optimizer, body)
    assert torch.equal(q.x, home)


def test_the_random_generators_are_left_as_after_the_first_pass_however_the_step_ends():
    q = problem()
    optimizer = SAM(sgd(q.parameters), rho=0.3)

    def body(request):
        torch.rand(3 if request.first else 7)
        return q.closure().detach()

    def failing(request):
        if not request.first:
            raise ZeroDivisionError
        return body(request)

    torch.manual_seed(4)
    torch.rand(3)
    expected = torch.rand(2)
    torch.manual_seed(4)
    run_loop(optimizer, body)
    optimizer.step()
    assert torch.equal(torch.rand(2), expected)
    torch.manual_seed(4)
    with pytest.raises(ZeroDivisionError):
        run_loop(optimizer, failing)
    assert torch.equal(torch.rand(2), expected)


# -- The loop and the closure


def test_a_loop_and_a_closure_take_the_same_step():
    one, other = problem(), problem()
    a, b = SAM(sgd(one.parameters), rho=0.3), SAM(sgd(other.parameters), rho=0.3)
    for _ in range(5):
        for request in a.passes():
            request.loss = one.closure().detach()
        loop_loss = a.step()
        closure_loss = b.step(other.closure)
        assert torch.equal(loop_loss, closure_loss)
    assert torch.equal(one.x, other.x)


def test_step_returns_the_clean_loss():
    q = problem()
    expected = q.loss().item()
    assert SAM(sgd(q.parameters), rho=2.0).step(q.closure).item() == expected


def test_a_closure_may_call_zero_grad_and_build_on_no_grad_surroundings():
    q = problem()
    optimizer = SAM(sgd(q.parameters), rho=0.3)

    def closure():
        optimizer.zero_grad()
        loss = q.loss()
        loss.backward()
        return loss

    with torch.no_grad():
        optimizer.step(closure)
    reference = problem()
    SAM(sgd(reference.parameters), rho=0.3).step(reference.closure)
    assert torch.equal(q.x, reference.x)


def test_step_without_a_finished_loop_raises_with_the_recipe():
    q = problem()
    optimizer = SAM(sgd(q.parameters), rho=0.3)
    with pytest.raises(RuntimeError, match=r"(?s)for request in .*batch_closure"):
        optimizer.step()
    for request in optimizer.passes():
        request.loss = q.closure().detach()
    optimizer.step()
    with pytest.raises(RuntimeError, match="finished loop"):
        optimizer.step()
    for request in optimizer.passes():
        request.loss = q.closure().detach()
    optimizer.zero_grad()  # throws the gradient away, and with it the step
    with pytest.raises(RuntimeError, match="finished loop"):
        optimizer.step()


def test_after_a_loop_a_closure_that_returns_nothing_runs_before_the_step():
    q, reference = problem(), problem()
    optimizer, expected = SAM(sgd(q.parameters), rho=0.3), SAM(sgd(reference.parameters), rho=0.3)
    for rule, p in ((optimizer, q), (expected, reference)):
        run_loop(rule, lambda _, p=p: p.closure().detach())

    def halve():
        q.parameters[0].grad.mul_(0.5)

    optimizer.step(halve)
    reference.parameters[0].grad.mul_(0.5)
    expected.step()
    assert torch.equal(q.x, reference.x)
    assert optimizer.counts == expected.counts


def test_after_a_loop_a_closure_that_returns_a_loss_is_refused():
    q = problem()
    home, optimizer = bits(q), SAM(sgd(q.parameters), rho=0.3)
    run_loop(optimizer, lambda _: q.closure().detach())
    with pytest.raises(RuntimeError, match="one of them makes the step"):
        optimizer.step(q.closure)
    assert torch.equal(q.x, home)
    assert optimizer.counts.steps == 0


class Wrapper:
    """What LightningOptimizer does: the wrapped class without the wrapped attributes."""

    def __init__(self, optimizer):
        self.optimizer = optimizer
        self.__class__ = type("Wrapper", (Wrapper, type(optimizer)), {})

    def __getattr__(self, name):
        return getattr(self.optimizer, name)


def test_passes_of_a_wrapper_that_imitates_the_class_are_refused_with_the_recipe():
    q = problem()
    with pytest.raises(RuntimeError, match=r"self\.optimizers\(\)\.optimizer"):
        Wrapper(SAM(sgd(q.parameters), rho=0.3)).passes()


def test_passes_never_step_and_leave_the_descent_gradient():
    q = problem()
    home, optimizer = bits(q), SAM(sgd(q.parameters), rho=0.3)
    for request in optimizer.passes():
        request.loss = q.closure().detach()
    assert torch.equal(q.x, home)
    expected = q.matrix @ (home + 0.3 * unit(q.matrix @ home))
    torch.testing.assert_close(torch.cat([p.grad for p in q.parameters]), expected)


def test_forgetting_the_loss_or_the_backward_pass_says_so():
    q = problem()
    optimizer = SAM(sgd(q.parameters), rho=0.3)
    with pytest.raises(RuntimeError, match=r"must set request\.loss"):
        run_loop(optimizer, lambda _: q.closure() and None)
    with pytest.raises(RuntimeError, match=r"loss\.backward\(\)"):
        run_loop(optimizer, lambda _: q.loss().detach())
    with pytest.raises(RuntimeError, match="one number, got shape"):
        run_loop(optimizer, lambda _: q.closure().detach() * torch.ones(3))
    with pytest.raises(RuntimeError, match="must return the loss"):
        optimizer.step(lambda: q.closure() and None)
    with pytest.raises(ValueError, match="num_rows must be >= 1"):
        optimizer.passes(num_rows=0)
    with pytest.raises(ValueError, match="scale must be a positive number"):
        optimizer.passes(scale=0.0)


def test_gradients_that_are_views_are_cloned_and_others_are_taken_as_they_are():
    class Keep(Elsewhere):
        def descent(self):
            clean = yield Evaluate()
            yield Evaluate()
            return clean.take()

    w = nn.Parameter(torch.ones(4))
    bucket = torch.zeros(8)
    for request in Keep(torch.optim.SGD([w], lr=0.0)).passes():
        bucket[:4] = 1.0 if request.first else 5.0  # as a reducer fills its buffer
        w.grad = bucket[:4]
        request.loss = torch.tensor(0.0)
    assert w.grad.tolist() == [1.0] * 4
    pointers = []
    for request in SAM(torch.optim.SGD([w], lr=0.0)).passes():
        w.grad = torch.ones(4)
        pointers.append(w.grad.data_ptr())
        request.loss = torch.tensor(0.0)
    assert w.grad.data_ptr() == pointers[1]


def test_sparse_gradients_are_refused():
    table = nn.Embedding(5, 2, sparse=True)
    optimizer = SAM(torch.optim.SGD(table.parameters(), lr=0.1))

    def body(_):
        loss = table(torch.tensor([1])).sum()
        loss.backward()
        return loss

    with pytest.raises(RuntimeError, match="sparse=False"):
        run_loop(optimizer, body)


def test_one_spare_buffer_is_kept_and_the_offset_is_gone_during_the_second_pass():
    q = problem()
    optimizer = SAM(sgd(q.parameters), rho=0.3)
    for request in optimizer.passes():
        assert request.offset is None
        request.loss = q.closure().detach()
    optimizer.step()
    kept = [t.data_ptr() for t in optimizer._home]
    optimizer.step(q.closure)
    assert [t.data_ptr() for t in optimizer._home] == kept


def test_a_model_moved_to_float64_between_steps_gets_a_float64_way_home():
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = SAM(torch.optim.SGD(model.parameters(), lr=0.0), rho=0.3)
    x = torch.randn(4, 3)
    optimizer.step(batch_closure(model, nn.functional.mse_loss, x, torch.zeros(4, 2)))
    model.double()
    with torch.no_grad():
        model.weight += 1e-12
    home = model.weight.detach().clone()
    optimizer.step(
        batch_closure(model, nn.functional.mse_loss, x.double(), torch.zeros(4, 2).double())
    )
    assert torch.equal(model.weight, home)


# -- The whole vocabulary


def regression(rows=10, seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1)).double()
    return model, torch.randn(rows, 3).double(), torch.randn(rows, 1).double()


def flat_gradient(model, x, y):
    gradients = torch.autograd.grad(nn.functional.mse_loss(model(x), y), list(model.parameters()))
    return torch.cat([g.reshape(-1) for g in gradients])


def moved(model, offset):
    other = copy.deepcopy(model)
    with torch.no_grad():
        for p, d in zip(
            other.parameters(), offset.split([p.numel() for p in model.parameters()]), strict=True
        ):
            p.add_(d.view_as(p))
    return other


def test_a_rule_of_rows_gets_each_shards_gradient_at_its_own_offset():
    model, x, y = regression(10)
    expected = torch.zeros(0)
    for rows, share in ((slice(0, 5), 0.5), (slice(5, 10), 0.5)):
        offset = 0.2 * unit(flat_gradient(model, x[rows], y[rows]))
        part = share * flat_gradient(moved(model, offset), x[rows], y[rows])
        expected = part if expected.numel() == 0 else expected + part
    before = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    optimizer = Shards(torch.optim.SGD(model.parameters(), lr=1.0), rho=0.2)
    optimizer.step(batch_closure(model, nn.functional.mse_loss, x, y))
    after = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    torch.testing.assert_close(before - after, expected)
    assert optimizer.counts.gradients == pytest.approx(2.0)


@pytest.mark.parametrize("shards", [1, 2, 3, 10])
def test_a_step_by_shards_returns_the_loss_of_the_whole_batch(shards):
    model, x, y = regression(10)
    expected = nn.functional.mse_loss(model(x), y)
    optimizer = Shards(torch.optim.SGD(model.parameters(), lr=0.1), shards=shards)
    loss = optimizer.step(batch_closure(model, nn.functional.mse_loss, x, y))
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-12, atol=0.0)


def test_a_part_of_the_batch_after_the_whole_of_it_has_no_say_in_the_loss():
    class WholeThenParts(SharpnessAware):
        name = "whole-then-parts"

        def __init__(self, base):
            super().__init__(base, options={})

        def descent(self):
            clean = yield Evaluate()
            for rows in (slice(0, 3), slice(3, 5)):
                yield Evaluate(rows=rows)
            return clean.take()

    model, x, y = regression(10)
    expected = nn.functional.mse_loss(model(x), y).detach()
    optimizer = WholeThenParts(torch.optim.SGD(model.parameters(), lr=0.1))
    loss = optimizer.step(batch_closure(model, nn.functional.mse_loss, x, y))
    assert torch.equal(loss, expected)


def test_uneven_shards_are_counted_by_their_rows():
    model, x, y = regression(10)
    optimizer = Shards(torch.optim.SGD(model.parameters(), lr=0.1), shards=4)
    sizes = []
    for request in optimizer.passes(num_rows=10):
        sizes.append(request.num_rows)
        with evaluating(model, request):
            loss = nn.functional.mse_loss(model(x[request.rows]), y[request.rows])
            loss.backward()
        request.loss = loss.detach()
    assert sizes == [2, 2, 3, 3, 3, 3, 2, 2]
    assert optimizer.counts.gradients == pytest.approx(2.0)


def test_forwards_alone_and_losses_a_row_reach_the_rule():
    model, x, y = regression(9)
    g = flat_gradient(model, x, y)
    offset = 0.2 * unit(g)
    there = moved(model, offset)
    rise = (there(x) - y).square().mean(1) - (model(x) - y).square().mean(1)
    rows = torch.topk(rise.detach(), 5).indices
    expected = flat_gradient(there, x[rows], y[rows])
    before = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    clean_loss = nn.functional.mse_loss(model(x), y).item()
    optimizer = WorstRows(torch.optim.SGD(model.parameters(), lr=1.0), rho=0.2)
    loss = optimizer.step(batch_closure(model, nn.functional.mse_loss, x, y))
    after = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    torch.testing.assert_close(before - after, expected)
    assert loss.item() == pytest.approx(clean_loss)
    assert optimizer.counts.gradients == pytest.approx(1 + 5 / 9)
    assert optimizer.counts.forwards == 1.0
    assert optimizer.counts.total == pytest.approx(1 + 5 / 9 + 1 / 3)
    assert set(optimizer.recall("chosen").tolist()) == set(rows.tolist())


def test_a_loss_per_row_of_the_wrong_shape_is_refused():
    model, x, y = regression(9)
    optimizer = WorstRows(torch.optim.SGD(model.parameters(), lr=1.0))

    def body(_):
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        return loss

    with pytest.raises(RuntimeError, match=r"one loss a row, shape \(9,\)"):
        run_loop(optimizer, body, num_rows=9)


class Ascending(SharpnessAware):
    """AACE in miniature: away from the gradient of another loss."""

    name = "ascending"
    starts_clean = False

    def __init__(self, base, *, rho=0.1, **common):
        super().__init__(base, options={"rho": rho}, **common)

    def descent(self):
        other = yield Evaluate(ascent=True)
        worst = yield Evaluate(offset=other.take().mul_(-self.rho))
        return worst.take()


class ForwardOnly(SharpnessAware):
    """A rule that looks at the loss before it asks for the gradient."""

    name = "forward-only"

    def __init__(self, base, **common):
        super().__init__(base, options={}, **common)

    def descent(self):
        yield Evaluate(gradient=False)
        clean = yield Evaluate()
        return clean.take()


def whole_batch(model, x, y, *, backward=True):
    """A loop's body that answers every request with the mean loss of all rows."""

    def body(request):
        loss = nn.functional.mse_loss(model(x), y)
        if backward or request.gradient:
            loss.backward()
        return loss.detach()

    return body


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (Shards, r"(?s)asked for some rows.*never looked at request\.rows.*batch_closure.*for "),
        (WorstRows, r"(?s)one loss a row, shape \(10,\).*loss of shape \(\).*if request\.per_samp"),
        (
            Ascending,
            r"(?s)asked for its ascent loss.*never looked at request\.ascent.*batch_closure.*"
            r"wrong_class_divergence if request\.ascent",
        ),
        (ForwardOnly, r"(?s)asked for the loss alone.*only where request\.gradient"),
    ],
)
@pytest.mark.parametrize("how", ["loop", "closure"])
def test_a_body_that_answers_another_request_is_told_so(rule, message, how):
    model, x, y = regression(10)
    optimizer = rule(torch.optim.SGD(model.parameters(), lr=0.1))
    home = [p.detach().clone() for p in model.parameters()]
    body = whole_batch(model, x, y)
    body.num_rows = 10
    with pytest.raises(RuntimeError, match=message):
        run_loop(optimizer, body, num_rows=10) if how == "loop" else optimizer.step(body)
    assert optimizer.counts.steps == 0
    for p, h in zip(model.parameters(), home, strict=True):
        assert torch.equal(p, h)


def test_a_request_with_nothing_unusual_need_not_be_looked_at():
    model, x, y = regression(10)
    optimizer = SAM(torch.optim.SGD(model.parameters(), lr=0.1))
    run_loop(optimizer, whole_batch(model, x, y), num_rows=10)
    optimizer.step()
    body = whole_batch(model, x, y, backward=False)
    run_loop(ForwardOnly(torch.optim.SGD(model.parameters(), lr=0.1)), body)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (
            WorstRows,
            r"(?s)asks for one loss a row, which a closure without an argument cannot.*for",
        ),
        (Ascending, r"(?s)asks for its ascent loss, which a closure without.*batch_closure.*for r"),
        (ForwardOnly, r"(?s)asks for a loss without its gradient, which a closure without an arg"),
    ],
)
def test_a_closure_without_an_argument_is_refused_where_it_would_answer_something_else(
    rule, message
):
    model, x, y = regression(10)
    optimizer = rule(torch.optim.SGD(model.parameters(), lr=0.1))
    body = whole_batch(model, x, y)
    with pytest.raises(RuntimeError, match=message):
        optimizer.step(lambda: body(None))


def test_reading_a_request_is_noted_and_showing_it_is_not():
    request = Evaluate(rows=slice(0, 3), ascent=True, sync=False)
    assert repr(request).startswith("Evaluate(rows=slice(0, 3, None), gradient=True")
    assert request.unread == {"rows", "ascent", "sync"}
    assert (request.rows, request.ascent, request.sync) == (slice(0, 3), True, False)
    assert not request.unread
    later = Evaluate()
    assert not later.unread
    later.rows = torch.tensor([1])
    assert later.unread == {"rows"}


@pytest.mark.parametrize("rule", [Shards, WorstRows])
def test_a_rule_of_rows_refuses_what_cannot_serve_it_with_the_recipe(rule):
    model, x, y = regression(10)
    optimizer = rule(torch.optim.SGD(model.parameters(), lr=0.1))

    def plain():
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        return loss

    home = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(RuntimeError, match=r"(?s)num_rows.*batch_closure.*request\.rows"):
        optimizer.step(plain)

    def body(request):
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        return torch.zeros(10) if request.per_sample else loss.detach()

    with pytest.raises(RuntimeError, match="num_rows"):
        run_loop(optimizer, body)
    for p, h in zip(model.parameters(), home, strict=True):
        assert torch.equal(p, h)


def test_a_closure_that_takes_the_request_is_called_with_it_whatever_its_kind():
    q = problem()
    optimizer = SAM(sgd(q.parameters), rho=0.3)

    class Bound:
        def method(self, request):
            assert isinstance(request, Evaluate)
            return q.closure()

    optimizer.step(Bound().method)
    optimizer.step(lambda request=None: Bound().method(request))
    optimizer.step(lambda verbose=False: q.closure())  # an option of its own: no argument
    assert optimizer.counts.gradients == 6.0


def test_masks_of_rows_are_refused():
    class Masked(WorstRows):
        def descent(self):
            clean = yield Evaluate(rows=torch.tensor([True, False]))
            return clean.take()

    q = problem()
    with pytest.raises(TypeError, match="1-dim tensor of indices"):
        next(Masked(sgd(q.parameters)).passes(num_rows=2))


def test_refreshes_are_counted_apart():
    class Refreshing(Elsewhere):
        def descent(self):
            with self.refreshing():
                yield Evaluate()
                yield Evaluate(gradient=False)
            moved = yield Evaluate()
            return moved.take()

    q = problem()
    optimizer = Refreshing(sgd(q.parameters))
    for request in optimizer.passes():
        request.loss = (q.closure() if request.gradient else q.loss()).detach()
    optimizer.step()
    optimizer.charge(gradients=0.5, forwards=2.0)
    assert optimizer.counts == Counts(
        gradients=1.0, steps=1, refresh_gradients=1.5, refresh_forwards=3.0
    )
    assert optimizer.counts.total == 1 + 1.5 + 1.0


def test_only_the_first_request_is_first_and_offsets_are_relative_to_home():
    class Path(Elsewhere):
        def descent(self):
            total = None
            for length in (1.0, 2.0, 3.0):
                offset = ParameterVector(torch.full_like(p, length) for p in self.parameters)
                there = yield Evaluate(offset=offset)
                total = there.take() if total is None else total.add_(there.take())
            home = yield Evaluate()
            return total.add_(home.take())

    q = problem()
    home = q.x
    flags = []
    for request in Path(sgd(q.parameters)).passes():
        flags.append(request.first)
        request.loss = q.closure().detach()
    assert flags == [True, False, False, False]
    for length, visited in zip((1.0, 2.0, 3.0, 0.0), q.visited, strict=True):
        assert torch.equal(visited, home + length)


def test_an_offset_with_gaps_moves_only_its_own_parameters():
    class Part(Elsewhere):
        def descent(self):
            there = yield Evaluate(
                offset=ParameterVector([None, *(torch.ones_like(p) for p in self.parameters[1:])])
            )
            return there.take()

    q = problem()
    home = q.x
    Part(torch.optim.SGD(q.parameters, lr=0.0)).step(q.closure)
    assert torch.equal(q.visited[0] - home, torch.tensor([0.0, 1.0, 1.0, 1.0]).double())
    assert torch.equal(q.x, home)


def test_a_rule_that_returns_no_gradient_or_remembers_undeclared_names_is_wrong():
    class Nothing(Elsewhere):
        def descent(self):
            yield Evaluate()

    class Undeclared(Elsewhere):
        def descent(self):
            there = yield Evaluate()
            self.remember(v=1.0)
            return there.take()

    q = problem()
    with pytest.raises(TypeError, match="must return a ParameterVector"):
        Nothing(sgd(q.parameters)).step(q.closure)
    with pytest.raises(KeyError, match="remembers does not list 'v'"):
        Undeclared(sgd(q.parameters)).step(q.closure)


def test_a_rule_without_a_clean_evaluation_takes_only_policies_that_need_none():
    q = problem()
    with pytest.raises(ValueError, match="no clean evaluation"):
        Elsewhere(sgd(q.parameters), when=AdaptiveThreshold(), total_steps=9)
    optimizer = Elsewhere(sgd(q.parameters), when=Every(2))
    fired = []
    for _ in range(4):
        home = q.x
        q.visited.clear()
        optimizer.step(q.closure)
        fired.append(not torch.equal(q.visited[0], home))
    assert fired == [True, False, True, False]


def test_draws_come_slot_by_slot_from_the_rules_own_generator():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2), nn.Linear(2, 1))
    model[1].requires_grad_(False)
    optimizer = SAM(torch.optim.SGD(model.parameters(), lr=0.1), seed=4)
    torch.manual_seed(9)
    before = torch.get_rng_state()
    uniform, normal = optimizer.uniforms(3), optimizer.normals()
    assert torch.equal(torch.get_rng_state(), before)
    generator = torch.Generator().manual_seed(4)
    assert torch.equal(uniform, torch.rand(3, generator=generator, dtype=torch.float64))
    for draw, parameter in zip(normal, model.parameters(), strict=True):
        if not parameter.requires_grad:
            assert draw is None
            continue
        expected = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        assert torch.equal(draw, expected.float())


# -- Policies compose with any rule


@pytest.mark.parametrize("when", [Every(3), Coin()])
def test_any_rule_runs_under_any_policy_and_its_averages_take_every_clean_gradient(when):
    q = problem()
    optimizer = Averaging(sgd(q.parameters), rho=0.3, when=when, total_steps=10)
    m = None
    for _ in range(10):
        g = q.gradient(q.x)
        m = g if m is None else 0.9 * m + 0.1 * g
        optimizer.step(q.closure)
        torch.testing.assert_close(torch.cat(list(optimizer.recall("m"))), m)
    assert 0 < optimizer.counts.perturbed < 10
    assert optimizer.counts.gradients == 10 + optimizer.counts.perturbed


# -- Scaling, accumulation, clipping, schedules


def classification(dtype=torch.float32):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 4)).to(dtype)
    return model, torch.randn(48, 6, dtype=dtype), torch.randint(4, (48,))


RULES = {
    "sam": lambda base: SAM(base, rho=0.1),
    "looksam": lambda base: LookSAM(base, rho=0.1, every=3),
    "ae-sam": lambda base: AESAM(base, rho=0.1, total_steps=30),
    "averaging": lambda base: Averaging(base, rho=0.1),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("base", ["sgd", "adamw"])
def test_scaler_accumulation_clipping_and_schedule_match_plain_float32(rule, base):
    def make(model):
        if base == "sgd":
            return RULES[rule](sgd(model.parameters(), weight_decay=1e-3))
        return RULES[rule](torch.optim.AdamW(model.parameters(), lr=1e-2))

    model, x, y = classification()
    plain = copy.deepcopy(model)
    a, b = make(model), make(plain)
    schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(o, 30) for o in (a, b)]
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=7)
    for _ in range(30):
        for request in a.passes(num_rows=48, scale=scaler.get_scale()):
            total = torch.zeros(())
            with evaluating(model, request):
                for part_x, part_y in zip(x.chunk(3), y.chunk(3), strict=True):
                    loss = cross_entropy(model(part_x), part_y) / 3
                    if request.gradient:
                        scaler.scale(loss).backward()
                    total += loss.detach()
            request.loss = total
        scaler.unscale_(a)
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        scaler.step(a)
        scaler.update()
        schedules[0].step()
        for request in b.passes():
            loss = cross_entropy(plain(x), y)
            loss.backward()
            request.loss = loss.detach()
        nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
        b.step()
        schedules[1].step()
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        # Adam divides by the gradient's own size, which turns rounding into its direction.
        tolerance = 2e-6 if base == "sgd" else 2e-5
        torch.testing.assert_close(p, q, rtol=tolerance, atol=tolerance)
    assert a.counts == b.counts
    assert scaler.get_scale() > 2.0**10


@pytest.mark.parametrize("bad_pass", [0, 1])
@pytest.mark.parametrize("kind", [math.inf, math.nan])
def test_a_pass_that_is_not_finite_skips_the_step_and_leaves_the_averages(bad_pass, kind):
    model, x, y = classification()
    optimizer = Averaging(sgd(model.parameters()), rho=0.1)
    optimizer.step(batch_closure(model, cross_entropy, x, y))
    saved = copy.deepcopy(optimizer.state_dict())
    weights = copy.deepcopy(model.state_dict())
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for i, request in enumerate(optimizer.passes(scale=scaler.get_scale())):
        loss = cross_entropy(model(x), y)
        scaler.scale(loss).backward()
        if i == bad_pass:
            model[0].weight.grad[0, 0] = kind
        request.loss = loss.detach()
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 4.0
    assert optimizer.counts.skipped == 1
    assert optimizer.counts.steps == 1
    assert optimizer.counts.gradients == 2 + bad_pass + 1
    for name, value in model.state_dict().items():
        assert torch.equal(value, weights[name])
    now = optimizer.state_dict()
    for key in ("policy", "memory", "progress"):
        assert str(now["rule"][key]) == str(saved["rule"][key])
    assert str(now["state"]) == str(saved["state"])


def test_a_skipped_pass_without_a_scaler_makes_step_do_nothing():
    q = problem()
    home, optimizer = q.x, SAM(sgd(q.parameters), rho=0.3)
    for request in optimizer.passes(scale=1.0):
        loss = q.closure()
        q.parameters[0].grad.fill_(math.inf)
        request.loss = loss.detach()
    optimizer.step()
    assert torch.equal(q.x, home)
    assert optimizer.counts == Counts(gradients=1.0, skipped=1)


@pytest.mark.parametrize("bad_pass", [0, 1])
@pytest.mark.parametrize("what", ["loss", "gradient"])
@pytest.mark.parametrize("how", ["plain closure", "loop"])
def test_steps_that_are_not_finite_are_skipped_where_asked(bad_pass, what, how):
    q = problem()
    optimizer = Averaging(
        sgd(q.parameters), rho=0.3, when=Coin(), total_steps=9, seed=1, skip_nonfinite=True
    )
    for _ in range(3):
        optimizer.step(q.closure)
    home, saved, passes = q.x, copy.deepcopy(optimizer.state_dict()), []

    def spoiled():
        loss = q.closure()
        passes.append(loss.detach())
        if len(passes) - 1 == bad_pass:
            if what == "loss":
                return loss * math.inf
            q.parameters[1].grad[0] = math.nan
        return loss

    if how == "loop":
        for request in optimizer.passes():
            request.loss = spoiled().detach()
        nn.utils.clip_grad_norm_(q.parameters, 1.0)
        loss = optimizer.step()
    else:
        loss = optimizer.step(spoiled)
    assert len(passes) == bad_pass + 1
    assert torch.equal(q.x, home)
    assert torch.equal(loss, passes[0]) or (what == "loss" and bad_pass == 0)
    assert all(p.grad.isnan().all() for p in q.parameters)
    counts = saved["rule"]["counts"]
    assert optimizer.counts == Counts(
        **{**counts, "skipped": 1, "gradients": counts["gradients"] + bad_pass + 1}
    )
    now = optimizer.state_dict()
    for key in ("policy", "memory", "generator", "progress"):
        assert str(now["rule"][key]) == str(saved["rule"][key])
    assert str(now["state"]) == str(saved["state"])
    optimizer.step(q.closure)
    assert optimizer.counts.steps == 4
    assert not torch.equal(q.x, home)


def test_a_gradient_that_only_its_mixing_made_infinite_is_skipped_too():
    class Mixing(Elsewhere):
        remembers = ("seen",)

        def descent(self):
            clean = yield Evaluate()
            self.remember(seen=1)
            return clean.take().mul_(self.shift)

    q = problem()
    home = q.x
    optimizer = Mixing(sgd(q.parameters), shift=math.inf, skip_nonfinite=True)
    optimizer.step(q.closure)
    assert torch.equal(q.x, home)
    assert optimizer.recall("seen") is None
    assert optimizer.counts == Counts(gradients=1.0, skipped=1)


@pytest.mark.parametrize("skip", ["auto", False])
def test_a_bad_pass_is_skipped_on_the_cpu_unless_told_otherwise(skip):
    q = problem()
    optimizer = SAM(sgd(q.parameters), rho=0.3, skip_nonfinite=skip)

    def spoiled():
        loss = q.closure()
        q.parameters[0].grad.fill_(math.inf)
        return loss

    optimizer.step(spoiled)
    assert bool(torch.isfinite(q.x).all()) == (skip == "auto")
    assert optimizer.counts.skipped == (1 if skip == "auto" else 0)
    with pytest.raises(ValueError, match="skip_nonfinite must be one of auto, False, True, got"):
        SAM(sgd(q.parameters), skip_nonfinite="yes")


@pytest.mark.parametrize("name", ["looksam", "ae-looksam", "f-sam", "vasso", "previous-sam"])
def test_what_is_remembered_of_a_parameter_that_was_frozen_since_takes_no_part(name):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    x, y = torch.randn(12, 5).double(), torch.randint(3, (12,))
    optimizer = build(name, sgd(net.parameters()), total_steps=9, rho=0.2)
    answer, lengths = batch_closure(net, cross_entropy, x, y), []

    def flat():
        return torch.cat([p.detach().flatten() for p in net.parameters()])

    def closure(request):
        lengths.append(float((flat() - home).norm()))
        return answer(request)

    for step in range(6):
        if step == 2:
            net[0].requires_grad_(False)
            frozen = net[0].weight.clone()
        home = flat()
        optimizer.step(closure)
    assert torch.equal(net[0].weight, frozen)
    away = [length for length in lengths if length > 0.0]
    assert away == pytest.approx([0.2] * len(away), rel=1e-9)


def test_workers_reduce_the_same_slots_whichever_of_them_have_a_gradient(monkeypatch):
    def reduced(present, elsewhere):
        shapes = []

        def all_reduce(tensor):
            shapes.append(tuple(tensor.shape))
            if len(shapes) == 1:
                tensor.add_(torch.tensor(elsewhere))

        monkeypatch.setattr(driver, "_world_size", lambda: 2)
        monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
        parameters = [nn.Parameter(torch.ones(k)) for k in (1, 2, 3)]
        optimizer = SAM(sgd(parameters))
        vector = ParameterVector(
            torch.ones_like(p) if here else None
            for p, here in zip(parameters, present, strict=True)
        )
        mean = optimizer.over_workers(vector)
        return shapes, [None if tensor is None else tensor[0].item() for tensor in mean]

    one, mine = reduced([1.0, 0.0, 0.0], [0.0, 1.0, 0.0])
    other, _ = reduced([0.0, 1.0, 0.0], [1.0, 0.0, 0.0])
    assert one == other == [(3,), (1,), (2,)]
    assert mine == [0.5, 0.0, None]


def test_a_policy_may_be_given_by_its_word_and_nothing_else_stands_for_one():
    q = problem()
    optimizer = SAM(sgd(q.parameters), when="every-2")
    for _ in range(4):
        optimizer.step(q.closure)
    assert optimizer.counts.perturbed == 2
    with pytest.raises(TypeError, match="when must be a policy or its word"):
        SAM(sgd(q.parameters), when=3)


def test_a_group_may_have_a_schedule_of_its_own():
    def groups(q):
        return [{"params": q.parameters[:1], "rho": Linear(start=0.2, end=0.0)},
                {"params": q.parameters[1:]}]  # fmt: skip

    with pytest.raises(ValueError, match="needs total_steps, because a group's rho=Linear"):
        SAM(sgd(groups(problem())), rho=0.1)
    whole, first, second = problem(), problem(), problem()
    reference = SAM(sgd(groups(whole)), rho=0.1, total_steps=6)
    for _ in range(6):
        reference.step(whole.closure)
    begun = SAM(sgd(groups(first)), rho=0.1, total_steps=6)
    for _ in range(3):
        begun.step(first.closure)
    resumed = SAM(sgd(groups(second)), rho=0.1, total_steps=6)
    resumed.load_state_dict(through_disk(begun.state_dict()))
    with torch.no_grad():
        for there, here in zip(second.parameters, first.parameters, strict=True):
            there.copy_(here)
    for _ in range(3):
        resumed.step(second.closure)
    assert torch.equal(second.x, whole.x)


def test_a_group_that_joins_is_checked_like_the_first():
    q = problem()
    optimizer = SAM(sgd(q.parameters))
    with pytest.raises(ValueError, match="rho must be a number >= 0"):
        optimizer.add_param_group({"params": [torch.ones(2, requires_grad=True)], "rho": -1.0})


def test_a_policy_with_other_settings_does_not_take_the_state():
    q = problem()
    saved = build("sam", sgd(q.parameters), when="every-5").state_dict()
    with pytest.raises(ValueError, match=r"saved policy 'every' has k=5 \(here 2\)"):
        build("sam", sgd(q.parameters), when="every-2").load_state_dict(saved)


def test_loaded_options_must_fit_the_run_and_leave_it_as_it_was_where_they_do_not():
    q = problem()
    rising = build("tsam:schedule=rising", sgd(q.parameters), total_steps=9)
    fresh = build("tsam", sgd(q.parameters))
    with pytest.raises(ValueError, match="needs total_steps, because schedule='rising'"):
        fresh.load_state_dict(rising.state_dict())
    assert fresh.schedule == "constant"


def test_a_step_whose_base_fails_leaves_no_trace():
    q = problem()
    optimizer = build("f-sam:when=coin", sgd(q.parameters), total_steps=9, seed=3)
    optimizer.step(q.closure)
    before = optimizer.state_dict()["rule"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optimizer.base, "step", lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            optimizer.step(q.closure)
    optimizer.zero_grad()
    after = optimizer.state_dict()["rule"]
    assert torch.equal(before["generator"], after["generator"])
    assert before["counts"]["steps"] == after["counts"]["steps"]


def test_whole_numbers_may_come_as_floats_and_numbers_from_numpy():
    q = problem()
    optimizer = build("looksam", sgd(q.parameters), every=np.int64(3), rho=np.float32(0.5))
    assert type(optimizer.every) is int
    assert type(optimizer.rho) is float
    assert type(build("tsam", sgd(q.parameters), samples=3.0).samples) is int


def test_each_part_of_a_batch_draws_its_own_dropout_and_keeps_it_in_later_passes():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 40), nn.Dropout(0.5), nn.Linear(40, 2)).double()
    masks = []
    model[1].register_forward_hook(lambda m, i, out: masks.append((out == 0).clone()))
    x, y = torch.ones(8, 4).double(), torch.randint(2, (8,))
    optimizer = build("msam", sgd(model.parameters()), shards=4)
    torch.manual_seed(5)
    optimizer.step(batch_closure(model, cross_entropy, x, y))
    clean, worst = masks[0::2], masks[1::2]
    assert all(torch.equal(a, b) for a, b in zip(clean, worst, strict=True))
    assert not any(torch.equal(clean[0], other) for other in clean[1:])
    after = torch.rand(1)
    torch.manual_seed(5)
    for part in x.split(2):
        model(part)
    assert torch.equal(torch.rand(1), after)  # as if the batch had gone through once


def test_a_loss_that_is_not_finite_lowers_the_scale_though_the_gradient_is():
    model, x, y = classification()
    optimizer = SAM(sgd(model.parameters()))
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for request in optimizer.passes(scale=scaler.get_scale()):
        loss = cross_entropy(model(x), y)
        scaler.scale(loss).backward()
        request.loss = loss.detach() * math.inf
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 4.0
    assert optimizer.counts == Counts(gradients=1.0, skipped=1)


def test_a_skipped_ascent_loss_leaves_a_loss_that_is_no_number():
    q = problem()
    optimizer = Ascending(sgd(q.parameters), skip_nonfinite=True)

    def body(request):
        return q.closure() * (bad if request.ascent else 1.0)

    bad = math.nan
    assert math.isnan(optimizer.step(body))
    bad = 1.0
    home = q.loss().item()
    assert optimizer.step(body) != home  # of the training loss, which came second, elsewhere
    assert optimizer.counts == Counts(gradients=3.0, steps=1, perturbed=0, skipped=1)


def test_a_forward_that_is_not_finite_is_left_for_the_scaler_to_see():
    model, x, y = regression(4)
    optimizer = WorstRows(torch.optim.SGD(model.parameters(), lr=0.1))
    scaler = torch.amp.GradScaler("cpu")
    for request in optimizer.passes(num_rows=4, scale=scaler.get_scale()):
        losses = (model(x) - y).square().mean(1)
        if request.gradient:
            scaler.scale(losses.mean()).backward()
        request.loss = losses.detach() if request.gradient else losses.detach() * math.inf
    scaler.step(optimizer)
    scaler.update()
    assert optimizer.counts.skipped == 1
    assert optimizer.counts.steps == 0
    assert optimizer.recall("chosen") is None


def test_a_skipped_step_repeats_no_average_and_no_draw():
    def run(skip):
        q = problem()
        optimizer = Averaging(sgd(q.parameters), rho=0.3, when=Coin(), total_steps=20, seed=1)
        for t in range(20):
            if t in skip:
                for request in optimizer.passes(scale=1.0):
                    loss = q.closure()
                    q.parameters[0].grad.fill_(math.nan)
                    request.loss = loss.detach()
                optimizer.step()
            optimizer.step(q.closure)
        return q.x

    assert torch.equal(run({3, 11}), run(set()))


@pytest.mark.parametrize(
    "make",
    [
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, max_lr=0.2, total_steps=12),
        lambda o: torch.optim.lr_scheduler.StepLR(o, 3),
        lambda o: torch.optim.lr_scheduler.SequentialLR(
            o,
            [
                torch.optim.lr_scheduler.LinearLR(o, total_iters=3),
                torch.optim.lr_scheduler.CosineAnnealingLR(o, 8),
            ],
            [3],
        ),
    ],
)
@pytest.mark.parametrize("on", ["rule", "base"])
def test_schedulers_drive_the_base_without_a_warning(make, on):
    q, plain = problem(), problem()
    optimizer = SAM(sgd(q.parameters), rho=0.0)
    reference = sgd(plain.parameters)
    mine, theirs = make(optimizer if on == "rule" else optimizer.base), make(reference)
    for _ in range(10):
        optimizer.step(q.closure)
        mine.step()
        plain.closure()
        reference.step()
        theirs.step()
        assert optimizer.param_groups[0]["lr"] == reference.param_groups[0]["lr"]
    assert torch.equal(q.x, plain.x)


def test_hooks_run_once_a_step_on_the_rule_and_on_the_base():
    q = problem()
    optimizer = SAM(sgd(q.parameters), rho=0.1)
    calls = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("rule before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("rule after"))
    optimizer.base.register_step_post_hook(lambda *_: calls.append("base after"))
    optimizer.register_state_dict_pre_hook(lambda *_: calls.append("saving"))
    optimizer.register_state_dict_post_hook(lambda _o, s: {**s, "extra": 1})
    optimizer.register_load_state_dict_pre_hook(lambda _o, s: s.pop("extra") and s)
    optimizer.register_load_state_dict_post_hook(lambda *_: calls.append("loaded"))
    optimizer.step(q.closure)
    state = optimizer.state_dict()
    assert state["extra"] == 1
    optimizer.load_state_dict(state)
    assert calls == ["rule before", "base after", "rule after", "saving", "loaded"]


def test_groups_state_and_defaults_are_the_bases_own():
    q = problem()
    base = torch.optim.AdamW(q.parameters, lr=0.01)
    optimizer = SAM(base)
    assert optimizer.param_groups is base.param_groups
    assert optimizer.state is base.state
    assert optimizer.defaults is base.defaults
    optimizer.step(q.closure)
    assert set(base.state[q.parameters[0]]) == {"step", "exp_avg", "exp_avg_sq"}
    extra = nn.Parameter(torch.ones(2))
    optimizer.add_param_group({"params": [extra]})
    assert base.param_groups[1]["params"] == [extra]
    assert "SAM(rho=0.05, scale='unit', when=always) over AdamW" in repr(optimizer)


def test_a_group_added_later_joins_the_averages():
    q = problem()
    optimizer = LookSAM(sgd(q.parameters), rho=0.3, every=2)
    optimizer.step(q.closure)
    extra = nn.Parameter(torch.ones(2, dtype=torch.float64))
    optimizer.add_param_group({"params": [extra]})

    def closure():
        optimizer.zero_grad()
        loss = q.loss() + extra.square().sum() * q.parameters[0].sum()
        loss.backward()
        return loss

    for _ in range(3):
        optimizer.step(closure)
    assert not torch.equal(extra, torch.ones(2, dtype=torch.float64))
    assert optimizer.recall("v").tensors[2] is not None


@pytest.mark.parametrize(
    ("base", "message"),
    [
        (lambda p: None, "must be a torch optimizer, got NoneType"),
        (lambda p: torch.optim.LBFGS(p), "LBFGS evaluates the loss itself"),
        (lambda p: SAM(torch.optim.SGD(p, lr=0.1)), "sharpness-aware itself"),
    ],
)
def test_bases_that_cannot_be_one_are_refused(base, message):
    with pytest.raises(TypeError, match=message):
        SAM(base([nn.Parameter(torch.ones(1))]))


def test_a_base_that_maximises_is_refused():
    w = [nn.Parameter(torch.ones(1))]
    with pytest.raises(ValueError, match=r"maximize=True.*negate the loss"):
        SAM(torch.optim.SGD(w, lr=0.1, maximize=True))
    with pytest.raises(ValueError, match="maximize=True"):
        SAM(torch.optim.Adam([{"params": w, "maximize": True}]))
    optimizer = SAM(torch.optim.SGD(w, lr=0.1))
    with pytest.raises(ValueError, match="maximize=True"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))], "maximize": True})
    assert len(optimizer.param_groups) == 1


def test_weights_in_half_precision_are_warned_about():
    parameters = [nn.Parameter(torch.ones(1, dtype=torch.bfloat16))]
    with pytest.warns(UserWarning, match=r"torch\.bfloat16 are too coarse"):
        SAM(torch.optim.SGD(parameters, lr=0.1))


def test_autocast_around_the_whole_loop_does_not_reuse_casts_of_the_old_weights():
    model, x, y = classification()
    with torch.no_grad():
        model[0].weight.mul_(3.0)
    losses = []
    optimizer = SAM(sgd(model.parameters()), rho=5.0)
    with torch.autocast("cpu", torch.bfloat16):
        for request in optimizer.passes():
            loss = cross_entropy(model(x).float(), y)
            loss.backward()
            losses.append(loss.item())
            request.loss = loss.detach()
    assert losses[1] > 1.5 * losses[0]


# -- State


def trained(rule, base, steps, q=None):
    q = q or problem()
    optimizer = rule(base(q.parameters))
    for _ in range(steps):
        optimizer.step(q.closure)
    return q, optimizer


BASES = {
    "sgd": lambda p: sgd(p, weight_decay=1e-2),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2),
}
STATEFUL = {
    **RULES,
    "looksam tensor": lambda base: LookSAM(base, rho=0.1, every=4, per="tensor"),
    "coin": lambda base: SAM(base, rho=0.1, when=Coin(), total_steps=30),
    "ae on averaging": lambda base: Averaging(
        base, rho=0.1, when=AdaptiveThreshold(), total_steps=30
    ),
}


def through_disk(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("rule", STATEFUL)
@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("when", ["between steps", "inside a loop", "before its step"])
def test_a_saved_run_continues_bit_for_bit(rule, base, when):
    make, base = STATEFUL[rule], BASES[base]
    whole, reference = trained(make, base, 13)
    q, optimizer = trained(make, base, 6)
    held = [halfway(optimizer, q)] if when == "inside a loop" else []
    if when == "before its step":
        for request in optimizer.passes():
            request.loss = q.closure().detach()
    state = through_disk(optimizer.state_dict())
    held.clear()
    resumed = problem()
    with torch.no_grad():
        for p, kept in zip(resumed.parameters, q.parameters, strict=True):
            p.copy_(kept)
    optimizer = make(base(resumed.parameters))
    optimizer.load_state_dict(state)
    for _ in range(7):
        optimizer.step(resumed.closure)
    assert torch.equal(resumed.x, whole.x)
    assert optimizer.counts.steps == 13
    if when == "between steps":
        assert optimizer.counts == reference.counts


@pytest.mark.parametrize("rule", STATEFUL)
def test_removing_any_one_key_of_the_saved_rule_state_raises(rule):
    make = STATEFUL[rule]
    _, optimizer = trained(make, BASES["sgd"], 5)
    state = optimizer.state_dict()

    def paths(node, path=()):
        for key, value in node.items():
            yield (*path, key)
            if isinstance(value, dict) and (*path, key) not in [("memory", "v"), ("memory", "m")]:
                yield from paths(value, (*path, key))

    for path in [None, *paths(state["rule"])]:
        broken = {k: v for k, v in copy.deepcopy(state).items() if path or k != "rule"}
        if path:
            node = broken["rule"]
            for key in path[:-1]:
                node = node[key]
            del node[path[-1]]
        _q, fresh = trained(make, BASES["sgd"], 0)
        before = str(fresh.state_dict())
        with pytest.raises(ValueError, match=r"missing|no 'rule'|saved policy"):
            fresh.load_state_dict(broken)
        assert str(fresh.state_dict()) == before, f"{path} half loaded"


def test_another_rules_state_is_refused():
    _, optimizer = trained(RULES["sam"], BASES["sgd"], 1)
    _, other = trained(RULES["looksam"], BASES["sgd"], 1)
    with pytest.raises(ValueError, match="the saved state is SAM's, this optimizer is LookSAM"):
        other.load_state_dict(optimizer.state_dict())
    with pytest.raises(ValueError, match="saved policy is 'always', this optimizer has 'coin'"):
        trained(STATEFUL["coin"], BASES["sgd"], 0)[1].load_state_dict(optimizer.state_dict())


def test_an_option_changed_on_the_way_is_saved_and_restored():
    _q, optimizer = trained(RULES["sam"], BASES["sgd"], 2)
    optimizer.rho = 0.7
    optimizer.progress = 0.25
    _, fresh = trained(RULES["sam"], BASES["sgd"], 0)
    with pytest.warns(UserWarning, match="saved options take the place"):
        fresh.load_state_dict(through_disk(optimizer.state_dict()))
    assert fresh.rho == 0.7
    assert fresh.progress == 0.0  # assigned before a step, not remembered past it
    endless = SAM(sgd(problem().parameters), total_steps=math.inf)
    endless.progress = 0.25
    other = SAM(sgd(problem().parameters), total_steps=math.inf)
    other.load_state_dict(endless.state_dict())
    assert other.progress == 0.25


def test_saved_options_that_replace_others_are_told_in_one_warning_and_equal_ones_are_not():
    saved = SAM(sgd(problem().parameters), rho=0.2, scale="gradient").state_dict()
    fresh = SAM(sgd(problem().parameters), rho=0.5)
    words = r"rho=0\.2 \(given here: 0\.5\), scale='gradient' \(given here: 'unit'\); set them aft"
    with pytest.warns(UserWarning, match=words) as warned:
        fresh.load_state_dict(through_disk(saved))
    assert len(warned) == 1
    assert Path(warned[0].filename) == Path(__file__)
    assert (fresh.rho, fresh.scale) == (0.2, "gradient")
    falling = Linear(0.2, 0.0)
    for rho in (0.2, falling):  # warnings are errors here
        state = SAM(sgd(problem().parameters), rho=rho, total_steps=9).state_dict()
        same = SAM(sgd(problem().parameters), rho=rho, total_steps=9)
        same.load_state_dict(through_disk(state))
        assert same.rho == rho
    with pytest.warns(UserWarning, match=r"rho=Linear\(.*\) \(given here: 0\.1\)"):
        SAM(sgd(problem().parameters), rho=0.1, total_steps=9).load_state_dict(state)


def test_a_saved_dict_does_not_change_with_the_run():
    _, optimizer = trained(RULES["averaging"], BASES["sgd"], 3)
    rule = optimizer.state_dict()["rule"]
    before = copy.deepcopy(rule)
    q = problem()
    optimizer2 = RULES["averaging"](BASES["sgd"](q.parameters))
    optimizer2.load_state_dict({**optimizer.state_dict()})
    for _ in range(3):
        optimizer2.step(q.closure)
    assert str(rule) == str(before)


@pytest.mark.parametrize("rule", STATEFUL)
@pytest.mark.parametrize("copies", ["deepcopy", "pickle"])
@pytest.mark.parametrize("inside", [False, True])
def test_a_copy_continues_like_the_original_also_when_made_inside_a_loop(rule, copies, inside):
    whole, _ = trained(STATEFUL[rule], BASES["adamw"], 9)
    q, optimizer = trained(STATEFUL[rule], BASES["adamw"], 4)
    home = q.x
    held = [halfway(optimizer, q)] if inside else []
    pair = (q, optimizer)
    twin_q, twin = copy.deepcopy(pair) if copies == "deepcopy" else pickle.loads(pickle.dumps(pair))
    assert torch.equal(twin_q.x, home)
    for _ in range(5):
        twin.step(twin_q.closure)
    assert torch.equal(twin_q.x, whole.x)
    assert twin.base.param_groups[0]["params"][0] is twin_q.parameters[0]
    optimizer.zero_grad()  # gives the loop up, finished or not
    held.clear()
    for _ in range(5):
        optimizer.step(q.closure)
    assert torch.equal(q.x, whole.x)


def test_a_copy_has_its_own_scheduler_wrapper_and_hooks():
    q, optimizer = trained(RULES["sam"], BASES["sgd"], 1)
    torch.optim.lr_scheduler.StepLR(optimizer, 2)
    optimizer.register_step_post_hook(lambda *_: pytest.fail("the original's hook"))
    twin_q, twin = copy.deepcopy((q, optimizer))
    before = q.x
    twin.step(twin_q.closure)
    assert torch.equal(q.x, before)
    assert not torch.equal(twin_q.x, before)


# -- No waiting for an accelerator


def test_no_rule_reads_a_number_back_outside_its_policy(monkeypatch):
    q = problem()
    # as on an accelerator, where nobody looks whether a pass is finite
    rules = (SAM, LookSAM, Averaging)
    optimizers = [rule(sgd(q.parameters), skip_nonfinite=False) for rule in rules]

    def refuse(self, *_):
        raise AssertionError("a value was read back to the host")

    for optimizer in optimizers:
        optimizer.step(q.closure)
        with monkeypatch.context() as patch:
            for reading in ("item", "__float__", "__bool__", "tolist", "__int__"):
                patch.setattr(torch.Tensor, reading, refuse)
            optimizer.step(q.closure)
    adaptive = AESAM(sgd(q.parameters), total_steps=5)
    monkeypatch.setattr(torch.Tensor, "__float__", refuse)
    with pytest.raises(AssertionError, match="read back"):
        adaptive.step(q.closure)


def test_the_local_ascent_is_the_global_one_in_a_single_process():
    one, other = problem(), problem()
    a = SAM(sgd(one.parameters), rho=0.3, ascent="local")
    b = SAM(sgd(other.parameters), rho=0.3)
    assert a.synced
    for _ in range(3):
        a.step(one.closure)
        b.step(other.closure)
    assert torch.equal(one.x, other.x)
    with pytest.raises(ValueError, match="keeps the clean gradient"):
        Averaging(sgd(one.parameters), ascent="local")
