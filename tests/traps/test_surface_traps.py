"""Traps of surfaces and directions: each check passes here and fails on its fault."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from landscape.directions import filter_normalised, layer_normalised, random_directions
from landscape.interpolation import interpolate
from landscape.parameters import ParameterSpace
from landscape.surface import scan_plane
from tests.references import plane_objective

AXIS = np.linspace(-1.0, 1.0, 51)


# -- 5: filter normalisation ----------------------------------------------------------------------


def check_filters(normalised):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ConvTranspose2d(4, 6, 2), nn.Linear(5, 3)
    ).double()
    with torch.no_grad():  # filters of very different norm, which a layer's norm would level
        model[0].weight.mul_(torch.tensor([1e-2, 1.0, 3.0, 10.0]).view(4, 1, 1, 1))
        model[2].weight.mul_(torch.tensor([1.0, 9.0, 1e-2, 5.0, 0.3, 2.0]).view(1, 6, 1, 1))
    space = ParameterSpace.of(model)
    theta = space.flatten(dict(model.named_parameters()))
    direction = space.unflatten(normalised(space, theta, model=model, seed=1))
    weight = space.unflatten(theta)
    for name, axis in (("0.weight", 0), ("2.weight", 1), ("3.weight", 0)):
        other = [d for d in range(weight[name].dim()) if d != axis]
        torch.testing.assert_close(
            torch.linalg.vector_norm(direction[name], dim=other),
            torch.linalg.vector_norm(weight[name], dim=other),
        )
    for name in ("0.bias", "1.weight", "1.bias", "2.bias", "3.bias"):
        assert not direction[name].any()


def scaled_element_by_element(space, theta, *, model, seed):
    """Biases normalised like filters: every element of a vector is a filter of its own."""
    direction = space.unflatten(filter_normalised(space, theta, model=model, seed=seed).clone())
    for name, tensor in space.unflatten(theta).items():
        if tensor.dim() == 1:
            direction[name] = tensor * torch.randn_like(tensor).sign()
    return space.flatten(direction)


def along_dimension_zero(space, theta, *, model, seed):
    """Every weight by dimension 0: right for a convolution, wrong for a transposed one."""
    generator = torch.Generator().manual_seed(seed)
    direction = {}
    for name, tensor in space.unflatten(theta).items():
        draw = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
        other = list(range(1, tensor.dim()))
        if not other:
            direction[name] = torch.zeros_like(tensor)
            continue
        norms = [torch.linalg.vector_norm(t, dim=other, keepdim=True) for t in (tensor, draw)]
        direction[name] = draw * norms[0] / norms[1]
    return space.flatten(direction)


def test_trap_05_filter_normalisation_of_biases_or_by_layer():
    check_filters(filter_normalised)
    for wrong in (scaled_element_by_element, layer_normalised, along_dimension_zero):
        with pytest.raises(AssertionError):
            check_filters(wrong)


# -- 6: Gram-Schmidt ------------------------------------------------------------------------------


def check_orthogonal(directions):
    theta = torch.zeros(400, dtype=torch.float64)
    for seed in range(5):
        first, second = directions(theta, num_directions=2, seed=seed)
        cosine = first @ second / (first.norm() * second.norm())
        assert abs(float(cosine)) < 1e-12
        assert float(first.norm()) == pytest.approx(1.0)
        assert float(second.norm()) == pytest.approx(1.0)


def unnormalised_gram_schmidt(theta, *, num_directions, seed):
    """v - <v, u> u with u not a unit vector: v becomes a multiple of u."""
    generator = torch.Generator().manual_seed(seed)
    first, second = torch.randn(2, theta.numel(), generator=generator, dtype=theta.dtype)
    second = second - (second @ first) * first
    return torch.stack([first / first.norm(), second / second.norm()])


def test_trap_06_gram_schmidt_against_vectors_that_are_not_normalised():
    check_orthogonal(random_directions)
    with pytest.raises(AssertionError):
        check_orthogonal(unnormalised_gram_schmidt)


def test_trap_06_the_fault_is_as_large_as_published():
    cosines = []
    for seed in range(20):
        first, second = unnormalised_gram_schmidt(
            torch.zeros(400, dtype=torch.float64), num_directions=2, seed=seed
        )
        cosines.append(abs(float(first @ second)))
    assert max(cosines) > 0.99


# -- 20: holes and maxima -------------------------------------------------------------------------


def peak(x, y):
    """A bowl with a flat top of exactly 7 and a corner without a value."""
    if x > 0.7 and y < -0.7:
        return math.nan
    return min(7.0, 1.0 + 20.0 * (x**2 + y**2))


def check_holes(scan):
    objective, e1, e2 = plane_objective(peak)
    for exact in (True, False):
        loss = scan(objective, e1, e2, x=AXIS, y=AXIS, exact=exact).loss
        truth = torch.tensor([[peak(x, y) for x in AXIS] for y in AXIS], dtype=torch.float64)
        assert torch.equal(loss.isnan(), truth.isnan())
        known = ~truth.isnan()
        assert float((loss - truth)[known].abs().max()) < 1e-9
        assert float(loss[known].max()) == 7.0


class Replaced:
    def __init__(self, loss):
        self.loss = loss


def filled_by_the_mean(*arguments, **options):
    loss = scan_plane(*arguments, **options).loss
    return Replaced(torch.where(loss.isnan(), loss.nanmean(), loss))


def with_noise_on_the_maxima(*arguments, **options):
    """Ties at the top broken by noise, so that a contour plot looks alive."""
    loss = scan_plane(*arguments, **options).loss
    generator = torch.Generator().manual_seed(0)
    noise = 1e-3 * torch.rand(loss.shape, generator=generator, dtype=loss.dtype)
    return Replaced(torch.where(loss == 7.0, loss + noise, loss))


def capped(*arguments, **options):
    loss = scan_plane(*arguments, **options).loss
    return Replaced(torch.nan_to_num(loss, nan=7.0))


def test_trap_20_noise_in_maxima_and_holes_filled():
    check_holes(scan_plane)
    for wrong in (filled_by_the_mean, with_noise_on_the_maxima, capped):
        with pytest.raises(AssertionError):
            check_holes(wrong)


def spline_over_a_filled_hole(sample, x, y, **options):
    """The hole replaced by the mean of what is known, then fitted through as if it were data."""

    def filled(rows, columns):
        values = sample(rows, columns)
        return np.where(np.isfinite(values), values, np.nanmean(values))

    return interpolate(filled, x, y, **options)


def check_no_value_in_a_hole(interpolation):
    truth = 1 + AXIS[None, :] ** 2 + AXIS[:, None] ** 2
    truth[38:, 40:] = np.nan
    found = interpolation(lambda rows, columns: truth[rows, columns], AXIS, AXIS)
    np.testing.assert_array_equal(found.values, truth)


def test_trap_20_a_spline_is_never_laid_over_a_hole():
    check_no_value_in_a_hole(interpolate)
    with pytest.raises(AssertionError):
        check_no_value_in_a_hole(spline_over_a_filled_hole)


# -- 23: which point is where ---------------------------------------------------------------------


def tilted(x, y):
    """No symmetry at all: every mix-up of points shows."""
    return 10.0 + 3.0 * x - y + 2.0 * x * y + x**2 * y + 0.5 * math.exp(0.5 * y)


def check_places(scan):
    objective, e1, e2 = plane_objective(tilted)
    x, y = np.array([-2.0, -1.0, 0.0, 0.5]), np.array([-1.0, 0.0, 3.0])
    surface = scan(objective, e1, e2, x=x, y=y, exact=True)
    expected = torch.tensor([[tilted(a, b) for a in x] for b in y], dtype=torch.float64)
    torch.testing.assert_close(surface.loss, expected)
    x, y = np.linspace(-2, 1, 61), np.linspace(-1, 2, 46)
    surface = scan(objective, e1, e2, x=x, y=y, exact=False)
    expected = torch.tensor([[tilted(a, b) for a in x] for b in y], dtype=torch.float64)
    assert float((surface.loss - expected).abs().max()) < 5e-3 * float(np.ptp(expected.numpy()))


def transposed(objective, d1, d2, *, x, y, exact):
    loss = scan_plane(objective, d1, d2, x=x, y=y, exact=exact).loss
    return Replaced(loss.T.reshape(loss.shape))


def swapped_directions(objective, d1, d2, *, x, y, exact):
    return scan_plane(objective, d2, d1, x=x, y=y, exact=exact)


def inverted_distance(objective, d1, d2, *, x, y, exact):
    return scan_plane(objective, -d1, -d2, x=x, y=y, exact=exact)


def serpentine(objective, d1, d2, *, x, y, exact):
    """Every second row walked backwards and stored as if walked forwards."""
    loss = scan_plane(objective, d1, d2, x=x, y=y, exact=exact).loss.clone()
    loss[1::2] = loss[1::2].flip(1)
    return Replaced(loss)


def shifted_by_a_step(objective, d1, d2, *, x, y, exact):
    """The step is taken before the loss is read, so each value belongs to the point before."""
    loss = scan_plane(objective, d1, d2, x=x, y=y, exact=exact).loss
    return Replaced(loss.roll(1, dims=1))


def test_trap_23_serpentine_shifted_inverted_and_transposed_grids():
    check_places(scan_plane)
    wrongs = (transposed, swapped_directions, inverted_distance, serpentine, shifted_by_a_step)
    for wrong in wrongs:
        with pytest.raises(AssertionError):
            check_places(wrong)
