import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import sam_variants
from sam_variants import POLICIES, SAM, VARIANTS, LookSAM, Spec, build, parse, parse_policy
from sam_variants.policies import AdaptiveThreshold, Bernoulli, Coin, Every, Tail
from sam_variants.schedules import Linear

ROOT = Path(__file__).parents[2]


def base(**options):
    return torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1, **options)


def test_the_table_and_every_word_answer_without_torch():
    code = """
import sys
import sam_variants as s
s.parse("sam:rho=0.1:when=every-5").label, [e.defaults() for e in s.VARIANTS.values()]
for word in ("ae", "every-2", "bernoulli-0.5", "tail-0.2", "coin", "always", "never"):
    s.parse_policy(word)
for bad in ("smm", "sam:roh=1", "sam:rho=-1"):
    try:
        s.parse(bad)
    except ValueError:
        continue
    raise SystemExit("accepted " + bad)
raise SystemExit("torch was imported" if "torch" in sys.modules else 0)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_everything_that_is_exported_is_there():
    for name in sam_variants.__all__:
        assert getattr(sam_variants, name) is not None
    assert dir(sam_variants) == sorted(sam_variants.__all__)
    with pytest.raises(AttributeError, match="no attribute 'HSAM'"):
        sam_variants.HSAM  # noqa: B018


def test_a_spec_is_parsed_into_numbers_and_labelled_in_the_tables_order():
    spec = parse("sam:scale=gradient:rho=.1:when=every-5")
    assert spec == Spec("sam", {"scale": "gradient", "rho": 0.1}, "every-5")
    assert spec.label == "sam-rho=0.1-scale=gradient-when=every-5"
    assert parse("erm").label == "erm"
    assert parse("ae-sam:lambda1=-inf").options["lambda1"] == -float("inf")
    assert parse("looksam:every=3").options == {"every": 3}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("smm", "unknown variant 'smm'; did you mean 'sam'"),
        ("", "unknown variant ''"),
        ("sam:roh=0.1", "unknown option of sam 'roh'; did you mean 'rho'"),
        ("sam:rho=-1", "rho must be a number >= 0, got -1.0"),
        ("sam:rho=nan", "rho must be a number >= 0"),
        ("sam:rho=big", "rho must be a number >= 0, got 'big'"),
        ("sam:rho", "expected option=value after 'sam', got 'rho'"),
        ("sam:rho=1:rho=2", "sam has the option rho twice"),
        ("sam:when=coin:when=coin", "sam has the option when twice"),
        ("looksam:every=0", "every must be a whole number >= 1"),
        ("looksam:every=2.5", "every must be a whole number >= 1, got '2.5'"),
        ("asam:adapt=norms", "adapt must be one of weights, all"),
        ("ae-sam:when=coin", r"ae-sam has its own policy \(ae\)"),
        ("erm:when=coin", "erm never perturbs"),
        ("erm:rho=0.1", "unknown option of erm 'rho' .known: it has none."),
        ("sam:when=evry-3", "unknown policy 'evry'; did you mean 'every'"),
        ("sam:when=every", "every needs its number, as in every-5"),
        ("sam:when=every-0", "^K in every-K must be a whole number >= 1, got 0"),
        ("sam:when=every-2.5", "^K in every-K must be a whole number >= 1, got '2.5'"),
        ("sam:when=tail-1.5", r"^F in tail-F must be a number in \[0, 1\], got 1.5"),
        ("sam:when=bernoulli--1", r"^P in bernoulli-P must be a number in \[0, 1\], got -1.0"),
        ("sam:when=coin-0.5", "unknown policy 'coin-0.5'; did you mean 'coin'"),
    ],
)
def test_errors_of_a_spec_name_the_nearest_and_the_range(text, message):
    with pytest.raises(ValueError, match=message):
        parse(text)


def test_the_words_of_policies_are_their_classes():
    assert isinstance(parse_policy("every-5"), Every)
    assert parse_policy("every-5").k == 5
    assert isinstance(parse_policy("bernoulli-0.3"), Bernoulli)
    assert isinstance(parse_policy("tail-0.25"), Tail)
    assert isinstance(parse_policy("coin", lambda1=-0.5), Coin)
    adaptive = parse_policy("ae", signal="trace", delta=0.5)
    assert isinstance(adaptive, AdaptiveThreshold)
    assert (adaptive.signal, adaptive.delta) == ("trace", 0.5)
    with pytest.raises(ValueError, match="only the policy 'ae' watches a signal"):
        parse_policy("coin", signal="trace")
    with pytest.raises(ValueError, match="signal must be one of"):
        parse_policy("ae", signal="hessian")
    with pytest.raises(ValueError, match="unknown option of ae 'dleta'; did you mean 'delta'"):
        parse_policy("ae", dleta=0.5)


def test_build_takes_a_name_a_text_or_a_spec():
    assert build("sam", base()).rho == 0.05
    assert build("sam:rho=0.2", base()).rho == 0.2
    assert build(Spec("sam", {"rho": 0.4}), base()).rho == 0.4
    assert build("sam", base(), rho=Linear(0.1, 0.0), total_steps=5).rho == Linear(0.1, 0.0)
    assert build("sam:when=every-3", base()).policy.k == 3
    assert build("sam", base(), when="coin", total_steps=9).policy.word == "coin"
    assert build("sam", base(), when=Every(4)).policy.k == 4
    assert isinstance(build("ae-looksam", base(), total_steps=9, delta=0.5), LookSAM)
    assert build("ae-sam:signal=trace", base(), total_steps=9).policy.signal == "trace"


def test_an_option_in_the_spec_and_beside_it_must_be_the_same():
    assert build("sam:rho=0.2", base(), rho=0.2).rho == 0.2
    assert build("sam:when=every-3", base(), when="every-3").policy.k == 3
    for call, message in (
        (lambda: build("sam:rho=0.1", base(), rho=0.5), "sam: rho is 0.1 in the spec and 0.5 besi"),
        (
            lambda: build(Spec("sam", {"rho": 0.4}), base(), rho=Linear(0.4, 0.1), total_steps=9),
            r"sam: rho is 0.4 in the spec and Linear\(.*\) beside it: give one of them",
        ),
        (
            lambda: build("sam:when=every-3", base(), when="coin", total_steps=9),
            "sam: when is 'every-3' in the spec and 'coin' beside it",
        ),
        (
            lambda: build("sam:when=every-3", base(), when=Every(4)),
            r"when is 'every-3' in the spec and Every\(k=4\) beside it",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_a_rule_cites_its_paper_with_the_year_of_its_number():
    assert VARIANTS["sam"].paper == "Foret et al. 2020, arXiv 2010.01412"
    assert VARIANTS["vasso"].paper == "Li and Giannakis 2023, arXiv 2309.15639"
    assert VARIANTS["aace"].paper == "arXiv 2406.14329"
    assert VARIANTS["erm"].paper is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: build("sam", base(), roh=1.0), "unknown option of sam 'roh'; did you mean 'rho'"),
        (lambda: build("sam", base(), rho=-1.0), "rho must be"),
        (lambda: build("sam", base(), rho="0.1"), "rho must be a number >= 0, got '0.1'"),
        (lambda: build("ae-sam", base(), total_steps=5, when="coin"), "has its own policy"),
        (lambda: build("ae-sam", base()), "needs total_steps"),
        (lambda: build("sam", base(), when="tail-0.3"), "needs total_steps"),
        (lambda: build("sam", base(), seed=1.5), "seed must be a whole number"),
        (lambda: build("erm", base(), when="coin"), "never perturbs"),
    ],
)
def test_errors_of_build_are_the_same(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("name", ["sam", "asam", "looksam"])
def test_the_defaults_in_the_signature_are_those_of_the_table(name):
    signature = inspect.signature(VARIANTS[name].load().__init__).parameters
    for option, default in VARIANTS[name].defaults().items():
        assert signature[option].default == default, option


@pytest.mark.parametrize("name", POLICIES)
def test_the_policies_defaults_are_those_of_the_table(name):
    signature = inspect.signature(POLICIES[name].load()).parameters
    for option, default in POLICIES[name].defaults().items():
        if signature[option].default is not inspect.Parameter.empty:
            assert signature[option].default == default, option


def test_section_16_gives_the_defaults():
    defaults = {name: entry.defaults() for name, entry in VARIANTS.items()}
    assert defaults["sam"] == {"rho": 0.05, "scale": "unit"}
    assert defaults["asam"] == {"rho": 0.5, "eta": 0.01, "adapt": "weights"}
    assert defaults["looksam"] == {"rho": 0.05, "every": 5, "alpha": 0.7, "per": "all"}
    adaptive = defaults["ae-sam"]
    assert (adaptive["delta"], adaptive["lambda1"], adaptive["lambda2"]) == (0.9, -1.0, 1.0)
    assert adaptive["initial_variance"] == pytest.approx(4.5399929762e-05)
    assert defaults["ae-looksam"]["alpha"] == 0.8


def test_no_module_hides_a_lazy_export():
    modules = {path.stem for path in (ROOT / "sam_variants").iterdir()}
    assert not modules & set(sam_variants.__all__)
    assert SAM is sam_variants.SAM


def test_the_page_on_several_processes_names_the_rules_that_refuse_a_local_ascent():
    page = (ROOT / "docs/distributed.md").read_text()
    sentence = page.partition("Rules that keep or mix in the clean gradient (")[2].partition(")")[0]
    named = set(re.findall(r"`([\w-]+)`", sentence)) - {"multistep-sam"}
    refusing = set()
    for name, entry in VARIANTS.items():
        adam = torch.optim.Adam([nn.Parameter(torch.ones(2))], amsgrad=True)
        try:
            build(name, base() if name == "sam-sps" else adam, total_steps=9, ascent="local")
        except ValueError as error:
            refusing |= {name} if "keeps the clean gradient" in str(error) else set()
        assert entry.cost
    assert named == refusing
    with pytest.raises(ValueError, match="keeps the clean gradient"):
        build("multistep-sam:average=path+clean", base(), ascent="local")


@pytest.mark.parametrize("name", ["ssam-f:sparsity", "gsam:alpha", "f-sam:decay", "esam:beta"])
def test_an_option_that_no_rule_reads_as_a_schedule_refuses_one(name):
    rule, option = name.split(":")
    with pytest.raises(ValueError, match=f"{option} must be a number"):
        build(rule, base(), **{option: Linear(start=0.1, end=0.5)})
