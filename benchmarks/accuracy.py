"""Each quantity beside its truth: the error seen, the error stated, the cost.

`python -m benchmarks.accuracy` measures all of them and prints one table; it ends with exit code 1
where a row does not hold. `--json FILE` writes the table, `--write FILE` puts it between the
markers of a page (docs/accuracy.md).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.stats import norm
from torch import Tensor, nn
from torch.nn import functional as F

from landscape import (
    CentralDifference,
    EmpiricalFisher,
    GaussNewton,
    Hessian,
    MonteCarloFisher,
    Objective,
    Remainder,
    batch_lambda_max,
    estimate_diagonal,
    gradient_alignment,
    gradient_covariance_trace,
    grid_topology,
    hutchinson_trace,
    hutchpp_trace,
    lanczos,
    line_barrier,
    power_iteration,
    sampling_errors,
    scan_plane,
    slq_density,
    trajectory_plane,
    xtrace,
)
from landscape.directions import filter_normalised
from landscape.estimate import Cost, Estimate
from landscape.linalg import MatrixOperator
from landscape.second_opinion import ask_pyhessian
from landscape.sharpness import measure
from landscape.surface import automatic_range

from .truths import Dense, Quadratic, highest_at_corners, highest_in_ball, normal

ROUNDING = 1e-9  # of the truth's size: what an exact number may be off by
SEARCHED = 1e-3  # of the truth: what a search may fall short by

# What a stated error promises, as a multiple of it that the error seen may reach.
PROMISES = {"standard error": 4.0, "residual": 1.0, "held-out error": 4.0, "tolerance": 1.0}


@dataclass(frozen=True)
class Row:
    """One quantity measured where its truth is known.

    Attributes:
        quantity: what, and by which method.
        source: where the truth comes from.
        truth, value: numbers; of vectors their lengths.
        error: |value - truth|, of vectors the length of the difference.
        stated: the error that the result states; None where it states none.
        kind: what that is: a key of `PROMISES`, "exact" or "lower bound".
        cost: as the result states it.
    """

    quantity: str
    source: str
    truth: float
    value: float
    error: float
    stated: float | None
    kind: str
    cost: Cost

    @property
    def holds(self) -> bool:
        """Whether the error seen is what the kind of number promises."""
        slack = ROUNDING * max(abs(self.truth), 1e-3)
        if self.kind == "lower bound":
            return self.value <= self.truth + slack and self.error <= SEARCHED * abs(self.truth)
        allowed = 0.0 if self.stated is None else PROMISES[self.kind] * self.stated
        return self.error <= allowed + slack


def compared(
    quantity: str,
    source: str,
    truth: float | Tensor,
    value: float | Tensor,
    cost: Cost,
    *,
    stated: float | None = None,
    kind: str = "exact",
) -> Row:
    """A row from two numbers, or from two vectors: then by length."""
    if isinstance(truth, Tensor) and isinstance(value, Tensor):
        lengths = [float(torch.linalg.vector_norm(v)) for v in (truth, value, value - truth)]
        return Row(quantity, source, *lengths, stated, kind, cost)
    truth, value = float(truth), float(value)
    return Row(quantity, source, truth, value, abs(value - truth), stated, kind, cost)


def estimated(quantity: str, source: str, truth: float, found: Estimate) -> Row:
    """A row of an Estimate, by its own kind."""
    if found.kind == "lower bound":
        return compared(quantity, source, truth, found.value, found.cost, kind="lower bound")
    if found.standard_error is not None:
        return compared(
            quantity, source, truth, found.value, found.cost,
            stated=found.standard_error, kind="standard error",
        )  # fmt: skip
    residual = found.details.get("residual")
    return compared(
        quantity, source, truth, found.value, found.cost,
        stated=residual, kind="exact" if residual is None else "residual",
    )  # fmt: skip


# -- The loss and its matrices --------------------------------------------------------------------


def small_net(activation: type[nn.Module] = nn.Tanh, *, num_steps: int = 150) -> Dense:
    """A net of 75 parameters, trained for a while on 60 points of three classes."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 8), activation(), nn.Linear(8, 3)).double()
    x = normal(60, 5, seed=1)
    y = (x[:, :3] + 0.5 * normal(60, 3, seed=2)).argmax(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    for _ in range(num_steps):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return Dense(model, F.cross_entropy, x, y)


def objective_of(dense: Dense) -> Objective:
    """The same net and data in three uneven batches."""
    cuts = [31, 22, 7]
    batches = list(zip(dense.x.split(cuts), dense.y.split(cuts), strict=True))
    return Objective(dense.model, dense.loss, batches)


def losses_and_matrices(dense: Dense, objective: Objective) -> Iterator[Row]:
    theta, v = dense.theta, normal(len(dense.theta), seed=3)
    with torch.no_grad():
        loss = float(dense.value(theta))
    yield compared(
        "loss over three uneven batches", "one forward pass over all data", loss,
        objective.value(objective.theta), Cost(forwards=1),
    )  # fmt: skip
    yield compared(
        "gradient", "torch.func.grad", dense.gradient(), objective.gradient(objective.theta),
        Cost(gradients=1),
    )  # fmt: skip
    h, g = dense.hessian(), dense.gauss_newton()
    scores = dense.sample_gradients()
    for name, operator, source, matrix in (
        ("Hessian", Hessian(objective), "torch.func.hessian", h),
        ("Gauss-Newton", GaussNewton(objective), "J'H_out J by torch.func", g),
        ("remainder H - G", Remainder(objective), "their dense difference", h - g),
        (
            "empirical Fisher",
            EmpiricalFisher(objective),
            "one sample's gradient at a time",
            scores.T @ scores / len(scores),
        ),
    ):
        yield compared(f"{name} product", source, matrix @ v, operator @ v, Cost(products=1))
    drawn = [MonteCarloFisher(objective, seed=seed, num_draws=10) for seed in range(30)]
    forms = np.array([float(v @ (operator @ v)) for operator in drawn])
    yield compared(
        "Monte-Carlo Fisher, v'Fv of 300 draws", "v'Gv, its expectation", float(v @ g @ v),
        float(forms.mean()), Cost(products=30), stated=float(forms.std(ddof=1)) / 30**0.5,
        kind="standard error",
    )  # fmt: skip
    difference = CentralDifference(objective)
    product = difference @ v
    yield compared(
        "Hessian product by central difference", "torch.func.hessian", h @ v, product,
        Cost(gradients=2), stated=difference.error_of(v) * float(product.norm()),
        kind="tolerance",
    )  # fmt: skip


# -- Spectra --------------------------------------------------------------------------------------

HARD = {
    "50, 50, 50 over a bulk of 995": np.r_[[50.0, 50.0, 50.0, 20.0, 15.0], np.full(995, 0.1)],
    "condition 1e8": np.logspace(0, -8, 200),
    "indefinite": np.r_[[9.0, 5.0], np.linspace(-3, 3, 197), [-7.0]],
    "rank 3": np.r_[[50.0, 50.0, 3.0], np.zeros(197)],
}


def rotated(spectrum: np.ndarray, seed: int = 5) -> MatrixOperator:
    """R diag(spectrum) R with one reflection R."""
    u = torch.nn.functional.normalize(normal(len(spectrum), seed=seed), dim=0)
    reflection = torch.eye(len(spectrum), dtype=torch.float64) - 2 * torch.outer(u, u)
    matrix = reflection @ (torch.from_numpy(spectrum)[:, None] * reflection)
    return MatrixOperator((matrix + matrix.T) / 2)


def spectra(dense: Dense, objective: Objective) -> Iterator[Row]:
    h = dense.hessian()
    truths, operator = torch.linalg.eigvalsh(h).flip(0), Hessian(objective)
    pairs = lanczos(operator, num_eigenpairs=5, ends="both")
    for end, truth in (("top", truths[:5]), ("bottom", truths[-5:])):
        found = pairs.at(end)
        assert found.complete, f"the {end} end is not confirmed"
        yield compared(
            f"five {end} eigenvalues of the net", "eigvalsh of the dense Hessian", truth,
            found.values, pairs.cost, stated=float(found.residuals.norm()), kind="residual",
        )  # fmt: skip
    for name, spectrum in HARD.items():
        found = lanczos(rotated(spectrum), num_eigenpairs=4, ends="both", tolerance=1e-6)
        ordered = np.sort(spectrum)[::-1]
        assert found.complete, f"{name}: not confirmed"
        yield compared(
            f"four eigenvalues at each end, {name}", "prescribed",
            torch.tensor(np.r_[ordered[:4], ordered[-4:]]), found.values, found.cost,
            stated=float(found.residuals.norm()), kind="residual",
        )  # fmt: skip
    largest = truths[truths.abs().argmax()]
    slow = power_iteration(operator, tolerance=1e-4)
    yield compared(
        "largest eigenvalue by power iteration", "eigvalsh of the dense Hessian",
        float(largest), float(slow.values[0]), slow.cost, stated=float(slow.residuals[0]),
        kind="residual",
    )  # fmt: skip
    trace = float(h.trace())
    for name, estimate in (
        ("Hutchinson, 64 probes", hutchinson_trace(operator, num_probes=64)),
        (
            "Hutchinson, 32 probes beside 10 eigenpairs",
            hutchinson_trace(operator, num_probes=32, eigenpairs=pairs),
        ),
        ("Hutch++", hutchpp_trace(operator, num_products=60)),
        ("XTrace", xtrace(operator, num_products=60)),
    ):
        yield estimated(f"trace by {name}", "trace of the dense Hessian", trace, estimate)
    diagonal = estimate_diagonal(operator, num_probes=64, eigenpairs=pairs)
    yield compared(
        "diagonal, 64 probes beside 10 eigenpairs", "diagonal of the dense Hessian", h.diag(),
        diagonal.values, diagonal.cost, stated=float(diagonal.standard_errors.norm()),
        kind="standard error",
    )  # fmt: skip
    density = slq_density(operator, num_runs=20, num_steps=40)
    cut = float(truths[8] + truths[9]) / 2
    share = density.mass_between(cut, math.inf)
    yield estimated("spectral mass above the ninth value", "counted: 9 of 75", 9 / 75, share)
    opinion = ask_pyhessian(
        dense.model, dense.loss, [(dense.x, dense.y)], eigenpairs=pairs, num_probes=20
    )
    assert opinion.agrees, opinion.message
    yield compared(
        "lambda_max by PyHessian, the second opinion", "eigvalsh of the dense Hessian",
        float(truths[0]), opinion.eigenvalues[0], Cost(), stated=0.05 * float(truths[0]),
        kind="tolerance",
    )  # fmt: skip


# -- What the data do to it -----------------------------------------------------------------------

SCALES = torch.tensor([3.0, 1.5, 1.0, 0.5], dtype=torch.float64)


def regression(num_rows: int, *, seed: int) -> tuple[Objective, Tensor, Tensor]:
    """Linear regression with x ~ N(0, diag(SCALES^2)), away from its solution."""
    x = SCALES * normal(num_rows, 4, seed=seed)
    y = x.sum(1, keepdim=True) + normal(num_rows, 1, seed=seed + 10_000)
    model = nn.Linear(4, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.3, 0.6, 1.5, 2.0]]))
    return Objective(model, F.mse_loss, [(x, y)]), x, y


def data_as_a_sample(dense: Dense, objective: Objective) -> Iterator[Row]:
    held, cost = 0, Cost()
    for seed in range(100):
        sample, _, _ = regression(400, seed=seed)
        vectors = lanczos(Hessian(sample), num_eigenpairs=1).vectors
        found = sampling_errors(sample, vectors=vectors, num_groups=20, seed=seed)
        low, high = found.eigenvalues[0].details["interval"]
        held, cost = held + (low <= 2 * 9.0 <= high), found.cost
    yield compared(
        "share of sampling intervals that hold lambda_max", "nominal level; lambda_max = 18",
        0.95, held / 100, cost, stated=math.sqrt(0.95 * 0.05 / 100), kind="standard error",
    )  # fmt: skip
    scores = dense.sample_gradients()
    covariance = float(torch.cov(scores.T).trace())
    yield estimated(
        "gradient noise tr S", "one sample's gradient at a time", covariance,
        gradient_covariance_trace(objective),
    )  # fmt: skip
    h, g, alignment = dense.hessian(), dense.gradient(), gradient_alignment(objective)
    assert alignment.curvature is not None
    yield compared(
        "curvature along the gradient", "u'Hu of the dense Hessian", float(g @ h @ g / (g @ g)),
        alignment.curvature, alignment.cost,
    )  # fmt: skip
    sample, x, _ = regression(400, seed=7)
    generator = torch.Generator().manual_seed(1)
    tops = [
        float(torch.linalg.eigvalsh(2 / 32 * part.T @ part)[-1])
        for part in (x[torch.randperm(400, generator=generator)[:32]] for _ in range(20_000))
    ]
    yield estimated(
        "lambda_max of batches of 32, 40 batches", "20,000 batches, 2/B X'X", float(np.mean(tops)),
        batch_lambda_max(sample, batch_size=32, num_batches=40),
    )  # fmt: skip


# -- Surfaces and paths ---------------------------------------------------------------------------


def surfaces() -> Iterator[Row]:
    flat = quadratic()
    objective = Objective(flat.model, flat.loss, flat.batches)
    d1, d2 = normal(2, len(flat.theta), seed=40)
    axis = np.linspace(-1, 1, 9)
    surface = scan_plane(objective, d1, d2, x=axis, y=axis, exact=True)
    h, g = torch.from_numpy(flat.hessian), torch.from_numpy(flat.gradient)
    truth = [
        flat.value + float(g @ e + e @ h @ e / 2)
        for y in axis
        for x in axis
        for e in [x * d1 + y * d2]
    ]
    yield compared(
        "plane of a quadratic, every point", "its parabola",
        torch.tensor(truth, dtype=torch.float64), surface.loss.flatten(), surface.cost,
    )  # fmt: skip
    d = d1 / d1.norm()
    found = automatic_range(objective, d, multiple=4.0)
    rise = 3 * max(abs(flat.value), 0.1)
    slope, bend = abs(float(g @ d)), float(d @ h @ d)
    crossing = (math.sqrt(slope**2 + 2 * bend * rise) - slope) / bend
    yield compared(
        "range where the loss rises fourfold", "root of the parabola", crossing, found.value,
        found.cost, stated=0.02 * crossing, kind="tolerance",
    )  # fmt: skip

    net = small_net(nn.ReLU)
    objective = objective_of(net)
    first, second = (
        filter_normalised(objective.space, objective.theta, model=net.model, seed=seed)
        for seed in (0, 1)
    )
    half = max(automatic_range(objective, d).value for d in (first, second))
    axis = np.linspace(-half, half, 51)
    exact, guessed = (
        scan_plane(objective, first, second, x=axis, y=axis, exact=exact) for exact in (True, False)
    )
    miss = (guessed.loss - exact.loss).abs()
    error = guessed.interpolation_error
    assert error is not None, guessed.reason
    worst = int(miss.argmax())
    yield compared(
        f"interpolated surface of a ReLU net, worst of {guessed.num_points}", "every point",
        float(exact.loss.flatten()[worst]), float(guessed.loss.flatten()[worst]), guessed.cost,
        stated=error.maximum, kind="held-out error",
    )  # fmt: skip

    wells = Objective(
        _Square(), F.mse_loss, [(torch.ones(4, 1).double(), torch.ones(4, 1).double())]
    )
    ends = [torch.tensor([value], dtype=torch.float64) for value in (-1.0, 1.0)]
    barrier = line_barrier(wells, *ends, num_points=25)
    yield compared(
        "barrier between two wells", "(w^2 - 1)^2 at w = 0", 1.0, barrier.height, barrier.cost,
        kind="lower bound",
    )  # fmt: skip
    grid = grid_topology([[9, 9, 9, 9, 9], [9, 1, 5, 2, 9], [9, 9, 9, 9, 9]])
    yield compared(
        "total persistence of a grid", "by hand: 5 - 2", 3.0, grid.total_persistence, grid.cost
    )
    steps = list(normal(12, 30, seed=41).cumsum(0))
    points = torch.stack(steps) - steps[-1]
    squares = torch.linalg.svdvals(points[:-1]) ** 2
    plane = trajectory_plane(steps, seed=0)
    yield compared(
        "share that a trajectory's plane captures", "singular values",
        float(squares[:2].sum() / squares.sum()), plane.total_captured, plane.cost,
    )  # fmt: skip


class _Square(nn.Module):
    """f(x) = w^2 x."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(1, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.w**2 * x


# -- Sharpness ------------------------------------------------------------------------------------


def quadratic() -> Quadratic:
    """An indefinite quadratic of 40 parameters, a few eigenvalues far above the others."""
    spectrum = np.r_[[20.0, 12.0, 7.0], np.geomspace(3, 0.01, 29), -np.geomspace(0.05, 2, 8)]
    return Quadratic(spectrum, slope=1.0)


def sharpness(dense: Dense, objective: Objective) -> Iterator[Row]:
    yield from _on_a_quadratic()
    yield from _of_losses_of_their_own(dense, objective)


def _on_a_quadratic() -> Iterator[Row]:
    flat, rho = quadratic(), 0.5
    objective = Objective(flat.model, flat.loss, flat.batches)
    h, g = flat.hessian, flat.gradient
    values, trace, size = np.linalg.eigvalsh(h), float(h.trace()), len(g)
    length = float(np.linalg.norm(g))
    curvature = float(g @ h @ g) / length**2
    up, down = highest_in_ball(h, g, rho), highest_in_ball(-h, -g, rho)
    t = np.abs(flat.theta)
    scaled, slope = t[:, None] * h * t, t * g
    ascent = rho * length + rho**2 * curvature / 2
    negative = float((values < -1e-4 * values[-1]).mean())
    ball, closed = "secular equation's dual", "closed form"
    for word, source, truth in (
        ("gradient-norm", closed, length),
        ("lambda-max", "prescribed", values[-1]),
        ("lambda-min", "prescribed", values[0]),
        ("spectral-norm", "prescribed", np.abs(values).max()),
        ("negative-mass:num_runs=20:num_lanczos_steps=40", "counted: 8 of 40", negative),
        ("trace", "prescribed", trace),
        (f"sam:rho={rho}", closed, ascent),
        (f"worst-case:rho={rho}", ball, up),
        (f"min-sharpness:rho={rho}:num_steps=60", ball, down),
        (f"bilateral:rho={rho}:num_steps=60", ball, up + down),
        (f"adaptive-worst-case:rho={rho}", f"{ball}, T H T", highest_in_ball(scaled, slope, rho)),
        (f"average-case:rho={rho}", "rho^2 tr H / 2P", rho**2 * trace / (2 * size)),
        (
            f"adaptive-average-case:rho={rho}",
            "rho^2 tr THT / 2P",
            rho**2 * float(scaled.trace()) / (2 * size),
        ),
        (
            f"sam-worst-predicted:rho={rho}",
            "rho ||g|| + rho^2 lambda_max / 2",
            rho * length + rho**2 * values[-1] / 2,
        ),
        (f"sam-ascent-predicted:rho={rho}", closed, ascent),
        (f"sam-average-predicted:rho={rho}", "rho^2 tr H / 2P", rho**2 * trace / (2 * size)),
    ):
        found = measure(word, objective)
        row = estimated(f"`{word}`", source, float(truth), found)
        if word.startswith("sam-worst-predicted"):  # known as well as lambda_max is
            residual = rho**2 / 2 * found.details["residual"]
            row = dataclasses.replace(row, stated=residual, kind="residual")
        yield row


def _of_losses_of_their_own(dense: Dense, objective: Objective) -> Iterator[Row]:
    bowl = Quadratic(np.geomspace(4, 0.1, 30), slope=0.0, away=0.0)
    yield estimated(
        "`pac-bayes-loss:num_draws=200` at a minimum", "tr H / 2 rise",
        float(bowl.hessian.trace()) / 0.2,
        measure(
            "pac-bayes-loss:num_draws=200", Objective(bowl.model, bowl.loss, bowl.batches)
        ),
    )  # fmt: skip
    small = Quadratic(np.r_[np.geomspace(4, 0.1, 6), np.zeros(4)], slope=0.2, seed=9)
    box = 0.1 * (np.abs(small.theta) + 1)
    corner = highest_at_corners(small.hessian, small.gradient, box)
    yield estimated(
        "`epsilon-sharpness:epsilon=0.1`", "all 1,024 corners",
        100 * corner / (1 + small.value),
        measure(
            "epsilon-sharpness:epsilon=0.1:num_restarts=6",
            Objective(small.model, small.loss, small.batches),
        ),
    )  # fmt: skip
    sample, x, y = regression(60, seed=3)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    residual = x @ sample.theta[:, None] - y
    worst = [
        highest_in_ball(
            (2 / 12 * x[rows].T @ x[rows]).numpy(),
            (2 / 12 * x[rows].T @ residual[rows])[:, 0].numpy(),
            0.3,
        )
        for rows in order.split(12)
    ]
    yield estimated(
        "`m-sharpness:m=12:rho=0.3`", "the same of every group", float(np.mean(worst)),
        measure("m-sharpness:m=12:rho=0.3", sample, seed=0),
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Linear(5, 8, bias=False), nn.ReLU(), nn.Linear(8, 8, bias=False), nn.ReLU()]
        model = nn.Sequential(*layers, nn.Linear(8, 3, bias=False)).double()
    f = model(dense.x).detach()
    slopes = f.softmax(1) - F.one_hot(dense.y, 3)  # of each sample's own cross-entropy
    yield estimated(
        "`fisher-rao` of a bias-free ReLU net of 3 layers", "9 mean <dl/df, f>^2",
        9 * float((slopes * f).sum(1).square().mean()),
        measure("fisher-rao", Objective(model, F.cross_entropy, [(dense.x, dense.y)])),
    )  # fmt: skip
    h, last = dense.hessian(), dense.model[2].weight.detach()
    begin = 5 * 8 + 8
    blocks = h[begin : begin + 24, begin : begin + 24].reshape(3, 8, 3, 8)
    yield estimated(
        "`relative-flatness` of the net", "blocks of the dense Hessian",
        float(torch.einsum("sjtj,sk,tk->", blocks, last, last)),
        measure("relative-flatness", objective),
    )  # fmt: skip
    one = nn.Linear(1, 1, bias=False).double()
    with torch.no_grad():
        one.weight.fill_(2.0)
    ones = torch.ones(10, 1, dtype=torch.float64)
    sign = Objective(one, F.binary_cross_entropy_with_logits, [(ones, ones)])
    yield estimated(
        "`pac-bayes:num_draws=1000` of a sign", "error Phi(-w / sigma)",
        (float(norm.ppf(0.9)) / 2) ** 2, measure("pac-bayes:num_draws=1000", sign),
    )  # fmt: skip


# -- The table ------------------------------------------------------------------------------------


def run() -> Iterator[Row]:
    """All rows, in the order of the page."""
    dense = small_net()
    objective = objective_of(dense)
    groups: list[Callable[[], Iterator[Row]]] = [
        lambda: losses_and_matrices(dense, objective),
        lambda: spectra(dense, objective),
        lambda: data_as_a_sample(dense, objective),
        surfaces,
        lambda: sharpness(dense, objective),
    ]
    for group in groups:
        yield from group()


HEADER = (
    "quantity", "truth from", "truth", "ours", "error seen", "stated", "products", "gradients",
    "forwards",
)  # fmt: skip


def cells(row: Row) -> tuple[str, ...]:
    """A row in words, one cell a column of `HEADER`."""
    cost = row.cost
    spent = (cost.products, cost.gradients, cost.forwards)
    stated = row.kind if row.stated is None else f"{row.stated:.1e} ({row.kind})"
    return (
        row.quantity, row.source, f"{row.truth:.6g}", f"{row.value:.6g}", f"{row.error:.1e}",
        stated,
        *("" if not number else f"{number:.4g}" for number in spent),
    )  # fmt: skip


def page_table(rows: list[Row]) -> str:
    """The table in Markdown."""
    lines = [HEADER, tuple("---" for _ in HEADER), *map(cells, rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def put_into(page: Path, table: str) -> None:
    """The table between the page's two markers.

    Raises:
        SystemExit: the page has not both markers once.
    """
    text, found = re.subn(
        r"(<!-- table:begin -->\n).*?(<!-- table:end -->)",
        lambda match: f"{match[1]}{table}\n{match[2]}",
        page.read_text(encoding="utf-8"),
        flags=re.DOTALL,
    )
    if found != 1:
        raise SystemExit(f"{page}: expected the two markers of the table once")
    page.write_text(text, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--write", type=Path, help="a page with the table's two markers")
    options = parser.parse_args()
    begin, rows = time.perf_counter(), []
    widths = (52, 34, 10, 10, 10, 26, 8, 9, 8)
    print(" ".join(f"{name:{width}}" for name, width in zip(HEADER, widths, strict=True)))
    warnings.simplefilter("ignore")
    for row in run():
        rows.append(row)
        line = " ".join(f"{cell:{width}}" for cell, width in zip(cells(row), widths, strict=True))
        print(line.rstrip() + ("" if row.holds else "  DOES NOT HOLD"), flush=True)
    print(f"{len(rows)} quantities in {time.perf_counter() - begin:.0f} s", file=sys.stderr)
    if options.json:
        table = [{**dataclasses.asdict(row), "holds": row.holds} for row in rows]
        options.json.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    if options.write:
        put_into(options.write, page_table(rows))
    if not all(row.holds for row in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
