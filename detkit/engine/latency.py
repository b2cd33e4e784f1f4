"""Time for one picture, detectors side by side.

On a machine with neighbours the time of one measurement says little. All detectors take turns
within each round, so that whatever slows a round slows all of them, and ratios are taken within
rounds.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from detkit.detectors import Detector
from detkit.evaluation.comparison import RelativeLatency
from detkit.structures import Batch


@dataclass(frozen=True)
class TimedDetector:
    """A detector in evaluation mode and the batches of one picture that it shall look at.

    Attributes:
        detector: on the device.
        batches: on the device, without targets; at least one.
        dtype: for autocast, or None.
    """

    detector: Detector
    batches: Sequence[Batch]
    dtype: torch.dtype | None = None


def interleaved_latencies(
    detectors: Sequence[TimedDetector],
    *,
    device: torch.device,
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
) -> list[RelativeLatency]:
    """Median time of each detector, and median of its ratio to the first within each round.

    Args:
        detectors: at least one; in round r each sees its batch `r % len(batches)`.
        device: where they are.
        rounds: that count; two before them warm up.
        clock: in seconds.
    """
    times: list[list[float]] = [[] for _ in detectors]
    for index in range(-2, rounds):
        order = range(len(detectors)) if index % 2 else reversed(range(len(detectors)))
        for place in order:
            each = detectors[place]
            spent = _seconds(each, each.batches[index % len(each.batches)], device, clock)
            if index >= 0:
                times[place].append(spent)
    return [
        RelativeLatency(
            1000 * statistics.median(own),
            statistics.median(a / b for a, b in zip(own, times[0], strict=True)),
        )
        for own in times
    ]


@torch.inference_mode()
def _seconds(
    timed: TimedDetector, batch: Batch, device: torch.device, clock: Callable[[], float]
) -> float:
    """Of one picture, including all that was started on the GPU."""
    start = clock()
    with torch.autocast(device.type, dtype=timed.dtype, enabled=timed.dtype is not None):
        timed.detector(batch)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - start


def conditions(device: torch.device) -> str:
    """What times depend on beside the detector, for the note under a table."""
    threads = torch.get_num_threads()
    where = f"{threads} CPU thread{'s' * (threads > 1)}"
    if device.type == "cuda":
        where = torch.cuda.get_device_name(device)
    return f"{where}, torch {torch.__version__}"
