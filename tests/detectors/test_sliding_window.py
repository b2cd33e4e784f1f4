"""Sliding windows: where they are, the two ways to judge them, what they learn, any classifier."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from detkit.backbones import create_backbone, create_classifier
from detkit.detectors import create_detector, from_classifier, sliding_window
from detkit.detectors.sliding_window import chain_of
from detkit.detectors.window_head import slide_head
from detkit.detectors.windows import WindowGrid, cut_windows, jitter_boxes, resize_for
from detkit.nn import classifier_head
from detkit.nn.dense import plan_offsets
from detkit.ops import box_iou
from detkit.structures import Batch, Detections

SIZES = ((70, 90), (55, 61))


def detector_of(num_classes=3, backbone=None, threshold=0.0, **settings):
    """A LeNet of windows with random weights that matter, in evaluation."""
    config = {
        "detector": "sliding_window",
        "backbone": {"name": "lenet5"} if backbone is None else backbone,
        "sliding_window": settings,
        "select": {"score_threshold": threshold},
    }
    return randomised(create_detector(config, num_classes=num_classes))


def randomised(net):
    """Random parameters and buffers under which numbers neither vanish nor grow."""
    generator = torch.Generator().manual_seed(0)
    for name, values in [*net.named_parameters(), *net.named_buffers()]:
        if name in ("mean", "std") or not values.is_floating_point():
            continue
        if values.ndim > 1:
            deviation = (2 / values[0].numel()) ** 0.5
            values.data.normal_(0, deviation, generator=generator)
        elif name.endswith(("running_var", "weight")):
            values.data.uniform_(0.5, 1.5, generator=generator)
        else:
            values.data.normal_(0, 0.1, generator=generator)
    return net.eval()


@pytest.fixture(scope="module")
def pixels(make_picture):
    """Two pictures of 70 x 90 pixels."""
    return torch.stack([255 * make_picture(70, 90, seed) for seed in (0, 1)])


@pytest.fixture
def batch(pixels, make_target):
    """The pictures, the second 55 x 61 inside its padding, and their truths."""
    boxes = torch.tensor([[8.0, 8, 40, 40], [30, 20, 90, 60]]), torch.tensor([[5.0, 5, 25, 45]])
    targets = tuple(make_target(b, torch.arange(len(b))) for b in boxes)
    return Batch(pixels.clone(), SIZES, SIZES, targets)


def judged_both_ways(detector, batch):
    """Logits and offsets of all windows of each image: cut out, and in one pass."""
    found = []
    for mode in ("crop", "dense"):
        detector.mode = mode
        (images,) = detector.features(batch)
        with torch.no_grad():
            judged = detector.judge(images, batch.sizes)
        found.append([torch.cat([each.logits, each.offsets.flatten(1)], dim=1) for each in judged])
    return found


def in_float64(batch):
    return replace(batch, images=batch.images.double())


# ------------------------------------------------------------------------- where windows are


def test_windows_by_hand():
    """32 x 32 in 40 x 50 pixels, 8 apart: two rows; three columns and a fourth over the border."""
    grid = WindowGrid(((32, 32),), stride=8, input_size=(32, 32))
    assert grid.counts((32, 32), (40, 50)) == (2, 4)
    assert grid.spans((2, 4)) == (40, 56)
    corners = [(x, y) for y in (0, 8) for x in (0, 8, 16, 24)]
    expected = [[x, y, x + 32, y + 32] for x, y in corners]
    assert grid.boxes((40, 50)).tolist() == expected


def test_windows_of_other_sizes_move_in_proportion():
    """Seen at half its height and a third of its width, a window moves 2 x 4 down, 3 x 4 right."""
    grid = WindowGrid(((20, 30),), stride=4, input_size=(10, 10))
    expected = [[0, 0, 30, 20], [12, 0, 42, 20], [0, 8, 30, 28], [12, 8, 42, 28]]
    assert grid.boxes((28, 42)).tolist() == expected


@pytest.mark.parametrize(
    ("image", "counts"),
    [
        ((32, 32), (1, 1)),
        ((33, 40), (2, 2)),  # a pixel more is a row more, which hangs over the border
        ((40, 41), (2, 3)),
        ((1, 31), (1, 1)),  # an image smaller than a window has one
    ],
)
def test_every_pixel_is_in_a_window(image, counts):
    grid = WindowGrid(((32, 32),), stride=8, input_size=(32, 32))
    assert grid.counts((32, 32), image) == counts
    last = grid.boxes(image)[-1].tolist()
    assert last[2] >= image[1]
    assert last[3] >= image[0]


def test_window_sizes_follow_each_other():
    grid = WindowGrid(((32, 32), (64, 32)), stride=16, input_size=(32, 32))
    sides = (grid.boxes((64, 48))[:, 2:] - grid.boxes((64, 48))[:, :2]).tolist()
    assert sides == [[32, 32]] * 6 + [[32, 64]] * 2


@pytest.mark.parametrize(
    "numbers", [((), 4, (8, 8)), (((8, 8),), 0, (8, 8)), (((0, 8),), 4, (8, 8))]
)
def test_impossible_grids_are_refused(numbers):
    with pytest.raises(ValueError, match="give one size at least, and numbers from 1"):
        WindowGrid(*numbers)


def test_a_cut_in_the_same_size_is_a_plain_cut(pixels):
    regions = torch.tensor([[0.0, 3, 5, 35, 37], [1, 58, 38, 90, 70]])
    cut = cut_windows(pixels, regions, (32, 32))
    assert torch.equal(cut[0], pixels[0, :, 5:37, 3:35])
    beyond = F.pad(pixels[1], (0, 0, 0, 20))[:, 38:70, 58:90]  # a window 12 x 32 inside: see below
    cut = cut_windows(pixels, torch.tensor([[1.0, 58, 38, 90, 70]]), (32, 32))
    assert torch.equal(cut[0], beyond)
    over = cut_windows(pixels, torch.tensor([[0.0, 80, 60, 112, 92]]), (32, 32))
    assert torch.equal(over[0, :, :10, :10], pixels[0, :, 60:, 80:])
    assert not over[0, :, 10:].any()
    assert not over[0, :, :, 10:].any()


def test_a_cut_at_half_the_size_is_the_mean_of_each_four_pixels(pixels):
    cut = cut_windows(pixels, torch.tensor([[0.0, 6, 2, 70, 66]]), (32, 32))
    expected = F.avg_pool2d(pixels[:1, :, 2:66, 6:70], 2)
    torch.testing.assert_close(cut, expected)


def test_a_cut_is_resized_as_torch_does_it(pixels):
    """A smooth picture: only at the border of the cut do the real neighbours differ."""
    cut = cut_windows(pixels, torch.tensor([[0.0, 10, 10, 30, 30]]), (40, 40))
    expected = F.interpolate(pixels[:1, :, 10:30, 10:30], (40, 40), mode="bilinear")
    torch.testing.assert_close(cut[..., 1:-1, 1:-1], expected[..., 1:-1, 1:-1])


@pytest.mark.parametrize("window", [(32, 32), (20, 32), (47, 33), (64, 80), (100, 16)])
def test_the_resized_image_holds_the_resized_windows(pixels, window):
    """A window of the image is the same pixels as of the resized image, enlarged or shrunk."""
    images = pixels.double()
    grid = WindowGrid((window,), stride=4, input_size=(32, 32))
    counts = grid.counts(window, (70, 90))
    resized = resize_for(images, window, (32, 32), grid.spans(counts))
    boxes = grid.boxes((70, 90), dtype=torch.float64)
    cut = cut_windows(images, F.pad(boxes, (1, 0)), (32, 32))
    plain = F.unfold(resized[:1], 32, stride=4)[0].T.view(-1, 3, 32, 32)
    torch.testing.assert_close(cut, plain, rtol=0, atol=1e-9)


def test_no_regions(pixels):
    assert cut_windows(pixels, torch.zeros(0, 5), (8, 8)).shape == (0, 3, 8, 8)


def test_jittered_boxes_are_near():
    boxes = torch.tensor([[10.0, 10, 50, 30], [0, 0, 20, 60]])
    near = jitter_boxes(boxes, copies=500, amount=0.1)
    assert near.shape == (1000, 4)
    iou = box_iou(boxes, near)
    own = torch.cat([iou[0, 0::2], iou[1, 1::2]])
    assert own.min() > 0.5
    assert own.max() > 0.9
    center = (near[0::2, :2] + near[0::2, 2:]) / 2 - torch.tensor([30.0, 20])
    assert center.abs().amax(dim=0).allclose(torch.tensor([4.0, 2]), rtol=0.05)
    assert jitter_boxes(boxes[:0], copies=3, amount=0.1).shape == (0, 4)


# ------------------------------------------------------------------------------ the two modes


@pytest.mark.parametrize(
    "settings",
    [
        {"stride": 4},  # the network's own
        {"stride": 8},
        {"stride": 2, "sizes": [[48, 60]]},  # the last pool at two offsets
        {"stride": 1, "sizes": [[50, 56]]},  # both pools
        {"stride": 4, "sizes": [[32, 32], [48, 40], [25, 60], [64, 33], [120, 16]]},
        {"stride": 2, "sizes": [[40, 60], [50, 40]], "input_size": [36, 44]},
        {"stride": 4, "input_size": [48, 40], "pooled": True, "hidden": 0},
        {"stride": 4, "hidden": 0, "class_agnostic": False, "input_size": [36, 32]},
        {"stride": 4, "box_regression": False},
    ],
    ids=str,
)
def test_both_modes_say_the_same(batch, settings):
    detector = detector_of(**settings).double()
    crop, dense = judged_both_ways(detector, in_float64(batch))
    for image, (cut, whole) in enumerate(zip(crop, dense, strict=True)):
        assert len(cut) == len(detector.grid.boxes(SIZES[image]))
        assert cut[:, :4].std(dim=0).min() > 0.1
        torch.testing.assert_close(cut, whole, rtol=1e-9, atol=1e-9)


def test_both_modes_say_the_same_in_float32(batch):
    crop, dense = judged_both_ways(detector_of(stride=2, sizes=[[32, 32], [48, 40]]), batch)
    for cut, whole in zip(crop, dense, strict=True):
        torch.testing.assert_close(cut, whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("side", "together"), [(32, 1024), (64, 1024), (256, 64), (4096, 1)])
def test_large_windows_are_fewer_at_a_time(side, together):
    """1024 crops of 224 pixels would be 600 MB, and the first maps of a VGG of them 13 GB."""
    detector = detector_of()
    detector.grid = WindowGrid(((side, side),), 8, (side, side))
    assert detector._at_once() == together


def test_portions_change_nothing(batch, monkeypatch):
    detector = randomised(detector_of(mode="crop")).double().eval()
    with torch.no_grad():
        (images,) = detector.features(in_float64(batch))
        whole = detector.judge(images, batch.sizes)
        monkeypatch.setattr(sliding_window, "PIXELS_AT_ONCE", 7 * 32 * 32)
        parts = detector.judge(images, batch.sizes)
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one.logits, other.logits)
        torch.testing.assert_close(one.offsets, other.offsets)


def test_both_modes_detect_the_same(batch):
    detector = detector_of(stride=4, sizes=[[32, 32], [48, 40]])
    crop = detector.predict(batch)
    detector.mode = "dense"
    for cut, whole in zip(crop, detector.predict(batch), strict=True):
        assert len(cut) == len(whole) > 20
        torch.testing.assert_close(cut.boxes, whole.boxes, rtol=0, atol=1e-3)
        torch.testing.assert_close(cut.scores, whole.scores, rtol=0, atol=1e-5)


def test_one_window_is_the_classifier_on_that_crop(pixels):
    detector = detector_of(stride=4).double()
    window = pixels[:1, :, :32, :32].double()
    batch = Batch(window, ((32, 32),), ((32, 32),))
    with torch.no_grad():
        maps = detector.backbone(detector.normalize(batch))[-1].flatten(1)  # [1, 120]
        hidden = F.relu(F.linear(maps, detector.head.fc.weight, detector.head.fc.bias))
        expected = F.linear(hidden, detector.head.cls_score.weight, detector.head.cls_score.bias)
    for found in judged_both_ways(detector, batch):
        torch.testing.assert_close(found[0][:, :4], expected)


@pytest.mark.parametrize(
    ("name", "out_index", "window"), [("resnet18", 1, 96), ("vgg11", 2, 64), ("googlenet", 1, 80)]
)
def test_padded_networks_agree_where_they_do_not_see_the_padding(name, out_index, window):
    """Of a window's map the cells whose receptive field lies inside the window."""
    net = randomised(create_backbone(name, out_indices=(out_index,))).double()
    (info,) = net.feature_info
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 3, 160, 192, generator=generator, dtype=torch.float64)
    y, x = 2 * info.stride, 5 * info.stride
    with torch.no_grad():
        whole = net(image)[0][0, :, 2:, 5:]
        cut = net(image[:, :, y : y + window, x : x + window])[0][0]
    whole = whole[:, : cut.shape[1], : cut.shape[2]]
    reach = (info.receptive_field - 1) / 2
    centers = info.center + info.stride * torch.arange(cut.shape[1])
    inside = (centers >= reach) & (centers <= window - 1 - reach)
    assert 0 < inside.sum() < len(inside)
    difference = (whole - cut).abs().amax(dim=0)
    assert difference[inside][:, inside].max() < 1e-9
    assert difference[~inside].max() > 1e-3


def test_mode_is_no_part_of_the_state(batch):
    crop = detector_of(stride=4)
    dense = detector_of(stride=4, mode="dense")
    assert crop.state_dict().keys() == dense.state_dict().keys()
    torch.nn.init.normal_(crop.head.cls_score.weight)
    dense.load_state_dict(crop.state_dict())
    for cut, whole in zip(crop.predict(batch), dense.predict(batch), strict=True):
        assert len(cut) == len(whole) > 10
        torch.testing.assert_close(cut.boxes, whole.boxes, rtol=0, atol=1e-3)


@pytest.mark.parametrize("mode", ["crop", "dense"])
def test_images_of_a_batch_do_not_see_each_other(batch, mode):
    detector = detector_of(stride=4, sizes=[[32, 32], [40, 60], [90, 100]], mode=mode).double()
    batch = in_float64(batch)
    together = detector.predict(batch)
    for i, (height, width) in enumerate(SIZES):
        image = batch.images[i : i + 1, :, :height, :width]
        (alone,) = detector.predict(Batch(image, SIZES[i : i + 1], SIZES[i : i + 1]))
        assert len(alone) == len(together[i]) > 20
        torch.testing.assert_close(alone.boxes, together[i].boxes, rtol=0, atol=1e-9)
        torch.testing.assert_close(alone.scores, together[i].scores, rtol=0, atol=1e-9)


@pytest.mark.parametrize("mode", ["crop", "dense"])
def test_image_smaller_than_a_window(pixels, mode):
    detector = detector_of(stride=4, mode=mode)
    batch = Batch(pixels[:1, :, :20, :25], ((20, 25),), ((20, 25),))
    (found,) = detector.predict(batch)
    assert len(found) == 3  # the only window, as each of the classes
    assert found.boxes[:, 2].max() <= 25
    assert found.boxes[:, 3].max() <= 20


@pytest.mark.parametrize("mode", ["crop", "dense"])
@pytest.mark.parametrize("attention", [None, "se", "cbam"])
@pytest.mark.parametrize("name", ["lenet5", "vgg11", "googlenet", "resnet18"])
def test_any_backbone_with_any_attention(batch, name, attention, mode):
    backbone = {"name": name, "attention": attention}
    if name == "resnet18":
        backbone["width"] = 8
    torch.manual_seed(0)
    config = {
        "detector": "sliding_window",
        "backbone": backbone,
        "sliding_window": {"stride": 32, "samples": 4, "mode": mode, "pooled": name != "lenet5"},
        "select": {"score_threshold": 0.0},
    }
    detector = create_detector(config, num_classes=2)
    batch = replace(batch, images=batch.images[:, :, :64, :64], sizes=((64, 64), (55, 61)))
    losses = detector(batch)
    sum(losses.values()).backward()
    assert losses.keys() == {"window/class", "window/box"}
    found = detector.eval().predict(batch.without_targets())
    assert all(isinstance(each, Detections) and len(each) > 0 for each in found)


# ------------------------------------------------------------------------------ finer strides


@pytest.mark.parametrize(
    ("strides", "stride", "offsets", "skip"),
    [
        ((1, 2, 1, 2), 4, (1, 1, 1, 1), 1),
        ((1, 2, 1, 2), 12, (1, 1, 1, 1), 3),
        ((1, 2, 1, 2), 2, (1, 1, 1, 2), 1),
        ((1, 2, 1, 2), 1, (1, 2, 1, 2), 1),
        ((4, 2, 2), 2, (2, 2, 2), 1),  # every second offset of the first
        ((2, 3, 2, 3), 12, (1, 1, 1, 3), 1),  # OverFeat, accurate: pool at 3 x 3 offsets
    ],
)
def test_offsets_of_the_last_modules_come_first(strides, stride, offsets, skip):
    plan = plan_offsets(strides, stride)
    assert (plan.offsets, plan.skip) == (offsets, skip)


@pytest.mark.parametrize(
    ("strides", "stride"), [((2, 2), 3), ((2, 3), 3), ((2, 3), 4), ((2, 2), 6)]
)
def test_other_strides_are_refused_with_those_there_are(strides, stride):
    with pytest.raises(ValueError, match=r"allow 1, 2, \d[^\n]*multiples of \d; give"):
        plan_offsets(strides, stride)


def test_offsets_are_the_network_of_stride_one():
    """Pools of stride 2 and 3 at all offsets are dilated ones of stride 1."""
    first, second = nn.MaxPool2d(2, stride=2), nn.AvgPool2d(3, stride=3)
    x = torch.rand(2, 4, 23, 29)
    plan = plan_offsets((2, 3), 1)
    found = plan.interleave(plan.run([first, second], x).permute(0, 2, 3, 1), 2)
    dense = F.max_pool2d(x, 2, stride=1)
    kernel = torch.full((4, 1, 3, 3), 1 / 9)
    dense = F.conv2d(dense, kernel, groups=4, dilation=2).permute(0, 2, 3, 1)
    torch.testing.assert_close(found[:, : dense.shape[1], : dense.shape[2]], dense)


def test_dense_mode_says_at_once_that_a_stride_is_impossible():
    detector_of(stride=3)  # one by one any will do
    with pytest.raises(ValueError, match="strides of its layers allow 1, 2, 4 and multiples of 4"):
        detector_of(stride=3, mode="dense")


def test_strides_along_a_network():
    net = create_backbone("resnet18", out_indices=(3,), attention="se", attention_at="after_stage")
    strides = [stride for _, stride in chain_of(net)]
    assert strides == [2, 1, 1, 2, 1, 1, 2, 1, 2, 1]


# ---------------------------------------------------------------------------------- learning


def total(losses):
    assert all(loss.ndim == 0 and torch.isfinite(loss) for loss in losses.values())
    return sum(losses.values())


def test_loss_by_hand(pixels, make_target):
    """One window in the image, which is the truth: cross entropy of its class, nothing to move."""
    detector = detector_of(stride=4, copies=0, samples=8, positive_fraction=0.5).double()
    truth = make_target(torch.tensor([[0.0, 0, 32, 32]]), torch.tensor([2]))
    images = pixels[:1, :, :32, :32].double()
    batch = Batch(images, ((32, 32),), ((32, 32),), (truth,))
    judged = detector.judge(detector.features(batch)[0], batch.sizes)[0]
    losses = detector(batch)
    expected = -judged.logits.log_softmax(dim=1)[0, 2]
    torch.testing.assert_close(losses["window/class"], expected)
    distance, beta = judged.offsets[0, 0].abs(), 1 / 9
    box = torch.where(distance < beta, distance**2 / (2 * beta), distance - beta / 2).sum()
    torch.testing.assert_close(losses["window/box"], box)
    empty = make_target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    losses = detector(replace(batch, targets=(empty,)))
    torch.testing.assert_close(losses["window/class"], -judged.logits.log_softmax(dim=1)[0, 3])
    assert losses["window/box"] == 0


def test_hard_negatives_are_those_of_highest_loss(batch):
    detector = detector_of(stride=4, copies=0, samples=10, hard_negatives=99, positive_fraction=0.0)
    (images,) = detector.features(batch)
    judged = detector.judge(images, batch.sizes)
    expected = []
    for each, target, size in zip(judged, batch.targets, SIZES, strict=True):
        free = box_iou(target.boxes, detector.grid.boxes(size)).amax(dim=0) < 0.4
        loss = -each.logits.log_softmax(dim=1)[:, -1]
        expected.append(loss[free].topk(10).values)
    found = detector(batch)["window/class"]
    torch.testing.assert_close(found, torch.cat(expected).mean(), rtol=1e-4, atol=1e-5)


def test_hard_negatives_leave_the_positives(batch):
    torch.manual_seed(0)
    detector = detector_of(stride=4, samples=16, positive_fraction=0.25, hard_negatives=5)
    seen = {}
    measure = detector._loss_of

    def note(judged, windows, drawn):
        seen["positive"] = torch.stack([each.positive for each in drawn])
        return measure(judged, windows, drawn)

    detector._loss_of = note
    detector(batch)
    assert seen["positive"].shape == (2, 16)
    assert seen["positive"].sum(dim=1).tolist() == [4, 4]


def test_hard_negatives_leave_statistics_and_modes_alone(batch):
    """Scores are taken in evaluation: batch norm sees only what is learnt from."""
    backbone = {"name": "lenet5", "norm": "batch"}
    detector = detector_of(backbone=backbone, stride=4, hard_negatives=3).train()
    norms = [each for each in detector.modules() if isinstance(each, nn.BatchNorm2d)]
    norms[0].eval()
    detector(batch)
    assert [each.num_batches_tracked.item() for each in norms] == [0, 1, 1]
    assert [each.training for each in norms] == [False, True, True]


@pytest.mark.parametrize("hard_negatives", [1, 3])
def test_without_truths(batch, make_target, hard_negatives):
    detector = detector_of(stride=8, hard_negatives=hard_negatives).train()
    none = make_target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    losses = detector(replace(batch, targets=(none, none)))
    total(losses).backward()
    assert losses["window/box"] == 0
    assert losses["window/class"] > 0
    assert all(p.grad.isfinite().all() for p in detector.parameters())


def test_truth_without_area_does_not_break_training(batch, make_target):
    detector = detector_of(stride=8).train()
    boxes = torch.tensor([[10.0, 10, 10, 40], [20, 20, 20, 20], [8, 8, 40, 40]])
    flat = make_target(boxes, torch.arange(3))
    total(detector(replace(batch, targets=(flat, flat)))).backward()
    assert all(p.grad.isfinite().all() for p in detector.parameters())


def test_crowds_teach_nothing(batch, make_target):
    detector = detector_of(stride=8).train()
    box = torch.tensor([[0.0, 0, 130, 110]])
    crowd = make_target(box, torch.tensor([1]), torch.tensor([True]))
    losses = detector(replace(batch, targets=(crowd, crowd)))
    assert losses["window/class"] == losses["window/box"] == 0


def test_no_images():
    detector = detector_of()
    nothing = Batch(torch.zeros(0, 3, 64, 64), (), ())
    assert detector.predict(nothing) == []
    assert total(detector(replace(nothing, targets=()))) == 0


def test_nothing_found(batch):
    for mode in ("crop", "dense"):
        for found in detector_of(threshold=1.0, stride=4, mode=mode).predict(batch):
            assert found.boxes.shape == (0, 4)


def test_each_size_is_a_level_of_its_own(batch):
    """Of the best candidate of each size alone nothing else is looked at."""
    detector = detector_of(stride=8, sizes=[[32, 32], [64, 48]], box_regression=False)
    detector.selection = replace(detector.selection, pre_nms=1, nms="none")
    for found in detector.predict(batch):
        assert len(found) == 2
        wide = found.boxes[:, 3] - found.boxes[:, 1] > 32
        assert wide.sum() == 1


def test_autocast_is_close(batch):
    detector = detector_of(stride=4, sizes=[[32, 32], [48, 40]], mode="dense")
    torch.manual_seed(0)
    expected = detector(batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.manual_seed(0)
        losses = detector(batch)
        found = detector.predict(batch)
    for key, loss in losses.items():
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, expected[key], rtol=0.1, atol=0.05)
    assert {each.boxes.dtype for each in found} == {torch.float32}


def test_learns_two_pictures_by_heart(make_target):
    """A bright square and a dark one: found where they are, with their class and their size."""
    generator = torch.Generator().manual_seed(0)
    images = 110 + 30 * torch.rand(2, 3, 64, 64, generator=generator)
    images[0, :, 10:40, 20:46] = 240
    images[1, :, 24:60, 6:40] = 15
    boxes = torch.tensor([[20.0, 10, 46, 40]]), torch.tensor([[6.0, 24, 40, 60]])
    targets = tuple(make_target(box, torch.tensor([i])) for i, box in enumerate(boxes))
    batch = Batch(images, ((64, 64),) * 2, ((64, 64),) * 2, targets)
    torch.manual_seed(0)
    config = {
        "detector": "sliding_window",
        "backbone": {"name": "lenet5"},
        "sliding_window": {"stride": 4, "mode": "dense", "samples": 32},
        "select": {"score_threshold": 0.5},
    }
    detector = create_detector(config, num_classes=2)
    optimizer = torch.optim.Adam(detector.parameters(), lr=2e-3)
    for _ in range(40):
        loss = total(detector(batch))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for label, (found, box) in enumerate(zip(detector.eval().predict(batch), boxes, strict=True)):
        assert found.labels[0] == label
        assert box_iou(found.boxes[:1], box) > 0.7


# -------------------------------------------------------------------------- from a classifier


def classifiers():
    """Names and (classifier, window, stride, image) of every kind of head."""

    def of(name, **settings):
        return create_classifier(name, num_classes=5, **settings)

    lenet = create_backbone("lenet5", out_indices=(-1,), in_channels=3)
    small = (100, 130)
    return {
        "lenet5": (of("lenet5", in_channels=3), (32, 32), 4, (60, 75)),
        "lenet5 of several places": (of("lenet5", in_channels=3), (40, 36), 2, (60, 50)),
        "lenet5_original": (of("lenet5_original", in_channels=3), (32, 32), 4, (44, 40)),
        "mlp": (nn.Sequential(lenet, classifier_head("mlp", 120, 5)), (36, 40), 4, (50, 60)),
        "logistic": (
            nn.Sequential(lenet, classifier_head("logistic", 120, 5)),
            (32, 32),
            8,
            (60, 75),
        ),
        "resnet18": (of("resnet18", width=8), (64, 64), 32, small),
        "googlenet": (of("googlenet", aux_logits=True), (64, 64), 32, small),
    }


@pytest.mark.parametrize("name", classifiers())
def test_crops_are_what_the_classifier_says(name):
    net, window, stride, (height, width) = classifiers()[name]
    net = randomised(net).double()
    detector = from_classifier(net, window=window, stride=stride).double()
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(1, 3, height, width, generator=generator, dtype=torch.float64)
    padded = F.pad(images, (0, 64, 0, 64))
    boxes = detector.grid.boxes((height, width)).long().tolist()
    with torch.no_grad():
        expected = torch.cat([net(padded[:, :, y:b, x:r]) for x, y, r, b in boxes])  # [N, 5]
        detector.mode = "crop"
        crop = detector.judge(images, [(height, width)])[0].logits
        detector.mode = "dense"
        dense = detector.judge(images, [(height, width)])[0].logits
    assert expected.std(dim=0).min() > 0.01
    torch.testing.assert_close(crop[:, :5], expected, rtol=1e-9, atol=1e-9)
    if name not in ("resnet18", "googlenet"):  # which pad their borders
        torch.testing.assert_close(dense[:, :5], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "cells", "settings"),
    [
        ("alexnet", (6, 6), {}),
        ("alexnet", (12, 6), {}),  # the mean of two
        ("alexnet", (1, 3), {}),  # each stands six times, or twice
        ("vgg11", (7, 7), {}),
        ("vgg11", (1, 1), {}),
        ("alexnet_original", (7, 6), {}),
        ("resnet18", (3, 2), {}),
        ("residual_attention56", (3, 2), {"width": 8}),
        ("googlenet", (2, 3), {}),
    ],
)
def test_heads_slide_over_maps(name, cells, settings):
    """What a head says of a map's windows at once is what it says of each alone."""
    with torch.device("meta"):
        net = create_classifier(name, num_classes=3, **settings)
        channels = net.body.feature_info[-1].channels
    head = narrowed(net.head) if name in ("alexnet", "vgg11", "alexnet_original") else net.head
    head = randomised(head.to_empty(device="cpu")).double()
    rows, columns = cells
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(2, channels, rows + 2, columns + 1, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        found = slide_head(head, cells)(x)  # [2, 3, 2, 3]
        assert found.shape == (2, 3, 2, 3)
        for i in range(3):
            for j in range(2):
                alone = head([x[:, :, i : i + rows, j : j + columns]])
                torch.testing.assert_close(found[:, i, j], alone, rtol=1e-9, atol=1e-9)


def narrowed(head):
    """With 8 hidden features in place of 4096."""
    linear = [layer for layer in head.classifier if isinstance(layer, nn.Linear)]
    for before, after in pairwise(linear):
        for layer, dim in ((before, 0), (after, 1)):
            layer.weight = nn.Parameter(layer.weight.narrow(dim, 0, 8))
        before.bias = nn.Parameter(before.bias[:8])
    return head


def test_classes_and_background(pixels):
    net = randomised(create_classifier("lenet5", num_classes=4, in_channels=3))
    batch = Batch(pixels[:1, :, :32, :32], ((32, 32),), ((32, 32),))
    plain = from_classifier(net, window=(32, 32), stride=4, score_threshold=0.0)
    scores = net(plain.normalize(batch)).softmax(dim=1)[0]
    (found,) = plain.predict(batch)
    torch.testing.assert_close(found.scores, scores[found.labels])
    assert sorted(found.labels.tolist()) == [0, 1, 2, 3]
    for background in range(4):
        detector = from_classifier(
            net, window=(32, 32), stride=4, background=background, score_threshold=0.0
        )
        kept = [index for index in range(4) if index != background]
        (found,) = detector.predict(batch)
        assert sorted(found.labels.tolist()) == [0, 1, 2]
        torch.testing.assert_close(found.scores, scores[kept][found.labels])


def test_a_classifier_of_grey_images_gets_the_brightness(pixels):
    net = randomised(create_classifier("lenet5", num_classes=4))
    detector = from_classifier(
        net, window=(32, 32), stride=4, score_threshold=0.0, mean=[0.5] * 3, std=[0.25] * 3
    )
    batch = Batch(pixels[:1, :, :32, :32], ((32, 32),), ((32, 32),))
    red, green, blue = (pixels[:1, :, :32, :32] / 255).unbind(1)
    grey = 0.299 * red + 0.587 * green + 0.114 * blue
    expected = net((grey[:, None] - 0.5) / 0.25).softmax(dim=1)[0]
    (found,) = detector.predict(batch)
    torch.testing.assert_close(found.scores, expected[found.labels], rtol=1e-4, atol=1e-5)


def test_layers_are_the_classifiers_own():
    net = create_classifier("lenet5", num_classes=4, in_channels=3)
    detector = from_classifier(net, window=(32, 32), stride=4)
    own = {id(parameter) for parameter in net.parameters()}
    assert {id(parameter) for parameter in detector.parameters()} == own


def test_a_classifier_with_background_learns_on(batch):
    net = create_classifier("lenet5", num_classes=4, in_channels=3)
    losses = from_classifier(net, window=(32, 32), stride=8, background=0)(batch)
    assert losses.keys() == {"window/class"}
    total(losses).backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"background": 4}, "background 4 not in 0..3"),
        ({"window": (24, 32)}, "needs images of at least 32x32"),
        ({"stride": 3}, "allow 1, 2, 4 and multiples of 4"),
        ({"stride": 0}, "numbers from 1"),
    ],
)
def test_mistakes_in_one_line(arguments, message):
    net = create_classifier("lenet5", num_classes=4)
    with pytest.raises(ValueError, match=message) as caught:
        from_classifier(net, **{"window": (32, 32), "stride": 4, **arguments})
    assert "\n" not in str(caught.value)


def test_what_cannot_slide_is_said_in_one_line(batch):
    with pytest.raises(ValueError, match="no backbone and head that can be told apart"):
        from_classifier(nn.Flatten(), window=(32, 32), stride=4)
    body = create_backbone("lenet5", out_indices=(-1,))
    with pytest.raises(ValueError, match="no way is known to slide the head Sequential"):
        net = nn.Sequential(body, nn.Sequential(Last(), nn.Flatten()))
        from_classifier(net, window=(32, 32), stride=4)
    with torch.device("meta"):
        vgg = create_classifier("vgg11", num_classes=2)
    with pytest.raises(ValueError, match="7x7 cells, which the 3x3 cells of a window"):
        slide_head(vgg.head, (3, 3))
    net = create_classifier("lenet5", num_classes=4, in_channels=3)
    with pytest.raises(ValueError, match="no class for the background"):
        from_classifier(net, window=(32, 32), stride=8)(batch)
    with pytest.raises(ValueError, match="a window has one map"):
        detector_of(backbone={"name": "resnet18", "out_indices": [1, 2]})


class Last(nn.Module):
    """The last map."""

    def forward(self, maps):
        """Of a list."""
        return maps[-1]
