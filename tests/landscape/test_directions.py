import math

import pytest
import torch
from torch import nn

from landscape.directions import (
    between,
    eigenvector_direction,
    filter_blocks,
    filter_normalised,
    gradient_direction,
    layer_normalised,
    orthonormalise,
    plane_through,
    random_directions,
    report_directions,
)
from landscape.objective import Objective
from landscape.parameters import ParameterSpace


class EveryKind(nn.Module):
    """One layer of each kind that has a rule of its own."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.depthwise = nn.Conv2d(4, 4, 3, groups=4)
        self.up = nn.ConvTranspose2d(6, 5, 2)
        self.grouped_up = nn.ConvTranspose2d(6, 4, 2, groups=2)
        self.embedding = nn.Embedding(7, 3, padding_idx=0)
        self.linear = nn.Linear(5, 4)
        self.batch_norm = nn.BatchNorm2d(4)
        self.layer_norm = nn.LayerNorm((3, 2))  # parameters of two dimensions, yet no filters
        self.lstm = nn.LSTM(3, 2)


@pytest.fixture
def every_kind():
    torch.manual_seed(3)
    model = EveryKind().double()
    with torch.no_grad():
        for norm in (model.batch_norm, model.layer_norm):
            norm.weight.normal_(), norm.bias.normal_()
    space = ParameterSpace.of(model)
    return model, space, space.flatten(dict(model.named_parameters()))


def filters(name, tensor):
    """The filters of a parameter as a list of vectors, written out from what each layer computes:
    a filter is all the weights that feed one output."""
    if name == "up.weight":
        return [tensor[:, o].reshape(-1) for o in range(5)]
    if name == "grouped_up.weight":  # inputs 0-2 feed outputs 0-1, inputs 3-5 feed outputs 2-3
        return [tensor[3 * g : 3 * g + 3, o].reshape(-1) for g in range(2) for o in range(2)]
    return [row.reshape(-1) for row in tensor]


WEIGHTS = [
    *("conv.weight", "depthwise.weight", "up.weight", "grouped_up.weight"),
    *("embedding.weight", "linear.weight", "lstm.weight_ih_l0", "lstm.weight_hh_l0"),
]


@pytest.mark.parametrize("name", WEIGHTS)
def test_each_filter_has_the_networks_norm_and_the_gaussians_direction(every_kind, name):
    model, space, theta = every_kind
    direction = space.unflatten(filter_normalised(space, theta, model=model, seed=5))
    gaussian = torch.randn(space.size, generator=torch.Generator().manual_seed(5)).double()
    raw = space.unflatten(gaussian)
    weight = space.unflatten(theta)
    triples = list(zip(*(filters(name, t[name]) for t in (direction, weight, raw)), strict=True))
    assert len(triples) > 1
    for d, w, g in triples:
        torch.testing.assert_close(d.norm(), w.norm(), rtol=1e-12, atol=0)
        if w.norm() > 0:
            assert float(d @ g / (d.norm() * g.norm())) == pytest.approx(1.0, abs=1e-12)


def test_a_filter_is_what_feeds_one_output_of_a_transposed_convolution(every_kind):
    model, _, _ = every_kind
    layer = model.grouped_up
    inputs = torch.randn(1, 6, 3, 3, dtype=torch.float64)
    blocks = filter_blocks(ParameterSpace.of(model), model)
    view = layer.weight.detach().clone().view(blocks["grouped_up.weight"])
    before = layer(inputs)
    with torch.no_grad():
        view[1, :, 0, :] = 0.0  # group 1, its first output: channel 2
        layer.weight.copy_(view.view(layer.weight.shape))
    changed = (layer(inputs) - before).abs().amax((0, 2, 3)) > 0
    assert changed.tolist() == [False, False, True, False]


def test_biases_and_norm_layers_stay_put_unless_scaled_as_one_vector(every_kind):
    model, space, theta = every_kind
    zero = space.unflatten(filter_normalised(space, theta, model=model, seed=0))
    scaled = space.unflatten(filter_normalised(space, theta, model=model, seed=0, vectors="scaled"))
    weight = space.unflatten(theta)
    others = set(space.names) - set(WEIGHTS)
    assert {"batch_norm.weight", "layer_norm.weight", "layer_norm.bias", "conv.bias"} <= others
    for name in others:
        assert not zero[name].any()
        torch.testing.assert_close(scaled[name].norm(), weight[name].norm(), rtol=1e-12, atol=0)
        assert not torch.allclose(scaled[name].abs(), weight[name].abs())


def test_a_filter_of_norm_zero_gives_zero(every_kind):
    model, space, theta = every_kind
    direction = space.unflatten(filter_normalised(space, theta, model=model, seed=0))
    assert not direction["embedding.weight"][0].any()  # the padding row
    assert direction["embedding.weight"][1:].any(1).all()


def test_layer_normalised_scales_whole_tensors(every_kind):
    model, space, theta = every_kind
    direction = space.unflatten(layer_normalised(space, theta, model=model, seed=5))
    raw = space.unflatten(
        torch.randn(space.size, generator=torch.Generator().manual_seed(5)).double()
    )
    weight = space.unflatten(theta)
    for name in WEIGHTS:
        expected = raw[name] * weight[name].norm() / raw[name].norm()
        torch.testing.assert_close(direction[name], expected, rtol=1e-12, atol=0)
    assert not direction["conv.bias"].any()


def test_a_parametrised_transposed_convolution_keeps_its_rule():
    model = nn.Sequential(
        torch.nn.utils.parametrizations.spectral_norm(nn.ConvTranspose1d(4, 3, 2))
    )
    space = ParameterSpace.of(model)
    assert filter_blocks(space, model)["0.parametrizations.weight.original"] == (1, 4, 3, 2)


def test_tied_and_non_contiguous_weights_count_once():
    model = nn.Sequential(nn.Embedding(6, 4), nn.Linear(4, 6, bias=False))
    model[1].weight = model[0].weight = nn.Parameter(torch.randn(4, 6).T)
    assert not model[0].weight.is_contiguous()
    space = ParameterSpace.of(model)
    theta = space.flatten(dict(model.named_parameters()))
    direction = filter_normalised(space, theta, model=model, seed=1)
    assert direction.shape == (24,)
    rows = direction.view(6, 4).norm(dim=1)
    torch.testing.assert_close(rows, model[0].weight.detach().norm(dim=1))


def test_a_subset_of_the_parameters_gives_a_direction_of_its_size(every_kind):
    model, _, _ = every_kind
    space = ParameterSpace.of(model, "linear.*")
    theta = space.flatten(dict(model.named_parameters()))
    assert filter_normalised(space, theta, model=model, seed=0).shape == (24,)


def test_a_model_of_vectors_alone_has_no_filter_direction():
    model = nn.BatchNorm1d(3)
    space = ParameterSpace.of(model)
    theta = space.flatten(dict(model.named_parameters()))
    with pytest.raises(ValueError, match="the direction is zero"):
        filter_normalised(space, theta, model=model, seed=0)
    assert filter_normalised(space, theta, model=model, seed=0, vectors="scaled").any()


def test_filter_normalised_refuses_another_model_and_an_unknown_word(every_kind):
    model, space, theta = every_kind
    with pytest.raises(ValueError, match=r"the model has no parameter 'conv\.weight'"):
        filter_normalised(space, theta, model=nn.Linear(2, 2), seed=0)
    with pytest.raises(ValueError, match="vectors must be 'zero' or 'scaled', got 'ignore'"):
        filter_normalised(space, theta, model=model, seed=0, vectors="ignore")


def test_random_directions_are_orthonormal_and_seeded():
    theta = torch.zeros(500)
    directions = random_directions(theta, num_directions=3, seed=7)
    torch.testing.assert_close(directions @ directions.T, torch.eye(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(directions, random_directions(theta, num_directions=3, seed=7))
    assert not torch.allclose(directions, random_directions(theta, num_directions=3, seed=8))


def test_a_seed_names_one_direction_in_every_dtype_and_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    single = random_directions(torch.zeros(40), seed=2)
    double = random_directions(torch.zeros(40, dtype=torch.float64), seed=2)
    torch.testing.assert_close(single.double(), double, atol=1e-7, rtol=0)
    assert torch.equal(before, torch.get_rng_state())


def test_random_directions_point_everywhere_alike():
    """Each squared coordinate of a uniform unit vector has mean 1 / P: 4 standard errors."""
    size, runs = 5, 2000
    squares = torch.stack(
        [
            random_directions(torch.zeros(size), num_directions=2, seed=seed) ** 2
            for seed in range(runs)
        ]
    )
    variance = 2 * (size - 1) / (size**2 * (size + 2))
    assert float((squares.mean(0) - 1 / size).abs().max()) < 4 * math.sqrt(variance / runs)


def test_as_many_random_directions_as_parameters_and_no_more():
    basis = random_directions(torch.zeros(4, dtype=torch.float64), num_directions=4, seed=0)
    torch.testing.assert_close(basis.T @ basis, torch.eye(4, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"num_directions must be in \[1, 4\]"):
        random_directions(torch.zeros(4), num_directions=5, seed=0)


def test_orthonormalise_survives_nearly_parallel_vectors_and_refuses_dependent_ones():
    torch.manual_seed(0)
    base = torch.randn(200, dtype=torch.float64)
    near = torch.stack([base, base + 1e-9 * torch.randn(200, dtype=torch.float64)])
    basis = orthonormalise(near)
    torch.testing.assert_close(
        basis @ basis.T, torch.eye(2, dtype=torch.float64), atol=1e-14, rtol=0
    )
    with pytest.raises(ValueError, match="vector 1 lies in the span"):
        orthonormalise(torch.stack([base, -2 * base]))
    with pytest.raises(ValueError, match="vector 0 is zero or not finite"):
        orthonormalise(torch.zeros(1, 3))


def test_the_gradient_direction_is_the_unit_gradient():
    model = nn.Linear(3, 1, bias=False).double()
    inputs, targets = torch.randn(8, 3).double(), torch.randn(8, 1).double()
    objective = Objective(model, nn.functional.mse_loss, [(inputs, targets)])
    weight = model.weight.detach().view(-1)
    gradient = 2 / 8 * inputs.T @ (inputs @ weight - targets.view(-1))
    torch.testing.assert_close(gradient_direction(objective), gradient / gradient.norm())
    minimum = torch.linalg.lstsq(inputs, targets).solution.view(-1)
    inputs.zero_(), targets.zero_()
    flat = Objective(model, nn.functional.mse_loss, [(inputs, targets)])
    with pytest.raises(ValueError, match="it gives no direction"):
        gradient_direction(flat, minimum)


def test_an_eigenvector_and_its_negative_give_one_axis():
    vector = torch.tensor([0.5, -3.0, 1.0])
    expected = -vector / vector.norm()
    torch.testing.assert_close(eigenvector_direction(vector), expected)
    torch.testing.assert_close(eigenvector_direction(-7 * vector), expected)
    with pytest.raises(ValueError, match="it gives no direction"):
        eigenvector_direction(torch.zeros(3))
    with pytest.raises(ValueError, match="must have shape"):
        eigenvector_direction(torch.eye(3))


def test_between_two_points_zero_is_the_first_and_one_the_second():
    start, end = torch.tensor([1.0, 2.0]), torch.tensor([4.0, 6.0])
    assert report_directions([between(start, end)], start).norms == (5.0,)
    torch.testing.assert_close(start + between(start, end), end)
    with pytest.raises(ValueError, match="is zero"):
        between(start, start)
    with pytest.raises(ValueError, match="no points of one parameter space"):
        between(start, torch.zeros(3))


@pytest.mark.parametrize("degrees", [1e-4, 0.5, 60.0, 90.0, 135.0, 179.9999])
def test_the_report_gives_norms_and_the_angle_to_many_digits(degrees):
    radians = math.radians(degrees)
    first = torch.tensor([2.0, 0.0], dtype=torch.float64)
    second = 3 * torch.tensor([math.cos(radians), math.sin(radians)], dtype=torch.float64)
    report = report_directions([first, second], torch.tensor([3.0, 4.0]))
    assert report.angle_degrees == pytest.approx(degrees, rel=1e-9)
    assert report.norms == pytest.approx((2.0, 3.0))
    assert report.parameter_norm == 5.0


def test_filter_normalisation_destroys_angle_and_norm_and_the_report_shows_it(every_kind):
    model, space, theta = every_kind
    pair = [filter_normalised(space, theta, model=model, seed=seed) for seed in (0, 1)]
    report = report_directions(pair, theta)
    cosine = float(pair[0] @ pair[1] / (pair[0].norm() * pair[1].norm()))
    assert report.angle_degrees == pytest.approx(math.degrees(math.acos(cosine)))
    assert abs(report.angle_degrees - 90) > 0.1
    # With the biases at zero both have the norm of the weights, which is less than theta's.
    assert report.norms[0] == pytest.approx(report.norms[1])
    assert report.norms[0] < report.parameter_norm


def test_the_report_refuses_what_is_no_direction():
    theta = torch.ones(3)
    with pytest.raises(ValueError, match=r"direction 2 must have shape \(3,\)"):
        report_directions([theta, torch.ones(4)], theta)
    with pytest.raises(ValueError, match="direction 1 holds numbers that are not finite"):
        report_directions([theta * math.nan], theta)
    with pytest.raises(ValueError, match="direction 1 is zero"):
        report_directions([theta * 0], theta)
    with pytest.raises(ValueError, match="at least one direction"):
        report_directions([], theta)


# -- The plane through three points ---------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_plane_through_three_points_holds_them_where_it_says(dtype):
    points = torch.randn(3, 200, generator=torch.Generator().manual_seed(0), dtype=dtype)
    directions, coordinates = plane_through(*points)
    eps = torch.finfo(dtype).eps
    assert directions.dtype == dtype
    assert coordinates.dtype == torch.float64
    torch.testing.assert_close(
        directions.double() @ directions.double().T,
        torch.eye(2, dtype=torch.float64),
        atol=4 * eps,
        rtol=0,
    )
    found = points[0].double() + coordinates @ directions.double()
    torch.testing.assert_close(found, points.double(), atol=100 * eps, rtol=0)


def test_distances_and_angles_on_the_plane_are_those_of_parameter_space():
    """A 3-4-5 triangle, turned and moved: the right angle is at the centre."""
    turn = orthonormalise(torch.randn(2, 9, generator=torch.Generator().manual_seed(1)).double())
    center = torch.linspace(5, 6, 9, dtype=torch.float64)
    second, third = center + 4 * turn[0], center - 3 * turn[1]
    found = plane_through(center, second, third)
    expected = torch.tensor([[0, 0], [4, 0], [0, 3]], dtype=torch.float64)
    torch.testing.assert_close(found.coordinates, expected, atol=1e-13, rtol=0)
    torch.testing.assert_close(found.directions[0], turn[0])
    torch.testing.assert_close(found.directions[1], -turn[1])
    # An obtuse triangle: the third point lies on the far side of the centre.
    obtuse = plane_through(center, second, center - turn[0] + turn[1])
    torch.testing.assert_close(obtuse.coordinates[2], torch.tensor([-1, 1.0], dtype=torch.float64))


def test_a_sliver_of_a_triangle_still_has_perpendicular_axes():
    generator = torch.Generator().manual_seed(2)
    center, end, aside = torch.randn(3, 300, generator=generator, dtype=torch.float64)
    found = plane_through(center, end, (center + end) / 2 + 1e-9 * aside)
    assert abs(float(found.directions[0] @ found.directions[1])) < 1e-14
    assert 0 < float(found.coordinates[2, 1]) < 1e-7


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("share", [0.5, 2.0, -1.0, 0.003])
def test_points_on_one_line_span_no_plane_whatever_rounding_makes_of_them(dtype, share):
    """In float32 the middle of two points is not on their line, but off it by rounding."""
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        center = torch.randn(500, generator=generator, dtype=torch.float64)
        step = 1e-2 * torch.randn(500, generator=generator, dtype=torch.float64)
        points = [center, center + step, center + share * step]
        with pytest.raises(ValueError, match=r"on one line up to rounding .*: they span no plane"):
            plane_through(*(point.to(dtype) for point in points))


def test_two_points_that_are_the_same_are_named():
    center = torch.linspace(1, 2, 50)
    other, third = center + torch.eye(50)[0], center + torch.eye(50)[1]
    for points, names in (
        ((center, center * (1 + 1e-7), third), "center and second"),
        ((center, other, center), "center and third"),
        ((center, other, other.clone()), "second and third"),
    ):
        with pytest.raises(ValueError, match=f"{names} are the same point up to rounding"):
            plane_through(*points)


def test_a_plane_refuses_other_spaces_and_numbers_that_are_not_finite():
    center, second, third = torch.eye(3)
    with pytest.raises(ValueError, match=r"third has shape \(4,\), center \(3,\)"):
        plane_through(center, second, torch.ones(4))
    with pytest.raises(ValueError, match=r"center has shape \(1, 3\)"):
        plane_through(center[None], second[None], third[None])
    with pytest.raises(ValueError, match="second holds numbers that are not finite"):
        plane_through(center, second * math.inf, third)
