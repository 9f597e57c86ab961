import pytest
import torch

from landscape.sharpness.ball import BALLS, L2Ball, LinfBall, length


def test_the_l2_projection_is_the_nearest_point_of_the_ball():
    ball = L2Ball(2.0)
    inside = torch.tensor([1.0, -1.0], dtype=torch.float64)
    outside = torch.tensor([3.0, 4.0], dtype=torch.float64)
    assert torch.equal(ball.project(inside), inside)
    torch.testing.assert_close(ball.project(outside), torch.tensor([1.2, 1.6]).double())


def test_the_box_projection_clips_each_coordinate():
    e = torch.tensor([0.2, -3.0, 0.5])
    assert torch.equal(LinfBall(0.5).project(e), torch.tensor([0.2, -0.5, 0.5]))


@pytest.mark.parametrize("norm", BALLS)
def test_no_point_of_the_unit_ball_goes_further_along_v_than_the_steepest(norm):
    ball = BALLS[norm](1.0)
    generator = torch.Generator().manual_seed(3)
    v = torch.randn(7, generator=generator, dtype=torch.float64)
    best = float(v @ ball.steepest(v))
    dual = {"l2": float(v.norm()), "linf": float(v.abs().sum())}[norm]
    assert best == pytest.approx(dual)
    for _ in range(200):
        u = torch.randn(7, generator=generator, dtype=torch.float64)
        assert float(v @ u) / ball.norm(u) <= best + 1e-12


@pytest.mark.parametrize("norm", BALLS)
def test_a_zero_vector_has_no_steepest_direction_and_divides_by_nothing(norm):
    assert torch.equal(BALLS[norm](1.0).steepest(torch.zeros(3)), torch.zeros(3))


@pytest.mark.parametrize("norm", BALLS)
def test_random_points_lie_in_the_ball_and_depend_on_the_generator_alone(norm):
    ball = BALLS[norm](0.3)
    like = torch.zeros(50, dtype=torch.float32)
    points = [ball.random(like, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(points[0], points[1])
    assert not torch.equal(points[0], points[2])
    assert points[0].dtype == torch.float32
    assert ball.norm(points[0]) <= 0.3 * (1 + 1e-6)
    if norm == "l2":
        assert ball.norm(points[0]) == pytest.approx(0.3, rel=1e-6)


def test_random_points_have_no_preferred_sign():
    for ball in (L2Ball(1.0), LinfBall(1.0)):
        point = ball.random(torch.zeros(20_000), torch.Generator().manual_seed(0))
        spread = float(point.std()) / 20_000**0.5
        assert abs(float(point.mean())) < 4 * spread


def test_length_of_a_float32_vector_is_summed_in_float64():
    v = torch.full((3_000_000,), 0.1)
    assert length(v) == pytest.approx(float(v[0]) * 3_000_000**0.5, rel=1e-10)
