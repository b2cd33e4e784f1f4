"""How long a network takes and how much memory it needs, on the device it is on.

Both are measured and hold for one machine, its load and its versions only: say them beside the
numbers.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

# The profiler's library reports every start to the terminal otherwise, and every absent GPU as an
# error; it asks when it is first used
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from detkit.analysis.subject import without_pyramid
from detkit.detectors import Detector, RegionProposal
from detkit.detectors.proposals import GivenProposals
from detkit.registry import suggest
from detkit.structures import Batch, Size

Run = Callable[[], object]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
CPU_PEAK = (
    "largest sum of the blocks that torch's CPU allocator held at one time beyond those held "
    "before the call; weights and the scratch memory of libraries (oneDNN) not counted"
)
CUDA_PEAK = "largest sum of the blocks that torch's allocator held at one time, weights included"


@dataclass(frozen=True, slots=True)
class Latency:
    """Milliseconds of one call.

    Attributes:
        median: over the rounds.
        fastest: of the rounds.
        slowest: of the rounds.
        rounds: how many calls were timed.
    """

    median: float
    fastest: float
    slowest: float
    rounds: int

    def __str__(self) -> str:
        return (
            f"{self.median:.1f} ms (median of {self.rounds} rounds, "
            f"{self.fastest:.1f} to {self.slowest:.1f})"
        )


@dataclass(frozen=True)
class Setting:
    """How a network is run.

    Attributes:
        device: where.
        batch: images at a time.
        dtype: of the layers, by autocast; a key of `DTYPES`.
        channels_last: memory format of images and weights.
        rounds: calls that are timed.

    Raises:
        ValueError: a value is out of its range.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    batch: int = 1
    dtype: str = "float32"
    channels_last: bool = False
    rounds: int = 10

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ValueError(f"batch must be at least 1 image, got {self.batch}")
        if self.dtype not in DTYPES:
            raise ValueError(f"unknown dtype {self.dtype!r}; {suggest(self.dtype, DTYPES)}")

    def __str__(self) -> str:
        device = platform.machine()
        if self.device.type == "cuda":
            device = torch.cuda.get_device_name(self.device)
        else:
            device += f" CPU with {torch.get_num_threads()} threads"
        order = ", channels_last" if self.channels_last else ""
        return f"batch of {self.batch}, {self.dtype}{order}, {device}, torch {torch.__version__}"


def calls_of(net: nn.Module, size: Size, setting: Setting) -> Run:
    """A call of a network with random images of (height, width), to be measured.

    Args:
        net: a network of images `[B, C, H, W]`, or a detector, which predicts; on the device.
        size: (height, width).
        setting: how it is run.
    """
    net.eval()
    channels = getattr(getattr(net, "body", net), "in_channels", 3)
    shape = (setting.batch, channels, *size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, device=setting.device)
    if setting.channels_last:
        net.to(memory_format=torch.channels_last)
        images = images.to(memory_format=torch.channels_last)
    if isinstance(net, Detector):
        sizes = (size,) * setting.batch
        batch = Batch(images, sizes, sizes, proposals=_proposals_for(net, size, setting))
        call: Run = partial(net, batch)
    else:
        call = partial(net, images / 255)
    dtype = DTYPES[setting.dtype]

    def run() -> object:
        with torch.autocast(setting.device.type, dtype=dtype, enabled=dtype != torch.float32):
            return call()

    return run


def _proposals_for(net: Detector, size: Size, setting: Setting) -> tuple[Tensor, ...] | None:
    """Anywhere in the images, as many as the detector looks at, where they come with the images."""
    inner = without_pyramid(net)
    if not (isinstance(inner, RegionProposal) and isinstance(inner.rpn, GivenProposals)):
        return None
    corners = torch.rand(setting.batch, inner.rpn.most(size), 2, 2, device=setting.device)
    corners = corners.sort(dim=2).values * corners.new_tensor((size[1], size[0]))
    return tuple(corners.flatten(2))  # [B] times [P, 4]


def measure_latency(
    run: Run, *, device: torch.device, rounds: int = 10, warmup: int = 3
) -> Latency:
    """Time a call; a GPU is waited for before the clock is read.

    Args:
        run: what is timed, e.g. `partial(net, images)`; it runs without gradients.
        device: where it computes.
        rounds: how many calls are timed.
        warmup: how many calls come first, in which kernels are chosen and memory is found.

    Raises:
        ValueError: there are no rounds.
    """
    if rounds < 1 or warmup < 0:
        raise ValueError(f"rounds must be at least 1 and warmup 0, got {rounds} and {warmup}")
    with torch.inference_mode():
        for _ in range(warmup):
            run()
        times = [_milliseconds(run, device) for _ in range(rounds)]
    return Latency(statistics.median(times), min(times), max(times), rounds)


def peak_memory(run: Run, *, device: torch.device) -> int:
    """Bytes that a call needs at its peak; see `CPU_PEAK` and `CUDA_PEAK` for what is counted.

    Args:
        run: what is measured; it runs without gradients.
        device: where it computes.
    """
    with torch.inference_mode():
        run()  # what is allocated once and kept is no part of a call
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            run()
            return torch.cuda.max_memory_allocated(device)
        return _cpu_peak(run)


def _milliseconds(run: Run, device: torch.device) -> float:
    _wait(device)
    start = time.perf_counter()
    run()
    _wait(device)
    return 1000 * (time.perf_counter() - start)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _cpu_peak(run: Run) -> int:
    """Read off the profiler's trace, in which every block of the allocator has its event."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        run()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        trace.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    blocks = [event for event in events if event.get("name") == "[memory]"]
    held = peak = 0
    for event in sorted(blocks, key=lambda event: event["ts"]):
        held += event["args"]["Bytes"]  # negative where a block is given back
        peak = max(peak, held)
    return peak
