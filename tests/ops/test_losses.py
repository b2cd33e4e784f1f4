"""Losses: numbers to check by hand, and nothing instead of NaN where there is nothing."""

from __future__ import annotations

import pytest
import torch
from torchvision.ops import generalized_box_iou

from detkit.ops import giou_loss, masked_mean, smooth_l1


@pytest.mark.parametrize(
    ("difference", "beta", "loss"),
    [
        (0.0, 1.0, 0.0),
        (0.5, 1.0, 0.125),  # d^2 / (2 beta)
        (-0.5, 1.0, 0.125),
        (1.0, 1.0, 0.5),  # both branches meet
        (3.0, 1.0, 2.5),  # |d| - beta / 2
        (0.5, 0.25, 0.375),
        (0.1, 0.25, 0.02),
        (0.1, 0.0, 0.1),  # plain L1
    ],
)
def test_smooth_l1(difference, beta, loss):
    given, wanted = torch.tensor([5 + difference, 5]).double(), torch.tensor([5, 5]).double()
    assert smooth_l1(given, wanted, beta=beta).tolist() == pytest.approx([loss, 0], abs=1e-6)


@pytest.mark.parametrize(
    ("box", "loss"),
    [
        ([0, 0, 10, 10], 0),
        ([0, 0, 10, 5], 0.5),  # IoU 1/2, no empty space around
        ([10, 0, 20, 10], 1.0),  # side by side: IoU 0, hull full
        ([20, 0, 30, 10], 1 + 1 / 3),  # a third of the hull is empty
        ([5, 5, 15, 15], 1 - (25 / 175 - 50 / 225)),
    ],
)
def test_giou(box, loss):
    box, truth = torch.tensor([box]).float(), torch.tensor([[0.0, 0, 10, 10]])
    assert giou_loss(box, truth).tolist() == pytest.approx([loss])


def test_giou_equals_the_diagonal_of_torchvisions_matrix():
    corner, size = torch.rand(2, 30, 2, generator=torch.manual_seed(0))
    boxes = torch.cat([corner, corner + size + 0.01], dim=1)
    expected = 1 - generalized_box_iou(boxes, boxes.flip(0)).diagonal()
    torch.testing.assert_close(giou_loss(boxes, boxes.flip(0)), expected)


def test_masked_mean():
    values = torch.tensor([1.0, 2, 30, 400])
    assert masked_mean(values, torch.tensor([True, True, False, False])) == 1.5
    assert masked_mean(values, torch.tensor([False, False, False, True])) == 400
    assert masked_mean(values, torch.zeros(4, dtype=torch.bool)) == 0


@pytest.mark.parametrize(
    "loss",
    [
        lambda x: smooth_l1(x, torch.zeros(0, 4), beta=1 / 9).sum(),
        lambda x: giou_loss(x, torch.zeros(0, 4)).sum(),
        lambda x: masked_mean(x, torch.zeros(0, 4, dtype=torch.bool)),
    ],
    ids=["smooth_l1", "giou", "masked_mean"],
)
def test_nothing_gives_zero_with_a_gradient(loss):
    layer = torch.nn.Linear(3, 4)
    value = loss(layer(torch.zeros(0, 3)))
    assert value == 0
    value.backward()
    assert layer.weight.grad.abs().max() == 0  # zero, not NaN and not None


def test_mask_without_members_gives_zero_gradient():
    values = torch.tensor([3.0, 4.0], requires_grad=True)
    masked_mean(values, torch.zeros(2, dtype=torch.bool)).backward()
    assert values.grad.tolist() == [0, 0]
