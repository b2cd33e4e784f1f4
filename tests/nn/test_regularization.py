"""DropConnect, DropBlock, dropout and stochastic depth: what they drop, how often, and the mean."""

from __future__ import annotations

import math

import pytest
import torch
import torchvision
from torch import nn

from detkit.nn import DropBlock2d, DropConnectLinear, regularizer

NAMES = ("dropout", "dropblock", "stochastic_depth")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("per_example", [True, False])
def test_drop_connect_keeps_the_mean(per_example):
    layer = DropConnectLinear(4, 3, p=0.25, per_example=per_example).double()
    x = torch.randn(4, dtype=torch.float64)
    whole = layer.eval()(x)
    torch.testing.assert_close(whole, nn.functional.linear(x, layer.weight, layer.bias))
    layer.train()
    draws = 20_000
    if per_example:
        out = layer(x.expand(draws, 4))
    else:
        draws = 2000
        out = torch.stack([layer(x) for _ in range(draws)])
    # the variance of a Bernoulli(1 - p) divided by 1 - p is p / (1 - p); 4 sigma of the mean
    sigma = (0.25 / 0.75 * ((layer.weight * x).square().sum(1) + layer.bias.square())).sqrt()
    assert ((out.mean(0) - whole).abs() < 4 * sigma / math.sqrt(draws)).all()
    torch.testing.assert_close(out.std(0), sigma, rtol=0.08, atol=0)


def test_drop_connect_drops_weights_and_not_features():
    layer = DropConnectLinear(50, 40, p=0.4, bias=False, per_example=False)
    nn.init.ones_(layer.weight)
    seen = layer(torch.eye(50)).T  # [O, I]: the weights that acted
    assert seen.unique().tolist() == pytest.approx([0, 1 / 0.6])
    assert (seen == 0).float().mean().item() == pytest.approx(0.4, abs=0.05)
    # dropping features would empty whole columns, dropping units whole rows
    assert (seen != 0).any(0).all() and (seen != 0).any(1).all()


def test_drop_connect_drops_biases_too():
    layer = DropConnectLinear(2, 4, p=0.5)
    nn.init.ones_(layer.bias)
    assert set(layer(torch.zeros(64, 2)).unique().tolist()) == {0, 2}


def test_masks_differ_between_examples_and_between_calls():
    layer = DropConnectLinear(8, 8)
    x = torch.randn(1, 8).expand(2, 8)
    first, second = layer(x), layer(x)
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first, second)
    shared = DropConnectLinear(8, 8, per_example=False)
    first, second = shared(x), shared(x)
    torch.testing.assert_close(first[0], first[1])
    assert not torch.equal(first, second)


def test_drop_connect_of_nothing_is_a_linear_layer():
    layer = DropConnectLinear(4, 3, p=0)
    plain = nn.Linear(4, 3)
    layer.load_state_dict(plain.state_dict(), strict=True)
    x = torch.randn(5, 4)
    assert torch.equal(layer(x), plain(x))


@pytest.mark.parametrize("per_example", [True, False])
def test_drop_connect_shapes_and_gradient(per_example):
    layer = DropConnectLinear(4, 3, per_example=per_example)
    assert layer(torch.zeros(0, 4)).shape == (0, 3)
    x = torch.randn(2, 5, 4, requires_grad=True)
    out = layer(x)
    assert out.shape == (2, 5, 3)
    out.sum().backward()
    assert all(torch.isfinite(each.grad).all() for each in (x, layer.weight, layer.bias))
    assert (layer.weight.grad != 0).any()


@pytest.mark.parametrize("per_example", [True, False])
def test_drop_connect_has_the_dtype_of_a_linear_layer_under_autocast(per_example):
    layer = DropConnectLinear(4, 3, per_example=per_example)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        trained, evaluated = layer(torch.rand(2, 4)), layer.eval()(torch.rand(2, 4))
    assert trained.dtype == evaluated.dtype == torch.bfloat16


@pytest.mark.parametrize("p", [-0.1, 1, 1.5, float("nan")])
def test_a_probability_that_is_none(p):
    with pytest.raises(ValueError, match=r"at least 0 and below 1, got "):
        DropConnectLinear(2, 2, p=p)
    with pytest.raises(ValueError, match=r"at least 0 and below 1, got "):
        regularizer("dropout", p)


@pytest.mark.parametrize("name", NAMES)
def test_identity_in_evaluation_and_without_anything_to_drop(name):
    x = torch.randn(2, 3, 9, 9)
    assert torch.equal(regularizer(name, 0.5).eval()(x), x)
    assert torch.equal(regularizer(name, 0).train()(x), x)
    assert not torch.equal(regularizer(name, 0.5).train()(x), x)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_kept_makes_up_for_what_is_dropped(name):
    layer = regularizer(name, 0.2, block_size=3)
    out = layer(torch.ones(2000, 1, 9, 9))
    assert out.mean().item() == pytest.approx(1, abs=0.05)
    if name != "dropblock":
        assert (out == 0).float().mean().item() == pytest.approx(0.2, abs=0.03)


@pytest.mark.parametrize(("p", "block_size", "side"), [(0.2, 3, 9), (0.1, 7, 28)])
def test_share_that_drop_block_drops(p, block_size, side):
    """Blocks start where they fit, at the paper's rate, which does not know that they overlap."""
    starts = side - block_size + 1
    rate = p * side**2 / (block_size**2 * starts**2)
    over = [min(i, starts - 1) - max(0, i - block_size + 1) + 1 for i in range(side)]
    expected = sum(1 - (1 - rate) ** (i * j) for i in over for j in over) / side**2
    assert 0.85 * p < expected < p
    dropped = regularizer("dropblock", p, block_size=block_size)(torch.ones(200, 50, side, side))
    assert (dropped == 0).float().mean().item() == pytest.approx(expected, rel=0.03)


def test_stochastic_depth_drops_whole_images():
    out = regularizer("stochastic_depth", 0.2)(torch.ones(500, 2, 3, 3))
    assert (out.flatten(1) == out[:, :1, 0, 0]).all()
    assert out.unique().tolist() == pytest.approx([0, 1 / 0.8])


def test_drop_block_drops_squares():
    layer = regularizer("dropblock", 0.02, block_size=3)
    dropped = layer(torch.ones(40, 2, 12, 12)) == 0
    assert 0 < dropped.float().mean() < 0.05
    # each dropped cell lies in a dropped 3x3 square
    pool = nn.functional.max_pool2d
    squares = 1 - pool((~dropped).float(), 3, stride=1)  # [B, C, 10, 10]: all nine cells dropped
    covered = pool(nn.functional.pad(squares, [2] * 4), 3, stride=1) > 0
    assert torch.equal(covered, dropped)
    # in each channel others
    assert not torch.equal(dropped[:, 0], dropped[:, 1])


@pytest.mark.parametrize("settings", [{}, {"eps": 100.0}])
def test_drop_block_equals_torchvisions(settings):
    x = torch.randn(2, 3, 11, 14, dtype=torch.float64)
    torch.manual_seed(1)
    ours = DropBlock2d(0.2, 5, **settings)(x)
    torch.manual_seed(1)
    theirs = torchvision.ops.DropBlock2d(0.2, 5, **settings)(x)
    assert torch.equal(ours == 0, theirs == 0)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("shape", [(1, 1), (4, 4), (6, 13), (2, 9)])
def test_drop_block_on_maps_smaller_than_its_block(shape):
    layer = regularizer("dropblock", 0.3)
    assert layer(torch.ones(1, 2, *shape)).shape == (1, 2, *shape)
    assert layer(torch.ones(0, 2, *shape)).shape == (0, 2, *shape)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_drop_block_of_a_large_map_in_half_precision(dtype):
    out = regularizer("dropblock", 0.1)(torch.ones(2, 64, 40, 40, dtype=dtype))
    assert out.dtype == dtype
    assert out.float().mean().item() == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("name", NAMES)
def test_regularizers_compile_without_a_break(name):
    layer = regularizer(name, 0.5)
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    x = torch.rand(2, 3, 8, 8)
    torch.manual_seed(3)
    expected = layer(x)
    torch.manual_seed(3)
    torch.testing.assert_close(compiled(x), expected)


def test_drop_connect_compiles_without_a_break():
    layer = torch.compile(DropConnectLinear(3, 2), fullgraph=True, backend="eager")
    assert layer(torch.rand(4, 3)).shape == (4, 2)


def test_unknown_regularizer_and_even_block():
    with pytest.raises(ValueError, match="unknown regularizer 'drop_block'; did you mean 'dropb"):
        regularizer("drop_block", 0.1)
    with pytest.raises(ValueError, match="block_size must be odd and at least 1, got 4"):
        regularizer("dropblock", 0.1, block_size=4)
