"""What a dry run says a training will cost, against what it then costs."""

from dataclasses import replace

import pytest

from sam_variants.training import Trainer
from sam_variants.training.planning import plan_study
from tests.sam_variants.training.small import small, trained


@pytest.mark.parametrize(
    "variant", ["erm", "sam", "asam", "looksam", "looksam:every=3", "sam:when=every-7",
                "sam:when=tail-0.3", "sam:when=bernoulli-0.5", "sam:when=coin",
                "multistep-sam", "rst:schedule=linear", "g-rst", "msam", "msam:shards=3", "tsam",
                "tsam:rho=0", "bsam", "f-sam", "momentum-sam", "ssam-f:refresh_every=5",
                "ssam-f:refresh_every=5:samples=40", "ssam-d:pattern=2:4", "fisher-mask-sam",
                "esam", "esam:gamma=0.3", "esam:gamma=1", "adasam", "aace:when=every-3",
                "previous-sam", "gsam", "vasso", "gnp", "le-sam", "eigen-sam:refresh_every=4",
                "sam-sps"],
)  # fmt: skip
@pytest.mark.parametrize("budget", [{"epochs": 3}, {"max_steps": 13}])
def test_the_planned_gradients_are_those_spent(variant: str, budget: dict, tmp_path) -> None:
    recipe = small(variants=(variant,), **budget)
    (plan,) = plan_study(recipe, timed=False)
    spent = trained(recipe, tmp_path)["history"][-1]["gradients"]
    assert plan.exact
    assert plan.gradients == (spent, spent)
    assert plan.base == trained(recipe, tmp_path)["run"]["base"]


def test_an_adaptive_rule_is_planned_as_a_range_that_holds(tmp_path) -> None:
    recipe = small(variants=("ae-sam",))
    (plan,) = plan_study(recipe, timed=False)
    assert not plan.exact
    assert plan.gradients == (24, 48)
    assert 24 <= trained(recipe, tmp_path)["history"][-1]["gradients"] <= 48


@pytest.mark.parametrize("variant", ["sam:when=coin", "rst"])
def test_every_seed_of_a_policy_that_draws_is_planned(variant: str, tmp_path) -> None:
    recipe = small(variants=(variant,), seeds=3)
    (plan,) = plan_study(recipe, timed=False)
    spent = [
        trained(replace(recipe, seed=seed, seeds=1), tmp_path / str(seed))["history"][-1]
        for seed in range(3)
    ]
    gradients = [line["gradients"] for line in spent]
    assert len(set(gradients)) > 1  # one seed does not stand for the others
    assert plan.gradients == (min(gradients), max(gradients))
    assert not plan.exact
    assert plan.to_dict()["gradients"] is None


def test_a_budget_in_gradients_is_its_own_plan() -> None:
    (plan,) = plan_study(small(variants=("sam",), max_gradients=500), timed=False)
    assert plan.gradients == (500, 500)
    assert plan.steps is None


def test_each_variant_is_planned_once_in_order_and_timed(tmp_path) -> None:
    plans = plan_study(small(variants=("sam", "erm"), seeds=3))
    assert [(plan.label, plan.num_runs) for plan in plans] == [("sam", 3), ("erm", 3)]
    assert all(plan.seconds > 0 for plan in plans)
    assert plans[0].num_parameters == 30 * 8 + 8 + 8 * 2 + 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("probe_every", "budget", "between", "end"),
    [
        ("end", {"epochs": 3}, 0, 1),
        ("never", {"epochs": 3}, 0, 0),
        (1, {"epochs": 3}, 2, 1),
        (2, {"epochs": 3}, 1, 1),
        (2, {"epochs": 4}, 1, 1),  # the fourth is the end
        (3, {"max_steps": 50}, 2, 1),  # six epochs and a bit
    ],
)
def test_what_is_measured_of_the_curvature_is_in_the_time_as_often_as_it_will_be(
    probe_every, budget: dict, between: int, end: int, monkeypatch, tmp_path
) -> None:
    clock, calls = [0.0], []

    def taking(seconds: float, name: str, method):
        def timed(self, *arguments):
            calls.append(name)
            clock[0] += seconds
            return method(self, *arguments)

        return timed

    curvature, final = Trainer.curvature, Trainer.final_curvature
    monkeypatch.setattr(Trainer, "curvature", taking(10.0, "between", curvature))
    monkeypatch.setattr(Trainer, "final_curvature", taking(990.0, "end", final))
    monkeypatch.setattr("sam_variants.training.planning.time.monotonic", lambda: clock[0])
    monkeypatch.setattr("sam_variants.training.planning._seconds_a_step", lambda _: 2.0)
    recipe = small(variants=("erm", "sam"), probe_every=probe_every, **budget)
    plans = plan_study(recipe)
    assert calls.count("end") == end  # once, and not for each variant
    # the end takes one more look at lambda_max
    expected = 10.0 * between + 1000.0 * end
    for plan in plans:
        assert plan.probe_seconds == expected
        assert plan.seconds == 2.0 * plan.steps + expected
        assert plan.to_dict()["probe_seconds"] == expected
    calls.clear()
    trained(replace(recipe, variants=("erm",)), tmp_path)
    assert calls.count("between") == between + end
    assert calls.count("end") == 1  # which measures nothing where it never should


def test_a_plan_without_a_clock_has_no_seconds() -> None:
    (plan,) = plan_study(small(max_seconds=5.0), timed=False)
    assert plan.seconds is plan.probe_seconds is None
