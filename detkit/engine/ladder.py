"""Detectors of different kinds on the same data, each from its own recipe, in one table.

From the top: `plan_ladder` reads and checks the recipes, `run_ladder` trains and tests what is not
done yet, measures how long a picture takes, and gives the table.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from detkit.config import ConfigError, load_recipe
from detkit.engine.checkpoint import load_checkpoint
from detkit.engine.evaluate import source_to_test
from detkit.engine.latency import conditions, interleaved_latencies
from detkit.engine.proposals import picture_proposals
from detkit.engine.trials import (
    PICTURES,
    Datasets,
    Trial,
    check_earlier,
    refuse_twins,
    rehearse,
    run_trials,
    timed_detector,
)
from detkit.evaluation.tables import markdown
from detkit.files import write_atomically

ROUNDS = 10  # of timing
METRICS = ("AP", "AP50", "APs", "APm", "APl")


@dataclass(frozen=True)
class Rung:
    """What one detector came to.

    Attributes:
        name: of its recipe.
        detector: what kind it is.
        parameters: of the detector.
        metrics: on the test data, by the names of `METRICS`; -1 where there are no such truths.
        training_seconds: None where it is not known.
        picture_seconds: median time for one picture, with its selective search where it has one.
    """

    name: str
    detector: str
    parameters: int
    metrics: dict[str, float]
    training_seconds: float | None
    picture_seconds: float


@dataclass(frozen=True)
class Ladder:
    """The rungs that came to an end, in the order of their recipes, and how they were measured."""

    rungs: tuple[Rung, ...]
    notes: tuple[str, ...]

    def text(self) -> str:
        """The table in Markdown and the notes."""
        return "\n".join([self.table(), "", *(f"- {note}" for note in self.notes)])

    def table(self) -> str:
        """A line for each rung."""
        head = ["recipe", "params (M)", "AP", "AP50", "small", "medium", "large"]
        head += ["ms / picture", "training (min)"]
        return markdown([head, *(_cells(rung) for rung in self.rungs)])

    def as_dict(self) -> dict[str, Any]:
        """Everything, unrounded, ready for JSON."""
        return {"rungs": [vars(rung) for rung in self.rungs], "notes": list(self.notes)}


def _cells(rung: Rung) -> list[str]:
    scores = [rung.metrics[name] for name in METRICS]
    return [
        rung.name,
        f"{rung.parameters / 1e6:.3f}",
        *("-" if score < 0 else f"{score:.3f}" for score in scores),
        f"{1000 * rung.picture_seconds:.1f}",
        "-" if rung.training_seconds is None else f"{rung.training_seconds / 60:.1f}",
    ]


def plan_ladder(
    recipes: Sequence[str | Path], *, overrides: Sequence[str] = (), folder: Path
) -> list[Trial]:
    """Read all recipes; each gets a folder of its name.

    Raises:
        ConfigError: a recipe that is not valid, none at all, or two of one name.
    """
    if not recipes:
        raise ConfigError("no recipe is given; name some, e.g. configs/ladder/*.yaml")
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file; give another --out, a folder")
    loaded = [load_recipe(path, overrides) for path in recipes]
    refuse_twins([recipe.name for recipe in loaded], "names of recipes")
    return [Trial(recipe, folder / recipe.name) for recipe in loaded]


def run_ladder(trials: Sequence[Trial], *, folder: Path, device: torch.device) -> Ladder:
    """Check everything, train and test what is not done yet, and write the table.

    The folder gets `ladder.md` and `ladder.json`.

    Raises:
        ValueError: a detector that cannot be built or trained; nothing was trained then.
    """
    datasets = Datasets()
    parameters = {}
    for trial in trials:
        check_earlier(trial)
        try:
            parameters[trial.recipe.name] = rehearse(trial.recipe, device, datasets)
        except ValueError as error:
            raise ConfigError(f"{trial.recipe.name}: {error}") from None
    run_trials(trials, device)
    done = [trial for trial in trials if trial.result.exists()]
    ladder = Ladder(
        _measure(done, parameters, device, datasets), tuple(_notes(trials, done, device))
    )
    write_atomically(folder / "ladder.md", f"{ladder.text()}\n")
    write_atomically(folder / "ladder.json", json.dumps(ladder.as_dict(), indent=1))
    return ladder


def _measure(
    trials: Sequence[Trial], parameters: dict[str, int], device: torch.device, datasets: Datasets
) -> tuple[Rung, ...]:
    if not trials:
        return ()
    timed = [timed_detector(trial.folder / "best.pt", device, datasets) for trial in trials]
    latencies = interleaved_latencies(timed, device=device, rounds=ROUNDS)
    return tuple(
        Rung(
            name=trial.recipe.name,
            detector=trial.recipe.model.detector,
            parameters=parameters[trial.recipe.name],
            metrics=_metrics(trial),
            training_seconds=load_checkpoint(trial.folder / "last.pt").seconds,
            picture_seconds=latency.milliseconds / 1000 + _search_seconds(trial, datasets),
        )
        for trial, latency in zip(trials, latencies, strict=True)
    )


def _search_seconds(trial: Trial, datasets: Datasets) -> float:
    """Median time of looking for the proposals of a picture, which come with the batches."""
    find = picture_proposals(trial.recipe.model)
    if find is None or trial.recipe.model.proposals == "file":
        return 0.0
    dataset = datasets.read(source_to_test(trial.recipe), "test")
    times = []
    for index in range(min(PICTURES, len(dataset))):
        image = dataset[index].image
        start = time.perf_counter()
        find(image)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _metrics(trial: Trial) -> dict[str, float]:
    content = json.loads(trial.result.read_text(encoding="utf-8"))
    return {name: content[name] for name in METRICS}


def _notes(trials: Sequence[Trial], done: Sequence[Trial], device: torch.device) -> list[str]:
    """How it was measured."""
    notes = [
        f"Time for one picture, prepared for the network: median over {ROUNDS} rounds in which all "
        f"detectors take turns, batch 1, {conditions(device)}.",
        "AP of small, medium and large objects: areas below 32 x 32, up to 96 x 96 and above, in "
        "pixels of the original picture.",
    ]
    searching = [t.recipe.name for t in trials if t.recipe.model.proposals == "selective_search"]
    if searching:
        notes.insert(
            1,
            f"It includes the selective search of {', '.join(searching)}; the training time does "
            "not, as the search is done once for all trainings and kept on disk.",
        )
    missing = [trial.recipe.name for trial in trials if trial not in done]
    if missing:
        notes.append(f"Left out because their loss was not finite: {', '.join(missing)}.")
    return notes
