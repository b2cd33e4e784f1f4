"""Calibration against tables by hand, other libraries' numbers and what must come out."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from detkit.evaluation import CocoEvaluator, CocoResult
from detkit.evaluation.calibration import reliability


def test_by_hand(pets: CocoResult) -> None:
    """Without those of crowds: 0.9 right, 0.9, 0.7, 0.6, 0.5 wrong, 0.4 and 0.3 right."""
    found = pets.calibration(bins=2)
    overall = found.overall
    assert overall.edges.tolist() == [0, 0.5, 1]
    assert overall.counts.tolist() == [3, 4]  # 0.5 belongs to the lower bin
    np.testing.assert_allclose(overall.scores, [0.4, 0.775])
    np.testing.assert_allclose(overall.precision, [2 / 3, 1 / 4])
    assert overall.ece == pytest.approx((3 * (2 / 3 - 0.4) + 4 * 0.525) / 7)
    assert overall.mce == pytest.approx(0.525)
    assert (overall.mean_score, overall.mean_precision) == pytest.approx((4.3 / 7, 3 / 7))
    cat = found.classes[0]
    assert (cat.category_id, cat.name, cat.counts.tolist()) == (1, "cat", [1, 3])


def test_low_scores_can_be_left_out(pets: CocoResult) -> None:
    assert pets.calibration(bins=2, score=0.6).overall.counts.tolist() == [0, 4]
    assert pets.calibration(bins=2, score=0.6).overall.ece == pytest.approx(0.525)


def test_bins_hold_their_upper_edge() -> None:
    scores = np.array([0.0, 0.1, 0.2, 0.20001, 1.0])
    assert reliability(scores, scores > 1, bins=5).counts.tolist() == [3, 1, 0, 0, 1]


def test_other_libraries() -> None:
    """netcal 1.4.0 (D-ECE over the score) and torchmetrics 1.9.0 on the same numbers."""
    rng = np.random.default_rng(7)
    rng.random((60, 6)), rng.integers(0, 6, 60)
    scores = rng.random(200)
    right = rng.random(200) < scores**2
    found = reliability(scores, right, bins=10)
    assert found.ece == pytest.approx(0.14492197596427164, abs=1e-12)
    assert found.mce == pytest.approx(0.2760352104223035, abs=1e-12)


def test_bins_of_equal_mass() -> None:
    scores = np.array([0.1, 0.11, 0.12, 0.3, 0.5, 0.95])
    right = np.array([False, False, True, True, False, True])
    found = reliability(scores, right, bins=3, equal_mass=True)
    assert found.counts.tolist() == [2, 2, 2]
    assert found.edges.tolist() == [0, 0.11, 0.3, 1]
    np.testing.assert_allclose(found.precision, [0, 1, 0.5])
    order = np.array([3, 1, 5, 0, 4, 2])
    again = reliability(scores[order], right[order], bins=3, equal_mass=True)
    assert again.as_dict() == found.as_dict()


@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_fewer_scores_than_bins(count: int) -> None:
    scores = np.linspace(0.2, 0.8, count)
    found = reliability(scores, scores > 0.5, bins=10, equal_mass=True)
    assert found.counts.sum() == count
    assert (found.edges[0], found.edges[-1]) == (0, 1)
    assert (np.diff(found.edges) > 0).all()


def test_equal_scores_share_a_bin() -> None:
    scores = np.array([0.5] * 8 + [0.9] * 2)
    found = reliability(scores, scores > 0, bins=5, equal_mass=True)
    assert (found.edges.tolist(), found.counts.tolist()) == ([0, 0.5, 1], [8, 2])


def test_scores_of_0_have_their_bin_and_there_is_none_above_1() -> None:
    scores = np.array([0.0] * 4 + [0.5] + [1.0] * 5)
    found = reliability(scores, scores > 0.2, bins=5, equal_mass=True)
    assert (found.edges.tolist(), found.counts.tolist()) == ([0, 0, 1], [4, 6])


@pytest.mark.parametrize("equal_mass", [False, True])
def test_scores_that_mean_what_they_say(equal_mass: bool) -> None:
    """The error is then sampling noise; squared, the scores are off by E|s - s^2| = 1/6."""
    rng = np.random.default_rng(0)
    scores = rng.random(100_000)
    calibrated = reliability(scores, rng.random(100_000) < scores, equal_mass=equal_mass)
    assert calibrated.ece < 0.006
    over = reliability(scores, rng.random(100_000) < scores**2, equal_mass=equal_mass)
    assert over.ece == pytest.approx(1 / 6, abs=0.006)
    assert over.mean_score > over.mean_precision


def test_table_and_json(pets: CocoResult) -> None:
    found = pets.calibration(bins=2)
    assert found.table().splitlines() == [
        "scores        count  mean score  precision",
        "0.000..0.500      3       0.400      0.667",
        "0.500..1.000      4       0.775      0.250",
        "",
        "class  detections  mean score  precision    ECE    MCE",
        "cat             4       0.675      0.500  0.525  0.700",
        "dog             3       0.533      0.333  0.267  0.700",
        "all             7       0.614      0.429  0.414  0.525",
    ]
    assert json.loads(json.dumps(found.as_dict(), allow_nan=False)) == found.as_dict()


def test_nothing_at_all() -> None:
    empty = CocoEvaluator.from_coco({"images": [], "categories": [], "annotations": []}).compute()
    found = empty.calibration()
    assert math.isnan(found.overall.ece) and math.isnan(found.overall.mce)
    assert found.as_dict()["overall"]["ece"] is None
    assert len(found.table().splitlines()) == 10 + 1 + 1 + 2


def test_mistakes(pets: CocoResult) -> None:
    with pytest.raises(ValueError, match="bins must be at least 1, got 0"):
        pets.calibration(bins=0)
    message = r"calibration needs scores in 0\.\.1, got -2\.\.3; turn them into probabilities"
    with pytest.raises(ValueError, match=message):
        reliability(np.array([-2.0, 3]), np.array([True, True]))
