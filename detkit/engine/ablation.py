"""What a change of the recipe buys: train every combination of values with several seeds.

Each training is a run of its own, in a folder below that of the ablation, and gives the same bits
as the same recipe alone: the engine seeds every epoch anew, so nothing depends on what ran before
in the process. A run that is done is not repeated, an interrupted one is resumed.

From the top: `parse_sweep` reads what to vary, `plan_ablation` makes the recipes of all runs,
`run_ablation` checks them all, trains, tests and measures.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from detkit.config import (
    CocoSource,
    ConfigError,
    Recipe,
    SyntheticSource,
    load_recipe,
    parse_yaml,
)
from detkit.data import CocoDataset
from detkit.detectors import create_detector
from detkit.engine.checkpoint import load_checkpoint
from detkit.engine.data import build_dataset, check_same_classes, eval_loader, train_loader
from detkit.engine.device import amp_dtype
from detkit.engine.evaluate import measure_checkpoint, source_to_test
from detkit.engine.latency import TimedDetector, interleaved_latencies
from detkit.engine.train import train
from detkit.evaluation.comparison import Comparison, RelativeLatency, SeedScore, Variant
from detkit.evaluation.comparison_plot import draw_comparison
from detkit.files import write_atomically
from detkit.structures import Batch

logger = logging.getLogger(__name__)

PICTURES = 8  # of the test data, over which latency is measured
ROUNDS = 40


@dataclass(frozen=True)
class Sweep:
    """A recipe key and the values that it takes in turn."""

    key: str
    values: tuple[Any, ...]


@dataclass(frozen=True)
class Trial:
    """One training: a recipe with its seed, and where its files go."""

    recipe: Recipe
    folder: Path

    @property
    def result(self) -> Path:
        """The file of its numbers; it is there once the trial is done."""
        return self.folder / "metrics.json"

    @property
    def begun(self) -> bool:
        """Whether there is something to go on from; the recipe follows the first checkpoint."""
        return (self.folder / "last.pt").exists() and (self.folder / "recipe.yaml").exists()


@dataclass(frozen=True)
class Combination:
    """One value for each key, as text, and a trial for each seed."""

    values: tuple[str, ...]
    trials: tuple[Trial, ...]


@dataclass(frozen=True)
class Plan:
    """All trials of an ablation.

    Attributes:
        folder: of the ablation.
        keys: what is varied, as short as they differ.
        combinations: the first is what the others are compared with.
    """

    folder: Path
    keys: tuple[str, ...]
    combinations: tuple[Combination, ...]

    @property
    def trials(self) -> list[Trial]:
        """Seed by seed: what is there after an interruption can be compared."""
        of_each_seed = zip(*(each.trials for each in self.combinations), strict=True)
        return [trial for trials in of_each_seed for trial in trials]


def parse_sweep(text: str) -> Sweep:
    """Read `key.path=value,value,...` or `key.path=[value, value, ...]`; values are YAML.

    Values that are lists themselves: `key=[[16], [32]],[[8], [16]]`, or `key=[[1, 2]]` for one.

    Raises:
        ConfigError: not of this form, no value, a value given twice.
    """
    key, equals, values_text = text.partition("=")
    if not equals or not key:
        raise ConfigError(f"sweep {text!r} is not of the form key.path=value,value,...")
    if key in ("seed", "name"):
        what = "--seeds 0,1,2" if key == "seed" else "--out FOLDER"
        raise ConfigError(f"sweep {text!r}: '{key}' is set by {what}")
    values = parse_yaml(f"[{values_text}]", f"sweep {text!r}")
    if len(values) == 1 and isinstance(values[0], list):
        (values,) = values
    if not values:
        raise ConfigError(f"sweep {text!r} names no value; give some: {key}=value,value,...")
    _refuse_twins([_as_text(value) for value in values], f"sweep {text!r}")
    return Sweep(key, tuple(values))


def parse_seeds(text: str) -> tuple[int, ...]:
    """Read `0,1,2`.

    Raises:
        ConfigError: something else, or a seed given twice.
    """
    seeds = parse_yaml(f"[{text}]", f"seeds {text!r}")
    if not seeds or any(type(seed) is not int for seed in seeds):
        raise ConfigError(f"seeds {text!r} are not whole numbers with commas between, e.g. 0,1,2")
    _refuse_twins([str(seed) for seed in seeds], f"seeds {text!r}")
    return tuple(seeds)


def _refuse_twins(names: Sequence[str], where: str) -> None:
    twins = sorted({name for name in names if names.count(name) > 1})
    if twins:
        raise ConfigError(f"{where}: {', '.join(twins)} is given twice; give each value once")


def plan_ablation(
    recipe: str | Path,
    sweeps: Sequence[Sweep],
    seeds: Sequence[int],
    *,
    overrides: Sequence[str] = (),
    folder: str | Path | None = None,
) -> Plan:
    """Make and check the recipes of all combinations; the last key varies fastest.

    Args:
        recipe: file that all trials start from.
        sweeps: what to vary; without any the seeds of the recipe itself are compared.
        seeds: of the trials of each combination.
        overrides: `key.path=value` changes for all trials.
        folder: where to write; default: runs/<name of the recipe>_<keys>.

    Raises:
        ConfigError: a recipe that is not valid, a key that is swept twice.
    """
    _refuse_twins([sweep.key for sweep in sweeps], "sweep")
    base = load_recipe(recipe, overrides)
    keys = _short_keys([sweep.key for sweep in sweeps])
    place = Path(folder or Path("runs", "_".join((base.name, *(keys or ("seeds",))))))
    combinations = []
    for values in itertools.product(*(sweep.values for sweep in sweeps)):
        pairs = zip(sweeps, values, strict=True)
        changes = [f"{sweep.key}={json.dumps(value, default=str)}" for sweep, value in pairs]
        trials = []
        for seed in seeds:
            name = _folder_name(keys, values, seed)
            settings = [*overrides, *changes, f"seed={seed}", f"name={json.dumps(name)}"]
            trials.append(Trial(load_recipe(recipe, settings), place / name))
        combinations.append(Combination(tuple(map(_as_text, values)), tuple(trials)))
    _refuse_twins([each.trials[0].folder.name for each in combinations], "sweep")
    return Plan(place, keys, tuple(combinations))


def _short_keys(keys: Sequence[str]) -> tuple[str, ...]:
    """The last part of each key, and as many before it as make a difference."""
    for parts in range(1, max((key.count(".") for key in keys), default=0) + 2):
        short = [".".join(key.split(".")[-parts:]) for key in keys]
        if len(set(short)) == len(keys):
            break
    return tuple(short) if keys else ()


def _as_text(value: Any) -> str:
    """A value as it stands in the table: words as they are, all else as JSON; "none" for null."""
    if value is None:
        return "none"
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _folder_name(keys: Sequence[str], values: Sequence[Any], seed: int) -> str:
    """A name made of the values; where it cannot hold them, the beginning of their hash follows."""
    exact = "_".join(f"{key}-{_as_text(v)}" for key, v in zip(keys, values, strict=True))
    name = re.sub(r"[^\w.]+", "-", exact)[:80].rstrip("-")
    if name != exact:
        name += f"-{hashlib.sha256(exact.encode()).hexdigest()[:8]}"
    return f"{name}_seed-{seed}" if name else f"seed-{seed}"


def run_ablation(plan: Plan, *, device: torch.device) -> Comparison:
    """Check everything, train and test what is not done yet, measure, and write the report.

    The folder gets `ablation.md`, `.csv`, `.json` and `.png`. A trial whose loss is not finite is
    left out of them, and is tried again by the next call.

    Raises:
        ValueError: a combination that cannot be built or trained; nothing was trained then.
    """
    datasets = Datasets()
    parameters = check_plan(plan, device, datasets)
    run_trials(plan, device)
    comparison = compare(plan, parameters, device, datasets)
    for suffix, content in (
        ("md", f"{comparison.text()}\n"),
        ("csv", comparison.csv()),
        ("json", json.dumps(comparison.as_dict(), indent=1)),
        ("png", draw_comparison(comparison)),
    ):
        write_atomically(plan.folder / f"ablation.{suffix}", content)
    return comparison


class Datasets:
    """Reads each data set once, for the checks before the trials and the timing after them."""

    def __init__(self) -> None:
        self._known: dict[str, CocoDataset] = {}

    def read(self, source: CocoSource | SyntheticSource, role: str) -> CocoDataset:
        """The data set of this source; `role` as in `build_dataset`."""
        name = source.model_dump_json()
        if name not in self._known:
            self._known[name] = build_dataset(source, role=role)
        return self._known[name]


def check_plan(plan: Plan, device: torch.device, datasets: Datasets) -> list[int]:
    """Build what each combination needs, and detect in one picture with it.

    Returns:
        The number of parameters of each combination's detector.

    Raises:
        ValueError: something that would stop a trial, or an earlier trial with other settings.
    """
    if plan.folder.exists() and not plan.folder.is_dir():
        raise ConfigError(f"{plan.folder} is a file; give another --out, a folder")
    for trial in plan.trials:
        _check_earlier(trial)
    counts = []
    for combination in plan.combinations:
        try:
            counts.append(_rehearse(combination.trials[0].recipe, device, datasets))
        except ValueError as error:
            raise ConfigError(f"{_title(plan, combination)}{error}") from None
    return counts


def _title(plan: Plan, combination: Combination) -> str:
    pairs = zip(plan.keys, combination.values, strict=True)
    return " ".join(f"{key}={value}" for key, value in pairs) + (": " if plan.keys else "")


def _rehearse(recipe: Recipe, device: torch.device, datasets: Datasets) -> int:
    """The number of parameters of a detector that was built and has looked at a picture."""
    if recipe.data.train is None:
        raise ConfigError("data.train is missing; name the annotations to train on")
    train_set = datasets.read(recipe.data.train, "train")
    test_set = datasets.read(source_to_test(recipe), "test")
    check_same_classes(test_set, train_set.class_names, "test")
    if recipe.data.val is not None:
        val_set = datasets.read(recipe.data.val, "val")
        check_same_classes(val_set, train_set.class_names, "val")
    amp_dtype(recipe.train.amp, device)
    dtype = amp_dtype(recipe.test.amp, device)
    train_loader(recipe, train_set, pin_memory=False)
    detector = create_detector(recipe.model, num_classes=len(train_set.class_names)).to(device)
    (batch,) = _pictures(recipe, test_set, device, count=1)
    with (
        torch.inference_mode(),
        torch.autocast(device.type, dtype=dtype, enabled=dtype is not None),
    ):
        detector.eval()(batch)
    return sum(parameter.numel() for parameter in detector.parameters())


def _pictures(
    recipe: Recipe, dataset: CocoDataset, device: torch.device, *, count: int
) -> list[Batch]:
    """The first pictures of a data set as the recipe prepares them, one in each batch."""
    test = recipe.test.model_copy(update={"batch_size": 1})
    data = recipe.data.model_copy(update={"workers": 0})
    recipe = recipe.model_copy(update={"test": test, "data": data})
    loader = eval_loader(recipe, dataset, pin_memory=False)
    return [batch.without_targets().to(device) for batch in itertools.islice(loader, count)]


def _check_earlier(trial: Trial) -> None:
    """Raise where the folder holds a trial with other settings: a table must not mix them."""
    path = trial.folder / "recipe.yaml"
    if not path.exists():
        return
    differences = list(_differences(load_recipe(path).model_dump(), trial.recipe.model_dump()))
    if differences:
        raise ConfigError(
            f"{trial.folder} was made with {'; '.join(differences[:3])}; "
            "give another --out, or the settings of before"
        )


def _differences(earlier: Any, now: Any, place: str = "") -> Iterator[str]:
    if isinstance(earlier, dict) and isinstance(now, dict) and earlier.keys() == now.keys():
        for key in earlier:
            yield from _differences(earlier[key], now[key], f"{place}.{key}" if place else key)
    elif earlier != now:
        yield f"{place}={_as_text(earlier)}, not {_as_text(now)}"


def run_trials(plan: Plan, device: torch.device) -> None:
    """Train and test what is not done yet."""
    trials = plan.trials
    for number, trial in enumerate(trials, start=1):
        title = f"run {number} of {len(trials)}: {trial.folder.name}"
        if trial.result.exists():
            logger.info("%s is done", title)
            continue
        logger.info("%s", title)
        try:
            _run_trial(trial, device)
        except FloatingPointError as error:  # its own values' fault: the others can go on
            logger.error("%s failed: %s", title, error)


def _run_trial(trial: Trial, device: torch.device) -> None:
    with _threads_kept():
        train(trial.recipe, folder=trial.folder, device=device, resume=trial.begun)
        checkpoint = load_checkpoint(trial.folder / "best.pt")
        measure_checkpoint(checkpoint, folder=trial.folder, device=device)


@contextmanager
def _threads_kept() -> Iterator[None]:
    """Training leaves cores to its workers; the next trial must find as many as this one did."""
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def compare(
    plan: Plan, parameters: Sequence[int], device: torch.device, datasets: Datasets
) -> Comparison:
    """Read the results of all trials that are done, and time the detectors."""
    latencies = _latencies(plan, device, datasets)
    variants = []
    for combination, count, latency in zip(plan.combinations, parameters, latencies, strict=True):
        scores = tuple(_score(trial) for trial in combination.trials if trial.result.exists())
        variants.append(
            Variant(combination.values, count, len(combination.trials), scores, latency)
        )
    return Comparison(plan.keys, tuple(variants), tuple(_notes(plan, variants, device)))


def _score(trial: Trial) -> SeedScore:
    metrics = json.loads(trial.result.read_text(encoding="utf-8"))
    return SeedScore(trial.recipe.seed, metrics["AP"], metrics["AP50"])


def _latencies(
    plan: Plan, device: torch.device, datasets: Datasets
) -> list[RelativeLatency | None]:
    """Of each combination with a checkpoint; ratios need that of the first."""
    timed: list[TimedDetector | None] = []
    for combination in plan.combinations:
        done = (trial.folder / "best.pt" for trial in combination.trials if trial.result.exists())
        best = next((path for path in done if path.exists()), None)
        timed.append(None if best is None else _timed_detector(best, device, datasets))
    known = [each for each in timed if each is not None]
    if timed[0] is None:
        return [None] * len(timed)
    found = iter(interleaved_latencies(known, device=device, rounds=ROUNDS))
    return [None if each is None else next(found) for each in timed]


def _timed_detector(path: Path, device: torch.device, datasets: Datasets) -> TimedDetector:
    """The trained detector and the first pictures of its test data."""
    checkpoint = load_checkpoint(path)
    recipe = checkpoint.recipe
    dataset = datasets.read(source_to_test(recipe), "test")
    batches = _pictures(recipe, dataset, device, count=PICTURES)
    detector = checkpoint.detector().to(device)
    return TimedDetector(detector, batches, amp_dtype(recipe.test.amp, device))


def _notes(plan: Plan, variants: Sequence[Variant], device: torch.device) -> Iterator[str]:
    """How it was measured."""
    threads = torch.get_num_threads()
    where = f"{threads} CPU thread{'s' * (threads > 1)}"
    if device.type == "cuda":
        where = torch.cuda.get_device_name(device)
    if any(variant.latency for variant in variants):
        yield (
            f"Latency: median over {ROUNDS} rounds in which all variants see the same picture one "
            f"after the other, batch 1, {where}, torch {torch.__version__}; the ratio to the first "
            "is the median of the rounds' ratios."
        )
    recipe = plan.combinations[0].trials[0].recipe
    if recipe.data.test is None:
        yield "AP is that of data.val, on which best.pt was chosen: set data.test for a fair one."
    missing = sum(variant.planned - len(variant.scores) for variant in variants)
    if missing:
        yield f"Left out because they failed: {missing} of the runs."
