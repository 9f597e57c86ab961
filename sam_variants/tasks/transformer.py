"""The pre-norm transformer block that vit-tiny and gpt-mini are made of."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


class Attention(nn.Module):
    """softmax(Q K^T / sqrt(d)) V over several heads, (n, T, dim) -> (n, T, dim).

    Written out: torch's fused attention has no second derivative, and a Hessian needs one.
    """

    def __init__(self, dim: int, heads: int, *, causal: bool) -> None:
        super().__init__()
        self.heads = heads
        self.causal = causal
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        num, length, dim = x.shape
        qkv = self.qkv(x).view(num, length, 3, self.heads, dim // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (n, heads, T, d)
        scores = query @ key.transpose(-2, -1) / math.sqrt(dim // self.heads)
        if self.causal:
            future = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
            scores = scores.masked_fill(future, -math.inf)
        mixed = scores.softmax(-1) @ value
        return self.out(mixed.transpose(1, 2).reshape(num, length, dim))  # type: ignore[no-any-return]


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)) with 4 dim hidden units and GELU.

    12 dim^2 + 13 dim parameters.
    """

    def __init__(self, dim: int, heads: int, *, causal: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attention = Attention(dim, heads, causal=causal)
        self.norm2 = nn.LayerNorm(dim)
        self.expand = nn.Linear(dim, 4 * dim)
        self.contract = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.contract(functional.gelu(self.expand(self.norm2(x))))  # type: ignore[no-any-return]


def check_heads(model: str, dim: int, heads: int) -> None:
    """Raises ValueError unless every head gets the same whole share of the width."""
    if dim % heads:
        raise ValueError(f"model {model}: dim {dim} is not a multiple of heads {heads}")


def start_linear(model: nn.Module) -> None:
    """Draws linear and embedding weights from N(0, 0.02^2), biases 0 (Radford et al. 2019)."""
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
