"""Copies of the pictures of a batch: resized, mirrored, cut out.

A copy keeps `original_sizes`, and a detector reports in those: what it finds in a resized copy is
in the pixels of the original without any further step. B images, H and W their padded size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from detkit.ops import scale_boxes
from detkit.structures import Batch, Detections, Size, Target


def resize_pixels(images: Tensor, size: Size) -> Tensor:
    """Images `[B, 3, H, W]` in (height, width) `size`, as float: bilinear, smoothed in shrinking.

    Pixels that keep their size keep their type and values.
    """
    if tuple(images.shape[-2:]) == size:
        return images
    if not images.is_floating_point():
        images = images.float()
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=True)


def pad_together(images: Sequence[Tensor], divisor: int, like: Tensor) -> Tensor:
    """One tensor `[B, 3, H, W]` of images `[3, h, w]`; the padding right and below is 0.

    Args:
        images: at least one; all uint8 or all float, or mixed, which gives float.
        divisor: H and W are multiples of it.
        like: whose layout in memory to take.
    """
    height, width = (
        -(-max(image.shape[axis] for image in images) // divisor) * divisor for axis in (1, 2)
    )
    dtype = images[0].dtype
    for image in images[1:]:
        dtype = torch.promote_types(dtype, image.dtype)
    padded = images[0].new_zeros((len(images), 3, height, width), dtype=dtype)
    if like.is_contiguous(memory_format=torch.channels_last):
        padded = padded.contiguous(memory_format=torch.channels_last)
    for place, image in zip(padded, images, strict=True):
        place[:, : image.shape[1], : image.shape[2]] = image
    return padded


def resized(batch: Batch, sizes: Sequence[Size], *, divisor: int) -> Batch:
    """The batch with image i in (height, width) `sizes[i]`, its truths and proposals likewise."""
    if tuple(sizes) == tuple(batch.sizes):
        return batch
    images = [
        # without the padding, which would bleed into the border
        resize_pixels(image[None, :, : old[0], : old[1]], new)[0]
        for image, old, new in zip(batch.images, batch.sizes, sizes, strict=True)
    ]
    pairs = list(zip(batch.sizes, sizes, strict=True))
    targets, proposals = batch.targets, batch.proposals
    if targets is not None:
        targets = tuple(_resized_target(t, *p) for t, p in zip(targets, pairs, strict=True))
    if proposals is not None:
        proposals = tuple(scale_boxes(b, *p) for b, p in zip(proposals, pairs, strict=True))
    return replace(
        batch,
        images=pad_together(images, divisor, batch.images),
        sizes=tuple(sizes),
        targets=targets,
        proposals=proposals,
    )


def _resized_target(target: Target, old: Size, new: Size) -> Target:
    area = target.area * ((new[0] / old[0]) * (new[1] / old[1]))
    return replace(target, boxes=scale_boxes(target.boxes, old, new), area=area)


def mirrored(batch: Batch) -> Batch:
    """The batch with left and right swapped, without targets: nobody learns from it."""
    images = batch.images.clone()
    for image, (height, width) in zip(images, batch.sizes, strict=True):
        image[:, :height, :width] = image[:, :height, :width].flip(-1)
    proposals = batch.proposals
    if proposals is not None:
        widths = [width for _, width in batch.sizes]
        proposals = tuple(mirror_boxes(b, w) for b, w in zip(proposals, widths, strict=True))
    return replace(batch, images=images, targets=None, proposals=proposals)


def mirror_boxes(boxes: Tensor, width: int) -> Tensor:
    """Boxes `[N, 4]` where they are after swapping left and right of an image of that width."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    return torch.stack([width - x2, y1, width - x1, y2], dim=-1)


def unmirrored(found: Detections, width: int) -> Detections:
    """What was found in a mirror image, in the image itself, of that width."""
    return Detections(mirror_boxes(found.boxes, width), found.scores, found.labels)


def some_of(batch: Batch, images: Sequence[int]) -> Batch:
    """The images of these numbers alone."""
    index = list(images)
    if index == list(range(len(batch))):
        return batch
    targets, proposals = batch.targets, batch.proposals
    return replace(
        batch,
        images=batch.images[index],
        sizes=tuple(batch.sizes[i] for i in index),
        original_sizes=tuple(batch.original_sizes[i] for i in index),
        targets=None if targets is None else tuple(targets[i] for i in index),
        proposals=None if proposals is None else tuple(proposals[i] for i in index),
    )
