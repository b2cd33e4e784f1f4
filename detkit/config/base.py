"""What all sections of a recipe are made of."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0, le=1)]
OpenFraction = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
# A factor on the size of an image: 16 make 256 times as many pixels
Scale = Annotated[float, Field(gt=0, le=16)]
NonNegativeInt = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]  # what torch takes


def _check_focusing(gamma: float) -> float:
    if 0 < gamma < 1:
        raise ValueError(
            "gamma of a focal loss is 0 (cross entropy) or at least 1: between, "
            "what is surely right has no finite gradient"
        )
    return gamma


Focusing = Annotated[NonNegative, AfterValidator(_check_focusing)]


class ConfigError(ValueError):
    """A recipe that cannot be used; the message has one line per mistake."""


class Section(BaseModel):
    """Base of all sections: immutable, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def check_folder_name(name: str) -> None:
    """Raise unless a run of this name can have a folder of this name."""
    if not re.fullmatch(r"[\w][\w.\-]*", name):
        raise ValueError(f"name {name!r} becomes a folder: use letters, digits, '.', '-', '_'")
