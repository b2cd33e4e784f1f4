"""Exportable detectors: the same detections as the detector itself, in every format."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from detkit.config import load_recipe
from detkit.detectors import Detector, ImagePyramid, Tiled, create_detector
from detkit.detectors.image_pyramid import Octaves
from detkit.detectors.proposals import GivenProposals
from detkit.detectors.tiled import Tiling
from detkit.inference.export.formats import export_onnx, export_torch, export_torchscript
from detkit.inference.export.graph import exportable
from detkit.inference.export.places import NOTHING, Found, top
from detkit.inference.export.suppression import EXPORTABLE, suppress
from detkit.ops import fuse
from detkit.ops import suppress as suppress_one
from detkit.structures import Batch, Detections, Size

ROOT = Path(__file__).resolve().parents[2]
LADDER = sorted(f"ladder/{path.name}" for path in (ROOT / "configs" / "ladder").glob("*.yaml"))

TINY: dict[str, Any] = {
    "backbone": {"name": "resnet18", "width": 8, "out_indices": [2, 3]},
    "fpn": {"channels": 16, "extra": None},
}
ROI: dict[str, Any] = {"hidden": 16, "canonical_size": 32}
RPN: dict[str, Any] = {"anchor_sizes": [[16], [32]], "pre_nms_test": 50, "post_nms_test": 30}
VARIANTS: dict[str, dict[str, Any]] = {
    "torchvision's first Faster R-CNN": {
        "backbone": {**TINY["backbone"], "norm": "frozen_batch"},
        "fpn": {"channels": 16},
        "rpn": {**RPN, "anchor_sizes": None},
        "roi": ROI,
    },
    "torchvision's second Faster R-CNN": {
        "backbone": TINY["backbone"],
        "fpn": {"channels": 16, "norm": "batch"},
        "rpn": {**RPN, "anchor_sizes": None, "convs": 2},
        "roi": {**ROI, "convs": 2, "conv_channels": 16, "fcs": 1},
    },
    "torchvision's RetinaNet": {
        "detector": "retinanet",
        **TINY,
        "fpn": {"channels": 16, "p6_source": "c5"},
        "retinanet": {"norm": "group", "convs": 1},
    },
    "torchvision's FCOS": {"detector": "fcos", **TINY, "fpn": {"channels": 16}},
    "a grid of proposals": {
        **TINY,
        "proposals": "grid",
        "grid": {"sizes": [24, 48], "stride": 24},
        "roi": ROI,
    },
    "crops of regions from a file": {
        "backbone": {"name": "resnet18", "width": 8, "out_indices": [2]},
        "proposals": "file",
        "roi": {"pool": "crop", "crop_size": 32, "context": 4, "resolution": 2, "hidden": 16},
    },
    "a pyramid around Faster R-CNN": {
        **TINY,
        "rpn": RPN,
        "roi": ROI,
        "image_pyramid": {"scales": [1, 0.5], "ranges": [[0, 48], [16, None]]},
    },
    "attention": {
        "detector": "task_aligned",
        **TINY,
        "backbone": {**TINY["backbone"], "attention": "cbam"},
    },
}


def lively(model: Any) -> Detector:
    """A detector with random weights that finds much: its last layers are far from flat."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        detector = create_detector(model, num_classes=3).eval()
        for name, layer in detector.named_modules():
            last = name.rpartition(".")[2]
            if last in ("cls_logits", "class_logits", "cls_score", "centerness"):
                nn.init.normal_(layer.weight, std=4 / layer.weight[0].numel() ** 0.5)
                nn.init.zeros_(layer.bias)
            elif last == "bbox_pred":
                nn.init.normal_(layer.weight, std=0.2 / layer.weight[0].numel() ** 0.5)
            elif isinstance(layer, nn.BatchNorm2d) and layer.running_var is not None:
                assert layer.running_mean is not None
                layer.running_mean.normal_(0, 0.1)
                layer.running_var.uniform_(0.5, 1.5)
    return detector


def batch_of(*sizes: Size, divisor: int = 32, proposals: bool = False) -> Batch:
    """Pictures of smooth noise, with regions where they are asked for."""
    generator = torch.Generator().manual_seed(len(sizes))
    shape = [-(-max(size[axis] for size in sizes) // divisor) * divisor for axis in (0, 1)]
    images = torch.zeros(len(sizes), 3, *shape, dtype=torch.uint8)
    regions: list[Tensor] = []
    for image, (height, width) in zip(images, sizes, strict=True):
        coarse = torch.rand(1, 3, height // 8, width // 8, generator=generator)
        fine = nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")
        image[:, :height, :width] = (255 * fine[0]).byte()
        corner = torch.rand(20 + len(regions), 2, generator=generator) * 0.6
        side = 0.1 + torch.rand(len(corner), 2, generator=generator) * 0.3
        limits = torch.tensor([width, height, width, height])
        regions.append(torch.cat([corner, corner + side], dim=1) * limits)
    return Batch(images, sizes, sizes, proposals=tuple(regions) if proposals else None)


def inputs_of(batch: Batch) -> tuple[Tensor, ...]:
    """The batch as the graph takes it."""
    inputs = (batch.images, torch.tensor(batch.sizes))
    if batch.proposals is None:
        return inputs
    most = max(map(len, batch.proposals))
    padded = [nn.functional.pad(each, (0, 0, 0, most - len(each))) for each in batch.proposals]
    return (*inputs, torch.stack(padded))


def check_equal(found: Sequence[Any], wanted: Sequence[Detections], *, at_least: int = 10) -> None:
    """The same boxes in the same order, up to rounding, and nothing in the places left over."""
    assert sum(map(len, wanted)) >= at_least * len(wanted)
    boxes, scores, labels = (torch.as_tensor(np.asarray(each)) for each in found)
    assert boxes.dtype == scores.dtype == torch.float32 and labels.dtype == torch.int64
    for image, own in enumerate(wanted):
        count = len(own)
        torch.testing.assert_close(scores[image, :count], own.scores, atol=1e-4, rtol=0)
        _check_same_boxes(boxes[image, :count], labels[image, :count], own)
        assert not scores[image, count:].any() and not boxes[image, count:].any()
        assert (labels[image, count:] == -1).all()


def _check_same_boxes(boxes: Tensor, labels: Tensor, wanted: Detections) -> None:
    """Each wanted box is there; boxes of nearly one score may have changed places."""
    off = (boxes[:, None] - wanted.boxes).abs().amax(dim=2)  # [K, K]
    off = off.masked_fill(labels[:, None] != wanted.labels, torch.inf)
    rank = torch.arange(len(off))
    off = off.masked_fill((rank[:, None] - rank).abs() > 3, torch.inf)
    assert float(off.amin(dim=0).max()) < 1e-2 and float(off.amin(dim=1).max()) < 1e-2


SIZES: tuple[tuple[Size, ...], ...] = (((96, 128),), ((70, 100), (128, 64), (49, 90)))


def model_of(name: str) -> Any:
    """The settings of a recipe, small and looking at many boxes."""
    dense = any(word in name for word in ("retinanet", "fcos", "task", "own"))
    overrides = [f"model.select.score_threshold={0.3 if dense else 0.1}"]
    if name == "own_data.yaml":
        overrides += ["model.backbone.weights=null", "model.backbone.width=8"]
        overrides += ["model.backbone.name=resnet18", "model.fpn.channels=16"]
    return load_recipe(ROOT / "configs" / name, overrides).model


def takes_regions(detector: Detector) -> bool:
    """Whether regions come with the batch."""
    inside = detector.detector if isinstance(detector, ImagePyramid) else detector
    return isinstance(getattr(inside, "rpn", None), GivenProposals)


@torch.no_grad()
@pytest.mark.parametrize("name", [*LADDER, "own_data.yaml", *VARIANTS])
def test_a_graph_finds_what_the_detector_finds(name: str) -> None:
    detector = any_detector(name)
    graph = exportable(detector)
    for sizes in SIZES:
        batch = batch_of(*sizes, proposals=takes_regions(detector))
        check_equal(graph(*inputs_of(batch)), detector.predict(batch))


@torch.no_grad()
def test_mirror_images_are_looked_at_inside_of_the_padding() -> None:
    detector = any_detector("crops of regions from a file")
    settings = {"nms": "hard", "iou_threshold": 0.6, "sigma": 0.5, "class_agnostic": False}
    one = partial(fuse, **settings, score_threshold=0.2, max_detections=30)
    views = ImagePyramid(detector, (1.0, 0.75), fuse=one, flip=True)
    for sizes in SIZES:
        batch = batch_of(*sizes, proposals=True)
        found = exportable(views)(*inputs_of(batch))
        assert found[0].shape == (len(sizes), 30, 4)
        check_equal(found, views.predict(batch))


def any_detector(name: str) -> Detector:
    """A detector of the ladder, of a recipe, or one of the variants."""
    if name in VARIANTS:
        return lively({**VARIANTS[name], "select": {"score_threshold": 0.1}})
    return lively(model_of(name))


def run_onnx(path: Path) -> Callable[..., list[np.ndarray]]:
    """What calls the file with tensors."""
    onnxruntime = pytest.importorskip("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    assert [each.name for each in session.get_outputs()] == ["boxes", "scores", "labels"]
    assert json.loads(session.get_modelmeta().custom_metadata_map["detkit"]) == METADATA
    names = [each.name for each in session.get_inputs()]
    assert names == ["images", "sizes", "proposals"][: len(names)]
    return lambda *inputs: session.run(
        None, {name: each.numpy() for name, each in zip(names, inputs, strict=True)}
    )


def run_torchscript(path: Path) -> Callable[..., Any]:
    """The same of a TorchScript file."""
    extra = {"detkit": ""}
    module = torch.jit.load(path, _extra_files=extra)
    assert json.loads(extra["detkit"]) == METADATA
    return module


def run_torch(path: Path) -> Callable[..., Any]:
    """The same of a file of torch.export."""
    extra = {"detkit": ""}
    program = torch.export.load(path, extra_files=extra)
    assert json.loads(extra["detkit"]) == METADATA
    return program.module()


METADATA = {"version": 1, "class_names": ["a", "ü", "c"]}
FORMATS = {
    "onnx": (export_onnx, run_onnx),
    "torchscript": (export_torchscript, run_torchscript),
    "torch_export": (export_torch, run_torch),
}


@torch.no_grad()
@pytest.mark.filterwarnings("ignore")  # of torch about itself
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((name, "torchscript") for name in [*LADDER, "own_data.yaml", *VARIANTS]),
        ("ladder/13_task_aligned.yaml", "onnx"),
        ("ladder/07_fast_rcnn.yaml", "onnx"),
        ("torchvision's second Faster R-CNN", "onnx"),
        ("ladder/02_lenet_window_dense.yaml", "torch_export"),
        ("ladder/10_cascade_rcnn.yaml", "torch_export"),
    ],
)
def test_a_file_finds_what_the_detector_finds(name: str, kind: str, tmp_path: Path) -> None:
    detector = any_detector(name)
    export, load = FORMATS[kind]
    export(exportable(detector), tmp_path / "model", METADATA)
    assert [each.name for each in tmp_path.iterdir()] == ["model"]
    run = load(tmp_path / "model")
    for sizes in SIZES:  # neither batches nor sizes of the example
        batch = batch_of(*sizes, proposals=takes_regions(detector))
        check_equal(run(*inputs_of(batch)), detector.predict(batch))


def some_boxes(count: int, *, seed: int = 0) -> Detections:
    """Many boxes that overlap, best first."""
    generator = torch.Generator().manual_seed(seed)
    corner = 40 * torch.rand(count, 2, generator=generator)
    side = 10 + 30 * torch.rand(count, 2, generator=generator)
    scores = torch.rand(count, generator=generator).sort(descending=True).values
    labels = torch.randint(3, (count,), generator=generator)
    return Detections(torch.cat([corner, corner + side], dim=1), scores, labels)


@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize("kind", EXPORTABLE)
def test_suppression_of_a_batch_is_that_of_each_image(kind: str, agnostic: bool) -> None:
    images, places, count = [some_boxes(60), some_boxes(1, seed=1), some_boxes(0)], 70, 12
    settings: dict[str, Any] = {
        "nms": kind,
        "iou_threshold": 0.4,
        "sigma": 0.3,
        "class_agnostic": agnostic,
        "score_threshold": 0.05,
    }
    boxes, scores = torch.zeros(3, places, 4), torch.full((3, places), NOTHING)
    labels = torch.zeros(3, places, dtype=torch.int64)
    for image, own in enumerate(images):
        for room, values in ((boxes, own.boxes), (scores, own.scores), (labels, own.labels)):
            room[image, 5 : 5 + len(own)] = values
    found = suppress(Found(boxes, scores, labels), num_classes=3, count=count, **settings)
    for image, own in enumerate(images):
        wanted = suppress_one(own, max_detections=count, **settings)
        there = found.scores[image] > NOTHING
        assert int(there.sum()) == len(wanted)
        torch.testing.assert_close(found.scores[image][there], wanted.scores)
        torch.testing.assert_close(found.boxes[image][there], wanted.boxes)
        assert torch.equal(found.labels[image][there], wanted.labels)


def test_the_operator_for_onnx_is_that_of_torch() -> None:
    own = some_boxes(40)
    inputs = own.boxes[None], own.scores[None], own.labels[None], 3, 0.4
    kept = torch.ops.detkit.keep(*inputs)
    wanted = suppress_one(own, nms="hard", iou_threshold=0.4)
    torch.testing.assert_close(own.boxes[kept[0]], wanted.boxes)


def test_top_fills_up() -> None:
    values, index = top(torch.tensor([[0.1, 0.7, 0.3]]), 5)
    torch.testing.assert_close(values, torch.tensor([[0.7, 0.3, 0.1, NOTHING, NOTHING]]))
    assert index.tolist() == [[1, 2, 0, 0, 0]]


@torch.no_grad()
def test_places_without_a_box_are_empty() -> None:
    detector = lively({"detector": "fcos", **TINY, "select": {"score_threshold": 1.0}})
    boxes, scores, labels = exportable(detector)(*inputs_of(batch_of((64, 64))))
    assert boxes.shape == (1, 100, 4) and not boxes.any() and not scores.any()
    assert (labels == -1).all()


@torch.no_grad()
def test_the_padding_is_not_looked_at() -> None:
    graph = exportable(lively({"detector": "fcos", **TINY}))
    images, sizes = inputs_of(batch_of((50, 40)))
    wanted = graph(images, sizes)
    images[:, :, 50:] = 255
    images[:, :, :, 40:] = 255
    for each, other in zip(graph(images, sizes), wanted, strict=True):
        assert torch.equal(each, other)


def test_what_no_graph_holds_is_refused_in_one_line() -> None:
    tiny = {"detector": "fcos", **TINY}
    detector = create_detector(tiny, num_classes=3)
    octaves = create_detector({**tiny, "image_pyramid": {"smallest": 32}}, num_classes=3)
    joins = create_detector({**tiny, "select": {"nms": "wbf"}}, num_classes=3)
    assert isinstance(octaves, ImagePyramid) and isinstance(octaves.scales, Octaves)
    tiled = Tiled(detector, Tiling(64), resize=lambda h, w: (h, w), batch_size=1, fuse=octaves.fuse)
    for each, words in ((octaves, "scales"), (joins, "nms=wbf"), (tiled, "test.tile")):
        with pytest.raises(ValueError, match=words) as error:
            exportable(each)
        assert "\n" not in str(error.value)
