"""Curvature matrices: an Objective at one theta, seen as a symmetric matrix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .differentiability import difference_of_gradients, named_second_derivatives
from .linalg import SymmetricOperator
from .linalg.operator import seeded
from .loss_terms import is_cross_entropy, setting
from .objective import Objective, TwiceDifferentiable
from .per_sample import Samples, samples_of

Curve = Callable[[int, Tensor, Callable[[Tensor], Tensor], Tensor], Tensor]


class Hessian(SymmetricOperator):
    """H = d^2 L / d theta^2 at one theta, (P, P), known by its products.

        H v = d/d theta (grad L(theta) . v),     L the mean loss over all terms of the data

    Units: loss per squared parameter. Weight decay is in H only where the loss has it.

    Attributes:
        approximate: whether the objective's products are differences (`DifferencedObjective`).

    Args:
        objective: L.
        theta: where, shape (P,); default the model's own weights.
    """

    def __init__(self, objective: TwiceDifferentiable, theta: Tensor | None = None) -> None:
        theta = objective.theta if theta is None else theta
        super().__init__(objective.num_parameters, dtype=objective.dtype, device=objective.device)
        self.objective = objective
        self.theta = theta.detach().clone()
        self.approximate = bool(getattr(objective, "approximate", False))

    def _matvec(self, v: Tensor) -> Tensor:
        return self.objective.hvp(self.theta, v)

    def where_not_finite(self, v: Tensor) -> str:
        find = getattr(self.objective, "batch_not_finite", None)
        index = None if find is None else find(self.theta, v)
        return "" if index is None else f", first in batch {index + 1}"


class CentralDifference(SymmetricOperator):
    """The Hessian by differences of gradients: for losses that autograd differentiates but once.

        H v ~ ||v|| (g(theta + h u) - g(theta - h u)) / 2h,   u = v / ||v||,
        h = eps^(1/3) (1 + ||theta||),                        eps of the dtype

    Wrong by h^2 / 6 times the third derivative along u and by the gradient's rounding over h; the
    products are linear and symmetric up to that. `error_of` measures it. Two gradients a product.
    Across a kink (ReLU, max-pooling) a difference of gradients holds jumps over h that grow as h
    shrinks, so such losses are refused unless asked for.

    Attributes:
        approximate: True, for results to show.

    Args:
        objective: L.
        theta: where, shape (P,); default the model's own weights.
        across_kinks: take the difference where there are kinks too.

    Raises:
        ValueError: the loss has kinks and `across_kinks` is False.
    """

    approximate = True

    def __init__(
        self,
        objective: TwiceDifferentiable,
        theta: Tensor | None = None,
        *,
        across_kinks: bool = False,
    ) -> None:
        if not across_kinks:
            _refuse_kinks(objective)
        theta = objective.theta if theta is None else theta
        super().__init__(objective.num_parameters, dtype=objective.dtype, device=objective.device)
        self.objective = objective
        self.theta = theta.detach().clone().to(self.device, self.dtype)

    def error_of(self, v: Tensor) -> float:
        """||H_h v - H_2h v|| / ||H_h v||: three times the product's relative truncation error where
        that rules, its rounding error where that does, and of order 1 across kinks. Four gradients.
        """
        near, far = self @ v, self._difference(v, 2.0)
        norm = float(near.double().norm())
        return float((near - far).double().norm()) / norm if norm else 0.0

    def _matvec(self, v: Tensor) -> Tensor:
        return self._difference(v, 1.0)

    def _difference(self, v: Tensor, steps: float) -> Tensor:
        def gradient(theta: Tensor) -> Tensor:
            return self.objective.value_and_gradient(theta)[1]

        return difference_of_gradients(gradient, self.theta, v, steps=steps)


class DifferencedObjective(Objective):
    """An `Objective` whose Hessian products are central differences of its gradient.

        hvp(theta, v) = CentralDifference(objective, theta) @ v,   two gradients a product

    For losses that autograd differentiates but once: whatever asks an objective for products, by
    `Hessian` or by `hvp`, gets the differences. Parts of it (`over_rows`) keep that. Matrices that
    look inside the loss (Gauss-Newton, Fisher) need second derivatives all the same and are refused
    as they are of an `Objective`.

    Attributes:
        approximate: True, for results to show.

    Args:
        args, options: as `Objective` takes them.
        across_kinks: take the differences where there are kinks too.

    Raises:
        ValueError: as of `Objective`; the loss has kinks and `across_kinks` is False.
    """

    approximate = True

    def __init__(self, *args: Any, across_kinks: bool = False, **options: Any) -> None:
        super().__init__(*args, **options)
        if not across_kinks:
            _refuse_kinks(self)

    def hvp(self, theta: Tensor, v: Tensor) -> Tensor:
        """The Hessian-vector product H(theta) v, shape (P,), wrong as `CentralDifference` is."""
        own = (vector.to(self.device, self.dtype) for vector in (theta, v))
        return difference_of_gradients(self.gradient, *own)


class _OfOutputs(SymmetricOperator):
    """A curvature matrix that looks inside the loss, at one theta, by exact products."""

    approximate = False

    def __init__(self, objective: Objective, theta: Tensor | None = None) -> None:
        theta = objective.theta if theta is None else theta
        super().__init__(objective.num_parameters, dtype=objective.dtype, device=objective.device)
        self.objective = objective
        self.theta = theta.detach().clone()
        objective.require_second_derivatives(self.theta)


class GaussNewton(_OfOutputs):
    """The generalised Gauss-Newton matrix at one theta, (P, P), known by its products.

        G = (1/N) sum_i J_i^T H_i J_i,    J_i = d f_i / d theta,  H_i = d^2 l_i / d f_i^2

    f_i are the model's outputs (logits for cross-entropy) and l_i the loss terms. G is the Hessian
    of the loss with the model replaced by its linearisation; it is positive semi-definite for a
    loss convex in f. J v comes from two reverse passes, which every layer has; forward mode is not
    used.

    Args:
        objective: L, with batches of (inputs, targets) and `loss(output, target)`.
        theta: where, shape (P,); default the model's own weights.

    Raises:
        ValueError: an operation has no second derivative, which J v needs too.

    Source: Schraudolph 2002, "Fast curvature matrix-vector products", section 3.
    """

    def _matvec(self, v: Tensor) -> Tensor:
        return _through_outputs(self.objective, self.theta, v, _loss_curvature)


class Remainder(_OfOutputs):
    """H - G, what the Gauss-Newton matrix leaves out of the Hessian, (P, P), by its products.

        R = (1/N) sum_i sum_c (d l_i / d f_ic) d^2 f_ic / d theta^2

    The model's own curvature weighted by the slopes of the loss: zero where the model is linear or
    fits perfectly, indefinite in general. It is taken as the Hessian of <slopes held fixed, f>, so
    nothing cancels where H and G are nearly the same; one product of it costs one of H.

    Args:
        objective: L, with batches of (inputs, targets) and `loss(output, target)`.
        theta: where, shape (P,); default the model's own weights.

    Raises:
        ValueError: an operation has no second derivative.
    """

    def _matvec(self, v: Tensor) -> Tensor:
        leaf = self.theta.detach().clone().requires_grad_()
        total = torch.zeros(self.size, dtype=torch.float64, device=self.device)
        with torch.enable_grad(), named_second_derivatives():
            for share, output, loss in self.objective.batch_losses(leaf):
                if not output.requires_grad:
                    continue
                slope, _ = _slope(loss, output)
                (gradient,) = torch.autograd.grad(output, leaf, slope.detach(), create_graph=True)
                if not gradient.requires_grad:  # the model is linear in theta
                    continue
                (part,) = torch.autograd.grad(gradient, leaf, v, materialize_grads=True)
                total.add_(part, alpha=share)
        return total.to(self.dtype)


class EmpiricalFisher(SymmetricOperator):
    """The empirical Fisher matrix at one theta, (P, P), known by its products.

        F = (1/N) sum_i g_i g_i^T,      g_i = d l_i / d theta,      L = (1/N) sum_i l_i

    A sample i is a row of the batch, or a position with a class target of its own (a token, where
    it is not ignored); l_i is the sum of its loss terms and N the number of all terms, as in L (so
    for a mean squared error over k outputs N is k times the rows). A term that a class weight
    counts w_i times is counted w_i times here too: w_i g_i g_i^T over the sum of the weights, with
    g_i unweighted. The gradient of the batch, squared, is another matrix, of rank one.

    A product is J^T D J v, with D the outer products of the loss's slopes: the cost of a
    Gauss-Newton product, whatever the number of samples. Units: loss squared per squared parameter.

    Args:
        objective: L, with batches of (inputs, targets) and `loss(output, target)`.
        theta: where, shape (P,); default the model's own weights.

    Raises:
        ValueError: batches of another form; samples that have no gradient of their own, because the
            loss or the model couples them (batch norm on batch statistics); no second derivative.

    Source: Kunstner, Hennig and Balles 2019, "Limitations of the empirical Fisher approximation for
    natural gradient descent", equation 3, divided by N.
    """

    approximate = False

    def __init__(self, objective: Objective, theta: Tensor | None = None) -> None:
        theta = objective.theta if theta is None else theta
        super().__init__(objective.num_parameters, dtype=objective.dtype, device=objective.device)
        self.objective = objective
        self.theta = theta.detach().clone()
        self._samples: list[Samples] = []
        self._num_terms: list[float] = []  # N_b
        with torch.no_grad():
            for share, output, loss, target in objective.batch_outputs(self.theta):
                self._samples.append(samples_of(objective.loss, output, target, mean_loss=loss))
                self._num_terms.append(share * objective.num_terms)
            objective.require_separate_rows(self.theta)
        objective.require_second_derivatives(self.theta)

    def _matvec(self, v: Tensor) -> Tensor:
        return _through_outputs(self.objective, self.theta, v, self._squared_slopes)

    def _squared_slopes(
        self, index: int, output: Tensor, loss: Callable[[Tensor], Tensor], jv: Tensor
    ) -> Tensor:
        # slope = w_i (d l_i / d f_i) / N_b; the batch's part is (1/N_b) sum_i w_i g_i g_i^T J v.
        samples, num_terms = self._samples[index], self._num_terms[index]
        slope = _slope(loss, output)[0].detach()
        along = samples.sum(slope * jv) * (num_terms / samples.weights)
        along = torch.where(samples.weights > 0, along, 0.0)
        return slope * samples.spread(along, output)


class MonteCarloFisher(SymmetricOperator):
    """The Fisher matrix of a softmax with labels drawn from the model itself, (P, P), by products.

        F = (1/N) sum_i w_i (1/M) sum_m g_im g_im^T,    g_im = -d log p(y_im | x_i) / d theta,
        y_im ~ p(. | x_i) = softmax(f_i),               E F = G

    Its expectation over the draws is the Gauss-Newton matrix of the same cross-entropy, class
    weights w_i and ignored targets included (outputs that are log-probabilities, of `NLLLoss`, have
    the same Fisher matrix, but a G of zero: that loss is linear in them). The labels are drawn
    once, at construction, so products are those of one fixed matrix. A product costs one of
    `GaussNewton`, whatever M is.

    Attributes:
        labels: y_im by batch, each (num_draws, samples of the batch), a position each for tokens.

    Args:
        objective: L, a cross-entropy of logits with batches of (inputs, targets).
        theta: where, shape (P,); default the model's own weights.
        num_draws: M, labels drawn for each sample.
        seed: same seed, same labels, on every device.

    Raises:
        ValueError: num_draws < 1; a loss other than cross-entropy; class weights together with
            class probabilities as targets; no second derivative.

    Source: Martens 2020, "New insights and perspectives on the natural gradient method",
    sections 5 and 9.2.
    """

    approximate = False

    def __init__(
        self,
        objective: Objective,
        theta: Tensor | None = None,
        *,
        num_draws: int = 1,
        seed: int,
    ) -> None:
        if num_draws < 1:
            raise ValueError(f"num_draws must be >= 1, got {num_draws}")
        theta = objective.theta if theta is None else theta
        super().__init__(objective.num_parameters, dtype=objective.dtype, device=objective.device)
        self.objective = objective
        self.theta = theta.detach().clone()
        self.num_draws, self.seed = num_draws, seed
        self.labels: list[Tensor] = []
        self._samples: list[Samples] = []
        generator = seeded(seed)
        with torch.no_grad():
            for _, output, loss, target in objective.batch_outputs(self.theta):
                samples = samples_of(objective.loss, output, target, mean_loss=loss)
                self._check_likelihood(output, loss, target, samples)
                logits = self._logits(output, samples).cpu().double()
                drawn = torch.multinomial(
                    torch.softmax(logits, 1), num_draws, replacement=True, generator=generator
                )
                self._samples.append(samples)
                self.labels.append(drawn.T.contiguous().to(self.device))
        objective.require_second_derivatives(self.theta)

    def _check_likelihood(
        self, output: Tensor, loss: Callable[[Tensor], Tensor], target: Tensor, samples: Samples
    ) -> None:
        """Raises ValueError unless the loss is the cross-entropy of a softmax of the output."""
        own = self.objective.loss
        if samples.dimension is not None and target.is_floating_point():
            if setting(own, "weight") is not None:
                raise ValueError("class weights with class probabilities: no likelihood to draw of")
            target = target.movedim(1, -1).flatten(0, -2)
        elif samples.dimension is not None:
            target = target.flatten()
        if samples.dimension is not None and output.shape[samples.dimension] > 1:
            smoothing = setting(own, "label_smoothing", 0.0) if is_cross_entropy(own) else 0.0
            expected = functional.cross_entropy(
                self._logits(output, samples),
                target,
                ignore_index=setting(own, "ignore_index", -100),
                weight=setting(own, "weight") if is_cross_entropy(own) else None,
                label_smoothing=smoothing,
            )
            found = loss(output)
            tolerance = 1e3 * torch.finfo(output.dtype).eps * (1 + float(expected.abs()))
            if not abs(float(found) - float(expected)) > tolerance:  # nan is no contradiction
                return
        raise ValueError("the Monte-Carlo Fisher needs a cross-entropy of logits to draw labels of")

    @staticmethod
    def _logits(output: Tensor, samples: Samples) -> Tensor:
        """The logits, shape (samples, classes)."""
        assert samples.dimension is not None
        return output.movedim(samples.dimension, -1).flatten(0, -2)

    def _matvec(self, v: Tensor) -> Tensor:
        return _through_outputs(self.objective, self.theta, v, self._squared_scores)

    def _squared_scores(
        self, index: int, output: Tensor, loss: Callable[[Tensor], Tensor], jv: Tensor
    ) -> Tensor:
        # d(-log p_y)/df = p - e_y, so with s_m = <p - e_{y_m}, Jv> the part is mean_m s_m (p - e_m)
        samples, labels = self._samples[index], self.labels[index].T
        p = torch.softmax(self._logits(output, samples), 1)
        along = self._logits(jv, samples)
        scores = (p * along).sum(1, keepdim=True) - along.gather(1, labels)
        pulled = p * scores.sum(1, keepdim=True)
        pulled = pulled.scatter_add(1, labels, -scores) / self.num_draws
        weights = samples.weights / samples.weights.sum()
        assert samples.dimension is not None
        moved = output.movedim(samples.dimension, -1).shape
        return (pulled * weights.flatten()[:, None]).view(moved).movedim(-1, samples.dimension)


def kinks_of(objective: TwiceDifferentiable) -> tuple[str, ...]:
    """The operations of an objective whose first derivative jumps; none for a plain function."""
    return tuple(getattr(objective, "kinks", ()))


def _refuse_kinks(objective: TwiceDifferentiable) -> None:
    kinks = kinks_of(objective)
    if kinks:
        raise ValueError(
            f"a difference of gradients jumps across the kinks of {', '.join(kinks)}; "
            "across_kinks=True takes it all the same"
        )


def _through_outputs(objective: Objective, theta: Tensor, v: Tensor, curve: Curve) -> Tensor:
    """sum_b share_b J_b^T curve(b, f_b, loss_b, J_b v), shape (P,), J_b = d f_b / d theta."""
    leaf = theta.detach().clone().requires_grad_()
    total = torch.zeros(len(leaf), dtype=torch.float64, device=objective.device)
    with torch.enable_grad(), named_second_derivatives():
        for index, (share, output, loss) in enumerate(objective.batch_losses(leaf)):
            if not output.requires_grad:
                continue
            free = torch.zeros_like(output, requires_grad=True)
            (pullback,) = torch.autograd.grad(output, leaf, free, create_graph=True)
            (jv,) = torch.autograd.grad(pullback, free, v)
            curved = curve(index, output.detach(), loss, jv)
            (part,) = torch.autograd.grad(output, leaf, curved)
            total.add_(part, alpha=share)
    return total.to(objective.dtype)


def _loss_curvature(
    index: int, output: Tensor, loss: Callable[[Tensor], Tensor], jv: Tensor
) -> Tensor:
    """H_out J v, of the output's shape."""
    slope, point = _slope(loss, output)
    if not slope.requires_grad:  # a loss linear in the output has no curvature
        return torch.zeros_like(output)
    return torch.autograd.grad(slope, point, jv, materialize_grads=True)[0]


def _slope(loss: Callable[[Tensor], Tensor], output: Tensor) -> tuple[Tensor, Tensor]:
    """d loss / d output with its graph, and the point that it hangs on."""
    point = output.detach().requires_grad_()
    value = loss(point)
    if not value.requires_grad:  # a loss that does not look at the output
        return torch.zeros_like(point), point
    (slope,) = torch.autograd.grad(value, point, create_graph=True, materialize_grads=True)
    return slope, point
