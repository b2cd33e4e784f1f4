"""VGG: equal to torchvision's, described truly, dense where asked."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import torchvision
from torch import nn

from detkit.backbones import FeatureInfo, create_backbone, create_classifier, vgg, weights

DEPTHS = ["vgg11", "vgg13", "vgg16", "vgg19"]
NAMES = [name + end for name in DEPTHS for end in ("", "_bn")]
STAGES = ("conv1", "conv2", "conv3", "conv4", "conv5", "pool5")


def images(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def torchvisions(name: str) -> nn.Module:
    return getattr(torchvision.models, name)()


def their_maps(features: nn.Sequential, x: torch.Tensor) -> list[torch.Tensor]:
    """What goes into each pool, and what comes out of the last."""
    maps = []
    for layer in features:
        if isinstance(layer, nn.MaxPool2d):
            maps.append(x)
        x = layer(x)
    return [*maps, x]


@pytest.fixture(scope="module")
def theirs11(randomise, unfilled):
    """The convolutions of the smallest; the fully connected layers would take a gigabyte."""
    return randomise(unfilled(lambda: torchvisions("vgg11").features))


# --- equal to torchvision ------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_every_stage_equals_torchvisions(name, randomise, unfilled, difference):
    theirs = randomise(unfilled(lambda: torchvisions(name).features))
    ours = unfilled(lambda: create_backbone(name, out_indices=range(6)))
    ours.features.load_state_dict(theirs.state_dict(), strict=True, assign=True)
    x = images(1, 3, 39, 46)
    with torch.no_grad():
        expected = their_maps(theirs, x)
        assert 0.05 < expected[-1].std() < 100, "the maps are too large or too small to compare"
        for ours_map, theirs_map in zip(ours(x), expected, strict=True):
            assert difference(ours_map, theirs_map) < 1e-9


@pytest.mark.parametrize("name", NAMES)
def test_names_and_shapes_are_torchvisions(name):
    with torch.device("meta"):
        ours, theirs = create_classifier(name).state_dict(), torchvisions(name).state_dict()
    assert [(key, value.shape) for key, value in ours.items()] == [
        (key, value.shape) for key, value in theirs.items()
    ]


def test_logits_equal_torchvisions(unfilled, difference):
    """Of the smallest network only: its head is that of all, and takes a gigabyte."""
    theirs = unfilled(lambda: torchvisions("vgg11"))
    ours = unfilled(lambda: create_classifier("vgg11"))
    generator = torch.Generator().manual_seed(0)
    for value in theirs.state_dict().values():  # uniform numbers are quicker than normal ones
        bound = (6 / value[0].numel()) ** 0.5 if value.ndim > 1 else 0.1
        value.uniform_(-bound, bound, generator=generator)
    ours.load_state_dict(theirs.state_dict(), strict=True, assign=True)
    x = images(2, 3, 48, 80)  # not the size of which nothing is pooled or repeated
    with torch.no_grad():
        logits = theirs(x)
        assert 0.1 < logits.std() < 100
        assert difference(ours(x), logits) < 1e-9


def test_our_state_dict_loads_in_torchvision(randomise, unfilled, difference):
    ours = randomise(unfilled(lambda: create_backbone("vgg11_bn", out_indices=(-1,))), seed=3)
    theirs = unfilled(lambda: torchvisions("vgg11_bn").features)
    state = {key.removeprefix("features."): value for key, value in ours.state_dict().items()}
    theirs.load_state_dict(state, strict=True)
    x = images(1, 3, 32, 32)
    with torch.no_grad():
        assert difference(ours(x)[0], theirs(x)) < 1e-9


def another_padding(net: nn.Module) -> None:
    net.features[8].padding = (0, 0)


def another_eps(net: nn.Module) -> None:
    net.features[9].eps = 1e-4


def ceiling(net: nn.Module) -> None:
    net.features[-1].ceil_mode = True


@pytest.mark.parametrize("mutate", [another_padding, another_eps, ceiling])
def test_the_comparison_sees_a_small_change(mutate, randomise, unfilled, difference):
    net = randomise(unfilled(lambda: create_backbone("vgg11_bn", out_indices=(-1,))))
    x = images(1, 3, 80, 80)
    with torch.no_grad():
        (before,) = net(x)
        mutate(net)
        (after,) = net(x)
    assert after.shape != before.shape or difference(after, before) > 1e-7


@pytest.mark.parametrize(
    ("name", "parameters", "keys", "macs"),
    [
        ("vgg11", 132_863_336, 22, 7_609_090_048),
        ("vgg13", 133_047_848, 26, 11_308_466_176),
        ("vgg16", 138_357_544, 32, 15_470_264_320),
        ("vgg19", 143_667_240, 38, 19_632_062_464),
        ("vgg11_bn", 132_868_840, 62, 7_609_090_048),
        ("vgg13_bn", 133_053_736, 76, 11_308_466_176),
        ("vgg16_bn", 138_365_992, 97, 15_470_264_320),
        ("vgg19_bn", 143_678_248, 118, 19_632_062_464),
    ],
)
def test_size(name, parameters, keys, macs, count_macs):
    with torch.device("meta"):
        net = create_classifier(name)
    assert sum(each.numel() for each in net.parameters()) == parameters
    assert len(net.state_dict()) == keys
    assert count_macs(net, 224) == macs


def test_initial_weights_are_torchvisions():
    torch.manual_seed(0)
    state = create_backbone("vgg11_bn", out_indices=(3,)).state_dict()
    for name, value in state.items():
        if value.ndim == 4:  # He et al. 2015, by what goes out
            assert value.std() == pytest.approx((2 / (value.shape[0] * 9)) ** 0.5, rel=0.1), name
        elif name.endswith("bias"):
            assert not value.any(), name
    head = nn.Sequential(nn.Linear(300, 200))
    vgg._initialise(head)
    assert head[0].weight.detach().std() == pytest.approx(0.01, rel=0.05) and not head[0].bias.any()


# --- what it says of its maps --------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "behind_pools", "fc6"),
    [
        ("vgg11", (4, 10, 30, 70, 150), 342),
        ("vgg13", (6, 16, 36, 76, 156), 348),
        ("vgg16", (6, 16, 44, 100, 212), 404),
        ("vgg19", (6, 16, 52, 124, 268), 460),
    ],
)
def test_what_the_cells_behind_each_pool_see(name, behind_pools, fc6, along_the_chain):
    with torch.device("meta"):
        net = create_backbone(name, out_indices=(-1,))
        seen = along_the_chain(net)
        net.features.append(nn.Conv2d(512, 4096, 7))
        assert along_the_chain(net)[-1][0] == fc6
    pools = [now for before, now in pairwise(seen) if now[1] > before[1]]
    centers = (0.5, 1.5, 3.5, 7.5, 15.5)
    assert pools == list(zip(behind_pools, (2, 4, 8, 16, 32), centers, strict=True))


def test_feature_info():
    with torch.device("meta"):
        net = create_backbone("vgg16")
    assert net.feature_info == (
        FeatureInfo("conv3", 256, 4, 40, 1.5),
        FeatureInfo("conv4", 512, 8, 92, 3.5),
        FeatureInfo("conv5", 512, 16, 196, 7.5),
        FeatureInfo("pool5", 512, 32, 212, 15.5),
    )
    with torch.device("meta"):
        every = create_backbone("vgg16", out_indices=range(6)).feature_info
    assert [(info.name, info.stride) for info in every] == list(
        zip(STAGES, (1, 2, 4, 8, 16, 32), strict=True)
    )


def test_receptive_field_is_what_the_gradient_reaches(reached):
    net = create_backbone("vgg11", out_indices=range(6))
    described = [(info.receptive_field, info.center) for info in net.feature_info]
    assert list(reached(net, 225)) == described


# --- settings ------------------------------------------------------------------------------


@pytest.mark.parametrize("output_stride", [8, 16])
def test_every_second_cell_of_a_dense_map_is_the_strided_map(
    output_stride, theirs11, unfilled, difference
):
    def build(**settings) -> nn.Module:
        net = unfilled(lambda: create_backbone("vgg11", out_indices=(3, 4, 5), **settings))
        net.features.load_state_dict(theirs11.state_dict(), assign=True)
        return net

    strided, dense = build(), build(output_stride=output_stride)
    x = images(1, 3, 71, 100)
    with torch.no_grad():
        for ours, plain, info, sparse in zip(
            dense(x), strided(x), dense.feature_info, strided.feature_info, strict=True
        ):
            step = sparse.stride // info.stride
            assert info.stride == min(sparse.stride, output_stride)
            assert (info.receptive_field, info.center) == (sparse.receptive_field, sparse.center)
            assert difference(ours[..., ::step, ::step][..., : plain.shape[2], : plain.shape[3]],
                              plain) < 1e-12  # fmt: skip
            assert ours.shape[2] >= step * (plain.shape[2] - 1) + 1


def test_without_its_last_pool_it_ends_with_stride_16():
    with torch.device("meta"):
        net = create_backbone("vgg11", last_pool=False)
        assert [info.name for info in net.feature_info] == ["conv3", "conv4", "conv5"]
        head = create_classifier("vgg11", last_pool=False, num_classes=5)
        assert head(torch.empty(2, 3, 64, 96)).shape == (2, 5)
        with pytest.raises(ValueError, match=r"\(5,\) not in -5..4 for vgg11"):
            create_backbone("vgg11", last_pool=False, out_indices=(5,))


@pytest.mark.parametrize(
    ("out_indices", "features"), [((0,), 2), ((1,), 5), ((2, 0), 10), ((4,), 20), ((5,), 21)]
)
def test_only_the_stages_needed_are_built(out_indices, features):
    with torch.device("meta"):
        net = create_backbone("vgg11", out_indices=out_indices)
    assert len(net.features) == features
    assert len(net.stages()) == max(out_indices) + 1


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_a_norm_stands_behind_each_convolution(norm):
    with torch.device("meta"):
        net = create_backbone("vgg13", norm=norm, norm_eps=1e-3)
    kinds = [type(layer) for layer in net.features]
    norms = [each for each, before in zip(kinds[1:], kinds, strict=False) if before is nn.Conv2d]
    assert norms == [nn.BatchNorm2d if norm == "batch" else nn.GroupNorm] * 10
    assert net.features[1].eps == 1e-3


def test_attention_after_chosen_convolutions():
    def places(**settings) -> list[str]:
        with torch.device("meta"):
            net = create_backbone("vgg13", attention="se", **settings)
            assert net(torch.empty(1, 3, 64, 64))[-1].shape == (1, 512, 2, 2)
        assert net.features[2].in_channels == 64
        return [f"{each.rpartition('.')[0]}:{each.rpartition('.')[2]}" for each in
                (name.removesuffix(".") for name in net.attention_names())]  # fmt: skip

    assert places() == [f"after_stage:conv{index}" for index in range(1, 6)]  # a pool is no block
    assert places(attention_stages=(5,)) == ["after_stage:pool5"]
    every = places(attention_at="after_block")
    # behind the ReLUs, which follow the convolutions
    assert every == [f"after_block:{n}" for n in (1, 3, 6, 8, 11, 13, 16, 18, 21, 23)]
    chosen = places(attention_at="after_block", attention_stages={1: (0,), 4: (-1,)})
    assert chosen == ["after_block:6", "after_block:23"]


def test_attention_after_a_block_changes_what_comes_behind_it(theirs11, unfilled, difference):
    settings = {"attention": "se", "attention_at": "after_block", "attention_stages": {2: (1,)}}
    net = create_backbone("vgg11", out_indices=(1, 2, 3), **settings).double().eval()
    plain = unfilled(lambda: create_backbone("vgg11", out_indices=(1, 2, 3)))
    plain.load_state_dict(net.state_dict(), strict=False)
    (module,) = net.after_block.values()
    x = images(1, 3, 32, 48)
    with torch.no_grad():
        ours, theirs = net(x), plain(x)
        assert torch.equal(ours[0], theirs[0])
        assert difference(ours[1], module(theirs[1])) < 1e-12
        assert difference(ours[1], theirs[1]) > 1e-3
        assert difference(ours[2], plain.features[10:15](ours[1])) < 1e-12
        assert difference(ours[2], theirs[2]) > 1e-3


def test_attention_of_fixed_size_is_told_the_stride_of_its_place():
    """224 / 8 = 28 and 224 / 16 = 14 cells: 2 * cells - 1 relative positions."""
    settings = {"attention": "mhsa", "attention_at": "after_block", "attention_stages": (3, 4)}
    with torch.device("meta"):
        net = create_backbone("vgg11", **settings)
    sizes = [len(each.pos_embed.height_rel) for each in net.after_block.values()]
    assert sizes == [55, 55, 27, 27]


def test_every_parameter_gets_a_gradient():
    torch.manual_seed(0)
    net = create_backbone("vgg11_bn", out_indices=(-1,))
    net(torch.randn(2, 3, 64, 64))[0].square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad.isfinite().all(), name
        # the norm takes away what a bias adds
        if not (name.endswith("bias") and net.features[int(name.split(".")[1])].weight.ndim == 4):
            assert parameter.grad.abs().sum() > 0, name


# --- published weights ---------------------------------------------------------------------


def light(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same names and shapes, but for the head one number each, which is what is saved."""
    return {
        key: torch.tensor(0.25).expand(value.shape) if key.startswith("classifier") else value
        for key, value in state.items()
    }


@pytest.fixture(scope="module")
def file11(tmp_path_factory):
    """A file as torchvision publishes it, without its weight."""
    torch.manual_seed(0)
    with torch.device("meta"):
        state = torchvisions("vgg11").state_dict()
    features = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["A"])
    state |= {f"features.{key}": value for key, value in features.state_dict().items()}
    path = tmp_path_factory.mktemp("vgg") / "vgg11.pth"
    torch.save(light(state), path)
    return path


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("vgg11", "vgg11-8a719046.pth"),
        ("vgg13_bn", "vgg13_bn-abd245e5.pth"),
        ("vgg16", "vgg16-397923af.pth"),
        ("vgg19_bn", "vgg19_bn-c79401a0.pth"),
    ],
)
def test_published_url(name, file):
    assert weights.published_url(name, "imagenet").endswith(f"/{file}")


@pytest.mark.parametrize("settings", [{}, {"out_indices": (1,)}, {"last_pool": False}])
def test_the_classifiers_file_fits_the_backbone(file11, settings):
    net = create_backbone("vgg11", weights=file11, **settings)
    state = torch.load(file11)
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


def test_a_deeper_networks_file_does_not_fit(file11):
    with pytest.raises(ValueError, match=r"vgg11.pth do not fit vgg16: .* missing"):
        create_backbone("vgg16", weights=file11)
    with pytest.raises(ValueError, match=r"vgg11.pth do not fit vgg11_bn: .* unexpected"):
        create_backbone("vgg11_bn", weights=file11, out_indices=(1,))


def test_grey_input_gives_what_the_colour_network_gives(file11):
    grey = create_backbone("vgg11", weights=file11, in_channels=1, out_indices=(0, 2)).eval()
    colour = create_backbone("vgg11", weights=file11, out_indices=(0, 2)).eval()
    x = torch.rand(1, 1, 40, 40)
    with torch.no_grad():
        for ours, theirs in zip(grey(x), colour(x.expand(1, 3, 40, 40)), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


# --- mistakes ------------------------------------------------------------------------------


@pytest.mark.parametrize(("out_indices", "side"), [((0,), 1), ((1,), 2), ((4,), 16), ((5, 2), 32)])
def test_least_side(out_indices, side):
    with torch.device("meta"):
        net = create_backbone("vgg11", out_indices=out_indices)
        assert net.least_side == side
        assert all(min(each.shape[2:]) >= 1 for each in net(torch.empty(1, 3, side, side)))


def test_an_image_too_small_is_explained():
    with torch.device("meta"):
        net = create_backbone("vgg11")
        with pytest.raises(
            ValueError, match=r"vgg11 .* at least 32x32 pixels, got 31x64"
        ) as caught:
            net(torch.empty(1, 3, 31, 64))
        with pytest.raises(ValueError, match="got 64x31"):
            net(torch.empty(1, 3, 64, 31))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"output_stride": 4}, "output_stride must be 8, 16 or 32, got 4"),
        ({"norm": "bach"}, "unknown norm 'bach'; did you mean 'batch'"),
        ({"dense": True}, "vgg11 has no setting 'dense'"),
        ({"out_indices": (6,)}, "not in -6..5 for vgg11 .0 is conv1, 5 is pool5"),
        (
            {"attention": "se", "attention_at": "after_block", "attention_stages": (4, 5)},
            r"attention_stages \[5\] of vgg11 have no place 'after_block'",
        ),
        (
            {"attention": "se", "attention_at": "after_block", "attention_stages": {0: (1,)}},
            "names block 1 of stage 0, which has 1",
        ),
    ],
)
def test_mistakes_are_explained(settings, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message) as caught:
        create_backbone("vgg11", **settings)
    assert "\n" not in str(caught.value)
