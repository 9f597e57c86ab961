import copy

import pytest
import torch
from torch import nn

from sam_variants import ERM
from sam_variants.training.closure import batch_closure
from tests.references import Quadratic, coupled_matrix


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 3))


@pytest.mark.parametrize(
    "base",
    [
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
        lambda p: torch.optim.AdamW(p, lr=0.01),
    ],
)
def test_erm_is_the_base_optimizer_bit_for_bit(base):
    plain = net()
    wrapped = copy.deepcopy(plain)
    x, y = torch.randn(16, 4), torch.randint(3, (16,))
    optimizer, reference = ERM(base(wrapped.parameters())), base(plain.parameters())
    for step in range(5):
        torch.manual_seed(step)
        reference.zero_grad()
        expected = nn.functional.cross_entropy(plain(x), y)
        expected.backward()
        reference.step()
        torch.manual_seed(step)
        loss = optimizer.step(batch_closure(wrapped, nn.functional.cross_entropy, x, y))
        assert torch.equal(loss, expected.detach())
    for (name, a), (_, b) in zip(
        plain.state_dict().items(), wrapped.state_dict().items(), strict=True
    ):
        assert torch.equal(a, b), name
    assert optimizer.counts.gradients == 5.0
    assert optimizer.counts.perturbed == 0


def test_erm_reports_the_gradient_norm_of_its_step():
    q = Quadratic(coupled_matrix(), [1.0, -2.0, 0.5, 3.0])
    expected = q.gradient(q.x).norm()
    optimizer = ERM(torch.optim.SGD(q.parameters, lr=0.1))
    optimizer.step(q.closure)
    assert optimizer.last.gradient_norm.item() == pytest.approx(expected.item())
    assert optimizer.last.rho is None
    assert not optimizer.last.perturbed
