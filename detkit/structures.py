"""What flows between data, detectors and evaluation: Target, Detections, Batch.

Boxes are `Tensor[N, 4]`, xyxy, float32, absolute pixels, `w = x2 - x1`; labels are `0..C-1`.
B images in a batch, M truths in an image, K detections in an image, H and W the padded size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

Size = tuple[int, int]  # (height, width)


@dataclass(frozen=True, slots=True)
class Target:
    """The ground truth of one image.

    Attributes:
        boxes: `[M, 4]` xyxy in pixels of the image as it stands in the batch.
        labels: `[M]` int64 in `0..C-1`.
        image_id: the image's id in its data set.
        crowd: `[M]` bool; a crowd region is never a positive and never counts as a miss.
        area: `[M]` in pixels of the image as it stands in the batch.
    """

    boxes: Tensor
    labels: Tensor
    image_id: int
    crowd: Tensor
    area: Tensor

    def __len__(self) -> int:
        return len(self.boxes)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Target:
        """Copy to a device."""
        moved = {
            name: getattr(self, name).to(device, non_blocking=non_blocking)
            for name in ("boxes", "labels", "crowd", "area")
        }
        return replace(self, **moved)

    def pin_memory(self) -> Target:
        """Copy to page-locked memory (called by the data loader)."""
        moved = {
            name: getattr(self, name).pin_memory() for name in ("boxes", "labels", "crowd", "area")
        }
        return replace(self, **moved)


@dataclass(frozen=True, slots=True)
class Detections:
    """What a detector found in one image, best first.

    Attributes:
        boxes: `[K, 4]` xyxy in pixels of the original image.
        scores: `[K]` in `0..1`, descending.
        labels: `[K]` int64 in `0..C-1`.
        class_names: C names, of the labels; none where only numbers matter, as inside a detector.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    class_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.boxes.ndim != 2 or self.boxes.shape[1] != 4:
            raise ValueError(f"boxes must be [K, 4], got {list(self.boxes.shape)}")
        if not len(self.boxes) == len(self.scores) == len(self.labels):
            raise ValueError(
                f"boxes, scores and labels must have one length, got {len(self.boxes)}, "
                f"{len(self.scores)}, {len(self.labels)}"
            )

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, index: Tensor | slice | list[int]) -> Detections:
        """Select by mask, indices or slice; a single integer would lose the axis."""
        if isinstance(index, int):
            raise TypeError(f"index Detections by mask, list or slice, not by the integer {index}")
        return replace(
            self, boxes=self.boxes[index], scores=self.scores[index], labels=self.labels[index]
        )

    @property
    def names(self) -> list[str]:
        """The K names of the classes, best first.

        Raises:
            ValueError: there are detections, but no names of their classes.
        """
        if not len(self):
            return []
        if not self.class_names:
            raise ValueError(
                "these detections have labels without names; set them with "
                "dataclasses.replace(found, class_names=predictor.class_names)"
            )
        return [self.class_names[label] for label in self.labels.tolist()]

    @classmethod
    def empty(cls, device: torch.device | str = "cpu") -> Detections:
        """No detections."""
        return cls(
            torch.zeros(0, 4, device=device),
            torch.zeros(0, device=device),
            torch.zeros(0, dtype=torch.int64, device=device),
        )

    @classmethod
    def cat(cls, parts: Sequence[Detections]) -> Detections:
        """Join the detections of one image from several sources and put the best first.

        Raises:
            ValueError: the parts name their classes differently.
        """
        if not parts:
            return cls.empty()
        class_names = {part.class_names for part in parts if part.class_names}
        if len(class_names) > 1:
            raise ValueError(
                "parts with different class_names, whose labels mean different things: "
                + " and ".join(str(list(each)) for each in sorted(class_names))
            )
        scores = torch.cat([part.scores for part in parts])
        order = scores.argsort(descending=True, stable=True)
        return cls(
            torch.cat([part.boxes for part in parts])[order],
            scores[order],
            torch.cat([part.labels for part in parts])[order],
            next(iter(class_names), ()),
        )

    def to(self, device: torch.device | str) -> Detections:
        """Copy to a device."""
        return replace(
            self,
            boxes=self.boxes.to(device),
            scores=self.scores.to(device),
            labels=self.labels.to(device),
        )


@dataclass(frozen=True, slots=True)
class Batch:
    """Images padded bottom and right to one size, with their targets when they have any.

    Attributes:
        images: `[B, 3, H, W]`, RGB, uint8 or float, both in `0..255`.
        sizes: (height, width) of each image inside the padding.
        original_sizes: (height, width) of each image before it was resized.
        targets: one Target per image, or None when there is nothing to learn from.
        dropped: how many truths augmentation lost: cropped away, or smaller than a pixel.
        proposals: `[P, 4]` regions to look at of each image, in pixels of the image as it stands in
            the batch, best first; None where the detector finds them itself.
        skipped: files that could not be read, in whose place others came.
    """

    images: Tensor
    sizes: tuple[Size, ...]
    original_sizes: tuple[Size, ...]
    targets: tuple[Target, ...] | None = None
    dropped: int = 0
    proposals: tuple[Tensor, ...] | None = None
    skipped: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """Copy to a device."""
        targets = self.targets
        if targets is not None:
            targets = tuple(target.to(device, non_blocking) for target in targets)
        proposals = self.proposals
        if proposals is not None:
            proposals = tuple(each.to(device, non_blocking=non_blocking) for each in proposals)
        images = self.images.to(device, non_blocking=non_blocking)
        return replace(self, images=images, targets=targets, proposals=proposals)

    def pin_memory(self) -> Batch:
        """Copy to page-locked memory (called by the data loader)."""
        targets = self.targets
        if targets is not None:
            targets = tuple(target.pin_memory() for target in targets)
        proposals = self.proposals
        if proposals is not None:
            proposals = tuple(each.pin_memory() for each in proposals)
        return replace(self, images=self.images.pin_memory(), targets=targets, proposals=proposals)

    def split(self, parts: int) -> list[Batch]:
        """At most so many batches of neighbouring images, none of them empty; views of this one."""
        size = -(-len(self) // parts)
        return [self._cut(start, start + size) for start in range(0, len(self), size)]

    def _cut(self, start: int, stop: int) -> Batch:
        if start == 0 and stop >= len(self):
            return self
        part = slice(start, stop)
        return Batch(
            images=self.images[part],
            sizes=self.sizes[part],
            original_sizes=self.original_sizes[part],
            targets=None if self.targets is None else self.targets[part],
            dropped=self.dropped if start == 0 else 0,  # known of the whole batch only
            proposals=None if self.proposals is None else self.proposals[part],
            skipped=self.skipped if start == 0 else (),
        )

    def without_targets(self) -> Batch:
        """The same images, to be predicted."""
        return replace(self, targets=None)
