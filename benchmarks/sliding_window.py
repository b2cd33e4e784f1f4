"""Sliding windows in one pass against one by one: seconds, multiply-adds, and their ratios.

    python benchmarks/sliding_window.py                            # 640x480, stride 4, one thread
    python benchmarks/sliding_window.py --height 120 --width 160 --rounds 3

The same classifier judges the same windows of the same image in both modes of the detector. That
they say the same is asserted first, where the network pads no border. Both figures are the median
over rounds that alternate. The ratio of multiply-adds says how much work one pass saves: what
windows share is computed once, but a layer whose cells belong to one window each (the fully
connected ones, or a convolution as large as its map) costs the same either way. The seconds can
differ by more: one pass does not cut and resize, and its few large products keep the core busier.

- lenet5, windows of 32 pixels: C5 has a cell for each window, and is most of the work of one pass.
- resnet18 up to layer1 with global pooling, windows of 64 pixels: no layer is coarser than the
  stride, so that each pixel is looked at once instead of 256 times. It pads its borders.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from detkit.analysis import count_detector
from detkit.detectors import SlidingWindow, create_detector
from detkit.structures import Size


@dataclass(frozen=True)
class Contest:
    """A classifier and its windows.

    Attributes:
        name: of the contest.
        backbone: settings.
        window: side in pixels.
        pooled: the head averages the window's map.
        padded: the network pads its borders, so that the modes do not agree.
    """

    name: str
    backbone: dict[str, Any]
    window: int
    pooled: bool
    padded: bool

    def build(self, stride: int) -> SlidingWindow:
        """The detector, with random weights."""
        windows = {
            "sizes": [[self.window, self.window]],
            "stride": stride,
            "pooled": self.pooled,
            "mode": "dense",
        }
        model = {"detector": "sliding_window", "backbone": self.backbone, "sliding_window": windows}
        detector = create_detector(model, num_classes=10)
        assert isinstance(detector, SlidingWindow)
        return detector.eval()


CONTESTS = (
    Contest("lenet5", {"name": "lenet5"}, 32, pooled=False, padded=False),
    Contest(
        "resnet18 to layer1",
        {"name": "resnet18", "width": 16, "out_indices": [1]},
        64,
        pooled=True,
        padded=True,
    ),
)


def judge(detector: SlidingWindow, images: Tensor, size: Size, mode: Any) -> tuple[Tensor, float]:
    """Logits `[N, C + 1]` of all windows, and the seconds that they took."""
    detector.mode = mode
    start = time.perf_counter()
    with torch.inference_mode():
        (judged,) = detector.judge(images, [size])
    return judged.logits, time.perf_counter() - start


def macs(contest: Contest, stride: int, size: Size, mode: Any) -> int:
    """Multiply-adds for one image."""
    with torch.device("meta"):
        detector = contest.build(stride)
    detector.mode = mode
    return sum(part.macs for part in count_detector(detector, size))


def compare(contest: Contest, *, stride: int, size: Size, rounds: int) -> None:
    """Time both modes in turn and print a line each."""
    torch.manual_seed(0)
    detector = contest.build(stride)
    images = torch.randn(1, 3, *size)
    times: dict[str, list[float]] = {"crop": [], "dense": []}
    for index in range(rounds + 1):  # one round to warm up
        logits = {}
        for mode in times:
            logits[mode], spent = judge(detector, images, size, mode)
            if index:
                times[mode].append(spent)
        if not contest.padded:
            torch.testing.assert_close(logits["crop"], logits["dense"], rtol=1e-4, atol=1e-5)
    count = {mode: macs(contest, stride, size, mode) for mode in times}
    seconds = {mode: statistics.median(spent) for mode, spent in times.items()}
    print(f"{contest.name}, {len(logits['crop'])} windows of {contest.window} pixels")
    for mode in times:
        print(f"  {mode:5}  {seconds[mode]:8.3f} s  {count[mode] / 1e9:8.2f} G multiply-adds")
    print(
        f"  ratio  {seconds['crop'] / seconds['dense']:8.1f}    "
        f"{count['crop'] / count['dense']:8.1f} in multiply-adds"
    )


def main() -> None:
    """Read the command line and compare."""
    parser = argparse.ArgumentParser(description="Windows in one pass against one by one.")
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--stride", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    size = (options.height, options.width)
    print(
        f"CPU, {options.threads} thread(s), torch {torch.__version__}, "
        f"{size[1]}x{size[0]} pixels, stride {options.stride}"
    )
    for contest in CONTESTS:
        compare(contest, stride=options.stride, size=size, rounds=options.rounds)


if __name__ == "__main__":
    main()
