"""Regions that nothing is learnt for: those of the batch, and a grid."""

from __future__ import annotations

import pytest
import torch

from detkit.detectors.proposals import GivenProposals, GridProposals
from detkit.ops import box_area
from detkit.structures import Batch


def batch_of(*sizes, proposals=None):
    return Batch(torch.zeros(len(sizes), 3, 64, 64), sizes, sizes, proposals=proposals)


def test_regions_of_the_batch_are_handed_on():
    boxes = torch.tensor([[0.0, 0, 9, 9], [5, 5, 70, 40], [3, 3, 8, 8]])
    batch = batch_of((64, 64), (30, 40), proposals=(boxes, torch.zeros(0, 4)))
    found, losses = GivenProposals("file", limit=2).learn([], batch)
    assert found[0].tolist() == [[0, 0, 9, 9], [5, 5, 64, 40]]  # the first, inside the image
    assert found[1].shape == (0, 4)
    assert losses == {}
    assert GivenProposals("file", limit=2).most((64, 64)) == 2


def test_batch_without_regions():
    with pytest.raises(
        ValueError, match=r"model\.proposals=selective_search .* give Batch.proposals"
    ) as error:
        GivenProposals("selective_search", limit=9).find([], batch_of((64, 64)))
    assert "\n" not in str(error.value)


def test_one_set_of_regions_for_two_images():
    batch = batch_of((64, 64), (64, 64), proposals=(torch.zeros(0, 4),))
    with pytest.raises(ValueError, match="1 sets of proposals for 2 images"):
        GivenProposals("file", limit=9).find([], batch)


def test_grid_by_hand():
    grid = GridProposals((4,), (1,), stride=10)
    (found,) = grid.find([], batch_of((20, 30)))
    assert found.tolist() == [[x - 2, y - 2, x + 2, y + 2] for y in (5, 15) for x in (5, 15, 25)]


def test_grid_stays_inside_each_image():
    grid = GridProposals((16, 48), (0.5, 1.0, 2.0), stride=8)
    sizes = ((64, 64), (33, 40))
    found, losses = grid.learn([], batch_of(*sizes))
    assert losses == {}
    for boxes, (height, width) in zip(found, sizes, strict=True):
        assert len(boxes) == grid.most((height, width))
        assert boxes.amin() >= 0
        assert boxes[:, 2].max() <= width and boxes[:, 3].max() <= height
        assert box_area(boxes).min() > 0
    assert [len(boxes) for boxes in found] == [8 * 8 * 6, 5 * 5 * 6]
    assert torch.equal(found[1], grid.find([], batch_of(sizes[1]))[0])


def test_grid_is_not_part_of_the_state():
    assert GridProposals((16,), (1.0,), stride=8).state_dict() == {}
