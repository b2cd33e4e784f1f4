"""Trainings and tests in a row, each in a folder of its own, for the tables that compare them.

Each gives the same bits as the same recipe alone: the engine seeds every epoch anew, so nothing
depends on what ran before in the process. A trial that is done is not repeated, an interrupted one
is resumed.
"""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from detkit.config import ConfigError, Recipe, Source, load_recipe
from detkit.data import CocoDataset
from detkit.detectors import create_detector
from detkit.engine.checkpoint import load_checkpoint
from detkit.engine.data import build_dataset, check_same_classes, eval_loader, train_loader
from detkit.engine.device import amp_dtype
from detkit.engine.evaluate import measure_checkpoint, source_to_test
from detkit.engine.latency import TimedDetector
from detkit.engine.train import train
from detkit.structures import Batch

logger = logging.getLogger(__name__)

PICTURES = 8  # of the test data, over which latency is measured


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


def refuse_twins(names: Sequence[str], where: str) -> None:
    """Raise where a name is given twice."""
    twins = sorted({name for name in names if names.count(name) > 1})
    if twins:
        raise ConfigError(f"{where}: {', '.join(twins)} is given twice; give each value once")


class Datasets:
    """Reads each data set once, for the checks before the trials and the timing after them."""

    def __init__(self) -> None:
        self._known: dict[str, CocoDataset] = {}

    def read(
        self, source: Source, role: str, class_names: tuple[str, ...] | None = None
    ) -> CocoDataset:
        """The data set of this source; `role` and `class_names` as in `build_dataset`."""
        name = f"{source.model_dump_json()} {class_names}"
        if name not in self._known:
            self._known[name] = build_dataset(source, role=role, class_names=class_names)
        return self._known[name]


def rehearse(recipe: Recipe, device: torch.device, datasets: Datasets) -> int:
    """The number of parameters of a detector that was built and has looked at a picture."""
    if recipe.data.train is None:
        raise ConfigError("data.train is missing; name the annotations to train on")
    train_set = datasets.read(recipe.data.train, "train")
    names = train_set.class_names
    test_set = datasets.read(source_to_test(recipe), "test", names)
    check_same_classes(test_set, names, "test")
    if recipe.data.val is not None:
        val_set = datasets.read(recipe.data.val, "val", names)
        check_same_classes(val_set, names, "val")
    amp_dtype(recipe.train.amp, device)
    dtype = amp_dtype(recipe.test.amp, device)
    train_loader(recipe, train_set, pin_memory=False)
    detector = create_detector(recipe.model, num_classes=len(train_set.class_names)).to(device)
    (batch,) = pictures(recipe, test_set, device, count=1)
    with (
        torch.inference_mode(),
        torch.autocast(device.type, dtype=dtype, enabled=dtype is not None),
    ):
        detector.eval()(batch)
    return sum(parameter.numel() for parameter in detector.parameters())


def pictures(
    recipe: Recipe, dataset: CocoDataset, device: torch.device, *, count: int
) -> list[Batch]:
    """The first pictures of a data set as the recipe prepares them, one in each batch."""
    test = recipe.test.model_copy(update={"batch_size": 1})
    data = recipe.data.model_copy(update={"workers": 0})
    recipe = recipe.model_copy(update={"test": test, "data": data})
    loader = eval_loader(recipe, dataset, pin_memory=False)
    return [batch.without_targets().to(device) for batch in itertools.islice(loader, count)]


def check_earlier(trial: Trial) -> None:
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
        yield f"{place}={as_text(earlier)}, not {as_text(now)}"


def run_trials(trials: Sequence[Trial], device: torch.device) -> None:
    """Train and test what is not done yet; one whose loss is not finite is left out."""
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


def timed_detector(path: Path, device: torch.device, datasets: Datasets) -> TimedDetector:
    """The trained detector and the first pictures of its test data."""
    checkpoint = load_checkpoint(path)
    recipe = checkpoint.recipe
    dataset = datasets.read(source_to_test(recipe), "test")
    batches = pictures(recipe, dataset, device, count=PICTURES)
    detector = checkpoint.detector().to(device)
    return TimedDetector(detector, batches, amp_dtype(recipe.test.amp, device))


def as_text(value: Any) -> str:
    """A value as it stands in the table: words as they are, all else as JSON; "none" for null."""
    if value is None:
        return "none"
    return value if isinstance(value, str) else json.dumps(value, default=str)
