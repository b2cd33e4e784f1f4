"""Transfer learning with the recipes for it: what is taken over, what stays, and what starts anew.

The published files are random ones of smaller networks, in torch.hub's cache with their own hash.
"""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import FrozenBatchNorm2d

from detkit.backbones import weights as backbone_weights
from detkit.config import Recipe, load_recipe
from detkit.detectors import create_detector
from detkit.engine.start import compare_start

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
Publish = Callable[[nn.Module], dict[str, Tensor]]
SMALL = (
    "model.backbone.name=resnet18",
    "model.roi.hidden=16",
    "data.resize={shortest: null, longest: 64}",
    "data.workers=0",
    "train.epochs=1",
    "train.batch_size=3",
    "train.amp=off",
    "train.schedule={name: constant, warmup_steps: 0}",
)


@pytest.fixture
def publish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Publish:
    """Put the weights of a network into the cache as if they were the published file."""
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)

    def put(module: nn.Module) -> dict[str, Tensor]:
        buffer = io.BytesIO()
        torch.save(module.state_dict(), buffer)
        digest = hashlib.sha256(buffer.getvalue()).hexdigest()[:8]
        url = f"https://example.invalid/models/published-{digest}.pth"
        (folder / url.rpartition("/")[2]).write_bytes(buffer.getvalue())
        monkeypatch.setattr(backbone_weights, "published_url", lambda model, name: url)
        return module.state_dict()

    return put


@pytest.fixture
def small(tiny_data: Any) -> Callable[..., Recipe]:
    """`small("transfer_coco", "key=value")`: that recipe on tiny data of three classes."""

    def load(name: str, *overrides: str) -> Recipe:
        places = [
            f"data.{role}.{key}={value}"
            for role in ("train", "val")
            for key, value in tiny_data._asdict().items()
        ]
        return load_recipe(CONFIGS / f"{name}.yaml", [*SMALL, *places, *overrides])

    return load


def moved(before: dict[str, Tensor], after: dict[str, Tensor], prefix: str) -> set[bool]:
    """Whether the weights of a part have changed: {True}, {False} or both."""
    names = [name for name in before if name.startswith(prefix) and before[name].ndim > 1]
    assert names, prefix
    return {not torch.equal(before[name], after[name]) for name in names}


def rates(content: dict[str, Any]) -> list[float]:
    groups = content["training"]["optimizer"]["param_groups"]
    return sorted({group["initial_lr"] for group in groups}, reverse=True)


def test_from_an_imagenet_backbone(
    publish: Publish,
    small: Callable[..., Recipe],
    run: Callable[..., Path],
    content: Callable[[Path], dict[str, Any]],
    tmp_path: Path,
) -> None:
    """All stages begin at the file and move at low rates."""
    torch.manual_seed(5)
    published = publish(resnet18())
    last = content(run(small("transfer_imagenet"), tmp_path / "run") / "last.pt")
    backbone = {
        name.removeprefix("backbone."): value
        for name, value in last["model"].items()
        if name.startswith("backbone.")
    }
    assert moved(published, backbone, "conv1") == {True}
    for part in ("layer1", "layer2", "layer3", "layer4"):
        assert moved(published, backbone, part) == {True}
        name = f"{part}.0.conv1.weight"
        near = (backbone[name] - published[name]).abs().max()
        assert near < 3 * 3 * 1e-4  # three steps of a tenth of the rate: it began at the file
    # 1e-3 of what is new; 1e-4 of the backbone, times 0.8 for each stage from its end
    assert rates(last) == pytest.approx([1e-3, *(1e-4 * 0.8**depth for depth in range(1, 6))])


def published_detector() -> nn.Module:
    """Torchvision's Faster R-CNN of 91 classes on a smaller network."""
    torch.manual_seed(5)
    body = _resnet_fpn_extractor(resnet18(norm_layer=FrozenBatchNorm2d), 3)
    head, predictor = TwoMLPHead(256 * 7 * 7, 16), FastRCNNPredictor(16, 91)
    return FasterRCNN(body, box_head=head, box_predictor=predictor)


def test_from_a_coco_detector_with_other_classes(
    publish: Publish,
    small: Callable[..., Recipe],
    run: Callable[..., Path],
    content: Callable[[Path], dict[str, Any]],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """All but the last layers begin as in the file; a line says which do not."""
    published = publish(published_detector())
    with caplog.at_level(logging.WARNING):
        last = content(run(small("transfer_coco"), tmp_path / "run") / "last.pt")
    (line,) = [text for text in caplog.messages if "classes" in text]
    assert line == (
        "coco was trained on 90 classes, not 3: its last layers start anew "
        "(roi.head.cls_score, roi.head.bbox_pred)"
    )
    found = last["model"]
    first = published["backbone.body.conv1.weight"]
    assert torch.equal(found["backbone.conv1.weight"], first)  # frozen
    for ours, theirs in {
        "neck.inner_blocks.0.0.weight": "backbone.fpn.inner_blocks.0.0.weight",
        "rpn.head.conv.weight": "rpn.head.conv.0.0.weight",
        "roi.head.fc6.weight": "roi_heads.box_head.fc6.weight",
    }.items():
        distance = (found[ours] - published[theirs]).norm() / published[theirs].norm()
        assert 0 < distance < 0.2  # it has learned, but began there
    assert found["roi.head.cls_score.weight"].shape == (4, 16)
    assert rates(last) == pytest.approx([5e-3, 5e-4])


def test_with_all_stages_frozen(
    publish: Publish,
    small: Callable[..., Recipe],
    run: Callable[..., Path],
    content: Callable[[Path], dict[str, Any]],
    tmp_path: Path,
) -> None:
    """The backbone stays that of the file to the bit, pyramid and heads learn."""
    published = publish(published_detector())
    found = content(run(small("transfer_frozen"), tmp_path / "run") / "last.pt")["model"]
    backbone = [name for name in published if name.startswith("backbone.body.")]
    assert len(backbone) > 50
    for name in backbone:
        ours = name.replace("backbone.body.", "backbone.")
        assert torch.equal(found[ours], published[name]), name
    pyramid = "backbone.fpn.layer_blocks.0.0.weight"
    assert not torch.equal(found["neck.layer_blocks.0.0.weight"], published[pyramid])
    head = found["roi.head.fc6.weight"]
    assert not torch.equal(head, published["roi_heads.box_head.fc6.weight"])


def test_from_an_own_detector_with_other_classes(
    tiny_recipe: Callable[..., Recipe],
    straight: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    content: Callable[[Path], dict[str, Any]],
) -> None:
    """Its checkpoint is taken for weights, also that of another version of the format."""
    given = content(straight / "best.pt")
    path = tmp_path / "other.pt"
    torch.save({**given, "format": 99}, path)
    recipe = tiny_recipe(f"model.weights={path}")
    found = create_detector(recipe.model, num_classes=5).state_dict()
    assert f"{path} was trained on 3 classes, not 5" in caplog.text
    last = ("roi.head.cls_score.", "roi.head.bbox_pred.")
    for name, value in given["model"].items():
        assert name.startswith(last) or torch.equal(found[name], value), name


def test_what_fits_is_taken_over_and_what_does_not_is_listed(
    tiny_recipe: Callable[..., Recipe],
    straight: Path,
    content: Callable[[Path], dict[str, Any]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A pyramid of half the channels: it starts anew, and so does what reads it."""
    recipe = tiny_recipe(f"model.weights={straight / 'best.pt'}", "model.fpn.channels=8")
    found = create_detector(recipe.model, num_classes=3).state_dict()
    given = content(straight / "best.pt")["model"]
    fit = {name for name in given if given[name].shape == found[name].shape}
    assert all(torch.equal(found[name], given[name]) for name in fit)
    assert {name for name in given if name.startswith("backbone.")} < fit
    others = len(given.keys() - fit)
    kept = sum(not name.endswith("num_batches_tracked") for name in fit)
    head, listed = caplog.messages
    assert head == f"{straight / 'best.pt'}: {kept} of {kept + others} weights are taken over"
    assert listed == (
        f"  {others} of another shape, start anew: "
        "neck.inner_blocks 4, neck.layer_blocks 4, rpn.head 4, roi.head 1"
    )


def test_a_part_that_only_one_of_both_has_is_listed(
    tiny_recipe: Callable[..., Recipe], straight: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = tiny_recipe(
        f"model.weights={straight / 'best.pt'}",
        "model.detector=fcos",
        "model.rpn=null",
        "model.roi=null",
    )
    create_detector(recipe.model, num_classes=3)
    head, absent, unused = caplog.messages
    assert "weights are taken over" in head
    assert "absent from the file, start anew: head.cls_tower" in absent
    assert "in the file only: rpn.head 6, roi.head 8" in unused


def test_a_backbone_that_does_not_fit_is_refused(
    tiny_recipe: Callable[..., Recipe], straight: Path
) -> None:
    """Norms of the same width would fit: half a network would look like a whole one."""
    recipe = tiny_recipe(f"model.weights={straight / 'best.pt'}", "model.backbone.width=16")
    with pytest.raises(
        ValueError, match=r"only 0 of \d+ weights under backbone .* model as it was"
    ):
        create_detector(recipe.model, num_classes=3)


def test_a_resume_stays_strict(
    tiny_recipe: Callable[..., Recipe], straight: Path, run: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "last.pt").write_bytes((straight / "last.pt").read_bytes())
    with pytest.raises(ValueError, match=r"other settings: model\.fpn\.channels is 8 and was"):
        run(tiny_recipe("model.fpn.channels=8"), tmp_path, resume=True)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["one", "two", "three"],
            "{path} was trained on other classes, its last layers are taken over all the same: "
            "one, two, three; now: blue, green, red",
        ),
        (
            ["red", "green", "blue"],
            "{path} was trained on the same classes in another order, its last layers are taken "
            "over all the same: red, green, blue; now: blue, green, red",
        ),
        (["blue", "green", "red"], None),
        (["one", "two"], None),  # create_detector has its own line for another number
    ],
)
def test_as_many_classes_under_other_names(
    straight: Path,
    content: Callable[[Path], dict[str, Any]],
    names: list[str],
    message: str | None,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = tmp_path / "other.pt"
    torch.save({**content(straight / "best.pt"), "class_names": names}, path)
    compare_start(path, ("blue", "green", "red"))
    assert caplog.messages == ([] if message is None else [message.format(path=path)])


def test_a_training_says_so(
    tiny_recipe: Callable[..., Recipe],
    straight: Path,
    run: Callable[..., Path],
    content: Callable[[Path], dict[str, Any]],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Of another version and of other classes: one line each, and it trains."""
    path = tmp_path / "other.pt"
    given = {"format": 99, "class_names": ["one", "two", "three"]}
    torch.save({**content(straight / "best.pt"), **given}, path)
    run(tiny_recipe(f"model.weights={path}", "train.epochs=1"), tmp_path / "run")
    lines = [line for line in caplog.messages if line.startswith(str(path))]
    assert len(lines) == 2
    assert "has checkpoint format 99, this version writes 1" in lines[0]
    assert "one, two, three; now: blue, green, red" in lines[1]


@pytest.mark.parametrize("kind", ["plain", "old", "none"])
def test_weights_that_are_no_checkpoint_have_no_classes(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "weights.pth"
    if kind != "none":
        torch.save(
            {"conv.weight": torch.zeros(3)}, path, _use_new_zipfile_serialization=kind == "plain"
        )
    compare_start(path, ("blue",))
    assert caplog.messages == []


def test_weights_with_a_wrong_bit_are_refused(
    tiny_recipe: Callable[..., Recipe], straight: Path, tmp_path: Path
) -> None:
    data = bytearray((straight / "best.pt").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "best.pt").write_bytes(data)
    recipe = tiny_recipe(f"model.weights={tmp_path / 'best.pt'}")
    with pytest.raises(ValueError, match="is damaged \\(wrong checksum of"):
        create_detector(recipe.model, num_classes=3)
