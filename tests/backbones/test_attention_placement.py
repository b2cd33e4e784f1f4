"""Attention in networks: where it stands, what it costs there, and timm's networks with it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from detkit.backbones import create_backbone, create_classifier
from detkit.backbones.placement import AttendedConv2d, is_attention
from detkit.nn.attention import list_attentions
from detkit.registry import attentions

LAST = {1: (-1,), 2: (-1,), 3: (-1,), 4: (-1,)}
POSITIONS = [
    "after_conv2",
    "before_conv2",
    "after_bn2",
    "after_bn3",
    "after_block",
    "before_conv",
    "after_stage",
]


def parameters(net: nn.Module) -> int:
    return sum(each.numel() for each in net.parameters())


# Totals of the authors' released networks: module, position, stages, settings, ResNet-50's total
@pytest.mark.parametrize(
    ("name", "at", "stages", "settings", "total"),
    [
        ("se", None, None, {}, 28_088_024),
        ("se", None, None, {"reduction": 2}, 45_699_240),
        ("se", None, None, {"reduction": 4}, 35_635_688),
        ("se", None, None, {"reduction": 8}, 30_603_912),
        ("se", None, None, {"reduction": 32}, 26_830_080),
        ("gsop", None, LAST, {}, 28_285_224),
        ("gsop", None, LAST, {"mode": "position"}, 26_182_952),
        ("fca", None, None, {}, 28_071_976),
        ("eca", None, None, {}, 25_557_032 + 86),
        ("srm", None, None, {}, 25_617_448),
        ("gct", "before_conv", None, {}, 25_624_625),
        ("gaussian_gct", None, None, {"c": 2.0}, 25_557_032),
        ("gaussian_gct", None, None, {"c": None}, 25_557_032 + 16),
        ("cbam", None, None, {}, 28_089_624),
        ("bam", "after_stage", (1, 2, 3), {}, 25_915_099),
        ("scse", None, None, {"reduction": 16}, 28_103_144),
        ("scse", None, None, {"reduction": 2}, 45_714_360),
        ("triplet", None, None, {}, 25_561_832),
        ("coord", None, None, {}, 27_474_864),
        ("simam", "after_conv2", None, {}, 25_557_032),
        ("strip_pooling", "after_bn2", {**LAST, 4: (0, 1, 2)}, {}, 25_557_032 + 6_117_056),
        ("tam", "before_conv2", None, {"frames": 8}, 26_819_720),
        ("nonlocal", "after_block", {3: (-2,)}, {}, 27_658_792),
        ("nonlocal", "after_block", {2: (1, 3), 3: (1, 3, 5)}, {}, 32_915_496),
    ],
)
def test_resnet50_with_official_placement_has_the_published_size(name, at, stages, settings, total):
    with torch.device("meta"):
        net = create_classifier(
            "resnet50",
            attention=name,
            attention_at=at,
            attention_stages=stages,
            attention_settings=settings,
        )
    assert parameters(net) == total


def test_rga_has_the_published_size_on_pictures_of_people():
    """After each stage, the last one not striding, for pictures of 256 x 128."""
    with torch.device("meta"):
        net = create_backbone(
            "resnet50",
            attention="rga",
            attention_at="after_stage",
            attention_image_size=(256, 128),
            output_stride=16,
        )
    assert parameters(net) == 29_822_128


# --- timm's networks -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "settings"),
    [("se", {}), ("eca", {}), ("cbam", {"mlp_bias": False}), ("coord", {})],
)
def test_network_equals_timms(name, settings, randomise, unfilled, difference):
    timm = pytest.importorskip("timm")
    layer = name
    if name == "coord":  # the official width and biases instead of timm's
        coord = pytest.importorskip("timm.layers.coord_attn")

        def layer(channels: int, **_: object) -> nn.Module:
            return coord.CoordAttn(channels, rd_channels=max(8, channels // 32), bias=True)

    theirs = randomise(
        unfilled(
            lambda: timm.create_model("resnet50", block_args={"attn_layer": layer}, num_classes=5)
        )
    )
    ours = unfilled(
        lambda: create_classifier(
            "resnet50", attention=name, attention_settings=settings, num_classes=5
        )
    )
    given = theirs.state_dict()
    state = {key: value for key, value in given.items() if ".se." not in key}
    theirs_attention = [value for key, value in given.items() if ".se." in key]
    ours_attention = [key for key in ours.state_dict() if ".after_bn3." in key]
    state |= dict(zip(ours_attention, theirs_attention, strict=True))
    ours.load_state_dict(state)
    for value in ours.state_dict().values():  # timm has mean and maximum the other way round
        if name == "cbam" and value.ndim == 4 and value.shape[:2] == (1, 2):
            value.copy_(value.flip(1).clone())
    x = torch.randn(1, 3, 64, 96, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert difference(ours(x), theirs(x)) < 1e-9


# --- positions -----------------------------------------------------------------------------


class Scale(nn.Module):
    """Multiplies by a parameter and notes what it saw."""

    def __init__(self, channels: int, *, size: int = 0) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.full((channels, 1, 1), 3.0))
        self.size = size
        self.seen: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen = x.detach().clone()
        return x * self.factor


@pytest.fixture
def scale(monkeypatch):
    monkeypatch.setitem(attentions._builders, "scale", Scale)


def standing(net: nn.Module) -> dict[str, nn.Module]:
    return {name: each for name, each in net.named_modules() if is_attention(each)}


@pytest.mark.parametrize(
    ("at", "names"),
    [
        ("after_conv2", [f"layer{i}.{j}.conv2.after" for i in (1, 2) for j in (0, 1)]),
        ("before_conv2", [f"layer{i}.{j}.conv2.before" for i in (1, 2) for j in (0, 1)]),
        ("after_bn2", [f"layer{i}.{j}.after_bn3" for i in (1, 2) for j in (0, 1)]),
        ("after_bn3", [f"layer{i}.{j}.after_bn3" for i in (1, 2) for j in (0, 1)]),
        ("after_block", [f"layer{i}.{j}.after_block" for i in (1, 2) for j in (0, 1)]),
        ("after_stage", ["after_stage.layer1", "after_stage.layer2"]),
        (
            "before_conv",
            [
                "conv1.before",
                *(f"layer1.{j}.conv{k}.before" for j in (0, 1) for k in (1, 2)),
                "layer2.0.conv1.before",
                "layer2.0.conv2.before",
                "layer2.0.downsample.0.before",
                *(f"layer2.1.conv{k}.before" for k in (1, 2)),
            ],
        ),
    ],
)
def test_position_of_resnet18(scale, at, names):
    net = create_backbone(
        "resnet18", width=4, attention="scale", attention_at=at, out_indices=(1, 2)
    )
    assert sorted(standing(net)) == sorted(names)
    net(torch.randn(2, 3, 32, 32))
    assert all(each.seen is not None for each in standing(net).values())
    # published names stay: a plain network's weights load
    plain = create_backbone("resnet18", width=4, out_indices=(1, 2)).state_dict()
    assert set(plain) < set(net.state_dict())


def test_positions_in_a_bottleneck(scale):
    """What stands at each position sees the map that the position is named after."""
    seen = {}
    for at in POSITIONS[:5]:
        torch.manual_seed(0)
        net = create_backbone(
            "resnet50",
            width=4,
            attention="scale",
            attention_at=at,
            attention_stages={2: (0,)},
            out_indices=(1, 2),
        ).eval()
        (module,) = standing(net).values()
        first, _ = net(torch.randn(2, 3, 40, 48, generator=torch.Generator().manual_seed(1)))
        seen[at] = module.seen
        block = net.layer2[0]
    with torch.no_grad():
        middle = block.relu(block.bn1(block.conv1(first)))
        expected = {"before_conv2": middle, "after_conv2": block.conv2(middle)}
        expected["after_bn2"] = block.relu(block.bn2(expected["after_conv2"]))
        expected["after_bn3"] = block.bn3(block.conv3(expected["after_bn2"]))
        expected["after_block"] = block.relu(expected["after_bn3"] + block.downsample(first))
    for at, value in expected.items():
        torch.testing.assert_close(seen[at], value, msg=at)


@pytest.mark.parametrize("at", POSITIONS)
def test_attention_takes_part(scale, at):
    """Its factor changes what comes out, and learns."""
    net = create_backbone("resnet50", width=4, attention="scale", attention_at=at, out_indices=(2,))
    x = torch.randn(2, 3, 32, 32)
    before = net.eval()(x)[0]
    for module in standing(net).values():
        module.factor.data.fill_(0.5)
    assert not torch.allclose(net(x)[0], before)
    net.train()(x)[0].square().sum().backward()
    assert all(m.factor.grad.abs().sum() > 0 for m in standing(net).values())


@pytest.mark.parametrize(
    ("stages", "names"),
    [
        (None, ["layer1.0", "layer1.1", "layer2.0", "layer2.1"]),
        ((2,), ["layer2.0", "layer2.1"]),
        ({1: (-1,), 2: (0, 1)}, ["layer1.1", "layer2.0", "layer2.1"]),
        ([], []),
    ],
)
def test_stages_and_blocks_are_chosen(scale, stages, names):
    net = create_backbone(
        "resnet18", width=4, attention="scale", attention_stages=stages, out_indices=(2,)
    )
    assert sorted(standing(net)) == [f"{name}.after_bn3" for name in names]


@pytest.mark.parametrize(
    ("name", "settings", "sizes"),
    [
        ("resnet18", {}, [56, 28, 14, 7]),
        ("resnet50_v1", {}, [56, 28, 14, 7]),
        ("resnet50", {"output_stride": 16}, [56, 28, 14, 14]),
        (
            "resnet50",
            {"attention_image_size": (640, 320)},
            [(160, 80), (80, 40), (40, 20), (20, 10)],
        ),
    ],
)
def test_modules_of_fixed_size_are_told_their_map(scale, name, settings, sizes):
    net = create_backbone(
        name,
        width=4,
        attention="scale",
        attention_stages={1: (0,), 2: (0,), 3: (0,), 4: (0,)},
        **settings,
    )
    assert [each.size for each in standing(net).values()] == sizes


def test_description_leaves_attention_out(scale):
    plain = create_backbone("resnet50", width=4)
    for at in POSITIONS:
        net = create_backbone("resnet50", width=4, attention="scale", attention_at=at)
        assert net.feature_info == plain.feature_info


def test_frozen_stages_freeze_their_attention(scale):
    net = create_backbone(
        "resnet18", width=4, attention="scale", attention_at="after_stage", frozen_stages=2
    )
    assert not net.after_stage["layer1"].factor.requires_grad
    assert net.after_stage["layer2"].factor.requires_grad


def test_attention_initialises_itself(scale):
    net = create_backbone("resnet18", width=4, attention="scale", zero_init_residual=True)
    assert all((m.factor == 3).all() for m in standing(net).values())


@pytest.mark.parametrize("at", ["after_bn3", "before_conv", "after_stage"])
def test_weights_of_the_plain_network_load_beside_attention(scale, at, tmp_path):
    plain = create_classifier("resnet18", width=4)
    torch.save(plain.state_dict(), tmp_path / "plain.pth")
    net = create_classifier(
        "resnet18", width=4, attention="scale", attention_at=at, weights=tmp_path / "plain.pth"
    )
    assert torch.equal(net.body.layer2[1].conv2.weight, plain.body.layer2[1].conv2.weight)
    assert all((m.factor == 3).all() for m in standing(net).values())
    for module in standing(net).values():
        module.factor.data.fill_(7)
    torch.save(net.state_dict(), tmp_path / "own.pth")
    again = create_backbone(
        "resnet18", width=4, attention="scale", attention_at=at, weights=tmp_path / "own.pth"
    )
    assert all((m.factor == 7).all() for m in standing(again).values())


def test_half_of_the_attention_is_no_weights(scale, tmp_path):
    net = create_classifier("resnet18", width=4, attention="scale")
    state = {k: v for k, v in net.state_dict().items() if k != "layer1.0.after_bn3.factor"}
    torch.save(state, tmp_path / "half.pth")
    with pytest.raises(ValueError, match=r"1 missing .layer1.0.after_bn3.factor"):
        create_backbone("resnet18", width=4, attention="scale", weights=tmp_path / "half.pth")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"attention": "sse"}, "unknown attention module 'sse'; did you mean 'scse' or 'se'"),
        (
            {"attention": "se", "attention_at": "after_bn4"},
            "resnet18 has no attention_at 'after_bn4'; did you mean 'after_bn",
        ),
        (
            {"attention": "se", "attention_stages": (1, 5)},
            r"attention_stages \[5\] not in 0..4 for resnet18 \(stem, layer1,",
        ),
        (
            {"attention": "se", "attention_stages": {1: (2,)}},
            r"attention_stages names block 2 of stage 1, which has 2: give indices in -2..1",
        ),
        (
            {"attention": "se", "attention_settings": {"reducton": 4}},
            "attention se has no setting 'reducton'; did you mean 'reduction'",
        ),
        (
            {"attention": "se", "attention_settings": {"channels": 4}},
            "attention se has no setting 'channels'; allowed: reduction",
        ),
        ({"attention_where": 1}, "resnet18 has no setting 'attention_where'; did you mean"),
        ({"attention_at": "after_bn4"}, "resnet18 has no attention_at 'after_bn4'"),
        ({"attention_stages": (5,)}, r"attention_stages \[5\] not in 0..4 for resnet18"),
        (
            {"attention": "se", "attention_stages": (0, 1)},
            r"attention_stages \[0\] of resnet18 have no place 'after_bn3'",
        ),
        (
            {"attention": "se", "attention_stages": {2: (0,), 3: (0,)}, "out_indices": (2,)},
            r"attention_stages \[3\] of resnet18 .* after the last of out_indices \(2,\)",
        ),
    ],
)
def test_mistakes_are_explained(settings, message):
    with pytest.raises(ValueError, match=message) as caught:
        create_backbone("resnet18", **settings)
    assert "\n" not in str(caught.value)


# --- every module in a network -------------------------------------------------------------


@pytest.mark.parametrize("name", list_attentions())
def test_every_module_trains_in_a_network(name):
    """One step, with the sum of the block written in place behind the module."""
    settings = {"attention": name, "attention_stages": (2,), "out_indices": (2,), "width": 32}
    net = create_backbone("resnet18", **settings)
    before = {k: v.clone() for k, v in net.named_parameters()}
    images = torch.randn(8, 3, 64, 48)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(3):  # gates that start at zero let their inner layers learn from the second on
        optimizer.zero_grad()
        net(images)[0].square().mean().backward()
        optimizer.step()
    changed = {k for k, v in net.named_parameters() if not torch.equal(v, before[k])}
    still = {k for k in before if k.startswith(net.attention_names())} - changed
    assert net.attention_names() and net(images)[0].isfinite().all()
    # a bias before a norm and a bias of keys under a softmax change nothing, so they never learn
    assert all(key.endswith("bias") for key in still), still


def test_attended_convolution_is_the_convolution_between():
    conv = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2)
    attended = AttendedConv2d(conv, nn.ReLU(), nn.Sigmoid())
    x = torch.randn(2, 4, 9, 7)
    assert torch.equal(attended(x), conv(x.relu()).sigmoid())
    assert list(attended.state_dict()) == ["weight", "bias"]
