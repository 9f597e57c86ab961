"""Steps of one rule on small quadratics: what the tests of single rules share."""

import torch

from sam_variants import Never
from tests.references import HeavyBall, Quadratic, coupled_matrix

START = [1.0, -2.0, 0.5, 3.0]
H = coupled_matrix()

SCALES = torch.diag(torch.tensor([1e3, 1e3, 1e-2, 1.0], dtype=torch.float64)) + 0.01
RADII = torch.tensor([0.3, 0.3, 0.0, 2.0], dtype=torch.float64)


def sgd(parameters, **options):
    return torch.optim.SGD(parameters, **{"lr": 0.1, **options})


def problem(sizes=(1, 3)):
    """The non-commuting 4-D quadratic x'Hx / 2 at START, cut into parameters."""
    return Quadratic(H, START, sizes=list(sizes))


def line(lam, x):
    """lam x^2 / 2."""
    return Quadratic([[lam]], [x])


def descent_of(rule, q, **options):
    """The gradient that the rule hands to the base, from one step of lr 1 without momentum."""
    before = q.x
    rule(sgd(q.parameters, lr=1.0), **options).step(q.closure)
    return before - q.x


def steps(rule, num=10, **options):
    """x after some steps with momentum and decay on `problem`."""
    q = problem()
    optimizer = rule(sgd(q.parameters, momentum=0.9, weight_decay=0.05), **options)
    for _ in range(num):
        optimizer.step(q.closure)
    return q.x


def base_steps(num=10):
    """The same of the base optimizer alone."""
    q = problem()
    optimizer = sgd(q.parameters, momentum=0.9, weight_decay=0.05)
    for _ in range(num):
        q.closure()
        optimizer.step()
    return q.x


def check_follows(optimizer, q, gradient, *, num=20, tolerance=1e-11):
    """The optimizer's steps are those of the equation: gradient(t, x) fed to heavy ball."""
    group = optimizer.param_groups[0]
    base = HeavyBall(**{key: group[key] for key in ("lr", "momentum", "weight_decay")})
    x = q.x
    for t in range(num):
        x = base(x, gradient(t, x))
        optimizer.step(q.closure)
        torch.testing.assert_close(q.x, x, rtol=tolerance, atol=tolerance)


def scaled_groups():
    """A quadratic whose gradient differs by 1e5 from group to group, and groups of rho RADII.

    The last group has no rho of its own: give the rule 2.0.
    """
    q = Quadratic(SCALES, [1.0, -1.0, 5.0, 2.0], sizes=[2, 1, 1])
    first, second, third = q.parameters
    return q, [{"params": [first], "rho": 0.3}, {"params": [second], "rho": 0.0}, {"params": third}]


def one_of_two_workers(monkeypatch):
    """Lets this process believe that there is another, of the same values; what it averaged."""
    averaged = []
    monkeypatch.setattr("sam_variants.base._world_size", lambda: 2)
    monkeypatch.setattr(
        "sam_variants.base.SharpnessAware.over_workers",
        lambda _, value: averaged.append(value.clone()) or value,
    )
    return averaged


def check_plain_steps_average_the_gradient_of_a_local_ascent(monkeypatch, rule):
    averaged = one_of_two_workers(monkeypatch)
    q = problem()
    g = q.gradient(q.x)
    assert synced(rule(sgd(q.parameters), ascent="local", when=Never()), q) == [False]
    (gradient,) = averaged
    torch.testing.assert_close(torch.cat(list(gradient)), g)


def synced(optimizer, q):
    """Which evaluations of a step ask for a gradient averaged over the workers."""
    flags = []
    for request in optimizer.passes():
        flags.append(request.sync)
        request.loss = q.closure().detach()
    return flags
