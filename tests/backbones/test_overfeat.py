"""OverFeat: the published sizes, and the offsets of the last pool."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detkit.backbones import create_backbone, create_classifier, overfeat
from detkit.backbones.plain import WindowHead, WindowLinear, fully_connected

BOTH = ["overfeat_fast", "overfeat_accurate"]


def images(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


# --- the published networks ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "side", "parameters", "macs"),
    [
        ("overfeat_fast", 231, 145_920_872, 2_801_403_904),
        ("overfeat_accurate", 221, 144_656_488, 5_355_446_784),
    ],
)
def test_size(name, side, parameters, macs, count_macs):
    with torch.device("meta"):
        net = create_classifier(name)
    assert sum(each.numel() for each in net.parameters()) == parameters
    assert count_macs(net, side) == macs


@pytest.mark.parametrize(
    ("name", "sides"),
    [
        ("overfeat_fast", (231, 56, 28, 24, 12, 12, 12, 12, 6)),
        ("overfeat_accurate", (221, 108, 36, 30, 15, 15, 15, 15, 15, 5)),
    ],
)
def test_sides_of_the_maps(name, sides):
    """The rows "spatial input size" of tables 1 and 3."""
    with torch.device("meta"):
        net = create_backbone(name)
        x = torch.empty(1, 3, sides[0], sides[0])
        found = [sides[0]]
        for layer in net.features:
            x = layer(x)
            if not isinstance(layer, nn.ReLU):
                found.append(x.shape[2])
    assert tuple(found) == sides


@pytest.mark.parametrize(
    ("name", "fields", "strides", "fc"),
    [
        (
            "overfeat_fast",
            (11, 15, 47, 55, 87, 119, 151, 167),
            (4, 8, 8, 16, 16, 16, 16, 32),
            (1024, 6, 327),
        ),
        (
            "overfeat_accurate",
            (7, 11, 47, 53, 77, 101, 125, 149, 173),
            (2, 6, 6, 12, 12, 12, 12, 12, 36),
            (1024, 5, 317),
        ),
    ],
)
def test_what_the_cells_of_each_layer_see(name, fields, strides, fc, along_the_chain):
    channels, window, field = fc
    with torch.device("meta"):
        net = create_backbone(name)
        seen = along_the_chain(net)
        net.features.append(nn.Conv2d(channels, 1, window))
        assert along_the_chain(net)[-1][:2] == (field, strides[-1])
    assert [row[:2] for row in seen] == list(zip(fields, strides, strict=True))


@pytest.mark.parametrize("name", BOTH)
def test_receptive_field_is_what_the_gradient_reaches(name, reached):
    net = create_backbone(name, out_indices=range(4))
    described = [(info.receptive_field, info.center) for info in net.feature_info]
    assert list(reached(net, 281, width=77)) == described


def test_stages():
    with torch.device("meta"):
        fast, accurate = (create_backbone(name).feature_info for name in BOTH)
    assert [(i.name, i.channels, i.stride) for i in fast] == [
        ("conv1", 96, 4), ("conv2", 256, 8), ("conv5", 1024, 16), ("pool5", 1024, 32)
    ]  # fmt: skip
    assert [(i.name, i.channels, i.stride) for i in accurate] == [
        ("conv1", 96, 2), ("conv2", 256, 6), ("conv6", 1024, 12), ("pool6", 1024, 36)
    ]  # fmt: skip


def test_the_classifiers_layers():
    """Table 1 and section 3.1: dropout behind the sixth and seventh layer."""
    with torch.device("meta"):
        fast, accurate = (create_classifier(name).head.classifier for name in BOTH)
    kinds = [WindowLinear, nn.ReLU, nn.Dropout, nn.Linear, nn.ReLU, nn.Dropout, nn.Linear]
    assert [type(layer) for layer in fast] == [type(layer) for layer in accurate] == kinds
    linear = [tuple(fast[index].weight.shape) for index in (0, 3, 6)]
    assert linear == [(3072, 1024 * 36), (4096, 3072), (1000, 4096)]
    linear = [tuple(accurate[index].weight.shape) for index in (0, 3, 6)]
    assert linear == [(4096, 1024 * 25), (4096, 4096), (1000, 4096)]


def test_starting_weights_are_the_papers(monkeypatch):
    """Section 3.1: deviation 0.01; a smaller layer stands in for the head."""
    torch.manual_seed(0)
    net = create_backbone("overfeat_fast", out_indices=(1,))
    linear = nn.Sequential(nn.Linear(80, 70))
    monkeypatch.setattr(overfeat, "window_head", lambda *_, **__: linear)
    for layer in (*net.features[::3], net.head(70)[0]):
        assert layer.weight.detach().std() == pytest.approx(0.01, rel=0.05)
        assert not layer.bias.any()


# --- the offsets of the last pool ----------------------------------------------------------


def pooled_at_each_offset(pool: nn.MaxPool2d, x: Tensor) -> dict[tuple[int, int], Tensor]:
    """Section 3.3 by the letter: the pool on the map without its first rows and columns."""
    step = pool.kernel_size
    return {
        (dy, dx): F.max_pool2d(x[..., dy:, dx:], step, stride=step)
        for dy in range(step)
        for dx in range(step)
    }


def interleave(parts: dict[tuple[int, int], Tensor], step: int) -> Tensor:
    """The rows and columns of the parts in turn."""
    height, width = (max(each.shape[dim] for each in parts.values()) * step for dim in (2, 3))
    whole = parts[0, 0].new_full((*parts[0, 0].shape[:2], height, width), torch.nan)
    for (dy, dx), part in parts.items():
        whole[..., dy::step, dx::step][..., : part.shape[2], : part.shape[3]] = part
    return whole


@pytest.mark.parametrize(("name", "step"), [("overfeat_fast", 2), ("overfeat_accurate", 3)])
@pytest.mark.parametrize("shape", [(17, 17), (20, 23)])
def test_a_dense_map_holds_the_pools_at_all_offsets(name, step, shape):
    with torch.device("meta"):
        plain, dense = create_backbone(name), create_backbone(name, dense=True)
    z = images(2, 4, *shape)
    pool = plain.features[-1]
    assert (pool.kernel_size, pool.stride) == (step, step)
    parts = pooled_at_each_offset(pool, z)
    found = dense.features[-1](z)
    whole = interleave(parts, step)[..., : found.shape[2], : found.shape[3]]
    assert torch.equal(found, whole)
    assert torch.equal(found[..., ::step, ::step], pool(z))  # the offset (0, 0)


@pytest.mark.parametrize(("name", "window"), [("overfeat_fast", 6), ("overfeat_accurate", 5)])
def test_the_dense_classifier_is_the_classifier_at_each_offset(name, window, difference):
    with torch.device("meta"):
        plain, dense = (create_classifier(name, dense=each) for each in (False, True))
    step = dense.head.classifier[0].dilation
    assert step == plain.body.features[-1].stride and plain.head.classifier[0].dilation == 1

    def head(dilation: int) -> WindowHead:
        torch.manual_seed(0)
        first = WindowLinear(4, window, 5, dilation)
        layers = fully_connected(first, nn.Linear(5, 6), nn.Linear(6, 7))
        return WindowHead(name, layers, 1).double().eval().requires_grad_(False)

    z = images(1, 4, 20, 23)
    parts = pooled_at_each_offset(plain.body.features[-1], z)
    expected = interleave({offset: head(1).places([part]) for offset, part in parts.items()}, step)
    found = head(step).places([dense.body.features[-1](z)])
    assert difference(found, expected[..., : found.shape[2], : found.shape[3]]) < 1e-12
    assert found.isfinite().all()


@pytest.mark.parametrize(
    ("image", "last_convolution", "places"),
    [
        ((245, 245), (17, 17), (1, 1)),
        ((281, 317), (20, 23), (2, 3)),
        ((317, 389), (23, 29), (3, 5)),
        ((389, 461), (29, 35), (5, 7)),
        ((425, 497), (32, 38), (6, 8)),  # table 5 prints 35 and 7, which 497 pixels do not give
        ((461, 569), (35, 44), (7, 10)),
    ],
)
def test_the_six_scales(image, last_convolution, places):
    """Table 5: sizes before the last pool and of the output, the latter at each of 3x3 offsets."""
    with torch.device("meta"):
        net = create_classifier("overfeat_accurate", dense=True)
        assert [info.stride for info in net.body.feature_info] == [12]
        net.body.out_indices = (2, 3)
        maps = net.body(torch.empty(1, 3, *image))
        assert maps[0].shape[2:] == last_convolution
        assert net.head.places(maps).shape[2:] == (3 * places[0], 3 * places[1])
        assert net(torch.empty(1, 3, *image)).shape == (1, 1000)


@pytest.mark.parametrize(
    ("name", "side", "stride"), [("overfeat_fast", 231, 32), ("overfeat_accurate", 221, 36)]
)
def test_places_are_windows_of_the_image(name, side, stride):
    with torch.device("meta"):
        net = create_classifier(name, num_classes=3)
        assert net.head.least_side == side
        for height, rows in ((side, 1), (side + stride - 1, 1), (side + stride, 2)):
            maps = net.body(torch.empty(1, 3, height, side))
            assert net.head.places(maps).shape == (1, 3, rows, 1)
        with pytest.raises(ValueError, match=f"{name} needs images of at least {side}x{side} pix"):
            net(torch.empty(1, 3, 300, side - 1))


# --- settings and mistakes -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "side", "least"), [("overfeat_fast", 71, "pool5"), ("overfeat_accurate", 77, "pool6")]
)
def test_least_side(name, side, least):
    with torch.device("meta"):
        net = create_backbone(name)
        assert net.stage_names[-1] == least
        assert net(torch.empty(1, 3, side, side))[-1].shape[2:] == (1, 1)
        with pytest.raises(ValueError, match=f"at least {side}x{side} pixels"):
            net(torch.empty(1, 3, side - 1, side))


def test_without_its_last_pool():
    with torch.device("meta"):
        net = create_backbone("overfeat_fast", last_pool=False)
        assert [info.name for info in net.feature_info] == ["conv1", "conv2", "conv5"]
        with pytest.raises(ValueError, match="overfeat_fast reads its last pool"):
            create_classifier("overfeat_fast", last_pool=False)
        with pytest.raises(ValueError, match="overfeat_fast has no setting 'output_stride'"):
            create_backbone("overfeat_fast", output_stride=16)


def test_attention_and_norm_stand_behind_each_convolution():
    with torch.device("meta"):
        net = create_backbone(
            "overfeat_accurate", norm="group", attention="se", attention_at="after_block"
        )
        assert [type(layer) for layer in net.features[:3]] == [nn.Conv2d, nn.GroupNorm, nn.ReLU]
        assert list(net.after_block) == ["2", "6", "10", "13", "16", "19"]
        assert net(torch.empty(1, 3, 101, 77))[-1].shape == (1, 1024, 1, 1)
