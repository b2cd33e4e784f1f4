"""BoTNet: its blocks equal timm's, its sizes are the published ones."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from detkit.backbones import create_backbone, create_classifier
from detkit.backbones.botnet import AttentionBottleneck, pool
from detkit.backbones.resnet import BlockSettings

ALL = (0, 1, 2, 3, 4)
TIMMS = {
    "conv1": "conv1_1x1.conv", "bn1": "conv1_1x1.bn", "mhsa": "self_attn", "bn2": "post_attn",
    "conv3": "conv3_1x1.conv", "bn3": "conv3_1x1.bn",
    "downsample.0": "shortcut.conv", "downsample.1": "shortcut.bn",
}  # fmt: skip


def images(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def timms_name(name: str) -> str:
    ours = next(each for each in TIMMS if name.startswith(f"{each}."))
    return TIMMS[ours] + name[len(ours) :]


@pytest.mark.parametrize(("in_channels", "stride"), [(64, 1), (32, 1), (32, 2)])
def test_block_equals_timms(in_channels, stride, randomise, difference):
    byobnet = pytest.importorskip("timm.models.byobnet")
    from timm.layers.bottleneck_attn import BottleneckAttn

    settings = BlockSettings(nn.BatchNorm2d, stride=stride, map_stride=16)
    ours = randomise(AttentionBottleneck(in_channels, 16, settings, image_size=(96, 128)))
    theirs = byobnet.SelfAttnBlock(
        in_channels,
        64,
        stride=stride,
        bottle_ratio=0.25,
        downsample="conv1x1",
        feat_size=(6, 8),
        layers=byobnet.LayerFn(self_attn=BottleneckAttn),
    )
    state = {timms_name(name): value for name, value in ours.state_dict().items()}
    theirs.double().eval().load_state_dict(state, strict=True)
    x = images(2, in_channels, 6, 8)
    with torch.no_grad():
        expected = theirs(x)
        assert difference(ours(x), expected) < 1e-9
        # the comparison sees what is asked of the tables of relative positions
        ours.mhsa.pos_embed.height_rel.copy_(ours.mhsa.pos_embed.height_rel.flip(0).clone())
        assert difference(ours(x), expected) > 1e-5


@pytest.mark.parametrize(
    ("image_size", "parameters"),
    [(224, 20_852_008), (1024, 20_903_208), ((1024, 224), 20_877_608)],
)
def test_size(image_size, parameters):
    with torch.device("meta"):
        net = create_classifier("botnet50", image_size=image_size)
    assert sum(each.numel() for each in net.parameters()) == parameters


def test_multiply_adds_of_convolutions(count_macs):
    """Resnet50's without those of its last three 3x3, and with qkv of three maps instead."""
    with torch.device("meta"):
        net, plain = create_classifier("botnet50"), create_classifier("resnet50")
    convolutions = 3 * 9 * 512 * 512 * 7 * 7
    qkv = 3 * 512 * 512 * (14 * 14 + 2 * 7 * 7)
    assert count_macs(net, 224) == count_macs(plain, 224) - convolutions + qkv


def test_tables_fit_the_maps_of_the_images():
    with torch.device("meta"):
        net = create_backbone("botnet50")
    tables = [block.mhsa.pos_embed.height_rel.shape for block in net.layer4]
    assert tables == [(27, 128), (13, 128), (13, 128)]  # 2 * 14 - 1 and 2 * 7 - 1
    with torch.device("meta"):
        finer = create_backbone("botnet50", output_stride=16, image_size=(64, 224))
    tables = [
        (len(each.mhsa.pos_embed.height_rel), len(each.mhsa.pos_embed.width_rel))
        for each in finer.layer4
    ]
    assert tables == [(7, 27)] * 3
    assert [info.stride for info in finer.feature_info] == [4, 8, 16, 16]


def test_first_layers_are_resnet50s():
    with torch.device("meta"):
        net, plain = create_backbone("botnet50"), create_backbone("resnet50")
    ours = [key for key in net.state_dict() if not key.startswith("layer4")]
    assert ours == [key for key in plain.state_dict() if not key.startswith("layer4")]


def test_self_attention_starts_small():
    """What attention starts with is its own, not that of the convolutions around it."""
    torch.manual_seed(0)
    net = create_backbone("botnet50", width=32)
    weight = net.get_parameter("layer4.1.mhsa.qkv.weight")  # [3 * 256, 256, 1, 1]
    assert weight.std().item() == pytest.approx(256**-0.5, rel=0.02)


def test_stride_of_odd_maps():
    x = torch.arange(5.0).expand(1, 1, 5, 5)
    assert pool(2)(x)[0, 0, 0].tolist() == [0.5, 2.5, 4.0]
    assert pool(2)(x).shape == (1, 1, 3, 3)
    assert pool(1)(x) is x


def test_feature_info_leaves_self_attention_out(reached, monkeypatch):
    net = create_backbone("botnet50", width=8, out_indices=ALL)
    described = [(info.receptive_field, info.center) for info in net.feature_info]
    assert described == [(7, 0), (35, 0), (91, 0), (267, 0), (283, 8)]
    for block in net.layer4:
        block.mhsa = nn.Identity()
    assert list(reached(net, 1025)) == described


@pytest.mark.parametrize("at", ["after_bn3", "after_bn2", "before_conv", "after_block"])
def test_attention(at):
    net = create_backbone("botnet50", width=8, attention="gct", attention_at=at)
    last = [name for name in net.attention_names() if name.startswith("layer4.")]
    assert len(last) == (3 + 3 + 1 if at == "before_conv" else 3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_size": 0}, "size must be a side or"),
        ({"attention": "eca", "attention_at": "after_conv2"}, "no attention_at 'after_conv2'"),
    ],
)
def test_mistakes_are_explained(settings, message):
    with pytest.raises(ValueError, match=message):
        create_backbone("botnet50", **({"width": 8} | settings))


def test_zero_init_residual_makes_blocks_start_as_the_identity():
    block = create_backbone("botnet50", width=8, zero_init_residual=True).layer4[1]
    x = torch.rand(2, 256, 7, 7)
    assert torch.equal(block(x), x)


def test_every_parameter_gets_a_gradient():
    torch.manual_seed(0)
    net = create_classifier("botnet50", width=8, num_classes=3, image_size=64)
    net(torch.randn(2, 3, 64, 64)).square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("norm", ["batch", "frozen_batch", "group"])
def test_odd_sizes_empty_batches_and_channels_last(norm):
    net = create_backbone("botnet50", width=8, norm=norm, norm_eps=0.25, out_indices=ALL).eval()
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
