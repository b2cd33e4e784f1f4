"""How a two-stage detector behaves: empty inputs, coordinates, batches, precisions, learning."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from detkit.detectors import create_detector
from detkit.structures import Batch, Detections

SMALL = {
    "backbone": {"name": "resnet18", "out_indices": [1, 2, 3]},
    "fpn": {"channels": 16},
    "rpn": {"anchor_sizes": [[16], [32], [64], [96]]},
    "roi": {"hidden": 32},
    "select": {"score_threshold": 0.0},
}
KEYS = {"rpn/objectness", "rpn/box", "roi/class", "roi/box"}


def detector_of(num_classes=3, **sections):
    """A small detector with the same weights each time and scores that differ, in evaluation."""
    torch.manual_seed(0)
    config = {name: {**SMALL.get(name, {}), **section} for name, section in sections.items()}
    detector = create_detector({**SMALL, **config}, num_classes=num_classes)
    for layer in (detector.rpn.head.cls_logits, detector.rpn.head.bbox_pred):
        torch.nn.init.normal_(layer.weight, std=0.2)
    torch.nn.init.normal_(detector.roi.head.cls_score.weight, std=2.0)
    return detector.eval()


@pytest.fixture(scope="module")
def detector():
    return detector_of()


@pytest.fixture(scope="module")
def pixels(make_picture):
    """Two pictures of 64 x 96 pixels."""
    return torch.stack([255 * make_picture(64, 96, seed) for seed in (0, 1)])


@pytest.fixture
def batch(pixels, make_target):
    """The pictures; the second is 60 x 80 inside its padding."""
    boxes = torch.tensor([[8.0, 8, 40, 40], [30, 20, 90, 60]]), torch.tensor([[5.0, 5, 25, 45]])
    targets = tuple(make_target(b, torch.arange(len(b))) for b in boxes)
    sizes = ((64, 96), (60, 80))
    return Batch(pixels.clone(), sizes, sizes, targets)


def without_truths(batch, make_target):
    none = make_target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    return replace(batch, targets=(none,) * len(batch))


def total(losses):
    assert losses.keys() == KEYS
    assert all(loss.ndim == 0 and torch.isfinite(loss) for loss in losses.values())
    return sum(losses.values())


def assert_finite_gradients(detector):
    """Every parameter has a gradient, all numbers are finite, and some are not zero."""
    gradients = {name: p.grad for name, p in detector.named_parameters() if p.requires_grad}
    for name, gradient in gradients.items():
        assert gradient is not None, name
        assert gradient.isfinite().all(), name
    assert any((gradient != 0).any() for gradient in gradients.values())


def assert_same(found, expected, **tolerance):
    for ours, other in zip(found, expected, strict=True):
        assert len(ours) == len(other) > 5
        torch.testing.assert_close(ours.boxes, other.boxes, **tolerance)
        torch.testing.assert_close(ours.scores, other.scores, **tolerance)
        assert torch.equal(ours.labels, other.labels)


# ----------------------------------------------------------------------------- the contract


@pytest.mark.parametrize("training", [False, True])
def test_targets_decide(batch, training):
    detector = detector_of().train(training)
    total(detector(batch))
    found = detector(batch.without_targets())
    assert all(isinstance(each, Detections) for each in found)
    assert detector.training == training


def test_detections_are_in_order(detector, batch):
    for found, (height, width) in zip(detector.predict(batch), batch.sizes, strict=True):
        assert 10 < len(found) <= 100
        assert (found.scores.diff() <= 0).all()
        assert found.labels.unique().tolist() == [0, 1, 2]
        assert found.boxes.min() >= 0
        assert found.boxes[:, 0::2].max() <= width
        assert found.boxes[:, 1::2].max() <= height


def test_coordinates_are_those_of_the_original_image(detector, batch):
    twice = replace(batch, original_sizes=tuple((2 * h, 3 * w) for h, w in batch.sizes))
    scaled, plain = detector.predict(twice), detector.predict(batch)
    for each, found in zip(scaled, plain, strict=True):
        torch.testing.assert_close(each.boxes, found.boxes * torch.tensor([3.0, 2, 3, 2]))
        assert torch.equal(each.scores, found.scores)


def test_pixels_are_normalised_and_left_alone(detector, batch):
    before = batch.images.clone()
    images = detector.normalize(batch)
    assert torch.equal(batch.images, before)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = (before[0] / 255 - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(images[0], expected)
    whole = replace(batch, images=before.round())
    as_bytes = replace(batch, images=before.round().to(torch.uint8))
    assert torch.equal(detector.normalize(as_bytes), detector.normalize(whole))


def test_padding_is_not_seen(detector, batch):
    images = batch.images.clone()
    images[1, :, 60:] = 255
    images[1, :, :, 80:] = 17
    assert_same(detector.predict(replace(batch, images=images)), detector.predict(batch))


def test_images_of_a_batch_do_not_see_each_other(detector, batch):
    together = detector.predict(batch)
    for i in range(2):
        part = slice(i, i + 1)
        alone = Batch(batch.images[part], batch.sizes[part], batch.original_sizes[part])
        assert_same(detector.predict(alone), together[part], rtol=0, atol=1e-4)


# -------------------------------------------------------------------------------- emptiness


def test_batch_without_truths(batch, make_target):
    detector = detector_of().train()
    losses = detector(without_truths(batch, make_target))
    total(losses).backward()
    assert losses["rpn/box"] == losses["roi/box"] == 0
    assert losses["rpn/objectness"] > 0
    assert losses["roi/class"] > 0
    assert_finite_gradients(detector)


def test_one_image_without_truths(batch, make_target):
    detector = detector_of().train()
    targets = (batch.targets[0], *without_truths(batch, make_target).targets[1:])
    losses = detector(replace(batch, targets=targets))
    total(losses).backward()
    assert losses["roi/box"] > 0
    assert_finite_gradients(detector)


def test_crowds_alone_teach_nothing(batch, make_target):
    """A crowd over the whole image leaves no background either."""
    detector = detector_of().train()
    crowd = make_target(torch.tensor([[0.0, 0, 96, 64]]), torch.tensor([1]), torch.tensor([True]))
    losses = detector(replace(batch, targets=(crowd, crowd)))
    total(losses).backward()
    assert losses["rpn/box"] == losses["roi/box"] == losses["roi/class"] == 0
    assert losses["rpn/objectness"] > 0  # of anchors that reach far out of the image
    assert_finite_gradients(detector)


def test_truth_without_area_does_not_break_training(batch, make_target):
    """Readers drop such boxes; whoever calls the detector directly may not."""
    detector = detector_of(rpn={"min_size": 0.0}).train()
    flat = make_target(
        torch.tensor([[10.0, 10, 10, 40], [20, 20, 20, 20], [8, 8, 40, 40]]), torch.arange(3)
    )
    losses = detector(replace(batch, targets=(flat, flat)))
    total(losses).backward()
    assert_finite_gradients(detector)


def test_proposal_without_area_does_not_break_training(batch):
    """Offsets so large that all proposals lie outside and are clipped to nothing."""
    detector = detector_of(rpn={"min_size": 0.0}).train()
    torch.nn.init.constant_(detector.rpn.head.bbox_pred.bias, 50.0)
    proposals = detector.rpn.propose(
        detector.rpn(detector.features(batch), (64, 96)), batch.sizes, detector.rpn.train_limits
    )
    assert all((p[:, 2:] == p[:, :2]).any() for p in proposals)
    total(detector(batch)).backward()
    assert_finite_gradients(detector)


def test_no_proposals(batch, make_target):
    detector = detector_of(rpn={"score_threshold": 1.0}).train()
    assert [len(found) for found in detector.predict(batch)] == [0, 0]
    losses = detector(batch)  # the truths alone are candidates
    assert losses["roi/class"] > 0
    losses = detector(without_truths(batch, make_target))
    total(losses).backward()
    assert losses["roi/class"] == losses["roi/box"] == 0
    assert_finite_gradients(detector)


def test_nothing_found(batch):
    for found in detector_of(select={"score_threshold": 1.0}).predict(batch):
        assert found.boxes.shape == (0, 4)
        assert found.scores.shape == found.labels.shape == (0,)
        assert found.labels.dtype == torch.int64


def test_no_images(detector):
    assert detector.predict(Batch(torch.zeros(0, 3, 64, 64), (), ())) == []


# ------------------------------------------------------------------------------- variations


@pytest.mark.parametrize(
    "sections",
    [
        {"roi": {"class_agnostic": True}},
        {"roi": {"box_loss": "giou", "box_loss_weight": 2.0}},
        {"roi": {"aligned": True, "sampling_ratio": 0, "resolution": 5}},
        {"fpn": {"extra": "p6p7"}, "rpn": {"anchor_sizes": [[8], [16], [32], [64], [96]]}},
        {"fpn": {"norm": "batch"}},
        {"backbone": {"norm": "group"}},
        {"backbone": {"width": 8, "frozen_stages": 2, "zero_init_residual": True}},
        {"rpn": {"anchor_sizes": [[8, 12], [16, 24], [32, 48], [64, 96]], "aspect_ratios": [1.0]}},
    ],
    ids=str,
)
def test_variation_trains_and_predicts(batch, sections):
    detector = detector_of(**sections).train()
    total(detector(batch)).backward()
    assert_finite_gradients(detector)
    assert all(len(found) > 5 for found in detector.eval().predict(batch))


def test_one_map_without_pyramid(batch):
    torch.manual_seed(0)
    config = {
        "backbone": {"name": "resnet18", "out_indices": [3]},
        "fpn": None,
        "rpn": {"anchor_sizes": [[16, 32, 64]]},
        "roi": {"hidden": 16},
        "select": {"score_threshold": 0.0},
    }
    detector = create_detector(config, num_classes=1)
    total(detector(batch)).backward()
    assert_finite_gradients(detector)
    assert all(len(found) > 5 for found in detector.eval().predict(batch))


def test_channels_last_gives_the_same(batch):
    detector = detector_of()
    expected = detector.predict(batch)
    features = detector.features(batch)
    detector.to(memory_format=torch.channels_last)
    images = batch.images.contiguous(memory_format=torch.channels_last)
    batch = replace(batch, images=images)
    assert detector.normalize(batch).is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(detector.features(batch), features, rtol=1e-4, atol=1e-4)
    assert_same(detector.predict(batch), expected, rtol=1e-3, atol=1e-3)


def test_autocast_is_close(detector, batch):
    """Bfloat16 has 8 bits: layers lose some, boxes and losses must not lose more."""
    torch.manual_seed(0)
    expected = detector.loss(batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.manual_seed(0)
        losses = detector(batch)
        found = detector.predict(batch)
        maps = detector.features(batch)
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    assert {map_.dtype for map_ in maps} == {torch.bfloat16}
    for key, loss in losses.items():
        torch.testing.assert_close(loss, expected[key], rtol=0.1, atol=0.02)
    for each in found:
        assert each.boxes.dtype == each.scores.dtype == torch.float32


def test_learns_one_batch_by_heart(batch):
    torch.manual_seed(0)
    detector = create_detector(SMALL, num_classes=3)
    optimizer = torch.optim.SGD(detector.parameters(), lr=0.02, momentum=0.9)
    losses = []
    for _ in range(20):
        loss = total(detector(batch))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-3:]) < 0.5 * sum(losses[:3])
