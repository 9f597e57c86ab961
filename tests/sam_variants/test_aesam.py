import math

import pytest
import torch
from torch import nn

from sam_variants import AESAM, ERM, SAM, AELookSAM, Coin, LookSAM
from tests.references import HeavyBall, Quadratic, coupled_matrix, unit

START = [1.0, -2.0, 0.5, 3.0]
ALWAYS = {"lambda1": -math.inf, "lambda2": -math.inf}
NEVER = {"lambda1": math.inf, "lambda2": math.inf}


def sgd(parameters, **options):
    return torch.optim.SGD(parameters, **{"lr": 0.1, "momentum": 0.9, **options})


def problem():
    return Quadratic(coupled_matrix(), START, sizes=[1, 3])


def steps(rule, num=12, **options):
    q = problem()
    optimizer = rule(sgd(q.parameters), **options)
    for _ in range(num):
        optimizer.step(q.closure)
    return q.x


def fired(optimizer, q, num):
    result = []
    for _ in range(num):
        optimizer.step(q.closure)
        result.append(optimizer.last.perturbed)
    return result


@pytest.mark.parametrize(("c", "last"), [(1.0, 6), (0.5, 15)])
def test_a_constant_gradient_fires_on_exactly_the_first_steps(c, last):
    q = Quadratic(torch.zeros(2, 2), [0.0, 0.0], slope=[0.6, 0.8])  # G = 1 at every step
    optimizer = AESAM(sgd(q.parameters), lambda1=c, lambda2=c)
    assert [t for t, f in enumerate(fired(optimizer, q, 60)) if f] == list(range(last + 1))
    assert optimizer.counts.perturbed == last + 1
    assert optimizer.counts.gradients == 60 + last + 1


def test_twenty_steps_follow_the_equations_on_coupled_coordinates():
    h, rho, delta, total = coupled_matrix(), 0.4, 0.8, 20
    q = problem()
    x, base = q.x, HeavyBall(lr=0.3, momentum=0.9)
    mean, variance, decisions = 0.0, math.exp(-10), []
    optimizer = AESAM(
        sgd(q.parameters, lr=0.3),
        rho=rho,
        delta=delta,
        lambda1=-1.5,
        lambda2=0.5,
        total_steps=total,
    )
    for t in range(total):
        g = h @ x
        size = float(g @ g)
        mean = delta * mean + (1 - delta) * size
        variance = delta * variance + (1 - delta) * (size - mean) ** 2
        c = (t / total) * -1.5 + (1 - t / total) * 0.5
        decisions.append(size >= mean + c * math.sqrt(variance))
        x = base(x, h @ (x + rho * unit(g)) if decisions[-1] else g)
        optimizer.step(q.closure)
        assert optimizer.last.perturbed == decisions[-1]
        assert optimizer.last.signal == pytest.approx(size)
        assert optimizer.last.mean == pytest.approx(mean)
        assert optimizer.last.deviation == pytest.approx(math.sqrt(variance))
        assert optimizer.last.threshold == pytest.approx(mean + c * math.sqrt(variance))
        torch.testing.assert_close(q.x, x, rtol=1e-11, atol=1e-11)
    assert 3 < sum(decisions) < 17


def test_minus_infinity_is_sam_and_plus_infinity_the_base():
    assert torch.equal(steps(AESAM, rho=0.3, **ALWAYS), steps(SAM, rho=0.3))
    assert torch.equal(steps(AESAM, rho=0.3, **NEVER), steps(ERM))
    assert torch.equal(steps(AELookSAM, rho=0.3, **ALWAYS), steps(SAM, rho=0.3))
    assert torch.equal(steps(AELookSAM, rho=0.3, **NEVER), steps(ERM))


def test_ae_looksam_with_alpha_zero_is_ae_sam_and_with_alpha_is_not():
    options = {"rho": 0.3, "total_steps": 30, "delta": 0.5}
    plain = steps(AESAM, 30, **options)
    assert torch.equal(steps(AELookSAM, 30, alpha=0.0, **options), plain)
    assert not torch.equal(steps(AELookSAM, 30, alpha=0.5, **options), plain)


def test_ae_looksam_reuses_the_direction_of_the_last_firing():
    q = problem()
    h = q.matrix
    optimizer = AELookSAM(
        sgd(q.parameters, lr=0.3, momentum=0.0), rho=0.4, alpha=0.6, delta=0.5, total_steps=30
    )
    x, v, both = q.x, None, set()
    for _ in range(30):
        g = h @ x
        optimizer.step(q.closure)
        if optimizer.last.perturbed:
            step = h @ (x + 0.4 * unit(g))
            v = unit(step - (step @ g) / (g @ g) * g)
        else:
            step = g if v is None else g + 0.6 * g.norm() * v
        both.add(optimizer.last.perturbed)
        x = x - 0.3 * step
        torch.testing.assert_close(q.x, x, rtol=1e-9, atol=1e-9)
    assert both == {True, False}


def noisy_run(scale=1.0, num=600, **options):
    """Decisions on L(w) = scale (a_t'w), a_t random: the gradient's size is noise alone."""
    torch.manual_seed(3)
    w = nn.Parameter(torch.zeros(50, dtype=torch.float64))
    optimizer = AESAM(torch.optim.SGD([w], lr=1e-3), total_steps=num, **options)
    decisions = []
    for _ in range(num):
        slope = scale * torch.randn(50, dtype=torch.float64)

        def closure(slope=slope):
            optimizer.zero_grad()
            loss = slope @ w
            loss.backward()
            return loss

        optimizer.step(closure)
        decisions.append(optimizer.last.perturbed)
    return decisions


def test_the_second_half_fires_more_and_swapped_lambdas_reverse_it():
    decisions = noisy_run()
    assert sum(decisions[:300]) < sum(decisions[300:])
    swapped = noisy_run(lambda1=1.0, lambda2=-1.0)
    assert sum(swapped[300:]) < sum(swapped[:300])
    assert 0.38 < sum(decisions) / 600 < 0.52


def test_a_loss_ten_times_as_large_changes_no_decision():
    # G scales by 100, and so does its deviation: the variance by 1e4.
    one = noisy_run(initial_variance=0.1)
    assert noisy_run(10.0, initial_variance=0.1 * 1e4) == one


def test_the_coin_gives_sam_the_same_rate_by_chance():
    torch.manual_seed(0)
    q = Quadratic(torch.zeros(1, 1), [0.0], slope=[1.0])
    optimizer = SAM(sgd(q.parameters), when=Coin(), total_steps=1000, seed=5)
    decisions = fired(optimizer, q, 1000)
    assert sum(decisions) / 1000 == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(1000))
    assert sum(decisions[:250]) < 0.5 * sum(decisions[750:])


def test_the_same_seed_tosses_the_same_and_another_does_not_whatever_torch_draws():
    def tosses(seed):
        q = Quadratic(torch.zeros(1, 1), [0.0], slope=[1.0])
        optimizer = SAM(sgd(q.parameters), when=Coin(), total_steps=64, seed=seed)
        return fired(optimizer, q, 64)

    torch.manual_seed(1)
    first = tosses(7)
    torch.manual_seed(2)
    assert tosses(7) == first
    assert tosses(8) != first


def test_the_schedule_needs_the_end_of_training_and_says_so():
    q = problem()
    for make in (AESAM, AELookSAM):
        with pytest.raises(ValueError, match=r"needs total_steps, because the policy 'ae'"):
            make(sgd(q.parameters))
    with pytest.raises(ValueError, match=r"needs total_steps, because the policy 'coin'"):
        SAM(sgd(q.parameters), when=Coin())
    AESAM(sgd(q.parameters), lambda1=0.5, lambda2=0.5)  # nothing runs: no end is needed


def test_assigned_progress_takes_the_place_of_the_steps():
    q = Quadratic(torch.zeros(2, 2), [0.0, 0.0], slope=[0.6, 0.8])
    optimizer = AESAM(sgd(q.parameters), total_steps=math.inf, lambda1=-math.inf, lambda2=1e9)
    with pytest.raises(RuntimeError, match=r"set optimizer\.progress"):
        optimizer.step(q.closure)
    decisions = []
    for progress in (0.0, 0.0, 0.5, 1.0, 0.0):
        optimizer.progress = progress
        optimizer.step(q.closure)
        decisions.append(optimizer.last.perturbed)
    assert decisions == [False, False, True, True, False]
    with pytest.raises(ValueError, match=r"progress must be in \[0, 1\]"):
        optimizer.progress = 1.5


def test_a_geometry_signal_switches_by_what_the_trainer_measures():
    q = problem()
    optimizer = AESAM(
        sgd(q.parameters),
        signal="lambda-max",
        refresh_every=2,
        lambda1=0.0,
        lambda2=0.0,
        delta=0.5,
    )
    with pytest.raises(RuntimeError, match=r"policy\.observe"):
        optimizer.step(q.closure)
    measured = iter([1.0, 1.0, 1.0, 1.0, 1.0, 3.0, 0.5])
    decisions = []
    for step in range(14):
        if optimizer.policy.wants_measurement(step):
            optimizer.policy.observe(next(measured))
            optimizer.charge(gradients=2.5)
        optimizer.step(q.closure)
        decisions.append(optimizer.last.perturbed)
    assert decisions == [False] * 10 + [True, True, False, False]
    assert optimizer.counts.refresh_gradients == 7 * 2.5
    assert optimizer.counts.gradients == 1 + 14 + 2  # that of the step that raised was spent too
    assert optimizer.counts.total == 17.0 + 17.5


def test_unknown_options_name_the_nearest():
    with pytest.raises(ValueError, match="unknown option of ae-sam 'lamda1'; did you mean"):
        AESAM(sgd(problem().parameters), lamda1=0.0)
    with pytest.raises(ValueError, match="delta must be"):
        AELookSAM(sgd(problem().parameters), delta=2.0)
    assert isinstance(AELookSAM(sgd(problem().parameters), total_steps=5), LookSAM)
