"""landscape-probe: a network, data and a loss that are all the user's own."""

import json
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from cli.arguments import CommandError
from cli.dry_batch import check_batches
from cli.foreign import literal, probe_data
from cli.losses import LOSSES, build_loss
from cli.probe import _tell_of_the_loss, main
from landscape import Findings, Hessian, Objective, lanczos
from sam_variants.tasks import build_model, build_task

BARE = ["--eigenvalues", "1", "--ends", "top", "--trace-probes", "0", "--density-runs", "0",
        "--surface", "0", "--line", "0", "--metrics", "sam", "--no-sampling-error",
        "--jobs", "1", "--quiet"]  # fmt: skip

CODE = """
import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, TensorDataset

print("imported")
x = np.random.default_rng(0).normal(size=(60, 4)).astype("float32")
y = np.arange(60) % 3
z = x[:, :2] * 0.5
T = torch.from_numpy

def net(width=5):
    print("built")
    return nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 3))

class Heads(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.left, self.right = nn.Linear(4, 5), nn.Linear(5, 3), nn.Linear(5, 2)
    def forward(self, x):
        inside = torch.tanh(self.body(x))
        return {"classes": self.left(inside), "numbers": (self.right(inside),)}

class Regressor(nn.Linear):
    def __init__(self):
        super().__init__(4, 2)

def table(): return x, y
def regression(rows=60): return x[:rows], z[:rows]
def labels(): return x, (x[:, :3] > 0).astype("float32")
def both(): return (x[:40], y[:40]), (x[40:], y[40:])
def dicts(): return [{"a": T(x[i:i + 20]), "b": T(y[i:i + 20])} for i in (0, 20, 40)]
def loader(): return DataLoader(TensorDataset(T(x), T(y)), 16, shuffle=True, num_workers=1)
def loaders(): return DataLoader(TensorDataset(T(x), T(y)), 16), [(T(x), T(y))] * 3
def generator():
    print("iterated")
    yield from zip(T(x).split(25), T(y).split(25))

class Pairs(Dataset):
    read = []
    def __len__(self): return 60
    def __getitem__(self, i):
        Pairs.read.append(i)
        return x[i], int(y[i])
def dataset(): return Pairs()

def first_head(output, target):
    print("asked")
    return functional.cross_entropy(output["classes"], target)
def squares(output, target):
    return (output - functional.one_hot(target, 10)).pow(2).mean()
def by_hand(model, batch): return functional.cross_entropy(model(batch["a"]), batch["b"])
def with_terms(model, batch): return by_hand(model, batch), len(batch["b"])
"""

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def undrawn(monkeypatch):
    monkeypatch.setattr("cli.probe._draw", lambda findings, out: None)


@pytest.fixture(scope="module")
def user(tmp_path_factory):
    """The user's file, its names, and a checkpoint of each of its networks."""
    folder = tmp_path_factory.mktemp("user")
    path = folder / "mine.py"
    path.write_text(CODE)
    names = {"__name__": "mine"}
    exec(CODE, names)
    torch.manual_seed(0)
    nets = {"net": names["net"](), "Heads": names["Heads"](), "Regressor": names["Regressor"]()}
    for name, net in nets.items():
        save_file(net.state_dict(), folder / f"{name}.safetensors")
    return folder, names, nets


def command(user, net, data, loss, *more, out):
    folder, mine = user[0], user[0] / "mine.py"
    word = loss if loss in LOSSES or loss.startswith("torch") else f"{mine}:{loss}"
    return [str(folder / f"{net}.safetensors"), "--model", f"{mine}:{net}", "--loss", word,
            "--data", f"{mine}:{data}", "--allow-code", *BARE, *more,
            "--out", str(out)]  # fmt: skip


def probed(*words, tmp_path, **options):
    out = tmp_path / "out"
    assert main(command(*words, out=out, **options)) == 0
    document = json.loads((out / "result.json").read_text())
    (entry,) = document["checkpoints"]
    return document["data"], entry


def refused(arguments, capsys, *, code):
    assert main(arguments) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    *printed, line = captured.err.splitlines()
    assert all("error" not in earlier for earlier in printed)
    return line


def truth(model, loss, x, y):
    objective = Objective(model, loss, [(torch.as_tensor(x), torch.as_tensor(y))])
    top = lanczos(Hessian(objective), num_eigenpairs=1, ends="top", tolerance=1e-4, seed=1)
    return objective.value(objective.theta), float(top.values[0])


def assert_is(entry, expected):
    assert entry["loss"] == pytest.approx(expected[0], rel=1e-5)
    assert entry["eigenvalues"][0]["value"] == pytest.approx(expected[1], rel=1e-2)


@pytest.mark.parametrize("data", ["table", "loader", "generator", "dataset"])
def test_every_form_of_the_same_pairs_gives_the_same_numbers(user, tmp_path, data):
    told, entry = probed(user, "net", data, "cross-entropy", tmp_path=tmp_path)
    _, names, nets = user
    assert_is(entry, truth(nets["net"], functional.cross_entropy, names["x"], names["y"]))
    right = (nets["net"](torch.tensor(names["x"])).argmax(1).numpy() == names["y"]).mean()
    assert entry["accuracy"] == pytest.approx(right)
    assert told["split"] is None
    assert (told["num_samples"], told["num_samples_total"], told["num_terms"]) == (60, 60, 60)
    assert f"mine.py:{data}" in told["description"]
    assert len(told["sha256"]) == 64
    assert entry["provenance"]["data_sha256"] == told["sha256"]
    assert told["loss"].startswith("mean cross-entropy in nats")
    assert entry["test_loss"] is None


@pytest.mark.parametrize(("loss", "terms"), [("by_hand", 60), ("with_terms", 60)])
def test_batches_of_other_forms_go_to_the_users_loss(user, tmp_path, recwarn, loss, terms):
    told, entry = probed(user, "net", "dicts", loss, tmp_path=tmp_path)
    _, names, nets = user
    assert_is(entry, truth(nets["net"], functional.cross_entropy, names["x"], names["y"]))
    assert entry["accuracy"] is None
    assert told["num_terms"] == terms
    line = 1 + CODE[: CODE.index(f"def {loss}")].count("\n")
    assert told["loss"] == f"{user[0]}/mine.py:{loss} at {user[0]}/mine.py:{line}"


def test_a_module_of_several_outputs_is_measured_by_the_head_that_the_loss_picks(
    user, tmp_path, capsys
):
    _, names, nets = user
    _, entry = probed(user, "Heads", "table", "first_head", tmp_path=tmp_path)

    def loss(output, target):
        return functional.cross_entropy(output["classes"], target)

    assert_is(entry, truth(nets["Heads"], loss, names["x"], names["y"]))
    assert entry["accuracy"] is None
    assert any("unused" in warning for warning in entry["warnings"])
    captured = capsys.readouterr()
    assert "asked" in captured.err
    assert "asked" not in captured.out


def test_regression_has_a_loss_and_no_accuracy(user, tmp_path):
    _, names, nets = user
    told, entry = probed(user, "Regressor", "regression", "mse", tmp_path=tmp_path)
    assert_is(entry, truth(nets["Regressor"], functional.mse_loss, names["x"], names["z"]))
    assert entry["accuracy"] is None
    assert told["num_terms"] == 120
    assert "nats" not in told["loss"]
    # The Hessian of a linear model under the mean squared error is that of its inputs.
    x = np.c_[names["x"], np.ones(60)].astype(float)
    expected = np.linalg.eigvalsh(x.T @ x / 60).max()  # 2/n of squares, 1/2 of two outputs
    assert entry["eigenvalues"][0]["value"] == pytest.approx(expected, rel=1e-3)


def test_several_labels_a_sample_have_bce(user, tmp_path):
    _, names, nets = user
    told, entry = probed(user, "net", "labels", "bce", tmp_path=tmp_path)
    y = (names["x"][:, :3] > 0).astype("float32")
    bce = functional.binary_cross_entropy_with_logits
    assert_is(entry, truth(nets["net"], bce, names["x"], y))
    right = ((nets["net"](torch.tensor(names["x"])) > 0).numpy() == y).mean()
    assert entry["accuracy"] == pytest.approx(right)
    assert told["num_terms"] == 180


def test_an_importable_function_of_torch_is_a_loss_too(user, tmp_path):
    _, names, nets = user
    word = "torch.nn.functional:huber_loss"
    _, entry = probed(user, "Regressor", "regression", word, tmp_path=tmp_path)
    assert_is(entry, truth(nets["Regressor"], functional.huber_loss, names["x"], names["z"]))


def test_training_and_test_data_are_set_beside_each_other(user, tmp_path):
    told, entry = probed(user, "net", "both", "cross-entropy", tmp_path=tmp_path)
    _, names, nets = user
    assert told["split"] == "train"
    assert told["num_samples"] == 40
    expected = truth(nets["net"], functional.cross_entropy, names["x"][40:], names["y"][40:])
    assert entry["test_loss"] == pytest.approx(expected[0], rel=1e-5)
    more = ["--split", "test", "--overwrite"]
    told, other = probed(user, "net", "both", "cross-entropy", *more, tmp_path=tmp_path)
    assert told["split"] == "test"
    assert other["loss"] == pytest.approx(entry["test_loss"], rel=1e-5)


def test_two_iterables_of_batches_are_training_and_test_data(user, tmp_path):
    told, entry = probed(user, "net", "loaders", "cross-entropy", tmp_path=tmp_path)
    assert told["split"] == "train"
    assert entry["test_loss"] == pytest.approx(entry["loss"], rel=1e-5)


def test_one_data_set_has_no_test_split(user, tmp_path, capsys):
    arguments = command(
        user, "net", "table", "cross-entropy", "--split", "test", out=tmp_path / "o"
    )
    line = refused(arguments, capsys, code=2)
    assert "one data set and no test data: leave --split out" in line


def test_max_samples_draws_the_same_rows_of_every_form(user, tmp_path):
    answers = []
    for data in ("table", "generator", "dataset"):
        more = ["--max-samples", "20", "--batch-size", "8", "--overwrite"]
        told, entry = probed(user, "net", data, "cross-entropy", *more, tmp_path=tmp_path)
        assert (told["num_samples"], told["num_samples_total"]) == (20, 60)
        answers.append(entry["loss"])
    assert answers == pytest.approx([answers[0]] * 3, rel=1e-5)
    told, entry = probed(user, "net", "dicts", "by_hand", *more, tmp_path=tmp_path)
    assert entry["loss"] == pytest.approx(answers[0], rel=1e-5)


def test_of_a_dataset_the_chosen_items_alone_are_read(user, tmp_path):
    from sam_variants.tasks.user_code import find_function

    read = find_function(f"{user[0]}/mine.py:Pairs", True).read
    read.clear()
    more = ["--max-samples", "20"]
    probed(user, "net", "dataset", "cross-entropy", *more, tmp_path=tmp_path)
    assert len(read) == 20


def test_arguments_reach_the_factories_as_numbers(user, tmp_path):
    folder, names, _ = user
    net = names["net"](width=7)
    save_file(net.state_dict(), folder / "net.safetensors")
    try:
        more = ["--model-arg", "width=7"]
        probed(user, "net", "table", "cross-entropy", *more, tmp_path=tmp_path)
    finally:
        save_file(user[2]["net"].state_dict(), folder / "net.safetensors")
    more = ["--data-arg", "rows=33", "--overwrite"]
    told, _ = probed(user, "Regressor", "regression", "mse", *more, tmp_path=tmp_path)
    assert told["num_samples"] == 33


@pytest.mark.parametrize(
    ("text", "value"),
    [("20", 20), ("1e-3", 1e-3), ("true", True), ("None", None), ("(1, 2)", (1, 2)),
     ("'20'", "20"), ("resnet", "resnet"), ("a.b/c", "a.b/c"), ("", "")],
)  # fmt: skip
def test_a_text_is_the_literal_that_it_spells(text, value):
    assert literal(text) == value
    assert type(literal(text)) is type(value)


def test_a_network_of_ours_takes_its_shape_from_the_users_data(user, tmp_path):
    net = build_model("mlp:hidden=6", _task_of(user), seed=0)
    save_file(net.state_dict(), tmp_path / "mlp.safetensors")
    arguments = command(user, "net", "table", "cross-entropy", out=tmp_path / "out")
    arguments[0], arguments[2] = str(tmp_path / "mlp.safetensors"), "mlp:hidden=6"
    assert main(arguments) == 0
    arguments[arguments.index("--data") + 1] = f"{user[0]}/mine.py:regression"
    assert main([*arguments, "--overwrite"]) == 3


def _task_of(user):
    return build_task(f"{user[0]}/mine.py:both", allow_code=True)


def test_a_task_of_ours_takes_another_loss(user, tmp_path, capsys):
    net = build_model("logistic", build_task("digits"), seed=0)
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    arguments = [str(tmp_path / "net.safetensors"), "--model", "logistic", "--data", "digits",
                 *BARE, "--max-samples", "50", "--out", str(tmp_path / "o")]  # fmt: skip
    losses = []
    mine = f"{user[0]}/mine.py:squares"
    for word in ("cross-entropy", mine):
        assert main([*arguments, "--loss", word, "--allow-code", "--overwrite"]) == 0
        document = json.loads((tmp_path / "o" / "result.json").read_text())
        losses.append(document["data"]["loss"])
        assert document["checkpoints"][0]["loss"] > 0
    assert losses[0].startswith("mean cross-entropy")
    assert losses[1].startswith(f"{mine} at ")
    capsys.readouterr()
    line = refused([*arguments, "--loss", "mse", "--overwrite"], capsys, code=3)
    assert "--loss mse takes targets of the outputs' shape" in line


def test_another_loss_is_another_question(user, tmp_path, capsys):
    probed(user, "net", "table", "cross-entropy", tmp_path=tmp_path)
    capsys.readouterr()
    word = "torch.nn.functional:multi_margin_loss"
    arguments = command(user, "net", "table", word, out=tmp_path / "out")
    assert "holds another result" in refused(arguments, capsys, code=2)


def test_stdout_is_one_json_object_whatever_the_users_code_prints(user, tmp_path):
    arguments = command(user, "Heads", "generator", "first_head", "--json", out=tmp_path / "o")
    done = subprocess.run(
        [sys.executable, "-m", "landscape_cli.probe", *arguments],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout)["checkpoints"]
    for word in ("imported", "iterated", "asked"):
        assert word in done.stderr


@pytest.mark.parametrize(
    ("word", "said"),
    [("cross-entrpy", "did you mean 'cross-entropy'"), ("nlll", "did you mean 'nll'"),
     ("x.py", "unknown loss 'x.py'"), ("mse:a=1", "unknown loss")],
)  # fmt: skip
def test_a_wrong_loss_is_answered_with_the_nearest_without_torch(word, said):
    code = (
        "import sys; from cli.probe import main; code = main(sys.argv[1:]); "
        "assert 'torch' not in sys.modules, 'torch was imported'; sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "net.pt", "--loss", word],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_losses_are_listed(capsys):
    assert main(["--list", "losses"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(LOSSES)


@pytest.mark.parametrize("more", [[], ["--data", "digits"]])
def test_data_arguments_belong_to_a_function(capsys, more):
    line = refused(["net.pt", "--data-arg", "a=1", *more], capsys, code=2)
    assert "--data-arg is for a function" in line
    assert "must be name=value" in refused(["n.pt", "--data-arg", "a"], capsys, code=2)


# -- what does not fit is told before anything long -------------------------------------------

WRONG = """
import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import Dataset, IterableDataset

x = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
y = torch.arange(30) % 3

class Tuple(nn.Linear):
    def forward(self, x): return super().forward(x), x
class Detached(nn.Linear):
    def forward(self, x): return super().forward(x).detach()
class Raising(nn.Linear):
    def forward(self, x):
        raise RuntimeError("no\\nluck")  # model
def net(): return nn.Linear(4, 3)
def narrow(): return nn.Linear(5, 3)
def heads(): return Tuple(4, 3)
def detached(): return Detached(4, 3)
def raising(): return Raising(4, 3)

def good(): return x, y
def high(): return [(x, y), (x, y + 1), (x, y)]
def negative(): return x, y - 1
def floats(): return x, y.float()
def int32(): return iter([(x, y.int())])
def column(): return x, y[:, None]
def tall(): return x[:, :1], y
def ints(): return x, torch.stack([y, y, y], 1)
def unlike(): return x, y[:20]
def empty(): return x[:0], y[:0]
def nan(): return x * float("nan"), y
def nothing(): return None
def three(): return x, y, y
def two_batches(): return [(x, y), (x, y)]
def texts(): return ["a", "b", "c"]
def objects(): return np.array([[None]] * 30), y.numpy()
def outside(): return x, 2 + 0 * x[:, :3]
def graph(): return iter([{"nodes": x, "edges": torch.zeros(2, 90, dtype=torch.int64)}] * 3)
def dicts(): return iter([{"x": x, "y": y}] * 2)
def stream():
    yield x, y
    raise OSError("gone")  # data
def late():
    return iter([(x, y), (x[:, :3], y)])
def dict_targets(): return x, {"a": y}
class Broken(Dataset):
    def __len__(self): return 30
    def __getitem__(self, i):
        if i == 7: raise KeyError("gone")  # item
        return x[i], int(y[i])
def dataset(): return Broken()
class Ragged(Dataset):
    def __len__(self): return 30
    def __getitem__(self, i): return x[i, :1 + i % 4], int(y[i])
def ragged(): return Ragged()
class Endless(IterableDataset):
    def __iter__(self): return iter([(x[0], 0)])
def endless(): return Endless()

def per_row(output, target):  # loss
    return functional.cross_entropy(output, target, reduction="none")
def raises(output, target):
    return {}["k"]  # loss
def number(output, target):  # loss
    return functional.cross_entropy(output, target).item()
def argmax(output, target):  # loss
    return (output.argmax(1) - target).float().pow(2).mean()
def pair(output, target):  # loss
    return functional.cross_entropy(output, target), 3
def one():
    return 1  # loss
def counted(model, batch):  # loss
    return functional.cross_entropy(model(batch["x"]), batch["y"]), "many"
def short(model, batch): return model(batch["nodes"]).pow(2).mean(), 1
class Loss: pass
NOT_CODE = 3
"""


@pytest.fixture
def wrong(tmp_path):
    path = tmp_path / "wrong.py"
    path.write_text(WRONG)
    torch.manual_seed(0)
    net = nn.Linear(4, 3)
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    save_file(nn.Linear(5, 3).state_dict(), tmp_path / "narrow.safetensors")

    def arguments(net, data, loss, *more):
        word = loss if loss in LOSSES else f"{path}:{loss}"
        weights = "narrow" if net == "narrow" else "net"
        return [str(tmp_path / f"{weights}.safetensors"), "--model", f"{path}:{net}",
                "--loss", word, "--data", f"{path}:{data}", "--allow-code", *BARE, *more,
                "--out", str(tmp_path / "out")]  # fmt: skip

    return arguments


def line_of(marker):
    return next(i for i, line in enumerate(WRONG.splitlines(), 1) if line.endswith(marker))


@pytest.mark.parametrize(
    ("net", "data", "loss", "said"),
    [
        ("net", "high", "cross-entropy", "batch 1: label 3 is out of range: the model has 3"),
        ("net", "negative", "cross-entropy", "label -1 is out of range"),
        ("net", "floats", "cross-entropy", "targets are (30,) float32, outputs (30, 3) float32"),
        ("net", "int32", "cross-entropy", "takes labels of dtype int64"),
        ("net", "column", "cross-entropy", "takes labels (n, ...) for outputs (n, classes, ...)"),
        ("net", "tall", "cross-entropy", "fails on inputs (30, 1) float32"),
        ("narrow", "good", "cross-entropy", "mat1 and mat2"),
        ("heads", "good", "cross-entropy", "give a function of yours as --loss that picks"),
        ("detached", "good", "cross-entropy", "does not hang on the model's weights"),
        ("net", "good", "nll", "are no log-probabilities"),
        ("net", "good", "mse", "--loss mse takes targets of the outputs' shape"),
        ("net", "ints", "mse", "takes floating targets"),
        ("net", "outside", "bce", "a target is outside [0, 1]"),
        ("net", "dicts", "mse", "not (inputs, targets), which --loss mse takes"),
        ("net", "unlike", "mse", "30 inputs but 20 targets"),
        ("net", "empty", "mse", "is empty"),
        ("net", "nan", "mse", "is not finite"),
        ("net", "nothing", "mse", "returned None; expected one data set or two"),
        ("net", "three", "mse", "float32, (30,) int64, (30,) int64); expected one data set"),
        ("net", "two_batches", "mse", "returned a list of two, which may be two batches"),
        ("net", "texts", "mse", "batch 0 is a str, without a tensor"),
        ("net", "objects", "mse", "an array has dtype object, not numbers"),
        ("net", "endless", "mse", "a Dataset without a length: return a DataLoader"),
        ("net", "ragged", "mse", "items do not stack into a batch"),
        ("net", "late", "cross-entropy", "fails on inputs (30, 3) float32"),
        ("net", "dict_targets", "mse", "targets are {a: (30,) int64}; --loss mse takes one"),
        ("net", "good", "Loss", "is a class; a loss is a function of (output, target)"),
        ("net", "good", "NOT_CODE", "is a int, not a function"),
        ("net", "good", "absent", "has no function 'absent'"),
    ],
)
def test_34_what_does_not_fit_is_told_in_one_line(wrong, tmp_path, capsys, net, data, loss, said):
    line = refused(wrong(net, data, loss), capsys, code=3)
    assert said in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("net", "data", "loss", "marker", "said"),
    [
        ("net", "good", "raises", "['k']  # loss", "KeyError: 'k'"),
        ("net", "good", "per_row", "per_row(output, target):  # loss", "returned (30,) float32"),
        ("net", "good", "number", "number(output, target):  # loss", "returned a float"),
        ("net", "good", "argmax", "argmax(output, target):  # loss", "hang on the model's weights"),
        ("net", "good", "pair", "pair(output, target):  # loss", "expected a tensor of one number"),
        ("net", "dicts", "counted", "counted(model, batch):  # loss", "'many' as its number of"),
        ("raising", "good", "cross-entropy", '("no\\nluck")  # model', "RuntimeError: no luck"),
        ("net", "stream", "mse", '("gone")  # data', "OSError: gone"),
        ("net", "dataset", "mse", '("gone")  # item', "item 7 failed at"),
    ],
)
def test_46_the_users_own_line_is_named(wrong, tmp_path, capsys, net, data, loss, marker, said):
    marker = marker.replace("\n", "\\n")
    if marker.startswith("['k']"):
        marker = '["k"]  # loss'
    line = refused(wrong(net, data, loss), capsys, code=3)
    assert said in line
    assert f"{tmp_path / 'wrong.py'}:{line_of(marker)}" in line


def test_a_loss_that_fails_later_is_told_by_its_line_too(wrong, tmp_path, capsys):
    source = WRONG + textwrap.dedent("""
        def batches(): return iter([{"x": x}, {"x": x}, {"z": x}])
        def late_key(model, batch):
            return model(batch["x"]).pow(2).mean(), 30  # here
        asked = []
        def later(output, target):
            asked.append(1)
            if len(asked) > 12:
                raise KeyError("x")  # later
            return functional.cross_entropy(output, target)
    """)
    (tmp_path / "wrong.py").write_text(source)
    for data, loss, marker in (("batches", "late_key", "  # here"), ("good", "later", "  # later")):
        line = refused(wrong("net", data, loss), capsys, code=3)
        number = source[: source.index(marker)].count("\n") + 1
        assert f"at {tmp_path / 'wrong.py'}:{number}: KeyError: 'x'" in line


def test_rows_that_cannot_be_told_are_not_cut(wrong, capsys, tmp_path):
    line = refused(wrong("net", "graph", "short", "--max-samples", "40"), capsys, code=3)
    assert "its tensors differ in length" in line
    assert "give --max-samples 90" in line
    assert main(wrong("net", "graph", "short", "--max-samples", "90")) == 0


@pytest.mark.parametrize("which", ["--model", "--data", "--loss"])
def test_47_a_file_is_not_run_without_allow_code(wrong, tmp_path, capsys, which):
    (tmp_path / "wrong.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n{WRONG}")
    arguments = wrong("net", "good", "raises")
    arguments.remove("--allow-code")
    ours = {"--model": "logistic", "--data": "digits", "--loss": "mse"}
    for option in ours.keys() - {which}:
        arguments[arguments.index(option) + 1] = ours[option]
    line = refused(arguments, capsys, code=2)
    assert "give --allow-code to allow it" in line
    assert not (tmp_path / "ran").exists()


def test_without_a_loss_the_strict_forms_stand_and_the_loss_is_pointed_at(wrong, tmp_path, capsys):
    arguments = wrong("net", "floats", "mse")
    at = arguments.index("--loss")
    del arguments[at : at + 2]
    line = refused(arguments, capsys, code=3)
    assert "with --loss any other form will do" in line


def checked(word, model, batches):
    check_batches(model, build_loss(word), batches, model_word="m", data="d")


def test_labels_of_all_kinds_that_torch_takes_pass():
    x, y = torch.randn(6, 4), torch.tensor([0, 1, 2, -100, 1, 0])
    net = nn.Linear(4, 3)
    checked("cross-entropy", net, [(x, y)])
    checked("cross-entropy", net, [(x, torch.full((6, 3), 1 / 3))])
    checked("nll", nn.Sequential(net, nn.LogSoftmax(1)), [(x, y)])
    segments = nn.Conv2d(3, 5, 1)
    sizes = [(torch.randn(2, 3, n, n), torch.zeros(2, n, n, dtype=torch.int64)) for n in (4, 6)]
    checked("cross-entropy", segments, sizes)
    sizes[1][1][0, 0, 0] = 5
    with pytest.raises(ValueError, match="batch 1: label 5 is out of range"):
        checked("cross-entropy", segments, sizes)


def test_a_trial_leaves_model_flags_and_random_numbers_as_they_were():
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 3)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.random.get_rng_state()
    batch = (torch.ones(5, 4, dtype=torch.float64), torch.zeros(5, dtype=torch.int64))
    checked("cross-entropy", model, [batch])
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(p.grad is None for p in model.parameters())


def test_bytes_are_divided_by_255_and_labels_made_int64(tmp_path):
    code = """
        import numpy as np
        def data(): return np.full((4, 2), 51, dtype=np.uint8), np.arange(4, dtype=np.int32)
        def swapped(): return np.full((4, 2), 0.2, dtype=">f4"), [0, 1, 2, 3]
    """
    (tmp_path / "bytes.py").write_text(textwrap.dedent(code))
    for name in ("data", "swapped"):
        data = probe_data(f"{tmp_path}/bytes.py:{name}", {}, allow_code=True, seed=0)
        ((x, y),) = data.sets[""].choose(None, batch_size=9, seed=0).batches
        assert torch.allclose(x, torch.full((4, 2), 0.2))
        assert (y.dtype, y.tolist()) == (torch.int64, [0, 1, 2, 3])


def test_data_that_change_from_call_to_call_are_refused():
    def findings(*hashes):
        entries = [{"provenance": {"data_sha256": h, "num_terms": 7.0}} for h in hashes]
        return Findings({"data": {"num_terms": None}, "checkpoints": entries}, {})

    same = findings("a", "a")
    _tell_of_the_loss(same, {"data": "mine.data:rows"})
    assert same.document["data"]["num_terms"] == 7
    with pytest.raises(CommandError, match="other data when it was called again") as caught:
        _tell_of_the_loss(findings("a", "b"), {"data": "mine.data:rows"})
    assert caught.value.code == 3
    _tell_of_the_loss(findings("a", "b"), {"data": None})  # label noise is drawn for each seed


def test_two_processes_get_the_same_rows_of_a_loader_that_shuffles(user):
    word = f"{user[0]}/mine.py:loader"
    before = torch.random.get_rng_state()
    first, second = (
        probe_data(word, {}, allow_code=True, seed=3).sets[""].choose(20, batch_size=9, seed=3)
        for _ in range(2)
    )
    assert first.sha256 == second.sha256
    assert torch.equal(before, torch.random.get_rng_state())
    other = probe_data(word, {}, allow_code=True, seed=4).sets[""]
    assert other.choose(20, batch_size=9, seed=3).sha256 != first.sha256
