"""What a detector reports: from scored boxes to few good ones.

N candidates, C classes, K kept.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from detkit.ops.boxes import clip_boxes, scale_boxes
from detkit.ops.nms import select_detections
from detkit.structures import Detections, Size


@dataclass(frozen=True)
class Selection:
    """Which boxes of an image are reported.

    Attributes:
        score_threshold: only scores above it.
        iou_threshold: overlap above which the lower score goes.
        max_detections: best boxes of an image.
        min_size: shortest side in pixels of the image as it stands in the batch.
        pre_nms: best candidates of each level that are looked at; None for all.
        nms: how boxes of one object become one.
        class_agnostic: boxes of different classes suppress each other, too.
    """

    score_threshold: float
    iou_threshold: float
    max_detections: int
    min_size: float = 0.0
    pre_nms: int | None = None
    nms: str = "hard"
    class_agnostic: bool = False

    def __call__(self, boxes: Tensor, scores: Tensor, size: Size, original: Size) -> Detections:
        """Detections of one image, best first.

        Args:
            boxes: `[N, C, 4]`, or `[N, 1, 4]` where all classes share a box.
            scores: `[N, C]`.
            size: (height, width) of the image that the boxes are in; they are clipped to it.
            original: (height, width) of the image that is reported on.
        """
        found, score, label = select_detections(
            clip_boxes(boxes, size),
            scores,
            score_threshold=self.score_threshold,
            iou_threshold=self.iou_threshold,
            max_detections=self.max_detections,
            min_size=self.min_size,
        )
        return Detections(scale_boxes(found, size, original), score, label)
