"""Fixtures of the engine's tests."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from detkit.config import Recipe
from detkit.engine.train import train


def _run(recipe: Recipe, folder: Path, *, resume: bool = False) -> Path:
    """Train on the CPU."""
    train(recipe, folder=folder, device=torch.device("cpu"), resume=resume)
    return folder


def _difference(one: Any, other: Any, place: str = "") -> str | None:
    """Where two trees of plain values and tensors first differ, to the last bit."""
    if type(one) is not type(other):
        return f"{place}: {type(one).__name__} and {type(other).__name__}"
    if isinstance(one, torch.Tensor):
        same = one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)
        return None if same else f"{place}: {one} and {other}"
    if isinstance(one, Mapping):
        if list(one) != list(other):
            return f"{place}: keys {list(one)} and {list(other)}"
        pairs: Sequence[Any] = [(key, one[key], other[key]) for key in one]
    elif isinstance(one, list | tuple):
        if len(one) != len(other):
            return f"{place}: {len(one)} and {len(other)} items"
        pairs = [(i, a, b) for i, (a, b) in enumerate(zip(one, other, strict=True))]
    else:
        return None if one == other else f"{place}: {one!r} and {other!r}"
    found = (_difference(a, b, f"{place}.{key}") for key, a, b in pairs)
    return next((each for each in found if each is not None), None)


def _content(path: Path) -> dict[str, Any]:
    """A checkpoint without what it says about time."""
    content: dict[str, Any] = torch.load(path, weights_only=True)
    assert content.pop("seconds") > 0 or content["epoch"] == 0
    return content


def _records(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without what they say about time and memory."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line, parse_constant=refuse) for line in lines]
    return [
        {key: value for key, value in record.items() if not key.startswith(("time/", "memory"))}
        for record in records
    ]


@pytest.fixture(scope="session")
def run() -> Callable[..., Path]:
    return _run


@pytest.fixture(scope="session")
def difference() -> Callable[[Any, Any], str | None]:
    return _difference


@pytest.fixture(scope="session")
def content() -> Callable[[Path], dict[str, Any]]:
    return _content


@pytest.fixture(scope="session")
def records() -> Callable[[Path], list[dict[str, Any]]]:
    return _records


@pytest.fixture(scope="session")
def straight(tiny_recipe: Callable[..., Recipe], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four epochs without interruption."""
    return _run(tiny_recipe(), tmp_path_factory.mktemp("straight"))
