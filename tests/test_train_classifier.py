"""The command that trains classifiers: what it writes, and its one line for each mistake."""

from __future__ import annotations

import importlib.util
import logging
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from detkit import cli
from detkit.config import ClassifierRecipe, load_recipe_as
from detkit.engine.classify import load_classifier

ROOT = Path(__file__).resolve().parent.parent


class Done(NamedTuple):
    """How the command ended."""

    code: int
    out: str
    err: str

    @property
    def line(self) -> str:
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, self.err
        assert "Traceback" not in self.err + self.out
        return lines[0].removeprefix("error: ")


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Any:
    """Run the tool in this process as from the command line."""
    path = ROOT / "tools" / "train_classifier.py"
    spec = importlib.util.spec_from_file_location("tools_train_classifier", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def call(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", [path.name, *map(str, arguments)])
        monkeypatch.setattr(logging.root, "handlers", [])  # pytest's, beside which none is made
        capfd.readouterr()
        with pytest.raises(SystemExit) as caught:
            cli.run(module.main)
        return Done(int(caught.value.code or 0), *capfd.readouterr())

    return call


@pytest.fixture
def recipe_file(tiny_data: Any, tmp_path: Path) -> Path:
    source = {
        "format": "coco",
        "annotations": str(tiny_data.annotations),
        "images": str(tiny_data.images),
    }
    tree = {
        "data": {"train": source, "test": source, "crop": {"size": 8}},
        "model": {"ram": {"glimpses": 2, "patches": [4, 8], "hidden": 16}},
        "train": {"epochs": 1, "batch_size": 8},
    }
    (tmp_path / "recipes").mkdir()
    path = tmp_path / "recipes" / "tiny.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


def test_train(command: Any, recipe_file: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    done = command(recipe_file, "model.ram.glimpses=3", "--out", runs, "--device", "cpu")
    assert done.code == 0, done.err
    assert "9 images (1 without boxes), 16 boxes (1 crowd" in done.err
    assert "epoch 1  loss/class" in done.out
    last = done.out.splitlines()[-1]
    assert last.startswith("accuracy 0.")
    assert "class  samples  precision  recall     F1    AUC" in done.err.splitlines()
    assert last.endswith(f"on the test data; results in {runs / 'tiny'}")
    recipe = load_recipe_as(ClassifierRecipe, runs / "tiny" / "recipe.yaml")
    assert recipe.model.ram.glimpses == 3
    assert load_classifier(runs / "tiny" / "best.pt")[1] == recipe


def test_run_is_not_replaced_unasked(command: Any, recipe_file: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    arguments = (recipe_file, "data.test=null", "--out", runs, "--device", "cpu")
    done = command(*arguments)
    assert done.out.splitlines()[-1] == f"no test data; results in {runs / 'tiny'}"
    before = (runs / "tiny" / "best.pt").read_bytes()
    done = command(*arguments, "seed=7")
    assert (done.code, done.line) == (
        2,
        f"{runs / 'tiny'} holds a run already; start a new one with name=other_name, or replace "
        "it with --overwrite",
    )
    assert (runs / "tiny" / "best.pt").read_bytes() == before
    assert command(*arguments, "seed=7", "--overwrite").code == 0
    assert load_classifier(runs / "tiny" / "best.pt")[1].seed == 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no.yaml"], "no recipe at no.yaml"),
        (["RECIPE", "train.epoch=3"], "RECIPE: train.epoch: unknown key; did you mean 'epochs'?"),
        (
            ["RECIPE", "model.name=rem"],
            "unknown classifier 'rem'; did you mean 'ram'? allowed: ram",
        ),
        (["RECIPE", "data.train=null"], "data.train is missing; name the annotations to train on"),
        (["RECIPE", "data.test.images=no/folder"], "images folder no/folder does not exist"),
        (["CONFIG"], "CONFIG: data.resize: unknown key; allowed: train, val, test, crop"),
    ],
)
def test_mistake(
    command: Any,
    recipe_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    names = {"RECIPE": str(recipe_file), "CONFIG": str(ROOT / "configs" / "quickstart.yaml")}
    done = command(*(names.get(argument, argument) for argument in arguments))
    assert done.code == 2
    line = done.line
    for name, path in names.items():
        line = line.replace(path, name)
    assert line.startswith(message)
    assert [path.name for path in tmp_path.iterdir()] == ["recipes"]  # nothing begun
