"""An annotated data set in packed arrays, whatever format it was read from.

Worker processes of a loader share these arrays with their parent. Lists of dicts would be copied
page by page, because touching a Python object writes its reference count.

N images, C classes, G truths as the file has them, K truths fit for training, M those of one image.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from detkit.data.images import ImageReadError, read_image
from detkit.structures import Size


@dataclass(frozen=True, slots=True)
class Sample:
    """One picture with its truths, in numpy until the loader makes a batch of it.

    Attributes:
        image: `[H, W, 3]` uint8, RGB.
        boxes: `[M, 4]` float32 xyxy in pixels of `image`.
        labels: `[M]` int64 in `0..C-1`.
        crowd: `[M]` bool.
        area: `[M]` float32 in pixels of `image`: of the object where known, else of its box.
        image_id: the image's id in its data set.
        original_size: (height, width) of the picture in its file.
        dropped: truths that the transforms lost.
        proposals: `[P, 4]` float32 xyxy in pixels of `image`, best first: regions for the detector
            to look at; None where it finds them itself.
        skipped: files that could not be read, in whose place others came.
    """

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    area: np.ndarray
    image_id: int
    original_size: Size
    dropped: int = 0
    proposals: np.ndarray | None = None
    skipped: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.boxes)


@dataclass(frozen=True, slots=True)
class DatasetReport:
    """What was found on reading, for the log."""

    images: int
    boxes: int
    empty: int
    crowd: int
    clipped: int
    degenerate: int

    def __str__(self) -> str:
        return (
            f"{self.images} images ({self.empty} without boxes), {self.boxes} boxes "
            f"({self.crowd} crowd, {self.clipped} clipped to the image), "
            f"{self.degenerate} degenerate boxes dropped"
        )


@dataclass(frozen=True, slots=True)
class CocoGroundTruth:
    """What an evaluator needs: every truth as the file has it, in its order, exact.

    Attributes:
        image_ids: `[N]` int64.
        category_ids: `[C]` int64, ascending; label c stands for `category_ids[c]`.
        gt_image_index: `[G]` int64 into `image_ids`.
        gt_label: `[G]` int64 in `0..C-1`.
        gt_boxes_xywh: `[G, 4]` float64, neither clipped nor cleaned.
        gt_area: `[G]` float64.
        gt_crowd: `[G]` bool.
        gt_ids: `[G]` int64, None unless each annotation has a whole number as id.
    """

    image_ids: np.ndarray
    category_ids: np.ndarray
    gt_image_index: np.ndarray
    gt_label: np.ndarray
    gt_boxes_xywh: np.ndarray
    gt_area: np.ndarray
    gt_crowd: np.ndarray
    gt_ids: np.ndarray | None = None


@dataclass(frozen=True, slots=True)
class PackedStrings:
    """Strings in one byte array: `data[offsets[i]:offsets[i + 1]]` is the i-th."""

    data: np.ndarray
    offsets: np.ndarray

    @classmethod
    def pack(cls, strings: Sequence[str]) -> PackedStrings:
        """Encode as the file system does, so that any file name survives."""
        encoded = [os.fsencode(string) for string in strings]
        lengths = np.array([len(item) for item in encoded], dtype=np.int64)
        data = np.frombuffer(b"".join(encoded), dtype=np.uint8)
        return cls(data, np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> str:
        return os.fsdecode(self.data[self.offsets[index] : self.offsets[index + 1]].tobytes())


# (image id, `[H, W, 3]` as in its file) -> `[P, 4]` float32 xyxy in its pixels, best first
ProposalSource = Callable[[int, np.ndarray], np.ndarray]


class CocoDataset:
    """Pictures in a folder and their truths; `dataset[i]` reads one.

    Args:
        images: the folder of the pictures.
        file_names: their paths below it.
        sizes: `[N, 2]` int64 (height, width), upright.
        truth: every truth as the file has it.
        class_names: one for each category id.

    Attributes:
        image_ids: `[N]` int64.
        category_ids: `[C]` int64, ascending; label c stands for `category_ids[c]`.
        class_names: C names.
        report: the counts of what was kept, clipped and dropped.
        proposals: where those of its samples come from, or None.
    """

    def __init__(
        self,
        images: Path,
        file_names: PackedStrings,
        sizes: np.ndarray,
        truth: CocoGroundTruth,
        class_names: tuple[str, ...],
    ) -> None:
        self.images = images
        self.class_names = class_names
        self.image_ids = truth.image_ids
        self.category_ids = truth.category_ids
        self._file_names = file_names
        self._sizes = sizes
        self._truth = truth
        self.proposals: ProposalSource | None = None
        boxes, clipped, degenerate = clip_truth(truth, sizes)
        kept = np.flatnonzero(~degenerate)
        order = kept[np.argsort(truth.gt_image_index[kept], kind="stable")]
        self._boxes = boxes[order].astype(np.float32)
        self._labels = truth.gt_label[order]
        self._crowd = truth.gt_crowd[order]
        self._area = truth.gt_area[order].astype(np.float32)
        counts = np.bincount(truth.gt_image_index[order], minlength=len(sizes))
        self._offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
        self.report = DatasetReport(
            images=len(sizes),
            boxes=len(order),
            empty=int((counts == 0).sum()),
            crowd=int(self._crowd.sum()),
            clipped=int((clipped & ~degenerate).sum()),
            degenerate=int(degenerate.sum()),
        )

    def __len__(self) -> int:
        return len(self._sizes)

    def __getitem__(self, index: int) -> Sample:
        """Read a picture with its truths.

        Raises:
            ImageReadError: the file cannot be used, or is not of the size that the annotations
                give, so that their boxes would not fit it.
            IndexError: no such index.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"image index {index} not in 0..{len(self) - 1}")
        path = self.path(index)
        image = read_image(path)
        height, width = (int(side) for side in self._sizes[index])
        if image.shape[:2] != (height, width):
            raise ImageReadError(
                f"image {path} is {image.shape[1]}x{image.shape[0]} (upright), its annotations say "
                f"{width}x{height}: the boxes would not fit; correct width and height or the file"
            )
        part = slice(self._offsets[index], self._offsets[index + 1])
        image_id = int(self.image_ids[index])
        return Sample(
            image=image,
            boxes=self._boxes[part].copy(),
            labels=self._labels[part].copy(),
            crowd=self._crowd[part].copy(),
            area=self._area[part].copy(),
            image_id=image_id,
            original_size=(height, width),
            proposals=None if self.proposals is None else self.proposals(image_id, image),
        )

    def path(self, index: int) -> Path:
        """The file of a picture."""
        return self.images / self._file_names[index]

    def sizes(self) -> np.ndarray:
        """`[N, 2]` int64 (height, width) of all pictures, without reading them."""
        return self._sizes

    def with_proposals(self, source: ProposalSource | None) -> CocoDataset:
        """The same data set, whose samples have these proposals."""
        other = copy.copy(self)
        other.proposals = source
        return other

    def subset(self, limit: int) -> CocoDataset:
        """The first images only, with all classes.

        Raises:
            ValueError: the limit is below 1.
        """
        if limit < 1:
            raise ValueError(f"limit must be at least 1 image, got {limit}")
        return self.select(np.arange(min(limit, len(self))))

    def select(self, indices: np.ndarray) -> CocoDataset:
        """Some of the images, in the order given, with all classes.

        Args:
            indices: `[n]` of the images, each at most once.
        """
        truth = self._truth
        place = np.full(len(self), -1)
        place[indices] = np.arange(len(indices))
        kept = place[truth.gt_image_index] >= 0
        truth = replace(
            truth,
            image_ids=truth.image_ids[indices],
            gt_image_index=place[truth.gt_image_index[kept]],
            gt_label=truth.gt_label[kept],
            gt_boxes_xywh=truth.gt_boxes_xywh[kept],
            gt_area=truth.gt_area[kept],
            gt_crowd=truth.gt_crowd[kept],
            gt_ids=None if truth.gt_ids is None else truth.gt_ids[kept],
        )
        names = PackedStrings.pack([self._file_names[int(index)] for index in indices])
        some = CocoDataset(self.images, names, self._sizes[indices], truth, self.class_names)
        return some.with_proposals(self.proposals)

    def truths(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Index of the image, label and crowd of the truths fit for training, `[K]` each."""
        images = np.repeat(np.arange(len(self)), np.diff(self._offsets))
        return images, self._labels, self._crowd

    def counts(self) -> np.ndarray:
        """`[N]` truths fit for training of each image, crowds included."""
        return np.diff(self._offsets)


def coco_ground_truth(dataset: CocoDataset) -> CocoGroundTruth:
    """Every truth exactly as the file has it, for evaluation."""
    return dataset._truth


def clip_truth(
    truth: CocoGroundTruth, sizes: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Corners inside the picture, and which boxes were clipped or have no area left.

    Returns:
        xyxy `[G, 4]` float64, clipped `[G]` bool, degenerate `[G]` bool.
    """
    xywh = truth.gt_boxes_xywh
    xyxy = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
    limits = sizes[truth.gt_image_index][:, [1, 0, 1, 0]]
    inside = np.clip(xyxy, 0, limits)
    clipped = np.abs(inside - xyxy).max(axis=1, initial=0) > 0.01  # less is rounding in the file
    sides = (inside[:, 2:] - inside[:, :2]).astype(np.float32)
    degenerate = (sides <= 0).any(axis=1)
    return inside, clipped, degenerate
