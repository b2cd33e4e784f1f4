"""Losses: numbers to check by hand, torchvision's, slopes, and nothing where there is nothing."""

from __future__ import annotations

import math

import pytest
import torch
import torchvision.ops
from torch.nn import functional as F

from detkit.ops import (
    BOX_LOSSES,
    OFFSET_LOSSES,
    binary_cross_entropy,
    ciou_loss,
    cross_entropy,
    diou_loss,
    distribution_expectation,
    distribution_focal_loss,
    focal_loss,
    giou_loss,
    iou_loss,
    kl_loss,
    l1_loss,
    l2_loss,
    quality_focal_loss,
    smooth_l1_loss,
    varifocal_loss,
)

LOG2 = math.log(2)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


# ----------------------------------------------------------------------------- paired boxes


@pytest.mark.parametrize(
    ("box", "iou", "giou", "diou"),
    [
        ([0, 0, 10, 10], 0, 0, 0),
        # IoU 1/2, no empty space around, centres 2.5 apart in a hull with a diagonal of 200^0.5
        ([0, 0, 10, 5], 0.5, 0.5, 0.5 + 6.25 / 200),
        ([10, 0, 20, 10], 1, 1, 1 + 100 / 500),  # side by side: IoU 0, hull full
        ([20, 0, 30, 10], 1, 1 + 1 / 3, 1 + 400 / 1000),  # a third of the hull is empty
        ([5, 5, 15, 15], 1 - 25 / 175, 1 - (25 / 175 - 50 / 225), 1 - 25 / 175 + 50 / 450),
    ],
)
def test_boxes_by_hand(box, iou, giou, diou):
    box, truth = torch.tensor([box]).float(), torch.tensor([[0.0, 0, 10, 10]])
    assert iou_loss(box, truth).tolist() == pytest.approx([iou])
    assert giou_loss(box, truth).tolist() == pytest.approx([giou])
    assert diou_loss(box, truth).tolist() == pytest.approx([diou])


def test_ciou_by_hand():
    """Same centre, IoU 1/2; angles of 45 degrees and of atan(2)."""
    loss = ciou_loss(torch.tensor([[0.0, 2.5, 10, 7.5]]), torch.tensor([[0.0, 0, 10, 10]]))
    v = 4 / math.pi**2 * (math.atan(2) - math.pi / 4) ** 2
    assert loss.tolist() == pytest.approx([0.5 + v * v / (0.5 + v)])


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (giou_loss, torchvision.ops.generalized_box_iou_loss),
        (diou_loss, torchvision.ops.distance_box_iou_loss),
        (ciou_loss, torchvision.ops.complete_box_iou_loss),
    ],
)
def test_boxes_equal_torchvisions_with_their_slopes(ours, theirs):
    corner, size = torch.rand(2, 200, 2, generator=torch.manual_seed(0))
    boxes = torch.cat([corner, corner + size + 0.01], dim=1)
    truths = 0.4 * boxes + 0.6 * boxes.flip(0)
    values, slopes = [], []
    for loss in (ours, theirs):
        leaf = boxes.clone().requires_grad_()
        values.append(loss(leaf, truths))
        slopes.append(torch.autograd.grad(values[-1].sum(), leaf)[0])
    assert torch.equal(*values)
    torch.testing.assert_close(*slopes, rtol=1e-5, atol=1e-5)


POINT = [3.0, 3, 3, 3]


@pytest.mark.parametrize("name", BOX_LOSSES)
def test_no_box_breaks_the_slope(name):
    pairs = [
        ([0, 0, 5, 5], [0, 0, 5, 5]),  # the same
        ([0, 0, 1, 1], [5, 5, 6, 6]),  # apart
        ([0, 0, 5, 5], [5, 0, 9, 5]),  # side by side
        (POINT, POINT),
        (POINT, [0, 0, 10, 10]),
        ([0, 0, 10, 10], POINT),
        ([0, 3, 9, 3], [0, 0, 10, 10]),  # without height
        ([5, 5, 2, 2], [0, 0, 10, 10]),  # inside out
    ]
    boxes, truths = (torch.tensor(part).float() for part in zip(*pairs, strict=True))
    loss = BOX_LOSSES[name](boxes.requires_grad_(), truths)
    loss.sum().backward()
    assert loss.isfinite().all()
    assert boxes.grad.isfinite().all() and boxes.grad.abs().max() < 100
    assert loss[0] == 0 and boxes.grad[0].abs().max() < 0.5
    if name != "iou":
        assert boxes.grad[1, :2].min() > -1 and boxes.grad[1, 2:].max() < 0  # drawn to its truth


# ----------------------------------------------------------------------------------- numbers


def test_offsets_by_hand():
    predicted = torch.tensor([[0.0, 1.0, -3.0, 0.5]])
    targets = torch.tensor([[0.0, 0.0, 0.0, 0.0]])
    assert l1_loss(predicted, targets).tolist() == [4.5]
    assert l2_loss(predicted, targets).tolist() == [10.25]
    # 1/2 at the joint of parabola and line, 3 - 1/2, 1/8
    assert smooth_l1_loss(predicted, targets).tolist() == pytest.approx([0.5 + 2.5 + 0.125])
    beta = smooth_l1_loss(predicted, targets, beta=0.25)
    assert beta.tolist() == pytest.approx([0.875 + 2.875 + 0.375])
    assert smooth_l1_loss(predicted, targets, beta=0.0).tolist() == pytest.approx([4.5])


def test_uncertainty_by_hand():
    predicted = torch.tensor([[0.5, 3.0, 0.0, 0.5]])
    log_variance = torch.tensor([[0.0, 0.0, -2.0, math.log(4)]])
    loss = kl_loss(predicted, torch.zeros(1, 4), log_variance)
    # 1/8; 3 - 1/2; sure and right: -1; 1/4 of 1/8 and half of log 4
    assert loss.tolist() == pytest.approx([0.125 + 2.5 - 1 + 0.125 / 4 + LOG2])
    best = torch.zeros(1, 4, requires_grad=True)  # sigma = |d| is best: a slope of 0 there
    kl_loss(torch.ones(1, 4), torch.zeros(1, 4), best).sum().backward()
    assert best.grad.abs().max() == 0


def test_certainty_of_one_is_smooth_l1():
    predicted, targets = torch.randn(2, 7, 4, generator=torch.manual_seed(0))
    loss = kl_loss(predicted, targets, torch.zeros(7, 4))
    torch.testing.assert_close(loss, smooth_l1_loss(predicted, targets))


@pytest.mark.parametrize(
    ("target", "shares"),
    [
        (0.0, [1, 0, 0]),
        (0.25, [0.75, 0.25, 0]),
        (1.0, [0, 1, 0]),
        (1.5, [0, 0.5, 0.5]),
        (2.0, [0, 0, 1]),
        (7.0, [0, 0, 1]),  # outside: the border
        (-1.0, [1, 0, 0]),
    ],
)
def test_distribution_is_cross_entropy_with_two_bins(target, shares):
    logits = torch.tensor([[0.3, -1.0, 2.0]])
    loss = distribution_focal_loss(logits, torch.tensor([target]))
    torch.testing.assert_close(loss, F.cross_entropy(logits, torch.tensor([shares]).float())[None])


def test_distribution_and_its_mean():
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.0, 50.0, 0.0, 0.0]])
    assert distribution_expectation(logits).tolist() == pytest.approx([1.5, 1.0])
    assert distribution_expectation(logits.expand(5, 3, 2, 4)).shape == (5, 3, 2)
    assert distribution_focal_loss(logits.expand(3, 2, 4), torch.zeros(3, 2)).shape == (3, 2)
    with pytest.raises(ValueError, match="two bins around a number, got 1"):
        distribution_focal_loss(torch.zeros(2, 1), torch.zeros(2))


def test_the_best_distribution_has_its_target_as_the_mean():
    logits = torch.tensor([[0.0, 0.7, 0.3, 0.0]]).log()
    logits = logits.clamp(min=-30).requires_grad_()
    distribution_focal_loss(logits, torch.tensor([1.3])).sum().backward()
    assert logits.grad.abs().max() < 1e-6
    assert distribution_expectation(logits).item() == pytest.approx(1.3)


# ---------------------------------------------------------------------------- classification


def test_cross_entropy_by_hand():
    logits = torch.tensor([[0.0, 0.0], [math.log(3), 0.0]])
    labels = torch.tensor([1, 0])
    assert cross_entropy(logits, labels).tolist() == pytest.approx([LOG2, math.log(4 / 3)])
    weighted = cross_entropy(logits, labels, class_weights=torch.tensor([10.0, 0.5]))
    assert weighted.tolist() == pytest.approx([LOG2 / 2, 10 * math.log(4 / 3)])
    smooth = cross_entropy(logits, labels, label_smoothing=0.2)  # 0.9 and 0.1
    assert smooth.tolist() == pytest.approx([LOG2, 0.9 * math.log(4 / 3) + 0.1 * math.log(4)])


def test_binary_cross_entropy_by_hand():
    loss = binary_cross_entropy(torch.tensor([0.0, 100.0, -100.0]), torch.tensor([0.3, 0.0, 0.0]))
    assert loss.tolist() == pytest.approx([LOG2, 100.0, 0.0])


def test_focal_by_hand_and_as_torchvisions():
    logits, targets = torch.tensor([0.0, math.log(3)]), torch.tensor([1.0, 0.0])
    loss = focal_loss(logits, targets, alpha=0.25, gamma=2)  # p 1/2 and 3/4
    assert loss.tolist() == pytest.approx([0.25 * 0.25 * LOG2, 0.75 * 0.5625 * math.log(4)])
    logits = torch.randn(50, 3, generator=torch.manual_seed(0))
    targets = (logits.flip(0) > 0).float()
    for alpha, gamma in ((0.25, 2.0), (-1, 1.0), (0.6, 0.0)):
        torch.testing.assert_close(
            focal_loss(logits, targets, alpha=alpha, gamma=gamma),
            torchvision.ops.sigmoid_focal_loss(logits, targets, alpha, gamma),
        )


def test_quality_by_hand():
    logits, quality = torch.tensor([0.0, 0.0, math.log(3)]), torch.tensor([0.75, 0.5, 0.0])
    loss = quality_focal_loss(logits, quality)
    assert loss.tolist() == pytest.approx([LOG2 / 16, 0.0, 0.5625 * math.log(4)])
    loss = quality_focal_loss(logits, quality, beta=1.0)
    assert loss.tolist() == pytest.approx([LOG2 / 4, 0.0, 0.75 * math.log(4)])
    whole = torch.tensor([1.0, 0.0, 1.0])  # of qualities 0 and 1 it is the focal loss
    torch.testing.assert_close(
        quality_focal_loss(logits, whole), focal_loss(logits, whole, alpha=-1, gamma=2)
    )


def test_varifocal_by_hand():
    logits, quality = torch.tensor([math.log(3), math.log(3)]), torch.tensor([0.5, 0.0])
    loss = varifocal_loss(logits, quality, alpha=0.8, gamma=3)
    positive = 0.5 * (0.5 * math.log(4 / 3) + 0.5 * math.log(4))
    assert loss.tolist() == pytest.approx([positive, 0.8 * 0.75**3 * math.log(4)])


@pytest.mark.parametrize("loss", [focal_loss, quality_focal_loss, varifocal_loss])
@pytest.mark.parametrize("target", [0.0, 0.4, 1.0])
def test_sure_logits_have_a_slope(loss, target):
    logits = torch.tensor([-200.0, -40, 0, 40, 200], requires_grad=True)
    value = loss(logits, torch.full((5,), target))
    value.sum().backward()
    assert value.isfinite().all() and logits.grad.isfinite().all()


# --------------------------------------------------------------------------------------- all

DENSE = {
    "binary": binary_cross_entropy,
    "focal": focal_loss,
    "quality": quality_focal_loss,
    "varifocal": varifocal_loss,
}
PAIRED = {**OFFSET_LOSSES, **BOX_LOSSES}


def test_slopes_are_those_of_the_values():
    generator = torch.manual_seed(0)
    low, size = torch.rand(2, 6, 2, generator=generator, dtype=torch.float64)
    boxes = torch.cat([low, low + size + 0.1], dim=1)
    truths = (boxes.flip(0) * 0.7 + 0.2 * boxes).detach()
    for name, loss in PAIRED.items():
        if name != "ciou":  # whose weight is a constant to the slope
            assert torch.autograd.gradcheck(loss, (boxes.requires_grad_(), truths)), name
    logits = torch.randn(6, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    quality = torch.rand(6, 4, generator=generator, dtype=torch.float64)
    for name, loss in DENSE.items():
        assert torch.autograd.gradcheck(loss, (logits, quality)), name
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    assert torch.autograd.gradcheck(lambda x: cross_entropy(x, labels), logits)
    numbers = quality[:, 0] * 3
    assert torch.autograd.gradcheck(lambda x: distribution_focal_loss(x, numbers), logits)
    assert torch.autograd.gradcheck(distribution_expectation, logits)
    variance = quality.clone().requires_grad_()
    assert torch.autograd.gradcheck(kl_loss, (logits, quality, variance))


EMPTY = torch.zeros(0, 4)
NOTHING = {
    **{name: (lambda x, f=loss: f(x, EMPTY)) for name, loss in {**PAIRED, **DENSE}.items()},
    "kl": lambda x: kl_loss(x, EMPTY, x),
    "cross_entropy": lambda x: cross_entropy(x, torch.zeros(0, dtype=torch.int64)),
    "smoothed": lambda x: cross_entropy(
        x, torch.zeros(0, dtype=torch.int64), label_smoothing=0.1, class_weights=torch.ones(4)
    ),
    "distribution": lambda x: distribution_focal_loss(x, torch.zeros(0)),
    "expectation": distribution_expectation,
}


@pytest.mark.parametrize("name", NOTHING)
def test_nothing_gives_zero_with_a_gradient(name):
    layer = torch.nn.Linear(3, 4)
    each = NOTHING[name](layer(torch.zeros(0, 3)))
    assert len(each) == 0
    each.sum().backward()
    assert each.sum() == 0
    assert layer.weight.grad.abs().max() == 0  # zero, not NaN and not None


@pytest.mark.parametrize("name", PAIRED)
def test_a_number_for_each_box(name):
    boxes = torch.tensor([0.0, 0, 4, 4]).expand(3, 2, 4)
    assert PAIRED[name](boxes, boxes).shape == (3, 2)
