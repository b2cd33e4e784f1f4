"""Names to builders: one small class and its three instances."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Callable, Iterable
from typing import Any, Generic, Protocol, TypeVar

T = TypeVar("T", bound=Callable[..., Any])
Built = TypeVar("Built", covariant=True)


def suggest(given: str, allowed: Iterable[str], *, limit: int = 3) -> str:
    """The end of an error message: the closest matches and everything allowed."""
    names = [str(name) for name in allowed]
    close = difflib.get_close_matches(str(given), names, n=limit, cutoff=0.6)
    hint = f"did you mean {' or '.join(repr(name) for name in close)}? " if close else ""
    return f"{hint}allowed: {', '.join(names)}"


class Family(Protocol[Built]):
    """Builders that share the beginning of their names."""

    def builder(self, name: str) -> Built:
        """The builder of that name; ValueError where it is unknown."""
        ...

    def names(self) -> list[str]:
        """All names."""
        ...


class Registry(Generic[T]):
    """A table of builders by name.

    Args:
        kind: what the table holds, for error messages ("backbone").
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._builders: dict[str, T] = {}
        self._families: dict[str, Family[T]] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that adds a builder.

        Raises:
            ValueError: the name is taken.
        """

        def add(builder: T) -> T:
            if name in self._builders:
                raise ValueError(f"{self.kind} {name!r} is registered twice")
            self._builders[name] = builder
            return builder

        return add

    def register_family(self, prefix: str, family: Family[T]) -> None:
        """Add all builders whose name begins like this; another library knows which there are."""
        self._families[prefix] = family

    def names(self, pattern: str = "*") -> list[str]:
        """All names that match a shell pattern, sorted; of a family if it begins with its name."""
        family = self._family(pattern)
        return sorted(fnmatch.filter(family.names() if family else self._builders, pattern))

    def __contains__(self, name: object) -> bool:
        family = self._family(str(name))
        return name in (family.names() if family else self._builders)

    def __getitem__(self, name: str) -> T:
        """The builder of that name.

        Raises:
            ValueError: unknown name; the message has close matches and the full list.
        """
        if family := self._family(name):
            return family.builder(name)
        if name not in self._builders:
            choices = suggest(name, self.names()) if self._builders else "there is none yet"
            raise ValueError(f"unknown {self.kind} {name!r}; {choices}")
        return self._builders[name]

    def _family(self, name: str) -> Family[T] | None:
        matches = (each for prefix, each in self._families.items() if name.startswith(prefix))
        return next(matches, None)


backbones: Registry[Callable[..., Any]] = Registry("backbone")
attentions: Registry[Callable[..., Any]] = Registry("attention module")
datasets: Registry[Callable[..., Any]] = Registry("data set format")
