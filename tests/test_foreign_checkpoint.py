"""A checkpoint that nobody here made: a published face detector, read, run and measured."""

import json
import subprocess
import sys

import pytest
import torch

# P. Zhang's RNet (100,178 parameters, two heads), as facenet-pytorch publishes it in torch's format
# of before 1.6, and the two hundred 25 x 25 patches of scikit-image, a hundred faces first. Neither
# package is imported: one for its weights, the other for its data.
WEIGHTS = "facenet-pytorch==2.6.0"
PATCHES = "scikit-image==0.26.0"

CODE = """
import numpy as np
import torch
from torch import nn
from torch.nn import functional


class RNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.prelu1 = nn.Conv2d(3, 28, 3), nn.PReLU(28)
        self.conv2, self.prelu2 = nn.Conv2d(28, 48, 3), nn.PReLU(48)
        self.conv3, self.prelu3 = nn.Conv2d(48, 64, 2), nn.PReLU(64)
        self.dense4, self.prelu4 = nn.Linear(576, 128), nn.PReLU(128)
        self.dense5_1, self.dense5_2 = nn.Linear(128, 2), nn.Linear(128, 4)

    def forward(self, x):
        for conv, prelu in ((self.conv1, self.prelu1), (self.conv2, self.prelu2)):
            x = functional.max_pool2d(prelu(conv(x)), 3, 2, ceil_mode=True)
        x = self.prelu3(self.conv3(x)).transpose(1, 3).flatten(1)  # width before height
        x = self.prelu4(self.dense4(x))
        return {"box": self.dense5_2(x), "face": self.dense5_1(x)}


class FaceOrNot(RNet):
    def forward(self, x):
        return super().forward(x)["face"]


def detector(head="both"):
    print("built")
    return RNet() if head == "both" else FaceOrNot()


def patches(file):
    gray = torch.from_numpy(np.load(file)).float()[:, None]
    small = functional.interpolate(gray, size=(24, 24), mode="bilinear")
    return ((255 * small - 127.5) / 128).expand(-1, 3, -1, -1), np.repeat([1, 0], 100)


def face_loss(output, target):
    return functional.cross_entropy(output["face"], target)
"""


def install(package, folder, cannot_run):
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder),
         "--disable-pip-version-check", package],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        cannot_run(f"pip cannot install {package}: {last}")


def by_autograd(weights, patches):
    """Loss, length of the gradient and largest eigenvalue by power iteration, in float64."""
    names = {}
    exec(CODE, names)
    model = names["FaceOrNot"]()
    model.load_state_dict(torch.load(weights, weights_only=True))
    model.double()
    inputs, labels = names["patches"](patches)
    parameters = [p for name, p in model.named_parameters() if "dense5_2" not in name]
    output = model(inputs.double())
    loss = torch.nn.functional.cross_entropy(output, torch.from_numpy(labels))
    parts = torch.autograd.grad(loss, parameters, create_graph=True)
    gradient = torch.cat([part.reshape(-1) for part in parts])
    vector = gradient.detach() / gradient.detach().norm()
    for _ in range(25):
        products = torch.autograd.grad(gradient, parameters, vector, retain_graph=True)
        product = torch.cat([part.reshape(-1) for part in products])
        value, vector = float(vector @ product), product / product.norm()
    return float(loss.detach()), float(gradient.detach().norm()), value


@pytest.mark.slow
def test_a_face_detector_of_others_is_read_run_and_measured(tmp_path, cannot_run):
    install(WEIGHTS, tmp_path / "weights", cannot_run)
    install(PATCHES, tmp_path / "data", cannot_run)
    weights = tmp_path / "weights" / "facenet_pytorch" / "data" / "rnet.pt"
    patches = tmp_path / "data" / "skimage" / "data" / "lfw_subset.npy"
    (tmp_path / "mine.py").write_text(CODE)

    def probe(name, *more):
        out = tmp_path / name
        done = subprocess.run(
            [sys.executable, "-m", "landscape_cli.probe", str(weights), "--allow-code",
             "--model", "./mine.py:detector", "--data", "./mine.py:patches",
             "--data-arg", f"file={patches}", "--quick", "--eigenvalues", "1", "--ends", "top",
             "--surface", "0", "--line", "0", "--density-runs", "0", "--trace-probes", "0",
             "--metrics", "lambda-max,gradient-norm,sam", "--out", str(out), "--json", *more],
            cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "built" in done.stderr
        document = json.loads(done.stdout)
        assert (out / "report.html").exists()
        (entry,) = document["checkpoints"]
        return document["data"], entry

    # At radius 0.01 the slope outweighs the curvature along it, at 0.05 it does not.
    face = ["--loss", "cross-entropy", "--model-arg", "head=face", "--rho", "0.01"]
    data, one_head = probe("one", *face)
    assert one_head["load_report"]["matched"] == 16
    assert one_head["num_parameters"] == 100_178
    assert one_head["accuracy"] == 1.0
    assert data["num_samples"] == 200
    (top,) = one_head["eigenvalues"]
    assert top["confirmed"]
    loss, slope, curvature = by_autograd(weights, patches)
    assert one_head["loss"] == pytest.approx(loss, rel=1e-5)
    assert one_head["gradient_norm"] == pytest.approx(slope, rel=1e-4)
    assert top["value"] == pytest.approx(curvature, rel=1e-3)
    assert top["value"] == pytest.approx(32.9, abs=0.1)  # that the two read the same numbers
    assert slope * 0.01 > curvature * 0.01**2 / 2
    assert any("the gradient is not small" in warning for warning in one_head["warnings"])

    data, both = probe("both", "--loss", "./mine.py:face_loss")
    assert both["accuracy"] is None
    assert both["loss"] == pytest.approx(one_head["loss"], rel=1e-5)
    assert both["eigenvalues"][0]["value"] == pytest.approx(top["value"], rel=2e-3)
    assert data["loss"].startswith("./mine.py:face_loss at ")
    # The loss picks one head: the other's four outputs do not move it.
    assert any("dense5_2" in warning for warning in both["warnings"])
