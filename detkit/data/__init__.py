"""Data sets, transforms and loaders."""

from __future__ import annotations

from detkit.data import sources as sources  # fills the registry
from detkit.data.annotations import AnnotationError
from detkit.data.coco import read_coco
from detkit.data.dataset import CocoDataset, CocoGroundTruth, Sample, coco_ground_truth
from detkit.data.images import ImageReadError, read_image
from detkit.data.loader import collate, create_loader
from detkit.data.proposals import (
    ProposalFileError,
    SearchedProposals,
    StoredProposals,
    proposal_records,
    read_proposals,
)
from detkit.data.transforms import EvalTransform, TrainTransform, resized_shape

__all__ = [
    "AnnotationError",
    "CocoDataset",
    "CocoGroundTruth",
    "EvalTransform",
    "ImageReadError",
    "ProposalFileError",
    "Sample",
    "SearchedProposals",
    "StoredProposals",
    "TrainTransform",
    "coco_ground_truth",
    "collate",
    "create_loader",
    "proposal_records",
    "read_coco",
    "read_image",
    "read_proposals",
    "resized_shape",
]
