"""The kin of ResNet: v1, D, ResNeXt, Wide ResNet, dilation, stochastic depth."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.ops import StochasticDepth

from detkit.backbones import create_backbone, create_classifier

STAGES = {"relu": "0", "layer1": "1", "layer2": "2", "layer3": "3", "layer4": "4"}


def images(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def stride_on_the_first_convolution(net: nn.Module) -> nn.Module:
    """Turn torchvision's v1.5 into v1, as its authors published it."""
    for module in net.modules():
        if isinstance(module, torchvision.models.resnet.Bottleneck):
            module.conv1.stride, module.conv2.stride = module.conv2.stride, (1, 1)
    return net


def assert_same_network(ours, theirs, difference, x):
    """Same names in the same order, same logits, same map of every stage."""
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict(), strict=True, assign=True)
    theirs.load_state_dict(ours.state_dict(), strict=True, assign=True)
    with torch.no_grad():
        logits = theirs(x)
        assert 0.01 < logits.std() < 100, "the logits are too large or too small to compare"
        assert difference(ours(x), logits) < 1e-9
        names = {k: v for k, v in STAGES.items() if hasattr(theirs, k)}
        expected = IntermediateLayerGetter(theirs, names)(x)
        ours.body.out_indices = tuple(int(v) for v in names.values())
        for ours_map, theirs_map in zip(ours.body(x), expected.values(), strict=True):
            assert difference(ours_map, theirs_map) < 1e-9


@pytest.mark.parametrize(
    "name", ["resnext50_32x4d", "resnext101_32x8d", "wide_resnet50_2", "wide_resnet101_2"]
)
def test_equals_torchvisions(name, randomise, unfilled, difference):
    theirs = randomise(unfilled(getattr(torchvision.models, name)))
    ours = unfilled(lambda: create_classifier(name))
    assert_same_network(ours, theirs, difference, images(1, 3, 45, 67))


def test_v1_has_its_stride_on_the_first_convolution(randomise, unfilled, difference):
    theirs = stride_on_the_first_convolution(randomise(unfilled(torchvision.models.resnet50)))
    ours = unfilled(lambda: create_classifier("resnet50_v1"))
    assert_same_network(ours, theirs, difference, images(1, 3, 61, 83))


@pytest.mark.parametrize("name", ["resnet18d", "resnet26d", "resnet50d"])
def test_model_d_equals_timms(name, randomise, unfilled, difference):
    timm = pytest.importorskip("timm")
    theirs = randomise(unfilled(lambda: timm.create_model(name)))
    ours = unfilled(lambda: create_classifier(name))
    x = images(1, 3, 64, 96)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict(), strict=True, assign=True)
    with torch.no_grad():
        assert difference(ours(x), theirs(x)) < 1e-9
        ours.body.out_indices = (1, 2, 3, 4)
        for mine, other in zip(ours.body(x), theirs.forward_intermediates(x)[1][1:], strict=True):
            assert difference(mine, other) < 1e-9


@pytest.mark.parametrize("name", ["resnet18d", "resnet50d"])
def test_model_d_takes_odd_sizes(name):
    net = create_backbone(name, width=8).eval()
    assert [tuple(m.shape[2:]) for m in net(torch.zeros(1, 3, 61, 83))][-1] == (2, 3)


@pytest.mark.parametrize("name", ["resnet50", "resnet50_v1", "resnet50d", "resnext50_32x4d"])
def test_mutations_are_seen(name, randomise, unfilled, difference):
    """A comparison that a moved stride, a wrong group or a left-out pooling would pass is none."""
    net = randomise(unfilled(lambda: create_backbone(name, out_indices=(4,), width=16)))
    others = {"resnet50", "resnet50_v1"} - {name} if name in ("resnet50", "resnet50_v1") else set()
    x = images(1, 3, 64, 64)
    with torch.no_grad():
        for other in others:
            twin = unfilled(lambda other=other: create_backbone(other, out_indices=(4,), width=16))
            twin.load_state_dict(net.state_dict())
            assert difference(twin(x)[0], net(x)[0]) > 1e-3
        before = net(x)[0]
        shortcut = net.layer2[0].downsample
        if name == "resnet50d":
            shortcut[0] = nn.MaxPool2d(2)
        else:
            net.layer2[0].bn2.eps = 1e-2
        assert difference(net(x)[0], before) > 1e-7


# (RF after stem, C2 .. C5)
@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("resnet50_v1", (7, 35, 99, 291, 483)),
        ("resnet101_v1", (7, 35, 99, 835, 1027)),
        ("resnet152_v1", (7, 35, 163, 1315, 1507)),
        ("resnet50d", (11, 39, 95, 271, 431)),
        ("resnet101d", (11, 39, 95, 815, 975)),
        ("resnext50_32x4d", (7, 35, 91, 267, 427)),
        ("wide_resnet50_2", (7, 35, 91, 267, 427)),
    ],
)
def test_receptive_fields(name, fields):
    with torch.device("meta"):
        infos = create_backbone(name, out_indices=(0, 1, 2, 3, 4)).feature_info
    assert tuple(info.receptive_field for info in infos) == fields
    assert [info.stride for info in infos] == [2, 4, 8, 16, 32]
    assert {info.center for info in infos} == {0.0}


@pytest.mark.parametrize("name", ["resnet50_v1", "resnet50d"])
def test_receptive_field_is_what_the_gradient_reaches(name):
    net = create_backbone(name, out_indices=(0, 2, 4), width=8).double().eval()
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.constant_(module.weight, 1 / module.weight[0].numel())
    net.maxpool = nn.AvgPool2d(3, stride=2, padding=1)
    x = torch.rand(1, 3, 1153, 33, dtype=torch.float64, requires_grad=True)
    for level, info in zip(net(x), net.feature_info, strict=True):
        middle = level.shape[2] // 2
        (gradient,) = torch.autograd.grad(level[0, :, middle].sum(), x, retain_graph=True)
        rows = gradient.abs().sum(dim=(0, 1, 3)).nonzero().flatten()
        assert len(rows) == info.receptive_field
        assert (rows[0] + rows[-1]) / 2 == info.center + middle * info.stride


# --- dilation ------------------------------------------------------------------------------


@pytest.mark.parametrize(("output_stride", "dilated"), [(16, (0, 0, 1)), (8, (0, 1, 1))])
@pytest.mark.parametrize("name", ["resnet50", "resnext50_32x4d"])
def test_output_stride_equals_torchvisions_dilation(
    name, output_stride, dilated, randomise, unfilled, difference
):
    build = getattr(torchvision.models, name)
    theirs = randomise(
        unfilled(lambda: build(replace_stride_with_dilation=[bool(each) for each in dilated]))
    )
    ours = unfilled(lambda: create_classifier(name, output_stride=output_stride))
    assert_same_network(ours, theirs, difference, images(1, 3, 49, 65))
    assert ours.body.feature_info[-1].stride == output_stride


def test_dilated_maps_keep_the_receptive_field_of_strides():
    with torch.device("meta"):
        infos = [create_backbone("resnet50", output_stride=s).feature_info for s in (32, 16, 8)]
    assert [each[-1].stride for each in infos] == [32, 16, 8]
    # the first block of a layer still meets the old spacing: it sees as far as it did with a stride
    assert [each[-1].receptive_field for each in infos] == [427, 427, 427]


# --- stochastic depth ----------------------------------------------------------------------


def test_drop_path_grows_linearly_with_depth():
    net = create_backbone("resnet18", width=8, drop_path=0.4)
    rates = [each.p for each in net.modules() if isinstance(each, StochasticDepth)]
    assert rates == pytest.approx([0.05 * n for n in range(1, 9)])
    assert not any(isinstance(m, StochasticDepth) for m in create_backbone("resnet18").modules())


def test_drop_path_skips_whole_branches_in_training_only():
    net = create_backbone("resnet18", width=8, drop_path=0.5, out_indices=(1,))
    block = net.layer1[1]
    block.drop_path.p = 0.5
    x = torch.rand(64, 8, 4, 4)
    block.train().bn1.eval(), block.bn2.eval()
    torch.manual_seed(0)
    skipped = (block(x) == x).flatten(1).all(dim=1)
    assert 16 < skipped.sum() < 48
    assert not (block.eval()(x) == x).flatten(1).all(dim=1).any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"drop_path": 1.0}, r"drop_path is a probability in \[0, 1\), got 1.0"),
        ({"drop_path": -0.1}, "drop_path is a probability"),
        ({"output_stride": 4}, "output_stride must be 8, 16 or 32, got 4"),
        ({"output_strid": 16}, "did you mean 'output_stride'"),
    ],
)
def test_mistakes_are_explained(settings, message):
    with pytest.raises(ValueError, match=message):
        create_backbone("resnet18", **settings)


def test_groups_keep_a_channel():
    assert create_backbone("resnext50_32x4d", width=16).layer1[0].conv2.weight.shape == (
        32,
        1,
        3,
        3,
    )
    for name in ("resnet18d", "scnet50"):  # which halve it
        with pytest.raises(ValueError, match="width must be at least 2, got 1; 64 is the publis"):
            create_backbone(name, width=1)
        create_backbone(name, width=2, out_indices=(1,))
    with pytest.raises(ValueError, match="width must be at least 16, got 15; 64 is the published"):
        create_backbone("resnext50_32x4d", width=15)
