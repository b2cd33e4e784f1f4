"""Norms and activations by name; frozen batch norm beside torchvision's."""

from __future__ import annotations

import math

import pytest
import torch
import torchvision
from torch import nn

from detkit.nn import FrozenBatchNorm2d, activation_layer, norm_layer


@pytest.fixture
def trained() -> nn.BatchNorm2d:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4, eps=1e-3)
    for value in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        value.data.uniform_(0.5, 1.5)
    return norm.eval()


def test_frozen_norm_by_hand():
    norm = FrozenBatchNorm2d(1, eps=1.0)
    norm.load_state_dict(
        {
            name: torch.tensor([v])
            for name, v in {
                "weight": 4.0,
                "bias": 1.0,
                "running_mean": 2.0,
                "running_var": 3.0,
            }.items()
        }
    )
    # 4 * (x - 2) / sqrt(3 + 1) + 1
    assert norm(torch.tensor([0.0, 2, 5]).view(1, 1, 1, 3)).flatten().tolist() == [-3, 1, 7]


def test_frozen_norm_equals_torchvisions_and_takes_a_batch_norms_state(trained):
    ours, theirs = FrozenBatchNorm2d(4, eps=1e-3), torchvision.ops.FrozenBatchNorm2d(4, eps=1e-3)
    assert "num_batches_tracked" in trained.state_dict()
    ours.load_state_dict(trained.state_dict(), strict=True)
    theirs.load_state_dict(trained.state_dict(), strict=True)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert list(ours.parameters()) == []
    x = torch.randn(2, 4, 5, 3)
    torch.testing.assert_close(ours.train()(x), theirs(x))
    torch.testing.assert_close(ours(x), trained(x))
    ours.eps = 1e-1
    assert not torch.allclose(ours(x), theirs(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_frozen_norm_keeps_the_dtype_under_autocast(trained, dtype):
    norm = FrozenBatchNorm2d(4, eps=1e-3)
    norm.load_state_dict(trained.state_dict())
    x = torch.randn(2, 4, 5, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = norm(x.to(dtype))
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), trained(x), rtol=2e-2, atol=2e-2)


def test_frozen_norm_passes_the_gradient(trained):
    norm = FrozenBatchNorm2d(4, eps=1e-3).double()
    norm.load_state_dict(trained.state_dict())
    x = torch.randn(2, 4, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(norm, (x,))


@pytest.mark.parametrize(("channels", "groups"), [(64, 32), (48, 16), (8, 8), (7, 1)])
def test_groups(channels, groups):
    assert norm_layer("group")(channels).num_groups == groups


@pytest.mark.parametrize("name", ["batch", "frozen_batch", "group", "sync_batch"])
def test_eps(name):
    assert norm_layer(name)(8).eps == 1e-5
    assert norm_layer(name, eps=0.5)(8).eps == 0.5


def test_unknown_norm():
    with pytest.raises(ValueError, match="unknown norm 'grup'; did you mean 'group'"):
        norm_layer("grup")


def test_sync_norm_is_batch_norm_where_there_is_one_process():
    torch.manual_seed(0)
    sync, plain = norm_layer("sync_batch")(3), nn.BatchNorm2d(3)
    assert isinstance(sync, nn.SyncBatchNorm)
    for step in range(2):
        x = torch.randn(2, 3, 4, 5) * (1 + step)
        torch.testing.assert_close(sync(x), plain(x))
    assert list(sync.state_dict()) == list(plain.state_dict())
    torch.testing.assert_close(sync.eval()(x), plain.eval()(x))


@pytest.mark.parametrize(
    ("name", "at_minus_one", "at_one"),
    [
        ("relu", 0, 1),
        ("leaky_relu", -0.01, 1),
        ("prelu", -0.25, 1),
        ("elu", math.exp(-1) - 1, 1),
        ("silu", -1 / (1 + math.e), 1 / (1 + math.exp(-1))),
        ("gelu", -0.5 * math.erfc(math.sqrt(0.5)), 1 - 0.5 * math.erfc(math.sqrt(0.5))),
        ("hardswish", -2 / 6, 4 / 6),
        ("sigmoid", 1 / (1 + math.e), 1 / (1 + math.exp(-1))),
        ("tanh", -math.tanh(1), math.tanh(1)),
        ("identity", -1, 1),
    ],
)
def test_activation(name, at_minus_one, at_one):
    out = activation_layer(name)()(torch.tensor([-1.0, 1.0], dtype=torch.float32))
    assert out.tolist() == pytest.approx([at_minus_one, at_one], rel=1e-5)


@pytest.mark.parametrize(
    ("name", "at_minus_one"),
    [("leaky_relu", -0.1), ("prelu", -0.1), ("elu", 0.1 * (math.exp(-1) - 1))],
)
def test_slope_of_an_activation(name, at_minus_one):
    out = activation_layer(name, slope=0.1)()(torch.tensor([-1.0, 1.0]))
    assert out.tolist() == pytest.approx([at_minus_one, 1])


def test_each_prelu_learns_its_own_slope():
    build = activation_layer("prelu")
    first, second = build(), build()
    assert first.weight is not second.weight


def test_unknown_activation_and_slope_of_none():
    with pytest.raises(ValueError, match="unknown activation 'leakyrelu'; did you mean 'leaky_"):
        activation_layer("leakyrelu")
    with pytest.raises(
        ValueError, match=r"'relu' has no slope, got 0\.1; leaky_relu, prelu, elu do"
    ):
        activation_layer("relu", slope=0.1)
