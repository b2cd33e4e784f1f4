"""Channel attention beside the authors' values, other libraries and the formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from detkit.nn.attention import create_attention

# Output channels of the blocks of a ResNet-50, and the side of each stage's maps at 224 pixels
STAGES = ((256, 3, 56), (512, 4, 28), (1024, 6, 14), (2048, 3, 7))
MAP = (2, 32, 8, 8)


def count(module: nn.Module) -> int:
    return sum(each.numel() for each in module.parameters())


def everywhere(name: str, **settings: object) -> int:
    """Parameters of one module in every block of a ResNet-50."""
    with torch.device("meta"):
        return sum(
            blocks * count(create_attention(name, channels=channels, **settings))
            for channels, blocks, _ in STAGES
        )


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


def arrays(module: nn.Module) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in module.state_dict().items()}


def normalised(x: np.ndarray, state: dict[str, np.ndarray], prefix: str) -> np.ndarray:
    """Batch norm in evaluation of `[..., C]`."""
    scale = state[f"{prefix}.weight"] / np.sqrt(state[f"{prefix}.running_var"] + 1e-5)
    return (x - state[f"{prefix}.running_mean"]) * scale + state[f"{prefix}.bias"]


@pytest.fixture
def x() -> torch.Tensor:
    """Two maps of 16 channels, 3x5."""
    return torch.randn(2, 16, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


# From the authors' released code (gaussian_gct: from the formula)
@pytest.mark.parametrize(
    ("name", "settings", "shape", "expected"),
    [
        ("se", {}, MAP, (4.375451, 1377.791564, 2.052132)),
        ("eca", {"kernel_size": 3}, MAP, (181.729666, 1403.254094, 90.508004)),
        ("fca", {}, (2, 64, 7, 7), (0.917106, 2122.377853, 0.574819)),
        ("fca", {}, (2, 64, 9, 9), (45.490335, 3496.362347, 22.500802)),
        ("srm", {}, MAP, (-9.468440, 1401.460636, -4.615034)),
        ("gct", {}, MAP, (-135.635652, 3173.303528, -67.876684)),
        ("gaussian_gct", {}, MAP, (106.904219, 2449.002352, 56.121073)),
        ("gsop", {"reduced": 16}, (2, 64, 8, 8), (17.501039, 2762.514323, 8.945047)),
        ("gsop", {"reduced": 16, "stride": 2}, (2, 64, 8, 8), (17.500460, 2762.518073, 8.944764)),
    ],
)
def test_published_values(golden_input, fill, report, name, settings, shape, expected):
    first = 2 if name == "fca" else 1  # there the cosines are the first tensor of the state
    module = fill(create_attention(name, channels=shape[1], **settings), first=first)
    assert report(module(golden_input(shape))) == pytest.approx(expected, rel=0, abs=1e-6)


def test_parameters_in_a_resnet50():
    assert everywhere("se") == 2_530_992
    assert [25_557_032 + everywhere("se", reduction=r) for r in (2, 4, 8, 32)] == [
        45_699_240,
        35_635_688,
        30_603_912,
        26_830_080,
    ]
    assert everywhere("fca") == 2_514_944
    assert everywhere("eca") == 86
    assert everywhere("srm") == 60_416
    assert everywhere("gaussian_gct") == 0
    assert everywhere("gaussian_gct", c=None) == 16


def test_parameters_of_the_released_eca():
    counts = [
        blocks * count(create_attention("eca", channels=channels, kernel_size=k))
        for (channels, blocks, _), k in zip(STAGES, (3, 5, 5, 7), strict=True)
    ]
    assert sum(counts) == 80


def test_parameters_of_gct_before_every_convolution_of_a_resnet50():
    inputs, before = [3], 64
    for out, blocks, _ in STAGES:
        inputs.append(before)  # the shortcut's
        for _ in range(blocks):
            inputs += [before, out // 4, out // 4]
            before = out
    assert len(inputs) == 53
    assert sum(count(create_attention("gct", channels=c)) for c in inputs) == 67_593


def test_parameters_of_gsop_at_the_end_of_every_stage():
    with torch.device("meta"):
        by_mode = {
            mode: sum(count(create_attention("gsop", channels=c, mode=mode)) for c, _, _ in STAGES)
            for mode in ("channel", "position")
        }
    assert 25_557_032 + by_mode["channel"] == 28_285_224
    assert 25_557_032 + by_mode["position"] == 26_182_952


def test_elements_of_fcanets_filters():
    modules = [(create_attention("fca", channels=c, size=s), s) for c, _, s in STAGES]
    sizes = [len(m.fc2.weight) // 16 * m.filters(side, side).numel() for m, side in modules]
    assert sum(n * blocks for n, (_, blocks, _) in zip(sizes, STAGES, strict=True)) == 5_519_360


def test_se_is_torchvisions(randomise, x):
    ours = randomise(create_attention("se", channels=16, reduction=4))
    theirs = torchvision.ops.SqueezeExcitation(16, 4).double()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-12, atol=1e-12)


def test_se_is_timms(randomise, x):
    timm_layers = pytest.importorskip("timm.layers")
    ours = randomise(create_attention("se", channels=16, reduction=4))
    theirs = timm_layers.SEModule(16, rd_channels=4).double()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("channels", [16, 64, 100, 256, 512, 1024, 2048])
def test_eca_is_timms(randomise, channels):
    timm_layers = pytest.importorskip("timm.layers")
    ours, theirs = create_attention("eca", channels=channels), timm_layers.EcaModule(channels)
    randomise(ours)
    theirs.double().load_state_dict(ours.state_dict(), strict=True)
    x = torch.randn(2, channels, 2, 3, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("channels", "kernel_size"),
    [(1, 1), (2, 1), (6, 1), (16, 3), (64, 3), (128, 5), (512, 5), (1024, 5), (2048, 7)],
)
def test_rule_of_eca(channels, kernel_size):
    module = create_attention("eca", channels=channels)
    assert module.conv.weight.shape == (1, 1, kernel_size)


def test_se_by_its_formula(randomise, x):
    module = randomise(create_attention("se", channels=16, reduction=4))
    state = {name: value.squeeze() for name, value in arrays(module).items()}
    for image, y in zip(x.numpy(), module(x).detach().numpy(), strict=True):
        means = np.array([channel.sum() / 15 for channel in image])
        hidden = relu(state["fc1.weight"] @ means + state["fc1.bias"])
        gate = sigmoid(state["fc2.weight"] @ hidden + state["fc2.bias"])
        for c in range(16):
            np.testing.assert_allclose(y[c], image[c] * gate[c], rtol=1e-12)


def test_eca_by_its_formula(randomise, x):
    module = randomise(create_attention("eca", channels=16, kernel_size=5))
    weight = arrays(module)["conv.weight"].ravel()
    for image, y in zip(x.numpy(), module(x).detach().numpy(), strict=True):
        for c in range(16):
            near = [(k, c + k - 2) for k in range(5) if 0 <= c + k - 2 < 16]
            gate = sigmoid(sum(weight[k] * image[other].mean() for k, other in near))
            np.testing.assert_allclose(y[c], image[c] * gate, rtol=1e-12)


@pytest.mark.parametrize("side", [(3, 5), (7, 7), (14, 14), (16, 9), (28, 17)])
@pytest.mark.parametrize("size", [7, 14])
def test_fca_is_a_cosine_transform_of_the_pooled_map(randomise, size, side):
    fft = pytest.importorskip("scipy.fft")
    rows = (0, 0, 6, 0, 0, 1, 1, 4, 5, 1, 3, 0, 0, 0, 3, 2)
    columns = (0, 1, 0, 5, 2, 0, 2, 0, 0, 6, 0, 4, 6, 3, 5, 2)
    module = randomise(create_attention("fca", channels=32, size=size))
    x = torch.randn(2, 32, *side, dtype=torch.float64)
    pooled = F.adaptive_avg_pool2d(x, size).numpy()
    transform = fft.dctn(pooled, axes=(2, 3), norm="ortho")
    unit = size // 7
    chosen = [transform[:, c, rows[c // 2] * unit, columns[c // 2] * unit] for c in range(32)]
    state = arrays(module)
    hidden = relu(np.stack(chosen, axis=1) @ state["fc1.weight"].T)
    gate = sigmoid(hidden @ state["fc2.weight"].T)[:, :, None, None]
    # the module's cosines are rounded to float32
    np.testing.assert_allclose(module(x).detach().numpy(), x.numpy() * gate, rtol=1e-5)


def test_fca_counts_a_side_below_the_frequencies_as_7():
    torch.testing.assert_close(
        create_attention("fca", channels=16, size=3).rows,
        create_attention("fca", channels=16).rows,
    )


def test_first_group_of_fca_is_the_mean_times_the_root_of_the_area(x):
    filters = create_attention("fca", channels=16, size=14).filters(14, 14)
    torch.testing.assert_close(filters[0], torch.full((14, 14), 1 / 14.0))
    # orthonormal, all sixteen
    torch.testing.assert_close(filters.flatten(1) @ filters.flatten(1).T, torch.eye(16))


def test_srm_by_its_formula(randomise, x):
    module = randomise(create_attention("srm", channels=16, eps=0.1))
    state = arrays(module)
    style = np.stack([x.numpy().mean((2, 3)), np.sqrt(x.numpy().var((2, 3), ddof=1) + 0.1)], axis=2)
    gate = sigmoid(normalised((style * state["weight"]).sum(2), state, "norm"))
    expected = x.numpy() * gate[:, :, None, None]
    np.testing.assert_allclose(module(x).detach().numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("eps", [1e-5, 0.5])
@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_gct_by_its_formula(randomise, x, norm, eps):
    module = randomise(create_attention("gct", channels=16, norm=norm, eps=eps))
    alpha, gamma, beta = (value.ravel() for value in arrays(module).values())
    for image, y in zip(x.numpy(), module(x).detach().numpy(), strict=True):
        if norm == "l2":
            e = alpha * [np.sqrt((channel**2).sum() + eps) for channel in image]
            n = gamma / np.sqrt((e**2).mean() + eps)
        else:
            e = alpha * [abs(channel).sum() for channel in image]
            n = gamma / (abs(e).mean() + eps)
        expected = image * (1 + np.tanh(e * n + beta))[:, None, None]
        np.testing.assert_allclose(y, expected, rtol=1e-12)


@pytest.mark.parametrize("c", [2.0, 0.7, None])
def test_gaussian_gct_by_its_formula(randomise, x, c):
    module = randomise(create_attention("gaussian_gct", channels=16, c=c, eps=1e-2))
    width = c if c is not None else 3 * sigmoid(module.theta.detach().numpy()) + 1
    for image, y in zip(x.numpy(), module(x).detach().numpy(), strict=True):
        means = image.mean((1, 2))
        z = (means - means.mean()) / (means.std() + 1e-2)
        expected = image * np.exp(-(z**2) / 2 / width**2)[:, None, None]
        np.testing.assert_allclose(y, expected, rtol=1e-12)


def test_learnt_width_starts_between_the_limits():
    x = torch.randn(2, 8, 3, 3)
    learnt, fixed = (create_attention("gaussian_gct", channels=8, c=c) for c in (None, 2.5))
    torch.testing.assert_close(learnt(x), fixed(x))


def _rows(state: dict[str, np.ndarray], vectors: np.ndarray) -> np.ndarray:
    """Covariances of `[B, N, M]`, normalised, and each row's four weighted sums, `[B, 4N]`."""
    covariances = np.stack([np.cov(each, bias=True) for each in vectors])  # [B, N, N]
    # the norm's channels are the rows
    rows = normalised(covariances.transpose(0, 2, 1), state, "row_norm").transpose(0, 2, 1)
    sums = np.repeat(rows, 4, axis=1) * state["row_conv.weight"][:, 0, :, 0]
    return sums.sum(2) + state["row_conv.bias"]


def _reduced(state: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    weight = state["reduce.weight"][:, :, 0, 0]
    y = np.einsum("bchw,dc->bhwd", relu(x), weight) + state["reduce.bias"]
    return normalised(y, state, "reduce_norm").transpose(0, 3, 1, 2)


@pytest.mark.parametrize("stride", [1, 2])
def test_gsop_of_channels_by_its_formula(randomise, x, stride):
    module = randomise(create_attention("gsop", channels=16, reduced=6, stride=stride))
    state = arrays(module)
    z = relu(_reduced(state, x.numpy()))[:, :, ::stride, ::stride]
    rows = _rows(state, z.reshape(2, 6, -1))
    gate = sigmoid(rows @ state["expand.weight"][:, :, 0, 0].T + state["expand.bias"])
    expected = x.numpy() * gate[:, :, None, None]
    np.testing.assert_allclose(module(x).detach().numpy(), expected, rtol=1e-9)


@pytest.mark.parametrize("side", [(3, 5), (8, 8), (17, 6)])
def test_gsop_of_positions_by_its_formula(randomise, side):
    module = randomise(create_attention("gsop", channels=16, reduced=6, mode="position"))
    state = arrays(module)
    x = torch.randn(2, 16, *side, dtype=torch.float64)
    z = F.adaptive_avg_pool2d(torch.from_numpy(_reduced(state, x.numpy())), 8).numpy()
    rows = relu(_rows(state, z.reshape(2, 6, 64).transpose(0, 2, 1)))
    gate = sigmoid(rows @ state["expand.weight"][:, :, 0, 0].T + state["expand.bias"])
    gate = F.adaptive_avg_pool2d(torch.from_numpy(gate).view(2, 1, 8, 8), side).numpy()
    expected = relu(x.numpy() * gate)
    np.testing.assert_allclose(module(x).detach().numpy(), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["se", "eca", "srm", "gct", "gaussian_gct", "gsop"])
def test_gate_does_not_see_where(randomise, x, name):
    module = randomise(create_attention(name, channels=16))
    order = torch.randperm(15, generator=torch.Generator().manual_seed(0))
    shuffled = x.flatten(2)[:, :, order].view_as(x)
    expected = module(x).flatten(2)[:, :, order].view_as(x)
    torch.testing.assert_close(module(shuffled), expected, rtol=1e-10, atol=1e-12)


def test_gate_of_fca_sees_where(randomise, x):
    module = randomise(create_attention("fca", channels=16))
    assert not torch.allclose(module(x.flip(3)), module(x).flip(3), rtol=1e-3)
    assert not torch.allclose(module(x.transpose(2, 3)), module(x).transpose(2, 3), rtol=1e-3)


def test_order_of_channels(randomise, x):
    order = torch.arange(16).roll(3).flip(0).view(4, 4).T.flatten()
    free = create_attention("gaussian_gct", channels=16)
    torch.testing.assert_close(free(x[:, order]), free(x)[:, order])
    tied = randomise(create_attention("eca", channels=16))
    assert not torch.allclose(tied(x[:, order]), tied(x)[:, order], rtol=1e-3)


def test_start(x):
    torch.testing.assert_close(create_attention("gct", channels=16).double()(x), x)
    torch.testing.assert_close(create_attention("srm", channels=16).double().eval()(x), x / 2)
    torch.manual_seed(0)
    gsop = create_attention("gsop", channels=512)
    assert gsop.reduce.weight.std().item() == pytest.approx((2 / 128) ** 0.5, rel=0.02)
    assert not any(gsop.get_parameter(f"{n}.bias").any() for n in ("reduce", "row_conv", "expand"))


@pytest.mark.parametrize(
    ("name", "channels", "settings", "message"),
    [
        ("se", 16, {"reduction": 0}, "reduction must be at least 1, got 0"),
        ("eca", 16, {"kernel_size": 4}, "kernel_size 4 has no middle"),
        ("eca", 16, {"kernel_size": -1}, "kernel_size -1 has no middle"),
        ("fca", 24, {}, "16 equal groups, got 24: give a multiple of 16"),
        ("fca", 16, {"size": 0}, "size must be at least 1, got 0"),
        ("fca", 16, {"reduction": 0}, "reduction must be at least 1, got 0"),
        ("srm", 16, {"eps": 0.0}, "eps must be above 0, got 0.0"),
        ("gct", 16, {"norm": "l3"}, "unknown norm 'l3'; .*allowed: l1, l2"),
        ("gct", 16, {"eps": -1.0}, "eps must be above 0, got -1.0"),
        ("gaussian_gct", 16, {"c": 0.0}, "c must be above 0, got 0.0"),
        ("gsop", 16, {"mode": "positions"}, "unknown mode 'positions'; did you mean 'position'"),
        ("gsop", 16, {"reduced": 0}, "reduced must be above 0, got 0"),
        ("gsop", 16, {"stride": 0}, "stride must be above 0, got 0"),
    ],
)
def test_wrong_settings(name, channels, settings, message):
    with pytest.raises(ValueError, match=message) as caught:
        create_attention(name, channels=channels, **settings)
    assert "\n" not in str(caught.value)
