import json
import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn

from sam_variants.tasks import build_model, build_task, run_factory

GOOD = """
import numpy as np
import torch
from torch import nn

print("imported")

def data():
    print("made")
    x = np.random.default_rng(0).standard_normal((20, 6))
    return (x, np.arange(20) % 2), (torch.zeros(4, 6), [0, 1, 0, 1])

class Pairs(torch.utils.data.Dataset):
    def __len__(self):
        return 8
    def __getitem__(self, index):
        return torch.full((6,), float(index)), index % 2

def datasets():
    return Pairs(), Pairs()

def net(width=3):
    return nn.Sequential(nn.Linear(6, width), nn.Dropout(0.5), nn.Linear(width, 2))
"""


@pytest.fixture
def user_file(tmp_path):
    def write(source, name="user.py"):
        path = tmp_path / name
        path.write_text(textwrap.dedent(source), encoding="utf-8")
        return path

    return write


def line_of(path, text):
    lines = path.read_text(encoding="utf-8").splitlines()
    return next(i for i, line in enumerate(lines, 1) if text in line)


def test_data_and_model_of_a_file_serve_and_stdout_stays_clean(user_file, capsys):
    path = user_file(GOOD)
    task = build_task(f"{path}:data", allow_code=True)
    assert task.train.inputs.shape == (20, 6)
    assert task.test.targets.tolist() == [0, 1, 0, 1]
    model = build_model(f"{path}:net", task, seed=0, allow_code=True, width=5)
    assert model(task.train.inputs).shape == (20, 2)
    assert all(module.training for module in model.modules())
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "made" in captured.err


def test_datasets_are_stacked(user_file):
    task = build_task(f"{user_file(GOOD)}:datasets", allow_code=True)
    assert task.train.inputs[:, 0].tolist() == list(range(8))
    assert task.train.targets.tolist() == [0, 1] * 4


def test_the_weights_of_a_users_model_are_a_function_of_the_seed(user_file):
    path = user_file(GOOD)
    task = build_task(f"{path}:data", allow_code=True)
    first, same, other = (
        build_model(f"{path}:net", task, seed=seed, allow_code=True)[0].weight for seed in (1, 1, 2)
    )
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_a_file_is_not_run_without_allow_code(user_file, tmp_path):
    path = user_file(f"open({str(tmp_path / 'canary')!r}, 'w')\ndef data(): pass\n")
    with pytest.raises(ValueError, match="give --allow-code"):
        build_task(f"{path}:data")
    assert not (tmp_path / "canary").exists()


def test_the_current_folder_is_not_searched_and_sys_path_stays(user_file, tmp_path, monkeypatch):
    path = user_file(GOOD, name="users_package_here.py")
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    with pytest.raises(ValueError, match="Python finds no module 'users_package_here'"):
        build_task("users_package_here:data")
    build_task(f"{path}:data", allow_code=True)
    assert sys.path == before
    assert "users_package_here" not in sys.modules


def test_an_importable_package_needs_no_permission(user_file, tmp_path, monkeypatch):
    (tmp_path / "users_pkg_a").mkdir()
    user_file(GOOD, name="users_pkg_a/nets.py")
    monkeypatch.syspath_prepend(tmp_path)
    task = build_task("users_pkg_a.nets:data")
    assert task.num_classes == 2
    with pytest.raises(ValueError, match=r"Python finds no module 'users_pkg_a\.netz'"):
        build_task("users_pkg_a.netz:data")


@pytest.mark.parametrize(
    ("body", "marker", "message"),
    [
        (
            "def data():\n    raise RuntimeError('no\\nluck')  # here\n",
            "# here",
            "RuntimeError: no luck",
        ),
        ("def data():\n    return {}['k']  # here\n", "# here", "KeyError: 'k'"),
        ("import sys\ndef data():\n    sys.exit(3)  # here\n", "# here", "SystemExit: 3"),
        ("x = 1 / 0  # here\ndef data(): pass\n", "# here", "ZeroDivisionError"),
        ("import users_absent_module  # here\ndef data(): pass\n", "# here", "ModuleNotFoundError"),
        ("def data(:  # here\n    pass\n", "# here", "SyntaxError"),
        (
            "import torch\ndef data():\n    return torch.zeros(2) @ torch.zeros(3)  # here\n",
            "# here",
            "RuntimeError",
        ),
        (
            "import json\ndef data():\n    return json.loads('{')  # here\n",
            "# here",
            "JSONDecodeError",
        ),
        ("def data():  # here\n    return None\n", "# here", "returned None; expected training"),
        ("def data():  # here\n    return 1, 2, 3\n", "# here", "returned a tuple of 3"),
        (
            "def data():  # here\n    return [1], [2]\n",
            "# here",
            "a list of 1 as its training data",
        ),
        (
            "import numpy as np\ndef data():  # here\n"
            "    return (np.zeros((4, 2)), [0, 1, 0, 5]), (np.zeros((2, 2)), [0, 9])\n",
            "# here",
            "label 9 of y_test is out of range",
        ),
        (
            "def data(size):  # here\n    return None\n",
            "# here",
            "missing a required argument: 'size'",
        ),
    ],
)
def test_what_fails_in_a_users_file_is_told_by_its_own_line(user_file, body, marker, message):
    path = user_file(body)
    with pytest.raises(ValueError, match=message) as caught:
        build_task(f"{path}:data", allow_code=True)
    text = str(caught.value)
    assert f"{path}:{line_of(path, marker)}" in text
    assert "\n" not in text


def test_a_failing_dataset_names_the_sample(user_file):
    body = """
    from torch.utils.data import Dataset
    class Bad(Dataset):
        def __len__(self): return 5
        def __getitem__(self, i):
            if i == 3: raise OSError("gone")
            return [0.0, 1.0], 0
    def data():
        return Bad(), Bad()
    """
    with pytest.raises(ValueError, match="training Dataset failed at sample 3: OSError: gone"):
        build_task(f"{user_file(body)}:data", allow_code=True)


def test_a_whole_task_may_be_returned(user_file):
    body = """
    import torch
    from sam_variants.tasks import Split, Task
    def data():
        split = Split(torch.zeros(4, 3, dtype=torch.int64), torch.ones(4, 3, dtype=torch.int64))
        return Task("mine", "language", split, split, 5, (3,), "my tokens")
    """
    task = build_task(f"{user_file(body)}:data", allow_code=True, test_size=2)
    assert (task.kind, task.num_classes, len(task.test)) == ("language", 5, 2)
    assert len(task.sha256) == 64


def test_a_missing_file_or_function_is_named(user_file):
    path = user_file(GOOD)
    with pytest.raises(FileNotFoundError, match=r"nothing\.py does not exist"):
        build_task("nothing.py:data", allow_code=True)
    with pytest.raises(ValueError, match=r"has no function 'date' \(it has: .*data"):
        build_task(f"{path}:date", allow_code=True)
    with pytest.raises(ValueError, match="is a module, not a function"):
        build_task(f"{path}:torch", allow_code=True)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("def net(): return 3\n", r"user\.py:1 returned a int, not a torch\.nn\.Module"),
        ("from torch import nn\ndef net(): return nn.Linear\n", "returned a type, not"),
        ("from torch import nn\ndef net(): return nn.Linear(6, 3)\n", r"needs \(2, 2\)"),
        ("from torch import nn\ndef net(): return nn.Linear(5, 2)\n", r"inputs of shape \(2, 6\)"),
        (
            "from torch import nn\ndef net(): return nn.LSTM(6, 2)\n",
            "returns a tuple, not a tensor",
        ),
    ],
)
def test_a_users_model_is_checked_before_the_long_run(user_file, body, message):
    task = build_task(f"{user_file(GOOD, 'data.py')}:data", allow_code=True)
    with pytest.raises(ValueError, match=message):
        build_model(f"{user_file(body)}:net", task, seed=0, allow_code=True)


def test_a_wrong_model_argument_is_told_with_the_definition(user_file):
    path = user_file(GOOD)
    task = build_task(f"{path}:data", allow_code=True)
    message = rf"user\.py:{line_of(path, 'def net')} cannot be called with depth=4"
    with pytest.raises(ValueError, match=message):
        build_model(f"{path}:net", task, seed=0, allow_code=True, depth=4)


def test_an_edited_file_is_run_anew(user_file):
    assert run_factory(f"{user_file('def f(): return 1')}:f", allow_code=True) == 1
    assert run_factory(f"{user_file('def f(): return 2')}:f", allow_code=True) == 2


def test_a_classmethod_and_a_class_are_factories(user_file):
    path = user_file("class Net:\n    @classmethod\n    def build(cls, n): return n + 1\n")
    assert run_factory(f"{path}:Net.build", allow_code=True, n=2) == 3
    assert isinstance(run_factory("torch.nn:Linear", in_features=2, out_features=3), nn.Linear)


def test_prints_do_not_reach_stdout_in_a_new_process(user_file):
    path = user_file(GOOD)
    script = (
        "import json, sys; from sam_variants.tasks import build_task; "
        f"task = build_task({str(path) + ':data'!r}, allow_code=True); "
        "print(json.dumps(len(task.train)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == 20
