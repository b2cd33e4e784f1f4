"""Batches of prepared pictures, read ahead while the detector computes.

Pictures share a batch if they fill the same padded size. Then what is found in a picture does not
depend on its neighbours: padding is normalised to 0, but it moves the cells of coarse feature maps
(see `detkit.detectors.base.MapGeometry`), and is computed for nothing.

B pictures in a batch, H and W the padded height and width.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from detkit.data import Sample
from detkit.structures import Size

T = TypeVar("T")
R = TypeVar("R")
Numbered = tuple[int, T]  # with the place in the order of the pictures

MAX_BATCH_PIXELS = 2**25  # B * H * W: 25 pictures of 1344 x 992; a larger picture comes alone
_WINDOW = 4  # batches whose pictures wait at most for others of their size


def read_ahead(
    items: Iterable[T], work: Callable[[T], R], *, ahead: int, threads: int = 1
) -> Generator[R, None, None]:
    """`work` of each item in their order, done by threads while the caller uses the one before.

    `items` itself is iterated in the caller's thread.

    Args:
        items: any number of them.
        work: must not mind other threads.
        ahead: items that are worked on before their turn.
        threads: that work.
    """
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="detkit-read") as pool:
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:  # also when the caller stops early
            for future in waiting:
                future.cancel()


def group_by_size(
    samples: Iterable[Sample], *, batch_size: int, divisor: int
) -> Iterator[list[Numbered[Sample]]]:
    """Samples of one padded size each, with their places; those that wait longest go first.

    Where a sample cannot be had, those before it are given out before the error is raised.

    Args:
        samples: prepared, any number of them.
        batch_size: most samples in a group; of large ones fewer, see `MAX_BATCH_PIXELS`.
        divisor: padded sides are multiples of it.
    """
    waiting: dict[Size, list[Numbered[Sample]]] = {}
    count = pixels = 0  # that wait
    try:
        for numbered in enumerate(samples):
            height, width = padded_size(numbered[1], divisor)
            waiting.setdefault((height, width), []).append(numbered)
            count, pixels = count + 1, pixels + height * width
            size = None
            if len(waiting[height, width]) >= min(batch_size, MAX_BATCH_PIXELS // (height * width)):
                size = (height, width)
            elif count >= _WINDOW * batch_size or pixels > _WINDOW * MAX_BATCH_PIXELS:
                size = next(iter(waiting))  # the one whose first sample waits longest
            if size is not None:
                group = waiting.pop(size)
                count, pixels = count - len(group), pixels - len(group) * size[0] * size[1]
                yield group
    except Exception:
        yield from waiting.values()
        raise
    yield from waiting.values()


def padded_size(sample: Sample, divisor: int) -> Size:
    """(height, width) that `collate` pads the picture to, if it is alone."""
    height, width = sample.image.shape[:2]
    return -(-height // divisor) * divisor, -(-width // divisor) * divisor


def in_order(found: Iterable[Numbered[T]]) -> Iterator[T]:
    """Results by their places `0, 1, ...`, each as soon as those before it are there."""
    early: dict[int, T] = {}
    turn = 0
    for place, result in found:
        early[place] = result
        while turn in early:
            yield early.pop(turn)
            turn += 1
