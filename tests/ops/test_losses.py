"""Losses: numbers to check by hand, and nothing instead of NaN where there is nothing."""

from __future__ import annotations

import pytest
import torch
from torchvision.ops import generalized_box_iou

from detkit.ops import giou_loss


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


def test_nothing_gives_zero_with_a_gradient():
    layer = torch.nn.Linear(3, 4)
    value = giou_loss(layer(torch.zeros(0, 3)), torch.zeros(0, 4)).sum()
    assert value == 0
    value.backward()
    assert layer.weight.grad.abs().max() == 0  # zero, not NaN and not None
