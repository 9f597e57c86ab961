"""Objective: value, gradient and Hessian product against dense autograd and closed forms."""

import copy
import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call, hessian
from torch.nn import functional as F

from landscape import (
    CentralDifference,
    EmpiricalFisher,
    GaussNewton,
    Hessian,
    Objective,
    Remainder,
    lanczos,
)


def reference_net(dtype=torch.float64):
    """The net of the peers' table: Linear(5,6)-Tanh-Linear(6,3)."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).to(dtype)


def reference_data(num=50, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(num, 5, generator=generator, dtype=torch.float64).to(dtype)
    return x, torch.randint(3, (num,), generator=generator)


def uneven(x, y, cuts=(20, 23, 7)):
    return list(zip(x.split(cuts), y.split(cuts), strict=True))


def dense_hessian(objective, model, loss, x, y):
    def value(theta):
        return loss(functional_call(model, objective.space.unflatten(theta), (x,)), y)

    return hessian(value)(objective.theta)


def losses():
    _, y = reference_data()
    soft = torch.softmax(torch.randn(50, 3, generator=torch.Generator().manual_seed(2)), 1).double()
    weight = torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64)
    ignored = y.clone()
    ignored[::4] = 1
    return {
        "cross-entropy": (F.cross_entropy, y),
        "cross-entropy-module": (nn.CrossEntropyLoss(), y),
        "weighted": (nn.CrossEntropyLoss(weight=weight), y),
        "smoothed": (partial(F.cross_entropy, label_smoothing=0.1), y),
        "ignoring": (nn.CrossEntropyLoss(ignore_index=1), ignored),
        "probabilities": (F.cross_entropy, soft),
        "mse": (F.mse_loss, soft),
        "bce": (F.binary_cross_entropy_with_logits, (soft > 0.3).double()),
        "own": (lambda out, target: ((out - target) ** 2).sum(1).mean(), soft),
    }


@pytest.mark.parametrize("name", list(losses()))
def test_uneven_batches_give_the_loss_gradient_and_product_of_the_whole(name):
    loss, y = losses()[name]
    x, _ = reference_data()
    model = reference_net()
    objective = Objective(model, loss, uneven(x, y))
    whole = loss(model(x), y)
    gradient = torch.autograd.grad(whole, list(model.parameters()))
    theta = objective.theta
    assert objective.value(theta) == pytest.approx(float(whole.detach()), rel=1e-13)
    assert torch.allclose(objective.gradient(theta), objective.space.flatten(gradient), atol=1e-14)
    H = dense_hessian(objective, model, loss, x, y)
    v = torch.randn(57, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    assert torch.allclose(objective.hvp(theta, v), H @ v, atol=1e-13)


@pytest.mark.parametrize(
    ("loss", "target"),
    [
        (partial(F.cross_entropy, reduction="sum"), "classes"),
        (nn.CrossEntropyLoss(reduction="sum"), "classes"),
        (nn.MSELoss(reduction="sum"), "values"),
        (lambda out, t: F.binary_cross_entropy_with_logits(out, t, reduction="sum"), "values"),
    ],
)
def test_a_loss_that_sums_is_recognised_and_divided_by_its_terms(loss, target):
    x, y = reference_data()
    y = y if target == "classes" else torch.rand(50, 3, dtype=torch.float64)
    model = reference_net()
    objective = Objective(model, loss, uneven(x, y))
    terms = 50 if target == "classes" else 150
    assert objective.reduction == "sum"
    assert objective.num_terms == terms
    expected = float(loss(model(x), y).detach()) / terms
    assert objective.value(objective.theta) == pytest.approx(expected, rel=1e-13)


def test_a_language_models_tokens_are_the_terms_and_ignored_ones_are_not():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 9)).double()

    def loss(logits, targets):
        return F.cross_entropy(logits.transpose(1, 2), targets)

    tokens = torch.randint(9, (6, 5))
    targets = torch.randint(9, (6, 5))
    targets[0, :4] = -100
    objective = Objective(model, loss, [(tokens[:2], targets[:2]), (tokens[2:], targets[2:])])
    whole = float(loss(model(tokens), targets).detach())
    right = (model(tokens).argmax(-1) == targets) & (targets != -100)
    assert objective.num_terms == 26
    assert objective.value(objective.theta) == pytest.approx(whole, rel=1e-13)
    assert objective.evaluate(objective.theta).accuracy == pytest.approx(float(right.sum()) / 26)


def test_a_batch_without_a_single_term_is_left_out_and_not_a_nan():
    x, y = reference_data()
    y = torch.cat([torch.full((20,), -100), y[20:]])
    objective = Objective(reference_net(), F.cross_entropy, uneven(x, y))
    expected = float(F.cross_entropy(reference_net()(x[20:]), y[20:]).detach())
    assert objective.value(objective.theta) == pytest.approx(expected, rel=1e-13)


def test_batches_of_any_other_form_call_the_loss_with_the_bound_model():
    x, y = reference_data()
    model = reference_net()
    whole = Objective(model, F.cross_entropy, [(x, y)])

    def loss(call, batch):
        return F.cross_entropy(call(batch["x"]), batch["y"]), len(batch["y"])

    split = [{"x": a, "y": b} for a, b in uneven(x, y)]
    objective = Objective(model, loss, split)
    theta = objective.theta + 0.1
    assert objective.value(theta) == pytest.approx(whole.value(theta), rel=1e-13)
    v = torch.ones_like(theta)
    assert torch.allclose(objective.hvp(theta, v), whole.hvp(theta, v), atol=1e-14)


def test_a_loss_may_name_its_number_of_terms():
    data = [torch.tensor([1.0, 2.0]), torch.tensor([5.0])]
    model = nn.Linear(1, 1, bias=False)
    nn.init.ones_(model.weight)
    objective = Objective(model, lambda call, x: (call(x[:, None]).mean(), 10 * len(x)), data)
    assert objective.num_terms == 30
    assert objective.value(objective.theta) == pytest.approx((1.5 * 20 + 5 * 10) / 30)


def test_the_second_form_of_a_batch_with_a_dict_of_inputs_reaches_the_model_by_keyword():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(2.0))

        def forward(self, *, a, b):
            return self.scale * (a - b)

    a, b = torch.ones(4), torch.zeros(4)
    objective = Objective(Scaled(), F.mse_loss, [({"a": a, "b": b}, torch.zeros(4))])
    assert objective.value(objective.theta) == 4.0


def test_a_loss_coupled_across_rows_is_refused_for_several_batches_only():
    def coupled(out, target):
        return torch.logsumexp(out.flatten(), 0)

    x, y = reference_data()
    assert Objective(reference_net(), coupled, [(x, y)]).num_batches == 1
    with pytest.raises(ValueError, match="neither the mean nor the sum over the terms"):
        Objective(reference_net(), coupled, uneven(x, y))


def test_a_loss_without_reduction_is_refused():
    x, y = reference_data()
    with pytest.raises(ValueError, match=r"must return one number, got \(50,\)"):
        Objective(reference_net(), nn.CrossEntropyLoss(reduction="none"), [(x, y)])


def test_no_data_is_refused():
    with pytest.raises(ValueError, match="hold no batch"):
        Objective(reference_net(), F.cross_entropy, [])


class Everything(nn.Module):
    """Batch norm, dropout, a tied, a frozen and an unused parameter, an integer buffer."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(5, 5)
        self.norm = nn.BatchNorm1d(5)
        self.drop = nn.Dropout(0.5)
        self.outer = nn.Linear(5, 5)
        self.outer.weight = self.inner.weight
        self.unused = nn.Linear(2, 2)
        self.head = nn.Linear(5, 3)
        self.head.bias.requires_grad_(False)
        self.register_buffer("count", torch.zeros(1, dtype=torch.long))

    def forward(self, x):
        self.count += 1
        return self.head(self.drop(torch.tanh(self.outer(self.norm(self.inner(x))))))


def fingerprint(model):
    """Everything that a measurement could change, as bytes and flags."""
    return (
        {k: v.clone() for k, v in model.state_dict().items()},
        [(m.training, getattr(m, "track_running_stats", None)) for m in model.modules()],
        [(p.requires_grad, None if p.grad is None else p.grad.clone()) for p in model.parameters()],
        [id(p) for p in model.parameters()],
        torch.get_rng_state(),
    )


def assert_same(before, after):
    assert before[0].keys() == after[0].keys()
    assert all(torch.equal(before[0][k], after[0][k]) for k in before[0])
    assert before[1] == after[1]
    for (flag, grad), (flag2, grad2) in zip(before[2], after[2], strict=True):
        assert flag == flag2
        assert (grad is None) == (grad2 is None)
        assert grad is None or torch.equal(grad, grad2)
    assert before[3] == after[3]
    assert torch.equal(before[4], after[4])


@pytest.mark.parametrize("batch_norm", ["eval", "batch"])
@pytest.mark.parametrize("dtype", [None, torch.float64])
def test_the_callers_model_and_random_state_stay_the_same_bits(batch_norm, dtype):
    torch.manual_seed(0)
    model = Everything()
    model(torch.randn(8, 5)).sum().backward()
    model.norm.eval()  # a mixed mode must come back mixed
    x, y = reference_data(dtype=torch.float32)
    before = fingerprint(model)
    objective = Objective(model, F.cross_entropy, uneven(x, y), batch_norm=batch_norm, dtype=dtype)
    v = torch.ones_like(objective.theta)
    objective.evaluate(objective.theta + 1)
    objective.gradient(objective.theta + 1)
    objective.hvp(objective.theta + 1, v)
    assert_same(before, fingerprint(model))


def test_the_model_stays_the_same_after_an_exception():
    class Moody(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(5)
            self.head = nn.Linear(5, 3)

        def forward(self, x):
            out = self.head(self.norm(x))
            if float(self.head.weight.detach().sum()) > 100:
                raise RuntimeError("too large")
            return out

    torch.manual_seed(0)
    model = Moody()
    x, y = reference_data(dtype=torch.float32)
    objective = Objective(model, F.cross_entropy, [(x, y)])
    before = fingerprint(model)
    with pytest.raises(RuntimeError, match="too large"):
        objective.gradient(objective.theta + 100)
    assert_same(before, fingerprint(model))


def test_a_model_that_cannot_be_copied_is_used_itself_and_its_flags_come_back():
    torch.manual_seed(0)
    model = Everything()
    model.cached = model.head.weight * 2  # a tensor made by autograd: deepcopy refuses it
    model.train()
    before = [m.training for m in model.modules()]
    x, y = reference_data(dtype=torch.float32)
    with pytest.warns(UserWarning, match="made by autograd"):
        objective = Objective(model, F.cross_entropy, [(x, y)])
    objective.gradient(objective.theta)
    assert [m.training for m in model.modules()] == before
    del model.cached
    assert objective.value(objective.theta) == pytest.approx(
        Objective(model, F.cross_entropy, [(x, y)]).value(objective.theta)
    )


def test_frozen_unused_and_tied_parameters_are_told_apart():
    torch.manual_seed(0)
    objective = Objective(Everything(), F.cross_entropy, [reference_data(dtype=torch.float32)])
    assert objective.frozen == ("head.bias",)
    assert objective.unused == ("unused.weight", "unused.bias")
    assert objective.space.tied == {"outer.weight": "inner.weight"}
    pieces = objective.space.unflatten(objective.gradient(objective.theta))
    assert torch.count_nonzero(pieces["unused.weight"]) == 0
    product = objective.space.unflatten(
        objective.hvp(objective.theta, torch.ones_like(objective.theta))
    )
    assert torch.count_nonzero(product["unused.bias"]) == 0
    assert torch.count_nonzero(product["inner.weight"]) > 0


def test_dropout_left_on_raises_at_construction_and_fixed_seeds_cure_it():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(5, 3)

        def forward(self, x):
            return self.head(F.dropout(x, training=True))

    x, y = reference_data(dtype=torch.float32)
    torch.manual_seed(0)
    model = Noisy()
    with pytest.raises(ValueError, match="random numbers in eval mode"):
        Objective(model, F.cross_entropy, uneven(x, y))
    objective = Objective(model, F.cross_entropy, uneven(x, y), fix_seeds=0)
    assert objective.value(objective.theta) == objective.value(objective.theta)
    other = Objective(model, F.cross_entropy, uneven(x, y), fix_seeds=9)
    assert objective.value(objective.theta) != other.value(objective.theta)


def test_a_subset_keeps_the_other_parameters_where_they_are():
    x, y = reference_data()
    model = reference_net()
    full = Objective(model, F.cross_entropy, [(x, y)])
    head = Objective(model, F.cross_entropy, [(x, y)], parameters="2.*")
    assert head.num_parameters == 21
    assert head.value(head.theta) == full.value(full.theta)
    assert torch.equal(head.gradient(head.theta), full.gradient(full.theta)[36:])
    v = torch.randn(21, dtype=torch.float64)
    padded = torch.cat([torch.zeros(36, dtype=torch.float64), v])
    expected = full.hvp(full.theta, padded)[36:]
    assert torch.allclose(head.hvp(head.theta, v), expected, atol=1e-15)


def test_float64_arithmetic_on_a_float32_model_equals_the_converted_model():
    x, y = reference_data(dtype=torch.float32)
    model = reference_net(torch.float32)
    objective = Objective(model, F.cross_entropy, uneven(x, y), dtype=torch.float64)
    double = copy.deepcopy(model).double()
    expected = float(F.cross_entropy(double(x.double()), y).detach())
    assert objective.theta.dtype == torch.float64
    assert objective.value(objective.theta) == pytest.approx(expected, rel=1e-14)
    assert next(model.parameters()).dtype == torch.float32


def test_a_linear_loss_has_a_zero_product_and_a_constant_one_a_zero_gradient():
    x, _ = reference_data()
    model = nn.Linear(5, 3).double()
    objective = Objective(model, lambda out, t: out.mean(), [(x, torch.zeros(50, 3))])
    v = torch.ones_like(objective.theta)
    assert torch.count_nonzero(objective.hvp(objective.theta, v)) == 0
    flat = Objective(model, lambda out, t: t.mean(), [(x, torch.zeros(50, 3))])
    assert torch.count_nonzero(flat.gradient(flat.theta)) == 0
    assert flat.unused == flat.space.names


def test_a_nan_at_some_theta_is_returned_and_not_raised():
    x, y = reference_data()
    objective = Objective(reference_net(), F.cross_entropy, [(x, y)])
    assert math.isnan(objective.evaluate(torch.full_like(objective.theta, math.nan)).loss)


def test_attention_has_a_hessian_product():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv = nn.Linear(4, 12)
            self.head = nn.Linear(4, 3)

        def forward(self, x):
            q, k, v = self.qkv(x).chunk(3, -1)
            return self.head(F.scaled_dot_product_attention(q, k, v).mean(1))

    torch.manual_seed(0)
    model = Attention().double()
    x, y = torch.randn(7, 5, 4, dtype=torch.float64), torch.randint(3, (7,))
    objective = Objective(model, F.cross_entropy, [(x, y)])
    theta, v = objective.theta, torch.randn(objective.num_parameters, dtype=torch.float64)
    step = 1e-5
    difference = objective.gradient(theta + step * v) - objective.gradient(theta - step * v)
    assert torch.allclose(objective.hvp(theta, v), difference / (2 * step), atol=1e-8)


def test_batch_statistics_are_those_of_each_batch_when_asked_for():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).double()
    x, y = reference_data()
    objective = Objective(model, F.cross_entropy, [(x, y)], batch_norm="batch")
    expected = float(F.cross_entropy(copy.deepcopy(model).train()(x), y).detach())
    assert objective.value(objective.theta) == pytest.approx(expected, rel=1e-13)
    with pytest.raises(ValueError, match="batch_norm must be"):
        Objective(model, F.cross_entropy, [(x, y)], batch_norm="train")


def dicts(x, y, cuts=(20, 23, 7)):
    return [{"x": a, "y": b} for a, b in uneven(x, y, cuts)]


def test_a_dict_batch_without_its_number_of_terms_is_a_mean_over_rows_if_its_parts_say_so():
    x, y = reference_data()

    def loss(call, batch):
        return F.cross_entropy(call(batch["x"]), batch["y"])

    objective = Objective(reference_net(), loss, dicts(x, y))
    whole = float(F.cross_entropy(reference_net()(x), y).detach())
    assert objective.value(objective.theta) == pytest.approx(whole, rel=1e-13)


def test_a_dict_batch_that_cannot_be_asked_is_weighted_by_rows_with_a_warning():
    x, y = reference_data(3)

    def loss(call, batch):
        return F.cross_entropy(call(batch["x"]), batch["y"])

    rows = dicts(x, y, (1, 1, 1))
    with pytest.warns(UserWarning, match=r"return \(loss, num_terms\)"):
        objective = Objective(reference_net(), loss, rows)
    whole = float(F.cross_entropy(reference_net()(x), y).detach())
    assert objective.value(objective.theta) == pytest.approx(whole, rel=1e-13)
    Objective(reference_net(), loss, rows[:1])  # one batch: nothing to weigh, no warning


def test_a_mean_over_something_else_than_rows_needs_its_number_of_terms():
    x, y = reference_data()
    counted = (torch.arange(50) % 3 > 0).double()

    def loss(call, batch, told):
        each = F.cross_entropy(call(batch["x"]), batch["y"], reduction="none")
        mean = (each * batch["w"]).sum() / batch["w"].sum()
        return (mean, batch["w"].sum()) if told else mean

    cuts = (20, 23, 7)
    parts = zip(x.split(cuts), y.split(cuts), counted.split(cuts), strict=True)
    batches = [{"x": a, "y": b, "w": w} for a, b, w in parts]
    with pytest.raises(ValueError, match=r"or return \(loss, num_terms\)"):
        Objective(reference_net(), partial(loss, told=False), batches)
    objective = Objective(reference_net(), partial(loss, told=True), batches)
    whole = loss(reference_net(), {"x": x, "y": y, "w": counted}, told=False).item()
    assert objective.value(objective.theta) == pytest.approx(whole, rel=1e-13)


def padded(num=30, num_counted=5, seed=3):
    """Two dict batches, the second mostly ignored; and the loss over all terms."""
    x, y = reference_data(2 * num)
    y[num:] = torch.where(
        torch.randperm(num, generator=torch.Generator().manual_seed(seed)) < num_counted,
        y[num:],
        -100,
    )
    truth = float(F.cross_entropy(reference_net()(x), y).detach())
    return x, y, truth


def mean_over_targets(call, batch):
    return F.cross_entropy(call(batch["x"]), batch["y"])


def with_its_terms(call, batch):
    return mean_over_targets(call, batch), (batch["y"] != -100).sum()


@pytest.mark.parametrize("pattern", ["random", "first", "even"])
def test_a_later_batch_whose_mean_is_over_fewer_targets_than_rows_is_refused(pattern):
    x, y, _ = padded()
    if pattern != "random":
        counted = torch.arange(30) < 5 if pattern == "first" else torch.arange(30) % 5 == 0
        y[30:] = torch.where(counted, y[30:].clamp(min=0), -100)
    truth = float(F.cross_entropy(reference_net()(x), y).detach())
    batches = dicts(x, y, (30, 30))
    with pytest.raises(ValueError, match=r"or return \(loss, num_terms\)"):
        Objective(reference_net(), mean_over_targets, batches)
    objective = Objective(reference_net(), with_its_terms, batches)
    assert objective.value(objective.theta) == pytest.approx(truth, rel=1e-13)


def test_a_piece_without_a_term_is_refused_or_weighs_nothing_where_the_terms_are_told():
    x, y = reference_data(60)
    y[20:40] = -100
    truth = float(F.cross_entropy(reference_net()(x), y).detach())
    whole = [{"x": x, "y": y}]
    with pytest.raises(ValueError, match=r"1 of 3 .* is nan .*return \(loss, num_terms\)"):
        Objective(reference_net(), mean_over_targets, whole, micro_batch=20)
    objective = Objective(reference_net(), with_its_terms, whole, micro_batch=20)
    theta = objective.theta
    uncut = Objective(reference_net(), with_its_terms, whole)
    assert objective.value(theta) == pytest.approx(truth, rel=1e-13)
    torch.testing.assert_close(objective.gradient(theta), uncut.gradient(theta))
    torch.testing.assert_close(objective.hvp(theta, theta), uncut.hvp(theta, theta))


def test_a_first_piece_without_a_term_hides_no_parameter():
    x, y = reference_data(40)
    y[:20] = -100

    def loss(call, batch):
        counted = batch["y"] != -100
        if not counted.any():
            return torch.zeros((), dtype=torch.float64), 0
        return with_its_terms(call, batch)

    objective = Objective(reference_net(), loss, [{"x": x, "y": y}], micro_batch=20)
    assert objective.unused == ()


def test_pieces_that_are_even_inside_but_unlike_each_other_are_refused():
    x, y = reference_data(40)
    tokens = torch.stack([y, y], 1)
    tokens[20:, 1] = -100  # two terms a row, then one

    def loss(call, batch):
        logits = call(batch["x"])[:, :, None].expand(-1, -1, batch["y"].shape[1])
        return F.cross_entropy(logits, batch["y"])

    whole = [{"x": x, "y": tokens}]
    with pytest.raises(ValueError, match=r"or return \(loss, num_terms\)"):
        Objective(reference_net(), loss, whole, micro_batch=20)
    Objective(reference_net(), loss, whole)
    cut = Objective(reference_net(), loss, [{"x": x, "y": tokens[:, :1]}], micro_batch=13)
    assert cut.num_batches == 4  # its last piece is one row, which all of them speak for


def test_a_batch_of_one_row_beside_others_is_weighted_by_rows_with_a_warning():
    x, y = reference_data(21)
    with pytest.warns(UserWarning, match="not every batch can be asked"):
        objective = Objective(reference_net(), mean_over_targets, dicts(x, y, (10, 10, 1)))
    truth = float(F.cross_entropy(reference_net()(x), y).detach())
    assert objective.value(objective.theta) == pytest.approx(truth, rel=1e-13)


def test_rows_that_hold_no_term_of_an_untold_loss_are_refused():
    x, y = reference_data(30)
    y[:10] = -100
    objective = Objective(reference_net(), mean_over_targets, [{"x": x, "y": y}])
    with pytest.raises(ValueError, match="is nan and that of others is not"):
        objective.over_rows(range(10))
    part = objective.over_rows(range(10, 30))
    assert part.value(part.theta) == pytest.approx(objective.value(objective.theta))


def test_an_untold_loss_that_is_nan_in_every_batch_is_a_nan_and_no_wrong_complaint():
    model = reference_net()
    with torch.no_grad():
        model[2].bias.fill_(math.nan)
    with pytest.warns(UserWarning, match="does not say how many terms"):
        objective = Objective(model, mean_over_targets, dicts(*reference_data()))
    assert math.isnan(objective.value(objective.theta))


def test_a_batch_whose_parts_the_loss_does_not_take_is_left_unasked():
    x, y = reference_data()

    def loss(call, batch):
        assert len(batch["x"]) == 50, "a whole, or nothing"
        return F.cross_entropy(call(batch["x"]), batch["y"])

    objective = Objective(reference_net(), loss, [{"x": x, "y": y}])
    assert objective.reduction == "mean"


def test_a_sum_is_recognised_where_the_loss_is_zero_by_its_own_word():
    model = nn.Linear(3, 2).double()
    x = torch.randn(20, 3, dtype=torch.float64)
    y = model(x).detach()
    objective = Objective(model, nn.MSELoss(reduction="sum"), [(x, y)])
    mean = Objective(model, nn.MSELoss(), [(x, y)])
    assert objective.reduction == "sum"
    v = torch.ones_like(mean.theta)
    assert torch.allclose(objective.hvp(mean.theta, v), mean.hvp(mean.theta, v), atol=1e-14)


def test_a_sum_is_recognised_behind_a_first_third_of_ignored_targets():
    x, y = reference_data()
    y = torch.cat([torch.full((30,), -100), y[30:]])
    summed = Objective(reference_net(), nn.CrossEntropyLoss(reduction="sum"), [(x, y)])
    mean = Objective(reference_net(), F.cross_entropy, [(x, y)])
    assert summed.value(summed.theta) == pytest.approx(mean.value(mean.theta), rel=1e-13)


def test_every_batch_is_asked_and_a_hidden_ignore_index_is_refused():
    x, y = reference_data()
    y = torch.cat([y[:25].clamp(min=1), torch.where(torch.arange(25) % 2 == 0, 0, y[25:])])
    hidden = lambda out, t: F.cross_entropy(out, t, ignore_index=0)  # noqa: E731
    with pytest.raises(ValueError, match="neither the mean nor the sum over the terms"):
        Objective(reference_net(), hidden, [(x[:25], y[:25]), (x[25:], y[25:])])
    told = partial(F.cross_entropy, ignore_index=0)
    objective = Objective(reference_net(), told, [(x[:25], y[:25]), (x[25:], y[25:])])
    whole = float(told(reference_net()(x), y).detach())
    assert objective.value(objective.theta) == pytest.approx(whole, rel=1e-13)


def test_a_loss_that_is_nan_at_the_weights_is_a_nan_and_no_wrong_complaint():
    model = reference_net()
    with torch.no_grad():
        model[2].bias.fill_(math.nan)
    objective = Objective(model, F.cross_entropy, uneven(*reference_data()))
    assert math.isnan(objective.value(objective.theta))


def test_class_weights_in_another_precision_compute_in_ours():
    x, y = reference_data(dtype=torch.float32)
    loss = nn.CrossEntropyLoss(weight=torch.tensor([0.2, 1.0, 3.0]))
    objective = Objective(reference_net(torch.float32), loss, uneven(x, y), dtype=torch.float64)
    assert math.isfinite(objective.value(objective.theta))
    assert loss.weight.dtype == torch.float32


def test_full_precision_whatever_the_caller_has_switched_on():
    x, y = reference_data(dtype=torch.float32)
    model = reference_net(torch.float32)
    expected = Objective(model, F.cross_entropy, [(x, y)]).value
    theta = Objective(model, F.cross_entropy, [(x, y)]).theta
    before = expected(theta)
    seen = []

    def loss(out, target):
        seen.append((out.dtype, torch.get_float32_matmul_precision()))
        return F.cross_entropy(out, target)

    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            assert Objective(model, loss, [(x, y)]).value(theta) == before
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert set(seen) == {(torch.float32, "highest")}


def test_what_the_model_does_afterwards_changes_nothing_until_it_is_refreshed():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).double()
    x, y = reference_data()
    objective = Objective(model, F.cross_entropy, [(x, y)], parameters="2.*")
    before = objective.value(objective.theta)
    with torch.no_grad():
        model[0].weight.mul_(3)
    model.train()(x)
    assert objective.value(objective.theta) == before
    objective.refresh(model)
    expected = float(F.cross_entropy(model.eval()(x), y).detach())
    assert objective.value(objective.theta) == pytest.approx(expected, rel=1e-13)


# -- What autograd does not say -------------------------------------------------------------------


class Tanh(torch.autograd.Function):
    """tanh with a backward marked as differentiable once, as many fused layers have it."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    @once_differentiable
    def backward(ctx, slope):
        return slope * (1 - ctx.saved_tensors[0].tanh() ** 2)


class DetachedTanh(Tanh):
    """The same without the mark: the backward drops its own derivative."""

    @staticmethod
    def backward(ctx, slope):
        return slope.detach() * (1 - ctx.saved_tensors[0].detach().tanh() ** 2)


class OpenTanh(Tanh):
    """The same as it should be."""

    @staticmethod
    def backward(ctx, slope):
        return slope * (1 - ctx.saved_tensors[0].tanh() ** 2)


class Layer(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function.apply(x)


def net_with(function, *rest):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4), Layer(function), *rest).double()


def linear_loss(out, target):
    return out.mean()


@pytest.mark.parametrize(
    ("rest", "loss"),
    [((), linear_loss), ((nn.Linear(4, 3),), linear_loss), ((nn.Linear(4, 3),), F.cross_entropy)],
)
@pytest.mark.parametrize("function", [Tanh, DetachedTanh])
def test_a_backward_without_a_derivative_is_named_and_never_counted_as_zero(function, rest, loss):
    x, y = reference_data()
    objective = Objective(net_with(function, *rest), loss, uneven(x, y))
    theta, v = objective.theta, torch.ones_like(objective.theta)
    assert float(objective.gradient(theta).norm()) > 0
    reason = "Tanh is marked once_differentiable" if function is Tanh else "DetachedTanh autograd's"
    with pytest.raises(ValueError, match=f"no second derivative.*{reason}"):
        objective.hvp(theta, v)
    for matrix in (GaussNewton, Remainder, EmpiricalFisher):
        with pytest.raises(ValueError, match="no second derivative"):
            matrix(objective)
    # What autograd answers by itself: a product that a difference of gradients contradicts.
    leaf = theta.clone().requires_grad_()
    value = loss(functional_call(net_with(OpenTanh, *rest), objective.space.unflatten(leaf), x), y)
    (gradient,) = torch.autograd.grad(value, leaf, create_graph=True)
    (right,) = torch.autograd.grad(gradient, leaf, v)
    found = CentralDifference(objective) @ v
    assert torch.allclose(found, right, atol=1e-8)
    silent = objective._product(theta, v)
    assert float((silent - right).norm()) > 0.1 * float(right.norm())


def test_a_backward_of_ones_own_that_can_be_differentiated_is_believed_after_one_comparison():
    x, y = reference_data()
    objective = Objective(net_with(OpenTanh, nn.Linear(4, 3)), F.cross_entropy, uneven(x, y))
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    plain = Objective(model, F.cross_entropy, uneven(x, y))
    v = torch.randn(objective.num_parameters, dtype=torch.float64)
    expected = plain.hvp(objective.theta, v)
    assert torch.allclose(objective.hvp(objective.theta, v), expected, atol=1e-14)
    single = Objective(
        net_with(OpenTanh, nn.Linear(4, 3)), F.cross_entropy, uneven(x, y), dtype=torch.float32
    )
    assert bool(single.hvp(single.theta, v.float()).isfinite().all())


def test_a_function_below_the_parameters_that_move_does_not_matter():
    x, y = reference_data()
    model = net_with(Tanh, nn.Linear(4, 3))
    objective = Objective(model, F.cross_entropy, [(x, y)], parameters="2.*")
    v = torch.ones_like(objective.theta)
    step = 1e-5
    up, down = (objective.gradient(objective.theta + s * step * v) for s in (1, -1))
    assert torch.allclose(objective.hvp(objective.theta, v), (up - down) / (2 * step), atol=1e-9)


def test_unused_parameters_and_linear_losses_still_have_products_of_zero():
    x, y = reference_data()

    class Partly(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.spare = nn.Linear(5, 3), net_with(Tanh)

        def forward(self, inputs):
            return self.used(inputs)

    model = Partly().double()
    v = torch.ones(sum(p.numel() for p in model.parameters()), dtype=torch.float64)
    linear = Objective(model, linear_loss, uneven(x, y))
    assert torch.count_nonzero(linear.hvp(linear.theta, v)) == 0
    curved = Objective(model, F.cross_entropy, uneven(x, y))
    product = curved.space.unflatten(curved.hvp(curved.theta, v))
    assert torch.count_nonzero(product["spare.0.weight"]) == 0
    assert torch.count_nonzero(product["used.weight"]) > 0


def test_a_loss_that_holds_a_derivative_of_such_a_function_is_refused_at_once():
    def slope_of(call, batch):  # its own gradient would lack what goes through tanh twice
        inputs = batch["x"].requires_grad_()
        (slope,) = torch.autograd.grad(call(inputs).sum(), inputs, create_graph=True)
        return slope.square().mean(), len(inputs)

    x, _ = reference_data()
    with pytest.raises(ValueError, match="the loss differentiates a function marked once"):
        Objective(net_with(Tanh, nn.Linear(4, 3)), slope_of, [{"x": x}])
    objective = Objective(net_with(OpenTanh, nn.Linear(4, 3)), slope_of, [{"x": x}])
    assert objective.value(objective.theta) > 0
    assert not x.requires_grad


def test_torchs_own_refusal_of_a_second_derivative_names_operation_and_remedy():
    class Fused(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv = nn.Linear(4, 12)

        def forward(self, x):
            q, k, v = (part.unsqueeze(1) for part in self.qkv(x).chunk(3, -1))
            attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
            return attend(q, k, v)[0].mean((1, 2))

    x = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.manual_seed(0)
    objective = Objective(Fused().double(), F.mse_loss, [(x, x[:, 0])])
    v = torch.ones_like(objective.theta)
    with pytest.raises(ValueError, match=r"no second derivative: .*flash.*CentralDifference"):
        objective.hvp(objective.theta, v)
    assert float((CentralDifference(objective) @ v).norm()) > 0


def test_kinks_are_read_off_the_graph_that_theta_hangs_on():
    x, y = reference_data()
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3), nn.SELU()).double()
    assert set(Objective(model, F.cross_entropy, [(x, y)]).kinks) == {"Relu", "Elu"}
    assert Objective(model[:3], F.cross_entropy, [(x, y)], parameters="2.*").kinks == ()
    hidden = nn.Sequential(net_with(OpenTanh), nn.ReLU(), nn.Linear(4, 3)).double()
    assert "1 (ReLU)" in Objective(hidden, F.cross_entropy, [(x, y)]).kinks


def test_the_loss_over_some_rows_is_that_of_these_rows_alone():
    x, y = reference_data()
    objective = Objective(reference_net(), F.cross_entropy, uneven(x, y))
    rows = [49, 0, 21, 22, 3, 44]
    part = objective.over_rows(rows)
    alone = Objective(reference_net(), F.cross_entropy, [(x[rows], y[rows])])
    theta = 1.3 * objective.theta
    assert (part.num_samples, part.num_terms, part.num_batches) == (6, 6, 3)
    assert part.value(theta) == pytest.approx(alone.value(theta), rel=1e-13)
    torch.testing.assert_close(part.gradient(theta), alone.gradient(theta))
    torch.testing.assert_close(part.hvp(theta, theta), alone.hvp(theta, theta))
    assert torch.equal(part.theta, objective.theta)
    assert objective.num_samples == 50


@pytest.mark.parametrize("reduced", ["mean", "sum"])
def test_the_parts_of_the_data_weighted_by_their_terms_make_up_the_whole(reduced):
    x, y = reference_data()
    y = y.clone()
    y[:7] = -100
    loss = nn.CrossEntropyLoss(weight=torch.tensor([0.2, 1.0, 3.0]).double(), reduction=reduced)
    objective = Objective(reference_net(), loss, uneven(x, y))
    parts = [objective.over_rows(range(*ends)) for ends in ((0, 9), (9, 10), (10, 50))]
    assert sum(part.num_terms for part in parts) == pytest.approx(objective.num_terms)
    total = sum(part.num_terms * part.value(objective.theta) for part in parts)
    assert total / objective.num_terms == pytest.approx(objective.value(objective.theta))


def test_rows_are_cut_out_of_dicts_and_what_is_no_row_stays_whole():
    x, y = reference_data()
    scale = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)

    def loss(model, batch):
        return F.cross_entropy(model(batch["x"]) * batch["scale"], batch["y"]), len(batch["y"])

    batches = [
        {"x": x[:20], "y": y[:20], "scale": scale},
        {"x": x[20:], "y": y[20:], "scale": scale},
    ]
    part = Objective(reference_net(), loss, batches).over_rows([1, 30, 31])
    rows = torch.tensor([1, 30, 31])
    truth = F.cross_entropy(reference_net()(x[rows]) * scale, y[rows])
    assert part.value(part.theta) == pytest.approx(truth.item())


@pytest.mark.parametrize("rows", [[], [50], [-1, 3]])
def test_rows_that_the_data_do_not_have_are_refused(rows):
    x, y = reference_data()
    objective = Objective(reference_net(), F.cross_entropy, uneven(x, y))
    with pytest.raises(ValueError, match="rows must be some of 0 to 49, got"):
        objective.over_rows(rows)


def test_rows_without_a_loss_term_are_refused():
    x, y = reference_data()
    y = y.clone()
    y[:2] = -100
    objective = Objective(reference_net(), nn.CrossEntropyLoss(), [(x, y)])
    with pytest.raises(ValueError, match="no loss term"):
        objective.over_rows([0, 1])


def test_micro_batches_change_no_number():
    model, x, y = reference_net(), *reference_data(23)
    whole = Objective(model, F.cross_entropy, [(x, y)])
    cut = Objective(model, F.cross_entropy, [(x, y)], micro_batch=5)
    assert cut.num_batches == 5
    assert cut.num_terms == whole.num_terms == 23
    theta = whole.theta
    assert cut.value(theta) == pytest.approx(whole.value(theta), rel=1e-13)
    torch.testing.assert_close(cut.gradient(theta), whole.gradient(theta))
    v = torch.ones_like(theta)
    torch.testing.assert_close(cut.hvp(theta, v), whole.hvp(theta, v))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"micro_batch": 0}, "micro_batch must be >= 1, got 0"),
        ({"micro_batch": 2, "batch_norm": "batch"}, "change the statistics"),
    ],
)
def test_micro_batches_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Objective(reference_net(), F.cross_entropy, [reference_data(6)], **options)


class Cusp(nn.Module):
    """|p|^1.5, which has no curvature at 0, for the rows whose first input is positive."""

    def __init__(self):
        super().__init__()
        self.p = nn.Parameter(torch.zeros(3, dtype=torch.float64))

    def forward(self, x):
        bump = self.p.abs().pow(1.5) if bool((x[:, 0] > 0).any()) else self.p**2
        return x[:, :3] + bump


def test_a_product_that_is_not_finite_names_the_first_batch_where_it_is_not():
    x = -torch.ones(6, 3, dtype=torch.float64)
    x[4, 0] = 1.0
    batches = [(part, torch.zeros(2, dtype=torch.long)) for part in x.split(2)]
    objective = Objective(Cusp(), F.cross_entropy, batches)
    v = torch.ones_like(objective.theta)
    assert objective.batch_not_finite(objective.theta, v) == 2
    assert objective.batch_not_finite(objective.theta + 0.1, v) is None
    with pytest.raises(FloatingPointError, match="3 of 3 entries, first in batch 3"):
        lanczos(Hessian(objective), num_eigenpairs=1)
