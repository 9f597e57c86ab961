"""The traps of measuring a loss: each check passes on ours and fails on the wrong way beside it."""

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from landscape import Objective


def net(*, norm=False):
    torch.manual_seed(0)
    layers = [nn.Linear(5, 6), nn.BatchNorm1d(6)] if norm else [nn.Linear(5, 6)]
    return nn.Sequential(*layers, nn.Tanh(), nn.Linear(6, 3)).double()


def data(num=50):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(num, 5, generator=generator, dtype=torch.float64)
    return x, torch.randint(3, (num,), generator=generator)


def split(x, y, sizes):
    return list(zip(x.split(sizes), y.split(sizes), strict=True))


def own_vector(model):
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def put(model, theta):
    with torch.no_grad():
        for p, piece in zip(
            model.parameters(),
            theta.split([p.numel() for p in model.parameters()]),
            strict=True,
        ):
            p.copy_(piece.view_as(p))


def ours(model, loss, batches):
    """The loss as a function of theta, and theta."""
    objective = Objective(model, loss, batches)
    return objective.value, objective.theta


def test_trap_01_batch_norm_in_train_mode_rewrites_running_statistics():
    def check(loss_of):
        model = net(norm=True).train()
        before = copy.deepcopy(model.state_dict())
        value, theta = loss_of(model, F.cross_entropy, [data()])
        first = value(theta)
        assert value(theta) == first
        assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())

    def in_train_mode(model, loss, batches):
        def value(theta):
            put(model, theta)
            with torch.no_grad():
                return float(sum(loss(model(x), y) for x, y in batches))

        return value, own_vector(model)

    check(ours)
    with pytest.raises(AssertionError):
        check(in_train_mode)


def test_trap_02_the_mean_of_batch_means_is_wrong_with_an_uneven_last_batch():
    def check(loss_of):
        model, (x, y) = net(), data()
        value, theta = loss_of(model, F.cross_entropy, split(x, y, [49, 1]))
        assert value(theta) == pytest.approx(
            float(F.cross_entropy(model(x), y).detach()), rel=1e-12
        )

    def mean_of_means(model, loss, batches):
        means = [float(loss(model(x), y).detach()) for x, y in batches]
        return lambda theta: sum(means) / len(means), own_vector(model)

    check(ours)
    with pytest.raises(AssertionError):
        check(mean_of_means)


def test_trap_03_a_sum_over_batches_multiplies_the_hessian_by_their_number():
    def check(product_of):
        model, (x, y) = net(), data()
        v = torch.ones(57, dtype=torch.float64)
        one = product_of(model, F.cross_entropy, [(x, y)], v)
        five = product_of(model, F.cross_entropy, split(x, y, 10), v)
        assert torch.allclose(one, five, atol=1e-12)

    def our_product(model, loss, batches, v):
        objective = Objective(model, loss, batches)
        return objective.hvp(objective.theta, v)

    def summed(model, loss, batches, v):
        total = torch.zeros_like(v)
        for x, y in batches:
            gradients = torch.autograd.grad(
                loss(model(x), y), list(model.parameters()), create_graph=True
            )
            flat = torch.cat([g.reshape(-1) for g in gradients])
            parts = torch.autograd.grad(flat, list(model.parameters()), v)
            total += torch.cat([p.reshape(-1) for p in parts])
        return total

    check(our_product)
    with pytest.raises(AssertionError):
        check(summed)


def test_trap_04_a_loader_that_shuffles_gives_another_operator_every_product():
    class Shuffling:
        """A loader of 2 of 5 batches, drawn anew at each pass."""

        def __init__(self):
            self.batches = split(*data(), 10)
            self.generator = torch.Generator().manual_seed(0)

        def __iter__(self):
            chosen = torch.randperm(5, generator=self.generator)[:2].tolist()
            return iter([self.batches[i] for i in chosen])

    def check(loss_of):
        value, theta = loss_of(net(), F.cross_entropy, Shuffling())
        assert len({value(theta) for _ in range(4)}) == 1

    def reading_the_loader_each_time(model, loss, loader):
        return lambda theta: sum(float(loss(model(x), y).detach()) for x, y in loader), None

    check(ours)
    with pytest.raises(AssertionError):
        check(reading_the_loader_each_time)


def test_trap_04_dropout_left_on_is_refused_at_construction():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(5, 3).double()

        def forward(self, x):
            return self.head(F.dropout(x, training=True))

    with pytest.raises(ValueError, match="random numbers"):
        ours(Noisy(), F.cross_entropy, [data()])


@pytest.mark.parametrize("drawn_by", ["dropout", "augmentation"])
def test_trap_04_dropout_and_augmentation_are_off_or_refused(drawn_by):
    class Augmenting(nn.Module):
        """Noise on the inputs whatever the mode, as of a data set that augments as it is read."""

        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return self.inner(x + 0.1 * torch.randn_like(x))

    def check(products_of):
        model = nn.Sequential(net(), nn.Dropout(0.5)).train()
        if drawn_by == "augmentation":
            model = Augmenting(net())
        v = torch.ones(57, dtype=torch.float64)
        products, refused = [v, v], ""
        try:
            products = products_of(model, F.cross_entropy, [data()], v)
        except ValueError as error:
            refused = str(error)
        assert torch.equal(*products)
        assert ("random numbers" in refused) == (drawn_by == "augmentation")

    def twice_ours(model, loss, batches, v):
        objective = Objective(model, loss, batches)
        return [objective.hvp(objective.theta, v) for _ in range(2)]

    def twice_as_it_stands(model, loss, batches, v):
        products = []
        for _ in range(2):
            value = sum(loss(model(x), y) for x, y in batches)
            gradients = torch.autograd.grad(value, list(model.parameters()), create_graph=True)
            flat = torch.cat([g.reshape(-1) for g in gradients])
            parts = torch.autograd.grad(flat, list(model.parameters()), v)
            products.append(torch.cat([p.reshape(-1) for p in parts]))
        return products

    check(twice_ours)
    with pytest.raises(AssertionError):
        check(twice_as_it_stands)


def test_trap_13_the_kinks_that_no_second_derivative_sees_are_named():
    class ByFunction(nn.Module):
        def __init__(self, *, pooled=False):
            super().__init__()
            self.first, self.last, self.pooled = nn.Linear(5, 6), nn.Linear(6, 3), pooled

        def forward(self, x):
            hidden = self.first(x)
            if self.pooled:
                return self.last(F.max_pool1d(hidden, 3, stride=1, padding=1))
            return self.last(F.relu(hidden))

    def check(kinks_of):
        torch.manual_seed(0)
        layers = nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3)
        for model, kink in (
            (nn.Sequential(*layers), "relu"),
            (ByFunction(), "relu"),
            (ByFunction(pooled=True), "max_pool"),
            (net(), None),
        ):
            names = kinks_of(model.double())
            assert len(names) == (kink is not None)
            assert kink is None or kink.replace("_", "") in names[0].lower().replace("_", "")

    def ours_kinks(model):
        return Objective(model, F.cross_entropy, [data()]).kinks

    def of_the_modules(model):
        return [type(m).__name__ for m in model.modules() if isinstance(m, nn.ReLU | nn.MaxPool1d)]

    check(ours_kinks)
    with pytest.raises(AssertionError):
        check(of_the_modules)


def test_trap_14_fused_attention_has_no_double_backward():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv = nn.Linear(4, 12)

        def forward(self, x):
            q, k, v = (
                part.unflatten(-1, (2, 2)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1)
            )
            return F.scaled_dot_product_attention(q, k, v).mean((1, 2))

    torch.manual_seed(0)
    model, x = Attention().double(), torch.randn(3, 5, 4, dtype=torch.float64)
    y = torch.randn(3, 2, dtype=torch.float64)
    objective = Objective(model, F.mse_loss, [(x, y)])

    def check(product):
        v = torch.ones_like(objective.theta)
        step = 1e-5
        up, down = (objective.gradient(objective.theta + s * step * v) for s in (1, -1))
        try:
            found = product(v)
        except RuntimeError as error:
            raise AssertionError(str(error)) from error
        assert torch.allclose(found, (up - down) / (2 * step), atol=1e-8)

    def plain_double_backward(v):
        loss = F.mse_loss(model(x), y)
        gradients = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
        flat = torch.cat([g.reshape(-1) for g in gradients])
        parts = torch.autograd.grad(flat, list(model.parameters()), v)
        return torch.cat([p.reshape(-1) for p in parts])

    check(lambda v: objective.hvp(objective.theta, v))
    with pytest.raises(AssertionError, match="not implemented"):
        check(plain_double_backward)


def test_trap_15_a_tied_weight_counts_once_and_moves_in_both_places():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(3, 3, bias=False)
            self.second = nn.Linear(3, 3, bias=False)
            self.second.weight = self.first.weight

        def forward(self, x):
            return self.second(self.first(x))

    def check(loss_of):
        torch.manual_seed(0)
        model = Tied().double()
        x = torch.randn(8, 3, dtype=torch.float64)
        value, theta = loss_of(model, F.mse_loss, [(x, torch.zeros_like(x))])
        assert theta.shape == (9,)
        # Both layers are the same matrix A, so the output is A^2 x: the loss scales by 2^4.
        assert value(2 * theta) == pytest.approx(16 * value(theta), rel=1e-12)

    def counting_names(model, loss, batches):
        names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
        tensors = dict(model.named_parameters(remove_duplicate=False))
        theta = torch.cat([tensors[n].detach().reshape(-1) for n in names])

        def value(theta):
            parts = theta.split([tensors[n].numel() for n in names])
            weights = {n: p.view_as(tensors[n]) for n, p in zip(names, parts, strict=True)}
            return float(
                sum(
                    loss(functional_call(model, weights, (x,), tie_weights=False), y)
                    for x, y in batches
                )
            )

        return value, theta

    check(ours)
    with pytest.raises(AssertionError):
        check(counting_names)


def test_trap_15_a_layer_that_runs_twice_counts_once_in_every_product():
    def check(product_of):
        torch.manual_seed(0)
        layer = nn.Linear(3, 3, bias=False)
        model = nn.Sequential(layer, nn.Tanh(), layer).double()
        x = torch.randn(8, 3, dtype=torch.float64)
        y = torch.randn(8, 3, dtype=torch.float64)
        weight = layer.weight.detach().reshape(-1)

        def loss(w):
            return F.mse_loss(torch.tanh(x @ w.view(3, 3).T) @ w.view(3, 3).T, y)

        v = torch.arange(9.0, dtype=torch.float64)
        product = product_of(model, F.mse_loss, [(x, y)], v)
        assert product.shape == (9,)
        assert torch.allclose(product, torch.func.hessian(loss)(weight) @ v, atol=1e-12)

    def our_product(model, loss, batches, v):
        objective = Objective(model, loss, batches)
        return objective.hvp(objective.theta, v)

    def moving_each_name_by_itself(model, loss, batches, v):
        """The block of each place, the other held fixed, and the two added."""
        (x, y), w = batches[0], model[0].weight.detach()
        total = torch.zeros_like(v)
        for place in (0, 2):

            def loss_at(moved, place=place):
                weights = {0: w, 2: w} | {place: moved}
                return loss(torch.tanh(x @ weights[0].T) @ weights[2].T, y)

            block = torch.func.hessian(loss_at)(w).reshape(9, 9)
            total += block @ v
        return total

    check(our_product)
    with pytest.raises(AssertionError):
        check(moving_each_name_by_itself)


def test_trap_15_a_non_contiguous_weight_keeps_its_order():
    def check(loss_of):
        torch.manual_seed(0)
        model = nn.Linear(3, 2, bias=False).double()
        model.weight = nn.Parameter(torch.randn(3, 2, dtype=torch.float64).t())
        assert not model.weight.is_contiguous()
        x = torch.randn(8, 3, dtype=torch.float64)
        y = torch.randn(8, 2, dtype=torch.float64)
        value, theta = loss_of(model, F.mse_loss, [(x, y)])
        assert value(theta) == pytest.approx(float(F.mse_loss(model(x), y).detach()), rel=1e-12)

    def in_storage_order(model, loss, batches):
        theta = model.weight.detach().t().reshape(-1)

        def value(theta):
            return float(sum(loss(x @ theta.view(2, 3).t(), y) for x, y in batches))

        return value, theta

    check(ours)
    with pytest.raises(AssertionError):
        check(in_storage_order)


def test_trap_15_a_parametrised_weight_is_moved_through_its_parametrisation():
    def check(loss_of):
        torch.manual_seed(0)
        model = parametrizations.weight_norm(nn.Linear(3, 2, bias=False)).double()
        x = torch.randn(8, 3, dtype=torch.float64)
        value, theta = loss_of(model, F.mse_loss, [(x, torch.zeros(8, 2, dtype=torch.float64))])
        assert theta.shape == (2 + 6,)  # one gain a row, one direction a row
        doubled = theta.clone()
        doubled[2:] *= 2  # the length of a direction does not matter
        assert value(doubled) == pytest.approx(value(theta), rel=1e-12)

    def moving_the_product(model, loss, batches):
        theta = model.weight.detach().reshape(-1)
        return lambda theta: float(
            sum(loss(x @ theta.view(2, 3).t(), y) for x, y in batches)
        ), theta

    check(ours)
    with pytest.raises(AssertionError):
        check(moving_the_product)


class WithUnused(nn.Module):
    def __init__(self):
        super().__init__()
        self.used = nn.Linear(5, 3)
        self.unused = nn.Linear(2, 2)
        self.frozen = nn.Parameter(torch.zeros(4), requires_grad=False)

    def forward(self, x):
        return self.used(x)


def test_trap_16_unused_parameters_get_zeros_and_frozen_ones_do_not_count():
    def check(gradient_of):
        torch.manual_seed(0)
        try:
            gradient = gradient_of(WithUnused().double(), F.cross_entropy, data())
        except (RuntimeError, TypeError) as error:
            raise AssertionError(str(error)) from error
        assert gradient.shape == (18 + 6,)
        assert torch.count_nonzero(gradient[18:]) == 0
        assert torch.count_nonzero(gradient[:18]) > 0

    def our_gradient(model, loss, batch):
        objective = Objective(model, loss, [batch])
        return objective.gradient(objective.theta)

    def plain(model, loss, batch):
        parameters = [p for p in model.parameters() if p.requires_grad]
        gradients = torch.autograd.grad(loss(model(batch[0]), batch[1]), parameters)
        return torch.cat([g.reshape(-1) for g in gradients])

    check(our_gradient)
    with pytest.raises(AssertionError):
        check(plain)


def test_trap_17_state_dict_tensors_are_live_views():
    def check(loss_of):
        model = net()
        _, theta = loss_of(model, F.cross_entropy, [data()])
        before = theta.clone()
        torch.optim.SGD(model.parameters(), lr=1.0)
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(2)
        assert torch.equal(theta, before)

    def keeping_the_state_dict(model, loss, batches):
        return None, model.state_dict()["0.weight"]

    check(ours)
    with pytest.raises(AssertionError):
        check(keeping_the_state_dict)


def test_trap_18_the_callers_flags_and_gradients_are_not_changed():
    def check(gradient_of):
        model = net(norm=True)
        model.train()
        model[0].eval()
        model[3].bias.requires_grad_(False)
        modes = [m.training for m in model.modules()]
        gradient_of(model, F.cross_entropy, data())
        assert [m.training for m in model.modules()] == modes
        assert all(p.grad is None for p in model.parameters())
        assert [p.requires_grad for p in model[3].parameters()] == [True, False]

    def our_gradient(model, loss, batch):
        objective = Objective(model, loss, [batch])
        return objective.gradient(objective.theta)

    def plain(model, loss, batch):
        model.eval()
        loss(model(batch[0]), batch[1]).backward()

    check(our_gradient)
    with pytest.raises(AssertionError):
        check(plain)


def test_trap_19_reduced_precision_of_the_caller_is_off_while_we_measure():
    class Watched(nn.Module):
        """Remembers in which precision its products were made."""

        def __init__(self):
            super().__init__()
            self.head, self.seen = nn.Linear(5, 3), set()

        def forward(self, x):
            out = self.head(x)
            tf32 = torch.get_float32_matmul_precision() != "highest"
            self.seen.add((out.dtype, tf32))
            return out

    def check(gradient_of):
        model, (x, y) = Watched(), data()
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("medium")  # TF32 and coarser, as trainings set it
        try:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                seen = gradient_of(model, F.cross_entropy, [(x.float(), y)])
            assert torch.get_float32_matmul_precision() == "medium"
        finally:
            torch.set_float32_matmul_precision(before)
        assert seen == {(torch.float32, False)}

    def our_gradient(model, loss, batches):
        objective = Objective(model, loss, batches)
        objective.gradient(objective.theta)
        objective.value(objective.theta)
        objective.hvp(objective.theta, objective.theta)
        return objective._model.seen

    def plain(model, loss, batches):
        for x, y in batches:
            loss(model(x).float(), y).backward()
        return model.seen

    check(our_gradient)
    with pytest.raises(AssertionError):
        check(plain)


def test_trap_25_weight_decay_shifts_the_spectrum_and_is_not_in_the_loss_unless_put_there():
    def check(product_of):
        model, batch = net(), data()
        v = torch.randn(57, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
        decay = 0.1

        def decayed(call, batch):
            squares = sum((p**2).sum() for p in call.tensors.values())
            return F.cross_entropy(call(batch[0]), batch[1]) + decay / 2 * squares

        plain = product_of(model, F.cross_entropy, [batch], v)
        shifted = product_of(model, decayed, [{0: batch[0], 1: batch[1]}], v)
        assert torch.allclose(shifted, plain + decay * v, atol=1e-12)

    def our_product(model, loss, batches, v):
        objective = Objective(model, loss, batches)
        return objective.hvp(objective.theta, v)

    def with_decay_always(model, loss, batches, v):
        return our_product(model, loss, batches, v) + (0.1 * v if loss is F.cross_entropy else 0)

    check(our_product)
    with pytest.raises(AssertionError):
        check(with_decay_always)
