"""A small network, its state, and whether two networks hold the same numbers."""

import torch
from torch import nn


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))


def state(seed=0, prefix=""):
    return {prefix + name: tensor for name, tensor in net(seed).state_dict().items()}


def same_weights(a, b):
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


def saved(folder, content, name="net.pt", **options):
    path = folder / name
    torch.save(content, path, **options)
    return path
