"""Strip pooling and the spatial transformer, against their formulas."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from detkit.nn.attention.spatial import (
    MixedPooling,
    SpatialTransformer,
    StripPooling,
    affine_grid,
    transform,
)

SMALL = {
    "strip": lambda: StripPooling(3),
    "mixed": lambda: MixedPooling(8, pools=(3, 2)),
    "stn": lambda: SpatialTransformer(2, hidden=2),
    "stn of 2015": lambda: SpatialTransformer(2, hidden=2, align_corners=True, padding="border"),
}
CHANNELS = {"strip": 3, "mixed": 8, "stn": 2, "stn of 2015": 2}


def count(module: nn.Module) -> int:
    return sum(each.numel() for each in module.parameters())


@pytest.mark.parametrize("name", SMALL)
def test_gradients(golden_input, fill, name):
    module = fill(SMALL[name](), first=4)
    names, parameters = zip(*module.named_parameters(), strict=True)

    def call(x, *values):
        return torch.func.functional_call(module, dict(zip(names, values, strict=True)), (x,))

    x = golden_input((2, CHANNELS[name], 3, 5)).requires_grad_()
    assert torch.autograd.gradcheck(call, (x, *parameters))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", SMALL)
def test_half_precision_of_large_maps_is_finite(golden_input, fill, name, dtype):
    module = fill(SMALL[name]()).to(dtype)
    y = module((1e3 * golden_input((2, CHANNELS[name], 3, 5))).to(dtype))
    assert y.dtype == dtype and y.isfinite().all()


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("shape", [(0, 3, 5), (1, 1, 1), (2, 1, 4)])
def test_shapes_are_kept(name, shape):
    batch, height, width = shape
    x = torch.zeros(batch, CHANNELS[name], height, width)
    assert SMALL[name]().eval()(x).shape == x.shape


# -------------------------------------------------------------------------------- strip pooling


def test_published_values_of_the_gate(golden_input, fill, report):
    gate = fill(StripPooling(32)).gate(golden_input((2, 32, 8, 8)))
    published = (2113.480838, 2113.480838, 1047.842332)
    assert report(gate) == pytest.approx(published, rel=0, abs=1e-6)


def test_published_values_of_mixed_pooling(golden_input, fill, report):
    y = fill(MixedPooling(32, pools=(4, 2)))(golden_input((2, 32, 8, 8)))
    published = (1748.455908, 1748.455908, 865.256621)
    assert report(y) == pytest.approx(published, rel=0, abs=1e-6)


def batch_norm(norm: nn.BatchNorm2d, x: torch.Tensor) -> torch.Tensor:
    """Of `[C, n]` by hand."""
    scale = norm.weight / (norm.running_var + 1e-5).sqrt()
    return (x - norm.running_mean[:, None]) * scale[:, None] + norm.bias[:, None]


def strip(weight: torch.Tensor, means: torch.Tensor) -> torch.Tensor:
    """Three taps `[C, C, 3]` along `[C, n]`, zeros outside, by loops."""
    length = means.shape[1]
    y = torch.zeros_like(means)
    for i in range(length):
        for tap in range(3):
            if 0 <= i + tap - 1 < length:
                y[:, i] += weight[:, :, tap] @ means[:, i + tap - 1]
    return y


def test_strips_place_by_place(golden_input, fill):
    module = fill(StripPooling(3))
    x = golden_input((1, 3, 3, 5))
    row_means = torch.stack([x[0, :, i].sum(dim=1) / 5 for i in range(3)], dim=1)
    column_means = torch.stack([x[0, :, :, j].sum(dim=1) / 3 for j in range(5)], dim=1)
    rows = batch_norm(module.rows[1], strip(module.rows[0].weight[..., 0], row_means))
    columns = batch_norm(module.columns[1], strip(module.columns[0].weight[:, :, 0], column_means))
    expected = torch.empty_like(x)
    for i in range(3):
        for j in range(5):
            logits = module.mix.weight[:, :, 0, 0] @ (rows[:, i] + columns[:, j]).relu()
            expected[0, :, i, j] = x[0, :, i, j] * (logits + module.mix.bias).sigmoid()
    torch.testing.assert_close(module(x), expected, rtol=1e-12, atol=1e-12)


def test_mixed_pooling_of_a_map_that_is_not_square(golden_input, fill):
    module = fill(MixedPooling(8, pools=(3, 2)))
    x = golden_input((2, 8, 5, 7))

    def resized(y):
        return F.interpolate(y, size=(5, 7), mode="bilinear", align_corners=True)

    short = module.short_in(x).relu()
    grids = [
        resized(module.grids[i](F.adaptive_avg_pool2d(short, n))) for i, n in enumerate((3, 2))
    ]
    short = module.short_out((module.near(short) + grids[0] + grids[1]).relu()).relu()
    long = module.long_in(x).relu()
    columns = resized(module.columns(F.adaptive_avg_pool2d(long, (1, 7))))
    rows = resized(module.rows(F.adaptive_avg_pool2d(long, (5, 1))))
    long = module.long_out((columns + rows).relu()).relu()
    expected = (x + module.merge(torch.cat([short, long], dim=1))).relu()
    torch.testing.assert_close(module(x), expected, rtol=1e-12, atol=1e-12)


def test_parameters_of_strip_pooling():
    with torch.device("meta"):
        assert [count(StripPooling(channels)) for channels in (64, 128, 256, 512)] == [
            28_992,
            115_328,
            460_032,
            1_837_568,
        ]
        assert count(MixedPooling(1024)) == 4_397_568


# --------------------------------------------------------------------------- spatial transformer

IDENTITY = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
BOTH = pytest.mark.parametrize("align_corners", [False, True])


def theta(rows: list[list[float]], batch: int = 2) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64).expand(batch, 2, 3)


@BOTH
@pytest.mark.parametrize("shape", [(2, 3, 5, 8), (2, 3, 1, 4), (1, 3, 1, 1)])
def test_starts_as_the_identity(golden_input, shape, align_corners):
    module = SpatialTransformer(3, align_corners=align_corners).double()
    x = golden_input(shape)
    torch.testing.assert_close(module(x), x, rtol=1e-13, atol=1e-13)
    assert module.theta(module.locate(x))[0].tolist() == [1, 0, 0, 0, 1, 0]


@BOTH
def test_grid_equals_torch(align_corners):
    transforms = theta([[0.9, -0.3, 0.2], [0.1, 1.2, -0.4]])
    ours = affine_grid(transforms, 4, 7, align_corners=align_corners)
    expected = F.affine_grid(transforms, [2, 1, 4, 7], align_corners=align_corners)
    torch.testing.assert_close(ours, expected, rtol=1e-13, atol=1e-13)


@BOTH
def test_a_shift_by_whole_places(golden_input, align_corners):
    x = golden_input((2, 3, 5, 8))
    # x and y from -1 to 1 span n places, or n - 1 steps between the outermost centres
    step_x, step_y = (2 / 7, 2 / 4) if align_corners else (2 / 8, 2 / 5)
    shift = theta([[1, 0, 3 * step_x], [0, 1, -2 * step_y]])
    y = transform(x, shift, align_corners=align_corners)
    expected = torch.zeros_like(x)
    expected[:, :, 2:, :5] = x[:, :, :3, 3:]
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)


@BOTH
def test_a_quarter_turn(golden_input, align_corners):
    x = golden_input((2, 3, 6, 6))
    # output (x, y) takes input (-y, x): what was at the right goes to the top
    y = transform(x, theta([[0, -1, 0], [1, 0, 0]]), align_corners=align_corners)
    torch.testing.assert_close(y, torch.rot90(x, 1, dims=(2, 3)), rtol=1e-12, atol=1e-12)


@BOTH
def test_sampling_place_by_place(golden_input, align_corners):
    x = golden_input((1, 2, 4, 5))
    rows = [[0.8, 0.3, 0.1], [-0.2, 0.7, 0.3]]
    y = transform(x, theta(rows, batch=1), align_corners=align_corners)

    def centre(i, n):
        return -1 + 2 * i / (n - 1) if align_corners else -1 + (2 * i + 1) / n

    def place(u, n):
        return (u + 1) / 2 * (n - 1) if align_corners else ((u + 1) * n - 1) / 2

    expected = torch.zeros_like(x)
    for i in range(4):
        for j in range(5):
            u, v = centre(j, 5), centre(i, 4)
            column = place(rows[0][0] * u + rows[0][1] * v + rows[0][2], 5)
            row = place(rows[1][0] * u + rows[1][1] * v + rows[1][2], 4)
            for m in range(4):  # equation 5: max(0, 1 - distance) along both axes
                for n in range(5):
                    weight = max(0.0, 1 - abs(column - n)) * max(0.0, 1 - abs(row - m))
                    expected[0, :, i, j] += weight * x[0, :, m, n]
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)


def test_border_padding_repeats_the_border(golden_input):
    x = golden_input((1, 2, 3, 4))
    away = theta([[1, 0, 5], [0, 1, 0]], batch=1)
    assert not transform(x, away).any()
    y = transform(x, away, padding="border")
    torch.testing.assert_close(y, x[..., -1:].expand_as(x))


@BOTH
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
def test_settings_reach_the_sampler(golden_input, align_corners, padding):
    module = SpatialTransformer(2, align_corners=align_corners, padding=padding).double()
    with torch.no_grad():
        module.theta.bias[2] = 0.7
    x = golden_input((1, 2, 3, 4))
    expected = F.grid_sample(
        x,
        F.affine_grid(
            theta([[1, 0, 0.7], [0, 1, 0]], 1), [1, 2, 3, 4], align_corners=align_corners
        ),
        padding_mode=padding,
        align_corners=align_corners,
    )
    torch.testing.assert_close(module(x), expected)


def test_theta_and_its_network_learn(golden_input):
    module = SpatialTransformer(3).double()
    x = golden_input((2, 3, 9, 8))
    (module(x) * golden_input((2, 3, 9, 8)).flip(-1)).sum().backward()
    assert module.theta.weight.grad.abs().max() > 0
    assert (module.theta.bias.grad.abs() > 0).all()
    # zero weights let no gradient through to the network before the first step
    with torch.no_grad():
        module.theta.weight.normal_(std=0.01)
    (module(x) * golden_input((2, 3, 9, 8)).flip(-1)).sum().backward()
    assert all(each.grad.abs().max() > 0 for each in module.locate.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_does_not_blur(golden_input, dtype):
    x = golden_input((1, 2, 3, 301)).to(dtype)
    y = transform(x, theta(IDENTITY, batch=1).to(dtype))
    torch.testing.assert_close(y, x, rtol=0, atol=0.01)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = transform(x, theta(IDENTITY, batch=1).to(dtype))
    torch.testing.assert_close(y, x, rtol=0, atol=0.01)


def test_localisation_sees_where_things_are():
    module = SpatialTransformer(1, hidden=4).double()
    first, second = torch.zeros(2, 1, 1, 32, 32, dtype=torch.float64)
    # a multiple of the strides apart and away from the border: no other difference to be seen
    first[..., 6:11, 6:11], second[..., 6:11, 18:23] = 1, 1
    assert (module.locate(first) - module.locate(second)).abs().max() > 1e-6


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: SpatialTransformer(8, hidden=0), "hidden must be at least 1, got 0"),
        (lambda: SpatialTransformer(8, padding="boarder"), "did you mean 'border'"),
        (lambda: MixedPooling(3), "C must be at least 4"),
        (lambda: MixedPooling(8, pools=(4,)), "pools must be two sides"),
        (lambda: MixedPooling(8, pools=(4, 0)), "pools must be two sides"),
    ],
)
def test_mistakes_are_named(build, message):
    with pytest.raises(ValueError, match=message) as error:
        build()
    assert "\n" not in str(error.value)
