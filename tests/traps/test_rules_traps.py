"""Traps that caught published SAM code: ours passes a check that a wrong twin beside it fails."""

import math
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from sam_variants import SAM, Evaluate, LookSAM, SharpnessAware
from sam_variants.policies import AdaptiveThreshold
from sam_variants.training.closure import evaluating
from tests.references import Quadratic, coupled_matrix, unit

# -- 1. Running statistics -------------------------------------------------------------------------


def later():
    request = Evaluate()
    request.first = False
    return request


@contextmanager
def evaluating_in_eval_mode(model, _request):
    model.eval()
    try:
        yield
    finally:
        model.train()


@contextmanager
def evaluating_with_momentum_zero(model, _request):
    kept = model[0].momentum
    model[0].momentum = 0.0
    try:
        yield
    finally:
        model[0].momentum = kept


@contextmanager
def evaluating_in_train_mode(model, _request):
    yield


def check_later_passes_leave_the_statistics(context):
    model = nn.Sequential(nn.BatchNorm1d(3))
    torch.manual_seed(0)
    x = 5.0 + 2.0 * torch.randn(64, 3)
    with context(model, later()):
        out = model(x)
        model(x * math.inf)
    # the batch's own statistics, as in the first pass
    torch.testing.assert_close(out.mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    assert model[0].num_batches_tracked == 0
    assert torch.equal(model[0].running_mean, torch.zeros(3))
    assert torch.equal(model[0].running_var, torch.ones(3))


def test_trap_01_the_ascent_pass_rewrites_running_statistics():
    check_later_passes_leave_the_statistics(evaluating)
    for wrong in (
        evaluating_in_train_mode,
        evaluating_in_eval_mode,
        evaluating_with_momentum_zero,
    ):
        with pytest.raises(AssertionError):
            check_later_passes_leave_the_statistics(wrong)


# -- 4. Another dropout mask in the second pass ----------------------------------------------------


class RedrawnMask(SAM):
    """The second pass draws afresh, as when nobody sets the generator back."""

    def _prepare(self, cycle, request):
        super()._prepare(cycle, request)
        if not request.first:
            torch.manual_seed(torch.seed())


def check_both_passes_see_one_function(rule):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 256), nn.Dropout(0.5), nn.Linear(256, 1))
    x = torch.randn(8, 4)
    optimizer = rule(torch.optim.SGD(model.parameters(), lr=0.0), rho=0.0)
    losses = []
    for request in optimizer.passes():
        loss = model(x).square().mean()
        loss.backward()
        losses.append(loss.item())
        request.loss = loss.detach()
    assert losses[0] == losses[1]


def test_trap_04_dropout_makes_the_two_passes_two_functions():
    check_both_passes_see_one_function(SAM)
    with pytest.raises(AssertionError):
        check_both_passes_see_one_function(RedrawnMask)


# -- 18. The caller's flags ------------------------------------------------------------------------


@contextmanager
def evaluating_without_finally(model, request):
    model[0].track_running_stats = False
    yield
    model[0].track_running_stats = True


def check_flags_survive_an_exception(context):
    model = nn.Sequential(nn.BatchNorm1d(3))
    try:
        with context(model, later()):
            raise ZeroDivisionError
    except ZeroDivisionError:
        pass
    assert model[0].track_running_stats
    assert model[0].training


def test_trap_18_an_exception_leaves_the_callers_flags_changed():
    check_flags_survive_an_exception(evaluating)
    with pytest.raises(AssertionError):
        check_flags_survive_an_exception(evaluating_without_finally)


# -- 26. The generator of random choices -----------------------------------------------------------


class GlobalDraws(SAM):
    """Draws from torch's global generator, which the data and each rank have moved differently."""

    @property
    def _generator(self):
        return torch.default_generator

    @_generator.setter
    def _generator(self, _):
        pass


def check_every_rank_decides_the_same(rule):
    from sam_variants.policies import Bernoulli

    def decisions(rank, seed):
        torch.manual_seed(rank)
        q = Quadratic([[1.0]], [1.0])
        optimizer = rule(torch.optim.SGD(q.parameters, lr=0.0), when=Bernoulli(0.5), seed=seed)
        fired = []
        for _ in range(32):
            optimizer.step(q.closure)
            torch.rand(rank + 1)  # the rank's own data
            fired.append(optimizer.last.perturbed)
        return fired

    assert decisions(0, 3) == decisions(1, 3)
    assert decisions(0, 3) != decisions(0, 4)


def test_trap_26_ranks_that_draw_from_their_own_generator_part():
    check_every_rank_decides_the_same(SAM)
    with pytest.raises(AssertionError):
        check_every_rank_decides_the_same(GlobalDraws)


# -- The way home ----------------------------------------------------------------------------------


class SubtractingSAM(SharpnessAware):
    """Comes home by w - eps, as much published code does: float32 drifts."""

    name = "subtracting"

    def __init__(self, base, *, rho=0.05, **common):
        super().__init__(base, options={"rho": rho}, **common)

    def descent(self):
        clean = yield Evaluate()
        gradient = clean.take()
        eps = gradient.mul(self.rho / (gradient.norm() + 1e-12))
        for parameter, part in zip(self.parameters, eps, strict=True):
            parameter.data.add_(part)
        worst = yield Evaluate()
        for parameter, part in zip(self.parameters, eps, strict=True):
            parameter.data.sub_(part)
        return worst.take()


def check_weights_come_home_bit_for_bit(rule):
    torch.manual_seed(0)
    w = nn.Parameter(torch.randn(500))
    home = w.detach().clone()
    optimizer = rule(torch.optim.SGD([w], lr=0.0), rho=2.0)

    def closure():
        optimizer.zero_grad()
        loss = (w**4).sum()
        loss.backward()
        return loss

    for _ in range(10):
        optimizer.step(closure)
    assert torch.equal(w, home)


def test_trap_rules_subtracting_the_offset_does_not_come_home():
    check_weights_come_home_bit_for_bit(SAM)
    with pytest.raises(AssertionError):
        check_weights_come_home_bit_for_bit(SubtractingSAM)


# -- One norm over everything ----------------------------------------------------------------------


class TensorwiseSAM(SAM):
    """Normalises each tensor by itself: |eps| = rho sqrt(number of tensors)."""

    def ascent(self, clean):
        gradient = clean.take()
        return gradient.mul_(
            [self.rho / (square.sqrt() + 1e-12) for square in gradient.dots(gradient)]
        )


def check_the_offset_has_length_rho(rule):
    q = Quadratic(coupled_matrix(), [1.0, -2.0, 0.5, 3.0], sizes=[1, 2, 1])
    rule(torch.optim.SGD(q.parameters, lr=0.1), rho=0.3).step(q.closure)
    offset = q.visited[1] - q.visited[0]
    assert offset.norm().item() == pytest.approx(0.3)


def test_trap_rules_a_norm_per_tensor_is_another_algorithm():
    check_the_offset_has_length_rho(SAM)
    with pytest.raises(AssertionError):
        check_the_offset_has_length_rho(TensorwiseSAM)


# -- LookSAM's direction ---------------------------------------------------------------------------


class NoisyLookSAM(LookSAM):
    """Normalises whatever is left, rounding noise included."""

    def _missing_part(self, sharp, clean):
        part = sharp.sub(clean.mul(sharp.dot(clean) / clean.dot(clean)))
        return part.mul_(1.0 / (part.norm() + 1e-12))


def check_rounding_noise_is_no_direction(rule):
    torch.manual_seed(0)
    w = nn.Parameter(torch.randn(1000))  # |w|^2/2: gradients stay parallel to w
    optimizer = rule(torch.optim.SGD([w], lr=0.1), rho=0.3)

    def closure():
        optimizer.zero_grad()
        loss = 0.5 * w.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    before = w.detach().clone()
    optimizer.step(closure)
    torch.testing.assert_close(before - w.detach(), 0.1 * before, rtol=1e-5, atol=1e-7)


def test_trap_rules_looksam_blows_rounding_noise_up_to_length_one():
    check_rounding_noise_is_no_direction(LookSAM)
    with pytest.raises(AssertionError):
        check_rounding_noise_is_no_direction(NoisyLookSAM)


# -- AE-SAM's averages -----------------------------------------------------------------------------


class OldMeanThreshold(AdaptiveThreshold):
    """Measures the deviation from the mean before its update."""

    def _update(self, value):
        deviation = value - self.mean
        self.value, self.num_observed = value, self.num_observed + 1
        self.variance = self.delta * self.variance + (1 - self.delta) * deviation**2
        self.mean = self.delta * self.mean + (1 - self.delta) * value


class SwappedThreshold(AdaptiveThreshold):
    """Starts at lambda1 and ends at lambda2."""

    def decide(self, *, progress, **rest):
        return super().decide(progress=1.0 - progress, **rest)


class RefeedingThreshold(AdaptiveThreshold):
    """Feeds the held measurement at every step: the variance dies, the sign of c decides."""

    def decide(self, *, step, progress, signal, **rest):
        if not self.fresh:
            self._update(self.value)
        super().decide(step=step, progress=progress, signal=signal)
        return self._exceeds(progress) and self.num_observed > self.WARM_UP


def decisions(policy, signals):
    total = len(signals)
    fired = []
    for t, value in enumerate(signals):
        if policy.wants_measurement(t):
            policy.observe(value)
        fired.append(
            policy.decide(step=t, progress=t / total, signal=lambda v=value: v, draw=lambda: 0.5)
        )
    return fired


def check_firing_list_of_a_constant_signal(policy):
    fired = decisions(policy(lambda1=1.0, lambda2=1.0), [1.0] * 60)
    assert [t for t, f in enumerate(fired) if f] == list(range(7))


def check_the_threshold_falls(policy):
    generator = torch.Generator().manual_seed(0)
    signals = (10 + torch.randn(2000, generator=generator)).tolist()
    fired = decisions(policy(), signals)
    assert sum(fired[:1000]) < sum(fired[1000:])


def check_a_held_measurement_is_averaged_once(policy):
    generator = torch.Generator().manual_seed(0)
    signals = (10 + torch.randn(8000, generator=generator)).tolist()
    adaptive = policy(signal="trace", refresh_every=50)
    fired = decisions(adaptive, signals)
    assert 0.5 < adaptive.facts()["deviation"] < 1.5  # that of the measurements
    assert 0.2 < sum(fired[:2000]) / 2000 < 0.35
    assert sum(fired[6000:]) / 2000 > 0.65


def test_trap_rules_ae_sam_deviates_from_the_mean_just_updated():
    check_firing_list_of_a_constant_signal(AdaptiveThreshold)
    with pytest.raises(AssertionError):
        check_firing_list_of_a_constant_signal(OldMeanThreshold)


def test_trap_rules_ae_sam_with_its_schedule_reversed():
    check_the_threshold_falls(AdaptiveThreshold)
    with pytest.raises(AssertionError):
        check_the_threshold_falls(SwappedThreshold)


def test_trap_rules_a_held_signal_fed_every_step_kills_the_variance():
    check_a_held_measurement_is_averaged_once(AdaptiveThreshold)
    with pytest.raises(AssertionError):
        check_a_held_measurement_is_averaged_once(RefeedingThreshold)


# -- Clipping between the gradient and its norm ----------------------------------------------------


class ClippingSAM(SAM):
    """Clips the clean gradient before it builds the (un-normalised) offset."""

    def ascent(self, clean):
        clean.gradient.mul_(min(1.0, 0.1 / float(clean.norm)))
        return super().ascent(clean)


def check_the_offset_is_the_raw_gradients(rule):
    h = coupled_matrix()
    q = Quadratic(h, [1.0, -2.0, 0.5, 3.0])
    x = q.x
    rule(torch.optim.SGD(q.parameters, lr=0.1), rho=0.3, scale="gradient").step(q.closure)
    torch.testing.assert_close(q.visited[1] - x, 0.3 * (h @ x))
    assert unit(h @ x).norm().item() == pytest.approx(1.0)


def test_trap_rules_clipping_before_the_ascent_changes_the_offset():
    check_the_offset_is_the_raw_gradients(SAM)
    with pytest.raises(AssertionError):
        check_the_offset_is_the_raw_gradients(ClippingSAM)
