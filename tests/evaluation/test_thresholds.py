"""Thresholds by costs: small tables by hand, and Bayes' rule where it must come out."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from detkit.evaluation import CocoEvaluator
from detkit.evaluation.thresholds import (
    Prices,
    above,
    choose_thresholds,
    prices_of,
    read_thresholds,
    thresholds_table,
    thresholds_to_yaml,
)
from detkit.structures import Detections

HIT = [0, 0, 10, 10]  # xyxy; the truth of every image and category that has one
NEAR = [0, 0, 10, 19]  # overlaps it by 0.53
ALARM = [50, 50, 60, 60]


def evaluator_of(
    found: dict[tuple[int, int], list[tuple[float, list[int]]]],
    truths: list[tuple[int, int]],
    *,
    images: int = 4,
    names: tuple[str, ...] = ("cat",),
    crowd: list[bool] | None = None,
) -> CocoEvaluator:
    """Detections (score, box) by (image, category), and a truth at HIT for each pair listed."""
    evaluator = CocoEvaluator.from_arrays(
        image_ids=range(images),
        category_ids=range(len(names)),
        gt_image_index=[image for image, _ in truths],
        gt_category_index=[category for _, category in truths],
        gt_boxes=np.tile([0.0, 0, 10, 10], (len(truths), 1)),
        gt_crowd=crowd,
        class_names=names,
    )
    for image in range(images):
        own = [(s, b, c) for c in range(len(names)) for s, b in found.get((image, c), ())]
        boxes = np.array([b for _, b, _ in own], float).reshape(-1, 4)
        evaluator.update(image, boxes, [s for s, _, _ in own], [c for _, _, c in own])
    return evaluator


def prices(false_alarm: float = 1, miss: float = 1, prior: float | None = None) -> Prices:
    return Prices([false_alarm], [miss], [prior])


# Four images, three truths. From the best score down: hit, alarm, hit, alarm, alarm, hit.
COURSE: dict[tuple[int, int], list[tuple[float, list[int]]]] = {
    (0, 0): [(0.9, HIT), (0.3, ALARM)],
    (1, 0): [(0.8, ALARM), (0.6, HIT)],
    (2, 0): [(0.2, HIT), (0.4, ALARM)],
}
TRUTHS = [(0, 0), (1, 0), (2, 0)]


@pytest.mark.parametrize(
    ("false_alarm", "miss", "prior", "threshold", "cost"),
    [
        # costs of an image, 4 images; above 0.9 all three are missed, below 0.2 none
        (1, 1, None, 0.9, (0 + 2) / 4),  # 0.6 costs 2 as well: the highest
        (1, 2.0, None, 0.6, (1 + 2) / 4),
        (1, 2.5, None, 0.2, 3 / 4),  # 0.6: 1 + 2.5
        (1, 5, None, 0.2, 3 / 4),
        (5, 1, None, 0.9, 2 / 4),
        (1, 0, None, 1.0, 0),  # nothing to win
        (0, 1, None, 0.2, 0),
        (1, 5, 0.0, 1.0, 0),  # no such objects in use
        (1, 5, 0.15, 0.9, 0.15 * 5 * 2 / 3),  # a fifth of 3 / 4 objects an image: a miss weighs 1
        (1, 1, 3.75, 0.2, 3 / 4),  # five times as many: a miss weighs 5
    ],
)
def test_threshold_of_least_cost(
    false_alarm: float, miss: float, prior: float | None, threshold: float, cost: float
) -> None:
    (chosen,) = choose_thresholds(evaluator_of(COURSE, TRUTHS), prices(false_alarm, miss, prior))
    assert (chosen.name, chosen.truths, chosen.threshold) == ("cat", 3, threshold)
    assert chosen.cost == pytest.approx(cost)
    hits, alarms = {1.0: (0, 0), 0.9: (1, 0), 0.6: (2, 1), 0.2: (3, 3)}[threshold]
    assert chosen.recall == pytest.approx(hits / 3)
    if hits:
        assert chosen.precision == pytest.approx(hits / (hits + alarms))
    else:
        assert math.isnan(chosen.precision)
    rate = 3 / 4 if prior is None else prior
    assert chosen.cost_at_half == pytest.approx(false_alarm * 1 / 4 + miss * rate / 3)
    assert chosen.cost <= chosen.cost_at_half


def test_equal_scores_stand_or_fall_together() -> None:
    found = {(0, 0): [(0.7, HIT), (0.7, ALARM)], (1, 0): [(0.5, HIT)], (2, 0): [(0.7, ALARM)]}
    (chosen,) = choose_thresholds(evaluator_of(found, TRUTHS), prices(1, 1))
    assert chosen.threshold == 1.0  # 0.7: two alarms for a hit
    (chosen,) = choose_thresholds(evaluator_of(found, TRUTHS), prices(1, 1.5))
    assert chosen.threshold == 0.5  # three alarms less: 2 + 1.5 against 4.5
    assert chosen.cost == pytest.approx(3.5 / 4)


def test_costs_that_differ_by_rounding_are_equal() -> None:
    """Three alarms at 1 and a miss at 3: as sums over 5 images they differ in the last bit."""
    found = {(i, 0): [(0.9 - i / 10, ALARM)] for i in (1, 2, 3)} | {(0, 0): [(0.5, HIT)]}
    evaluator = evaluator_of(found, [(0, 0)], images=5)
    assert choose_thresholds(evaluator, prices(1, 3))[0].threshold == 1.0
    assert choose_thresholds(evaluator, prices(1, 3.001))[0].threshold == 0.5


def test_overlap_that_makes_a_hit() -> None:
    evaluator = evaluator_of({(0, 0): [(0.9, NEAR)]}, [(0, 0)])
    assert choose_thresholds(evaluator, prices())[0].threshold == 0.9
    assert choose_thresholds(evaluator, prices(), iou_threshold=0.6)[0].threshold == 1.0


def test_second_hit_of_one_object_is_a_false_alarm() -> None:
    (chosen,) = choose_thresholds(
        evaluator_of({(0, 0): [(0.9, HIT), (0.8, NEAR)]}, [(0, 0)]), prices(1, 100)
    )
    assert chosen.threshold == 0.9 and chosen.precision == 1


def test_what_lies_in_a_crowd_counts_as_nothing() -> None:
    found = {(0, 0): [(0.9, HIT), (0.8, HIT)], (1, 0): [(0.5, HIT)]}
    evaluator = evaluator_of(found, [(0, 0), (1, 0)], crowd=[True, False])
    (chosen,) = choose_thresholds(evaluator, prices(10, 1))
    assert (chosen.truths, chosen.threshold, chosen.precision) == (1, 0.5, 1)


def test_a_score_of_one_cannot_be_left_out() -> None:
    evaluator = evaluator_of({(0, 0): [(1.0, ALARM), (0.5, ALARM)]}, [(0, 0)])
    (chosen,) = choose_thresholds(evaluator, prices())
    assert (chosen.threshold, chosen.cost) == (1.0, pytest.approx(2 / 4))


def test_classes_apart_and_one_without_truths() -> None:
    found = {**COURSE, (3, 1): [(0.6, ALARM), (0.1, ALARM)], (3, 2): [(0.4, HIT)]}
    evaluator = evaluator_of(found, [*TRUTHS, (3, 2)], names=("cat", "dog", "eel"))
    given = Prices([1, 1, 1], [1, 3, 1], [None, 0.5, None])
    cat, dog, eel = choose_thresholds(evaluator, given)
    assert (cat.threshold, eel.threshold, eel.recall) == (0.9, 0.4, 1)
    assert (dog.truths, dog.threshold, dog.precision) == (0, 1 / 4, 0)  # of calibrated scores
    assert math.isnan(dog.recall) and math.isnan(dog.cost) and math.isnan(dog.cost_at_half)
    table = thresholds_table([cat, dog, eel]).splitlines()
    assert [line.split()[0] for line in table] == ["class", "cat", "dog", "eel", "all", "classes"]
    assert table[2].split() == ["dog", "0.2500", "0", "0.000", "-", "-", "-"]
    assert table[4].split() == ["all", "0.5000", "0.7500"]


def test_nothing_found() -> None:
    (chosen,) = choose_thresholds(evaluator_of({}, TRUTHS), prices(1, 4))
    assert (chosen.threshold, chosen.recall, chosen.cost) == (1.0, 0, 3)


@pytest.mark.parametrize(
    ("false_alarm", "miss", "more_often"), [(1, 1, 1.0), (1, 5, 1.0), (3, 1, 1.0), (1, 1, 3.7)]
)
def test_calibrated_scores_give_the_threshold_of_bayes(
    false_alarm: float, miss: float, more_often: float
) -> None:
    """Of 100 detections that score s, 100 s are hits; each in an image of its own."""
    levels = [(k + 0.5) / 50 for k in range(50)]
    scored = [(s, HIT if i < 100 * s else ALARM) for s in levels for i in range(100)]
    found = {(image, 0): [each] for image, each in enumerate(scored)}
    truths = [(image, 0) for image, (_, box) in enumerate(scored) if box is HIT]
    evaluator = evaluator_of(found, truths, images=len(scored))
    prior = None if more_often == 1 else more_often * len(truths) / len(scored)
    (chosen,) = choose_thresholds(evaluator, prices(false_alarm, miss, prior))
    bayes = false_alarm / (false_alarm + more_often * miss)
    assert chosen.threshold == min(level for level in levels if level > bayes)


# -------------------------------------------------------------------------- as they are written


def test_prices_for_all_and_for_one() -> None:
    names = ("cat", "a=b", "dog")
    given = prices_of(names, false_alarm=["2"], miss=["a=b=7", "5"], prior=["dog=0.1"])
    assert given == Prices([2, 2, 2], [5, 7, 5], [None, None, 0.1])
    assert prices_of(names, false_alarm=[], miss=["cat=3"]).miss == [3, 1, 1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"miss": ["cats=1"]}, r"--miss cats=1: unknown class; did you mean 'cat'\? allowed: cat"),
        ({"miss": ["five"]}, "--miss five: 'five' is not a number from 0 on"),
        ({"false_alarm": ["cat=-1"]}, "--false-alarm cat=-1: '-1' is not a number from 0 on"),
        ({"prior": ["nan"]}, "--prior nan: 'nan' is not"),
        ({"miss": ["0"], "false_alarm": ["dog=0"]}, "of 'dog' are 0; set one above it"),
    ],
)
def test_prices_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prices_of(("cat", "dog"), **{"false_alarm": [], "miss": [], **settings})


def test_thresholds_in_any_form(tmp_path: Path) -> None:
    names = ("cat", "Füße", "no", "1e3")
    assert read_thresholds(0.25, names) == [0.25] * 4
    assert read_thresholds({"Füße": 0.5}, names) == [0, 0.5, 0, 0]
    evaluator = evaluator_of(
        {(0, c): [(0.1 * c + 1 / 3, HIT)] for c in range(4)},
        [(0, c) for c in range(4)],
        names=names,
    )
    chosen = choose_thresholds(evaluator, Prices([1] * 4, [1] * 4, [None] * 4))
    path = tmp_path / "thresholds.yaml"
    path.write_text(thresholds_to_yaml(chosen), encoding="utf-8")
    assert read_thresholds(path, names) == [0.1 * c + 1 / 3 for c in range(4)]  # to the last bit
    path.write_text("0.3\n")
    assert read_thresholds(str(path), names) == [0.3] * 4


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"catt": 0.3}, "thresholds: unknown class 'catt'; did you mean 'cat'"),
        (1.5, "thresholds: got 1.5; thresholds are a number in 0..1"),
        ({"cat": "high"}, r"got \{'cat': 'high'\}; thresholds are"),
        ("no.yaml", "no thresholds at no.yaml; write them with tools/choose_thresholds.py"),
    ],
)
def test_thresholds_that_cannot_be(given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_thresholds(given, ("cat", "dog"))


@pytest.mark.parametrize("text", ["", "cat: 2\n", "cats: 0.1\n", "some text\n", "[1]\n", "a: {"])
def test_files_that_hold_none(text: str, tmp_path: Path) -> None:
    path = tmp_path / "thresholds.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"thresholds\.yaml: ") as error:
        read_thresholds(path, ("cat", "dog"))
    assert "\n" not in str(error.value)


def test_detections_that_reach_the_threshold_of_their_class() -> None:
    found = Detections(
        torch.arange(16.0).view(4, 4),
        torch.tensor([0.9, 0.6, 0.5, 0.3]),
        torch.tensor([1, 0, 1, 0]),
    )
    kept = above(found, [0.3, 0.6])
    assert kept.scores.tolist() == found.scores[[0, 1, 3]].tolist()
    exact = float(found.scores[1])  # of float32, as a file holds it
    assert above(found, [exact, 1.0]).scores.tolist() == [exact]
    assert len(above(Detections.empty(), [0.3, 0.6])) == 0
