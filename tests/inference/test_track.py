"""Which id a detection gets, on motions that a person can follow."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from detkit.inference.track import Tracker, greedy_pairs
from detkit.structures import Detections


def found(
    *corners: tuple[float, float], labels: tuple[int, ...] = (), side: float = 20
) -> Detections:
    """Squares with these upper left corners."""
    start = torch.tensor(corners, dtype=torch.float32).reshape(-1, 2)
    return Detections(
        torch.cat([start, start + side], dim=1),
        torch.linspace(0.9, 0.5, len(start)),
        torch.tensor(labels or (0,) * len(start), dtype=torch.int64),
    )


def test_an_object_keeps_its_id_and_another_gets_the_next() -> None:
    tracker = Tracker()
    assert tracker.update(found((0, 0))).tolist() == [1]
    assert tracker.update(found((100, 0), (4, 0))).tolist() == [2, 1]  # in whatever order
    assert tracker.update(found((8, 0), (100, 4))).tolist() == [1, 2]


def test_fast_objects_are_expected_where_they_go() -> None:
    """With 18 pixels a frame a square of 20 hardly overlaps itself; expected on, it does fully."""
    tracker = Tracker(iou_threshold=0.3)
    places = [0, 8, 22, 40, 58, 76]
    assert [tracker.update(found((x, 0))).tolist() for x in places] == [[1]] * len(places)
    assert Tracker().update(found((0, 0))).tolist() == [1]
    still = Tracker()
    assert [still.update(found((x, 0))).tolist() for x in (0, 18)] == [[1], [2]]


def test_objects_that_cross_do_not_change_their_ids() -> None:
    """From frame 5 to frame 6 they change places but for the height, and overlap lies there."""
    tracker, ids = Tracker(), []
    for step in range(11):
        right, left = (6 + 8.0 * step, 0.0), (94 - 8.0 * step, 5.0)
        pair = (right, left) if step % 2 else (left, right)
        numbers = tracker.update(found(*pair)).tolist()
        ids.append(numbers if step % 2 else numbers[::-1])
    assert ids == [[2, 1]] * 11


def test_an_object_of_another_class_is_another_object() -> None:
    tracker = Tracker()
    assert tracker.update(found((0, 0), labels=(1,))).tolist() == [1]
    assert tracker.update(found((0, 0), labels=(2,))).tolist() == [2]
    assert tracker.update(found((0, 0), (0, 0), labels=(1, 2))).tolist() == [1, 2]


@pytest.mark.parametrize(("missed", "expected"), [(0, 1), (3, 1), (4, 2)])
def test_an_object_may_be_missed_for_some_frames(missed: int, expected: int) -> None:
    tracker = Tracker(max_lost=3)
    tracker.update(found((0, 0)))
    tracker.update(found((5, 0)))
    for _ in range(missed):
        assert tracker.update(Detections.empty()).tolist() == []
    x = 5 + 5 * (missed + 1)  # it went on meanwhile
    assert tracker.update(found((x, 0))).tolist() == [expected]


def test_frames_that_nobody_looked_at_count() -> None:
    every, dropping = Tracker(max_lost=3), Tracker(max_lost=3)
    for step in range(5):
        assert every.update(found((8.0 * step, 0)), frames=4).tolist() == [1]
    dropping.update(found((0, 0)))
    assert dropping.update(found((0, 0)), frames=5).tolist() == [2]


def test_what_is_not_finite_is_no_object_that_is_known() -> None:
    tracker = Tracker()
    broken = Detections(torch.full((1, 4), torch.nan), torch.ones(1), torch.zeros(1).long())
    assert tracker.update(broken).tolist() == [1]
    assert tracker.update(found((0, 0))).tolist() == [2]


@pytest.mark.parametrize("bad", [{"iou_threshold": 0}, {"max_lost": -1}, {"momentum": 1}])
def test_settings_out_of_range_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        Tracker(**bad)  # type: ignore[arg-type]


def slow_pairs(overlap: Tensor, threshold: float) -> set[tuple[int, int]]:
    """One pair after the other, as the definition says."""
    rows, columns = overlap.shape
    cells = sorted((-float(overlap[r, c]), r, c) for r in range(rows) for c in range(columns))
    pairs: set[tuple[int, int]] = set()
    for value, row, column in cells:
        free = all(row != r and column != c for r, c in pairs)
        if free and -value >= threshold:
            pairs.add((row, column))
    return pairs


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (1, 1), (4, 7), (9, 5), (30, 30)])
@pytest.mark.parametrize("grid", [0, 4])  # 4: many values are equal
def test_pairs_are_those_of_the_definition(shape: tuple[int, int], grid: int) -> None:
    generator = torch.Generator().manual_seed(sum(shape))
    overlap = torch.rand(shape, generator=generator)
    overlap = (overlap * grid).round() / grid if grid else overlap
    rows, columns = greedy_pairs(overlap, 0.25)
    pairs = list(zip(rows.tolist(), columns.tolist(), strict=True))
    expected = slow_pairs(overlap, 0.25)
    values = [float(overlap[pair]) for pair in pairs]
    assert len(set(rows.tolist())) == len(set(columns.tolist())) == len(pairs)
    if grid:  # which of equals is taken is free, how much they sum up to at each step is not
        assert sorted(values)[-1:] == sorted(float(overlap[pair]) for pair in expected)[-1:]
        assert all(value >= 0.25 for value in values)
    else:
        assert set(pairs) == expected
