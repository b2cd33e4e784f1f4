"""ResNets: equal to torchvision's, described truly, and frozen where asked."""

from __future__ import annotations

import copy

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
    list_backbones,
)
from detkit.backbones.feature_info import describe
from detkit.nn import FrozenBatchNorm2d

NAMES = ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]
TORCHVISION_STAGES = {"relu": "0", "layer1": "1", "layer2": "2", "layer3": "3", "layer4": "4"}


def images(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.fixture(scope="module")
def theirs18(randomise, unfilled):
    return randomise(unfilled(torchvision.models.resnet18))


@pytest.fixture(scope="module")
def theirs50(randomise, unfilled):
    return randomise(unfilled(torchvision.models.resnet50))


# --- equal to torchvision ------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_every_stage_and_the_logits_equal_torchvisions(name, randomise, difference, unfilled):
    theirs = randomise(unfilled(getattr(torchvision.models, name)))
    body = unfilled(lambda: create_backbone(name, out_indices=(0, 1, 2, 3, 4)))
    ours = Classifier(body, body.head(1000).double())
    assert list(ours.state_dict()) == list(theirs.state_dict())
    # assign: sharing the values instead of copying them halves the time of the deep ones
    ours.load_state_dict(theirs.state_dict(), strict=True, assign=True)

    x = images(1, 3, 64, 64) if name in ("resnet101", "resnet152") else images(2, 3, 61, 83)
    with torch.no_grad():
        logits = theirs(x)
        assert 0.1 < logits.std() < 100, "the logits are too large or too small to compare"
        assert difference(ours(x), logits) < 1e-9
        expected = IntermediateLayerGetter(theirs, TORCHVISION_STAGES)(x)
        for ours_map, theirs_map in zip(body(x), expected.values(), strict=True):
            assert difference(ours_map, theirs_map) < 1e-9


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_our_state_dict_loads_in_torchvision(name, randomise, difference, unfilled):
    ours = randomise(create_classifier(name), seed=3)
    theirs = unfilled(getattr(torchvision.models, name))
    theirs.load_state_dict(ours.state_dict(), strict=True)
    assert theirs.bn1.num_batches_tracked == 7
    x = images(1, 3, 64, 64)
    with torch.no_grad():
        assert difference(ours(x), theirs(x)) < 1e-9


def stride_on_the_first_convolution(net: nn.Module) -> None:
    """Turn v1.5 into v1: the shapes stay, the values do not."""
    block = net.layer2[0]
    block.conv1.stride, block.conv2.stride = (2, 2), (1, 1)


def another_eps(net: nn.Module) -> None:
    net.layer3[1].bn2.eps = 1e-3


def ceiling_padding(net: nn.Module) -> None:
    net.maxpool.padding, net.maxpool.ceil_mode = 0, True


@pytest.mark.parametrize("mutate", [stride_on_the_first_convolution, another_eps, ceiling_padding])
def test_the_comparison_sees_a_small_change(mutate, theirs50, difference, unfilled):
    ours = unfilled(lambda: create_backbone("resnet50", out_indices=(4,)))
    ours.load_state_dict({k: v for k, v in theirs50.state_dict().items() if "fc." not in k})
    x = images(1, 3, 64, 64)
    with torch.no_grad():
        (before,) = ours(x)
        mutate(ours)
        (after,) = ours(x)
    assert difference(after, before) > 1e-7


@pytest.mark.parametrize(
    ("name", "parameters", "keys"),
    [
        ("resnet18", 11_689_512, 122),
        ("resnet34", 21_797_672, 218),
        ("resnet50", 25_557_032, 320),
        ("resnet101", 44_549_160, 626),
        ("resnet152", 60_192_808, 932),
    ],
)
def test_size(name, parameters, keys):
    with torch.device("meta"):
        net = create_classifier(name)
    assert sum(each.numel() for each in net.parameters()) == parameters
    assert len(net.state_dict()) == keys


def test_training_step_equals_torchvisions(theirs18, difference):
    theirs = copy.deepcopy(theirs18).train()
    ours = create_classifier("resnet18").double()
    ours.load_state_dict(theirs.state_dict())
    x = images(2, 3, 64, 64)
    ours.train()(x).square().sum().backward()
    theirs(x).square().sum().backward()
    assert difference(ours.body.conv1.weight.grad, theirs.conv1.weight.grad) < 1e-9
    after = ours.state_dict()
    assert difference(after["bn1.running_var"], theirs.bn1.running_var) < 1e-12
    assert after["bn1.num_batches_tracked"] == 8


def test_classifier_survives_a_copy(theirs18):
    ours = create_classifier("resnet18").double()
    twin = copy.deepcopy(ours)
    twin.load_state_dict(theirs18.state_dict())
    assert list(twin.state_dict()) == list(theirs18.state_dict())
    assert torch.equal(twin.head.fc.weight, theirs18.fc.weight)
    assert not torch.equal(ours.head.fc.weight, theirs18.fc.weight)


def test_classifier_inside_another_module_keeps_the_outer_name(theirs18):
    outer = nn.ModuleDict({"net": create_classifier("resnet18").double()})
    state = {f"net.{key}": value for key, value in theirs18.state_dict().items()}
    outer.load_state_dict(state, strict=True)
    assert list(outer.state_dict()) == list(state)


# --- what it says of its maps --------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "channels", "receptive_fields"),
    [
        ("resnet18", (64, 64, 128, 256, 512), (7, 43, 99, 211, 435)),
        ("resnet34", (64, 64, 128, 256, 512), (7, 59, 179, 547, 899)),
        ("resnet50", (64, 256, 512, 1024, 2048), (7, 35, 91, 267, 427)),
        ("resnet101", (64, 256, 512, 1024, 2048), (7, 35, 91, 811, 971)),
        ("resnet152", (64, 256, 512, 1024, 2048), (7, 35, 155, 1291, 1451)),
    ],
)
def test_feature_info(name, channels, receptive_fields):
    with torch.device("meta"):
        net = create_backbone(name, out_indices=(0, 1, 2, 3, 4))
    names = ("stem", "layer1", "layer2", "layer3", "layer4")
    strides = (2, 4, 8, 16, 32)
    rows = zip(names, channels, strides, receptive_fields, [0.0] * 5, strict=True)
    assert net.feature_info == tuple(FeatureInfo(*row) for row in rows)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_receptive_field_is_what_the_gradient_reaches(name):
    """A tall thin picture, through a network where no path can cancel another."""
    net = create_backbone(name, out_indices=(0, 1, 2, 3, 4)).double().eval()
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.constant_(module.weight, 1 / module.weight[0].numel())
    net.maxpool = nn.AvgPool2d(3, stride=2, padding=1)  # the maximum would pick one way only
    x = torch.rand(1, 3, 1025, 33, dtype=torch.float64, requires_grad=True)
    for level, info in zip(net(x), net.feature_info, strict=True):
        middle = level.shape[2] // 2
        (gradient,) = torch.autograd.grad(level[0, :, middle].sum(), x, retain_graph=True)
        rows = gradient.abs().sum(dim=(0, 1, 3)).nonzero().flatten()
        assert len(rows) == rows[-1] - rows[0] + 1 == info.receptive_field
        # with these paddings the centre of cell i is at pixel i * stride
        assert (rows[0] + rows[-1]) / 2 == middle * info.stride


def test_description_follows_the_layers():
    net = create_backbone("resnet50", out_indices=(4,))
    net.layer4[0].conv2.stride = (1, 1)
    net.layer4[1].conv2.dilation = (2, 2)
    (info,) = net.feature_info
    # three 3x3 kernels at stride 16, of which one is twice as wide: 267 + 16 * (2 + 4 + 2)
    assert (info.stride, info.receptive_field) == (16, 395)


def test_a_module_of_unknown_order_cannot_be_described():
    with pytest.raises(TypeError, match="ModuleList needs a main_path"):
        describe("map", 3, [nn.ModuleList([nn.Conv2d(3, 4, 3)])])


@pytest.mark.parametrize("shape", [(1, 3, 33, 65), (2, 3, 64, 96), (1, 3, 1, 1)])
def test_maps_have_the_described_shape(shape):
    net = create_backbone("resnet18", out_indices=(0, 1, 2, 3, 4), width=8).eval()
    for level, info in zip(net(torch.zeros(shape)), net.feature_info, strict=True):
        height, width = (-(-side // info.stride) for side in shape[2:])
        assert level.shape == (shape[0], info.channels, height, width)


@pytest.mark.parametrize(
    ("out_indices", "names", "built"),
    [
        ((-1,), ["layer4"], 5),
        ((2, 3), ["layer2", "layer3"], 4),
        ((3, 1), ["layer3", "layer1"], 4),
        ((0,), ["stem"], 1),
        ((-5, -4), ["stem", "layer1"], 2),
    ],
)
def test_only_the_stages_needed_are_built(out_indices, names, built):
    net = create_backbone("resnet18", out_indices=out_indices, width=8).eval()
    assert [info.name for info in net.feature_info] == names
    assert len(net.stages()) == built
    tops = {key.split(".")[0] for key in net.state_dict()}
    assert tops == {"conv1", "bn1", *(f"layer{index}" for index in range(1, built))}
    whole = create_backbone("resnet18", out_indices=(0, 1, 2, 3, 4), width=8).eval()
    net.load_state_dict({k: v for k, v in whole.state_dict().items() if k in net.state_dict()})
    x = torch.randn(1, 3, 40, 40)
    expected = whole(x)
    for level, index in zip(net(x), out_indices, strict=True):
        assert torch.equal(level, expected[index])


# --- settings ------------------------------------------------------------------------------


def norms(module: nn.Module) -> list[nn.Module]:
    return [each for each in module.modules() if hasattr(each, "running_var")]


@pytest.mark.parametrize("trainable_layers", range(6))
def test_frozen_stages_are_torchvisions_trainable_layers(trainable_layers):
    theirs = torchvision.models.detection.backbone_utils.resnet_fpn_backbone(
        backbone_name="resnet18",
        weights=None,
        norm_layer=nn.BatchNorm2d,
        trainable_layers=trainable_layers,
    ).body
    ours = create_backbone("resnet18", frozen_stages=5 - trainable_layers)
    assert {name: each.requires_grad for name, each in ours.named_parameters()} == {
        name: each.requires_grad for name, each in theirs.named_parameters()
    }


@pytest.mark.parametrize(
    ("frozen_stages", "changing"),
    [(0, 5), (1, 4), (2, 3), (5, 0)],
)
def test_norms_of_frozen_stages_keep_their_statistics(frozen_stages, changing):
    net = create_backbone("resnet18", width=8, frozen_stages=frozen_stages)
    before = copy.deepcopy(net.state_dict())
    net(torch.randn(2, 3, 64, 64))
    changed = {
        name.split(".")[0]
        for name, value in net.state_dict().items()
        if not torch.equal(value, before[name])
    }
    assert changed == set(["layer4", "layer3", "layer2", "layer1", "bn1"][:changing])
    for index, stage in enumerate(net.stages()):
        for norm in [norm for module in stage for norm in norms(module)]:
            assert norm.training == (index >= frozen_stages)
    assert net.training
    assert not any(each.training for each in net.eval().modules())


def test_freezing_reaches_no_further_than_what_is_built():
    net = create_backbone("resnet18", width=8, out_indices=(1,), frozen_stages=4)
    assert not any(each.requires_grad for each in net.parameters())


def test_gradients_stop_at_the_frozen_stages():
    net = create_backbone("resnet18", width=8, frozen_stages=2)
    sum(level.sum() for level in net(torch.randn(2, 3, 64, 64))).backward()
    assert net.conv1.weight.grad is None and net.layer1[0].conv1.weight.grad is None
    assert all(each.grad is not None for each in net.layer2.parameters())


def test_every_parameter_gets_a_gradient():
    net = create_classifier("resnet50", width=8, num_classes=3)
    net(torch.randn(2, 3, 64, 64)).square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.abs().sum() > 0, name


def test_frozen_norm_gives_what_batch_norm_gives_in_evaluation(theirs50, difference, unfilled):
    state = {k: v for k, v in theirs50.state_dict().items() if "fc." not in k}
    frozen = unfilled(lambda: create_backbone("resnet50", norm="frozen_batch"))
    assert all(isinstance(each, FrozenBatchNorm2d) for each in norms(frozen))
    frozen.load_state_dict(state, strict=True)
    batch = unfilled(lambda: create_backbone("resnet50"))
    batch.load_state_dict(frozen.state_dict(), strict=True)
    x = images(2, 3, 65, 64)
    with torch.no_grad():
        for ours, theirs in zip(frozen.train()(x), batch(x), strict=True):
            assert difference(ours, theirs) < 1e-9


def test_norm_eps_reaches_every_norm():
    for norm in ("batch", "frozen_batch", "group"):
        net = create_backbone("resnet18", width=8, norm=norm, norm_eps=0.25)
        found = [each.eps for each in net.modules() if hasattr(each, "eps")]
        assert found == [0.25] * 20


def test_group_norm_gives_finite_maps_for_one_image():
    net = create_backbone("resnet50", width=24, norm="group")
    assert all(level.isfinite().all() for level in net(torch.randn(1, 3, 64, 64)))


@pytest.mark.parametrize("in_channels", [1, 4])
def test_in_channels(in_channels):
    net = create_backbone("resnet18", width=8, in_channels=in_channels)
    assert net(torch.randn(2, in_channels, 64, 64))[0].shape == (2, 8, 16, 16)


def test_width_scales_every_layer_and_keeps_the_names():
    narrow = create_classifier("resnet50", width=16)
    assert [info.channels for info in narrow.body.feature_info] == [512]
    assert list(narrow.state_dict()) == list(torchvision.models.resnet50().state_dict())


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_zero_init_residual_makes_blocks_start_as_the_identity(name):
    net = create_backbone(name, width=8, zero_init_residual=True)
    block = net.layer1[1]
    x = torch.rand(2, block.conv1.in_channels, 5, 5)
    assert torch.equal(block(x), x)
    plain = create_backbone(name, width=8).layer1[1]
    assert not torch.allclose(plain(x), x)


def test_initial_weights_have_torchvisions_spread():
    torch.manual_seed(0)
    ours = create_classifier("resnet18").state_dict()
    theirs = torchvision.models.resnet18().state_dict()
    for name, value in theirs.items():
        if value.is_floating_point() and value.numel() > 1000:
            assert ours[name].std() == pytest.approx(value.std().item(), rel=0.1), name
    assert (ours["layer1.0.bn2.weight"] == 1).all()


# --- how it runs ---------------------------------------------------------------------------


def test_compiles_as_one_graph():
    net = create_backbone("resnet18", width=8, norm="frozen_batch", frozen_stages=1)
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    x = torch.randn(1, 3, 40, 56)
    for ours, theirs in zip(compiled(x), net(x), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("norm", ["batch", "frozen_batch"])
def test_channels_last_goes_through(norm):
    net = create_backbone("resnet50", width=8, norm=norm, out_indices=(0, 1, 2, 3, 4)).eval()
    x = torch.randn(2, 3, 64, 64)
    expected = net(x)
    net.to(memory_format=torch.channels_last)
    for level, plain in zip(
        net(x.contiguous(memory_format=torch.channels_last)), expected, strict=True
    ):
        assert level.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(level, plain, rtol=1e-4, atol=1e-4)


def test_no_images_give_empty_maps():
    net = create_backbone("resnet18", width=8).eval()
    assert [len(level) for level in net(torch.zeros(0, 3, 64, 64))] == [0, 0, 0, 0]


# --- mistakes ------------------------------------------------------------------------------


def test_list_backbones():
    assert set(NAMES) < set(list_backbones("resnet*"))
    assert list_backbones("resnet5*_v1") == ["resnet50_v1"]
    assert list_backbones("nothing*") == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"out_indices": (1, 5)}, r"\(1, 5\) not in -5..4 for resnet18 .0 is stem, 4 is layer4"),
        ({"out_indices": (-6,)}, "not in -5..4"),
        ({"out_indices": ()}, "at least one stage, each once"),
        ({"out_indices": (4, -1)}, "at least one stage, each once"),
        ({"in_channels": 0}, "in_channels must be at least 1, got 0"),
        ({"norm": "bach"}, "unknown norm 'bach'; did you mean 'batch'"),
        ({"frozen_stages": 6}, "frozen_stages 6 not in 0..5 for resnet18"),
        ({"frozen_stages": -1}, "frozen_stages -1 not in 0..5"),
        ({"width": 0}, "width must be at least 1, got 0"),
        ({"widht": 32}, "resnet18 has no setting 'widht'; did you mean 'width'"),
        ({"atention": "se"}, "resnet18 has no setting 'atention'; did you mean 'attention'"),
        ({"architecture": None}, "resnet18 has no setting 'architecture'"),
        ({"attention": "no_such"}, "unknown attention module 'no_such'"),
        ({"zero_init_residual": True, "norm": "frozen_batch"}, "would never learn; use norm"),
    ],
)
def test_mistakes_are_explained(settings, message):
    with pytest.raises(ValueError, match=message) as caught:
        create_backbone("resnet18", **settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("num_classes", [0, -1])
def test_a_classifier_has_classes(num_classes):
    with pytest.raises(ValueError, match=f"num_classes must be at least 1, got {num_classes}"):
        create_classifier("resnet18", num_classes=num_classes)


def test_unknown_name():
    with pytest.raises(ValueError, match="unknown backbone 'resnet5'; did you mean 'resnet50'"):
        create_backbone("resnet5")
