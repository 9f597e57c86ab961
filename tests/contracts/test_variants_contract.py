"""What every entry of VARIANTS keeps: each is built by its name, and a new one is tested here too.

Where an entry differs by its definition, a table says so, so that a new entry must be looked at.
"""

import copy
import io
import math
import textwrap

import pytest
import torch
from torch import nn

from sam_variants import COMMON, VARIANTS, build
from sam_variants.base import LOOP
from sam_variants.policies import AdaptiveThreshold
from sam_variants.schedules import Linear
from sam_variants.training import batch_closure, evaluating, wrong_class_divergence

TOTAL, ROWS = 12, 16
cross_entropy = nn.functional.cross_entropy

BASES = {
    "sgd": lambda p, **o: torch.optim.SGD(p, **{"lr": 0.05, "momentum": 0.9, **o}),
    "adamw": lambda p, **o: torch.optim.AdamW(p, **{"lr": 1e-2, "weight_decay": 1e-2, **o}),
    "adam:amsgrad": lambda p, **o: torch.optim.Adam(p, **{"lr": 1e-2, "amsgrad": True, **o}),
    "sgd:plain": lambda p, **o: torch.optim.SGD(p, **{"lr": 0.05, **o}),
}

SHORT_CYCLES = {"refresh_every": 3}  # so that 12 steps hold several
QUICK = 0.5  # delta of an adaptive threshold that decides both ways within 12 steps
FREE = [name for name, entry in VARIANTS.items() if entry.policy is None]
WITH_RHO = [name for name, entry in VARIANTS.items() if "rho" in entry.options]


def bases(name):
    """The bases that an entry is tested over: two common ones, or the one that it names."""
    named = VARIANTS[name].base
    return ["sgd", "adamw"] if named is None else [named]


def those(name, options):
    """The options that the entry has."""
    return {key: value for key, value in options.items() if key in VARIANTS[name].options}


PAIRS = [(name, base) for name in VARIANTS for base in bases(name)]


class Problem:
    """A small classification in float64 with a batch for each step; `kinds`: layers that it has."""

    def __init__(self, *, kinds=("norm", "dropout")):
        torch.manual_seed(0)
        norm = nn.BatchNorm1d(16) if "norm" in kinds else nn.Identity()
        dropout = nn.Dropout(0.2) if "dropout" in kinds else nn.Identity()
        self.model = nn.Sequential(
            nn.Linear(5, 16), norm, nn.Tanh(), dropout, nn.Linear(16, 3)
        ).double()
        self.x, self.y = torch.randn(TOTAL, ROWS, 5).double(), torch.randint(3, (TOTAL, ROWS))
        self.asked = []

    def optimizer(self, name, base=None, *, base_options=None, **options):
        make = BASES[bases(name)[0] if base is None else base]
        options = {"total_steps": TOTAL, **options}
        return build(name, make(self.model.named_parameters(), **base_options or {}), **options)

    def closure(self, t, watch=None):
        """The closure of step t, which notes what was asked and calls watch(request) after it."""
        torch.manual_seed(100 + t)
        answer = batch_closure(self.model, cross_entropy, self.x[t], self.y[t])

        def closure(request):
            share = 1.0 if request.num_rows is None else request.num_rows / ROWS
            self.asked.append((request.gradient, share))
            loss = answer(request)
            if watch is not None:
                watch(request)
            return loss

        closure.num_rows = ROWS
        return closure

    def train(self, optimizer, start, stop):
        return [optimizer.step(self.closure(t)) for t in range(start, stop)]

    def weights(self):
        return [p.detach().clone() for p in self.model.parameters()]

    def bits(self):
        return [t.clone() for t in self.model.state_dict().values()]


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def plain_run(base, *, kinds=("norm", "dropout")):
    """The base optimizer in an ordinary loop."""
    problem = Problem(kinds=kinds)
    reference = BASES[base](problem.model.named_parameters())
    for t in range(TOTAL):
        torch.manual_seed(100 + t)
        reference.zero_grad()
        cross_entropy(problem.model(problem.x[t]), problem.y[t]).backward()
        reference.step()
    return problem


def memory_of(optimizer):
    """Everything that a step which was not taken must leave alone."""
    state = optimizer.state_dict()
    rule = {key: state["rule"][key] for key in ("policy", "generator", "memory", "progress")}
    done = optimizer.counts.steps, optimizer.counts.perturbed
    return copy.deepcopy({"rule": rule, "base": state["state"], "done": done})


def assert_equal(one, other):
    """Nested states are the same, to the bit."""
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            assert_equal(one[key], other[key])
    elif isinstance(one, (list, tuple)):
        for mine, theirs in zip(one, other, strict=True):
            assert_equal(mine, theirs)
    else:
        assert one == other


# -- What a step costs -----------------------------------------------------------------------------

FIRED = "1 + the share of perturbed steps"
NOTHING_YET = {"momentum-sam", "previous-sam"}  # to go along in the first step, which stays home
COST = {  # gradients a step, forwards a step, gradients of all refreshes, at the defaults
    "erm": (1, 0, 0),
    "sam": (2, 0, 0),
    "asam": (2, 0, 0),
    "looksam": (1 + 3 / TOTAL, 0, 0),  # steps 0, 5, 10
    "ae-sam": (FIRED, 0, 0),
    "ae-looksam": (FIRED, 0, 0),
    "multistep-sam": (4, 0, 0),
    "rst": (FIRED, 0, 0),
    "g-rst": (FIRED, 0, 0),
    "msam": (2, 0, 0),
    "tsam": (6, 0, 0),
    "bsam": (3, 0, 0),
    "f-sam": (2, 0, 0),
    "momentum-sam": (1, 0, 0),
    "ssam-f": (2, 0, 1),  # all 16 rows, one at a time
    "ssam-d": (2, 0, 0),
    "fisher-mask-sam": (2, 0, 0),
    "esam": (1.5, 1, 0),
    "adasam": (2, 0, 0),
    "aace": (2, 0, 0),
    "previous-sam": (1, 0, 0),
    "gsam": (2, 0, 0),
    "vasso": (2, 0, 0),
    "gnp": (2, 0, 0),
    "le-sam": (2, 0, 0),
    "eigen-sam": (2, 0, 10),  # 5 iterations of two
    "sam-sps": (2, 0, 0),
}


@pytest.mark.parametrize(("name", "base"), PAIRS)
def test_every_variant_takes_steps_at_the_cost_of_its_table(name, base):
    problem = Problem()
    before = problem.bits()
    optimizer = problem.optimizer(name, base, **those(name, {"delta": QUICK}))
    losses = problem.train(optimizer, 0, TOTAL)
    assert not same(before, problem.bits())
    assert all(math.isfinite(loss) for loss in losses)
    counts = optimizer.counts
    assert counts.steps == TOTAL
    gradients, forwards, refreshes = COST[name]
    if gradients is FIRED:
        assert 0 < counts.perturbed < TOTAL
        gradients = 1 + counts.perturbed / TOTAL
    elif name == "looksam":
        assert counts.perturbed == 3
    else:
        assert counts.perturbed == (0 if name == "erm" else TOTAL - (name in NOTHING_YET))
    assert counts.gradients == pytest.approx(gradients * TOTAL, abs=1e-9)
    assert counts.forwards == pytest.approx(forwards * TOTAL, abs=1e-9)
    assert counts.refresh_gradients == pytest.approx(refreshes, abs=1e-9)
    assert counts.refresh_forwards == 0.0
    assert problem.model[1].num_batches_tracked == TOTAL
    # and that is what really ran
    spent = sum(share for gradient, share in problem.asked if gradient)
    assert counts.gradients + counts.refresh_gradients == pytest.approx(spent)
    spent = sum(share for gradient, share in problem.asked if not gradient)
    assert counts.forwards == pytest.approx(spent)


@pytest.mark.parametrize("name", ["rst", "g-rst"])
def test_the_steps_that_a_coin_chooses_are_those_of_its_own_generator(name):
    problem = Problem()
    optimizer = problem.optimizer(name, seed=5)
    problem.train(optimizer, 0, TOTAL)
    generator = torch.Generator().manual_seed(5)
    draws = [float(torch.rand((), generator=generator, dtype=torch.float64)) for _ in range(TOTAL)]
    assert optimizer.counts.perturbed == sum(draw < 0.5 for draw in draws)


@pytest.mark.parametrize(
    ("name", "per_refresh"), [("ssam-f", 1.0), ("eigen-sam", 10.0), ("ssam-d", 0.0)]
)
def test_refreshes_come_at_the_first_step_and_then_every_so_many(name, per_refresh):
    problem = Problem()
    optimizer = problem.optimizer(name, refresh_every=5)
    spent = []
    for t in range(TOTAL):
        problem.train(optimizer, t, t + 1)
        spent.append(optimizer.counts.refresh_gradients)
    expected = [per_refresh * (1 + t // 5) for t in range(TOTAL)]
    assert spent == pytest.approx(expected)


# -- Limits ----------------------------------------------------------------------------------------

# Options that leave nothing of a rule: one that returns one gradient is then the base to the bit.
NOTHING_LEFT = {"rho": 0.0, "rho_min": 0.0, "rho_max": 0.0}
SEVERAL_GRADIENTS = {
    "g-rst": {},
    "msam": {},
    "tsam": {},
    "bsam": {},
    "gsam": {},
    "gnp": {},
    "multistep-sam": {"average": "path"},
}
STILL_ANOTHER_ALGORITHM = {"sam-sps"}  # its step is Polyak's


@pytest.mark.parametrize(
    ("name", "base", "options"),
    [
        (name, base, options)
        for name, base in PAIRS
        if name not in STILL_ANOTHER_ALGORITHM
        for options in ([{}] if name not in SEVERAL_GRADIENTS else [SEVERAL_GRADIENTS[name]])
    ]
    + [("multistep-sam", "sgd", {"average": "none"}), ("bsam", "sgd", {"match_norms": True})]
    + [("multistep-sam", "sgd", {"average": "path+clean"}), ("asam", "sgd", {"adapt": "all"})]
    + [("aace", "sgd", {"scale": "unit"}), ("sam", "sgd", {"scale": "gradient"})],
)
def test_a_radius_of_zero_is_the_base(name, base, options):
    # A shard sees its own rows alone, so batch norm and dropout tell it from the whole batch. And
    # the bias before batch norm has rounding noise for a gradient, which Adam brings to full size.
    mixes = name in SEVERAL_GRADIENTS and options != {"average": "none"}
    kinds = () if mixes else ("norm", "dropout")
    given = {**those(name, NOTHING_LEFT), **options}
    if name == "esam":
        given["gamma"] = 1.0
    problem, plain = Problem(kinds=kinds), plain_run(base, kinds=kinds)
    problem.train(problem.optimizer(name, base, **given), 0, TOTAL)
    if mixes:
        for got, expected in zip(problem.bits(), plain.bits(), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    else:
        assert same(problem.bits(), plain.bits())


# -- A step that is not taken ----------------------------------------------------------------------


def every_pass_of_a_step(name, *, steps_before, **common):
    """(at, problem, optimizer) for each pass of a step; the driver ends it when the step is over.

    Several tests break a step at its pass number `at`. They all use one optimizer, since a broken
    step must leave it as it was.
    """
    problem = Problem()
    optimizer = problem.optimizer(name, **those(name, SHORT_CYCLES), **common)
    problem.train(optimizer, 0, steps_before)
    at = 0
    while True:
        steps = optimizer.counts.steps
        yield at, problem, optimizer
        if optimizer.counts.steps > steps:
            break
        at += 1
    assert at > 0


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("steps_before", [0, 6])
def test_an_exception_in_any_pass_leaves_everything_as_it_was(name, steps_before):
    for at, problem, optimizer in every_pass_of_a_step(name, steps_before=steps_before):
        home, memory = problem.weights(), memory_of(optimizer)
        left = [at]

        def failing(request, left=left):
            if left[0] == 0:
                raise ZeroDivisionError
            left[0] -= 1

        try:
            optimizer.step(problem.closure(steps_before, failing))
        except ZeroDivisionError:
            assert same(home, problem.weights())
            assert_equal(memory_of(optimizer), memory)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_held_loop_abandoned_at_any_pass_leaves_everything_as_it_was(name):
    for at, problem, optimizer in every_pass_of_a_step(name, steps_before=6):
        home, memory = problem.weights(), memory_of(optimizer)
        closure = problem.closure(6)
        held = optimizer.passes(num_rows=ROWS)  # stays alive: nothing closes it for us
        request = next(held)
        for _ in range(at):
            request.loss = closure(request)
            request = next(held, None)
            if request is None:
                break
        if request is None:  # the loop has ended
            optimizer.step()
            continue
        optimizer.state_dict()
        assert same(home, problem.weights())
        assert_equal(memory_of(optimizer), memory)
        with pytest.raises(RuntimeError, match="sent home inside the loop"):
            next(held)
        assert same(home, problem.weights())


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("how", ["closure", "loop"])
@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_pass_that_is_not_finite_leaves_everything_as_it_was(name, how, what):
    steps = every_pass_of_a_step(name, steps_before=6, skip_nonfinite=True)
    for at, problem, optimizer in steps:
        home, memory, counts = problem.weights(), memory_of(optimizer), optimizer.counts
        passed = [0]

        def spoil(request, problem=problem, passed=passed, at=at):
            if passed[0] == at and what == "gradient" and request.gradient:
                problem.model[4].bias.grad[1] = math.inf
            passed[0] += 1

        closure = problem.closure(6, spoil)

        def spoiled(request, closure=closure, passed=passed, at=at):
            forward_alone = what == "gradient" and not request.gradient
            loss = closure(request)
            bad = passed[0] == at + 1 and (what == "loss" or forward_alone)
            return loss * math.nan if bad else loss

        spoiled.num_rows = ROWS
        if how == "closure":
            optimizer.step(spoiled)
        else:
            for request in optimizer.passes(num_rows=ROWS):
                request.loss = spoiled(request)
            optimizer.step()
        if passed[0] == at + 1 and optimizer.counts.skipped > counts.skipped:
            assert optimizer.counts.skipped == counts.skipped + 1
            assert same(home, problem.weights())
            assert_equal(memory_of(optimizer), memory)
        else:
            assert optimizer.counts.steps == counts.steps + 1
            assert passed[0] == at
    assert optimizer.counts.skipped == at


@pytest.mark.parametrize("name", VARIANTS)
def test_looking_for_what_is_not_finite_changes_no_bit(name):
    problem, plain = Problem(), Problem()
    problem.train(problem.optimizer(name, skip_nonfinite=True), 0, 6)
    plain.train(plain.optimizer(name), 0, 6)
    assert same(problem.bits(), plain.bits())


# -- State -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "base"), PAIRS)
def test_every_variant_resumes_bit_for_bit_from_a_file_of_plain_types(name, base):
    options = those(name, SHORT_CYCLES)  # saved at step 7: in the middle of each cycle
    whole = Problem()
    whole_optimizer = whole.optimizer(name, base, **options)
    whole.train(whole_optimizer, 0, TOTAL)
    first = Problem()
    optimizer = first.optimizer(name, base, **options)
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
    optimizer = second.optimizer(name, base, **options)
    optimizer.load_state_dict(saved["optimizer"])
    second.train(optimizer, 7, TOTAL)
    gap = max(float((a - b).abs().max()) for a, b in zip(second.bits(), whole.bits(), strict=True))
    assert gap == 0.0
    assert optimizer.counts == whole_optimizer.counts
    assert_equal(memory_of(optimizer), memory_of(whole_optimizer))


@pytest.mark.parametrize("name", VARIANTS)
def test_every_key_of_a_variants_saved_state_matters(name):
    problem = Problem()
    optimizer = problem.optimizer(name)
    problem.train(optimizer, 0, 3)
    state = optimizer.state_dict()
    assert state["rule"]
    fresh = Problem().optimizer(name)
    for key in state["rule"]:
        broken = {**state, "rule": {k: v for k, v in state["rule"].items() if k != key}}
        with pytest.raises(ValueError, match="missing"):
            fresh.load_state_dict(broken)
    for key in state["rule"]["memory"]:
        memory = {k: v for k, v in state["rule"]["memory"].items() if k != key}
        with pytest.raises(ValueError, match=f"missing.*{key}"):
            fresh.load_state_dict({**state, "rule": {**state["rule"], "memory": memory}})


@pytest.mark.parametrize("name", VARIANTS)
def test_a_copy_trains_like_the_original(name):
    problem = Problem()
    optimizer = problem.optimizer(name, **those(name, SHORT_CYCLES))
    problem.train(optimizer, 0, 5)
    twin, twin_optimizer = copy.deepcopy((problem, optimizer))
    problem.train(optimizer, 5, TOTAL)
    twin.train(twin_optimizer, 5, TOTAL)
    assert same(problem.bits(), twin.bits())


@pytest.mark.parametrize(("name", "base"), PAIRS)
def test_another_bases_state_is_refused_and_leaves_everything_as_it_was(name, base):
    # adamw and adam:amsgrad have the options of one another
    saved = Problem()
    optimizer = saved.optimizer(name, base)
    saved.train(optimizer, 0, 1)
    problem = Problem()
    named = problem.model.named_parameters()
    if base in ("adamw", "adam:amsgrad"):
        other, missing = torch.optim.SGD(named, lr=0.05, momentum=0.9), "momentum"
    else:
        other, missing = torch.optim.Adam(named, amsgrad=True), "betas|step"
    resumed = problem.optimizer(name, base)
    resumed.base = other  # as where another base was built; some rules would not take this one
    before = copy.deepcopy(resumed.state_dict())
    with pytest.raises(ValueError, match=rf"another base optimizer: \w+ does not .*({missing}).*"):
        resumed.load_state_dict(optimizer.state_dict())
    assert_equal(resumed.state_dict(), before)


# -- The recipe of the messages --------------------------------------------------------------------


@pytest.mark.parametrize("name", VARIANTS)
def test_the_loop_that_every_message_shows_serves_every_rule_as_it_stands(name):
    recipe = compile(textwrap.dedent(LOOP), "the recipe", "exec")
    written, served = Problem(), Problem()
    optimizer, reference = written.optimizer(name), served.optimizer(name)
    names = {
        "optimizer": optimizer, "model": written.model, "evaluating": evaluating,
        "cross_entropy": cross_entropy, "wrong_class_divergence": wrong_class_divergence,
    }  # fmt: skip
    for t in range(4):
        torch.manual_seed(100 + t)
        exec(recipe, {**names, "inputs": written.x[t], "targets": written.y[t]})
        served.train(reference, t, t + 1)
    assert optimizer.counts == reference.counts
    for got, expected in zip(written.bits(), served.bits(), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-7, atol=1e-7)


# -- Policies --------------------------------------------------------------------------------------

POLICIES = {  # perturbed steps of 12; None: some but not all
    "always": 12,
    "never": 0,
    "every-3": 4,
    "bernoulli-0.5": None,
    "coin": None,
    "tail-0.3": 3,
    "ae": None,
}


@pytest.mark.parametrize("name", FREE)
@pytest.mark.parametrize("when", POLICIES)
def test_every_free_variant_runs_under_every_policy_that_it_can_serve(name, when):
    problem = Problem()
    if when == "ae" and not VARIANTS[name].load().starts_clean:
        with pytest.raises(ValueError, match=r"no clean evaluation.*no gradient to read; use eve"):
            problem.optimizer(name, when=when)
        return
    policy = AdaptiveThreshold(delta=QUICK) if when == "ae" else when
    optimizer = problem.optimizer(name, when=policy)
    problem.train(optimizer, 0, TOTAL)
    counts, expected = optimizer.counts, POLICIES[when]
    if name in NOTHING_YET and when in ("always", "every-3"):
        expected -= 1
    if expected is None:
        assert 0 < counts.perturbed < TOTAL
    else:
        assert counts.perturbed == expected
    assert problem.model[1].num_batches_tracked == TOTAL
    on, forwards, refreshes = COST[name]
    on = 2 if name == "looksam" else on  # its own cycle is a policy, which `when` replaces
    assert counts.gradients == pytest.approx(TOTAL + (on - 1) * counts.perturbed)
    assert counts.forwards == pytest.approx(forwards * counts.perturbed)
    assert counts.refresh_gradients == (refreshes if counts.perturbed else 0)
    if when == "never":
        assert same(problem.bits(), plain_run(bases(name)[0]).bits())


@pytest.mark.parametrize("name", [name for name in VARIANTS if name not in FREE])
def test_a_variant_with_its_own_policy_takes_no_other(name):
    with pytest.raises(ValueError, match=r"takes no when="):
        Problem().optimizer(name, when="every-3")


# -- Batch norm ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VARIANTS)
def test_a_batch_norm_net_evaluates_as_it_trained(name):
    torch.manual_seed(1)
    batches, rows = 24, 32
    centres = 1.5 * torch.randn(4, 8)
    y = torch.randint(4, (batches, rows))
    x = 3.0 + centres[y] + torch.randn(batches, rows, 8)
    y = torch.where(torch.rand(y.shape) < 0.2, torch.randint(4, y.shape), y)
    model = nn.Sequential(
        nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 16), nn.BatchNorm1d(16),
        nn.ReLU(), nn.Linear(16, 4),
    )  # fmt: skip
    base = BASES[bases(name)[0]](model.named_parameters())
    optimizer = build(name, base, total_steps=3 * batches)
    for t in range(3 * batches):
        optimizer.step(batch_closure(model, cross_entropy, x[t % batches], y[t % batches]))
    assert model[1].num_batches_tracked == 3 * batches
    assert model[4].num_batches_tracked == 3 * batches
    with torch.no_grad():
        evaluated = cross_entropy(model.eval()(x.flatten(0, 1)), y.flatten())
        model.train()
        trained = torch.stack([cross_entropy(model(a), b) for a, b in zip(x, y, strict=True)])
    assert evaluated < 1.2  # it has learned something: the uniform guess is 1.39
    assert float(evaluated) == pytest.approx(float(trained.mean()), rel=0.1)


# -- Models and groups that are not plain ----------------------------------------------------------


class Awkward(nn.Module):
    """A net with tied weights, a frozen layer, a parameter that is never used, and three groups."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.first = nn.Linear(6, 6)
        self.frozen = nn.Linear(6, 6)
        self.tied = nn.Linear(6, 6)
        self.tied.weight = self.first.weight
        self.steady = nn.Linear(6, 6)
        self.unused = nn.Parameter(torch.randn(3))
        self.last = nn.Linear(6, 3)
        self.frozen.requires_grad_(False)
        self.double()

    def forward(self, x):
        for layer in (self.first, self.frozen, self.tied, self.steady):
            x = torch.tanh(layer(x))
        return self.last(x)

    def groups(self, rho):
        """One group with the rule's radius, one that is not perturbed, one with its own."""
        named = dict(self.named_parameters())
        steady = {n: p for n, p in named.items() if n.startswith("steady")}
        last = {n: p for n, p in named.items() if n.startswith("last")}
        others = {n: p for n, p in named.items() if n not in steady and n not in last}
        return [
            {"params": list(others.items())},
            {"params": list(steady.items()), "rho": 0.0},
            {"params": list(last.items()), "rho": rho},
        ]

    def offsets(self, home):
        moved = {name: p.detach() - home[name] for name, p in self.named_parameters()}
        steady = torch.cat([d.flatten() for n, d in moved.items() if n.startswith("steady")])
        last = torch.cat([d.flatten() for n, d in moved.items() if n.startswith("last")])
        return steady, last


def awkward_run(name, rho, steps=5):
    """The offsets (steady, last) of every pass, outside refreshes; and the model and optimizer."""
    torch.manual_seed(3)
    x, y = torch.randn(steps, ROWS, 6).double(), torch.randint(3, (steps, ROWS))
    model = Awkward()
    base = BASES[bases(name)[0]](model.groups(rho))
    options = those(name, {"steps": 1, "probability": 1.0})
    optimizer = build(name, base, rho=0.05, total_steps=steps, **options)
    found = []
    for t in range(steps):
        home = {n: p.detach().clone() for n, p in model.named_parameters()}
        answer = batch_closure(model, cross_entropy, x[t], y[t])
        refreshing = [optimizer.counts.refresh_gradients]

        def closure(request, answer=answer, home=home, refreshing=refreshing):
            loss = answer(request)
            if not optimizer._cycle.refreshing:
                found.append(model.offsets(home))
            return loss

        closure.num_rows = ROWS
        optimizer.step(closure)
    return found, model, optimizer


@pytest.mark.parametrize("name", WITH_RHO)
def test_awkward_parameters_and_groups_are_served(name):
    found, model, optimizer = awkward_run(name, rho=0.1)
    fresh = Awkward()
    assert torch.equal(model.unused, fresh.unused)
    assert model.unused.grad is None
    for got, was in zip(model.frozen.parameters(), fresh.frozen.parameters(), strict=True):
        assert torch.equal(got, was)
        assert got.grad is None
    assert model.tied.weight is model.first.weight
    for layer in ("first", "steady", "last"):
        assert not torch.equal(getattr(model, layer).weight, getattr(fresh, layer).weight)
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert all(not bool(steady.any()) for steady, _ in found)
    assert any(bool(last.any()) for _, last in found)
    assert optimizer.counts.steps == 5


# What these draw or choose counts the weights without a gradient too, so that a step beside such
# weights is another step.
COUNTS_EVERY_WEIGHT = {"tsam", "ssam-f", "ssam-d", "esam", "eigen-sam"}


@pytest.mark.parametrize(
    ("name", "base", "options"),
    [(name, base, {}) for name, base in PAIRS]
    + [("multistep-sam", "sgd", {"average": "path"}), ("multistep-sam", "sgd", {"project": True})]
    + [("multistep-sam", "sgd", {"average": "path+clean"}), ("bsam", "sgd", {"match_norms": True})]
    + [("looksam", "sgd", {"per": "tensor"}), ("asam", "sgd", {"adapt": "all"})],
)
def test_parameters_without_a_gradient_are_left_alone_and_change_nothing_else(name, base, options):
    # no move, no decay, no momentum, no part in any norm
    alone, problem = Problem(), Problem()
    unused = problem.model.unused = nn.Parameter(torch.ones(2, 2).double())
    frozen = problem.model.frozen = nn.Parameter(torch.ones(3).double(), requires_grad=False)
    for each in (alone, problem):
        optimizer = each.optimizer(name, base, base_options={"weight_decay": 0.1}, **options)
        each.train(optimizer, 0, 6)
    for parameter in (unused, frozen):
        assert bool((parameter == 1.0).all())
        assert parameter.grad is None
        assert parameter not in optimizer.state
    if name not in COUNTS_EVERY_WEIGHT:
        kept, expected = problem.model.state_dict(), alone.model.state_dict()
        assert all(torch.equal(kept[key], tensor) for key, tensor in expected.items())


# The offsets of these do not scale with rho alone: random starts, and several radii.
@pytest.mark.parametrize("name", [n for n in WITH_RHO if n not in ("tsam",)])
def test_a_group_with_its_own_radius_is_moved_by_it(name):
    def first_offset(found):
        return next(last for _, last in found if bool(last.any()))

    small, _, _ = awkward_run(name, rho=0.02)
    large, _, _ = awkward_run(name, rho=0.06)
    expected = 3.0 * first_offset(small)
    torch.testing.assert_close(first_offset(large), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", [n for n in VARIANTS if n != "erm"])
def test_weights_in_half_precision_are_warned_about(name):
    parameters = [nn.Parameter(torch.ones(2, 2, dtype=torch.bfloat16))]
    base = BASES[bases(name)[0]](parameters)
    with pytest.warns(UserWarning, match=r"torch\.bfloat16 are too coarse"):
        build(name, base, total_steps=TOTAL)


@pytest.mark.parametrize("name", WITH_RHO)
def test_rho_may_be_a_schedule(name):
    rho = Linear(start=0.2, end=0.0)
    problem = Problem()
    optimizer = problem.optimizer(name, rho=rho)
    radii = []
    for t in range(TOTAL):
        problem.train(optimizer, t, t + 1)
        radii.append(optimizer.last.rho)
    assert radii == [rho(t / TOTAL) for t in range(TOTAL)]
    constant = Problem()
    constant.train(constant.optimizer(name, rho=0.2), 0, TOTAL)
    assert not same(problem.weights(), constant.weights())
    with pytest.raises(ValueError, match="needs total_steps"):
        Problem().optimizer(name, rho=rho, total_steps=None)


# Its direction is the base's momentum, which is of clipped gradients with their decay.
FOLLOWS_THE_BASE = {"momentum-sam"}


@pytest.mark.parametrize("name", [n for n in VARIANTS if n not in {"erm", *FOLLOWS_THE_BASE}])
def test_neither_clipping_nor_weight_decay_changes_an_offset(name):
    def offsets(*, clip, decay):
        # at lr 0 the weights stay, so that all that differs is what the rule has seen and kept
        problem = Problem()
        base_options = {"lr": 0.0, "weight_decay": decay}
        optimizer = problem.optimizer(name, base_options=base_options, **those(name, SHORT_CYCLES))
        home, found = problem.weights(), []
        for t in range(5):
            closure = problem.closure(t)
            for request in optimizer.passes(num_rows=ROWS):
                pairs = zip(problem.weights(), home, strict=True)
                found.append(torch.cat([(p - h).flatten() for p, h in pairs]))
                request.loss = closure(request)
            if clip:
                nn.utils.clip_grad_norm_(problem.model.parameters(), 1e-3)
            optimizer.step()
        assert same(home, problem.weights())
        return found

    free, bound = offsets(clip=False, decay=0.0), offsets(clip=True, decay=0.5)
    assert any(bool(offset.any()) for offset in free)
    assert same(free, bound)


# -- Words -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "option"), [(n, o) for n, e in VARIANTS.items() for o in e.options]
)
def test_options_out_of_range_raise_with_their_name_and_range(name, option):
    allowed = VARIANTS[name].options[option]
    for bad in ("nonsense", math.nan, [1.0]):
        with pytest.raises(ValueError, match=f"{option} must be"):
            Problem().optimizer(name, **{option: bad})
    low, high = getattr(allowed, "low", -math.inf), getattr(allowed, "high", math.inf)
    for bad in (low - 1.0, high + 1.0):
        if math.isfinite(bad):
            with pytest.raises(ValueError, match=f"{option} must be"):
                Problem().optimizer(name, **{option: bad})


@pytest.mark.parametrize("name", VARIANTS)
def test_an_unknown_option_names_the_nearest(name):
    options = [*VARIANTS[name].options, *COMMON]
    with pytest.raises(ValueError, match=rf"unknown option of {name} '{options[0]}z'; did you"):
        Problem().optimizer(name, **{options[0] + "z": 1})


@pytest.mark.parametrize("name", VARIANTS)
def test_every_entry_has_one_line_about_itself_and_a_class_with_a_docstring(name):
    entry = VARIANTS[name]
    assert "\n" not in entry.summary
    assert 10 < len(entry.summary) < 100
    assert entry.load().__doc__
    assert entry.load().starts_clean == entry.starts_clean
    assert (entry.paper is None) == (name == "erm")
    for option, allowed in entry.options.items():
        allowed.check(option, allowed.default)
