"""Relation-aware global attention, against its formula."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from detkit.nn.attention.relation import RelationAwareAttention

SIZE = (3, 4)


@pytest.mark.parametrize(
    ("parts", "published"),
    [
        ("s", (2.211316, 2315.825473, 1.026704)),
        ("sc", (-0.584022, 1892.960184, -0.362490)),
    ],
)
def test_published_values(golden_input, fill, report, parts, published):
    module = fill(RelationAwareAttention(64, size=8, parts=parts))
    y = module(golden_input((2, 64, 8, 8)))
    assert report(y) == pytest.approx(published, rel=0, abs=1e-6)


def randomised(module: nn.Module) -> nn.Module:
    """Waves in all tensors leave most units dead and all gates alike; noise does not."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in module.double().eval().state_dict().items():
        if name.endswith(("running_var", "bias")):
            tensor.uniform_(0.5, 1.5, generator=generator)
        elif tensor.is_floating_point():
            tensor.normal_(std=0.5, generator=generator)
    return module


def layer(sequential: nn.Sequential, x: torch.Tensor) -> torch.Tensor:
    """1x1 convolution and batch norm of `[B, F, N]` by hand."""
    conv, norm = sequential
    y = torch.einsum("of,bfn->bon", conv.weight[:, :, 0], x)
    scale = norm.weight / (norm.running_var + 1e-5).sqrt()
    return (y - norm.running_mean[:, None]) * scale[:, None] + norm.bias[:, None]


def gate(module: RelationAwareAttention, part: str, x: torch.Tensor) -> torch.Tensor:
    """Gates `[B, N]` of nodes `[B, F, N]`, pair by pair."""
    theta, phi = (layer(each, x).relu() for each in module.relate[part])
    nodes = range(x.shape[2])
    # relation of node i to j, and of j to i, are the features of node i
    to = torch.stack([(theta[:, :, i, None] * phi).sum(1) for i in nodes], dim=2)  # [B, j, i]
    back = torch.stack([(theta * phi[:, :, i, None]).sum(1) for i in nodes], dim=2)
    joint = layer(module.joint[part], torch.cat([to, back], dim=1)).relu()
    own = layer(module.g[part], x).relu().mean(dim=1, keepdim=True)
    first, second = module.weigh[part]
    return layer(second, layer(first, torch.cat([own, joint], dim=1)).relu())[:, 0].sigmoid()


@pytest.mark.parametrize("parts", ["s", "c", "sc"])
def test_gates_node_by_node(parts):
    module = randomised(RelationAwareAttention(8, size=SIZE, parts=parts, reduction=2))
    x = torch.randn(2, 8, *SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = x
    if "s" in parts:
        expected = expected * gate(module, "spatial", expected.flatten(2)).view(2, 1, *SIZE)
    if "c" in parts:
        expected = expected * gate(module, "channel", expected.flatten(2).mT).view(2, 8, 1, 1)
    y = module(x)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    assert (y / x).std() > 1e-3  # not one gate for all


def test_other_sizes_are_pooled_and_their_gate_is_resized(golden_input):
    module = randomised(RelationAwareAttention(8, size=SIZE, reduction=2))
    x = golden_input((2, 8, 7, 5))
    places = gate(module, "spatial", F.adaptive_avg_pool2d(x, SIZE).flatten(2))
    places = F.interpolate(places.view(2, 1, *SIZE), size=(7, 5), mode="bilinear")
    x1 = x * places
    channels = gate(module, "channel", F.adaptive_avg_pool2d(x1, SIZE).flatten(2).mT)
    expected = x1 * channels.view(2, 8, 1, 1)
    torch.testing.assert_close(module(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("parts", ["s", "c", "sc"])
@pytest.mark.parametrize("shape", [(2, 3), (3, 2)])
def test_gradients(golden_input, parts, shape):
    module = randomised(RelationAwareAttention(4, size=(2, 3), parts=parts, reduction=2))
    names, parameters = zip(*module.named_parameters(), strict=True)

    def call(x, *values):
        return torch.func.functional_call(module, dict(zip(names, values, strict=True)), (x,))

    x = golden_input((2, 4, *shape)).requires_grad_()
    assert torch.autograd.gradcheck(call, (x, *parameters))


def test_float16_saturates_instead_of_failing(golden_input, fill):
    module = fill(RelationAwareAttention(16, size=SIZE, reduction=2)).half()
    x = 1e3 * golden_input((2, 16, *SIZE))
    theta = F.relu(module.relate["spatial"][0](x.flatten(2).half()))
    assert (theta.float().mT @ theta.float()).max() > 65504  # what the test is about
    y = module(x.half())
    assert y.dtype == torch.float16 and y.isfinite().all()


def test_parameters_in_resnet50():
    # pictures of 256x128, last stride 1, no fc
    stages = ((256, (64, 32)), (512, (32, 16)), (1024, (16, 8)), (2048, (16, 8)))
    with torch.device("meta"):
        modules = [RelationAwareAttention(channels, size=size) for channels, size in stages]
    added = sum(each.numel() for module in modules for each in module.parameters())
    assert 23_508_032 + added == 29_822_128


def test_the_own_feature_counts_in_the_width_of_the_gate():
    # 120 places leave 15 features of relations; with the node's own they are 16, an eighth is 2
    module = RelationAwareAttention(64, size=(8, 15), parts="s")
    assert module.weigh["spatial"][0][0].weight.shape == (2, 16, 1)


def test_no_maps_are_no_maps():
    assert RelationAwareAttention(8, size=SIZE)(torch.zeros(0, 8, 5, 5)).shape == (0, 8, 5, 5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"parts": "cs"}, "unknown parts 'cs' of rga; "),
        ({"reduction": 0}, "reduction must be at least 1, got 0"),
        ({"size": (4, 4, 4)}, "size must be a side or"),
    ],
)
def test_mistakes_are_named(settings, message):
    with pytest.raises(ValueError, match=message) as error:
        RelationAwareAttention(8, **settings)
    assert "\n" not in str(error.value)
