"""Training from a recipe to `best.pt`."""

from __future__ import annotations

import contextlib
import logging
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from detkit.config import Recipe, recipe_to_yaml
from detkit.data.loader import objects_left_alone, read_batches
from detkit.detectors import Detector
from detkit.engine import distributed
from detkit.engine.data import share_cores
from detkit.engine.evaluate import Evaluation, evaluate
from detkit.engine.log import RunLog, StepMeter
from detkit.engine.pixels import warn_of_pixels
from detkit.engine.run import Run, prepare_run
from detkit.engine.state import State, build_state, restore_state, save_state, seed_epoch
from detkit.engine.stop import StopRequests, deaf_to_children, stop_requests
from detkit.evaluation.diagnosis import explain_failure
from detkit.files import check_writable, remove_leftovers, write_atomically
from detkit.signals import Terminated
from detkit.structures import Batch

logger = logging.getLogger(__name__)

FALLEN = 0.9  # of the loss of the first step: something has been learned


def train(recipe: Recipe, *, folder: Path, device: torch.device, resume: bool = False) -> None:
    """Train a detector; write `last.pt`, `best.pt`, `recipe.yaml`, `metrics.jsonl` to `folder`.

    Ctrl-C and SIGTERM end it after the step that is under way, with everything saved. So does a
    fault between two steps, e.g. a picture that cannot be read: `last.pt` holds the last complete
    step. A fault within a step, such as a loss that is not finite, leaves what was saved before.

    Args:
        recipe: what to do.
        folder: of the run; all ranks name the same.
        device: where to compute.
        resume: go on from `last.pt` in the folder, exactly as if training had never stopped.

    Raises:
        ValueError: a recipe, data set or checkpoint that cannot be used.
        FloatingPointError: a loss that is not finite.
        KeyboardInterrupt: Ctrl-C.
        Terminated: SIGTERM.
    """
    check_writable(folder / "last.pt")
    share_cores(recipe)
    torch.manual_seed(recipe.seed)  # of the first weights
    run = prepare_run(recipe, folder, device)
    state = build_state(run, with_weights=not resume)
    if resume:
        restore_state(state, run)
    distributed.barrier()  # nobody has read a file by now that the main process is about to change
    log = _open_run(run, state)
    model = _parallel(state.detector, device)
    if not resume and distributed.is_main():
        warn_of_pixels(state.detector, run)
    with (
        contextlib.closing(log),
        _progress_bar(run, state) as bar,
        stop_requests() as stop,
        objects_left_alone(),
    ):
        try:
            while state.epoch < recipe.train.epochs and not _out_of_patience(state, run):
                loss = _train_epoch(model, state, run, log, bar, stop)
                _finish_epoch(state, run, log, bar, stop, loss=loss)
                distributed.barrier()
        except BaseException as error:
            asked = isinstance(error, (KeyboardInterrupt, Terminated))
            # of several processes a fault is that of one, and the others do not come to save
            if not stop.torn and (asked or distributed.world_size() == 1):
                with deaf_to_children():  # whose death may be the fault
                    save_state(state, run, best=False)
            if not isinstance(error, (KeyboardInterrupt, Terminated, FloatingPointError)):
                bar.close()
                _say_what_is_kept(state, run)
            raise
    if distributed.is_main():
        logger.info("trained in %.1f minutes; results in %s", state.seconds / 60, folder)


def _say_what_is_kept(state: State, run: Run) -> None:
    """Of a training that a fault ends, and which goes on when that is mended."""
    if distributed.is_main():
        logger.error(
            "step %d of %d is kept: go on with --resume %s",
            *(state.kept, len(run.loader) * run.recipe.train.epochs, run.folder),
        )


def _progress_bar(run: Run, state: State) -> tqdm[Any]:
    """Over all steps of all epochs, so that its estimate is that of the whole training."""
    return tqdm(
        total=len(run.loader) * run.recipe.train.epochs,
        initial=state.step,
        desc=run.recipe.name,
        disable=not distributed.is_main(),
        dynamic_ncols=True,
    )


def _out_of_patience(state: State, run: Run) -> bool:
    """Whether there has been no better validation for as many as the recipe waits for."""
    patience = run.recipe.train.patience
    if patience is None or state.waited < patience:
        return False
    logger.info("stopped after epoch %d: %d validations without a better AP", state.epoch, patience)
    return True


def _train_epoch(
    model: nn.Module, state: State, run: Run, log: RunLog, bar: tqdm[Any], stop: StopRequests
) -> float:
    """One pass over the data, or what is left of it; returns the mean loss, NaN of no step."""
    config = run.recipe.train
    state.detector.train()
    seed_epoch(state, run)
    run.loader.batch_sampler.set_epoch(  # type: ignore[union-attr]
        state.epoch, start=state.batch
    )
    meter, totals = StepMeter(run.device), []
    for batch in read_batches(run.loader):
        meter.data_came()
        with stop.held():
            rate = float(state.optimizer.param_groups[0]["lr"])
            wants_norm = (state.step + 1) % config.log_every == 0
            values, norm = train_step(model, state, run, batch, with_norm=wants_norm)
            totals.append(sum(values.values()))
            state.first_loss = totals[0] if state.first_loss is None else state.first_loss
            state.batch += 1
            state.step += 1
            meter.step_done(len(batch))
            log.write_skipped(state.step, batch.skipped)
            if state.step % config.log_every == 0:
                record = {f"loss/{name}": value for name, value in values.items()}
                record |= {"lr": rate, "grad_norm": norm, "boxes_dropped": batch.dropped}
                log.write("step", state.step, {**record, **meter.read()})
            bar.set_postfix_str(_progress(state, values, rate, config.epochs), refresh=False)
            bar.update()
            if config.save_every is not None and state.step % config.save_every == 0:
                save_state(state, run, best=False)
    return float(np.mean(totals)) if totals else float("nan")


def train_step(
    model: nn.Module, state: State, run: Run, batch: Batch, *, with_norm: bool = False
) -> tuple[dict[str, float], float]:
    """One step of the optimiser, its gradient gathered part by part where the recipe says so.

    Returns:
        The losses, and the norm of the gradients; NaN where nobody asked for it.
    """
    config = run.recipe.train
    state.optimizer.zero_grad(set_to_none=True)
    values: dict[str, float] = defaultdict(float)
    parts = batch.split(config.accumulate)
    for index, part in enumerate(parts):
        share = len(part) / len(batch)
        apart = index < len(parts) - 1 and isinstance(model, DistributedDataParallel)
        with model.no_sync() if apart else contextlib.nullcontext():  # type: ignore[operator]
            losses = _backward(model, state, run, part, share)
        for name, value in _finite(losses, part, state).items():
            values[name] += share * value
    norm = float("nan")
    if config.clip_norm is not None or with_norm:
        state.scaler.unscale_(state.optimizer)
        limit = float("inf") if config.clip_norm is None else config.clip_norm
        norm = float(nn.utils.clip_grad_norm_(model.parameters(), limit))
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.schedule.step()
    if state.average is not None:
        state.average.update(state.detector)
    return dict(values), norm


def _backward(
    model: nn.Module, state: State, run: Run, batch: Batch, share: float
) -> dict[str, Tensor]:
    """Add `share` of the gradient of a batch; returns its losses."""
    device, dtype = run.device, run.dtype
    with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
        channels_last = run.recipe.train.channels_last
        losses: dict[str, Tensor] = model(_on_device(batch, device, channels_last=channels_last))
    total = torch.stack(list(losses.values())).sum()
    state.scaler.scale(total * share if share < 1 else total).backward()
    return losses


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


def _parallel(detector: Detector, device: torch.device) -> nn.Module:
    if distributed.world_size() == 1:
        return detector
    return DistributedDataParallel(
        detector, device_ids=[device.index] if device.type == "cuda" else None
    )


def _open_run(run: Run, state: State) -> RunLog:
    """Make the folder ready; from now on it holds a `last.pt` to go on from."""
    folder = run.folder
    if not distributed.is_main():
        return RunLog(None, resume_step=state.step)
    folder.mkdir(parents=True, exist_ok=True)
    # before last.pt: whoever finds that, finds with what to go on
    write_atomically(folder / "recipe.yaml", recipe_to_yaml(run.recipe))
    for name in ("last.pt", "best.pt", "recipe.yaml", "metrics.jsonl"):
        remove_leftovers(folder / name)
    if state.step == 0:
        save_state(state, run, best=False)
        # what an earlier run left here would pass for a result of this one
        for path in (folder / "best.pt", *folder.glob("events.out.tfevents.*")):
            path.unlink(missing_ok=True)
    return RunLog(folder, resume_step=state.step)


def _finish_epoch(
    state: State, run: Run, log: RunLog, bar: tqdm[Any], stop: StopRequests, *, loss: float
) -> None:
    """Validate, where it is time to, and save."""
    outcome = _validate(state, run, stop)
    with stop.held():
        state.epoch, state.batch = state.epoch + 1, 0
        best = run.val_set is None
        if outcome is not None:
            best = _take_in(outcome, state)
            schedule, waited = run.recipe.train.schedule, state.waited
            if schedule.name == "plateau" and waited and waited % schedule.patience == 0:
                state.schedule.fall()
            _report(state, outcome, log, bar)
            _explain(state, outcome, bar, loss)
        save_state(state, run, best=best)


def _validate(state: State, run: Run, stop: StopRequests) -> Evaluation | None:
    """Measure; None where there is nothing to measure on, or it is not time to."""
    config, epoch = run.recipe.train, state.epoch + 1
    if run.val_set is None or run.val_loader is None:
        return None
    if epoch < config.epochs and epoch % config.validate_every:
        return None
    detector = state.result.eval()
    distributed.share_buffers(detector)  # what is measured is what will be saved
    return evaluate(
        *(detector, run.val_loader, run.val_set),
        device=run.device,
        dtype=run.dtype,
        with_loss=True,
        stop=stop,
    )


def _take_in(outcome: Evaluation, state: State) -> bool:
    """Keep the metrics of a validation; True if it is the best so far."""
    state.metrics = outcome.result.as_dict()
    average_precision = float(outcome.result.stats[0])
    improved = average_precision > state.best
    state.waited = 0 if improved else state.waited + 1
    state.best = max(state.best, average_precision)
    # without any truth AP is -1: no epoch is better than another, and the last one is kept
    return improved or average_precision < 0


def _explain(state: State, outcome: Evaluation, bar: tqdm[Any], loss: float) -> None:
    """Say why AP is low where the loss falls: what is learned is not what is measured.

    The loss of training: that of validation is of the truths that may be wrong, and need not fall.
    """
    if (
        not distributed.is_main()
        or state.first_loss is None
        or not loss < FALLEN * state.first_loss
    ):
        return
    for reason in explain_failure(outcome.result):
        bar.write(f"AP50 is low though the loss falls: {reason}")


def _report(state: State, outcome: Evaluation, log: RunLog, bar: tqdm[Any]) -> None:
    assert state.metrics is not None
    numbers = {f"val/{n}": v for n, v in state.metrics.items() if isinstance(v, float)}
    losses = {f"val/loss/{name}": value for name, value in outcome.losses.items()}
    log.write("epoch", state.step, {"epoch": state.epoch, **numbers, **losses})
    if distributed.is_main():
        bar.write(
            f"epoch {state.epoch:3d}  AP {state.metrics['AP']:.4f}  "
            f"AP50 {state.metrics['AP50']:.4f}  val loss {sum(outcome.losses.values()):.4f}"
        )
