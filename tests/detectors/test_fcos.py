"""Which cell learns from which box, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from detkit.detectors import create_detector
from detkit.detectors.fcos import Cells, assign_cells, centerness
from detkit.ops import boxes_around, side_distances


def cells(*points, stride=8.0, lower=0.0, upper=math.inf):
    every = torch.tensor(points)
    limits = torch.tensor([[lower, upper]]).expand(len(every), 2)
    return Cells(every, torch.full((len(every),), stride), limits)


def assigned(cells, target, center_radius=1.5):
    """Index of the truth; -1 background, -2 ignored."""
    truth, positive, negative = assign_cells(cells, target, center_radius=center_radius)
    return torch.where(positive, truth, torch.where(negative, -1, -2)).tolist()


@pytest.mark.parametrize(
    ("point", "expected"),
    [
        ((50.0, 50.0), 0),  # the centre
        ((61.0, 50.0), 0),
        ((62.0, 50.0), -1),  # 1.5 strides from the centre
        ((50.0, 38.5), 0),
        ((50.0, 38.0), -1),
        ((39.0, 61.0), 0),  # to each side by itself
        ((90.0, 90.0), -1),  # in the box, but far from its centre
        ((9.0, 50.0), -1),  # outside
    ],
)
def test_cells_near_the_centre_learn(make_target, point, expected):
    one = make_target(torch.tensor([[10.0, 10, 90, 90]]), torch.tensor([2]))
    assert assigned(cells(point), one) == [expected]


def test_cells_on_the_border_are_outside(make_target):
    one = make_target(torch.tensor([[10.0, 10, 20, 20]]), torch.tensor([2]))
    points = [(10.0, 15.0), (10.1, 15.0), (20.0, 15.0), (15.0, 19.9), (15.0, 20.0)]
    assert assigned(cells(*points), one) == [-1, 0, -1, 0, -1]


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_the_smaller_box_wins(make_target, order):
    boxes = torch.tensor([[10.0, 10, 90, 90], [45, 45, 55, 60]])[order]
    found = assigned(cells((50.0, 50.0), (40.0, 50.0)), make_target(boxes, torch.tensor([0, 1])))
    assert found == [order.index(1), order.index(0)]


@pytest.mark.parametrize(
    ("lower", "upper", "expected"),
    [(0, 64, 0), (64, 128, -1), (0, 40, -1), (40, 64, -1), (39, 41, 0), (30, math.inf, 0)],
)
def test_level_of_a_box(make_target, lower, upper, expected):
    """The farthest side is 40 pixels away, at the limit of both levels in none."""
    one = make_target(torch.tensor([[10.0, 30, 90, 70]]), torch.tensor([2]))
    assert assigned(cells((50.0, 50.0), lower=lower, upper=upper), one) == [expected]


def test_level_follows_the_cell_and_not_the_box(make_target):
    """From a cell beside the centre the farthest side of the same box is farther."""
    one = make_target(torch.tensor([[10.0, 10, 90, 90]]), torch.tensor([2]))
    assert assigned(cells((50.0, 50.0), (58.0, 50.0), upper=45.0), one) == [0, -1]


def test_cells_in_a_crowd_are_ignored(make_target):
    boxes = torch.tensor([[0.0, 0, 100, 100], [40, 40, 60, 60]])
    both = make_target(boxes, torch.tensor([0, 1]), torch.tensor([True, False]))
    found = assigned(cells((50.0, 50.0), (20.0, 20.0), (120.0, 50.0)), both)
    assert found == [1, -2, -1]


def test_no_truth_and_no_cell(make_target):
    none = make_target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    assert assigned(cells((5.0, 5.0), (9.0, 9.0)), none) == [-1, -1]
    nothing = Cells(torch.zeros(0, 2), torch.zeros(0), torch.zeros(0, 2))
    one = make_target(torch.tensor([[10.0, 10, 90, 90]]), torch.tensor([2]))
    assert assigned(nothing, one) == assigned(nothing, none) == []


def test_distances_lead_back_to_the_box():
    points, boxes = torch.tensor([[5.0, 6.0]]), torch.tensor([[1.0, 2.0, 10.0, 20.0]])
    distances = side_distances(points, boxes)
    assert distances.tolist() == [[4, 4, 5, 14]]
    assert boxes_around(points, distances).tolist() == boxes.tolist()


@pytest.mark.parametrize(
    ("distances", "expected"),
    [
        ([5.0, 5, 5, 5], 1),
        ([1, 4, 4, 4], 0.5),  # sqrt(1/4 * 4/4)
        ([4, 4, 1, 4], 0.5),
        ([4, 1, 4, 4], 0.5),
        ([1, 8, 4, 2], 0.25),
        ([0, 4, 4, 4], 0),
    ],
)
def test_centerness(distances, expected):
    assert float(centerness(torch.tensor(distances))) == pytest.approx(expected)


def test_sizes_are_shared_among_the_levels(make_config):
    """Each size has one level: up to 8 strides of it, the rest the last."""
    model = make_config(detector="fcos", backbone={"name": "resnet18"}, fpn={"channels": 32})
    head = create_detector(model, num_classes=1).head
    assert [level.stride for level in head.levels] == [8, 16, 32, 64, 128]
    assert head.size_limits == (0, 64, 128, 256, 512, math.inf)


@pytest.mark.parametrize(("name", "center"), [("resnet18", 0.0), ("lenet5", 15.5)])
def test_cells_are_where_the_maps_say(name, center):
    """The first cell of a network that pads is at pixel 0; of another one it is not."""
    net = create_detector(
        {"detector": "fcos", "backbone": {"name": name}, "fpn": None}, num_classes=1
    ).eval()
    (info,) = net.backbone.feature_info
    output = net.head(net.backbone(torch.zeros(1, 3, 96, 64)))
    (found,) = net.head.cells(output, (96, 64))
    height, width = output.logits[0].shape[-2:]
    assert found.points.shape == (height * width, 2)
    assert found.points[0].tolist() == [center, center]
    assert found.points[1].tolist() == [center + info.stride, center]
    assert found.points[width].tolist() == [center, center + info.stride]
    assert set(found.strides.tolist()) == {info.stride}
