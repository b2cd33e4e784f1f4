"""Xavier and He initialisation: variances, limits, and torch's own functions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from detkit.nn import DeformableConv2d, initialise


def layers() -> dict[str, tuple[nn.Module, int, int]]:
    """Each with the connections into and out of one cell, counted by hand."""
    return {
        "linear": (nn.Linear(300, 100), 300, 100),
        "conv": (nn.Conv2d(40, 60, 3), 9 * 40, 9 * 60),
        "conv_1x5": (nn.Conv2d(60, 100, (1, 5)), 5 * 60, 5 * 100),
        "grouped": (nn.Conv2d(120, 240, 3, groups=4), 9 * 30, 9 * 60),
        "depthwise": (nn.Conv2d(2000, 2000, 3, groups=2000), 9, 9),
        "transposed": (nn.ConvTranspose2d(40, 60, 3), 9 * 40, 9 * 60),
        "grouped_transposed": (nn.ConvTranspose2d(240, 120, 3, groups=4), 9 * 60, 9 * 30),
    }


@pytest.mark.parametrize("distribution", ["uniform", "normal"])
@pytest.mark.parametrize("name", layers())
@pytest.mark.parametrize(
    ("scheme", "settings", "expected"),
    [
        ("xavier", {}, lambda fan_in, fan_out: 2 / (fan_in + fan_out)),
        ("he", {}, lambda fan_in, _: 2 / fan_in),
        ("he", {"mode": "fan_out"}, lambda _, fan_out: 2 / fan_out),
        ("he", {"slope": 0.5}, lambda fan_in, _: 2 / (1.25 * fan_in)),
        ("he", {"slope": 1}, lambda fan_in, _: 1 / fan_in),
    ],
)
def test_variance(scheme, settings, expected, name, distribution):
    torch.manual_seed(0)
    layer, fan_in, fan_out = layers()[name]
    initialise(layer, f"{scheme}_{distribution}", **settings)
    variance = expected(fan_in, fan_out)
    assert layer.weight.var().item() == pytest.approx(variance, rel=0.05)
    assert abs(layer.weight.mean().item()) < 0.05 * math.sqrt(variance)
    largest = layer.weight.abs().max().item() / math.sqrt(variance)
    if distribution == "uniform":
        assert math.sqrt(3) * 0.99 < largest <= math.sqrt(3) * 1.0001
    else:
        assert largest > 3
    assert (layer.bias == 0).all()


@pytest.mark.parametrize("layer", [nn.Linear(5, 7), nn.Conv2d(3, 4, 3)])
@pytest.mark.parametrize(
    ("scheme", "settings", "theirs"),
    [
        ("xavier_uniform", {}, nn.init.xavier_uniform_),
        ("xavier_normal", {}, nn.init.xavier_normal_),
        ("he_uniform", {}, lambda w: nn.init.kaiming_uniform_(w, nonlinearity="relu")),
        ("he_normal", {}, lambda w: nn.init.kaiming_normal_(w, nonlinearity="relu")),
        ("he_uniform", {"slope": 0.2}, lambda w: nn.init.kaiming_uniform_(w, a=0.2)),
        (
            "he_normal",
            {"mode": "fan_out"},
            lambda w: nn.init.kaiming_normal_(w, mode="fan_out", nonlinearity="relu"),
        ),
    ],
)
def test_same_numbers_as_torch(scheme, settings, theirs, layer):
    torch.manual_seed(0)
    initialise(layer, scheme, **settings)
    torch.manual_seed(0)
    expected = theirs(torch.empty_like(layer.weight))
    torch.testing.assert_close(layer.weight.detach(), expected)


def test_activations_keep_their_size_through_many_layers():
    torch.manual_seed(0)
    net = nn.Sequential(*(nn.Sequential(nn.Linear(256, 256), nn.ReLU()) for _ in range(20)))
    x = torch.randn(64, 256)
    initialise(net, "he_normal")
    assert 0.2 < net(x).square().mean().item() < 5
    initialise(net, "xavier_normal")  # halves it in each layer
    assert net(x).square().mean().item() < 1e-4


def test_what_is_left_alone():
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.PReLU(),
        DeformableConv2d(nn.Conv2d(4, 4, 3)),
        nn.Linear(4, 2),
    )
    before = {name: value.clone() for name, value in net.state_dict().items()}
    initialise(net, "he_uniform")
    changed = {
        name for name, value in net.state_dict().items() if not torch.equal(value, before[name])
    }
    assert changed == {"0.weight", "3.conv.weight", "3.conv.bias", "4.weight", "4.bias"}


def test_unknown_names():
    with pytest.raises(ValueError, match="unknown initialisation 'xavier_unifrom'; did you mean"):
        initialise(nn.Linear(1, 1), "xavier_unifrom")
    with pytest.raises(ValueError, match="unknown mode 'fanin'; did you mean 'fan_in'"):
        initialise(nn.Linear(1, 1), "he_normal", mode="fanin")
