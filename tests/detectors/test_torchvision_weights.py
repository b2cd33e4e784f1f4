"""Weights of a detector: torchvision's published file, our own files, and files that do not fit."""

from __future__ import annotations

import copy
import hashlib
import io
import re

import pytest
import torch
import torchvision
from torchvision.models import get_model, get_model_weights

from detkit.backbones import weights as backbone_weights
from detkit.config import ModelConfig
from detkit.detectors import create_detector
from detkit.detectors.torchvision_weights import (
    PUBLISHED,
    convert,
    convert_faster_rcnn,
    is_torchvision,
    published_name,
)

PUBLISHED_FILE = "fasterrcnn_resnet50_fpn_coco-258fb6c6.pth"
# Parameters of torchvision's models of 91 classes: all; those that learn with three stages of the
# backbone (None: no number to compare with); and those of the first class, which ours leave out
PARAMETERS = {
    "fasterrcnn_resnet50_fpn": (41_755_286, 41_532_886, 4 * (1024 + 1)),
    "fasterrcnn_resnet50_fpn_v2": (43_712_278, None, 4 * (1024 + 1)),
    "retinanet_resnet50_fpn": (34_014_999, 33_792_599, 9 * (9 * 256 + 1)),
    "retinanet_resnet50_fpn_v2": (38_198_935, None, 9 * (9 * 256 + 1)),
    "fcos_resnet50_fpn": (32_269_600, 32_047_200, 9 * 256 + 1),
}
FILES = {
    "fasterrcnn_resnet50_fpn": PUBLISHED_FILE,
    "fasterrcnn_resnet50_fpn_v2": "fasterrcnn_resnet50_fpn_v2_coco-dd69338a.pth",
    "retinanet_resnet50_fpn": "retinanet_resnet50_fpn_coco-eeacb38b.pth",
    "retinanet_resnet50_fpn_v2": "retinanet_resnet50_fpn_v2_coco-5905b1c5.pth",
    "fcos_resnet50_fpn": "fcos_resnet50_fpn_coco-99b0c9b7.pth",
}
NARROW = {
    "backbone": {"name": "resnet18", "out_indices": [1, 2]},
    "fpn": {"channels": 8},
    "rpn": {"anchor_sizes": [[32], [64], [128]]},
    "roi": {"hidden": 8},
}

NARROW_DENSE = {"backbone": {"name": "resnet18"}, "fpn": {"channels": 64}}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty torch.hub cache."""
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def publish(cache, monkeypatch):
    """Put weights into the cache as if they were the published file: with their own hash."""

    def put(state):
        buffer = io.BytesIO()
        torch.save(state, buffer)
        digest = hashlib.sha256(buffer.getvalue()).hexdigest()[:8]
        url = f"https://example.invalid/models/detector_coco-{digest}.pth"
        (cache / url.rpartition("/")[2]).write_bytes(buffer.getvalue())
        monkeypatch.setattr(backbone_weights, "published_url", lambda model, name: url)

    return put


@pytest.fixture(scope="module")
def theirs(make_pair):
    """A small detector of torchvision's with random weights, seven classes and a background."""
    return make_pair(ModelConfig.model_validate(NARROW), dtype=torch.float32).theirs


def create(num_classes=7, **settings):
    return create_detector({**NARROW, **settings}, num_classes=num_classes)


def fill(model):
    for value in model.state_dict().values():
        value.fill_(3)


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(found[key], value), key


# ------------------------------------------------------------------------ the published file


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_file_fills_the_published_detector(name, publish):
    theirs = get_model(name, weights=None, weights_backbone=None)
    # the published files of the first versions are of frozen norms, which count no batches
    frozen = not name.endswith("_v2")
    state = {k: v for k, v in theirs.state_dict().items() if not frozen or "num_batches" not in k}
    for key, value in state.items():
        if "running" in key or key.endswith("bias"):
            value.uniform_(0.5, 1.5)
    publish(state)
    config = PUBLISHED[name].model_copy(update={"weights": "coco"})
    ours = create_detector(config, num_classes=90)
    assert_equal(ours.state_dict(), convert(state))
    every, learning, left_out = PARAMETERS[name]
    assert sum(p.numel() for p in ours.parameters()) == every - left_out
    if learning is not None:
        found = sum(p.numel() for p in ours.parameters() if p.requires_grad)
        assert found == learning - left_out


@pytest.mark.parametrize(
    ("name", "kind", "eps"),
    [
        ("fasterrcnn_resnet50_fpn", "FrozenBatchNorm2d", 0.0),
        ("fasterrcnn_resnet50_fpn_v2", "BatchNorm2d", 1e-5),
        ("retinanet_resnet50_fpn", "FrozenBatchNorm2d", 0.0),
        ("retinanet_resnet50_fpn_v2", "BatchNorm2d", 1e-5),
        ("fcos_resnet50_fpn", "FrozenBatchNorm2d", 1e-5),
    ],
)
def test_norms_of_the_published_detectors(name, kind, eps):
    """Torchvision sets the eps of two of them to 0 when it loads their files."""
    with torch.device("meta"):
        ours = create_detector(name, num_classes=90)
    norms = [m for m in ours.backbone.modules() if "BatchNorm" in type(m).__name__]
    assert len(norms) == 53
    assert {(type(norm).__name__, norm.eps) for norm in norms} == {(kind, eps)}
    learning = {n.split(".")[0] for n, p in ours.backbone.named_parameters() if p.requires_grad}
    assert learning == {"layer2", "layer3", "layer4"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_coco_is_torchvisions_file(name):
    url = backbone_weights.published_url(name, "coco")
    assert url == get_model_weights(name)["COCO_V1"].url
    assert url.endswith(f"/{FILES[name]}")
    assert published_name(PUBLISHED[name]) == name


def test_published_file_is_looked_for_in_the_cache_and_checked(cache, theirs):
    torch.save(theirs.state_dict(), cache / PUBLISHED_FILE)
    with pytest.raises(ValueError, match=f"{PUBLISHED_FILE} does not match its hash") as error:
        create(weights="coco")
    assert "\n" not in str(error.value)


def test_narrow_detector_from_the_published_file(publish, theirs):
    publish(theirs.state_dict())
    assert_equal(create(weights="coco").state_dict(), convert_faster_rcnn(theirs.state_dict()))


def test_names_of_older_files(publish, theirs):
    """Before version 0.14 the layers were no blocks."""
    old = {
        re.sub(r"((?:inner|layer)_blocks\.\d)\.0\.", r"\1.", key).replace("conv.0.0.", "conv."): v
        for key, v in theirs.state_dict().items()
    }
    assert len(old.keys() - theirs.state_dict().keys()) == 10
    again = copy.deepcopy(theirs)
    fill(again)
    again.load_state_dict(old)  # torchvision reads them as the same weights
    assert_equal(again.state_dict(), theirs.state_dict())
    publish(old)
    assert_equal(create(weights="coco").state_dict(), convert_faster_rcnn(theirs.state_dict()))


def of_the_first_versions(key):
    """The older name of a key: layers in one row, with an activation behind each."""
    key = re.sub(r"((?:inner|layer)_blocks\.\d)\.0\.", r"\1.", key)
    if key.startswith("head."):
        key = re.sub(r"\.conv\.(\d)\.0\.", lambda match: f".conv.{2 * int(match[1])}.", key)
    return key


def test_names_of_older_files_of_retinanet(make_dense_pair, tmp_path):
    config = {"detector": "retinanet", **NARROW_DENSE}
    theirs = make_dense_pair(ModelConfig.model_validate(config), dtype=torch.float32).theirs
    old = {of_the_first_versions(key): value for key, value in theirs.state_dict().items()}
    assert len(old.keys() - theirs.state_dict().keys()) == 12 + 16
    again = copy.deepcopy(theirs)
    fill(again)
    again.load_state_dict(old)  # torchvision reads them as the same weights
    assert_equal(again.state_dict(), theirs.state_dict())
    torch.save(old, tmp_path / "old.pth")
    ours = create_detector({**config, "weights": str(tmp_path / "old.pth")}, num_classes=7)
    assert_equal(ours.state_dict(), convert(theirs.state_dict()))


@pytest.mark.parametrize("detector", ["retinanet", "fcos"])
def test_dense_file_by_path(detector, make_dense_pair, tmp_path, caplog):
    """Also one of other classes: all but what names them."""
    config = {"detector": detector, **NARROW_DENSE}
    theirs = make_dense_pair(ModelConfig.model_validate(config), dtype=torch.float32).theirs
    torch.save(theirs.state_dict(), tmp_path / "tv.pth")
    given, path = convert(theirs.state_dict()), str(tmp_path / "tv.pth")
    ours = create_detector({**config, "weights": path}, num_classes=7)
    assert_equal(ours.state_dict(), given)
    assert caplog.records == []
    torch.manual_seed(5)
    fresh = create_detector(config, num_classes=3).state_dict()
    torch.manual_seed(5)
    found = create_detector({**config, "weights": path}, num_classes=3).state_dict()
    last = "head.cls_logits."
    assert_equal(found, {k: fresh[k] if k.startswith(last) else given[k] for k in fresh})
    assert "was trained on 7 classes, not 3" in caplog.text


def test_the_first_class_of_every_anchor_goes():
    """Two anchors of four classes, of which three are ours."""
    logits = torch.arange(8.0)[:, None]
    converted = convert(
        {
            "head.classification_head.cls_logits.weight": logits,
            "head.classification_head.cls_logits.bias": logits[:, 0],
            "head.regression_head.bbox_reg.bias": torch.zeros(2 * 4),
        }
    )
    assert converted["head.cls_logits.weight"].tolist() == [[1], [2], [3], [5], [6], [7]]
    assert converted["head.cls_logits.bias"].tolist() == [1, 2, 3, 5, 6, 7]


def test_background_moves_from_first_to_last():
    score, box = torch.arange(3.0)[:, None], torch.arange(12.0)[:, None]
    converted = convert_faster_rcnn(
        {
            "roi_heads.box_predictor.cls_score.weight": score,
            "roi_heads.box_predictor.cls_score.bias": score[:, 0],
            "roi_heads.box_predictor.bbox_pred.weight": box,
            "roi_heads.box_predictor.bbox_pred.bias": box[:, 0],
        }
    )
    assert converted["roi.head.cls_score.weight"].flatten().tolist() == [1, 2, 0]
    assert converted["roi.head.cls_score.bias"].tolist() == [1, 2, 0]
    assert converted["roi.head.bbox_pred.weight"].flatten().tolist() == list(range(4, 12))
    assert converted["roi.head.bbox_pred.bias"].tolist() == list(range(4, 12))


# --------------------------------------------------------------------- other classes, our files


def test_other_classes_start_anew(publish, theirs, caplog):
    publish(theirs.state_dict())
    torch.manual_seed(5)
    fresh = create(num_classes=3).state_dict()
    torch.manual_seed(5)
    found = create(num_classes=3, weights="coco").state_dict()
    given = convert_faster_rcnn(theirs.state_dict())
    last = ("roi.head.cls_score.", "roi.head.bbox_pred.")
    assert_equal(found, {k: fresh[k] if k.startswith(last) else given[k] for k in fresh})
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage() == (
        "coco was trained on 7 classes, not 3: its last layers start anew "
        "(roi.head.cls_score, roi.head.bbox_pred)"
    )


def test_same_classes_give_no_warning(publish, theirs, caplog):
    publish(theirs.state_dict())
    create(weights="coco")
    assert caplog.records == []


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"model": s, "epoch": 3}])
def test_own_file(tmp_path, wrap):
    torch.manual_seed(1)
    saved = create().state_dict()
    assert not is_torchvision(saved)
    torch.save(wrap(saved), tmp_path / "own.pt")
    torch.manual_seed(2)
    assert_equal(create(weights=str(tmp_path / "own.pt")).state_dict(), saved)


def test_own_file_of_other_classes(tmp_path, caplog):
    saved = create(num_classes=2).state_dict()
    torch.save(saved, tmp_path / "own.pt")
    found = create(weights=str(tmp_path / "own.pt")).state_dict()
    assert torch.equal(found["backbone.conv1.weight"], saved["backbone.conv1.weight"])
    assert found["roi.head.cls_score.weight"].shape == (8, 8)
    assert "was trained on 2 classes, not 7" in caplog.text


def test_torchvision_file_by_path(tmp_path, theirs):
    torch.save(theirs.state_dict(), tmp_path / "tv.pth")
    found = create(weights=str(tmp_path / "tv.pth")).state_dict()
    assert_equal(found, convert_faster_rcnn(theirs.state_dict()))


def test_weights_of_the_backbone_are_not_read_when_those_of_the_detector_follow(tmp_path):
    torch.save(create().state_dict(), tmp_path / "own.pt")
    backbone = {**NARROW["backbone"], "weights": str(tmp_path / "nowhere.pth")}
    create(weights=str(tmp_path / "own.pt"), backbone=backbone)
    with pytest.raises(ValueError, match=r"model.backbone: .*nowhere.pth.*no such file"):
        create(backbone=backbone)


# ---------------------------------------------------------------------------------- mistakes


def a_classifier(path):
    torch.save(torchvision.models.resnet18().state_dict(), path)


def another_width(path):
    torch.save(create_detector({**NARROW, "roi": {"hidden": 4}}, num_classes=7).state_dict(), path)


def one_box_for_all(path):
    roi = {"hidden": 8, "class_agnostic": True}
    torch.save(create_detector({**NARROW, "roi": roi}, num_classes=7).state_dict(), path)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (a_classifier, r"do not fit RegionProposal: only 0 of \d+ weights under backbone"),
        (lambda path: path.write_text("weights"), "cannot read weights from"),
        (lambda path: path.write_bytes(b""), "cannot read weights from"),
        (lambda path: torch.save([1, 2], path), "holds no state_dict"),
        (lambda path: None, r"no such file; .*allowed: imagenet, .*coco, or a path"),
    ],
)
def test_file_that_does_not_fit(tmp_path, write, message):
    write(tmp_path / "file.pth")
    with pytest.raises(ValueError, match=message) as error:
        create(weights=str(tmp_path / "file.pth"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("write", "layer"), [(another_width, "roi.head 6"), (one_box_for_all, "roi.head 2")]
)
def test_a_layer_that_does_not_fit_starts_anew(tmp_path, caplog, write, layer):
    write(tmp_path / "file.pth")
    detector = create(weights=str(tmp_path / "file.pth"))
    assert layer in caplog.text
    given = torch.load(tmp_path / "file.pth", weights_only=True)
    assert torch.equal(detector.state_dict()["rpn.head.conv.weight"], given["rpn.head.conv.weight"])


def test_weights_of_a_classifier_by_name():
    with pytest.raises(ValueError, match=r"no weights 'imagenet' .*allowed: None, coco, a path"):
        create(weights="imagenet")
