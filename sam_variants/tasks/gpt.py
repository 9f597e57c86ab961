"""gpt-mini: a small decoder of characters."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .shapes import num_tokens
from .task import Task
from .transformer import Block, check_heads, start_linear


class GPT(nn.Module):
    """Token and position embeddings, causal pre-norm blocks, norm, and the token embedding again.

    (n, T) int64 with T <= context -> logits (n, T, V). Residual projections start smaller by
    1 / sqrt(2 depth) (Radford et al. 2019).
    """

    def __init__(self, context: int, vocabulary: int, *, dim: int, depth: int, heads: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, dim)
        self.positions = nn.Embedding(context, dim)
        self.blocks = nn.Sequential(*(Block(dim, heads, causal=True) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, vocabulary, bias=False)
        self.head.weight = self.tokens.weight  # tied: one parameter under two names
        start_linear(self)
        for block in self.blocks:
            assert isinstance(block, Block)
            for projection in (block.attention.out, block.contract):
                nn.init.normal_(projection.weight, std=0.02 / math.sqrt(2 * depth))

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.blocks(self.tokens(tokens) + self.positions(places))
        return self.head(self.norm(x))  # type: ignore[no-any-return]


def gpt(task: Task, *, dim: int = 192, depth: int = 6, heads: int = 6) -> nn.Module:
    """GPT of width 192, 6 blocks and 6 heads (minGPT's gpt-mini), without dropout.

    depth (12 dim^2 + 13 dim) + (V + context + 2) dim parameters: 2.70 million on python-docs.

    Source: A. Radford et al., "Language Models are Unsupervised Multitask Learners" (2019).
    """
    context, vocabulary = num_tokens(task, "gpt-mini")
    check_heads("gpt-mini", dim, heads)
    return GPT(context, vocabulary, dim=dim, depth=depth, heads=heads)
