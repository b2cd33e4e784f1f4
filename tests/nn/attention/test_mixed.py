"""Mixed attention beside the authors' values, other libraries and the formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from detkit.nn.attention import create_attention

# Output channels of the blocks of a ResNet-50
STAGES = ((256, 3), (512, 4), (1024, 6), (2048, 3))
MAP = (2, 32, 8, 8)


def count(module: nn.Module) -> int:
    return sum(each.numel() for each in module.parameters())


def everywhere(name: str, **settings: object) -> int:
    """Parameters of one module in every block of a ResNet-50."""
    with torch.device("meta"):
        return sum(
            blocks * count(create_attention(name, channels=channels, **settings))
            for channels, blocks in STAGES
        )


@pytest.fixture
def x() -> torch.Tensor:
    """Two maps of 16 channels, 3x5."""
    return torch.randn(2, 16, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


# From the authors' released code
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cbam", (2.961734, 828.225770, 0.813929)),
        ("bam", (153.850715, 4160.174939, 77.130537)),
        ("scse", (626.051406, 1398.879321, 306.391524)),
        ("triplet", (65.465564, 1752.701467, 32.981575)),
        ("coord", (-30.806947, 671.149506, -14.780499)),
        ("simam", (68.741320, 1917.945945, 34.796574)),
    ],
)
def test_published_values(golden_input, fill, report, name, expected):
    module = fill(create_attention(name, channels=32))
    assert report(module(golden_input(MAP))) == pytest.approx(expected, rel=0, abs=1e-6)


def test_parameters_in_a_resnet50():
    assert everywhere("cbam") == 2_532_592
    assert 25_557_032 + everywhere("scse", reduction=16) == 28_103_144
    assert 25_557_032 + everywhere("scse") == 45_714_360
    assert everywhere("triplet") == 16 * 300
    assert 25_557_032 + everywhere("coord") == 27_474_864
    assert everywhere("simam") == 0


def test_parameters_of_bam_between_the_stages():
    assert sum(count(create_attention("bam", channels=c)) for c in (256, 512, 1024)) == 358_067


def test_parameters_of_the_small_kernels():
    assert count(create_attention("triplet", channels=64, kernel_size=3)) == 3 * (2 * 9 + 2)
    small, large = (create_attention("cbam", channels=64, kernel_size=k) for k in (3, 7))
    assert count(large) - count(small) == 2 * (49 - 9)


@pytest.mark.parametrize("mlp_bias", [True, False])
def test_cbam_is_timms_with_the_inputs_of_its_convolution_swapped(randomise, x, mlp_bias):
    cbam = pytest.importorskip("timm.layers.cbam")
    ours = create_attention("cbam", channels=16, reduction=4, mlp_bias=mlp_bias)
    theirs = cbam.CbamModule(16, rd_channels=4, mlp_bias=mlp_bias)
    state = randomise(ours).state_dict()
    names = {"fc": "channel.fc", "spatial.conv.": "spatial.conv.conv."}
    names["spatial.norm."] = "spatial.conv.bn."
    renamed = {}
    for name, value in state.items():
        (prefix,) = (each for each in names if name.startswith(each))
        renamed[name.replace(prefix, names[prefix], 1)] = value
    theirs.double().load_state_dict(renamed, strict=True)
    theirs.eval()
    assert not torch.allclose(ours(x), theirs(x), atol=1e-3)
    theirs.spatial.conv.conv.weight.data = ours.spatial.conv.weight.data.flip(1)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("channels", "hidden"), [(16, 8), (512, 16)])
def test_coord_is_timms(randomise, channels, hidden):
    coord_attn = pytest.importorskip("timm.layers.coord_attn")
    ours = randomise(create_attention("coord", channels=channels))
    theirs = coord_attn.CoordAttn(channels, rd_channels=hidden, bias=True).double()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    x = torch.randn(2, channels, 3, 5, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs.eval()(x), rtol=1e-12, atol=1e-12)


def test_bam_by_its_formula(randomise, x):
    module = randomise(create_attention("bam", channels=16, reduction=4, dilation=2))
    state = module.state_dict()

    def norm(y: torch.Tensor, name: str) -> torch.Tensor:
        names = ("running_mean", "running_var", "weight", "bias")
        return F.relu(F.batch_norm(y, *(state[f"{name}.{each}"] for each in names)))

    def conv(y: torch.Tensor, index: int, **settings: int) -> torch.Tensor:
        name = f"spatial.{index}"
        return F.conv2d(y, state[f"{name}.weight"], state[f"{name}.bias"], **settings)

    means = torch.einsum("bchw->bc", x) / 15
    hidden = norm(means @ state["fc1.weight"].T + state["fc1.bias"], "fc_norm")
    channel = hidden @ state["fc2.weight"].T + state["fc2.bias"]
    y = norm(conv(x, 0), "spatial.1")
    y = norm(conv(y, 3, padding=2, dilation=2), "spatial.4")
    place = conv(norm(conv(y, 6, padding=2, dilation=2), "spatial.7"), 9)
    gate = torch.einsum("bc,bihw->bchw", channel, place).sigmoid()
    torch.testing.assert_close(module(x), x * (1 + gate), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("combine", ["max", "sum"])
def test_scse_by_its_formula(randomise, x, combine):
    module = randomise(create_attention("scse", channels=16, combine=combine))
    state = {name: value.numpy() for name, value in module.state_dict().items()}
    y = module(x).detach().numpy()
    for image, out in zip(x.numpy(), y, strict=True):
        hidden = np.maximum(state["fc1.weight"] @ image.mean((1, 2)) + state["fc1.bias"], 0)
        by_channel = 1 / (1 + np.exp(-(state["fc2.weight"] @ hidden + state["fc2.bias"])))
        for h in range(3):
            for w in range(5):
                logit = state["spatial.weight"].ravel() @ image[:, h, w] + state["spatial.bias"]
                gates = image[:, h, w] * by_channel, image[:, h, w] / (1 + np.exp(-logit))
                expected = np.maximum(*gates) if combine == "max" else sum(gates)
                np.testing.assert_allclose(out[:, h, w], expected, rtol=1e-12)


@pytest.mark.parametrize("kernel_size", [3, 7])
def test_triplet_by_turning_the_map_as_the_paper_does(randomise, x, kernel_size):
    module = randomise(create_attention("triplet", channels=16, kernel_size=kernel_size))

    def gated(y: torch.Tensor, branch: nn.Module) -> torch.Tensor:
        planes = torch.stack([y.max(1).values, y.mean(1)], dim=1)
        return y * torch.sigmoid(branch.norm(branch.conv(planes)))

    first = gated(x.permute(0, 2, 1, 3), module.channel_width).permute(0, 2, 1, 3)
    second = gated(x.permute(0, 3, 2, 1), module.height_channel).permute(0, 3, 2, 1)
    third = gated(x, module.height_width)
    torch.testing.assert_close(module(x), (first + second + third) / 3, rtol=1e-12, atol=1e-12)


def test_coord_by_its_formula(randomise, x):
    module = randomise(create_attention("coord", channels=16, min_hidden=3))
    assert module.conv1.out_channels == 3
    y = module(x)
    for h in range(3):
        for w in range(5):
            row, column = x[:, :, h].mean(2), x[:, :, :, w].mean(2)  # [B, C]
            gates = []
            for means, conv in ((row, module.conv_h), (column, module.conv_w)):
                f = module.bn1(module.conv1(means[:, :, None, None]))
                gates.append(conv(f * (f + 3).clamp(0, 6) / 6).sigmoid()[:, :, 0, 0])
            expected = x[:, :, h, w] * gates[0] * gates[1]
            torch.testing.assert_close(y[:, :, h, w], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("regularization", [1e-4, 0.1])
def test_simam_by_its_formula(x, regularization):
    y = create_attention("simam", channels=16, regularization=regularization)(x).numpy()
    for image, out in zip(x.numpy(), y, strict=True):
        for channel, gated in zip(image, out, strict=True):
            spread = 4 * (channel.var(ddof=1) + regularization)
            for place in np.ndindex(3, 5):
                energy = (channel[place] - channel.mean()) ** 2 / spread + 0.5
                np.testing.assert_allclose(gated[place], channel[place] / (1 + np.exp(-energy)))


def test_simam_does_not_mind_the_order_of_channels_or_places(x):
    module = create_attention("simam", channels=16)
    shuffled = x.flip(1).roll(3, 1).roll(2, 3)
    torch.testing.assert_close(module(shuffled), module(x).flip(1).roll(3, 1).roll(2, 3))


def test_simam_of_a_constant_map():
    y = create_attention("simam", channels=2)(torch.full((1, 2, 3, 3), 2.0))
    torch.testing.assert_close(y, torch.full((1, 2, 3, 3), 2 / (1 + np.exp(-0.5))))


def test_start(x):
    torch.manual_seed(0)
    cbam = create_attention("cbam", channels=16).double().eval()
    gate = (cbam.fc2(F.relu(cbam.fc1(x.mean((2, 3), keepdim=True)))),)
    gate += (cbam.fc2(F.relu(cbam.fc1(x.amax((2, 3), keepdim=True)))),)
    torch.testing.assert_close(cbam(x), x * sum(gate).sigmoid() / 2)
    assert cbam.spatial.conv.weight.std().item() == pytest.approx((2 / 49) ** 0.5, rel=0.2)
    assert cbam.spatial.norm.momentum == 0.01
    bam = create_attention("bam", channels=1024)
    assert bam.spatial[3].weight.std().item() == pytest.approx((2 / 64 / 9) ** 0.5, rel=0.05)
    assert not any(value.any() for name, value in bam.named_parameters() if name.endswith("bias"))
    coord = create_attention("coord", channels=512)
    assert coord.conv_h.weight.std().item() == pytest.approx((2 / 512) ** 0.5, rel=0.05)
    assert not coord.conv_w.bias.any()


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("cbam", {"reduction": 0}, "reduction must be at least 1, got 0"),
        ("cbam", {"kernel_size": 6}, "kernel_size 6 has no middle"),
        ("bam", {"reduction": -1}, "reduction must be at least 1, got -1"),
        ("bam", {"dilation": 0}, "dilation must be above 0, got 0"),
        ("scse", {"reduction": 0}, "reduction must be at least 1, got 0"),
        ("scse", {"combine": "summ"}, "unknown combine 'summ'; did you mean 'sum'"),
        ("triplet", {"kernel_size": 2}, "kernel_size 2 has no middle"),
        ("coord", {"reduction": 0}, "reduction must be at least 1, got 0"),
        ("coord", {"min_hidden": 0}, "min_hidden must be above 0, got 0"),
        ("simam", {"regularization": 0.0}, "regularization must be above 0, got 0.0"),
    ],
)
def test_wrong_settings(name, settings, message):
    with pytest.raises(ValueError, match=message) as caught:
        create_attention(name, channels=16, **settings)
    assert "\n" not in str(caught.value)
