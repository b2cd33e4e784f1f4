"""Mistakes planted into clean labels come out on top; clean labels give none."""

from __future__ import annotations

import json

import numpy as np
import pytest

from detkit.evaluation import CocoEvaluator
from detkit.evaluation.inputs import CocoTruths, FlatDetections, FlatTruths
from detkit.evaluation.label_errors import (
    LabelError,
    LabelErrors,
    Suspect,
    find_label_errors,
)

IMAGES, CELLS, CLASSES = 60, 9, 4
PLANTED = 8  # of each kind


def clean_truths(rng: np.random.Generator) -> FlatTruths:
    """Boxes in the cells of a grid of 3 x 3, about two thirds of the cells taken."""
    image, cell = np.divmod(np.arange(IMAGES * CELLS), CELLS)
    kept = rng.random(len(image)) < 0.65
    image, cell = image[kept], cell[kept]
    size = rng.uniform(40, 90, (len(image), 2))
    corner = np.stack([cell % 3, cell // 3], axis=1) * 100 + rng.uniform(0, 100 - size)
    return FlatTruths.of(
        image, rng.integers(0, CLASSES, len(image)), np.concatenate([corner, size], 1)
    )


def good_detector(truths: FlatTruths, rng: np.random.Generator) -> FlatDetections:
    """Finds 97 % of the objects surely, the others in doubt, and has doubtful ideas beside."""
    count, noise = len(truths), 20 * IMAGES
    boxes = truths.boxes + rng.normal(0, 0.02, (count, 4)) * np.tile(truths.boxes[:, 2:], 2)
    scores = np.where(rng.random(count) < 0.97, rng.uniform(0.6, 0.99, count), 0.2)
    ideas = rng.uniform(20, 100, (noise, 4)) * [2, 2, 1, 1]
    return FlatDetections(
        np.concatenate([truths.image, rng.integers(0, IMAGES, noise)]),
        np.concatenate([truths.category, rng.integers(0, CLASSES, noise)]),
        np.concatenate([boxes, ideas]),
        np.concatenate([scores, rng.beta(1, 5, noise) * 0.35]),
    )


def data_set(truths: FlatTruths) -> CocoTruths:
    names = tuple(f"class {k}" for k in range(CLASSES))
    return CocoTruths(np.arange(IMAGES) + 100, np.arange(CLASSES) + 1, names, truths)


def plant(
    truths: FlatTruths, rng: np.random.Generator
) -> tuple[FlatTruths, dict[Suspect, np.ndarray]]:
    """Mistakes of each kind, and image and box, `[PLANTED, 5]`, that are to be listed for it."""
    removed, swapped, shifted, repeated = rng.permutation(len(truths))[: 4 * PLANTED].reshape(4, -1)
    category, boxes = truths.category.copy(), truths.boxes.copy()
    category[swapped] = (category[swapped] + rng.integers(1, CLASSES, PLANTED)) % CLASSES
    boxes[shifted, 0] += 0.25 * boxes[shifted, 2]  # an overlap of 0.6 is left
    ghosts = np.concatenate([rng.uniform(400, 500, (PLANTED, 2)), np.full((PLANTED, 2), 60.0)], 1)
    haunted, again = rng.integers(0, IMAGES, PLANTED), boxes[repeated] + 1
    wrong = FlatTruths.of(
        np.concatenate([truths.image, haunted, truths.image[repeated]]),
        np.concatenate([category, rng.integers(0, CLASSES, PLANTED), category[repeated]]),
        np.concatenate([boxes, ghosts, again]),
    )
    planted = {
        Suspect.MISSING: (truths.image[removed], truths.boxes[removed]),
        Suspect.WRONG_CLASS: (truths.image[swapped], boxes[swapped]),
        Suspect.NOT_FOUND: (haunted, ghosts),
        Suspect.LOOSE: (truths.image[shifted], boxes[shifted]),
        Suspect.DOUBLE: (truths.image[repeated], again),
    }
    wrong = wrong[np.delete(np.arange(len(wrong)), removed)]
    return wrong, {kind: np.column_stack(columns) for kind, columns in planted.items()}


def is_planted(error: LabelError, planted: dict[Suspect, np.ndarray]) -> bool:
    """At that place; where a box is missing, the place is that of the detection."""
    place = np.array([int(error.image_id) - 100, *error.box])
    tolerance = np.array([0.0, 8.0, 8.0, 8.0, 8.0])
    return bool((np.abs(planted[error.kind] - place) <= tolerance).all(axis=1).any())


@pytest.mark.parametrize("seed", range(6))
def test_planted_mistakes_come_first(seed: int) -> None:
    """Precision among the first 35 is 1; of the 40 mistakes 36 or more are listed."""
    rng = np.random.default_rng(seed)
    clean = clean_truths(rng)
    found = good_detector(clean, rng)
    wrong, planted = plant(clean, rng)
    errors = find_label_errors(data_set(wrong), found)
    hits = [is_planted(error, planted) for error in errors]
    assert all(hits[:35])
    assert sum(hits) >= 36
    per_kind = [sum(is_planted(error, planted) for error in errors.of_kind(k)) for k in Suspect]
    assert min(per_kind) >= PLANTED - 2


@pytest.mark.parametrize("seed", range(6))
def test_nothing_planted_nothing_listed(seed: int) -> None:
    rng = np.random.default_rng(seed)
    clean = clean_truths(rng)
    assert len(find_label_errors(data_set(clean), good_detector(clean, rng))) == 0


# ------------------------------------------------------------------------------- checked by hand

UNIT = (0, 0, 10, 10)
FAR = (50, 50, 10, 10)


def errors_of(
    truths: list[tuple[int, tuple[float, ...]]],
    detections: list[tuple[int, tuple[float, ...], float]],
    *,
    crowd: list[bool] | None = None,
    least_suspicion: float = 0.5,
) -> LabelErrors:
    """One image; (category, box) and (category, box, score)."""
    flat = FlatTruths.of(
        [0] * len(truths), [k for k, _ in truths], [box for _, box in truths], crowd=crowd
    )
    found = FlatDetections(
        np.zeros(len(detections), int),
        np.array([row[0] for row in detections], int),
        np.array([row[1] for row in detections], float).reshape(-1, 4),
        np.array([row[2] for row in detections], float),
    )
    return find_label_errors(data_set(flat), found, least_suspicion=least_suspicion)


def test_missing_box() -> None:
    """A sure detection of nothing; a worse one at its place; one in a crowd; one in doubt."""
    crowded, doubtful = (100, 100, 10, 10), (30, 30, 9, 9)
    errors = errors_of(
        [(0, UNIT), (0, (95, 95, 40, 40))],
        [
            (0, UNIT, 0.9),
            (2, (50, 50, 10, 9), 0.7),
            (1, FAR, 0.8),
            (0, crowded, 0.9),
            (0, doubtful, 0.4),
        ],
        crowd=[False, True],
    )
    (error,) = errors
    assert (error.kind, error.name, error.found) == (Suspect.MISSING, "class 1", "class 1")
    assert (error.box, error.score, error.suspicion) == (FAR, 0.8, 0.8)
    assert (error.image_id, error.truth, error.detection) == (100, None, 2)


def test_box_not_found() -> None:
    """Three of four of the class and of the size are found; a touch by any class is enough."""
    places = [(20.0 * i, 0, 10, 10) for i in range(4)]
    found = [(0, box, 0.9) for box in places[:3]]
    (error,) = errors_of([(0, box) for box in places], found)
    assert (error.kind, error.truth, error.found) == (Suspect.NOT_FOUND, 3, None)
    assert error.suspicion == 0.75
    touch = (1, (60, 0, 10, 2), 0.01)
    assert len(errors_of([(0, box) for box in places], [*found, touch])) == 0
    barely = [(0, (x, 0, 10, 4), 0.9) for x in (0, 20, 40)]
    assert len(errors_of([(0, box) for box in places], barely)) == 0  # truths like it are not found
    # of a size that is never found, and of a class that is never found
    assert len(errors_of([*((0, box) for box in places[:3]), (0, (60, 0, 2, 2))], found)) == 0
    assert len(errors_of([*((0, box) for box in places[:3]), (1, places[3])], found)) == 0


def test_wrong_class() -> None:
    """As suspicious as the other class scores above the own one."""
    (error,) = errors_of([(0, UNIT)], [(1, (0, 0, 10, 9), 0.75), (0, UNIT, 0.125)])
    assert (error.kind, error.name, error.found) == (Suspect.WRONG_CLASS, "class 0", "class 1")
    assert (error.truth, error.detection) == (0, 0)
    assert error.suspicion == 0.625
    assert error.iou == pytest.approx(0.9)
    assert len(errors_of([(0, UNIT)], [(1, (0, 0, 10, 7), 0.75)])) == 0  # not close
    # a horse and its rider: the detection is right about another truth
    assert len(errors_of([(0, UNIT), (1, UNIT)], [(1, UNIT, 0.9)])) == 0


def test_loose_box() -> None:
    """Two of its size are fitted exactly: all others better than the loose one."""
    places = [(20.0 * i, 0, 10, 10) for i in range(3)]
    found = [(0, places[0], 0.9), (0, places[1], 0.9), (0, (40, 0, 10, 6), 0.8)]
    (error,) = errors_of([(0, box) for box in places], found)
    assert (error.kind, error.truth, error.detection) == (Suspect.LOOSE, 2, 2)
    assert error.suspicion == 0.8
    assert error.iou == pytest.approx(0.6)
    # another sure detection fits; or all are as loose as this one
    assert len(errors_of([(0, box) for box in places], [*found, (0, places[2], 0.7)])) == 0
    assert len(errors_of([(0, places[2])], [found[2]])) == 0


def test_a_detection_of_the_neighbour_makes_no_loose_box() -> None:
    """It overlaps the truth beside its own by 2/3; others of the size are fitted exactly."""
    neighbours = [(0, UNIT), (0, (0, 2, 10, 10)), (0, FAR), (0, (80, 0, 10, 10))]
    found = [(0, box, 0.9) for _, box in neighbours[1:]]
    assert len(errors_of(neighbours, found)) == 0


def test_crowds_are_no_suspects() -> None:
    """One that nobody finds, one with another class in it, one upon a truth of its class."""
    places = [(20.0 * i, 0, 10, 10) for i in range(3)]
    crowds = [(90, 90, 10, 10), FAR, places[0]]
    truths = [(0, box) for box in [*places, *crowds]]
    found = [*((0, box, 0.9) for box in places), (1, (52, 52, 5, 5), 0.9)]
    assert len(errors_of(truths, found, crowd=[False] * 3 + [True] * 3)) == 0
    kinds = [error.kind for error in errors_of(truths, found)]
    assert kinds == [Suspect.DOUBLE, Suspect.NOT_FOUND]


def test_double_box() -> None:
    truths = [(0, UNIT), (1, UNIT), (0, (0, 0, 10, 9)), (0, FAR)]
    found = [(0, UNIT, 0.9), (1, UNIT, 0.9), (0, FAR, 0.9)]
    (error,) = errors_of(truths, found)
    assert (error.kind, error.truth, error.other) == (Suspect.DOUBLE, 2, 0)
    assert error.suspicion == error.iou == pytest.approx(0.9)
    assert len(errors_of([(0, UNIT), (0, (0, 0, 10, 7))], [(0, UNIT, 0.9)])) == 0


def test_table_and_json() -> None:
    errors = errors_of([(0, UNIT)], [(1, UNIT, 0.75), (2, FAR, 0.625)])
    head, first, second, total = errors.table().splitlines()
    assert " ".join(head.split()) == "kind class found image box (x y w h) suspicion score IoU"
    row = "wrong class class 0 class 1 100 0 0 10 10 0.750 0.750 1.000"
    assert " ".join(first.split()) == row
    assert second.split()[-3:] == ["0.625", "0.625", "-"]
    assert total.startswith("2 with a suspicion of 0.5 or more: missing box 1, box not found 0")
    assert len(errors.table(1).splitlines()) == 3
    written = json.loads(json.dumps(errors.as_dict()))
    assert written["counts"]["wrong class"] == 1
    assert written["errors"][1]["iou"] is None and written["errors"][1]["truth"] is None


@pytest.mark.parametrize("truths", [[], [(0, UNIT)]])
@pytest.mark.parametrize("detections", [[], [(0, UNIT, 0.9)]])
def test_empty(truths: list, detections: list) -> None:
    errors = errors_of(truths, detections, least_suspicion=0.1)
    assert len(errors) == (1 if detections and not truths else 0)
    assert len(errors.table().splitlines()) == 2 + len(errors)


def test_label_errors_of_a_result() -> None:
    evaluator = CocoEvaluator(data_set(FlatTruths.of([0], [0], [UNIT])))
    evaluator.update(100, [[0, 0, 10, 10]], [0.75], [2])
    (error,) = evaluator.compute().label_errors()
    assert (error.kind, error.suspicion) == (Suspect.WRONG_CLASS, 0.75)
    assert len(evaluator.compute().label_errors(least_suspicion=0.8)) == 0


def test_boxes_that_are_none() -> None:
    """As `strict` lets them through: they overlap nothing, are no suspects, and nothing fails."""
    flat = FlatTruths.of([0, 0], [0, 0], [UNIT, FAR])
    flat.boxes[0] = np.nan
    found = FlatDetections(np.zeros(2, int), np.zeros(2, int), flat.boxes.copy(), np.ones(2))
    assert len(find_label_errors(data_set(flat), found)) == 0


def test_wrong_suspicion() -> None:
    with pytest.raises(ValueError, match=r"0\.\.1, got 2"):
        errors_of([], [], least_suspicion=2)
