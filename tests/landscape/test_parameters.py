"""ParameterSpace: names and shapes to and from one vector."""

import pytest
import torch
from torch import nn

from landscape import ParameterSpace


def small_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))


def test_flatten_and_unflatten_are_inverse_to_each_other():
    model = small_net()
    space = ParameterSpace.of(model)
    theta = space.flatten(dict(model.named_parameters()))
    assert theta.shape == (5 * 6 + 6 + 6 * 3 + 3,)
    for name, tensor in space.unflatten(theta).items():
        assert torch.equal(tensor, dict(model.named_parameters())[name])


def test_flatten_copies_so_that_theta_does_not_follow_the_weights():
    model = nn.Linear(3, 1, bias=False)
    space = ParameterSpace.of(model)
    theta = space.flatten(dict(model.named_parameters()))
    before = theta.clone()
    with torch.no_grad():
        model.weight.add_(1.0)
    assert torch.equal(theta, before)


def test_unflatten_gives_views_of_theta():
    space = ParameterSpace.of(small_net())
    theta = torch.zeros(space.size)
    space.unflatten(theta)["0.bias"].fill_(2.0)
    assert theta.sum() == 12.0


def test_a_tied_weight_counts_once_under_its_first_name():
    model = nn.ModuleDict({"embed": nn.Embedding(7, 4), "head": nn.Linear(4, 7, bias=False)})
    model["head"].weight = model["embed"].weight
    space = ParameterSpace.of(model)
    assert space.names == ("embed.weight",)
    assert space.tied == {"head.weight": "embed.weight"}
    assert space.size == 28


def test_a_glob_on_the_second_name_of_a_tied_weight_finds_it():
    model = nn.ModuleDict({"embed": nn.Embedding(7, 4), "head": nn.Linear(4, 7, bias=False)})
    model["head"].weight = model["embed"].weight
    assert ParameterSpace.of(model, "head.*").names == ("embed.weight",)


def test_frozen_parameters_are_left_out_and_listed():
    model = small_net()
    model[0].weight.requires_grad_(False)
    space = ParameterSpace.of(model)
    assert "0.weight" not in space.names
    assert space.frozen == ("0.weight",)


def test_globs_select_a_subset_in_the_models_order():
    space = ParameterSpace.of(small_net(), ["2.*", "0.bias"])
    assert space.names == ("0.bias", "2.weight", "2.bias")


def test_a_glob_that_matches_nothing_says_what_there_is():
    with pytest.raises(ValueError, match=r"no trainable parameter matches layer9\.\*.*0\.weight"):
        ParameterSpace.of(small_net(), "layer9.*")


def test_a_vector_of_another_length_is_refused():
    space = ParameterSpace.of(small_net())
    with pytest.raises(ValueError, match=r"expected a vector of 57 parameters, got \(56,\)"):
        space.unflatten(torch.zeros(56))


def test_a_tensor_of_another_shape_is_refused_by_name():
    model = small_net()
    space = ParameterSpace.of(model)
    tensors = dict(model.named_parameters())
    tensors["2.bias"] = torch.zeros(4)
    with pytest.raises(ValueError, match=r"2\.bias has shape \(4,\), expected \(3,\)"):
        space.flatten(tensors)
