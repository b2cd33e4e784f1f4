"""Training from a recipe to `best.pt`."""

from __future__ import annotations

import contextlib
import logging
import math
import operator
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from tqdm import tqdm

from detkit.config import ConfigError, Recipe, recipe_to_yaml
from detkit.data import CocoDataset
from detkit.detectors import Detector, create_detector
from detkit.detectors.factory import without_weights
from detkit.engine import distributed
from detkit.engine.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from detkit.engine.data import (
    build_dataset,
    check_same_classes,
    eval_loader,
    share_cores,
    train_loader,
)
from detkit.engine.device import amp_dtype
from detkit.engine.evaluate import Evaluation, evaluate
from detkit.engine.log import RunLog
from detkit.engine.optim import WeightAverage, build_optimizer, build_schedule
from detkit.files import remove_leftovers, write_atomically
from detkit.structures import Batch

logger = logging.getLogger(__name__)


@dataclass
class State:
    """All that changes while training.

    Attributes:
        detector: what learns.
        optimizer: moves its weights.
        schedule: moves the rate.
        scaler: keeps float16 gradients in range; does nothing for other types.
        ema: running average of the weights, or None.
        epoch: complete epochs.
        step: complete steps.
        best: highest AP so far; it is -1 where the validation data has no truths.
        metrics: of the last validation.
        seconds: how long training took so far, also before it was interrupted.
    """

    detector: Detector
    optimizer: torch.optim.Optimizer
    schedule: LambdaLR
    scaler: torch.amp.GradScaler
    ema: WeightAverage | None
    epoch: int = 0
    step: int = 0
    best: float = -math.inf
    metrics: dict[str, Any] | None = None
    seconds: float = 0.0

    @property
    def result(self) -> Detector:
        """The detector to validate and to keep: the average, where there is one."""
        if self.ema is None:
            return self.detector
        averaged = self.ema.module
        assert isinstance(averaged, Detector)
        return averaged


@dataclass(frozen=True)
class Run:
    """All that stays as it is while training.

    Attributes:
        recipe: what to do.
        folder: where files go.
        device: where to compute.
        dtype: for autocast, or None.
        train_set: to learn from.
        loader: its batches.
        val_set: to validate on, or None.
        val_loader: its batches, or None.
    """

    recipe: Recipe
    folder: Path
    device: torch.device
    dtype: torch.dtype | None
    train_set: CocoDataset
    loader: DataLoader[Batch]
    val_set: CocoDataset | None
    val_loader: DataLoader[Batch] | None


def train(recipe: Recipe, *, folder: Path, device: torch.device, resume: bool = False) -> None:
    """Train a detector; write `last.pt`, `best.pt`, `recipe.yaml`, `metrics.jsonl` to `folder`.

    Args:
        recipe: what to do.
        folder: of the run; all ranks name the same.
        device: where to compute.
        resume: go on from `last.pt` in the folder, exactly as if training had never stopped.

    Raises:
        ValueError: a recipe, data set or checkpoint that cannot be used.
        FloatingPointError: a loss that is not finite.
    """
    share_cores(recipe)
    torch.manual_seed(recipe.seed)  # of the first weights
    run = _prepare(recipe, folder, device)
    state = _build_state(run, with_weights=not resume)
    if resume:
        _restore(state, run)
    distributed.barrier()  # nobody has read a file by now that the main process is about to change
    log = _open_run(run, state) if distributed.is_main() else None
    model = _parallel(state.detector, device)
    start = time.perf_counter() - state.seconds
    with (
        contextlib.closing(log) if log is not None else contextlib.nullcontext(),
        _progress_bar(run, state) as bar,
    ):
        while state.epoch < recipe.train.epochs:
            _train_epoch(model, state, run, log, bar)
            state.epoch += 1
            best = _validate(state, run, log, bar)
            state.seconds = time.perf_counter() - start
            if log is not None:
                _save(state, run, best=best)
            distributed.barrier()
    if log is not None:
        logger.info("trained in %.1f minutes; results in %s", state.seconds / 60, folder)


def _prepare(recipe: Recipe, folder: Path, device: torch.device) -> Run:
    """Read the data sets."""
    if recipe.data.train is None:
        raise ConfigError("data.train is missing; name the annotations to train on")
    schedule = recipe.train.schedule
    late = [epoch for epoch in schedule.milestones if epoch >= recipe.train.epochs]
    if schedule.name == "multistep" and late and distributed.is_main():
        logger.warning(
            "train.schedule.milestones %s are not below train.epochs %d: no fall of the rate there",
            late,
            recipe.train.epochs,
        )
    dtype = amp_dtype(recipe.train.amp, device)
    pin_memory = device.type == "cuda"
    train_set = build_dataset(recipe.data.train, role="train")
    loader = train_loader(recipe, train_set, pin_memory=pin_memory)
    val_set = val_loader = None
    if recipe.data.val is not None:
        val_set = build_dataset(recipe.data.val, role="val")
        check_same_classes(val_set, train_set.class_names, "val")
        val_loader = eval_loader(recipe, val_set, pin_memory=pin_memory)
    return Run(recipe, folder, device, dtype, train_set, loader, val_set, val_loader)


def _progress_bar(run: Run, state: State) -> tqdm[Any]:
    """Over all steps of all epochs, so that its estimate is that of the whole training."""
    return tqdm(
        total=len(run.loader) * run.recipe.train.epochs,
        initial=state.step,
        desc=run.recipe.name,
        disable=not distributed.is_main(),
        dynamic_ncols=True,
    )


def _train_epoch(
    model: nn.Module, state: State, run: Run, log: RunLog | None, bar: tqdm[Any]
) -> None:
    """One pass over the data."""
    config, device, dtype = run.recipe.train, run.device, run.dtype
    state.detector.train()
    _seed_epoch(run.recipe.seed, state.epoch)
    run.loader.batch_sampler.set_epoch(state.epoch)  # type: ignore[union-attr]
    waiting = time.perf_counter()
    for batch in run.loader:
        waited = time.perf_counter() - waiting
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            losses = model(_on_device(batch, device, channels_last=config.channels_last))
        total = torch.stack(list(losses.values())).sum()
        state.optimizer.zero_grad(set_to_none=True)
        state.scaler.scale(total).backward()
        values = _finite(losses, batch, state)  # waits for the GPU; so do NMS and pooling inside
        if config.clip_norm is not None:
            state.scaler.unscale_(state.optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
        rate = float(state.schedule.get_last_lr()[0])
        state.scaler.step(state.optimizer)
        state.scaler.update()
        state.schedule.step()
        if state.ema is not None:
            state.ema.update(state.detector)
        state.step += 1
        if log is not None and state.step % config.log_every == 0:
            spent = time.perf_counter() - waiting
            record = {f"loss/{name}": value for name, value in values.items()}
            record |= {"lr": rate, "time/step": spent, "time/data": waited}
            record["boxes_dropped"] = batch.dropped
            log.write("step", state.step, record)
        bar.set_postfix_str(_progress(state, values, rate, config.epochs), refresh=False)
        bar.update()
        waiting = time.perf_counter()


def _progress(state: State, losses: Mapping[str, float], rate: float, epochs: int) -> str:
    """What stands behind the progress bar, the most interesting first: a narrow window cuts it."""
    parts = [f"epoch {state.epoch + 1}/{epochs}", f"loss {sum(losses.values()):.3f}"]
    if state.best >= 0:
        parts.append(f"best AP {state.best:.3f}")
    parts.append(f"lr {rate:.2g}")
    parts += [f"{name} {value:.2f}" for name, value in losses.items()]
    return " ".join(parts)


def _finite(losses: Mapping[str, Tensor], batch: Batch, state: State) -> dict[str, float]:
    """The losses as numbers.

    Raises:
        FloatingPointError: one is NaN or infinite.
    """
    values = torch.stack([value.detach() for value in losses.values()]).tolist()
    named = dict(zip(losses, values, strict=True))
    wrong = {name: value for name, value in named.items() if not np.isfinite(value)}
    if wrong:
        assert batch.targets is not None
        images = [target.image_id for target in batch.targets]
        what = ", ".join(f"{name} is {value}" for name, value in wrong.items())
        raise FloatingPointError(
            f"loss {what} in step {state.step + 1}, image ids {images}; look at these images' "
            "boxes, lower train.optimizer.lr, set train.clip_norm or train.amp=off; last.pt is kept"
        )
    return named


def _on_device(batch: Batch, device: torch.device, *, channels_last: bool) -> Batch:
    batch = batch.to(device, non_blocking=True)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return replace(batch, images=batch.images.contiguous(memory_format=layout))


def _build_state(run: Run, *, with_weights: bool) -> State:
    """Everything at step 0; `with_weights` loads those that the recipe starts from."""
    config = run.recipe.train
    model = run.recipe.model if with_weights else without_weights(run.recipe.model)
    detector = create_detector(model, num_classes=len(run.train_set.class_names)).to(run.device)
    if config.channels_last:
        detector = detector.to(memory_format=torch.channels_last)
    if config.sync_batch_norm and distributed.world_size() > 1:
        detector = nn.SyncBatchNorm.convert_sync_batchnorm(detector)
    optimizer = build_optimizer(detector, config.optimizer)
    schedule = build_schedule(
        optimizer, config.schedule, steps_per_epoch=len(run.loader), epochs=config.epochs
    )
    scaler = torch.amp.GradScaler(run.device.type, enabled=run.dtype == torch.float16)
    ema = WeightAverage(detector, config.ema) if config.ema is not None else None
    return State(detector, optimizer, schedule, scaler, ema)


def _parallel(detector: Detector, device: torch.device) -> nn.Module:
    if distributed.world_size() == 1:
        return detector
    return DistributedDataParallel(
        detector, device_ids=[device.index] if device.type == "cuda" else None
    )


def _open_run(run: Run, state: State) -> RunLog:
    """Make the folder ready; from now on it holds a `last.pt` to go on from."""
    folder = run.folder
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("last.pt", "best.pt", "recipe.yaml", "metrics.jsonl"):
        remove_leftovers(folder / name)
    if state.step == 0:
        _save(state, run, best=False)
        # what an earlier run left here would pass for a result of this one
        for path in (folder / "best.pt", *folder.glob("events.out.tfevents.*")):
            path.unlink(missing_ok=True)
    write_atomically(folder / "recipe.yaml", recipe_to_yaml(run.recipe))
    return RunLog(folder, resume_step=state.step)


def _validate(state: State, run: Run, log: RunLog | None, bar: tqdm[Any]) -> bool:
    """Measure, where it is time to; True if this epoch is the best so far."""
    config = run.recipe.train
    if run.val_set is None or run.val_loader is None:
        return True
    if state.epoch < config.epochs and state.epoch % config.validate_every:
        return False
    detector = state.result.eval()
    distributed.share_buffers(detector)  # what is measured is what will be saved
    outcome = evaluate(
        detector, run.val_loader, run.val_set, device=run.device, dtype=run.dtype, with_loss=True
    )
    state.metrics = outcome.result.as_dict()
    average_precision = float(outcome.result.stats[0])
    # without any truth AP is -1: no epoch is better than another, and the last one is kept
    improved = average_precision > state.best or average_precision < 0
    state.best = max(state.best, average_precision)
    _report(state, outcome, log, bar)
    return improved


def _report(state: State, outcome: Evaluation, log: RunLog | None, bar: tqdm[Any]) -> None:
    if log is None or state.metrics is None:
        return
    numbers = {f"val/{n}": v for n, v in state.metrics.items() if isinstance(v, float)}
    losses = {f"val/loss/{name}": value for name, value in outcome.losses.items()}
    log.write("epoch", state.step, {"epoch": state.epoch, **numbers, **losses})
    bar.write(
        f"epoch {state.epoch:3d}  AP {state.metrics['AP']:.4f}  AP50 {state.metrics['AP50']:.4f}  "
        f"val loss {sum(outcome.losses.values()):.4f}"
    )


def _save(state: State, run: Run, *, best: bool) -> None:
    """Write `last.pt`, and `best.pt` if this epoch is the best one."""
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
    if best:  # first: a run that is killed in between goes on from before this epoch
        save_checkpoint(run.folder / "best.pt", checkpoint)
    training = {
        "step": state.step,
        "best": state.best,
        "detector": state.detector.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "schedule": state.schedule.state_dict(),
        "scaler": state.scaler.state_dict(),
        "ema": None if state.ema is None else state.ema.state_dict(),
    }
    save_checkpoint(run.folder / "last.pt", replace(checkpoint, training=training))


def _restore(state: State, run: Run) -> None:
    """Put everything back as it was when `last.pt` was written.

    Raises:
        ValueError: no such file, or it is of another model, data set or schedule.
    """
    path = run.folder / "last.pt"
    checkpoint = load_checkpoint(path)
    training = checkpoint.training
    if training is None:
        raise ValueError(f"{path} holds weights only; resume from a last.pt")
    for part in ("model", "train", "seed", "data.resize", "data.augment"):
        get = operator.attrgetter(part)
        if get(checkpoint.recipe) != get(run.recipe):
            raise ValueError(
                f"{path} was trained with other settings under '{part}'; resume with the run's own "
                "recipe.yaml, or start a new run from its weights with model.weights"
            )
    if checkpoint.class_names != tuple(run.train_set.class_names):
        names = ", ".join(checkpoint.class_names)
        raise ValueError(f"{path} was trained on other classes: {names}")
    state.detector.load_state_dict(training["detector"])
    state.optimizer.load_state_dict(training["optimizer"])
    state.schedule.load_state_dict(training["schedule"])
    state.scaler.load_state_dict(training["scaler"])
    if state.ema is not None:
        state.ema.load_state_dict(training["ema"])
    state.epoch, state.step = checkpoint.epoch, training["step"]
    state.best, state.metrics = training["best"], checkpoint.metrics
    state.seconds = checkpoint.seconds or 0.0


def _seed_epoch(seed: int, epoch: int) -> None:
    """Give each epoch and process random numbers of its own: nothing to save, exact to resume."""
    words = np.random.SeedSequence((seed, epoch, distributed.rank())).generate_state(2)
    torch.manual_seed(int(words[0]) << 31 | int(words[1]) >> 1)
