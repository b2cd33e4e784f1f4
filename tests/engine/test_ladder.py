"""Several recipes in one table: what is trained, what is read from earlier runs, what is said."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from detkit.config import ConfigError, Recipe, recipe_to_yaml
from detkit.engine import train as training
from detkit.engine import trials as running
from detkit.engine.checkpoint import load_checkpoint
from detkit.engine.ladder import Ladder, plan_ladder, run_ladder

CPU = torch.device("cpu")


@pytest.fixture
def recipes(tmp_path: Path, tiny_recipe: Callable[..., Recipe]) -> list[Path]:
    """Two detectors that differ in width."""
    paths = []
    for name, width in (("wide", 8), ("narrow", 4)):
        recipe = tiny_recipe(
            f"name={name}", "train.epochs=1", f"model.backbone.width={width}", "data.workers=0"
        )
        paths.append(tmp_path / f"{name}.yaml")
        paths[-1].write_text(recipe_to_yaml(recipe), encoding="utf-8")
    return paths


def climbed(recipes: list[Path], folder: Path, *overrides: str) -> Ladder:
    plan = plan_ladder(recipes, overrides=overrides, folder=folder)
    return run_ladder(plan, folder=folder, device=CPU)


def test_every_recipe_becomes_a_line(recipes: list[Path], tmp_path: Path) -> None:
    ladder = climbed(recipes, tmp_path / "out")
    assert [rung.name for rung in ladder.rungs] == ["wide", "narrow"]
    for rung in ladder.rungs:
        folder = tmp_path / "out" / rung.name
        metrics = json.loads((folder / "metrics.json").read_text("utf-8"))
        assert rung.metrics == {n: metrics[n] for n in ("AP", "AP50", "APs", "APm", "APl")}
        checkpoint = load_checkpoint(folder / "last.pt")
        learnt = [p for p in checkpoint.detector().parameters() if p.requires_grad]
        assert rung.parameters == sum(p.numel() for p in learnt)
        assert rung.training_seconds == checkpoint.seconds > 0
        assert rung.picture_seconds > 0
    assert ladder.rungs[0].parameters > ladder.rungs[1].parameters
    head, _, *lines = ladder.table().splitlines()
    assert head.startswith("| recipe | params (M) | AP ")
    assert [line.split("|")[1].strip() for line in lines] == ["wide", "narrow"]
    assert (tmp_path / "out" / "ladder.md").read_text("utf-8") == f"{ladder.text()}\n"
    assert json.loads((tmp_path / "out" / "ladder.json").read_text("utf-8")) == ladder.as_dict()


def test_what_is_done_is_not_trained_again(
    recipes: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = climbed(recipes[:1], tmp_path / "out")
    trained: list[str] = []
    train = training.train

    def watched(recipe: Recipe, **settings: Any) -> None:
        trained.append(recipe.name)
        train(recipe, **settings)

    monkeypatch.setattr(running, "train", watched)
    both = climbed(recipes, tmp_path / "out")
    assert trained == ["narrow"]
    assert both.rungs[0].metrics == first.rungs[0].metrics
    assert both.rungs[0].training_seconds == first.rungs[0].training_seconds


def test_a_loss_that_is_not_finite_costs_one_line_only(
    recipes: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = training.train

    def diverging(recipe: Recipe, **settings: Any) -> None:
        if recipe.name == "wide":
            raise FloatingPointError("loss is nan")
        train(recipe, **settings)

    monkeypatch.setattr(running, "train", diverging)
    ladder = climbed(recipes, tmp_path / "out")
    assert [rung.name for rung in ladder.rungs] == ["narrow"]
    assert "Left out because their loss was not finite: wide." in ladder.text()


def test_all_recipes_are_checked_before_any_is_trained(
    recipes: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = recipes[1].read_text("utf-8").replace("resnet18", "resnet81")
    recipes[1].write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"narrow: .*unknown backbone 'resnet81'; did you mean"):
        climbed(recipes, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_mistakes(recipes: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no recipe is given"):
        plan_ladder([], folder=tmp_path)
    with pytest.raises(ConfigError, match="names of recipes: wide is given twice"):
        plan_ladder([recipes[0], recipes[0]], folder=tmp_path)
    with pytest.raises(ConfigError, match="is a file; give another --out"):
        plan_ladder(recipes, folder=recipes[0])
    climbed(recipes[:1], tmp_path / "out")
    with pytest.raises(ConfigError, match="was made with seed=0, not 3; give another --out"):
        climbed(recipes[:1], tmp_path / "out", "seed=3")
