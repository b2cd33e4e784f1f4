"""Image pyramids as graphs: each image in several sizes, which differ inside a batch.

Images of one batch have different sizes, and so have their copies: each is resized by matrices of
its own. B images, K detections of a copy, H and W height and width.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from detkit.detectors.image_pyramid import EVERYTHING, ImagePyramid, SizeRange
from detkit.inference.export.places import NOTHING, Found, joined, quotient_up, scale_by
from detkit.inference.export.suppression import suppress
from detkit.ops import box_area


class PyramidGraph(nn.Module):
    """`ImagePyramid.predict` of a batch.

    Args:
        find: the graph of the detector inside.
        detector: the pyramid, of fixed scales.
        num_classes: C.
        count: detections that are reported.
    """

    def __init__(
        self, find: nn.Module, detector: ImagePyramid, *, num_classes: int, count: int
    ) -> None:
        super().__init__()
        self.find = find
        self.scales = tuple(detector.scales)  # type: ignore[arg-type]
        self.ranges = detector.ranges
        self.flips = (False, True) if detector.flip else (False,)
        self.divisor = detector.divisor
        self.fusion: dict[str, Any] = detector.fuse.keywords  # type: ignore[attr-defined]
        self.num_classes = num_classes
        self.count = count

    def forward(self, images: Tensor, sizes: Tensor, proposals: Tensor | None) -> Found:
        """Detections `[B, K]` in images `[B, 3, H, W]` of these sizes `[B, 2]`."""
        parts = []
        for level, scale in enumerate(self.scales):
            copies, own = images, sizes
            if scale != 1:
                own = _scaled(sizes, scale)
                copies = self._resized(images, sizes, own, scale)
            wanted = self.ranges[level % len(self.ranges)]
            for flip in self.flips:
                parts.append(self._look(copies, own, sizes, proposals, wanted, flip))
        if len(parts) == 1:
            return parts[0]
        return self._fused(joined(parts))

    def _look(
        self,
        copies: Tensor,
        own: Tensor,
        sizes: Tensor,
        proposals: Tensor | None,
        wanted: SizeRange,
        flip: bool,
    ) -> Found:
        """What the detector finds in copies of sizes `own` that is of the wanted size."""
        if proposals is not None:
            proposals = scale_by(proposals, own / sizes)
        if flip:
            copies = _mirrored(copies, own)
            proposals = None if proposals is None else _mirrored_boxes(proposals, own)
        found = self.find(copies, own, proposals)
        boxes = _mirrored_boxes(found.boxes, own) if flip else found.boxes
        scores = found.scores
        if wanted != EVERYTHING:
            side, (low, high) = box_area(boxes).clamp(min=0).sqrt(), wanted
            inside = side >= low if high is None else (side >= low) & (side < high)
            scores = scores.where(inside, NOTHING)
        return Found(scale_by(boxes, sizes / own), scores, found.labels)

    def _fused(self, found: Found) -> Found:
        """As `detkit.ops.fuse`."""
        fusion = self.fusion
        enough = found.scores > fusion["score_threshold"]
        return suppress(
            found._replace(scores=found.scores.where(enough, NOTHING)),
            nms=fusion["nms"],
            iou_threshold=fusion["iou_threshold"],
            sigma=fusion["sigma"],
            class_agnostic=fusion["class_agnostic"],
            score_threshold=fusion["score_threshold"],
            num_classes=self.num_classes,
            count=self.count,
        )

    def _resized(self, images: Tensor, sizes: Tensor, own: Tensor, scale: float) -> Tensor:
        """Copies of sizes `own`, padded as `copies.pad_together` pads those of full size."""
        # in whole numbers, which stay exact in a graph
        factor, divisor = Fraction(scale).limit_denominator(10_000), self.divisor
        top, bottom = factor.numerator, factor.denominator
        rows, columns = (
            quotient_up((2 * side * top + bottom) // (2 * bottom), divisor) * divisor
            for side in images.shape[-2:]
        )
        down = _weights(sizes[:, 0], own[:, 0], images.shape[2], rows).to(images)
        right = _weights(sizes[:, 1], own[:, 1], images.shape[3], columns).to(images)
        return down[:, None] @ (images @ right[:, None].transpose(2, 3))


def _scaled(sizes: Tensor, scale: float) -> Tensor:
    """Sizes `[B, 2]` of the copies, as `ImagePyramid` rounds them."""
    # a tensor: a plain number becomes float32 in ONNX, and a half would be rounded the other way
    factor = torch.tensor(scale, dtype=torch.float64)
    return (sizes.double() * factor).round().clamp(min=1).long()


def _weights(source: Tensor, wanted: Tensor, length: int, count: int) -> Tensor:
    """Matrices `[B, count, length]` that resize the first `source` of `length` pixels to `wanted`.

    As `torch.nn.functional.interpolate` does it (bilinear, smoothed in shrinking): a pixel is the
    mean of those around its centre, weighted by a triangle of two pixels of the larger picture.
    Zero beyond `wanted`.
    """
    step = (source / wanted)[:, None]  # [B, 1] pixels from one to the next
    centre = (torch.arange(count, device=source.device) + 0.5) * step  # [B, count]
    place = torch.arange(length, device=source.device) + 0.5
    distance = (place - centre[..., None]).abs() / step.clamp(min=1)[..., None]
    weights = (1 - distance).clamp(min=0) * (place < source[:, None])[:, None]
    weights = weights / weights.sum(dim=2, keepdim=True).clamp(min=1e-6)
    return weights * (torch.arange(count, device=source.device) < wanted[:, None])[..., None]


def _mirrored(images: Tensor, sizes: Tensor) -> Tensor:
    """Left and right swapped inside of each image; the padding stays zero."""
    place = torch.arange(images.shape[3], device=images.device)
    source = sizes[:, 1:] - 1 - place  # [B, W]
    index = source.clamp(min=0)[:, None, None].expand_as(images)
    return images.gather(3, index) * (source >= 0)[:, None, None]


def _mirrored_boxes(boxes: Tensor, sizes: Tensor) -> Tensor:
    """Boxes `[B, M, 4]` swapped likewise; rows of zeros, which are none, stay."""
    x1, y1, x2, y2 = boxes.unbind(dim=-1)
    width = sizes[:, 1:].to(boxes.dtype)
    swapped = torch.stack([width - x2, y1, width - x1, y2], dim=-1)
    return swapped.where((boxes != 0).any(dim=-1, keepdim=True), 0.0)
