"""Anchors: the published numbers, and torchvision's generator to the last bit."""

from __future__ import annotations

import pytest
import torch
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from detkit.ops import cell_anchors, grid_anchors


def test_cell_of_the_finest_level():
    assert cell_anchors((32,), (0.5, 1, 2)).tolist() == [
        [-23, -11, 23, 11],  # height / width = 0.5: lying
        [-16, -16, 16, 16],
        [-11, -23, 11, 23],
    ]


def test_all_sizes_for_the_first_ratio_then_the_next():
    assert cell_anchors((2, 4), (1, 4), rounded=False).tolist() == [
        [-1, -1, 1, 1],
        [-2, -2, 2, 2],
        [-0.5, -2, 0.5, 2],
        [-1, -4, 1, 4],
    ]


def test_unrounded_anchors_have_the_area_and_ratio_that_was_asked_for():
    anchors = cell_anchors((10, 30), (0.3, 1.7), rounded=False)
    w, h = anchors[:, 2] - anchors[:, 0], anchors[:, 3] - anchors[:, 1]
    torch.testing.assert_close(w * h, torch.tensor([100.0, 900, 100, 900]))
    torch.testing.assert_close(h / w, torch.tensor([0.3, 0.3, 1.7, 1.7]))


def test_grid_goes_along_rows_with_the_anchors_of_a_cell_side_by_side():
    cell = torch.tensor([[-1.0, -2, 1, 2], [-3, -3, 3, 3]])
    assert grid_anchors(cell, (2, 3), (10, 100)).tolist() == [
        [-1, -2, 1, 2], [-3, -3, 3, 3], [99, -2, 101, 2], [97, -3, 103, 3],
        [199, -2, 201, 2], [197, -3, 203, 3],
        [-1, 8, 1, 12], [-3, 7, 3, 13], [99, 8, 101, 12], [97, 7, 103, 13],
        [199, 8, 201, 12], [197, 7, 203, 13],
    ]  # fmt: skip


def test_no_cells():
    assert grid_anchors(cell_anchors((8,), (1,)), (0, 5), (4, 4)).shape == (0, 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("sizes", "ratios", "padded", "maps"),
    [
        (
            ((32,), (64,), (128,), (256,), (512,)),
            (0.5, 1.0, 2.0),
            (800, 800),  # 800 / 13 is a stride of 61
            ((200, 200), (100, 100), (50, 50), (25, 25), (13, 13)),
        ),
        (((32, 40, 50), (64, 80, 101)), (0.5, 1.0, 2.0), (96, 160), ((12, 20), (6, 10))),
        (((7.5, 90),), (0.31, 1.0, 2.9), (50, 70), ((7, 9),)),
    ],
)
def test_equals_torchvisions_generator(sizes, ratios, padded, maps, dtype):
    generator = AnchorGenerator(sizes, (ratios,) * len(sizes))
    features = [torch.zeros(1, 1, *shape, dtype=dtype) for shape in maps]
    theirs = generator(ImageList(torch.zeros(1, 3, *padded), [padded]), features)[0]
    ours = [
        grid_anchors(
            cell_anchors(level, ratios).to(dtype),
            shape,
            (padded[0] // shape[0], padded[1] // shape[1]),
        )
        for level, shape in zip(sizes, maps, strict=True)
    ]
    assert torch.equal(torch.cat(ours), theirs)


def test_an_image_of_800_pixels_has_the_published_number_of_anchors():
    cell = cell_anchors((32,), (0.5, 1, 2))
    sides = (200, 100, 50, 25, 13)
    assert sum(len(grid_anchors(cell, (side, side), (4, 4))) for side in sides) == 159_882
