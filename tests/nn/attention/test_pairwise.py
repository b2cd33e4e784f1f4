"""Non-local, self-attention with relative positions, and dual attention, against their formulas."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from detkit.nn.attention.pairwise import (
    ChannelAttention,
    DualAttention,
    NonLocal,
    PositionAttention,
    RelativeSelfAttention,
    map_size,
)

SMALL = {
    "nonlocal": lambda: NonLocal(4),
    "nonlocal, pool after": lambda: NonLocal(4, pool="after"),
    "nonlocal, no pool, no norm": lambda: NonLocal(4, pool="none", norm=False),
    "mhsa": lambda: RelativeSelfAttention(4, heads=2, size=(3, 5)),
    "mhsa, other size": lambda: RelativeSelfAttention(4, heads=2, size=(2, 4)),
    "position": lambda: PositionAttention(4, reduction=2),
    "channel": lambda: ChannelAttention(4),
    "dual": lambda: DualAttention(4, reduction=2),
}


def count(module: nn.Module) -> int:
    return sum(each.numel() for each in module.parameters())


# From the authors' released code; the two of timm from timm. Six decimals were published.
@pytest.mark.parametrize(
    ("module", "total", "absolute", "checked"),
    [
        (NonLocal(32), 418.573453, 3224.725029, 203.317544),
        (NonLocal(32, pool="none", scale=32**-0.5), 409.460460, 3226.722664, 198.549341),
        (RelativeSelfAttention(32, size=8), 138.166927, 16243.589337, 43.898086),
        (PositionAttention(32), 134.089843, 5893.729674, 58.952242),
        (ChannelAttention(32), 51.689198, 1614.902036, 27.419555),
    ],
    ids=["nonlocal", "nonlocal of timm", "mhsa", "position", "channel"],
)
def test_published_values(golden_input, fill, report, module, total, absolute, checked):
    y = fill(module)(golden_input((2, 32, 8, 8)))
    assert report(y) == pytest.approx((total, absolute, checked), rel=0, abs=1e-6)


@pytest.mark.parametrize("name", SMALL)
def test_gradients(golden_input, fill, name):
    module = fill(SMALL[name]())
    names, parameters = zip(*module.named_parameters(), strict=True)

    def call(x, *values):
        return torch.func.functional_call(module, dict(zip(names, values, strict=True)), (x,))

    # small inputs: softmax over logits of hundreds has no gradient to be checked
    x = (0.3 * golden_input((2, 4, 3, 5))).requires_grad_()
    assert torch.autograd.gradcheck(call, (x, *parameters))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", SMALL)
def test_half_precision_of_large_maps_is_finite(golden_input, fill, name, dtype):
    module = fill(SMALL[name]()).to(dtype)
    y = module((1e3 * golden_input((2, 4, 3, 5))).to(dtype))
    assert y.dtype == dtype and y.isfinite().all()


@pytest.mark.parametrize("name", SMALL)
def test_no_maps_are_no_maps(name):
    assert SMALL[name]()(torch.zeros(0, 4, 3, 5)).shape == (0, 4, 3, 5)


@pytest.mark.parametrize(
    "module",
    [
        NonLocal(8),
        NonLocal(8, norm=False),
        PositionAttention(8),
        ChannelAttention(8),
        DualAttention(8),
    ],
)
def test_starts_as_the_identity(golden_input, module):
    x = golden_input((2, 8, 5, 3)).float()
    torch.testing.assert_close(module.eval()(x), x, rtol=0, atol=0)


# ------------------------------------------------------------------------------------- non-local


def test_nonlocal_place_by_place(golden_input, fill):
    module = fill(NonLocal(4))
    x = golden_input((1, 4, 3, 5))

    def conv(layer, vector):
        return layer.weight[:, :, 0, 0] @ vector + layer.bias

    # 2x2 windows of a 3x5 map: the last row and column have no partner
    pooled = [x[0, :, 0:2, j : j + 2].amax(dim=(1, 2)) for j in (0, 2)]
    keys = [conv(module.phi, place) for place in pooled]
    values = [conv(module.g, place) for place in pooled]
    expected = torch.empty_like(x)
    for i in range(3):
        for j in range(5):
            place = x[0, :, i, j]
            query = conv(module.theta, place)
            weights = [(query @ key / math.sqrt(2)).exp() for key in keys]
            found = sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)
            norm = module.norm
            z = (conv(module.out, found) - norm.running_mean) / (norm.running_var + 1e-5).sqrt()
            expected[0, :, i, j] = place + norm.weight * z + norm.bias
    torch.testing.assert_close(module(x), expected, rtol=1e-12, atol=1e-12)


def test_nonlocal_can_pool_keys_instead_of_the_map(golden_input, fill):
    module = fill(NonLocal(4, pool="after", norm=False))
    x = golden_input((2, 4, 5, 6))
    keys = F.max_pool2d(module.phi(x), 2).flatten(2)
    values = F.max_pool2d(module.g(x), 2).flatten(2)
    logits = torch.einsum("bdi,bdj->bij", module.theta(x).flatten(2), keys) / math.sqrt(2)
    found = torch.einsum("bij,bdj->bdi", logits.softmax(dim=2), values).view(2, 2, 5, 6)
    torch.testing.assert_close(module(x), x + module.out(found), rtol=1e-12, atol=1e-12)
    assert (fill(NonLocal(4, norm=False))(x) - module(x)).abs().max() > 1e-3


def test_nonlocal_equals_timm(golden_input, fill):
    layers = pytest.importorskip("timm.layers")
    theirs = fill(layers.NonLocalAttn(16, rd_ratio=1 / 8), first=5)
    ours = NonLocal(16, pool="none", inner_channels=8, scale=16**-0.5).double().eval()
    names = {"theta": "t", "phi": "p", "g": "g", "out": "z", "norm": "norm"}
    for name, their_name in names.items():
        getattr(ours, name).load_state_dict(getattr(theirs, their_name).state_dict())
    x = golden_input((2, 16, 5, 7))
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("norm", "total"), [(True, 27_658_792), (False, 27_656_744)], ids=["norm", "no norm"]
)
def test_parameters_of_one_block_in_resnet50(norm, total):
    with torch.device("meta"):
        assert count(torchvision.models.resnet50()) + count(NonLocal(1024, norm=norm)) == total


def test_nonlocal_starts_with_small_weights():
    module = NonLocal(64)
    for conv in (module.theta, module.phi, module.g, module.out):
        assert conv.weight.std().item() == pytest.approx(0.01, rel=0.2)
        assert not conv.bias.any()


@pytest.mark.parametrize("shape", [(1, 4, 1, 1), (1, 4, 1, 6), (1, 4, 6, 1)])
@pytest.mark.parametrize("pool", ["before", "after"])
def test_a_side_of_one_place_is_not_pooled(golden_input, fill, pool, shape):
    module = fill(NonLocal(4, pool=pool))
    assert module(golden_input(shape)).shape == shape


# -------------------------------------------------------------------------------- self-attention


def test_mhsa_equals_timm(golden_input, fill):
    bottleneck = pytest.importorskip("timm.layers.bottleneck_attn")
    theirs = fill(bottleneck.BottleneckAttn(32, feat_size=(5, 7)), first=3)
    ours = RelativeSelfAttention(32, size=(5, 7)).double()
    ours.load_state_dict(theirs.state_dict())
    x = golden_input((2, 32, 5, 7))
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-10, atol=1e-10)


def test_mhsa_place_by_place(golden_input, fill):
    module = fill(RelativeSelfAttention(6, heads=2, size=(2, 3)))
    x = golden_input((1, 6, 2, 3))
    q, k, v = module.qkv.weight[:, :, 0, 0].matmul(x.flatten(2)[0]).view(3, 2, 3, 2, 3)
    rows, columns = module.pos_embed.height_rel, module.pos_embed.width_rel
    places = [(i, j) for i in range(2) for j in range(3)]
    expected = torch.zeros(2, 3, 2, 3, dtype=torch.float64)
    for head in range(2):
        for i, j in places:
            query = q[head, :, i, j]
            logits = [
                query @ k[head, :, m, n] / math.sqrt(3)
                + query @ rows[m - i + 1]  # offset 0 is the middle row of 3, and of 5
                + query @ columns[n - j + 2]
                for m, n in places
            ]
            weights = torch.stack(logits).softmax(dim=0)
            for weight, (m, n) in zip(weights, places, strict=True):
                expected[head, :, i, j] += weight * v[head, :, m, n]
    y = module(x).view(2, 3, 2, 3)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)


def test_mhsa_without_positions_is_plain_self_attention(golden_input, fill):
    module = fill(RelativeSelfAttention(8, heads=2, size=(3, 4)))
    for table in module.pos_embed.parameters():
        nn.init.zeros_(table)
    x = golden_input((2, 8, 3, 4))
    q, k, v = module.qkv(x).view(2, 3, 2, 4, 12).mT.unbind(1)
    expected = F.scaled_dot_product_attention(q, k, v).mT.reshape(2, 8, 3, 4)
    torch.testing.assert_close(module(x), expected, rtol=1e-12, atol=1e-12)


def test_mhsa_without_positions_equals_torch(golden_input, fill, report):
    oracle = fill(nn.MultiheadAttention(32, 4, batch_first=True))
    x = golden_input((2, 16, 32))
    y, _ = oracle(x, x, x)
    published = (-26.988686, 3122.514813, -17.440806)
    assert report(y) == pytest.approx(published, rel=0, abs=1e-6)

    module = RelativeSelfAttention(32, size=(2, 8)).double()
    for table in module.pos_embed.parameters():
        nn.init.zeros_(table)
    with torch.no_grad():
        module.qkv.weight.copy_(oracle.in_proj_weight[:, :, None, None])
        nn.init.zeros_(oracle.in_proj_bias)  # BoTNet's has neither bias nor output projection
        nn.init.zeros_(oracle.out_proj.bias)
        nn.init.eye_(oracle.out_proj.weight)
    expected, _ = oracle(x, x, x)
    ours = module(x.mT.reshape(2, 32, 2, 8)).flatten(2).mT
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


def test_tables_stretch_to_another_size():
    module = RelativeSelfAttention(1, heads=1, size=(4, 2)).double()
    with torch.no_grad():
        # the rows' offsets themselves; a map of 2 rows has the offsets -1, 0, 1
        module.pos_embed.height_rel.copy_(torch.arange(-3.0, 4.0).unsqueeze(1))
        module.pos_embed.width_rel.zero_()
    queries = torch.ones(1, 1, 4, 1, dtype=torch.float64)
    logits = module.pos_embed(queries, 2, 2)[0, 0]
    far = 7 / 3  # 7 rows of the table for 3 offsets
    expected = [[0, 0, far, far], [0, 0, far, far], [-far, -far, 0, 0], [-far, -far, 0, 0]]
    torch.testing.assert_close(logits, torch.tensor(expected, dtype=torch.float64))


def test_mhsa_parameters_in_botnet50():
    with torch.device("meta"):
        net = torchvision.models.resnet50()
        for block, side in zip(net.layer4, (14, 7, 7), strict=True):
            block.conv2 = RelativeSelfAttention(512, size=side)
        assert count(net) == 20_852_008


# ----------------------------------------------------------------------------------------- dual


def test_position_attention_place_by_place(golden_input, fill):
    module = fill(PositionAttention(4, reduction=2))
    x = golden_input((2, 4, 3, 5))
    query, key, value = (
        torch.einsum("oc,bcn->bon", conv.weight[:, :, 0, 0], x.flatten(2)) + conv.bias[:, None]
        for conv in (module.query, module.key, module.value)
    )
    expected = x.clone().flatten(2)
    for b in range(2):
        for i in range(15):
            weights = (query[b, :, i] @ key[b]).exp()
            expected[b, :, i] += module.gamma * (value[b] @ weights) / weights.sum()
    torch.testing.assert_close(module(x).flatten(2), expected, rtol=1e-12, atol=1e-12)


def test_channel_attention_looks_at_the_least_similar(fill):
    module = fill(ChannelAttention(2))
    nn.init.ones_(module.gamma)
    first, second = [2.0, 0.0], [1.0, 1.0]
    x = torch.tensor([first, second], dtype=torch.float64).view(1, 2, 1, 2)
    # E = [[4, 2], [2, 2]]: the first channel prefers the second by exp(2), the second is torn
    share = 1 / (1 + math.exp(2))
    found = [[share * 2 + (1 - share) * 1, (1 - share) * 1], [1.5, 0.5]]
    expected = x + torch.tensor(found, dtype=torch.float64).view(1, 2, 1, 2)
    torch.testing.assert_close(module(x), expected)


def test_channel_attention_channel_by_channel(golden_input, fill):
    module = fill(ChannelAttention(3))
    x = golden_input((2, 3, 3, 5))
    energy = torch.einsum("bihw,bjhw->bij", x, x)
    weights = (energy.amax(dim=2, keepdim=True) - energy).softmax(dim=2)
    expected = x + module.gamma * torch.einsum("bij,bjhw->bihw", weights, x)
    torch.testing.assert_close(module(x), expected, rtol=1e-12, atol=1e-12)


def test_channel_attention_does_not_know_the_order_of_channels(golden_input, fill):
    module = fill(ChannelAttention(6))
    x = golden_input((1, 6, 3, 4))
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    torch.testing.assert_close(module(x[:, order]), module(x)[:, order])


def test_dual_counts_the_residual_once(golden_input, fill):
    module = fill(DualAttention(8))
    x = golden_input((2, 8, 3, 5))
    position, channel = module.position(x) - x, module.channel(x) - x
    assert position.abs().max() > 0.1 and channel.abs().max() > 0.1
    torch.testing.assert_close(module(x), x + position + channel)


def test_parameters_of_dual_attention():
    with torch.device("meta"):
        assert count(PositionAttention(512)) == 328_321
        assert count(ChannelAttention(512)) == 1
        assert count(DualAttention(512)) == 328_322


# --------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: NonLocal(8, pool="befor"), "unknown pool 'befor' of nonlocal; did you mean"),
        (lambda: NonLocal(8, inner_channels=0), "inner_channels must be at least 1, got 0"),
        (lambda: RelativeSelfAttention(6), "4 heads do not divide 6 channels"),
        (lambda: RelativeSelfAttention(6, heads=0), "0 heads do not divide 6 channels"),
        (lambda: RelativeSelfAttention(8, size=0), "size must be a side or"),
        (lambda: DualAttention(8, reduction=0), "reduction must be at least 1, got 0"),
    ],
)
def test_mistakes_are_named(build, message):
    with pytest.raises(ValueError, match=message) as error:
        build()
    assert "\n" not in str(error.value)


def test_map_size_takes_a_side_or_both():
    assert map_size(7) == (7, 7)
    assert map_size([14, 7]) == (14, 7)
    for wrong in ((7,), (7, 7, 7), (7, 0), (7, 7.0)):
        with pytest.raises(ValueError, match="size must be a side or"):
            map_size(wrong)
