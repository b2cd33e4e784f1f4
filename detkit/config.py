"""Recipes: the schema of everything that can be set, and how a YAML file becomes one.

A recipe is data: `load_recipe` reads YAML safely, applies `key.path=value` overrides and checks
every key, type and choice. Defaults live here and nowhere else; a recipe file states what differs.
The defaults of `model` are those of torchvision's `fasterrcnn_resnet50_fpn`.
"""

from __future__ import annotations

import json
import re
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator

from detkit.registry import suggest

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
NonNegativeInt = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]  # what torch takes


class ConfigError(ValueError):
    """A recipe that cannot be used; the message has one line per mistake."""


class Section(BaseModel):
    """Base of all sections: immutable, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class CocoSource(Section):
    """COCO JSON annotations and the folder that holds the images."""

    format: Literal["coco"] = "coco"
    annotations: str
    images: str


class SyntheticSource(Section):
    """The built-in data set: generated pictures of digits, made on first use."""

    format: Literal["synthetic"] = "synthetic"
    split: Literal["train", "val", "test"] = "train"
    num_images: PositiveInt = 1000
    image_size: tuple[PositiveInt, PositiveInt] = (256, 256)
    seed: NonNegativeInt = 0


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


class BackboneConfig(Section):
    """The network that turns pixels into feature maps. Null is the network's own default."""

    name: str = "resnet50"
    weights: str | None = None  # "imagenet" or a path
    out_indices: tuple[int, ...] | None = None  # null: strides 4, 8, 16, 32 where there are such
    frozen_stages: NonNegativeInt = 0
    norm: Literal["batch", "frozen_batch", "group", "sync_batch"] | None = None
    norm_eps: NonNegative | None = None
    attention: str | None = None  # a module of detkit.nn.attention
    attention_at: str | None = None  # a position, see detkit/backbones/placement.py
    attention_stages: tuple[int, ...] | dict[int, tuple[int, ...]] | None = None  # null: all
    attention_settings: dict[str, Any] | None = None
    attention_image_size: tuple[PositiveInt, PositiveInt] | None = None  # of modules of fixed size
    width: PositiveInt | None = None  # ResNets: channels of the stem, 64 as published
    zero_init_residual: bool | None = None
    drop_path: Fraction | None = None
    output_stride: PositiveInt | None = None
    settings: dict[str, Any] | None = None  # what only this network takes: {last_pool: false}

    @model_validator(mode="after")
    def _settings_have_no_key_of_their_own(self) -> BackboneConfig:
        for key in self.settings or ():
            if key in type(self).model_fields:
                raise ValueError(f"settings has {key!r}, a key of its own: set backbone.{key}")
            if key == "in_channels":
                raise ValueError("settings has 'in_channels', which of a detector are always 3")
        return self


class FPNConfig(Section):
    """Feature pyramid on top of the backbone."""

    channels: PositiveInt = 256
    extra: Literal["pool", "p6p7"] | None = "pool"
    norm: Literal["batch"] | None = None


class RPNConfig(Section):
    """Region proposal network."""

    # of each level; null: one of 8 times its stride (32 to 512 on a pyramid of strides 4 to 64)
    anchor_sizes: tuple[tuple[Positive, ...], ...] | None = None
    aspect_ratios: tuple[Positive, ...] = (0.5, 1.0, 2.0)
    positive_iou: Fraction = 0.7
    negative_iou: Fraction = 0.3
    samples: PositiveInt = 256
    positive_fraction: Fraction = 0.5
    pre_nms_train: PositiveInt = 2000
    pre_nms_test: PositiveInt = 1000
    post_nms_train: PositiveInt = 2000
    post_nms_test: PositiveInt = 1000
    nms_iou: Fraction = 0.7
    score_threshold: Fraction = 0.0
    min_size: NonNegative = 1e-3
    smooth_l1_beta: NonNegative = 1 / 9


class RoIConfig(Section):
    """Second stage: what each proposal shows, and where exactly."""

    pool: Literal["align"] = "align"
    resolution: PositiveInt = 7
    sampling_ratio: NonNegativeInt = 2
    aligned: bool = False
    canonical_size: Positive = 224.0
    canonical_level: int = 4
    hidden: PositiveInt = 1024
    positive_iou: Fraction = 0.5
    negative_iou: Fraction = 0.5
    samples: PositiveInt = 512
    positive_fraction: Fraction = 0.25
    box_weights: tuple[Positive, Positive, Positive, Positive] = (10.0, 10.0, 5.0, 5.0)
    box_loss: Literal["smooth_l1", "giou"] = "smooth_l1"
    box_loss_weight: NonNegative = 1.0
    smooth_l1_beta: NonNegative = 1 / 9
    class_agnostic: bool = False
    score_threshold: Fraction = 0.05
    nms_iou: Fraction = 0.5
    max_detections: PositiveInt = 100
    min_size: NonNegative = 1e-2


class ModelConfig(Section):
    """A detector."""

    detector: Literal["region_proposal"] = "region_proposal"
    weights: str | None = None  # "coco", or a path of a checkpoint
    backbone: BackboneConfig = BackboneConfig()
    fpn: FPNConfig | None = FPNConfig()
    proposals: Literal["rpn"] = "rpn"
    rpn: RPNConfig = RPNConfig()
    roi: RoIConfig = RoIConfig()
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)  # of RGB in 0..1
    std: tuple[Positive, Positive, Positive] = (0.229, 0.224, 0.225)
    size_divisor: PositiveInt = 32  # images are padded to a multiple of it


class OptimizerConfig(Section):
    """How weights move."""

    name: Literal["sgd", "adamw"] = "sgd"
    lr: Positive = 0.02
    momentum: Fraction = 0.9
    nesterov: bool = False
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    weight_decay: NonNegative = 1e-4
    decay_norm_and_bias: bool = True


class ScheduleConfig(Section):
    """How the rate changes: linear warmup, then cosine or steps."""

    name: Literal["cosine", "multistep", "constant"] = "multistep"
    warmup_steps: NonNegativeInt = 1000
    warmup_ratio: Fraction = 1e-3
    milestones: tuple[PositiveInt, ...] = (16, 22)  # epochs after which the rate falls
    gamma: Fraction = 0.1
    final_ratio: Fraction = 0.0  # where the cosine ends


class EMAConfig(Section):
    """Running average of the weights, used for validation and as the result."""

    decay: Fraction = 0.999
    warmup_steps: PositiveInt = 200  # the average follows faster in the beginning


class TrainConfig(Section):
    """Everything about training."""

    epochs: PositiveInt = 26
    batch_size: PositiveInt = 16  # over all processes
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    clip_norm: Positive | None = None
    amp: Literal["auto", "bf16", "fp16", "off"] = "auto"
    channels_last: bool = True
    ema: EMAConfig | None = None
    validate_every: PositiveInt = 1
    sync_batch_norm: bool = False
    log_every: PositiveInt = 10  # steps between lines in metrics.jsonl


class TestConfig(Section):
    """Everything about testing."""

    __test__ = False  # pytest: not a test case

    batch_size: PositiveInt = 8
    amp: Literal["auto", "bf16", "fp16", "off"] = "off"


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
        _check_folder_name(self.name)
        return self


def _check_folder_name(name: str) -> None:
    if not re.fullmatch(r"[\w][\w.\-]*", name):
        raise ValueError(f"name {name!r} becomes a folder: use letters, digits, '.', '-', '_'")


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
    settings: dict[str, Any] = {}  # of a backbone's network, e.g. width
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
        _check_folder_name(self.name)
        return self


R = TypeVar("R", Recipe, ClassifierRecipe)


class _Loader(yaml.SafeLoader):
    """Safe YAML: `1e-3` is a float, `off` is text, there are no dates and no key is given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            line = key_node.start_mark.line + 1
            if isinstance(key, (list, dict, set)):
                raise yaml.YAMLError(f"the key in line {line} is a {type(key).__name__}, not text")
            if key in seen:
                raise yaml.YAMLError(f"key {key!r} is given twice, again in line {line}")
            seen.add(key)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes what `_Loader` would not read as text, be it the name "1e3"."""


# As in YAML 1.2: `train.amp=off` is a choice, not False
_BOOL = ("tag:yaml.org,2002:bool", re.compile(r"(true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_FLOAT = (
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d+\.\d*|\.\d+|\d+(?=[eE]))([eE][-+]?\d+)?$|[-+]?\.(inf|Inf)$|\.(nan|NaN)$"),
    list("-+.0123456789"),
)
_Loader.yaml_implicit_resolvers = {
    first: [pair for pair in pairs if not pair[0].endswith((":timestamp", ":float", ":bool"))]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _resolver in (_BOOL, _FLOAT):
    _Loader.add_implicit_resolver(*_resolver)
    _Dumper.add_implicit_resolver(*_resolver)


def parse_yaml(text: str, name: str) -> Any:
    """YAML text to plain values; `name` stands in the error message."""
    try:
        return yaml.load(text, Loader=_Loader)  # a SafeLoader
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{name}: not valid YAML: {reason}") from None


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file and apply `key.path=value` overrides.

    Raises:
        ConfigError: unknown key, wrong type, wrong choice, no such file.
    """
    return load_recipe_as(Recipe, path, overrides)


def load_recipe_as(schema: type[R], path: str | Path, overrides: Sequence[str] = ()) -> R:
    """What `load_recipe` does, for a recipe of another schema."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = (
            sorted(str(p) for p in path.parent.glob("[!.]*.yaml")) if path.parent.is_dir() else []
        )
        hint = f"; {suggest(str(path), near)}" if near else ""
        raise ConfigError(f"no recipe at {path}{hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read recipe {path}: {error}") from None
    tree = parse_yaml(text, str(path))
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: a recipe is a mapping of keys to values, e.g. 'name: my_run'")
    tree.setdefault("name", path.stem)
    return build_recipe_as(schema, tree, overrides, where=str(path))


def build_recipe(
    tree: dict[str, Any], overrides: Sequence[str] = (), *, where: str = "recipe"
) -> Recipe:
    """Check a tree of plain values; `where` names its origin in error messages."""
    return build_recipe_as(Recipe, tree, overrides, where=where)


def build_recipe_as(
    schema: type[R], tree: dict[str, Any], overrides: Sequence[str] = (), *, where: str = "recipe"
) -> R:
    """What `build_recipe` does, for a recipe of another schema."""
    for override in overrides:
        tree = apply_override(tree, override, schema=schema)
    try:
        # Through JSON, because only there does strict mode take lists for tuples.
        return schema.model_validate_json(json.dumps(tree), strict=True)
    except ValidationError as error:
        lines = [f"{where}: {_explain(problem, schema)}" for problem in error.errors()]
        raise ConfigError("\n".join(dict.fromkeys(lines))) from None
    except (TypeError, ValueError, RecursionError) as error:  # of json: bytes, a set, a circle
        raise ConfigError(
            f"{where}: a recipe holds mappings, lists, text and numbers only: {error}"
        ) from None


def apply_override(
    tree: dict[str, Any], override: str, *, schema: type[Section] = Recipe
) -> dict[str, Any]:
    """A copy of `tree` with `key.path=value` set; the value is read as YAML."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {override!r} is not of the form key.path=value")
    parts = key.split(".")
    if parts[0] not in schema.model_fields:
        raise ConfigError(
            f"override {override!r}: unknown key; {suggest(parts[0], schema.model_fields)}"
        )
    value = parse_yaml(text, f"override {override!r}")
    result = dict(tree)
    node = result
    for part in parts[:-1]:
        child = node.get(part)
        node[part] = dict(child) if isinstance(child, dict) else {}
        node = node[part]
    node[parts[-1]] = value
    return result


def recipe_to_yaml(recipe: Recipe | ClassifierRecipe) -> str:
    """The resolved recipe, every default written out."""
    return yaml.dump(recipe.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False)


def _explain(problem: Any, schema: type[Section]) -> str:
    """One line for one pydantic error: the key, what was given, what is allowed."""
    keys, section = _locate(problem["loc"], schema)
    key, given, kind = ".".join(keys), problem["input"], problem["type"]
    if kind == "extra_forbidden":
        return f"{key}: unknown key; {suggest(keys[-1], section.model_fields if section else ())}"
    if kind == "missing":
        return f"{key}: missing; set it"
    if kind == "union_tag_invalid":
        given = problem["ctx"]["tag"]
        choices = re.findall(r"'(\w+)'", problem["ctx"]["expected_tags"])
        return f"{key}.format: got {given!r}; {suggest(given, choices)}"
    if kind == "union_tag_not_found":
        return f"{key}: got {_short(given)}; it needs 'format: coco' or 'format: synthetic'"
    if kind == "literal_error":
        choices = re.findall(r"'([^']*)'", problem["ctx"]["expected"])
        return f"{key}: got {_short(given)}; {suggest(str(given), choices)}"
    message = problem["msg"].removeprefix("Value error, ").removeprefix("Input ")
    return f"{key}: got {_short(given)}; {message}" if key else message


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _locate(
    loc: Iterable[str | int], schema: type[Section]
) -> tuple[list[str], type[Section] | None]:
    """Turn pydantic's location into a key path, and find the section that the last key is in."""
    keys: list[str] = []
    sections: list[type[Section]] = [schema]
    parent: type[Section] | None = schema
    for part in loc:
        tagged = [s for s in sections if s.model_fields.get("format") is not None]
        if len(sections) > 1 and any(s.model_fields["format"].default == part for s in tagged):
            sections = [s for s in tagged if s.model_fields["format"].default == part]
            continue  # the tag of a union, not a key
        if "[" in str(part):
            continue  # one of the types that a value may have, as in 'tuple[int, ...]'
        keys.append(str(part))
        parent = sections[0] if sections else parent
        field = sections[0].model_fields.get(str(part)) if sections else None
        sections = list(_sections_in(field.annotation)) if field is not None else []
    return keys, parent


def _sections_in(annotation: Any) -> Iterable[type[Section]]:
    """All sections that a type annotation may hold."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    elif typing.get_origin(annotation) in (Annotated, typing.Union, UnionType):
        for argument in typing.get_args(annotation):
            yield from _sections_in(argument)
