"""Every step of Faster R-CNN equals torchvision's, and every setting is seen by these tests.

Both detectors have the same random weights and pictures; `Pair` in conftest.py runs them. In
float64 the steps agree to 1e-12, so that a stride, an eps or a threshold has nowhere to hide.
"""

from __future__ import annotations

import inspect

import pytest
import torch
from torchvision.models.detection import (
    FasterRCNN,
    fasterrcnn_resnet50_fpn,
    fasterrcnn_resnet50_fpn_v2,
)
from torchvision.models.detection._utils import overwrite_eps
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import FrozenBatchNorm2d

from detkit.config import BackboneConfig, ModelConfig, RoIConfig, RPNConfig
from detkit.data.transforms import resized_shape
from detkit.detectors.torchvision_weights import PUBLISHED, convert_faster_rcnn

TOLERANCE = {
    "input": 1e-8,
    "stages": 1e-8,
    "pyramid": 1e-8,
    "anchors": 0.0,
    "rpn logits": 1e-8,
    "rpn offsets": 1e-8,
    "decoded": 1e-8,
    "train proposals": 1e-8,
    "test proposals": 1e-8,
    "patches": 1e-8,
    "roi logits": 1e-8,
    "roi offsets": 1e-8,
    "losses": 1e-6,  # torchvision resizes truths by a ratio in float32
    "boxes": 1e-4,  # and detections as well
    "scores": 1e-8,
    "labels": 0.0,
}

# Narrow, so that it is quick: the settings under test are all torchvision's
NARROW = {
    "backbone": {"name": "resnet18", "out_indices": [1, 2, 3]},
    "fpn": {"channels": 16},
    "rpn": {"anchor_sizes": [[32], [64], [128], [256]]},
    "roi": {"hidden": 32},
}


# ----------------------------------------------------------------------------- whole detectors


def default_resnet50(make_pair):
    """Settings that nobody touched, beside torchvision's own function."""
    theirs = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=8)
    return make_pair(ModelConfig(), theirs)


# Fewer regions in the second stage, so that it is quick
FEW = {"rpn_post_nms_top_n_test": 200, "box_batch_size_per_image": 128}
OUR_FEW = {"rpn": RPNConfig(post_nms_test=200), "roi": RoIConfig(samples=128)}


def published_resnet50(make_pair):
    """As torchvision builds it for its published file: frozen norms with an eps of 0."""
    body = resnet_fpn_backbone(backbone_name="resnet50", weights=None, norm_layer=FrozenBatchNorm2d)
    theirs = FasterRCNN(body, num_classes=8, **FEW)
    overwrite_eps(theirs, 0.0)
    return make_pair(PUBLISHED["fasterrcnn_resnet50_fpn"].model_copy(update=OUR_FEW), theirs)


def published_resnet50_v2(make_pair):
    theirs = fasterrcnn_resnet50_fpn_v2(
        weights=None, weights_backbone=None, num_classes=8, rpn_post_nms_top_n_test=100,
        box_batch_size_per_image=32,
    )  # fmt: skip
    config = PUBLISHED["fasterrcnn_resnet50_fpn_v2"]
    rpn = config.rpn.model_copy(update={"post_nms_test": 100})
    roi = config.roi.model_copy(update={"samples": 32})
    return make_pair(config.model_copy(update={"rpn": rpn, "roi": roi}), theirs)


def frozen_resnet18(make_pair):
    body = resnet_fpn_backbone(backbone_name="resnet18", weights=None, norm_layer=FrozenBatchNorm2d)
    backbone = BackboneConfig(name="resnet18", norm="frozen_batch")
    theirs = FasterRCNN(body, num_classes=8, **FEW)
    return make_pair(ModelConfig(backbone=backbone, **OUR_FEW), theirs)


def batch_statistics(make_pair):
    return make_pair(ModelConfig.model_validate(NARROW), train_norms=True)


def p6_and_p7(make_pair):
    sizes = [[32], [64], [128], [256], [512]]
    config = {**NARROW, "fpn": {"channels": 16, "extra": "p6p7"}, "rpn": {"anchor_sizes": sizes}}
    return make_pair(ModelConfig.model_validate(config))


def one_map(make_pair):
    """Without a pyramid, all anchors on the map of stride 16."""
    config = {
        "backbone": {"name": "resnet18", "out_indices": [3]},
        "fpn": None,
        "rpn": {"anchor_sizes": [[32, 64, 128]]},
        "roi": {"hidden": 32},
    }
    return make_pair(ModelConfig.model_validate(config))


@pytest.fixture(
    scope="module",
    params=[
        (default_resnet50, "small"),
        (published_resnet50, "photos"),
        (published_resnet50_v2, "small"),
        (frozen_resnet18, "small"),
        (batch_statistics, "generated"),
        (p6_and_p7, "generated"),
        (one_map, "generated"),
    ],
    ids=lambda param: f"{param[0].__name__}-{param[1]}",
)
def results(request, make_pair):
    """What torchvision gives, and what we give."""
    build, scene = request.param
    scene = request.getfixturevalue(scene)
    pair = build(make_pair)
    return pair.expected(scene), pair.found(scene)


@pytest.mark.parametrize("quantity", TOLERANCE)
def test_equals_torchvision(results, difference, quantity):
    expected, found = results
    assert difference(found[quantity], expected[quantity]) <= TOLERANCE[quantity]


def test_the_comparison_is_not_empty(results):
    """Numbers of order one, no ties, many different detections."""
    expected, _ = results
    for quantity in ("input", "stages", "pyramid", "rpn logits", "rpn offsets", "roi logits"):
        assert all(0.1 < values.std() < 10 for values in expected[quantity]), quantity
    for scores, labels in zip(expected["scores"], expected["labels"], strict=True):
        assert len(scores) == 100
        assert len(scores.unique()) > 90
        assert len(labels.unique()) > 2
    assert all(len(proposals) >= 100 for proposals in expected["test proposals"])
    assert all(0.1 < loss < 20 for loss in expected["losses"])


def test_gradients_equal_torchvisions(make_pair, small):
    """The losses agree not only in value, but in what is learnt from them."""
    pair = batch_statistics(make_pair)
    sum(pair.losses(small)).backward()
    sum(pair.our_losses(small)).backward()
    gradients = {key: value.grad for key, value in pair.theirs.named_parameters()}
    expected = convert_faster_rcnn(gradients)
    found = {key: value.grad for key, value in pair.ours.named_parameters()}
    assert found.keys() == expected.keys()
    for key, gradient in found.items():
        scale = expected[key].abs().max()
        assert scale > 0, key
        torch.testing.assert_close(gradient, expected[key], rtol=0, atol=float(1e-5 * scale))
    # the running statistics have moved, and moved alike
    state = convert_faster_rcnn(pair.theirs.state_dict())
    assert int(state["backbone.bn1.num_batches_tracked"]) > 7
    torch.testing.assert_close(pair.ours.state_dict(), state, rtol=1e-9, atol=1e-9)


def test_float32(make_pair, small, check_float32):
    """The precision that is used."""
    scene = small.to(torch.float32)
    pair = make_pair(ModelConfig.model_validate(NARROW), dtype=torch.float32)
    expected, found = pair.expected(scene), pair.found(scene)
    steps = ("input", "stages", "pyramid", "anchors", "rpn logits", "rpn offsets")
    check_float32(found, expected, steps)


# ----------------------------------------------------------------------------------- settings

# Settings that torchvision has too: a value that is not its default, and what must see it.
SHARED = [
    ("backbone.norm_eps", 2e-5, "stages"),
    ("mean", [0.485, 0.456, 0.41], "input"),
    ("std", [0.229, 0.22, 0.225], "input"),
    ("rpn.anchor_sizes", [[32], [64], [128], [250]], "anchors"),
    ("rpn.aspect_ratios", [0.5, 1.0, 1.9], "anchors"),
    ("rpn.positive_iou", 0.6, "losses"),
    ("rpn.negative_iou", 0.2, "losses"),
    ("rpn.samples", 200, "losses"),
    ("rpn.samples", 20_000, "losses"),  # more than there are
    ("rpn.positive_fraction", 0.4, "losses"),
    ("rpn.pre_nms_train", 1500, "train proposals"),
    ("rpn.pre_nms_test", 700, "test proposals"),
    ("rpn.post_nms_train", 900, "train proposals"),
    ("rpn.post_nms_test", 300, "test proposals"),
    ("rpn.nms_iou", 0.6, "test proposals"),
    ("rpn.score_threshold", 0.8, "test proposals"),
    ("rpn.min_size", 9.0, "test proposals"),
    ("roi.sampling_ratio", 1, "patches"),
    ("roi.sampling_ratio", 0, "patches"),
    ("roi.canonical_size", 112.0, "patches"),
    ("roi.canonical_level", 5, "patches"),
    ("roi.positive_iou", 0.6, "losses"),
    ("roi.negative_iou", 0.4, "losses"),
    ("roi.samples", 400, "losses"),
    ("roi.samples", 5000, "losses"),  # more than there are
    ("roi.positive_fraction", 0.2, "losses"),
    ("roi.box_weights", [10.0, 10.0, 5.0, 4.0], "losses"),
    ("roi.box_weights", [10.0, 9.0, 5.0, 5.0], "boxes"),
    ("select.score_threshold", 0.95, "boxes"),
    ("select.iou_threshold", 0.4, "boxes"),
    ("select.max_detections", 99, "boxes"),
]
# Settings of both that change the shape of the weights.
SHAPES = [
    ("fpn.channels", 8),
    ("rpn.anchor_sizes", [[32, 40], [64, 80], [128, 160], [256, 320]]),
    ("rpn.aspect_ratios", [0.5, 2.0]),
    ("roi.resolution", 5),
    ("roi.hidden", 24),
]
# Settings of both that add layers, or take some away.
LAYERS = [
    {"rpn.convs": 2},
    {"roi.convs": 2, "roi.conv_channels": 12, "roi.fcs": 1},
    {"roi.convs": 1, "roi.conv_norm": "group", "roi.fcs": 1},
    {"roi.convs": 1, "roi.conv_norm": None, "roi.fcs": 1},
    {"fpn.norm": "batch"},
    {"fpn.norm": "group", "fpn.channels": 64},
    {"fpn.extra": "p6p7", "fpn.p6_source": "c5", "rpn.anchor_sizes": [[32]] * 5},
]
# Settings that torchvision lacks, with its value written into its code.
OURS = [
    ("rpn.smooth_l1_beta", 0.12, "losses"),
    ("roi.smooth_l1_beta", 0.12, "losses"),
    ("select.min_size", 30.0, "boxes"),
    ("roi.aligned", True, "patches"),
    ("roi.box_loss", "giou", "losses"),
    ("roi.box_loss_weight", 1.1, "losses"),
    ("roi.pool", "pool", "patches"),
    ("roi.class_loss", "focal", "losses"),
    ("roi.label_smoothing", 0.1, "losses"),
    ("roi.class_weights", [1.0] * 7 + [0.5], "losses"),
    ("roi.sampler", "random", "losses"),
    ("roi.sampler", "ohem", "losses"),
    ("rpn.sampler", "random", "losses"),
]
# Settings of other rungs of the ladder, or of one value of those above: not of Faster R-CNN.
ELSEWHERE = {
    "roi.focal_gamma",
    "roi.hard_iou",
    *(f"roi.{name}" for name in ("crop_size", "context", "chunk", "max_regions")),
    *(f"roi.{name}" for name in ("stages", "stage_ious", "stage_loss_weights")),
    "rpn.anchor_boxes",  # equal to sizes and ratios, in test_anchor_boxes_are_sizes_and_ratios
}


def changed(key, value):
    """The narrow settings with one of them changed."""
    return with_changes({key: value})


def with_changes(changes):
    """The narrow settings with several of them changed."""
    config = {name: dict(section) for name, section in NARROW.items()}
    for key, value in changes.items():
        section, dot, name = key.rpartition(".")
        (config.setdefault(section, {}) if dot else config)[name] = value
    return ModelConfig.model_validate(config)


@pytest.fixture(scope="module")
def narrow(make_pair):
    return make_pair(ModelConfig.model_validate(NARROW))


@pytest.fixture(scope="module")
def narrow_expected(narrow, small):
    return narrow.expected(small)


def test_narrow_detectors_agree(narrow, narrow_expected, small, difference):
    found = narrow.found(small)
    for quantity, tolerance in TOLERANCE.items():
        assert difference(found[quantity], narrow_expected[quantity]) <= tolerance, quantity


@pytest.fixture(scope="module", params=SHARED, ids=[f"{key}={value}" for key, value, _ in SHARED])
def change(request, narrow, make_pair, small):
    """A changed setting: what must see it, what torchvision gives with it, and what we give."""
    key, value, quantity = request.param
    pair = make_pair(changed(key, value), weights=narrow.theirs.state_dict())
    return quantity, pair.expected(small), pair.found(small)


def test_changed_setting_is_seen(change, narrow_expected, difference):
    quantity, _, found = change
    # far beyond the tolerance, so that the equality of the others means something
    assert difference(found[quantity], narrow_expected[quantity]) > 100 * TOLERANCE[quantity] + 1e-6


def test_changed_setting_equals_torchvisions(change, difference):
    """The setting is reachable, and means the same there and here."""
    _, expected, found = change
    for quantity, tolerance in TOLERANCE.items():
        assert difference(found[quantity], expected[quantity]) <= tolerance, quantity


@pytest.mark.parametrize(("key", "value", "quantity"), OURS)
def test_changed_constant_of_torchvision_is_seen(
    key, value, quantity, narrow, narrow_expected, small, difference
):
    found = narrow.found(small, narrow.with_settings(changed(key, value)))
    assert difference(found[quantity], narrow_expected[quantity]) > 100 * TOLERANCE[quantity] + 1e-6


@pytest.mark.parametrize(("key", "value"), [*SHAPES, ("roi.class_agnostic", True)])
def test_changed_shape_does_not_load(key, value, narrow):
    with pytest.raises(RuntimeError, match="size mismatch"):
        narrow.with_settings(changed(key, value))


@pytest.mark.parametrize(("key", "value"), SHAPES)
def test_changed_shape_equals_torchvisions(key, value, make_pair, small, difference):
    pair = make_pair(changed(key, value))
    expected, found = pair.expected(small), pair.found(small)
    for quantity, tolerance in TOLERANCE.items():
        assert difference(found[quantity], expected[quantity]) <= tolerance, quantity


@pytest.mark.parametrize("changes", LAYERS, ids=lambda changes: ",".join(changes))
def test_other_layers_equal_torchvisions(changes, make_pair, small, difference):
    pair = make_pair(with_changes(changes))
    expected, found = pair.expected(small), pair.found(small)
    for quantity, tolerance in TOLERANCE.items():
        assert difference(found[quantity], expected[quantity]) <= tolerance, quantity


def test_defaults_are_torchvisions():
    """Also those that small pictures do not reach."""
    given = inspect.signature(FasterRCNN).parameters
    theirs = {
        name: given[name].default for name in given if name.startswith(("rpn", "box", "bbox"))
    }
    config = ModelConfig()
    rpn, roi, select = config.rpn, config.roi, config.select
    assert {name: value for name, value in theirs.items() if value is not None} == {
        "rpn_pre_nms_top_n_train": rpn.pre_nms_train,
        "rpn_pre_nms_top_n_test": rpn.pre_nms_test,
        "rpn_post_nms_top_n_train": rpn.post_nms_train,
        "rpn_post_nms_top_n_test": rpn.post_nms_test,
        "rpn_nms_thresh": rpn.nms_iou,
        "rpn_fg_iou_thresh": rpn.positive_iou,
        "rpn_bg_iou_thresh": rpn.negative_iou,
        "rpn_batch_size_per_image": rpn.samples,
        "rpn_positive_fraction": rpn.positive_fraction,
        "rpn_score_thresh": rpn.score_threshold,
        "box_score_thresh": select.score_threshold,
        "box_nms_thresh": select.iou_threshold,
        "box_detections_per_img": select.max_detections,
        "box_fg_iou_thresh": roi.positive_iou,
        "box_bg_iou_thresh": roi.negative_iou,
        "box_batch_size_per_image": roi.samples,
        "box_positive_fraction": roi.positive_fraction,
    }
    network = RegionProposalNetwork(None, None, 0.7, 0.3, 1, 0.5, {}, {}, 0.7)
    assert network.min_size == rpn.min_size


def test_no_level_beyond_the_pyramid(make_pair, small, difference):
    config = {**NARROW, "fpn": {"channels": 16, "extra": None}}
    config["rpn"] = {"anchor_sizes": [[32], [64], [128]]}
    pair = make_pair(ModelConfig.model_validate(config))
    expected, found = pair.expected(small), pair.found(small)
    assert len(expected["pyramid"]) == 3
    for quantity, tolerance in TOLERANCE.items():
        assert difference(found[quantity], expected[quantity]) <= tolerance, quantity


def test_every_setting_is_in_the_tables():
    named = {entry[0] for entry in SHARED + SHAPES + OURS} | {"roi.class_agnostic"}
    named |= {key for changes in LAYERS for key in changes}
    fields = {f"rpn.{name}" for name in RPNConfig.model_fields}
    fields |= {f"roi.{name}" for name in RoIConfig.model_fields}
    assert fields - named == ELSEWHERE


def test_anchor_boxes_are_sizes_and_ratios(narrow, small, narrow_expected, difference):
    grid = narrow.ours.rpn.anchors
    cells = [grid.get_buffer(f"cell{level}") for level in range(len(grid.levels))]
    boxes = [(cell[:, 2:] - cell[:, :2]).flip(1).tolist() for cell in cells]
    config = with_changes({"rpn.anchor_sizes": None, "rpn.anchor_boxes": boxes})
    found = narrow.found(small, narrow.with_settings(config))
    for quantity, tolerance in TOLERANCE.items():
        assert difference(found[quantity], narrow_expected[quantity]) <= tolerance, quantity


def test_one_box_for_all_classes_equals_equal_boxes_for_each(narrow, small, difference):
    """Torchvision has no such option, but its layer can be given the same rows for every class."""
    ours = narrow.with_settings(ModelConfig.model_validate(NARROW)).requires_grad_(False)
    layer = ours.roi.head.bbox_pred
    for values in (layer.weight, layer.bias):
        values.copy_(values[:4].repeat(7, *[1] * (values.ndim - 1)))
    shared = narrow.found(small, ours)
    config = changed("roi.class_agnostic", True)
    state = {
        key: value[:4] if key.startswith("roi.head.bbox_pred") else value
        for key, value in ours.state_dict().items()
    }
    found = narrow.found(small, narrow.with_settings(config, state))
    for quantity in ("losses", "boxes", "scores", "labels"):
        assert difference(found[quantity], shared[quantity]) <= 1e-9, quantity


# ----------------------------------------------------------------------------------- pictures


@pytest.mark.parametrize(
    ("height", "width", "shortest", "longest"),
    [
        (480, 640, 800, 1333),
        (640, 427, 800, 1333),
        (333, 500, 800, 1333),
        (100, 700, 800, 1333),  # the longest side decides
        (10, 37, 20, 33),
        (375, 500, 320, 320),
        (101, 103, 64, 1000),
        (97, 89, 97, 97),
        (600, 601, 333, 333),
    ],
)
def test_size_after_resizing(height, width, shortest, longest):
    transform = GeneralizedRCNNTransform(shortest, longest, [0.0] * 3, [1.0] * 3).eval()
    batch, _ = transform([torch.zeros(3, height, width)])
    expected = resized_shape(height, width, shortest=shortest, longest=longest)
    assert tuple(batch.image_sizes[0]) == expected


def test_padding_is_zero_after_normalising(narrow, generated):
    batch = generated.batch()
    images = narrow.ours.normalize(batch)
    for image, pixels, (height, width) in zip(images, batch.images, batch.sizes, strict=True):
        assert (pixels[:, height:] == 114).all()
        assert (image[:, height:] == 0).all()
        assert (image[:, :, width:] == 0).all()
        assert (image[:, :height, :width] != 0).float().mean() > 0.99
    assert any(height < images.shape[2] for height, _ in batch.sizes)
    assert any(width < images.shape[3] for _, width in batch.sizes)
