"""Which code evaluates: the compiled module where it was built, numpy otherwise.

Both give the same bits. The module is C (`native/`), which `pip install` builds where a compiler is
present (`ext-modules` in pyproject.toml). The environment variable DETKIT_EVALUATOR forces one:
`numpy` or `compiled`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from types import ModuleType

VARIABLE = "DETKIT_EVALUATOR"
COMPILED, NUMPY = "compiled", "numpy"
INTERFACE = 5  # as in native/module.c

_chosen: ContextVar[str | None] = ContextVar("_chosen", default=None)


@dataclass(frozen=True, slots=True)
class Backend:
    """The code that evaluates.

    Attributes:
        name: "compiled" or "numpy".
        reason: why it is this one.
    """

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


def backend() -> Backend:
    """The code that evaluates now, and why.

    Raises:
        ValueError: DETKIT_EVALUATOR is neither "numpy" nor "compiled", or asks for the compiled
            module where there is none.
    """
    choice = _chosen.get() or os.environ.get(VARIABLE, "")
    source = "chosen by the program" if _chosen.get() else f"chosen by {VARIABLE}"
    module, fault = load_native()
    if choice == NUMPY:
        return Backend(NUMPY, source)
    if choice not in ("", COMPILED):
        raise ValueError(f"{VARIABLE} must be {NUMPY!r} or {COMPILED!r}, got {choice!r}")
    if module is not None:
        return Backend(COMPILED, source if choice else "the compiled module is there")
    if choice == COMPILED:
        raise ValueError(
            f"the compiled evaluator is {source}, but {fault}; install detkit again where a C "
            f"compiler is present, or choose {NUMPY!r}"
        )
    return Backend(NUMPY, fault)


@contextmanager
def using(name: str) -> Iterator[None]:
    """Evaluate with "numpy" or "compiled" within a `with` block.

    Raises:
        ValueError: another name, or there is no compiled module.
    """
    token = _chosen.set(name)
    try:
        backend()  # a wrong choice fails here
        yield
    finally:
        _chosen.reset(token)


def native_module() -> ModuleType | None:
    """The compiled module, or None where numpy evaluates."""
    return load_native()[0] if backend().name == COMPILED else None


@cache
def load_native() -> tuple[ModuleType | None, str]:
    """The compiled module, or None and what is wrong."""
    try:
        import detkit.evaluation._native as module  # an optional part, as a dependency can be
    except ModuleNotFoundError:
        return None, "no compiled module was built"
    except ImportError as error:
        return None, f"the compiled module does not load ({error})"
    if module.INTERFACE != INTERFACE:
        return None, "the compiled module was built from another version of the code"
    return module, ""
