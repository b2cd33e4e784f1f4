"""Training from a recipe to `best.pt`."""

from __future__ import annotations

import contextlib
import logging
import math
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
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader
from tqdm import tqdm

from detkit.config import ConfigError, Recipe, recipe_to_yaml
from detkit.data import CocoDataset
from detkit.detectors import Detector, create_detector
from detkit.engine import distributed
from detkit.engine.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from detkit.engine.data import build_dataset, check_same_classes, eval_loader, train_loader
from detkit.engine.device import amp_dtype
from detkit.engine.evaluate import Evaluation, evaluate
from detkit.engine.log import RunLog
from detkit.engine.optim import build_ema, build_optimizer, build_schedule
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
    """

    detector: Detector
    optimizer: torch.optim.Optimizer
    schedule: LambdaLR
    scaler: torch.amp.GradScaler
    ema: AveragedModel | None
    epoch: int = 0
    step: int = 0
    best: float = -math.inf
    metrics: dict[str, Any] | None = None

    @property
    def result(self) -> Detector:
        """The detector to validate and to keep: the average, where there is one."""
        if self.ema is None:
            return self.detector
        averaged = self.ema.module
        assert isinstance(averaged, Detector)
        return averaged


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
    if recipe.data.train is None:
        raise ConfigError("data.train is missing; name the annotations to train on")
    torch.manual_seed(recipe.seed)  # of the first weights
    dtype = amp_dtype(recipe.train.amp, device)
    train_set = build_dataset(recipe.data.train, role="train")
    loader = train_loader(recipe, train_set, pin_memory=device.type == "cuda")
    val_set, val_loader = _validation(recipe, train_set, pin_memory=device.type == "cuda")
    state = _build_state(recipe, train_set, len(loader), device=device, dtype=dtype)
    if resume:
        _restore(state, folder / "last.pt", recipe, train_set)
    distributed.barrier()  # nobody has read a file by now that the main process is about to change
    log = _open_run(recipe, folder, state) if distributed.is_main() else None
    model = _parallel(state.detector, device)
    steps = len(loader) * recipe.train.epochs
    start = time.perf_counter()
    with (
        contextlib.closing(log) if log is not None else contextlib.nullcontext(),
        tqdm(
            total=steps,
            initial=state.step,
            desc=recipe.name,
            disable=log is None,
            dynamic_ncols=True,
        ) as bar,
    ):
        while state.epoch < recipe.train.epochs:
            _train_epoch(model, state, loader, recipe, device=device, dtype=dtype, log=log, bar=bar)
            state.epoch += 1
            last = state.epoch == recipe.train.epochs
            improved = False
            if val_set is not None and (last or state.epoch % recipe.train.validate_every == 0):
                detector = state.result.eval()
                distributed.share_buffers(detector)  # what is measured is what will be saved
                outcome = evaluate(
                    detector, val_loader, val_set, device=device, dtype=dtype, with_loss=True
                )
                improved = _take_score(state, outcome)
                _report(state, outcome, log, bar)
            if log is not None:
                _save(state, recipe, train_set, folder, best=improved or val_set is None)
            distributed.barrier()
    if log is not None:
        minutes = (time.perf_counter() - start) / 60
        logger.info("trained in %.1f minutes; results in %s", minutes, folder)


def _train_epoch(
    model: nn.Module,
    state: State,
    loader: DataLoader[Batch],
    recipe: Recipe,
    *,
    device: torch.device,
    dtype: torch.dtype | None,
    log: RunLog | None,
    bar: tqdm[Any],
) -> None:
    """One pass over the data."""
    config = recipe.train
    state.detector.train()
    _seed_epoch(recipe.seed, state.epoch)
    loader.batch_sampler.set_epoch(state.epoch)  # type: ignore[union-attr]
    waiting = time.perf_counter()
    for batch in loader:
        waited = time.perf_counter() - waiting
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            losses = model(_on_device(batch, device, channels_last=config.channels_last))
        total = torch.stack(list(losses.values())).sum()
        state.optimizer.zero_grad(set_to_none=True)
        state.scaler.scale(total).backward()
        values = _finite(losses, batch, state)  # the one GPU sync of the step
        if config.clip_norm is not None:
            state.scaler.unscale_(state.optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
        rate = float(state.schedule.get_last_lr()[0])
        state.scaler.step(state.optimizer)
        state.scaler.update()
        state.schedule.step()
        if state.ema is not None:
            state.ema.update_parameters(state.detector)
        state.step += 1
        if log is not None and state.step % config.log_every == 0:
            spent = time.perf_counter() - waiting
            record = {f"loss/{name}": value for name, value in values.items()}
            record |= {"lr": rate, "time/step": spent, "time/data": waited}
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


def _validation(
    recipe: Recipe, train_set: CocoDataset, *, pin_memory: bool
) -> tuple[CocoDataset | None, Any]:
    """Data set and loader to validate on; two None where the recipe names none."""
    if recipe.data.val is None:
        return None, None
    dataset = build_dataset(recipe.data.val, role="val")
    check_same_classes(dataset, train_set.class_names, "val")
    return dataset, eval_loader(recipe, dataset, pin_memory=pin_memory)


def _build_state(
    recipe: Recipe,
    train_set: CocoDataset,
    steps_per_epoch: int,
    *,
    device: torch.device,
    dtype: torch.dtype | None,
) -> State:
    detector = create_detector(recipe.model, num_classes=len(train_set.class_names)).to(device)
    if recipe.train.channels_last:
        detector = detector.to(memory_format=torch.channels_last)
    if recipe.train.sync_batch_norm and distributed.world_size() > 1:
        detector = nn.SyncBatchNorm.convert_sync_batchnorm(detector)
    optimizer = build_optimizer(detector, recipe.train.optimizer)
    schedule = build_schedule(
        optimizer,
        recipe.train.schedule,
        steps_per_epoch=steps_per_epoch,
        epochs=recipe.train.epochs,
    )
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    ema = build_ema(detector, recipe.train.ema) if recipe.train.ema is not None else None
    return State(detector, optimizer, schedule, scaler, ema)


def _parallel(detector: Detector, device: torch.device) -> nn.Module:
    if distributed.world_size() == 1:
        return detector
    return DistributedDataParallel(
        detector, device_ids=[device.index] if device.type == "cuda" else None
    )


def _open_run(recipe: Recipe, folder: Path, state: State) -> RunLog:
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("last.pt", "best.pt", "recipe.yaml", "metrics.jsonl"):
        remove_leftovers(folder / name)
    if state.step == 0:  # what an earlier run left here would pass for a result of this one
        for path in (folder / "last.pt", folder / "best.pt", *folder.glob("events.out.tfevents.*")):
            path.unlink(missing_ok=True)
    write_atomically(folder / "recipe.yaml", recipe_to_yaml(recipe))
    return RunLog(folder, resume_step=state.step)


def _take_score(state: State, outcome: Evaluation) -> bool:
    """Remember the validation; True if it is the best so far."""
    state.metrics = outcome.result.as_dict()
    average_precision = float(outcome.result.stats[0])
    improved = average_precision > state.best
    state.best = max(state.best, average_precision)
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


def _save(
    state: State, recipe: Recipe, train_set: CocoDataset, folder: Path, *, best: bool
) -> None:
    """Write `last.pt`, and `best.pt` if this epoch is the best one."""
    checkpoint = Checkpoint(
        recipe=recipe,
        class_names=tuple(train_set.class_names),
        category_ids=tuple(int(i) for i in train_set.category_ids),
        weights=state.result.state_dict(),
        epoch=state.epoch,
        metrics=state.metrics or {},
        training=None,
    )
    if best:  # first: a run that is killed in between goes on from before this epoch
        save_checkpoint(folder / "best.pt", checkpoint)
    training = {
        "step": state.step,
        "best": state.best,
        "detector": state.detector.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "schedule": state.schedule.state_dict(),
        "scaler": state.scaler.state_dict(),
        "ema": None if state.ema is None else state.ema.state_dict(),
    }
    save_checkpoint(folder / "last.pt", replace(checkpoint, training=training))


def _restore(state: State, path: Path, recipe: Recipe, train_set: CocoDataset) -> None:
    """Put everything back as it was when `last.pt` was written.

    Raises:
        ValueError: no such file, or it is of another model, data set or schedule.
    """
    checkpoint = load_checkpoint(path)
    training = checkpoint.training
    if training is None:
        raise ValueError(f"{path} holds weights only; resume from a last.pt")
    for part in ("model", "train", "seed"):
        if getattr(checkpoint.recipe, part) != getattr(recipe, part):
            raise ValueError(
                f"{path} was trained with other settings under '{part}'; resume with the run's own "
                "recipe.yaml, or start a new run from its weights with model.weights"
            )
    if checkpoint.class_names != tuple(train_set.class_names):
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


def _seed_epoch(seed: int, epoch: int) -> None:
    """Give each epoch and process random numbers of its own: nothing to save, exact to resume."""
    words = np.random.SeedSequence((seed, epoch, distributed.rank())).generate_state(2)
    torch.manual_seed(int(words[0]) << 31 | int(words[1]) >> 1)
