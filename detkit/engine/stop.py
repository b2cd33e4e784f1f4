"""Being asked to stop: Ctrl-C, and the SIGTERM that pre-emptible machines send.

Both wait for the end of what must not be left half done, such as a step of the optimiser, and then
end training by an exception, after which its state is saved. A second Ctrl-C does not wait: what
is under way is torn, and what was saved before counts.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from detkit.engine import distributed
from detkit.signals import Terminated

LISTEN_EVERY = 4  # turns
ENDING = "ending"

CHILD_ENDED = getattr(signal, "SIGCHLD", None)  # Windows has none

STOPS: dict[int, type[BaseException]] = {
    signal.SIGINT: KeyboardInterrupt,
    signal.SIGTERM: Terminated,
}


class StopRequests:
    """What was asked for, and whether it has to wait.

    With several processes it always waits: the signals reach them at different moments, and all
    must stop after the same step. They agree at `check`. Where they do not go in step, as in
    validation, each leaves what it does when it has `noticed`.

    Attributes:
        torn: an exception has ended a block that was not to be left half done.
    """

    def __init__(self) -> None:
        self._asked: type[BaseException] | None = None
        self._held = 0
        self.torn = False

    def ask(self, number: int, _frame: FrameType | None = None) -> None:
        """Handle a signal."""
        again = self._asked is not None and number == signal.SIGINT
        self._asked = STOPS[number]
        if again or not (self._held or dist.is_initialized()):
            self._stop()

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Let requests wait until the end of the block."""
        self._held += 1
        try:
            with deaf_to_children():
                yield
        except BaseException:
            self.torn = True
            raise
        finally:
            self._held -= 1
        self.check()

    def check(self) -> None:
        """Stop here, if that was asked for, of whichever process.

        Raises:
            KeyboardInterrupt: Ctrl-C.
            Terminated: SIGTERM.
        """
        if dist.is_initialized():
            self._agree()
        if self._asked is not None and not self._held:
            self._stop()

    def noticed(self, turn: int) -> bool:
        """Whether to leave early, for `check`, what several processes do each at its own pace.

        Of other processes it learns every `LISTEN_EVERY` turns, by a message to the launcher's
        store: neither a GPU nor another process has to wait for it. A single process is stopped by
        the signal itself.
        """
        if not dist.is_initialized():
            return False
        if self._asked is not None:
            distributed.tell_all(ENDING)
            return True
        return turn % LISTEN_EVERY == 0 and distributed.was_told(ENDING)

    def _agree(self) -> None:
        """Take over what any process was asked."""
        kinds = list(STOPS.values())
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        mine = 1 + kinds.index(self._asked) if self._asked is not None else 0
        asked = torch.tensor(mine, device=device)
        dist.all_reduce(asked, op=dist.ReduceOp.MAX)
        if asked.item():
            self._asked = kinds[int(asked.item()) - 1]

    def _stop(self) -> None:
        assert self._asked is not None
        asked, self._asked = self._asked, None
        raise asked


@contextlib.contextmanager
def deaf_to_children() -> Iterator[None]:
    """Let the death of a process that reads ahead be noticed later, where data is waited for.

    torch's handler raises wherever its parent happens to be, which would tear what is held.
    """
    if CHILD_ENDED is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.signal(CHILD_ENDED, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(CHILD_ENDED, handler)


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequests]:
    """Listen to the signals within the block; in another thread than the main one Python cannot."""
    stop = StopRequests()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before: dict[int, Any] = {number: signal.signal(number, stop.ask) for number in STOPS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
