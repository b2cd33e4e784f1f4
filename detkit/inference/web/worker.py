"""One detector, one thread, and a short queue before it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")


class Busy(Exception):
    """So many are waiting already that this one is sent away."""


class Superseded(Exception):
    """A newer frame of the same camera came before this one had its turn."""


@dataclass(eq=False)
class _Job:
    """Work that waits for its turn, and what its result goes to."""

    work: Callable[[], Any]
    stream: str | None
    done: asyncio.Future[Any]


class Worker:
    """Does one thing after the other, in a thread of its own.

    Everything but the work itself happens on the event loop, so nothing here needs a lock.

    Args:
        limit: how many may be inside at once: still arriving, waiting, or being worked on. What
            they bring is in memory all that time.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._inside = 0
        self._waiting: list[_Job] = []
        self._task: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="detector")

    @contextmanager
    def place(self) -> Iterator[None]:
        """Be inside for the length of the block.

        Raises:
            Busy: there is no place left.
        """
        if self._inside >= self._limit:
            raise Busy(f"{self._inside} requests are waiting already; try again in a second")
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1

    async def run(self, work: Callable[[], T], *, stream: str | None = None) -> T:
        """What the work returns or raises, when its turn has come.

        Args:
            work: is called in the thread.
            stream: a camera; of its frames only the newest waits.

        Raises:
            Superseded: a newer frame took the place of this one.
        """
        job = _Job(work, stream, asyncio.get_running_loop().create_future())
        older = [i for i, each in enumerate(self._waiting) if stream and each.stream == stream]
        if older:
            self._waiting[older[0]].done.set_exception(Superseded())
            self._waiting[older[0]] = job  # in its place: a camera does not lose its turn
        else:
            self._waiting.append(job)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._work_off())
        try:
            return await job.done
        finally:
            del job  # an error holds this frame, which would hold the picture and the error

    async def _work_off(self) -> None:
        while self._waiting:
            job = self._waiting.pop(0)
            if job.done.done():  # whoever asked has gone
                continue
            try:
                result = await asyncio.get_running_loop().run_in_executor(self._thread, job.work)
            except Exception as error:
                if not job.done.done():
                    job.done.set_exception(error)
            else:
                if not job.done.done():
                    job.done.set_result(result)
            del job

    def close(self) -> None:
        """Wait for the end of what is being worked on; nothing else is begun."""
        self._waiting.clear()
        self._thread.shutdown(wait=True, cancel_futures=True)
