"""Optimisers, the course of the learning rate, and the running average of weights."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel

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


def build_ema(model: nn.Module, config: EMAConfig) -> AveragedModel:
    """Exponential moving average of weights and of batch norm statistics.

    Its decay grows from 0 to `config.decay`, as the first weights say little about the last ones.
    """

    @torch.no_grad()
    def update(averages: Iterable[Tensor], values: Iterable[Tensor], count: Tensor | int) -> None:
        seen = int(count)
        decay = min(config.decay, (1 + seen) / (config.warmup_steps + seen))
        averages, values = list(averages), list(values)
        if averages[0].is_floating_point():
            torch._foreach_lerp_(averages, values, 1 - decay)
        else:  # counters of batch norm
            torch._foreach_copy_(averages, values)

    return AveragedModel(model, multi_avg_fn=update, use_buffers=True)
