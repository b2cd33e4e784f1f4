"""Training of classifiers: what is learnt, what is written, and that it can be used again."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pytest
import torch

from detkit.config import ClassifierRecipe, ConfigError, build_recipe_as, load_recipe_as
from detkit.data.crops import Crops
from detkit.engine import classify
from detkit.engine.checkpoint import load_checkpoint
from detkit.engine.classify import (
    ClassifierRun,
    build_classifier,
    load_classifier,
    losses_of,
    measure,
    normalized,
    train_classifier,
    views,
)
from detkit.nn.attention.recurrent import RecurrentAttention

CPU = torch.device("cpu")


class Tiny(NamedTuple):
    annotations: Path
    images: Path


MakeRecipe = Callable[..., ClassifierRecipe]


@pytest.fixture(scope="session")
def make(tiny_data: Tiny) -> MakeRecipe:
    """`make("key.path=value", ...)`: RAM on the coloured rectangles of `tiny_data`."""
    source = {
        "format": "coco",
        "annotations": str(tiny_data.annotations),
        "images": str(tiny_data.images),
    }
    tree = {
        "name": "tiny",
        "data": {"train": source, "val": source, "crop": {"size": 8}},
        "model": {"ram": {"glimpses": 2, "patches": [4, 8], "hidden": 16}},
        "train": {
            "epochs": 2,
            "batch_size": 4,
            "optimizer": {"name": "adamw", "lr": 0.01},
            "schedule": {"name": "constant", "warmup_steps": 0},
        },
    }
    return lambda *overrides: build_recipe_as(ClassifierRecipe, tree, overrides)


def records_of(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_what_a_run_writes(make: MakeRecipe, tmp_path: Path) -> None:
    recipe = make()
    result = train_classifier(recipe, folder=tmp_path, device=CPU)
    assert load_recipe_as(ClassifierRecipe, tmp_path / "recipe.yaml") == recipe
    epochs, tests = records_of(tmp_path)[:-1], records_of(tmp_path)[-1]
    assert [(record["kind"], record["epoch"]) for record in epochs] == [("epoch", 1), ("epoch", 2)]
    assert {"loss/class", "loss/policy", "loss/baseline", "val/accuracy"} <= set(epochs[0])
    assert tests["test/accuracy"] == result
    measured = {f"test/{name}" for name in ("accuracy", "precision", "recall", "f1", "auc", "ece")}
    assert set(tests) == {"kind", "step", *measured}  # 3 classes: nothing beyond the 5 best
    assert all(0 <= tests[name] <= 1 for name in measured)
    assert result == max(record["val/accuracy"] for record in epochs)  # test is val here
    picture = cv2.imread(str(tmp_path / "glimpses.png"))
    assert picture.std() > 10
    assert {path.name for path in tmp_path.iterdir() if "tfevents" not in path.name} == {
        "best.pt",
        "recipe.yaml",
        "metrics.jsonl",
        "glimpses.png",
    }


def test_best_epoch_is_kept_and_can_be_used(make: MakeRecipe, tmp_path: Path) -> None:
    recipe = make("train.epochs=4")
    result = train_classifier(recipe, folder=tmp_path, device=CPU)
    model, loaded, names = load_classifier(tmp_path / "best.pt")
    assert (loaded, names, model.training) == (recipe, ("blue", "green", "red"), False)
    content = torch.load(tmp_path / "best.pt", weights_only=True)
    assert (content["kind"], content["category_ids"]) == ("classifier", [7, 90, 300])
    accuracies = [record["val/accuracy"] for record in records_of(tmp_path)[:-1]]
    assert content["epoch"] == 1 + int(np.argmax(accuracies))
    assert content["metrics"]["val/accuracy"] == max(accuracies) == result


def test_same_seed_same_run(make: MakeRecipe, tmp_path: Path) -> None:
    runs = {}
    for name, seed in (("one", 0), ("same", 0), ("other", 1)):
        train_classifier(make(f"seed={seed}"), folder=tmp_path / name, device=CPU)
        runs[name] = records_of(tmp_path / name)
    assert runs["one"] == runs["same"]
    assert runs["one"] != runs["other"]


@pytest.mark.parametrize(
    "overrides",
    [
        ["model.ram.glimpses=2"],
        ["data.crop.canvas=12", "data.crop.grey=true", "model.ram.learn_where=false"],
        ["model={name: resnet18, settings: {width: 8}}", "data.crop.size=16"],
        [
            "model={name: resnet18, settings: {width: 8}, head: mlp}",
            "data.crop.size=16",
            "train.batch_size=15",  # dropout and batch norm together are noisy on small ones
            "train.epochs=30",
        ],
    ],
)
def test_each_kind_of_classifier_learns(
    make: MakeRecipe, tmp_path: Path, overrides: list[str]
) -> None:
    """Three colours, plain to see; on a small canvas in grey a little more must do."""
    recipe = make("train.epochs=15", *overrides)
    result = train_classifier(recipe, folder=tmp_path, device=CPU)
    assert result is not None
    assert result >= (0.9 if recipe.data.crop.canvas is None else 0.6)
    first, last = records_of(tmp_path)[0], records_of(tmp_path)[-2]
    assert last["loss/class"] < first["loss/class"]
    assert (tmp_path / "glimpses.png").exists() == (recipe.model.name == "ram")


def test_without_validation_the_last_epoch_is_kept(make: MakeRecipe, tmp_path: Path) -> None:
    assert train_classifier(make("data.val=null"), folder=tmp_path, device=CPU) is None
    assert torch.load(tmp_path / "best.pt", weights_only=True)["epoch"] == 2
    assert [record["kind"] for record in records_of(tmp_path)] == ["epoch", "epoch"]
    assert not (tmp_path / "glimpses.png").exists()


def test_new_run_leaves_nothing_of_the_old_one(make: MakeRecipe, tmp_path: Path) -> None:
    train_classifier(make("train.epochs=3"), folder=tmp_path, device=CPU)
    with pytest.raises(FloatingPointError, match=r"loss is \w+; lower train\.optimizer\.lr or set"):
        train_classifier(make("train.optimizer.lr=1e30"), folder=tmp_path, device=CPU)
    assert not (tmp_path / "best.pt").exists()
    assert not (tmp_path / "glimpses.png").exists()
    assert records_of(tmp_path) == []


def test_accuracy_is_the_share_of_right_answers(
    make: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Answers(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            assert not self.training
            return torch.nn.functional.one_hot(images[:, 0, 0, 0].round().long(), 3).float()

    labels = torch.tensor([0, 1, 2, 2, 1, 0, 1])
    answers = torch.tensor([0, 1, 2, 2, 0, 0, 2])  # 5 of 7
    crops = Crops(answers.to(torch.uint8)[:, None, None, None].expand(-1, 3, 8, 8), labels)
    recipe = make("model.mean=0", "model.std=0.00392156862745098")
    run = ClassifierRun(recipe, Path(), CPU, ("a", "b", "c"), (1, 2, 3), crops, None, None)
    state = torch.get_rng_state()
    result = measure(Answers(), crops, run)
    assert result is not None
    assert result.accuracy == 5 / 7
    assert (result.labels.tolist(), result.class_names) == (labels.tolist(), ("a", "b", "c"))
    assert result.confusion.tolist() == [[2, 0, 0], [1, 1, 1], [0, 0, 2]]
    assert torch.equal(torch.get_rng_state(), state)
    assert measure(Answers(), None, run) is None


def test_outputs_that_are_no_numbers_say_so(make: MakeRecipe) -> None:
    crops = Crops(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.tensor([0, 1]))
    run = ClassifierRun(make(), Path(), CPU, ("a", "b"), (1, 2), crops, None, None)
    broken = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 2))
    torch.nn.init.constant_(broken[1].bias, float("nan"))
    with pytest.raises(FloatingPointError, match=r"are not finite; lower train\.optimizer\.lr"):
        measure(broken, crops, run)


def test_views(make: MakeRecipe) -> None:
    crops = torch.tensor([0, 255], dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 8, 8)
    plain = views(crops, make("model.std=0.5"), torch.Generator())
    assert plain[:, 0, 0, 0].tolist() == [-1, 1]
    placed = views(crops, make("data.crop.canvas=11"), torch.Generator().manual_seed(0))
    assert placed.shape == (2, 3, 11, 11)
    assert (placed.abs() < 0.01).sum() == 2 * 3 * (11**2 - 8**2)  # the canvas is zero to the net
    assert torch.equal(normalized(crops, make().model)[1, :, 0, 0], torch.full((3,), 2.0))


def test_losses(make: MakeRecipe) -> None:
    images, labels = torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 2, 0])
    ram = build_classifier(make(), num_classes=3)
    assert isinstance(ram, RecurrentAttention)
    assert list(losses_of(ram, images, labels)) == ["class", "policy", "baseline"]
    plain = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 3))
    (loss,) = losses_of(plain, images, labels).values()
    expected = torch.nn.functional.cross_entropy(plain(images), labels)
    torch.testing.assert_close(loss, expected)


def test_grey_crops_have_one_channel(make: MakeRecipe) -> None:
    net = build_classifier(make("data.crop.grey=true", "model.name=resnet18"), num_classes=5)
    assert net(torch.zeros(2, 1, 32, 32)).shape == (2, 5)


def test_head_takes_the_place_of_the_networks_own(make: MakeRecipe) -> None:
    recipe = make("model={name: resnet18, settings: {width: 8}, head: logistic}")
    net = build_classifier(recipe, num_classes=5).eval()
    assert net(torch.zeros(2, 3, 32, 32)).shape == (2, 5)
    own = build_classifier(make("model={name: resnet18, settings: {width: 8}}"), num_classes=5)
    assert [p.shape for p in net.parameters()] == [p.shape for p in own.parameters()]
    mlp = build_classifier(make("model={name: resnet18, head: mlp}"), num_classes=5)
    assert any(isinstance(module, torch.nn.PReLU) for module in mlp.modules())


def test_last_batch_of_one_is_left_out(
    make: MakeRecipe, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """15 crops: batch norm could not learn from the last one; the mean is over the other 14."""
    losses = []

    def watched(*args: Any) -> Any:
        losses.append(losses_of(*args))
        return losses[-1]

    monkeypatch.setattr(classify, "losses_of", watched)
    net = "model={name: resnet18, settings: {width: 8}, head: mlp}"
    train_classifier(make(net, "train.batch_size=7", "train.epochs=1"), folder=tmp_path, device=CPU)
    epoch, _ = records_of(tmp_path)
    first, second = (each["class"].item() for each in losses)
    assert epoch["loss/class"] == pytest.approx((first + second) / 2)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.train=null"], "data.train is missing; name the annotations to train on"),
        (["model.name=rsnet18"], "unknown classifier 'rsnet18'; did you mean 'resnet18'"),
        (
            ["model={name: resnet18, settings: {widht: 8}}"],
            "resnet18 has no setting 'widht'; did you mean 'width'",
        ),
        (["model={name: lenet5}"], "lenet5 with out_indices (2,) needs images of at least 32x32"),
        (["model.ram.patches=[8, 12]"], "patches (8, 12): give sides in pixels, all multiples"),
    ],
)
def test_mistake_leaves_nothing(
    make: MakeRecipe, tmp_path: Path, overrides: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        train_classifier(make(*overrides), folder=tmp_path / "run", device=CPU)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.ram.glimpse=3", "model.ram.glimpse: unknown key; did you mean 'glimpses'?"),
        ("model.bakbone=a", "model.bakbone: unknown key; allowed: name, ram"),
        ("test.amp=off", "override 'test.amp=off': unknown key; allowed: name, seed, data, model,"),
        ("train.ema=null", "train.ema: unknown key; allowed: epochs, batch_size, optimizer"),
        ("data.train.splt=val", "data.train.splt: unknown key"),
        ("data.crop.canvas=4", "canvas 4 is smaller than size 8"),
        ("data.crop.clutter=4", "clutter needs a canvas to lie on"),
        ("model.weights=imagenet", "weights, settings and head are of a backbone"),
        ("model.head=mpl", "model.head: got 'mpl'; did you mean 'mlp'? allowed: logistic, mlp"),
        ("name=a/b", "name 'a/b' becomes a folder"),
    ],
)
def test_mistaken_recipe(make: MakeRecipe, override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make(override)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_checkpoints_of_detectors_and_classifiers_are_told_apart(
    make: MakeRecipe, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"is of a detector; give one that tools/train_cl"):
        load_classifier(tiny_checkpoint)
    train_classifier(make("train.epochs=1"), folder=tmp_path, device=CPU)
    with pytest.raises(ValueError, match=r"is of a classifier; give one that tools/train\.py wro"):
        load_checkpoint(tmp_path / "best.pt")


def test_checkpoint_keeps_what_published_weights_were_learnt_with():
    """Its own weights are children of theirs: GoogLeNet's want images normalised otherwise."""
    model = {"name": "googlenet", "weights": "imagenet", "settings": {"norm": "batch"}}
    recipe = build_recipe_as(ClassifierRecipe, {"name": "a", "model": model})
    again = classify._without_weights(recipe).model
    assert again.weights is None
    assert again.settings == {"norm": "batch", "transform_input": True}


def test_networks_of_timm_are_classifiers_too():
    pytest.importorskip("timm")
    recipe = build_recipe_as(ClassifierRecipe, {"name": "a", "model": {"name": "timm:resnet10t"}})
    with torch.device("meta"):
        net = build_classifier(recipe, num_classes=3)
    channels = 1 if recipe.data.crop.grey else 3
    assert net(torch.empty(2, channels, 64, 64, device="meta")).shape == (2, 3)
