"""The temporal adaptive module, against its formula."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from detkit.nn.attention.temporal import TemporalAdaptive


def test_published_values(golden_input, fill, report):
    y = fill(TemporalAdaptive(32, frames=8))(golden_input((16, 32, 4, 4)))
    assert report(y) == pytest.approx((1.623674, 2422.361369, 0.401198), rel=0, abs=1e-6)


def batch_norm(norm: nn.BatchNorm1d, x: torch.Tensor) -> torch.Tensor:
    """Of one vector by hand."""
    return (x - norm.running_mean) / (norm.running_var + 1e-5).sqrt() * norm.weight + norm.bias


@pytest.mark.parametrize("taps", [1, 3, 5])
def test_frame_by_frame(golden_input, fill, taps):
    module = fill(TemporalAdaptive(4, frames=4, kernel_size=taps, reduction=2))
    x = golden_input((8, 4, 2, 3))
    w1, norm_global, w2 = module.kernel[0].weight, module.kernel[1], module.kernel[3].weight
    w3, norm_local, w4 = module.importance[0], module.importance[1], module.importance[3]
    margin = taps // 2
    expected = torch.zeros_like(x)
    for clip in range(2):
        frames = x[4 * clip : 4 * clip + 4]  # [T, C, H, W]
        means = frames.mean(dim=(2, 3))  # [T, C]
        weighted = []
        for t in range(4):
            hidden = torch.zeros(2, dtype=torch.float64)
            for tap in range(taps):
                if 0 <= t + tap - margin < 4:
                    hidden += w3.weight[:, :, tap] @ means[t + tap - margin]
            gate = w4.weight[:, :, 0] @ batch_norm(norm_local, hidden).relu()
            weighted.append(frames[t] * gate.sigmoid().view(4, 1, 1))
        for channel in range(4):
            hidden = batch_norm(norm_global, w1 @ means[:, channel]).relu()
            kernel = (w2 @ hidden).softmax(dim=0)
            for t in range(4):
                for tap in range(taps):
                    if 0 <= t + tap - margin < 4:
                        found = kernel[tap] * weighted[t + tap - margin][channel]
                        expected[4 * clip + t, channel] += found
    torch.testing.assert_close(module(x), expected, rtol=1e-12, atol=1e-12)


def test_clips_do_not_see_each_other(golden_input, fill):
    module = fill(TemporalAdaptive(8, frames=4))
    x = golden_input((12, 8, 3, 5))
    alone = torch.cat([module(clip) for clip in x.split(4)])
    torch.testing.assert_close(module(x), alone, rtol=1e-12, atol=1e-12)


def test_parameters_in_resnet50():
    blocks = {64: 3, 128: 4, 256: 6, 512: 3}  # channels before the 3x3 convolutions
    with torch.device("meta"):
        added = {
            channels: sum(p.numel() for p in TemporalAdaptive(channels, frames=8).parameters())
            for channels in blocks
        }
    total = sum(number * added[channels] for channels, number in blocks.items())
    assert total == 1_262_688
    assert 25_557_032 + total == 26_819_720


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_gradients(golden_input, fill, frames):
    module = fill(TemporalAdaptive(4, frames=frames, reduction=2), first=3)
    names, parameters = zip(*module.named_parameters(), strict=True)

    def call(x, *values):
        return torch.func.functional_call(module, dict(zip(names, values, strict=True)), (x,))

    x = golden_input((2 * frames, 4, 2, 3)).requires_grad_()
    assert torch.autograd.gradcheck(call, (x, *parameters))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_of_large_maps_is_finite(golden_input, fill, dtype):
    module = fill(TemporalAdaptive(8, frames=2)).to(dtype)
    y = module((1e3 * golden_input((4, 8, 3, 5))).to(dtype))
    assert y.dtype == dtype and y.isfinite().all()


def test_no_clips_are_no_clips():
    assert TemporalAdaptive(8)(torch.zeros(0, 8, 3, 5)).shape == (0, 8, 3, 5)


def test_a_batch_that_is_no_whole_number_of_clips():
    with pytest.raises(ValueError, match=r"frames=8, which do not divide a batch of 12; change"):
        TemporalAdaptive(4)(torch.zeros(12, 4, 2, 2))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"frames": 0}, "frames must be above 0, got 0"),
        ({"kernel_size": 4}, "kernel_size must be odd to centre on a frame, got 4"),
        ({"kernel_size": -1}, "kernel_size must be odd"),
        ({"reduction": 0}, "reduction must be at least 1, got 0"),
        ({"expansion": 0}, "expansion must be above 0, got 0"),
    ],
)
def test_mistakes_are_named(settings, message):
    with pytest.raises(ValueError, match=message) as error:
        TemporalAdaptive(8, **settings)
    assert "\n" not in str(error.value)
