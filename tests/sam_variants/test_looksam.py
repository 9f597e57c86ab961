import pytest
import torch
from torch import nn

from sam_variants import SAM, AELookSAM, Every, LookSAM
from sam_variants.training.closure import batch_closure
from tests.references import HeavyBall, Quadratic, coupled_matrix, unit

START = [1.0, -2.0, 0.5, 3.0]


def sgd(parameters, **options):
    return torch.optim.SGD(parameters, **{"lr": 0.1, **options})


def steps(rule, q, num, **options):
    optimizer = rule(sgd(q.parameters, momentum=0.9), **options)
    for _ in range(num):
        optimizer.step(q.closure)
    return q.x


def problem(sizes=(1, 3)):
    return Quadratic(coupled_matrix(), START, sizes=list(sizes))


@pytest.mark.parametrize("per", ["all", "tensor"])
def test_twenty_steps_follow_the_equations_on_coupled_coordinates(per):
    h, rho, k, alpha = coupled_matrix(), 0.4, 3, 0.7
    q = problem((1, 3))
    x, base, v = q.x, HeavyBall(lr=0.2, momentum=0.9, weight_decay=0.05), None
    blocks = [slice(0, 4)] if per == "all" else [slice(0, 1), slice(1, 4)]
    optimizer = LookSAM(
        sgd(q.parameters, lr=0.2, momentum=0.9, weight_decay=0.05),
        rho=rho,
        every=k,
        alpha=alpha,
        per=per,
    )
    for t in range(20):
        g = h @ x
        if t % k == 0:
            step = h @ (x + rho * unit(g))
            v = torch.zeros(4, dtype=torch.float64)
            for b in blocks:
                rest = step[b] - (step[b] @ g[b]) / (g[b] @ g[b]) * g[b]
                if rest.numel() > 1:  # in one dimension nothing is orthogonal
                    v[b] = unit(rest)
        else:
            step = g.clone()
            for b in blocks:
                step[b] += alpha * g[b].norm() * v[b]
        x = base(x, step)
        optimizer.step(q.closure)
        torch.testing.assert_close(q.x, x, rtol=1e-10, atol=1e-10)


def test_every_one_is_sam_bit_for_bit():
    assert torch.equal(
        steps(LookSAM, problem(), 10, rho=0.3, every=1), steps(SAM, problem(), 10, rho=0.3)
    )


def test_alpha_zero_is_sam_every_kth_step_and_the_base_between():
    assert torch.equal(
        steps(LookSAM, problem(), 12, rho=0.3, every=4, alpha=0.0),
        steps(SAM, problem(), 12, rho=0.3, when=Every(4)),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_stored_direction_is_a_unit_vector_orthogonal_to_the_gradient_of_its_step(dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3)).to(dtype)
    x, y = torch.randn(32, 6, dtype=dtype), torch.randint(3, (32,))
    optimizer = LookSAM(sgd(model.parameters()), rho=0.1, every=5)
    closure = batch_closure(model, nn.functional.cross_entropy, x, y)
    grads = []

    def watched(request):
        loss = closure(request)
        grads.append(torch.cat([p.grad.reshape(-1).clone() for p in model.parameters()]))
        return loss

    optimizer.step(watched)
    v = torch.cat([t.reshape(-1) for t in optimizer.recall("v")])
    assert v.norm().item() == pytest.approx(1.0, rel=1e-5)
    assert abs((v @ grads[0] / grads[0].norm()).item()) < (
        1e-4 if dtype == torch.float32 else 1e-10
    )
    assert (v @ grads[1]).item() > 0
    assert not any(t.requires_grad for t in optimizer.recall("v"))


def test_the_direction_survives_optimizer_steps_and_scales_with_the_current_gradient():
    q = problem()
    optimizer = LookSAM(sgd(q.parameters, lr=1.0), rho=0.3, every=100, alpha=0.7)
    optimizer.step(q.closure)
    v = torch.cat([t.clone() for t in optimizer.recall("v")])
    for scale in (1.0, 1e-3):
        with torch.no_grad():
            for p in q.parameters:
                p.mul_(scale)
        x = q.x
        g = q.gradient(x)
        optimizer.step(q.closure)
        torch.testing.assert_close(x - q.x, g + 0.7 * g.norm() * v, rtol=1e-12, atol=1e-14)
        assert torch.equal(torch.cat(list(optimizer.recall("v"))), v)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("per", ["all", "tensor"])
def test_rho_zero_leaves_exactly_nothing_to_reuse(dtype, per):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3)).to(dtype)
    x, y = torch.randn(32, 6, dtype=dtype), torch.randint(3, (32,))
    optimizer = LookSAM(sgd(model.parameters()), rho=0.0, per=per)
    optimizer.step(batch_closure(model, nn.functional.cross_entropy, x, y))
    assert all(torch.equal(t, torch.zeros_like(t)) for t in optimizer.recall("v"))


@pytest.mark.parametrize("per", ["all", "tensor"])
def test_in_one_dimension_nothing_is_orthogonal_so_reuse_steps_are_plain(per):
    # 0.1 and 0.3 have no exact binary form: what is left of g_v is rounding, and must not become v.
    q = Quadratic([[0.3]], [0.1])
    optimizer = LookSAM(sgd(q.parameters, lr=1.0), rho=0.7, every=5, alpha=0.9, per=per)
    optimizer.step(q.closure)
    x = q.x
    optimizer.step(q.closure)
    assert torch.equal(q.x, x - 0.3 * x)


def test_a_parallel_float32_gradient_leaves_only_noise_and_the_guard_removes_it():
    torch.manual_seed(0)
    x = torch.randn(1000)
    # L = |w|^2/2: the gradient at w + rho hat(w) is parallel to w up to float32 rounding.
    w = nn.Parameter(x)
    optimizer = LookSAM(sgd([w], lr=0.1), rho=0.3)

    def closure():
        optimizer.zero_grad()
        loss = 0.5 * w.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert torch.equal(optimizer.recall("v").tensors[0], torch.zeros(1000))


def test_before_the_first_sam_step_the_gradient_is_plain():
    class Third(Every):
        def decide(self, *, step, **_):
            return step == 2

    q, plain = problem(), problem()
    optimizer = LookSAM(sgd(q.parameters), rho=0.3, when=Third(5))
    reference = torch.optim.SGD(plain.parameters, lr=0.1)
    for _ in range(2):
        optimizer.step(q.closure)
        plain.closure()
        reference.step()
    assert torch.equal(q.x, plain.x)
    assert optimizer.recall("v") is None


def test_mean_passes_are_one_and_one_over_k():
    q = problem()
    optimizer = LookSAM(sgd(q.parameters), every=4)
    for _ in range(20):
        optimizer.step(q.closure)
    assert optimizer.counts.gradients == 20 * (1 + 1 / 4)
    assert optimizer.counts.perturbed == 5
    assert len(q.visited) == 25


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "every must be a whole number >= 1, got 0"),
        ({"alpha": -0.1}, "alpha must be a number >= 0"),
        ({"per": "layer"}, "per must be one of all, tensor"),
        ({"ascent": "local"}, "keeps the clean gradient"),
    ],
)
def test_options_out_of_range_raise_with_the_range(options, message):
    with pytest.raises(ValueError, match=message):
        LookSAM(sgd([nn.Parameter(torch.ones(1))]), **options)


def test_ae_looksam_is_looksam_whose_policy_is_the_adaptive_threshold():
    optimizer = AELookSAM(sgd(problem().parameters), total_steps=10)
    assert isinstance(optimizer, LookSAM)
    assert optimizer.policy.word == "ae"
    assert optimizer.alpha == 0.8
