import math
import random

import pytest

from sam_variants.policies import (
    AdaptiveThreshold,
    Always,
    Bernoulli,
    Coin,
    Every,
    Never,
    Tail,
)
from sam_variants.schedules import Linear


def decide(policy, *, step=0, progress=0.0, signal=1.0, draw=0.5):
    return policy.decide(step=step, progress=progress, signal=lambda: signal, draw=lambda: draw)


def run(policy, signals, *, seed=0):
    """The steps perturbed over a whole training of len(signals) steps."""
    rng = random.Random(seed)
    total = len(signals)
    return [
        policy.decide(step=t, progress=t / total, signal=lambda g=g: g, draw=rng.random)
        for t, g in enumerate(signals)
    ]


def normal(mu, sigma, size, seed=0):
    rng = random.Random(seed)
    return [rng.gauss(mu, sigma) for _ in range(size)]


def test_always_never_every_and_tail_perturb_the_steps_they_say():
    flat = [1.0] * 10
    assert all(run(Always(), flat))
    assert not any(run(Never(), flat))
    assert [t for t, fired in enumerate(run(Every(3), flat)) if fired] == [0, 3, 6, 9]
    assert [t for t, fired in enumerate(run(Tail(0.3), flat)) if fired] == [7, 8, 9]
    assert all(run(Tail(1.0), flat))
    assert not any(run(Tail(0.0), flat))


def test_a_tail_has_its_exact_number_of_steps_whatever_the_rounding():
    for total in (7, 10, 60, 100, 300):
        for part in range(total + 1):
            assert sum(run(Tail(part / total), [1.0] * total)) == part


def test_bernoulli_perturbs_its_share_and_follows_its_schedule():
    size = 20_000
    for p in (0.0, 0.3, 1.0):
        rate = sum(run(Bernoulli(p), [1.0] * size)) / size
        assert abs(rate - p) <= 4 * math.sqrt(p * (1 - p) / size)
    rising = run(Bernoulli(Linear(0.0, 1.0)), [1.0] * size)
    assert abs(sum(rising[: size // 2]) / (size / 2) - 0.25) < 0.02
    assert abs(sum(rising[size // 2 :]) / (size / 2) - 0.75) < 0.02


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(
    ("schedule", "a", "expected", "mean"),
    [
        ("constant", 0.3, lambda tau: 0.3, 0.3),
        ("piecewise", 0.8, lambda tau: 0.8 if tau <= 0.5 else 0.2, 0.5),
        ("linear", 0.4, lambda tau: 0.8 * tau, 0.4),
        ("linear", 0.8, lambda tau: min(1.6 * tau, 1.0), 1 - 1 / 3.2),
        ("trigonometric", 0.1, lambda tau: 0.5 + 0.5 * math.cos(math.pi * tau), 0.5),
    ],
)
def test_bernoulli_has_the_schedules_of_rst(schedule, a, expected, mean, seed):
    policy, size = Bernoulli(a, schedule=schedule), 4000
    p = [expected(t / size) for t in range(size)]
    assert [policy.probability_at(t / size) for t in range(size)] == pytest.approx(p)
    assert sum(p) / size == pytest.approx(mean, abs=1e-3)
    fired = run(policy, [1.0] * size, seed=seed)
    for quarter in range(4):
        part = slice(quarter * size // 4, (quarter + 1) * size // 4)
        deviation = math.sqrt(sum(one * (1 - one) for one in p[part]))
        assert abs(sum(fired[part]) - sum(p[part])) <= 4 * deviation


def test_a_schedule_as_the_probability_stays_within_zero_and_one():
    policy = Bernoulli(Linear(-1.0, 2.0))
    assert [policy.probability_at(p) for p in (0.0, 0.5, 1.0)] == pytest.approx([0.0, 0.5, 1.0])
    assert not decide(policy, progress=0.1, draw=0.0)
    assert Bernoulli("cosine").probability_at(0.5) == pytest.approx(0.5)
    assert Bernoulli({"kind": "linear", "start": 0.2}).probability_at(0.5) == pytest.approx(0.1)
    with pytest.raises(ValueError, match="probability must be a number for schedule='linear'"):
        Bernoulli(Linear(0.0, 1.0), schedule="linear")


@pytest.mark.parametrize(("c", "last"), [(1.0, 6), (0.5, 15)])
def test_a_constant_signal_fires_exactly_while_the_mean_climbs(c, last):
    policy = AdaptiveThreshold(delta=0.9, lambda1=c, lambda2=c)
    fired = run(policy, [1.0] * 100)
    assert [t for t, f in enumerate(fired) if f] == list(range(last + 1))


def test_a_signal_at_its_threshold_fires():
    policy = AdaptiveThreshold(delta=0.0, lambda1=1.0, lambda2=1.0)  # mean = G, deviation 0
    assert run(policy, [3.0, 1.0, 2.0]) == [True] * 3


def test_the_averages_of_a_constant_signal_have_their_closed_form():
    delta, start, g = 0.9, 0.3, 2.0
    policy = AdaptiveThreshold(delta=delta, initial_variance=start)
    for t in range(30):
        decide(policy, step=t, signal=g)
        assert policy.mean == pytest.approx(g * (1 - delta ** (t + 1)), rel=1e-12)
        expected = delta ** (t + 1) * start + g**2 * delta ** (t + 2) * (1 - delta ** (t + 1))
        assert policy.variance == pytest.approx(expected, rel=1e-12)


def test_an_infinite_level_always_or_never_fires_also_without_variance():
    for level, expected in ((-math.inf, True), (math.inf, False)):
        policy = AdaptiveThreshold(lambda1=level, lambda2=level, initial_variance=0.0)
        assert run(policy, [0.0] * 20 + [1.0] * 20) == [expected] * 40
        assert policy.facts()["threshold"] == level


@pytest.mark.parametrize("c", [-1.0, 0.0, 1.0])
def test_normal_signals_fire_at_the_rate_of_the_normal_distribution(c):
    policy = AdaptiveThreshold(delta=0.99, lambda1=c, lambda2=c)
    rate = sum(run(policy, normal(10.0, 1.0, 20_000))[500:]) / 19_500
    assert rate == pytest.approx(0.5 * math.erfc(c / math.sqrt(2)), abs=0.015)


def test_the_share_over_the_schedule_is_a_half_for_normal_and_less_for_skewed_signals():
    share = sum(run(AdaptiveThreshold(), normal(10.0, 1.0, 20_000))) / 20_000
    assert share == pytest.approx(0.501, abs=0.01)
    rng = random.Random(1)
    skewed = [sum(rng.gauss(0, 1) ** 2 for _ in range(3)) for _ in range(20_000)]
    assert sum(run(AdaptiveThreshold(), skewed)) / 20_000 == pytest.approx(0.443, abs=0.01)


def test_the_threshold_falls_so_that_the_second_half_fires_more_and_swapping_reverses_it():
    signals = normal(10.0, 1.0, 4000)
    early_late = run(AdaptiveThreshold(lambda1=-1.0, lambda2=1.0), signals)
    assert sum(early_late[:2000]) < 0.7 * sum(early_late[2000:])
    swapped = run(AdaptiveThreshold(lambda1=1.0, lambda2=-1.0), signals)
    assert sum(swapped[2000:]) < 0.7 * sum(swapped[:2000])


def test_ten_times_the_signal_changes_no_decision():
    signals = normal(10.0, 3.0, 500)
    one, ten = AdaptiveThreshold(initial_variance=0.5), AdaptiveThreshold(initial_variance=50.0)
    assert run(one, signals) == run(ten, [10.0 * g for g in signals])


def test_a_signal_that_is_not_finite_decides_nothing_and_is_not_averaged():
    policy = AdaptiveThreshold(lambda1=-math.inf, lambda2=-math.inf)
    decide(policy, signal=2.0)
    before = (policy.mean, policy.variance)
    for bad in (math.nan, math.inf):
        assert not decide(policy, signal=bad)
    assert (policy.mean, policy.variance) == before


def test_the_coin_has_the_adaptive_thresholds_timing_without_its_geometry():
    size = 40_000
    tosses = run(Coin(), [1.0] * size)
    assert sum(tosses) / size == pytest.approx(0.5, abs=0.012)
    for quarter in range(4):
        c = [1.0 - 2.0 * (quarter + (i + 0.5) / 100) / 4 for i in range(100)]
        expected = sum(0.5 * math.erfc(x / math.sqrt(2)) for x in c) / 100
        part = tosses[quarter * size // 4 : (quarter + 1) * size // 4]
        assert sum(part) / len(part) == pytest.approx(expected, abs=0.02)
    assert decide(Coin(-math.inf, -math.inf), draw=0.999999)
    assert not decide(Coin(math.inf, math.inf), draw=0.0)


# Signals that are measured outside


def geometry(**options):
    return AdaptiveThreshold(signal="lambda-max", refresh_every=5, **options)


def feed(policy, measurements, *, steps_each=5, total=None):
    """Decisions over a run in which every due measurement is taken from the list."""
    decisions, waiting = [], iter(measurements)
    total = total or steps_each * len(measurements)
    for t in range(total):
        if policy.wants_measurement(t):
            policy.observe(next(waiting))
        decisions.append(decide(policy, step=t, progress=t / total))
    return decisions


def test_a_measured_signal_is_asked_for_every_so_many_steps_and_held_between():
    policy = geometry(lambda1=-math.inf, lambda2=-math.inf)
    asked = []
    for t in range(20):
        if policy.wants_measurement(t):
            asked.append(t)
            policy.observe(1.0)
            assert not policy.wants_measurement(t)
        decide(policy, step=t)
    assert asked == [0, 5, 10, 15]
    assert policy.num_observed == 4


def test_the_first_five_measurements_only_warm_up():
    decisions = feed(geometry(lambda1=-math.inf, lambda2=-math.inf), [1.0] * 8)
    assert decisions == [False] * 25 + [True] * 15


def test_a_measured_mean_starts_at_the_first_value_and_moves_with_new_ones_only():
    policy = geometry(delta=0.9, lambda1=0.0, lambda2=0.0)
    values = [4.0, 5.0, 3.0, 6.0, 2.0, 7.0, 1.0]
    mean, variance = values[0], 0.0
    for i, value in enumerate(values):
        policy.observe(value)
        if i:
            mean = 0.9 * mean + 0.1 * value
        variance = 0.9 * variance + 0.1 * (value - mean) ** 2
        for t in range(5 * i, 5 * i + 5):
            decision = decide(policy, step=t)
            assert (policy.mean, policy.variance) == pytest.approx((mean, variance))
            assert decision == (i >= 5 and value >= mean)


def test_a_held_decision_does_not_follow_the_moving_level():
    policy = geometry(lambda1=-1.0, lambda2=1.0)
    for value in (1.0, 2.0, 1.0, 2.0, 1.0, 1.5):
        policy.observe(value)
    assert not decide(policy, step=0, progress=0.0)
    assert not decide(policy, step=1, progress=1.0)  # now below the new threshold, but held
    policy.observe(1.5)
    assert decide(policy, step=5, progress=1.0)


def test_a_measurement_that_is_not_finite_keeps_the_decision_and_the_averages():
    policy = geometry(lambda1=-math.inf, lambda2=-math.inf)
    feed(policy, [1.0] * 6)
    mean = policy.mean
    policy.observe(math.nan)
    assert decide(policy, step=40)
    assert policy.mean == mean
    assert not policy.wants_measurement(41)


def test_a_geometry_signal_that_nobody_measures_raises_with_the_recipe():
    with pytest.raises(RuntimeError, match=r"policy\.observe\(value\)"):
        decide(geometry())
    with pytest.raises(ValueError, match="read at every step"):
        AdaptiveThreshold().observe(1.0)
    with pytest.raises(ValueError, match="watches no signal"):
        Always().observe(1.0)
    assert not Always().wants_measurement(0)
    assert not AdaptiveThreshold().wants_measurement(0)


@pytest.mark.parametrize("signal", ["gradient-norm", "lambda-max", "max-sharpness", "trace"])
def test_every_signal_continues_from_its_saved_state(signal):
    values = normal(3.0, 1.0, 60)

    def steps(policy, start, stop):
        fired = []
        for t in range(start, stop):
            if policy.wants_measurement(t):
                policy.observe(values[t])
            fired.append(decide(policy, step=t, progress=t / 60, signal=values[t]))
        return fired

    def make():
        return AdaptiveThreshold(signal=signal, refresh_every=2)

    whole, first = make(), make()
    expected = steps(whole, 0, 60)
    head = steps(first, 0, 31)
    second = make()
    second.load_state_dict(first.state_dict())
    assert head + steps(second, 31, 60) == expected
    assert second.facts() == whole.facts()
    assert any(expected)
    assert not all(expected)


def test_a_policys_state_with_a_key_missing_or_of_another_policy_is_refused():
    state = AdaptiveThreshold().state_dict()
    for key in state:
        with pytest.raises(ValueError, match="saved policy"):
            AdaptiveThreshold().load_state_dict({k: v for k, v in state.items() if k != key})
    with pytest.raises(ValueError, match="saved policy is 'ae', this optimizer has 'coin'"):
        Coin().load_state_dict(state)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Every(0), "k must be a whole number >= 1, got 0"),
        (lambda: Every(2.5), "k must be a whole number"),
        (lambda: Bernoulli(1.5), r"probability must be a number in \[0, 1\]"),
        (lambda: Bernoulli(0.5, schedule="sine"), "schedule must be one of constant, piecewise"),
        (lambda: Tail(-0.1), r"fraction must be a number in \[0, 1\]"),
        (lambda: Coin(lambda1=math.nan), "lambda1 must be a number"),
        (lambda: AdaptiveThreshold(delta=1.0), r"delta must be a number in \[0, 1\)"),
        (lambda: AdaptiveThreshold(signal="hessian"), "signal must be one of gradient-norm"),
        (lambda: AdaptiveThreshold(initial_variance=-1.0), "initial_variance must be"),
        (lambda: AdaptiveThreshold(refresh_every=0), "refresh_every must be a whole number >= 1"),
    ],
)
def test_options_out_of_range_raise_with_the_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_policies_say_what_they_need():
    assert AdaptiveThreshold().needs_gradient
    assert AdaptiveThreshold().needs_end
    assert not AdaptiveThreshold(lambda1=0.5, lambda2=0.5).needs_end
    assert not geometry().needs_gradient
    assert Tail(0.3).needs_end
    assert Coin().needs_end
    assert Bernoulli(Linear(0, 1)).needs_end
    for schedule in ("piecewise", "linear", "trigonometric"):
        assert Bernoulli(0.5, schedule=schedule).needs_end
    for free in (Always(), Never(), Every(2), Bernoulli(0.5)):
        assert not free.needs_end
        assert not free.needs_gradient


@pytest.mark.parametrize(
    "policy", [Always(), Never(), Every(2), Bernoulli(0.5), Tail(0.3), Coin(), AdaptiveThreshold()]
)
def test_a_policy_that_needs_draws_is_one_that_draws(policy):
    drawn = []
    policy.decide(step=0, progress=0.5, signal=lambda: 1.0, draw=lambda: drawn.append(1) or 0.5)
    assert policy.needs_draw == bool(drawn)


def test_a_policy_shows_what_it_was_built_with():
    assert repr(Every(3)) == "Every(k=3)"
    assert repr(Always()) == "Always()"
    assert repr(AdaptiveThreshold()).startswith("AdaptiveThreshold(signal='gradient-norm', delta=")
