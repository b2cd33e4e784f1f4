"""Sections about training and testing."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator, PositiveInt, model_validator

from detkit.config.base import (
    Fraction,
    NonNegative,
    NonNegativeInt,
    OpenFraction,
    Positive,
    Scale,
    Section,
)
from detkit.config.model import FusionConfig, SizeRange, check_ranges


class OptimizerConfig(Section):
    """How weights move; settings that the named optimiser does not have are left aside."""

    name: Literal["sgd", "adagrad", "adadelta", "rmsprop", "adam", "nadam", "adamw"] = "sgd"
    lr: Positive = 0.02
    base_batch: PositiveInt | None = None  # lr is for this batch size, and scaled with another one
    momentum: Fraction = 0.9  # sgd, rmsprop
    nesterov: bool = False  # sgd
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)  # adam, nadam, adamw
    smoothing: Fraction = 0.99  # rmsprop's alpha; adadelta's rho
    weight_decay: NonNegative = 1e-4
    decay_norm_and_bias: bool = True
    backbone_rate: Positive = 1.0  # factor on the rate of the backbone
    layer_decay: Annotated[float, Field(gt=0, le=1)] = (
        1.0  # a further one for each stage from its end
    )

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> OptimizerConfig:
        if self.nesterov and (self.name != "sgd" or self.momentum == 0):
            raise ValueError("nesterov is a kind of momentum of sgd; set momentum, or name: sgd")
        return self


class ScheduleConfig(Section):
    """How the rate changes: linear warmup times a course."""

    name: Literal[
        "constant", "multistep", "step", "exponential", "inverse", "cosine", "one_cycle", "plateau"
    ] = "multistep"
    warmup_steps: NonNegativeInt = 1000
    warmup_ratio: Fraction = 1e-3
    milestones: tuple[PositiveInt, ...] = (16, 22)  # multistep: epochs after which the rate falls
    every: PositiveInt = 10  # step: epochs between its falls
    # multistep, step, plateau: factor of a fall; exponential: of an epoch;
    # inverse: 1 / (1 + gamma * epochs)
    gamma: NonNegative = 0.1
    final_ratio: Fraction = 0.0  # where cosine and one_cycle end
    rise: OpenFraction = 0.3  # one_cycle: part of training in which the rate rises
    patience: PositiveInt = 3  # plateau: validations without a better AP before a fall

    @model_validator(mode="after")
    def _falls(self) -> ScheduleConfig:
        if self.gamma > 1 and self.name != "inverse":
            raise ValueError(f"gamma {self.gamma} would make the rate rise; use at most 1")
        return self


class EMAConfig(Section):
    """Running average of the weights, used for validation and as the result."""

    decay: Fraction = 0.999
    warmup_steps: PositiveInt = 200  # the average follows faster in the beginning


class SWAConfig(Section):
    """Plain average of the weights at the ends of the last epochs (Izmailov et al., UAI 2018).

    Statistics of batch norm are averaged too, instead of being measured again.
    """

    epochs: PositiveInt = 5


class TrainConfig(Section):
    """Everything about training."""

    epochs: PositiveInt = 26
    batch_size: PositiveInt = 16  # over all processes
    # parts in which a batch goes through the network, its gradient being gathered: less memory.
    # The same gradient where losses are means over images and norms do not look at the batch
    accumulate: PositiveInt = 1
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    clip_norm: Positive | None = None
    amp: Literal["auto", "bf16", "fp16", "off"] = "auto"
    channels_last: bool = True
    ema: EMAConfig | None = None
    swa: SWAConfig | None = None
    validate_every: PositiveInt = 1  # epochs
    patience: PositiveInt | None = None  # validations without a better AP after which to stop
    save_every: PositiveInt | None = None  # steps between savings, beside that of each epoch
    sync_batch_norm: bool = False
    log_every: PositiveInt = 10  # steps between lines in metrics.jsonl

    @model_validator(mode="after")
    def _one_average(self) -> TrainConfig:
        if self.ema is not None and self.swa is not None:
            raise ValueError("ema and swa are two averages of the weights; set one of them to null")
        if self.swa is not None and self.swa.epochs > self.epochs:
            raise ValueError(f"swa.epochs {self.swa.epochs} are more than epochs {self.epochs}")
        return self


def check_thresholds(value: Any) -> float | dict[str, float] | str | None:
    """What may stand for score thresholds; said in one line, which a union of types cannot."""
    if value is None or (isinstance(value, str) and value):
        return value
    by_class = value if isinstance(value, dict) else {"": value}
    for name, number in by_class.items():
        whole = isinstance(number, int | float) and not isinstance(number, bool)
        if not (isinstance(name, str) and whole and 0 <= number <= 1):
            raise ValueError(
                "thresholds are a number in 0..1, {name of a class: number}, or a file of these"
            )
    return {name: float(x) for name, x in value.items()} if value is by_class else float(value)


Thresholds = Annotated[float | dict[str, float] | str | None, PlainValidator(check_thresholds)]


class TestConfig(Section):
    """Everything about testing, and about prediction with the finished detector."""

    __test__ = False  # pytest: not a test case

    batch_size: PositiveInt = 8  # pictures, or tiles of a picture
    amp: Literal["auto", "bf16", "fp16", "off"] = "off"
    # looked at in these sizes, as factors on data.resize; pixels come from the original picture
    scales: tuple[Scale, ...] = (1.0,)
    ranges: tuple[SizeRange, ...] | None = None  # see model.image_pyramid.ranges
    flip: bool = False  # look at the mirror image, too
    # cut pictures larger than this many of their own pixels into tiles of this side; each is
    # prepared as a picture of its own, by data.resize
    tile: Annotated[int, Field(ge=32)] | None = None
    tile_overlap: Annotated[float, Field(ge=0, lt=1)] = 0.2  # least share of neighbours in a tile
    tile_whole: bool = False  # look at the whole picture, too: objects larger than the overlap
    fusion: FusionConfig = FusionConfig()
    weights: tuple[Positive, ...] | None = None  # of several checkpoints; null: all alike
    # lowest score: a number, {name of a class: number}, or a file of these; unnamed ones: 0
    thresholds: Thresholds = None

    @model_validator(mode="after")
    def _fits_together(self) -> TestConfig:
        check_ranges(self.ranges, self.scales)
        if self.tile_whole and self.tile is None:
            raise ValueError("tile_whole is about tiles, of which there are none; set test.tile")
        return self

    def looks_often(self) -> bool:
        """Whether a picture is looked at more than once, so that `fusion` has work to do."""
        return len(self.scales) > 1 or self.flip or self.tile is not None
