"""Data sets, transforms and loaders."""

from __future__ import annotations

from detkit.data import sources as sources  # fills the registry
from detkit.data.annotations import AnnotationError
from detkit.data.auto import recognise
from detkit.data.coco import read_coco
from detkit.data.csv_boxes import read_csv
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
from detkit.data.voc import read_voc
from detkit.data.yolo import read_yolo

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
    "read_csv",
    "read_image",
    "read_proposals",
    "read_voc",
    "read_yolo",
    "recognise",
    "resized_shape",
]
