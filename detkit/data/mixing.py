"""Several pictures in one: mosaic, copy-paste and mixup, with truths where their pixels are.

All work on rectangles: what copy-paste carries over is the content of a box, not of an outline.
M truths of a picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from detkit.data.dataset import Sample
from detkit.data.reading import Reader
from detkit.data.transforms import (
    TrainTransform,
    Transform,
    Window,
    box_area,
    resize_sample,
    resized_shape,
)
from detkit.structures import Size

GREY = 114  # where no picture is
CENTER = (0.3, 0.7)  # where in the mosaic its four pictures meet, as a part of each side
MOSAIC_SCALE = (0.5, 1.0)  # of a picture in a mosaic: at 0.5 it is there whole
PASTE_SCALE = (0.5, 1.25)  # of a pasted box, beside its size relative to its own picture
MIXUP_SHARE = (0.4, 0.6)  # of the first picture: both stay visible, and so do their objects
MAX_PASTED = 5  # boxes in one picture
_PLACES = 20  # tried for each of them
_MIXING = 2  # tells these draws from others of the same seed


@dataclass(frozen=True, kw_only=True)
class MixTransform:
    """Mosaic and copy-paste, then a transform of one picture, then mixup.

    The other pictures are random ones of the data set. Every draw comes from the sample's seed.

    Attributes:
        transform: what each picture undergoes, the mosaic as a whole.
        reader: where the other pictures come from.
        mosaic: probability of a mosaic of four pictures (Bochkovskiy et al., YOLOv4, 2020, section
            3.4), of the size that the first one has after resizing.
        copy_paste: probability of pasting boxes of another picture to free places (after Ghiasi et
            al., CVPR 2021, with rectangles instead of masks).
        mixup: probability of blending with another picture, transformed likewise (Zhang et al.,
            Bag of Freebies, 2019, section 3.1); the truths of both count fully.

    Raises:
        ValueError: a probability out of 0..1, or samples with proposals.
    """

    transform: TrainTransform
    reader: Reader
    mosaic: float = 0.0
    copy_paste: float = 0.0
    mixup: float = 0.0

    def __post_init__(self) -> None:
        for name in ("mosaic", "copy_paste", "mixup"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in 0..1, got {getattr(self, name)}")
        if self.reader.dataset.proposals is not None:
            raise ValueError(
                "mosaic, copy_paste and mixup make pictures for which no proposals were computed; "
                "set all three to 0, or use a detector that finds its proposals itself"
            )

    def __call__(self, sample: Sample, seed: int) -> Sample:
        """Mix and augment; the same sample and seed give the same result."""
        rng = np.random.default_rng((seed, _MIXING))
        result = self.transform(self._compose(sample, rng), seed)
        if rng.random() < self.mixup:
            other = self._compose(self.reader.draw(rng), rng)
            other = self.transform(other, int(rng.integers(2**32)))
            result = blend(result, other, share=rng.uniform(*MIXUP_SHARE))
        return result

    def _compose(self, sample: Sample, rng: np.random.Generator) -> Sample:
        min_visible = self.transform.min_visible
        if rng.random() < self.mosaic:
            samples = [sample, *(self.reader.draw(rng) for _ in range(3))]
            size = self._size(sample)
            center = (rng.uniform(*CENTER, 2) * size[::-1]).astype(int)
            parts = [
                resize_sample(each, self._size(each, rng.uniform(*MOSAIC_SCALE)))
                for each in (samples[index] for index in rng.permutation(4))
            ]
            joined = join_at(parts, size=size, center=center.tolist(), min_visible=min_visible)
            # a sample is still the one that the sampler asked for
            sample = replace(joined, image_id=sample.image_id, original_size=sample.original_size)
        if rng.random() < self.copy_paste:
            sample = paste_boxes(sample, self.reader.draw(rng), rng, min_visible=min_visible)
        return sample

    def _size(self, sample: Sample, factor: float = 1.0) -> Size:
        """Of a sample after resizing."""
        height, width = sample.image.shape[:2]
        shortest, longest = self.transform.shortest, self.transform.longest
        if shortest is None and longest is None:
            shortest = min(height, width)
        return resized_shape(
            height,
            width,
            shortest=None if shortest is None else shortest * factor,
            longest=None if longest is None else longest * factor,
        )


@dataclass(frozen=True, kw_only=True)
class TransformPlan:
    """Which transform a batch gets, by its place in training alone.

    Attributes:
        usual: of these one is drawn for each batch, e.g. of several scales.
        closing: the same for the last epochs.
        close_at: the first epoch, from 0, of the last ones.
        seed: of the draws; every process has the same, so that batches of a step are alike.
    """

    usual: tuple[Transform, ...]
    closing: tuple[Transform, ...]
    close_at: int
    seed: int

    def at(self, epoch: int, turn: int) -> Transform:
        """The transform of the batch that is number `turn` in its epoch, both from 0."""
        options = self.usual if epoch < self.close_at else self.closing
        if len(options) == 1:
            return options[0]
        rng = np.random.default_rng((self.seed, epoch, turn, _MIXING))
        return options[rng.integers(len(options))]


def cut(sample: Sample, window: Window, *, min_visible: float) -> Sample:
    """The part of a sample in a window of whole pixels inside the picture.

    A truth of which less than `min_visible` remains, or less than a pixel, is dropped and counted.
    """
    x1, y1, x2, y2 = window
    low, high = np.array([x1, y1] * 2, np.float32), np.array([x2, y2] * 2, np.float32)
    boxes = np.clip(sample.boxes, low, high)
    part = box_area(boxes) / np.maximum(box_area(sample.boxes), np.float32(1e-9))
    kept = (part >= min_visible) & (boxes[:, 2:] - boxes[:, :2] >= 1).all(axis=1)
    return replace(
        sample,
        image=sample.image[y1:y2, x1:x2],
        boxes=boxes[kept] - low,
        labels=sample.labels[kept],
        crowd=sample.crowd[kept],
        area=sample.area[kept] * part[kept],
        dropped=sample.dropped + int((~kept).sum()),
    )


def join_at(
    parts: Sequence[Sample], *, size: Size, center: Sequence[int], min_visible: float
) -> Sample:
    """A mosaic: four pictures that meet with a corner each at a point; what sticks out is cut.

    Args:
        parts: top left, top right, bottom left, bottom right.
        size: (height, width) of the result; grey where no picture reaches.
        center: (x, y) of the point.
        min_visible: see `cut`.
    """
    image = np.full((*size, 3), GREY, np.uint8)
    (x, y), pieces = center, []
    for turn, part in enumerate(parts):
        height, width = part.image.shape[:2]
        right, below = turn % 2, turn // 2
        w = min(width, size[1] - x if right else x)
        h = min(height, size[0] - y if below else y)
        left, top = (0 if right else width - w), (0 if below else height - h)
        piece = cut(part, (left, top, left + w, top + h), min_visible=min_visible)
        pieces.append(_put(image, piece, x if right else x - w, y if below else y - h))
    return _with_truths(image, pieces)


def paste_boxes(
    sample: Sample, source: Sample, rng: np.random.Generator, *, min_visible: float
) -> Sample:
    """Paste up to `MAX_PASTED` random boxes of another picture where they cover no truth.

    Crowds are not chosen. Of the other truths in a chosen box what is visible comes with it. A box
    for which no free place is found stays out.

    Args:
        sample: to paste into; it is not changed.
        source: where boxes come from.
        rng: of the draws.
        min_visible: see `cut`; for truths that a chosen box cuts.
    """
    chosen = rng.permutation(np.flatnonzero(~source.crowd))[: rng.integers(1, MAX_PASTED + 1)]
    result = replace(sample, image=sample.image.copy(), skipped=sample.skipped + source.skipped)
    # an object is as large in this picture as in its own, but for the drawn factor
    relative = np.sqrt(np.prod(sample.image.shape[:2]) / np.prod(source.image.shape[:2]))
    for box in source.boxes[chosen]:
        (x1, y1), (x2, y2) = np.floor(box[:2]).astype(int), np.ceil(box[2:]).astype(int)
        piece = cut(source, (x1, y1, x2, y2), min_visible=min_visible)
        factor = relative * rng.uniform(*PASTE_SCALE)
        size = (max(1, round((y2 - y1) * factor)), max(1, round((x2 - x1) * factor)))
        place = _free_place(result, size, rng)
        if place is None:
            continue
        piece = _without_specks(resize_sample(piece, size))
        # what lies outside a chosen box was never meant to come, and is not lost
        piece = _put(result.image, replace(piece, dropped=0, skipped=()), *place)
        result = _with_truths(result.image, [result, piece])
    return result


def blend(first: Sample, second: Sample, *, share: float) -> Sample:
    """Mixup: the second picture, made to fit into the first, shines through; truths of both.

    Beside the second picture the first one stays as it is, and so does its size.

    Args:
        first: gives `share` of the colour where both are.
        second: gives the rest.
        share: in 0..1.
    """
    height, width = second.image.shape[:2]
    scale = min(first.image.shape[0] / height, first.image.shape[1] / width)
    size = (max(1, int(height * scale)), max(1, int(width * scale)))
    second = _without_specks(resize_sample(second, size))
    image = first.image.copy()
    part = image[: size[0], : size[1]]
    part[:] = cv2.addWeighted(part, share, second.image, 1 - share, 0)
    return _with_truths(image, [first, second])


def _without_specks(sample: Sample) -> Sample:
    """Drop, and count, truths below one pixel."""
    height, width = sample.image.shape[:2]
    return cut(sample, (0, 0, width, height), min_visible=0)


def _free_place(sample: Sample, size: Size, rng: np.random.Generator) -> tuple[int, int] | None:
    """(x, y) of a rectangle that touches no truth, or None where none was found."""
    room = np.array(sample.image.shape[1::-1], np.int64) - size[::-1]  # width, height
    if (room < 0).any():
        return None
    start = rng.integers(0, room + 1, (_PLACES, 2))  # [P, 2]
    end = start + size[::-1]
    apart = (start[:, None] >= sample.boxes[:, 2:]) | (end[:, None] <= sample.boxes[:, :2])
    free = np.flatnonzero(np.all(np.any(apart, axis=2), axis=1))  # [P, M, 2] to places
    return (int(start[free[0], 0]), int(start[free[0], 1])) if len(free) else None


def _put(image: np.ndarray, piece: Sample, x: int, y: int) -> Sample:
    """Draw a piece into a picture; returns it with its boxes there."""
    height, width = piece.image.shape[:2]
    image[y : y + height, x : x + width] = piece.image
    return replace(piece, boxes=piece.boxes + np.array([x, y, x, y], np.float32))


def _with_truths(image: np.ndarray, parts: Sequence[Sample]) -> Sample:
    """The first part with another picture, and with the truths of all."""
    return replace(
        parts[0],
        image=image,
        boxes=np.concatenate([part.boxes for part in parts]),
        labels=np.concatenate([part.labels for part in parts]),
        crowd=np.concatenate([part.crowd for part in parts]),
        area=np.concatenate([part.area for part in parts]),
        dropped=sum(part.dropped for part in parts),
        skipped=tuple(path for part in parts for path in part.skipped),
    )
