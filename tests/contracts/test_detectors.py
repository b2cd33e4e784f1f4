"""What holds for every detector of the ladder, on every kind of backbone, with attention in it."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor

from detkit.detectors import Detector, create_detector
from detkit.structures import Batch, Target

SIZE = 96
NUM_CLASSES = 3
ROI = {"hidden": 16, "samples": 16, "resolution": 3}
FEW = {"pre_nms_train": 50, "post_nms_train": 20, "pre_nms_test": 50, "post_nms_test": 20}

# Each rung: what differs from the recipe of another
LADDER: dict[str, dict[str, Any]] = {
    "window_crop": {"detector": "sliding_window", "sliding_window": {"mode": "crop"}},
    "window_dense": {"detector": "sliding_window", "sliding_window": {"mode": "dense"}},
    "rcnn": {"proposals": "file", "fpn": None, "roi": {**ROI, "pool": "crop", "crop_size": 64}},
    "fast_rcnn": {"proposals": "file", "fpn": None, "roi": {**ROI, "pool": "pool"}},
    "faster_rcnn": {"fpn": None, "rpn": FEW, "roi": ROI},
    "faster_rcnn_fpn": {"fpn": {"channels": 8}, "rpn": FEW, "roi": ROI},
    "cascade_rcnn": {"fpn": {"channels": 8}, "rpn": FEW, "roi": {**ROI, "stages": 3}},
    "grid": {"proposals": "grid", "fpn": None, "roi": ROI},
    "retinanet": {"detector": "retinanet", "fpn": {"channels": 8}},
    "fcos": {"detector": "fcos", "fpn": {"channels": 32}},
    "task_aligned": {"detector": "task_aligned", "fpn": {"channels": 16}},
    "retinanet_pyramid": {
        "detector": "retinanet",
        "fpn": None,
        "image_pyramid": {"scales": [0.7, 1.0]},
    },
    "window_pyramid": {
        "detector": "sliding_window",
        "sliding_window": {"mode": "dense"},
        "image_pyramid": {"scales": [0.7, 1.0]},
    },
}
BACKBONES: dict[str, dict[str, Any]] = {
    "lenet5": {},
    "vgg11": {},
    "googlenet": {},
    "resnet18": {"width": 8},
}


def detector_of(rung: str, backbone: str, attention: str | None = None) -> Detector:
    """A small one; its random weights do not depend on what was built before."""
    settings = copy.deepcopy(LADDER[rung])
    settings["backbone"] = {"name": backbone, **BACKBONES[backbone], "attention": attention}
    settings["select"] = {"score_threshold": 0.0}
    torch.manual_seed(0)
    return create_detector(settings, num_classes=NUM_CLASSES)


def target(boxes: list[list[float]], labels: list[int], image_id: int) -> Target:
    found = torch.tensor(boxes).reshape(-1, 4)
    area = (found[:, 2:] - found[:, :2]).prod(dim=1)
    crowd = torch.zeros(len(boxes), dtype=torch.bool)
    return Target(found, torch.tensor(labels, dtype=torch.int64), image_id, crowd, area)


def batch_of(*, truths: bool = True) -> Batch:
    """Two pictures of different size, with regions to look at; one without any box."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (2, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator)
    boxes = [[8.0, 8, 44, 40], [30, 40, 70, 84]] if truths else []
    targets = (target(boxes, [0, 2] if truths else [], 0), target([], [], 1))
    regions = torch.tensor([[6.0, 6, 44, 44], [28, 42, 70, 84], [0, 0, 30, 90], [50, 5, 90, 40]])
    sizes = ((SIZE, SIZE - 6), (SIZE - 3, SIZE))
    originals = ((2 * SIZE, 2 * SIZE - 12), (SIZE - 3, SIZE))
    return Batch(images, sizes, originals, targets, proposals=(regions, regions[1:]))


def check_detections(detector: Detector, batch: Batch) -> list[Tensor]:
    """Well-formed, in the original picture, best first."""
    with torch.no_grad():
        found = detector.eval()(batch.without_targets())
    assert len(found) == len(batch)
    for each, (height, width) in zip(found, batch.original_sizes, strict=True):
        assert len(each) <= 300
        assert each.boxes.dtype == each.scores.dtype == torch.float32
        assert each.labels.dtype == torch.int64
        limit = torch.tensor([width, height, width, height]) + 1e-3
        assert (each.boxes >= 0).all() and (each.boxes <= limit).all()
        assert (each.boxes[:, 2:] >= each.boxes[:, :2]).all()
        assert ((each.scores > 0) & (each.scores <= 1)).all()
        assert (each.scores[1:] <= each.scores[:-1]).all()
        assert ((each.labels >= 0) & (each.labels < NUM_CLASSES)).all()
    return [torch.cat([f.boxes, f.scores[:, None], f.labels[:, None]], dim=1) for f in found]


@pytest.mark.parametrize("attention", [None, "se", "cbam"])
@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("rung", LADDER)
def test_trains_a_step_predicts_and_comes_back_from_its_state(rung, backbone, attention):
    detector = detector_of(rung, backbone, attention)
    batch = batch_of()
    optimizer = torch.optim.SGD(detector.parameters(), lr=1e-3)
    losses = detector.train()(batch)
    assert all(value.ndim == 0 and value.isfinite() for value in losses.values())
    total = torch.stack(list(losses.values())).sum()
    assert total > 0
    total.backward()
    weights = [p for p in detector.parameters() if p.requires_grad and p.grad is not None]
    assert all(p.grad.isfinite().all() for p in weights)
    moved = [p for p in weights if p.grad.abs().sum() > 0]
    assert len(moved) > 0.5 * len(list(detector.parameters()))
    optimizer.step()

    expected = check_detections(detector, batch)
    assert any(len(found) for found in expected)
    file = io.BytesIO()
    torch.save(detector.state_dict(), file)
    file.seek(0)
    torch.manual_seed(1)  # other weights than those that follow
    again = detector_of(rung, backbone, attention)
    again.load_state_dict(torch.load(file, weights_only=True))
    for found, wanted in zip(check_detections(again, batch), expected, strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("rung", LADDER)
def test_nothing_to_learn_and_nothing_to_look_at(rung):
    """No truth in the whole batch; no picture in the batch; no region in a picture."""
    detector = detector_of(rung, "resnet18").train()
    batch = batch_of(truths=False)
    losses = detector(batch)
    assert all(value.isfinite() for value in losses.values())
    torch.stack(list(losses.values())).sum().backward()
    empty = Batch(batch.images[:0], (), (), proposals=())
    assert detector.eval()(empty) == []
    nowhere = Batch(
        batch.images[:1],
        batch.sizes[:1],
        batch.original_sizes[:1],
        proposals=(torch.zeros(0, 4),),
    )
    with torch.no_grad():
        (found,) = detector(nowhere)
    if "proposals" in LADDER[rung] and LADDER[rung]["proposals"] == "file":
        assert len(found) == 0


@pytest.mark.parametrize("rung", LADDER)
def test_half_precision_gives_whole_boxes(rung):
    """Under autocast boxes, scores and losses stay float32."""
    detector = detector_of(rung, "resnet18").train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = detector(batch_of())
        assert all(value.dtype == torch.float32 for value in losses.values())
        torch.stack(list(losses.values())).sum().backward()
        check_detections(detector, batch_of())


@pytest.mark.parametrize("rung", LADDER)
def test_a_picture_is_judged_alike_in_any_company(rung):
    """The neighbours of a picture in the batch change nothing.

    Copies of a picture are padded to the largest in the batch, whose border a network that pads
    sees: hence LeNet there, which pads none.
    """
    detector = detector_of(rung, "lenet5" if rung == "window_pyramid" else "resnet18").double()
    batch = batch_of()
    with torch.no_grad():
        both = detector.eval()(batch.without_targets())
        for index, together in enumerate(both):
            part = slice(index, index + 1)
            assert batch.proposals is not None
            alone = Batch(
                batch.images[part],
                batch.sizes[part],
                batch.original_sizes[part],
                proposals=batch.proposals[part],
            )
            (found,) = detector(alone)
            torch.testing.assert_close(found.scores, together.scores, rtol=1e-6, atol=1e-9)
            torch.testing.assert_close(found.boxes, together.boxes, rtol=1e-6, atol=1e-4)
