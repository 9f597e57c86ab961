"""Rows 23 to 34: numbers that are none, operators that are odd, models and data that do not fit."""

import re

import numpy as np
import pytest
import torch

import landscape
from landscape.linalg import lanczos
from tests.faults.attack import (
    LOGISTIC,
    arrays_file,
    bare,
    document_of,
    entry_of,
    fingerprints,
    logistic_state,
    module,
    probe,
    probed,
    refused,
    train,
    user_net,
)

PLANE = ("--surface", "5", "--range", "1", "--exact")


@pytest.fixture(autouse=True)
def undrawn(request, monkeypatch):
    """The report takes longer than the measurement: one test draws it."""
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr("cli.probe._draw", lambda findings, out: None)


@pytest.fixture
def drawn():
    """Asked for by the test that looks at the report."""


@pytest.fixture
def refuse(tmp_path, capsys):
    """A failure of the measurement, which has the checkpoint's label to name."""

    def check(path, *words, code, says=()):
        words = [path, *bare(*words)]
        out = tmp_path / "out"
        return refused(probe, words, capsys, code=code, out=out, says=["net: ", *says])

    return check


# -- losses ----------------------------------------------------------------------------------------


def test_23_a_loss_that_is_no_number_at_the_weights_draws_nothing(tmp_path, refuse):
    state = {name: torch.full_like(w, 3e38) for name, w in logistic_state().items()}
    torch.save(state, tmp_path / "net.pt")  # finite weights, infinite logits
    says = [r"the loss at the weights is (nan|inf)"]
    refuse(tmp_path / "net.pt", *LOGISTIC, *PLANE, code=4, says=says)


HOLES = """
class Net(nn.Linear):
    def forward(self, x):
        away = self.weight[0, 0] - START
        return super().forward(x.flatten(1)) + torch.where(away > 1e-9, float("VALUE"), 0.0)

START = 0.0
def build():
    global START
    torch.manual_seed(0)
    net = Net(64, 10)
    START = net.weight[0, 0].item()
    return net
"""


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_24_grid_points_that_are_no_numbers_are_left_empty_and_counted(tmp_path, value):
    path, words = user_net(tmp_path, HOLES.replace("VALUE", value))
    findings = probed(path, tmp_path, *words, *PLANE)
    surface, loss = entry_of(findings)["surface"], findings.arrays["surface_c0_loss"]
    assert surface["num_nonfinite"] == np.isnan(loss).sum()
    assert 5 < surface["num_nonfinite"] < 20
    assert surface["min"] == np.nanmin(loss)
    assert surface["max"] == np.nanmax(loss)
    assert any("points are not finite" in text for text in entry_of(findings)["warnings"])


def test_24_the_report_says_how_many_points_are_empty(tmp_path, drawn, capsys):
    path, words = user_net(tmp_path, HOLES.replace("VALUE", "nan"))
    findings = probed(path, tmp_path, *words, *PLANE)
    number = entry_of(findings)["surface"]["num_nonfinite"]
    sentence = f"{number} of 25 surface points are not finite"
    assert sentence in capsys.readouterr().err
    assert sentence in (tmp_path / "out" / "report.html").read_text()


def test_25_a_plane_without_a_number_advises_a_smaller_range(tmp_path, refuse):
    torch.save(logistic_state(), tmp_path / "net.pt")
    words = ("--surface", "5", "--range", "1e38", "--exact")
    says = [r"any of the 25 grid points", "smaller range"]
    refuse(tmp_path / "net.pt", *LOGISTIC, *words, code=4, says=says)


# -- curvature -------------------------------------------------------------------------------------

CUSP = """
class Net(nn.Module):
    \"\"\"p^1.5 has a slope at 0 and no curvature there.\"\"\"

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 10)
        self.p = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        bump = self.p.abs().pow(1.5) * torch.eye(10)[0]
        return self.layer(x.flatten(1)) + bump

build = Net
"""


@pytest.mark.parametrize(
    "words", [("--eigenvalues", "2"), ("--trace-probes", "4"), ("--density-runs", "2")]
)
def test_26_a_product_that_is_no_number_ends_with_its_batch_and_step(tmp_path, refuse, words):
    path, model = user_net(tmp_path, CUSP)
    says = [r"product \d+ .*is not finite", r"batch \d+"]
    refuse(path, *model, *words, "--batch-size", "20", code=4, says=says)


SMALL = """
class Net(nn.Module):
    \"\"\"num parameters, of which each moves the logits of one class.\"\"\"

    def __init__(self, num=1):
        super().__init__()
        self.p = nn.Parameter(torch.linspace(-0.5, 1.0, num))

    def forward(self, x):
        moved = F.pad(self.p, (0, 10 - len(self.p)))
        return x.flatten(1)[:, 20:30] * 0.1 + SCALE * moved

def build():
    return Net(NUM)
"""


def dense_eigenvalues(num, scale):
    """Of the mean cross-entropy on the first 60 training digits, in float64."""
    from sam_variants.tasks import build_task
    from sam_variants.training.evaluation import fixed_rows

    train_split = build_task("digits").train
    rows = fixed_rows(60, len(train_split), seed=0)
    x, y = train_split.inputs[rows].double(), train_split.targets[rows]

    def loss(p):
        moved = torch.nn.functional.pad(p, (0, 10 - num))
        logits = x.flatten(1)[:, 20:30] * 0.1 + scale * moved
        return torch.nn.functional.cross_entropy(logits, y)

    p = torch.linspace(-0.5, 1.0, num, dtype=torch.float64)
    return torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, p)).flip(0).numpy()


@pytest.mark.parametrize(("num", "scale"), [(1, 1.0), (3, 1.0), (3, 0.0), (1, 0.0)])
@pytest.mark.parametrize("ends", ["top", "both"])
def test_27_small_and_zero_hessians_have_exact_small_answers(tmp_path, num, scale, ends):
    code = SMALL.replace("NUM", str(num)).replace("SCALE", str(scale))
    path, words = user_net(tmp_path, code)
    wanted = ("--eigenvalues", "5", "--trace-probes", "4", "--density-runs", "2",
              "--density-steps", "4")  # fmt: skip
    findings = probed(path, tmp_path, *words, *wanted, "--ends", ends, "--dtype", "float64")
    entry = entry_of(findings)
    truth = dense_eigenvalues(num, scale)
    values = [pair["value"] for pair in entry["eigenvalues"]]
    assert all(pair["converged"] for pair in entry["eigenvalues"])
    np.testing.assert_allclose(values, truth, atol=1e-12)
    assert entry["trace"]["value"] == pytest.approx(truth.sum(), abs=1e-12)
    assert document_of(tmp_path / "out")["nonfinite"] == {}
    for name, array in findings.arrays.items():
        assert np.isfinite(array).all(), name


def test_28_an_eigenvalue_that_did_not_converge_says_so(tmp_path, capsys, monkeypatch):
    def impatient(operator, **options):
        return lanczos(operator, max_products=4, **options)

    monkeypatch.setattr("landscape.stages.spectrum.lanczos", impatient)
    torch.save(logistic_state(), tmp_path / "net.pt")
    findings = probed(tmp_path / "net.pt", tmp_path, *LOGISTIC, "--eigenvalues", "3")
    pairs = entry_of(findings)["eigenvalues"]
    assert not all(pair["converged"] for pair in pairs)
    for pair in pairs:
        assert np.isfinite([pair["value"], pair["residual"]]).all()
    assert "Not every eigenvalue converged" in capsys.readouterr().err


IDLE = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 10)
        self.idle = nn.Linear(3, 3)
        self.still = nn.Linear(64, 10).requires_grad_(False)

    def forward(self, x):
        x = x.flatten(1)
        return self.layer(x) + self.still(x)

build = Net
"""


def test_29_unused_parameters_have_curvature_zero_and_frozen_ones_do_not_move(tmp_path):
    path, words = user_net(tmp_path, IDLE)
    findings = probed(path, tmp_path, *words, "--eigenvalues", "2", "--line", "3", "--range", "1")
    entry = entry_of(findings)
    assert entry["num_parameters"] == 650 + 12
    told = " ".join(entry["warnings"])
    assert "2 parameters are unused (idle.weight, idle.bias): their curvature is zero" in told
    assert "2 parameters are frozen (still.weight, still.bias): they do not move" in told
    fewer = probed(path, tmp_path, *words, "--eigenvalues", "2", "--params", "layer.*", name="l")
    for one, other in zip(entry["eigenvalues"], entry_of(fewer)["eigenvalues"], strict=True):
        assert one["value"] == pytest.approx(other["value"], rel=1e-3)


FUSED = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(8, 24)
        self.last = nn.Linear(64, 10)

    def forward(self, x):
        q, k, v = self.qkv(x.reshape(len(x), 1, 8, 8)).chunk(3, -1)
        return self.last(F.scaled_dot_product_attention(q, k, v).flatten(1))

build = Net
"""


def test_30_fused_attention_is_measured_by_its_plain_form(tmp_path):
    path, words = user_net(tmp_path, FUSED)
    entry = entry_of(probed(path, tmp_path, *words, "--eigenvalues", "2", "--trace-probes", "4"))
    assert entry["self_check"]["passed"]
    assert entry["eigenvalues"][0]["value"] > 0


ONCE = """
class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return 2 * x * gradient

class Net(nn.Linear):
    def __init__(self):
        super().__init__(64, 10)

    def forward(self, x):
        return Once.apply(super().forward(x.flatten(1)))

build = Net
"""


def test_30_an_operation_without_second_derivative_is_named_with_the_way_out(tmp_path, refuse):
    path, words = user_net(tmp_path, ONCE)
    says = ["no second derivative", "Once", "--approximate"]
    refuse(path, *words, "--eigenvalues", "1", code=4, says=says)


def test_30_the_way_out_is_one(tmp_path):
    path, words = user_net(tmp_path, ONCE)
    words = (*words, "--eigenvalues", "1", "--approximate")
    entry = entry_of(probed(path, tmp_path, *words))
    assert entry["eigenvalues"][0]["value"] > 0
    assert entry["matrix_error"] < 0.1


# -- models that change by being looked at ---------------------------------------------------------

NORMED = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.norm, self.last = nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, 10)

    def forward(self, x):
        return self.last(self.norm(self.layer(x.flatten(1))))

build = Net
"""


def test_31_running_statistics_are_used_and_left_as_they_were(tmp_path):
    path, words = user_net(tmp_path, NORMED)
    state = torch.load(path)
    state["norm.running_mean"] += 0.3
    torch.save(state, path)
    before = fingerprints(tmp_path)
    names = {}
    exec((tmp_path / "nets.py").read_text(), names)
    model = names["build"]()
    model.load_state_dict(state)
    entry = entry_of(probed(path, tmp_path, *words, "--line", "3", "--range", "1"))
    assert entry["loss"] == pytest.approx(float(loss_on_digits(model.eval())), rel=1e-5)
    assert before.items() <= fingerprints(tmp_path).items()


def test_31_a_model_in_train_mode_is_the_same_bits_after_a_probe():
    torch.manual_seed(0)
    norm = torch.nn.BatchNorm1d(8)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), norm, torch.nn.Linear(8, 2)).train()
    model(torch.randn(30, 4))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    batches = [(torch.randn(30, 4), torch.arange(30) % 2)]
    plan = landscape.ProbePlan.quick_look(surface=3, line=3)
    landscape.probe(model, torch.nn.functional.cross_entropy, batches, plan=plan)
    assert model.training
    assert norm.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def loss_on_digits(model):
    from sam_variants.tasks import build_task
    from sam_variants.training.evaluation import fixed_rows

    train_split = build_task("digits").train
    rows = fixed_rows(60, len(train_split), seed=0)
    with torch.no_grad():
        outputs = model(train_split.inputs[rows])
    return torch.nn.functional.cross_entropy(outputs, train_split.targets[rows])


NOISY = """
class Net(nn.Linear):
    def __init__(self):
        super().__init__(64, 10)

    def forward(self, x):
        return super().forward(CALL)

build = Net
"""
DRAWS = {
    "dropout by function": "F.dropout(x.flatten(1))",
    "random augmentation": "x.flatten(1) + 0.1 * torch.randn(64)",
}


@pytest.mark.parametrize("name", list(DRAWS))
def test_32_a_model_that_draws_random_numbers_is_refused_with_the_cause(tmp_path, refuse, name):
    path, words = user_net(tmp_path, NOISY.replace("CALL", DRAWS[name]))
    says = ["random numbers", "dropout", "--fix-seeds"]
    refuse(path, *words, "--eigenvalues", "1", code=3, says=says)


def test_32_fixed_seeds_let_it_in_and_are_recorded(tmp_path):
    path, words = user_net(tmp_path, NOISY.replace("CALL", DRAWS["dropout by function"]))
    words = (*words, "--eigenvalues", "1", "--fix-seeds")
    first, second = (probed(path, tmp_path, *words, name=name) for name in "ab")
    assert first.document["settings"]["fix_seeds"] is True
    assert entry_of(first)["loss"] == entry_of(second)["loss"]
    assert entry_of(first)["eigenvalues"] == entry_of(second)["eigenvalues"]


# -- data ------------------------------------------------------------------------------------------


def test_33_the_split_into_batches_changes_nothing(tmp_path):
    torch.save(logistic_state(), tmp_path / "net.pt")
    words = [*LOGISTIC, "--trace-probes", "2", "--dtype", "float64", "--max-samples", "18"]

    def entry(size):
        return entry_of(
            probed(tmp_path / "net.pt", tmp_path, *words, "--batch-size", size, name=size)
        )

    whole = entry("18")
    for size in ("7", "1"):  # 18 = 2 x 7 + 4
        split = entry(size)
        for name in ("loss", "accuracy", "gradient_norm"):
            assert split[name] == pytest.approx(whole[name], rel=1e-12), name
        assert split["trace"]["value"] == pytest.approx(whole["trace"]["value"], rel=1e-10)


EMPTY = {"x_train": np.zeros((0, 4), np.float32), "y_train": np.zeros(0, np.int64)}
BAD_ARRAYS = {
    "empty": (EMPTY, "x_train|training|empty|no sample"),
    "a label below 0": ({"y_train": np.arange(40) % 2 - 1}, "y_train"),
    "a test label above all": ({"y_test": np.arange(20) % 2 + 5}, "y_test"),
    "labels of float": ({"y_train": np.linspace(0, 1, 40)}, "y_train"),
    "labels of text": ({"y_train": np.array(["a", "b"] * 20)}, "y_train"),
    "more labels than samples": ({"y_train": np.arange(50) % 2}, "train"),
    "inputs that are no numbers": ({"x_train": np.full((40, 4), np.nan, np.float32)}, "x_train"),
    "test inputs of another shape": ({"x_test": np.zeros((20, 5), np.float32)}, r"\(5,\)"),
}


@pytest.mark.parametrize("name", list(BAD_ARRAYS))
@pytest.mark.parametrize("command", [probe, train])
def test_34_data_that_do_not_fit_are_told_before_the_run(tmp_path, capsys, command, name):
    _arrays_refused(tmp_path, capsys, command, name)


@pytest.mark.parametrize("command", [probe, train])
def test_33_data_without_a_sample_are_refused(tmp_path, capsys, command):
    _arrays_refused(tmp_path, capsys, command, "empty")


def _arrays_refused(tmp_path, capsys, command, name):
    changes, says = BAD_ARRAYS[name]
    data = arrays_file(tmp_path / "data.npz", **changes)
    if command is probe:
        torch.save(torch.nn.Linear(4, 2).state_dict(), tmp_path / "net.pt")
        words = [tmp_path / "net.pt", *bare("--model", "logistic", "--data", f"npz:{data}")]
    else:
        words = ["--task", f"npz:{data}", "--model", "logistic", "--epochs", "1000", "--quiet",
                 "--jobs", "1", "--variants", "erm"]  # fmt: skip
    refused(command, words, capsys, code=3, out=tmp_path / "out", says=says, path="data.npz")


@pytest.mark.parametrize("command", [probe, train])
def test_34_inputs_that_the_model_cannot_take_are_told_in_one_line(tmp_path, capsys, command):
    code = module(tmp_path, "def build():\n    return nn.Linear(63, 10)\n")
    model = f"{code}:build"
    if command is probe:
        torch.save(torch.nn.Linear(63, 10).state_dict(), tmp_path / "net.pt")
        words = [tmp_path / "net.pt", *bare("--model", model, "--data", "digits", "--allow-code")]
    else:
        words = ["--task", "digits", "--model", model, "--allow-code", "--quiet", "--jobs", "1",
                 "--variants", "erm", "--epochs", "1000"]  # fmt: skip
    says = [r"fails on inputs of shape \(2, 1, 8, 8\)", re.escape(model)]
    refused(command, words, capsys, code=3, out=tmp_path / "out", says=says)
