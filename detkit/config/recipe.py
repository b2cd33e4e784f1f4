"""Whole recipes: of a detector, and of a classifier."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, PositiveInt, model_validator

from detkit.config.base import (
    NonNegative,
    NonNegativeInt,
    Positive,
    Section,
    Seed,
    check_folder_name,
)
from detkit.config.data import DataConfig, Source
from detkit.config.model import ModelConfig
from detkit.config.training import OptimizerConfig, ScheduleConfig, TestConfig, TrainConfig


class Recipe(Section):
    """All that is needed to train and test a detector again."""

    name: str
    seed: Seed = 0
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    test: TestConfig = TestConfig()

    @model_validator(mode="after")
    def _name_is_a_folder(self) -> Recipe:
        check_folder_name(self.name)
        return self


class CropConfig(Section):
    """How a box becomes a picture to classify."""

    size: PositiveInt = 32  # side in pixels
    context: NonNegative = 0.0  # margin on each side, as a share of the longer side of the box
    grey: bool = False
    canvas: PositiveInt | None = None  # side of an empty picture in which the crop lies anywhere
    clutter: NonNegativeInt = 0  # pieces of other crops on the canvas

    @model_validator(mode="after")
    def _the_canvas_holds_the_crop(self) -> CropConfig:
        if self.canvas is not None and self.canvas < self.size:
            raise ValueError(f"canvas {self.canvas} is smaller than size {self.size}")
        if self.canvas is None and self.clutter:
            raise ValueError("clutter needs a canvas to lie on; set canvas, e.g. to twice the size")
        return self


class ClassifierDataConfig(Section):
    """Whose boxes are classified."""

    train: Source | None = None
    val: Source | None = None
    test: Source | None = None  # default: val
    crop: CropConfig = CropConfig()


class RAMConfig(Section):
    """The recurrent attention model."""

    glimpses: PositiveInt = 6
    patches: tuple[PositiveInt, ...] = (8,)  # sides in pixels; multiples of the first
    hidden: PositiveInt = 256
    std: Positive = 0.17  # of the policy; the image reaches from -1 to 1
    learn_where: bool = True  # false: uniform locations, to see what the policy is worth


class ClassifierConfig(Section):
    """A classifier: "ram", or the network that a backbone comes from."""

    name: str = "ram"
    ram: RAMConfig = RAMConfig()
    weights: str | None = None  # of a backbone's network: "imagenet" or a path
    settings: dict[str, Any] = Field(default_factory=dict)  # of a backbone's network, e.g. width
    head: Literal["logistic", "mlp"] | None = None  # on a backbone's last map; null: its own
    mean: float = 0.5  # of pixels in 0..1
    std: Positive = 0.25

    @model_validator(mode="after")
    def _settings_are_of_the_network(self) -> ClassifierConfig:
        if self.name == "ram" and (self.settings or self.weights or self.head):
            raise ValueError("weights, settings and head are of a backbone; ram has only model.ram")
        return self


class ClassifierTrainConfig(Section):
    """Everything about training a classifier."""

    epochs: PositiveInt = 20
    batch_size: PositiveInt = 128
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    clip_norm: Positive | None = None


class ClassifierRecipe(Section):
    """All that is needed to train a classifier again."""

    name: str
    seed: Seed = 0
    data: ClassifierDataConfig = ClassifierDataConfig()
    model: ClassifierConfig = ClassifierConfig()
    train: ClassifierTrainConfig = ClassifierTrainConfig()

    @model_validator(mode="after")
    def _name_is_a_folder(self) -> ClassifierRecipe:
        check_folder_name(self.name)
        return self
