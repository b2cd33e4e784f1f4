"""From settings to a detector, and one clear line where the settings cannot be."""

from __future__ import annotations

import pytest
import torch

from detkit.config import BackboneConfig, ConfigError, ModelConfig
from detkit.detectors import Detector, RegionProposal, create_detector
from detkit.detectors.base import MapGeometry
from detkit.detectors.factory import without_weights
from detkit.detectors.rpn import AnchorGrid

SMALL = {
    "backbone": {"name": "resnet18", "out_indices": [1, 2]},
    "fpn": {"channels": 8},
    "rpn": {"anchor_sizes": [[32], [64], [128]]},
    "roi": {"hidden": 8},
}


def test_settings_as_a_section_or_as_plain_values():
    by_dict = create_detector(SMALL, num_classes=3)
    by_config = create_detector(ModelConfig.model_validate(SMALL), num_classes=3)
    assert isinstance(by_dict, RegionProposal)
    assert isinstance(by_dict, Detector)
    shapes = [{k: v.shape for k, v in d.state_dict().items()} for d in (by_dict, by_config)]
    assert shapes[0] == shapes[1]


def test_settings_from_a_recipe(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(
        "model:\n  backbone: {name: resnet18, out_indices: [2]}\n  fpn: {channels: 8}\n"
        "  rpn: {anchor_sizes: [[32], [64]]}\n  roi: {hidden: 8}\n"
    )
    for given in (path, str(path)):
        detector = create_detector(given, num_classes=2)
        assert detector.roi.head.cls_score.out_features == 3
        assert [info.name for info in detector.backbone.feature_info] == ["layer2"]


def test_name_of_a_published_model():
    detector = create_detector("fasterrcnn_resnet50_fpn", num_classes=2)
    assert detector.backbone.name == "resnet50"
    assert detector.backbone.frozen_stages == 2
    assert detector.backbone.bn1.eps == 0


def test_classes_are_counted_without_background():
    head = create_detector(SMALL, num_classes=3).roi.head
    assert (head.cls_score.out_features, head.bbox_pred.out_features) == (4, 12)
    agnostic = {**SMALL, "roi": {"hidden": 8, "class_agnostic": True}}
    head = create_detector(agnostic, num_classes=3).roi.head
    assert (head.cls_score.out_features, head.bbox_pred.out_features) == (4, 4)


def test_proposals_start_near_the_anchors_and_undecided():
    head = create_detector({**SMALL, "fpn": {"channels": 64}}, num_classes=3).rpn.head
    for layer in (head.conv, head.cls_logits, head.bbox_pred):
        assert 0.008 < layer.weight.std() < 0.012
        assert (layer.bias == 0).all()


def test_what_comes_from_settings_is_not_in_the_weights():
    state = create_detector(SMALL, num_classes=3).state_dict()
    assert {key.split(".")[0] for key in state} == {"backbone", "neck", "rpn", "roi"}
    assert not any("cell" in key or "anchor" in key for key in state)


def without_pyramid(indices, sizes):
    return {
        "backbone": {"name": "resnet18", "out_indices": indices},
        "fpn": None,
        "rpn": {"anchor_sizes": sizes},
    }


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            {**SMALL, "rpn": {"anchor_sizes": [[32], [64]]}},
            "model.rpn.anchor_sizes has 2 entries for 3 feature maps; give one list of sizes a map",
        ),
        (
            {**SMALL, "fpn": {"channels": 8, "extra": "p6p7"}},
            "model.rpn.anchor_sizes has 3 entries for 4 feature maps",
        ),
        (
            {**SMALL, "rpn": {"anchor_sizes": [[32], [64, 80], [128]]}},
            "every level needs the same number of anchor sizes",
        ),
        (
            without_pyramid([2, 3], [[32], [64]]),
            r"without model.fpn all maps need .* got \[128, 256\]; give .*out_indices one entry",
        ),
        ({"backbone": {"name": "resnet5"}}, "unknown backbone 'resnet5'; did you mean 'resnet50'"),
        ({"backbone": {"out_indices": [1, 9]}}, r"out_indices \(1, 9\) not in -5..4 for resnet50"),
        ({"backbone": {"attention": "cbm"}}, "unknown attention module 'cbm'; did you mean 'cbam'"),
        ("fasterrcnn_resnet50_fp", "unknown detector .* did you mean 'fasterrcnn_resnet50_fpn'"),
        ("yolo", "unknown detector 'yolo'; allowed: fasterrcnn_resnet50_fpn, .*; or a recipe"),
        ("nowhere/x.yaml", "no recipe at nowhere/x.yaml"),
        ({"roi": {"hiden": 3}}, "model.roi.hiden: unknown key; did you mean 'hidden'"),
        (
            {"rpn": {"nms_iou": 1.5}},
            "model.rpn.nms_iou: got 1.5; should be less than or equal to 1",
        ),
        (
            {"detector": "yolo"},
            "model.detector: got 'yolo'; allowed: sliding_window",
        ),
    ],
)
def test_settings_that_cannot_be(model, message):
    with pytest.raises(ValueError, match=message) as error:
        create_detector(model, num_classes=3)
    assert "\n" not in str(error.value)


def test_mistakes_of_settings_are_config_errors():
    with pytest.raises(ConfigError):
        create_detector({"roi": {"hiden": 3}}, num_classes=3)


@pytest.mark.parametrize("count", [0, -1])
def test_no_classes(count):
    with pytest.raises(ValueError, match=rf"num_classes must be at least 1 .*got {count}"):
        create_detector(SMALL, num_classes=count)


def test_wrong_number_of_maps():
    detector = create_detector(SMALL, num_classes=3)
    with pytest.raises(ValueError, match="3 levels of anchor sizes for 2 feature maps"):
        detector.rpn([torch.zeros(1, 8, 4, 4)] * 2, (16, 16))


def test_anchor_grid_counts_anchors_of_a_cell():
    levels = [MapGeometry(4, 0.0), MapGeometry(8, 0.0)]
    assert AnchorGrid([[8, 16], [32, 64]], (0.5, 1, 2), levels).num_anchors == 6


def test_anchors_stand_where_the_cells_are():
    """A grid of padded borders spans the picture; others start at their centre and stride."""
    padded, cells = (100, 64), [torch.zeros(1, 1, 3, 2)]
    spanning = AnchorGrid([[8]], (1,), [MapGeometry(32, 0.0)])(cells, padded)[0]
    assert spanning[:, :2].tolist() == [[-4, -4], [28, -4], [-4, 29], [28, 29], [-4, 62], [28, 62]]
    inside = AnchorGrid([[8]], (1,), [MapGeometry(32, 15.5)])(cells, padded)[0]
    assert (inside[:, :2] + 4).tolist() == [
        [x, y] for y in (15.5, 47.5, 79.5) for x in (15.5, 47.5)
    ]


def test_anchor_sizes_follow_the_strides():
    detector = create_detector({"backbone": {"name": "resnet18", "width": 8}}, num_classes=3)
    sides = [detector.rpn.anchors.get_buffer(f"cell{i}")[1, 2] * 2 for i in range(5)]
    assert sides == [32, 64, 128, 256, 512]  # torchvision's


def test_frozen_backbone_has_nothing_to_learn():
    backbone = BackboneConfig(name="resnet18", out_indices=(1, 2), frozen_stages=5)
    config = ModelConfig.model_validate({**SMALL, "backbone": backbone.model_dump()})
    detector = create_detector(config, num_classes=3)
    assert not any(p.requires_grad for p in detector.backbone.parameters())
    assert all(p.requires_grad for p in detector.roi.parameters())


def test_what_published_weights_need_stays_when_others_take_their_place():
    """GoogLeNet's were learnt on images normalised otherwise; a checkpoint's are their children."""
    config = ModelConfig(backbone=BackboneConfig(name="googlenet", weights="imagenet"))
    assert without_weights(config).backbone.weights is None
    assert without_weights(config).backbone.settings == {"transform_input": True}
    own = config.backbone.model_copy(update={"settings": {"transform_input": False}})
    assert without_weights(ModelConfig(backbone=own)).backbone == own.model_copy(
        update={"weights": None}
    )
    plain = ModelConfig(backbone=BackboneConfig(name="resnet18", weights="imagenet"))
    assert without_weights(plain) == ModelConfig(backbone=BackboneConfig(name="resnet18"))


def test_settings_of_one_network_alone_reach_it():
    settings = {"name": "vgg11", "settings": {"last_pool": False}}
    detector = create_detector({"backbone": settings, "fpn": {"channels": 8}}, num_classes=2)
    assert [info.stride for info in detector.backbone.feature_info] == [4, 8, 16]
    with pytest.raises(ValueError, match=r"model\.backbone: vgg11 has no setting 'width'; allo"):
        create_detector({"backbone": {"name": "vgg11", "width": 8}}, num_classes=2)


@pytest.mark.parametrize("fpn", [None, {"channels": 8}])
def test_maps_come_finest_first(fpn):
    backbone = {"name": "resnet18", "width": 8, "out_indices": (2, 1)}
    with pytest.raises(ValueError, match=r"out_indices \(2, 1\) give maps of strides"):
        create_detector({"backbone": backbone, "fpn": fpn}, num_classes=2)
