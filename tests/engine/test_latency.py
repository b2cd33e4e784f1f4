"""Time for one picture: turns within rounds, medians, ratios within rounds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from detkit.engine.latency import TimedDetector, interleaved_latencies


class Clock:
    """Stands still but for what the detectors let pass."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class Slow(nn.Module):
    """Takes the next of its times for each picture, and remembers the call."""

    def __init__(self, name: str, clock: Clock, times: list[float], calls: list[Any]) -> None:
        super().__init__()
        self.name, self.clock, self.times, self.calls = name, clock, iter(times), calls

    def forward(self, batch: str) -> None:
        self.clock.now += next(self.times)
        self.calls.append((self.name, batch, torch.is_inference_mode_enabled()))


def test_turns_medians_and_ratios() -> None:
    """Round 1 was disturbed: both took ten times as long, which moves neither number."""
    clock, calls = Clock(), list[Any]()
    first = Slow("a", clock, [9, 9, 1, 10, 1.2], calls)  # two to warm up
    second = Slow("b", clock, [9, 9, 2, 30, 3.0], calls)
    timed: list[Any] = [TimedDetector(each, ["p", "q"]) for each in (first, second)]  # type: ignore[arg-type,list-item]
    found = interleaved_latencies(timed, device=torch.device("cpu"), rounds=3, clock=clock)
    assert found[0] == pytest.approx((1200, 1))
    assert found[1] == pytest.approx((3000, 2.5))  # of 2, 3 and 2.5
    names = "".join(name for name, _, _ in calls)
    assert names == "baabbaabba"  # who comes first changes
    pictures = [batch for _, batch, _ in calls]
    assert pictures == list("ppqqppqqpp")  # both see the same in a round
    assert all(inference for *_, inference in calls)
