"""SCNet: equal to the authors' values and to its equations; true to its sizes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detkit.backbones import create_backbone, create_classifier
from detkit.backbones.resnet import BlockSettings
from detkit.backbones.scnet import CoarseView, SCBottleneck, SCConv

ALL = (0, 1, 2, 3, 4)


def images(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


# --- the equations -------------------------------------------------------------------------


def test_convolution_gives_the_authors_values(fill, golden_input, report):
    net = fill(SCConv(16))
    values = report(net(golden_input((2, 16, 8, 8))))
    assert values == pytest.approx((148.626783, 746.102408, 73.849131), abs=1e-6)


def convolved(x: Tensor, part: nn.Sequential, *, stride: int = 1, dilation: int = 1) -> Tensor:
    """The last two of `part`, a convolution and a norm in evaluation, from their values alone."""
    conv, norm = part[-2], part[-1]
    x = F.conv2d(x, conv.weight, padding=dilation, stride=stride, dilation=dilation)
    scale = norm.weight / (norm.running_var + 1e-5).sqrt()
    shift = norm.bias - norm.running_mean * scale
    return x * scale.view(-1, 1, 1) + shift.view(-1, 1, 1)


@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 2)])
def test_convolution_is_its_equation(randomise, difference, stride, dilation):
    net = randomise(SCConv(8, stride=stride, dilation=dilation, pooling=2))
    x = images(2, 8, 6, 10)
    with torch.no_grad():
        pooled = x.view(2, 8, 3, 2, 5, 2).mean((3, 5))
        coarse = convolved(pooled, net.k2, dilation=dilation)
        gate = (x + coarse.repeat_interleave(2, 2).repeat_interleave(2, 3)).sigmoid()
        expected = convolved(
            convolved(x, net.k3, dilation=dilation) * gate,
            net.k4,
            stride=stride,
            dilation=dilation,
        )
        assert difference(net(x), expected) < 1e-12


@pytest.mark.parametrize("stride", [1, 2])
def test_bottleneck_puts_its_halves_side_by_side(randomise, difference, stride):
    net = randomise(SCBottleneck(16, 8, BlockSettings(nn.BatchNorm2d, stride=stride)))
    x = images(2, 16, 8, 12)
    with torch.no_grad():
        left = convolved(net.bn1_a(net.conv1_a(x)).clamp(min=0), net.k1, stride=stride)
        right = net.scconv(net.bn1_b(net.conv1_b(x)).clamp(min=0))
        joined = torch.cat([left, right], dim=1).clamp(min=0)
        out = net.bn3(net.conv3(joined)) + net.downsample(x)
        assert difference(net(x), out.clamp(min=0)) < 1e-12


def test_coarse_view_of_maps_that_windows_do_not_divide():
    x = torch.arange(7.0).expand(1, 1, 2, 7)
    assert CoarseView(4)(x).flatten().tolist() == [1.5]  # rows pooled whole, columns 0 to 3
    assert CoarseView(3)(x).flatten().tolist() == [1, 4]


# --- sizes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "parameters", "macs"),
    [("scnet50", 25_564_584, 3_925_286_912), ("scnet101", 44_565_416, 7_168_745_472)],
)
def test_size(name, parameters, macs, count_macs):
    with torch.device("meta"):
        net = create_classifier(name)
    assert sum(each.numel() for each in net.parameters()) == parameters
    assert count_macs(net, 224) == macs


def test_names_are_the_authors():
    with torch.device("meta"):
        block = create_backbone("scnet50").layer1[0]
    weights = [key for key in block.state_dict() if key.endswith("weight")]
    assert weights == [
        "conv1_a.weight", "bn1_a.weight", "k1.0.weight", "k1.1.weight", "conv1_b.weight",
        "bn1_b.weight", "scconv.k2.1.weight", "scconv.k2.2.weight", "scconv.k3.0.weight",
        "scconv.k3.1.weight", "scconv.k4.0.weight", "scconv.k4.1.weight", "conv3.weight",
        "bn3.weight", "downsample.0.weight", "downsample.1.weight",
    ]  # fmt: skip


# --- what it says of its maps --------------------------------------------------------------


def test_feature_info():
    with torch.device("meta"):
        net = create_backbone("scnet50", out_indices=ALL)
    infos = net.feature_info
    assert [info.channels for info in infos] == [64, 256, 512, 1024, 2048]
    assert [info.stride for info in infos] == [2, 4, 8, 16, 32]
    assert [info.receptive_field for info in infos] == [7, 199, 631, 2007, 3223]
    assert [info.center for info in infos] == [0.0] * 5


def test_receptive_field_is_what_the_gradient_reaches(reached, monkeypatch):
    """Where windows divide the maps; what cells see repeats every 4 of them."""
    # a sigmoid of large sums has no gradient left
    monkeypatch.setattr(torch, "sigmoid", lambda x: x / x.detach().abs().max())
    net = create_backbone("scnet50", out_indices=(0, 1, 2, 3), width=4)
    described = [info.receptive_field for info in net.feature_info]
    assert [size for size, _ in reached(net, 128 * 18, rows=4)] == described


# --- settings ------------------------------------------------------------------------------


@pytest.mark.parametrize("at", ["after_bn3", "after_bn2", "after_block", "after_stage"])
def test_attention(at):
    net = create_backbone("scnet50", width=8, attention="eca", attention_at=at)
    assert len(net.attention_names()) == (4 if at == "after_stage" else 16)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"attention": "eca", "attention_at": "after_conv2"}, "no attention_at 'after_conv2'"),
        ({"output_stride": 4}, "output_stride must be 8, 16 or 32, got 4"),
    ],
)
def test_mistakes_are_explained(settings, message):
    with pytest.raises(ValueError, match=message):
        create_backbone("scnet50", **settings)


def test_output_stride_and_drop_path():
    net = create_backbone("scnet50", width=8, output_stride=8, drop_path=0.5).eval()
    assert [info.stride for info in net.feature_info] == [4, 8, 8, 8]
    x = torch.randn(1, 3, 64, 64)
    assert [level.shape[-1] for level in net(x)] == [16, 8, 8, 8]
    assert net.layer4[-1].drop_path.p == 0.5
    convolutions = [each for each in net.layer4[1].modules() if isinstance(each, nn.Conv2d)]
    assert [each.dilation[0] for each in convolutions] == [1, 4, 1, 4, 4, 4, 1]


def test_zero_init_residual_makes_blocks_start_as_the_identity():
    block = create_backbone("scnet50", width=8, zero_init_residual=True).layer1[1]
    x = torch.rand(2, 32, 8, 8)
    assert torch.equal(block(x), x)


# --- how it runs ---------------------------------------------------------------------------


def test_every_parameter_gets_a_gradient():
    torch.manual_seed(0)
    net = create_classifier("scnet50", width=8, num_classes=3)
    net(torch.randn(2, 3, 128, 128)).square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("norm", ["batch", "frozen_batch", "group"])
def test_odd_sizes_empty_batches_and_channels_last(norm):
    net = create_backbone("scnet50", width=8, norm=norm, norm_eps=0.25, out_indices=ALL).eval()
    assert {each.eps for each in net.modules() if hasattr(each, "eps")} == {0.25}
    x = torch.randn(2, 3, 65, 97)
    expected = net(x)
    for level, info in zip(expected, net.feature_info, strict=True):
        assert level.shape == (2, info.channels, -(-65 // info.stride), -(-97 // info.stride))
    assert [len(level) for level in net(x[:0])] == [0] * 5
    assert net(torch.randn(2, 3, 1, 1))[-1].shape == (2, 256, 1, 1)
    net.to(memory_format=torch.channels_last)
    for level, plain in zip(
        net(x.contiguous(memory_format=torch.channels_last)), expected, strict=True
    ):
        torch.testing.assert_close(level, plain, rtol=1e-3, atol=1e-3)
