"""How a two-stage detector behaves: empty inputs, coordinates, batches, precisions, learning."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from detkit.config import ModelConfig
from detkit.detectors import create_detector
from detkit.ops import box_iou, clip_boxes
from detkit.structures import Batch, Detections, Target

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


# ---------------------------------------------------------- the rungs: R-CNN to Cascade R-CNN

GIVEN = {
    "backbone": {"name": "resnet18", "width": 8, "out_indices": [2]},
    "fpn": None,
    "proposals": "file",
    "select": {"score_threshold": 0.0},
}
PYRAMID = {
    "backbone": {"name": "resnet18", "width": 8, "out_indices": [2, 3]},
    "fpn": {"channels": 16, "extra": None},
    "select": {"score_threshold": 0.0},
}
ANCHORS = {"rpn": {"anchor_sizes": [[16], [32]]}}
ALIGN = {"hidden": 32, "samples": 32, "resolution": 4, "canonical_size": 32, "aligned": True}
CASCADE = {**ALIGN, "stages": 3}
CROP = {"pool": "crop", "crop_size": 32, "context": 4, "hidden": 32, "samples": 32, "chunk": 7}
RUNGS = {
    "rcnn": {**GIVEN, "roi": CROP},
    "fast": {**GIVEN, "roi": {**ALIGN, "pool": "pool"}},
    "fast on a pyramid": {**PYRAMID, "proposals": "file", "roi": {**ALIGN, "pool": "pool"}},
    "grid": {**GIVEN, "proposals": "grid", "grid": {"sizes": [24, 48]}, "roi": ALIGN},
    "faster": {**GIVEN, "proposals": "rpn", "rpn": {"anchor_sizes": [[16, 32]]}, "roi": ALIGN},
    "faster on a pyramid": {**PYRAMID, **ANCHORS, "roi": ALIGN},
    "cascade": {**PYRAMID, **ANCHORS, "roi": CASCADE},
    "cascade on a pyramid": {**PYRAMID, "proposals": "file", "roi": CASCADE},
    "cascade of crops": {**GIVEN, "roi": {**CROP, "stages": 2}},
}
every_rung = pytest.mark.parametrize("rung", RUNGS)


def rung_of(rung, **roi):
    torch.manual_seed(0)
    config = {**RUNGS[rung], "roi": {**RUNGS[rung]["roi"], **roi}}
    detector = create_detector(config, num_classes=3)
    for stage in detector.roi_stages:
        torch.nn.init.normal_(stage.head.cls_score.weight, std=1.0)
    return detector


def around(boxes, count, seed):
    """The boxes, moved by up to a fifth of their sides, `count` times, and some elsewhere."""
    generator = torch.Generator().manual_seed(seed)
    sides = (boxes[:, 2:] - boxes[:, :2]).repeat(count, 2)
    moved = boxes.repeat(count, 1) + 0.4 * sides * (
        torch.rand(sides.shape, generator=generator) - 0.5
    )
    corners = torch.rand(20, 2, 2, generator=generator) * torch.tensor([80.0, 60])
    elsewhere = torch.cat([corners.amin(dim=1), corners.amax(dim=1) + 4], dim=1)
    return torch.cat([moved, elsewhere])


@pytest.fixture
def given(batch):
    """The batch with regions: near the truths and elsewhere."""
    pairs = zip(batch.targets, batch.sizes, strict=True)
    regions = [clip_boxes(around(t.boxes, 5, i), size) for i, (t, size) in enumerate(pairs)]
    return replace(batch, proposals=tuple(regions))


def losses_of(detector, batch):
    losses = detector.loss(batch)
    assert all(loss.ndim == 0 and loss.isfinite() for loss in losses.values())
    return sum(losses.values())


@every_rung
def test_rung_trains_and_predicts(rung, given):
    detector = rung_of(rung).train()
    losses_of(detector, given).backward()
    assert_finite_gradients(detector)
    learnt = {name for name, p in detector.named_parameters() if p.requires_grad and p.grad.any()}
    assert {name.split(".")[0] for name in learnt} == {
        name.split(".")[0] for name, _ in detector.named_parameters()
    }
    found = detector.eval().predict(given.without_targets())
    for each, (height, width) in zip(found, given.sizes, strict=True):
        assert len(each) > 5
        assert each.boxes.min() >= 0
        assert each.boxes[:, 2].max() <= width and each.boxes[:, 3].max() <= height


@every_rung
def test_rung_sees_each_image_as_if_it_were_alone(rung, given):
    detector = rung_of(rung).eval()
    together = detector.predict(given)
    for i in range(2):
        height, width = given.sizes[i]
        divisor = 32
        tight = [-(-side // divisor) * divisor for side in (height, width)]
        images = given.images[i : i + 1, :, : tight[0], : tight[1]]
        part = given.sizes[i : i + 1]
        alone = Batch(images, part, part, proposals=given.proposals[i : i + 1])
        assert_same(detector.predict(alone), together[i : i + 1], rtol=0, atol=1e-3)


@every_rung
def test_rung_without_regions(rung, given, make_target):
    """None in one image, none in any; with truths, which are regions too, and without."""
    detector = rung_of(rung).train()
    if isinstance(RUNGS[rung].get("rpn"), dict) or "faster" in rung or rung == "cascade":
        detector.rpn.train_limits = replace(detector.rpn.train_limits, score_threshold=1.0)
        detector.rpn.test_limits = replace(detector.rpn.test_limits, score_threshold=1.0)
    none = torch.zeros(0, 4)
    for regions in ((given.proposals[0], none), (none, none)):
        for truths in (given, without_truths(given, make_target)):
            detector.zero_grad()
            losses_of(detector, replace(truths, proposals=regions)).backward()
            assert_finite_gradients_or_nothing(detector)
    if rung != "grid":
        found = detector.eval().predict(replace(given, proposals=(none, none)))
        assert [len(each) for each in found] == [0, 0]


def assert_finite_gradients_or_nothing(detector):
    """As `assert_finite_gradients`, but all may be zero."""
    for name, parameter in detector.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@every_rung
def test_rung_comes_back_from_its_state(rung, given):
    detector, other = rung_of(rung).eval(), create_detector(RUNGS[rung], num_classes=3).eval()
    other.load_state_dict(detector.state_dict())
    assert_same(other.predict(given), detector.predict(given), rtol=0, atol=0)


@every_rung
def test_rung_under_autocast_is_close(rung, given):
    detector = rung_of(rung).eval()
    torch.manual_seed(0)
    expected = detector.loss(given)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.manual_seed(0)
        losses = detector(given)
        found = detector.predict(given)
    for key, loss in losses.items():
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, expected[key], rtol=0.2, atol=0.1)
    assert {each.boxes.dtype for each in found} == {torch.float32}


@pytest.mark.parametrize("rung", ["rcnn", "fast", "faster on a pyramid", "cascade on a pyramid"])
def test_rung_learns_two_pictures_by_heart(rung, make_target):
    """Three coloured boxes on grey: the best detections are these, where they are."""
    images = torch.full((2, 3, 64, 96), 128.0)
    truths = (
        torch.tensor([[8.0, 8, 40, 36], [50, 20, 90, 60]]),
        torch.tensor([[20.0, 10, 60, 50]]),
    )
    labels = (torch.tensor([0, 1]), torch.tensor([2]))
    for image, boxes, kinds in zip(images, truths, labels, strict=True):
        for (x1, y1, x2, y2), label in zip(boxes.int().tolist(), kinds, strict=True):
            image[label, y1:y2, x1:x2] = 255
    targets = tuple(make_target(*each) for each in zip(truths, labels, strict=True))
    regions = tuple(clip_boxes(around(b, 8, i), (64, 96)) for i, b in enumerate(truths))
    batch = Batch(images, ((64, 96),) * 2, ((64, 96),) * 2, targets, proposals=regions)
    torch.manual_seed(0)
    backbone = {**RUNGS[rung]["backbone"], "norm": "group"}
    detector = create_detector({**RUNGS[rung], "backbone": backbone}, num_classes=3).train()
    optimizer = torch.optim.Adam(detector.parameters(), lr=2e-3)
    losses = []
    for _ in range(60):
        loss = losses_of(detector, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    for found, boxes, kinds in zip(detector.eval().predict(batch), truths, labels, strict=True):
        best = found[: len(boxes)]
        iou, index = box_iou(boxes, best.boxes).max(dim=1)
        assert iou.min() > 0.7
        assert torch.equal(best.labels[index], kinds)
        assert best.scores.min() > 0.5


@pytest.mark.parametrize("rung", ["rcnn", "cascade"])
def test_rung_starts_from_other_classes(rung, tmp_path, given):
    """What names classes starts anew, in every stage; boxes that all classes share are kept."""
    path = tmp_path / "two.pt"
    torch.save(create_detector(RUNGS[rung], num_classes=2).state_dict(), path)
    roi = {**RUNGS[rung]["roi"], "class_weights": [1.0, 1.0, 1.0, 0.5]}
    config = {**RUNGS[rung], "weights": str(path), "roi": roi}
    detector = create_detector(config, num_classes=3).train()
    losses_of(detector, given).backward()
    old, new = torch.load(path), detector.state_dict()
    kept = {key for key, value in new.items() if torch.equal(old[key], value)}
    assert "backbone.conv1.weight" in kept
    for stage in [key.removesuffix("fc6.weight") for key in new if key.endswith("fc6.weight")]:
        assert f"{stage}fc6.weight" in kept
        assert f"{stage}cls_score.weight" not in kept
        assert (f"{stage}bbox_pred.weight" in kept) == (rung == "cascade")


def test_copy_of_rcnn_looks_with_its_own_backbone(given):
    """Its crops go through a backbone that is not a part of the second stage."""
    detector = rung_of("rcnn").eval()
    before = detector.predict(given)
    twin = copy.deepcopy(detector)
    assert not any(key.startswith("roi.pool") for key in detector.state_dict())
    for parameter in detector.backbone.parameters():
        torch.nn.init.zeros_(parameter)
    assert_same(twin.predict(given), before, rtol=0, atol=0)
    assert not torch.equal(detector.predict(given)[0].scores, before[0].scores)


def test_features_of_rcnn_are_the_pixels(given):
    detector = rung_of("rcnn").eval()
    (images,) = detector.features(given)
    assert torch.equal(images, detector.normalize(given))


def test_given_regions_are_asked_for(given):
    with pytest.raises(ValueError, match=r"model\.proposals=file .* give Batch\.proposals"):
        rung_of("fast").predict(replace(given, proposals=None))


@pytest.mark.parametrize(
    "roi",
    [
        {"sampler": "random"},
        {"sampler": "ohem", "samples": 8},
        {"class_loss": "focal", "focal_gamma": 1.5},
        {"label_smoothing": 0.1, "class_weights": [1.0, 2.0, 1.0, 0.5]},
        *({"box_loss": kind} for kind in ("l1", "l2", "iou", "diou", "ciou")),
    ],
    ids=str,
)
@pytest.mark.parametrize("rung", ["fast", "cascade"])
def test_variation_of_the_second_stage(rung, roi, given):
    detector = rung_of(rung, **roi).train()
    losses_of(detector, given).backward()
    assert_finite_gradients(detector)


def test_hardest_regions_leave_batch_norm_alone():
    """They are chosen by reading only: what the norms of the head noted is of one pass."""
    roi = {"sampler": "ohem", "samples": 8, "convs": 1, "conv_channels": 8}
    detector = rung_of("fast", **roi).train()
    head = detector.roi.head
    boxes = [torch.tensor([[3.0, 4, 30, 40], [30, 20, 70, 60], [9, 9, 60, 60]])]
    truth = torch.tensor([[3.0, 4, 28, 40]])
    maps = [torch.randn(1, 16, 8, 12)]
    size = ((64, 96),)
    target = Target(
        truth, torch.tensor([1]), 0, torch.tensor([False]), (truth[:, 2:] - truth[:, :2]).prod(1)
    )
    batch = Batch(torch.zeros(1, 3, 64, 96), size, size, (target,))
    norm = next(m for m in head.modules() if isinstance(m, torch.nn.BatchNorm2d))
    detector.roi.loss(maps, boxes, batch)
    assert norm.num_batches_tracked == 1
    assert head.training


def test_random_anchors_are_as_many():
    detector = create_detector({**RUNGS["faster"], "rpn": {"sampler": "random"}}, num_classes=1)
    assert detector.rpn.assigner.sampler == "random"
    assert create_detector(RUNGS["faster"], num_classes=1).rpn.assigner.sampler == "balanced"


# ------------------------------------------------------------------------- settings that cannot be


def model_of(rung, **sections):
    """A rung with other settings in its sections."""
    config = dict(RUNGS[rung])
    for name, section in sections.items():
        both = {**(config.get(name) or {}), **section} if isinstance(section, dict) else section
        config[name] = both
    return config


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            model_of("rcnn", proposals="rpn"),
            "roi.pool=crop makes no maps of the image, which proposals=rpn looks at; set "
            "model.proposals to selective_search, grid or file",
        ),
        (
            model_of("rcnn", fpn={"channels": 8}),
            "region_proposal with roi.pool=crop has no section 'fpn'; leave it out",
        ),
        (
            model_of("fast", rpn={"samples": 8}),
            "region_proposal with proposals=file has no section 'rpn'; leave it out",
        ),
        (
            model_of("fast", grid={"stride": 8}),
            "region_proposal with proposals=file has no section 'grid'; leave it out",
        ),
        (model_of("grid", grid={"sizes": []}), "a grid needs at least one of sizes"),
        (
            model_of("rcnn", roi={"crop_size": 32, "context": 16}),
            "context 16 on both sides leaves nothing of crop_size 32 for the region; give less "
            "than 16",
        ),
        (
            model_of("rcnn", backbone={"name": "alexnet", "width": None, "out_indices": None}),
            r"model.roi.crop_size 32 is too small for alexnet; give at least \d+",
        ),
        (
            model_of("rcnn", roi={"sampler": "ohem"}),
            "sampler=ohem judges all candidates in every step, .* set sampler to balanced",
        ),
        (
            model_of("fast", roi={"resolution": None}),
            "resolution null is for pool=crop; give pool=pool a side",
        ),
        (
            model_of("cascade", roi={"class_agnostic": False}),
            "stages=3 hand on one box a region, not one for each class; leave class_agnostic out",
        ),
        (
            model_of("cascade", roi={"stage_ious": [0.5, 0.6]}),
            "stage_ious has 2 entries for stages=3; give one a stage",
        ),
        (
            model_of("fast", roi={"stage_loss_weights": [1, 0.5]}),
            "stage_loss_weights has 2 entries for stages=1",
        ),
        (
            model_of("fast", roi={"class_weights": [1, 1, 1]}),
            "model.roi.class_weights has 3 entries for 3 classes and the background; give 4",
        ),
        (
            model_of("faster", rpn={"anchor_boxes": [[[9, 9]]]}),
            "anchor_boxes and anchor_sizes exclude each other; set one to null",
        ),
        (
            model_of("faster", rpn={"anchor_sizes": None, "anchor_boxes": [[[9, 9]], [[20, 9]]]}),
            "model.rpn.anchor_boxes has 2 entries for 1 feature maps; give one list of boxes a map",
        ),
        (
            model_of(
                "faster on a pyramid", rpn={"anchor_sizes": None, "anchor_boxes": [[[9, 9]], []]}
            ),
            "every level needs the same number of anchor sizes",
        ),
        (model_of("fast", roi={"pool": "max"}), "model.roi.pool: got 'max'; allowed: align, pool"),
        (model_of("fast", roi={"sampler": "hard"}), "roi.sampler: got 'hard'; allowed: balanced"),
        (model_of("fast", roi={"box_loss": "l3"}), "model.roi.box_loss: got 'l3'; allowed: smooth"),
        (model_of("fast", proposals="edges"), "model.proposals: got 'edges'; allowed: rpn, select"),
    ],
)
def test_settings_that_do_not_fit_together(model, message):
    with pytest.raises(ValueError, match=message) as error:
        create_detector(model, num_classes=3)
    assert "\n" not in str(error.value)


def test_one_stage_detectors_have_no_second_stage():
    with pytest.raises(ValueError, match="fcos has no section 'grid'; leave it out"):
        create_detector({"detector": "fcos", "grid": {}}, num_classes=3)


def test_crops_have_their_own_defaults():
    config = ModelConfig.model_validate({"proposals": "file", "roi": {"pool": "crop"}})
    assert (config.fpn, config.roi.resolution, config.roi.sampling_ratio) == (None, None, 0)
    again = ModelConfig.model_validate(config.model_dump())
    assert again == config
    own = ModelConfig.model_validate(
        {"proposals": "file", "roi": {"pool": "crop", "resolution": 1, "sampling_ratio": 2}}
    )
    assert (own.roi.resolution, own.roi.sampling_ratio) == (1, 2)


def test_anchors_of_given_shapes():
    boxes = [[[10.0, 20.0], [30.0, 6.0]], [[40.0, 40.0], [20.0, 60.0]]]
    rpn = {"anchor_sizes": None, "anchor_boxes": boxes}
    detector = create_detector(model_of("faster on a pyramid", rpn=rpn), num_classes=3)
    grid = detector.rpn.anchors
    assert grid.num_anchors == detector.rpn.head.cls_logits.out_channels == 2
    assert grid.get_buffer("cell0").tolist() == [[-10, -5, 10, 5], [-3, -15, 3, 15]]
    assert grid.get_buffer("cell1").tolist() == [[-20, -20, 20, 20], [-30, -10, 30, 10]]
