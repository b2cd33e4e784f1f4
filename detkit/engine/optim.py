"""Optimisers, the course of the learning rate, and averages of the weights."""

from __future__ import annotations

import copy
import logging
import math
from collections import defaultdict
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from detkit.backbones.base import Backbone
from detkit.config import EMAConfig, OptimizerConfig, ScheduleConfig, SWAConfig
from detkit.engine import distributed

logger = logging.getLogger(__name__)


def build_optimizer(
    model: nn.Module, config: OptimizerConfig, *, batch_size: int | None = None
) -> torch.optim.Optimizer:
    """The optimiser over what may learn.

    Args:
        model: of which a backbone may have rates of its own.
        config: the settings.
        batch_size: over all processes; with `config.base_batch` the rate grows in proportion
            (Goyal et al., arXiv 1706.02677, section 2.1).
    """
    rate = _scaled_rate(config, batch_size)
    groups = _groups(model, config, rate)
    decay = config.weight_decay
    if config.name == "sgd":
        momentum, nesterov = config.momentum, config.nesterov
        return torch.optim.SGD(
            groups, rate, momentum=momentum, nesterov=nesterov, weight_decay=decay, fused=True
        )
    if config.name == "adagrad":
        return torch.optim.Adagrad(groups, rate, weight_decay=decay)
    if config.name == "adadelta":
        return torch.optim.Adadelta(groups, rate, rho=config.smoothing, weight_decay=decay)
    if config.name == "rmsprop":
        alpha, momentum = config.smoothing, config.momentum
        return torch.optim.RMSprop(groups, rate, alpha=alpha, momentum=momentum, weight_decay=decay)
    if config.name == "nadam":
        return torch.optim.NAdam(groups, rate, betas=config.betas, weight_decay=decay)
    adam = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
    return adam(groups, rate, betas=config.betas, weight_decay=decay, fused=True)


def _scaled_rate(config: OptimizerConfig, batch_size: int | None) -> float:
    if config.base_batch is None or batch_size is None:
        return config.lr
    rate = config.lr * batch_size / config.base_batch
    if distributed.is_main():
        logger.info(
            "learning rate %g: %g for batches of %d, scaled to %d",
            *(rate, config.lr, config.base_batch, batch_size),
        )
    return rate


def _groups(model: nn.Module, config: OptimizerConfig, rate: float) -> list[dict[str, Any]]:
    """Parameters by their rate and by whether they decay, the head first."""
    factors = _rate_factors(model, config)
    groups: dict[tuple[float, bool], list[nn.Parameter]] = defaultdict(list)
    for parameter in model.parameters():
        if parameter.requires_grad:
            decays = config.decay_norm_and_bias or parameter.ndim > 1
            groups[factors.get(id(parameter), 1.0), decays].append(parameter)
    ordered = sorted(groups.items(), key=lambda item: item[0], reverse=True)
    return [
        {"params": members, "lr": rate * factor, **({} if decays else {"weight_decay": 0.0})}
        for (factor, decays), members in ordered
    ]


def _rate_factors(model: nn.Module, config: OptimizerConfig) -> dict[int, float]:
    """Factor on the rate of each of the backbone's parameters, by id."""
    factors = {}
    for backbone in (each for each in model.modules() if isinstance(each, Backbone)):
        for depth, stage in enumerate(reversed(backbone.attended_stages()), start=1):
            factor = config.backbone_rate * config.layer_decay**depth
            parameters = (each for module in stage for each in module.parameters())
            factors.update({id(each): factor for each in parameters})
    return factors


def rate_factor(
    step: int, config: ScheduleConfig, *, steps_per_epoch: int, epochs: int, falls: int = 0
) -> float:
    """Factor on the learning rate at a step: linear warmup times the course.

    Args:
        step: complete steps.
        config: the course.
        steps_per_epoch: of the training.
        epochs: of the training.
        falls: of the course "plateau" so far.
    """
    warmup = 1.0
    if step < config.warmup_steps:
        warmup = config.warmup_ratio + (1 - config.warmup_ratio) * step / config.warmup_steps
    epoch = step / max(steps_per_epoch, 1)
    progress = min(epoch / epochs, 1.0)
    if config.name == "one_cycle":  # rises by itself
        return _one_cycle(progress, config)
    if config.name == "multistep":
        return warmup * config.gamma ** sum(epoch >= each for each in config.milestones)
    if config.name == "step":
        return warmup * config.gamma ** int(epoch // config.every)
    if config.name == "plateau":
        return warmup * config.gamma**falls
    if config.name == "exponential":
        return warmup * config.gamma**epoch
    if config.name == "inverse":
        return warmup / (1 + config.gamma * epoch)
    if config.name == "cosine":
        return warmup * _cosine(progress, 1.0, config.final_ratio)
    return warmup


def _cosine(progress: float, start: float, end: float) -> float:
    """From start to end along half a cosine."""
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


def _one_cycle(progress: float, config: ScheduleConfig) -> float:
    """Up from a 25th, then down (Smith and Topin, arXiv 1708.07120; as torch's OneCycleLR)."""
    if progress < config.rise:
        return _cosine(progress / config.rise, 1 / 25, 1.0)
    return _cosine((progress - config.rise) / (1 - config.rise), 1.0, config.final_ratio)


class RateSchedule(LambdaLR):
    """The rate of every step; `step` is called after each step of the optimiser.

    Args:
        optimizer: whose rates it sets.
        config: the course.
        steps_per_epoch: of the training.
        epochs: of the training.

    Attributes:
        falls: how often a plateau has lowered the rate.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        config: ScheduleConfig,
        *,
        steps_per_epoch: int,
        epochs: int,
    ) -> None:
        self.falls = 0

        def factor(step: int) -> float:
            return rate_factor(
                step, config, steps_per_epoch=steps_per_epoch, epochs=epochs, falls=self.falls
            )

        super().__init__(optimizer, factor)

    def fall(self) -> None:
        """Lower the rate of the course "plateau", from the next step on."""
        self.falls += 1
        for group, base, factor in zip(
            self.optimizer.param_groups, self.base_lrs, self.lr_lambdas, strict=True
        ):
            group["lr"] = base * factor(self.last_epoch)


class WeightAverage:
    """Running average of weights and of batch norm statistics.

    EMA: the decay grows from 0 to `config.decay`, as the first weights say little about the last
    ones. SWA: until `first_step` the average is the weights themselves, from then on the plain mean
    of those at the end of each epoch. torch's AveragedModel counts on the GPU, so that a decay that
    depends on the count would wait for every step; this one counts here.

    Args:
        model: what learns; `module` is its averaged copy.
        config: decay and how fast it is reached, or the number of epochs.
        first_step: SWA: the step that ends the first epoch of the average.
        steps_per_epoch: SWA: how far apart the averaged weights are.
    """

    def __init__(
        self,
        model: nn.Module,
        config: EMAConfig | SWAConfig,
        *,
        first_step: int = 0,
        steps_per_epoch: int = 1,
    ) -> None:
        self.module = copy.deepcopy(model).requires_grad_(False)
        self.config = config
        self.first_step, self.steps_per_epoch = first_step, steps_per_epoch
        self.count = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the weights after a step."""
        decay = self._decay()
        self.count += 1
        if decay == 1:
            return
        averages, values = (
            list(self.module.state_dict().values()),
            list(model.state_dict().values()),
        )
        floats = [i for i, value in enumerate(values) if value.is_floating_point()]
        torch._foreach_lerp_([averages[i] for i in floats], [values[i] for i in floats], 1 - decay)
        for average, value in zip(averages, values, strict=True):
            if not value.is_floating_point():  # counters of batch norm
                average.copy_(value)

    def _decay(self) -> float:
        """How much of the average stays."""
        if isinstance(self.config, EMAConfig):
            warm = (1 + self.count) / (self.config.warmup_steps + self.count)
            return min(self.config.decay, warm) if self.count else 0.0
        past = self.count + 1 - self.first_step  # after this step
        if past <= 0:
            return 0.0
        epochs, rest = divmod(past, self.steps_per_epoch)
        return 1.0 if rest else epochs / (epochs + 1)

    def state_dict(self) -> dict[str, Any]:
        """The averages and how many steps they have seen."""
        return {"module": self.module.state_dict(), "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""
        self.module.load_state_dict(state["module"])
        self.count = state["count"]


def build_average(
    model: nn.Module,
    ema: EMAConfig | None,
    swa: SWAConfig | None,
    *,
    steps_per_epoch: int,
    epochs: int,
) -> WeightAverage | None:
    """The average that a recipe asks for, if any."""
    if swa is not None:
        first = (epochs - swa.epochs + 1) * steps_per_epoch
        return WeightAverage(model, swa, first_step=first, steps_per_epoch=steps_per_epoch)
    return None if ema is None else WeightAverage(model, ema)
