"""Sections about data: where it comes from and how it is prepared."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, model_validator

from detkit.config.base import Fraction, NonNegativeInt, Positive, Scale, Section


class CocoSource(Section):
    """COCO JSON annotations and the folder that holds the images."""

    format: Literal["coco"] = "coco"
    annotations: str
    images: str
    proposals: str | None = None  # of model.proposals=file: COCO results JSON, or .npz


class VocSource(Section):
    """Pascal VOC XML: a root with Annotations/, or any folder of XML files and pictures."""

    format: Literal["voc"] = "voc"
    root: str
    split: str | None = None  # a list in ImageSets/Main/; all: every XML file although there are
    classes: tuple[str, ...] | None = None  # in the order of labels; default: as annotated, sorted
    difficult: Literal["ignore", "keep"] = "ignore"  # ignored as crowds are, or objects as others
    one_based: bool | None = None  # corners are pixels from 1; default: if from the VOC challenge
    proposals: str | None = None  # of model.proposals=file: COCO results JSON, or .npz


class YoloSource(Section):
    """YOLO text files, as a data.yaml names them."""

    format: Literal["yolo"] = "yolo"
    data: str
    split: str | None = None  # train, val or test; default: the only one there is
    proposals: str | None = None  # of model.proposals=file: COCO results JSON, or .npz


class CsvSource(Section):
    """A table with a row for each box."""

    format: Literal["csv"] = "csv"
    annotations: str
    images: str | None = None  # default: the folder of the table, or images/ beside it
    classes: tuple[str, ...] | None = None  # in the order of labels; default: as annotated, sorted
    proposals: str | None = None  # of model.proposals=file: COCO results JSON, or .npz


class AutoSource(Section):
    """Annotations of any format above; the log says which it was taken for."""

    format: Literal["auto"] = "auto"
    path: str
    split: str | None = None  # of VOC and YOLO, or to pick a file or folder named after it
    images: str | None = None  # of COCO JSON and CSV; default: one of the usual places
    classes: tuple[str, ...] | None = None  # of VOC and CSV
    proposals: str | None = None  # of model.proposals=file: COCO results JSON, or .npz


class SyntheticSource(Section):
    """The built-in data set: generated pictures of digits, made on first use."""

    format: Literal["synthetic"] = "synthetic"
    split: Literal["train", "val", "test"] = "train"
    num_images: PositiveInt = 1000
    image_size: tuple[PositiveInt, PositiveInt] = (256, 256)
    seed: NonNegativeInt = 0
    proposals: str | None = None  # of model.proposals=file: COCO results JSON, or .npz


Source = Annotated[
    CocoSource | VocSource | YoloSource | CsvSource | AutoSource | SyntheticSource,
    Field(discriminator="format"),
]


class ResizeConfig(Section):
    """Scale, keeping the aspect ratio, until the shortest or the longest side has its limit."""

    shortest: PositiveInt | None = 800
    longest: PositiveInt | None = 1333

    @model_validator(mode="after")
    def _one_side_at_least(self) -> ResizeConfig:
        if self.shortest is None and self.longest is None:
            raise ValueError("shortest and longest are both null; set at least one")
        return self


# What a preset sets; every one of these settings can still be given beside it
AUGMENT_PRESETS: dict[str, dict[str, Any]] = {
    "light": {"scale_jitter": (0.8, 1.25), "color": 0.3},
    "medium": {"scale_jitter": (0.6, 1.3), "color": 0.5, "crop": 0.3, "mosaic": 0.3},
    "strong": {
        "scale_jitter": (0.6, 1.2),
        "color": 0.7,
        "crop": 0.3,
        "mosaic": 0.8,
        "copy_paste": 0.2,
        "mixup": 0.15,
        "multi_scale": (0.75, 1.0, 1.25),
    },
}


class AugmentConfig(Section):
    """Random changes of training images; all off except the flip, as torchvision trains."""

    preset: Literal["light", "medium", "strong"] | None = None  # values for what is not given here
    horizontal_flip: Fraction = 0.5
    vertical_flip: Fraction = 0.0
    rotate90: bool = False  # turn by a random multiple of 90 degrees
    scale_jitter: tuple[Positive, Positive] | None = None  # factor on the size after resizing
    crop: Fraction = 0.0  # probability of a crop that keeps boxes
    color: Fraction = 0.0  # strength of brightness, contrast, saturation and hue changes
    mosaic: Fraction = 0.0  # probability of four pictures in one
    copy_paste: Fraction = 0.0  # probability of boxes of another picture, pasted as rectangles
    mixup: Fraction = 0.0  # probability of another picture that shines through
    close_mosaic: NonNegativeInt | None = (
        None  # last epochs without these three; default: a tenth of train.epochs
    )
    multi_scale: Annotated[tuple[Scale, ...], Field(min_length=1)] | None = (
        None  # factors on data.resize, one drawn for each batch
    )

    @model_validator(mode="after")
    def _fill_in_preset(self) -> AugmentConfig:
        """What a preset says, where nothing else is said."""
        for name, value in AUGMENT_PRESETS.get(self.preset or "", {}).items():
            if name not in self.model_fields_set:
                object.__setattr__(self, name, value)  # frozen from here on
        return self

    @property
    def mixes(self) -> bool:
        """Whether several pictures may become one."""
        return max(self.mosaic, self.copy_paste, self.mixup) > 0


class SamplingConfig(Section):
    """How often pictures are seen in an epoch; rare classes can be seen more."""

    name: Literal["uniform", "repeat_factor", "class_balanced"] = "uniform"
    threshold: Fraction = 0.001  # repeat_factor: share of pictures below which a class is repeated


class DataConfig(Section):
    """Where pictures and boxes come from and how they are prepared."""

    train: Source | None = None
    val: Source | None = None
    test: Source | None = None  # default: val
    resize: ResizeConfig = ResizeConfig()
    augment: AugmentConfig = AugmentConfig()
    sampling: SamplingConfig = SamplingConfig()
    unreadable: Literal["error", "skip"] = "error"  # training; skip: another picture comes instead
    workers: NonNegativeInt | None = (
        None  # that read ahead; default: spare cores, at most 8 (CPU 1)
    )
