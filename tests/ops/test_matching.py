"""Who learns from which truth: overlaps to check by hand, torchvision's Matcher, crowds, ties."""

from __future__ import annotations

import pytest
import torch
from torchvision.models.detection._utils import Matcher
from torchvision.ops import box_iou

from detkit.ops import match

NOBODY = torch.zeros(0, dtype=torch.bool)


def matched(anchors, truths, crowd=None, **settings):
    """One letter an anchor: a digit is the truth it learns from, - background, . ignored."""
    anchors = torch.tensor(anchors, dtype=torch.float32).view(-1, 4)
    truths = torch.tensor(truths, dtype=torch.float32).view(-1, 4)
    crowd = torch.tensor(crowd or [False] * len(truths), dtype=torch.bool)
    return letters(match(anchors, truths, crowd, **settings))


def letters(result):
    assert not (result.positive & result.negative).any()
    return "".join(
        str(int(truth)) if positive else "-" if negative else "."
        for truth, positive, negative in zip(*result, strict=True)
    )


def across(width):
    """A strip 10 high and `width` wide: its IoU with a strip of 100 is width / 100."""
    return [0, 0, width, 10]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"positive_iou": 0.7, "negative_iou": 0.3}, "-...000"),
        ({"positive_iou": 0.5, "negative_iou": 0.5}, "---0000"),  # 0.5 itself is positive
        ({"positive_iou": 0.71, "negative_iou": 0.31}, "--...00"),
        ({"positive_iou": 0.71, "negative_iou": 0.3}, "-....00"),  # 0.3 itself is not background
    ],
)
def test_thresholds(settings, expected):
    anchors = [across(width) for width in (29, 30, 49, 50, 70, 71, 100)]
    assert matched(anchors, [across(100)], **settings) == expected


def test_an_anchor_takes_the_truth_it_overlaps_most():
    truths = [[0, 0, 10, 10], [0, 0, 10, 8]]
    anchors = [[0, 0, 10, 10], [0, 0, 10, 9.5], [0, 0, 10, 8.5], [0, 0, 10, 7]]
    assert matched(anchors, truths, positive_iou=0.5, negative_iou=0.5) == "0011"


def test_low_quality_takes_all_best_anchors_of_a_truth():
    truths = [across(100), [1000, 0, 1040, 10]]
    anchors = [
        across(40),  # the best that the first truth has,
        across(40),  # twice
        across(39.9),
        [1000, 0, 1010, 10],  # the best of the second, below the limit of background
        [1000, 0, 1009, 10],
    ]
    settings = {"positive_iou": 0.7, "negative_iou": 0.3}
    assert matched(anchors, truths, **settings) == "...--"
    assert matched(anchors, truths, **settings, allow_low_quality=True) == "00.1-"


def test_a_low_quality_anchor_keeps_the_truth_it_overlaps_most():
    # The only anchor near the second truth overlaps the first more, and is positive for it
    truths = [[0, 0, 10, 10], [0, 8, 10, 20]]
    assert (
        matched(
            [[0, 0, 10, 12]], truths, positive_iou=0.99, negative_iou=0.3, allow_low_quality=True
        )
        == "0"
    )


def test_low_quality_leaves_a_truth_alone_that_nothing_overlaps():
    """Torchvision makes every anchor positive that overlaps such a truth by its best: by 0."""
    settings = {"positive_iou": 0.7, "negative_iou": 0.3, "allow_low_quality": True}
    anchors, truths = [across(100), across(20)], [[500, 500, 510, 510]]
    assert matched(anchors, truths, **settings) == "--"
    overlap = box_iou(torch.tensor(truths).float(), torch.tensor(anchors).float())
    assert Matcher(0.7, 0.3, allow_low_quality_matches=True)(overlap).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("crowd_overlap", "expected"), [(0.5, "--..."), (0.4, "-...."), (0.9, "---..")]
)
def test_what_lies_in_a_crowd_is_ignored(crowd_overlap, expected):
    anchors = [[100 - inside, 0, 200 - inside, 10] for inside in (39, 49, 50, 90, 100)]
    settings = {"positive_iou": 0.7, "negative_iou": 0.3, "crowd_overlap": crowd_overlap}
    crowd = [[0, 0, 100, 10]]
    assert matched(anchors, crowd, [True], **settings) == expected
    assert matched(anchors, crowd, [True], **settings, allow_low_quality=True) == expected


def test_a_positive_stays_one_inside_a_crowd():
    truths = [[0, 0, 10, 10], [0, 0, 1000, 1000]]
    anchors = [[0, 0, 10, 10], [500, 500, 510, 510], [2000, 0, 2010, 10]]
    settings = {"positive_iou": 0.7, "negative_iou": 0.3, "allow_low_quality": True}
    assert matched(anchors, truths, [False, True], **settings) == "0.-"


def test_nothing_is_object_and_background():
    with pytest.raises(ValueError, match=r"positive_iou 0.3 is below negative_iou 0.5"):
        matched([across(10)], [across(10)], positive_iou=0.3, negative_iou=0.5)


def test_no_truths_no_anchors():
    settings = {"positive_iou": 0.7, "negative_iou": 0.3, "allow_low_quality": True}
    assert matched([across(10), across(20)], [], **settings) == "--"
    assert matched([], [across(10)], **{**settings, "allow_low_quality": False}) == ""
    assert matched([], [], **settings) == ""
    result = match(torch.zeros(3, 4), torch.zeros(0, 4), NOBODY, **settings)
    assert result.truth.dtype == torch.int64


@pytest.mark.parametrize("allow_low_quality", [False, True])
@pytest.mark.parametrize(("positive", "negative"), [(0.7, 0.3), (0.5, 0.5), (0.35, 0.1)])
def test_equals_torchvisions_matcher(positive, negative, allow_low_quality):
    anchors, truths = random_boxes(500, seed=0), random_boxes(20, seed=1)
    theirs = Matcher(positive, negative, allow_low_quality_matches=allow_low_quality)(
        box_iou(truths, anchors)
    )
    ours = match(
        anchors,
        truths,
        torch.zeros(20, dtype=torch.bool),
        positive_iou=positive,
        negative_iou=negative,
        allow_low_quality=allow_low_quality,
    )
    assert torch.equal(ours.positive, theirs >= 0)
    assert torch.equal(ours.negative, theirs == Matcher.BELOW_LOW_THRESHOLD)
    assert torch.equal(ours.truth[ours.positive], theirs[ours.positive])
    assert 20 < ours.positive.sum() < 400 or not allow_low_quality


def random_boxes(count: int, *, seed: int) -> torch.Tensor:
    """Boxes with corners on whole pixels, so that equal overlaps happen."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.randint(0, 60, (count, 2), generator=generator)
    size = torch.randint(10, 40, (count, 2), generator=generator)
    return torch.cat([corner, corner + size], dim=1).float()
