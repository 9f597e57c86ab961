"""CurvatureMonitor against the dense Hessian, simulated dynamics and a training without it."""

import doctest
import math

import pytest
import torch
from torch import nn
from torch.nn import functional

import landscape.monitor
from landscape import CurvatureMonitor, Objective
from landscape.edge import gradient_edge, sam_edge
from sam_variants import SAM

F64 = torch.float64


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Dropout(0.2), nn.Linear(5, 3)
    ).to(F64)


def data(num=60):
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(num, 4, generator=generator, dtype=F64)
    return inputs, torch.randint(0, 3, (num,), generator=generator)


def objective_of(model, cuts=(25, 35)):
    inputs, targets = data()
    batches = list(zip(inputs.split(cuts), targets.split(cuts), strict=True))
    return Objective(model, functional.cross_entropy, batches)


def train(model, num_steps, *, monitor=None, lr=0.1, seen=None):
    """SGD with momentum on the first rows, in train mode; `seen(model)` after each measurement."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    inputs, targets = data()
    for _ in range(num_steps):
        if monitor is not None and monitor(optimizer) is not None and seen is not None:
            seen(model)
        optimizer.zero_grad()
        functional.cross_entropy(model(inputs[:30]), targets[:30]).backward()
        optimizer.step()
    return model


def dense_eigenvalues(model):
    """Of the Hessian of the mean loss in eval mode with the running statistics of the moment."""
    model = model.eval()
    inputs, targets = data()
    names = [name for name, _ in model.named_parameters()]
    shapes = [p.shape for p in model.parameters()]

    def loss(theta):
        pieces = theta.split([math.prod(shape) for shape in shapes])
        weights = {n: p.view(s) for n, p, s in zip(names, pieces, shapes, strict=True)}
        outputs = torch.func.functional_call(model, weights, (inputs,))
        return functional.cross_entropy(outputs, targets)

    theta = torch.cat([p.detach().flatten() for p in model.parameters()])
    values = torch.linalg.eigvalsh(torch.func.hessian(loss)(theta))
    gradient, value = torch.func.grad_and_value(loss)(theta)
    model.train()
    return values, float(value), float(gradient.norm())


# -- What is measured ------------------------------------------------------------------------------


def test_each_record_is_that_of_the_weights_and_statistics_of_its_step():
    model = net().train()
    monitor = CurvatureMonitor(objective_of(model), every=4, tolerance=1e-5)
    truths = []
    train(model, 12, monitor=monitor, seen=lambda m: truths.append(dense_eigenvalues(m)))
    assert [record.step for record in monitor.records] == [0, 4, 8]
    for record, (values, loss, norm) in zip(monitor.records, truths, strict=True):
        assert record.lambda_max == pytest.approx(float(values[-1]), rel=1e-5)
        assert record.residual <= 1e-5 * record.lambda_max
        assert record.loss == pytest.approx(loss, rel=1e-12)
        assert record.gradient_norm == pytest.approx(norm, rel=1e-9)
        assert record.converged
        assert record.confirmed
        assert record.cost.gradients == 1
        assert record.cost.products >= 2
    assert len({round(values[-1].item(), 6) for values, _, _ in truths}) == 3


def test_a_monitored_training_is_the_same_bits_as_one_without():
    plain = train(net().train(), 7)
    model = net().train()
    objective = objective_of(model)
    before = objective.theta.clone(), objective.value(objective.theta)
    torch.manual_seed(5)
    monitor = CurvatureMonitor(objective, every=2)
    state = torch.get_rng_state()
    monitor()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in model.parameters())
    assert all(module.training for module in model.modules())
    net()  # the seed again, for the same dropout
    train(model, 7, monitor=monitor)
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name
    # The caller's objective stays where it was made, with its own running statistics.
    assert torch.equal(objective.theta, before[0])
    assert objective.value(objective.theta) == before[1]


class Bowl(nn.Module):
    """L = sum_i c_i w_i^2 / 2 with the c_i in a buffer, so that a test can turn the bowl."""

    def __init__(self, curvatures):
        super().__init__()
        self.w = nn.Parameter(torch.ones(len(curvatures), dtype=F64))
        self.register_buffer("c", torch.as_tensor(curvatures, dtype=F64))

    def forward(self, _):
        return (self.c * self.w**2).sum() / 2


def bowl(curvatures):
    model = Bowl(curvatures)
    return model, Objective(model, lambda call, batch: call(batch["x"]), [{"x": torch.ones(1, 1)}])


def test_a_warm_start_along_an_old_eigenvector_hides_no_new_one():
    model, objective = bowl([9.0, *torch.linspace(0, 1, 60).tolist()])
    monitor = CurvatureMonitor(objective, every=1, tolerance=1e-6)
    assert monitor().lambda_max == pytest.approx(9.0)
    model.c[0], model.c[7] = 3.0, 12.0  # the old vector is still an exact eigenvector
    record = monitor()
    assert record.lambda_max == pytest.approx(12.0)
    assert record.confirmed


def test_a_warm_start_saves_products():
    cold, warm = (CurvatureMonitor(objective_of(net()), every=1, tolerance=1e-4) for _ in range(2))
    first = cold()
    assert warm().cost.products == first.cost.products
    again = warm()
    assert again.cost.products < first.cost.products
    assert again.lambda_max == pytest.approx(first.lambda_max, rel=1e-6)
    assert again.confirmed


def test_each_measurement_is_confirmed_with_random_vectors_of_its_own(monkeypatch):
    seeds = []
    original = landscape.monitor.lanczos

    def watched(operator, **options):
        seeds.append(options["seed"])
        return original(operator, **options)

    monkeypatch.setattr(landscape.monitor, "lanczos", watched)
    monitor = CurvatureMonitor(bowl([3.0, 2.0, 1.0])[1], every=1, seed=10)
    for _ in range(3):
        monitor()
    assert seeds == [10, 11, 12]


def test_a_budget_that_is_too_small_is_seen_in_the_record():
    monitor = CurvatureMonitor(objective_of(net()), max_products=2)
    record = monitor()
    assert not record.confirmed
    assert record.cost.products == 2


# -- When ------------------------------------------------------------------------------------------


def test_it_measures_on_the_first_call_and_on_each_every_th():
    monitor = CurvatureMonitor(bowl([3.0, 2.0])[1], every=3)
    measured = [monitor() is not None for _ in range(8)]
    assert measured == [True, False, False] * 2 + [True, False]
    assert [record.step for record in monitor.records] == [0, 3, 6]


def test_the_loops_own_number_of_the_step_is_taken():
    monitor = CurvatureMonitor(bowl([3.0, 2.0])[1], every=100)
    assert monitor(step=101) is None
    assert monitor(step=200).step == 200


def test_a_training_that_diverged_names_its_step_and_keeps_what_was_measured():
    model, objective = bowl([3.0, 2.0])
    monitor = CurvatureMonitor(objective, every=1)
    monitor()
    with torch.no_grad():
        model.w[0] = math.nan
    with pytest.raises(FloatingPointError, match="no curvature at step 1: the loss is nan"):
        monitor()
    assert len(monitor.records) == 1


# -- Edges -----------------------------------------------------------------------------------------


def grows(curvature, **options):
    """Whether torch's SGD leaves the minimum of a parabola."""
    x = torch.tensor([1e-3], dtype=F64, requires_grad=True)
    optimizer = torch.optim.SGD([x], **options)
    for _ in range(600):
        optimizer.zero_grad()
        (0.5 * curvature * x.square().sum()).backward()
        optimizer.step()
    return x.abs().item() > 1e-3


@pytest.mark.parametrize("decay", [0.0, 3.0])
@pytest.mark.parametrize(
    "kind",
    [
        {},
        {"momentum": 0.9},
        {"momentum": 0.9, "nesterov": True},
        {"momentum": 0.5, "nesterov": True},
        {"momentum": 0.5, "dampening": 0.4},
        {"dampening": 0.4},
    ],
)
def test_the_edge_parts_stable_from_unstable(kind, decay):
    edge = gradient_edge(0.1, weight_decay=decay, **kind)
    assert not grows(0.97 * edge, lr=0.1, weight_decay=decay, **kind)
    assert grows(1.03 * edge, lr=0.1, weight_decay=decay, **kind)
    model, objective = bowl([3.0, 2.0])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=decay, **kind)
    assert CurvatureMonitor(objective)(optimizer).edge == edge


def test_where_no_gradient_enters_there_is_no_finite_edge():
    assert gradient_edge(0.1, momentum=0.9, dampening=1.0) == math.inf
    assert gradient_edge(0.1, dampening=1.0) == 20.0  # without a momentum nothing is damped


def test_the_edge_is_that_of_the_learning_rate_of_the_moment():
    model, objective = bowl([3.0, 2.0])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = CurvatureMonitor(objective, every=1)
    monitor(optimizer)
    optimizer.param_groups[0]["lr"] = 0.05
    monitor(optimizer)
    monitor(lr=0.2, momentum=0.5, weight_decay=0.1)
    monitor()
    edges = [record.edge for record in monitor.records]
    assert edges[:3] == pytest.approx([20.0, 40.0, 2 * 1.5 / 0.2 - 0.1])
    assert edges[3] is None
    assert [record.edge_skipped for record in monitor.records] == [None] * 4


def test_the_edge_of_sam_is_long_and_bartletts_at_the_gradient_of_the_moment():
    model, objective = bowl([3.0, 2.0])
    monitor = CurvatureMonitor(objective, every=1)
    record = monitor(lr=0.1, rho=0.05)
    norm = math.hypot(3.0, 2.0)
    published = norm / (2 * 0.05) * (math.sqrt(1 + 8 * 0.05 / (0.1 * norm)) - 1)
    assert record.gradient_norm == pytest.approx(norm)
    assert record.sam_edge == pytest.approx(published, rel=1e-9)
    assert record.sam_edge_heuristic
    with torch.no_grad():
        model.w.mul_(0.01)
    assert monitor(lr=0.1, rho=0.05).sam_edge < record.sam_edge
    plain = monitor(lr=0.1, rho=0.05, normalised=False)
    assert plain.sam_edge == sam_edge(20.0, rho=0.05, gradient_norm=None)
    assert not plain.sam_edge_heuristic
    assert monitor(lr=0.1).sam_edge is None


def test_an_optimizer_that_wraps_sgd_has_the_edge_of_what_it_wraps():
    class Wrapper(torch.optim.Optimizer):  # the layout of SAM elsewhere
        def __init__(self, base_optimizer):
            super().__init__(base_optimizer.param_groups[0]["params"], {})
            self.base_optimizer = base_optimizer

    model, objective = bowl([3.0, 2.0])
    base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for optimizer in (SAM(base, rho=0.1), Wrapper(base)):
        assert CurvatureMonitor(objective)(optimizer, rho=0.1).edge == pytest.approx(38.0)


def test_the_largest_decay_of_the_groups_counts():
    model = net()
    groups = [
        {"params": list(model[0].parameters()), "weight_decay": 0.5},
        {"params": list(model[4].parameters()), "weight_decay": 0.0},
    ]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    assert CurvatureMonitor(objective_of(model))(optimizer).edge == pytest.approx(19.5)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda p: torch.optim.Adam(p, lr=0.1), "Adam has no edge in lambda_max of the Hessian"),
        (lambda p: torch.optim.SGD(p, lr=0.0), "the learning rate is 0"),
        (
            lambda p: torch.optim.SGD(
                [{"params": p[:1], "lr": 0.1}, {"params": p[1:], "momentum": 0.5}], lr=0.2
            ),
            "the parameter groups differ in lr and momentum",
        ),
    ],
)
def test_an_optimizer_without_an_edge_says_why(make, reason):
    model = net()
    record = CurvatureMonitor(objective_of(model))(make(list(model.parameters())), rho=0.1)
    assert (record.edge, record.sam_edge, record.edge_skipped) == (None, None, reason)
    assert record.lambda_max > 0


def test_a_learning_rate_of_zero_has_no_edge():
    record = CurvatureMonitor(bowl([3.0, 2.0])[1])(lr=0.0)
    assert (record.edge, record.edge_skipped) == (None, "the learning rate is 0")


def test_wrong_arguments_are_refused():
    model, objective = bowl([3.0, 2.0])
    with pytest.raises(ValueError, match="every must be >= 1, got 0"):
        CurvatureMonitor(objective, every=0)
    monitor = CurvatureMonitor(objective)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="give the optimizer or lr, not both"):
        monitor(optimizer, lr=0.1)
    with pytest.raises(ValueError, match="needs the optimizer or lr beside rho"):
        monitor(rho=0.1)
    with pytest.raises(ValueError, match=r"lr must be >= 0, got -0\.1"):
        monitor(lr=-0.1)
    with pytest.raises(ValueError, match="rho must be >= 0, got nan"):
        monitor(lr=0.1, rho=math.nan)
    assert monitor.records == []


# -- What is shown ---------------------------------------------------------------------------------


def test_the_table_has_a_row_of_plain_numbers_for_each_measurement():
    monitor = CurvatureMonitor(bowl([3.0, 2.0])[1], every=1)
    monitor(lr=0.1, rho=0.05)
    monitor()
    first, second = monitor.table()
    assert first["step"] == 0
    assert first["lambda_max"] == pytest.approx(3.0)
    assert first["edge"] == pytest.approx(20.0)
    assert second["edge"] is None
    assert first["products"] == monitor.records[0].cost.products
    assert first["seconds"] > 0
    assert all(value is None or isinstance(value, int | float) for value in first.values())


def test_the_figure_draws_lambda_max_its_edges_and_the_loss_and_marks_lower_bounds():
    monitor = CurvatureMonitor(objective_of(net()), every=1)
    monitor(lr=0.1, rho=0.05)
    monitor.max_products = 2
    monitor()
    figure = monitor.plot()
    traces = {trace.name: trace for trace in figure.data}
    assert list(traces) == [
        "λmax ± residual (open: a lower bound)",
        "edge of SGD (2/lr)",
        "edge of SAM (heuristic)",
        "loss",
    ]
    top = traces["λmax ± residual (open: a lower bound)"]
    assert list(top.y) == [record.lambda_max for record in monitor.records]
    assert list(top.error_y.array) == [record.residual for record in monitor.records]
    assert list(top.marker.symbol) == ["circle", "circle-open"]
    edge = traces["edge of SGD (2/lr)"]
    assert edge.line.dash == "dash"
    assert edge.y[0] == pytest.approx(20.0)
    assert edge.y[1] is None or math.isnan(edge.y[1])
    assert list(traces["loss"].y) == [record.loss for record in monitor.records]
    assert figure.layout.yaxis.title.text == "λmax (loss / parameter²)"


def test_a_figure_without_edges_draws_none():
    monitor = CurvatureMonitor(bowl([3.0, 2.0])[1])
    monitor()
    assert [trace.name for trace in monitor.plot().data] == ["λmax ± residual", "loss"]


def test_the_example_of_its_docstring_runs():
    found = doctest.testmod(landscape.monitor)
    assert found.attempted > 5
    assert found.failed == 0
