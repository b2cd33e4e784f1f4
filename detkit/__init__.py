"""detkit: train, measure, understand and vary object detectors.

Importing this package costs nothing: what it offers is imported when it is first asked for.

Example:
    >>> import detkit
    >>> predictor = detkit.load("runs/quickstart/best.pt")  # doctest: +SKIP
    >>> detections = predictor("photo.jpg")  # doctest: +SKIP
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from detkit import ops
    from detkit.inference.predictor import load

__version__ = "0.1.0"
__all__ = ["__version__", "load", "ops"]


def __getattr__(name: str) -> Any:
    """Import `load` or a submodule such as `ops` on first use."""
    if name == "load":
        return import_module("detkit.inference.predictor").load
    if name.startswith("_"):  # asked for by copy, pickle, doctest: never a module of ours
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return import_module(f"{__name__}.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"{__name__}.{name}":  # the module is there, one that it needs is not
            raise
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
