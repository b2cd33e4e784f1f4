"""Every step of RetinaNet and FCOS equals torchvision's, and every setting is seen by these tests.

Both detectors have the same random weights and pictures; `DensePair` in conftest.py runs them.
"""

from __future__ import annotations

import inspect
from dataclasses import replace

import pytest
import torch
from torchvision.models.detection import (
    FCOS,
    RetinaNet,
    fcos_resnet50_fpn,
    retinanet_resnet50_fpn,
    retinanet_resnet50_fpn_v2,
)
from torchvision.models.detection._utils import overwrite_eps
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.models.resnet import resnet50
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from detkit.config import FCOSConfig, ModelConfig, RetinaNetConfig, SelectConfig
from detkit.detectors import create_detector
from detkit.detectors.torchvision_weights import PUBLISHED, convert

TOLERANCE = {
    "input": 1e-8,
    "stages": 1e-8,
    "pyramid": 1e-8,
    "anchors": 0.0,
    "logits": 1e-8,
    "offsets": 1e-8,
    "centerness": 1e-8,
    "decoded": 1e-8,
    "losses": 1e-6,  # torchvision resizes truths by a ratio in float32
    "boxes": 1e-4,  # and detections as well
    "scores": 1e-8,
    "labels": 0.0,
}
# Narrow, so that it is quick: the settings under test are all torchvision's
NARROW = {
    "retinanet": {"backbone": {"name": "resnet18"}, "fpn": {"channels": 16}},
    "fcos": {"backbone": {"name": "resnet18"}, "fpn": {"channels": 64}},
}


def agree(found, expected, difference):
    assert found.keys() == expected.keys()
    # of all losses relative to the largest, which without truths is large
    found, expected = ({**r, "losses": [x / max(expected["losses"]) for x in r["losses"]]}
                       for r in (found, expected))  # fmt: skip
    for quantity in expected:
        assert difference(found[quantity], expected[quantity]) <= TOLERANCE[quantity], quantity


@pytest.fixture(scope="module")
def half_empty(generated):
    """Two pictures, the second without any truth."""
    boxes = [generated.boxes[0], generated.boxes[1][:0]]
    return replace(generated, boxes=boxes, labels=[generated.labels[0], generated.labels[1][:0]])


# ----------------------------------------------------------------------------- whole detectors


def default_retinanet(make_dense_pair):
    """Settings that nobody touched, beside torchvision's own function."""
    theirs = retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=8)
    return make_dense_pair(ModelConfig(detector="retinanet"), theirs)


def frozen_body():
    """The body of the published files."""
    return _resnet_fpn_extractor(
        resnet50(weights=None, norm_layer=FrozenBatchNorm2d),
        3,
        returned_layers=[2, 3, 4],
        extra_blocks=LastLevelP6P7(256, 256),
    )


def published_retinanet(make_dense_pair):
    """As torchvision builds it for its published file: frozen norms with an eps of 0."""
    theirs = RetinaNet(frozen_body(), num_classes=8)
    overwrite_eps(theirs, 0.0)
    return make_dense_pair(PUBLISHED["retinanet_resnet50_fpn"], theirs)


def published_retinanet_v2(make_dense_pair):
    theirs = retinanet_resnet50_fpn_v2(weights=None, weights_backbone=None, num_classes=8)
    return make_dense_pair(PUBLISHED["retinanet_resnet50_fpn_v2"], theirs)


def default_fcos(make_dense_pair):
    theirs = fcos_resnet50_fpn(weights=None, weights_backbone=None, num_classes=8)
    return make_dense_pair(ModelConfig(detector="fcos"), theirs)


def published_fcos(make_dense_pair):
    """Frozen norms, too, with the usual eps."""
    return make_dense_pair(PUBLISHED["fcos_resnet50_fpn"], FCOS(frozen_body(), num_classes=8))


def narrow_retinanet(make_dense_pair):
    config = {"detector": "retinanet", **NARROW["retinanet"]}
    return make_dense_pair(ModelConfig.model_validate(config), train_norms=True)


def narrow_fcos(make_dense_pair):
    config = {"detector": "fcos", **NARROW["fcos"]}
    return make_dense_pair(ModelConfig.model_validate(config), train_norms=True)


@pytest.fixture(
    scope="module",
    params=[
        (default_retinanet, "small"),
        (published_retinanet, "small"),
        (published_retinanet_v2, "small"),
        (default_fcos, "small"),
        (published_fcos, "small"),
        (narrow_retinanet, "half_empty"),
        (narrow_retinanet, "photos"),
        (narrow_fcos, "half_empty"),
        (narrow_fcos, "photos"),
    ],
    ids=lambda param: f"{param[0].__name__}-{param[1]}",
)
def results(request, make_dense_pair):
    """What torchvision gives, and what we give."""
    build, scene = request.param
    scene = request.getfixturevalue(scene)
    pair = build(make_dense_pair)
    return pair.expected(scene), pair.found(scene)


def test_equals_torchvision(results, difference):
    expected, found = results
    agree(found, expected, difference)


def test_the_comparison_is_not_empty(results):
    """Numbers of order one, no ties, many different detections."""
    expected, _ = results
    for quantity in {"input", "stages", "pyramid", "logits", "offsets"} & expected.keys():
        assert all(0.1 < values.std() < 10 for values in expected[quantity]), quantity
    for scores, labels in zip(expected["scores"], expected["labels"], strict=True):
        assert len(scores) >= 100
        assert len(scores.unique()) > 0.9 * len(scores)
        assert len(labels.unique()) > 2
    # without truths nothing divides the sum over the cells
    assert all(0.01 < loss < 10_000 for loss in expected["losses"])


@pytest.mark.parametrize("build", [narrow_retinanet, narrow_fcos])
def test_gradients_equal_torchvisions(build, make_dense_pair, half_empty):
    """The losses agree not only in value, but in what is learnt from them."""
    pair = build(make_dense_pair)
    sum(pair.losses(half_empty)).backward()
    sum(pair.our_losses(half_empty)).backward()
    expected = convert({key: value.grad for key, value in pair.theirs.named_parameters()})
    found = {key: value.grad for key, value in pair.ours.named_parameters()}
    assert found.keys() == expected.keys()
    for key, gradient in found.items():
        scale = expected[key].abs().max()
        assert scale > 0, key
        torch.testing.assert_close(gradient, expected[key], rtol=0, atol=float(1e-5 * scale))


@pytest.mark.parametrize("detector", NARROW)
def test_no_truth_at_all(detector, narrow, small, difference):
    """Of three losses only that of the classes has anything to learn."""
    empty = replace(small, boxes=[small.boxes[0][:0]], labels=[small.labels[0][:0]])
    pair, _ = narrow(detector)
    expected, found = pair.losses(empty), pair.our_losses(empty)
    assert difference(found, expected) <= 1e-8 * expected[0]
    assert expected[0] > 1
    assert all(loss == 0 for loss in expected[1:])
    sum(found).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in pair.ours.parameters())
    pair.ours.zero_grad()


@pytest.mark.parametrize("detector", NARROW)
def test_float32(detector, make_dense_pair, small, check_float32):
    """The precision that is used."""
    scene = small.to(torch.float32)
    pair = make_dense_pair(changed(detector), dtype=torch.float32)
    expected, found = pair.expected(scene), pair.found(scene)
    steps = ("input", "stages", "pyramid", "anchors", "logits", "offsets")
    check_float32(found, expected, steps)


# ----------------------------------------------------------------------------------- settings

# Settings that torchvision has too: a value that is not its default, and what must see it.
SHARED = [
    ("retinanet", "backbone.norm_eps", 2e-5, "stages"),
    ("retinanet", "retinanet.anchor_sizes", [[x, x + 9, x + 15] for x in (32, 64, 128, 256, 512)],
     "anchors"),
    ("retinanet", "retinanet.positive_iou", 0.6, "losses"),
    ("retinanet", "retinanet.negative_iou", 0.3, "losses"),
    ("retinanet", "retinanet.box_loss", "giou", "losses"),
    ("retinanet", "retinanet.smooth_l1_beta", 1.0, "losses"),
    ("retinanet", "select.score_threshold", 0.9, "boxes"),
    ("retinanet", "select.pre_nms", 200, "boxes"),
    ("retinanet", "select.iou_threshold", 0.4, "boxes"),
    ("retinanet", "select.max_detections", 200, "boxes"),
    ("fcos", "fcos.center_radius", 1.0, "losses"),
    ("fcos", "fcos.center_radius", 2.5, "losses"),
    ("fcos", "select.score_threshold", 0.85, "boxes"),
    ("fcos", "select.pre_nms", 20, "boxes"),
    ("fcos", "select.iou_threshold", 0.4, "boxes"),
    ("fcos", "select.max_detections", 90, "boxes"),
]  # fmt: skip
# Settings of both that change the weights.
LAYERS = [
    ("retinanet", {"fpn.channels": 8}),
    ("retinanet", {"retinanet.anchor_sizes": [[32], [64], [128], [256], [512]]}),
    ("retinanet", {"retinanet.aspect_ratios": [0.5, 2.0]}),
    ("retinanet", {"retinanet.norm": "group"}),
    ("retinanet", {"fpn.p6_source": "c5"}),
    ("retinanet", {"fpn.norm": "batch"}),
    ("retinanet", {"fpn.extra": None, "retinanet.anchor_sizes": [[32], [64], [128]]}),
    ("retinanet", {"fpn.extra": "pool", "retinanet.anchor_sizes": [[32], [64], [128], [256]]}),
    ("retinanet", {"fpn": None, "backbone.out_indices": [3], "retinanet.anchor_sizes": [[32, 64]]}),
    ("fcos", {"fpn.channels": 128}),
    ("fcos", {"fpn.p6_source": "c5"}),
    ("fcos", {"fcos.convs": 2}),
]
# Settings that torchvision lacks, with its value written into its code.
OURS = [
    ("retinanet", "retinanet.focal_alpha", 0.3, "losses"),
    ("retinanet", "retinanet.focal_gamma", 1.5, "losses"),
    ("retinanet", "retinanet.box_loss_weight", 1.1, "losses"),
    ("fcos", "fcos.focal_alpha", 0.3, "losses"),
    ("fcos", "fcos.focal_gamma", 1.5, "losses"),
    ("fcos", "fcos.size_limits", [50, 100, 200, 400], "losses"),
]
# Tested below: how many layers and anchors there are, and how they start
ELSEWHERE = {
    *("retinanet.octave_scales", "retinanet.convs", "retinanet.prior"),
    *("fcos.norm", "fcos.prior"),
}


def changed(detector, changes=()):
    """The narrow settings with some of them changed."""
    config = {"detector": detector}
    config |= {name: dict(section) for name, section in NARROW[detector].items()}
    for key, value in dict(changes).items():
        section, dot, name = key.rpartition(".")
        (config.setdefault(section, {}) if dot else config)[name] = value
    return ModelConfig.model_validate(config)


@pytest.fixture(scope="module")
def narrow(make_dense_pair, small):
    """From a detector to its narrow pair, and what torchvision gives with it."""
    made = {}

    def get(detector):
        if detector not in made:
            pair = make_dense_pair(changed(detector))
            made[detector] = pair, pair.expected(small)
        return made[detector]

    return get


@pytest.mark.parametrize("detector", NARROW)
def test_narrow_detectors_agree(detector, narrow, small, difference):
    pair, expected = narrow(detector)
    agree(pair.found(small), expected, difference)


@pytest.mark.parametrize(
    ("detector", "key", "value", "quantity"), SHARED, ids=[f"{e[1]}={e[2]}" for e in SHARED]
)
def test_changed_setting(
    detector, key, value, quantity, narrow, make_dense_pair, small, difference
):
    """It is seen, far beyond the tolerance, and means the same there and here."""
    pair, before = narrow(detector)
    pair = make_dense_pair(changed(detector, {key: value}), weights=pair.theirs.state_dict())
    expected, found = pair.expected(small), pair.found(small)
    assert difference(found[quantity], before[quantity]) > 100 * TOLERANCE[quantity] + 1e-6
    agree(found, expected, difference)


@pytest.mark.parametrize(
    ("detector", "key", "value", "quantity"), OURS, ids=[entry[1] for entry in OURS]
)
def test_changed_constant_of_torchvision_is_seen(
    detector, key, value, quantity, narrow, small, difference
):
    pair, before = narrow(detector)
    found = pair.found(small, pair.with_settings(changed(detector, {key: value})))
    assert difference(found[quantity], before[quantity]) > 100 * TOLERANCE[quantity] + 1e-6


@pytest.mark.parametrize(("detector", "changes"), LAYERS, ids=str)
def test_other_layers_equal_torchvisions(detector, changes, make_dense_pair, small, difference):
    pair = make_dense_pair(changed(detector, changes))
    agree(pair.found(small), pair.expected(small), difference)


def test_every_setting_is_in_the_tables():
    named = {entry[1] for entry in SHARED + OURS} | ELSEWHERE
    named |= {key for _, changes in LAYERS for key in changes}
    fields = {f"retinanet.{name}" for name in RetinaNetConfig.model_fields}
    fields |= {f"fcos.{name}" for name in FCOSConfig.model_fields}
    assert fields - named == set()


OF_MATCHING = {
    "retinanet": {"positive_iou": "fg_iou_thresh", "negative_iou": "bg_iou_thresh"},
    "fcos": {"center_radius": "center_sampling_radius"},
}


@pytest.mark.parametrize(("detector", "theirs"), [("retinanet", RetinaNet), ("fcos", FCOS)])
def test_defaults_are_torchvisions(detector, theirs):
    """Also those that small pictures do not reach."""
    given = inspect.signature(theirs).parameters
    config = ModelConfig(detector=detector)
    section = getattr(config, detector)
    for name, their_name in OF_MATCHING[detector].items():
        assert getattr(section, name) == given[their_name].default
    assert config.select == SelectConfig(
        score_threshold=given["score_thresh"].default,
        iou_threshold=given["nms_thresh"].default,
        max_detections=given["detections_per_img"].default,
        pre_nms=given["topk_candidates"].default,
    )


@pytest.mark.parametrize(
    ("detector", "build"), [("retinanet", retinanet_resnet50_fpn), ("fcos", fcos_resnet50_fpn)]
)
def test_untrained_heads_start_alike(detector, build, make_config):
    """Weights of the same spread, and the same biases."""
    torch.manual_seed(0)
    ours = create_detector(make_config(detector=detector), num_classes=7).state_dict()
    theirs = convert(build(weights=None, weights_backbone=None, num_classes=8).state_dict())
    for key, value in ours.items():
        if not key.startswith("head."):
            continue
        spread, expected = (float(each.std(correction=0)) for each in (value, theirs[key]))
        assert spread == pytest.approx(expected, rel=0.05, abs=1e-8), key
        if key.endswith("bias"):
            torch.testing.assert_close(value, theirs[key])
