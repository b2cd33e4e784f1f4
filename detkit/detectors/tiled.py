"""Large pictures in overlapping tiles, so that small objects keep their pixels.

As slicing aided inference (arXiv 2202.06934, section 3). K detections, T tiles, S tiles on an axis.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from detkit.detectors.base import Detector
from detkit.detectors.copies import pad_together, resize_pixels, some_of
from detkit.detectors.image_pyramid import Fuse
from detkit.ops import box_area, clip_boxes, pairwise_intersection, scale_boxes
from detkit.structures import Batch, Detections, Size


@dataclass(frozen=True)
class Tiling:
    """Where to cut.

    Attributes:
        side: of a tile in pixels; at most this.
        overlap: least share of a tile that its neighbour sees, too.
        margin: a box that ends closer than this to a border of its tile, as a share of `side`, is
            taken to be cut there.
    """

    side: int
    overlap: float = 0.2
    margin: float = 0.01

    def starts(self, length: int) -> list[int]:
        """Where the tiles of a side of the picture begin: evenly spread, the last at its end."""
        if length <= self.side:
            return [0]
        step = max(1, math.floor(self.side * (1 - self.overlap)))
        gaps = math.ceil((length - self.side) / step)
        return [round(i * (length - self.side) / gaps) for i in range(gaps + 1)]

    def fits(self, size: Size) -> bool:
        """Whether one tile holds the whole picture of (height, width)."""
        return max(size) <= self.side


class Tiled(Detector):
    """A detector on overlapping tiles, for prediction only.

    A tile is treated as a picture of its own: resized as such, in batches. So a picture that fits
    into one tile gives what the detector gives for it.

    An object that a tile's border cuts shows there as a smaller one. Objects up to the size of the
    overlap are whole in some tile: therefore a box that ends at an inner border is dropped where
    another tile sees on beyond that border and holds the rest of the box uncut. An object larger
    than the overlap may be whole in no tile; of it the largest pieces remain. Joining them would be
    a guess, as two neighbours in a row look the same. Look at the `whole` picture, too: pieces of
    what it finds there are dropped.

    Args:
        detector: looks at every tile; its boxes are in pixels of the tile.
        tiling: where to cut, in pixels of the original picture.
        resize: (height, width) of a tile to those in which the detector gets it.
        batch_size: tiles that are looked at together.
        fuse: makes one answer of all tiles' together and, where asked for, the whole picture's. Of
            the kinds that vote (wbf), these two are the voters.
        whole: look at the whole picture as well, resized by `resize`.
        divisor: sides are padded to a multiple of it.
    """

    def __init__(
        self,
        detector: Detector,
        tiling: Tiling,
        *,
        resize: Callable[[int, int], Size],
        batch_size: int,
        fuse: Fuse,
        whole: bool = False,
        divisor: int = 32,
    ) -> None:
        super().__init__(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
        self.mean, self.std = detector.mean, detector.std
        self.detector = detector
        self.tiling = tiling
        self.resize = resize
        self.batch_size = batch_size
        self.fuse = fuse
        self.whole = whole
        self.divisor = divisor

    def predict(self, batch: Batch) -> list[Detections]:
        """Detections in the pixels of the original picture.

        Args:
            batch: pictures that fit into a tile come as the detector takes them, larger ones in
                their own size.
        """
        batch = batch.without_targets()
        small = [i for i, size in enumerate(batch.original_sizes) if self.tiling.fits(size)]
        found: dict[int, Detections] = {}
        if small:
            found |= zip(small, self.detector.predict(some_of(batch, small)), strict=True)
        for image in range(len(batch)):
            if image not in found:
                found[image] = self._in_tiles(some_of(batch, [image]))
        return [found[image] for image in range(len(batch))]

    def _in_tiles(self, batch: Batch) -> Detections:
        """Detections in the one picture of a batch."""
        (size,) = batch.sizes
        if size != batch.original_sizes[0]:
            raise ValueError(
                f"a picture of {batch.original_sizes[0]} (height, width) came as {size}; tiles "
                "are cut from pictures in their own size"
            )
        origins = [(y, x) for y in self.tiling.starts(size[0]) for x in self.tiling.starts(size[1])]
        found: list[Detections] = []
        for start in range(0, len(origins), self.batch_size):
            tiles = self._cut(batch, origins[start : start + self.batch_size])
            found += self.detector.predict(tiles)
        tile = torch.cat([torch.full_like(each.labels, i) for i, each in enumerate(found)])
        shifts = tile.new_tensor([(x, y, x, y) for y, x in origins])  # [T, 4]
        boxes = torch.cat([each.boxes for each in found]) + shifts[tile]  # [K, 4]
        scores, labels = (torch.cat([getattr(d, n) for d in found]) for n in ("scores", "labels"))
        together = Detections(boxes, scores, labels)
        cut, better = judge_cuts(boxes, shifts[tile, :2], size, self.tiling)
        if not self.whole:
            return self.fuse([together[~better]])
        (whole,) = self.detector.predict(self._cut(batch, [(0, 0)], side=max(size)))
        return self.fuse([together[~better & ~(cut & is_piece(together, whole))], whole])

    def _cut(self, batch: Batch, origins: list[tuple[int, int]], side: int | None = None) -> Batch:
        """Tiles of the one picture of a batch that begin at these (y, x), resized."""
        side = side or self.tiling.side
        ((height, width),) = batch.sizes
        shape = (min(side, height), min(side, width))
        tiles = torch.stack(
            [batch.images[0, :, y : y + shape[0], x : x + shape[1]] for y, x in origins]
        )
        size = self.resize(*shape)
        proposals = None
        if batch.proposals is not None:
            proposals = tuple(
                scale_boxes(_proposals_in(batch.proposals[0], origin, shape), shape, size)
                for origin in origins
            )
        return Batch(
            pad_together(list(resize_pixels(tiles, size)), self.divisor, batch.images),
            sizes=(size,) * len(origins),
            original_sizes=(shape,) * len(origins),
            proposals=proposals,
        )


def _proposals_in(proposals: Tensor, origin: tuple[int, int], shape: Size) -> Tensor:
    """What a tile sees of the proposals `[P, 4]`, in its own pixels."""
    y, x = origin
    seen = clip_boxes(proposals - proposals.new_tensor([x, y, x, y]), shape)
    return seen[(seen[:, 2:] > seen[:, :2]).all(dim=1)]


def judge_cuts(boxes: Tensor, origins: Tensor, size: Size, tiling: Tiling) -> tuple[Tensor, Tensor]:
    """Which boxes `[K]` end at an inner border of their tile, and of these, which are seen better.

    Better: another tile sees on beyond the border, and the box's other ends uncut.

    Args:
        boxes: `[K, 4]` in pixels of the picture.
        origins: `[K, 2]` x and y where the tile begins that the box was found in.
        size: (height, width) of the picture.
        tiling: where it was cut.
    """
    cut = torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    better = ~cut
    for axis, length in ((0, size[1]), (1, size[0])):  # tiles form a grid: each axis on its own
        side, margin = min(tiling.side, length), tiling.margin * tiling.side
        low, high, start = boxes[:, axis], boxes[:, axis + 2], origins[:, axis]  # [K]
        cut_low = (start > 0) & (low - start < margin)
        cut_high = (start + side < length) & (start + side - high < margin)
        starts = origins.new_tensor(tiling.starts(length))  # [S]
        free_low = (starts == 0) | (low[:, None] - starts >= margin)  # [K, S]
        free_high = (starts + side == length) | (starts + side - high[:, None] >= margin)
        holds = torch.where(cut_low[:, None], starts < start[:, None], free_low)
        holds &= torch.where(cut_high[:, None], starts > start[:, None], free_high)
        cut |= cut_low | cut_high
        better &= holds.any(dim=1)
    return cut, cut & better


def is_piece(found: Detections, whole: Detections) -> Tensor:
    """Which detections `[K]` lie to a half or more in one of `whole` that is of their class."""
    shared = pairwise_intersection(whole.boxes, found.boxes)  # [W, K]
    inside = (shared >= 0.5 * box_area(found.boxes)) & (whole.labels[:, None] == found.labels)
    return inside.any(dim=0)
