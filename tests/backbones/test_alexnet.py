"""AlexNet: torchvision's equal to it, the published one to the paper."""

from __future__ import annotations

import hashlib
import io

import pytest
import torch
import torchvision
from torch import Tensor, nn

from detkit.backbones import FeatureInfo, alexnet, create_backbone, create_classifier, weights
from detkit.backbones.plain import WindowHead, WindowLinear, fully_connected

BOTH = ["alexnet", "alexnet_original"]


def images(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.fixture(scope="module")
def theirs(randomise, unfilled):
    return randomise(unfilled(torchvision.models.alexnet))


# --- equal to torchvision ------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 3, 127, 190), (1, 3, 224, 224)])
def test_every_stage_and_the_logits_equal_torchvisions(theirs, shape, unfilled, difference):
    ours = unfilled(lambda: create_classifier("alexnet"))
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict(), strict=True, assign=True)
    ours.body.out_indices = (0, 1, 2, 3)
    x = images(*shape)
    with torch.no_grad():
        logits = theirs(x)
        assert 0.1 < logits.std() < 100, "the logits are too large or too small to compare"
        assert difference(ours(x), logits) < 1e-9
        maps = ours.body(x)
        for ours_map, layers in zip(maps, (2, 5, 12, 13), strict=True):
            assert difference(ours_map, theirs.features[:layers](x)) < 1e-9


def test_our_state_dict_loads_in_torchvision(theirs, unfilled):
    ours = unfilled(lambda: create_classifier("alexnet"))
    ours.load_state_dict(theirs.state_dict(), strict=True, assign=True)
    twin = unfilled(torchvision.models.alexnet)
    twin.load_state_dict(ours.state_dict(), strict=True, assign=True)
    x = images(1, 3, 96, 96)
    with torch.no_grad():
        assert torch.equal(twin(x), theirs(x))


def test_a_training_step_equals_torchvisions(theirs, unfilled, difference):
    """Dropout draws in the same order as well."""
    ours = unfilled(lambda: create_classifier("alexnet"))
    ours.load_state_dict({k: v.clone() for k, v in theirs.state_dict().items()}, assign=True)
    x, gradients = images(2, 3, 64, 64), []
    for net in (ours, theirs):
        torch.manual_seed(0)
        net.train()
        loss = net(x).square().sum()
        first = next(each for each in net.parameters() if each.ndim == 4)
        gradients.append(torch.autograd.grad(loss, first)[0])
        net.eval()
    assert difference(*gradients) < 1e-9


def another_padding(net: nn.Module) -> None:
    net.features[3].padding = (1, 1)


def another_pool(net: nn.Module) -> None:
    net.features[5].kernel_size = 2


def another_response(net: nn.Module) -> None:
    net.features[2].alpha = 1e-4


@pytest.mark.parametrize(
    ("name", "mutate"),
    [
        ("alexnet", another_padding),
        ("alexnet", another_pool),
        ("alexnet_original", another_response),
    ],
)
def test_the_comparison_sees_a_small_change(name, mutate, randomise, unfilled, difference):
    net = randomise(unfilled(lambda: create_backbone(name, out_indices=(2,))))
    x = images(1, 3, 131, 99)
    with torch.no_grad():
        (before,) = net(x)
        mutate(net)
        (after,) = net(x)
    assert after.shape != before.shape or difference(after, before) > 1e-7


@pytest.mark.parametrize(
    ("name", "side", "parameters", "macs"),
    [
        ("alexnet", 224, 61_100_840, 714_188_480),
        ("alexnet_original", 227, 60_965_224, 724_406_816),
    ],
)
def test_size(name, side, parameters, macs, count_macs):
    with torch.device("meta"):
        net = create_classifier(name)
    assert sum(each.numel() for each in net.parameters()) == parameters
    assert len(net.state_dict()) == 16
    assert count_macs(net, side) == macs


# --- the published network -----------------------------------------------------------------


def test_layers_are_the_papers():
    """Sections 3.3 to 3.5: response norm behind the ReLU and before the pool; two groups."""
    with torch.device("meta"):
        net = create_classifier("alexnet_original")
    kinds = "".join(type(layer).__name__[0] for layer in net.body.features)
    assert kinds == "CRLMCRLMCRCRCRM"  # convolution, ReLU, local response norm, max-pool
    convs = [layer for layer in net.body.features if isinstance(layer, nn.Conv2d)]
    assert [conv.groups for conv in convs] == [1, 2, 1, 2, 2]
    shapes = [(96, 3, 11), (256, 48, 5), (384, 256, 3), (384, 192, 3), (256, 192, 3)]
    assert [tuple(conv.weight.shape[:3]) for conv in convs] == shapes
    sizes = [each.numel() for each in net.parameters()]
    per_layer = [weight + bias for weight, bias in zip(sizes[::2], sizes[1::2], strict=True)]
    assert per_layer == [
        34_944, 307_456, 885_120, 663_936, 442_624, 37_752_832, 16_781_312, 4_097_000
    ]  # fmt: skip


def test_response_norm_is_the_formula_of_section_3_3(difference):
    with torch.device("meta"):
        layer = create_backbone("alexnet_original").features[2]
    a = 30 * images(1, 96, 2, 3)
    expected = torch.empty_like(a)
    for i in range(96):
        neighbours = a[:, max(0, i - 2) : min(95, i + 2) + 1]
        expected[:, i] = a[:, i] / (2 + 1e-4 * neighbours.square().sum(dim=1)) ** 0.75
    assert difference(layer(a), expected) < 1e-12


def test_starting_weights_are_the_papers():
    """Section 5: deviation 0.01; biases 1 in the 2nd, 4th and 5th convolution, else 0."""
    torch.manual_seed(0)
    net = create_backbone("alexnet_original")
    convs = [layer for layer in net.features if isinstance(layer, nn.Conv2d)]
    assert [conv.bias.unique().tolist() for conv in convs] == [[0], [1], [0], [1], [1]]
    for conv in convs:
        assert conv.weight.detach().std() == pytest.approx(0.01, rel=0.03)


def test_starting_weights_of_the_head_are_the_papers(monkeypatch):
    """Biases 1 in the hidden layers too; smaller ones stand in for the real ones."""
    linear = nn.Sequential(nn.Linear(80, 70), nn.Linear(70, 60), nn.Linear(60, 50))
    monkeypatch.setattr(alexnet, "window_head", lambda *_, **__: linear)
    with torch.device("meta"):
        net = create_backbone("alexnet_original")
    head = net.head(50)
    assert [layer.bias.unique().tolist() for layer in head] == [[1], [1], [0]]
    for layer in head:
        assert layer.weight.detach().std() == pytest.approx(0.01, rel=0.1)


# --- a classifier that slides --------------------------------------------------------------


def test_a_window_linear_is_a_linear_layer_on_each_window(difference):
    layer = WindowLinear(3, 2, 5).double().requires_grad_(False)
    x = images(2, 3, 4, 6)
    y = layer(x)
    assert y.shape == (2, 3, 5, 5)
    for row in range(3):
        for column in range(5):
            window = x[:, :, row : row + 2, column : column + 2].flatten(1)
            linear = nn.functional.linear(window, layer.weight, layer.bias)
            assert difference(y[:, row, column], linear) < 1e-12


def test_a_dilated_window_reads_every_second_cell(difference):
    layer = WindowLinear(3, 2, 5, dilation=2).double().requires_grad_(False)
    x = images(1, 3, 4, 5)
    window = x[:, :, 1:4:2, 2:5:2].flatten(1)
    y = layer(x)
    assert y.shape == (1, 2, 3, 5)
    assert difference(y[:, 1, 2], nn.functional.linear(window, layer.weight, layer.bias)) < 1e-12


def test_the_head_averages_its_places(difference):
    layers = fully_connected(WindowLinear(3, 2, 5), nn.Linear(5, 6), nn.Linear(6, 7))
    head = WindowHead("net", layers, least_side=9).double().eval().requires_grad_(False)
    x = images(2, 3, 2, 3)
    one, other = head([x[..., :2]]), head([x[..., 1:]])
    assert difference(head([x]), (one + other) / 2) < 1e-12
    assert difference(head.places([x])[..., 0, 1], other) < 1e-12
    assert difference(one, layers[1:](layers[0](x[..., :2])).flatten(1)) < 1e-12
    with pytest.raises(ValueError, match="classifier net needs images of at least 9x9 pixels"):
        head([x[:, :, :, :1]])


@pytest.mark.parametrize(
    ("side", "places"), [((227, 227), (1, 1)), ((258, 227), (1, 1)), ((259, 291), (2, 3))]
)
def test_places_of_larger_images(side, places):
    with torch.device("meta"):
        net = create_classifier("alexnet_original", num_classes=11)
        x = torch.empty(2, 3, *side)
        assert net.head.places(net.body(x)).shape == (2, 11, *places)
        assert net(x).shape == (2, 11)
        with pytest.raises(ValueError, match="alexnet_original needs images of at least 227x227"):
            net(x[..., :226])


def test_dropout_stands_where_published():
    with torch.device("meta"):
        heads = [create_classifier(name).head.classifier for name in BOTH]
    kinds = ["".join(type(layer).__name__[0] for layer in head) for head in heads]
    assert kinds == ["DLRDLRL", "WRDLRDL"]
    dropouts = [layer.p for head in heads for layer in head if isinstance(layer, nn.Dropout)]
    assert dropouts == [0.5] * 4


# --- what it says of its maps --------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "centers", "fc6"),
    [
        ("alexnet", (3, 7, 7, 15, 15, 15, 15, 31), 355),
        ("alexnet_original", (5, 9, 9, 17, 17, 17, 17, 33), 355),
    ],
)
def test_what_the_cells_of_each_layer_see(name, centers, fc6, along_the_chain):
    with torch.device("meta"):
        net = create_backbone(name, out_indices=(-1,))
        seen = along_the_chain(net)
        net.features.append(nn.Conv2d(256, 4096, 6))
        assert along_the_chain(net)[-1][0] == fc6
    fields = (11, 19, 51, 67, 99, 131, 163, 195)
    strides = (4, 8, 8, 16, 16, 16, 16, 32)
    assert seen == list(zip(fields, strides, centers, strict=True))


def test_feature_info():
    with torch.device("meta"):
        net = create_backbone("alexnet")
    assert net.feature_info == (
        FeatureInfo("conv1", 64, 4, 11, 3.0),
        FeatureInfo("conv2", 192, 8, 51, 7.0),
        FeatureInfo("conv5", 256, 16, 163, 15.0),
        FeatureInfo("pool5", 256, 32, 195, 31.0),
    )


@pytest.mark.parametrize("name", BOTH)
def test_receptive_field_is_what_the_gradient_reaches(name, reached):
    net = create_backbone(name, out_indices=range(4))
    described = [(info.receptive_field, info.center) for info in net.feature_info]
    assert list(reached(net, 323, width=71)) == described


# --- settings ------------------------------------------------------------------------------


@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize("name", BOTH)
def test_every_second_cell_of_a_dense_map_is_the_strided_map(
    name, output_stride, randomise, unfilled, difference
):
    strided = randomise(unfilled(lambda: create_backbone(name)))
    dense = unfilled(lambda: create_backbone(name, output_stride=output_stride))
    dense.load_state_dict(strided.state_dict(), strict=True, assign=True)
    x = images(1, 3, 142, 180)
    with torch.no_grad():
        for ours, plain, info, sparse in zip(
            dense(x), strided(x), dense.feature_info, strided.feature_info, strict=True
        ):
            step = sparse.stride // info.stride
            assert info.stride == min(sparse.stride, output_stride)
            assert (info.receptive_field, info.center) == (sparse.receptive_field, sparse.center)
            coinciding = ours[..., ::step, ::step][..., : plain.shape[2], : plain.shape[3]]
            assert difference(coinciding, plain) < 1e-12
            assert ours.shape[2] >= step * (plain.shape[2] - 1) + 1


def test_the_classifier_of_a_dense_map_finds_the_same_places():
    with torch.device("meta"):
        net = create_classifier("alexnet_original", output_stride=8)
        assert net.head.classifier[0].dilation == 4
        assert net.head.least_side == 227
        maps = net.body(torch.empty(1, 3, 259, 227))
        assert net.head.places(maps).shape == (1, 1000, 5, 1)  # 32 pixels in steps of 8


def test_without_its_last_pool():
    with torch.device("meta"):
        net = create_backbone("alexnet", last_pool=False)
        assert [info.stride for info in net.feature_info] == [4, 8, 16]
        head = create_classifier("alexnet", last_pool=False, num_classes=5)
        assert head(torch.empty(2, 3, 64, 96)).shape == (2, 5)
        with pytest.raises(ValueError, match="reads its last pool; leave last_pool at True"):
            create_classifier("alexnet_original", last_pool=False)


def test_attention_stands_behind_the_response_norm():
    with torch.device("meta"):
        net = create_backbone("alexnet_original", attention="se", attention_at="after_block")
        assert [type(net.features[int(key)]).__name__ for key in net.after_block] == [
            "LocalResponseNorm", "LocalResponseNorm", "ReLU", "ReLU", "ReLU"
        ]  # fmt: skip
        order = [module for stage in net.stages() for module in stage]
        assert order.index(net.after_block["2"]) == 3
        assert net(torch.empty(1, 3, 99, 67))[-1].shape == (1, 256, 2, 1)


@pytest.mark.parametrize("name", BOTH)
def test_channels_last_goes_through(name):
    torch.manual_seed(0)
    net = create_backbone(name).eval()
    x = torch.randn(2, 3, 101, 77)
    with torch.no_grad():
        expected = net(x)
        for level, plain in zip(
            net(x.contiguous(memory_format=torch.channels_last)), expected, strict=True
        ):
            torch.testing.assert_close(level, plain, rtol=1e-4, atol=1e-5)


# --- published weights ---------------------------------------------------------------------


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A cached file that everybody believes to be the published one; its head is light."""
    torch.manual_seed(0)
    with torch.device("meta"):
        state = torchvision.models.alexnet().state_dict()
    for number, (key, value) in enumerate(state.items()):
        filled = torch.randn(value.shape) if key.startswith("features") else torch.tensor(number)
        state[key] = filled.float().expand(value.shape)
    buffer = io.BytesIO()
    torch.save(state, buffer)
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()
    url = f"https://example.invalid/models/alexnet-{digest[:8]}.pth"
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / url.rsplit("/", 1)[1]).write_bytes(buffer.getvalue())
    monkeypatch.setattr(weights, "published_url", lambda model, name: url)
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    return state


def test_published_url():
    url = weights.published_url("alexnet", "imagenet")
    assert url.endswith("/alexnet-owt-7be5be79.pth")
    with pytest.raises(ValueError, match=r"no weights 'imagenet' .* alexnet_original; allowed"):
        weights.published_url("alexnet_original", "imagenet")


def test_imagenet_weights_come_from_the_cache(published):
    classifier = create_classifier("alexnet", weights="imagenet").state_dict()
    assert all(torch.equal(classifier[key], value) for key, value in published.items())
    backbone = create_backbone("alexnet", weights="imagenet", out_indices=(1,)).state_dict()
    assert list(backbone) == list(published)[:4]
    assert all(torch.equal(value, published[key]) for key, value in backbone.items())


def test_grey_input_gives_what_the_colour_network_gives(published):
    grey = create_backbone("alexnet", weights="imagenet", in_channels=1, out_indices=(0,))
    colour = create_backbone("alexnet", weights="imagenet", out_indices=(0,))
    x = torch.rand(1, 1, 63, 64)
    with torch.no_grad():
        expected = colour(x.expand(1, 3, 63, 64))[0]
        torch.testing.assert_close(grey(x)[0], expected, rtol=1e-4, atol=1e-4)


# --- mistakes ------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "side"), [("alexnet", 63), ("alexnet_original", 67)])
def test_least_side(name, side):
    with torch.device("meta"):
        net = create_backbone(name)
        assert net(torch.empty(1, 3, side, side))[-1].shape[2:] == (1, 1)
        with pytest.raises(ValueError, match=f"at least {side}x{side} pixels, got 99x{side - 1}"):
            net(torch.empty(1, 3, 99, side - 1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"output_stride": 64}, "output_stride must be 8, 16 or 32, got 64"),
        ({"width": 8}, "alexnet has no setting 'width'"),
        ({"norm": "layer"}, "unknown norm 'layer'"),
    ],
)
def test_mistakes_are_explained(settings, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        create_backbone("alexnet", **settings)
