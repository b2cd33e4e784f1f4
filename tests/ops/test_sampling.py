"""Minibatches: how many of which, nobody twice, and every candidate with the same chance."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler

from detkit.ops import (
    Assigner,
    hardest,
    sample_balanced,
    sample_hard,
    sample_hard_negatives,
    sample_random,
)
from detkit.structures import Target


def kinds(text: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Masks from one letter a candidate: + positive, - negative, . neither."""
    masks = [torch.tensor([c == kind for c in text], dtype=torch.bool) for kind in "+-"]
    return masks[0], masks[1]


@pytest.mark.parametrize(
    ("candidates", "count", "fraction", "positives", "negatives"),
    [
        ("++++++----------", 8, 0.5, 4, 4),
        ("++++++----------", 8, 0.25, 2, 6),
        ("+---------------", 8, 0.5, 1, 7),  # negatives fill up
        ("++++++++--", 8, 0.5, 4, 2),  # positives never do
        ("++++++----------", 7, 0.5, 3, 4),  # int(3.5)
        ("++++++----------", 8, 0.0, 0, 8),
        ("++++++----------", 8, 1.0, 6, 2),
        ("++...---", 100, 0.5, 2, 3),  # fewer candidates than places
        ("....", 3, 0.5, 0, 0),
        ("++", 1, 0.5, 0, 0),
    ],
)
def test_how_many(candidates, count, fraction, positives, negatives):
    sample = sample_balanced(*kinds(candidates), count=count, positive_fraction=fraction)
    size = min(count, len(candidates))
    assert [len(part) for part in sample] == [size] * 3
    assert sample.positive.sum() == positives
    assert sample.valid.sum() == positives + negatives


@given(st.text("+-.", max_size=40), st.integers(1, 30), st.floats(0, 1), st.integers(0, 2**32 - 1))
@settings(max_examples=100, deadline=None)
def test_what_is_drawn_is_what_it_says(candidates, count, fraction, seed):
    torch.manual_seed(seed)
    index, positive, valid = sample_balanced(
        *kinds(candidates), count=count, positive_fraction=fraction
    )
    assert len(set(index.tolist())) == len(index)  # nobody twice
    drawn = [candidates[i] for i in index]
    positives, total = int(positive.sum()), int(valid.sum())
    # first positives, then negatives, then unused places
    assert "".join(drawn[:total]) == "+" * positives + "-" * (total - positives)
    assert positive[:positives].all() and valid[:total].all()
    # as many as torchvision draws
    labels = torch.tensor([{"+": 1.0, "-": 0.0, ".": -1.0}[c] for c in candidates])
    theirs = BalancedPositiveNegativeSampler(count, fraction)([labels])
    expected = [int(part[0].sum()) for part in theirs]
    assert [positives, total - positives] == expected


def test_every_candidate_has_the_same_chance():
    torch.manual_seed(0)
    positive, negative = kinds("++++++++" + "-" * 12 + "...")
    drawn = torch.zeros(len(positive))
    rounds = 4000
    for _ in range(rounds):
        sample = sample_balanced(positive, negative, count=8, positive_fraction=0.25)
        drawn[sample.index[sample.valid]] += 1
    # 2 of 8 and 6 of 12; four standard deviations of a share from 4000 rounds are 0.032
    share = drawn / rounds
    torch.testing.assert_close(share[:8], torch.full((8,), 0.25), atol=0.03, rtol=0)
    torch.testing.assert_close(share[8:20], torch.full((12,), 0.5), atol=0.033, rtol=0)
    assert share[20:].tolist() == [0, 0, 0]


def test_a_seed_gives_the_same_draw_again():
    masks = kinds("+" * 30 + "-" * 30)
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(sample_balanced(*masks, count=20, positive_fraction=0.5).index.tolist())
    assert draws[0] == draws[1] != draws[2]


def test_nobody():
    sample = sample_balanced(*kinds(""), count=5, positive_fraction=0.5)
    assert [part.shape for part in sample] == [(0,)] * 3
    assert sample.index.dtype == torch.int64


# ------------------------------------------------------------------- as they come, and the hardest


@given(st.text("+-.", max_size=40), st.integers(1, 30), st.integers(0, 2**32 - 1))
@settings(max_examples=50, deadline=None)
def test_random_draws_as_many_as_there_are(candidates, count, seed):
    torch.manual_seed(seed)
    index, positive, valid = sample_random(*kinds(candidates), count=count)
    assert len(set(index.tolist())) == len(index) == min(count, len(candidates))
    drawn = "".join(candidates[i] for i in index)
    positives, total = int(positive.sum()), int(valid.sum())
    assert drawn[:total] == "+" * positives + "-" * (total - positives)
    assert set(drawn[total:]) <= {"."}
    assert total == min(count, len(candidates) - candidates.count("."))
    assert positive[:positives].all() and valid[:total].all()


def test_random_draws_positives_and_negatives_with_the_same_chance():
    torch.manual_seed(0)
    positive, negative = kinds("++++" + "-" * 12 + "..")
    drawn = torch.zeros(len(positive))
    rounds = 4000
    for _ in range(rounds):
        sample = sample_random(positive, negative, count=4)
        drawn[sample.index[sample.valid]] += 1
    torch.testing.assert_close(drawn[:16] / rounds, torch.full((16,), 0.25), atol=0.03, rtol=0)
    assert drawn[16:].tolist() == [0, 0]


LOSS = torch.tensor([0.1, 0.9, 0.5, 0.2, 7.0, 0.7, 0.4])


@pytest.mark.parametrize(
    ("candidates", "count", "index", "positives", "total"),
    [
        ("+--+.--", 3, [1, 5, 2], 0, 3),
        ("+--+.--", 6, [3, 0, 1, 5, 2, 6], 2, 6),
        ("-++---+", 3, [1, 4, 5], 1, 3),  # positives first, each kind by its loss
        ("+......", 2, [0], 1, 1),
        (".......", 2, [], 0, 0),
    ],
)
def test_the_hardest_by_hand(candidates, count, index, positives, total):
    loss = LOSS.clone().requires_grad_()
    sample = sample_hard(loss, *kinds(candidates), count=count)
    assert [len(part) for part in sample] == [count] * 3
    assert sample.index[sample.valid].tolist() == index
    assert (sample.positive.sum(), sample.valid.sum()) == (positives, total)
    assert sample.positive[:positives].all() and sample.valid[:total].all()


@pytest.mark.parametrize(
    ("candidates", "settings", "index", "positives"),
    [
        ("+--+.--", {"ratio": 1}, [3, 0, 1, 5], 2),
        ("+------", {}, [0, 4, 1, 5], 1),  # three for one
        ("++++---", {}, [1, 2, 3, 0, 4, 5, 6], 4),  # no more than there are
        ("-------", {}, [], 0),
        ("-------", {"at_least": 2}, [4, 1], 0),
        ("+------", {"ratio": 1, "at_least": 2}, [0, 4, 1], 1),
        ("+------", {"ratio": 0}, [0], 1),
    ],
)
def test_hard_negatives_by_hand(candidates, settings, index, positives):
    sample = sample_hard_negatives(LOSS, *kinds(candidates), **settings)
    assert sample.index[sample.valid].tolist() == index
    assert sorted(sample.index.tolist()) == list(range(7))
    assert sample.positive.sum() == positives


def test_nobody_is_hard():
    empty = kinds("")
    for sample in (
        sample_random(*empty, count=3),
        sample_hard(torch.zeros(0), *empty, count=3),
        sample_hard_negatives(torch.zeros(0), *empty),
    ):
        assert [part.shape for part in sample] == [(0,)] * 3


# -------------------------------------------------------------------------------- assignment


def target(boxes, labels):
    return Target(
        boxes,
        labels,
        image_id=0,
        crowd=torch.zeros(len(boxes), dtype=torch.bool),
        area=torch.ones(len(boxes)),
    )


def test_assignment_hands_out_the_truth_of_each_candidate():
    assigner = Assigner(positive_iou=0.5, negative_iou=0.5, samples=4, positive_fraction=0.5)
    truths = torch.tensor([[0.0, 0, 10, 10], [50, 50, 60, 60]])
    candidates = torch.tensor(
        [[0.0, 0, 10, 9], [80, 80, 90, 90], [50, 51, 60, 61], [81, 80, 90, 90]]
    )
    assigned = assigner(candidates, target(truths, torch.tensor([4, 6])))
    assert assigned.valid.all()
    assert assigned.positive.tolist() == [True, True, False, False]
    order = assigned.index[:2].argsort()
    assert assigned.index[:2][order].tolist() == [0, 2]
    assert assigned.labels[:2][order].tolist() == [4, 6]
    assert torch.equal(assigned.boxes[:2][order], truths)


def test_assignment_of_low_quality():
    settings = {"positive_iou": 0.7, "negative_iou": 0.3, "positive_fraction": 0.5}
    truth = target(torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([1]))
    candidates = torch.tensor([[0.0, 0, 10, 4], [20, 20, 30, 30], [40, 40, 50, 50]])
    strict = Assigner(samples=2, **settings)(candidates, truth)
    assert not strict.positive.any()
    assert sorted(strict.index.tolist()) == [1, 2]
    kind = Assigner(samples=2, **settings, allow_low_quality=True)(candidates, truth)
    assert kind.positive.tolist() == [True, False]
    assert kind.index[0] == 0


@pytest.mark.parametrize("candidates", [0, 3])
def test_assignment_without_truths(candidates):
    assigner = Assigner(positive_iou=0.5, negative_iou=0.5, samples=8, positive_fraction=0.5)
    boxes = torch.tensor([[0.0, 0, 10, 10]]).repeat(candidates, 1)
    assigned = assigner(boxes, target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)))
    assert len(assigned.index) == candidates
    assert not assigned.positive.any()
    assert assigned.valid.all()
    assert assigned.boxes.shape == (candidates, 4)


def test_every_candidate_in_its_order_then_the_hardest():
    assigner = Assigner(positive_iou=0.7, negative_iou=0.3, samples=2, positive_fraction=0.5)
    truths = torch.tensor([[0.0, 0, 10, 10], [50, 50, 60, 60]])
    candidates = torch.tensor(
        [[80.0, 80, 90, 90], [50, 51, 60, 61], [0, 0, 10, 5], [0, 0, 10, 9], [81, 80, 90, 90]]
    )
    every = assigner.every(candidates, target(truths, torch.tensor([4, 6])))
    assert every.index.tolist() == [0, 1, 2, 3, 4]
    assert every.positive.tolist() == [False, True, False, True, False]
    assert every.valid.tolist() == [True, True, False, True, True]  # IoU 1/2 is neither
    assert every.labels[[1, 3]].tolist() == [6, 4]
    drawn = hardest(every, torch.tensor([0.1, 0.2, 9.0, 0.5, 0.7]), count=2)
    assert drawn.index.tolist() == [3, 4]
    assert drawn.positive.tolist() == [True, False]
    assert drawn.labels[0] == 4 and torch.equal(drawn.boxes[0], truths[0])


@pytest.mark.parametrize("candidates", [0, 3])
def test_every_candidate_without_truths(candidates):
    assigner = Assigner(positive_iou=0.5, negative_iou=0.5, samples=8, positive_fraction=0.5)
    boxes = torch.tensor([[0.0, 0, 10, 10]]).repeat(candidates, 1)
    every = assigner.every(boxes, target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)))
    drawn = hardest(every, torch.arange(candidates).float(), count=2)
    assert len(drawn.index) == min(candidates, 2)
    assert drawn.valid.all() and not drawn.positive.any()


def test_an_assigner_that_draws_as_they_come():
    settings = {"positive_iou": 0.5, "negative_iou": 0.5, "samples": 8, "positive_fraction": 0.25}
    truth = target(torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([1]))
    candidates = torch.tensor([[0.0, 0, 10, 9]]).repeat(8, 1)
    assert Assigner(**settings)(candidates, truth).positive.sum() == 2
    assert Assigner(**settings, sampler="random")(candidates, truth).positive.sum() == 8
    with pytest.raises(ValueError, match=r"'hard'; choose one of .*balanced.*random"):
        Assigner(**settings, sampler="hard")
