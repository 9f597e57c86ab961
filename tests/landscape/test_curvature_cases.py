"""Every curvature matrix against dense float64 derivatives, over losses, layers and batch forms.

The references know nothing of `landscape`: torch.func on the whole data at once, and one sample's
gradient at a time.
"""

import warnings
from dataclasses import dataclass, field, replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, hessian, jacrev
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from landscape import (
    CentralDifference,
    EmpiricalFisher,
    GaussNewton,
    Hessian,
    MonteCarloFisher,
    Objective,
    Remainder,
    estimate_diagonal,
    hutchinson_trace,
    hutchpp_trace,
    lanczos,
    scan_plane,
    slq_density,
    xtrace,
)
from landscape.sharpness import measure

pytestmark = pytest.mark.slow

F64 = torch.float64
CLOSE = 1e-9


def generator(seed):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=1):
    return torch.randn(*shape, generator=generator(seed), dtype=F64)


def classes(*shape, num=3, seed=2):
    return torch.randint(num, shape, generator=generator(seed))


def mlp():
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 3)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.head(torch.tanh(self.second(torch.tanh(self.first(x)))))


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.spare, self.net = nn.Linear(2, 2), mlp()

    def forward(self, x):
        return self.net(x)


def frozen():
    model = mlp()
    model[0].bias.requires_grad_(False)
    model[2].weight.requires_grad_(False)
    return model


def convolution():
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.SiLU(),
        nn.Conv2d(4, 4, 2, groups=2),
        nn.GroupNorm(2, 4),
        nn.Tanh(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    )
    model[1].running_mean.normal_(generator=generator(7))
    model[1].running_var.uniform_(0.5, 2, generator=generator(8))
    return model


class Attention(nn.Module):
    """Causal attention of two heads, by the fused function."""

    def __init__(self):
        super().__init__()
        self.qkv, self.head = nn.Linear(4, 12), nn.Linear(4, 3)

    def forward(self, x):
        q, k, v = (part.unflatten(-1, (2, 2)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.head(mixed.transpose(1, 2).flatten(2).mean(1))


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 5, activation="gelu", batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.layer(x)[:, 0])


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(3, 3, batch_first=True), nn.Linear(3, 3)

    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])


class Language(nn.Module):
    """Logits of 5 tokens at every position, classes first as torch's loss has them."""

    def __init__(self):
        super().__init__()
        self.embed, self.mix, self.head = nn.Embedding(5, 4), nn.Linear(4, 4), nn.Linear(4, 5)

    def forward(self, tokens):
        hidden = self.embed(tokens).cumsum(1)  # every position sees those before it
        return self.head(torch.tanh(self.mix(hidden))).transpose(1, 2)


@dataclass
class Case:
    model: nn.Module
    loss: object
    x: torch.Tensor
    y: torch.Tensor
    mean: object = None  # the loss as a mean over all terms, where `loss` sums
    softmax: bool = True
    terms_per_row: int = 1  # of losses that are no cross-entropy
    cuts: list = field(default_factory=lambda: [9, 6, 2])

    def __post_init__(self):
        self.mean = self.mean or self.loss
        self.model.to(F64)
        self.model.eval()

    def objective(self):
        return Objective(
            self.model,
            self.loss,
            zip(self.x.split(self.cuts), self.y.split(self.cuts), strict=True),
        )


def ignoring(y):
    y = y.clone()
    y[::3] = 0
    return y


def cases():
    torch.manual_seed(0)
    x, y = normal(17, 5), classes(17)
    values = normal(17, 3, seed=3)
    binary = (values > 0).to(F64)
    weight = torch.tensor([0.2, 1.0, 3.0], dtype=F64)
    pos_weight = torch.tensor([0.5, 2.0, 4.0], dtype=F64)
    mse, bce = F.mse_loss, F.binary_cross_entropy_with_logits
    ce = F.cross_entropy
    regression = {"softmax": False, "terms_per_row": 3}
    tokens = classes(17, 4, num=5, seed=4)
    following = classes(17, 4, num=5, seed=5)
    following[::2, 1] = -100
    return {
        "mse": Case(mlp(), mse, x, values, **regression),
        "mse sum": Case(mlp(), nn.MSELoss(reduction="sum"), x, values, mse, **regression),
        "ce": Case(mlp(), ce, x, y),
        "ce sum": Case(mlp(), partial(ce, reduction="sum"), x, y, ce),
        "ce weighted": Case(mlp(), nn.CrossEntropyLoss(weight=weight), x, y),
        "ce ignoring": Case(mlp(), nn.CrossEntropyLoss(ignore_index=0), x, ignoring(y)),
        "ce smoothed": Case(mlp(), partial(ce, label_smoothing=0.1), x, y),
        "ce of probabilities": Case(mlp(), ce, x, values.softmax(1)),
        "bce": Case(mlp(), bce, x, binary, **regression),
        "bce sum": Case(mlp(), partial(bce, reduction="sum"), x, binary, bce, **regression),
        "bce weighted": Case(mlp(), partial(bce, pos_weight=pos_weight), x, binary, **regression),
        "frozen": Case(frozen(), ce, x, y),
        "tied": Case(Tied(), ce, x, y),
        "unused": Case(Unused(), ce, x, y),
        "convolution": Case(convolution(), ce, normal(17, 1, 5, 5), y),
        "attention": Case(Attention(), ce, normal(17, 4, 4), y),
        "transformer": Case(Transformer(), ce, normal(17, 3, 4), y),
        "lstm": Case(Recurrent(), ce, normal(17, 4, 3), y),
        "tokens": Case(Language(), ce, tokens, following),
    }


NAMES = list(cases())


class Dense:
    """All matrices of a case by torch.func, from the whole data."""

    def __init__(self, case):
        self.case = case
        self.names = [n for n, p in case.model.named_parameters() if p.requires_grad]
        own = dict(case.model.named_parameters())
        self.shapes = [own[n].shape for n in self.names]
        self.theta = torch.cat([own[n].detach().reshape(-1) for n in self.names])

    def outputs(self, theta, x=None):
        pieces = theta.split([shape.numel() for shape in self.shapes])
        weights = {n: p.view(s) for n, p, s in zip(self.names, pieces, self.shapes, strict=True)}
        return functional_call(self.case.model, weights, (self.case.x if x is None else x,))

    def loss(self, theta):
        return self.case.mean(self.outputs(theta), self.case.y)

    def hessian(self):
        with sdpa_kernel(SDPBackend.MATH):
            if isinstance(self.case.model, Transformer):
                # Under torch.func the second derivative of layer norm in its weight is wrong (the
                # matrix is not symmetric; torch 2.13), so row by row, by plain double backward.
                return torch.autograd.functional.hessian(self.loss, self.theta)
            return hessian(self.loss)(self.theta)

    def gauss_newton(self):
        with sdpa_kernel(SDPBackend.MATH):
            output = self.outputs(self.theta)
            jacobian = jacrev(self.outputs)(self.theta).reshape(output.numel(), -1)
        inner = hessian(lambda out: self.case.mean(out.view_as(output), self.case.y))(
            output.detach().reshape(-1)
        )
        return jacobian.T @ inner @ jacobian

    def sample_gradients(self, labels=None):
        """Each sample's gradient, one at a time, and the times that it counts in the mean.

        `labels`: in place of the targets, with their plain negative log-likelihood.
        """
        case, gradients, counts = self.case, [], []
        indexed = case.softmax and not case.y.is_floating_point()
        weight = getattr(case.loss, "weight", None)
        ignored = getattr(case.loss, "ignore_index", -100)
        targets = case.y if indexed else case.y.flatten(1)
        flat = iter(labels) if labels is not None else None
        for row in range(len(case.x)):
            places = [()] if not indexed or case.y.ndim == 1 else [(t,) for t in range(4)]
            for place in places:
                drawn = next(flat) if flat is not None else None
                target = targets[(row, *place)]
                if indexed and int(target) == ignored:
                    continue

                def loss(theta, row=row, place=place, target=target, drawn=drawn):
                    logits = self.outputs(theta, case.x[row : row + 1])[(0, slice(None), *place)]
                    if drawn is not None:
                        return -torch.log_softmax(logits, 0)[drawn]
                    if indexed:  # of one row, so that a class weight cancels
                        smoothing = getattr(case.loss, "keywords", {}).get("label_smoothing", 0.0)
                        return F.cross_entropy(
                            logits[None], target[None], label_smoothing=smoothing
                        )
                    return case.terms_per_row * case.mean(logits[None], target[None])

                with sdpa_kernel(SDPBackend.MATH):
                    gradients.append(grad(loss)(self.theta))
                weighted = indexed and weight is not None
                counts.append(float(weight[target]) if weighted else float(case.terms_per_row))
        return torch.stack(gradients), torch.tensor(counts, dtype=F64)

    def fisher(self, labels=None):
        gradients, counts = self.sample_gradients(labels)
        if self.case.terms_per_row > 1:  # N counts terms, a sample is a row
            return gradients.T @ gradients / counts.sum()
        return gradients.T @ (counts[:, None] * gradients) / counts.sum()


def assert_same_matrix(operator, dense):
    v = normal(operator.size, 4, seed=9)
    scale = float(dense.abs().max())
    assert scale > 0
    assert float((operator @ v - dense @ v).abs().max()) < CLOSE * scale


@pytest.mark.parametrize("name", NAMES)
def test_hessian_gauss_newton_and_remainder_are_the_dense_ones(name):
    case = cases()[name]
    objective, dense = case.objective(), Dense(case)
    assert torch.equal(objective.theta, dense.theta)
    full, outer = dense.hessian(), dense.gauss_newton()
    assert_same_matrix(Hessian(objective), full)
    assert_same_matrix(GaussNewton(objective), outer)
    assert_same_matrix(Remainder(objective), full - outer)


@pytest.mark.parametrize("name", NAMES)
def test_value_and_gradient_are_those_of_the_mean_over_all_data(name):
    case = cases()[name]
    objective, dense = case.objective(), Dense(case)
    value, gradient = objective.value_and_gradient(objective.theta)
    with sdpa_kernel(SDPBackend.MATH):
        truth = float(dense.loss(dense.theta).detach())
        slope = torch.autograd.functional.jacobian(dense.loss, dense.theta)
    assert value == pytest.approx(truth, rel=1e-12)
    assert objective.value(objective.theta) == pytest.approx(truth, rel=1e-12)
    assert float((gradient - slope).abs().max()) < 1e-12 * float(slope.abs().max())


@pytest.mark.parametrize("name", NAMES)
def test_no_matrix_depends_on_the_order_of_batches_or_of_rows(name):
    case = cases()[name]
    rows = torch.randperm(len(case.x), generator=generator(5))
    shuffled = replace(case, x=case.x[rows], y=case.y[rows], cuts=[1, 5, 8, 3])
    here, there = case.objective(), shuffled.objective()
    v = normal(here.num_parameters, seed=9)
    for matrix in (Hessian, GaussNewton, Remainder, EmpiricalFisher):
        one, other = matrix(here) @ v, matrix(there) @ v
        assert float((one - other).abs().max()) < 1e-12 * float(one.abs().max())


@pytest.mark.parametrize("name", NAMES)
def test_empirical_fisher_is_made_of_the_gradients_of_single_samples(name):
    case = cases()[name]
    assert_same_matrix(EmpiricalFisher(case.objective()), Dense(case).fisher())


@pytest.mark.parametrize("name", [n for n, case in cases().items() if case.softmax])
def test_monte_carlo_fisher_is_made_of_the_gradients_at_the_labels_it_drew(name):
    case = cases()[name]
    operator = MonteCarloFisher(case.objective(), seed=3, num_draws=2)
    dense = Dense(case)
    drawn = torch.cat(operator.labels, 1)  # (draws, samples)
    assert_same_matrix(operator, sum(dense.fisher(labels) for labels in drawn) / 2)


@pytest.mark.parametrize("name", NAMES)
def test_the_central_difference_is_the_hessian_to_its_own_accuracy(name):
    objective = cases()[name].objective()
    v = normal(objective.num_parameters, seed=9)
    exact, found = Hessian(objective) @ v, CentralDifference(objective)
    assert float((found @ v - exact).norm()) < 1e-7 * float(exact.norm())


def test_parameters_no_term_hangs_on_have_zero_rows_in_every_matrix():
    objective = cases()["unused"].objective()
    v = torch.ones(objective.num_parameters, dtype=F64)
    for operator in (
        Hessian(objective),
        GaussNewton(objective),
        Remainder(objective),
        EmpiricalFisher(objective),
        MonteCarloFisher(objective, seed=0),
        CentralDifference(objective),
    ):
        product = operator @ v
        assert torch.count_nonzero(product[:6]) == 0
        assert torch.count_nonzero(product[6:]) > 0


# -- Batches of any other form --------------------------------------------------------------------


class Wave(nn.Module):
    """u(x) = sum_j a_j tanh(w_j x + b_j)."""

    def __init__(self):
        super().__init__()
        self.w, self.b, self.a = (nn.Parameter(normal(6, seed=s)) for s in (11, 12, 13))

    def forward(self, x):
        return torch.tanh(x * self.w + self.b) @ self.a


def poisson_residual(model, batch):
    """mean (u'' + sin x)^2 inside, plus u^2 at the ends: no label anywhere."""
    x = batch["inside"].requires_grad_()
    (slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
    (bend,) = torch.autograd.grad(slope.sum(), x, create_graph=True)
    residual = (bend + torch.sin(x)).square().mean()
    return residual + model(batch["ends"]).square().mean(), len(x)


def test_a_physics_informed_loss_has_its_closed_form_hessian():
    inside = torch.linspace(-3, 3, 12, dtype=F64)[:, None]
    ends = torch.tensor([[-3.0], [3.0]], dtype=F64)
    batches = [{"inside": part, "ends": ends} for part in inside.split([7, 5])]
    objective = Objective(Wave(), poisson_residual, batches)

    def loss(theta):  # tanh'' = -2 tanh (1 - tanh^2)
        w, b, a = theta.split(6)
        t = torch.tanh(inside * w + b)
        bend = (-2 * t * (1 - t**2) * w**2) @ a
        residual = (bend + torch.sin(inside[:, 0])).square().mean()
        return residual + (torch.tanh(ends * w + b) @ a).square().mean()

    theta = objective.theta
    assert objective.value(theta) != 0
    dense = hessian(loss)(theta)
    value = float(loss(theta))
    assert objective.value(theta) == pytest.approx(value, rel=1e-12)
    assert torch.allclose(objective.gradient(theta), jacrev(loss)(theta), atol=1e-12)
    assert_same_matrix(Hessian(objective), dense)
    assert not any(batch["inside"].requires_grad for batch in [*batches, *objective.batches])
    for matrix in (GaussNewton, Remainder, EmpiricalFisher):
        with pytest.raises(ValueError, match=r"needs batches of \(inputs, targets\)"):
            matrix(objective) @ theta


def test_a_dict_batch_with_its_number_of_terms_has_the_hessian_of_the_whole():
    case = cases()["tokens"]

    def loss(call, batch):
        counted = int((batch["next"] != -100).sum())
        return F.cross_entropy(call(batch["tokens"]), batch["next"]), counted

    parts = zip(case.x.split(case.cuts), case.y.split(case.cuts), strict=True)
    objective = Objective(case.model, loss, [{"tokens": x, "next": y} for x, y in parts])
    assert_same_matrix(Hessian(objective), Dense(case).hessian())


def mean_squared(call, batch):
    """A regression: one term a value."""
    prediction = call(batch["x"])
    return F.mse_loss(prediction, batch["y"]), prediction.numel()


def several_labels(call, batch):
    """Any number of three labels a row, one of them known for some rows alone: one term a known."""
    logits, known = call(batch["x"]), batch["known"]
    terms = F.binary_cross_entropy_with_logits(logits, batch["y"], reduction="none")
    return (terms * known).sum() / known.sum(), float(known.sum())


@pytest.mark.parametrize("loss", [mean_squared, several_labels])
@pytest.mark.parametrize("cuts", [[17], [9, 6, 2], [1, 15, 1]])
@pytest.mark.parametrize("make", [mlp, frozen, Tied, Unused, convolution])
def test_a_custom_loss_of_dicts_has_the_dense_hessian_however_the_data_are_cut(make, cuts, loss):
    torch.manual_seed(0)
    model = make().to(F64).eval()
    x = normal(17, 1, 5, 5) if make is convolution else normal(17, 5)
    y = normal(17, 3, seed=3)
    known = (normal(17, 3, seed=6) > -0.5).to(F64)
    rows = {"x": x, "y": (y > 0).to(F64) if loss is several_labels else y, "known": known}
    parts = [t.split(cuts) for t in rows.values()]
    batches = [dict(zip(rows, part, strict=True)) for part in zip(*parts, strict=True)]
    objective = Objective(model, loss, batches)
    dense = Dense(SimpleNamespace(model=model, x=x))

    def whole(theta):
        return loss(lambda _: dense.outputs(theta), rows)[0]

    assert objective.num_terms == (float(known.sum()) if loss is several_labels else 51)
    assert objective.value(objective.theta) == pytest.approx(float(whole(dense.theta)), rel=1e-12)
    assert_same_matrix(Hessian(objective), hessian(whole)(dense.theta))


@pytest.mark.parametrize("says_its_terms", [True, False])
def test_a_custom_loss_that_sums_is_divided_by_its_terms_or_refused(says_its_terms):
    """Taken for a mean, a sum over the batch changes with the cuts: 21.5, 10.7, 14.5 here."""
    x, y = normal(10, 5), normal(10, 3, seed=3)

    def summed(call, batch):
        loss = F.mse_loss(call(batch["x"]), batch["y"], reduction="sum")
        return (loss, batch["y"].numel()) if says_its_terms else loss

    torch.manual_seed(0)
    model = mlp().to(F64)
    values = []
    for cuts in ([10], [5, 5], [7, 3]):
        parts = zip(x.split(cuts), y.split(cuts), strict=True)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                objective = Objective(model, summed, [{"x": a, "y": b} for a, b in parts])
        except ValueError:
            continue
        values.append(objective.value(objective.theta))
    assert not values or np.ptp(values) <= 1e-12 * max(values)


# -- Prescribed spectra ---------------------------------------------------------------------------

SPECTRA = {
    "triple": np.r_[50, 50, 50, 20, 15, np.linspace(0, 1, 55)],
    "1 and .999": np.r_[1, 0.999, np.linspace(0, 0.9, 58)],
    "condition 1e8": np.logspace(0, -8, 60),
    "indefinite": np.r_[9, 5, np.linspace(-3, 3, 57), -7],
    "rank 3": np.r_[8, 2, -4, np.zeros(57)],
    "zero": np.zeros(60),
}


def quadratic_of(spectrum, *, theta=0.0):
    """A linear model and a loss of signed squares whose Hessian has exactly these eigenvalues.

    L(theta) = (1/N) sum_i s_i (x_i'theta)^2 / 2,   x_i the rows of sqrt(N) Q,   H = Q' diag(s) Q
    """
    size = len(spectrum)
    q, _ = torch.linalg.qr(normal(size, size, seed=21))
    x, signs = q * size**0.5, torch.from_numpy(np.asarray(spectrum, dtype=np.float64))[:, None]
    model = nn.Linear(size, 1, bias=False).to(F64)
    with torch.no_grad():
        model.weight.fill_(theta)

    def signed_squares(output, weight):
        return (weight * output**2).mean() / 2

    cuts = [size - 33, 32, 1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a loss of zero nothing can be asked
        batches = zip(x.split(cuts), signs.split(cuts), strict=True)
        objective = Objective(model, signed_squares, batches)
    return objective, q.T @ (signs * q)


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("matrix", [Hessian, GaussNewton, CentralDifference])
def test_an_objective_of_a_prescribed_spectrum_has_it_to_both_ends(name, matrix):
    spectrum = np.sort(SPECTRA[name])[::-1].copy()
    objective, dense = quadratic_of(spectrum, theta=0.3)
    operator = matrix(objective)
    scale = max(float(np.abs(spectrum).max()), 1e-12)
    close = 1e-7 if matrix is CentralDifference else 1e-12
    v = normal(60, seed=9)
    assert float((operator @ v - dense @ v).abs().max()) < close * scale * float(v.norm())
    if matrix is CentralDifference:
        return
    pairs = lanczos(operator, num_eigenpairs=4, ends="both", tolerance=1e-9)
    truth = np.r_[spectrum[:4], spectrum[-4:]]
    assert pairs.complete
    np.testing.assert_allclose(pairs.values.numpy(), truth, rtol=1e-9, atol=1e-13 * scale)
    residuals = (dense @ pairs.vectors - pairs.vectors * pairs.values).norm(dim=0)
    assert bool((residuals <= pairs.residuals + 1e-14 * scale).all())


@pytest.mark.parametrize("name", SPECTRA)
def test_every_estimate_of_a_prescribed_spectrum_is_within_its_error(name):
    spectrum = SPECTRA[name]
    objective, dense = quadratic_of(spectrum)
    operator, total = Hessian(objective), float(spectrum.sum())
    rounding = 1e-12 * float(np.abs(spectrum).max())
    pairs = lanczos(operator, num_eigenpairs=3)
    for estimate in (
        hutchinson_trace(operator, num_probes=30),
        hutchinson_trace(operator, num_probes=30, eigenpairs=pairs),
        hutchpp_trace(operator, num_products=30),
        xtrace(operator, num_products=30),
    ):
        assert abs(estimate.value - total) <= 4 * estimate.standard_error + 60 * rounding
    diagonal = estimate_diagonal(operator, num_probes=30, eigenpairs=pairs)
    miss = (diagonal.values - dense.diag()).abs()
    assert bool((miss <= 5 * diagonal.standard_errors + rounding).all())
    density = slq_density(operator, num_runs=10, num_steps=60)
    assert density.mass == pytest.approx(1, abs=1e-5)
    assert abs(density.mean - total / 60) <= 4 * density.mean_standard_error + rounding
    for low, high in ((-np.inf, -1e-3), (0.95, np.inf)):
        share = density.mass_between(low, high)
        truth = float(((spectrum >= low) & (spectrum < high)).mean())
        assert abs(share.value - truth) <= 4 * share.standard_error + 1e-12


@pytest.mark.parametrize("name", SPECTRA)
def test_every_spectral_measure_of_a_prescribed_spectrum_is_its_closed_form(name):
    """At theta = 0 the gradient is 0, and the loss along any line a parabola."""
    spectrum, rho = SPECTRA[name], 0.5
    objective, dense = quadratic_of(spectrum)
    top, bottom = float(spectrum.max()), float(spectrum.min())
    scale = max(top, -bottom, 1e-12)
    truths = {
        "gradient-norm": 0.0,
        "lambda-max:tolerance=1e-8": top,
        "lambda-min:tolerance=1e-8": bottom,
        "spectral-norm:tolerance=1e-8": max(top, -bottom),
        f"worst-case:rho={rho}": rho**2 * max(top, 0) / 2,
        f"min-sharpness:rho={rho}": rho**2 * max(-bottom, 0) / 2,
        f"bilateral:rho={rho}": rho**2 * (max(top, 0) + max(-bottom, 0)) / 2,
        f"sam:rho={rho}": 0.0,
        f"sam-worst-predicted:rho={rho}": rho**2 * max(top, 0) / 2,
    }
    for word, truth in truths.items():
        found = measure(word, objective).value
        assert found == pytest.approx(truth, rel=1e-4, abs=1e-10 * scale), word
        if word.startswith(("worst-case", "min-sharpness", "bilateral")):
            assert found <= truth + 1e-12 * scale  # a lower bound
    average = measure(f"average-case:rho={rho}", objective)
    mean = rho**2 * float(spectrum.sum()) / (2 * 60)
    assert abs(average.value - mean) <= 4 * average.standard_error + 1e-12 * scale
    d1, d2 = normal(2, 60, seed=30)
    axis = np.linspace(-1, 1, 5)
    surface = scan_plane(objective, d1, d2, x=axis, y=axis, exact=True)
    points = [[x * d1 + y * d2 for x in axis] for y in axis]
    parabola = torch.tensor([[float(p @ dense @ p) / 2 for p in row] for row in points])
    torch.testing.assert_close(surface.loss, parabola.to(F64), rtol=1e-6, atol=1e-6 * scale)
