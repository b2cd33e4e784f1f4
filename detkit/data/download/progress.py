"""What long work needs of a progress bar; `tqdm` has it all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol


class Bar(Protocol):
    """A bar on the screen."""

    def update(self, n: int) -> Any:
        """Go on by n bytes, or back where n is negative."""

    def set_postfix_str(self, s: str) -> Any:
        """Say something behind the bar."""


# Label and number of bytes (None: not known) to a bar that is there within a `with`
Progress = Callable[[str, int | None], AbstractContextManager[Bar]]


class _Unseen:
    def update(self, n: int) -> None:
        pass

    def set_postfix_str(self, s: str) -> None:
        pass


@contextmanager
def no_progress(label: str, total: int | None) -> Iterator[Bar]:
    """Show nothing."""
    yield _Unseen()
