"""Findings: what goes into a folder comes out of it, or is refused in one line."""

from __future__ import annotations

import errno
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from landscape.findings import Findings, load_findings, save_findings
from tests.landscape.report.sample import HOSTILE, probe_findings, training_findings

NAN = math.nan


def small() -> Findings:
    document = {
        "kind": "probe",
        "checkpoints": [
            {
                "id": "c0",
                "label": HOSTILE,
                "loss": math.inf,
                "accuracy": 0.5,
                "a/b~c": [1, math.nan],
            },
            {"id": "c1", "label": "b", "loss": -math.inf, "accuracy": None},
        ],
        "nested": {"tuple": (np.float32(0.5), np.int64(3), np.bool_(True)), "path": Path("a")},
    }
    surface = np.array([[1.0, 2.0, 3.0], [4.0, math.nan, math.inf]])
    return Findings(
        document,
        {
            "surface_c0_x": np.array([0.0, 1.0, 2.0]),
            "surface_c0_y": np.array([-1.0, 1.0]),
            "surface_c0_loss": surface,
            "surface_c0_evaluated": np.array([[1, 0, 1], [1, 1, 1]], dtype=np.int64),
        },
    )


def test_a_document_survives_the_folder_with_its_nonfinite_numbers(tmp_path: Path) -> None:
    save_findings(small(), tmp_path / "probe")
    loaded = load_findings(tmp_path / "probe").document
    first, second = loaded["checkpoints"]
    assert first["loss"] == math.inf
    assert second["loss"] == -math.inf
    assert first["a/b~c"][0] == 1
    assert math.isnan(first["a/b~c"][1])
    assert first["label"] == HOSTILE
    assert second["accuracy"] is None
    assert loaded["nested"] == {"tuple": [0.5, 3, True], "path": "a"}


def test_arrays_survive_the_folder_bit_for_bit_in_native_order(tmp_path: Path) -> None:
    save_findings(small(), tmp_path)
    arrays = load_findings(tmp_path).arrays
    assert list(arrays) != []
    for name, array in small().arrays.items():
        np.testing.assert_array_equal(arrays[name], array)
        assert arrays[name].dtype.isnative
    assert arrays["surface_c0_loss"].dtype == np.float64
    assert arrays["surface_c0_evaluated"].dtype == np.int32


def test_result_json_is_strict_json_that_names_what_was_not_finite(tmp_path: Path) -> None:
    save_findings(small(), tmp_path)

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} in a strict JSON file")

    document = json.loads((tmp_path / "result.json").read_bytes(), parse_constant=refuse)
    assert document["checkpoints"][0]["loss"] is None
    assert document["nonfinite"] == {
        "/checkpoints/0/loss": "inf",
        "/checkpoints/0/a~1b~0c/1": "nan",
        "/checkpoints/1/loss": "-inf",
    }


def test_a_document_prints_as_the_same_strict_json_without_the_hashes(tmp_path: Path) -> None:
    save_findings(small(), tmp_path)
    stored = json.loads((tmp_path / "result.json").read_bytes())
    printed = json.loads(small().to_json())
    assert printed == {key: stored[key] for key in stored if key not in ("files", "sha256")}


def test_arrays_open_in_xarray_with_coordinates_and_units(tmp_path: Path) -> None:
    xarray = pytest.importorskip("xarray")
    save_findings(small(), tmp_path)
    with xarray.open_dataset(tmp_path / "arrays.nc", engine="scipy") as data:
        loss = data["surface_c0_loss"]
        assert loss.dims == ("surface_c0_y", "surface_c0_x")
        assert loss.attrs["units"] == "loss"
        assert float(loss.sel(surface_c0_x=2.0, surface_c0_y=-1.0)) == 3.0
        assert data["surface_c0_x"].attrs["units"] == "direction vectors"


def test_equal_findings_give_equal_bytes(tmp_path: Path) -> None:
    save_findings(probe_findings(), tmp_path / "a")
    save_findings(probe_findings(), tmp_path / "b")
    for name in ("result.json", "arrays.nc"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_saving_what_was_loaded_changes_no_byte(tmp_path: Path) -> None:
    save_findings(small(), tmp_path / "a")
    save_findings(load_findings(tmp_path / "a"), tmp_path / "b")
    assert (tmp_path / "a" / "arrays.nc").read_bytes() == (tmp_path / "b/arrays.nc").read_bytes()
    left = json.loads((tmp_path / "a" / "result.json").read_bytes())
    right = json.loads((tmp_path / "b" / "result.json").read_bytes())
    assert left == right


def test_nothing_is_overwritten_unless_asked(tmp_path: Path) -> None:
    save_findings(small(), tmp_path)
    before = (tmp_path / "result.json").read_bytes()
    with pytest.raises(FileExistsError, match="holds a result already"):
        save_findings(training_findings(epochs=2), tmp_path)
    assert (tmp_path / "result.json").read_bytes() == before
    save_findings(training_findings(epochs=2), tmp_path, overwrite=True)
    assert load_findings(tmp_path).document["kind"] == "training"


@pytest.mark.parametrize("place", [b'"accuracy": 0.5', b'"kind": "probe"'])
def test_43_a_result_edited_by_hand_is_refused(tmp_path: Path, place: bytes) -> None:
    save_findings(small(), tmp_path)
    path = tmp_path / "result.json"
    raw = path.read_bytes()
    assert place in raw
    path.write_bytes(raw.replace(place, place.replace(b"0.5", b"0.9").replace(b"probe", b"other")))
    with pytest.raises(ValueError, match=r"result\.json: content does not match") as caught:
        load_findings(tmp_path)
    assert "\n" not in str(caught.value)


def test_43_a_flipped_bit_in_the_arrays_is_refused(tmp_path: Path) -> None:
    save_findings(small(), tmp_path)
    path = tmp_path / "arrays.nc"
    raw = bytearray(path.read_bytes())
    raw[-3] ^= 1
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=r"arrays\.nc: does not match the sha256"):
        load_findings(tmp_path)


@pytest.mark.parametrize("share", [0, 0.3, 0.99])
def test_43_a_half_written_result_is_refused(tmp_path: Path, share: float) -> None:
    save_findings(small(), tmp_path)
    path = tmp_path / "result.json"
    raw = path.read_bytes()
    path.write_bytes(raw[: int(share * len(raw))])
    with pytest.raises(ValueError, match=r"result\.json: ") as caught:
        load_findings(tmp_path)
    assert "\n" not in str(caught.value)


def test_the_report_is_not_built_where_the_commit_mark_is_missing(tmp_path: Path) -> None:
    save_findings(small(), tmp_path)
    (tmp_path / "result.json").unlink()
    with pytest.raises(ValueError, match=r"result\.json: cannot be read"):
        load_findings(tmp_path)


def test_another_schema_is_refused_by_number(tmp_path: Path) -> None:
    save_findings(small(), tmp_path)
    path = tmp_path / "result.json"
    path.write_bytes(path.read_bytes().replace(b'"schema": 1', b'"schema": 7'))
    with pytest.raises(ValueError, match="schema 7, this version reads 1"):
        load_findings(tmp_path)


def test_reindented_json_of_the_same_content_is_still_believed(tmp_path: Path) -> None:
    save_findings(small(), tmp_path)
    path = tmp_path / "result.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()), indent=4, sort_keys=True))
    assert load_findings(tmp_path).document["kind"] == "probe"


def test_36_a_full_disk_keeps_the_last_good_result_and_no_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_findings(small(), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    calls = []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 2:  # the arrays are on disk, the result is not
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_findings(training_findings(epochs=2), tmp_path, overwrite=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_the_arrays_get_their_name_before_the_commit_mark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named, replace = [], os.replace

    def watched(source: str, target: Path) -> None:
        named.append(Path(target).name)
        replace(source, target)

    monkeypatch.setattr(os, "replace", watched)
    save_findings(small(), tmp_path)
    assert named == ["arrays.nc", "result.json"]


def test_41_a_folder_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "probe").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="symbolic link"):
        save_findings(small(), tmp_path / "probe")
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_41_a_result_that_is_a_link_is_replaced_and_its_target_left_alone(tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_text("mine")
    (tmp_path / "probe").mkdir()
    (tmp_path / "probe" / "result.json").symlink_to(target)
    save_findings(small(), tmp_path / "probe", overwrite=True)
    assert target.read_text() == "mine"
    assert load_findings(tmp_path / "probe").document["kind"] == "probe"


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({HOSTILE[:20]: np.ones(2)}, "lower-case letters"),
        ({"line_c0_t": np.ones(0)}, r"is empty \(shape \(0,\)\)"),
        ({"line_c0_t": np.array([2**40])}, "beyond 32 bits"),
        ({"line_c0_t": np.array([1j])}, "complex128 cannot be stored"),
        ({"line_c0_t": np.array(["text"])}, "cannot be stored"),
        (
            {"surface_c0_x": np.ones(3), "surface_c0_loss": np.ones((2, 4))},
            "3 points along surface_c0_x, not 4",
        ),
    ],
)
def test_an_array_that_netcdf_cannot_hold_is_named(
    tmp_path: Path, arrays: dict[str, np.ndarray], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        save_findings(Findings({"checkpoints": []}, arrays), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"settings": {"what": object()}}, "object at /settings/what"),
        ({"settings": {3: "three"}}, "key 3 at /settings"),
        ({"checkpoints": [{"id": "../x"}]}, "id '../x'"),
        ({"checkpoints": [{"id": "c0"}, {"id": "c0"}]}, "not unique"),
    ],
)
def test_a_document_that_cannot_be_stored_is_named(
    tmp_path: Path, document: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        save_findings(Findings(document), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_table_has_one_flat_row_a_checkpoint_with_equal_columns() -> None:
    findings = probe_findings(seeds=2)
    rows = findings.table()
    assert len(rows) == 6
    assert len({tuple(row) for row in rows}) == 1
    checkpoint = findings.checkpoints[3]
    assert rows[3]["label"] == checkpoint["label"]
    assert rows[3]["lambda_1"] == checkpoint["eigenvalues"][0]["value"]
    assert rows[3]["lambda_min"] == checkpoint["eigenvalues"][-1]["value"] < 0
    assert rows[3]["trace_standard_error"] == checkpoint["trace"]["standard_error"]
    assert rows[3]["worst-case:rho=0.1"] == checkpoint["sharpness"]["worst-case:rho=0.1"]["value"]
    assert rows[3]["worst-case:rho=0.1 kind"] == "lower bound"
    assert rows[3]["lambda_1_sampling_error"] == checkpoint["eigenvalues"][0]["sampling_error"] > 0
    assert rows[3]["trace_sampling_error"] == checkpoint["trace"]["sampling_error"]
    assert rows[3]["gap"] == pytest.approx(checkpoint["accuracy"] - checkpoint["test_accuracy"])


def test_a_training_table_has_the_last_line_of_each_run() -> None:
    rows = training_findings(epochs=4, seeds=2).table()
    assert [row["epoch"] for row in rows] == [4] * 6
    assert [row["seed"] for row in rows] == [0, 1] * 3


def test_reading_and_drawing_findings_imports_no_torch(tmp_path: Path) -> None:
    save_findings(probe_findings(methods=("sam",), seeds=1, surface=7), tmp_path)
    program = (
        "import sys\n"
        "from landscape import load_findings\n"
        "from landscape.report import write_report\n"
        f"findings = load_findings({str(tmp_path)!r})\n"
        f"write_report(findings, {str(tmp_path / 'report.html')!r})\n"
        "findings.show()\n"
        "assert 'torch' not in sys.modules, 'torch was imported'\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_printing_findings_says_what_they_are_and_not_their_numbers():
    entries = [{"id": f"c{i}", "label": f"net {i}"} for i in range(5)]
    findings = Findings({"checkpoints": entries}, {"line_c0_t": np.arange(1000.0)})
    assert repr(findings) == (
        "<Findings of net 0, net 1, net 2, ...: 1 arrays; .table(), .show(), save_findings>"
    )
