"""Optimisers, the course of the learning rate, and the running average of weights."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from detkit.config import EMAConfig, OptimizerConfig, ScheduleConfig


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """SGD or AdamW over what may learn; norms and biases decay only if the config says so."""
    learning = [p for p in model.parameters() if p.requires_grad]
    groups: list[dict[str, Any]]
    if config.decay_norm_and_bias:
        groups = [{"params": learning}]
    else:
        groups = [
            {"params": [p for p in learning if p.ndim > 1]},
            {"params": [p for p in learning if p.ndim <= 1], "weight_decay": 0.0},
        ]
    if config.name == "sgd":
        return torch.optim.SGD(
            groups,
            lr=config.lr,
            momentum=config.momentum,
            nesterov=config.nesterov,
            weight_decay=config.weight_decay,
            fused=True,
        )
    return torch.optim.AdamW(
        groups, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay, fused=True
    )


def rate_factor(step: int, config: ScheduleConfig, *, steps_per_epoch: int, epochs: int) -> float:
    """Factor on the learning rate at a step: linear warmup times cosine or steps."""
    warmup = 1.0
    if step < config.warmup_steps:
        warmup = config.warmup_ratio + (1 - config.warmup_ratio) * step / config.warmup_steps
    if config.name == "multistep":
        passed = sum(step >= epoch * steps_per_epoch for epoch in config.milestones)
        return warmup * config.gamma**passed
    if config.name == "cosine":
        progress = min(step / max(steps_per_epoch * epochs, 1), 1.0)
        cosine = (1 + math.cos(math.pi * progress)) / 2
        return warmup * (config.final_ratio + (1 - config.final_ratio) * cosine)
    return warmup


def build_schedule(
    optimizer: torch.optim.Optimizer, config: ScheduleConfig, *, steps_per_epoch: int, epochs: int
) -> LambdaLR:
    """The schedule; its `step` is called after every step of the optimiser."""

    def factor(step: int) -> float:
        return rate_factor(step, config, steps_per_epoch=steps_per_epoch, epochs=epochs)

    return LambdaLR(optimizer, factor)


class WeightAverage:
    """Exponential moving average of weights and of batch norm statistics.

    Its decay grows from 0 to `config.decay`, as the first weights say little about the last ones.
    torch's AveragedModel counts on the GPU, so that a decay that depends on the count would wait
    for every step; this one counts here.

    Args:
        model: what learns; `module` is its averaged copy.
        config: decay and how fast it is reached.
    """

    def __init__(self, model: nn.Module, config: EMAConfig) -> None:
        self.module = copy.deepcopy(model).requires_grad_(False)
        self.config = config
        self.count = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the weights after a step."""
        decay = min(self.config.decay, (1 + self.count) / (self.config.warmup_steps + self.count))
        decay = decay if self.count else 0.0
        averages, values = (
            list(self.module.state_dict().values()),
            list(model.state_dict().values()),
        )
        floats = [i for i, value in enumerate(values) if value.is_floating_point()]
        torch._foreach_lerp_([averages[i] for i in floats], [values[i] for i in floats], 1 - decay)
        for average, value in zip(averages, values, strict=True):
            if not value.is_floating_point():  # counters of batch norm
                average.copy_(value)
        self.count += 1

    def state_dict(self) -> dict[str, Any]:
        """The averages and how many steps they have seen."""
        return {"module": self.module.state_dict(), "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""
        self.module.load_state_dict(state["module"])
        self.count = state["count"]
