"""LeNet-5, today's and the published one, layer by layer against the paper."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch
from torch import Tensor, nn

from detkit.backbones import FeatureInfo, create_backbone, create_classifier
from detkit.backbones.lenet import (
    C3_INPUTS,
    RadialBasis,
    ScaledTanh,
    Subsampling,
    TableConv2d,
)

BOTH = ["lenet5", "lenet5_original"]


def images(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


# --- size ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "parameters", "macs"),
    [("lenet5", 61_706, 416_520), ("lenet5_original", 60_000, 325_680)],
)
def test_size(name, parameters, macs, count_macs):
    with torch.device("meta"):
        net = create_classifier(name)
    assert sum(each.numel() for each in net.parameters()) == parameters
    assert count_macs(net, 32, channels=1) == macs


def test_parameters_of_each_layer():
    """Section II.B names them: C1, S2, C3, S4, C5, F6."""
    net = create_classifier("lenet5_original")
    layers = [
        layer for layer in (*net.body.features, *net.head.classifier) if [*layer.parameters()]
    ]
    sizes = [sum(each.numel() for each in layer.parameters()) for layer in layers]
    assert sizes == [156, 12, 1_516, 32, 48_120, 10_164]
    assert net.head.classifier[-1].codes.shape == (10, 84)


@pytest.mark.parametrize("name", BOTH)
def test_sides_of_the_maps(name):
    """Figure 2."""
    net = create_backbone(name)
    x, sides = torch.zeros(1, 1, 32, 32), []
    for layer in net.features:
        before, x = x.shape, layer(x)
        if x.shape != before:
            sides.append((x.shape[1], x.shape[2]))
    assert sides == [(6, 28), (6, 14), (16, 10), (16, 5), (120, 1)]


# --- the layers ----------------------------------------------------------------------------


def test_todays_network_equals_torchs_layers(randomise, difference):
    net = randomise(create_classifier("lenet5"))
    chain = nn.Sequential(
        nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84),
        nn.ReLU(), nn.Linear(84, 10),
    ).double()  # fmt: skip
    values = [
        value.flatten(1) if value.shape[:2] == (120, 16) else value
        for value in net.state_dict().values()
    ]
    chain.load_state_dict(dict(zip(chain.state_dict(), values, strict=True)))
    x = images(3, 1, 32, 32)
    with torch.no_grad():
        assert difference(net(x), chain(x)) < 1e-12


def test_c3_reads_the_maps_of_its_table(difference):
    layer = TableConv2d(6, 16, 5, stride=1, padding=0, dilation=1, groups=1).double()
    layer.requires_grad_(False)
    weights = [each.weight for each in layer.parts]
    biases = [each.bias for each in layer.parts]
    kernels = [kernel for weight in weights for kernel in weight]  # of the 16 maps
    whole = torch.zeros(16, 6, 5, 5, dtype=torch.float64)
    for output, inputs in enumerate(C3_INPUTS):
        for position, map_of_s2 in enumerate(inputs):
            whole[output, map_of_s2] = kernels[output][position]
    x = images(2, 6, 14, 14)
    expected = nn.functional.conv2d(x, whole, torch.cat(biases))
    assert difference(layer(x), expected) < 1e-12


def test_table_of_c3():
    """Table I as section II.B tells it: runs of 3 and of 4, three of 4 with a gap, all 6."""
    assert [len(row) for row in C3_INPUTS] == [3] * 6 + [4] * 9 + [6]
    assert len(set(C3_INPUTS)) == 16
    assert all(list(row) == sorted(row) for row in C3_INPUTS)

    def runs(length: int) -> set[frozenset[int]]:
        return {frozenset((start + i) % 6 for i in range(length)) for start in range(6)}

    assert {frozenset(row) for row in C3_INPUTS[:6]} == runs(3)
    assert {frozenset(row) for row in C3_INPUTS[6:12]} == runs(4)
    # the others of four leave out two maps opposite each other
    left_out = {frozenset(range(6)).difference(row) for row in C3_INPUTS[12:15]}
    assert left_out == {frozenset({0, 3}), frozenset({1, 4}), frozenset({2, 5})}
    assert [sum(index in row for row in C3_INPUTS) for index in range(6)] == [10] * 6


def test_subsampling_is_four_sums_a_coefficient_and_a_bias():
    layer = Subsampling(2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([2.0, -1.0]))
        layer.bias.copy_(torch.tensor([0.5, 10.0]))
    x = torch.arange(16.0).view(1, 2, 2, 4)  # rows 0..3, 4..7 and 8..11, 12..15
    expected = [[[0 + 1 + 4 + 5, 2 + 3 + 6 + 7]], [[8 + 9 + 12 + 13, 10 + 11 + 14 + 15]]]
    expected = torch.tensor([expected]) * torch.tensor([2.0, -1]).view(2, 1, 1)
    assert torch.equal(layer(x), expected + torch.tensor([0.5, 10]).view(2, 1, 1))


def test_the_squashing_function_maps_one_to_one():
    """Appendix A: f(1) = 1, f(-1) = -1, and the second derivative is largest there."""
    squash = ScaledTanh()
    assert squash(torch.tensor([1.0, -1.0])).tolist() == pytest.approx([1, -1], abs=1e-4)
    x = torch.tensor([0.0, 0.6, 30.0], dtype=torch.float64)
    expected = [0, 1.7159 * math.tanh(0.4), 1.7159]
    assert squash(x).tolist() == pytest.approx(expected, abs=1e-12)


def test_logits_are_minus_the_squared_distance_to_the_drawings():
    layer = RadialBasis(10)
    assert layer.codes.unique().tolist() == [-1, 1]
    x = layer.codes[3].clone()
    x[:5] += 2
    logits = layer(x.view(1, 1, 84))
    assert logits.shape == (1, 1, 10) and logits.argmax() == 3
    assert logits[0, 0, 3] == -20
    assert layer(layer.codes).diagonal().tolist() == [0] * 10
    assert not list(layer.parameters())


def test_drawings_of_the_digits():
    codes = RadialBasis(10).codes
    distances = [int((a != b).sum()) for a, b in combinations(codes, 2)]
    assert min(distances) >= 12  # as far apart as figure 3's similar ones, or further
    one = codes[1].view(12, 7)  # a stroke in the middle, on a foot
    assert (one[:, 3] == 1).all() and one[-1].tolist() == [-1, 1, 1, 1, 1, 1, -1]
    zero, eight = codes[0].view(12, 7), codes[8].view(12, 7)
    assert torch.equal(zero, zero.flip(0)) and torch.equal(zero, zero.flip(1))
    assert torch.equal(eight, eight.flip(1))


@pytest.mark.parametrize("num_classes", [3, 10, 40])
def test_any_number_of_classes_has_codes(num_classes):
    layer, again = RadialBasis(num_classes), RadialBasis(num_classes)
    assert layer.codes.shape == (num_classes, 84)
    assert torch.equal(layer.codes, again.codes)
    assert torch.equal(layer.codes[:10], RadialBasis(10).codes[:num_classes])
    distances = [int((a != b).sum()) for a, b in combinations(layer.codes, 2)]
    assert min(distances) >= 12
    assert create_classifier("lenet5_original", num_classes=num_classes)(
        torch.zeros(2, 1, 32, 32)
    ).shape == (2, num_classes)


def test_the_published_network_step_by_step(randomise, difference):
    """Figure 2 written out with torch's functions."""
    net = randomise(create_classifier("lenet5_original"))
    c1, _, s2, _, c3, _, s4, _, c5, _ = net.body.features
    f6, _, output = net.head.classifier

    def squash(x: Tensor) -> Tensor:
        return 1.7159 * torch.tanh(2 * x / 3)

    def subsample(x: Tensor, layer: nn.Module) -> Tensor:
        total = x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]
        return squash(total * layer.weight.view(-1, 1, 1) + layer.bias.view(-1, 1, 1))

    x = images(3, 1, 32, 32)
    with torch.no_grad():
        s2_map = subsample(squash(nn.functional.conv2d(x, c1.weight, c1.bias)), s2)
        s4_map = subsample(squash(c3(s2_map)), s4)
        c5_map = squash(nn.functional.linear(s4_map.flatten(1), c5.weight.flatten(1), c5.bias))
        f6_units = squash(nn.functional.linear(c5_map, f6.weight, f6.bias))
        expected = -torch.cdist(f6_units, output.codes, compute_mode="donot_use_mm_for_euclid_dist")
        assert difference(net(x), expected.sign() * expected.square()) < 1e-12
        assert net(x).std() > 0.1


def test_starting_weights_are_the_papers():
    """Appendix A: uniform in -2.4 / F .. 2.4 / F."""
    torch.manual_seed(0)
    net = create_classifier("lenet5_original")
    inputs = {"features.0": 25, "features.2": 4, "features.4.parts.0": 75, "features.8": 400,
              "classifier.0": 120}  # fmt: skip
    state = net.state_dict()
    for name, count in inputs.items():
        largest = float(state[f"{name}.weight"].abs().max())
        assert 0.75 * 2.4 / count < largest <= 2.4 / count
        assert not state[f"{name}.bias"].any()


# --- larger images -------------------------------------------------------------------------


@pytest.mark.parametrize("name", BOTH)
def test_places_of_a_larger_image_are_the_crops(name, randomise, difference):
    net = randomise(create_classifier(name))
    x = images(1, 1, 36, 43)
    with torch.no_grad():
        places = net.head.places(net.body(x))
        assert places.shape == (1, 10, 2, 3)
        crops = [[net(x[..., y : y + 32, x0 : x0 + 32]) for x0 in (0, 4, 8)] for y in (0, 4)]
        for row, column in ((0, 0), (1, 2), (0, 1)):
            assert difference(places[..., row, column], crops[row][column]) < 1e-12
        assert difference(net(x), sum(sum(row) for row in crops) / 6) < 1e-12


# --- what it says of its maps --------------------------------------------------------------


@pytest.mark.parametrize("name", BOTH)
def test_what_the_cells_of_each_layer_see(name, along_the_chain):
    seen = along_the_chain(create_backbone(name))
    assert seen == [(5, 1, 2), (6, 2, 2.5), (14, 2, 6.5), (16, 4, 7.5), (32, 4, 15.5)]


@pytest.mark.parametrize("name", BOTH)
def test_feature_info(name):
    net = create_backbone(name)
    assert net.feature_info == (FeatureInfo("c5", 120, 4, 32, 15.5),)
    every = create_backbone(name, out_indices=(0, 1, 2)).feature_info
    assert [(info.name, info.channels, info.stride) for info in every] == [
        ("c1", 6, 1), ("c3", 16, 2), ("c5", 120, 4)
    ]  # fmt: skip


@pytest.mark.parametrize("name", BOTH)
def test_receptive_field_is_what_the_gradient_reaches(name, reached):
    net = create_backbone(name, in_channels=3, out_indices=(0, 1, 2))
    for layer in net.features:
        if isinstance(layer, Subsampling):
            nn.init.constant_(layer.weight, 0.25)
    described = [(info.receptive_field, info.center) for info in net.feature_info]
    assert list(reached(net, 65)) == described


# --- settings and mistakes -----------------------------------------------------------------


def test_every_parameter_gets_a_gradient():
    torch.manual_seed(0)
    for name in BOTH:
        net = create_classifier(name, norm="group", attention="eca", attention_at="after_block")
        net(torch.randn(4, 1, 32, 32))[:, 3].square().sum().backward()
        for key, parameter in net.named_parameters():
            assert parameter.grad.isfinite().all(), key
            if not key.startswith("classifier.2"):
                assert parameter.grad.abs().sum() > 0, key


@pytest.mark.parametrize(("out_indices", "side"), [((0,), 5), ((1,), 14), ((2,), 32)])
@pytest.mark.parametrize("name", BOTH)
def test_least_side(name, out_indices, side):
    net = create_backbone(name, out_indices=out_indices)
    assert net(torch.zeros(1, 1, side, side))[0].shape[2:] == (1, 1)
    with pytest.raises(ValueError, match=f"at least {side}x{side} pixels, got {side}x{side - 1}"):
        net(torch.zeros(1, 1, side, side - 1))


def test_only_the_stages_needed_are_built():
    net = create_backbone("lenet5_original", out_indices=(1,))
    assert len(net.features) == 6 and len(net.stages()) == 2
    assert net.unused_weights() == ("classifier.", *(f"features.{n}." for n in range(6, 10)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"output_stride": 8}, "lenet5 has no setting 'output_stride'"),
        ({"last_pool": False}, "lenet5 has no setting 'last_pool'"),
        ({"weights": "imagenet"}, "no weights 'imagenet' are published for lenet5"),
        ({"out_indices": (3,)}, "not in -3..2 for lenet5 .0 is c1, 2 is c5"),
    ],
)
def test_mistakes_are_explained(settings, message):
    with pytest.raises(ValueError, match=message):
        create_backbone("lenet5", **settings)
