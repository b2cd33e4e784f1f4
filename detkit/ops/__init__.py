"""Pure functions on tensors: boxes, anchors, matching, sampling, losses, suppression."""

from detkit.ops.anchors import cell_anchors, grid_anchors
from detkit.ops.box_coder import decode, encode
from detkit.ops.boxes import box_area, box_iou, clip_boxes, pairwise_intersection, scale_boxes
from detkit.ops.losses import giou_loss
from detkit.ops.matching import Match, match
from detkit.ops.nms import batched_nms, nms, select_detections
from detkit.ops.sampling import Assigned, Assigner, Sample, sample_balanced
from detkit.ops.selection import Selection

__all__ = [
    "Assigned",
    "Assigner",
    "Match",
    "Sample",
    "Selection",
    "batched_nms",
    "box_area",
    "box_iou",
    "cell_anchors",
    "clip_boxes",
    "decode",
    "encode",
    "giou_loss",
    "grid_anchors",
    "match",
    "nms",
    "pairwise_intersection",
    "sample_balanced",
    "scale_boxes",
    "select_detections",
]
