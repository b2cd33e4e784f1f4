"""Optimisers, the course of the rate, and the average of weights, against numbers and torch."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, MultiStepLR

from detkit.config import EMAConfig, OptimizerConfig, ScheduleConfig
from detkit.engine.optim import WeightAverage, build_optimizer, build_schedule, rate_factor

# -------------------------------------------------------------------------------------- the rate

STEPS = ScheduleConfig(
    name="multistep", warmup_steps=4, warmup_ratio=0.2, milestones=(2, 3), gamma=0.1
)
COSINE = ScheduleConfig(name="cosine", warmup_steps=0, final_ratio=0.2)
WARM_COSINE = ScheduleConfig(name="cosine", warmup_steps=4, warmup_ratio=0.0)
CONSTANT = ScheduleConfig(name="constant", warmup_steps=2, warmup_ratio=0.5)


@pytest.mark.parametrize(
    ("config", "step", "factor"),
    [
        # 10 steps an epoch, 4 epochs: the rate falls after the epochs 2 and 3
        (STEPS, 0, 0.2),
        (STEPS, 1, 0.4),
        (STEPS, 3, 0.8),
        (STEPS, 4, 1.0),
        (STEPS, 19, 1.0),  # last step of the second epoch
        (STEPS, 20, 0.1),
        (STEPS, 29, 0.1),
        (STEPS, 30, 0.01),
        (STEPS, 39, 0.01),
        (COSINE, 0, 1.0),
        (COSINE, 10, 0.2 + 0.8 * (1 + math.sqrt(0.5)) / 2),
        (COSINE, 20, 0.6),
        (COSINE, 40, 0.2),
        (COSINE, 99, 0.2),  # beyond the end
        (WARM_COSINE, 0, 0.0),
        (WARM_COSINE, 2, 0.5 * (1 + math.cos(math.pi * 2 / 40)) / 2),
        (WARM_COSINE, 20, 0.5),
        (CONSTANT, 0, 0.5),
        (CONSTANT, 1, 0.75),
        (CONSTANT, 2, 1.0),
        (CONSTANT, 39, 1.0),
    ],
)
def test_rate_factor(config: ScheduleConfig, step: int, factor: float) -> None:
    found = rate_factor(step, config, steps_per_epoch=10, epochs=4)
    assert found == pytest.approx(factor, rel=1e-12, abs=1e-15)


def torch_rates(kind: str, optimizer: torch.optim.Optimizer) -> Any:
    if kind == "multistep":
        return MultiStepLR(optimizer, [20, 30], gamma=0.1)
    if kind == "cosine":
        return CosineAnnealingLR(optimizer, T_max=40, eta_min=0.3 * 0.2)
    return LinearLR(optimizer, start_factor=0.2, total_iters=5)


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("multistep", ScheduleConfig(name="multistep", warmup_steps=0, milestones=(2, 3))),
        ("cosine", COSINE),
        ("warmup", ScheduleConfig(name="constant", warmup_steps=5, warmup_ratio=0.2)),
    ],
)
def test_rates_are_those_of_torch(kind: str, config: ScheduleConfig) -> None:
    mine, other = (torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.3) for _ in range(2))
    ours = build_schedule(mine, config, steps_per_epoch=10, epochs=4)
    theirs = torch_rates(kind, other)
    for _ in range(40):
        assert mine.param_groups[0]["lr"] == pytest.approx(other.param_groups[0]["lr"], rel=1e-9)
        for part in (mine, other, ours, theirs):
            part.step()


# ------------------------------------------------------------------------------- the optimiser


def small_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("decay_all", [True, False])
def test_what_decays(name: str, decay_all: bool) -> None:
    """With zero gradients the decay alone moves a weight: by 1 - lr * decay."""
    model = small_model()
    config = OptimizerConfig(
        name=name, lr=0.1, momentum=0.0, weight_decay=0.5, decay_norm_and_bias=decay_all
    )
    optimizer = build_optimizer(model, config)
    for parameter in model.parameters():
        nn.init.ones_(parameter)
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for key, value in model.named_parameters():
        decays = decay_all or key in ("0.weight", "3.weight")
        expected = torch.full_like(value, 0.95 if decays else 1.0)
        torch.testing.assert_close(value.detach(), expected)


def test_settings_reach_the_optimiser() -> None:
    config = OptimizerConfig(
        name="sgd",
        lr=0.3,
        momentum=0.8,
        nesterov=True,
        weight_decay=0.01,
        decay_norm_and_bias=False,
    )
    optimizer = build_optimizer(small_model(), config)
    assert isinstance(optimizer, torch.optim.SGD)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.01, 0.0]
    assert all(group["lr"] == 0.3 for group in optimizer.param_groups)
    assert all(group["momentum"] == 0.8 for group in optimizer.param_groups)
    assert all(group["nesterov"] for group in optimizer.param_groups)
    adam = build_optimizer(small_model(), OptimizerConfig(name="adamw", betas=(0.8, 0.99)))
    assert isinstance(adam, torch.optim.AdamW)
    assert adam.param_groups[0]["betas"] == (0.8, 0.99)


@pytest.mark.parametrize("decay_all", [True, False])
def test_every_learning_parameter_is_in_one_group_and_no_other(decay_all: bool) -> None:
    model = small_model()
    model[0].weight.requires_grad_(False)
    config = OptimizerConfig(decay_norm_and_bias=decay_all)
    groups = build_optimizer(model, config).param_groups
    found = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(found) == sorted(id(p) for p in model.parameters() if p.requires_grad)


# --------------------------------------------------------------------------------- the average


def test_average_is_the_formula_with_buffers() -> None:
    """average += (1 - decay) * (value - average), decay growing with the number of updates."""
    model = small_model()
    ema = WeightAverage(model, EMAConfig(decay=0.6, warmup_steps=4))
    expected = copy.deepcopy(model.state_dict())
    generator = torch.Generator().manual_seed(0)
    decays = []
    for seen in range(6):
        for value in model.state_dict().values():
            if value.is_floating_point():
                value.copy_(torch.randn(value.shape, generator=generator))
            else:
                value += 3
        ema.update(model)
        decay = 0.0 if seen == 0 else min(0.6, (1 + seen) / (4 + seen))
        decays.append(decay)
        for key, value in model.state_dict().items():
            if value.is_floating_point():
                expected[key] += (1 - decay) * (value - expected[key])
            else:
                expected[key] = value.clone()
    assert decays == pytest.approx([0.0, 0.4, 0.5, 4 / 7, 0.6, 0.6])
    found = ema.module.state_dict()
    assert found["1.num_batches_tracked"] == 18
    assert set(found) == set(expected)
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-6, atol=1e-6)


def test_average_leaves_the_model_alone() -> None:
    model = small_model()
    before = copy.deepcopy(model.state_dict())
    ema = WeightAverage(model, EMAConfig())
    with torch.no_grad():
        ema.module[0].weight.zero_()
    ema.update(model)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())
    torch.testing.assert_close(ema.module[0].weight, model[0].weight)  # the first one is a copy
