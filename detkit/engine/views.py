"""How a finished detector looks at pictures: in which sizes, mirrored, in tiles.

What the section `test` of a recipe says, as a detector around the detector and as the way in which
pictures are prepared for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from detkit.config import Recipe
from detkit.data import EvalTransform, Sample, resized_shape
from detkit.data.transforms import Transform
from detkit.detectors import Detector, ImagePyramid, Tiled
from detkit.detectors.factory import build_fuse
from detkit.detectors.tiled import Tiling
from detkit.structures import Size


def with_views(detector: Detector, recipe: Recipe) -> Detector:
    """The detector itself, or around it what `recipe.test` asks for; in evaluation mode."""
    test, model = recipe.test, recipe.model
    largest = max(test.scales)
    if test.scales != (largest,) or test.flip or test.ranges:
        detector = ImagePyramid(
            detector,
            [scale / largest for scale in test.scales],
            fuse=build_fuse(test.fusion, model.select),
            ranges=test.ranges,
            flip=test.flip,
            divisor=model.size_divisor,
        )
    if test.tile is not None:
        detector = Tiled(
            detector,
            Tiling(test.tile, test.tile_overlap),
            resize=_resize(recipe),
            batch_size=test.batch_size,
            fuse=build_fuse(test.fusion, model.select, limited=False),
            whole=test.tile_whole,
            divisor=model.size_divisor,
        )
    return detector.eval()


@dataclass(frozen=True)
class Preparation:
    """How pictures become batches for `with_views`.

    Attributes:
        transform: resizes a picture.
        batch_size: pictures in a batch.
    """

    transform: Transform
    batch_size: int

    @classmethod
    def of(cls, recipe: Recipe) -> Preparation:
        """As `recipe.test` asks for: in the largest of its sizes, or uncut for tiles."""
        shortest, longest = resize_limits(recipe)
        resize = EvalTransform(shortest=shortest, longest=longest)
        if recipe.test.tile is None:
            return cls(resize, recipe.test.batch_size)
        # one at a time: pictures that need tiles are large, and their tiles fill the batches
        return cls(_ResizeSmall(resize, Tiling(recipe.test.tile)), 1)


@dataclass(frozen=True)
class _ResizeSmall:
    """Pictures that a tile holds are resized as ever; larger ones keep their pixels."""

    resize: EvalTransform
    tiling: Tiling

    def __call__(self, sample: Sample, seed: int = 0) -> Sample:
        height, width = sample.image.shape[:2]
        return self.resize(sample) if self.tiling.fits((height, width)) else sample


def _resize(recipe: Recipe) -> Callable[[int, int], Size]:
    shortest, longest = resize_limits(recipe)
    return partial(resized_shape, shortest=shortest, longest=longest)


def resize_limits(recipe: Recipe) -> tuple[int | None, int | None]:
    """Shortest and longest side of data.resize for the largest of the sizes in pixels."""
    largest, resize = max(recipe.test.scales), recipe.data.resize
    shortest, longest = (
        None if side is None else max(1, round(side * largest))
        for side in (resize.shortest, resize.longest)
    )
    return shortest, longest
