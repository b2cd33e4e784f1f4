"""Sizes of objects, anchors and cells, and the picture of them."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from detkit.analysis import Level, Scales, box_sides, levels_of, plot_scales
from detkit.backbones import FeatureInfo
from detkit.config import ResizeConfig
from detkit.data import CocoDataset, CocoGroundTruth
from detkit.data.dataset import PackedStrings
from detkit.detectors import create_detector

LEVELS = (
    Level("fine", 4, 20, (16, 32)),
    Level("coarse", 8, 50, (64,)),
    Level("P4", 16, None, (128,)),
)


def dataset(tmp_path) -> CocoDataset:
    """Three boxes on a picture of 100 x 200 (height x width), two on one of 50 x 50."""
    xywh = [[0, 0, 16, 4], [190, 0, 20, 40], [0, 0, 9, 9], [0, 0, 5, 5], [7, 7, 0, 5]]
    truth = CocoGroundTruth(
        image_ids=np.array([3, 4]),
        category_ids=np.array([1]),
        gt_image_index=np.array([0, 0, 0, 1, 1]),
        gt_label=np.zeros(5, np.int64),
        gt_boxes_xywh=np.array(xywh, np.float64),
        gt_area=np.ones(5),
        gt_crowd=np.array([False, False, True, False, False]),
    )
    names = PackedStrings.pack(["a", "b"])
    return CocoDataset(tmp_path, names, np.array([[100, 200], [50, 50]]), truth, ("thing",))


def test_sides_are_those_of_the_resized_boxes(tmp_path):
    # the first picture is halved, the second doubled; one box reaches over the border, the crowd
    # region and the box without an area do not count
    sides = box_sides(dataset(tmp_path), ResizeConfig(shortest=None, longest=100))
    np.testing.assert_allclose(sides, [4, 10, 10])


def test_sides_follow_the_rounding_of_each_side(tmp_path):
    sides = box_sides(dataset(tmp_path), ResizeConfig(shortest=None, longest=33))
    # 100 x 200 becomes 16 x 33
    np.testing.assert_allclose(sides[0], np.sqrt(16 * 33 / 200 * 4 * 16 / 100))


def test_shares():
    scales = Scales(LEVELS, np.array([2.0, 4.0, 20.0, 50.0, 51.0]))
    assert (scales.finest_stride, scales.largest_field) == (4, 50)
    assert scales.smaller_than(4) == 0.2  # exactly as large is not smaller
    assert scales.larger_than(50) == 0.2
    assert Scales(LEVELS).larger_than(0) == 0
    assert Scales(LEVELS, np.zeros(0)).smaller_than(4) == 0


def test_levels_of_a_backbone():
    info = FeatureInfo("layer1", 64, 4, 35, 0.0)
    assert levels_of([info]) == (Level("layer1", 4, 35),)


def test_levels_of_a_detector_have_its_anchors():
    model = {
        "backbone": {"name": "resnet18", "width": 8, "out_indices": [2, 3]},
        "fpn": {"channels": 8, "extra": "pool"},
        "rpn": {"anchor_sizes": [[16, 24], [32, 48], [64, 96]], "aspect_ratios": [1.0]},
    }
    net = create_detector(model, num_classes=2)
    assert levels_of(net.backbone.feature_info, net) == (
        Level("layer2", 8, 99, (16, 24)),
        Level("layer3", 16, 211, (32, 48)),
        Level("P5", 32, None, (64, 96)),
    )


def test_levels_of_a_detector_in_one_stage():
    model = {
        "detector": "retinanet",
        "backbone": {"name": "resnet18", "width": 8, "out_indices": [2, 3]},
        "fpn": {"channels": 8, "extra": "p6p7"},
        "retinanet": {"octave_scales": 2, "aspect_ratios": [1.0]},
    }
    net = create_detector(model, num_classes=2)
    assert levels_of(net.backbone.feature_info, net) == (
        # 4 * 8 * sqrt(2) = 45.3, rounded to 45 and, from the centre on, to 22
        Level("layer2", 8, 99, (32, 44)),
        Level("layer3", 16, 211, (64, 90)),
        Level("P5", 32, None, (128, 180)),
        Level("P6", 64, None, (256, 362)),
    )


@pytest.mark.parametrize("detector", ["fcos", "task_aligned"])
def test_levels_of_a_detector_without_anchors(detector):
    model = {
        "detector": detector,
        "backbone": {"name": "resnet18", "width": 8, "out_indices": [2, 3]},
        "fpn": {"channels": 8, "extra": "p6p7"},
    }
    net = create_detector(model, num_classes=2)
    levels = levels_of(net.backbone.feature_info, net)
    assert [level.name for level in levels] == ["layer2", "layer3", "P5", "P6"]
    assert [level.stride for level in levels] == [8, 16, 32, 64]
    assert all(level.anchors == () for level in levels)
    assert plot_scales(Scales(levels), "no anchors").axes


def texts(figure) -> str:
    words = [text for axes in figure.axes for text in (*axes.texts, axes.title)]
    return "\n".join(each.get_text() for each in words)


def test_picture_says_the_shares():
    sides = np.geomspace(2, 100, 1001)
    scales = Scales(LEVELS, sides)
    figure = plot_scales(scales, "a title")
    objects, levels = figure.axes
    counted = sum(bar.get_height() for bar in objects.containers[0])
    assert counted == len(sides)  # none lies outside the axis
    said = texts(figure)
    assert f"{100 * np.mean(sides < 4):.1f} % smaller than the finest stride (4 px)" in said
    assert f"{100 * np.mean(sides > 50):.1f} % larger than the largest receptive field" in said
    assert f"20\n{100 * np.mean(sides > 20):.1f} % larger" in said
    assert f"{100 * np.mean(sides < 8):.1f} %\nsmaller" in said
    assert "field not known" in said
    assert [label.get_text() for label in levels.get_yticklabels()] == [
        "fine (stride 4)",
        "coarse (stride 8)",
        "P4 (stride 16)",
    ]
    spans = [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in levels.containers[0]]
    assert spans == [(4, 20), (8, 50), (16, 16)]


def test_fields_that_are_not_known_are_not_compared():
    """As of another library's network: no share of objects is larger than nothing."""
    scales = Scales((Level("a", 4, None), Level("b", 8, None)), np.array([2.0, 30, 60]))
    assert scales.largest_field is None
    objects, _ = plot_scales(scales, "title").axes
    assert "33.3 % smaller than the finest stride (4 px)" in objects.get_title()
    assert "larger" not in objects.get_title()
    assert len(objects.lines) == 1  # the stride


def test_words_do_not_meet():
    """Nothing that is written lies over something else that is, nor leaves the picture."""
    levels = tuple(Level(f"layer{i}", 2**i, 5 * 2**i, (3 * 2**i,)) for i in range(1, 7))
    for scales in (Scales(levels), Scales(levels, np.geomspace(0.5, 2000, 5000))):
        figure = plot_scales(scales, "title")
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        renderer = canvas.get_renderer()
        boxes = [
            text.get_window_extent(renderer)
            for axes in figure.axes
            for text in (*axes.texts, axes.title, *axes.get_xticklabels())
            if text.get_text() and text.get_visible()
        ]
        bars = [bar.get_window_extent(renderer) for bar in figure.axes[-1].patches]
        numbers = [text.get_window_extent(renderer) for text in figure.axes[-1].texts]
        assert not any(number.overlaps(bar) for number in numbers for bar in bars)
        for index, box in enumerate(boxes):
            assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1
            assert not any(box.overlaps(other) for other in boxes[:index])


@pytest.mark.parametrize("sides", [None, np.zeros(0)])
def test_picture_without_objects(tmp_path, sides):
    figure = plot_scales(Scales(LEVELS[:1], sides), "title")
    figure.savefig(tmp_path / "a.png")
    assert Image.open(tmp_path / "a.png").width > 400
    assert len(figure.axes) == (1 if sides is None else 2)
