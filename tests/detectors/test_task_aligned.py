"""The task-aligned detector: distances, losses, and that it learns."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from detkit.detectors import Detector, create_detector
from detkit.detectors.base import MapGeometry
from detkit.detectors.task_aligned import (
    LossWeights,
    TaskAlignedHead,
    TaskAlignedOutput,
    decode_distances,
    encode_distances,
    first_point,
)
from detkit.detectors.towers import LevelTower
from detkit.evaluation import CocoEvaluator
from detkit.ops import giou_loss, task_aligned_match
from detkit.structures import Batch, Detections, Target

MODEL = {
    "detector": "task_aligned",
    "backbone": {"name": "resnet18", "width": 8, "out_indices": [2, 3]},
    "fpn": {"channels": 16},
}


def target(boxes: list[list[float]], labels: list[int], crowd: list[bool] | None = None) -> Target:
    crowd = crowd or [False] * len(boxes)
    return Target(
        torch.tensor(boxes, dtype=torch.float32).view(-1, 4),
        torch.tensor(labels, dtype=torch.int64),
        image_id=0,
        crowd=torch.tensor(crowd, dtype=torch.bool),
        area=torch.ones(len(boxes)),
    )


def batch_of(*targets: Target, size: tuple[int, int] = (64, 64), seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (len(targets), 3, *size), generator=generator).to(torch.uint8)
    return Batch(images, (size,) * len(targets), (size,) * len(targets), targets)


def tiny(**settings: object) -> Detector:
    torch.manual_seed(0)
    return create_detector({**MODEL, "task_aligned": settings}, num_classes=3)


SOME = target([[4, 4, 40, 30], [30, 30, 60, 62]], [0, 2])
NONE = target([], [])

# ----------------------------------------------------------------------------------- distances


def test_distances_of_a_cell():
    """A cell of stride 8 at (20, 12): its box is 1, 0.5, 2 and 3 strides away."""
    points, strides = torch.tensor([[20.0, 12.0]]), torch.tensor([8.0])
    box = torch.tensor([[12.0, 8.0, 36.0, 36.0]])
    assert encode_distances(box, points, strides).tolist() == [[1.0, 0.5, 2.0, 3.0]]
    logits = torch.full((1, 4, 4), -1e9)
    logits[0, 0, 1] = logits[0, 2, 2] = logits[0, 3, 3] = 0
    logits[0, 1, :2] = 0  # bins 0 and 1, half each
    torch.testing.assert_close(decode_distances(logits, points, strides), box)


def test_distances_there_and_back():
    generator = torch.Generator().manual_seed(0)
    points = 100 * torch.rand(50, 2, generator=generator)
    strides = torch.tensor([4.0, 32.0]).repeat(25)
    logits = torch.randn(2, 50, 4, 9, generator=generator)
    boxes = decode_distances(logits, points, strides)  # [2, 50, 4]
    means = (logits.softmax(dim=3) * torch.arange(9)).sum(dim=3)
    for image in range(2):
        torch.testing.assert_close(encode_distances(boxes[image], points, strides), means[image])
    assert (boxes[..., 2:] - boxes[..., :2] <= 16 * strides[:, None]).all()


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        (MapGeometry(8, 0.0), 4.0),  # all borders padded: cells share the image out
        (MapGeometry(8, 3.5), 4.0),  # VGG: the middle of pixels 3 and 4 is the same place
        (MapGeometry(4, 15.5), 16.0),  # LeNet-5 pads nothing
    ],
)
def test_where_the_first_cell_stands(level, expected):
    assert first_point(level) == expected


def head_of(levels: list[MapGeometry], classes: int = 3, bins: int = 5) -> TaskAlignedHead:
    torch.manual_seed(0)
    return TaskAlignedHead(
        partial(LevelTower, 6, 8, 1, levels=len(levels), norm="batch"),
        levels,
        num_classes=classes,
        bins=bins,
        match=task_aligned_match,
        box_loss=giou_loss,
        weights=LossWeights(1.0, 2.0, 1.0),
    )


def test_cells_are_in_the_order_of_the_output():
    """A class of one cell of each map comes out at the place of its point."""
    head = head_of([MapGeometry(8, 0.0), MapGeometry(16, 5.5)])
    maps = [torch.zeros(1, 6, 3, 4), torch.zeros(1, 6, 2, 2)]
    output = head.eval()(maps)
    assert output.counts == (12, 4)
    assert output.strides.tolist() == [8.0] * 12 + [16.0] * 4
    assert output.points[[0, 1, 4, 12, 13, 14]].tolist() == [
        [4, 4], [12, 4], [4, 12], [6, 6], [22, 6], [6, 22],
    ]  # fmt: skip
    for level, (y, x), cell in ((0, (1, 3), 7), (1, (1, 0), 14)):
        changed = [each.clone() for each in maps]
        changed[level][0, :, y, x] = 50.0
        moved = (head(changed).logits - output.logits).abs()[0].sum(dim=1)
        # the largest change of a 3x3 convolution need not be in its middle: its reach must be
        reach = {c for c in range(16) if moved[c] > 0}
        point = output.points[cell]
        same = output.strides == output.strides[cell]
        near = ((output.points - point).abs() <= output.strides[cell]).all(dim=1) & same
        assert reach == set(near.nonzero()[:, 0].tolist())


def test_first_boxes_are_anchors_of_eight_strides():
    head = head_of([MapGeometry(8, 0.0), MapGeometry(16, 0.0)], bins=17)
    with torch.no_grad():
        output = head.eval()([torch.randn(1, 6, 4, 4), torch.randn(1, 6, 2, 2)])
    levels = head.candidates(output, (32, 32))
    boxes, scores = (torch.cat(part, dim=1) for part in zip(*levels, strict=True))
    sides = (boxes[..., 2:] - boxes[..., :2]) / output.strides[:, None]
    assert ((sides > 7) & (sides < 9)).all()
    assert ((scores > 0.005) & (scores < 0.02)).all()


# -------------------------------------------------------------------------------------- losses


def perfect_output(truth: Target, classes: int = 3, bins: int = 9) -> TaskAlignedOutput:
    """What serves the truth best: 64 cells of stride 8, those inside predict their box."""
    along = (torch.arange(8) + 0.5) * 8
    y, x = torch.meshgrid(along, along, indexing="ij")
    points, strides = torch.stack([x, y], dim=2).view(-1, 2), torch.full((64,), 8.0)
    logits = torch.full((1, 64, classes), -20.0)
    distances = torch.zeros(1, 64, 4, bins)
    for box, label in zip(truth.boxes, truth.labels, strict=True):
        inside = ((points > box[:2]) & (points < box[2:])).all(dim=1).nonzero()[:, 0]
        logits[0, inside, label] = 20.0
        sides = encode_distances(box.expand(len(inside), 4), points[inside], strides[inside])
        # a distribution over the two bins around a distance, of which it is the mean
        share = 1 - (sides[..., None] - torch.arange(bins)).abs()
        distances[0, inside] = share.clamp(min=1e-9).log()
    return TaskAlignedOutput(points, strides, logits, distances, (64,))


def test_perfect_output_costs_nothing_but_the_spread_over_two_bins():
    # sides on points of the grid's spacing: every distance is a whole number and a half
    truth = target([[8, 8, 24, 32], [32, 40, 64, 64]], [0, 2])
    head = head_of([MapGeometry(8, 0.0)], bins=9)
    losses = head.loss(perfect_output(truth), (64, 64), batch_of(truth))
    assert set(losses) == {"task_aligned/class", "task_aligned/box", "task_aligned/distance"}
    assert losses["task_aligned/class"] < 1e-4
    assert losses["task_aligned/box"] < 1e-4
    torch.testing.assert_close(losses["task_aligned/distance"], torch.tensor(math.log(2)))
    # whole numbers cost nothing at all
    truth = target([[4, 4, 28, 36]], [1])
    losses = head.loss(perfect_output(truth), (64, 64), batch_of(truth))
    assert all(loss < 1e-4 for loss in losses.values())


@pytest.mark.parametrize(("images", "share"), [(1, 1.0), (3, 2.0)])
def test_losses_of_one_cell(images, share):
    """Score 1/2, IoU 1/2: the quality is 1/2 and the losses are those of the formulas.

    Their sums are over that of the qualities, but at least 1: 1 for one image, 3/2 for three.
    """
    truth = target([[0, 0, 16, 16]], [1])
    output = TaskAlignedOutput(
        points=torch.tensor([[8.0, 8.0], [40.0, 8.0]]),
        strides=torch.tensor([8.0, 8.0]),
        logits=torch.tensor([[-20.0, 0.0], [0.0, -20.0]]).expand(images, 2, 2),
        # left, top, right: surely 1 stride; bottom: 0
        distances=torch.tensor([[0.0, 1], [0, 1], [0, 1], [1, 0]]).mul(40).expand(images, 2, 4, 2),
        counts=(2,),
    )
    head = head_of([MapGeometry(8, 0.0)], classes=2, bins=2)
    losses = head.loss(output, (64, 64), batch_of(*[truth] * images))
    # classes: the first cell has its quality as its score and
    # costs nothing; the second is background with a score of 1/2: (1/2)^2 * log(2)
    torch.testing.assert_close(losses["task_aligned/class"], torch.tensor(share * math.log(2) / 4))
    # box: 2 * 1/2 * (1 - GIoU), IoU 128 / 256 in a hull of the same 256
    torch.testing.assert_close(losses["task_aligned/box"], torch.tensor(share * 0.5))
    # distances: 1/2 * a quarter of the 40 that the bottom costs
    torch.testing.assert_close(losses["task_aligned/distance"], torch.tensor(share * 5.0))


def test_weights_scale_the_losses():
    batch = batch_of(SOME)
    one = tiny(class_weight=1.0, box_weight=1.0, distance_weight=1.0).loss(batch)
    other = tiny(class_weight=3.0, box_weight=8.0, distance_weight=0.25).loss(batch)
    for name, factor in (
        ("task_aligned/class", 3.0),
        ("task_aligned/box", 8.0),
        ("task_aligned/distance", 0.25),
    ):
        torch.testing.assert_close(other[name], factor * one[name])


CROWD = target([[8, 8, 40, 40]], [1], [True])


@pytest.mark.parametrize("targets", [(NONE,), (NONE, NONE), (CROWD,)])
def test_nothing_to_find(targets):
    """Without any truth, or with a crowd alone, the boxes learn nothing and nothing is NaN."""
    detector = tiny()
    losses = detector.loss(batch_of(*targets))
    assert losses["task_aligned/class"] > 0
    assert losses["task_aligned/box"] == losses["task_aligned/distance"] == 0
    sum(losses.values()).backward()
    for parameter in detector.parameters():  # also those of the boxes: DDP waits for all of them
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()


def test_cells_in_a_crowd_cost_nothing():
    detector = tiny()
    everywhere = target([[0, 0, 64, 64]], [1], [True])
    assert detector.loss(batch_of(everywhere))["task_aligned/class"] == 0
    assert detector.loss(batch_of(NONE))["task_aligned/class"] > 0


def test_gradients_reach_every_parameter():
    detector = tiny(top_k=100)  # so many that the coarser map has some of them
    losses = detector.loss(batch_of(SOME, NONE))
    sum(losses.values()).backward()
    for name, parameter in detector.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_losses_in_half_precision_are_near():
    detector, batch = tiny(), batch_of(SOME, SOME)
    exact = detector.loss(batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = detector.loss(batch)
        found = detector.eval().predict(batch.without_targets())
    for name, loss in half.items():
        assert loss.dtype == torch.float32, name
        torch.testing.assert_close(loss, exact[name], rtol=0.05, atol=0.01)
    assert all(each.boxes.dtype == torch.float32 for each in found)


# ------------------------------------------------------------------------------------ detector


def open_to_all(model: dict) -> dict:
    """Everything that is found is reported."""
    return {**model, "select": {"score_threshold": 0.0, "max_detections": 40}}


def test_images_of_a_batch_do_not_see_each_other():
    torch.manual_seed(0)
    detector = create_detector(open_to_all(MODEL), num_classes=3).eval()
    with torch.no_grad():
        detector.head.class_logits.weight.normal_(0, 1)
    batch = batch_of(NONE, NONE, size=(64, 96)).without_targets()
    batch = replace(batch, sizes=((64, 96), (50, 70)), original_sizes=((128, 192), (50, 70)))
    together = detector.predict(batch)
    for index, found in enumerate(together):
        (alone,) = detector.predict(
            Batch(
                batch.images[index : index + 1],
                batch.sizes[index : index + 1],
                batch.original_sizes[index : index + 1],
            )
        )
        torch.testing.assert_close(found.boxes, alone.boxes, rtol=1e-3, atol=1e-2)
        torch.testing.assert_close(found.scores, alone.scores)
        assert found.labels.tolist() == alone.labels.tolist()
        assert len(found) > 10


def test_state_makes_the_same_detector_again():
    first, second = (create_detector(open_to_all(MODEL), num_classes=3) for _ in range(2))
    state = first.state_dict()
    assert {key.split(".")[0] for key in state} == {"backbone", "neck", "head"}
    second.load_state_dict(state)
    batch = batch_of(NONE).without_targets()
    (found,), (again,) = (each.eval().predict(batch) for each in (first, second))
    assert torch.equal(found.boxes, again.boxes)
    assert torch.equal(found.scores, again.scores)


@pytest.mark.parametrize(
    ("backbone", "fpn", "strides"),
    [
        ({"name": "resnet18", "width": 8}, {"channels": 8}, [8, 16, 32]),
        ({"name": "resnet18", "width": 8}, {"channels": 8, "extra": "p6p7"}, [8, 16, 32, 64, 128]),
        ({"name": "resnet18", "width": 8, "out_indices": [2]}, None, [8]),
        ({"name": "lenet5"}, None, [4]),
        ({"name": "vgg11", "out_indices": [3]}, None, [8]),
    ],
)
def test_any_backbone_with_or_without_a_pyramid(backbone, fpn, strides):
    model = {"detector": "task_aligned", "backbone": backbone, "fpn": fpn}
    norm = "group" if fpn is None else "batch"
    section = {"channels": 8, "norm": norm, "convs": 1}
    detector = create_detector({**model, "task_aligned": section}, num_classes=2)
    batch = batch_of(target([[4, 4, 40, 30]], [1]), NONE)
    output = detector.head(detector.features(batch))
    assert output.strides.unique().tolist() == strides
    assert output.points.min() > 0 and output.points.max() < 128
    losses = detector.loss(batch)
    assert losses["task_aligned/box"] > 0
    assert all(loss.isfinite() for loss in losses.values())


def test_a_head_of_other_levels():
    with pytest.raises(ValueError, match="built for 2 maps, got 1"):
        head_of([MapGeometry(8, 0.0), MapGeometry(16, 0.0)])([torch.zeros(1, 6, 4, 4)])


def scene(height: int, width: int, seed: int) -> tuple[Tensor, Target]:
    """A red, a green and a blue rectangle on noise."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(60, 120, (3, height, width), generator=generator)
    boxes = []
    for label in range(3):
        w, h = torch.randint(14, 34, (2,), generator=generator).tolist()
        x1 = label * width // 3 + int(torch.randint(0, 8, (1,), generator=generator))
        y1 = int(torch.randint(0, height - h, (1,), generator=generator))
        x2 = min(x1 + w, width)
        image[:, y1 : y1 + h, x1:x2] = 20
        image[label, y1 : y1 + h, x1:x2] = 230
        boxes.append([x1, y1, x2, y1 + h])
    return image.to(torch.uint8), target(boxes, [0, 1, 2])


def coco_ap(detections: list[Detections], targets: tuple[Target, ...]) -> float:
    """COCO's AP; the pictures are 0, 1, .."""
    corners = torch.cat([each.boxes for each in targets])
    evaluator = CocoEvaluator.from_arrays(
        image_ids=range(len(targets)),
        category_ids=range(3),
        gt_image_index=[i for i, each in enumerate(targets) for _ in range(len(each))],
        gt_category_index=torch.cat([each.labels for each in targets]),
        gt_boxes=torch.cat([corners[:, :2], corners[:, 2:] - corners[:, :2]], dim=1),
    )
    for image, found in enumerate(detections):
        evaluator.update(image, found.boxes, found.scores, found.labels)
    return float(evaluator.compute().stats[0])


@pytest.mark.parametrize("fpn", [{"channels": 16}, None])
def test_learns_two_pictures_by_heart(fpn):
    scenes = [scene(64, 96, seed) for seed in range(2)]
    images, targets = zip(*scenes, strict=True)
    batch = Batch(torch.stack(images), ((64, 96),) * 2, ((64, 96),) * 2, targets)
    indices = [1, 2] if fpn else [1]
    backbone = {"name": "resnet18", "width": 8, "out_indices": indices, "zero_init_residual": True}
    torch.manual_seed(0)
    section = {"channels": 16, "convs": 1}
    model = {**MODEL, "backbone": backbone, "fpn": fpn, "task_aligned": section}
    detector = create_detector(model, num_classes=3)
    optimizer = torch.optim.AdamW(detector.parameters(), lr=1e-2)
    for _ in range(70):
        losses = detector.loss(batch)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    with torch.no_grad():
        found = detector.eval().predict(batch.without_targets())
    assert coco_ap(found, targets) > 0.9
