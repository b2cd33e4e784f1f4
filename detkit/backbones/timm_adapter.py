"""Any network of the timm library as a backbone, under the name `timm:NAME`.

timm builds the network; this file cuts it into stages, names its maps and loads its weights. timm
is optional: it comes with `pip install timm`.
B batch, C channels, H, W height and width, K classes.
"""

from __future__ import annotations

import difflib
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from detkit.backbones.base import Backbone
from detkit.backbones.feature_info import FeatureInfo
from detkit.backbones.placement import Placement
from detkit.backbones.weights import StateDict, adapt_stem, is_published, load_weights_file
from detkit.nn import norm_layer
from detkit.registry import backbones, suggest

PREFIX = "timm:"
NORMS = ("batch", "frozen_batch", "group", "sync_batch")


def _timm() -> Any:
    """The library.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import timm
    except ImportError as error:
        raise ValueError(
            "backbones timm:NAME need timm, which is not installed: pip install timm"
        ) from error
    return timm


class TimmBackbone(Backbone):
    """A network of timm that hands out feature maps.

    Its `feature_info` has timm's channels and strides. timm knows no receptive fields, so they are
    None. The centre is measured by the sides of images that have one more cell, which is right
    where the borders are padded alike. Where a network takes images of one size only, patches
    are taken to lie side by side, and other borders to be padded. Images are normalised as timm's
    configuration of the weights says.

    Args:
        model: timm's name, with or without the tag of its weights ("resnet10t.c3_in1k").
        out_indices: maps to return, counted as timm counts its features.
        in_channels: channels of the images.
        attention: where attention stands, if timm's network runs stage by stage.
        norm: a name of `detkit.nn.norm_layer`; None as published. "batch", "frozen_batch" and
            "sync_batch" are for networks with batch norm, "group" for those that take a norm.
        norm_eps: added to the variance by every norm; None as published.
        drop_path: timm's `drop_path_rate`; None as published.
        output_stride: timm's; None as published.

    Raises:
        ValueError: timm has no such network, or it does not take a setting.
    """

    def __init__(
        self,
        model: str,
        *,
        out_indices: Sequence[int] | None = None,
        in_channels: int = 3,
        attention: Placement | None = None,
        norm: str | None = None,
        norm_eps: float | None = None,
        drop_path: float | None = None,
        output_stride: int | None = None,
    ) -> None:
        given = {"drop_path_rate": drop_path, "output_stride": output_stride}
        self.settings = {key: value for key, value in given.items() if value is not None}
        self.model, self.norm, self.norm_eps = model, norm, norm_eps
        infos = _feature_infos(model, **self.settings)
        # the base class holds out_indices against these
        self.stage_names = tuple(str(info["module"]).replace(".", "_") for info in infos)
        self.default_out_indices = _default_indices([info["reduction"] for info in infos])
        self.num_classes = _timm().get_pretrained_cfg(model).num_classes or 1000
        super().__init__(PREFIX + model, in_channels, out_indices, attention)
        self.infos = infos[: max(self.out_indices) + 1]
        self.net = self._build(features_only=True, out_indices=tuple(range(len(self.infos))))
        self.runs_by_stage = type(self.net).__name__ == "FeatureListNet"
        self.centers: tuple[float, ...] | None = None
        self.channels_last = str(getattr(self.net, "output_fmt", "NCHW")).endswith("NHWC")
        if self.attention.name is not None and (not self.runs_by_stage or self.channels_last):
            raise ValueError(f"{self.name} runs as one piece: there is no place for attention")

    def _build(self, **arguments: Any) -> nn.Module:
        """Build timm's network with all settings of this backbone."""
        if self.norm is not None and self.norm not in NORMS:
            raise ValueError(f"unknown norm {self.norm!r}; {suggest(self.norm, NORMS)}")
        arguments |= {"in_chans": self.in_channels, **self.settings}
        if self.norm == "group":
            arguments["norm_layer"] = _group_norm
        net = _create(self.model, **arguments)
        net = _with_norm(net, self.norm, name=self.name)
        if self.norm_eps is not None:
            for module in net.modules():
                if hasattr(module, "eps"):
                    setattr(module, "eps", self.norm_eps)  # noqa: B010  not an attribute of Module
        return net

    def complete(self) -> None:
        """Put attention behind the stages; how large images must be, timm's layers say."""
        if self.attention.name is not None:
            self.attend_after_stages()

    def stages(self) -> list[tuple[nn.Module, ...]]:
        """The stages that were built; where timm runs all in one piece, that is the last one."""
        if not self.runs_by_stage:
            return [()] * (len(self.infos) - 1) + [(self.net,)]
        stages: list[tuple[nn.Module, ...]] = []
        layers: list[nn.Module] = []
        for name, module in self.net.named_children():
            layers.append(module)
            if name in self.net.return_layers:  # type: ignore[operator]
                stages.append(tuple(layers))
                layers = []
        return stages

    def stage_info(self) -> list[FeatureInfo]:
        """What timm says of every stage that was built, and the centre, measured once."""
        if self.centers is None:
            self.centers = self._measure_centers()
        rows = zip(self.stage_names, self.infos, self.centers, strict=False)
        return [
            FeatureInfo(name, info["num_chs"], info["reduction"], None, center)
            for name, info, center in rows
        ]

    def _measure_centers(self) -> tuple[float, ...]:
        """Pixel that the first cell of each map stands on.

        A chain of layers with symmetric padding has n cells from a side of (n - 1) stride + 2
        center + 1 pixels on, so that the smallest side of n cells gives the centre.
        """
        strides = [info["reduction"] for info in self.infos]
        weight = next(self.net.parameters())

        @lru_cache
        def cells(side: int) -> list[int]:
            images = weight.new_zeros(1, self.in_channels, side, side)
            return [each.shape[1 if self.channels_last else 2] for each in self.net(images)]

        self.net.eval()
        try:
            with torch.no_grad():
                return tuple(_center(cells, level, each) for level, each in enumerate(strides))
        except (RuntimeError, AssertionError, ValueError, TypeError):  # it takes one size only
            cuts = any("patch_embed" in name for name, _ in self.net.named_modules())
            return tuple((stride - 1) / 2 if cuts else 0.0 for stride in strides)
        finally:
            self.train(self.training)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Compute the maps: `[B, in_channels, H, W]` -> one `[B, C, h, w]` per out index."""
        if self.attention.name is not None:
            return super().forward(images)
        maps = self.net(images)
        if self.channels_last:
            maps = [each.permute(0, 3, 1, 2) for each in maps]
        return [maps[index] for index in self.out_indices]

    def freeze(self, stages: int) -> None:
        """Stop the first stages from learning; all or none where timm runs all in one piece."""
        if not self.runs_by_stage and 0 < stages < len(self.stage_names):
            raise ValueError(
                f"{self.name} runs as one piece: frozen_stages is 0 or {len(self.stage_names)}, "
                f"got {stages}"
            )
        super().freeze(stages)

    def classifier(self, num_classes: int) -> nn.Module:
        """The classifier as timm builds it."""
        if self.attention.name is not None:
            raise ValueError(f"the classifier {self.name} takes no attention; its backbone does")
        return self._build(num_classes=num_classes)

    def unused_weights(self) -> tuple[str, ...]:
        """Names in timm's classifier that this backbone has no place for."""
        own = {_comparable(key) for key in self.net.state_dict()}
        names = _classifier_keys(self.model, **self.settings)
        return tuple(name for name in names if _comparable(name) not in own)

    def read_weights(self, weights: str | Path, *, whole: bool) -> StateDict:
        """Read timm's published weights or a file, of timm's classifier or of this backbone."""
        state = _published(self.model) if weights == "imagenet" else _from_file(self.name, weights)
        if whole:
            stem = _stem(self.net.state_dict(), state)
            return adapt_stem(state, stem, self.in_channels) if stem else state
        own = {_comparable(key): f"net.{key}" for key in self.net.state_dict()}
        return {own.get(_comparable(key), key): value for key, value in state.items()}


def _group_norm(channels: int, **_: Any) -> nn.Module:
    """With no more than the channels of what timm passes, such as a device."""
    return norm_layer("group")(channels)


def _comparable(name: str) -> str:
    # timm joins some names of its classifier by "_" where it hands out features
    return name.replace(".", "_")


def _stem(features: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str | None:
    """Name in a classifier's state of the first convolution of the features."""
    first = next((_comparable(key) for key, value in features.items() if value.ndim == 4), None)
    return next((key for key in state if _comparable(key) == first), None)


def _create(model: str, **arguments: Any) -> nn.Module:
    try:
        net: nn.Module = _timm().create_model(model, **arguments)
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        settings = {key: value for key, value in arguments.items() if key != "norm_layer"}
        raise ValueError(
            f"timm cannot build {model!r} with {settings}: {reason[:200]}; leave settings out"
        ) from error
    return net


def _with_norm(net: nn.Module, norm: str | None, *, name: str) -> nn.Module:
    if norm is None:
        return net
    # timm's classes with a built-in activation are subclasses
    has_batch_norm = any(isinstance(each, nn.BatchNorm2d) for each in net.modules())
    if norm == "group":
        if has_batch_norm or not any(isinstance(each, nn.GroupNorm) for each in net.modules()):
            raise ValueError(f"{name} does not take norm 'group'; leave norm out")
        return net
    if not has_batch_norm:
        raise ValueError(f"{name} has no batch norm to make {norm!r} of; leave norm out")
    if norm == "frozen_batch":
        frozen: nn.Module = _timm().layers.freeze_batch_norm_2d(net)
        return frozen
    if norm == "sync_batch":
        synchronised: nn.Module = _timm().layers.convert_sync_batchnorm(net)
        return synchronised
    return net


def _on_meta(model: str, **arguments: Any) -> nn.Module:
    with torch.device("meta"):
        return _create(model, **arguments).eval()


@lru_cache
def _feature_infos(model: str, **settings: Any) -> list[dict[str, Any]]:
    """What timm says of every map of a network."""
    info: list[dict[str, Any]] = list(_on_meta(model, features_only=True, **settings).feature_info)  # type: ignore[arg-type]
    return info


@lru_cache
def _classifier_keys(model: str, **settings: Any) -> tuple[str, ...]:
    return tuple(_on_meta(model, **settings).state_dict())


def _default_indices(strides: Sequence[int]) -> tuple[int, ...]:
    """The deepest map of each of the strides 4, 8, 16 and 32, or all maps if there are none."""
    deepest = {stride: index for index, stride in enumerate(strides) if stride in (4, 8, 16, 32)}
    return tuple(deepest.values()) or tuple(range(len(strides)))


def _center(cells: Callable[[int], list[int]], level: int, stride: int) -> float:
    sides = range(128, 128 + stride)  # one of them has a cell more than the one before
    count = cells(sides[-1])[level]
    smallest = sides[bisect_left(sides, count, key=lambda side: cells(side)[level])]
    return (smallest - 1 - (count - 1) * stride) / 2


def _published(model: str) -> StateDict:
    timm = _timm()
    if not timm.is_model_pretrained(model):
        raise ValueError(
            f"no weights 'imagenet' are published for timm:{model}; allowed: None, a path"
        )
    try:
        state: StateDict = timm.create_model(model, pretrained=True).state_dict()
    except OSError as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConnectionError(
            f"cannot download the weights of timm:{model} ({reason[:200]}); get them by other "
            "means and give their path"
        ) from error
    return state


def _from_file(name: str, weights: str | Path) -> StateDict:
    if is_published(weights):
        raise ValueError(
            f"no weights {str(weights)!r} are published for {name}; allowed: None, imagenet, a path"
        )
    return load_weights_file(weights)


class _Family:
    """All networks of timm."""

    def builder(self, name: str) -> Callable[..., Any]:
        """The builder of `timm:NAME`.

        Raises:
            ValueError: timm is not installed, or has no such network.
        """
        timm, model = _timm(), name[len(PREFIX) :]
        if not timm.is_model(model):
            close = difflib.get_close_matches(model, timm.list_models(), n=3, cutoff=0.6)
            hint = f"did you mean {' or '.join(repr(PREFIX + each) for each in close)}? "
            raise ValueError(
                f"timm has no model {model!r}; {hint if close else ''}"
                f"list_backbones('{PREFIX}*') lists all"
            )
        return partial(TimmBackbone, model)

    def names(self) -> list[str]:
        """All of them, without the tags of their weights.

        Raises:
            ValueError: timm is not installed.
        """
        return [PREFIX + name for name in _timm().list_models()]


backbones.register_family(PREFIX, _Family())
