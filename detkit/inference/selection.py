"""Change how a finished detector makes few boxes of many, without loading it again."""

from __future__ import annotations

from torch import nn

from detkit.ops import Selection


def selection_of(detector: nn.Module) -> Selection | None:
    """What the detector reports, also inside a pyramid or tiles; None where that is fixed.

    It is fixed in an exported file, whose graph holds it.
    """
    owner = _owner(detector)
    return None if owner is None else owner.selection  # type: ignore[return-value]


def select_by(detector: nn.Module, selection: Selection) -> None:
    """Have the detector report by another selection from now on.

    Args:
        detector: changed in place.
        selection: most simply `dataclasses.replace(selection_of(detector), nms="soft_gaussian")`.
            What joins the answers of several sizes or tiles, `test.fusion`, stays as it is.

    Raises:
        ValueError: the detector's is fixed.
    """
    owner = _owner(detector)
    if owner is None:
        raise ValueError(
            f"{type(detector).__name__} has its suppression built in; load the checkpoint that it "
            "was made from to change it"
        )
    owner.selection = selection  # type: ignore[assignment]


def _owner(detector: nn.Module) -> nn.Module | None:
    """The one part that selects: the detector, or its second stage."""
    parts = detector.modules() if isinstance(detector, nn.Module) else ()
    return next(
        (each for each in parts if isinstance(vars(each).get("selection"), Selection)), None
    )
