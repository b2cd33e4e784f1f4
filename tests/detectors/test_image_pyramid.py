"""Copies of images: what the detector gets of them, what comes back, who learns what."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detkit.config import build_recipe
from detkit.detectors import Detector, ImagePyramid, create_detector
from detkit.detectors.copies import mirror_boxes, mirrored, pad_together, resized, some_of
from detkit.detectors.image_pyramid import Octaves
from detkit.ops import fuse, scale_boxes
from detkit.structures import Batch, Detections, Target

HARD = partial(fuse, nms="hard", iou_threshold=0.5)
SIZES = [(41, 67), (64, 30), (96, 128)]  # two odd ones, padded together


class Stub(Detector):
    """Finds one box of label 0 in each image, and remembers what it was given."""

    def __init__(self) -> None:
        super().__init__(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
        self.weight = nn.Parameter(torch.tensor(2.0))
        self.seen: list[Batch] = []

    def features(self, batch: Batch) -> list[Tensor]:
        self.seen.append(batch)
        return [batch.images * self.weight]

    def boxes(self, batch: Batch, image: int) -> Tensor:
        """`[1, 4]` in pixels of the copy."""
        raise NotImplementedError

    def detections(self, features: list[Tensor], batch: Batch) -> list[Detections]:
        found = []
        for image, (size, original) in enumerate(
            zip(batch.sizes, batch.original_sizes, strict=True)
        ):
            boxes = scale_boxes(self.boxes(batch, image), size, original)
            found.append(
                Detections(boxes, torch.ones(len(boxes)) / 2, torch.zeros(len(boxes)).long())
            )
        return found

    def losses(self, features: list[Tensor], batch: Batch) -> dict[str, Tensor]:
        return {"stub": self.weight * batch.images.shape[-1], "other": self.weight}


class Share(Stub):
    """Its box is always the same share of the copy; a mirror image it cannot tell."""

    def boxes(self, batch: Batch, image: int) -> Tensor:
        height, width = batch.sizes[image]
        return torch.tensor([[0.125 * width, 0.25 * height, 0.5 * width, 0.75 * height]])


class Bright(Stub):
    """Finds where pixels are brighter than half."""

    def boxes(self, batch: Batch, image: int) -> Tensor:
        rows, columns = (batch.images[image, 0] > 127).nonzero(as_tuple=True)
        if not len(rows):
            return torch.zeros(0, 4)
        corners = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        return torch.stack(corners)[None].float()


def batch_of(sizes: list[tuple[int, int]], *, divisor: int = 32) -> Batch:
    generator = torch.Generator().manual_seed(0)
    images = [
        torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8) for size in sizes
    ]
    padded = pad_together(images, divisor, images[0][None])
    return Batch(padded, tuple(sizes), tuple(sizes))


def target(*boxes: list[float], crowd: list[bool] | None = None) -> Target:
    corners = torch.tensor(boxes).view(-1, 4)
    sides = corners[:, 2:] - corners[:, :2]
    flags = torch.tensor(crowd if crowd is not None else [False] * len(boxes), dtype=torch.bool)
    return Target(corners, torch.arange(len(boxes)), 7, flags, sides.prod(dim=1) / 2)


def same(first: Detections, second: Detections) -> bool:
    names = ("boxes", "scores", "labels")
    return all(torch.equal(getattr(first, name), getattr(second, name)) for name in names)


# ------------------------------------------------------------------------------------- copies


def test_sizes_padding_and_truths_of_a_copy() -> None:
    truths = (target([8, 4, 24, 12]), target(), target([0, 0, 128, 96], crowd=[True]))
    batch = replace(batch_of(SIZES), targets=truths, proposals=(torch.ones(2, 4),) * 3)
    half = resized(batch, [(20, 34), (32, 15), (48, 64)], divisor=32)
    assert half.images.shape == (3, 3, 64, 64) and half.images.dtype == torch.float32
    assert half.sizes == ((20, 34), (32, 15), (48, 64))
    assert half.original_sizes == batch.original_sizes
    assert not half.images[0, :, 20:].any() and not half.images[0, :, :, 34:].any()
    assert half.images[0, :, :20, :34].min() > 0
    assert half.targets is not None and half.proposals is not None
    y, x = 20 / 41, 34 / 67
    torch.testing.assert_close(
        half.targets[0].boxes, torch.tensor([[8 * x, 4 * y, 24 * x, 12 * y]])
    )
    torch.testing.assert_close(half.targets[0].area, torch.tensor([64 * x * y]))
    assert half.targets[2].boxes.tolist() == [[0, 0, 64, 48]]
    assert half.targets[2].crowd.tolist() == [True]
    assert len(half.targets[1]) == 0 and half.targets[1].boxes.shape == (0, 4)
    torch.testing.assert_close(half.proposals[0], torch.tensor([[x, y, x, y]] * 2))


def test_a_copy_of_the_same_size_is_the_batch_itself() -> None:
    batch = batch_of(SIZES)
    assert resized(batch, batch.sizes, divisor=32) is batch
    assert some_of(batch, [0, 1, 2]) is batch


def test_shrinking_takes_the_mean() -> None:
    """Of stripes of one pixel, grey remains; without smoothing every second one would."""
    images = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    images[..., ::2] = 200
    quarter = resized(Batch(images, ((32, 32),), ((32, 32),)), [(8, 8)], divisor=8)
    torch.testing.assert_close(
        quarter.images[..., 1:-1], torch.full((1, 3, 8, 6), 100.0), rtol=0, atol=4
    )


def test_padding_does_not_bleed_into_the_picture() -> None:
    images = torch.zeros(1, 3, 32, 32)
    images[:, :, :20, :20] = 100
    small = resized(Batch(images, ((20, 20),), ((20, 20),)), [(10, 10)], divisor=32)
    torch.testing.assert_close(small.images[0, :, :10, :10], torch.full((3, 10, 10), 100.0))


def test_layout_in_memory_stays() -> None:
    batch = batch_of(SIZES)
    for layout in (torch.channels_last, torch.contiguous_format):
        laid_out = replace(batch, images=batch.images.contiguous(memory_format=layout))
        small = resized(laid_out, [(20, 34), (32, 15), (48, 64)], divisor=32)
        assert small.images.is_contiguous(memory_format=layout)


def test_mirror_image() -> None:
    batch = replace(
        batch_of([(3, 5), (4, 8)], divisor=1),
        targets=(target([0, 0, 2, 1]),) * 2,
        proposals=(torch.tensor([[0.0, 1, 2, 3]]),) * 2,
    )
    other = mirrored(batch)
    assert torch.equal(other.images[0, :, :3, :5], batch.images[0, :, :3, :5].flip(-1))
    assert torch.equal(other.images[1], batch.images[1].flip(-1))
    assert not other.images[0, :, :, 5:].any()
    assert other.targets is None and other.proposals is not None
    assert [boxes.tolist() for boxes in other.proposals] == [[[3, 1, 5, 3]], [[6, 1, 8, 3]]]
    assert torch.equal(mirrored(other).images, batch.images)


def test_mirrored_twice_is_where_it_was() -> None:
    boxes = torch.tensor([[1.0, 2, 4, 9], [0, 0, 10, 1]])
    assert mirror_boxes(boxes, 10).tolist() == [[6, 2, 9, 9], [0, 0, 10, 1]]
    assert torch.equal(mirror_boxes(mirror_boxes(boxes, 10), 10), boxes)
    assert mirror_boxes(boxes[:0], 10).shape == (0, 4)


@pytest.mark.parametrize(
    ("smallest", "per_octave", "size", "scales"),
    [
        (32, 1, (128, 200), [1, 0.5, 0.25]),
        (33, 1, (128, 200), [1, 0.5]),
        (32, 2, (200, 64), [1, 0.5**0.5, 0.5]),
        (100, 1, (64, 64), [1]),  # the picture itself is there in any case
    ],
)
def test_octaves(
    smallest: int, per_octave: int, size: tuple[int, int], scales: list[float]
) -> None:
    assert Octaves(smallest, per_octave)(size) == pytest.approx(scales)


# ------------------------------------------------------------------------------------ prediction

TINY = {
    "backbone": {"name": "resnet18", "width": 8, "out_indices": [2, 3]},
    "fpn": {"channels": 16, "extra": None},
    "rpn": {"anchor_sizes": [[16], [32]], "post_nms_test": 30, "post_nms_train": 30, "samples": 32},
    "roi": {"hidden": 16, "samples": 16},
    "select": {"score_threshold": 0.1},
}


@pytest.fixture
def detector() -> Detector:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return create_detector(TINY, num_classes=3).eval()


@torch.no_grad()
def test_one_scale_and_no_ranges_is_the_detector_itself(detector: Detector) -> None:
    batch = batch_of(SIZES)
    pyramid = ImagePyramid(detector, [1.0], fuse=HARD)
    expected = detector.predict(batch)
    assert all(len(found) > 3 for found in expected)
    assert all(map(same, pyramid.predict(batch), expected))
    assert all(map(same, pyramid.detections(pyramid.features(batch), batch), expected))
    learning = replace(batch, targets=(target([4, 4, 28, 36]),) * 3)
    torch.manual_seed(1)
    losses = detector.loss(learning)
    torch.manual_seed(1)
    assert pyramid.loss(learning) == losses


@torch.no_grad()
def test_predict_is_detections_of_features(detector: Detector) -> None:
    batch = batch_of(SIZES)
    pyramid = ImagePyramid(detector, [0.5, 1.0, 1.7], fuse=HARD, flip=True)
    found = pyramid.predict(batch)
    assert all(map(same, found, pyramid.detections(pyramid.features(batch), batch)))
    assert not any(map(same, found, detector.predict(batch)))


@pytest.mark.parametrize("scales", [[1.0], [0.5], [1 / 3, 0.77, 1, 1.9, 2.5]])
def test_boxes_come_back_exactly(scales: list[float]) -> None:
    """The same share of every copy is the same share of the original: nothing may drift."""
    batch = replace(batch_of(SIZES), original_sizes=((82, 134), (13, 6), (960, 1280)))
    found = ImagePyramid(Share(), scales, fuse=Detections.cat).predict(batch)
    for each, (height, width) in zip(found, batch.original_sizes, strict=True):
        box = torch.tensor([0.125 * width, 0.25 * height, 0.5 * width, 0.75 * height])
        assert len(each) == len(scales)
        torch.testing.assert_close(each.boxes, box.expand(len(scales), 4), rtol=1e-6, atol=1e-5)


def test_boxes_of_mirror_images_come_back_exactly() -> None:
    batch = replace(batch_of(SIZES), original_sizes=((82, 134), (13, 6), (960, 1280)))
    found = ImagePyramid(Share(), [1, 0.5], fuse=Detections.cat, flip=True).predict(batch)
    for each, (height, width) in zip(found, batch.original_sizes, strict=True):
        x1 = torch.tensor([0.125, 0.5, 0.125, 0.5]) * width  # own, mirrored, own, mirrored
        x2 = torch.tensor([0.5, 0.875, 0.5, 0.875]) * width
        torch.testing.assert_close(each.boxes[:, 0], x1, rtol=1e-6, atol=1e-5)
        torch.testing.assert_close(each.boxes[:, 2], x2, rtol=1e-6, atol=1e-5)
        assert each.boxes[:, 1].tolist() == pytest.approx([0.25 * height] * 4)


@pytest.mark.parametrize("scale", [0.4, 0.5, 0.8, 1.3, 2.0, 3.0])
@pytest.mark.parametrize("flip", [False, True])
def test_pixels_and_boxes_agree(scale: float, flip: bool) -> None:
    """An object that is seen in the copy's pixels is where it is in the original."""
    batch = batch_of(SIZES)
    batch.images.zero_()
    truths = [[10, 20, 40, 36], [5, 8, 25, 60], [40, 9, 127, 90]]
    for image, (x1, y1, x2, y2) in zip(batch.images, truths, strict=True):
        image[:, y1:y2, x1:x2] = 255
    pyramid = ImagePyramid(Bright(), [scale], fuse=Detections.cat, flip=flip)
    for found, box in zip(pyramid.predict(batch), truths, strict=True):
        assert len(found) == 1 + flip
        # half a pixel of the copy, where it is drawn to whole ones
        expected = torch.tensor(box).float().expand(len(found), 4)
        torch.testing.assert_close(found.boxes, expected, rtol=0, atol=0.51 / min(scale, 1) + 0.3)


def test_copies_of_all_images_are_one_batch() -> None:
    stub = Share()
    ImagePyramid(stub, [1.0, 0.5], fuse=HARD, flip=True).predict(batch_of(SIZES))
    assert [batch.sizes for batch in stub.seen] == [
        tuple(SIZES),
        tuple(SIZES),
        ((20, 34), (32, 15), (48, 64)),
        ((20, 34), (32, 15), (48, 64)),
    ]


def test_octaves_go_on_for_large_images_only() -> None:
    stub = Share()
    pyramid = ImagePyramid(stub, Octaves(30), fuse=Detections.cat)
    found = pyramid.predict(batch_of([(40, 70), (128, 130), (64, 64)]))
    assert [batch.sizes for batch in stub.seen] == [
        ((40, 70), (128, 130), (64, 64)),
        ((64, 65), (32, 32)),
        ((32, 32),),
    ]
    assert [len(each) for each in found] == [1, 3, 2]
    torch.testing.assert_close(
        found[1].boxes, torch.tensor([[16.25, 32, 65, 96]]).expand(3, 4), rtol=1e-6, atol=1e-5
    )


def test_answers_are_fused() -> None:
    found = ImagePyramid(Share(), [1, 0.5, 2], fuse=HARD).predict(batch_of(SIZES))
    assert [len(each) for each in found] == [1, 1, 1]


def test_no_images() -> None:
    assert ImagePyramid(Share(), [1, 0.5], fuse=HARD).predict(some_of(batch_of(SIZES), [])) == []


# ---------------------------------------------------------------------------------------- ranges


@pytest.mark.parametrize(
    ("ranges", "kept"),
    [
        # the box has 0.375 of the width and half of the height of 96 x 128: 48 pixels square
        ([(0, None), (0, None)], 2),
        ([(48, None), (0, None)], 2),  # from 48 on
        ([(48.1, None), (0, None)], 1),
        ([(0, 48), (0, 24)], 0),  # 48 not included; 24 in the copy of half the size
        ([(0, 48.1), (0, 24)], 1),
        ([(0, 48), (24, 25)], 1),
        ([(30, 50)], 1),  # one for all copies
    ],
)
def test_ranges_at_test_are_in_pixels_of_the_copy(ranges: Any, kept: int) -> None:
    batch = replace(batch_of([(96, 128)]), original_sizes=((960, 1280),))
    pyramid = ImagePyramid(Share(), [1, 0.5], fuse=Detections.cat, ranges=ranges)
    (found,) = pyramid.predict(batch)
    assert len(found) == kept


def test_truths_out_of_range_are_a_crowd_for_that_copy() -> None:
    """As in SNIP: neither found nor background; each copy has its own."""
    stub = Share()
    truths = target(
        [0, 0, 8, 8], [0, 0, 32, 8], [0, 0, 60, 60], [5, 5, 25, 25], crowd=[False] * 3 + [True]
    )
    batch = replace(batch_of([(64, 64), (64, 64)]), targets=(truths, target()))
    pyramid = ImagePyramid(stub, [2, 1, 0.5], fuse=HARD, ranges=[(0, 32), (8, 16.1), (16, None)])
    pyramid.loss(batch)
    crowds = [seen.targets[0].crowd.tolist() for seen in stub.seen]  # type: ignore[index]
    assert crowds == [
        [False, True, True, True],  # sides 16, 32, 120
        [False, False, True, True],  # sides 8, 16, 60
        [True, True, False, True],  # sides 4, 8, 30
    ]
    assert truths.crowd.tolist() == [False, False, False, True]  # the caller's own stay
    assert [len(seen.targets[1]) for seen in stub.seen] == [0, 0, 0]  # type: ignore[index]


# -------------------------------------------------------------------------------------- training


def test_loss_is_the_mean_over_copies() -> None:
    stub = Share()
    batch = replace(batch_of([(64, 64)]), targets=(target(),))
    losses = ImagePyramid(stub, [1, 0.5], fuse=HARD, flip=True).loss(batch)
    assert {name: value.item() for name, value in losses.items()} == {"stub": 96.0, "other": 2.0}


def test_copies_weigh_as_many_images_as_they_have() -> None:
    batch = replace(batch_of([(64, 64), (128, 128)]), targets=(target(), target()))
    losses = ImagePyramid(Share(), Octaves(64), fuse=HARD).loss(batch)
    assert losses["stub"].item() == pytest.approx(2 * (128 * 2 / 3 + 64 / 3))


def test_training_lowers_the_loss_and_reaches_every_weight(detector: Detector) -> None:
    torch.manual_seed(0)
    ranges = [(0.0, 40.0), (0.0, None)]
    pyramid = ImagePyramid(detector, [1, 0.5], fuse=HARD, ranges=ranges).train()
    images = batch_of([(64, 64), (64, 60)]).images
    images[0, :, 8:40, 8:40] = 250
    images[1, :, 10:60, 4:50] = 5
    truths = (target([8, 8, 40, 40]), target([4, 10, 50, 60]))
    batch = Batch(images, ((64, 64), (64, 60)), ((64, 64), (64, 60)), truths)
    optimizer = torch.optim.AdamW(pyramid.parameters(), lr=3e-3)
    course = []
    for step in range(12):
        losses = pyramid(batch)
        assert set(losses) == {"rpn/objectness", "rpn/box", "roi/class", "roi/box"}
        optimizer.zero_grad()
        total = torch.stack(list(losses.values())).sum()
        total.backward()
        if step == 0:
            assert all(p.grad is not None for p in pyramid.parameters() if p.requires_grad)
        optimizer.step()
        course.append(total.item())
    assert sum(course[-3:]) < 0.7 * sum(course[:3])


# ------------------------------------------------------------------------------------------ state


def test_state_has_the_names_of_the_detectors_own(detector: Detector) -> None:
    pyramid = ImagePyramid(copy.deepcopy(detector), [1, 0.5], fuse=HARD)
    state = detector.state_dict()
    assert list(pyramid.state_dict()) == list(state)
    for tensor in state.values():
        tensor.add_(1)
    pyramid.load_state_dict(state)
    assert all(
        torch.equal(a, b)
        for a, b in zip(pyramid.state_dict().values(), state.values(), strict=True)
    )
    inner = pyramid.detector.state_dict()
    assert all(torch.equal(inner[name], state[name]) for name in state)
    nested = nn.Sequential(ImagePyramid(pyramid, [1], fuse=HARD))
    assert list(nested.state_dict()) == [f"0.{name}" for name in state]
    nested.load_state_dict(nested.state_dict())
    with pytest.raises(RuntimeError, match="Unexpected key"):
        pyramid.load_state_dict({**state, "more": torch.zeros(1)})


def test_pyramid_from_the_config() -> None:
    settings = {
        "scales": [0.5, 1],
        "ranges": [[0, 64], [32, None]],
        "fusion": {"iou_threshold": 0.7},
    }
    pyramid = create_detector({**TINY, "image_pyramid": settings}, num_classes=3)
    assert isinstance(pyramid, ImagePyramid)
    assert pyramid.scales == (0.5, 1.0) and pyramid.ranges == ((0, 64), (32, None))
    fusing = pyramid.fuse.keywords  # type: ignore[attr-defined]
    assert (fusing["nms"], fusing["iou_threshold"], fusing["max_detections"]) == ("hard", 0.7, 100)
    assert pyramid.backbone is pyramid.detector.backbone
    octaves = create_detector({**TINY, "image_pyramid": {"smallest": 48}}, num_classes=3)
    assert isinstance(octaves, ImagePyramid) and octaves.scales == Octaves(48, 1)
    plain = create_detector({**TINY, "image_pyramid": None}, num_classes=3)
    assert list(plain.state_dict()) == list(pyramid.state_dict())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scales": []}, "scales are empty; give at least one"),
        ({"scales": [1, -1]}, r"image_pyramid.scales.1: got -1; should be greater than 0"),
        ({"scales": [1], "smallest": 32}, "exclude each other; set one to null"),
        ({"scales": [1, 2], "ranges": [[0, 1]] * 3}, "3 entries; give one each of 2 scales"),
        ({"smallest": 32, "ranges": [[0, 1]] * 2}, "2 entries; give one for all octaves"),
        ({"ranges": [[32, 16]]}, r"ranges has \[32, 16\], whose end is not above its start"),
        ({"scale": [1]}, "unknown key; did you mean 'scales'"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        build_recipe({"name": "x", "model": {"image_pyramid": settings}})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("scales", "ranges", "message"),
    [([], None, "at least one"), ([0.0], None, "positive"), ([1], [(0, 1)] * 2, "2 ranges; give")],
)
def test_arguments_that_cannot_be(scales: Any, ranges: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImagePyramid(Share(), scales, fuse=HARD, ranges=ranges)
