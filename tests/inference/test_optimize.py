"""An optimised detector finds what it found before, and says how far that is measured."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import detkit
from detkit.backbones import create_backbone, list_backbones
from detkit.config import load_recipe
from detkit.detectors import Detector, create_detector
from detkit.inference import Predictor
from detkit.inference.folding import affine_of, fold_batch_norm
from detkit.inference.optimize import (
    Changes,
    Cost,
    OptimizedDetector,
    has_bf16,
    measure_cost,
    optimize,
    optimize_detector,
    pick_precision,
)
from detkit.nn import FrozenBatchNorm2d
from detkit.nn.attention import list_attentions
from detkit.structures import Batch

LADDER = sorted((Path(__file__).parents[2] / "configs" / "ladder").glob("*.yaml"))
CPU = torch.device("cpu")


def randomize(net: nn.Module) -> nn.Module:
    """Statistics and weights that no fold could get right by chance; in float64."""
    generator = torch.Generator().manual_seed(0)
    net = net.double().eval()
    for module in net.modules():
        if getattr(module, "running_var", None) is None:
            continue
        for name, low, high in (
            ("running_mean", -0.2, 0.2),
            ("running_var", 0.5, 2.0),
            ("weight", 0.5, 1.5),
            ("bias", -0.2, 0.2),
        ):
            values = getattr(module, name)
            if values is not None:
                values.data.uniform_(low, high, generator=generator)
    return net


def fold_and_compare(net: nn.Module, images: Tensor) -> tuple[int, int]:
    """Fold a copy, and check that it gives the same maps."""
    folded = copy.deepcopy(net)
    with torch.no_grad():
        counts = fold_batch_norm(folded, lambda: folded(images))
        for before, after in zip(net(images), folded(images), strict=True):
            torch.testing.assert_close(after, before, rtol=1e-9, atol=1e-9 * before.abs().max())
    return counts


def images_for(net: nn.Module) -> Tensor:
    side = max(64, net.least_side)  # type: ignore[call-overload, type-var]
    channels = net.in_channels
    generator = torch.Generator().manual_seed(1)
    return torch.randn(1, channels, side, side + 32, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("name", [n for n in list_backbones() if "101" not in n and "152" not in n])
def test_every_backbone_is_the_same_without_its_batch_norms(name: str) -> None:
    channels = 1 if name == "lenet5" else 3
    net = randomize(create_backbone(name, in_channels=channels))
    norms = sum(isinstance(each, nn.BatchNorm2d) for each in net.modules())
    folded, left = fold_and_compare(net, images_for(net))
    assert folded + left == norms
    if name.startswith(("resnet", "resnext", "wide", "googlenet")):
        assert left == 0


@pytest.mark.parametrize("name", list_attentions())
def test_attention_is_not_disturbed(name: str) -> None:
    try:
        net = create_backbone("resnet18", attention=name, width=16)
    except ValueError as error:
        pytest.skip(str(error))
    images = images_for(net).repeat(8 if name == "tam" else 1, 1, 1, 1)  # a clip of 8 frames
    folded, _ = fold_and_compare(randomize(net), images)
    assert folded > 0


@pytest.mark.parametrize("at", ["before_conv", "after_conv2", "after_bn2", "after_block"])
def test_attention_between_a_convolution_and_its_norm_keeps_the_norm(at: str) -> None:
    net = randomize(create_backbone("resnet18", attention="se", attention_at=at, width=16))
    folded, left = fold_and_compare(net, images_for(net))
    assert folded + left == 20
    assert left == (8 if at == "after_conv2" else 0)  # a norm behind each block's second one


@pytest.mark.parametrize("norm", ["batch", "frozen_batch", "sync_batch"])
def test_all_kinds_of_batch_norm_are_folded(norm: str) -> None:
    net = randomize(create_backbone("resnet18", norm=norm, width=16))
    assert fold_and_compare(net, images_for(net)) == (20, 0)


def test_group_norm_stays() -> None:
    net = randomize(create_backbone("resnet18", norm="group", width=32))
    assert fold_and_compare(net, images_for(net)) == (0, 0)


def test_timm_norms_keep_their_activation() -> None:
    pytest.importorskip("timm")
    for norm in (None, "frozen_batch"):
        net = randomize(create_backbone("timm:efficientnet_b0", norm=norm))
        folded, _ = fold_and_compare(net, images_for(net))
        assert folded > 40


def test_scale_and_shift_by_hand() -> None:
    norm = FrozenBatchNorm2d(1, eps=0.0)
    norm.weight.fill_(3)
    norm.bias.fill_(1)
    norm.running_mean.fill_(5)
    norm.running_var.fill_(4)
    scale, shift = affine_of(norm)  # 3 / 2 (x - 5) + 1
    assert scale.item() == 1.5
    assert shift.item() == -6.5


class Branching(nn.Module):
    """A convolution whose output more than one sees, and one that two norms share."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.conv, self.other = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)
        self.norm, self.second = nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> list[Tensor]:
        made = self.conv(x)
        if self.kind == "sum":
            return [self.norm(made) + made]
        if self.kind == "two norms":
            return [self.norm(made), self.second(made)]
        if self.kind == "between":
            return [self.norm(F.relu(made))]
        if self.kind == "norm of an image":
            return [self.norm(torch.cat([x, x], dim=1)[:, :4])]
        if self.kind == "norm of two":
            return [self.norm(made), self.norm(self.other(x))]
        return [self.norm(made), self.norm(self.conv(x + 1))]  # twice


@pytest.mark.parametrize(
    ("kind", "folded"),
    [
        ("sum", 0),
        ("two norms", 0),
        ("between", 0),
        ("norm of an image", 0),
        ("norm of two", 1),
        ("twice", 1),
    ],
)
def test_only_a_norm_that_alone_sees_its_convolution_is_folded(kind: str, folded: int) -> None:
    net = randomize(Branching(kind))
    images = torch.randn(1, 3, 8, 8, dtype=torch.float64)
    assert fold_and_compare(net, images) == (folded, 2 - folded)


def test_training_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="evaluation mode"):
        fold_batch_norm(nn.BatchNorm2d(2), lambda: None)


# -------------------------------------------------------------------------------------- detectors


def batch_of(size: int, detector: Detector) -> Batch:
    generator = torch.Generator().manual_seed(2)
    images = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8, generator=generator)
    regions = torch.tensor([[4.0, 4.0, 60.0, 70.0], [20.0, 10.0, 90.0, 90.0]])
    return Batch(images, ((size, size),) * 2, ((size, size),) * 2, proposals=(regions, regions))


def maps_of(detector: Detector, batch: Batch) -> list[Tensor]:
    """Feature maps, of a pyramid those of all its copies."""
    found: Any = detector.features(batch)
    if isinstance(found[0], Tensor):
        return list(found)
    return [each for maps, _ in found for each in maps]


@pytest.mark.parametrize("path", LADDER, ids=lambda path: path.stem)
@pytest.mark.parametrize("attention", [None, "se"])
def test_every_rung_of_the_ladder_finds_the_same(path: Path, attention: str | None) -> None:
    changes = ["model.select.score_threshold=0.0"]
    if attention and "resnet" in load_recipe(path).model.backbone.name:
        changes.append(f"model.backbone.attention={attention}")
    elif attention:
        pytest.skip("no residual blocks to put attention into")
    recipe = load_recipe(path, changes)
    torch.manual_seed(0)
    detector = randomize(create_detector(recipe.model, num_classes=3)).float()
    folded = copy.deepcopy(detector)
    batch = batch_of(128, detector)
    fold_batch_norm(folded, lambda: folded.predict(batch))
    with torch.no_grad():
        for before, after in zip(maps_of(detector, batch), maps_of(folded, batch), strict=True):
            limit = 1e-5 * float(before.abs().max())
            torch.testing.assert_close(after, before, rtol=0.0, atol=limit)
        for one, other in zip(detector.predict(batch), folded.predict(batch), strict=True):
            assert abs(len(one) - len(other)) <= max(2, 0.05 * len(one))


# -------------------------------------------------------------------------------------- predictors


@pytest.fixture(scope="module")
def predictor(tiny_checkpoint: Path) -> Predictor:
    return detkit.load(tiny_checkpoint, device="cpu")


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)


def test_full_precision_finds_the_same_and_leaves_the_original_alone(
    predictor: Predictor, picture: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    before = predictor(picture)
    state = {name: value.clone() for name, value in predictor.detector.state_dict().items()}
    faster = predictor.optimize([picture], precision="fp32")
    after = faster(picture)
    assert len(before) > 0
    torch.testing.assert_close(after.boxes, before.boxes, rtol=1e-4, atol=1e-2)
    torch.testing.assert_close(after.scores, before.scores, rtol=1e-4, atol=1e-5)
    assert after.names == before.names
    assert faster.cost is not None and faster.cost.agreement.share == 1.0
    assert isinstance(faster.detector, OptimizedDetector)
    assert faster.detector.changes.folded == 15  # of the stages that are built: 1 + 4 + 5 + 5
    assert faster.detector.changes.left == 0
    assert predictor.cost is None
    for name, value in predictor.detector.state_dict().items():
        assert torch.equal(value, state[name])
    told = capsys.readouterr().err
    assert "15 batch norms folded" in told
    assert "AP not measured (no truths)" in told
    assert "100.00 %" in told


def test_bfloat16_computes_in_bfloat16(predictor: Predictor, picture: np.ndarray) -> None:
    quick = optimize_detector(predictor, precision="bf16")
    kinds = {each.weight.dtype for each in quick.modules() if isinstance(each, nn.Conv2d)}
    assert kinds == {torch.bfloat16}
    found = predictor.with_detector(quick)(picture)
    assert found.boxes.dtype == torch.float32
    exact = predictor(picture)
    assert not torch.equal(found.scores[:5], exact.scores[:5])  # it really is another precision
    torch.testing.assert_close(found.scores[:5], exact.scores[:5], rtol=0.1, atol=0.05)


def test_a_recipe_with_autocast_is_folded_like_any_other(tiny_checkpoint: Path) -> None:
    predictor = detkit.load(tiny_checkpoint, device="cpu", overrides=["test.amp=bf16"])
    assert optimize_detector(predictor).changes.folded == 15


def test_tiles_and_mirror_images_are_optimized_too(
    tiny_checkpoint: Path, picture: np.ndarray
) -> None:
    changes = ["test.tile=64", "test.flip=true"]
    predictor = detkit.load(tiny_checkpoint, device="cpu", overrides=changes)
    faster = predictor.optimize([picture], precision="fp32")
    assert faster.detector.changes.folded == 15  # type: ignore[union-attr]
    assert faster.cost is not None and faster.cost.agreement.share == 1.0


def test_load_optimizes(tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    faster = detkit.load(tiny_checkpoint, device="cpu", optimize=True)
    assert faster.cost is not None
    assert faster.cost.ap_before is None
    assert "generated, as the recipe's data is not to be had" in capsys.readouterr().err


@pytest.fixture
def with_truths(tiny_checkpoint: Path, tmp_path: Path, picture: np.ndarray) -> Predictor:
    """A predictor whose recipe has three pictures with an object of each class."""
    images, annotations = [], []
    for index in range(3):
        cv2.imwrite(str(tmp_path / f"{index}.png"), np.roll(picture, index, axis=0))
        images.append({"id": index + 7, "file_name": f"{index}.png", "height": 70, "width": 90})
        for kind, box in ((2, [5, 5, 30, 20]), (5, [40, 10, 20, 40]), (9, [10, 30, 50, 30])):
            own = {"id": len(annotations) + 1, "image_id": index + 7, "iscrowd": 0}
            annotations.append(own | {"bbox": box, "category_id": kind, "area": box[2] * box[3]})
    names = {2: "cat", 5: "Füße", 9: "dog"}
    categories = [{"id": key, "name": name} for key, name in names.items()]
    content = {"images": images, "annotations": annotations, "categories": categories}
    path = tmp_path / "truths.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    source = {"format": "coco", "annotations": str(path), "images": str(tmp_path)}
    return detkit.load(tiny_checkpoint, device="cpu", overrides=[f"data.val={json.dumps(source)}"])


def test_cost_is_ap_where_there_are_truths(with_truths: Predictor) -> None:
    same = measure_cost(with_truths, with_truths)
    assert same.pictures == 3
    assert same.where == "data.val"
    assert same.ap_before == same.ap_after is not None
    assert same.agreement.share == 1.0
    blind = copy.deepcopy(with_truths)
    blind.detector.roi.head.cls_score.bias.data[:3] -= 50  # type: ignore[union-attr]
    worse = measure_cost(with_truths, blind, limit=2)
    assert worse.pictures == 2
    assert worse.ap_after == 0.0
    assert worse.agreement.share == 0.0


def test_what_a_cost_says(with_truths: Predictor) -> None:
    agreement = measure_cost(with_truths, with_truths).agreement
    told = str(Cost("data.val", 3, agreement, 0.5, 0.498))
    assert told.startswith("AP 50.00 -> 49.80 (-0.20 points), 100.00 % of ")
    nothing = Cost("as named", 1, type(agreement)(1.0, 0.0, 0.0, 0))
    assert "nothing can be said" in str(nothing)
    assert str(Changes(3, 1, "bf16")) == ("3 batch norms folded (1 left), channels_last, bf16")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: optimize(p, precision="bf61"), "did you mean 'bf16'"),
        (lambda p: optimize(p, precision="fp16"), "needs a GPU"),
        (lambda p: optimize(p, limit=0), "at least 1 picture"),
        (lambda p: optimize(p, "no/such.jpg"), "no/such.jpg"),
        (lambda p: optimize(p.with_detector(optimize_detector(p))), "optimised already"),
    ],
)
def test_mistakes(predictor: Predictor, call: Callable[[Predictor], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(predictor)


def test_bfloat16_is_the_default_where_the_hardware_has_it() -> None:
    assert pick_precision(None, CPU) == ("bf16" if has_bf16(CPU) else "fp32")
    assert pick_precision("fp32", CPU) == "fp32"
