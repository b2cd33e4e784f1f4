"""Optimisers, the course of the rate, and the average of weights, against numbers and torch."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, MultiStepLR

from detkit.config import EMAConfig, OptimizerConfig, ScheduleConfig, SWAConfig
from detkit.detectors import create_detector
from detkit.engine.optim import (
    RateSchedule,
    WeightAverage,
    build_average,
    build_optimizer,
    rate_factor,
)

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
    ours = RateSchedule(mine, config, steps_per_epoch=10, epochs=4)
    theirs = torch_rates(kind, other)
    for _ in range(40):
        assert mine.param_groups[0]["lr"] == pytest.approx(other.param_groups[0]["lr"], rel=1e-9)
        for part in (mine, other, ours, theirs):
            part.step()


STEP = ScheduleConfig(name="step", warmup_steps=0, every=2, gamma=0.5)
EXPONENTIAL = ScheduleConfig(name="exponential", warmup_steps=0, gamma=0.81)
INVERSE = ScheduleConfig(name="inverse", warmup_steps=4, warmup_ratio=0.0, gamma=3)
ONE_CYCLE = ScheduleConfig(name="one_cycle", rise=0.25, final_ratio=0.1)
PLATEAU = ScheduleConfig(name="plateau", warmup_steps=2, warmup_ratio=0.5, gamma=0.1)


@pytest.mark.parametrize(
    ("config", "step", "falls", "factor"),
    [
        (STEP, 19, 0, 1.0),
        (STEP, 20, 0, 0.5),
        (STEP, 39, 0, 0.5),
        (EXPONENTIAL, 0, 0, 1.0),
        (EXPONENTIAL, 5, 0, 0.9),  # half an epoch
        (EXPONENTIAL, 10, 0, 0.81),
        (INVERSE, 2, 0, 0.5 / 1.6),
        (INVERSE, 10, 0, 0.25),
        (INVERSE, 40, 0, 1 / 13),
        (ONE_CYCLE, 0, 0, 0.04),
        (ONE_CYCLE, 5, 0, 0.52),
        (ONE_CYCLE, 10, 0, 1.0),
        (ONE_CYCLE, 25, 0, 0.55),
        (ONE_CYCLE, 40, 0, 0.1),
        (PLATEAU, 0, 0, 0.5),
        (PLATEAU, 30, 0, 1.0),
        (PLATEAU, 30, 2, 0.01),
    ],
)
def test_other_courses(config: ScheduleConfig, step: int, falls: int, factor: float) -> None:
    found = rate_factor(step, config, steps_per_epoch=10, epochs=4, falls=falls)
    assert found == pytest.approx(factor, rel=1e-12)


def test_a_plateau_lowers_the_rate_at_once_and_is_kept() -> None:
    def build() -> tuple[torch.optim.Optimizer, RateSchedule]:
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.3)
        return optimizer, RateSchedule(optimizer, PLATEAU, steps_per_epoch=10, epochs=4)

    optimizer, schedule = build()
    for _ in range(10):
        optimizer.step()
        schedule.step()
    schedule.fall()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.03)
    other, resumed = build()
    resumed.load_state_dict(schedule.state_dict())
    other.load_state_dict(optimizer.state_dict())
    other.step()
    resumed.step()
    assert other.param_groups[0]["lr"] == pytest.approx(0.03)


# ------------------------------------------------------------------------------- the optimiser


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("sgd", lambda p: torch.optim.SGD(p, 0.1, momentum=0.8, weight_decay=0.01)),
        ("adagrad", lambda p: torch.optim.Adagrad(p, 0.1, weight_decay=0.01)),
        ("adadelta", lambda p: torch.optim.Adadelta(p, 0.1, rho=0.95, weight_decay=0.01)),
        (
            "rmsprop",
            lambda p: torch.optim.RMSprop(p, 0.1, alpha=0.95, momentum=0.8, weight_decay=0.01),
        ),
        ("adam", lambda p: torch.optim.Adam(p, 0.1, betas=(0.8, 0.9), weight_decay=0.01)),
        ("nadam", lambda p: torch.optim.NAdam(p, 0.1, betas=(0.8, 0.9), weight_decay=0.01)),
        ("adamw", lambda p: torch.optim.AdamW(p, 0.1, betas=(0.8, 0.9), weight_decay=0.01)),
    ],
)
def test_optimisers_by_name(name: str, theirs: Any) -> None:
    config = OptimizerConfig(
        name=name, lr=0.1, momentum=0.8, betas=(0.8, 0.9), smoothing=0.95, weight_decay=0.01
    )
    # no norm: a bias before it has a gradient of rounding errors alone, which Adam blows up
    ours = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
    other = copy.deepcopy(ours)
    optimizers = [build_optimizer(ours, config), theirs(other.parameters())]
    images = torch.randn(5, 3, 4, 4)
    for _ in range(3):
        for model, optimizer in zip((ours, other), optimizers, strict=True):
            optimizer.zero_grad()
            model(images).square().sum().backward()
            optimizer.step()
    for mine, their in zip(ours.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, their)


def test_rates_of_stages_and_of_larger_batches() -> None:
    detector = create_detector({"backbone": {"name": "resnet18", "width": 8}}, num_classes=2)
    config = OptimizerConfig(
        lr=0.1, base_batch=16, backbone_rate=0.5, layer_decay=0.1, decay_norm_and_bias=False
    )
    optimizer = build_optimizer(detector, config, batch_size=32)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.2)  # of the head
    found = {name: rates[id(p)] for name, p in detector.named_parameters() if id(p) in rates}
    for prefix, rate in {
        "rpn.": 0.2,
        "backbone.layer4.": 0.01,
        "backbone.layer3.": 0.001,
        "backbone.conv1.": 0.2 * 0.5 * 0.1**5,
    }.items():
        of_part = [value for name, value in found.items() if name.startswith(prefix)]
        assert of_part == pytest.approx([rate] * len(of_part))
        assert of_part
    assert len(found) == sum(p.requires_grad for p in detector.parameters())


def test_swa_is_the_mean_of_the_ends_of_the_last_epochs() -> None:
    model = nn.Linear(1, 1, bias=False)
    average = build_average(model, None, SWAConfig(epochs=3), steps_per_epoch=2, epochs=5)
    assert average is not None
    seen = []
    for step in range(1, 11):
        nn.init.constant_(model.weight, step)
        average.update(model)
        seen.append(float(average.module.weight))
    # until the end of the third epoch the weights themselves, then means of 6, 8 and 10
    assert seen == [1, 2, 3, 4, 5, 6, 6, 7, 7, 8]


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
