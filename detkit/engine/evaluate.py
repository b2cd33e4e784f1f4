"""Run a detector over a data set and measure it."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from detkit.config import ConfigError, Recipe, Source
from detkit.data import CocoDataset, coco_ground_truth
from detkit.detectors import Detector
from detkit.engine import distributed
from detkit.engine.checkpoint import Checkpoint
from detkit.engine.data import build_dataset, check_same_classes, eval_loader, share_cores
from detkit.engine.device import amp_dtype
from detkit.evaluation import CocoEvaluator, CocoResult
from detkit.files import write_atomically
from detkit.structures import Batch, Detections


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


@torch.no_grad()
def evaluate(
    detector: Detector,
    loader: DataLoader[Batch],
    dataset: CocoDataset,
    *,
    device: torch.device,
    dtype: torch.dtype | None = None,
    with_loss: bool = False,
) -> Evaluation:
    """Detect in every image of `loader` and compare with the truths of `dataset`.

    Args:
        detector: in evaluation mode.
        loader: over `dataset`, or this process' share of it.
        dataset: whose ground truth counts.
        device: where the detector is.
        dtype: for autocast, or None.
        with_loss: also compute the losses, from the same feature maps.
    """
    sums: dict[str, float] = defaultdict(float)
    found: dict[int, Detections] = {}
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        # The losses draw samples: the same ones each time, so that epochs can be compared, and
        # without moving the random state of training
        torch.manual_seed(0)
        for batch in tqdm(loader, "evaluate", leave=False, disable=not distributed.is_main()):
            assert batch.targets is not None
            on_device = batch.to(device, non_blocking=True)
            with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
                features = detector.features(on_device)
                detections = detector.detections(features, on_device)
                losses = detector.losses(features, on_device) if with_loss else {}
            for name, value in losses.items():
                sums[name] += value.item() * len(batch)
            for target, of_image in zip(batch.targets, detections, strict=True):
                found[target.image_id] = of_image.to("cpu")
    shares = distributed.gather((found, dict(sums)))
    everything = {image: d for share, _ in shares for image, d in share.items()}
    return Evaluation(
        measure(everything, dataset),
        {n: sum(part.get(n, 0.0) for _, part in shares) / len(everything) for n in sums},
        everything,
    )


def measure(detections: dict[int, Detections], dataset: CocoDataset) -> CocoResult:
    """The COCO metric against the ground truth exactly as the annotations have it."""
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
    for image_id, found in detections.items():
        categories = dataset.category_ids[found.labels.numpy()]
        evaluator.update(image_id, found.boxes.numpy(), found.scores.numpy(), categories)
    return evaluator.compute()


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
    source = source_to_test(checkpoint.recipe)
    dtype = amp_dtype(checkpoint.recipe.test.amp, device)
    share_cores(checkpoint.recipe)
    dataset = build_dataset(source, role="test")
    check_same_classes(dataset, checkpoint.class_names, "test")
    loader = eval_loader(checkpoint.recipe, dataset, pin_memory=device.type == "cuda")
    detector = checkpoint.detector().to(device)
    outcome = evaluate(detector, loader, dataset, device=device, dtype=dtype)
    if distributed.is_main():
        records = coco_results(outcome.detections, dataset.category_ids.tolist())
        write_atomically(folder / "detections.json", json.dumps(records))
        write_atomically(folder / "metrics.json", json.dumps(outcome.result.as_dict(), indent=1))
    return outcome.result
