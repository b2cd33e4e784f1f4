"""Training: exact resuming, reproducibility, what is written, and what stops it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from detkit.config import ConfigError, Recipe, load_recipe
from detkit.detectors import Detector, RegionProposal, create_detector
from detkit.engine import state as states
from detkit.engine import train as training
from detkit.engine.checkpoint import load_checkpoint
from detkit.engine.data import build_dataset
from detkit.structures import Batch

MakeRecipe = Callable[..., Recipe]
Run = Callable[..., Path]
Content = Callable[[Path], dict[str, Any]]
Records = Callable[[Path], list[dict[str, Any]]]
Difference = Callable[[Any, Any], str | None]

SGD = (
    "train.optimizer={name: sgd, lr: 0.05, nesterov: true}",
    "train.ema=null",
    "train.schedule={name: multistep, warmup_steps: 4, milestones: [2, 3]}",
)


# ---------------------------------------------------------------------------------- interruption


def interrupt_at(monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """Raise KeyboardInterrupt in the first or third of four epochs of three steps each."""
    name = {"epoch": "_train_epoch", "save": "save_checkpoint"}.get(place, "_finite")
    module = states if place == "save" else training
    original = getattr(module, name)

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        if place == "first step" and args[2].step == 1:
            raise KeyboardInterrupt
        if place == "epoch" and args[1].epoch == 2:
            raise KeyboardInterrupt
        if place == "step" and args[2].step == 7:  # the second step of the epoch
            raise KeyboardInterrupt
        if place == "save" and args[0].name == "last.pt" and args[1].epoch == 3:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    monkeypatch.setattr(module, name, interrupted)


@pytest.mark.parametrize(
    ("place", "complete", "logged"),
    [("first step", 0, 1), ("epoch", 6, 6), ("step", 6, 7), ("save", 6, 9)],
)
def test_resuming_gives_the_same_bits(
    place: str,
    complete: int,
    logged: int,
    straight: Path,
    tiny_recipe: MakeRecipe,
    run: Run,
    content: Content,
    records: Records,
    difference: Difference,
    tmp_path: Path,
) -> None:
    """Four epochs straight, and two and two (or none and four) with a stop between."""
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(patch, place)
        with pytest.raises(KeyboardInterrupt):
            run(tiny_recipe(), tmp_path)
    stopped = content(tmp_path / "last.pt")
    assert (3 * stopped["epoch"], stopped["training"]["step"]) == (complete, complete)
    assert records(tmp_path)[-1]["step"] == logged

    torch.manual_seed(12345)  # whatever the new process draws before
    run(load_recipe(tmp_path / "recipe.yaml"), tmp_path, resume=True)
    for name in ("last.pt", "best.pt"):
        assert difference(content(straight / name), content(tmp_path / name)) is None
    assert difference(records(straight), records(tmp_path)) is None
    assert (straight / "recipe.yaml").read_bytes() == (tmp_path / "recipe.yaml").read_bytes()


def test_resuming_with_momentum_and_without_average(
    tiny_recipe: MakeRecipe,
    run: Run,
    content: Content,
    records: Records,
    difference: Difference,
    tmp_path: Path,
) -> None:
    recipe = tiny_recipe(*SGD)
    expected = run(recipe, tmp_path / "straight")
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(patch, "step")
        with pytest.raises(KeyboardInterrupt):
            run(recipe, tmp_path / "resumed")
    found = run(recipe, tmp_path / "resumed", resume=True)
    assert difference(content(expected / "last.pt"), content(found / "last.pt")) is None
    assert difference(records(expected), records(found)) is None
    assert content(found / "last.pt")["training"]["average"] is None


def test_resuming_a_finished_run_changes_nothing(
    straight: Path, run: Run, content: Content, difference: Difference, tmp_path: Path
) -> None:
    folder = shutil.copytree(straight, tmp_path / "run")
    run(load_recipe(folder / "recipe.yaml"), folder, resume=True)
    for name in ("last.pt", "metrics.jsonl", "recipe.yaml"):
        assert (folder / name).read_bytes() == (straight / name).read_bytes()


# ------------------------------------------------------------------------------- reproducibility


@pytest.mark.parametrize("override", ["data.workers=2", "train.validate_every=4"])
def test_weights_do_not_depend_on(
    override: str,
    straight: Path,
    tiny_recipe: MakeRecipe,
    run: Run,
    content: Content,
    difference: Difference,
    tmp_path: Path,
) -> None:
    """The number of reading processes; whether there was a validation between."""
    run(tiny_recipe(override), tmp_path)
    expected, found = (content(folder / "last.pt") for folder in (straight, tmp_path))
    for key in ("model", "metrics"):  # the last epoch is always validated
        assert difference(expected[key], found[key]) is None
    for key in ("detector", "optimizer", "schedule", "average", "step"):
        assert difference(expected["training"][key], found["training"][key]) is None


@pytest.mark.parametrize("override", ["seed=1", "train.ema.decay=0.5"])
def test_weights_depend_on(
    override: str,
    straight: Path,
    tiny_recipe: MakeRecipe,
    run: Run,
    content: Content,
    tmp_path: Path,
) -> None:
    run(tiny_recipe(override, "train.validate_every=4"), tmp_path)
    expected, found = (content(folder / "last.pt")["model"] for folder in (straight, tmp_path))
    key = "roi.head.cls_score.weight"
    assert (expected[key] - found[key]).abs().max() > 1e-5


def test_memory_layout_changes_rounding_only(
    tiny_recipe: MakeRecipe, run: Run, records: Records, tmp_path: Path
) -> None:
    losses = []
    for layout in ("true", "false"):
        recipe = tiny_recipe(f"train.channels_last={layout}", "train.epochs=1")
        losses.append(records(run(recipe, tmp_path / layout)))
    for one, other in zip(*losses, strict=True):
        for name in (name for name in one if "loss" in name):
            assert one[name] == pytest.approx(other[name], rel=1e-3, abs=1e-5)


def test_bf16_keeps_weights_in_full_precision(
    tiny_recipe: MakeRecipe,
    run: Run,
    content: Content,
    records: Records,
    straight: Path,
    tmp_path: Path,
) -> None:
    run(tiny_recipe("train.amp=bf16", "train.epochs=1"), tmp_path)
    state = content(tmp_path / "last.pt")["training"]
    dtypes = {value.dtype for value in state["detector"].values()}
    assert dtypes == {torch.float32, torch.int64}
    first, reference = records(tmp_path)[0], records(straight)[0]
    for name in (name for name in first if name.startswith("loss/")):
        assert first[name] == pytest.approx(reference[name], rel=0.05, abs=0.01)
        assert first[name] != reference[name]


def test_every_epoch_has_its_own_order(
    tiny_recipe: MakeRecipe, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    loss = RegionProposal.loss

    def noted(detector: Detector, batch: Batch) -> dict[str, Tensor]:
        assert detector.training
        seen.extend(target.image_id for target in batch.targets or ())
        return loss(detector, batch)

    monkeypatch.setattr(RegionProposal, "loss", noted)
    run(tiny_recipe("train.epochs=2", "train.ema=null"), tmp_path)
    first, second = seen[:9], seen[9:]
    assert sorted(first) == sorted(second) == [10 * index + 3 for index in range(9)]
    assert first != second


# ------------------------------------------------------------------------------------- each step


def first_weights(recipe: Recipe) -> dict[str, Tensor]:
    torch.manual_seed(recipe.seed)
    return create_detector(recipe.model, num_classes=3).state_dict()


@pytest.mark.parametrize(("clip", "clipped"), [("0.01", True), ("null", False)])
def test_clipping_limits_the_step(
    clip: str, clipped: bool, tiny_recipe: MakeRecipe, run: Run, content: Content, tmp_path: Path
) -> None:
    """One step of plain SGD moves the weights by lr * (norm of the gradients)."""
    recipe = tiny_recipe(
        f"train.clip_norm={clip}",
        "train.epochs=1",
        "train.batch_size=9",
        "train.optimizer={name: sgd, lr: 0.1, momentum: 0, weight_decay: 0}",
        "train.schedule={name: constant, warmup_steps: 0}",
        "train.ema=null",
    )
    before = first_weights(recipe)
    after = content(run(recipe, tmp_path) / "last.pt")["training"]["detector"]
    learning = [name for name in before if "running" not in name and "tracked" not in name]
    moved = torch.stack([(after[name] - before[name]).norm() for name in learning]).norm()
    if clipped:
        assert moved == pytest.approx(0.1 * 0.01, rel=1e-3)
    else:
        assert moved > 0.1 * 0.1


def test_frozen_stages_stay(
    tiny_recipe: MakeRecipe, run: Run, content: Content, tmp_path: Path
) -> None:
    recipe = tiny_recipe("model.backbone.frozen_stages=2", "train.epochs=1")
    before = first_weights(recipe)
    after = content(run(recipe, tmp_path) / "last.pt")
    frozen = ("backbone.conv1.", "backbone.bn1.", "backbone.layer1.")
    for weights in (after["model"], after["training"]["detector"]):
        same = {name for name in before if torch.equal(weights[name], before[name])}
        assert same >= {name for name in before if name.startswith(frozen)}
        moved = {name for name in before if name.endswith("weight")} - same
        assert "backbone.layer2.0.conv1.weight" in moved
        assert "roi.head.fc6.weight" in moved
    groups = after["training"]["optimizer"]["param_groups"]
    learning = [n for n in before if "running" not in n and "tracked" not in n]
    learning = [n for n in learning if not n.startswith(frozen)]
    assert sum(len(group["params"]) for group in groups) == len(learning)


def test_rate_in_the_log_is_that_of_the_schedule(straight: Path, records: Records) -> None:
    """Cosine over 12 steps with a warmup of 2 from 0.001, rate 0.003."""
    rates = [record["lr"] for record in records(straight) if record["kind"] == "step"]
    warmup = np.array([0.001, 0.5005, *[1.0] * 10])
    cosine = (1 + np.cos(np.pi * np.arange(12) / 12)) / 2
    np.testing.assert_allclose(rates, 0.003 * warmup * cosine, rtol=1e-9)


def test_average_is_what_is_kept_and_measured(straight: Path, content: Content) -> None:
    last = content(straight / "last.pt")
    ema = last["training"]["average"]
    assert ema["count"] == 12
    for name, value in last["model"].items():
        assert torch.equal(value, ema["module"][name])
    name = "roi.head.fc6.weight"
    assert not torch.equal(last["model"][name], last["training"]["detector"][name])


# --------------------------------------------------------------------------- not a finite number


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_loss_that_is_not_finite_stops(
    value: float,
    tiny_recipe: MakeRecipe,
    run: Run,
    content: Content,
    records: Records,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batches: list[list[int]] = []
    loss = RegionProposal.loss

    def poisoned(detector: Detector, batch: Batch) -> dict[str, Tensor]:
        assert batch.targets is not None
        batches.append([target.image_id for target in batch.targets])
        losses = loss(detector, batch)
        if len(batches) == 5:  # in the second epoch
            losses["roi/class"] = losses["roi/class"] * value
        return losses

    monkeypatch.setattr(RegionProposal, "loss", poisoned)
    with pytest.raises(FloatingPointError) as caught:
        run(tiny_recipe(), tmp_path)
    message = str(caught.value)
    assert message.startswith(f"loss roi/class is {value} in step 5, image ids {batches[4]}; ")
    assert "\n" not in message
    assert len(batches) == 5
    last = content(tmp_path / "last.pt")
    assert (last["epoch"], last["training"]["step"]) == (1, 3)
    assert all(weight.isfinite().all() for weight in last["model"].values())
    assert [record["step"] for record in records(tmp_path)] == [1, 2, 3, 3, 4]


# ------------------------------------------------------------------------------ what is written


def test_files_of_a_run(straight: Path, tiny_recipe: MakeRecipe, records: Records) -> None:
    names = {path.name for path in straight.iterdir() if not path.name.startswith("events.")}
    assert names == {"best.pt", "last.pt", "metrics.jsonl", "recipe.yaml"}
    assert load_recipe(straight / "recipe.yaml") == tiny_recipe()
    kinds = [(record["kind"], record["step"]) for record in records(straight)]
    expected = []
    for epoch in range(4):
        expected += [("step", 3 * epoch + step) for step in (1, 2, 3)]
        expected += [("epoch", 3 * epoch + 3)]
    assert kinds == expected
    losses = {"rpn/objectness", "rpn/box", "roi/class", "roi/box"}
    step, epoch = records(straight)[2:4]
    assert set(step) == {"kind", "step", "lr", "grad_norm", "boxes_dropped"} | {
        f"loss/{name}" for name in losses
    }
    assert set(epoch) >= {"epoch", "val/AP", "val/AP50"} | {f"val/loss/{name}" for name in losses}
    times = json.loads((straight / "metrics.jsonl").read_text().splitlines()[0])
    assert 0 <= times["time/data"] <= times["time/step"] < 60


def test_log_every(tiny_recipe: MakeRecipe, run: Run, records: Records, tmp_path: Path) -> None:
    run(tiny_recipe("train.log_every=2", "train.epochs=2", "data.val=null"), tmp_path)
    assert [record["step"] for record in records(tmp_path)] == [2, 4, 6]


def test_tensorboard_reads_the_events(straight: Path, records: Records) -> None:
    events = EventAccumulator(str(straight)).Reload()
    for tag, kind in (("loss/roi/class", "step"), ("val/AP", "epoch"), ("lr", "step")):
        found = [(event.step, event.value) for event in events.Scalars(tag)]
        expected = [(r["step"], r[tag]) for r in records(straight) if r["kind"] == kind]
        assert [step for step, _ in found] == [step for step, _ in expected]
        values = [value for _, value in expected]
        assert [value for _, value in found] == pytest.approx(values, rel=1e-6)


def test_checkpoints_agree_with_the_log(
    straight: Path, content: Content, records: Records, tiny_recipe: MakeRecipe
) -> None:
    scores = [record["val/AP"] for record in records(straight) if record["kind"] == "epoch"]
    best, last = content(straight / "best.pt"), content(straight / "last.pt")
    assert "training" not in best
    assert best["epoch"] == 1 + scores.index(max(scores))
    assert best["metrics"]["AP"] == max(scores) == last["training"]["best"]
    assert (last["epoch"], last["metrics"]["AP"]) == (4, scores[-1])
    assert last["class_names"] == ["blue", "green", "red"]
    assert last["category_ids"] == [7, 90, 300]
    assert load_checkpoint(straight / "last.pt").recipe == tiny_recipe()


@pytest.mark.parametrize(
    ("scores", "every", "best"),
    [
        ([0.2, 0.5, 0.5, 0.3], 1, 2),  # the first of equals
        ([0.1, 0.2, 0.3, 0.4], 1, 4),
        ([0.4, 0.3, 0.2, 0.1], 1, 1),
        ([0.0, 0.0, 0.0, 0.0], 1, 1),
        ([-1.0, -1.0, -1.0, -1.0], 1, 4),  # no truth to find: the last one
        ([0.2, 0.1], 3, 3),  # validated after epoch 3 and, as always, after the last
        ([0.1, 0.2], 3, 4),
    ],
)
def test_best_is_the_epoch_of_the_highest_ap(
    scores: list[float],
    every: int,
    best: int,
    tiny_recipe: MakeRecipe,
    run: Run,
    content: Content,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = iter(scores)

    def evaluated(*args: Any, **kwargs: Any) -> Any:
        score = next(given)
        result = SimpleNamespace(
            stats=np.array([score] * 12), as_dict=lambda: {"AP": score, "AP50": score}
        )
        return SimpleNamespace(result=result, losses={}, detections={})

    def no_epoch(model: object, state: states.State, *args: Any, **kwargs: Any) -> None:
        state.step += 3

    monkeypatch.setattr(training, "evaluate", evaluated)
    monkeypatch.setattr(training, "explain_failure", lambda result: [])
    monkeypatch.setattr(training, "_train_epoch", no_epoch)
    run(tiny_recipe(f"train.validate_every={every}"), tmp_path)
    assert next(given, None) is None
    found = content(tmp_path / "best.pt")
    assert found["epoch"] == best
    assert found["metrics"]["AP"] == max(scores)
    assert content(tmp_path / "last.pt")["training"]["best"] == max(scores)


def test_without_validation_the_last_is_the_best(
    tiny_recipe: MakeRecipe, run: Run, content: Content, tmp_path: Path
) -> None:
    run(tiny_recipe("data.val=null", "train.epochs=2"), tmp_path)
    best, last = content(tmp_path / "best.pt"), content(tmp_path / "last.pt")
    assert (best["epoch"], best["metrics"]) == (2, {})
    del last["training"]
    assert best.keys() == last.keys()


def test_new_run_in_an_old_folder_leaves_nothing_of_the_old(
    straight: Path, tiny_recipe: MakeRecipe, run: Run, records: Records, tmp_path: Path
) -> None:
    """Killed in its first epoch, it must not look like the old run."""
    folder = shutil.copytree(straight, tmp_path / "run")
    (folder / ".last.pt.abcd1234.part").touch()  # of a kill while saving
    (folder / "notes.txt").touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            training, "_train_epoch", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        with pytest.raises(KeyboardInterrupt):
            run(tiny_recipe(), folder)
    events = list(folder.glob("events.*"))
    assert len(events) == 1
    assert {path.name for path in folder.iterdir()} - {events[0].name} == {
        "recipe.yaml",
        "metrics.jsonl",
        "last.pt",
        "notes.txt",
    }
    assert load_checkpoint(folder / "last.pt").epoch == 0
    assert records(folder) == []


# ------------------------------------------------------------------------------ what is refused


def refused(run: Run, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(ValueError, match=r".") as caught:
        run(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "model.roi.hidden=32",
            "was trained with other settings: model.roi.hidden is 32 and was 16; resume",
        ),
        ("train.epochs=5", "was trained with other settings: train.epochs is 5 and was"),
        ("seed=1", "was trained with other settings: seed is 1 and was 0"),
    ],
)
def test_resuming_with_other_settings_is_refused(
    override: str, message: str, straight: Path, tiny_recipe: MakeRecipe, run: Run
) -> None:
    before = {path: path.read_bytes() for path in straight.iterdir()}
    got = refused(run, tiny_recipe(override), straight, resume=True)
    assert got.startswith(f"{straight / 'last.pt'} {message}")
    assert {path: path.read_bytes() for path in straight.iterdir()} == before


def test_resuming_what_cannot_be_resumed(
    straight: Path, tiny_recipe: MakeRecipe, run: Run, tmp_path: Path
) -> None:
    last = tmp_path / "last.pt"
    assert refused(run, tiny_recipe(), tmp_path, resume=True) == f"no checkpoint at {last}"
    shutil.copy(straight / "best.pt", last)
    expected = f"{last} holds weights only; resume from a last.pt"
    assert refused(run, tiny_recipe(), tmp_path, resume=True) == expected
    last.write_bytes((straight / "last.pt").read_bytes()[:5000])
    assert "is damaged or no checkpoint" in refused(run, tiny_recipe(), tmp_path, resume=True)
    assert list(tmp_path.iterdir()) == [last]


def with_categories(source: Path, folder: Path, names: dict[int, str]) -> Path:
    content = json.loads(source.read_text())
    for category in content["categories"]:
        category["name"] = names.get(category["id"], category["name"])
    path = folder / "renamed.json"
    path.write_text(json.dumps(content))
    return path


def test_other_classes_are_refused(
    straight: Path, tiny_data: Any, tiny_recipe: MakeRecipe, run: Run, tmp_path: Path
) -> None:
    renamed = with_categories(tiny_data.annotations, tmp_path, {90: "grün"})
    recipe = tiny_recipe(f"data.val.annotations={renamed}")
    assert refused(run, recipe, tmp_path / "run") == (
        "data.val has the classes blue, grün, red, the detector knows blue, green, red; "
        "use annotations with the same categories"
    )
    recipe = tiny_recipe(f"data.train.annotations={renamed}", "data.val=null")
    folder = shutil.copytree(straight, tmp_path / "copy")
    assert refused(run, recipe, folder, resume=True) == (
        f"{folder / 'last.pt'} was trained on other classes: blue, green, red"
    )
    assert not (tmp_path / "run").exists()


def test_unusable_data_and_settings(
    tiny_data: Any, tiny_recipe: MakeRecipe, run: Run, tmp_path: Path
) -> None:
    content = json.loads(tiny_data.annotations.read_text())
    empty = tmp_path / "empty.json"
    empty.write_text(json.dumps({**content, "images": [], "annotations": []}))
    blank = tmp_path / "blank.json"
    blank.write_text(json.dumps({**content, "annotations": []}))
    table = {
        "data.train=null": "data.train is missing; name the annotations to train on",
        f"data.train.annotations={empty}": "data.train has no images; check {'annotations':",
        f"data.val.annotations={empty}": "data.val has no images; check {'annotations':",
        f"data.train.annotations={blank}": "data.train has no boxes, and so nothing to learn from",
        "data.train.annotations=no.json": "cannot read annotations no.json: No such file",
        "data.val.images=no/folder": "images folder no/folder does not exist",
        "train.amp=fp16": "amp 'fp16' needs a GPU",
        "model.backbone.name=resnet19": "model.backbone: unknown backbone 'resnet19'; did you mean",
        "model.rpn.anchor_sizes=[[8]]": "model.rpn.anchor_sizes has 1 entries for 2 feature maps",
    }
    for override, message in table.items():
        assert refused(run, tiny_recipe(override), tmp_path / "run").startswith(message)
    assert not (tmp_path / "run").exists()


def test_boxes_that_leave_their_pictures_are_pointed_out(
    tiny_data: Any, tiny_recipe: MakeRecipe, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = json.loads(tiny_data.annotations.read_text())
    for item in content["annotations"]:
        x, y, w, h = item["bbox"]
        item["bbox"] = [x, y, x + w, y + h]
    corners = tmp_path / "corners.json"
    corners.write_text(json.dumps(content))
    for override, count in ((f"data.train.annotations={corners}", 1), ("seed=0", 0)):
        caplog.clear()
        source = tiny_recipe(override).data.train
        assert source is not None
        build_dataset(source, role="train")
        warned = [each for each in caplog.messages if "boxes leave their pictures" in each]
        assert len(warned) == count


def test_missing_training_data_is_a_mistake_in_the_recipe(
    tiny_recipe: MakeRecipe, run: Run, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError):
        run(tiny_recipe("data.train=null"), tmp_path)


def test_batch_size_divides_into_the_processes(
    tiny_recipe: MakeRecipe, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("detkit.engine.distributed.world_size", lambda: 2)
    assert refused(run, tiny_recipe("train.batch_size=3"), tmp_path) == (
        "train.batch_size 3 is over all processes and does not divide into 2; use a multiple of 2"
    )


# ---------------------------------------------------------------------------------------- on a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("amp", ["off", "fp16", "auto"])
def test_trains_goes_on_and_predicts_on_a_gpu(
    amp: str, tiny_recipe: MakeRecipe, content: Content, tmp_path: Path
) -> None:
    device = torch.device("cuda", 0)
    recipe = tiny_recipe("train.epochs=2", f"train.amp={amp}", "train.clip_norm=10.0")
    training.train(recipe, folder=tmp_path, device=device)
    training.train(recipe, folder=tmp_path, device=device, resume=True)  # finished: nothing to do
    last = content(tmp_path / "last.pt")
    assert last["epoch"] == 2
    assert all(v.isfinite().all() for v in last["model"].values() if v.is_floating_point())
    detector = load_checkpoint(tmp_path / "best.pt").detector().to(device)
    images = torch.zeros(1, 3, 64, 64, dtype=torch.uint8, device=device)
    (found,) = detector(Batch(images, ((64, 64),), ((64, 64),)))
    assert found.boxes.is_cuda
