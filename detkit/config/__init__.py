"""Recipes: the schema of everything that can be set, and how a YAML file becomes one.

A recipe is data: `load_recipe` reads YAML safely, applies `key.path=value` overrides and checks
every key, type and choice. Defaults live here and nowhere else; a recipe file states what differs.
"""

from detkit.config.base import ConfigError, Section
from detkit.config.data import (
    AugmentConfig,
    CocoSource,
    DataConfig,
    ResizeConfig,
    Source,
    SyntheticSource,
)
from detkit.config.model import (
    BackboneConfig,
    FCOSConfig,
    FPNConfig,
    FusionConfig,
    GridConfig,
    ImagePyramidConfig,
    ModelConfig,
    RetinaNetConfig,
    RoIConfig,
    RPNConfig,
    SelectConfig,
    SelectiveSearchConfig,
    SlidingWindowConfig,
    TaskAlignedConfig,
)
from detkit.config.reading import (
    apply_override,
    build_recipe,
    build_recipe_as,
    load_recipe,
    load_recipe_as,
    parse_yaml,
    recipe_to_yaml,
)
from detkit.config.recipe import (
    ClassifierConfig,
    ClassifierDataConfig,
    ClassifierRecipe,
    ClassifierTrainConfig,
    CropConfig,
    RAMConfig,
    Recipe,
)
from detkit.config.training import (
    EMAConfig,
    OptimizerConfig,
    ScheduleConfig,
    SWAConfig,
    TestConfig,
    TrainConfig,
)

__all__ = [
    "AugmentConfig",
    "BackboneConfig",
    "ClassifierConfig",
    "ClassifierDataConfig",
    "ClassifierRecipe",
    "ClassifierTrainConfig",
    "CocoSource",
    "ConfigError",
    "CropConfig",
    "DataConfig",
    "EMAConfig",
    "FCOSConfig",
    "FPNConfig",
    "FusionConfig",
    "GridConfig",
    "ImagePyramidConfig",
    "ModelConfig",
    "OptimizerConfig",
    "RAMConfig",
    "RPNConfig",
    "Recipe",
    "ResizeConfig",
    "RetinaNetConfig",
    "RoIConfig",
    "SWAConfig",
    "ScheduleConfig",
    "Section",
    "SelectConfig",
    "SelectiveSearchConfig",
    "SlidingWindowConfig",
    "Source",
    "SyntheticSource",
    "TaskAlignedConfig",
    "TestConfig",
    "TrainConfig",
    "apply_override",
    "build_recipe",
    "build_recipe_as",
    "load_recipe",
    "load_recipe_as",
    "parse_yaml",
    "recipe_to_yaml",
]
