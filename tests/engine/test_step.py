"""One step: batches in parts, early stopping, a plateau, the plain average; all of it resumable."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from detkit.config import Recipe
from detkit.engine import train as training
from detkit.engine.checkpoint import load_checkpoint
from detkit.structures import Batch, Target

MakeRecipe = Callable[..., Recipe]


def test_a_batch_splits_into_neighbours() -> None:
    targets = tuple(
        Target(torch.zeros(1, 4), torch.zeros(1), i, torch.zeros(1), torch.zeros(1))
        for i in range(5)
    )
    sizes = tuple((8, i) for i in range(5))
    batch = Batch(torch.arange(5.0).view(5, 1, 1, 1), sizes, sizes, targets, dropped=3)
    parts = batch.split(3)
    assert [len(part) for part in parts] == [2, 2, 1]
    assert [part.dropped for part in parts] == [3, 0, 0]
    assert torch.equal(torch.cat([part.images for part in parts]), batch.images)
    ids = [target.image_id for part in parts for target in part.targets or ()]
    assert ids == [0, 1, 2, 3, 4]
    assert [len(part) for part in batch.split(9)] == [1] * 5
    assert batch.split(1) == [batch]


def test_a_batch_in_parts_teaches_the_same(
    tiny_recipe: MakeRecipe, run: Callable[..., Path], tmp_path: Path
) -> None:
    """RetinaNet's losses are means over images, and a frozen norm does not look at the batch."""
    settings = (
        "model={detector: retinanet, backbone: {name: resnet18, width: 8, norm: frozen_batch,"
        " out_indices: [2, 3]}, fpn: {channels: 8, extra: null}, retinanet: {convs: 1}}",
        "train.optimizer={name: sgd, lr: 0.01, momentum: 0.9}",
        *("train.ema=null", "train.epochs=2", "train.batch_size=4", "train.amp=off"),
    )
    weights = []
    for parts in (1, 2, 3):
        recipe = tiny_recipe(*settings, f"train.accumulate={parts}")
        folder = run(recipe, tmp_path / str(parts))
        weights.append(load_checkpoint(folder / "last.pt").weights)
    for other in weights[1:]:
        for name, value in weights[0].items():
            torch.testing.assert_close(other[name], value, rtol=1e-4, atol=1e-6, msg=name)


def scores_given(monkeypatch: pytest.MonkeyPatch, scores: list[float]) -> None:
    """Validations that give these AP."""
    given = iter(scores)

    def evaluated(*args: Any, **kwargs: Any) -> Any:
        score = next(given)
        numbers = {"AP": score, "AP50": score}
        result = SimpleNamespace(stats=np.array([score] * 12), as_dict=lambda: numbers)
        return SimpleNamespace(result=result, losses={}, detections={})

    monkeypatch.setattr(training, "evaluate", evaluated)
    monkeypatch.setattr(training, "explain_failure", lambda result: [])


def test_patience(
    tiny_recipe: MakeRecipe,
    run: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    scores_given(monkeypatch, [0.1, 0.3, 0.2, 0.3, 0.9])
    recipe = tiny_recipe("train.patience=2", "train.epochs=9")
    with caplog.at_level("INFO"):
        run(recipe, tmp_path)
    assert load_checkpoint(tmp_path / "last.pt").epoch == 4
    assert load_checkpoint(tmp_path / "best.pt").epoch == 2
    assert "stopped after epoch 4: 2 validations without a better AP" in caplog.text
    run(recipe, tmp_path, resume=True)  # it has ended
    assert load_checkpoint(tmp_path / "last.pt").epoch == 4


@pytest.mark.parametrize(
    ("patience", "rates_of_epochs"),
    [(2, [0.01, 0.01, 0.01, 0.001]), (1, [0.01, 0.01, 0.001, 1e-4])],
)
def test_plateau_lowers_the_rate(
    patience: int,
    rates_of_epochs: list[float],
    tiny_recipe: MakeRecipe,
    run: Callable[..., Path],
    records: Callable[[Path], list[dict[str, Any]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scores_given(monkeypatch, [0.3, 0.2, 0.1, 0.4])
    schedule = (
        f"train.schedule={{name: plateau, warmup_steps: 0, patience: {patience}, gamma: 0.1}}"
    )
    run(tiny_recipe(schedule, "train.optimizer.lr=0.01"), tmp_path)
    rates = [record["lr"] for record in records(tmp_path) if record["kind"] == "step"]
    assert rates == pytest.approx([rate for rate in rates_of_epochs for _ in range(3)])


@pytest.mark.parametrize(
    "settings",
    [
        ("train.ema=null", "train.swa={epochs: 3}"),
        ("train.schedule={name: plateau, patience: 1, warmup_steps: 2}", "train.accumulate=2"),
    ],
)
def test_going_on_within_an_epoch(
    settings: tuple[str, ...],
    tiny_recipe: MakeRecipe,
    run: Callable[..., Path],
    content: Callable[[Path], dict[str, Any]],
    difference: Callable[[Any, Any], str | None],
    tmp_path: Path,
) -> None:
    recipe = tiny_recipe(*settings, "train.save_every=1")
    expected = run(recipe, tmp_path / "straight")
    original = training._finite

    def infinite(losses: Any, batch: Any, state: Any) -> Any:
        if state.step == 7:
            raise FloatingPointError("loss")
        return original(losses, batch, state)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "_finite", infinite)
        with pytest.raises(FloatingPointError):
            run(recipe, tmp_path / "resumed")
    assert content(tmp_path / "resumed" / "last.pt")["training"]["step"] == 7
    found = run(recipe, tmp_path / "resumed", resume=True)
    assert difference(content(expected / "last.pt"), content(found / "last.pt")) is None


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("model.std=[0.001, 0.001, 0.001]", "deviation"),
        ("model.mean=[123.7, 116.3, 103.5]", "instead of about 0 and 1: model.mean and model.std"),
        ("model.std=[58.4, 57.1, 57.4]", "they are of RGB in 0..1"),
        ("seed=0", None),
    ],
)
def test_pixels_out_of_range_are_noticed(
    model: str,
    said: str | None,
    tiny_recipe: MakeRecipe,
    run: Callable[..., Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    recipe = tiny_recipe(model, "train.epochs=1", "data.val=null", "train.clip_norm=1")
    with caplog.at_level("WARNING"), contextlib.suppress(FloatingPointError):
        run(recipe, tmp_path)
    warnings = [each for each in caplog.messages if "normalised pixels" in each]
    assert len(warnings) == (said is not None)
    assert said is None or said in warnings[0]


@pytest.mark.parametrize(("losses", "count"), [((2.0, 1.9, 1.8, *6 * [1.5]), 2), (9 * [2.0], 0)])
def test_low_ap_is_explained_while_the_loss_falls(
    losses: Sequence[float],
    count: int,
    tiny_recipe: MakeRecipe,
    run: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    given = iter(losses)  # of training; that of validation does not fall where its truths are wrong
    numbers = {"AP": 0.0, "AP50": 0.0}
    result = SimpleNamespace(stats=np.zeros(12), as_dict=lambda: numbers)
    monkeypatch.setattr(training, "train_step", lambda *a, **k: ({"a": next(given)}, 0.0))
    monkeypatch.setattr(
        training,
        "evaluate",
        lambda *a, **k: SimpleNamespace(result=result, losses={"a": 2.0}, detections={}),
    )
    monkeypatch.setattr(training, "explain_failure", lambda result: ["labels are shifted by one"])
    run(tiny_recipe("train.epochs=3"), tmp_path)
    line = "AP50 is low though the loss falls: labels are shifted by one"
    assert "".join(capfd.readouterr()).count(line) == count
