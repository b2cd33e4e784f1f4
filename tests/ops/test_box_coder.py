"""Offsets: numbers to check by hand, torchvision's BoxCoder, and there and back."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.models.detection._utils import BoxCoder

from detkit.ops import decode, encode
from detkit.ops.box_coder import MAX_LOG_RATIO

WEIGHTS = (10.0, 10.0, 5.0, 5.0)


@pytest.mark.parametrize(
    ("box", "offsets"),
    [
        ([10, 20, 30, 60], [0, 0, 0, 0]),  # the anchor itself
        ([20, 20, 40, 60], [0.5, 0, 0, 0]),  # half a width to the right
        ([10, 10, 30, 50], [0, -0.25, 0, 0]),  # a quarter of the height up
        ([0, 20, 40, 60], [0, 0, math.log(2), 0]),  # twice as wide
        ([10, 30, 30, 50], [0, 0, 0, -math.log(2)]),  # half as high
    ],
)
def test_offsets_from_one_anchor(box, offsets):
    anchor = torch.tensor([[10.0, 20, 30, 60]])
    box, offsets = torch.tensor([box]).float(), torch.tensor([offsets]).float()
    torch.testing.assert_close(encode(box, anchor), offsets)
    torch.testing.assert_close(decode(offsets, anchor), box)
    weighted = offsets * torch.tensor(WEIGHTS)
    torch.testing.assert_close(encode(box, anchor, weights=WEIGHTS), weighted)
    torch.testing.assert_close(decode(weighted, anchor, weights=WEIGHTS), box)


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0, 1.0), WEIGHTS, (2.0, 3.0, 4.0, 7.0)])
def test_equals_torchvisions_coder(weights):
    coder = BoxCoder(weights)
    anchors, boxes = random_boxes(50, seed=0), random_boxes(50, seed=1)
    (theirs,) = coder.encode([boxes], [anchors])
    torch.testing.assert_close(encode(boxes, anchors, weights=weights), theirs)
    # five boxes for each anchor, some of them blown up beyond the limit of the growth
    offsets = torch.randn(50, 5, 4, dtype=torch.float64, generator=torch.manual_seed(0)) * 20
    decoded = decode(offsets, anchors[:, None], weights=weights)
    theirs = coder.decode(offsets.flatten(1), [anchors])
    torch.testing.assert_close(decoded, theirs, rtol=1e-12, atol=1e-9)


def test_growth_is_limited():
    anchor = torch.tensor([[0.0, 0, 16, 16]])
    (box,) = decode(torch.tensor([[0.0, 0, 1e30, -1e30]]), anchor)
    assert box.tolist() == pytest.approx([8 - 500, 8, 8 + 500, 8])
    assert math.log(62.5) == MAX_LOG_RATIO
    (box,) = decode(torch.tensor([[0.0, 0, 9, 0]]), anchor, max_log_ratio=math.log(2))
    assert box.tolist() == pytest.approx([-8, 0, 24, 16])


coordinates = st.floats(-1e3, 1e3)
sides = st.floats(0.5, 500)
box = st.tuples(coordinates, coordinates, sides, sides).map(
    lambda b: [b[0], b[1], b[0] + b[2], b[1] + b[3]]
)


@given(st.lists(st.tuples(box, box), max_size=5), st.tuples(*[st.floats(0.1, 20)] * 4))
@settings(max_examples=50, deadline=None)
def test_there_and_back(pairs, weights):
    boxes, anchors = torch.tensor(pairs, dtype=torch.float64).view(-1, 2, 4).unbind(1)
    there = encode(boxes, anchors, weights=weights)
    back = decode(there, anchors, weights=weights, max_log_ratio=math.inf)
    torch.testing.assert_close(back, boxes, rtol=1e-9, atol=1e-9)


def test_gradients():
    anchors = random_boxes(4, seed=0)
    offsets = torch.randn(4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda o: decode(o, anchors, weights=WEIGHTS), offsets)


def test_no_boxes():
    empty = torch.zeros(0, 4)
    assert encode(empty, empty).shape == (0, 4)
    assert decode(empty, empty).shape == (0, 4)
    assert decode(torch.zeros(0, 7, 4), empty[:, None]).shape == (0, 7, 4)


def random_boxes(count: int, *, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner, size = torch.rand(2, count, 2, generator=generator, dtype=torch.float64)
    return torch.cat([corner, corner + size + 0.1], dim=1) * 100
