import pytest
import torch
from torch import nn
from torch.nn import functional

from sam_variants.tasks.transformer import Attention


class FusedAttention(Attention):
    """Wrong on purpose: the same numbers by torch's fused kernel."""

    def forward(self, x):
        num, length, dim = x.shape
        qkv = self.qkv(x).view(num, length, 3, self.heads, dim // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        with nn.attention.sdpa_kernel(nn.attention.SDPBackend.FLASH_ATTENTION):
            mixed = functional.scaled_dot_product_attention(
                query, key, value, is_causal=self.causal
            )
        return self.out(mixed.transpose(1, 2).reshape(num, length, dim))


def test_trap_14_fused_attention_has_no_second_derivative():
    def check(attention):
        generator = torch.Generator().manual_seed(0)
        layer = attention(8, 2, causal=True)
        x = torch.randn(2, 5, 8, generator=generator)
        parameters = list(layer.parameters())
        gradient = torch.autograd.grad(layer(x).square().mean(), parameters, create_graph=True)
        try:
            product = torch.autograd.grad(sum(g.sum() for g in gradient), parameters)
        except RuntimeError as error:
            raise AssertionError(f"no second derivative: {error}") from error
        assert all(bool(torch.isfinite(p).all()) for p in product)
        assert float(product[0].abs().max()) > 0

    check(Attention)
    with pytest.raises(AssertionError, match="no second derivative"):
        check(FusedAttention)
