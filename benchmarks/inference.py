"""Inference beside torchvision's in one run, and beside YOLO11n: the same weights and pictures.

    python benchmarks/inference.py --checkpoints runs/a/best.pt runs/b/best.pt --pictures photos/
    python benchmarks/inference.py                        # published weights, else random ones
    python benchmarks/inference.py --ultralytics-python /path/to/venv/bin/python

Faster R-CNN, RetinaNet and FCOS on ResNet-50 with FPN. Each side gets decoded pictures (uint8 RGB)
one by one and does the rest itself, resizing included: torchvision as its documentation shows
(float tensors, NCHW, float32), detkit by its predictor, as it is and optimised. They take turns at
every picture; a figure is the median over the pictures, a ratio that of the pictures' ratios.

Two questions about the results. Are the plain detectors equal? The same pixels, resized beforehand,
go into both; pairs of detections, best first, are compared. What does optimising cost? AP of both
forms on the first pictures of the checkpoint's own validation data, prepared as its recipe says.

Measured on one core of an AMD EPYC (Zen 5, bf16), torch 2.15: pictures of COCO128 at 800 px, each
detector trained on the built-in digits for a few minutes, AP (in percent) on 128 of their pictures.
No coordinate differed by more than 0.0013 pixels in float32, and no detection lacked its partner.

    ms a picture    torchvision    detkit          optimised       AP
    Faster R-CNN    4070           3844 (1.08x)    1469 (2.72x)    26.05 -> 26.19
    RetinaNet       3427           3102 (1.10x)    1119 (3.06x)    7.22 -> 7.23
    FCOS            2620           2362 (1.10x)     977 (2.72x)    26.48 -> 26.53

    ms a file, 640 px                      float32    optimised
    YOLO11n                                69
    configs/own_data.yaml (ResNet-50)      586        221
    the same on ResNet-18, half as wide    115        71

YOLO11n (random weights: time only) runs in an interpreter of its own, where whoever runs this has
installed ultralytics (AGPL); it is given paths of pictures, and so is detkit beside it.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models import resnet50
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

import detkit
from detkit.config import ModelConfig, Recipe, build_recipe, load_recipe
from detkit.data.images import read_image
from detkit.detectors import create_detector
from detkit.detectors.torchvision_weights import PUBLISHED, convert
from detkit.engine.latency import conditions
from detkit.inference import Predictor
from detkit.inference.benchmark import list_or_generate
from detkit.inference.optimize import measure_cost, optimize_detector
from detkit.structures import Detections

CPU = torch.device("cpu")
NEVER = -100.0  # logit of a class that nothing ever is
MODELS = ("fasterrcnn_resnet50_fpn", "retinanet_resnet50_fpn", "fcos_resnet50_fpn")
Look = Callable[[np.ndarray], int]

ULTRALYTICS = """
import sys, time, torch
torch.set_num_threads(int(sys.argv[1]))
from ultralytics import YOLO
model = YOLO("yolo11n.yaml", verbose=False)
for line in sys.stdin:
    start = time.perf_counter()
    model.predict(line.strip(), imgsz=int(sys.argv[2]), device="cpu", verbose=False)
    print("seconds", time.perf_counter() - start, flush=True)
"""


# ---------------------------------------------------------------------------- torchvision's models


def build_theirs(config: ModelConfig, num_classes: int, resize: tuple[int, int]) -> nn.Module:
    """Torchvision's model with the settings and the layers of a detector of ours."""
    norm: Any = nn.BatchNorm2d
    if config.backbone.norm == "frozen_batch":
        norm = partial(FrozenBatchNorm2d, eps=1e-5)
        if config.backbone.norm_eps is not None:
            norm = partial(FrozenBatchNorm2d, eps=config.backbone.norm_eps)
    body, select, count = resnet50(weights=None, norm_layer=norm), config.select, num_classes + 1
    sizes = {"min_size": resize[0], "max_size": resize[1]}
    if config.detector == "region_proposal":
        assert config.rpn is not None
        return FasterRCNN(
            _resnet_fpn_extractor(body, 5),
            count,
            rpn_pre_nms_top_n_test=config.rpn.pre_nms_test,
            rpn_post_nms_top_n_test=config.rpn.post_nms_test,
            box_score_thresh=select.score_threshold,
            box_nms_thresh=select.iou_threshold,
            box_detections_per_img=select.max_detections,
            **sizes,
        ).eval()
    backbone = _resnet_fpn_extractor(
        body, 5, returned_layers=[2, 3, 4], extra_blocks=LastLevelP6P7(256, 256)
    )
    settings = {
        "score_thresh": select.score_threshold,
        "nms_thresh": select.iou_threshold,
        "detections_per_img": select.max_detections,
        "topk_candidates": select.pre_nms,
    }
    if config.detector == "fcos":
        return FCOS(backbone, count, **settings, **sizes).eval()
    assert config.retinanet is not None
    if config.retinanet.norm == "group":
        settings["head"] = RetinaNetHead(256, 9, count, partial(nn.GroupNorm, 32))
    return RetinaNet(backbone, count, **settings, **sizes).eval()


def give_weights(theirs: nn.Module, ours: dict[str, Tensor]) -> None:
    """Load a state of ours: the inverse of `convert`, which keeps the order of the keys."""
    state = theirs.state_dict()
    names = dict(zip(state, convert(state), strict=True))
    state = {key: _theirs(key, ours[name], state[key]) for key, name in names.items()}
    theirs.load_state_dict(state)


def _theirs(key: str, value: Tensor, like: Tensor) -> Tensor:
    """One tensor with torchvision's additional class, which is first and never found."""
    if key.startswith("roi_heads.box_predictor.cls_score."):
        return torch.cat([value[-1:], value[:-1]])  # our background is last
    if key.startswith("roi_heads.box_predictor.bbox_pred."):
        return torch.cat([torch.zeros_like(value[:4]), value])
    if "classification_head.cls_logits." in key:
        anchors = like.shape[0] - value.shape[0]  # A * (C + 1) - A * C
        rows = value.unflatten(0, (anchors, -1))
        first = torch.zeros_like(rows[:, :1])
        if key.endswith("bias"):
            first = torch.full_like(first, NEVER)
        return torch.cat([first, rows], dim=1).flatten(0, 1)
    return value


# ------------------------------------------------------------------------------------- both sides


@dataclass
class Subject:
    """A detector in all its forms.

    Attributes:
        name: for the table.
        weights: where they are from.
        plain: our predictor.
        quick: the same, optimised.
        theirs: torchvision's model with the same weights.
        has_truths: whether its recipe names data to measure AP on.
    """

    name: str
    weights: str
    plain: Predictor
    quick: Predictor
    theirs: nn.Module
    has_truths: bool


def published(name: str, resize: tuple[int, int]) -> Subject:
    """With torchvision's weights where they are in the cache, else with random ones."""
    overrides = [f"data.resize.shortest={resize[0]}", f"data.resize.longest={resize[1]}"]
    try:
        plain, weights = detkit.load(name, device="cpu", overrides=overrides), "published"
    except (OSError, ValueError):
        model = PUBLISHED[name].model_dump(mode="json")
        recipe = build_recipe({"name": name, "model": model}, overrides, where=name)
        plain, weights = _random(recipe, 90), "random"
    return _subject(name, weights, plain, resize, has_truths=False)


def _random(recipe: Recipe, classes: int) -> Predictor:
    torch.manual_seed(0)
    detector = create_detector(recipe.model, num_classes=classes)
    detector = detector.to(memory_format=torch.channels_last)
    names = [str(index) for index in range(classes)]
    ids = range(1, classes + 1)
    return Predictor(detector, recipe, class_names=names, category_ids=ids, device=CPU)


def trained(path: str, resize: tuple[int, int]) -> Subject:
    """With the weights of a checkpoint."""
    overrides = [f"data.resize.shortest={resize[0]}", f"data.resize.longest={resize[1]}"]
    plain = detkit.load(path, device="cpu", overrides=overrides)
    name = {"region_proposal": "fasterrcnn"}.get(plain.recipe.model.detector)
    name = name or plain.recipe.model.detector
    return _subject(f"{name}_resnet50_fpn", path, plain, resize, has_truths=True)


def _subject(
    name: str, weights: str, plain: Predictor, resize: tuple[int, int], *, has_truths: bool
) -> Subject:
    theirs = build_theirs(plain.recipe.model, len(plain.class_names), resize)
    give_weights(theirs, plain.detector.state_dict())
    quick = plain.with_detector(optimize_detector(plain))
    return Subject(name, weights, plain, quick, theirs, has_truths)


@torch.inference_mode()
def look_of_theirs(model: nn.Module, image: np.ndarray) -> dict[str, Tensor]:
    """As torchvision's documentation has it."""
    found: dict[str, Tensor] = model([torch.from_numpy(image).permute(2, 0, 1) / 255])[0]
    return found


def largest_difference(subject: Subject, images: Sequence[np.ndarray]) -> tuple[int, int, float]:
    """Detections, how many of them have no partner of the same class and box, and how far off.

    Returns:
        Detections of ours; those without one of theirs within a pixel and 1e-3 of the score, or
        the other way round; largest difference of a coordinate in pixels among the partners.
    """
    total = alone = 0
    worst = 0.0
    for image in images:
        side = image.shape[:2]
        subject.theirs.transform.min_size = (min(side),)  # resized already: as it is
        subject.theirs.transform.max_size = max(side)
        found = look_of_theirs(subject.theirs, image)
        theirs = Detections(found["boxes"], found["scores"], found["labels"] - 1)
        ours = subject.plain(image)
        distance = (ours.boxes[:, None] - theirs.boxes).abs().amax(dim=2)
        other = ours.labels[:, None] != theirs.labels
        other |= (ours.scores[:, None] - theirs.scores).abs() > 1e-3
        distance = distance.masked_fill(other, torch.inf)
        total += len(ours)
        if not len(ours) or not len(theirs):
            alone += len(ours) + len(theirs)
            continue
        alone += int((distance.amin(dim=1) > 1).sum() + (distance.amin(dim=0) > 1).sum())
        near = distance.amin(dim=1)
        worst = max([worst, *near[near <= 1].tolist()])
    return total, alone, worst


# ------------------------------------------------------------------------------------------ timing


def take_turns(
    looks: dict[str, Callable[[Any], object]], pictures: Sequence[Any], *, rounds: int
) -> dict[str, list[float]]:
    """Seconds of each at every picture; two pictures before warm up."""
    spent: dict[str, list[float]] = {name: [] for name in looks}
    for index in range(-2, rounds):
        picture = pictures[index % len(pictures)]
        names = list(looks) if index % 2 else list(reversed(looks))
        for name in names:
            start = time.perf_counter()
            looks[name](picture)
            if index >= 0:
                spent[name].append(time.perf_counter() - start)
    return spent


def lines_of(spent: dict[str, list[float]], first: str) -> list[str]:
    """Medians, and ratios to the first within each picture."""
    lines = []
    for name, seconds in spent.items():
        ratio = statistics.median(a / b for a, b in zip(spent[first], seconds, strict=True))
        p95 = 1000 * float(np.percentile(seconds, 95))
        median = 1000 * statistics.median(seconds)
        lines.append(f"  {name:24} {median:8.1f} ms  p95 {p95:8.1f}  {ratio:5.2f}x")
    return lines


def against_torchvision(
    subject: Subject, images: Sequence[np.ndarray], *, rounds: int, limit: int
) -> None:
    """Print the times, the differences and the cost."""
    looks = {
        "torchvision fp32": partial(look_of_theirs, subject.theirs),
        "detkit fp32": subject.plain,
        "detkit optimised": subject.quick,
    }
    spent = take_turns(looks, images, rounds=rounds)
    print(f"{subject.name} ({subject.weights}); optimised: {subject.quick.detector.changes}")
    print("\n".join(lines_of(spent, "torchvision fp32")))
    same = [_resized(subject.plain, image) for image in images[:4]]
    total, alone, worst = largest_difference(subject, same)
    print(f"  fp32, equal pixels: {total} detections, {alone} without a partner, others within ")
    print(f"    {worst:.2g} px and 1e-3 of the score ({len(same)} pictures)")
    if subject.has_truths:
        plain = detkit.load(subject.weights, device="cpu")
        quick = plain.with_detector(optimize_detector(plain))
        print(f"  cost: {measure_cost(plain, quick, limit=limit)}", flush=True)


def _resized(predictor: Predictor, image: np.ndarray) -> np.ndarray:
    return predictor.prepare(image).image


def against_ultralytics(python: str, paths: Sequence[Path], *, rounds: int, size: int) -> None:
    """Time a path of a picture to detections, in turns with another interpreter."""
    changes = [f"data.resize.shortest={size}", f"data.resize.longest={size}"]
    own = Path(__file__).parents[1] / "configs" / "own_data.yaml"
    small = ["model.backbone.name=resnet18", "model.backbone.width=32"]
    small += ["model.backbone.norm=batch", "model.backbone.weights=null"]
    with subprocess.Popen(
        [python, "-c", ULTRALYTICS, str(torch.get_num_threads()), str(size)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None and process.stdout is not None

        def theirs(path: Path) -> None:
            process.stdin.write(f"{path}\n")
            process.stdin.flush()
            while not (line := process.stdout.readline()).startswith("seconds"):
                if not line:
                    raise ValueError(f"{python} has no working ultralytics; install it there")

        looks: dict[str, Callable[[Any], object]] = {"YOLO11n fp32": theirs}
        for name, more in (("own_data.yaml", []), ("  on ResNet-18, half wide", small)):
            recipe = load_recipe(own, [*changes, "model.backbone.weights=null", *more])
            plain = _random(recipe, 80)
            looks[name] = plain
            looks[f"{name}, optimised"] = plain.with_detector(optimize_detector(plain))
        spent = take_turns(looks, paths, rounds=rounds)
        process.stdin.close()
    print(f"task-aligned at {size} px beside YOLO11n, from files, random weights on both sides")
    print("\n".join(lines_of(spent, "YOLO11n fp32")))


def main() -> None:
    """Read the command line and compare."""
    parser = argparse.ArgumentParser(description="Inference of detkit, torchvision, YOLO11n.")
    add = parser.add_argument
    add("--checkpoints", nargs="*", help="of the three detectors (default: published or random)")
    add("--pictures", help="file, folder or pattern to time on (default: generated ones)")
    add("--shortest", type=int, default=800, help="side of the pictures in pixels")
    add("--longest", type=int, default=1333)
    add("--rounds", type=int, default=10, help="pictures that each looks at")
    add("--limit", type=int, default=128, help="pictures to measure AP on")
    add("--ultralytics-python", metavar="PATH", help="an interpreter that has ultralytics")
    add("--ultralytics-only", action="store_true")
    add("--size", type=int, default=640, help="side of the pictures for YOLO11n")
    options = parser.parse_args()
    print(conditions(CPU))
    with tempfile.TemporaryDirectory() as folder:
        paths = list_or_generate(options.pictures, Path(folder))
        resize = (options.shortest, options.longest)
        images = [read_image(path) for path in paths[: options.rounds]]
        if not options.ultralytics_only:
            makers = [partial(published, name) for name in MODELS]
            if options.checkpoints:
                makers = [partial(trained, path) for path in options.checkpoints]
            for make in makers:
                subject = make(resize)
                against_torchvision(subject, images, rounds=options.rounds, limit=options.limit)
        if options.ultralytics_python:
            python = options.ultralytics_python
            against_ultralytics(python, paths, rounds=options.rounds, size=options.size)


if __name__ == "__main__":
    main()
