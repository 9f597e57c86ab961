"""digits and breast-cancer: small real data sets that scikit-learn ships."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer, load_digits

from .splitting import stratified_split
from .task import Request, Split, Task

_TEST_SHARE = 0.2


def digits(request: Request) -> Task:
    """1,797 handwritten digits as images (1, 8, 8), stratified into 1,437 and 360.

    Pixels are standardised by the one mean and deviation of the training split: many are constant,
    so that a deviation a pixel would be zero.

    Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI (1998).
    """
    images, labels = load_digits(return_X_y=True)
    train, test = _stratified(labels, request)
    mean, deviation = images[train].mean(), images[train].std()
    images = ((images - mean) / deviation).reshape(-1, 1, 8, 8)
    return _task(request, images, labels, train, test, "handwritten 8 x 8 digits, 10 classes")


def breast_cancer(request: Request) -> Task:
    """569 cases of 30 measurements (30,), benign or malignant, stratified into 455 and 114.

    Each measurement is standardised by its mean and deviation on the training split.

    Source: W. Wolberg et al., "Breast Cancer Wisconsin (Diagnostic)", UCI (1995).
    """
    cases, labels = load_breast_cancer(return_X_y=True)
    train, test = _stratified(labels, request)
    cases = (cases - cases[train].mean(0)) / cases[train].std(0)
    return _task(request, cases, labels, train, test, "breast cancer cases, 2 classes")


def _stratified(
    labels: NDArray[np.int64], request: Request
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    num_test = int(np.ceil(_TEST_SHARE * len(labels)))
    return stratified_split(labels, num_test, seed=request.data_seed)


def _task(
    request: Request,
    inputs: NDArray[np.float64],
    labels: NDArray[np.int64],
    train: NDArray[np.int64],
    test: NDArray[np.int64],
    description: str,
) -> Task:
    samples = torch.from_numpy(inputs.astype(np.float32))
    targets = torch.from_numpy(labels.astype(np.int64))
    return Task(
        name=request.name,
        kind="classification",
        train=Split(samples[train], targets[train]),
        test=Split(samples[test], targets[test]),
        num_classes=int(labels.max()) + 1,
        input_shape=tuple(samples.shape[1:]),
        description=f"{description}, data seed {request.data_seed}",
    )
