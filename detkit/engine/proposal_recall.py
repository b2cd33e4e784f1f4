"""Measure proposals by themselves: how many objects they find, and how long it takes."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from detkit.config import ConfigError, ModelConfig, Recipe
from detkit.data import CocoDataset, SearchedProposals, coco_ground_truth
from detkit.detectors import Detector, create_detector
from detkit.detectors.region_proposal import RegionProposal
from detkit.engine.data import build_dataset, eval_loader
from detkit.engine.proposals import with_proposals
from detkit.evaluation.recall import ProposalRecall, proposal_recall
from detkit.ops import scale_boxes
from detkit.proposals import selective_search
from detkit.structures import Batch

_TIMED = 10  # pictures: their mean is the time of one

Proposals = dict[int, np.ndarray]  # image id to [P, 4] xyxy in pixels of its file, best first


@dataclass(frozen=True)
class ProposalReport:
    """Proposals of a data set and what they are worth.

    Attributes:
        proposals: image id to `[P, 4]`.
        recall: of the objects of the data set.
        seconds: of a picture; None for proposals from a file.
        origin: where they come from, in words.
    """

    proposals: Proposals
    recall: ProposalRecall
    seconds: float | None
    origin: str

    def __str__(self) -> str:
        spent = "" if self.seconds is None else f", {self.seconds:.3f} seconds a picture"
        return (
            f"{self.origin}: {self.recall.proposals:.0f} proposals a picture{spent}; "
            f"{self.recall.truths} objects in {len(self.proposals)} pictures\n\n"
            f"{self.recall.table()}"
        )


def measure_proposals(
    recipe: Recipe, *, split: str | None, detector: Detector | None, device: torch.device
) -> ProposalReport:
    """Proposals for the pictures of a recipe, by its detector's first stage or as they are given.

    Args:
        recipe: whose data, and whose `model.proposals` where no detector is given: searched or of a
            file; for another kind of detector, selective search with its defaults.
        split: "train", "val" or "test"; None takes data.test, or else data.val.
        detector: of a checkpoint, or None.
        device: of the detector.

    Raises:
        ValueError: no such data, or a detector without proposals.
    """
    role = split or ("test" if recipe.data.test else "val")
    source = getattr(recipe.data, role)
    if source is None:
        raise ConfigError(f"the recipe names no data.{role}; give another --split, or name it")
    dataset = build_dataset(source, role=role)
    model = recipe.model
    if detector is None and model.proposals == "grid":
        detector = create_detector(model, num_classes=len(dataset.class_names))
    if detector is not None:
        loader = eval_loader(recipe, dataset, pin_memory=False)
        return measure_first_stage(detector, loader, dataset, device=device)
    if model.proposals not in ("selective_search", "file"):  # learnt, and nobody has: a baseline
        model = ModelConfig(proposals="selective_search")
    return measure_given(with_proposals(model, dataset, role=f"data.{role}"))


def measure_given(dataset: CocoDataset) -> ProposalReport:
    """Proposals that come with the samples of a data set.

    Raises:
        ValueError: they come with none.
    """
    if dataset.proposals is None:
        raise ValueError("the data set has no proposals; see detkit.engine.proposals")
    found = {}
    for index in tqdm(range(len(dataset)), "read proposals", leave=False):
        sample = dataset[index]
        assert sample.proposals is not None
        found[sample.image_id] = sample.proposals
    seconds, origin = None, "from a file"
    if isinstance(dataset.proposals, SearchedProposals):
        pictures = [dataset[index].image for index in range(min(_TIMED, len(dataset)))]
        start = time.perf_counter()
        for picture in pictures:
            selective_search(picture, dataset.proposals.settings)
        seconds = (time.perf_counter() - start) / len(pictures)
        origin = "selective search"
    return ProposalReport(found, recall_of(found, dataset), seconds, origin)


@torch.no_grad()
def measure_first_stage(
    detector: Detector, loader: DataLoader[Batch], dataset: CocoDataset, *, device: torch.device
) -> ProposalReport:
    """What the first stage of a detector proposes.

    Args:
        detector: with two stages; put into evaluation mode.
        loader: over the data set.
        dataset: whose objects are to be found.
        device: where to compute.

    Raises:
        ValueError: another kind of detector.
    """
    if not isinstance(detector, RegionProposal):
        name = type(detector).__name__
        raise ValueError(f"{name} proposes no regions; give a checkpoint of a region_proposal")
    detector.to(device).eval()
    found: Proposals = {}
    spent = 0.0
    for batch in tqdm(loader, "propose", leave=False):
        assert batch.targets is not None
        start = time.perf_counter()
        on_device = batch.to(device)
        regions = [
            boxes.float().cpu()
            for boxes in detector.rpn.find(detector.features(on_device), on_device)
        ]
        spent += time.perf_counter() - start
        for target, boxes, size, original in zip(
            batch.targets, regions, batch.sizes, batch.original_sizes, strict=True
        ):
            found[target.image_id] = scale_boxes(boxes, size, original).numpy()
    origin = f"first stage, {type(detector.rpn).__name__}"
    return ProposalReport(found, recall_of(found, dataset), spent / max(len(found), 1), origin)


def recall_of(proposals: Proposals, dataset: CocoDataset) -> ProposalRecall:
    """Recall of the objects exactly as the annotations have them; images without any have none."""
    truth = coco_ground_truth(dataset)
    order = np.argsort(truth.gt_image_index, kind="stable")
    counts = np.bincount(truth.gt_image_index, minlength=len(dataset))
    xyxy = truth.gt_boxes_xywh.copy()
    xyxy[:, 2:] += xyxy[:, :2]
    ends = np.cumsum(counts)[:-1]
    none = np.zeros((0, 4), np.float32)
    return proposal_recall(
        [proposals.get(int(image_id), none) for image_id in dataset.image_ids],
        np.split(xyxy[order], ends),
        crowd=np.split(truth.gt_crowd[order], ends),
    )
