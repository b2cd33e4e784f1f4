"""What a change of the recipe buys: train every combination of values with several seeds.

Each training is a run of its own, in a folder below that of the ablation, see `trials`.

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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from detkit.config import (
    ConfigError,
    load_recipe,
    parse_yaml,
)
from detkit.engine.latency import TimedDetector, conditions, interleaved_latencies
from detkit.engine.trials import (
    Datasets,
    Trial,
    as_text,
    check_earlier,
    refuse_twins,
    rehearse,
    run_trials,
    timed_detector,
)
from detkit.evaluation.comparison import Comparison, RelativeLatency, SeedScore, Variant
from detkit.evaluation.comparison_plot import draw_comparison
from detkit.files import write_atomically

logger = logging.getLogger(__name__)

ROUNDS = 40


@dataclass(frozen=True)
class Sweep:
    """A recipe key and the values that it takes in turn."""

    key: str
    values: tuple[Any, ...]


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
    refuse_twins([as_text(value) for value in values], f"sweep {text!r}")
    return Sweep(key, tuple(values))


def parse_seeds(text: str) -> tuple[int, ...]:
    """Read `0,1,2`.

    Raises:
        ConfigError: something else, or a seed given twice.
    """
    seeds = parse_yaml(f"[{text}]", f"seeds {text!r}")
    if not seeds or any(type(seed) is not int for seed in seeds):
        raise ConfigError(f"seeds {text!r} are not whole numbers with commas between, e.g. 0,1,2")
    refuse_twins([str(seed) for seed in seeds], f"seeds {text!r}")
    return tuple(seeds)


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
    refuse_twins([sweep.key for sweep in sweeps], "sweep")
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
        combinations.append(Combination(tuple(map(as_text, values)), tuple(trials)))
    refuse_twins([each.trials[0].folder.name for each in combinations], "sweep")
    return Plan(place, keys, tuple(combinations))


def _short_keys(keys: Sequence[str]) -> tuple[str, ...]:
    """The last part of each key, and as many before it as make a difference."""
    for parts in range(1, max((key.count(".") for key in keys), default=0) + 2):
        short = [".".join(key.split(".")[-parts:]) for key in keys]
        if len(set(short)) == len(keys):
            break
    return tuple(short) if keys else ()


def _folder_name(keys: Sequence[str], values: Sequence[Any], seed: int) -> str:
    """A name made of the values; where it cannot hold them, the beginning of their hash follows."""
    exact = "_".join(f"{key}-{as_text(v)}" for key, v in zip(keys, values, strict=True))
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
    run_trials(plan.trials, device)
    comparison = compare(plan, parameters, device, datasets)
    for suffix, content in (
        ("md", f"{comparison.text()}\n"),
        ("csv", comparison.csv()),
        ("json", json.dumps(comparison.as_dict(), indent=1)),
        ("png", draw_comparison(comparison)),
    ):
        write_atomically(plan.folder / f"ablation.{suffix}", content)
    return comparison


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
        check_earlier(trial)
    counts = []
    for combination in plan.combinations:
        try:
            counts.append(rehearse(combination.trials[0].recipe, device, datasets))
        except ValueError as error:
            raise ConfigError(f"{_title(plan, combination)}{error}") from None
    return counts


def _title(plan: Plan, combination: Combination) -> str:
    pairs = zip(plan.keys, combination.values, strict=True)
    return " ".join(f"{key}={value}" for key, value in pairs) + (": " if plan.keys else "")


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
        timed.append(None if best is None else timed_detector(best, device, datasets))
    known = [each for each in timed if each is not None]
    if timed[0] is None:
        return [None] * len(timed)
    found = iter(interleaved_latencies(known, device=device, rounds=ROUNDS))
    return [None if each is None else next(found) for each in timed]


def _notes(plan: Plan, variants: Sequence[Variant], device: torch.device) -> Iterator[str]:
    """How it was measured."""
    if any(variant.latency for variant in variants):
        yield (
            f"Latency: median over {ROUNDS} rounds in which all variants see the same picture one "
            f"after the other, batch 1, {conditions(device)}; the ratio to the first "
            "is the median of the rounds' ratios."
        )
    recipe = plan.combinations[0].trials[0].recipe
    if recipe.data.test is None:
        yield "AP is that of data.val, on which best.pt was chosen: set data.test for a fair one."
    missing = sum(variant.planned - len(variant.scores) for variant in variants)
    if missing:
        yield f"Left out because they failed: {missing} of the runs."
