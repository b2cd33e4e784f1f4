"""Tiles: every object is found once wherever it lies, and small pictures are left alone."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from detkit.detectors import Detector, Tiled
from detkit.detectors.tiled import Tiling, is_piece, judge_cuts
from detkit.ops import fuse, scale_boxes
from detkit.structures import Batch, Detections, Size

HARD = partial(fuse, nms="hard", iou_threshold=0.5)
Box = tuple[int, int, int, int]


class Bits(Detector):
    """Reports what it sees of each object: label k wherever bit k of the red channel is set."""

    def __init__(self, *, objects: int = 6) -> None:
        super().__init__(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
        self.objects = objects
        self.seen: list[Batch] = []

    def predict(self, batch: Batch) -> list[Detections]:
        assert batch.targets is None
        self.seen.append(batch)
        return [
            self._visible(image[0, : size[0], : size[1]].round().long(), size, original)
            for image, size, original in zip(
                batch.images.float(), batch.sizes, batch.original_sizes, strict=True
            )
        ]

    def _visible(self, pixels: Tensor, size: Size, original: Size) -> Detections:
        boxes, labels = [], []
        for label in range(self.objects):
            rows, columns = (pixels >> label & 1).nonzero(as_tuple=True)
            if len(rows):
                box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
                boxes.append([float(side) for side in box])
                labels.append(label)
        found = torch.tensor(boxes).view(-1, 4)
        return Detections(
            scale_boxes(found, size, original),
            torch.full((len(found),), 0.5),
            torch.tensor(labels).long(),
        )


def picture(size: Size, *objects: Box) -> Batch:
    """One picture in which object k sets bit k of its pixels."""
    image = torch.zeros(1, 3, *size, dtype=torch.uint8)
    for label, (x1, y1, x2, y2) in enumerate(objects):
        image[:, :, y1:y2, x1:x2] |= 1 << label
    return Batch(image, (size,), (size,))


def as_they_are(height: int, width: int) -> Size:
    return height, width


def tiled(tiling: Tiling, *, whole: bool = False, detector: Detector | None = None) -> Tiled:
    return Tiled(
        detector or Bits(),
        tiling,
        resize=as_they_are,
        batch_size=3,
        fuse=HARD,
        whole=whole,
        divisor=1,
    )


def found_boxes(found: Detections) -> list[list[float]]:
    """Boxes in the order of their labels."""
    return found.boxes[found.labels.argsort(stable=True)].tolist()


# ----------------------------------------------------------------------------------------- tiling


@pytest.mark.parametrize(
    ("side", "overlap", "length", "starts"),
    [
        (100, 0.2, 60, [0]),
        (100, 0.2, 100, [0]),
        (100, 0.2, 101, [0, 1]),
        (100, 0.2, 180, [0, 80]),
        (100, 0.2, 181, [0, 40, 81]),  # evenly spread
        (100, 0.0, 250, [0, 75, 150]),
        (100, 0.5, 200, [0, 50, 100]),
        (1, 0.9, 3, [0, 1, 2]),
    ],
)
def test_starts(side: int, overlap: float, length: int, starts: list[int]) -> None:
    assert Tiling(side, overlap).starts(length) == starts


@given(side=st.integers(1, 60), overlap=st.floats(0, 0.95), length=st.integers(1, 400))
def test_tiles_cover_the_picture_and_overlap_enough(side: int, overlap: float, length: int) -> None:
    tiling = Tiling(side, overlap)
    starts = tiling.starts(length)
    assert starts[0] == 0 and starts[-1] + min(side, length) == length
    gaps = [after - before for before, after in itertools.pairwise(starts)]
    assert all(0 < gap <= max(1, side * (1 - overlap)) for gap in gaps)


# ------------------------------------------------------------------------------------- prediction


@st.composite
def scenes(draw: st.DrawFn) -> tuple[Tiling, Size, list[Box]]:
    """Pictures of several tiles and objects no larger than the overlap, anywhere."""
    tiling = Tiling(draw(st.integers(20, 40)), draw(st.sampled_from([0.2, 0.25, 0.4, 0.5])))
    overlap = tiling.side - int(tiling.side * (1 - tiling.overlap))
    size = (draw(st.integers(10, 110)), draw(st.integers(10, 110)))
    objects = []
    for _ in range(draw(st.integers(0, 6))):
        h, w = (draw(st.integers(1, min(overlap, side))) for side in size)
        y, x = draw(st.integers(0, size[0] - h)), draw(st.integers(0, size[1] - w))
        objects.append((x, y, x + w, y + h))
    return tiling, size, objects


@settings(max_examples=150, deadline=None)
@given(scene=scenes(), whole=st.booleans())
def test_every_object_is_found_once_wherever_it_lies(
    scene: tuple[Tiling, Size, list[Box]], whole: bool
) -> None:
    tiling, size, objects = scene
    (found,) = tiled(tiling, whole=whole).predict(picture(size, *objects))
    assert found_boxes(found) == [list(box) for box in objects]


@settings(max_examples=50, deadline=None)
@given(
    top=st.integers(0, 30),
    left=st.integers(0, 30),
    height=st.integers(1, 70),
    width=st.integers(1, 70),
)
def test_of_an_object_larger_than_the_overlap_something_remains(
    top: int, left: int, height: int, width: int
) -> None:
    box = (left, top, left + width, top + height)
    scene = picture((100, 100), box)
    (found,) = tiled(Tiling(30, 0.2)).predict(scene)
    assert len(found)
    inside = found.boxes.round().tolist()
    assert all(
        left <= x1 and top <= y1 and x2 <= box[2] and y2 <= box[3] for x1, y1, x2, y2 in inside
    )
    (found,) = tiled(Tiling(30, 0.2), whole=True).predict(scene)
    assert found_boxes(found) == [list(box)]


def test_a_cut_box_goes_only_where_another_tile_sees_more() -> None:
    """Tiles of 40 begin at 0, 30 and 60: neighbours share 10 pixels."""
    tiling = Tiling(40, 0.25)
    assert tiling.starts(100) == [0, 30, 60]
    boxes = torch.tensor(
        [
            [32.0, 5, 40, 9],  # ends at the right border; begins in the second tile's inside
            [20, 5, 40, 9],  # begins before the second tile: nobody sees it whole
            [30, 5, 40, 9],  # begins on the border of the second tile
            [33, 5, 38, 9],  # ends before the border: nothing is cut
            [30, 5, 38, 9],  # found in the second tile, at its left border
            [60, 5, 100, 9],  # at the picture's own border, and cut on the left
            [62, 5, 100, 9],  # at the picture's own border only
        ]
    )
    starts = torch.tensor([0, 0, 0, 0, 30, 60, 60])
    origins = torch.stack([starts, torch.zeros_like(starts)], dim=1)
    expected = [True, False, False, False, True, False, False]
    cut, better = judge_cuts(boxes, origins, (20, 100), tiling)
    assert cut.tolist() == [True, True, True, False, True, True, False]
    assert better.tolist() == expected
    upright = boxes[:, [1, 0, 3, 2]]
    assert judge_cuts(upright, origins.flip(1), (100, 20), tiling)[1].tolist() == expected
    assert [len(each) for each in judge_cuts(boxes[:0], origins[:0], (20, 100), tiling)] == [0, 0]


def test_a_corner_that_is_cut_twice() -> None:
    """A box in the corner of the first tile is whole in the last one only."""
    tiling = Tiling(40, 0.5)
    boxes = torch.tensor([[25.0, 25, 40, 40], [25, 10, 40, 40]])
    assert tiling.starts(60) == [0, 20]
    cut, better = judge_cuts(boxes, torch.zeros(2, 2, dtype=torch.long), (60, 60), tiling)
    assert cut.tolist() == [True, True]
    assert better.tolist() == [True, False]  # the second one begins above the lower tiles


def test_pieces_of_what_the_whole_picture_shows() -> None:
    pieces = Detections(
        torch.tensor([[0.0, 0, 10, 10], [5, 0, 15, 10], [6, 0, 16, 10], [0, 0, 10, 10]]),
        torch.ones(4),
        torch.tensor([0, 0, 0, 1]),
    )
    whole = Detections(torch.tensor([[0.0, 0, 10, 50]]), torch.ones(1), torch.tensor([0]))
    assert is_piece(pieces, whole).tolist() == [True, True, False, False]
    assert is_piece(pieces, whole[[]]).tolist() == [False] * 4
    assert is_piece(pieces[[]], whole).shape == (0,)


def test_a_picture_that_fits_is_looked_at_as_it_is() -> None:
    detector = Bits()
    scene = picture((40, 30), (3, 4, 20, 30))
    prepared = replace(scene, original_sizes=((80, 60),))  # resized already: by the loader
    found = tiled(Tiling(80), detector=detector).predict(prepared)
    assert found_boxes(found[0]) == [[6, 8, 40, 60]]
    assert torch.equal(detector.seen[0].images, scene.images) and len(detector.seen) == 1


def test_small_and_large_pictures_keep_their_order() -> None:
    sizes = ((50, 50), (20, 20), (50, 20))
    images = torch.zeros(3, 3, 50, 50, dtype=torch.uint8)
    images[0, :, 40:45, 41:48] = 1
    images[1, :, 2:9, 3:7] = 2
    images[2, :, 0:5, 10:20] = 4
    detector = Bits()
    found = tiled(Tiling(20, 0.4), detector=detector).predict(Batch(images, sizes, sizes))
    assert [found_boxes(each) for each in found] == [
        [[41, 40, 48, 45]],
        [[3, 2, 7, 9]],
        [[10, 0, 20, 5]],
    ]
    assert [each.labels.tolist() for each in found] == [[0], [1], [2]]
    counts = [len(batch) for batch in detector.seen]
    assert counts == [1, 3, 3, 3, 3, 3, 1, 3, 1]  # 16 tiles, then 4, three at a time


def test_tiles_are_resized_as_pictures_of_their_own() -> None:
    detector = Bits(objects=1)
    scene = picture((60, 60), (10, 30, 20, 40))
    scene.images[scene.images > 0] = 255
    wrapped = Tiled(
        detector,
        Tiling(40, 0.5),
        resize=lambda height, width: (2 * height, 2 * width),
        batch_size=8,
        fuse=HARD,
        whole=True,
        divisor=64,
    )
    (found,) = wrapped.predict(scene)
    assert [batch.images.shape for batch in detector.seen] == [(4, 3, 128, 128), (1, 3, 128, 128)]
    assert detector.seen[0].sizes == ((80, 80),) * 4
    assert detector.seen[0].original_sizes == ((40, 40),) * 4
    assert detector.seen[1].sizes == ((120, 120),)
    torch.testing.assert_close(
        found.boxes, torch.tensor([[10.0, 30, 20, 40]]).expand(len(found), 4), rtol=0, atol=0.51
    )


def test_each_tile_gets_its_share_of_the_proposals() -> None:
    detector = Bits()
    proposals = torch.tensor([[2.0, 2, 8, 8], [15, 5, 35, 15], [42, 0, 50, 20]])
    scene = replace(picture((20, 50)), proposals=(proposals,))
    tiled(Tiling(30, 0.3), detector=detector).predict(scene)
    (seen,) = (batch.proposals for batch in detector.seen)
    assert seen is not None
    assert [each.tolist() for each in seen] == [
        [[2, 2, 8, 8], [15, 5, 30, 15]],
        [[0, 5, 15, 15], [22, 0, 30, 20]],
    ]


def test_a_large_picture_must_come_in_its_own_size() -> None:
    scene = replace(picture((40, 40)), original_sizes=((80, 80),))
    with pytest.raises(ValueError, match=r"\(80, 80\) \(height, width\) came as \(40, 40\); tiles"):
        tiled(Tiling(50)).predict(scene)


def test_no_images_and_nothing_found() -> None:
    wrapped = tiled(Tiling(20))
    none = Batch(torch.zeros(0, 3, 8, 8), (), ())
    assert wrapped.predict(none) == []
    (found,) = wrapped.predict(picture((50, 50)))
    assert len(found) == 0
