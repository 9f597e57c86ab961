"""Edges of stability against simulated dynamics, and gauges against the dense Hessian."""

import math
from pathlib import Path

import pytest
import torch

from sam_variants import SAM
from sam_variants.training.evaluation import fixed_rows
from sam_variants.training.geometry import CurvatureGauge, gradient_edge, sam_edge
from tests.sam_variants.training.small import small, trained, trainer_of


def grows(curvature: float, *, lr: float, momentum: float, decay: float, rho: float = 0.0) -> bool:
    """Whether SGD (with un-normalised SAM, eps = rho g) leaves the minimum of a parabola."""
    x = torch.tensor([1e-3], dtype=torch.float64, requires_grad=True)
    base = torch.optim.SGD([x], lr=lr, momentum=momentum, weight_decay=decay)
    optimizer = SAM(base, rho=rho, scale="gradient")
    for _ in range(600):
        for request in optimizer.passes():
            loss = 0.5 * curvature * x.square().sum()
            loss.backward()
            request.loss = loss.detach()
        optimizer.step()
    return x.abs().item() > 1e-3


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("decay", [0.0, 3.0])
def test_the_edge_of_sgd_parts_stable_from_unstable(momentum: float, decay: float) -> None:
    edge = gradient_edge(0.1, momentum=momentum, weight_decay=decay)
    assert not grows(0.97 * edge, lr=0.1, momentum=momentum, decay=decay)
    assert grows(1.03 * edge, lr=0.1, momentum=momentum, decay=decay)


@pytest.mark.parametrize(("momentum", "decay"), [(0.0, 0.0), (0.9, 0.0), (0.9, 3.0)])
def test_the_edge_of_unnormalised_sam_parts_stable_from_unstable(
    momentum: float, decay: float
) -> None:
    edge = sam_edge(
        gradient_edge(0.1, momentum=momentum, weight_decay=decay), rho=0.2, gradient_norm=None
    )
    kind = {"lr": 0.1, "momentum": momentum, "decay": decay, "rho": 0.2}
    assert not grows(0.97 * edge, **kind)
    assert grows(1.03 * edge, **kind)


def test_the_edge_without_momentum_and_decay_is_two_over_lr() -> None:
    assert gradient_edge(0.1) == 20.0


@pytest.mark.parametrize("norm", [1e-3, 0.3, 40.0])
def test_the_normalised_edge_is_long_and_bartletts(norm: float) -> None:
    lr, rho = 0.1, 0.05
    value = sam_edge(2 / lr, rho=rho, gradient_norm=norm)
    published = norm / (2 * rho) * (math.sqrt(1 + 8 * rho / (lr * norm)) - 1)
    assert value == pytest.approx(published, rel=1e-12)
    assert lr * value * (1 + rho * value / norm) == pytest.approx(2, rel=1e-12)
    assert value <= 2 / lr


def test_the_edges_limits() -> None:
    assert sam_edge(20.0, rho=0.0, gradient_norm=1.0) == 20.0
    assert sam_edge(20.0, rho=1e-12, gradient_norm=None) == pytest.approx(20.0)
    assert sam_edge(20.0, rho=0.1, gradient_norm=0.0) == 0.0
    unnormalised = sam_edge(20.0, rho=0.3, gradient_norm=None)
    assert unnormalised == pytest.approx((math.sqrt(1 + 8 * 0.3 / 0.1) - 1) / (2 * 0.3), rel=1e-12)


def dense_hessian(trainer, batches) -> torch.Tensor:
    names = [name for name, _ in trainer.model.named_parameters()]
    shapes = [p.shape for p in trainer.model.parameters()]
    sizes = [math.prod(shape) for shape in shapes]
    x = torch.cat([x for x, _ in batches])
    y = torch.cat([y for _, y in batches])

    def loss(theta: torch.Tensor) -> torch.Tensor:
        pieces = [p.view(s) for p, s in zip(theta.split(sizes), shapes, strict=True)]
        outputs = torch.func.functional_call(
            trainer.model, dict(zip(names, pieces, strict=True)), (x,)
        )
        return torch.nn.functional.cross_entropy(outputs, y)

    theta = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
    return torch.func.hessian(loss)(theta)


@pytest.fixture
def trainer(tmp_path: Path):
    """Weights in the middle of a training, in float64, 106 of them."""
    trainer = trainer_of(
        small(precision="float64", model="mlp:hidden=3:depth=1:activation=tanh"), tmp_path
    )
    for _ in range(4):
        trainer.take_step()
    return trainer


def gauge_of(trainer, signal: str, **options) -> CurvatureGauge:
    return CurvatureGauge(
        signal, trainer.model, trainer.loss, trainer._probe_batches(200), **options
    )


def test_lambda_max_is_the_dense_hessians_and_costs_its_products(trainer) -> None:
    gauge = gauge_of(trainer, "lambda-max", tolerance=1e-6)
    measured = gauge.measure()
    exact = torch.linalg.eigvalsh(dense_hessian(trainer, trainer._probe_batches(200)))[-1]
    assert measured.value == pytest.approx(exact.item(), rel=1e-6)
    assert measured.gradients >= 3 * 5
    assert measured.gradients % 3 == 0


def test_the_trace_is_the_dense_hessians_in_the_mean_over_seeds(trainer) -> None:
    values = torch.tensor(
        [gauge_of(trainer, "trace", seed=seed).measure().value for seed in range(12)]
    )
    exact = dense_hessian(trainer, trainer._probe_batches(200)).trace().item()
    assert abs(values.mean() - exact) < 4 * values.std() / math.sqrt(12)


def test_max_sharpness_is_the_rise_after_one_step_of_length_rho(trainer) -> None:
    gauge = gauge_of(trainer, "max-sharpness", rho=0.3)
    theta, objective = gauge.theta, gauge.objective
    gradient = objective.gradient(theta)
    rise = objective.value(theta + 0.3 * gradient / gradient.norm()) - objective.value(theta)
    measured = gauge.measure()
    assert measured.value == pytest.approx(rise, rel=1e-9)
    assert (measured.gradients, measured.forwards) == (1, 1)


def test_a_warm_start_follows_the_weights_and_costs_less(trainer) -> None:
    gauge = gauge_of(trainer, "lambda-max", tolerance=1e-3)
    cold = gauge.measure()
    trainer.take_step()
    warm = gauge.measure()
    exact = torch.linalg.eigvalsh(dense_hessian(trainer, trainer._probe_batches(200)))[-1]
    assert warm.value == pytest.approx(exact.item(), rel=2e-3)
    assert warm.value != cold.value
    assert gauge.measure().gradients < cold.gradients  # at the same weights: only confirmed


def test_measuring_changes_no_bit_of_the_training(tmp_path: Path) -> None:
    plain = trained(small(), tmp_path / "a")
    probed = trained(small(probe_every=1), tmp_path / "b")
    for name, tensor in plain["model"].items():
        assert torch.equal(tensor, probed["model"][name])
    assert plain["history"][-1]["gradients"] == probed["history"][-1]["gradients"]


def test_the_probed_epochs_have_lambda_max_and_the_edges(tmp_path: Path) -> None:
    history = trained(small(probe_every=2, epochs=5), tmp_path)["history"]
    assert ["lambda_max" in line for line in history] == [False, True, False, True, True]
    line = history[1]
    edge = 2 * 1.9 / line["lr"] - 5e-4
    assert line["edge"] == pytest.approx(edge, rel=1e-12)
    assert 0 < line["sam_edge"] < edge
    assert line["sam_edge_heuristic"] is True
    assert line["lambda_max_residual"] <= 1e-3 * line["lambda_max"]


def test_unnormalised_sam_has_an_edge_that_is_no_heuristic(tmp_path: Path) -> None:
    recipe = small(variants=("sam:scale=gradient:rho=0.1",), probe_every=1, epochs=1)
    line = trained(recipe, tmp_path)["history"][0]
    assert line["sam_edge_heuristic"] is False
    assert line["sam_edge"] == pytest.approx(
        (math.sqrt(1 + 4 * 0.1 * line["edge"]) - 1) / 0.2, rel=1e-9
    )


def test_rules_without_a_sam_edge_and_adamw_get_none(tmp_path: Path) -> None:
    erm = trained(small(variants=("erm",), probe_every=1, epochs=1), tmp_path / "a")["history"][0]
    assert "edge" in erm
    assert "sam_edge" not in erm
    adamw = trained(small(optimizer="adamw", probe_every=1, epochs=1), tmp_path / "b")["history"][0]
    assert "lambda_max" in adamw
    assert "edge" not in adamw


def test_fixed_rows_are_a_sorted_sample_by_seed() -> None:
    rows = fixed_rows(10, 100, seed=0)
    assert rows.tolist() == sorted(set(rows.tolist()))
    assert len(rows) == 10
    assert not torch.equal(rows, fixed_rows(10, 100, seed=1))
    assert torch.equal(fixed_rows(100, 7, seed=0), torch.arange(7))
