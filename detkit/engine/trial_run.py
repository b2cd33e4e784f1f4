"""Short trainings before the long one: can the model learn a few pictures, and at which rate?"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from tqdm import tqdm

from detkit.config import AugmentConfig, Recipe, ScheduleConfig
from detkit.engine.data import eval_loader, train_loader
from detkit.engine.evaluate import evaluate
from detkit.engine.run import Run, prepare_run
from detkit.engine.state import State, build_state
from detkit.engine.train import train_step
from detkit.evaluation.diagnosis import explain_failure
from detkit.files import open_atomically
from detkit.structures import Batch

IMAGES, STEPS, LEARNED = 8, 400, 0.9
LOWEST_RATE, HIGHEST_RATE, RATES = 1e-6, 1.0, 120
SMOOTHING, DIVERGED = 0.9, 3.0


def try_out(recipe: Recipe, *, folder: Path, device: torch.device, rates: bool) -> str:
    """What `tools/train.py --sanity` and `--find-lr` print.

    Args:
        recipe: what would be trained.
        folder: of the run that would be; the plot of the rates goes there.
        device: where to compute.
        rates: look for a rate; otherwise for whether the model learns.

    Raises:
        FloatingPointError: the model does not learn.
    """
    if rates:
        found, path = find_rate(recipe, folder=folder, device=device), folder / "find_lr.png"
        found.plot(path)
        return f"{found.text()}\nplotted in {path}"
    sanity = check_sanity(recipe, folder=folder, device=device)
    if not sanity.learned:
        raise FloatingPointError(sanity.text())
    return sanity.text()


@dataclass(frozen=True)
class Sanity:
    """What a model made of a few pictures that it saw again and again.

    Attributes:
        images: how many.
        steps: of training.
        first_loss: mean of the first ten steps.
        last_loss: mean of the last ten.
        ap50: on the same pictures.
        reasons: why AP50 is low, where something can be said.
    """

    images: int
    steps: int
    first_loss: float
    last_loss: float
    ap50: float
    reasons: tuple[str, ...]

    @property
    def learned(self) -> bool:
        """Whether it knows the pictures by heart."""
        return self.ap50 >= LEARNED

    def text(self) -> str:
        """The verdict, and what speaks for it."""
        course = (
            f"{self.images} pictures, {self.steps} steps: loss {self.first_loss:.3f} to "
            f"{self.last_loss:.3f}, AP50 {self.ap50:.3f} on the same pictures"
        )
        if self.learned:
            return f"{course}\nsane: model, losses, boxes and evaluation fit together"
        lines = [course, f"NOT sane: AP50 should come to {LEARNED} at least"]
        if self.last_loss > 0.7 * self.first_loss:
            lines.append(
                "the loss hardly falls: try another train.optimizer.lr (see --find-lr), or look at "
                "the annotations of these pictures"
            )
        return "\n".join([*lines, *self.reasons])


def check_sanity(recipe: Recipe, *, folder: Path, device: torch.device) -> Sanity:
    """Train on a few pictures until they are known by heart; nothing is written.

    Without augmentation, averages and decay of the rate: only whether it can be learned counts.

    Args:
        recipe: what would be trained.
        folder: of the run that would be.
        device: where to compute.

    Raises:
        ValueError: a recipe or data set that cannot be used, or no picture with boxes.
    """
    still = {name: None for name in ("ema", "swa", "patience")}
    schedule = ScheduleConfig(name="constant", warmup_steps=20)
    batch_size = min(recipe.train.batch_size, IMAGES)
    train = recipe.train.model_copy(
        update={**still, "schedule": schedule, "batch_size": batch_size, "accumulate": 1}
    )
    augment = AugmentConfig(horizontal_flip=0.0)
    data = recipe.data.model_copy(update={"augment": augment, "val": None, "workers": 0})
    recipe = recipe.model_copy(update={"train": train, "data": data})
    run = _on_few_pictures(prepare_run(recipe, folder, device))
    state = build_state(run, with_weights=True)
    losses = []
    for batch in tqdm(itertools.islice(_endless(run), STEPS), "sanity", STEPS):
        losses.append(sum(train_step(state.detector.train(), state, run, batch)[0].values()))
        if (len(losses) % 100 == 0 or len(losses) == STEPS) and _ap50(state, run)[0] >= LEARNED:
            break
    ap50, reasons = _ap50(state, run)
    ends = float(np.mean(losses[:10])), float(np.mean(losses[-10:]))
    return Sanity(len(run.train_set), len(losses), *ends, ap50=ap50, reasons=tuple(reasons))


def _on_few_pictures(run: Run) -> Run:
    """The same run on the pictures with the most boxes: there is most to get wrong."""
    counts = run.train_set.counts()
    if not counts.any():
        raise ValueError("data.train has no boxes; there is nothing to learn")
    order = np.argsort(-counts, kind="stable")[:IMAGES]
    few = run.train_set.select(np.sort(order[counts[order] > 0]))
    loader = train_loader(run.recipe, few, pin_memory=False)
    return replace(
        run,
        train_set=few,
        loader=loader,
        val_set=few,
        val_loader=eval_loader(run.recipe, few, pin_memory=False),
    )


def _ap50(state: State, run: Run) -> tuple[float, list[str]]:
    assert run.val_loader is not None and run.val_set is not None
    detector = state.detector.eval()
    result = evaluate(
        detector, run.val_loader, run.val_set, device=run.device, dtype=run.dtype
    ).result
    return float(result.stats[1]), explain_failure(result)


def _endless(run: Run) -> Iterator[Batch]:
    """Batches of one epoch after the other."""
    for epoch in itertools.count():
        run.loader.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]
        yield from run.loader


@dataclass(frozen=True, eq=False)
class RateTest:
    """The loss while the rate grows (Smith, arXiv 1506.01186, section 3.3).

    Attributes:
        rates: `[n]` ascending.
        losses: `[n]` smoothed.
    """

    rates: np.ndarray
    losses: np.ndarray

    @property
    def suggestion(self) -> float:
        """A third of the rate of the lowest loss: beyond, it is about to diverge."""
        return float(f"{self.rates[int(np.argmin(self.losses))] / 3:.1e}")

    def text(self) -> str:
        """Every tenth rate with its loss, and the suggestion."""
        lines = ["     rate     loss"]
        lines += [
            f"{rate:9.2e} {loss:8.3f}"
            for rate, loss in zip(self.rates[::10], self.losses[::10], strict=True)
        ]
        best = int(np.argmin(self.losses))
        return "\n".join(
            [
                *lines,
                f"lowest loss {self.losses[best]:.3f} at a rate of {self.rates[best]:.2e}; a third "
                f"of it is a good start: train.optimizer.lr={self.suggestion:g}",
            ]
        )

    def plot(self, path: Path) -> None:
        """Loss over rate as PNG."""
        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.add_subplot()
        axes.semilogx(self.rates, self.losses)
        axes.axvline(self.suggestion, linestyle="--", color="gray")
        axes.set(xlabel="learning rate", ylabel="loss (smoothed)")
        axes.set_title(f"suggestion: {self.suggestion:g}")
        with open_atomically(path) as handle:
            figure.savefig(handle, format="png", dpi=120)


def find_rate(recipe: Recipe, *, folder: Path, device: torch.device) -> RateTest:
    """Train with a rate that grows from step to step, until the loss explodes.

    Args:
        recipe: what would be trained; the rates of parts of the model keep their ratio.
        folder: of the run that would be.
        device: where to compute.

    Raises:
        ValueError: a recipe or data set that cannot be used.
    """
    data = recipe.data.model_copy(update={"val": None})
    run = prepare_run(recipe.model_copy(update={"data": data}), folder, device)
    state = build_state(run, with_weights=True)
    groups = state.optimizer.param_groups
    shares = [group["initial_lr"] / groups[0]["initial_lr"] for group in groups]
    rates = np.geomspace(LOWEST_RATE, HIGHEST_RATE, RATES)
    smooth, losses, mean = [], [], 0.0
    state.detector.train()
    for step, (rate, batch) in enumerate(
        zip(rates, tqdm(_endless(run), "rates", RATES), strict=False), start=1
    ):
        for group, share in zip(groups, shares, strict=True):
            group["lr"] = rate * share
        try:
            losses.append(sum(train_step(state.detector, state, run, batch)[0].values()))
        except FloatingPointError:
            break
        mean = SMOOTHING * mean + (1 - SMOOTHING) * losses[-1]
        smooth.append(mean / (1 - SMOOTHING**step))
        if not math.isfinite(smooth[-1]) or smooth[-1] > DIVERGED * min(smooth):
            break
    if not smooth:
        raise FloatingPointError("the loss is not finite from the first step on; see --sanity")
    return RateTest(rates[: len(smooth)], np.array(smooth))
