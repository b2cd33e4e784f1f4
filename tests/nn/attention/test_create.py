"""Attention modules by name."""

from __future__ import annotations

import pytest

from detkit.nn.attention import attention_settings, create_attention, list_attentions
from detkit.nn.attention.pairwise import NonLocal


def test_names_are_sorted_and_matched_by_a_pattern():
    names = list_attentions()
    assert names == sorted(names)
    assert {"mhsa", "nonlocal", "rga", "stn", "tam"} <= set(names)
    assert list_attentions("non*") == ["nonlocal"]
    assert list_attentions("no such*") == []


def test_settings_reach_the_module():
    module = create_attention("nonlocal", channels=12, inner_channels=5, pool="none")
    assert isinstance(module, NonLocal)
    assert module.theta.weight.shape == (5, 12, 1, 1) and module.pool == "none"


def test_settings_are_listed():
    assert attention_settings("nonlocal") == ["inner_channels", "pool", "scale", "norm"]
    assert attention_settings("strip_pooling") == []


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("nonlocl", {}, "unknown attention module 'nonlocl'; did you mean 'nonlocal'\\? allowed: "),
        ("rga", {"sise": 7}, "attention rga has no setting 'sise'; did you mean 'size'\\? allowed"),
        ("stn", {"channels_": 7}, "attention stn has no setting 'channels_'; allowed: hidden, "),
        ("strip_pooling", {"size": 7}, "strip_pooling has no setting 'size'; it takes none$"),
        ("nonlocal", {"channels": 0}, "channels must be at least 1, got 0"),
        ("mhsa", {"channels": 6}, "4 heads do not divide 6 channels; change heads"),
    ],
)
def test_mistakes_are_named(name, settings, message):
    with pytest.raises(ValueError, match=message) as error:
        create_attention(name, **{"channels": 8, **settings})
    assert "\n" not in str(error.value)


def test_settings_of_an_unknown_name():
    with pytest.raises(ValueError, match="unknown attention module 'nonlocl'"):
        attention_settings("nonlocl")
