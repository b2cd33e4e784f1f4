"""Sanity and the search for a rate, on the tiny data set."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from detkit.config import Recipe
from detkit.engine import trial_run
from detkit.engine.trial_run import RateTest, check_sanity, find_rate, try_out

MakeRecipe = Callable[..., Recipe]
CPU = torch.device("cpu")


def test_a_few_pictures_are_learned_by_heart(tiny_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = tiny_recipe("train.optimizer.lr=0.003", "train.batch_size=8")
    sanity = check_sanity(recipe, folder=tmp_path / "run", device=CPU)
    assert sanity.learned, sanity.text()
    assert sanity.last_loss < 0.5 * sanity.first_loss
    assert sanity.images == 8
    assert "sane: model, losses, boxes and evaluation fit together" in sanity.text()
    assert not (tmp_path / "run").exists()


def test_what_cannot_be_learned_is_said(
    tiny_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial_run, "STEPS", 20)
    recipe = tiny_recipe("train.optimizer.lr=1e-9")
    with pytest.raises(FloatingPointError, match=r"NOT sane: AP50 should come to 0\.9") as caught:
        try_out(recipe, folder=tmp_path, device=CPU, rates=False)
    assert "the loss hardly falls: try another train.optimizer.lr" in str(caught.value)


def test_the_rate_of_a_bowl() -> None:
    """The loss falls until a rate of 0.01 and explodes beyond."""
    rates = np.geomspace(1e-6, 1, 61)
    test = RateTest(rates, np.abs(np.log10(rates) + 2) + 1)
    assert test.suggestion == pytest.approx(0.0033, rel=0.02)
    assert "train.optimizer.lr=0.0033" in test.text()


def test_rates_grow_until_the_loss_explodes(tiny_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = tiny_recipe("train.optimizer={name: sgd, lr: 0.5}", "train.clip_norm=null")
    found = find_rate(recipe, folder=tmp_path, device=CPU)
    assert len(found.rates) == len(found.losses) >= 10
    assert (np.diff(found.rates) > 0).all()
    assert found.rates[0] == pytest.approx(1e-6)
    assert 1e-6 < found.suggestion < 1
    found.plot(tmp_path / "find_lr.png")
    assert (tmp_path / "find_lr.png").read_bytes().startswith(b"\x89PNG")
