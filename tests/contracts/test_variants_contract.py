"""What every entry of VARIANTS keeps, those still to come included: each is built by its name."""

import copy
import io
import math

import pytest
import torch
from torch import nn

from sam_variants import COMMON, VARIANTS, build
from sam_variants.policies import AdaptiveThreshold
from sam_variants.training.closure import batch_closure

TOTAL = 12
cross_entropy = nn.functional.cross_entropy

BASES = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-3),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=1e-2),
    "adam:amsgrad": lambda p: torch.optim.Adam(p, lr=1e-2, amsgrad=True),
    "sgd:plain": lambda p: torch.optim.SGD(p, lr=0.05),
}


def bases(name):
    """The bases that an entry is tested over: two common ones, or the one that it names."""
    named = VARIANTS[name].base
    return ["sgd", "adamw"] if named is None or named not in BASES else [named]


PAIRS = [(name, base) for name in VARIANTS for base in bases(name)]


class Problem:
    """A small classification with batch norm and dropout, float64, a batch for each step."""

    def __init__(self):
        torch.manual_seed(0)
        self.model = nn.Sequential(
            nn.Linear(5, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3)
        ).double()
        self.x, self.y = torch.randn(TOTAL, 16, 5).double(), torch.randint(3, (TOTAL, 16))
        self.asked = []

    def optimizer(self, name, base, **options):
        parameters = self.model.named_parameters()
        return build(name, BASES[base](parameters), total_steps=TOTAL, **options)

    def train(self, optimizer, start, stop):
        losses = []
        for t in range(start, stop):
            torch.manual_seed(100 + t)
            closure = batch_closure(self.model, cross_entropy, self.x[t], self.y[t])

            def watched(request, closure=closure):
                share = 1.0 if request.num_rows is None else request.num_rows / 16
                self.asked.append((request.gradient, share))
                return closure(request)

            watched.num_rows = 16
            losses.append(optimizer.step(watched))
        return losses

    def bits(self):
        return [t.clone() for t in self.model.state_dict().values()]


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(("name", "base"), PAIRS)
def test_every_variant_takes_steps_and_counts_the_passes_it_really_ran(name, base):
    problem = Problem()
    before = problem.bits()
    optimizer = problem.optimizer(name, base)
    losses = problem.train(optimizer, 0, TOTAL)
    assert not same(before, problem.bits())
    assert all(math.isfinite(loss) for loss in losses)
    counts = optimizer.counts
    assert counts.steps == TOTAL
    assert 0 <= counts.perturbed <= TOTAL
    gradients = sum(share for gradient, share in problem.asked if gradient)
    forwards = sum(share for gradient, share in problem.asked if not gradient)
    assert counts.gradients + counts.refresh_gradients == pytest.approx(gradients)
    assert counts.forwards + counts.refresh_forwards == pytest.approx(forwards)
    assert problem.model[1].num_batches_tracked == TOTAL


@pytest.mark.parametrize(("name", "base"), PAIRS)
def test_every_variant_resumes_bit_for_bit_from_a_file_of_plain_types(name, base):
    whole = Problem()
    whole_optimizer = whole.optimizer(name, base)
    whole.train(whole_optimizer, 0, TOTAL)
    first = Problem()
    optimizer = first.optimizer(name, base)
    first.train(optimizer, 0, 7)
    file = io.BytesIO()
    torch.save({"model": first.model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    second = Problem()
    with torch.no_grad():
        for p in second.model.parameters():
            p.zero_()
    second.model.load_state_dict(saved["model"])
    optimizer = second.optimizer(name, base)
    optimizer.load_state_dict(saved["optimizer"])
    second.train(optimizer, 7, TOTAL)
    assert same(second.bits(), whole.bits())
    assert optimizer.counts == whole_optimizer.counts


@pytest.mark.parametrize("name", VARIANTS)
def test_every_key_of_a_variants_saved_state_matters(name):
    problem = Problem()
    optimizer = problem.optimizer(name, bases(name)[0])
    problem.train(optimizer, 0, 3)
    state = optimizer.state_dict()
    assert state["rule"]
    for key in state["rule"]:
        broken = {**state, "rule": {k: v for k, v in state["rule"].items() if k != key}}
        with pytest.raises(ValueError, match="missing"):
            Problem().optimizer(name, bases(name)[0]).load_state_dict(broken)


@pytest.mark.parametrize(
    ("name", "base"), [(n, b) for n, b in PAIRS if "rho" in VARIANTS[n].options]
)
def test_rho_zero_is_the_base(name, base):
    # every other source of noise off, by its own option
    quiet = {"radius": 0.0, "rho_min": 0.0, "gamma": 1.0, "beta": 1.0, "shards": 1}
    options = {k: v for k, v in quiet.items() if k in VARIANTS[name].options}
    problem, plain = Problem(), Problem()
    problem.train(problem.optimizer(name, base, rho=0.0, **options), 0, TOTAL)
    reference = BASES[base](plain.model.named_parameters())
    for t in range(TOTAL):
        torch.manual_seed(100 + t)
        reference.zero_grad()
        cross_entropy(plain.model(plain.x[t]), plain.y[t]).backward()
        reference.step()
    assert same(problem.bits(), plain.bits())


@pytest.mark.parametrize("name", VARIANTS)
def test_weights_and_statistics_survive_an_exception_in_any_pass(name):
    at = 0
    while True:
        problem = Problem()
        optimizer = problem.optimizer(name, bases(name)[0])
        closure = batch_closure(problem.model, cross_entropy, problem.x[0], problem.y[0])
        home, calls = [p.detach().clone() for p in problem.model.parameters()], [0]

        def failing(request, closure=closure, calls=calls, at=at):
            if calls[0] == at:
                raise ZeroDivisionError
            calls[0] += 1
            return closure(request)

        failing.num_rows = 16
        try:
            optimizer.step(failing)
        except ZeroDivisionError:
            assert same(home, list(problem.model.parameters()))
            assert optimizer.counts.steps == 0
        else:
            assert at > 0
            return
        at += 1


@pytest.mark.parametrize(
    ("name", "option"), [(n, o) for n, e in VARIANTS.items() for o in e.options]
)
def test_options_out_of_range_raise_with_their_name_and_range(name, option):
    allowed = VARIANTS[name].options[option]
    for bad in ("nonsense", math.nan, [1.0]):
        with pytest.raises(ValueError, match=f"{option} must be"):
            Problem().optimizer(name, bases(name)[0], **{option: bad})
    low, high = getattr(allowed, "low", -math.inf), getattr(allowed, "high", math.inf)
    for bad in (low - 1.0, high + 1.0):
        if math.isfinite(bad):
            with pytest.raises(ValueError, match=f"{option} must be"):
                Problem().optimizer(name, bases(name)[0], **{option: bad})


@pytest.mark.parametrize("name", VARIANTS)
def test_an_unknown_option_names_the_nearest(name):
    options = [*VARIANTS[name].options, *COMMON]
    with pytest.raises(ValueError, match=rf"unknown option of {name} '{options[0]}z'; did you"):
        Problem().optimizer(name, bases(name)[0], **{options[0] + "z": 1})


@pytest.mark.parametrize("name", VARIANTS)
def test_a_copy_trains_like_the_original(name):
    problem = Problem()
    optimizer = problem.optimizer(name, bases(name)[0])
    problem.train(optimizer, 0, 5)
    twin, twin_optimizer = copy.deepcopy((problem, optimizer))
    problem.train(optimizer, 5, TOTAL)
    twin.train(twin_optimizer, 5, TOTAL)
    assert same(problem.bits(), twin.bits())


@pytest.mark.parametrize("name", [n for n, e in VARIANTS.items() if e.policy is None])
@pytest.mark.parametrize("when", ["always", "never", "every-3", "bernoulli-0.5", "coin", "ae"])
def test_every_free_variant_runs_under_every_policy_that_it_can_serve(name, when):
    problem = Problem()
    rule = VARIANTS[name].load()
    if when == "ae" and not getattr(rule, "starts_clean", True):
        with pytest.raises(ValueError, match="no clean evaluation"):
            problem.optimizer(name, bases(name)[0], when=when)
        return
    optimizer = problem.optimizer(name, bases(name)[0], when=when)
    problem.train(optimizer, 0, TOTAL)
    expected = {"always": TOTAL, "never": 0, "every-3": 4}
    assert optimizer.counts.perturbed == expected.get(when, optimizer.counts.perturbed)
    assert isinstance(optimizer.policy, AdaptiveThreshold) == (when == "ae")


@pytest.mark.parametrize("name", VARIANTS)
def test_every_entry_has_one_line_about_itself_and_a_class_with_a_docstring(name):
    entry = VARIANTS[name]
    assert "\n" not in entry.summary
    assert 10 < len(entry.summary) < 100
    assert entry.load().__doc__
    for option, allowed in entry.options.items():
        allowed.check(option, allowed.default)
