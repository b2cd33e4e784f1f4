"""Sliding windows as graphs: the grid of the padded size, of which each image has its first part.

B images, N windows of a size in the padded image, rows by columns, C classes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import roi_align

from detkit.detectors.sliding_window import GREY, SlidingWindow, chain_of
from detkit.inference.export.places import NOTHING, Found, quotient_up
from detkit.inference.export.regions import with_image
from detkit.inference.export.selection import Level, select
from detkit.nn.dense import plan_offsets
from detkit.ops import decode
from detkit.structures import Size


class WindowGraph(nn.Module):
    """`SlidingWindow.detections` of a batch.

    In mode "crop" the network sees the windows of all images together: memory grows with them.
    In mode "dense" it sees the padded image; a network that pads its borders, whose answer depends
    on where the image ends, sees the end of the padding.

    Args:
        detector: in either mode.
        divisor: H and W are multiples of it.
    """

    def __init__(self, detector: SlidingWindow, divisor: int) -> None:
        super().__init__()
        self.detector = detector
        self.divisor = divisor

    def forward(self, images: Tensor, sizes: Tensor, proposals: Tensor | None) -> Found:
        """Detections `[B, K]` in images `[B, 3, H, W]` of these sizes `[B, 2]`."""
        if self.detector.backbone.in_channels == 1:
            grey = images.new_tensor(GREY)[:, None, None]
            images = (images * grey).sum(dim=1, keepdim=True)
        levels = [self._level(images, sizes, window) for window in self.detector.grid.sizes]
        return select(levels, sizes, self.detector.selection)

    def _level(self, images: Tensor, sizes: Tensor, window: Size) -> Level:
        """Boxes and scores of the windows of one size."""
        grid = self.detector.grid
        # room for one window also in the smallest image there may be
        room = [max(0, side - self.divisor) for side in window]
        shape = (images.shape[-2] + room[0], images.shape[-1] + room[1])
        rows, columns = (
            quotient_up((side - own) * seen, grid.stride * own) + 1
            for side, own, seen in zip(shape, window, grid.input_size, strict=True)
        )
        judge = self._crops if self.detector.mode == "crop" else self._dense
        logits, offsets = judge(images, window, (rows, columns))  # [B, rows, columns, ...]
        windows = self._windows(window, logits)  # [rows, columns, 4]
        weights = self.detector.learning.box_weights
        boxes = decode(offsets, windows[None, :, :, None], weights=weights)
        scores = logits.softmax(dim=-1)[..., :-1]
        scores = scores.where(self._there(window, sizes, logits)[..., None], NOTHING)
        return boxes.flatten(1, 2), scores.flatten(1, 2)

    def _windows(self, window: Size, logits: Tensor) -> Tensor:
        """As `WindowGrid.boxes`: `[rows, columns, 4]`."""
        grid = self.detector.grid
        y, x = (
            torch.arange(count, device=logits.device, dtype=logits.dtype)
            * (grid.stride * own)
            / seen
            for count, own, seen in zip(logits.shape[1:3], window, grid.input_size, strict=True)
        )
        y, x = torch.meshgrid(y, x, indexing="ij")
        return torch.stack([x, y, x + window[1], y + window[0]], dim=2)

    def _there(self, window: Size, sizes: Tensor, logits: Tensor) -> Tensor:
        """Which windows each image has, as `WindowGrid.counts`: `[B, rows, columns]`."""
        grid, inside = self.detector.grid, []
        for axis, (own, seen) in enumerate(zip(window, grid.input_size, strict=True)):
            beyond = (sizes[:, axis] - own).clamp(min=0) * seen
            count = quotient_up(beyond, grid.stride * own) + 1  # [B]
            place = torch.arange(logits.shape[1 + axis], device=logits.device)
            inside.append(place < count[:, None])
        return inside[0][:, :, None] & inside[1][:, None]

    def _crops(self, images: Tensor, window: Size, counts: Size) -> tuple[Tensor, Tensor]:
        """Every window on its own: logits and offsets `[B, rows, columns, ...]`."""
        detector = self.detector
        place = images.new_zeros(1, *counts)
        boxes = self._windows(window, place).flatten(0, 1)  # [N, 4]
        regions = with_image(boxes.expand(images.shape[0], -1, -1))
        crops = roi_align(
            F.pad(images, (0, 1, 0, 1)),
            regions,
            detector.grid.input_size,
            sampling_ratio=_points(window, detector.grid.input_size),
            aligned=True,
        )
        judged = detector.classify(crops)
        shape = (images.shape[0], *counts)
        return judged.logits.unflatten(0, shape), judged.offsets.unflatten(0, shape)

    def _dense(self, images: Tensor, window: Size, counts: Size) -> tuple[Tensor, Tensor]:
        """All windows at once: logits and offsets `[B, rows, columns, ...]`."""
        detector, grid = self.detector, self.detector.grid
        chain = chain_of(detector.backbone)
        plan = plan_offsets([stride for _, stride in chain], grid.stride)
        points = _points(window, grid.input_size)
        for axis, length in zip((2, 3), grid.spans(counts), strict=True):
            side, seen = window[axis - 2], grid.input_size[axis - 2]
            images = _stretched(images, axis, length, side / seen, points)
        logits, offsets = (
            plan.interleave(part, images.shape[0])
            for part in detector.head(plan.run([module for module, _ in chain], images))
        )
        return logits, offsets


def _points(window: Size, seen: Size) -> int:
    """Points to a side that a pixel of the classifier's input is the mean of."""
    largest = max(side / own for side, own in zip(window, seen, strict=True))
    return max(1, math.ceil(largest - 1e-3))


def _stretched(images: Tensor, axis: int, length: int, step: float, points: int) -> Tensor:
    """One axis as `windows.resize_for` has it, which RoI align of a fixed size cannot give.

    Args:
        images: `[B, C, H, W]`.
        axis: 2 or 3.
        length: pixels that come out, zero beyond the images.
        step: pixels of the images from one to the next.
        points: that each is the mean of.
    """
    fringed = F.pad(images, (0, 0, 0, 1) if axis == 2 else (0, 1))
    end = images.shape[axis]  # the row or column of zeros
    place = torch.arange(length * points, device=images.device)
    if step == points == 1:
        return fringed.index_select(axis, place.clamp(max=end))
    exact = ((place + 0.5) * (step / points) - 0.5).clamp(0, end)
    low = exact.floor().long()
    share = (exact - low).unsqueeze(1) if axis == 2 else exact - low
    lower, upper = (fringed.index_select(axis, each) for each in (low, (low + 1).clamp(max=end)))
    return (lower + share * (upper - lower)).unflatten(axis, (-1, points)).mean(dim=axis + 1)
