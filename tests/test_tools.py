"""The commands: what they write, and the exit code and one line for each mistake."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

import detkit.engine.evaluate
from detkit import cli
from detkit.config import Recipe, load_recipe, recipe_to_yaml
from detkit.detectors import RegionProposal
from detkit.engine.checkpoint import load_checkpoint, save_checkpoint
from detkit.evaluation import evaluate_files
from detkit.evaluation.side_by_side import results_dict

ROOT = Path(__file__).resolve().parent.parent
MakeRecipe = Callable[..., Recipe]


class Done(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def line(self) -> str:
        """The one line in which it says what is wrong: the last, and the only one of its kind."""
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, self.err
        assert self.err.endswith(lines[0] + "\n")
        assert "Traceback" not in self.err + self.out
        return lines[0].removeprefix("error: ")


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Any:
    """Run a tool in this process as from the command line."""

    def call(tool: str, *arguments: object) -> Done:
        spec = importlib.util.spec_from_file_location(
            f"tools_{tool}", ROOT / "tools" / f"{tool}.py"
        )
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        monkeypatch.setattr(sys, "argv", [f"tools/{tool}.py", *map(str, arguments)])
        monkeypatch.setattr(logging.root, "handlers", [])  # pytest's, beside which none is made
        capfd.readouterr()
        with pytest.raises(SystemExit) as caught:
            cli.run(module.main)
        return Done(int(caught.value.code or 0), *capfd.readouterr())

    return call


@pytest.fixture(scope="module")
def recipe_file(tiny_recipe: MakeRecipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One epoch of training, then detections of everything that is a little likely."""
    recipe = tiny_recipe("train.epochs=1", "model.select.score_threshold=0.1")
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(recipe_to_yaml(recipe), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def finished(recipe_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run."""
    from detkit.engine.train import train

    folder = tmp_path_factory.mktemp("runs") / "tiny"
    train(load_recipe(recipe_file), folder=folder, device=torch.device("cpu"))
    return folder


@pytest.fixture
def checkpoint(finished: Path, tmp_path: Path) -> Path:
    """A checkpoint alone in a folder: nothing else of the run is needed."""
    return Path(shutil.copy(finished / "best.pt", tmp_path / "best.pt"))


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# ------------------------------------------------------------------------------------------ train


def test_train(command: Any, recipe_file: Path, tmp_path: Path) -> None:
    done = command("train", recipe_file, "train.log_every=2", "name=other", "--out", tmp_path)
    assert done.code == 0, done.err
    assert "9 images (1 without boxes), 16 boxes (1 crowd" in done.err
    assert f"results in {tmp_path / 'other'}" in done.err
    assert "epoch   1  AP " in done.out
    recipe = load_recipe(tmp_path / "other" / "recipe.yaml")
    assert (recipe.name, recipe.train.log_every) == ("other", 2)
    assert load_checkpoint(tmp_path / "other" / "last.pt").recipe == recipe


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no recipe given; name one, e.g. configs/quickstart.yaml"),
        (["no.yaml"], "no recipe at no.yaml"),
        (
            ["RECIPE", "train.epoch=3"],
            "RECIPE: train.epoch: unknown key; did you mean 'epochs'? al",
        ),
        (["RECIPE", "epochs"], "override 'epochs' is not of the form key.path=value"),
        (
            ["RECIPE", "train.epochs=0", "seed=-1"],
            "RECIPE: seed: got -1; should be greater than or",
        ),
        (
            ["RECIPE", "data.train.annotations=no.json"],
            "cannot read annotations no.json: No such fi",
        ),
        (["RECIPE", "data.train.images=no/folder"], "images folder no/folder does not exist"),
        (
            ["RECIPE", "train.amp=fp16"],
            "amp 'fp16' needs a GPU; use 'auto', 'bf16' or 'off' on a CPU",
        ),
        (
            ["RECIPE", "model.backbone.weights=no.pth"],
            "model.backbone: weights 'no.pth': no such file; allowed: ima",
        ),
        (["--resume", "no/run"], "no recipe at no/run/recipe.yaml"),
    ],
)
def test_train_mistake(
    command: Any,
    recipe_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    done = command("train", *(str(recipe_file) if a == "RECIPE" else a for a in arguments))
    assert done.code == 2
    assert done.line.replace(str(recipe_file), "RECIPE").startswith(message)
    assert list(tmp_path.iterdir()) == []  # nothing begun


def test_train_cuda_where_there_is_none(
    command: Any, recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    done = command("train", recipe_file, "--device", "cuda")
    assert (done.code, done.line[:34]) == (2, "device 'cuda' was asked for, but t")


def test_train_does_not_replace_a_run_unasked(
    command: Any, recipe_file: Path, finished: Path
) -> None:
    before = snapshot(finished)
    done = command("train", recipe_file, "--out", finished.parent)
    assert done.code == 2
    assert done.line == (
        f"{finished} holds a run already; go on with --resume {finished}, start a new one with "
        "name=other_name, or replace it with --overwrite"
    )
    assert snapshot(finished) == before


def test_train_overwrites_when_asked(
    command: Any, recipe_file: Path, finished: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(finished, tmp_path / "tiny")
    done = command("train", recipe_file, "seed=5", "--out", tmp_path, "--overwrite")
    assert done.code == 0, done.err
    assert load_checkpoint(folder / "last.pt").recipe.seed == 5
    assert len(list(folder.glob("events.*"))) == 1


def test_train_resumes_with_the_recipe_of_the_run(
    command: Any, finished: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(finished, tmp_path / "run")
    done = command("train", "--resume", folder, "data.workers=1")
    assert done.code == 0, done.err
    assert load_recipe(folder / "recipe.yaml").data.workers == 1
    done = command("train", "--resume", folder, "train.epochs=2")
    assert done.code == 2
    assert done.line.startswith(
        f"{folder}/last.pt was trained with other settings: train.epochs is 2 and "
    )


def test_train_stops_at_a_loss_that_is_not_finite(
    command: Any, recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = RegionProposal.loss

    def infinite(detector: RegionProposal, batch: Any) -> dict[str, Tensor]:
        return loss(detector, batch) | {"rpn/box": torch.tensor(float("inf"))}

    monkeypatch.setattr(RegionProposal, "loss", infinite)
    done = command("train", recipe_file, "--out", tmp_path)
    assert done.code == 1
    assert done.line.startswith("loss rpn/box is inf in step 1, image ids [")


@pytest.fixture
def broken_image(tiny_data: Any, tmp_path: Path) -> Path:
    """A copy of the pictures, one of which is cut off."""
    images = shutil.copytree(tiny_data.images, tmp_path / "images")
    path = images / "3.png"
    path.write_bytes(path.read_bytes()[:100])
    return path


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("tool", ["train", "test"])
def test_unreadable_picture_is_one_line(
    command: Any,
    tool: str,
    workers: int,
    recipe_file: Path,
    checkpoint: Path,
    broken_image: Path,
    tmp_path: Path,
) -> None:
    """Also from a worker process, which sends its traceback along."""
    changes = [f"data.workers={workers}", "data.resize.longest=64"]
    changes += [f"data.{role}.images={broken_image.parent}" for role in ("train", "val")]
    source = recipe_file if tool == "train" else checkpoint
    done = command(tool, source, *changes, "--out", tmp_path / "out")
    assert done.code == 2
    assert done.line == (
        f"cannot decode image {broken_image}: broken, truncated or not an image (100 bytes)"
    )


# ------------------------------------------------------------------------------------------- test


def test_test_needs_the_checkpoint_only(
    command: Any, checkpoint: Path, tiny_data: Any, tmp_path: Path
) -> None:
    done = command("test", checkpoint)
    assert done.code == 0, done.err
    folder = tmp_path / "test"
    assert sorted(path.name for path in folder.iterdir()) == ["detections.json", "metrics.json"]
    records = json.loads((folder / "detections.json").read_text())
    assert len(records) > 20
    assert all(set(r) == {"image_id", "category_id", "bbox", "score"} for r in records)
    assert {record["category_id"] for record in records} <= {7, 90, 300}
    assert {record["image_id"] for record in records} <= set(range(3, 90, 10))

    metrics = json.loads((folder / "metrics.json").read_text())
    result = evaluate_files(tiny_data.annotations, folder / "detections.json")
    names = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]
    assert [metrics[name] for name in names] == result.stats.tolist()
    assert metrics["AP50"] > 0  # there is something to be equal
    interval = result.interval()
    assert metrics == {**result.as_dict(), "interval": interval.as_dict(), "notes": []}
    assert "\n\n" + interval.sentence() + "\n\n" in done.out
    assert result.summary() in done.out
    assert result.table() in done.out
    assert f"written to {folder}" in done.out

    again = command("evaluate", tiny_data.annotations, folder / "detections.json")
    assert again.code == 0
    assert result.summary() in again.out and interval.sentence() in again.out

    without = command("test", checkpoint, "--resamples", 0)
    assert without.code == 0 and "interval" not in without.out
    refused = command("test", checkpoint, "--resamples", 1)
    assert (
        refused.code == 2 and "resamples must be 0, for no interval, or at least 2" in refused.line
    )


def test_test_writes_a_report(command: Any, checkpoint: Path, tmp_path: Path) -> None:
    done = command("test", checkpoint, "--report")
    assert done.code == 0, done.err
    assert "95 % interval" in done.out
    folder = tmp_path / "test"
    files = ["detections.json", "metrics.json", "report.html"]
    assert sorted(path.name for path in folder.iterdir()) == files
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "tiny" in page  # the name of the recipe
    assert "data:image/jpeg;base64," in page
    assert "missing or broken" not in page

    (tmp_path / "taken" / "report.html").mkdir(parents=True)
    done = command("test", checkpoint, "--report", "--out", tmp_path / "taken")
    assert done.code == 2
    assert "report.html: it is a folder" in done.line
    assert not (tmp_path / "taken" / "metrics.json").exists()


def test_test_prefers_the_test_data(
    command: Any, checkpoint: Path, tiny_data: Any, tmp_path: Path
) -> None:
    content = json.loads(tiny_data.annotations.read_text())
    content["images"] = content["images"][:2]
    kept = {image["id"] for image in content["images"]}
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in kept]
    (tmp_path / "two.json").write_text(json.dumps(content))
    changes = [
        "data.test.format=coco",
        f"data.test.annotations={tmp_path / 'two.json'}",
        f"data.test.images={tiny_data.images}",
    ]
    done = command("test", checkpoint, *changes, "--out", tmp_path / "out")
    assert done.code == 0, done.err
    assert "test: 2 images" in done.err
    records = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert {record["image_id"] for record in records} <= kept


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no/best.pt"], "no checkpoint at no/best.pt"),
        (["TEXT"], "TEXT is damaged or no checkpoint ("),
        (
            ["BEST", "data.vall.images=x"],
            "BEST: data.vall: unknown key; did you mean 'val'? allowed",
        ),
        (
            ["BEST", "test.amp=fp32"],
            "BEST: test.amp: got 'fp32'; allowed: auto, bf16, fp16, off",
        ),
        (
            ["BEST", "data.val=null"],
            "the recipe names no data.test and no data.val; set data.test.f",
        ),
        (
            ["BEST", "data.val.images=EMPTY"],
            "ANNOTATIONS: 9 of 9 image files are not in EMPTY: 0.p",
        ),
        (["BEST", "data.val.images=no/folder"], "images folder no/folder does not exist"),
        (["BEST", "data.val.annotations=NONE"], "data.test has no images; check {'annotations':"),
        (
            ["BEST", "data.val.annotations=OTHER"],
            "data.test has the classes cat, green, red, the de",
        ),
        (["BEST", "data.val.annotations=TEXT"], "TEXT is not valid JSON:"),
        (
            ["BEST", "model.fpn.channels=8"],
            "BEST: weights of the checkpoint do not fit RegionProposal: 1",
        ),
    ],
)
def test_test_mistake(
    command: Any,
    checkpoint: Path,
    tiny_data: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    content = json.loads(tiny_data.annotations.read_text())
    places = {
        "BEST": checkpoint,
        "TEXT": tmp_path / "text.pt",
        "EMPTY": tmp_path / "empty",
        "NONE": tmp_path / "none.json",
        "OTHER": tmp_path / "other.json",
        "ANNOTATIONS": tiny_data.annotations,
    }
    places["TEXT"].write_text("some text")
    places["EMPTY"].mkdir()
    places["NONE"].write_text(json.dumps({**content, "images": [], "annotations": []}))
    content["categories"][0]["name"] = "cat"
    places["OTHER"].write_text(json.dumps(content))
    monkeypatch.chdir(tmp_path)
    for name, path in places.items():
        arguments = [argument.replace(name, str(path)) for argument in arguments]
        message = message.replace(name, str(path))
    before = snapshot(tmp_path)
    done = command("test", *arguments)
    assert done.code == 2
    assert done.line.startswith(message)
    assert snapshot(tmp_path) == before


def test_picture_of_another_size_is_one_line(
    command: Any, checkpoint: Path, tiny_data: Any, tmp_path: Path
) -> None:
    images = shutil.copytree(tiny_data.images, tmp_path / "images")
    cv2.imwrite(str(images / "0.png"), np.zeros((20, 30, 3), np.uint8))
    done = command("test", checkpoint, f"data.val.images={images}")
    assert done.code == 2
    assert done.line.startswith(f"image {images / '0.png'} is 30x20 (upright), its annotations say")


@pytest.mark.parametrize(
    "changes",
    [
        ["test.scales=[0.5,1,2]", "test.flip=true", "test.ranges=[[0,99],[4,99],[8,null]]"],
        ["test.tile=40", "test.tile_overlap=0.4", "test.tile_whole=true", "test.batch_size=3"],
        ["model.image_pyramid.scales=[1,1.5]", "model.image_pyramid.fusion.iou_threshold=0.4"],
        ["model.select.iou_threshold=0.2", "model.select.max_detections=5"],
        ["model.select.nms=soft_gaussian", "model.select.sigma=0.3"],
        ["test.flip=true", "test.fusion.nms=wbf", "test.fusion.iou_threshold=0.6"],
        ["test.tile=40", "test.fusion.nms=nmm"],
    ],
)
def test_test_looks_as_it_is_told(
    command: Any, checkpoint: Path, tiny_data: Any, tmp_path: Path, changes: list[str]
) -> None:
    def detections(*changes: str) -> Any:
        done = command("test", checkpoint, *changes)
        assert done.code == 0, done.err
        path = tmp_path / "test" / "detections.json"
        assert evaluate_files(tiny_data.annotations, path).summary() in done.out
        return json.loads(path.read_text())

    plain, other = detections(), detections(*changes)
    assert len(other) > 5 and other != plain


def test_test_of_several_checkpoints(
    command: Any, checkpoint: Path, tiny_data: Any, tmp_path: Path
) -> None:
    second = shutil.copy(checkpoint, tmp_path / "width=8.pt")  # a path, though it has a '='
    arguments = ["test.weights=[2,1]", second, "test.fusion.iou_threshold=0.55"]
    done = command("test", checkpoint, *arguments)
    assert done.code == 0, done.err
    assert f"fusing by wbf: {checkpoint} (weight 2), {second} (weight 1)" in done.err
    folder = tmp_path / "ensemble"
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics.pop("checkpoints") == [str(checkpoint), str(second)]
    result = evaluate_files(tiny_data.annotations, folder / "detections.json")
    assert metrics == results_dict({"": result}) and metrics["AP50"] > 0
    assert result.summary() in done.out


def test_choose_thresholds_and_use_them(command: Any, checkpoint: Path, tmp_path: Path) -> None:
    changes = ["model.select.score_threshold=0.02", "--miss", 2, "--miss", "green=30"]
    done = command("choose_thresholds", checkpoint, *changes, "--prior", "red=0")
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[1].split()[:3] == ["class", "threshold", "truths"]
    assert [line.split()[0] for line in lines[2:6]] == ["blue", "green", "red", "all"]
    path = tmp_path / "thresholds.yaml"
    assert f"written to {path}" in done.out
    limits = {
        name: float(value)
        for name, value in (line.split(": ") for line in path.read_text().splitlines())
    }
    assert list(limits) == ['"blue"', '"green"', '"red"'] and limits['"red"'] == 1

    done = command("test", checkpoint, changes[0], f"test.thresholds={path}")
    assert done.code == 0, done.err
    records = json.loads((tmp_path / "test" / "detections.json").read_text())
    least = {7: limits['"blue"'], 90: limits['"green"'], 300: limits['"red"']}
    assert records and all(r["score"] >= least[r["category_id"]] for r in records)

    before = len(records)
    done = command("test", checkpoint, changes[0], "test.thresholds={green: 0.999}")
    records = json.loads((tmp_path / "test" / "detections.json").read_text())
    assert {record["category_id"] for record in records} == {7, 300} and len(records) != before


@pytest.mark.parametrize(
    ("tool", "arguments", "message"),
    [
        ("test", ["BEST", "test.tile=1"], "BEST: test.tile: got 1; should be greater than or equ"),
        ("test", ["BEST", "test.scales=[1000]"], "BEST: test.scales.0: got 1000; should be less"),
        ("test", ["BEST", "test.scales=2"], "BEST: test.scales: got 2; should be a list, in brack"),
        ("test", ["BEST", "test.scales=[1,-2]"], "BEST: test.scales.1: got -2; should be greater"),
        (
            "test",
            ["BEST", "test.ranges=[[0,9],[9,99]]"],
            "BEST: test: ranges has 2 entries; giv",
        ),
        ("test", ["BEST", "test.tile_overlap=1"], "BEST: test.tile_overlap: got 1; should be less"),
        ("test", ["BEST", "OTHER"], "OTHER knows the classes cat, dog, eel, BEST knows blue, gre"),
        ("test", ["BEST", "BEST"], "a checkpoint is named twice: BEST, BEST"),
        ("test", ["BEST", "flip"], "'flip' is neither a checkpoint nor of the form key"),
        ("test", ["BEST", "no/best.pt"], "no checkpoint at no/best.pt"),
        ("test", ["BEST", "--out", "BEST"], "cannot write BEST/metrics.json: BEST is a file, not"),
        (
            "test",
            ["BEST", "UNFIT"],
            "UNFIT: weights of the checkpoint do not fit RegionProp",
        ),
        (
            "test",
            ["BEST", "test.fusion.nms=sft_linear"],
            "BEST: test.fusion.nms: got 'sft_linear'; did you mean 'soft_linear'",
        ),
        (
            "test",
            ["BEST", "test.weights=[1,2,3]"],
            "test.weights has 3 entries for 1 checkpoint; give one each",
        ),
        (
            "test",
            ["BEST", "test.thresholds={gren: 0.5}"],
            "thresholds: unknown class 'gren'; did you mean 'green'? allowed: blue, green, red",
        ),
        (
            "test",
            ["BEST", "test.thresholds=1.5"],
            "BEST: test.thresholds: got 1.5; thresholds are a number in 0..1, {name of a class",
        ),
        ("test", ["BEST", "test.thresholds=no.yaml"], "no thresholds at no.yaml; write them with"),
        (
            "choose_thresholds",
            ["BEST", "--miss", "gren=5"],
            "--miss gren=5: unknown class; did you mean 'green'? allowed: blue, green, red",
        ),
        (
            "choose_thresholds",
            ["BEST", "--false-alarm", "0", "--miss", "0"],
            "both --false-alarm and --miss of 'blue' are 0",
        ),
        (
            "choose_thresholds",
            ["BEST", "--out", "."],
            "cannot write .: it is a folder; name a",
        ),
        ("choose_thresholds", ["BEST", "data.val=null"], "the recipe names no data.val; set data"),
    ],
)
def test_mistake_about_looks_and_thresholds(
    command: Any,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tool: str,
    arguments: list[str],
    message: str,
) -> None:
    other = tmp_path / "other.pt"
    save_checkpoint(other, replace(load_checkpoint(checkpoint), class_names=("cat", "dog", "eel")))
    unfit = tmp_path / "unfit.pt"
    whole = load_checkpoint(checkpoint)
    save_checkpoint(unfit, replace(whole, weights=dict(list(whole.weights.items())[1:])))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(detkit.engine.evaluate, "detect", never)  # all mistakes come before
    for name, path in (("BEST", checkpoint), ("OTHER", other), ("UNFIT", unfit)):
        arguments = [argument.replace(name, str(path)) for argument in arguments]
        message = message.replace(name, str(path))
    before = snapshot(tmp_path)
    done = command(tool, *arguments)
    assert done.code == 2
    assert done.line.startswith(message)
    assert snapshot(tmp_path) == before


def never(*arguments: object, **settings: object) -> None:
    raise AssertionError("the detector has run")


def test_pyramid_of_training_is_taken_off(command: Any, recipe_file: Path, tmp_path: Path) -> None:
    """Its weights have the detector's own names, also those that training goes on from."""
    pyramid = "model.image_pyramid={scales: [1, 0.5], ranges: [[0, 40], [10, null]]}"
    done = command("train", recipe_file, pyramid, "name=pyramid", "--out", tmp_path)
    assert done.code == 0, done.err
    best = tmp_path / "pyramid" / "best.pt"
    recipe = load_recipe(tmp_path / "pyramid" / "recipe.yaml")
    assert recipe.model.image_pyramid is not None
    for changes in ([], ["model.image_pyramid=null"]):
        done = command("test", best, *changes)
        assert done.code == 0, done.err
    done = command("train", "--resume", tmp_path / "pyramid")
    assert done.code == 0, done.err
    done = command("train", recipe_file, f"model.weights={best}", "name=plain", "--out", tmp_path)
    assert done.code == 0, done.err


# ----------------------------------------------------------------------------------------- ablate


SWEEP = ("--sweep", "model.backbone.width=8,4", "--seeds", "0,1")


def test_ablate(command: Any, recipe_file: Path, tmp_path: Path) -> None:
    done = command("ablate", recipe_file, "train.ema=null", *SWEEP, "--out", tmp_path / "out")
    assert done.code == 0, done.err
    assert "run 4 of 4: width-4_seed-1" in done.err
    report = (tmp_path / "out" / "ablation.md").read_text("utf-8")
    assert report in done.out
    assert report.startswith("| width | seeds | params (M) |")
    assert "written to" in done.out

    again = command("ablate", recipe_file, "train.ema=null", *SWEEP, "--out", tmp_path / "out")
    assert again.code == 0
    assert "run 1 of 4: width-8_seed-0 is done" in again.err
    assert "trained in" not in again.err


def test_ablate_interrupted(
    command: Any, recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("detkit.engine.train._finite", interrupt)
    done = command("ablate", recipe_file, *SWEEP, "--out", tmp_path / "out")
    assert done.code == 130
    message = "interrupted; 0 of 4 runs are done; the same command goes on"
    assert done.err.splitlines()[-1] == message


@pytest.mark.skipif(sys.platform == "win32", reason="no signals to send here")
def test_train_terminated(
    command: Any, recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from detkit.engine import train

    original = train.train_step

    def terminated(*args: Any, **kwargs: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return original(*args, **kwargs)

    monkeypatch.setattr(train, "train_step", terminated)
    done = command("train", recipe_file, "--save-every", 1, "--out", tmp_path)
    assert done.code == 143
    assert done.err.splitlines()[-1] == f"terminated; go on with --resume {tmp_path / 'tiny'}"
    assert load_checkpoint(tmp_path / "tiny" / "last.pt").training["step"] == 1


def test_ablate_says_which_runs_failed(
    command: Any, recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def infinite(*_: Any) -> None:
        raise FloatingPointError("loss rpn/box is inf")

    monkeypatch.setattr("detkit.engine.train._finite", infinite)
    done = command("ablate", recipe_file, "--seeds", "3", "--out", tmp_path / "out")
    assert done.code == 1
    assert "run 1 of 1: seed-3 failed: loss rpn/box is inf" in done.err
    assert done.line == "1 of 1 runs failed, see above"
    assert "0 of 1" in done.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sweep", "train.epoch=1,2"], "RECIPE: train.epoch: unknown key; did you mean 'epochs'"),
        (["--sweep", "train.epochs"], "sweep 'train.epochs' is not of the form key.path=value,va"),
        (["--seeds", "a"], "seeds 'a' are not whole numbers with commas between, e.g. 0,1,2"),
        (
            ["--sweep", "model.backbone.name=resnet18,resnet19"],
            "name=resnet19: model.backbone: unknown backbone 'resnet19'; did you mean",
        ),
    ],
)
def test_ablate_mistake(
    command: Any,
    recipe_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    done = command("ablate", recipe_file, *arguments)
    assert done.code == 2
    assert done.line.replace(str(recipe_file), "RECIPE").startswith(message)
    assert list(tmp_path.iterdir()) == []  # nothing begun


# ------------------------------------------------------------------------------------- from outside


@pytest.fixture
def process(recipe_file: Path, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Long training in a process group of its own, with a worker process."""
    changes = ["train.epochs=100000", "train.validate_every=100000", "data.workers=1"]
    started = subprocess.Popen(
        [sys.executable, "tools/train.py", str(recipe_file), *changes, "--out", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=(tmp_path / "stderr").open("wb"),
        start_new_session=True,
        # a shell's background job ignores it, and hands that down
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    yield started
    if started.poll() is None:
        os.killpg(started.pid, signal.SIGKILL)
    started.wait()


def group_members(group: int) -> list[int]:
    """Processes of a process group that still run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # gone meanwhile
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            found.append(int(path.parent.name))
    return found


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "waited in vain"
        time.sleep(0.02)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_interrupt(process: subprocess.Popen[bytes], tmp_path: Path) -> None:
    """Ctrl-C in the terminal reaches the whole process group, in the middle of an epoch."""
    log = tmp_path / "tiny" / "metrics.jsonl"
    last = tmp_path / "tiny" / "last.pt"
    wait_for(
        lambda: (last.exists() and load_checkpoint(last).epoch > 0) or process.poll() is not None
    )
    assert process.poll() is None, (tmp_path / "stderr").read_text()
    assert len(group_members(process.pid)) == 2  # the command and its worker
    wait_for(lambda: json.loads(log.read_text().splitlines()[-1])["step"] % 3 == 1)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=60) == 130
    errors = (tmp_path / "stderr").read_text()
    assert errors.endswith(f"\ninterrupted; go on with --resume {log.parent}\n")
    assert "Traceback" not in errors
    wait_for(lambda: not group_members(process.pid), 10)
    assert sorted(p.name for p in log.parent.glob(".*")) == []
    checkpoint = load_checkpoint(last)
    assert checkpoint.training is not None
    step, batch = (checkpoint.training[name] for name in ("step", "batch"))
    assert step == 3 * checkpoint.epoch + batch > 0
    assert checkpoint.detector() is not None
