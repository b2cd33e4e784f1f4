"""What every backbone is: a network cut into stages, of which some hand out their map.

B batch, C channels, H, W height and width, K classes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

from torch import Tensor, nn

from detkit.backbones.weights import adapt_stem, load_into, read_weights
from detkit.registry import attentions, backbones, suggest


@dataclass(frozen=True, slots=True)
class FeatureInfo:
    """A map that a backbone hands out.

    Attributes:
        name: the stage it comes from ("layer1").
        channels: its channels.
        stride: pixels of the image from one cell to the next.
        receptive_field: side in pixels of the square of the image that one cell depends on.
    """

    name: str
    channels: int
    stride: int
    receptive_field: int


@runtime_checkable
class Branching(Protocol):
    """A module with several ways through it."""

    def main_path(self) -> tuple[nn.Module, ...]:
        """The layers along the way that sees most of the image, in order."""
        ...


def follow(info: FeatureInfo, module: nn.Module) -> FeatureInfo:
    """Describe the map that a module makes of the map described by `info`.

    A layer of kernel k and dilation d on a map of stride j widens the receptive field by
    d (k - 1) j, and its own stride multiplies j.

    Raises:
        TypeError: the module has parts but does not say in which order they run.
    """
    if isinstance(module, nn.Sequential):
        return reduce(follow, module, info)
    if isinstance(module, Branching):
        return reduce(follow, module.main_path(), info)
    if any(True for _ in module.children()):
        raise TypeError(f"{type(module).__name__} needs a main_path() to be described")
    if not hasattr(module, "kernel_size"):  # norms and activations see one cell at a time
        return info
    reach = _largest(getattr(module, "dilation", 1)) * (_largest(module.kernel_size) - 1)
    return replace(
        info,
        channels=getattr(module, "out_channels", info.channels),
        stride=info.stride * _largest(module.stride),
        receptive_field=info.receptive_field + reach * info.stride,
    )


def _largest(size: Any) -> int:
    return int(max(size)) if isinstance(size, tuple) else int(size)


class Backbone(nn.Module):
    """A network cut into stages.

    A subclass registers its layers under their published names, builds only the stages up to
    the last one in `out_indices`, and lists them in `stages`; the rest follows from that list.

    Args:
        name: what to call it in messages.
        in_channels: channels of the images.
        out_indices: the stages whose maps `forward` returns, in this order; negative ones count
            from the last.

    Raises:
        ValueError: an index is out of range or given twice, or there are no channels.
    """

    stage_names: ClassVar[tuple[str, ...]]
    frozen_stages: int

    def __init__(self, name: str, in_channels: int, out_indices: Sequence[int]) -> None:
        super().__init__()
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

    def stages(self) -> list[tuple[nn.Module, ...]]:
        """The stages that were built, each as the modules that run one after the other."""
        raise NotImplementedError

    def head(self, num_classes: int) -> nn.Module:
        """The published classifier's layers after the last stage: list of maps -> `[B, K]`."""
        raise NotImplementedError

    def unused_weights(self) -> tuple[str, ...]:
        """Beginnings of the published names that this backbone has no place for."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> list[Tensor]:
        """Compute the maps.

        Args:
            images: `[B, in_channels, H, W]`, normalised.

        Returns:
            One `[B, C, ceil(H / stride), ceil(W / stride)]` per out index.
        """
        maps: dict[int, Tensor] = {}
        x = images
        for index, stage in enumerate(self.stages()):
            for module in stage:
                x = module(x)
            if index in self.out_indices:  # the others need not outlive their use
                maps[index] = x
        return [maps[index] for index in self.out_indices]

    @property
    def feature_info(self) -> tuple[FeatureInfo, ...]:
        """Name, channels, stride and receptive field of each map, read off the layers."""
        described = []
        info = FeatureInfo("image", self.in_channels, stride=1, receptive_field=1)
        for name, stage in zip(self.stage_names, self.stages(), strict=False):
            info = replace(reduce(follow, stage, info), name=name)
            described.append(info)
        return tuple(described[index] for index in self.out_indices)

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
        return [module for stage in self.stages()[: self.frozen_stages] for module in stage]


class PooledLinear(nn.Module):
    """Global average pooling, then one linear layer `fc`.

    Args:
        channels: C of the map.
        num_classes: K.
    """

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """From the last of the maps, `[B, C, H, W]`, to logits `[B, K]`."""
        return self.fc(maps[-1].mean(dim=(2, 3)))


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
    out_indices: Sequence[int] = (1, 2, 3, 4),
    in_channels: int = 3,
    weights: str | Path | None = None,
    norm: str = "batch",
    frozen_stages: int = 0,
    **settings: Any,
) -> Backbone:
    """Build a backbone by name.

    Args:
        name: see `list_backbones`.
        attention: attention module to put into its blocks.
        out_indices: the stages whose maps it returns; 0 is the stem before its pooling, -1 the
            last. Later stages are not built.
        in_channels: channels of the images; published weights are adapted to them.
        weights: None, "imagenet" (torchvision's best), "imagenet_v1", or a path.
        norm: "batch", "frozen_batch" or "group".
        frozen_stages: how many stages do not learn, the stem being the first.
        settings: what else this backbone takes, such as `norm_eps`, or `width` of a ResNet.

    Raises:
        ValueError: an unknown name or setting, or weights that do not fit.
    """
    build = backbones[name]
    if attention is not None:
        settings["attention"] = attentions[attention]
    _check_settings(name, build, settings)
    net: Backbone = build(out_indices=out_indices, in_channels=in_channels, norm=norm, **settings)
    net.freeze(frozen_stages)
    if weights is not None:
        _load(net, net, weights, ignore=net.unused_weights())
    return net


def create_classifier(
    name: str,
    *,
    num_classes: int = 1000,
    attention: str | None = None,
    in_channels: int = 3,
    weights: str | Path | None = None,
    norm: str = "batch",
    **settings: Any,
) -> Classifier:
    """Build the image classifier that a backbone comes from.

    Args:
        name: see `list_backbones`.
        num_classes: K.
        attention: attention module to put into its blocks.
        in_channels: channels of the images; published weights are adapted to them.
        weights: None, "imagenet" (torchvision's best), "imagenet_v1", or a path.
        norm: "batch", "frozen_batch" or "group".
        settings: what else this backbone takes.

    Raises:
        ValueError: an unknown name or setting, or weights that do not fit.
    """
    body = create_backbone(
        name,
        attention=attention,
        out_indices=(-1,),
        in_channels=in_channels,
        norm=norm,
        **settings,
    )
    classifier = Classifier(body, body.head(num_classes))
    if weights is not None:
        _load(classifier, body, weights, ignore=())
    return classifier


def _check_settings(name: str, build: Callable[..., Any], settings: dict[str, Any]) -> None:
    common = {"out_indices", "in_channels", "norm"}
    parameters = inspect.signature(build).parameters.values()
    allowed = [
        each.name
        for each in parameters
        if each.kind is each.KEYWORD_ONLY and each.name not in common
    ]
    for key in settings:
        if key not in allowed:
            raise ValueError(f"{name} has no setting {key!r}; {suggest(key, allowed)}")


def _load(net: nn.Module, body: Backbone, weights: str | Path, *, ignore: Sequence[str]) -> None:
    state = read_weights(body.name, weights)
    first = next(key for key, value in body.named_modules() if isinstance(value, nn.Conv2d))
    state = adapt_stem(state, f"{first}.weight", body.in_channels)
    load_into(net, state, source=str(weights), ignore=ignore)
