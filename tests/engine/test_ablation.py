"""Ablations: what is varied, checks before any training, one run after another, and resuming."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from detkit.config import ConfigError, Recipe, load_recipe, recipe_to_yaml
from detkit.engine import ablation, trials
from detkit.engine import train as training
from detkit.engine.ablation import (
    Plan,
    Sweep,
    parse_seeds,
    parse_sweep,
    plan_ablation,
    run_ablation,
)
from detkit.evaluation.comparison import Comparison

CPU = torch.device("cpu")
Run = Callable[..., Path]
Content = Callable[[Path], dict[str, Any]]
Difference = Callable[[Any, Any], str | None]


# --------------------------------------------------------------------------------- command line


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("null,se,eca", (None, "se", "eca")),
        ("[null, se]", (None, "se")),
        ("[a, b, [1,2]]", ("a", "b", [1, 2])),
        ("[[16], [32]],[[8], [16]]", ([[16], [32]], [[8], [16]])),
        ("[[1, 2]]", ([1, 2],)),
        ("1e-3,3e-3", (0.001, 0.003)),
        ("off,'a,b',timm:resnet18", ("off", "a,b", "timm:resnet18")),
        ("{name: sgd, lr: 0.1},{name: adamw}", ({"name": "sgd", "lr": 0.1}, {"name": "adamw"})),
        ("true", (True,)),
    ],
)
def test_parse_sweep(text: str, values: tuple[Any, ...]) -> None:
    assert parse_sweep(f"a.b={text}") == Sweep("a.b", values)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.b", "sweep 'a.b' is not of the form key.path=value,value,..."),
        ("=1", "sweep '=1' is not of the form"),
        ("a.b=", "sweep 'a.b=' names no value; give some: a.b=value,value,..."),
        ("a.b=[]", "sweep 'a.b=[]' names no value"),
        ("a=1,2,1", "sweep 'a=1,2,1': 1 is given twice"),
        ("a=null,none", "sweep 'a=null,none': none is given twice"),
        ("a=[1", "sweep 'a=[1': not valid YAML"),
        ("seed=0,1", "sweep 'seed=0,1': 'seed' is set by --seeds 0,1,2"),
        ("name=a,b", "sweep 'name=a,b': 'name' is set by --out FOLDER"),
    ],
)
def test_parse_sweep_mistake(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_sweep(text)
    assert str(caught.value).startswith(message)


def test_parse_seeds() -> None:
    assert parse_seeds("0,1,12") == (0, 1, 12)
    assert parse_seeds("7") == (7,)


@pytest.mark.parametrize("text", ["", "a", "0.5,1", "true", "0;1", "0,,1", "1,1"])
def test_parse_seeds_mistake(text: str) -> None:
    with pytest.raises(ConfigError, match=f"seeds '{text}'"):
        parse_seeds(text)


# ------------------------------------------------------------------------------------------ plan


@pytest.fixture(scope="module")
def recipe_file(
    tiny_recipe: Callable[..., Recipe], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    recipe = tiny_recipe("train.epochs=1", "train.log_every=1000", "train.ema=null")
    path.write_text(recipe_to_yaml(recipe), encoding="utf-8")
    return path


def test_plan_is_a_grid(recipe_file: Path) -> None:
    sweeps = [Sweep("model.fpn.channels", (8, 16)), Sweep("train.optimizer.lr", (1e-3, 2e-3, 0.1))]
    plan = plan_ablation(recipe_file, sweeps, [3, 5], overrides=["train.epochs=7"])
    assert plan.folder == Path("runs/tiny_channels_lr")
    assert plan.keys == ("channels", "lr")
    assert [each.values for each in plan.combinations] == [
        *[("8", "0.001"), ("8", "0.002"), ("8", "0.1")],
        *[("16", "0.001"), ("16", "0.002"), ("16", "0.1")],
    ]
    trial = plan.combinations[4].trials[1]
    assert trial.folder == plan.folder / "channels-16_lr-0.002_seed-5"
    settings = ["model.fpn.channels=16", "train.optimizer.lr=0.002", "seed=5", "train.epochs=7"]
    assert trial.recipe == load_recipe(recipe_file, [*settings, f"name={trial.folder.name}"])
    order = [t.folder.name for t in plan.trials]
    assert order[:2] == ["channels-8_lr-0.001_seed-3", "channels-8_lr-0.002_seed-3"]
    assert order[6] == "channels-8_lr-0.001_seed-5"  # all combinations of one seed come first


def test_plan_without_sweep_compares_seeds(recipe_file: Path) -> None:
    plan = plan_ablation(recipe_file, [], [0, 1])
    assert [t.folder.as_posix() for t in plan.trials] == [
        "runs/tiny_seeds/seed-0",
        "runs/tiny_seeds/seed-1",
    ]


def test_keys_are_as_short_as_they_differ(recipe_file: Path) -> None:
    sweeps = [
        Sweep("model.rpn.positive_iou", (0.7,)),
        Sweep("model.roi.positive_iou", (0.5,)),
        Sweep("seed_of", ()),
    ]
    plan = plan_ablation(recipe_file, sweeps[:2], [0])
    assert plan.keys == ("rpn.positive_iou", "roi.positive_iou")
    assert plan_ablation(recipe_file, sweeps[:1], [0]).keys == ("positive_iou",)


def test_folders_are_names_and_differ(recipe_file: Path) -> None:
    """Values that a name cannot hold get a hash, which does not depend on the other values."""
    sizes = ([[12], [24]], [[1.2], [24]], [[12, 24], [24]])
    plan = plan_ablation(recipe_file, [Sweep("model.rpn.anchor_sizes", sizes)], [0])
    names = [trial.folder.name for trial in plan.trials]
    assert len(set(names)) == 3
    assert names[0].startswith("anchor_sizes-12-24-")
    alone = plan_ablation(recipe_file, [Sweep("model.rpn.anchor_sizes", sizes[:1])], [0])
    assert alone.trials[0].folder.name == names[0]
    long = plan_ablation(recipe_file, [Sweep("model.backbone.weights", ("x/" * 200,))], [0])
    assert len(long.trials[0].folder.name) < 120
    assert long.combinations[0].values == ("x/" * 200,)


def test_two_combinations_never_share_a_folder(recipe_file: Path) -> None:
    sweeps = [
        Sweep("data.train.annotations", ("a_images-b", "a")),
        Sweep("data.train.images", ("c", "b_images-c")),
    ]
    with pytest.raises(ConfigError, match="sweep: annotations-a_images-b_images-c_seed-0 is"):
        plan_ablation(recipe_file, sweeps, [0])


@pytest.mark.parametrize(
    ("sweeps", "message"),
    [
        ([Sweep("train.epochs", (1, 0))], "train.epochs: got 0; should be greater than 0"),
        ([Sweep("train.epoch", (1,))], "train.epoch: unknown key; did you mean 'epochs'?"),
        ([Sweep("a.b", (1,))], "override 'a.b=1': unknown key"),
        ([Sweep("train.epochs", (1,)), Sweep("train.epochs", (2,))], "train.epochs is given twice"),
    ],
)
def test_plan_mistake(recipe_file: Path, sweeps: list[Sweep], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        plan_ablation(recipe_file, sweeps, [0])
    assert message in str(caught.value)


# ------------------------------------------------------------------------------------------- run

WIDTHS = Sweep("model.backbone.width", (8, 4))


def make_plan(recipe_file: Path, folder: Path, *overrides: str, sweep: Sweep = WIDTHS) -> Plan:
    return plan_ablation(recipe_file, [sweep], [0, 1], overrides=overrides, folder=folder)


@pytest.fixture(scope="module", autouse=True)
def few_rounds() -> Iterator[None]:
    """Nobody looks at the latencies here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ablation, "ROUNDS", 2)
        yield


@pytest.fixture(scope="module")
def finished(
    recipe_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Plan, Comparison]:
    plan = make_plan(recipe_file, tmp_path_factory.mktemp("ablation"))
    return plan, run_ablation(plan, device=CPU)


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the runs that were trained, in their order, and which of them were resumed."""
    names = []
    train = training.train

    def watched(recipe: Recipe, **settings: Any) -> None:
        names.append(recipe.name + " resumed" * settings["resume"])
        train(recipe, **settings)

    monkeypatch.setattr(trials, "train", watched)
    return names


def metrics(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "metrics.json").read_text("utf-8"))
    return content


def test_result(finished: tuple[Plan, Comparison]) -> None:
    plan, comparison = finished
    assert comparison.keys == ("width",)
    assert [variant.values for variant in comparison.variants] == [("8",), ("4",)]
    for combination, variant in zip(plan.combinations, comparison.variants, strict=True):
        assert [score.seed for score in variant.scores] == [0, 1]
        found = [metrics(trial.folder) for trial in combination.trials]
        assert variant.aps == [each["AP"] for each in found]
        assert [score.ap50 for score in variant.scores] == [each["AP50"] for each in found]
        weights = torch.load(combination.trials[0].folder / "last.pt")["training"]["optimizer"]
        shapes = [state["exp_avg"].numel() for state in weights["state"].values()]
        assert variant.parameters == sum(shapes)
        assert variant.latency is not None and variant.latency.milliseconds > 0
    assert comparison.variants[0].latency is not None
    assert comparison.variants[0].latency.ratio == 1
    assert comparison.variants[1].parameters < comparison.variants[0].parameters
    assert "data.val, on which best.pt was chosen" in " ".join(comparison.notes)


def test_report_files(finished: tuple[Plan, Comparison]) -> None:
    plan, comparison = finished
    assert (plan.folder / "ablation.md").read_text("utf-8") == comparison.text() + "\n"
    assert (plan.folder / "ablation.csv").read_text("utf-8") == comparison.csv()
    content = json.loads((plan.folder / "ablation.json").read_text("utf-8"))
    assert content == json.loads(json.dumps(comparison.as_dict()))
    assert (plan.folder / "ablation.png").read_bytes().startswith(b"\x89PNG")


def test_run_is_that_of_its_recipe_alone(
    finished: tuple[Plan, Comparison],
    run: Run,
    content: Content,
    difference: Difference,
    tmp_path: Path,
) -> None:
    """To the bit, although three other runs came before it."""
    trial = finished[0].trials[-1]
    alone = run(trial.recipe, tmp_path)
    for name in ("last.pt", "best.pt"):
        assert difference(content(alone / name), content(trial.folder / name)) is None


def test_done_is_not_repeated(
    finished: tuple[Plan, Comparison], trained: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    plan, before = finished
    caplog.set_level("INFO")
    again = run_ablation(plan, device=CPU)
    assert trained == []
    assert "run 4 of 4: width-4_seed-1 is done" in caplog.text
    assert [v.scores for v in again.variants] == [v.scores for v in before.variants]


def test_one_seed_more(
    finished: tuple[Plan, Comparison], recipe_file: Path, trained: list[str]
) -> None:
    folder = finished[0].folder
    plan = plan_ablation(recipe_file, [Sweep(WIDTHS.key, (4,))], [1, 2], folder=folder)
    comparison = run_ablation(plan, device=CPU)
    assert trained == ["width-4_seed-2"]
    assert [score.seed for score in comparison.variants[0].scores] == [1, 2]


def test_table_without_checkpoints(
    recipe_file: Path, finished: tuple[Plan, Comparison], trained: list[str], tmp_path: Path
) -> None:
    """Only the small files are left: everything but the latency can be said again."""
    plan = make_plan(recipe_file, tmp_path)
    for before, now in zip(finished[0].trials, plan.trials, strict=True):
        now.folder.mkdir()
        for name in ("recipe.yaml", "metrics.json"):
            (now.folder / name).write_bytes((before.folder / name).read_bytes())
    again = run_ablation(plan, device=CPU)
    assert trained == []
    assert [v.scores for v in again.variants] == [v.scores for v in finished[1].variants]
    assert [v.latency for v in again.variants] == [None, None]


@pytest.mark.parametrize("place", ["training", "testing"])
def test_interrupted_run_is_resumed(
    place: str,
    finished: tuple[Plan, Comparison],
    recipe_file: Path,
    content: Content,
    difference: Difference,
    trained: list[str],
    tmp_path: Path,
) -> None:
    """In the second run, between two of its steps or before its result is written."""
    plan = make_plan(recipe_file, tmp_path)
    second = plan.trials[1]
    with pytest.MonkeyPatch.context() as patch:
        owner, name = (training, "_finite") if place == "training" else (trials, "load_checkpoint")
        original = getattr(owner, name)

        def interrupted(*args: Any) -> Any:
            if trained[-1] == second.recipe.name and (name != "_finite" or args[2].step == 1):
                raise KeyboardInterrupt
            return original(*args)

        patch.setattr(owner, name, interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_ablation(plan, device=CPU)
    assert [trial.result.exists() for trial in plan.trials] == [True, False, False, False]
    assert second.begun

    comparison = run_ablation(plan, device=CPU)
    first, *others = (trial.recipe.name for trial in plan.trials)
    assert trained == [first, others[0], f"{others[0]} resumed", *others[1:]]
    assert [v.scores for v in comparison.variants] == [v.scores for v in finished[1].variants]
    for name in ("last.pt", "best.pt"):
        straight = content(finished[0].trials[1].folder / name)
        assert difference(straight, content(second.folder / name)) is None


def test_run_that_was_killed_before_its_recipe_was_written(
    finished: tuple[Plan, Comparison], recipe_file: Path, tmp_path: Path
) -> None:
    plan = make_plan(recipe_file, tmp_path, sweep=Sweep(WIDTHS.key, (4,)))
    folder = plan.trials[0].folder
    folder.mkdir()
    (folder / "last.pt").write_bytes(b"of something else")
    comparison = run_ablation(plan, device=CPU)
    assert comparison.variants[0].scores == finished[1].variants[1].scores


def test_threads_are_those_of_before(
    recipe_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Workers take cores from one run; the next one must compute as if it were alone."""
    threads = torch.get_num_threads()
    seen = []

    def greedy(*_: Any, **__: Any) -> None:
        seen.append(torch.get_num_threads())
        torch.set_num_threads(1)
        if len(seen) == 2:
            raise FloatingPointError("loss is NaN")

    monkeypatch.setattr(trials, "train", greedy)
    monkeypatch.setattr(trials, "load_checkpoint", greedy)
    monkeypatch.setattr(trials, "measure_checkpoint", greedy)
    torch.set_num_threads(2)
    try:
        trials.run_trials(make_plan(recipe_file, tmp_path).trials, CPU)
        assert seen == [2, 1, 2, 1, 1, 2, 1, 1, 2, 1, 1]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def test_diverged_run_does_not_stop_the_others(
    recipe_file: Path,
    trained: list[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    """In the second epoch: there is a best.pt of the first, but no result."""
    finite = training._finite

    def diverging(*args: Any) -> Any:
        if trained[-1].startswith("width-4") and args[2].epoch == 1:
            raise FloatingPointError("loss is NaN")
        return finite(*args)

    monkeypatch.setattr(training, "_finite", diverging)
    plan = make_plan(recipe_file, tmp_path, "train.epochs=2")
    comparison = run_ablation(plan, device=CPU)
    assert len(trained) == 4
    assert [len(variant.scores) for variant in comparison.variants] == [2, 0]
    assert (plan.trials[1].folder / "best.pt").exists()
    assert comparison.variants[0].latency is not None
    assert comparison.variants[1].latency is None
    assert "run 2 of 4: width-4_seed-0 failed: loss is NaN" in caplog.text
    assert "Left out because they failed: 2 of the runs." in comparison.notes
    assert "| 0 of 2 |" in comparison.table()


@pytest.mark.parametrize(
    ("sweep", "overrides", "message"),
    [
        (
            Sweep("model.rpn.anchor_sizes", ([[12], [24]], [[12]])),
            (),
            "anchor_sizes=[[12]]: model.rpn.anchor_sizes has 1 entries for 2 feature maps",
        ),
        (
            Sweep("model.backbone.name", ("resnet18", "resnet19")),
            (),
            "name=resnet19: model.backbone: unknown backbone 'resnet19'",
        ),
        (
            Sweep("model.backbone.weights", (None, "no.pth")),
            (),
            "weights=no.pth: model.backbone: weights 'no.pth': no such file",
        ),
        (
            Sweep("test.amp", ("off", "fp16")),
            (),
            "amp=fp16: amp 'fp16' needs a GPU",
        ),
        (
            Sweep("train.amp", ("fp16",)),
            (),
            "amp=fp16: amp 'fp16' needs a GPU",
        ),
        (
            Sweep("data.train.annotations", ("none.json",)),
            (),
            "annotations=none.json: cannot read annotations none.json",
        ),
        (WIDTHS, ("data.train=null",), "width=8: data.train is missing"),
        (WIDTHS, ("data.val=null",), "width=8: the recipe names no data.test and no data.val"),
    ],
)
def test_mistake_before_any_training(
    sweep: Sweep,
    overrides: tuple[str, ...],
    message: str,
    recipe_file: Path,
    trained: list[str],
    tmp_path: Path,
) -> None:
    plan = make_plan(recipe_file, tmp_path / "out", *overrides, sweep=sweep)
    with pytest.raises(ConfigError) as caught:
        run_ablation(plan, device=CPU)
    assert str(caught.value).startswith(message)
    assert trained == []
    assert not (tmp_path / "out").exists()


def test_a_file_is_no_folder_for_runs(
    recipe_file: Path, trained: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "out"
    path.touch()
    with pytest.raises(ConfigError, match="out is a file; give another --out, a folder"):
        run_ablation(make_plan(recipe_file, path), device=CPU)
    assert trained == []


def test_runs_of_other_settings_are_not_mixed(
    finished: tuple[Plan, Comparison], recipe_file: Path, trained: list[str]
) -> None:
    folder = finished[0].folder
    plan = make_plan(recipe_file, folder, "train.clip_norm=3", "data.test=null")
    with pytest.raises(ConfigError) as caught:
        run_ablation(plan, device=CPU)
    assert str(caught.value) == (
        f"{folder / 'width-8_seed-0'} was made with train.clip_norm=5.0, not 3.0; give another "
        "--out, or the settings of before"
    )
    assert trained == []
