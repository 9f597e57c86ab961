"""vit-tiny: a vision transformer on images, and on signals."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .shapes import image_shape, signal_shape
from .task import Task
from .transformer import Block, check_heads, start_linear


class VisionTransformer(nn.Module):
    """Patches -> linear embedding, class token, learned positions -> pre-norm blocks -> head.

    (n, c, H, W) or (n, c, length) -> logits (n, C), read off the class token.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        num_classes: int,
        *,
        dim: int,
        depth: int,
        heads: int,
        patch: int,
    ) -> None:
        super().__init__()
        channels, *sides = shape
        convolution = nn.Conv2d if len(sides) == 2 else nn.Conv1d
        self.embed = convolution(channels, dim, patch, stride=patch)
        num_patches = 1
        for side in sides:
            num_patches *= side // patch
        self.class_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.positions = nn.Parameter(torch.zeros(1, num_patches + 1, dim))
        self.blocks = nn.Sequential(*(Block(dim, heads, causal=False) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_classes)
        start_linear(self)
        nn.init.normal_(self.class_token, std=0.02)
        nn.init.normal_(self.positions, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.embed(x).flatten(2).transpose(1, 2)  # (n, patches, dim)
        x = torch.cat([self.class_token.expand(len(patches), -1, -1), patches], 1) + self.positions
        return self.head(self.norm(self.blocks(x))[:, 0])  # type: ignore[no-any-return]


def vit(
    task: Task, *, dim: int = 192, depth: int = 12, heads: int = 3, patch: int | None = None
) -> nn.Module:
    """ViT-Tiny on small images (patches 4 x 4) or signals (patches of 5 points).

    5,362,762 parameters on CIFAR-10. Without `patch`, the side is the largest divisor of all sides
    that is at most 4 on images (2 under 16 pixels, so that some patches remain), 5 on signals. No
    dropout: the loss is a function of the weights.

    Source: A. Dosovitskiy et al., "An Image is Worth 16x16 Words" (2021); the width 192, 3 heads,
    12 blocks are DeiT-Tiny's, H. Touvron et al. (2021), table 1.

    Raises:
        ValueError: samples that are no images or signals, or sides that the patch does not divide.
    """
    shape: tuple[int, ...]
    if len(task.input_shape) == 2 and task.kind != "language":
        shape = signal_shape(task, "vit-tiny")
        largest = 5
    else:
        shape = image_shape(task, "vit-tiny")
        largest = 4 if min(shape[1:]) >= 16 else 2
    check_heads("vit-tiny", dim, heads)
    sides = shape[1:]
    if patch is None:
        patch = max(p for p in range(1, largest + 1) if all(side % p == 0 for side in sides))
    if any(side % patch for side in sides):
        raise ValueError(f"model vit-tiny: patch {patch} does not divide samples of shape {shape}")
    return VisionTransformer(
        shape, task.num_classes, dim=dim, depth=depth, heads=heads, patch=patch
    )
