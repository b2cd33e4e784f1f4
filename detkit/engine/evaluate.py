"""Run a detector over a data set and measure it."""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from detkit.config import ConfigError, FusionConfig, Recipe, Source
from detkit.data import CocoDataset, coco_ground_truth
from detkit.data.loader import read_batches
from detkit.detectors import Detector
from detkit.detectors.factory import build_fuse
from detkit.detectors.image_pyramid import Fuse
from detkit.engine import distributed
from detkit.engine.checkpoint import Checkpoint
from detkit.engine.data import (
    build_dataset,
    check_same_classes,
    eval_loader,
    share_cores,
    short_list,
)
from detkit.engine.device import amp_dtype
from detkit.engine.stop import StopRequests
from detkit.engine.views import Preparation, with_views
from detkit.evaluation import CocoEvaluator, CocoResult
from detkit.evaluation.bootstrap import check_resamples
from detkit.evaluation.differences import with_ids
from detkit.evaluation.report import write_report
from detkit.evaluation.side_by_side import results_dict
from detkit.evaluation.thresholds import above, read_thresholds
from detkit.files import write_atomically
from detkit.structures import Batch, Detections

logger = logging.getLogger(__name__)

ENSEMBLE_NMS = "wbf"  # the answers of several detectors confirm each other


@dataclass(frozen=True)
class Evaluation:
    """What a pass over a data set gave.

    Attributes:
        result: of the COCO metric over all images of all processes.
        losses: mean over the images of each loss, empty if not asked for.
        detections: by image id, of all processes.
    """

    result: CocoResult
    losses: dict[str, float]
    detections: dict[int, Detections]


def evaluate(
    detector: Detector,
    loader: DataLoader[Batch],
    dataset: CocoDataset,
    *,
    device: torch.device,
    dtype: torch.dtype | None = None,
    with_loss: bool = False,
    stop: StopRequests | None = None,
) -> Evaluation:
    """Detect in every image of `loader` and compare with the truths of `dataset`.

    Args:
        detector: in evaluation mode.
        loader: over `dataset`, or this process' share of it.
        dataset: whose ground truth counts.
        device: where the detector is.
        dtype: for autocast, or None.
        with_loss: also compute the losses, from the same feature maps.
        stop: ends it within a few batches where that is asked for, of several processes all.
    """
    found, losses = detect(
        detector, loader, device=device, dtype=dtype, with_loss=with_loss, stop=stop
    )
    return Evaluation(measure(found, dataset), losses, found)


@torch.no_grad()
def detect(
    detector: Detector,
    loader: DataLoader[Batch],
    *,
    device: torch.device,
    dtype: torch.dtype | None = None,
    with_loss: bool = False,
    stop: StopRequests | None = None,
) -> tuple[dict[int, Detections], dict[str, float]]:
    """Detections by image id and mean losses, of all processes; see `evaluate`."""
    sums: dict[str, float] = defaultdict(float)
    found: dict[int, Detections] = {}
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        # The losses draw samples: the same ones each time, so that epochs can be compared, and
        # without moving the random state of training
        torch.manual_seed(0)
        quiet = not distributed.is_main()
        batches = tqdm(read_batches(loader), "evaluate", len(loader), leave=False, disable=quiet)
        for turn, batch in enumerate(batches):
            if stop is not None and stop.noticed(turn):
                break
            assert batch.targets is not None
            on_device = batch.to(device, non_blocking=True)
            losses = {}
            with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
                if with_loss:
                    features = detector.features(on_device)
                    detections = detector.detections(features, on_device)
                    losses = detector.losses(features, on_device)
                else:
                    detections = detector.predict(on_device.without_targets())
            for name, value in losses.items():
                sums[name] += value.item() * len(batch)
            for target, of_image in zip(batch.targets, detections, strict=True):
                found[target.image_id] = of_image.to("cpu")
    if stop is not None:
        stop.check()  # all processes come here, wherever they were told: what is gathered is whole
    shares = distributed.gather((found, dict(sums)))
    everything = {image: d for share, _ in shares for image, d in share.items()}
    means = {n: sum(part.get(n, 0.0) for _, part in shares) / len(everything) for n in sums}
    return everything, means


def measure(detections: dict[int, Detections], dataset: CocoDataset) -> CocoResult:
    """The COCO metric against the ground truth exactly as the annotations have it."""
    return evaluator_of(detections, dataset).compute()


def evaluator_of(detections: dict[int, Detections], dataset: CocoDataset) -> CocoEvaluator:
    """An evaluator that has taken all detections, and the ground truth as the annotations have it.

    Args:
        detections: by image id, on the CPU.
        dataset: with the truths.
    """
    truth = coco_ground_truth(dataset)
    evaluator = CocoEvaluator.from_arrays(
        image_ids=truth.image_ids,
        category_ids=truth.category_ids,
        gt_image_index=truth.gt_image_index,
        gt_category_index=truth.gt_label,
        gt_boxes=truth.gt_boxes_xywh,
        gt_area=truth.gt_area,
        gt_crowd=truth.gt_crowd,
        class_names=dataset.class_names,
    )
    if truth.gt_ids is not None:
        evaluator.truths = with_ids(evaluator.truths, truth.gt_ids)
    for image_id, found in detections.items():
        categories = dataset.category_ids[found.labels.numpy()]
        evaluator.update(image_id, found.boxes.numpy(), found.scores.numpy(), categories)
    return evaluator


def coco_results(
    detections: dict[int, Detections], category_ids: Sequence[int]
) -> list[dict[str, Any]]:
    """COCO results records with original category ids; boxes become xywh.

    Nothing is rounded: evaluated again, the file gives the same numbers to the last bit.
    """
    records = []
    for image_id, found in sorted(detections.items()):
        boxes = found.boxes.double()
        boxes[:, 2:] -= boxes[:, :2]
        for box, score, label in zip(
            boxes.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True
        ):
            category = int(category_ids[label])
            records.append(
                {"image_id": image_id, "category_id": category, "bbox": box, "score": score}
            )
    return records


def source_to_test(recipe: Recipe) -> Source:
    """The data to measure a finished detector on: data.test, or else data.val.

    Raises:
        ConfigError: the recipe names neither.
    """
    source = recipe.data.test or recipe.data.val
    if source is None:
        raise ConfigError(
            "the recipe names no data.test and no data.val; set data.test.format=coco "
            "data.test.annotations=FILE data.test.images=FOLDER"
        )
    return source


def measure_checkpoint(checkpoint: Checkpoint, *, folder: Path, device: torch.device) -> CocoResult:
    """Evaluate on `source_to_test` and write `detections.json`, then `metrics.json`.

    Args:
        checkpoint: whose recipe says on what and how.
        folder: where the main process writes.
        device: where to compute.

    Raises:
        ValueError: no data to measure on, or data of other classes.
    """
    return measure_ensemble({"": checkpoint}, folder=folder, device=device)


def measure_ensemble(
    members: Mapping[str, Checkpoint],
    *,
    folder: Path,
    device: torch.device,
    report: bool = False,
    resamples: int = 1000,
) -> CocoResult:
    """Evaluate what several checkpoints find together, as `measure_checkpoint` does with one.

    Each prepares the pictures as its own recipe says. On which data, by which fusion, weights and
    thresholds is said by the recipe of the first.

    Args:
        members: the checkpoints by the name that the metrics call them.
        folder: where the main process writes.
        device: where to compute.
        report: also write `report.html`, see `detkit.evaluation.report`.
        resamples: of the images, for the intervals of AP; 0 for none.

    Raises:
        ValueError: no data to measure on, data or checkpoints of other classes, as many weights as
            there are no checkpoints, 1 resample.
    """
    check_resamples(resamples)
    fuse = _ensemble_fuse(members)
    first = next(iter(members.values()))
    source = source_to_test(first.recipe)
    thresholds = None
    if first.recipe.test.thresholds is not None:
        thresholds = read_thresholds(first.recipe.test.thresholds, first.class_names)
    detectors = [_detector_of(name, member) for name, member in members.items()]
    dataset = build_dataset(source, role="test", class_names=first.class_names)
    check_same_classes(dataset, first.class_names, "test")
    # All made ready before the first one looks: a mistake about the last must not come hours later
    looks = [
        ready(detector, member.recipe, dataset, device=device)
        for detector, member in zip(detectors, members.values(), strict=True)
    ]
    parts = [look() for look in looks]
    found = parts[0]
    if fuse is not None:
        found = {image: fuse([part[image] for part in parts]) for image in found}
    if thresholds is not None:
        found = {image: above(each, thresholds) for image, each in found.items()}
    result = measure(found, dataset)
    if distributed.is_main():
        metrics = results_dict({"": result}, resamples=resamples)
        if fuse is not None:
            metrics["checkpoints"] = list(members)
        records = coco_results(found, dataset.category_ids.tolist())
        write_atomically(folder / "detections.json", json.dumps(records))
        write_atomically(folder / "metrics.json", json.dumps(metrics, indent=1))
        if report:
            name = first.recipe.name if len(members) == 1 else " + ".join(members)
            pictures = _pictures(result, dataset)
            write_report({name: result}, folder, pictures=pictures, resamples=resamples)
    return result


def _pictures(result: CocoResult, dataset: CocoDataset) -> list[Path]:
    """The files of the images, in the order in which the result has them."""
    paths = {int(image_id): dataset.path(i) for i, image_id in enumerate(dataset.image_ids)}
    return [paths[image_id] for image_id in result.truths.image_ids.tolist()]


def ready(
    detector: Detector, recipe: Recipe, dataset: CocoDataset, *, device: torch.device
) -> Callable[[], dict[int, Detections]]:
    """All but the work of finding what is in a data set, looking as `test` of the recipe says.

    Returns:
        What does the work, and gives the detections by image id.

    Raises:
        ValueError: the detector needs proposals that the data set does not have.
    """
    dtype = amp_dtype(recipe.test.amp, device)
    preparation = Preparation.of(recipe)
    loader = eval_loader(
        recipe,
        dataset,
        pin_memory=device.type == "cuda",
        transform=preparation.transform,
        batch_size=preparation.batch_size,
    )

    def look() -> dict[int, Detections]:
        share_cores(recipe)
        viewer = with_views(detector, recipe)
        found, _ = detect(viewer.to(device), loader, device=device, dtype=dtype)
        viewer.to("cpu")  # the next one needs the memory
        return found

    return look


def detect_with(
    checkpoint: Checkpoint, dataset: CocoDataset, *, device: torch.device
) -> dict[int, Detections]:
    """What a finished detector finds, see `ready`."""
    return ready(checkpoint.detector(), checkpoint.recipe, dataset, device=device)()


def _detector_of(name: str, checkpoint: Checkpoint) -> Detector:
    try:
        return checkpoint.detector()
    except ValueError as error:
        raise ValueError(f"{name}: {error}" if name else str(error)) from None


def validation_evaluator(checkpoint: Checkpoint, *, device: torch.device) -> CocoEvaluator:
    """What a finished detector finds in data.val, beside the truths.

    Raises:
        ValueError: no such data, or of other classes.
    """
    source = checkpoint.recipe.data.val
    if source is None:
        raise ConfigError(
            "the recipe names no data.val; set data.val.format=coco data.val.annotations=FILE "
            "data.val.images=FOLDER"
        )
    dataset = build_dataset(source, role="val", class_names=checkpoint.class_names)
    check_same_classes(dataset, checkpoint.class_names, "val")
    return evaluator_of(detect_with(checkpoint, dataset, device=device), dataset)


def _ensemble_fuse(members: Mapping[str, Checkpoint]) -> Fuse | None:
    """How the answers of the checkpoints become one; None where there is but one checkpoint."""
    (first_name, first), *others = members.items()
    for name, other in others:
        if other.class_names != first.class_names:
            raise ValueError(
                f"{name} knows the classes {short_list(other.class_names)}, {first_name} knows "
                f"{short_list(first.class_names)}; checkpoints that share a test need the same ones"
            )
    test, model = first.recipe.test, first.recipe.model
    if test.weights is not None and len(test.weights) != len(members):
        raise ValueError(
            f"test.weights has {len(test.weights)} entries for {len(members)} checkpoint"
            f"{'s' if others else ''}; give one each"
        )
    if not others:
        if test.fusion != FusionConfig() and not test.looks_often() and distributed.is_main():
            logger.warning(
                "test.fusion joins what several looks or checkpoints find, and there is only one; "
                "how its boxes suppress each other is said by model.select.nms and its neighbours"
            )
        return None
    fusion = test.fusion.model_copy(update={"nms": test.fusion.nms or ENSEMBLE_NMS})
    if distributed.is_main():
        named = zip(members, test.weights or [1.0] * len(members), strict=True)
        what = ", ".join(f"{name} (weight {weight:g})" for name, weight in named)
        logger.info("fusing by %s: %s", fusion.nms, what)
    return build_fuse(fusion, model.select, weights=test.weights)
