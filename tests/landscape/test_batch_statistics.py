"""Recalibrated statistics beside moments and losses that are written out in numpy."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import update_bn

from landscape.batch_statistics import Recalibrated
from landscape.connectivity import path_barrier
from landscape.objective import Objective
from landscape.surface import automatic_range, scan_line, scan_plane

EPS = 1e-5  # of nn.BatchNorm


def data(num=23, width=5, classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num, width, generator=generator, dtype=torch.float64)
    # Sorted by one coordinate: batches differ in their means, as data sorted by class do.
    x = x[x[:, 0].argsort()] + 3
    return x, torch.randint(classes, (num,), generator=generator)


def trained(*layers, seed=0, num=23):
    """A net in float64 in eval mode whose running statistics are of other weights than its own."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(*(layer() for layer in layers)).double()
        x, _ = data(num)
        for _ in range(3):
            model(x)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


def one_norm(norm=lambda: nn.BatchNorm1d(4)):
    return trained(lambda: nn.Linear(5, 4), norm, nn.Tanh, lambda: nn.Linear(4, 3))


def two_norms():
    return trained(
        lambda: nn.Linear(5, 4),
        lambda: nn.BatchNorm1d(4),
        nn.Tanh,
        lambda: nn.Linear(4, 6),
        lambda: nn.BatchNorm1d(6),
        lambda: nn.Linear(6, 3),
    )


def moved(objective, seed=1):
    generator = torch.Generator().manual_seed(seed)
    step = torch.randn(objective.num_parameters, generator=generator, dtype=torch.float64)
    return objective.theta + 0.5 * step


def arrays(objective, theta):
    return {name: part.numpy() for name, part in objective.space.unflatten(theta).items()}


def linear(w, layer, inputs):
    return inputs @ w[f"{layer}.weight"].T + w[f"{layer}.bias"]


def normalised(w, layer, inputs, mean, var):
    unit = (inputs - mean) / np.sqrt(var + EPS)
    return unit * w[f"{layer}.weight"] + w[f"{layer}.bias"]


def cross_entropy(logits, y):
    top = logits.max(1, keepdims=True)
    log = logits - top - np.log(np.exp(logits - top).sum(1, keepdims=True))
    return -log[np.arange(len(y)), y].mean()


SPLITS = {"one batch": [23], "even": [12, 11], "uneven": [10, 10, 3], "tiny": [2, 2, 19]}


# -- Truth ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", SPLITS)
def test_statistics_and_loss_are_those_of_numpy_however_the_data_are_split(split):
    model, (x, y) = one_norm(), data()
    batches = list(zip(x.split(SPLITS[split]), y.split(SPLITS[split]), strict=True))
    objective = Objective(model, F.cross_entropy, batches)
    recalibrated = Recalibrated(objective)
    for theta in (objective.theta, moved(objective)):
        w = arrays(objective, theta)
        a = linear(w, "0", x.numpy())
        mean, var = a.mean(0), a.var(0, ddof=1)
        found = recalibrated.statistics(theta)
        assert found.keys() == {"1.running_mean", "1.running_var"}
        np.testing.assert_allclose(found["1.running_mean"].numpy(), mean, rtol=1e-13)
        np.testing.assert_allclose(found["1.running_var"].numpy(), var, rtol=1e-13)
        logits = linear(w, "3", np.tanh(normalised(w, "1", a, mean, var)))
        here = recalibrated.evaluate(theta)
        assert here.loss == pytest.approx(cross_entropy(logits, y.numpy()), rel=1e-13)
        assert here.accuracy == pytest.approx((logits.argmax(1) == y.numpy()).mean())


def test_the_plain_mean_of_batch_statistics_would_be_another_number():
    """What the splits above tell apart: `update_bn` weighs three rows like ten."""
    model, (x, y) = one_norm(), data()
    batches = list(zip(x.split([10, 10, 3]), y.split([10, 10, 3]), strict=True))
    objective = Objective(model, F.cross_entropy, batches)
    found = Recalibrated(objective).statistics(objective.theta)
    update_bn([rows for rows, _ in batches], model)
    assert float((model[1].running_mean - found["1.running_mean"]).abs().max()) > 0.05
    assert float((model[1].running_var / found["1.running_var"]).max()) < 0.9


def test_a_norm_behind_another_sees_each_batch_normalised_by_its_own_statistics():
    model, (x, y) = two_norms(), data()
    split = [10, 10, 3]
    batches = list(zip(x.split(split), y.split(split), strict=True))
    objective = Objective(model, F.cross_entropy, batches)
    theta = moved(objective)
    w = arrays(objective, theta)
    first = [linear(w, "0", rows.numpy()) for rows in x.split(split)]
    second = [linear(w, "3", np.tanh(normalised(w, "1", a, a.mean(0), a.var(0)))) for a in first]
    a, b = np.concatenate(first), np.concatenate(second)
    found = Recalibrated(objective).statistics(theta)
    for layer, values in (("1", a), ("4", b)):
        np.testing.assert_allclose(found[f"{layer}.running_mean"].numpy(), values.mean(0))
        np.testing.assert_allclose(found[f"{layer}.running_var"].numpy(), values.var(0, ddof=1))
    # The loss itself is of one normalisation for all rows.
    hidden = np.tanh(normalised(w, "1", a, a.mean(0), a.var(0, ddof=1)))
    logits = normalised(w, "4", linear(w, "3", hidden), b.mean(0), b.var(0, ddof=1))
    expected = cross_entropy(linear(w, "5", logits), y.numpy())
    assert Recalibrated(objective).evaluate(theta).loss == pytest.approx(expected, rel=1e-12)


def test_one_batch_gives_what_update_bn_leaves():
    model, (x, y) = two_norms(), data()
    objective = Objective(model, F.cross_entropy, [(x, y)])
    found = Recalibrated(objective).statistics(objective.theta)
    update_bn([x], model)
    assert len(found) == 4
    for name, buffer in model.named_buffers():
        if "running" in name:
            torch.testing.assert_close(found[name], buffer)


def test_every_position_of_an_image_counts():
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(27, 2))
    model = model.double().eval()
    x = torch.randn(7, 2, 5, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    y = torch.tensor([0, 1, 1, 0, 1, 0, 0])
    objective = Objective(model, F.cross_entropy, [(x[:6], y[:6]), (x[6:], y[6:])])  # one row too
    with torch.no_grad():
        a = model[0](x).numpy()
    found = Recalibrated(objective).statistics(objective.theta)
    np.testing.assert_allclose(found["1.running_mean"].numpy(), a.mean((0, 2, 3)))
    np.testing.assert_allclose(found["1.running_var"].numpy(), a.var((0, 2, 3), ddof=1).ravel())


def test_float32_moments_keep_their_digits_where_the_mean_is_large():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2)).eval()
        x = torch.randn(4000, 3) + 1000
    y = torch.zeros(4000, dtype=torch.long)
    batches = list(zip(x.split(700), y.split(700), strict=True))
    found = Recalibrated(Objective(model, F.cross_entropy, batches))
    statistics = found.statistics(found.theta)
    np.testing.assert_allclose(
        statistics["0.running_var"].numpy(), x.double().var(0).numpy(), rtol=1e-6
    )


def test_a_scale_that_batch_norm_removes_changes_nothing():
    """Twice the weights before a norm are the same function; its old statistics say otherwise."""
    model, (x, y) = one_norm(lambda: nn.BatchNorm1d(4, eps=1e-14)), data()
    objective = Objective(model, F.cross_entropy, [(x, y)])
    direction = torch.zeros_like(objective.theta)
    direction[: 5 * 4 + 4] = objective.theta[: 5 * 4 + 4]  # the first layer
    line = scan_line(Recalibrated(objective), direction, t=[-0.5, 0.0, 1.0, 9.0])
    torch.testing.assert_close(line.loss, torch.full((4,), line.center_loss, dtype=torch.float64))
    stale = scan_line(objective, direction, t=[-0.5, 0.0, 1.0, 9.0])
    assert float(stale.loss.max() - stale.loss.min()) > 0.01


# -- What it leaves alone, and what it refuses ----------------------------------------------------


class Fails(Exception):
    pass


def state_of(model):
    tensors = {name: t.clone() for name, t in model.state_dict().items()}
    flags = [
        (m.training, getattr(m, "track_running_stats", None), getattr(m, "momentum", None))
        for m in model.modules()
    ]
    return tensors, flags, torch.get_rng_state()


def assert_untouched(model, before):
    tensors, flags, rng = state_of(model)
    assert flags == before[1]
    assert torch.equal(rng, before[2])
    for name, tensor in tensors.items():
        assert torch.equal(tensor, before[0][name]), name
    for module in model.modules():
        assert not module._forward_pre_hooks


@pytest.mark.parametrize("training", [True, False])
def test_the_callers_model_stays_the_same_bits_after_an_error_too(training):
    model, (x, y) = two_norms().train(training), data()
    fails = False

    def loss(output, target):
        if fails:
            raise Fails
        return F.cross_entropy(output, target)

    objective = Objective(model, loss, [(x, y)])
    recalibrated, before = Recalibrated(objective), state_of(model)
    value = recalibrated.evaluate(moved(objective)).loss
    assert_untouched(model, before)
    fails = True
    with pytest.raises(Fails):
        recalibrated.evaluate(moved(objective))
    assert_untouched(model, before)
    assert not any(m._forward_pre_hooks for m in objective.batch_norms.values())
    fails = False
    assert recalibrated.evaluate(moved(objective)).loss == value
    assert objective.batch_norm == "eval"


def test_a_model_that_cannot_be_copied_gets_its_hooks_and_flags_back():
    class Holds(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = one_norm()
            self.scale = torch.ones(1, dtype=torch.float64, requires_grad=True) * 2

        def forward(self, x):
            return self.body(x) * self.scale.detach()

    model, (x, y) = Holds(), data()
    with pytest.warns(UserWarning, match="cannot be copied"):
        objective = Objective(model, F.cross_entropy, [(x, y)])
    before = state_of(model)
    found = Recalibrated(objective).statistics(objective.theta)
    assert found.keys() == {"body.1.running_mean", "body.1.running_var"}
    assert_untouched(model, before)


def test_dropout_stays_off():
    model = trained(
        lambda: nn.Linear(5, 4), lambda: nn.Dropout(0.5), lambda: nn.BatchNorm1d(4), nn.Tanh
    )
    x, y = data()
    objective = Objective(model.train(), F.cross_entropy, [(x, y)])
    w = arrays(objective, objective.theta)
    a = linear(w, "0", x.numpy())
    found = Recalibrated(objective).statistics(objective.theta)
    np.testing.assert_allclose(found["2.running_mean"].numpy(), a.mean(0))


def test_a_loss_that_calls_the_model_itself_and_a_norm_that_is_not_used():
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.idle = one_norm(), nn.BatchNorm1d(7).double()

        def forward(self, *, inputs):
            return self.body(inputs)

    def loss(model, batch):
        return F.cross_entropy(model(inputs=batch["x"]), batch["y"]), len(batch["y"])

    x, y = data()
    objective = Objective(Half(), loss, [{"x": x, "y": y}])
    found = Recalibrated(objective)
    assert found.statistics(found.theta).keys() == {"body.1.running_mean", "body.1.running_var"}
    pairs = Objective(one_norm(), F.cross_entropy, [(x, y)])
    expected = Recalibrated(pairs).evaluate(pairs.theta)
    assert found.evaluate(found.theta).loss == pytest.approx(expected.loss, rel=1e-14)


def test_a_norm_that_is_used_twice_has_the_statistics_of_both_uses():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(5)

        def forward(self, x):
            return self.norm(x) + self.norm(2 * x)

    x, _ = data()
    objective = Objective(Twice().double(), F.mse_loss, [(x, torch.zeros_like(x))])
    found = Recalibrated(objective).statistics(objective.theta)
    both = np.concatenate([x.numpy(), 2 * x.numpy()])
    np.testing.assert_allclose(found["norm.running_mean"].numpy(), both.mean(0))
    np.testing.assert_allclose(found["norm.running_var"].numpy(), both.var(0, ddof=1))


def test_a_bare_norm_has_buffers_without_a_prefix():
    x, _ = data()
    objective = Objective(nn.BatchNorm1d(5).double(), F.mse_loss, [(x, torch.zeros_like(x))])
    found = Recalibrated(objective)
    assert found.statistics(found.theta).keys() == {"running_mean", "running_var"}
    # weight 1 and bias 0: the mean square of the normalised data is (n - 1) / n, but for eps.
    assert found.evaluate(found.theta).loss == pytest.approx(22 / 23, rel=1e-4)


def test_a_net_without_running_statistics_is_refused():
    x, y = data()
    without = nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4), nn.Linear(4, 3)).double()
    untracked = nn.Sequential(nn.BatchNorm1d(5, track_running_stats=False), nn.Linear(5, 3))
    for model in (without, untracked.double()):
        with pytest.raises(ValueError, match="no batch norm with running statistics: nothing to"):
            Recalibrated(Objective(model, F.cross_entropy, [(x, y)]))
    objective = Objective(one_norm(), F.cross_entropy, [(x, y)], batch_norm="batch")
    with pytest.raises(ValueError, match=r"from each batch \(batch_norm='batch'\)"):
        Recalibrated(objective)


def test_a_batch_of_one_row_is_named():
    x, y = data()
    batches = [(x[:22], y[:22]), (x[22:], y[22:])]
    recalibrated = Recalibrated(Objective(one_norm(), F.cross_entropy, batches))
    with pytest.raises(ValueError, match="batch norm '1' gets one value a channel from a batch"):
        recalibrated.evaluate(recalibrated.theta)


# -- In the tools it is for -----------------------------------------------------------------------


def test_a_surface_of_recalibrated_losses_has_its_own_centre_and_cost():
    model, (x, y) = two_norms(), data()
    objective = Objective(model, F.cross_entropy, [(x, y)])
    recalibrated = Recalibrated(objective)
    d1, d2 = torch.eye(objective.num_parameters, dtype=torch.float64)[[3, 30]]
    axis = [-1.0, 0.0, 1.0]
    surface = scan_plane(recalibrated, d1, d2, x=axis, y=axis, exact=True)
    assert surface.center_loss == recalibrated.evaluate(objective.theta).loss
    assert surface.center_loss != pytest.approx(objective.value(objective.theta), rel=1e-3)
    assert surface.cost.forwards == 2 * (9 + 2)
    for j, i in ((0, 0), (0, 2), (2, 1)):
        there = recalibrated.evaluate(objective.theta + axis[i] * d1 + axis[j] * d2)
        assert float(surface.loss[j, i]) == pytest.approx(there.loss, rel=1e-12)
        assert float(surface.accuracy[j, i]) == there.accuracy


def test_overflow_is_a_hole_and_not_an_exception():
    model, (x, y) = one_norm().float(), data()
    objective = Objective(model, F.cross_entropy, [(x.float(), y)])
    direction = torch.zeros_like(objective.theta)
    direction[: 5 * 4 + 4] = 1.0
    line = scan_line(Recalibrated(objective), direction, t=[0.0, 1.0, 3e38])
    assert line.loss.isnan().tolist() == [False, False, True]


def test_a_path_is_measured_without_the_warning_about_running_statistics():
    model, (x, y) = two_norms(), data()
    objective = Objective(model, F.cross_entropy, [(x, y)])
    end = moved(objective)

    def path(t):
        return torch.lerp(objective.theta, end, t)

    stale = path_barrier(objective, path, length=1.0, num_points=3)
    found = path_barrier(Recalibrated(objective), path, length=1.0, num_points=3)
    assert stale.warnings
    assert not found.warnings
    assert found.end_loss == Recalibrated(objective).evaluate(end).loss
    assert automatic_range(Recalibrated(objective), end - objective.theta).value > 0
