"""What every backbone is: a network cut into stages, of which some hand out their map.

B batch, C channels, H, W height and width, K classes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from detkit.backbones.feature_info import FeatureInfo, describe, least_side
from detkit.backbones.placement import Placement, is_attention
from detkit.backbones.weights import (
    StateDict,
    adapt_stem,
    is_published,
    load_into,
    read_weights,
)
from detkit.registry import attentions, backbones, suggest


class Backbone(nn.Module):
    """A network cut into stages.

    A subclass registers its layers under their published names, builds only the stages up to
    the last one in `out_indices`, and lists them in `stages`; the rest follows from that list.

    Args:
        name: what to call it in messages.
        in_channels: channels of the images.
        out_indices: the stages whose maps `forward` returns, in this order; negative ones count
            from the last; None for those of `default_out_indices`.
        attention: where attention stands; None for nowhere. A subclass asks it for the module of
            each of its positions. A position is checked even where it names no module, so that a
            sweep from no attention on finds a wrong one at once.

    Raises:
        ValueError: an index is out of range or given twice, there are no channels, or attention
            stands where this network has no place for it.
    """

    stage_names: tuple[str, ...]
    default_out_indices: tuple[int, ...]  # with strides 4, 8, 16 and 32 where there are such
    head_indices: tuple[int, ...] = (-1,)  # the stages whose maps the classifier's head reads
    attention_positions: tuple[str, ...] = ("after_stage",)  # the default first
    stages_without_blocks: tuple[str, ...] = ("stem",)  # no attention unless asked for by index
    num_classes: int = 1000  # of the published classifier
    published_settings: Mapping[str, Any] = MappingProxyType({})  # the published weights need them
    frozen_stages: int
    least_side: int = 1

    def __init__(
        self,
        name: str,
        in_channels: int,
        out_indices: Sequence[int] | None,
        attention: Placement | None = None,
    ) -> None:
        super().__init__()
        if out_indices is None:
            out_indices = self.default_out_indices
        if in_channels < 1:
            raise ValueError(f"in_channels must be at least 1, got {in_channels}")
        count = len(self.stage_names)
        resolved = tuple(index + count if index < 0 else index for index in out_indices)
        if not resolved or len(set(resolved)) < len(resolved):
            raise ValueError(
                f"out_indices {tuple(out_indices)} for {name}: name at least one stage, each once"
            )
        if min(resolved) < 0 or max(resolved) >= count:
            raise ValueError(
                f"out_indices {tuple(out_indices)} not in {-count}..{count - 1} for {name} "
                f"(0 is {self.stage_names[0]}, {count - 1} is {self.stage_names[-1]})"
            )
        self.name = name
        self.in_channels = in_channels
        self.out_indices = resolved
        self.frozen_stages = 0
        self.attention = attention or Placement()
        self.after_stage = nn.ModuleDict()
        if attention is not None:
            _check_placement(self)

    def stages(self) -> list[tuple[nn.Module, ...]]:
        """The stages that were built, each as the modules that run one after the other."""
        raise NotImplementedError

    def head(self, num_classes: int) -> nn.Module:
        """The published classifier's layers after the last stage: list of maps -> `[B, K]`."""
        raise NotImplementedError

    def unused_weights(self) -> tuple[str, ...]:
        """Beginnings of the published names that this backbone has no place for."""
        raise NotImplementedError

    def classifier(self, num_classes: int) -> nn.Module:
        """The whole published classifier, of which this backbone becomes the body."""
        count = len(self.stage_names)
        self.out_indices = tuple(index % count for index in self.head_indices)
        return Classifier(self, self.head(num_classes))

    def read_weights(self, weights: str | Path, *, whole: bool) -> StateDict:
        """Read what `weights=` stands for, under the names of the classifier or of the backbone.

        Args:
            weights: a published name or a path.
            whole: it is for the classifier.
        """
        return read_weights(self.name, weights)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Compute the maps.

        Args:
            images: `[B, in_channels, H, W]`, normalised.

        Returns:
            One `[B, C, H / stride, W / stride]` per out index, rounded up where the network pads
            its borders.

        Raises:
            ValueError: the images are smaller than `least_side`.
        """
        # a program that is being traced need not hold the question
        if not torch.compiler.is_compiling() and min(images.shape[-2:]) < self.least_side:
            height, width = images.shape[-2:]
            raise ValueError(
                f"{self.name} with out_indices {self.out_indices} needs images of at least "
                f"{self.least_side}x{self.least_side} pixels, got {height}x{width}; give larger "
                f"ones, or out_indices of earlier stages to a backbone"
            )
        maps: dict[int, Tensor] = {}
        x = images
        for index, stage in enumerate(self.attended_stages()):
            for module in stage:
                x = module(x)
            if index in self.out_indices:  # the others need not outlive their use
                maps[index] = x
        return [maps[index] for index in self.out_indices]

    @property
    def feature_info(self) -> tuple[FeatureInfo, ...]:
        """Name, channels, stride, receptive field and centre of each map, read off the layers."""
        described = self.stage_info()
        return tuple(described[index] for index in self.out_indices)

    def stage_info(self) -> list[FeatureInfo]:
        """The same of every stage that was built."""
        described = []
        modules: list[nn.Module] = []  # from the image on
        for name, stage in zip(self.stage_names, self.stages(), strict=False):
            modules += stage
            described.append(describe(name, self.in_channels, modules))
        return described

    def complete(self) -> None:
        """Do what needs all layers; called once, after building.

        Sets `least_side`, the side in pixels of the smallest image of which every map has a cell,
        and puts attention behind the stages, if that is where it stands.
        """
        self.least_side = least_side(chain.from_iterable(self.stages()))
        self.attend_after_stages()

    def attend_after_stages(self) -> None:
        """Put attention behind the stages, if that is where it stands.

        Raises:
            ValueError: a stage that was to have attention, there or elsewhere, has none.
        """
        for index, info in enumerate(self.stage_info()):
            if self.attention.stages is None and info.name in self.stages_without_blocks:
                continue
            module = self.attention.module(
                "after_stage", stage=index, channels=info.channels, stride=info.stride
            )
            if module is not None:
                self.after_stage[info.name] = module
        self._check_stages_have_attention()

    def _check_stages_have_attention(self) -> None:
        if self.attention.name is None:
            return
        found = [
            index
            for index, stage in enumerate(self.attended_stages())
            if any(is_attention(each) for part in stage for each in part.modules())
        ]
        bare = [index for index in self.attention.stages or () if index not in found]
        if bare:
            raise ValueError(
                f"attention_stages {bare} of {self.name} have no place {self.attention.at!r}, or "
                f"come after the last of out_indices {self.out_indices}; leave them out, or give "
                "another attention_at"
            )

    def attention_names(self) -> tuple[str, ...]:
        """Beginnings of the names in the state_dict that belong to attention."""
        return tuple(f"{name}." for name, each in self.named_modules() if is_attention(each))

    def attended_stages(self) -> list[tuple[nn.Module, ...]]:
        """The stages that were built, first to last, with the attention that follows them."""
        stages = self.stages()
        for index, name in enumerate(self.stage_names[: len(stages)]):
            if name in self.after_stage:
                stages[index] = (*stages[index], self.after_stage[name])
        return stages

    def freeze(self, stages: int) -> None:
        """Stop the first stages from learning; their norms keep their statistics from now on.

        Args:
            stages: 0 freezes nothing, 1 the stem, 2 the stem and the next stage, and so on.

        Raises:
            ValueError: there are not that many stages.
        """
        if not 0 <= stages <= len(self.stage_names):
            raise ValueError(
                f"frozen_stages {stages} not in 0..{len(self.stage_names)} for {self.name} "
                f"(0 freezes nothing, 1 {self.stage_names[0]}, {len(self.stage_names)} everything)"
            )
        self.frozen_stages = stages
        for module in self._frozen():
            module.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Backbone:
        """Switch to training, or to evaluation; frozen stages always stay in evaluation."""
        super().train(mode)
        for module in self._frozen():
            module.eval()
        return self

    def _frozen(self) -> list[nn.Module]:
        return [
            module for stage in self.attended_stages()[: self.frozen_stages] for module in stage
        ]


def _check_placement(net: Backbone) -> None:
    """Whether the attention asked for has a place in this network.

    Raises:
        ValueError: it has not.
    """
    placement = net.attention
    if placement.at not in net.attention_positions:
        allowed = suggest(placement.at, net.attention_positions)
        raise ValueError(f"{net.name} has no attention_at {placement.at!r}; {allowed}")
    count = len(net.stage_names)
    wrong = [index for index in placement.stages or () if not 0 <= index < count]
    if wrong:
        raise ValueError(
            f"attention_stages {wrong} not in 0..{count - 1} for {net.name} "
            f"({', '.join(net.stage_names)})"
        )


class Classifier(nn.Module):
    """A backbone with its classification head, under the names of the published network.

    The two parts are `body` and `head`; in the state_dict their names are left out, so that
    torchvision's state_dict loads strictly and the one written here loads in torchvision.

    Args:
        body: the backbone, with whatever maps the head reads.
        head: maps -> logits `[B, K]`.
    """

    def __init__(self, body: Backbone, head: nn.Module) -> None:
        super().__init__()
        self.name = body.name
        self.body = body
        self.head = head
        self.register_state_dict_post_hook(_drop_part_names)
        self.register_load_state_dict_pre_hook(_add_part_names)

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[B, K]` of images `[B, in_channels, H, W]`."""
        return self.head(self.body(images))


def _drop_part_names(_module: nn.Module, state: dict[str, Any], prefix: str, _: object) -> None:
    for key in [key for key in state if key.startswith((f"{prefix}body.", f"{prefix}head."))]:
        state[prefix + key[len(prefix) + len("body.") :]] = state.pop(key)


def _add_part_names(module: nn.Module, state: dict[str, Any], prefix: str, *_: object) -> None:
    assert isinstance(module, Classifier)
    in_head = module.head.state_dict().keys()
    for key in [key for key in state if key.startswith(prefix)]:
        name = key[len(prefix) :]
        part = "head" if name in in_head else "body"
        state[f"{prefix}{part}.{name}"] = state.pop(key)


def list_backbones(pattern: str = "*") -> list[str]:
    """Names of backbones that match a shell pattern, sorted."""
    return backbones.names(pattern)


def create_backbone(
    name: str,
    *,
    attention: str | None = None,
    out_indices: Sequence[int] | None = None,
    in_channels: int | None = None,
    weights: str | Path | None = None,
    frozen_stages: int = 0,
    **settings: Any,
) -> Backbone:
    """Build a backbone by name; its convolutions are laid out channels_last.

    Args:
        name: see `list_backbones`.
        attention: attention module to put into it, see `detkit.nn.attention.list_attentions`.
        out_indices: the stages whose maps it returns, 0 being the first and -1 the last; later
            stages are not built. None: those with strides 4, 8, 16 and 32 where there are such.
        in_channels: channels of the images; published weights are adapted to them. None: as
            published.
        weights: None, "imagenet" (torchvision's best), "imagenet_v1", or a path.
        frozen_stages: how many stages do not learn, the first being the stem.
        settings: what else this backbone takes: `norm` ("batch", "frozen_batch", "group",
            "sync_batch"; not given, as published) and `norm_eps`; `attention_at`,
            `attention_stages`, `attention_settings` and `attention_image_size` (see
            `detkit.backbones.placement`); `drop_path`, `output_stride`, `width` and more, which
            an unknown one is answered with.

    Raises:
        ValueError: an unknown name or setting, or weights that do not fit.
    """
    settings = {**published_settings(name, weights), **settings}
    net = _build(name, attention, out_indices, in_channels, settings)
    net.freeze(frozen_stages)
    if weights is not None:
        _load(net, net, weights, ignore=net.unused_weights())
    return net


def create_classifier(
    name: str,
    *,
    num_classes: int | None = None,
    attention: str | None = None,
    in_channels: int | None = None,
    weights: str | Path | None = None,
    **settings: Any,
) -> nn.Module:
    """Build the image classifier that a backbone comes from: a `Classifier`, or timm's own.

    Args:
        name: see `list_backbones`.
        num_classes: K. None: as published.
        attention: attention module to put into it.
        in_channels: channels of the images; published weights are adapted to them. None: as
            published.
        weights: None, "imagenet" (torchvision's best), "imagenet_v1", or a path.
        settings: as of `create_backbone`.

    Raises:
        ValueError: an unknown name or setting, no classes, or weights that do not fit.
    """
    if num_classes is not None and num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, got {num_classes}")
    settings = {**published_settings(name, weights), **settings}
    body = _build(name, attention, (-1,), in_channels, settings)
    classifier = body.classifier(body.num_classes if num_classes is None else num_classes)
    if weights is not None:
        _load(classifier, body, weights, ignore=())
    return classifier


_PLACEMENT_SETTINGS = (
    "attention_at",
    "attention_stages",
    "attention_settings",
    "attention_image_size",
)


def _build(
    name: str,
    attention: str | None,
    out_indices: Sequence[int] | None,
    in_channels: int | None,
    settings: Mapping[str, Any],
) -> Backbone:
    build = backbones[name]
    plain = {key: value for key, value in settings.items() if key not in _PLACEMENT_SETTINGS}
    _check_settings(name, build, plain)
    if in_channels is not None:
        plain["in_channels"] = in_channels
    if attention is not None:
        attentions[attention]  # an unknown name is the first thing to say
    placement = Placement(
        attention,
        settings.get("attention_at") or attention_positions(build)[0],
        settings.get("attention_stages"),
        settings.get("attention_settings") or {},
        tuple(settings.get("attention_image_size") or (224, 224)),
    )
    net: Backbone = build(out_indices=out_indices, attention=placement, **plain)
    net.complete()
    # the layout that convolutions run fastest in, here and on GPUs in half precision
    return net.to(memory_format=torch.channels_last)


def attention_positions(build: Callable[..., Any]) -> tuple[str, ...]:
    """Where attention can stand in the networks of a registered builder, the default first."""
    return getattr(_network(build), "attention_positions", Backbone.attention_positions)


def published_settings(name: str, weights: str | Path | None) -> dict[str, Any]:
    """The settings that published weights were learnt with, where they are not the default.

    `create_backbone` adds them itself. Who builds a network that such weights once started, to
    fill it from a checkpoint, needs them too.

    Args:
        name: of the backbone.
        weights: what `weights=` was.
    """
    if not is_published(weights):
        return {}
    return dict(getattr(_network(backbones[name]), "published_settings", {}))


def _network(build: Callable[..., Any]) -> Callable[..., Any]:
    """What is built: the class behind its partial application."""
    return build.func if isinstance(build, partial) else build


def _check_settings(name: str, build: Callable[..., Any], settings: Mapping[str, Any]) -> None:
    parameters = inspect.signature(build).parameters.values()
    allowed = [
        each.name
        for each in parameters
        if each.kind is each.KEYWORD_ONLY
        and each.name not in ("out_indices", "in_channels", "attention")
    ]
    for key in settings:
        if key not in allowed:
            everywhere = ("attention", *_PLACEMENT_SETTINGS, "in_channels", "out_indices")
            choices = suggest(key, [*allowed, *everywhere])
            raise ValueError(f"{name} has no setting {key!r}; {choices}")


def _load(net: nn.Module, body: Backbone, weights: str | Path, *, ignore: Sequence[str]) -> None:
    state = body.read_weights(weights, whole=net is not body)
    first = next(key for key, value in body.named_modules() if isinstance(value, nn.Conv2d))
    state = adapt_stem(state, f"{first}.weight", body.in_channels)
    added = body.attention_names()
    if added and not any(name.startswith(added) for name in state):
        # weights of the plain network: attention starts as it is
        own = body.state_dict()
        state |= {name: value for name, value in own.items() if name.startswith(added)}
    load_into(net, state, source=str(weights), ignore=ignore)
