"""The second stage's parts: levels and patches against torchvision, box losses by hand."""

from __future__ import annotations

import pytest
import torch
from torchvision.ops import MultiScaleRoIAlign, roi_align

from detkit.detectors.base import MapGeometry
from detkit.detectors.roi import BoxLoss, RoIAlign
from detkit.ops import decode, encode, giou_loss

STRIDES = (4, 8, 16, 32)


def pool_of(levels=4, center=0.0, **settings):
    defaults = {
        "resolution": 7,
        "sampling_ratio": 2,
        "aligned": False,
        "canonical_size": 224.0,
        "canonical_level": 4,
    }
    maps = [MapGeometry(stride, center) for stride in STRIDES[:levels]]
    return RoIAlign(maps, **{**defaults, **settings})


def maps_of(height, width, dtype=torch.float32, channels=3):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(2, channels, height // s, width // s, generator=generator).to(dtype)
        for s in STRIDES
    ]


def regions(count, height, width, seed):
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, 2, generator=generator) * torch.tensor([width, height])
    return torch.cat([corners.amin(dim=1), corners.amax(dim=1) + 1], dim=1)


# ------------------------------------------------------------------------------------ levels


@pytest.mark.parametrize(
    ("side", "level"),
    [
        (1, 0),  # clamped to the finest
        (111.9, 0),
        (112, 1),
        (223.9, 1),
        (224, 2),  # the canonical size, on the canonical level,
        (224 - 1e-5, 2),  # also where rounding took a little off it
        (224 - 1e-3, 1),
        (447.9, 2),
        (448, 3),
        (5000, 3),  # clamped to the coarsest
    ],
)
def test_level_of_a_square(side, level):
    box = torch.tensor([[10.0, 10, 10 + side, 10 + side]], dtype=torch.float64)
    assert pool_of().level_of(box).tolist() == [level]


def test_level_depends_on_the_area():
    boxes = torch.tensor([[0.0, 0, 448, 112], [0, 0, 112, 448], [0, 0, 448, 111]])
    assert pool_of().level_of(boxes).tolist() == [2, 2, 1]
    assert pool_of(canonical_size=112.0).level_of(boxes).tolist() == [3, 3, 2]
    assert pool_of(canonical_level=3).level_of(boxes).tolist() == [1, 1, 0]


# ----------------------------------------------------------------------------------- patches


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"resolution": 5},
        {"sampling_ratio": 0},
        {"canonical_size": 100.0},
        {"canonical_level": 5},
    ],
    ids=str,
)
def test_patches_equal_torchvisions(settings):
    maps = maps_of(320, 256)
    boxes = [regions(30, 320, 256, seed=0), regions(20, 300, 250, seed=1)]
    pool = pool_of(**settings)
    theirs = MultiScaleRoIAlign(
        ["0", "1", "2", "3"],
        pool.resolution,
        pool.sampling_ratio,
        canonical_scale=pool.canonical_size,
        canonical_level=pool.canonical_level,
    )
    named = {str(i): each for i, each in enumerate(maps)}
    expected = theirs(named, boxes, [(320, 256), (300, 250)])
    assert torch.equal(pool(maps, boxes), expected)
    assert len(pool.level_of(torch.cat(boxes)).unique()) > 1


def test_aligned_patch_shows_where_a_pixel_is():
    """On a ramp the middle of a region reads its middle; unaligned it reads half a cell more."""
    ramp = torch.arange(16.0).expand(1, 1, 16, 16)
    box = [torch.tensor([[8.0, 8, 40, 40]])]  # cells 2..10 at stride 4, in the middle 6
    settings = {"levels": 1, "resolution": 1, "sampling_ratio": 4}
    assert pool_of(**settings, aligned=True)([ramp], box).item() == 5.5  # x = 6 - 0.5
    assert pool_of(**settings)([ramp], box).item() == 6.0
    expected = roi_align(ramp, box, 1, spatial_scale=0.25, sampling_ratio=4, aligned=True)
    assert torch.equal(pool_of(**settings, aligned=True)([ramp], box), expected)


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize(("stride", "center"), [(4, 15.5), (6, 3.0), (36, 47.0)])
def test_patch_of_a_network_that_loses_its_borders(stride, center, aligned):
    """Each cell holds the pixel it is centred at: the patch must read the middle of the region."""
    ramp = (center + stride * torch.arange(12.0)).expand(1, 1, 12, -1)
    box = [torch.tensor([[3.0, 2, 5, 6]]) * stride + center]
    geometry = [MapGeometry(stride, center)]
    settings = {"resolution": 1, "sampling_ratio": 4, "canonical_size": 224, "canonical_level": 4}
    patch = RoIAlign(geometry, aligned=aligned, **settings)([ramp], box)
    # pixel k is the square from k to k + 1, and aligned means by its middle
    expected = 4 * stride + center - (0.5 if aligned else 0)
    assert patch.item() == pytest.approx(expected, abs=1e-3)


def test_level_of_strides_that_are_no_powers_of_two():
    maps = [MapGeometry(stride, 5.0) for stride in (2, 6, 12, 36)]
    pool = RoIAlign(
        maps, resolution=1, sampling_ratio=1, aligned=False, canonical_size=14, canonical_level=0
    )
    # a region with sides of 14 strides belongs to the level of that stride
    sides = torch.tensor([1.0, 14, 83, 85, 167, 169, 503, 505, 9999])
    boxes = torch.stack([0 * sides, 0 * sides, sides, sides], dim=1)
    assert pool.level_of(boxes).tolist() == [0, 0, 0, 1, 1, 2, 2, 3, 3]


def test_extra_levels_are_not_used():
    maps = maps_of(128, 128)
    boxes = [torch.tensor([[0.0, 0, 900, 900]]), torch.zeros(0, 4)]  # for a level of stride 64
    extra = torch.full((2, 3, 2, 2), torch.nan)
    assert torch.equal(pool_of()([*maps, extra], boxes), pool_of()(maps, boxes))


def test_no_regions():
    patches = pool_of()(maps_of(64, 64), [torch.zeros(0, 4)] * 2)
    assert patches.shape == (0, 3, 7, 7)


def test_half_precision_maps_keep_the_coordinates():
    """In bfloat16 a corner at 301.3 would be at 302: the maps may be coarse, the regions not."""
    maps = [torch.nn.functional.avg_pool2d(m, 5, 1, 2) for m in maps_of(512, 512, channels=8)]
    maps = [m.bfloat16() for m in maps]
    boxes = [regions(50, 500, 500, seed=seed) for seed in (0, 1)]
    expected = pool_of()([m.float() for m in maps], boxes)
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            found = pool_of()(maps, boxes)
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found.float(), expected, rtol=2**-8, atol=1e-6)


# ------------------------------------------------------------------------------------ losses


def test_box_loss_by_hand():
    proposal, truth = torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([[1.0, 0, 11, 10]])
    loss = BoxLoss("smooth_l1", weight=3.0, beta=0.5)
    # wanted offsets (0.1, 0, 0, 0) times 10; off by 1 in x: 3 * (1 - 0.5 / 2)
    assert loss(torch.zeros(1, 4), proposal, truth, (10.0, 10.0, 5.0, 5.0)).item() == pytest.approx(
        2.25
    )
    right = encode(truth, proposal, weights=(10.0, 10.0, 5.0, 5.0))
    assert loss(right, proposal, truth, (10.0, 10.0, 5.0, 5.0)).item() == 0


def test_giou_is_of_decoded_boxes():
    weights = (10.0, 10.0, 5.0, 5.0)
    proposals, truths = regions(6, 100, 100, seed=0), regions(6, 100, 100, seed=1)
    offsets = torch.randn(6, 4, generator=torch.manual_seed(0))
    found = BoxLoss("giou", weight=2.0, beta=0.0)(offsets, proposals, truths, weights)
    expected = 2 * giou_loss(decode(offsets, proposals, weights=weights), truths)
    assert torch.equal(found, expected)
    right = encode(truths, proposals, weights=weights)
    assert BoxLoss("giou", weight=2.0, beta=0.0)(right, proposals, truths, weights).max() < 1e-5
