"""Sections about data: where it comes from and how it is prepared."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from detkit.config.base import Fraction, NonNegativeInt, Positive, Section


class CocoSource(Section):
    """COCO JSON annotations and the folder that holds the images."""

    format: Literal["coco"] = "coco"
    annotations: str
    images: str
    proposals: str | None = None  # of model.proposals=file: COCO results JSON, or .npz


class SyntheticSource(Section):
    """The built-in data set: generated pictures of digits, made on first use."""

    format: Literal["synthetic"] = "synthetic"
    split: Literal["train", "val", "test"] = "train"
    num_images: PositiveInt = 1000
    image_size: tuple[PositiveInt, PositiveInt] = (256, 256)
    seed: NonNegativeInt = 0
    proposals: str | None = None  # of model.proposals=file: COCO results JSON, or .npz


Source = Annotated[CocoSource | SyntheticSource, Field(discriminator="format")]


class ResizeConfig(Section):
    """Scale, keeping the aspect ratio, until the shortest or the longest side has its limit."""

    shortest: PositiveInt | None = 800
    longest: PositiveInt | None = 1333

    @model_validator(mode="after")
    def _one_side_at_least(self) -> ResizeConfig:
        if self.shortest is None and self.longest is None:
            raise ValueError("shortest and longest are both null; set at least one")
        return self


class AugmentConfig(Section):
    """Random changes of training images; all off except the flip, as torchvision trains."""

    horizontal_flip: Fraction = 0.5
    vertical_flip: Fraction = 0.0
    rotate90: bool = False  # turn by a random multiple of 90 degrees
    scale_jitter: tuple[Positive, Positive] | None = None  # factor on the size after resizing
    crop: Fraction = 0.0  # probability of a crop that keeps boxes
    color: Fraction = 0.0  # strength of brightness, contrast, saturation and hue changes


class DataConfig(Section):
    """Where pictures and boxes come from and how they are prepared."""

    train: Source | None = None
    val: Source | None = None
    test: Source | None = None  # default: val
    resize: ResizeConfig = ResizeConfig()
    augment: AugmentConfig = AugmentConfig()
    workers: NonNegativeInt | None = (
        None  # that read ahead; default: spare cores, at most 8 (CPU 1)
    )
