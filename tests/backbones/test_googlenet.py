"""GoogLeNet: torchvision's to the last digit, and the published one by its numbers."""

from __future__ import annotations

import hashlib
import io

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models._utils import IntermediateLayerGetter

from detkit.backbones import (
    Classifier,
    FeatureInfo,
    create_backbone,
    create_classifier,
    weights,
)
from detkit.backbones.base import published_settings
from detkit.backbones.googlenet import InputTransform, adaptive_pool, window_pool

STAGES = [
    "conv1", "conv3", "inception3b", "inception4a", "inception4d", "inception4e", "inception5b"
]  # fmt: skip
ALL = tuple(range(7))


def images(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def torchvisions(*, aux_logits: bool = False, **settings) -> nn.Module:
    settings = {"init_weights": False, **settings}
    return torchvision.models.googlenet(weights=None, aux_logits=aux_logits, **settings)


@pytest.fixture(scope="module")
def theirs(randomise, unfilled):
    return randomise(unfilled(lambda: torchvisions(aux_logits=True)))


@pytest.fixture(scope="module")
def ours(theirs, unfilled):
    body = unfilled(lambda: create_backbone("googlenet", out_indices=ALL, aux_logits=True))
    body.load_state_dict(theirs.state_dict(), strict=False, assign=True)
    return body


# --- equal to torchvision ------------------------------------------------------------------


@pytest.mark.parametrize("size", [(64, 64), (75, 106)])
def test_every_stage_equals_torchvisions(ours, theirs, difference, size):
    x = images(2, 3, *size)
    getter = IntermediateLayerGetter(theirs, {name: name for name in STAGES})
    with torch.no_grad():
        expected = getter(x)
        for ours_map, name in zip(ours(x), STAGES, strict=True):
            assert difference(ours_map, expected[name]) < 1e-9


@pytest.mark.parametrize("aux_logits", [False, True])
def test_logits_equal_torchvisions(theirs, difference, unfilled, aux_logits):
    net = unfilled(lambda: create_classifier("googlenet", aux_logits=aux_logits))
    state = theirs.state_dict()
    if not aux_logits:
        state = {key: value for key, value in state.items() if not key.startswith("aux")}
    assert list(net.state_dict()) == list(state)
    net.load_state_dict(state, strict=True)
    x = images(2, 3, 64, 80)
    with torch.no_grad():
        assert difference(net(x), theirs(x)) < 1e-9


def test_all_logits_of_training_equal_torchvisions(theirs, difference, unfilled):
    def without_dropout(net: nn.Module) -> nn.Module:
        for module in net.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        return net.train()

    net = unfilled(lambda: create_classifier("googlenet", aux_logits=True))
    net.load_state_dict(theirs.state_dict(), strict=True)
    twin = unfilled(lambda: torchvisions(aux_logits=True))
    twin.load_state_dict(net.state_dict(), strict=True)
    x = images(2, 3, 96, 96)
    outputs, expected = without_dropout(net)(x), without_dropout(twin)(x)
    assert outputs._fields == expected._fields == ("logits", "aux_logits2", "aux_logits1")
    for one, other in zip(outputs, expected, strict=True):
        assert difference(one.detach(), other.detach()) < 1e-9
    sum(each.square().sum() for each in outputs).backward()
    assert all(each.grad.abs().sum() > 0 for each in net.parameters())


def test_our_state_dict_loads_in_torchvision(randomise, difference, unfilled):
    ours = randomise(unfilled(lambda: create_classifier("googlenet", num_classes=5)), seed=3)
    theirs = unfilled(lambda: torchvisions(num_classes=5))
    theirs.load_state_dict(ours.state_dict(), strict=True)
    x = images(1, 3, 64, 64)
    with torch.no_grad():
        assert difference(ours(x), theirs(x)) < 1e-9


def another_eps(net: nn.Module) -> None:
    net.inception4b.branch2[1].bn.eps = 1e-5


def other_order(net: nn.Module) -> None:
    block = net.inception5b
    block.branch3, block.branch4 = block.branch4, block.branch3


def floor_in_a_pool(net: nn.Module) -> None:
    net.maxpool2.ceil_mode, net.maxpool2.padding = False, 1


@pytest.mark.parametrize("mutate", [another_eps, other_order, floor_in_a_pool])
def test_the_comparison_sees_a_small_change(mutate, theirs, difference, unfilled):
    net = unfilled(lambda: create_backbone("googlenet", out_indices=(-1,)))
    net.load_state_dict({k: v for k, v in theirs.state_dict().items() if k in net.state_dict()})
    x = images(1, 3, 65, 65)
    with torch.no_grad():
        (before,) = net(x)
        mutate(net)
        (after,) = net(x)
    assert difference(after, before) > 1e-7


@pytest.mark.parametrize(
    ("name", "aux_logits", "parameters", "keys", "macs"),
    [
        ("googlenet", False, 6_624_904, 344, 1_498_376_192),
        ("googlenet", True, 13_004_888, 364, 1_498_376_192),
        ("googlenet_original", False, 6_998_552, 116, 1_582_671_872),
        ("googlenet_original", True, 13_378_280, 128, 1_582_671_872),
    ],
)
def test_size(name, aux_logits, parameters, keys, macs, count_macs):
    with torch.device("meta"):
        net = create_classifier(name, aux_logits=aux_logits)
    assert sum(each.numel() for each in net.parameters()) == parameters
    assert len(net.state_dict()) == keys
    assert count_macs(net, 224) == macs


# --- published weights ---------------------------------------------------------------------


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A cached file of random weights that everybody believes to be the published one."""
    before = torch.hub._hub_dir
    torch.hub.set_dir(tmp_path)
    torch.manual_seed(0)
    state = torchvisions(aux_logits=True).state_dict()
    buffer = io.BytesIO()
    torch.save(state, buffer)
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()
    url = f"https://example.invalid/models/googlenet-{digest[:8]}.pth"
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / url.rsplit("/", 1)[1]).write_bytes(buffer.getvalue())
    monkeypatch.setattr(weights, "published_url", lambda model, name: url)
    monkeypatch.setattr(
        torchvision.models.GoogLeNet_Weights, "get_state_dict", lambda *_, **__: state
    )
    yield state
    torch.hub._hub_dir = before


def test_published_weights_give_torchvisions_result(published, difference):
    theirs = torchvision.models.googlenet(weights="IMAGENET1K_V1").double().eval()
    assert theirs.transform_input and theirs.aux1 is None
    x = images(2, 3, 64, 64)
    net = create_classifier("googlenet", weights="imagenet").double().eval()
    body = create_backbone("googlenet", weights="imagenet", out_indices=(0,)).double().eval()
    with torch.no_grad():
        assert difference(net(x), theirs(x)) < 1e-9
        (level,) = body(x)
        assert difference(level, theirs.conv1(theirs._transform_input(x))) < 1e-9
        plain = create_classifier("googlenet", weights="imagenet", transform_input=False)
        assert difference(plain.double().eval()(x), theirs(x)) > 1e-5


def test_published_weights_know_the_setting_that_goes_with_them(published, tmp_path):
    assert published_settings("googlenet", "imagenet") == {"transform_input": True}
    assert published_settings("googlenet", None) == {}
    assert published_settings("googlenet", "a.pth") == {}
    assert published_settings("resnet18", "imagenet") == {}
    # what a run saves goes into a network built with that setting
    trained = create_backbone("googlenet", weights="imagenet").eval()
    again = create_backbone("googlenet", **published_settings("googlenet", "imagenet")).eval()
    again.load_state_dict(trained.state_dict(), strict=True)
    x = torch.randn(1, 3, 64, 64)
    for one, other in zip(again(x), trained(x), strict=True):
        assert torch.equal(one, other)


def test_published_weights_keep_the_auxiliary_classifiers_where_wanted(published):
    net = create_classifier("googlenet", weights="imagenet", aux_logits=True)
    assert torch.equal(net.head.aux2.fc1.weight, published["aux2.fc1.weight"])


def test_input_transform_of_other_channels():
    x = torch.zeros(1, 4, 1, 1)
    shifts = [-0.03, -0.088, -0.188, -0.03]
    assert InputTransform(4)(x).flatten().tolist() == pytest.approx(shifts)
    assert InputTransform(1)(x[:, :1]).item() == pytest.approx(-0.102)
    assert InputTransform(1)(x[:, :1] + 1).item() == pytest.approx(-0.102 + 0.452)


# --- what it says of its maps --------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "receptive_fields", "centers"),
    [
        ("googlenet", (7, 19, 59, 107, 203, 235, 379), (0, 2, 6, 14, 14, 14, 22)),
        ("googlenet_original", (7, 19, 91, 171, 363, 427, 715), (0, 2, 6, 14, 14, 14, 30)),
    ],
)
def test_feature_info(name, receptive_fields, centers):
    with torch.device("meta"):
        net = create_backbone(name, out_indices=ALL)
    channels = (64, 192, 480, 512, 528, 832, 1024)
    strides = (2, 4, 8, 16, 16, 16, 32)
    rows = zip(STAGES, channels, strides, receptive_fields, centers, strict=True)
    assert net.feature_info == tuple(FeatureInfo(*row) for row in rows)
    with torch.device("meta"):
        default = create_backbone(name)
    assert [info.stride for info in default.feature_info] == [4, 8, 16, 32]


@pytest.mark.parametrize("name", ["googlenet", "googlenet_original"])
def test_receptive_field_is_what_the_gradient_reaches(name, reached):
    net = create_backbone(name, out_indices=ALL)
    for info, (height, center) in zip(net.feature_info, reached(net, 1025), strict=True):
        assert (height, center) == (info.receptive_field, info.center), info.name


# --- settings ------------------------------------------------------------------------------


def test_the_published_network_has_what_torchvisions_has_not():
    net = create_classifier("googlenet_original", aux_logits=True)
    body = net.body
    assert body.inception3a.branch3[1].conv.kernel_size == (5, 5)
    assert body.inception3a.branch3[1].conv.bias is not None
    assert not any(isinstance(each, nn.BatchNorm2d) for each in net.modules())
    assert [type(each) for each in (body.norm1, body.norm2)] == [nn.LocalResponseNorm] * 2
    assert body.maxpool4.kernel_size == 3
    assert net.head.dropout.p == 0.4


def test_pools_of_the_auxiliary_classifiers():
    x = images(1, 2, 14, 14)
    expected = torch.stack(
        [x[..., 3 * i : 3 * i + 5, 3 * j : 3 * j + 5].mean((2, 3)) for i in range(4)
         for j in range(4)], dim=-1
    ).view(1, 2, 4, 4)  # fmt: skip
    torch.testing.assert_close(window_pool(x), expected)
    assert window_pool(x[..., :3, :3]).shape == (1, 2, 4, 4)
    assert not torch.allclose(adaptive_pool(x), expected)


@pytest.mark.parametrize("norm", ["batch", "frozen_batch", "group"])
@pytest.mark.parametrize("name", ["googlenet", "googlenet_original"])
def test_norms(name, norm):
    net = create_backbone(name, norm=norm, out_indices=(3,))
    found = {each.eps for each in net.modules() if hasattr(each, "eps")}
    assert found == {1e-3}
    assert all(module.bias is None for module in net.modules() if isinstance(module, nn.Conv2d))
    assert net(torch.randn(1, 3, 33, 33))[0].isfinite().all()


@pytest.mark.parametrize(("at", "count"), [("after_block", 9), ("after_stage", 7)])
def test_attention(at, count):
    net = create_backbone("googlenet", attention="eca", attention_at=at)
    assert len(net.attention_names()) == count
    assert [info.channels for info in net.feature_info] == [192, 480, 832, 1024]
    some = create_backbone(
        "googlenet", attention="se", attention_at="after_block", attention_stages={4: [-1]}
    )
    (name,) = some.attention_names()
    assert name.startswith("inception4d.")


def test_only_the_stages_needed_are_built(theirs):
    net = create_backbone("googlenet", out_indices=(2,), frozen_stages=2)
    assert {key.split(".")[0] for key in net.state_dict()} == {
        "conv1", "conv2", "conv3", "inception3a", "inception3b"
    }  # fmt: skip
    learning = {name.split(".")[0] for name, each in net.named_parameters() if each.requires_grad}
    assert learning == {"inception3a", "inception3b"}
    torch.save(theirs.state_dict(), buffer := io.BytesIO())
    buffer.seek(0)
    weights.load_into(net, torch.load(buffer), source="x", ignore=net.unused_weights())


def test_original_activations_keep_their_size():
    torch.manual_seed(0)
    net = create_backbone("googlenet_original", out_indices=ALL).eval()
    for level in net(torch.randn(1, 3, 96, 96)):
        assert 0.05 < level.std() < 20


# --- how it runs ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["googlenet", "googlenet_original"])
def test_odd_sizes_empty_batches_and_channels_last(name):
    net = create_backbone(name, out_indices=(1, 2, 3), transform_input=True).eval()
    x = torch.randn(2, 3, 65, 97)
    expected = net(x)
    assert [len(level) for level in net(x[:0])] == [0, 0, 0]
    net.to(memory_format=torch.channels_last)
    for level, plain in zip(
        net(x.contiguous(memory_format=torch.channels_last)), expected, strict=True
    ):
        torch.testing.assert_close(level, plain, rtol=1e-4, atol=1e-5)


def test_input_transform_compiles_and_exports_as_one_graph():
    net = create_backbone("googlenet", transform_input=True, out_indices=(0,)).eval()
    x = torch.randn(1, 3, 65, 97)
    (expected,) = net(x)
    (compiled,) = torch.compile(net, fullgraph=True, backend="eager")(x)
    assert torch.equal(compiled, expected)
    (exported,) = torch.export.export(net, (x,)).module()(x)
    torch.testing.assert_close(exported, expected)


def test_classifier_is_one_of_ours():
    assert isinstance(create_classifier("googlenet", num_classes=2), Classifier)
