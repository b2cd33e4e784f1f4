"""What changes while training, and how it is kept: `last.pt` holds all of it, `best.pt` a result.

Training that goes on from `last.pt` is bit-identical (on a CPU) to one that never stopped, wherever
it stopped: batches and augmentation follow from the seed, the epoch and the place in it, and the
random numbers of the detector are seeded for each epoch and kept within one.
"""

from __future__ import annotations

import math
import operator
import time
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel
from torch import Tensor, nn

from detkit.backbones.weights import is_published
from detkit.config import recipe_to_yaml
from detkit.detectors import Detector, create_detector
from detkit.detectors.factory import without_weights
from detkit.engine import distributed
from detkit.engine.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from detkit.engine.optim import RateSchedule, WeightAverage, build_average, build_optimizer
from detkit.engine.run import Run
from detkit.engine.start import compare_start
from detkit.files import write_atomically

# Settings that may differ when a run goes on: they do not change what is learned.
FREE_SETTINGS = ("save_every", "log_every")


@dataclass
class State:
    """All that changes while training.

    Attributes:
        detector: what learns.
        optimizer: moves its weights.
        schedule: moves the rate.
        scaler: keeps float16 gradients in range; does nothing for other types.
        average: running average of the weights, or None.
        epoch: complete epochs.
        batch: complete steps of the epoch that is under way.
        step: complete steps.
        kept: of them those that `last.pt` holds.
        best: highest AP so far; it is -1 where the validation data has no truths.
        waited: validations since the best one.
        metrics: of the last validation.
        first_loss: of the first step, with which later ones are compared.
        started: moment on the clock at which an uninterrupted training would have begun, seconds.
        random: of each process its random numbers within the epoch, to go on from; else empty.
    """

    detector: Detector
    optimizer: torch.optim.Optimizer
    schedule: RateSchedule
    scaler: torch.amp.GradScaler
    average: WeightAverage | None
    epoch: int = 0
    batch: int = 0
    step: int = 0
    kept: int = 0
    best: float = -math.inf
    waited: int = 0
    metrics: dict[str, Any] | None = None
    first_loss: float | None = None
    started: float = field(default_factory=time.perf_counter)
    random: list[list[Tensor]] = field(default_factory=list)

    @property
    def result(self) -> Detector:
        """The detector to validate and to keep: the average, where there is one."""
        if self.average is None:
            return self.detector
        averaged = self.average.module
        assert isinstance(averaged, Detector)
        return averaged

    @property
    def seconds(self) -> float:
        """How long training has taken, also before it was interrupted."""
        return time.perf_counter() - self.started


def build_state(run: Run, *, with_weights: bool) -> State:
    """Everything at step 0; `with_weights` loads those that the recipe starts from."""
    config = run.recipe.train
    model = run.recipe.model if with_weights else without_weights(run.recipe.model)
    if model.weights is not None and not is_published(model.weights) and distributed.is_main():
        compare_start(model.weights, run.train_set.class_names)
    detector = create_detector(model, num_classes=len(run.train_set.class_names)).to(run.device)
    if config.channels_last:
        detector = detector.to(memory_format=torch.channels_last)
    if config.sync_batch_norm and distributed.world_size() > 1:
        detector = nn.SyncBatchNorm.convert_sync_batchnorm(detector)
    optimizer = build_optimizer(detector, config.optimizer, batch_size=config.batch_size)
    steps, epochs = len(run.loader), config.epochs
    schedule = RateSchedule(optimizer, config.schedule, steps_per_epoch=steps, epochs=epochs)
    scaler = torch.amp.GradScaler(run.device.type, enabled=run.dtype == torch.float16)
    average = build_average(detector, config.ema, config.swa, steps_per_epoch=steps, epochs=epochs)
    return State(detector, optimizer, schedule, scaler, average)


def save_state(state: State, run: Run, *, best: bool) -> None:
    """Write `last.pt`, and `best.pt` if this epoch is the best one; all processes call it.

    Raises:
        FloatingPointError: a weight is not finite; the files stay as they are.
        OSError: they cannot be written.
    """
    _check_finite(state)
    random = distributed.gather(_random_numbers(run.device)) if state.batch else []
    if not distributed.is_main():
        return
    checkpoint = Checkpoint(
        recipe=run.recipe,
        class_names=tuple(run.train_set.class_names),
        category_ids=tuple(int(i) for i in run.train_set.category_ids),
        weights=state.result.state_dict(),
        epoch=state.epoch,
        metrics=state.metrics or {},
        training=None,
        seconds=state.seconds,
    )
    if not (run.folder / "recipe.yaml").exists():  # somebody has deleted the folder meanwhile
        write_atomically(run.folder / "recipe.yaml", recipe_to_yaml(run.recipe))
    if best:  # first: a run that is killed in between goes on from before this epoch
        save_checkpoint(run.folder / "best.pt", checkpoint)
    training = {
        "batch": state.batch,
        "step": state.step,
        "best": state.best,
        "waited": state.waited,
        "first_loss": state.first_loss,
        "random": random,
        "detector": state.detector.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "schedule": state.schedule.state_dict(),
        "scaler": state.scaler.state_dict(),
        "average": None if state.average is None else state.average.state_dict(),
    }
    save_checkpoint(run.folder / "last.pt", replace(checkpoint, training=training))
    state.kept = state.step


def _check_finite(state: State) -> None:
    """Raise where the last step has spoilt the weights: nobody could go on from them."""
    parameters = state.detector.named_parameters()
    wrong = [name for name, each in parameters if not each.isfinite().all()]
    if wrong:
        raise FloatingPointError(
            f"{len(wrong)} weights are not finite after step {state.step} (the first: {wrong[0]}); "
            "lower train.optimizer.lr, set train.clip_norm or train.amp=off; last.pt is kept"
        )


def restore_state(state: State, run: Run) -> None:
    """Put everything back as it was when `last.pt` was written.

    Raises:
        ValueError: no such file, or it is of another model, data set or schedule.
    """
    path, best = run.folder / "last.pt", run.folder / "best.pt"
    try:
        checkpoint = load_checkpoint(path)
    except ValueError as error:
        if not path.exists() or not best.exists():
            raise
        raise ValueError(f"{error}; or start a new run with model.weights={best}") from None
    training = checkpoint.training
    if training is None:
        raise ValueError(f"{path} holds weights only; resume from a last.pt")
    _check_same_run(checkpoint, run)
    state.detector.load_state_dict(training["detector"])
    state.optimizer.load_state_dict(training["optimizer"])
    state.schedule.load_state_dict(training["schedule"])
    state.scaler.load_state_dict(training["scaler"])
    if state.average is not None:
        state.average.load_state_dict(training["average"])
    state.epoch, state.batch = checkpoint.epoch, training.get("batch", 0)
    state.step, state.best = training["step"], training["best"]
    state.waited, state.metrics = training.get("waited", 0), checkpoint.metrics
    state.first_loss, state.random = training.get("first_loss"), training.get("random", [])
    state.kept = state.step
    state.started = time.perf_counter() - (checkpoint.seconds or 0.0)


def _check_same_run(checkpoint: Checkpoint, run: Run) -> None:
    """Raise unless going on means what it says."""
    path = run.folder / "last.pt"
    free = dict.fromkeys(FREE_SETTINGS)
    before, now = (
        recipe.model_copy(update={"train": recipe.train.model_copy(update=free)})
        for recipe in (checkpoint.recipe, run.recipe)
    )
    for part in ("model", "train", "seed", "data.resize", "data.augment", "data.sampling"):
        get = operator.attrgetter(part)
        if get(before) != get(now):
            raise ValueError(
                f"{path} was trained with other settings: "
                f"{_difference(part, get(before), get(now))}; resume with the run's own "
                "recipe.yaml, or start a new run from its weights with model.weights"
            )
    if checkpoint.class_names != tuple(run.train_set.class_names):
        names = ", ".join(checkpoint.class_names)
        raise ValueError(f"{path} was trained on other classes: {names}")


def _difference(name: str, before: Any, now: Any) -> str:
    """The first setting that differs, e.g. "train.epochs is 9 and was 6"."""
    if isinstance(before, BaseModel) and type(before) is type(now):
        for key in type(before).model_fields:
            one, other = getattr(before, key), getattr(now, key)
            if one != other:
                return _difference(f"{name}.{key}", one, other)
    return f"{name} is {now!r:.60} and was {before!r:.60}"


def seed_epoch(state: State, run: Run) -> None:
    """Give each epoch and process random numbers of its own; within an epoch, go on with them."""
    rank = distributed.rank()
    if len(state.random) == distributed.world_size():
        host, *devices = state.random[rank]
        torch.set_rng_state(host)
        if devices and run.device.type == "cuda":
            torch.cuda.set_rng_state(devices[0], run.device)
    else:  # also where the number of processes has changed since
        words = np.random.SeedSequence((run.recipe.seed, state.epoch, rank)).generate_state(2)
        torch.manual_seed(int(words[0]) << 31 | int(words[1]) >> 1)
    state.random = []


def _random_numbers(device: torch.device) -> list[Tensor]:
    """The states of the generators: of the CPU and, if training runs on one, of the GPU."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return states
