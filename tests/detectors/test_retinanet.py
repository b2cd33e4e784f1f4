"""RetinaNet's anchors, by hand; how it learns is compared in test_dense_parity.py."""

from __future__ import annotations

import pytest

from detkit.detectors import create_detector


def cells_of(config):
    """(widths, heights) of the anchors of a cell, of each level."""
    grid = create_detector(config, num_classes=1).head.anchors
    sizes = []
    for level in range(len(grid.levels)):
        cell = grid.get_buffer(f"cell{level}")
        sizes.append(((cell[:, 2] - cell[:, 0]).tolist(), (cell[:, 3] - cell[:, 1]).tolist()))
    return sizes


def test_default_sizes_follow_the_strides(make_config):
    """Torchvision's table; with ratio 1 the anchors are squares of twice a rounded half."""
    model = make_config(
        detector="retinanet",
        backbone={"name": "resnet18"},
        fpn={"channels": 8},
        retinanet={"aspect_ratios": [1.0]},
    )
    table = [(32, 40, 50), (64, 80, 101), (128, 161, 203), (256, 322, 406), (512, 645, 812)]
    expected = [[2 * round(size / 2) for size in sizes] for sizes in table]
    assert [widths for widths, _ in cells_of(model)] == expected
    assert [heights for _, heights in cells_of(model)] == expected


def test_ratios_and_scales(make_config):
    """All scales of the first ratio, then of the next; a ratio is height / width."""
    model = make_config(
        detector="retinanet",
        backbone={"name": "resnet18"},
        fpn=None,
        retinanet={"aspect_ratios": [0.25, 4.0], "octave_scales": 1},
    )
    assert cells_of(model) == [([256, 64], [64, 256])]


@pytest.mark.parametrize("count", [1, 2, 4])
def test_as_many_scales_as_are_set(make_config, count):
    model = make_config(
        detector="retinanet", backbone={"name": "resnet18"}, retinanet={"octave_scales": count}
    )
    head = create_detector(model, num_classes=2).head
    assert head.anchors.num_anchors == 3 * count
    assert head.cls_logits.out_channels == 2 * 3 * count
