"""Time and memory: of calls whose cost is known."""

from __future__ import annotations

import time

import pytest
import torch
from torch import nn

from detkit.analysis import Setting, measure_latency, peak_memory
from detkit.analysis.speed import calls_of
from detkit.detectors import create_detector

CPU = torch.device("cpu")


def test_latency_of_a_nap():
    calls = []

    def nap():
        calls.append(torch.is_inference_mode_enabled())
        time.sleep(0.02 if len(calls) < 8 else 0.06)

    latency = measure_latency(nap, device=CPU, rounds=5, warmup=3)
    assert calls == [True] * 8
    assert latency.rounds == 5
    assert 20 <= latency.fastest <= latency.median < 60 <= latency.slowest
    assert str(latency).startswith(f"{latency.median:.1f} ms (median of 5 rounds, ")


@pytest.mark.parametrize(("rounds", "warmup"), [(0, 1), (1, -1)])
def test_latency_needs_rounds(rounds, warmup):
    with pytest.raises(ValueError, match="rounds must be at least 1"):
        measure_latency(lambda: None, device=CPU, rounds=rounds, warmup=warmup)


def test_peak_counts_what_is_held_at_once():
    x = torch.zeros(1000, 1000)  # 4 MB, held before

    def run():
        a = x + 1
        b = a + 1  # two held
        del a
        c = b + 1  # two held
        return c + 1  # three held

    assert peak_memory(run, device=CPU) == pytest.approx(12e6, rel=1e-4)


def test_peak_ignores_what_the_first_call_keeps():
    kept = []

    def run():
        if not kept:
            kept.append(torch.zeros(1000, 1000))
        return torch.zeros(1000)

    assert peak_memory(run, device=CPU) == pytest.approx(4000, rel=0.1)


def test_profiling_says_nothing_on_the_terminal(capfd):
    peak_memory(lambda: torch.zeros(3), device=CPU)
    assert capfd.readouterr() == ("", "")


class Noting(nn.Module):
    """Notes what it is given."""

    in_channels = 4

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 2, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.given, self.made = images, self.conv(images)
        return self.made


def test_calls_are_as_set():
    net = Noting()
    calls_of(net, (8, 12), Setting(CPU, batch=3))()
    assert net.given.shape == (3, 4, 8, 12)
    assert 0 <= net.given.min() < net.given.max() <= 1
    assert net.made.dtype == torch.float32
    assert not net.training
    calls_of(net, (8, 12), Setting(CPU, 2, "bfloat16", channels_last=True))()
    assert net.given.is_contiguous(memory_format=torch.channels_last)
    assert net.made.dtype == torch.bfloat16


def test_detectors_predict():
    model = {"backbone": {"name": "resnet18", "width": 8}, "fpn": {"channels": 8}}
    net = create_detector(model, num_classes=2)
    found = calls_of(net, (64, 96), Setting(CPU, batch=2))()
    assert len(found) == 2 and found[0].boxes.shape[1] == 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch": 0}, "batch must be at least 1 image, got 0"),
        ({"dtype": "float61"}, "unknown dtype 'float61'; did you mean 'float16'"),
    ],
)
def test_mistakes_are_explained(settings, message):
    with pytest.raises(ValueError, match=message):
        Setting(CPU, **settings)


@pytest.mark.gpu
def test_peak_on_a_gpu_counts_weights_too():
    device = torch.device("cuda", 0)
    kept = torch.zeros(1000, 1000, device=device)
    before = torch.cuda.memory_allocated(device)
    assert before >= kept.nbytes
    peak = peak_memory(lambda: kept + 1, device=device)
    assert before + kept.nbytes <= peak < before + 2 * kept.nbytes
    assert measure_latency(lambda: kept + 1, device=device).median > 0


def test_regions_that_come_with_images_are_there():
    settings = {
        "backbone": {"name": "resnet18", "width": 8, "out_indices": [2]},
        "proposals": "selective_search",
        "roi": {"pool": "pool", "max_regions": 7, "hidden": 8},
        "fpn": None,
        "image_pyramid": {"scales": [1]},
    }
    net = create_detector(settings, num_classes=3)
    looked = []
    find = net.detector.rpn.find
    net.detector.rpn.find = lambda maps, batch: looked.append(find(maps, batch)) or looked[-1]
    calls_of(net, (64, 96), Setting(CPU, batch=2))()
    (regions,) = looked
    assert [len(each) for each in regions] == [7, 7]
    sides = torch.cat(regions)
    assert (sides[:, 2:] > sides[:, :2]).all() and (sides[:, 2:] <= torch.tensor([96, 64])).all()
