"""Checkpoints: whole or not there, readable without running code, and one line for each fault."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from detkit.config import Recipe
from detkit.detectors import create_detector
from detkit.engine.checkpoint import FORMAT, Checkpoint, load_checkpoint, save_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tiny_recipe: Callable[..., Recipe]) -> Checkpoint:
    recipe = tiny_recipe()
    torch.manual_seed(3)
    detector = create_detector(recipe.model, num_classes=3)
    return Checkpoint(
        recipe=recipe,
        class_names=("blue", "green", "red"),
        category_ids=(7, 90, 300),
        weights=detector.state_dict(),
        epoch=2,
        metrics={"AP": 0.5, "per_class": [{"name": "blue", "AP": -1.0}]},
        training={"step": 6, "best": float("-inf"), "optimizer": {"state": {0: torch.ones(2)}}},
    )


@pytest.fixture
def path(checkpoint: Checkpoint, tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / "run" / "last.pt", checkpoint)
    return tmp_path / "run" / "last.pt"


def content_of(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


def refused(path: Path, *overrides: str) -> str:
    with pytest.raises(ValueError, match=r".") as caught:
        load_checkpoint(path, list(overrides))
    message = str(caught.value)
    assert "\n" not in message
    assert len(message.replace(str(path), "")) < 300
    return message.replace(str(path), "FILE")


# -------------------------------------------------------------------------------------- it works


def test_everything_comes_back(checkpoint: Checkpoint, path: Path) -> None:
    found = load_checkpoint(path)
    for name in ("recipe", "class_names", "category_ids", "epoch", "metrics"):
        assert getattr(found, name) == getattr(checkpoint, name)
    assert found.training is not None and checkpoint.training is not None
    assert found.training["best"] == checkpoint.training["best"]
    assert set(found.weights) == set(checkpoint.weights)
    assert all(torch.equal(found.weights[key], checkpoint.weights[key]) for key in found.weights)


def test_without_training(checkpoint: Checkpoint, path: Path) -> None:
    save_checkpoint(path, replace(checkpoint, training=None))
    assert load_checkpoint(path).training is None
    assert "training" not in content_of(path)


def test_detector_has_the_weights_and_predicts(checkpoint: Checkpoint, path: Path) -> None:
    detector = load_checkpoint(path).detector()
    assert not any(module.training for module in detector.modules())
    own = detector.state_dict()
    assert all(torch.equal(own[key], value) for key, value in checkpoint.weights.items())


def test_detector_needs_no_other_file(checkpoint: Checkpoint, path: Path) -> None:
    """The files that training started from may be gone."""
    backbone = checkpoint.recipe.model.backbone.model_copy(update={"weights": "no/such.pth"})
    model = checkpoint.recipe.model.model_copy(
        update={"weights": "no/such.pt", "backbone": backbone}
    )
    recipe = checkpoint.recipe.model_copy(update={"model": model})
    save_checkpoint(path, replace(checkpoint, recipe=recipe))
    load_checkpoint(path).detector()


def test_overrides_change_the_recipe(path: Path) -> None:
    assert load_checkpoint(path, ["test.batch_size=1"]).recipe.test.batch_size == 1


def test_failure_while_writing_leaves_the_old_file(
    checkpoint: Checkpoint, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = path.read_bytes()

    def full_disk(content: object, handle: Any) -> None:
        handle.write(b"PK half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(path, replace(checkpoint, epoch=3))
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["last.pt"]


# ------------------------------------------------------------------------------- what is refused


def test_no_such_file_names_its_neighbours(path: Path) -> None:
    assert refused(path.parent / "best.pt") == f"no checkpoint at FILE; there is {path}"
    assert refused(path.parent / "no" / "best.pt") == "no checkpoint at FILE"
    assert refused(path.parent) == "no checkpoint at FILE; there is FILE/last.pt"  # a folder


def test_file_cut_anywhere_is_not_readable(path: Path) -> None:
    whole = path.read_bytes()
    for length in [0, 1, 3, 10, *range(100, len(whole), len(whole) // 25), len(whole) - 1]:
        path.write_bytes(whole[:length])
        assert refused(path).startswith("FILE is damaged or no checkpoint (")


def test_damaged_file_is_not_readable(path: Path) -> None:
    """Some bytes inside the archive are others, as after a fault of the disk."""
    whole = bytearray(path.read_bytes())
    start = whole.index(b"data.pkl") + 20
    generator = torch.Generator().manual_seed(0)
    refusals = 0
    for _ in range(20):
        damaged = bytearray(whole)
        for place in torch.randint(start, start + 4000, (8,), generator=generator).tolist():
            damaged[place] = int(torch.randint(0, 256, (1,), generator=generator))
        path.write_bytes(damaged)
        refusals += bool(refused(path))
    assert refusals == 20


class Evil:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return (exec, ("raise SystemExit('ran code')",))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            b"just text",
            "FILE is damaged or no checkpoint (it is no file that torch.save wrote); give",
        ),
        (
            b"\xff\xd8\xff\xe0 a picture",
            "FILE is damaged or no checkpoint (it is no file that torch.save",
        ),
        (b"", "FILE is damaged or no checkpoint (the file is empty); give the best.pt or last.pt"),
        (pickle.dumps({"a": 1}, protocol=2), "FILE is damaged or no checkpoint"),
        (
            pickle.dumps(Evil(), protocol=2),
            "FILE is damaged or no checkpoint (it holds objects of another program",
        ),
    ],
)
def test_another_file(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "x.pt").write_bytes(data)
    assert refused(tmp_path / "x.pt").startswith(message)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"weight": torch.ones(2)}, "is not a detkit checkpoint; train one with tools/train.py"),
        ({"model": {}, "recipe": {}}, "is not a detkit checkpoint"),
        (torch.ones(3), "is not a detkit checkpoint"),
        ([1, 2], "is not a detkit checkpoint"),
        ({"model": Evil()}, "is damaged or no checkpoint (it holds objects of another program"),
    ],
)
def test_another_checkpoint(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "x.pt")
    assert refused(tmp_path / "x.pt").startswith(f"FILE {message}")


def test_missing_parts_are_named(path: Path) -> None:
    content = content_of(path)
    del content["epoch"], content["metrics"]
    torch.save(content, path)
    assert "lacks epoch, metrics" in refused(path)


def test_weights_that_are_not_finite_are_named(path: Path) -> None:
    content = content_of(path)
    name = next(name for name in content["model"] if name.endswith("weight"))
    content["model"][name].fill_(float("nan"))
    torch.save(content, path)
    assert f"1 weights are not finite (the first: {name})" in refused(path)


@pytest.mark.parametrize("version", [0, FORMAT + 1, "2"])
def test_another_format(path: Path, version: object) -> None:
    torch.save({**content_of(path), "format": version}, path)
    assert refused(path) == (
        f"FILE has checkpoint format {version}, this version reads {FORMAT}; "
        "use the version of detkit that wrote it"
    )


def test_recipe_of_a_newer_version(path: Path) -> None:
    content = content_of(path)
    content["recipe"]["train"]["lookahead"] = {"steps": 5}
    torch.save(content, path)
    assert refused(path).startswith("FILE: train.lookahead: unknown key; allowed: epochs")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("test.batchsize=3", "FILE: test.batchsize: unknown key; did you mean 'batch_size'?"),
        ("nonsense", "override 'nonsense' is not of the form key.path=value"),
        ("test.batch_size=0", "FILE: test.batch_size: got 0; should be greater than 0"),
    ],
)
def test_mistaken_override(path: Path, override: str, message: str) -> None:
    assert refused(path, override).startswith(message)


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("model.backbone.width=16", "backbone.conv1.weight [8, 3, 7, 7] instead of [16, 3, 7, 7]"),
        ("model.backbone.name=resnet34", "missing (backbone.layer1.2.conv1.weight"),
        ("model.roi.class_agnostic=true", "roi.head.bbox_pred.weight [12, 16] instead of [4, 16]"),
    ],
)
def test_other_model_settings_are_one_line(path: Path, override: str, key: str) -> None:
    with pytest.raises(ValueError, match="weights of the checkpoint do not fit") as caught:
        load_checkpoint(path, [override]).detector()
    assert key in str(caught.value)
    assert "\n" not in str(caught.value)
