"""Any detector on scaled copies of the image, which finds objects of more sizes than it knows.

A pyramid of images is how detectors of one window size see all sizes (Viola and Jones, 2001,
section 5; OverFeat, arXiv 1312.6229, section 3.3; SNIP, arXiv 1711.08189). Where each copy is
responsible for a range of sizes only, as in SNIP (section 5), the detector learns and reports
objects of similar size on every copy. The same class is test-time augmentation: copies in several
sizes and their mirror images, for a detector that was trained without.

B images in a batch, L copies of each, K detections.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from torch import Tensor, nn

from detkit.detectors.base import Detector, Losses
from detkit.detectors.copies import mirrored, resized, some_of, unmirrored
from detkit.ops import box_area
from detkit.structures import Batch, Detections, Size, Target

Fuse = Callable[[Sequence[Detections]], Detections]
SizeRange = tuple[float, float | None]  # pixels; None: without end
EVERYTHING: SizeRange = (0.0, None)


@dataclass(frozen=True)
class Octaves:
    """Scales 1, 2^(-1/n), 2^(-2/n) ... while the shorter side is long enough.

    Attributes:
        smallest: least shorter side of a copy in pixels; the first copy is there in any case.
        per_octave: n, copies from one size to its half.
    """

    smallest: int
    per_octave: int = 1

    def __call__(self, size: Size) -> list[float]:
        """The scales for an image of (height, width)."""
        scales = [1.0]
        while min(size) * (scale := 2.0 ** (-len(scales) / self.per_octave)) >= self.smallest:
            scales.append(scale)
        return scales


class Copy(NamedTuple):
    """Images of a batch in one size.

    Attributes:
        batch: the copies.
        images: whose copies they are: numbers in the batch that they were made from.
        sizes: of the objects that are looked for, in pixels of the copy.
        mirrored: left and right are swapped.
    """

    batch: Batch
    images: tuple[int, ...]
    sizes: SizeRange
    mirrored: bool


class ImagePyramid(Detector):
    """A detector on copies of the image in several sizes, and one answer from all of them.

    An object's size is the root of its box's area in pixels of the copy. In training, truths whose
    size is out of a copy's range are there like a crowd: nothing learns to find them, and what
    lies in them does not count as background. At test, boxes out of the range are dropped. The
    price: parts of an object too large for a copy do not count as background there either, where
    SNIP spares only what overlaps the whole object. A detector with windows of one size needs no
    ranges: the overlap with the window says already which copy an object belongs to.

    The loss is the mean of those of the copies, each weighing as much as it has images, under the
    detector's own names. All copies are in memory at once in training, one after the other in
    `predict`. The state has the names of the detector's own, so that a pyramid can be put around a
    trained detector and taken off again.

    With `Octaves` the number of copies depends on the images: synchronised batch norm over several
    processes then needs images of one size.

    Args:
        detector: looks at every copy.
        scales: factors on the size of the image as it stands in the batch, or `Octaves`.
        fuse: makes one answer of those from the copies of an image. Where there is but one copy, it
            is not asked. Voting (wbf) lowers the score of what few copies show, so that it suits
            copies that see the same objects, and not ranges.
        ranges: for each scale (or one for all) from which size on and up to which (not included) an
            object is this copy's; None: every copy is for all objects.
        flip: look at the mirror image of every copy, too, when predicting.
        divisor: sides of the copies are padded to a multiple of it.
    """

    def __init__(
        self,
        detector: Detector,
        scales: Sequence[float] | Octaves,
        *,
        fuse: Fuse,
        ranges: Sequence[SizeRange] | None = None,
        flip: bool = False,
        divisor: int = 32,
    ) -> None:
        super().__init__(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
        self.mean, self.std = detector.mean, detector.std
        self.detector = detector
        self.scales = scales if isinstance(scales, Octaves) else tuple(scales)
        self.fuse = fuse
        self.ranges = _check(self.scales, ranges)
        self.flip = flip
        self.divisor = divisor
        self.register_state_dict_post_hook(_drop_name)
        self.register_load_state_dict_pre_hook(_add_name)

    @property
    def backbone(self) -> nn.Module:
        """The detector's own."""
        return self.detector.backbone  # type: ignore[return-value]

    def copies(self, batch: Batch) -> Iterator[Copy]:
        """The copies of all images, one size after the other; the mirror image follows its own."""
        scales = [self._scales_of(size) for size in batch.sizes]
        for level in range(max(map(len, scales), default=0)):
            images = tuple(i for i, own in enumerate(scales) if level < len(own))
            sizes = [_scaled(batch.sizes[i], scales[i][level]) for i in images]
            copy = resized(some_of(batch, images), sizes, divisor=self.divisor)
            wanted = self.ranges[level % len(self.ranges)]
            if wanted != EVERYTHING and copy.targets is not None:
                targets = tuple(_with_others_ignored(target, wanted) for target in copy.targets)
                copy = replace(copy, targets=targets)
            yield Copy(copy, images, wanted, mirrored=False)
            if self.flip:
                yield Copy(mirrored(copy), images, wanted, mirrored=True)

    def features(self, batch: Batch) -> Any:
        """What the detector makes of each copy: a list of pairs (its features, Copy)."""
        return [(self.detector.features(copy.batch), copy) for copy in self.copies(batch)]

    def losses(self, features: Any, batch: Batch) -> Losses:
        """Mean of the detector's losses over the copies; mirror images teach nothing."""
        learning = [(maps, copy.batch) for maps, copy in features if not copy.mirrored]
        total = sum(len(copy) for _, copy in learning)
        mean: Losses = {}
        for maps, copy in learning:
            for name, value in self.detector.losses(maps, copy).items():
                part = value * (len(copy) / total)
                mean[name] = mean[name] + part if name in mean else part
        return mean

    def detections(self, features: Any, batch: Batch) -> list[Detections]:
        """What the copies give, as one answer for each image."""
        found = ((copy, self.detector.detections(maps, copy.batch)) for maps, copy in features)
        return self._fused(found, batch)

    def predict(self, batch: Batch) -> list[Detections]:
        """`detections` with the maps of one copy at a time in memory."""
        copies = self.copies(batch.without_targets())
        return self._fused(((copy, self.detector.predict(copy.batch)) for copy in copies), batch)

    def _fused(
        self, found: Iterator[tuple[Copy, list[Detections]]], batch: Batch
    ) -> list[Detections]:
        parts: list[list[Detections]] = [[] for _ in batch.sizes]
        for copy, by_image in found:
            for place, (image, of_copy) in enumerate(zip(copy.images, by_image, strict=True)):
                size, original = copy.batch.sizes[place], copy.batch.original_sizes[place]
                if copy.mirrored:
                    of_copy = unmirrored(of_copy, original[1])
                parts[image].append(_within(of_copy, copy.sizes, size, original))
        return [each[0] if len(each) == 1 else self.fuse(each) for each in parts]

    def _scales_of(self, size: Size) -> Sequence[float]:
        return self.scales(size) if isinstance(self.scales, Octaves) else self.scales


def _check(
    scales: tuple[float, ...] | Octaves, ranges: Sequence[SizeRange] | None
) -> tuple[SizeRange, ...]:
    """A range for each scale, or one for all.

    Raises:
        ValueError: no scale, or one that is not positive; another number of ranges.
    """
    if not isinstance(scales, Octaves) and not (scales and min(scales) > 0):
        raise ValueError(f"scales must be positive factors, at least one, got {scales}")
    if ranges is None:
        return (EVERYTHING,)
    wanted = {1} if isinstance(scales, Octaves) else {1, len(scales)}
    if len(ranges) not in wanted:
        raise ValueError(f"{len(ranges)} ranges; give one a scale or one for all: {max(wanted)}")
    return tuple(ranges)


def _scaled(size: Size, scale: float) -> Size:
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _inside(side: Tensor, wanted: SizeRange) -> Tensor:
    """Which sides lie in the range, `[N]` bool."""
    low, high = wanted
    inside = side >= low
    return inside if high is None else inside & (side < high)


def _with_others_ignored(target: Target, wanted: SizeRange) -> Target:
    """Truths that are not this copy's as a crowd: never positive, and not background either."""
    other = ~_inside(box_area(target.boxes).sqrt(), wanted)
    return replace(target, crowd=target.crowd | other)


def _within(found: Detections, wanted: SizeRange, size: Size, original: Size) -> Detections:
    """The detections, in pixels of the original image, whose size in the copy is in the range."""
    if wanted == EVERYTHING:
        return found
    scale = (size[0] / original[0]) * (size[1] / original[1])
    side = (box_area(found.boxes).clamp(min=0) * scale).sqrt()
    return found[_inside(side, wanted)]


def _drop_name(_module: nn.Module, state: dict[str, Any], prefix: str, _: object) -> None:
    for key in [key for key in state if key.startswith(f"{prefix}detector.")]:
        state[prefix + key[len(prefix) + len("detector.") :]] = state.pop(key)


def _add_name(_module: nn.Module, state: dict[str, Any], prefix: str, *_: object) -> None:
    for key in [key for key in state if key.startswith(prefix)]:
        state[f"{prefix}detector.{key[len(prefix) :]}"] = state.pop(key)
