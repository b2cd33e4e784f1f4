"""Attention modules by name: a map `[B, C, H, W]` in, a map of the same shape out.

Each says in its docstring which of the published variants it is.
"""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from detkit.nn.attention import (  # noqa: F401  they register themselves
    channel,
    frequency,
    mixed,
    pairwise,
    relation,
    second_order,
    spatial,
    temporal,
)
from detkit.registry import attentions, suggest

__all__ = ["attention_settings", "create_attention", "list_attentions"]


def list_attentions(pattern: str = "*") -> list[str]:
    """Names of attention modules that match a shell pattern, sorted."""
    return attentions.names(pattern)


def create_attention(name: str, *, channels: int, **settings: Any) -> nn.Module:
    """Build an attention module by name.

    Args:
        name: see `list_attentions`.
        channels: C of the map.
        settings: what else this module takes, such as `reduction`; the defaults are the paper's.

    Raises:
        ValueError: an unknown name or setting, or one that does not fit the channels.
    """
    build = attentions[name]
    if channels < 1:
        raise ValueError(f"channels must be at least 1, got {channels}")
    allowed = attention_settings(name)
    for key in settings:
        if key not in allowed:
            choices = suggest(key, allowed) if allowed else "it takes none"
            raise ValueError(f"attention {name} has no setting {key!r}; {choices}")
    module: nn.Module = build(channels, **settings)
    return module


def attention_settings(name: str) -> list[str]:
    """The settings that an attention module takes beside `channels`."""
    parameters = inspect.signature(attentions[name]).parameters.values()
    return [each.name for each in parameters if each.kind is each.KEYWORD_ONLY]
