"""Fixtures shared by the tests of the analysis."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from detkit import cli
from detkit.config import Recipe, recipe_to_yaml

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def load_command(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[[str], Callable[..., tuple[int, str, str]]]:
    """From a tool's name to what runs it in this process.

    That gives its exit code, what it printed, and its error lines.
    """

    def load(name: str) -> Callable[..., tuple[int, str, str]]:
        path = ROOT / "tools" / f"{name}.py"
        spec = importlib.util.spec_from_file_location(f"tools_{name}", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)

        def call(*arguments: object) -> tuple[int, str, str]:
            monkeypatch.setattr(sys, "argv", [f"tools/{name}.py", *map(str, arguments)])
            capfd.readouterr()
            with pytest.raises(SystemExit) as caught:
                cli.run(module.main)
            out, err = capfd.readouterr()
            return int(caught.value.code or 0), out, err

        return call

    return load


@pytest.fixture
def recipe(tiny_recipe: Callable[..., Recipe], tmp_path: Path) -> Path:
    """A file of the smallest recipe."""
    path = tmp_path / "tiny.yaml"
    path.write_text(recipe_to_yaml(tiny_recipe()), encoding="utf-8")
    return path


@pytest.fixture
def meta():
    """Build on the meta device: shapes without values."""
    with torch.device("meta"):
        yield


@pytest.fixture(scope="session")
def page() -> str:
    """The page of all backbones, written anew."""
    from detkit.analysis import backbones_page

    return backbones_page("python tools/analyze.py --table docs/backbones.md")
