"""The recipe: plain types, checked once, the same forwards and backwards."""

import json
import subprocess
import sys
import tomllib
from dataclasses import fields, replace

import pytest

from sam_variants import VARIANTS
from sam_variants.training import Recipe


def test_a_recipe_survives_a_dict_json_and_toml() -> None:
    recipe = Recipe(
        variants=("erm", "sam:rho=0.1"),
        max_steps=7,
        clip=1.5,
        save_every=2,
        when="every-5",
        threads=2,
    )
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
    assert Recipe.from_dict(tomllib.loads(recipe.to_toml())) == recipe


def test_every_field_of_a_recipe_is_a_plain_type() -> None:
    for value in Recipe().to_dict().values():
        assert isinstance(value, (str, int, float, list))


def test_defaults_depend_on_the_optimizer_and_are_numbers_afterwards() -> None:
    assert (Recipe().lr, Recipe().weight_decay, Recipe().epochs) == (0.1, 5e-4, 60.0)
    adamw = Recipe(optimizer="adamw")
    assert (adamw.lr, adamw.weight_decay) == (1e-3, 1e-2)
    assert Recipe(lr=0.1) == Recipe()
    assert Recipe(max_steps=10).epochs is None


def test_whole_numbers_and_fractions_of_the_same_size_are_one_recipe() -> None:
    assert Recipe(lr=1, epochs=3).hash == Recipe(lr=1.0, epochs=3.0).hash
    assert Recipe(batch_size=64.0) == Recipe(batch_size=64)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"lr": -1}, "lr must be a number > 0, got -1"),
        ({"lr": float("nan")}, "lr must be a number > 0, got nan"),
        ({"lr": "1e-3"}, "lr must be a number > 0, got '1e-3'"),
        ({"momentum": 1.0}, r"momentum must be a number in \[0, 1\), got 1.0"),
        ({"batch_size": 2.5}, "batch_size must be a whole number >= 1, got 2.5"),
        ({"batch_size": True}, "batch_size must be"),
        ({"threads": 0}, "threads must be"),
        ({"optimizer": "sdg"}, "optimizer must be one of sgd, adamw, got 'sdg'"),
        ({"variants": ("smm",)}, "unknown variant 'smm'; did you mean 'sam'"),
        ({"variants": ("sam:rh=1",)}, "did you mean 'rho'"),
        ({"variants": ("sam:rho=-1",)}, "rho must be a number >= 0, got -1"),
        ({"variants": ()}, "variants must be a list"),
        ({"variants": ("sam", "sam")}, "same training, sam-seed0"),
        ({"task": "mnist2d"}, "did you mean 'mnist1d'"),
        ({"model": "cnn2d"}, "did you mean 'cnn1d'"),
        ({"when": "evry-5"}, "did you mean 'every'"),
        ({"when": "every-0"}, "^K in every-K must be a whole number >= 1, got 0"),
        ({"when": "every-5", "variants": ("ae-sam",)}, "every variant has its own policy"),
        ({"switch_signal": "trace", "variants": ("sam",)}, "no variant has the adaptive"),
        ({"switch_signal": "trase"}, "switch_signal must be one of"),
        ({"epochs": 2, "max_steps": 3}, "epochs and max_steps exclude each other"),
        ({"validation": 1.0}, "validation must be"),
        ({"variants": ("all", "sam")}, "same training, sam-seed0"),
        (
            {"variants": ("msam:shards=200",)},
            r"shards must be a whole number in \[1, 128\], the batch",
        ),
        ({"variants": ("msam",), "batch_size": 2}, r"shards must be a whole number in \[1, 2\]"),
        (
            {"variants": ("momentum-sam",), "momentum": 0.0},
            r"momentum-sam: momentum must be a number in \(0, 1\), along which it perturbs, got 0",
        ),
        ({"variants": ("tsam:when=ae",)}, "tsam has no clean gradient, so when=ae"),
        (
            {"variants": ("tsam", "ae-sam"), "when": "ae"},
            "every variant has its own policy, or none",
        ),
        ({"variants": ("ssam-f:pattern=5:4",)}, "pattern must be N:M"),
        ({"adam_lr": 0.0}, "adam_lr must be a number > 0"),
        ({"probe_every": 0}, "probe_every must be 'end' or 'never' or a whole number >= 1, got 0"),
        ({"probe_every": "ende"}, "probe_every must be 'end' or 'never'"),
        ({"data_dir": 3}, "data_dir must be a text"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(changed: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe(**changed)


def test_an_unknown_key_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean 'momentum'"):
        Recipe.from_dict({"momentun": 0.9})


def test_when_goes_to_every_rule_that_takes_a_policy_and_to_no_other() -> None:
    recipe = Recipe(variants=("erm", "sam", "sam:rho=0.1:when=coin", "ae-sam"), when="every-5")
    assert [run.label for run in recipe.runs] == [
        "erm", "sam-when=every-5", "sam-rho=0.1-when=coin", "ae-sam",
    ]  # fmt: skip


def test_when_ae_passes_over_rules_without_a_clean_gradient() -> None:
    recipe = Recipe(variants=("all",), when="ae")
    adaptive = {spec.name for spec in recipe.specs if spec.when == "ae"}
    for name, entry in VARIANTS.items():
        assert (name in adaptive) == (entry.policy is None and entry.load().starts_clean), name


def test_all_is_every_rule_in_the_tables_order_and_is_written_out() -> None:
    recipe = Recipe(variants=("sam:rho=0.1", "all"))
    assert recipe.variants == ("sam:rho=0.1", *VARIANTS)
    assert Recipe.from_dict(tomllib.loads(recipe.to_toml())) == recipe
    assert len(Recipe(variants=("all",), seeds=2).runs) == 2 * len(VARIANTS)


def test_momentum_sam_needs_the_momentum_of_sgd_alone() -> None:
    assert Recipe(variants=("momentum-sam",), optimizer="adamw", momentum=0.0).runs


def test_all_leaves_out_what_the_other_options_do_not_let_run_and_says_why() -> None:
    recipe = Recipe(variants=("all",), batch_size=2, momentum=0.0)
    assert set(VARIANTS) - set(recipe.variants) == set(recipe.left_out) == {"msam", "momentum-sam"}
    assert recipe.left_out == {
        "msam": "shards must be a whole number in [1, 2], the batch size, got 4",
        "momentum-sam": "momentum must be a number in (0, 1), along which it perturbs, got 0",
    }
    assert Recipe(variants=("all",)).left_out == {}
    named = Recipe(variants=("msam:shards=2", "all"), batch_size=2)
    assert [word for word in named.variants if "msam" in word] == ["msam:shards=2"]
    with pytest.raises(ValueError, match="msam: shards must be a whole number"):
        Recipe(variants=("all", "msam"), batch_size=2)
    with pytest.raises(ValueError, match="batch_size must be a whole number >= 1, got 'two'"):
        Recipe(variants=("all",), batch_size="two")


def test_the_rules_that_when_ae_passes_over_are_named() -> None:
    recipe = Recipe(variants=("all", "tsam:when=coin"), when="ae")
    blind = tuple(name for name, entry in VARIANTS.items() if not entry.load().starts_clean)
    assert recipe.passed_over == blind
    assert Recipe(variants=("all",), when="every-3").passed_over == ()
    assert Recipe(variants=("all",)).passed_over == ()


def test_the_switch_signal_goes_to_every_adaptive_threshold() -> None:
    recipe = Recipe(variants=("sam", "ae-sam", "ae-sam:signal=trace"), switch_signal="lambda-max")
    labels = [run.label for run in recipe.runs]
    assert labels == ["sam", "ae-sam-signal=lambda-max", "ae-sam-signal=trace"]


def test_runs_are_every_variant_with_every_seed() -> None:
    recipe = Recipe(variants=("erm", "sam:rho=0.1"), seed=3, seeds=2)
    assert [run.name for run in recipe.runs] == [
        "erm-seed3", "erm-seed4", "sam-rho=0.1-seed3", "sam-rho=0.1-seed4",
    ]  # fmt: skip


def test_every_number_is_in_the_hash_and_the_place_of_the_data_is_not() -> None:
    recipe = Recipe(variants=("ae-sam",))
    other = {
        "variants": ("sam",), "switch_signal": "trace", "task": "digits", "model": "mlp",
        "optimizer": "adamw", "schedule": "step", "precision": "float64", "device": "cuda",
        "threads": 1, "label_noise": 0.5, "validation": 0.5, "momentum": 0.5,
        "label_smoothing": 0.5, "warmup": 0.5,
    }  # fmt: skip
    for field in fields(recipe):
        if field.name in ("when", "epochs", "max_gradients", "max_seconds"):
            continue
        if field.name == "data_dir":
            assert replace(recipe, data_dir="elsewhere").hash == recipe.hash
        elif field.name == "max_steps":
            assert Recipe(variants=("ae-sam",), max_steps=9).hash != recipe.hash
        else:
            changed = replace(recipe, **{field.name: other.get(field.name, 9)})
            assert changed.hash != recipe.hash, field.name


def test_differences_are_told_field_by_field() -> None:
    assert Recipe(lr=0.2).differences(Recipe().to_dict()) == ["lr: 0.1 -> 0.2"]
    assert Recipe(data_dir="x").differences(Recipe().to_dict()) == []
    assert Recipe().differences(Recipe(clip=1.0).to_dict()) == ["clip: 1.0 -> not set"]


def test_a_recipe_is_read_and_checked_without_torch() -> None:
    code = (
        "import sys; from sam_variants.training import Recipe; Recipe(when='every-5').runs; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
