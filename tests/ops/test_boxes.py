"""Box geometry: numbers to check by hand, torchvision's values, empties."""

from __future__ import annotations

import pytest
import torch
from torchvision.ops import clip_boxes_to_image

from detkit.ops import box_area, box_iou, clip_boxes, pairwise_intersection, scale_boxes

EMPTY = torch.zeros(0, 4)


@pytest.mark.parametrize(
    ("box", "area"),
    [
        ([0, 0, 10, 10], 100),
        ([2.5, 1, 4, 3], 3),
        ([5, 5, 5, 9], 0),
        ([5, 5, 3, 9], -8),  # turned inside out: as it is, so that it can be noticed
    ],
)
def test_area(box, area):
    assert box_area(torch.tensor(box, dtype=torch.float32)) == area


def test_area_of_any_number_of_axes():
    boxes = torch.tensor([[0.0, 0, 2, 3], [0, 0, 4, 5]]).expand(7, 2, 4)
    assert box_area(boxes).tolist() == [[6, 20]] * 7


@pytest.mark.parametrize(
    ("other", "shared"),
    [
        ([0, 0, 10, 10], 100),
        ([5, 5, 15, 15], 25),
        ([2, 3, 4, 9], 12),  # inside
        ([10, 0, 20, 10], 0),  # side by side
        ([20, 20, 30, 30], 0),  # apart in both directions: -10 * -10 is no area
        ([3, -5, 8, 40], 50),  # across
    ],
)
def test_intersection(other, shared):
    first = torch.tensor([[0.0, 0, 10, 10]])
    second = torch.tensor([other], dtype=torch.float32)
    assert pairwise_intersection(first, second).tolist() == [[shared]]
    assert pairwise_intersection(second, first).tolist() == [[shared]]


def test_intersection_is_rows_by_columns():
    first = torch.tensor([[0.0, 0, 2, 2], [0, 0, 4, 4], [9, 9, 9, 9]])
    second = torch.tensor([[1.0, 1, 5, 5], [0, 0, 1, 1]])
    assert pairwise_intersection(first, second).tolist() == [[1, 1], [9, 1], [0, 0]]


def test_intersection_gives_torchvisions_iou():
    boxes = random_boxes(40), random_boxes(30)
    shared = pairwise_intersection(*boxes)
    union = box_area(boxes[0])[:, None] + box_area(boxes[1]) - shared
    assert torch.equal(shared / union, box_iou(*boxes))
    assert (shared > 0).any()


def test_clip():
    boxes = torch.tensor([[-5.0, -6, 50, 60], [90, 10, 120, 20], [200, 300, 210, 310]])
    clipped = clip_boxes(boxes, (40, 100))
    assert clipped.tolist() == [[0, 0, 50, 40], [90, 10, 100, 20], [100, 40, 100, 40]]


def test_clip_equals_torchvisions():
    boxes = random_boxes(50) * 2 - 30
    assert torch.equal(clip_boxes(boxes, (40, 60)), clip_boxes_to_image(boxes, (40, 60)))
    per_class = boxes.view(10, 5, 4)
    assert torch.equal(clip_boxes(per_class, (40, 60)).view(-1, 4), clip_boxes(boxes, (40, 60)))


def test_scale_takes_height_first():
    boxes = torch.tensor([[10.0, 20, 30, 40]])
    assert scale_boxes(boxes, (100, 200), (50, 400)).tolist() == [[20, 10, 60, 20]]
    assert torch.equal(scale_boxes(boxes, (7, 9), (7, 9)), boxes)


def test_no_boxes():
    one = torch.tensor([[0.0, 0, 1, 1]])
    assert box_area(EMPTY).shape == (0,)
    assert pairwise_intersection(EMPTY, one).shape == (0, 1)
    assert pairwise_intersection(one, EMPTY).shape == (1, 0)
    assert box_iou(EMPTY, EMPTY).shape == (0, 0)
    assert clip_boxes(EMPTY, (1, 1)).shape == (0, 4)
    assert scale_boxes(EMPTY, (10, 10), (20, 20)).shape == (0, 4)


def random_boxes(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(count)
    corner, size = torch.rand(2, count, 2, generator=generator)
    return torch.cat([corner, corner + size], dim=1) * 50
