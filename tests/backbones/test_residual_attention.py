"""Residual attention networks: the published sizes, the equations, and what cells see."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detkit.backbones import create_backbone, create_classifier
from detkit.backbones.residual_attention import (
    AttentionModule,
    BilinearUpsampling,
    Hourglass,
    ResidualUnit,
    UnitSettings,
)

SETTINGS = UnitSettings(nn.BatchNorm2d, drop_path=0.0)
ALL = (0, 1, 2, 3, 4)


def images(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


# --- sizes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "parameters", "macs"),
    [
        # multiply-adds: 6.271 and 10.534 G as published in the network definition
        ("residual_attention56", 31_810_728, 6_270_836_736),
        ("residual_attention92", 52_466_344, 10_533_789_696),
    ],
)
def test_size(name, parameters, macs, count_macs):
    with torch.device("meta"):
        net = create_classifier(name)
    assert sum(each.numel() for each in net.parameters()) == parameters
    assert count_macs(net, 224) == macs
    assert not any(each.bias is not None for each in net.modules() if isinstance(each, nn.Conv2d))


@pytest.mark.parametrize(("name", "modules"), [("56", [1, 1, 1]), ("92", [1, 2, 3])])
def test_depth_of_the_trunk_gives_the_name(name, modules):
    """Table 2: convolutions from the image to the classifier, through the trunks, and `fc`."""
    with torch.device("meta"):
        net = create_backbone(f"residual_attention{name}")
    stages = [net.stage1, net.stage2, net.stage3, net.stage4]
    found = [sum(isinstance(each, AttentionModule) for each in stage) for stage in stages]
    assert found == [*modules, 0]
    units = 4 + 2 + sum(1 + 2 + 1 for _ in range(sum(modules)))
    assert 1 + 3 * units + 1 == int(name)


@pytest.mark.parametrize(("depth", "pools", "units"), [(1, 1, 2), (2, 2, 5), (3, 3, 8)])
def test_units_of_a_mask(depth, pools, units):
    mask = Hourglass(8, depth, SETTINGS)
    assert sum(isinstance(each, nn.MaxPool2d) for each in mask.modules()) == pools
    assert sum(isinstance(each, ResidualUnit) for each in mask.modules()) == units


# --- the equations -------------------------------------------------------------------------


def unit(state: dict[str, Tensor], x: Tensor, *, stride: int = 1) -> Tensor:
    """A residual unit, step by step."""

    def activated(x: Tensor, name: str) -> Tensor:
        mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        x = F.batch_norm(x, mean, var, state[f"{name}.weight"], state[f"{name}.bias"])
        return x.clamp(min=0)

    active = activated(x, "bn1")
    out = F.conv2d(active, state["conv1.weight"])
    out = F.conv2d(activated(out, "bn2"), state["conv2.weight"], padding=1, stride=stride)
    out = F.conv2d(activated(out, "bn3"), state["conv3.weight"])
    if "downsample.weight" in state:
        x = F.conv2d(active, state["downsample.weight"], stride=stride)
    return out + x


@pytest.mark.parametrize(("in_channels", "stride"), [(8, 1), (8, 2), (4, 1)])
def test_unit(in_channels, stride, randomise, difference):
    net = randomise(ResidualUnit(in_channels, 8, SETTINGS, stride=stride))
    x = images(2, in_channels, 5, 6)
    with torch.no_grad():
        assert difference(net(x), unit(net.state_dict(), x, stride=stride)) < 1e-12


def test_module_weighs_its_trunk(randomise, difference):
    """y = (1 + M(x)) T(x), M = sigmoid(1x1, ReLU, BN, 1x1, ReLU, BN of the hourglass)."""
    net = randomise(AttentionModule(8, 1, SETTINGS))
    x = images(2, 8, 5, 8)
    with torch.no_grad():
        x1 = net.first(x)
        trunk = net.trunk[1](net.trunk[0](x1))
        low = net.mask.up(net.mask.down(F.max_pool2d(x1, 3, 2, 1)))
        high = F.interpolate(low, size=(5, 8), mode="bilinear", align_corners=True)
        bn1, _, conv1, bn2, _, conv2, _ = net.gate
        gate = conv2(F.relu(bn2(conv1(F.relu(bn1(high)))))).sigmoid()
        assert difference(net(x), net.last(trunk + gate * trunk)) < 1e-12
        assert gate.std() > 0.05, "a constant mask would hide mistakes"


def test_hourglass_adds_a_skip_at_each_level(randomise, difference):
    net = randomise(Hourglass(8, 2, SETTINGS))
    x = images(2, 8, 9, 8)
    with torch.no_grad():
        low = net.down(F.max_pool2d(x, 3, 2, 1))
        inner = net.inner.up(net.inner.down(F.max_pool2d(low, 3, 2, 1)))
        inner = F.interpolate(inner, size=low.shape[-2:], mode="bilinear", align_corners=True)
        out = net.up(inner + net.skip(low))
        expected = F.interpolate(out, size=(9, 8), mode="bilinear", align_corners=True)
        assert difference(net(x), expected) < 1e-12


def test_upsampling_puts_cells_where_the_pool_took_them():
    x = torch.tensor([0.0, 4.0, 8.0]).view(1, 1, 1, 3).expand(1, 1, 3, 3)
    like = torch.empty(1, 1, 5, 5)
    assert BilinearUpsampling()(x, like)[0, 0, 0].tolist() == [0, 2, 4, 6, 8]


def test_head_ends_the_last_stage(randomise, difference):
    net = randomise(create_classifier("residual_attention56", width=8, num_classes=3))
    x = images(2, 3, 33, 33)
    with torch.no_grad():
        (level,) = net.body(x)
        assert level.min() < -0.1, "the map is the sum itself, before norm and ReLU"
        expected = net.head.fc(F.relu(net.head.bn(level)).mean((2, 3)))
        assert difference(net(x), expected) < 1e-12


# --- what it says of its maps --------------------------------------------------------------


def test_receptive_field_is_what_the_gradient_reaches(reached):
    """On sizes that pools divide evenly; the hourglasses of stage 1 repeat every 8 cells."""
    net = create_backbone("residual_attention56", out_indices=ALL, width=4)
    for module in net.modules():
        if isinstance(module, AttentionModule):
            module.gate[-1] = nn.Identity()  # a sigmoid of large sums has no gradient left
    described = [(info.receptive_field, info.center) for info in net.feature_info]
    assert described == [(7, 0.0), (355, 0.0), (675, 0.0), (899, 0.0), (1027, 0.0)]
    assert list(reached(net, 32 * 48 + 1, rows=8)) == described


def test_feature_info():
    with torch.device("meta"):
        net = create_backbone("residual_attention92")
    assert [info.channels for info in net.feature_info] == [256, 512, 1024, 2048]
    assert [info.stride for info in net.feature_info] == [4, 8, 16, 32]
    assert [info.receptive_field for info in net.feature_info] == [355, 995, 1731, 1859]


# --- settings ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("at", "names"),
    [
        ("after_block", ["stage1.after_block0.", "stage1.after_block1.", "stage2.after_block0."]),
        ("after_stage", ["after_stage.stage1.", "after_stage.stage2."]),
    ],
)
def test_attention_keeps_the_names(at, names):
    plain = create_backbone("residual_attention56", width=8)
    net = create_backbone("residual_attention56", width=8, attention="eca", attention_at=at)
    assert list(net.attention_names()[: len(names)]) == names
    added = net.attention_names()
    assert [k for k in net.state_dict() if not k.startswith(added)] == list(plain.state_dict())


def test_drop_path_grows_linearly():
    net = create_backbone("residual_attention56", width=8, drop_path=0.9)
    blocks = [*net.stage1, *net.stage2, *net.stage3, *net.stage4]
    rates = [getattr(each, "last", each).drop_path.p for each in blocks]
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 0}, "width must be at least 1, got 0"),
        ({"drop_path": 1.0}, r"drop_path is a probability in \[0, 1\), got 1.0"),
        ({"output_stride": 16}, "has no setting 'output_stride'"),
    ],
)
def test_mistakes_are_explained(settings, message):
    with pytest.raises(ValueError, match=message):
        create_backbone("residual_attention56", **settings)


def test_only_the_stages_needed_are_built():
    net = create_backbone("residual_attention56", width=8, out_indices=(2,), frozen_stages=2)
    assert {key.split(".")[0] for key in net.state_dict()} == {"conv1", "bn1", "stage1", "stage2"}
    assert {n.split(".")[0] for n, p in net.named_parameters() if p.requires_grad} == {"stage2"}
    whole = create_classifier("residual_attention56", width=8)
    beyond = net.unused_weights()
    left = [key for key in whole.state_dict() if not key.startswith(beyond)]
    assert left == list(net.state_dict())


# --- how it runs ---------------------------------------------------------------------------


def test_every_parameter_gets_a_gradient():
    torch.manual_seed(0)
    net = create_classifier("residual_attention56", width=8, num_classes=3)
    net(torch.randn(2, 3, 64, 64)).square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("norm", ["batch", "frozen_batch", "group"])
def test_odd_sizes_empty_batches_and_channels_last(norm):
    net = create_backbone(
        "residual_attention56", width=8, norm=norm, norm_eps=0.25, out_indices=ALL
    ).eval()
    assert {each.eps for each in net.modules() if hasattr(each, "eps")} == {0.25}
    x = torch.randn(2, 3, 65, 97)
    expected = net(x)
    for level, info in zip(expected, net.feature_info, strict=True):
        assert level.shape == (2, info.channels, -(-65 // info.stride), -(-97 // info.stride))
    assert [len(level) for level in net(x[:0])] == [0] * 5
    net.to(memory_format=torch.channels_last)
    for level, plain in zip(
        net(x.contiguous(memory_format=torch.channels_last)), expected, strict=True
    ):
        torch.testing.assert_close(level, plain, rtol=1e-3, atol=1e-3)
