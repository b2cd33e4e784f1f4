"""Training on mixed and on unreadable pictures: exact resuming, closing, records."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from detkit.config import Recipe, build_recipe
from detkit.data import ImageReadError
from detkit.data.mixing import MixTransform
from detkit.engine import train as training
from detkit.engine.data import build_dataset, train_loader, train_plan

MIXED = (
    "data.augment.preset=strong",
    "data.augment.close_mosaic=1",
    "train.epochs=2",
    "data.workers=0",
)


def interrupt(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Ctrl-C within a step."""
    original = training._finite

    def interrupted(losses: Any, batch: Any, state: Any) -> Any:
        if state.step == step:
            raise KeyboardInterrupt
        return original(losses, batch, state)

    monkeypatch.setattr(training, "_finite", interrupted)


@pytest.mark.parametrize("broken", [False, True])
def test_resuming_within_an_epoch_and_with_workers_is_exact(
    tiny_recipe, tiny_data, run, content, records, difference, tmp_path, monkeypatch, broken
) -> None:
    """Pictures drawn for mosaics, scales of batches and replacements are the same ones."""
    images = tmp_path / "images"
    shutil.copytree(tiny_data.images, images)
    if broken:
        (images / "3.png").write_bytes(b"broken")
    settings = (*MIXED, "data.unreadable=skip", f"data.train.images={images}")
    straight = run(tiny_recipe(*settings), tmp_path / "straight")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt(patch, 1)
        run(tiny_recipe(*settings), tmp_path / "halted")
    halted = run(tiny_recipe(*settings, "data.workers=2"), tmp_path / "halted", resume=True)
    one, other = content(straight / "last.pt"), content(halted / "last.pt")
    for each in (one, other):
        each.pop("recipe")  # their workers differ
    assert difference(one, other) is None
    assert records(straight) == records(halted)
    skipped = [record for record in records(straight) if record["kind"] == "skipped"]
    assert bool(skipped) == broken


def test_skipped_pictures_are_named_once_and_counted(
    tiny_recipe, tiny_data, run, records, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = tmp_path / "images"
    shutil.copytree(tiny_data.images, images)
    (images / "3.png").write_bytes(b"broken")
    settings = (f"data.train.images={images}", "train.epochs=2", "data.val=null")
    with pytest.raises(ImageReadError, match=r"3\.png"):
        run(tiny_recipe(*settings), tmp_path / "error")
    with caplog.at_level(logging.WARNING):
        folder = run(tiny_recipe(*settings, "data.unreadable=skip"), tmp_path / "skip")
    named = [r.getMessage() for r in caplog.records if "cannot be read" in r.getMessage()]
    assert named == [f"{images / '3.png'} cannot be read: another picture takes its place"]
    skipped = [record for record in records(folder) if record["kind"] == "skipped"]
    assert sum(record["pictures_skipped"] for record in skipped) >= 2  # once an epoch, or more
    assert {file for record in skipped for file in record["files"]} == {str(images / "3.png")}


def plan_of(tiny_recipe: Callable[..., Recipe], *settings: str) -> Any:
    recipe = tiny_recipe(*settings)
    return train_plan(recipe, build_dataset(recipe.data.train, role="train"))


def test_the_last_epochs_show_single_pictures(tiny_recipe) -> None:
    for settings, mixed in (
        (("train.epochs=20",), 18),  # a tenth
        (("train.epochs=20", "data.augment.close_mosaic=0"), 20),
        (("train.epochs=4",), 4),
        (("train.epochs=4", "data.augment.close_mosaic=3"), 1),
    ):
        plan = plan_of(tiny_recipe, "data.augment.mosaic=1", *settings)
        seen = [isinstance(plan.at(epoch, 0), MixTransform) for epoch in range(20)]
        assert seen == [epoch < mixed for epoch in range(20)]


def test_no_epoch_left_to_mix_is_said(tiny_recipe, caplog: pytest.LogCaptureFixture) -> None:
    settings = ("data.augment.mixup=1", "data.augment.close_mosaic=9")
    plan_of(tiny_recipe, *settings)
    assert "close_mosaic 9 leaves none of the 4 epochs" in caplog.text
    caplog.clear()
    plan_of(tiny_recipe)
    assert not caplog.text


def test_a_batch_has_one_scale(tiny_recipe) -> None:
    recipe = tiny_recipe(
        "data.augment={horizontal_flip: 0, multi_scale: [0.5, 1, 1.5]}", "train.batch_size=1"
    )
    dataset = build_dataset(recipe.data.train, role="train")
    longest = []
    for epoch in range(8):
        loader = train_loader(recipe, dataset, pin_memory=False)
        loader.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]
        longest += [max(batch.sizes[0]) for batch in loader]
    assert set(longest) == {32, 64, 96}
    plan = train_plan(recipe, dataset)
    assert all(plan.at(0, 5) is plan.at(0, 5) for _ in range(5))


def test_mixing_and_proposals_do_not_go_together(tiny_recipe, tiny_data, tmp_path: Path) -> None:
    ids = [image["id"] for image in json.loads(tiny_data.annotations.read_text())["images"]]
    found = [{"image_id": i, "category_id": 7, "bbox": [1, 2, 9, 9], "score": 1} for i in ids]
    (tmp_path / "proposals.json").write_text(json.dumps(found))
    settings = (f"data.train.proposals={tmp_path / 'proposals.json'}", "data.augment.mosaic=0.5")
    with pytest.raises(ValueError, match=r"mosaic, copy_paste and mixup .* no proposals"):
        plan_of(tiny_recipe, *settings)
    plan_of(tiny_recipe, settings[0])


def test_presets_fill_in_what_is_not_said() -> None:
    def augment(**given: Any) -> Any:
        return build_recipe({"name": "a", "data": {"augment": given}}).data.augment

    default = augment()
    assert (default.mixes, default.multi_scale, default.horizontal_flip) == (False, None, 0.5)
    light, medium, strong = (augment(preset=name) for name in ("light", "medium", "strong"))
    assert (light.mixes, medium.mixes, strong.mixes) == (False, True, True)
    assert light.color < medium.color < strong.color
    own = augment(preset="strong", mosaic=0, horizontal_flip=0)
    assert (own.mosaic, own.horizontal_flip, own.mixup) == (0, 0, strong.mixup)
    assert augment(**own.model_dump(mode="json")) == own  # a written recipe says the same
    with pytest.raises(ValueError, match="strong"):
        augment(preset="stong")
