"""What two processes compute together; started by torchrun (see test_distributed.py).

Arguments: a recipe and a folder to write `<rank>.pt` to.
"""

from __future__ import annotations

import copy
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader

from detkit.config import load_recipe
from detkit.data import CocoDataset
from detkit.data.loader import collate
from detkit.data.transforms import EvalTransform
from detkit.detectors import Detector, create_detector
from detkit.engine import distributed
from detkit.engine.data import build_dataset, eval_loader, train_loader
from detkit.engine.evaluate import detect, evaluate
from detkit.engine.stop import ENDING, StopRequests
from detkit.engine.train import _parallel
from detkit.ops import Sample, sampling
from detkit.signals import Terminated
from detkit.structures import Batch, Detections, Target

CPU = torch.device("cpu")


def first_candidates(
    positive: Tensor, negative: Tensor, *, count: int, positive_fraction: float
) -> Sample:
    """In the place of `sample_balanced`: no chance, and the same number in every image."""
    positives = torch.nonzero(positive)[: int(count * positive_fraction), 0]
    negatives = torch.nonzero(negative)[: count - len(positives), 0]
    index = torch.cat([positives, negatives])
    assert len(index) == count, f"{len(index)} of {count} candidates"
    return Sample(index, torch.arange(count) < len(positives), torch.ones(count, dtype=torch.bool))


def batch_of(dataset: CocoDataset, indices: range) -> Batch:
    """In float64, so that what differs is a mistake and not rounding."""
    samples = [EvalTransform(shortest=None, longest=64)(dataset[i], 0) for i in indices]
    batch = collate(samples)
    targets = tuple(
        type(t)(t.boxes.double(), t.labels, t.image_id, t.crowd, t.area)
        for t in batch.targets or ()
    )
    return Batch(batch.images, batch.sizes, batch.original_sizes, targets)


def gradients(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    model.zero_grad()
    with patch.object(sampling, "sample_balanced", first_candidates):
        losses = model(batch)
    torch.stack(list(losses.values())).sum().backward()
    return {
        name.removeprefix("module."): parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


ONE_STAGE = {"backbone": {"name": "resnet18", "width": 8}, "fpn": {"channels": 16}}
DETECTORS: dict[str, dict[str, Any]] = {
    "region_proposal": {**ONE_STAGE, "roi": {"hidden": 8}},
    "retinanet": ONE_STAGE,
    "fcos": ONE_STAGE,
    "task_aligned": ONE_STAGE,
}


def one_rank_without_boxes(dataset: CocoDataset, rank: int) -> dict[str, Tensor]:
    """Of each detector all gradients, where only the first process has boxes."""
    found = {}
    for name, settings in DETECTORS.items():
        torch.manual_seed(0)
        detector = create_detector({"detector": name, **settings}, num_classes=3)
        batch = collate([EvalTransform(shortest=None, longest=64)(dataset[i], 0) for i in (0, 1)])
        assert batch.targets is not None
        if rank == 1:
            none = tuple(
                Target(t.boxes[:0], t.labels[:0], t.image_id, t.crowd[:0], t.area[:0])
                for t in batch.targets
            )
            batch = replace(batch, targets=none)
        model = _parallel(detector, CPU)
        for _ in range(2):  # what was left out of the first would be missed in the second
            torch.stack(list(model(batch).values())).sum().backward()
        learning = [each for each in detector.parameters() if each.requires_grad]
        found[name] = torch.cat([each.grad.flatten() for each in learning if each.grad is not None])
        assert len(found[name]) == sum(map(torch.numel, learning))
    return found


def shared_buffers(rank: int) -> Tensor:
    norm = nn.BatchNorm2d(2)
    assert norm.running_mean is not None
    norm.running_mean += rank + 1
    distributed.share_buffers(norm)
    return norm.running_mean


def counted(detector: Detector) -> Detector:
    """Its loss is the image id, whose mean tells an image that counts twice or not at all."""
    detector.losses = lambda features, batch: {  # type: ignore[method-assign]
        "id": torch.tensor([float(target.image_id) for target in batch.targets or ()]).mean()
    }
    return detector


def stopped(detector: Detector, loader: DataLoader[Batch], rank: int) -> tuple[str, int]:
    """How detection ends, and after how many batches, where only the second is asked to stop."""
    stop, predict, batches = StopRequests(), detector.predict, []

    def wait_and_predict(batch: Batch) -> list[Detections]:
        batches.append(batch)
        while not distributed.was_told(ENDING):
            time.sleep(0.01)
        return predict(batch)

    if rank == 1:
        stop.ask(signal.SIGTERM)
    with patch.object(detector, "predict", wait_and_predict):
        try:
            detect(detector, loader, device=CPU, stop=stop)
        except Terminated:
            return "terminated", len(batches)
    return "complete", len(batches)


def main(recipe_file: str, folder: str) -> None:
    torch.set_num_threads(1)
    recipe = load_recipe(recipe_file)
    assert recipe.data.val is not None
    with distributed.process_group(CPU):
        rank = distributed.rank()
        dataset = build_dataset(recipe.data.val, role="val")
        torch.manual_seed(0)
        detector = create_detector(recipe.model, num_classes=3)
        double = copy.deepcopy(detector).double()
        result = {
            "world": distributed.world_size(),
            "joint": gradients(copy.deepcopy(double), batch_of(dataset, range(8))),
            "own": gradients(
                copy.deepcopy(double), batch_of(dataset, range(4 * rank, 4 * rank + 4))
            ),
            "shared": gradients(
                _parallel(double, CPU), batch_of(dataset, range(4 * rank, 4 * rank + 4))
            ),
            "buffers": shared_buffers(rank),
            "empty": one_rank_without_boxes(dataset, rank),
        }
        loader = eval_loader(recipe, dataset, pin_memory=False)
        result["read"] = [[t.image_id for t in batch.targets or ()] for batch in loader]
        outcome = evaluate(counted(detector.eval()), loader, dataset, device=CPU, with_loss=True)
        result["images"] = sorted(outcome.detections)
        result["stats"] = outcome.result.stats.tolist()
        result["scores"] = {i: each.scores for i, each in outcome.detections.items()}
        result["losses"] = outcome.losses
        single = eval_loader(recipe, dataset, pin_memory=False, batch_size=1)
        result["stopped"] = stopped(detector, single, rank)
        train = train_loader(recipe, dataset, pin_memory=False)
        train.batch_sampler.set_epoch(1)  # type: ignore[union-attr]
        result["trained"] = [[t.image_id for t in batch.targets or ()] for batch in train]
        torch.save(result, Path(folder, f"{rank}.pt"))
    assert not dist.is_initialized()


if __name__ == "__main__":
    main(*sys.argv[1:])
