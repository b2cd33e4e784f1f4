"""Norms by name; frozen batch norm beside torchvision's."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

from detkit.nn import FrozenBatchNorm2d, norm_layer


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


@pytest.mark.parametrize("name", ["batch", "frozen_batch", "group"])
def test_eps(name):
    assert norm_layer(name)(8).eps == 1e-5
    assert norm_layer(name, eps=0.5)(8).eps == 0.5


def test_unknown_norm():
    with pytest.raises(ValueError, match="unknown norm 'grup'; did you mean 'group'"):
        norm_layer("grup")
