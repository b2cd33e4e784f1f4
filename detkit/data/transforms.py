"""From a picture in its file to a picture for the model: augmentation and resizing.

The pipeline is albumentations' (https://albumentations.ai, `Compose` with boxes). Boxes travel
through it as rows (x1, y1, x2, y2, position), so that labels, crowd flags and areas find their box
again. Every draw comes from the seed given with the sample, so that a result depends neither on
the worker that made it nor on what that worker made before.
"""

from __future__ import annotations

import math
import os
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np

from detkit.data.dataset import Sample
from detkit.structures import Size

# albumentations asks a server for its newest version on import, unless told not to: an import of
# ours costs no network
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import albumentations as A
from albumentations.core.type_definitions import Targets

Transform = Callable[[Sample, int], Sample]
Window = tuple[int, int, int, int]  # x1, y1, x2, y2


def resized_shape(
    height: int, width: int, *, shortest: float | None, longest: float | None
) -> Size:
    """(height, width) after resizing that keeps the ratio, exactly as torchvision's detectors do.

    The scale is `min(shortest / min(h, w), longest / max(h, w))` and sides are rounded down, but
    not below one pixel. With both limits None the size stays.
    """
    scale = min(
        math.inf if shortest is None else shortest / min(height, width),
        math.inf if longest is None else longest / max(height, width),
    )
    if math.isinf(scale):
        return height, width
    return max(1, math.floor(height * scale)), max(1, math.floor(width * scale))


def resize_image(image: np.ndarray, size: Size) -> np.ndarray:
    """Bilinear resizing of `[H, W, 3]` to (height, width)."""
    if image.shape[:2] == size:
        return image
    return cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)


def resize_sample(sample: Sample, size: Size) -> Sample:
    """The picture, its truths and its proposals resized to (height, width)."""
    height, width = sample.image.shape[:2]
    ratio_y, ratio_x = size[0] / height, size[1] / width
    ratios = np.array([ratio_x, ratio_y, ratio_x, ratio_y], np.float32)
    return replace(
        sample,
        image=resize_image(sample.image, size),
        boxes=sample.boxes * ratios,
        proposals=None if sample.proposals is None else sample.proposals * ratios,
        area=sample.area * np.float32(ratio_x * ratio_y),
    )


class EvalTransform:
    """Resize only: the same path for validation, testing and prediction.

    Args:
        shortest: length of the shortest side after resizing, or None.
        longest: limit of the longest side after resizing, or None.
    """

    def __init__(self, *, shortest: int | None, longest: int | None) -> None:
        _check_sides(shortest, longest)
        self.shortest, self.longest = shortest, longest

    def __call__(self, sample: Sample, seed: int = 0) -> Sample:
        """Resize the picture, its truths and its proposals."""
        height, width = sample.image.shape[:2]
        size = resized_shape(height, width, shortest=self.shortest, longest=self.longest)
        return resize_sample(sample, size)


@dataclass(kw_only=True)
class TrainTransform:
    """Random crop, resize with scale jitter, flips, turns and colour.

    Attributes:
        shortest: length of the shortest side after resizing, or None.
        longest: limit of the longest side after resizing, or None.
        horizontal_flip: probability.
        vertical_flip: probability.
        rotate90: probability of a turn by a random multiple of 90 degrees (for pictures without an
            up, like cells).
        scale_jitter: range of a factor on `shortest` and `longest`, or None.
        crop: probability of cropping to a random window of at least half of each side. It holds at
            least one box, and whole every box whose centre it holds.
        color: strength of brightness, contrast, saturation and hue changes, 0 (none) to 1.
        min_visible: a box of which less than this part remains is dropped, and so is a proposal.

    Raises:
        ValueError: a setting is out of its range.
    """

    shortest: float | None
    longest: float | None
    horizontal_flip: float = 0.5
    vertical_flip: float = 0.0
    rotate90: float = 0.0
    scale_jitter: tuple[float, float] | None = None
    crop: float = 0.0
    color: float = 0.0
    min_visible: float = 0.2

    def __post_init__(self) -> None:
        _check_sides(self.shortest, self.longest)
        names = ("horizontal_flip", "vertical_flip", "rotate90", "crop", "color", "min_visible")
        for name in names:
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in 0..1, got {getattr(self, name)}")
        low, high = self.scale_jitter or (1.0, 1.0)
        if not 0 < low <= high:
            raise ValueError(f"scale_jitter must be 0 < low <= high, got {self.scale_jitter}")
        self._pipeline = A.Compose(
            self._steps(),
            bbox_params=A.BboxParams(
                format="pascal_voc",
                clip=True,
                min_visibility=self.min_visible,
                min_width=1,
                min_height=1,
            ),
            # an own list: what is drawn looks at the truths, and must not depend on proposals
            additional_targets={"proposals": "bboxes"},
        )

    def _steps(self) -> list[A.BasicTransform]:
        jitter = self.scale_jitter or (1.0, 1.0)
        resize = _Resize(shortest=self.shortest, longest=self.longest, scale_jitter=jitter)
        steps = [
            (self.crop, _Crop(p=self.crop)),
            (1, resize),
            (self.horizontal_flip, A.HorizontalFlip(p=self.horizontal_flip)),
            (self.vertical_flip, A.VerticalFlip(p=self.vertical_flip)),
            (self.rotate90, A.RandomRotate90(p=self.rotate90)),
            # after resizing: the resized picture is most often the smaller one
            *((self.color, step) for step in _color_steps(self.color)),
        ]
        return [step for probability, step in steps if probability]

    def __call__(self, sample: Sample, seed: int) -> Sample:
        """Augment and resize; the same sample and seed give the same result."""
        # not set_random_seed: it gives every step the same draws, so that two flips always agree
        self._pipeline.set_random_state(np.random.default_rng(seed), random.Random(seed))
        positions = np.arange(len(sample), dtype=np.float32)[:, None]
        rows = np.concatenate([sample.boxes, positions], axis=1)  # [M, 5]
        extra = {} if sample.proposals is None else {"proposals": sample.proposals}
        result = self._pipeline(image=sample.image, bboxes=rows, **extra)
        kept = np.asarray(result["bboxes"], dtype=np.float32)
        if not len(kept):  # the fifth column is gone too
            kept = np.zeros((0, 5), np.float32)
        proposals = None
        if extra:
            proposals = np.asarray(result["proposals"], dtype=np.float32).reshape(-1, 4)
        boxes, index = np.ascontiguousarray(kept[:, :4]), kept[:, 4].astype(np.int64)
        return replace(
            sample,
            image=result["image"],
            boxes=boxes,
            labels=sample.labels[index],
            crowd=sample.crowd[index],
            # an object shrinks, grows and is cut like its box
            area=sample.area[index] * box_area(boxes) / box_area(sample.boxes[index]),
            dropped=sample.dropped + len(sample) - len(boxes),
            proposals=proposals,
        )


def draw_window(boxes: np.ndarray, size: np.ndarray, rng: np.random.Generator) -> Window:
    """A random window that holds at least one box, and whole every box whose centre it holds.

    Its sides are at least half of the picture's.

    Args:
        boxes: `[M, 4]` xyxy in pixels.
        size: `[2]` width and height of the picture.
        rng: source of the draws.
    """
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    sides = rng.uniform(0.5, 1.0, 2) * size
    low, high = np.zeros(2), size - sides
    if len(boxes):  # around the centre of a random box
        center = centers[rng.integers(len(boxes))]
        low, high = np.maximum(low, center - sides), np.minimum(high, center)
    start = rng.uniform(low, np.maximum(low, high))
    end = start + sides
    held = -1
    while True:
        # whole pixels; a box edge may be off by the rounding of its fraction
        start = np.maximum(np.floor(start + 1e-3), 0)
        end = np.minimum(np.ceil(end - 1e-3), size)
        inside = ((centers >= start) & (centers <= end)).all(axis=1)
        if inside.sum() == held:
            return int(start[0]), int(start[1]), int(end[0]), int(end[1])
        held = inside.sum()
        start = np.minimum(start, boxes[inside, :2].min(axis=0, initial=np.inf))
        end = np.maximum(end, boxes[inside, 2:].max(axis=0, initial=-np.inf))


class _Crop(A.DualTransform):
    """Cut a random window out."""

    _targets = (Targets.IMAGE, Targets.BBOXES)

    def get_params_dependent_on_data(
        self, params: dict[str, Any], data: dict[str, Any]
    ) -> dict[str, Any]:
        """Draw a window; boxes are fractions of the picture here."""
        size = np.array(params["shape"][1::-1])  # width, height
        boxes = np.asarray(data["bboxes"], dtype=np.float64)[:, :4] * np.tile(size, 2)
        return {"window": draw_window(boxes, size, self.random_generator)}

    def apply(self, img: np.ndarray, window: Window, **params: Any) -> np.ndarray:
        """Cut the window out."""
        x1, y1, x2, y2 = window
        return img[y1:y2, x1:x2]

    def apply_to_bboxes(self, bboxes: np.ndarray, window: Window, **params: Any) -> np.ndarray:
        """From fractions of the picture to fractions of the window."""
        height, width = params["shape"][:2]
        x1, y1, x2, y2 = window
        moved = bboxes.copy()
        moved[:, [0, 2]] = (bboxes[:, [0, 2]] * width - x1) / (x2 - x1)
        moved[:, [1, 3]] = (bboxes[:, [1, 3]] * height - y1) / (y2 - y1)
        return moved


class _Resize(A.DualTransform):
    """One resize for scale jitter and target size together; relative boxes stay as they are."""

    _targets = (Targets.IMAGE, Targets.BBOXES)

    def __init__(
        self, *, shortest: float | None, longest: float | None, scale_jitter: tuple[float, float]
    ) -> None:
        super().__init__(p=1.0)
        self.shortest, self.longest, self.scale_jitter = shortest, longest, scale_jitter

    def get_params_dependent_on_data(
        self, params: dict[str, Any], data: dict[str, Any]
    ) -> dict[str, Any]:
        """Draw the size of this picture."""
        height, width = params["shape"][:2]
        factor = self.py_random.uniform(*self.scale_jitter)
        shortest = None if self.shortest is None else self.shortest * factor
        longest = None if self.longest is None else self.longest * factor
        if shortest is None and longest is None:
            shortest = min(height, width) * factor
        return {"size": resized_shape(height, width, shortest=shortest, longest=longest)}

    def apply(self, img: np.ndarray, size: Size, **params: Any) -> np.ndarray:
        """Resize the picture."""
        return resize_image(img, size)

    def apply_to_bboxes(self, bboxes: np.ndarray, **params: Any) -> np.ndarray:
        """Boxes are fractions of the picture here."""
        return bboxes


def _color_steps(strength: float) -> list[A.BasicTransform]:
    return [
        A.ColorJitter(
            brightness=(1 - 0.4 * strength, 1 + 0.4 * strength),
            contrast=(1 - 0.4 * strength, 1 + 0.4 * strength),
            saturation=(1 - 0.6 * strength, 1 + 0.6 * strength),
            hue=(-0.03 * strength, 0.03 * strength),
            p=0.8,
        ),
        A.ToGray(p=0.05 * strength),
    ]


def box_area(boxes: np.ndarray) -> np.ndarray:
    """`[M]` square pixels of `[M, 4]` xyxy."""
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def _check_sides(shortest: float | None, longest: float | None) -> None:
    for name, value in (("shortest", shortest), ("longest", longest)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1 pixel or None, got {value}")
