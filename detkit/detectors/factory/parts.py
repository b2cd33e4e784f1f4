"""What all detectors are built of: backbone, pyramid, selection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from detkit.backbones import Backbone, create_backbone
from detkit.config import FPNConfig, ModelConfig, SelectConfig
from detkit.detectors.base import MapGeometry
from detkit.nn.fpn import FPN
from detkit.ops import Selection


@dataclass(frozen=True)
class Body:
    """What turns pixels into maps.

    Attributes:
        backbone: images to maps.
        neck: maps to maps, or None.
        channels: of every map that comes out.
        maps: where the cells of the backbone's maps are, finest first.
        levels: where the cells of the maps that come out are.
    """

    backbone: Backbone
    neck: nn.Module | None
    channels: int
    maps: list[MapGeometry]
    levels: list[MapGeometry]


def build_body(config: ModelConfig, *, finest: int = 1) -> Body:
    """Backbone and pyramid.

    Args:
        config: of the detector.
        finest: where the recipe names no out_indices, maps of a smaller stride are left out.

    Raises:
        ValueError: settings that the backbone does not take, or maps that do not fit together.
    """
    backbone = build_backbone(config, finest=finest)
    maps = [MapGeometry(info.stride, info.center) for info in backbone.feature_info]
    strides = [each.stride for each in maps]
    if strides != sorted(strides):
        raise ValueError(
            f"model.backbone.out_indices {backbone.out_indices} give maps of strides {strides}; "
            "name the finest first"
        )
    channels = [info.channels for info in backbone.feature_info]
    neck, levels = _fpn(config.fpn, channels, maps)
    width = config.fpn.channels if config.fpn else channels[-1]
    return Body(backbone, neck, width, maps, levels)


def build_backbone(config: ModelConfig, *, finest: int = 1) -> Backbone:
    """The backbone; without a pyramid its coarsest map, unless the recipe says otherwise."""
    settings = {k: v for k, v in config.backbone.model_dump().items() if v is not None}
    settings |= settings.pop("settings", {})
    settings["in_channels"] = 3
    try:
        if "out_indices" not in settings:
            settings["out_indices"] = (-1,)  # maps of several widths would need the pyramid
            if config.fpn is not None:
                settings["out_indices"] = _indices_from(settings, finest)
        return create_backbone(**settings)
    except ValueError as error:
        raise ValueError(f"model.backbone: {error}") from None


def _indices_from(settings: dict[str, Any], finest: int) -> tuple[int, ...]:
    """The network's own choice of maps without those of a smaller stride, but at least one."""
    sketch = {**settings, "out_indices": None, "weights": None}
    with torch.device("meta"):
        net = create_backbone(**sketch)
    pairs = zip(net.out_indices, net.feature_info, strict=True)
    fitting = tuple(index for index, info in pairs if info.stride >= finest)
    return fitting or net.out_indices[-1:]


def build_selection(config: SelectConfig) -> Selection:
    """What is reported."""
    return Selection(**config.model_dump())


def _fpn(
    config: FPNConfig | None, channels: list[int], maps: list[MapGeometry]
) -> tuple[nn.Module | None, list[MapGeometry]]:
    """The neck, and where the cells of the maps that come out of it are."""
    if config is None:
        if len(set(channels)) != 1:
            raise ValueError(
                f"without model.fpn all maps need the same number of channels, got {channels}; "
                "give model.backbone.out_indices one entry, e.g. [3]"
            )
        return None, maps
    neck = FPN(
        channels,
        config.channels,
        extra=config.extra,
        norm=config.norm,
        p6_source=config.p6_source,
    )
    strides = neck.out_strides([each.stride for each in maps])
    # a coarser level keeps every second cell of the one before, from the first on
    centers = [each.center for each in maps] + [maps[-1].center] * (len(strides) - len(maps))
    return neck, [MapGeometry(*each) for each in zip(strides, centers, strict=True)]
