"""The feature pyramid: small numbers, torchvision's values, mistakes."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision.ops import FeaturePyramidNetwork

from detkit.nn import FPN


def maps(channels: list[int], sizes: list[tuple[int, int]]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(2, width, *size, dtype=torch.float64, generator=generator)
        for width, size in zip(channels, sizes, strict=True)
    ]


def test_coarse_meaning_is_added_to_fine_maps():
    """One channel, laterals of weight one, output kernels that pick the centre."""
    fpn = FPN([1, 1], 1)
    for blocks, shape in ((fpn.inner_blocks, (1, 1)), (fpn.layer_blocks, (3, 3))):
        for block in blocks:
            kernel = torch.zeros(1, 1, *shape)
            kernel[..., shape[0] // 2, shape[1] // 2] = 1
            block[0].weight.data.copy_(kernel)
    fine = torch.tensor([[1.0, 2, 3], [4, 5, 6]]).view(1, 1, 2, 3)
    coarse = torch.tensor([[10.0, 20]]).view(1, 1, 1, 2)
    fine_out, coarse_out = fpn([fine, coarse])
    # nearest neighbour from 2 columns to 3: floor(column * 2 / 3) = 0, 0, 1
    assert fine_out.flatten().tolist() == [11, 12, 23, 14, 15, 26]
    assert coarse_out.flatten().tolist() == [10, 20]


def test_pool_takes_every_second_cell():
    fpn = FPN([1], 1, extra="pool").double()
    last, pooled = fpn(maps([1], [(5, 4)]))
    assert torch.equal(pooled, last[:, :, ::2, ::2])


@pytest.mark.parametrize("norm", ["batch", "frozen_batch"])
def test_norm_equals_torchvisions(norm):
    torch.manual_seed(0)
    channels, sizes = [3, 5], [(7, 9), (4, 5)]
    theirs = FeaturePyramidNetwork(channels, 8, norm_layer=nn.BatchNorm2d).double()
    for value in [*theirs.parameters(), *theirs.buffers()]:
        if value.is_floating_point():
            value.data.uniform_(0.5, 1.5)
    ours = FPN(channels, 8, norm=norm).double()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    inputs = maps(channels, sizes)
    expected = theirs.eval()({str(i): each for i, each in enumerate(inputs)})
    for our_map, their_map in zip(ours.eval()(inputs), expected.values(), strict=True):
        torch.testing.assert_close(our_map, their_map, rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    ("extra", "levels", "strides"),
    [
        (None, 3, [8, 16, 32]),
        ("pool", 4, [8, 16, 32, 64]),
        ("p6p7", 5, [8, 16, 32, 64, 128]),
    ],
)
def test_levels_and_strides(extra, levels, strides):
    fpn = FPN([2, 3, 4], 6, extra=extra).double()
    outputs = fpn(maps([2, 3, 4], [(33, 17), (17, 9), (9, 5)]))
    assert fpn.num_levels == len(outputs) == levels
    assert fpn.out_strides([8, 16, 32]) == strides
    heights = [33, 17, 9, 5, 3]
    assert [level.shape[1:3] for level in outputs] == [(6, height) for height in heights[:levels]]


def test_initial_weights():
    torch.manual_seed(0)
    fpn = FPN([64], 64, extra="p6p7")
    for name, value in fpn.state_dict().items():
        if name.endswith("bias"):
            assert (value == 0).all(), name
        else:  # uniform in +- sqrt(3 / fan_in)
            bound = (3 / value[0].numel()) ** 0.5
            assert 0.98 * bound < value.abs().max() <= bound, name


def test_every_parameter_gets_a_gradient():
    fpn = FPN([2, 3], 4, extra="p6p7").double()
    sum(level.square().sum() for level in fpn(maps([2, 3], [(8, 8), (4, 4)]))).backward()
    assert all(each.grad.abs().sum() > 0 for each in fpn.parameters())


def test_input_is_not_changed():
    inputs = maps([2, 3], [(8, 8), (4, 4)])
    before = [each.clone() for each in inputs]
    FPN([2, 3], 4, extra="pool").double()(inputs)
    assert all(torch.equal(*pair) for pair in zip(inputs, before, strict=True))


def test_no_images_give_empty_maps():
    outputs = FPN([2, 3], 4, extra="p6p7")([torch.zeros(0, 2, 8, 8), torch.zeros(0, 3, 4, 4)])
    assert [level.shape[0] for level in outputs] == [0, 0, 0, 0]


def test_compiles_as_one_graph():
    fpn = FPN([2, 3], 4, extra="p6p7").double()
    inputs = maps([2, 3], [(7, 9), (4, 5)])
    compiled = torch.compile(fpn, fullgraph=True, backend="eager")
    assert all(torch.equal(*p) for p in zip(compiled(inputs), fpn(inputs), strict=True))


@pytest.mark.parametrize(
    ("arguments", "settings", "message"),
    [
        ([], {}, "at least one backbone map"),
        ([2], {"extra": "pol"}, "unknown FPN extra 'pol'; did you mean 'pool'"),
        ([2], {"p6_source": "p4"}, "unknown p6_source 'p4'; .*allowed: p5, c5"),
        ([2], {"norm": "bn"}, "unknown norm 'bn'"),
    ],
)
def test_mistakes_are_explained(arguments, settings, message):
    with pytest.raises(ValueError, match=message):
        FPN(arguments, 4, **settings)


def test_wrong_number_of_maps():
    with pytest.raises(ValueError, match="built for 2 maps, got 1"):
        FPN([2, 3], 4)([torch.zeros(1, 2, 4, 4)])
