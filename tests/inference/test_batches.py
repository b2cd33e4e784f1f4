"""Pictures are read ahead, share batches with their like, and results come in their order."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from detkit.data import Sample
from detkit.inference import batches
from detkit.inference.batches import group_by_size, in_order, padded_size, read_ahead


def sample(height: int, width: int) -> Sample:
    return Sample(
        image=np.zeros((height, width, 3), np.uint8),
        boxes=np.zeros((0, 4), np.float32),
        labels=np.zeros(0, np.int64),
        crowd=np.zeros(0, np.bool_),
        area=np.zeros(0, np.float32),
        image_id=0,
        original_size=(height, width),
    )


def places(sizes: list[tuple[int, int]], batch_size: int) -> list[list[int]]:
    groups = group_by_size((sample(*size) for size in sizes), batch_size=batch_size, divisor=32)
    return [[place for place, _ in group] for group in groups]


def test_work_is_done_ahead_of_its_turn_and_no_further() -> None:
    begun: list[int] = []
    third = threading.Event()

    def work(item: int) -> int:
        begun.append(item)
        if item == 2:
            third.set()
        return item * item

    results = read_ahead(range(100), work, ahead=2)
    assert next(results) == 0
    assert third.wait(10)  # without another call
    assert begun == [0, 1, 2]
    assert list(results) == [item * item for item in range(1, 100)]


def test_items_are_drawn_in_the_caller_s_thread() -> None:
    own, other = threading.get_ident(), list[int]()

    def items() -> Iterator[int]:
        for item in range(3):
            assert threading.get_ident() == own
            yield item

    assert list(read_ahead(items(), lambda _: other.append(threading.get_ident()), ahead=1))
    assert own not in other


def test_nothing_is_left_running_after_the_caller_stops() -> None:
    begun: list[int] = []

    def work(item: int) -> None:
        begun.append(item)
        time.sleep(0.02)

    results = read_ahead(range(100), work, ahead=50)
    next(results)
    results.close()
    assert len(begun) < 40  # the 50 that were to be done ahead are not waited for
    assert not [each for each in threading.enumerate() if each.name.startswith("detkit-read")]


def test_an_error_comes_at_its_turn() -> None:
    results = read_ahead([1, 0, 2], lambda item: 2 // item, ahead=2)
    assert next(results) == 2
    with pytest.raises(ZeroDivisionError):
        next(results)


@pytest.mark.parametrize(
    ("sizes", "batch_size", "expected"),
    [
        ([], 2, []),
        ([(64, 96)] * 5, 2, [[0, 1], [2, 3], [4]]),
        ([(64, 96), (96, 64)] * 2, 2, [[0, 2], [1, 3]]),  # landscape and portrait in turn
        ([(33, 70), (64, 96)], 2, [[0, 1]]),  # both are padded to 64 x 96
        ([(32, 70), (64, 96)], 2, [[0], [1]]),
        ([(32 * k, 32) for k in range(1, 7)], 1, [[0], [1], [2], [3], [4], [5]]),
        # each of another size: the first one waits for 4 batches of 2, not for ever
        (
            [(32 * k, 32) for k in range(1, 11)],
            2,
            [[0], [1], [2], [3], [4], [5], [6], [7], [8], [9]],
        ),
    ],
)
def test_pictures_of_one_padded_size_share_a_batch(
    sizes: list[tuple[int, int]], batch_size: int, expected: list[list[int]]
) -> None:
    assert places(sizes, batch_size) == expected


def test_few_pictures_wait_for_their_like(monkeypatch: pytest.MonkeyPatch) -> None:
    """However different the pictures are, no more than a few batches of them are held."""
    drawn = 0

    def samples() -> Iterator[Sample]:
        nonlocal drawn
        for k in range(200):
            drawn += 1
            yield sample(32 * (k % 50 + 1), 32)

    given = 0
    for group in group_by_size(samples(), batch_size=4, divisor=32):
        given += len(group)
        assert drawn - given < 16
    assert given == 200

    monkeypatch.setattr(batches, "MAX_BATCH_PIXELS", 3 * 32 * 32)
    assert places([(32, 32)] * 7, 8) == [[0, 1, 2], [3, 4, 5], [6]]
    assert places([(96, 96)] * 2, 8) == [[0], [1]]  # larger than the limit: alone


def test_what_was_read_before_an_error_is_given_out() -> None:
    def samples() -> Iterator[Sample]:
        yield sample(64, 32)
        yield sample(32, 64)
        raise ValueError("broken")

    groups = group_by_size(samples(), batch_size=8, divisor=32)
    assert [group[0][0] for group in (next(groups), next(groups))] == [0, 1]
    with pytest.raises(ValueError, match="broken"):
        next(groups)


def test_padded_size_is_that_of_a_batch_of_one() -> None:
    assert padded_size(sample(1, 33), 32) == (32, 64)
    assert padded_size(sample(32, 64), 32) == (32, 64)


def test_results_come_in_their_order_and_as_soon_as_can_be() -> None:
    drawn: list[int] = []

    def found() -> Iterator[tuple[int, str]]:
        for place in (1, 0, 3, 2):
            drawn.append(place)
            yield place, "abcd"[place]

    results = in_order(found())
    assert next(results) == "a" and drawn == [1, 0]
    assert next(results) == "b" and drawn == [1, 0]
    assert list(results) == ["c", "d"]
