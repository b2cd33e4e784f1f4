"""How RetinaNet and FCOS behave: empty inputs, crowds, batches, precisions, settings."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from detkit.detectors import create_detector
from detkit.structures import Batch

DETECTORS = ("retinanet", "fcos")
SMALL = {
    "backbone": {"name": "resnet18", "width": 16, "out_indices": [2, 3]},
    "fpn": {"channels": 16},
    "select": {"score_threshold": 0.0},
}


def detector_of(name, num_classes=3, **sections):
    """A small detector with the same weights each time and scores that differ, in evaluation."""
    torch.manual_seed(0)
    detector = create_detector({**SMALL, "detector": name, **sections}, num_classes=num_classes)
    for layer in (detector.head.cls_logits, detector.head.bbox_pred):
        torch.nn.init.normal_(layer.weight, std=0.2)
    if name == "fcos":
        torch.nn.init.constant_(detector.head.bbox_pred.bias, 2.0)
    return detector.eval()


@pytest.fixture(scope="module", params=DETECTORS)
def detector(request):
    return detector_of(request.param)


@pytest.fixture
def batch(make_picture, make_target):
    """Two pictures of 64 x 96 pixels; the second is 60 x 80 inside its padding."""
    pixels = torch.stack([255 * make_picture(64, 96, seed) for seed in (0, 1)])
    boxes = torch.tensor([[8.0, 8, 40, 40], [30, 20, 90, 60]]), torch.tensor([[5.0, 5, 25, 45]])
    targets = tuple(make_target(b, torch.arange(len(b))) for b in boxes)
    sizes = ((64, 96), (60, 80))
    return Batch(pixels, sizes, sizes, targets)


def alone(batch, index):
    """One picture of a batch, in the same padding."""
    one = slice(index, index + 1)
    return Batch(
        batch.images[one],
        batch.sizes[one],
        batch.original_sizes[one],
        None if batch.targets is None else batch.targets[one],
    )


def with_targets(batch, target):
    return replace(batch, targets=(target,) * len(batch))


def assert_finite(detector, losses):
    """Losses and gradients; every parameter has one."""
    assert all(loss.ndim == 0 and loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    for name, parameter in detector.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    detector.zero_grad()


def test_losses_have_the_names_of_the_detector(detector, batch):
    name = "fcos" if hasattr(detector.head, "centerness") else "retinanet"
    parts = ["class", "box", "centerness"][: 3 if name == "fcos" else 2]
    losses = detector(batch)
    assert list(losses) == [f"{name}/{part}" for part in parts]
    assert all(loss > 0 for loss in losses.values())
    assert_finite(detector, losses)


def test_pictures_without_truths(detector, batch, make_target):
    none = make_target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    losses = detector(with_targets(batch, none))
    classes, *others = losses.values()
    assert classes > 0 and all(loss == 0 for loss in others)
    assert_finite(detector, losses)


def test_no_pictures(detector, batch):
    empty = Batch(batch.images[:0], (), (), ())
    assert_finite(detector, detector(empty))
    assert all(loss == 0 for loss in detector(empty).values())
    assert detector(empty.without_targets()) == []


@pytest.mark.parametrize("name", DETECTORS)
def test_truth_that_no_cell_learns(name, batch, make_target):
    """RetinaNet's truths always have their best anchors; FCOS misses what lies between cells."""
    tiny = make_target(torch.tensor([[17.0, 17, 19, 19]]), torch.tensor([0]))
    detector = detector_of(name)
    losses = detector(with_targets(batch, tiny))
    assert (losses[f"{name}/box"] == 0) == (name == "fcos")
    assert_finite(detector, losses)


def test_nothing_is_learnt_in_a_crowd(detector, batch, make_target):
    everywhere = torch.tensor([[-1000.0, -1000, 2000, 2000]])
    crowd = make_target(everywhere, torch.tensor([0]), torch.tensor([True]))
    assert all(loss == 0 for loss in detector(with_targets(batch, crowd)).values())


def test_truth_in_a_crowd_is_learnt(detector, batch, make_target):
    boxes = torch.tensor([[-1000.0, -1000, 2000, 2000], [8, 8, 40, 40]])
    both = make_target(boxes, torch.tensor([0, 1]), torch.tensor([True, False]))
    one = make_target(boxes[1:], torch.tensor([1]))
    with_crowd, without = (list(detector(with_targets(batch, t)).values()) for t in (both, one))
    assert 0 < with_crowd[0] < without[0]  # nothing of the negatives
    assert with_crowd[1:] == without[1:]


def test_a_picture_is_judged_by_itself(detector, batch):
    together = detector(batch.without_targets())
    for index, found in enumerate(together):
        (expected,) = detector(alone(batch, index).without_targets())
        assert len(found) == len(expected) > 20
        torch.testing.assert_close(found.boxes, expected.boxes, atol=1e-3, rtol=1e-5)
        torch.testing.assert_close(found.scores, expected.scores)
        height, width = batch.sizes[index]
        assert (found.boxes >= 0).all()
        assert (found.boxes <= torch.tensor([width, height, width, height])).all()


@pytest.mark.parametrize("name", DETECTORS)
def test_losses_of_a_batch(name, batch):
    """RetinaNet takes the mean over pictures, FCOS over the cells that learn."""
    detector = detector_of(name)
    together = detector(batch)
    single = [detector(alone(batch, index)) for index in (0, 1)]
    if name == "retinanet":
        for key, loss in together.items():
            torch.testing.assert_close(loss, (single[0][key] + single[1][key]) / 2)
    else:
        boxes = [losses["fcos/box"] for losses in single]
        assert min(boxes) < together["fcos/box"] < max(boxes)


def test_original_sizes_scale_what_is_reported(detector, batch):
    doubled = replace(batch, original_sizes=tuple((2 * h, 2 * w) for h, w in batch.sizes))
    for found, expected in zip(
        detector(doubled.without_targets()), detector(batch.without_targets()), strict=True
    ):
        torch.testing.assert_close(found.boxes, 2 * expected.boxes)


def test_best_candidates_of_each_level_only(batch):
    """Four levels, the coarsest with 3 x 2 and 2 x 1 cells."""
    detector = detector_of(
        "retinanet", select={"score_threshold": 0.0, "pre_nms": 5, "nms": "none"}
    )
    assert [len(found) for found in detector(batch.without_targets())] == [20, 20]
    every = detector_of("retinanet", select={"score_threshold": 0.0, "nms": "none"})
    best = every(batch.without_targets())[0].scores[0]
    assert detector(batch.without_targets())[0].scores[0] == best


@pytest.mark.parametrize("name", DETECTORS)
def test_half_precision_is_for_layers_only(name, batch):
    detector = detector_of(name)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses, found = detector(batch), detector(batch.without_targets())
    assert all(loss.dtype == torch.float32 for loss in losses.values())
    assert all(each.boxes.dtype == torch.float32 for each in found)
    for key, loss in detector(batch).items():
        torch.testing.assert_close(losses[key], loss, rtol=0.05, atol=0)


@pytest.mark.parametrize("name", DETECTORS)
def test_untrained_detector_says_its_prior(name, batch):
    """0.01 for everything; 0.3 where set so."""
    for prior, settings in ((0.01, {}), (0.3, {name: {"prior": 0.3}})):
        torch.manual_seed(0)
        detector = create_detector({**SMALL, "detector": name, **settings}, num_classes=3).eval()
        output = detector.head(detector.features(batch))
        for logits in output.logits:
            assert logits.sigmoid().mean().item() == pytest.approx(prior, rel=0.1)


@pytest.mark.parametrize("fpn", [{"channels": 16, "extra": None}, {"channels": 16}, None])
@pytest.mark.parametrize("name", DETECTORS)
@pytest.mark.parametrize("out_indices", [[3], [4], [1, 2, 3, 4]])
def test_any_number_of_levels(name, fpn, out_indices, batch):
    backbone = {"name": "resnet18", "width": 16, "out_indices": out_indices}
    if fpn is None and len(out_indices) > 1:
        with pytest.raises(ValueError, match=r"without model\.fpn all maps need the same number"):
            detector_of(name, fpn=fpn, backbone=backbone)
        return
    detector = detector_of(name, fpn=fpn, backbone=backbone)
    extra = 2 if fpn and "extra" not in fpn else 0
    assert len(detector.head.levels) == len(out_indices) + extra
    assert_finite(detector, detector(batch))


@pytest.mark.parametrize("convs", [0, 2])
@pytest.mark.parametrize("name", DETECTORS)
def test_as_many_convolutions_as_are_set(name, convs, batch):
    detector = detector_of(name, **{name: {"convs": convs, "norm": None}})
    head = detector.head
    assert len(head.cls_tower) == len(head.box_tower) == convs
    assert all(len(block) == 2 for block in head.cls_tower)  # no norm
    assert_finite(detector, detector(batch))


@pytest.mark.parametrize(
    ("name", "section", "message"),
    [
        ("retinanet", {"anchor_sizes": [[32], [64]]}, "anchor_sizes has 2 entries for 4 feature"),
        ("fcos", {"size_limits": [64, 128]}, r"\(64.0, 128.0\) for 4 feature maps; give 3"),
        ("fcos", {"size_limits": [64, 32, 128]}, "give 3, ascending"),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit_the_levels(name, section, message):
    with pytest.raises(ValueError, match=message) as error:
        detector_of(name, **{name: section})
    assert "\n" not in str(error.value)
