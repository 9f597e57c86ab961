"""Rows 1 to 22: checkpoint files that are missing, damaged, dangerous or of something else.

The file is opened before a missing --model or --data is complained of: rows 1 to 18 give neither.
"""

import json
import re
import zipfile

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.faults.attack import (
    LOGISTIC,
    bare,
    entry_of,
    logistic_state,
    probe,
    probe_refused,
    probed,
    refused,
    user_net,
)
from tests.landscape.checkpoints import bad_files

pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture
def refuse(tmp_path, capsys):
    def check(path, *words, code=3, says=()):
        return probe_refused(path, tmp_path, capsys, *words, code=code, says=says)

    return check


# -- damage ----------------------------------------------------------------------------------------


def test_01_a_missing_path_and_a_folder_without_checkpoint_say_what_was_looked_for(
    tmp_path, refuse
):
    refuse(tmp_path / "gone.pt", says="no such file or folder")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "notes.txt").write_text("nothing")
    refuse(tmp_path / "folder", says=r"looked for checkpoint\.pt, model\.safetensors")


@pytest.mark.parametrize("name", ["net.pt", "net.safetensors"])
def test_02_an_empty_file_is_empty(tmp_path, refuse, name):
    (tmp_path / name).write_bytes(b"")
    refuse(tmp_path / name, says=["file is empty", "earlier checkpoint"])


@pytest.mark.parametrize("share", [0.2, 0.7, 0.99])
def test_03_a_truncated_archive_is_incomplete_and_an_earlier_one_is_advised(saved, refuse, share):
    bad_files.truncate(saved, share)
    refuse(saved, says=["incomplete file", "earlier checkpoint"])


@pytest.mark.parametrize(
    ("content", "kind"), [(bad_files.HTML, "HTML page"), (bad_files.LFS_POINTER, "git lfs pull")]
)
def test_04_a_web_page_and_a_pointer_are_told_apart(tmp_path, refuse, content, kind):
    (tmp_path / "net.pt").write_bytes(content)
    refuse(tmp_path / "net.pt", says=kind)


def test_05_a_flipped_bit_of_an_archive_names_the_member(saved, refuse):
    bad_files.flip_bit_of_member(saved)
    assert max(w.abs().max() for w in torch.load(saved).values()) > 1e30  # torch is content
    refuse(saved, says=r"damaged in net/data/0")


def test_06_a_flipped_bit_of_safetensors_is_warned_of_by_the_tensors_name(tmp_path, capsys):
    _, words = user_net(tmp_path, FIXED)
    path = tmp_path / "net.safetensors"
    save_file(torch.load(tmp_path / "net.pt"), path)
    flip_first_of(path, "layer.weight")  # whose input the mask takes out: the loss is what it was
    entry = entry_of(probed(path, tmp_path, *words))
    assert any(text.startswith("layer.weight reaches") for text in entry["load_report"]["warnings"])
    warnings = [line for line in capsys.readouterr().err.splitlines() if "layer.weight" in line]
    assert len(warnings) == 1  # whoever types the command sees it too
    assert "may be damaged" in warnings[0]


def test_06_a_flipped_bit_that_spoils_the_loss_is_named_as_well(tmp_path, capsys):
    path = tmp_path / "net.safetensors"
    save_file(logistic_state(), path)
    flip_first_of(path, "1.weight")
    words = [path, *bare(*LOGISTIC)]
    says = ["the loss at the weights is inf", r"1\.weight"]
    refused(probe, words, capsys, code=4, out=tmp_path / "out", says=says)


def flip_first_of(path, name):
    """Flips the highest bit of the exponent of a tensor's first number."""
    header = json.loads(path.read_bytes()[8:].partition(b"}}")[0] + b"}}")
    bad_files.flip_bit_of_safetensors(path, header[name]["data_offsets"][0] // 4)
    assert load_file(path)[name].abs().max() > 1e30


# -- code in files ---------------------------------------------------------------------------------


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("words", [(), LOGISTIC])
def test_07_a_pickle_executes_nothing(tmp_path, refuse, zipped, words):
    canary = tmp_path / "canary"
    path = bad_files.pickle_canary(tmp_path / "net.pt", canary, zipped=zipped)
    refuse(path, *words, says=[r"\.system", "--trust-pickle"])
    assert not canary.exists()


@pytest.mark.parametrize("name", list(bad_files.OTHER_THINGS))
def test_08_a_pickled_class_is_named_and_trust_is_offered_never_taken(tmp_path, refuse, name):
    torch.save(bad_files.OTHER_THINGS[name](), tmp_path / "net.pt")
    refuse(tmp_path / "net.pt", says=[re.escape(name), "--trust-pickle"])


def test_08_trust_lets_the_class_in_and_says_so(tmp_path):
    content = {"state_dict": logistic_state(), "args": bad_files._namespace()}
    torch.save(content, tmp_path / "net.pt")
    entry = entry_of(probed(tmp_path / "net.pt", tmp_path, *LOGISTIC, "--trust-pickle"))
    assert any("code in the file was run" in text for text in entry["load_report"]["warnings"])


def test_09_a_distributed_folder_is_explained(tmp_path, refuse):
    folder = bad_files.distributed_folder(tmp_path / "dcp", {"model": logistic_state()})
    refuse(folder, says=[r"\.metadata is a pickle", "--trust-pickle"])
    assert entry_of(probed(folder, tmp_path, *LOGISTIC, "--trust-pickle"))["accuracy"] < 0.5


def test_10_a_malicious_metadata_is_not_run(tmp_path, refuse):
    canary = tmp_path / "canary"
    refuse(bad_files.distributed_canary(tmp_path / "dcp", canary), says="--trust-pickle")
    assert not canary.exists()


@pytest.mark.parametrize("words", [(), ("--trust-pickle",)])
def test_11_a_torchscript_archive_is_not_guessed_at(tmp_path, refuse, words):
    refuse(bad_files.torchscript(tmp_path / "net.pt"), *words, says="export a state_dict")


# -- bombs -----------------------------------------------------------------------------------------


def test_12_a_deflated_bomb_is_refused_before_it_is_unpacked(tmp_path, refuse, monkeypatch):
    path = bad_files.zip_bomb(tmp_path / "bomb.pt")
    assert path.stat().st_size < 250_000
    unpacked = []
    monkeypatch.setattr(zipfile.ZipFile, "testzip", lambda self: unpacked.append(self))
    monkeypatch.setattr(torch, "load", lambda *_, **__: unpacked.append(1))
    refuse(path, says="more than 100 times")
    refuse(path, "--max-checkpoint-gb", "0.1", says="--max-checkpoint-gb")
    assert unpacked == []


def test_12_a_large_honest_file_needs_leave(saved, refuse):
    refuse(saved, "--max-checkpoint-gb", "1e-6", says="--max-checkpoint-gb")


@pytest.mark.parametrize("zipped", [True, False])
def test_13_a_tensor_larger_than_its_memory_is_refused(tmp_path, refuse, zipped):
    path = bad_files.stride_zero(tmp_path / "net.pt", zipped=zipped)
    refuse(path, says=r"\(100000000000,\) and holds 4 bytes")


@pytest.mark.parametrize("name", list(bad_files.SAFETENSORS_ATTACKS))
def test_14_attacks_on_the_header_of_safetensors_are_told_in_a_line(tmp_path, refuse, name):
    path = bad_files.SAFETENSORS_ATTACKS[name](tmp_path / "net.safetensors")
    refuse(path, says="not a readable safetensors file")


@pytest.mark.parametrize("place", ["../../etc/x", "absolute", "link"])
def test_15_an_index_does_not_lead_out_of_its_folder(tmp_path, refuse, place):
    save_file(logistic_state(), tmp_path / "secret.safetensors")
    folder = tmp_path / "model"
    folder.mkdir()
    if place == "absolute":
        place = str(tmp_path / "secret.safetensors")
    elif place == "link":
        place = "shard.safetensors"
        (folder / place).symlink_to(tmp_path / "secret.safetensors")
    bad_files.sharded(folder, {}, places=dict.fromkeys(logistic_state(), place))
    refuse(folder, says=["names the shard", "not inside its folder: refused"])
    refuse(folder, *LOGISTIC, says="not inside its folder")


# -- names -----------------------------------------------------------------------------------------


def test_16_several_state_dicts_are_listed_and_none_is_guessed(tmp_path, refuse):
    torch.save({"model": logistic_state(), "ema": logistic_state(4)}, tmp_path / "net.pt")
    for words in ((), LOGISTIC):
        says = [r"model \(2\)", r"ema \(2\)", "--state-key"]
        refuse(tmp_path / "net.pt", *words, code=2, says=says)
    refuse(tmp_path / "net.pt", "--state-key", "emu", code=2, says="ema")


def test_17_nested_prefixes_are_removed_and_shown(saved, tmp_path):
    wrapped = {f"_orig_mod.module.{name}": w for name, w in logistic_state().items()}
    torch.save(wrapped, tmp_path / "wrapped.pt")
    plain = entry_of(probed(saved, tmp_path, *LOGISTIC, name="plain"))
    entry = entry_of(probed(tmp_path / "wrapped.pt", tmp_path, *LOGISTIC))
    assert entry["load_report"]["prefixes_removed"] == ["_orig_mod.module."]
    assert entry["loss"] == plain["loss"]


@pytest.mark.parametrize("words", [LOGISTIC, ()], ids=["of-a-model", "before-a-model-is-given"])
def test_18_two_keys_that_become_one_are_refused(tmp_path, refuse, words):
    state = logistic_state()
    torch.save({**state, **{f"module.{n}": 2 * w for n, w in state.items()}}, tmp_path / "net.pt")
    says = ["become one", r"1\.weight", r"module\.1\.weight"]
    refuse(tmp_path / "net.pt", *words, says=says)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s: {"1.weight": s["1.weight"]}, [r"1 missing \(1\.bias\)", "--allow-missing"]),
        (
            lambda s: {**s, **{f"extra.{i}": torch.zeros(2) for i in range(25)}},
            [r"25 unexpected \(extra\.0, .*extra\.9, \.\.\.\)", "--state-key"],
        ),
        (
            lambda s: {**s, "1.bias": torch.zeros(11)},
            [r"1 of another shape \(1\.bias: \(11,\), the model has \(10,\)\)"],
        ),
        (lambda s: {"other": torch.zeros(3)}, ["no name in common|1 unexpected"]),
    ],
)
def test_19_a_misfit_lists_ten_names_and_counts_the_rest(tmp_path, refuse, change, says):
    torch.save(change(logistic_state()), tmp_path / "net.pt")
    line = refuse(tmp_path / "net.pt", *LOGISTIC, says=[*says, "give the model"])
    assert "extra.10" not in line


def _quantized():
    weight = torch.nn.init.normal_(torch.empty(10, 64))
    return torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8)


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated")
@pytest.mark.parametrize(
    ("tensor", "says"),
    [
        (lambda: torch.empty(10, 64, device="meta"), "meta tensor"),
        (lambda: torch.eye(10, 64).to_sparse(), "sparse"),
        (lambda: torch.zeros(10, 64, dtype=torch.complex64), "complex"),
        (lambda: torch.zeros(10, 64, dtype=torch.int8), "another kind of number"),
    ],
)
def test_20_entries_that_are_no_weights_are_refused_by_name(tmp_path, refuse, tensor, says):
    torch.save({**logistic_state(), "1.weight": tensor()}, tmp_path / "net.pt")
    refuse(tmp_path / "net.pt", *LOGISTIC, says=[r"1\.weight", says])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn, torch.float16])
def test_20_narrow_floats_are_cast_with_a_note(tmp_path, dtype):
    state = {name: w.to(dtype) for name, w in logistic_state().items()}
    torch.save(state, tmp_path / "net.pt")
    entry = entry_of(probed(tmp_path / "net.pt", tmp_path, *LOGISTIC))
    word = str(dtype).removeprefix("torch.")
    assert f"1.weight: {word} to float32" in entry["load_report"]["casts"]
    length = torch.cat([w.double().flatten() for w in state.values()]).norm()
    assert entry["parameter_norm"] == pytest.approx(float(length), rel=1e-6)


FIXED = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 10)
        self.register_buffer("order", torch.arange(64).flip(0))
        self.register_buffer("kept", torch.arange(64) % 2 == 0)

    def forward(self, x):
        return self.layer((x.flatten(1) * self.kept)[:, self.order])

build = Net
"""


def test_20_integers_and_booleans_stay_as_they_are(tmp_path):
    path, words = user_net(tmp_path, FIXED)
    state = torch.load(path)
    torch.save({**state, "kept": ~state["kept"]}, path)
    entry = entry_of(probed(path, tmp_path, *words))
    assert entry["num_parameters"] == 650
    other = entry_of(probed(user_net(tmp_path, FIXED)[0], tmp_path, *words, name="other"))
    assert entry["loss"] != other["loss"]  # the file's own mask was taken


TIED = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(64, 64, bias=False)
        self.outer = nn.Linear(64, 64, bias=False)
        self.outer.weight = self.inner.weight

    def forward(self, x):
        return self.outer(self.inner(x.flatten(1)))[:, :10]

build = Net
"""


def test_21_tied_weights_are_counted_once(tmp_path):
    path, words = user_net(tmp_path, TIED)
    assert len(torch.load(path)) == 2
    slices = ("--line", "3", "--range", "1")
    findings = probed(path, tmp_path, *words, *slices)
    entry = entry_of(findings)
    length = float(torch.load(path)["inner.weight"].double().norm())
    assert entry["num_parameters"] == 64 * 64
    assert entry["parameter_norm"] == pytest.approx(length, rel=1e-6)
    assert entry["line"]["norms"] == pytest.approx([length, length], rel=1e-5)  # by filter
    assert entry["load_report"]["tied"] == ["inner.weight = outer.weight"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_22_weights_that_are_no_numbers_are_listed(tmp_path, refuse, value):
    state = logistic_state()
    state["1.bias"][3] = value
    torch.save(state, tmp_path / "net.pt")
    says = [r"1 tensors hold nan or inf \(1\.bias\)", "earlier checkpoint"]
    refuse(tmp_path / "net.pt", *LOGISTIC, code=4, says=says)


def test_22_weights_that_are_let_in_are_judged_by_the_loss(tmp_path, capsys):
    state = logistic_state()
    state["1.bias"][3] = float("nan")
    torch.save(state, tmp_path / "net.pt")
    words = [tmp_path / "net.pt", *bare(*LOGISTIC), "--allow-nonfinite"]
    says = "the loss at the weights is nan"
    refused(probe, words, capsys, code=4, out=tmp_path / "out", says=says)
