"""The compiled evaluation beside the one in numpy, to the last bit, and what chooses between."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest

from detkit.evaluation import backend
from detkit.evaluation.accumulation import CurveArrays, evaluate_arrays
from detkit.evaluation.backend import load_native, native_module, using
from detkit.evaluation.compiled import draw_curves
from detkit.evaluation.inputs import CocoSettings, FlatDetections, FlatTruths
from detkit.evaluation.outcomes import Outcomes, find_outcomes

IMAGES, CATEGORIES = 5, 3
Case = tuple[FlatTruths, FlatDetections, CocoSettings]

MODULE, FAULT = load_native()
compiled = pytest.mark.skipif(MODULE is None, reason=f"no compiled evaluator: {FAULT}")


def random_case(seed: int) -> Case:
    """Small and nasty: ties, crowds, ids of zero, equal boxes, no areas, limits in any number."""
    rng = np.random.default_rng(seed)
    truths, found = int(rng.integers(0, 40)), int(rng.integers(0, rng.choice([2, 80, 400])))
    size = int(rng.choice([3, 8, 60]))  # of the grid: few places make many equal boxes
    rows = truths + found
    boxes = rng.integers([0, 0, -1, -1], size, (rows, 4)).astype(float)
    image, category = rng.integers(0, IMAGES, rows), rng.integers(0, rng.choice([1, 3]), rows)
    near = truths + np.flatnonzero(rng.random(found) < (0.6 if truths else 0.0))
    source = rng.integers(0, max(truths, 1), len(near))
    image[near], category[near] = image[source], category[source]
    boxes[near] = boxes[source] + rng.integers(0, 2, (len(near), 4))
    boxes += rng.choice([0.0, 0.1, 1e-9, 1e15], p=[0.4, 0.3, 0.2, 0.1]) * (boxes % 3)
    odd_areas = rng.choice([0.0, 4.0, 32.0**2, 96.0**2, 1e10, 2e10], truths)
    area = np.where(rng.random(truths) < 0.3, odd_areas, boxes[:truths, 2] * boxes[:truths, 3])
    crowd = rng.random(truths) < rng.choice([0.0, 0.2, 0.2, 1.0])
    id_is_zero = rng.random(truths) < rng.choice([0.0, 0.2])
    kinds_of_scores = [
        rng.integers(0, 4, found) / 3,
        rng.choice([-0.0, 0.0, 5e-324, -1.0, 1.0, 1e300, -np.inf, np.inf, np.nan], found),
        0.5 + rng.integers(0, 40, found) * 2.0**-53,  # differ in the last bits alone
        rng.random(found),
    ]
    scores = np.asarray(kinds_of_scores[rng.integers(4)], float)
    return (
        FlatTruths(image[:truths], category[:truths], boxes[:truths], area, crowd, id_is_zero),
        FlatDetections(image[truths:], category[truths:], boxes[truths:], scores),
        random_settings(rng),
    )


def random_settings(rng: np.random.Generator) -> CocoSettings:
    thresholds = [
        None,
        rng.choice([0.0, 0.3, 0.5, 1.0], rng.integers(1, 6)),  # in any order, some twice
        rng.random(rng.integers(1, 80)),  # more than the 64 curves of a block
    ][rng.integers(3)]
    ends = np.sort(rng.choice([0.0, 3.0, 4.0, 9.0, 1024.0, 1e10], (rng.integers(1, 9), 2)))
    ranges = None if rng.random() < 0.5 else {str(i): tuple(e) for i, e in enumerate(ends)}
    limits = rng.choice([1, 2, 3, 10, 100], rng.integers(1, 5))
    settings = CocoSettings.of(thresholds, ranges, limits if rng.random() < 0.5 else (1, 10, 100))
    if rng.random() < 0.7:
        return settings
    levels = np.linspace(rng.choice([0.0, 0.3]), 1, rng.integers(1, 30))
    return replace(settings, recall_levels=levels)


def curves_by(name: str, case: Case) -> CurveArrays:
    truths, detections, settings = case
    with using(name), np.errstate(all="ignore"):
        return evaluate_arrays(truths, detections, num_categories=CATEGORIES, settings=settings)


def outcomes_by(name: str, case: Case) -> Outcomes:
    truths, detections, settings = case
    with using(name), np.errstate(all="ignore"):
        return find_outcomes(
            truths,
            detections,
            num_categories=CATEGORIES,
            iou_thresholds=settings.iou_thresholds,
            area_range=next(iter(settings.area_ranges.values())),
            limit=settings.max_dets[-1],
        )


def assert_same_curves(case: Case) -> CurveArrays:
    mine, theirs = curves_by("compiled", case), curves_by("numpy", case)
    for name in ("precision", "recall", "scores", "num_truths"):
        mine_bits, theirs_bits = getattr(mine, name), getattr(theirs, name)
        assert mine_bits.shape == theirs_bits.shape, name
        assert mine_bits.tobytes() == theirs_bits.tobytes(), name
    return mine


@compiled
@pytest.mark.parametrize("block", range(20))
def test_random_cases_have_the_bits_of_numpy(block: int) -> None:
    drawn = [assert_same_curves(random_case(seed)) for seed in range(20 * block, 20 * block + 20)]
    values = np.concatenate([curves.precision.reshape(-1) for curves in drawn])
    assert len(set(values[values > 0].tolist())) > 10  # not all of them empty


@compiled
@pytest.mark.parametrize("block", range(10))
def test_random_outcomes_are_those_of_numpy(block: int) -> None:
    taken = 0
    for seed in range(20 * block, 20 * block + 20):
        mine, theirs = (outcomes_by(name, random_case(seed)) for name in ("compiled", "numpy"))
        assert mine.detections.boxes.tobytes() == theirs.detections.boxes.tobytes()
        assert mine.detections.scores.tobytes() == theirs.detections.scores.tobytes()
        assert mine.truth_of.tolist() == theirs.truth_of.tolist()
        assert mine.ignored.tolist() == theirs.ignored.tolist()
        taken += (mine.truth_of >= 0).sum()
    assert taken > 100


@compiled
def test_scores_are_the_same_at_once_later_and_elsewhere() -> None:
    truths, detections, settings = random_case(1)
    work = partial(evaluate_arrays, truths, detections, num_categories=CATEGORIES)
    with using("compiled"):
        at_once, later = work(settings=settings, with_scores=True), work(settings=settings)
        elsewhere = pickle.loads(pickle.dumps(later))
        assert later.scores.tobytes() == at_once.scores.tobytes()
    with using("numpy"):
        assert elsewhere.scores.tobytes() == at_once.scores.tobytes()
    assert (at_once.scores > 0).any()


@compiled
@pytest.mark.parametrize("truths", [0, 7])
@pytest.mark.parametrize("detections", [0, 7])
def test_nothing_is_a_case_like_others(truths: int, detections: int) -> None:
    some_truths, some_detections, settings = random_case(17)
    case = (some_truths[np.arange(truths)], some_detections[np.arange(detections)], settings)
    assert_same_curves(case)


@compiled
def test_no_categories() -> None:
    truths, detections, settings = random_case(0)
    none = np.zeros(0, int)
    curves = draw_curves(
        native_module(), truths[none], detections[none], num_categories=0, settings=settings
    )
    assert [table.size for table in curves] == [0, 0, 0, 0]


@compiled
@pytest.mark.parametrize("values", [np.nan, np.inf, -np.inf, 1e308, 5e-324])
def test_numbers_that_overflow_and_none_have_the_bits_of_numpy(values: float) -> None:
    for seed in range(20):
        truths, detections, settings = random_case(seed)
        rng = np.random.default_rng(seed)
        for boxes in (truths.boxes, detections.boxes):
            boxes[rng.random(boxes.shape) < 0.1] = values
        truths.area[rng.random(len(truths)) < 0.2] = values
        assert_same_curves((truths, detections, settings))


@compiled
def test_areas_that_underflow_meet_without_overlap() -> None:
    tiny = [[0.0, 0.0, 1e-200, 1e-200]]
    truths = FlatTruths.of([0], [0], tiny)
    found = FlatDetections(np.zeros(1, int), np.zeros(1, int), np.array(tiny), np.ones(1))
    case = (truths, found, CocoSettings.of([0.0, 0.5]))
    assert outcomes_by("compiled", case).truth_of.tolist() == [[0], [-1]]
    assert_same_curves(case)


@compiled
@pytest.mark.parametrize("count", [3, 50, 5000])
@pytest.mark.parametrize("step", [2.0**-53, 2.0**-32, 2.0**-10])
def test_scores_are_ordered_by_every_bit(count: int, step: float) -> None:
    rng = np.random.default_rng(count)
    scores = 0.5 + rng.integers(0, max(2, count // 2), count) * step  # with ties
    image, category = rng.integers(0, IMAGES, count), np.zeros(count, int)
    detections = FlatDetections(image, category, np.ones((count, 4)), scores)
    truths = FlatTruths.of([0], [0], [[0, 0, 1, 1]])
    case = (truths, detections, CocoSettings.of(max_dets=(count,)))
    order = np.lexsort((image, -scores))
    found = outcomes_by("compiled", case).detections
    assert found.scores.tolist() == scores[order].tolist()
    assert found.image.tolist() == image[order].tolist()


@compiled
def test_a_cell_with_more_truths_than_curves() -> None:
    truths = FlatTruths.of(np.zeros(300, int), np.zeros(300, int), np.tile([0, 0, 9, 9], (300, 1)))
    found = FlatDetections(
        np.zeros(400, int), np.zeros(400, int), np.tile([0.0, 0, 9, 9], (400, 1)), np.ones(400)
    )
    outcomes = outcomes_by("compiled", (truths, found, CocoSettings.of([0.5], max_dets=[1000])))
    # of equal overlaps the later truth; then none is left
    assert outcomes.truth_of[0].tolist() == [*range(299, -1, -1), *[-1] * 100]


@compiled
def test_other_types_and_strides_are_taken() -> None:
    truths, detections, settings = random_case(3)
    wide = FlatDetections(
        detections.image.astype(np.int16),
        detections.category.astype(np.int32),
        np.asfortranarray(detections.boxes),
        np.repeat(detections.scores, 2)[::2],
    )
    mine = curves_by("compiled", (truths, wide, settings))
    theirs = curves_by("numpy", (truths, detections, settings))
    assert mine.precision.tobytes() == theirs.precision.tobytes()


@compiled
@pytest.mark.parametrize(
    ("field", "index"),  # there are as many images as the largest index says
    [("image", -1), ("category", -1), ("category", CATEGORIES), ("category", 2**40)],
)
@pytest.mark.parametrize("table", [0, 1])
def test_an_index_out_of_range_is_named(field: str, index: int, table: int) -> None:
    case = list(random_case(5))
    getattr(case[table], field)[4] = index
    kind = ("truths", "detections")[table]
    with pytest.raises(ValueError, match=rf"{kind}\.{field}\[4\] must lie in 0\.\.\d, got {index}"):
        curves_by("compiled", (case[0], case[1], case[2]))


@compiled
@pytest.mark.parametrize("place", range(4))
def test_arrays_of_wrong_length_are_an_error(place: int) -> None:
    def columns(*shapes: tuple[int, ...]) -> list[Any]:
        return [np.zeros(shape) for shape in shapes]

    arguments = [
        (*columns((2,), (2,), (2, 4), (2,)), np.zeros(2, bool), np.zeros(2, bool)),
        columns((3,), (3,), (3, 4), (3,)),
        columns((10,), (4, 2), (3,), (101,)),
        columns((1, 4, 3, 10, 101), (1, 4, 3, 10, 101), (1, 4, 3, 10), (4, 1)),
    ]
    native = native_module()
    assert native is not None

    def draw() -> None:
        truths, detections, settings, tables = (tuple(each) for each in arguments)
        native.draw_curves(truths, detections, settings, 1, 1, tables)

    draw()
    arguments[place] = [*arguments[place][:-1], np.zeros(9, np.int8)]
    with pytest.raises(ValueError, match=r"must be \d+ items of \d bytes, got 9 bytes"):
        draw()


@compiled
def test_threads_do_not_disturb_each_other() -> None:
    cases = [random_case(seed) for seed in range(8)]
    expected = [curves_by("compiled", case).precision.tobytes() for case in cases]
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda case: curves_by("compiled", case).precision.tobytes(), cases * 20)
        assert list(found) == expected * 20


@pytest.fixture
def nothing_compiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(sys.modules, "detkit.evaluation._native", None)
    load_native.cache_clear()
    yield
    load_native.cache_clear()


def test_numpy_is_chosen_where_nothing_is_compiled(
    nothing_compiled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DETKIT_EVALUATOR", raising=False)
    assert str(backend()) == "numpy: no compiled module was built"
    assert native_module() is None
    with pytest.raises(ValueError, match="no compiled module was built; install detkit again"):
        using("compiled").__enter__()


@compiled
def test_a_module_of_another_version_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DETKIT_EVALUATOR", raising=False)
    monkeypatch.setattr(MODULE, "INTERFACE", 0)
    load_native.cache_clear()
    found = backend()
    load_native.cache_clear()
    assert found.name == "numpy"
    assert "another version" in found.reason


def test_the_environment_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETKIT_EVALUATOR", "numpy")
    assert str(backend()) == "numpy: chosen by DETKIT_EVALUATOR"
    monkeypatch.setenv("DETKIT_EVALUATOR", "fortran")
    with pytest.raises(ValueError, match="DETKIT_EVALUATOR must be 'numpy' or 'compiled', got"):
        backend()


@compiled
def test_a_block_chooses_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETKIT_EVALUATOR", "numpy")
    with using("compiled"):
        assert backend().name == "compiled"
    assert backend().name == "numpy"


def test_a_wrong_choice_changes_nothing() -> None:
    before = backend()
    with pytest.raises(ValueError, match="must be 'numpy' or 'compiled', got 'fortran'"):
        using("fortran").__enter__()
    assert backend() == before
