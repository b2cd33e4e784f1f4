"""Sections about training and testing."""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveInt

from detkit.config.base import Fraction, NonNegative, NonNegativeInt, Positive, Section


class OptimizerConfig(Section):
    """How weights move."""

    name: Literal["sgd", "adamw"] = "sgd"
    lr: Positive = 0.02
    momentum: Fraction = 0.9
    nesterov: bool = False
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    weight_decay: NonNegative = 1e-4
    decay_norm_and_bias: bool = True


class ScheduleConfig(Section):
    """How the rate changes: linear warmup, then cosine or steps."""

    name: Literal["cosine", "multistep", "constant"] = "multistep"
    warmup_steps: NonNegativeInt = 1000
    warmup_ratio: Fraction = 1e-3
    milestones: tuple[PositiveInt, ...] = (16, 22)  # epochs after which the rate falls
    gamma: Fraction = 0.1
    final_ratio: Fraction = 0.0  # where the cosine ends


class EMAConfig(Section):
    """Running average of the weights, used for validation and as the result."""

    decay: Fraction = 0.999
    warmup_steps: PositiveInt = 200  # the average follows faster in the beginning


class TrainConfig(Section):
    """Everything about training."""

    epochs: PositiveInt = 26
    batch_size: PositiveInt = 16  # over all processes
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    clip_norm: Positive | None = None
    amp: Literal["auto", "bf16", "fp16", "off"] = "auto"
    channels_last: bool = True
    ema: EMAConfig | None = None
    validate_every: PositiveInt = 1
    sync_batch_norm: bool = False
    log_every: PositiveInt = 10  # steps between lines in metrics.jsonl


class TestConfig(Section):
    """Everything about testing."""

    __test__ = False  # pytest: not a test case

    batch_size: PositiveInt = 8
    amp: Literal["auto", "bf16", "fp16", "off"] = "off"
