"""Pure functions on tensors: boxes, anchors, matching, sampling, losses, suppression."""

from detkit.ops.anchors import cell_anchors, centred_boxes, grid_anchors
from detkit.ops.box_coder import decode, encode
from detkit.ops.boxes import box_area, box_iou, clip_boxes, pairwise_intersection, scale_boxes
from detkit.ops.losses import (
    BOX_LOSSES,
    OFFSET_LOSSES,
    binary_cross_entropy,
    ciou_loss,
    cross_entropy,
    diou_loss,
    distribution_expectation,
    distribution_focal_loss,
    focal_loss,
    giou_loss,
    iou_loss,
    kl_loss,
    l1_loss,
    l2_loss,
    quality_focal_loss,
    smooth_l1_loss,
    varifocal_loss,
)
from detkit.ops.matching import Match, match
from detkit.ops.nms import batched_nms, nms, select_detections
from detkit.ops.sampling import Assigned, Assigner, Sample, sample_balanced
from detkit.ops.selection import Selection

__all__ = [
    "BOX_LOSSES",
    "OFFSET_LOSSES",
    "Assigned",
    "Assigner",
    "Match",
    "Sample",
    "Selection",
    "batched_nms",
    "binary_cross_entropy",
    "box_area",
    "box_iou",
    "cell_anchors",
    "centred_boxes",
    "ciou_loss",
    "clip_boxes",
    "cross_entropy",
    "decode",
    "diou_loss",
    "distribution_expectation",
    "distribution_focal_loss",
    "encode",
    "focal_loss",
    "giou_loss",
    "grid_anchors",
    "grid_points",
    "iou_loss",
    "kl_loss",
    "l1_loss",
    "l2_loss",
    "match",
    "nms",
    "pairwise_intersection",
    "quality_focal_loss",
    "sample_balanced",
    "scale_boxes",
    "select_detections",
    "smooth_l1_loss",
    "varifocal_loss",
]
