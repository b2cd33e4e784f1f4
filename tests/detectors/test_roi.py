"""The second stage's parts: patches against torchvision and by hand, losses, sampling."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.ops import MultiScaleRoIAlign, roi_align, roi_pool, sigmoid_focal_loss

from detkit.config import RoIConfig, RPNConfig, SlidingWindowConfig
from detkit.detectors.base import MapGeometry
from detkit.detectors.crop import RoICrop
from detkit.detectors.roi import BoxLoss, ClassLoss, RoIAlign, RoIHead, RoIPool
from detkit.ops import (
    BOX_LOSSES,
    OFFSET_LOSSES,
    SAMPLERS,
    Assigner,
    Selection,
    box_iou,
    decode,
    encode,
    giou_loss,
)
from detkit.structures import Batch

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


# ------------------------------------------------------------------------------------ RoI pool


def slow_pool(feature, box, resolution, stride):
    """Fast R-CNN, section 2.1, bin by bin: whole cells, ends included, bins may share cells."""
    x1, y1, x2, y2 = ((each / stride + 0.5).floor().int().item() for each in box)
    width, height = max(x2 - x1 + 1, 1), max(y2 - y1 + 1, 1)
    patch = torch.zeros(len(feature), resolution, resolution)
    for row in range(resolution):
        for column in range(resolution):
            top = y1 + row * height // resolution
            bottom = y1 - (-(row + 1) * height // resolution)
            left = x1 + column * width // resolution
            right = x1 - (-(column + 1) * width // resolution)
            cells = feature[:, max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
            if cells.numel():
                patch[:, row, column] = cells.amax(dim=(1, 2))
    return patch


def test_pooled_patches_equal_torchvisions_and_a_slow_loop():
    maps = maps_of(128, 160)[1:2]
    boxes = [regions(12, 128, 160, seed=0), regions(9, 128, 160, seed=1)]
    pool = RoIPool([MapGeometry(8, 0.0)], resolution=3, canonical_size=224.0, canonical_level=4)
    found = pool(maps, boxes)
    assert torch.equal(found, roi_pool(maps[0], boxes, 3, spatial_scale=1 / 8))
    slow = [slow_pool(m, box, 3, 8) for m, part in zip(maps[0], boxes, strict=True) for box in part]
    assert torch.equal(found, torch.stack(slow))


def test_pooling_takes_the_level_of_each_region():
    maps = maps_of(320, 256)
    boxes = [regions(30, 320, 256, seed=0), regions(20, 300, 250, seed=1)]
    geometry = [MapGeometry(stride, 0.0) for stride in STRIDES]
    settings = {"resolution": 4, "canonical_size": 100.0, "canonical_level": 4}
    found = RoIPool(geometry, **settings)(maps, boxes)
    level = pool_of(canonical_size=100.0).level_of(torch.cat(boxes))
    assert len(level.unique()) == 4
    for index, stride in enumerate(STRIDES):
        expected = roi_pool(maps[index], boxes, 4, spatial_scale=1 / stride)
        assert torch.equal(found[level == index], expected[level == index])


@pytest.mark.parametrize(("stride", "center"), [(4, 15.5), (6, 3.0), (36, 47.0)])
def test_pooling_of_a_network_that_loses_its_borders(stride, center):
    """The region from the centre of cell 3 to that of cell 5 holds cells 3 to 5."""
    ramp = torch.arange(12.0).expand(1, 1, 12, -1)
    box = [torch.tensor([[3.0, 2, 5, 6]]) * stride + center]
    settings = {"resolution": 1, "canonical_size": 224.0, "canonical_level": 4}
    assert RoIPool([MapGeometry(stride, center)], **settings)([ramp], box).item() == 5
    assert RoIPool([MapGeometry(stride, center)], **settings)([-ramp], box).item() == -3


# --------------------------------------------------------------------------------------- crops


def crop_of(size=8, context=0.0, network=None, **settings):
    defaults = {"resolution": None, "sampling_ratio": 0, "chunk": 100}
    network = network or (lambda crops: [crops])
    return RoICrop(network, size=size, context=context, **{**defaults, **settings})


def test_crop_of_its_own_size_is_cut_out():
    (images,) = (maps_of(40, 60)[0][:, :, :10, :15],)
    images = F.interpolate(images, size=(40, 60))
    boxes = [torch.tensor([[0.0, 0, 8, 8], [52, 32, 60, 40]]), torch.tensor([[17.0, 5, 25, 13]])]
    expected = [images[0, :, :8, :8], images[0, :, 32:, 52:], images[1, :, 5:13, 17:25]]
    found = crop_of()([images], boxes)
    torch.testing.assert_close(found, torch.stack(expected), rtol=0, atol=1e-5)


def test_crop_with_context_shows_what_is_around():
    """Of a crop of 8 pixels 2 on each side are context: a region of 4 x 4 is cut out 8 x 8."""
    images = torch.randn(1, 3, 30, 30, generator=torch.manual_seed(0))
    found = crop_of(context=2)([images], [torch.tensor([[10.0, 12, 14, 16]])])
    torch.testing.assert_close(found[0], images[0, :, 10:18, 8:16], rtol=0, atol=1e-5)
    grown = crop_of(context=2).surround(torch.tensor([[10.0, 12, 18, 16]]))
    assert grown.tolist() == [[6, 10, 22, 18]]  # each side by its own half


def test_warped_crop_equals_interpolation():
    images = torch.randn(1, 3, 20, 30, generator=torch.manual_seed(0))
    box = [torch.tensor([[0.0, 0, 30, 20]])]
    larger = crop_of(size=60, sampling_ratio=1)([images], box)
    expected = F.interpolate(images, size=(60, 60), mode="bilinear", align_corners=False)
    inside = (..., slice(2, -2), slice(2, -2))  # over the edge is the mean colour, not the edge
    torch.testing.assert_close(larger[inside], expected[inside], rtol=0, atol=1e-5)
    # smaller by whole factors: every pixel counts, as in the mean
    smaller = crop_of(size=10)([images], box)
    torch.testing.assert_close(smaller, F.avg_pool2d(images, (2, 3)), rtol=0, atol=1e-5)


def test_crop_over_the_edge_is_of_the_mean_colour():
    found = crop_of(size=8)([torch.full((1, 3, 16, 16), 5.0)], [torch.tensor([[-8.0, 4, 8, 12]])])
    assert found[0, :, :, 4:].min() == 5
    assert found[0, :, :, :3].abs().max() == 0


def test_crops_do_not_depend_on_the_padding():
    images = torch.randn(1, 3, 20, 20, generator=torch.manual_seed(0))
    boxes = [torch.tensor([[5.0, 5, 20, 20], [15, 3, 26, 9]])]
    padded = F.pad(images, (0, 12, 0, 12))
    assert torch.equal(crop_of()([images], boxes), crop_of()([padded], boxes))


def test_chunks_are_what_all_at_once_is():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    sizes = []

    def watched(crops):
        sizes.append(len(crops))
        return [torch.zeros(1), network(crops)]

    images, boxes = maps_of(40, 60)[0], [regions(9, 10, 15, seed=0), regions(4, 10, 15, seed=1)]
    with torch.no_grad():
        found = [crop_of(network=watched, chunk=chunk).eval()([images], boxes) for chunk in (5, 13)]
    assert sizes == [5, 5, 3, 13]
    torch.testing.assert_close(found[0], found[1])
    sizes.clear()
    crop_of(network=watched, chunk=5).train()([images], boxes)
    assert sizes == [13]


def test_crop_map_is_averaged_to_its_resolution():
    boxes = [torch.tensor([[3.0, 3, 11, 11]])]
    images = torch.randn(1, 3, 16, 16, generator=torch.manual_seed(0))
    found = crop_of(resolution=2)([images], boxes)
    torch.testing.assert_close(found, F.avg_pool2d(images[:, :, 3:11, 3:11], 4))


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_crops_for_batch_norm(count):
    network = nn.Sequential(nn.Conv2d(3, 4, 8), nn.BatchNorm2d(4)).train()
    pool = crop_of(network=lambda crops: [network(crops)])
    boxes = [torch.tensor([[3.0, 3, 11, 11]])[:count], torch.zeros(0, 4)]
    found = pool([torch.randn(2, 3, 16, 16)], boxes)
    assert found.shape == (count, 4, 1, 1)
    found.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


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


def test_recipes_offer_what_there_is():
    """The schema names them again, as it lies below."""
    for section in (RoIConfig, SlidingWindowConfig):
        offered = get_args(section.model_fields["box_loss"].annotation)
        assert set(offered) == {*BOX_LOSSES, *OFFSET_LOSSES}
    assert get_args(RPNConfig.model_fields["sampler"].annotation) == SAMPLERS


@pytest.mark.parametrize("kind", [*BOX_LOSSES, *OFFSET_LOSSES])
def test_every_box_loss_leads_to_the_truth(kind):
    weights = (10.0, 10.0, 5.0, 5.0)
    proposals = regions(6, 100, 100, seed=0)
    truths = proposals + torch.tensor([3.0, -2, 4, 1])
    offsets = torch.zeros(6, 4, requires_grad=True)
    loss = BoxLoss(kind, weight=1.0, beta=0.1)
    optimizer = torch.optim.Adam([offsets], lr=0.05)
    for _ in range(120):
        optimizer.zero_grad()
        loss(offsets, proposals, truths, weights).sum().backward()
        optimizer.step()
    found = decode(offsets.detach(), proposals, weights=weights)
    assert box_iou(found, truths).diagonal().min() > 0.95


def test_class_loss_by_hand():
    logits, labels = torch.tensor([[0.0, 0, 0, 0], [2, 0, 0, 0]]), torch.tensor([3, 0])
    plain = torch.tensor([4.0, 1 + 3 / torch.e**2]).log()
    torch.testing.assert_close(ClassLoss()(logits, labels), plain)
    weighted = ClassLoss(class_weights=(1.0, 1.0, 1.0, 0.25))(logits, labels)
    torch.testing.assert_close(weighted, plain * torch.tensor([0.25, 1]))
    focal = ClassLoss(focusing=2.0)(logits, labels)
    torch.testing.assert_close(focal, plain * (1 - torch.exp(-plain)) ** 2)
    # a tenth of the truth spread over four columns, which for the second lie 0, 2, 2, 2 higher
    smooth = ClassLoss(label_smoothing=0.1)(logits, labels)
    torch.testing.assert_close(smooth, plain + torch.tensor([0, 0.1 * 6 / 4]))


def test_focal_loss_of_two_classes_is_that_of_a_sigmoid():
    logits = torch.randn(20, 2, generator=torch.manual_seed(0))
    labels = torch.arange(20) % 2
    found = ClassLoss(focusing=2.0)(logits, labels)
    margin = logits[:, 1] - logits[:, 0]
    expected = sigmoid_focal_loss(margin, labels.float(), alpha=-1, gamma=2.0)
    torch.testing.assert_close(found, expected)


def test_class_weights_are_of_the_recipe_and_not_of_the_state():
    assert ClassLoss(class_weights=(1.0, 2.0)).state_dict() == {}


# --------------------------------------------------------------------------------- the hardest


class Told(nn.Module):
    """A head of one class that says of each region what its first pixel is."""

    def forward(self, patches):
        object_ = patches.flatten(1)[:, 0]
        return torch.stack([object_, -object_], dim=1), torch.zeros(len(patches), 1, 4)


def hard_head(samples, iou):
    return RoIHead(
        RoIAlign(
            [MapGeometry(1, 0.0)],
            resolution=1,
            sampling_ratio=1,
            aligned=True,
            canonical_size=1.0,
            canonical_level=0,
        ),
        Told(),
        assigner=Assigner(0.5, 0.5, samples, 0.25),
        box_weights=(1.0, 1.0, 1.0, 1.0),
        class_loss=ClassLoss(),
        box_loss=BoxLoss("l1", 1.0, 1.0),
        selection=Selection(0.5, 0.5, 10),
        hard_iou=iou,
    )


def test_the_hardest_regions_are_taken(make_target):
    """Four background regions on a picture that says how sure the head is of an object."""
    picture = torch.full((1, 1, 40, 40), -9.0)
    picture[..., :10, :10] = 1.0  # loss 2.1
    picture[..., 20:30, :10] = 3.0  # loss 6
    picture[..., :10, 20:30] = 2.0  # loss 4
    boxes = torch.tensor(
        [[0.0, 0, 10, 10], [0, 20, 10, 30], [0.5, 20, 10, 30], [20, 0, 30, 10], [20, 20, 30, 30]]
    )
    target = make_target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    batch = Batch(picture, ((40, 40),), ((40, 40),), (target,))
    chosen, (drawn,) = hard_head(samples=3, iou=0.7).draw([picture], [boxes], batch)
    # the second and the third are one, of which either stands for both
    assert drawn.index.tolist() in ([1, 3, 0], [2, 3, 0])
    assert drawn.valid.tolist() == [True] * 3 and not drawn.positive.any()
    assert torch.equal(chosen[0], boxes[drawn.index])
    _, (drawn,) = hard_head(samples=3, iou=1.0).draw([picture], [boxes], batch)
    assert sorted(drawn.index.tolist()) == [1, 2, 3]


def test_ignored_regions_are_not_among_the_hardest(make_target):
    picture = torch.full((1, 1, 40, 40), 3.0)
    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 1, 9, 9], [20, 20, 30, 30]])
    crowd = make_target(torch.tensor([[0.0, 0, 15, 15]]), torch.tensor([0]), torch.tensor([True]))
    batch = Batch(picture, ((40, 40),), ((40, 40),), (crowd,))
    _, (drawn,) = hard_head(samples=4, iou=0.7).draw([picture], [boxes], batch)
    assert drawn.index[drawn.valid].tolist() == [2]


def test_ignored_regions_suppress_none(make_target):
    """The first overlaps the truth too much for background; the second learns, though near it."""
    head = hard_head(samples=4, iou=0.7)
    head.assigner = replace(head.assigner, negative_iou=0.4)
    picture = torch.full((1, 1, 40, 40), 3.0)
    boxes = torch.tensor([[0.0, 0, 10, 4.5], [0, 0, 10, 5.2]])
    target = make_target(torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([0]))
    batch = Batch(picture, ((40, 40),), ((40, 40),), (target,))
    _, (drawn,) = head.draw([picture], [boxes], batch)
    assert sorted(drawn.index[drawn.valid].tolist()) == [1, 2]  # and the truth itself
    assert drawn.positive[drawn.valid].all()
