import copy

import pytest
import torch
from torch import nn

from sam_variants import SAM, Evaluate
from sam_variants.training.closure import batch_closure, evaluating, wrong_class_divergence

cross_entropy = nn.functional.cross_entropy


def request(*, first=False, num_rows=None, loss=None, **asked):
    one = Evaluate(**asked)
    one.first, one.num_rows = first, num_rows
    return one


def net(norm=None):
    torch.manual_seed(0)
    norm = norm or nn.BatchNorm1d(8)
    return nn.Sequential(nn.Linear(4, 8), norm, nn.ReLU(), nn.Linear(8, 3))


def batch(rows=12):
    torch.manual_seed(1)
    return torch.randn(rows, 4), torch.randint(3, (rows,))


def buffers(model):
    return {name: b.clone() for name, b in model.named_buffers()}


def flags(model):
    return [
        (m.training, getattr(m, "track_running_stats", None), getattr(m, "momentum", None))
        for m in model.modules()
    ]


NORMS = {
    "batch": lambda: nn.BatchNorm1d(8),
    "batch, cumulative": lambda: nn.BatchNorm1d(8, momentum=None),
    "batch, no affine": lambda: nn.BatchNorm1d(8, affine=False),
}


@pytest.mark.parametrize("norm", NORMS)
def test_later_evaluations_use_the_batchs_statistics_and_learn_nothing(norm):
    model, (x, _) = net(NORMS[norm]()), batch()
    before, was = buffers(model), flags(model)
    expected = copy.deepcopy(model)(x)
    with evaluating(model, request()):
        got = model(x)
    assert torch.equal(got, expected)
    assert flags(model) == was
    for name, value in buffers(model).items():
        assert torch.equal(value, before[name]), name
    with evaluating(model, request(first=True)):
        model(x)
    assert any(not torch.equal(b, before[n]) for n, b in buffers(model).items())


def test_sync_batch_norm_counts_as_batch_norm():
    model = net(nn.SyncBatchNorm(8))
    with evaluating(model, request()):
        assert not model[1].track_running_stats
    assert model[1].track_running_stats


def test_an_overflow_in_a_later_evaluation_leaves_the_statistics_finite():
    model, (x, _) = net(), batch()
    with evaluating(model, request()):
        model(x * 1e38)
    assert all(torch.isfinite(b).all() for b in buffers(model).values())
    assert model[1].num_batches_tracked == 0


def test_the_buffers_of_instance_norm_are_put_back():
    model = nn.Sequential(nn.InstanceNorm1d(4, track_running_stats=True))
    x = torch.randn(5, 4, 7)
    before = buffers(model)
    expected = copy.deepcopy(model)(x)
    with evaluating(model, request()):
        assert torch.equal(model(x), expected)
    for name, value in buffers(model).items():
        assert torch.equal(value, before[name]), name
    with evaluating(model, request(first=True)):
        model(x)
    assert not torch.equal(buffers(model)["0.running_mean"], before["0.running_mean"])


@pytest.mark.parametrize("first", [True, False])
def test_a_request_of_one_row_uses_the_running_statistics(first):
    model, (x, _) = net(), batch()
    model(x)
    before = buffers(model)
    expected = copy.deepcopy(model).eval()(x[2:3])
    one_row = request(rows=slice(2, 3), num_rows=1, first=first)
    with evaluating(model, one_row):
        assert torch.equal(model(x[2:3]), expected)
    assert model.training
    assert model[1].training
    for name, value in buffers(model).items():
        assert torch.equal(value, before[name]), name


def test_a_whole_batch_of_one_row_is_an_ordinary_evaluation():
    model = nn.Sequential(nn.BatchNorm2d(2))
    with evaluating(model, request(num_rows=1, first=True)):
        model(torch.randn(1, 2, 3, 3))
    assert model[0].num_batches_tracked == 1


def test_layers_in_eval_mode_stay_there():
    model, (x, _) = net(), batch()
    model.eval()
    before = buffers(model)
    expected = model(x)
    for asked in (request(), request(first=True), request(rows=slice(0, 1), num_rows=1)):
        with evaluating(model, asked):
            assert torch.equal(model(x), expected)
    assert not any(m.training for m in model.modules())
    for name, value in buffers(model).items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("asked", [{}, {"rows": slice(0, 1), "num_rows": 1}])
def test_flags_and_buffers_are_restored_after_an_exception(asked):
    model = nn.Sequential(nn.BatchNorm1d(4), nn.InstanceNorm1d(4, track_running_stats=True))
    was, before = flags(model), buffers(model)

    def fail():
        with evaluating(model, request(**asked)):
            model[1](torch.randn(5, 4, 7))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert flags(model) == was
    assert torch.is_grad_enabled()
    for name, value in buffers(model).items():
        assert torch.equal(value, before[name])


def test_a_forward_alone_builds_no_graph():
    model, (x, y) = net(), batch()
    with evaluating(model, request(gradient=False)):
        assert not cross_entropy(model(x), y).requires_grad
    with torch.no_grad(), evaluating(model, request()):
        assert cross_entropy(model(x), y).requires_grad


class Parallel(nn.Module):
    """What evaluating needs of DistributedDataParallel: no_sync, and a count of reductions."""

    def __init__(self, module):
        super().__init__()
        self.module, self.syncing, self.reduced = module, True, 0

    def forward(self, x):
        out = self.module(x)
        if self.syncing and out.requires_grad:
            out.register_hook(lambda _: setattr(self, "reduced", self.reduced + 1))
        return out

    def no_sync(self):
        from contextlib import contextmanager

        @contextmanager
        def quiet():
            self.syncing = False
            try:
                yield
            finally:
                self.syncing = True

        return quiet()


@pytest.mark.parametrize(("sync", "expected"), [(True, 1), (False, 0)])
def test_gradients_reduce_once_a_request_or_not_at_all(sync, expected):
    model, (x, y) = Parallel(net()), batch()
    batch_closure(model, cross_entropy, x, y, micro_batch_size=5)(request(sync=sync, num_rows=12))
    assert model.reduced == expected
    assert model.syncing


def test_in_one_process_an_unsynced_gradient_is_every_gradient():
    model, (x, y) = net(nn.LayerNorm(8)), batch()
    asked = request(sync=False, num_rows=12)
    batch_closure(model, cross_entropy, x, y)(asked)
    unsynced = gradient_of(model)
    model.zero_grad()
    batch_closure(model, cross_entropy, x, y)(request(num_rows=12))
    assert torch.equal(unsynced, gradient_of(model))
    assert not asked.unread  # it was looked at


# batch_closure


def gradient_of(model):
    return torch.cat([p.grad.reshape(-1) for p in model.parameters()])


@pytest.mark.parametrize("rows", [slice(None), slice(3, 10), torch.tensor([11, 0, 5, 5])])
@pytest.mark.parametrize("micro_batch_size", [None, 1, 5, 100])
def test_the_gradient_is_that_of_the_mean_over_the_rows_asked_for(rows, micro_batch_size):
    model, (x, y) = net(nn.LayerNorm(8)).double(), batch()
    x = x.double()
    expected = cross_entropy(model(x[rows]), y[rows])
    expected.backward()
    gradient = gradient_of(model)
    model.zero_grad()
    closure = batch_closure(model, cross_entropy, x, y, micro_batch_size=micro_batch_size)
    loss = closure(request(rows=rows, num_rows=len(x[rows])))
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(gradient_of(model), gradient)
    assert not loss.requires_grad
    assert closure.num_rows == 12


def test_pieces_of_a_loss_with_ignored_rows_add_up_where_it_divides_by_the_rows():
    def by_rows(z, y):
        return cross_entropy(z, y, weight=torch.tensor([1.0, 2.0, 5.0]), reduction="sum") / len(y)

    model, (x, y) = net(nn.LayerNorm(8)), batch()
    y[:4] = -100  # the first piece has nothing else
    by_rows(model(x), y).backward()
    gradient = gradient_of(model)
    model.zero_grad()
    batch_closure(model, by_rows, x, y, micro_batch_size=4)(request(num_rows=12))
    torch.testing.assert_close(gradient_of(model), gradient)
    mean = batch_closure(model, cross_entropy, x, y, micro_batch_size=4)(request(num_rows=12))
    assert mean.isnan()


LOSSES = {
    "function": lambda z, y: cross_entropy(z, y),
    "functional": cross_entropy,
    "module": nn.CrossEntropyLoss(label_smoothing=0.1),
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("gradient", [True, False])
def test_losses_a_row_come_with_the_gradient_of_their_mean(loss, gradient):
    loss, (x, y) = LOSSES[loss], batch()
    model = net(nn.LayerNorm(8))
    expected = torch.stack([loss(model(x[i : i + 1]), y[i : i + 1]) for i in range(12)]).detach()
    closure = batch_closure(model, loss, x, y, micro_batch_size=5)
    got = closure(request(per_sample=True, gradient=gradient, num_rows=12))
    torch.testing.assert_close(got, expected)
    if isinstance(loss, nn.Module):
        assert loss.reduction == "mean"
    if not gradient:
        assert all(p.grad is None for p in model.parameters())
        return
    got = gradient_of(model)
    model.zero_grad()
    loss(model(x), y).backward()
    torch.testing.assert_close(got, gradient_of(model))


def test_losses_a_row_of_sequences_are_means_over_their_positions():
    torch.manual_seed(0)
    model, x, y = nn.Linear(4, 5), torch.randn(6, 7, 4), torch.randint(5, (6, 7))

    def loss(z, y):
        return cross_entropy(z.flatten(0, 1), y.flatten())

    got = batch_closure(model, loss, x, y)(request(per_sample=True, num_rows=6))
    expected = torch.stack([loss(model(x[i : i + 1]), y[i : i + 1]) for i in range(6)])
    torch.testing.assert_close(got, expected.detach())


def test_batches_of_several_tensors_are_cut_together():
    torch.manual_seed(0)
    layer = nn.Linear(4, 2)

    class Pair(nn.Module):
        def forward(self, inputs):
            return layer(inputs["a"] + inputs["b"][0])

    inputs = {"a": torch.randn(6, 4), "b": (torch.randn(6, 4),)}
    y = torch.randn(6, 2)
    closure = batch_closure(Pair(), nn.functional.mse_loss, inputs, y, micro_batch_size=2)
    got = closure(request(rows=slice(1, 5), num_rows=4))
    expected = nn.functional.mse_loss(layer(inputs["a"] + inputs["b"][0])[1:5], y[1:5])
    torch.testing.assert_close(got, expected.detach())


def test_the_ascent_loss_is_the_divergence_of_the_wrong_classes():
    torch.manual_seed(0)
    z, y = torch.randn(5, 4, dtype=torch.float64, requires_grad=True), torch.tensor([0, 3, 1, 2, 2])
    value = wrong_class_divergence(z, y)
    p = torch.softmax(z.detach(), 1)
    total = 0.0
    gradient = torch.zeros_like(p)
    for i in range(5):
        q = p[i] / (1 - p[i, y[i]])
        q[y[i]] = 0.0
        total += sum(float(q[j] * torch.log(q[j] / p[i, j])) for j in range(4) if j != y[i]) / 5
        gradient[i] = (p[i] - q) / 5  # of -sum q log p, with q held
    assert value.item() == pytest.approx(total)
    value.backward()
    torch.testing.assert_close(z.grad, gradient)
    rows = wrong_class_divergence(z, y, reduction="none")
    assert rows.shape == (5,)
    torch.testing.assert_close(rows.mean(), value)
    with pytest.raises(ValueError, match="reduction must be one of mean, none, got 'sum'"):
        wrong_class_divergence(z, y, reduction="sum")


def test_an_ascent_request_gets_the_ascent_loss():
    model, (x, y) = net(nn.LayerNorm(8)), batch()
    closure = batch_closure(model, cross_entropy, x, y)
    expected = wrong_class_divergence(model(x), y).detach()
    torch.testing.assert_close(closure(request(ascent=True)), expected)
    other = batch_closure(model, cross_entropy, x, y, ascent_loss=lambda z, _: z.sum())
    torch.testing.assert_close(other(request(ascent=True)), model(x).sum().detach())


def test_the_divergence_is_finite_where_the_right_class_is_certain():
    z = torch.tensor([[80.0, 0.0, 0.0], [0.0, 200.0, -200.0]], requires_grad=True)
    wrong_class_divergence(z, torch.tensor([0, 1])).backward()
    assert torch.isfinite(z.grad).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"micro_batch_size": 0}, "micro_batch_size must be >= 1, got 0"),
        ({"targets": torch.zeros(3, dtype=torch.long)}, "inputs and targets have 12 and 3 rows"),
        ({"inputs": torch.zeros(0, 4), "targets": torch.zeros(0)}, "have 0 and 0 rows"),
    ],
)
def test_batches_that_do_not_fit_are_refused(change, message):
    x, y = batch()
    options = {"inputs": x, "targets": y, **change}
    with pytest.raises(ValueError, match=message):
        batch_closure(net(), cross_entropy, **options)


def test_sam_through_the_closure_is_sam_by_hand():
    model, (x, y) = net(), batch()
    by_hand = copy.deepcopy(model)
    loss = cross_entropy(by_hand(x), y)
    g = torch.autograd.grad(loss, list(by_hand.parameters()))
    norm = torch.sqrt(sum(t.square().sum() for t in g))
    home = [p.detach().clone() for p in by_hand.parameters()]
    with torch.no_grad():
        for p, t in zip(by_hand.parameters(), g, strict=True):
            p.add_(t, alpha=0.5 / norm.item())
    statistics = buffers(by_hand)
    q = torch.autograd.grad(cross_entropy(by_hand(x), y), list(by_hand.parameters()))
    SAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.5).step(
        batch_closure(model, cross_entropy, x, y)
    )
    for p, h, t in zip(model.parameters(), home, q, strict=True):
        torch.testing.assert_close(p.detach(), h - 0.1 * t)
    for name, value in buffers(model).items():
        assert torch.equal(value, statistics[name]), name
