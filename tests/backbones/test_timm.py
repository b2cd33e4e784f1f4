"""Networks of timm as backbones: the same maps, described truly, with the usual settings."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from detkit.backbones import FeatureInfo, create_backbone, create_classifier, list_backbones
from detkit.registry import backbones

NAME = "timm:resnet10t"


@pytest.fixture(autouse=True)
def timm():
    return pytest.importorskip("timm")


@pytest.fixture
def no_timm(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)


def images(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


# --- the same maps -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "out_indices"),
    [("resnet10t", (0, 3)), ("convnext_atto", (0, 1)), ("mobilenetv3_small_050", (4, 1))],
)
def test_maps_equal_timms(timm, model, out_indices, randomise, difference):
    ours = randomise(create_backbone(f"timm:{model}", out_indices=out_indices))
    order = tuple(sorted(out_indices))
    theirs = timm.create_model(model, features_only=True, out_indices=order).double().eval()
    theirs.load_state_dict(ours.net.state_dict(), strict=True)
    x = images(2, 3, 64, 96)
    with torch.no_grad():
        expected = dict(zip(order, theirs(x), strict=True))
        for level, index, info in zip(ours(x), out_indices, ours.feature_info, strict=True):
            assert difference(level, expected[index]) < 1e-9
            assert (info.channels, info.receptive_field) == (level.shape[1], None)
            assert info.stride == 64 // level.shape[2] == theirs.feature_info[index]["reduction"]


def test_maps_with_channels_at_the_end_are_turned():
    net = create_backbone("timm:swin_tiny_patch4_window7_224", out_indices=(0,)).eval()
    x = torch.randn(1, 3, 224, 224)
    (level,) = net(x)
    assert torch.equal(level, net.net(x)[0].permute(0, 3, 1, 2))
    assert (net.feature_info[0].channels, net.feature_info[0].center) == (level.shape[1], 1.5)
    with pytest.raises(ValueError, match="no place for attention"):
        create_backbone("timm:swin_tiny_patch4_window7_224", out_indices=(0,), attention="se")


# --- what it says of its maps --------------------------------------------------------------


def test_feature_info():
    net = create_backbone(NAME)
    assert net.feature_info == tuple(
        FeatureInfo(f"layer{i}", 32 * 2**i, 2 ** (i + 1), None, 0.0) for i in (1, 2, 3, 4)
    )
    assert net.training, "measuring leaves the mode as it is"


@pytest.mark.parametrize(
    ("model", "centers"),
    [
        ("convnext_atto", (1.5, 3.5)),  # patches of 4 and of 2 pixels
        ("densenet121", (0, 0, 2)),  # a padded stem, then pools of 2x2
        ("hrnet_w18_small", (0, 0)),  # takes multiples of 32 only
    ],
)
def test_centers(model, centers):
    net = create_backbone(f"timm:{model}", out_indices=range(len(centers)))
    assert tuple(info.center for info in net.feature_info) == centers


# --- weights -------------------------------------------------------------------------------


def test_classifier_is_timms(timm, tmp_path, difference):
    net = create_classifier(NAME, num_classes=3).double().eval()
    theirs = timm.create_model("resnet10t", num_classes=3).double().eval()
    theirs.load_state_dict(net.state_dict(), strict=True)
    x = images(1, 3, 64, 64)
    with torch.no_grad():
        assert difference(net(x), theirs(x)) < 1e-12
    assert create_classifier("timm:convnext_atto").head.fc.out_features == 1000


@pytest.mark.parametrize("model", ["resnet10t", "convnext_atto"])
def test_weights_of_a_classifier_file(timm, tmp_path, model):
    """Also where timm hands out features under names of their own."""
    theirs = timm.create_model(model, num_classes=3).eval()
    torch.save(theirs.state_dict(), tmp_path / "net.pth")
    whole = create_classifier(f"timm:{model}", num_classes=3, weights=tmp_path / "net.pth")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, theirs.state_dict()[name])
    body = create_backbone(f"timm:{model}", out_indices=(1,), weights=tmp_path / "net.pth").eval()
    (expected,) = theirs.forward_intermediates(
        torch.ones(1, 3, 64, 64), indices=[1], intermediates_only=True
    )
    (level,) = body(torch.ones(1, 3, 64, 64))
    torch.testing.assert_close(level, expected)


def test_weights_of_a_backbone_file(tmp_path):
    first = create_backbone(NAME, out_indices=(2,))
    torch.save(first.state_dict(), tmp_path / "net.pth")
    again = create_backbone(NAME, out_indices=(2,), weights=tmp_path / "net.pth")
    assert torch.equal(again.net.conv1[0].weight, first.net.conv1[0].weight)
    assert all(key.startswith("net.") for key in again.state_dict())


def test_grey_images_get_the_sum_of_the_kernels(timm, tmp_path):
    theirs = timm.create_model("resnet10t")
    torch.save(theirs.state_dict(), tmp_path / "net.pth")
    expected = theirs.conv1[0].weight.sum(1, keepdim=True)
    body = create_backbone(NAME, in_channels=1, weights=tmp_path / "net.pth")
    assert torch.equal(body.net.conv1[0].weight, expected)
    whole = create_classifier(NAME, in_channels=1, weights=tmp_path / "net.pth")
    assert torch.equal(whole.conv1[0].weight, expected)


def test_published_weights_are_timms(timm, monkeypatch):
    theirs = timm.create_model("resnet10t")
    create = timm.create_model

    def download(model, *, pretrained=False, **settings):
        return theirs if pretrained else create(model, **settings)

    monkeypatch.setattr(timm, "create_model", download)
    net = create_backbone(NAME, weights="imagenet")
    assert torch.equal(net.net.layer2[0].conv1.weight, theirs.layer2[0].conv1.weight)

    def unreachable(model, *, pretrained=False, **settings):
        if pretrained:
            raise OSError("no route to host\nand more")
        return create(model, **settings)

    monkeypatch.setattr(timm, "create_model", unreachable)
    with pytest.raises(ConnectionError, match=r"weights of timm:resnet10t .no route to host."):
        create_backbone(NAME, weights="imagenet")


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("timm:botnet50ts_256", "imagenet", "'imagenet' are published for timm:botnet50ts_256"),
        (NAME, "imagenet_v1", "no weights 'imagenet_v1' .* allowed: None, imagenet, a path"),
        (NAME, "no/such.pth", "weights file no/such.pth does not exist"),
    ],
)
def test_missing_weights(name, weights, message):
    with pytest.raises(ValueError, match=message):
        create_backbone(name, weights=weights, out_indices=(0,))


def test_weights_that_do_not_fit_are_explained(timm, tmp_path):
    torch.save(timm.create_model("resnet14t").state_dict(), tmp_path / "net.pth")
    with pytest.raises(ValueError, match=r"do not fit timm:resnet10t: .* of another shape"):
        create_backbone(NAME, weights=tmp_path / "net.pth")


# --- settings ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("norm", "kind"),
    [
        ("batch", nn.BatchNorm2d),
        ("group", nn.GroupNorm),
        ("sync_batch", nn.SyncBatchNorm),
        ("frozen_batch", nn.Module),
    ],
)
def test_norms(norm, kind, tmp_path):
    net = create_backbone(NAME, norm=norm, norm_eps=0.25)
    found = [each for each in net.modules() if hasattr(each, "eps")]
    assert len(found) >= 10 and all(isinstance(each, kind) for each in found)
    assert {each.eps for each in found} == {0.25}
    learnt = {name for name, _ in net.named_parameters() if "bn" in name}
    assert bool(learnt) == (norm != "frozen_batch")
    torch.save(net, tmp_path / "net.pt")  # whole, with the classes it is made of


@pytest.mark.parametrize(("frozen_stages", "changing"), [(0, 5), (2, 3), (5, 0)])
def test_frozen_stages(frozen_stages, changing):
    net = create_backbone(NAME, frozen_stages=frozen_stages)
    learning = {n.split(".")[1] for n, p in net.named_parameters() if p.requires_grad}
    assert learning == set(["layer4", "layer3", "layer2", "layer1", "conv1", "bn1"][:changing]) | (
        {"bn1"} if changing == 5 else set()
    )
    assert net.net.layer1.training == (frozen_stages < 2)


def test_attention_stands_between_stages():
    net = create_backbone(NAME, attention="se", attention_at="after_stage")
    assert list(net.after_stage) == ["act1", "layer1", "layer2", "layer3", "layer4"]
    net.eval()
    plain = create_backbone(NAME).eval()
    plain.net.load_state_dict(net.net.state_dict())
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for one, other in zip(net(x), plain(x), strict=True):
            assert one.shape == other.shape and not torch.allclose(one, other)


def test_settings_that_timm_knows():
    net = create_backbone(NAME, output_stride=16, drop_path=0.5)
    assert [info.stride for info in net.feature_info] == [4, 8, 16]
    assert net.net.layer3[-1].drop_path is not None


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        (NAME, {"norm": "bach"}, "unknown norm 'bach'; did you mean 'batch'"),
        (NAME, {"width": 8}, "has no setting 'width'"),
        (NAME, {"out_indices": (5,)}, r"not in -5..4 for timm:resnet10t .0 is act1, 4 is layer4"),
        (NAME, {"attention": "se", "attention_at": "after_bn3"}, "no attention_at 'after_bn3'"),
        ("timm:convnext_atto", {"norm": "frozen_batch"}, "no batch norm to make 'frozen_batch' of"),
        ("timm:mobilenetv3_small_050", {"norm": "group"}, "timm cannot build"),
        ("timm:mobilenetv3_small_050", {"attention": "se"}, "no place for attention"),
        ("timm:mobilenetv3_small_050", {"frozen_stages": 2}, "frozen_stages is 0 or 5, got 2"),
        ("timm:densenet121", {"output_stride": 16}, "timm cannot build 'densenet121' with"),
    ],
)
def test_mistakes_are_explained(name, settings, message):
    with pytest.raises(ValueError, match=message) as caught:
        create_backbone(name, **settings)
    assert "\n" not in str(caught.value)


def test_classifier_takes_no_attention():
    with pytest.raises(ValueError, match="classifier timm:resnet10t takes no attention"):
        create_classifier(NAME, attention="se")


# --- names ---------------------------------------------------------------------------------


def test_names_are_listed_when_asked_for():
    assert list_backbones("timm:resnet10t*") == [NAME]
    assert not any(name.startswith("timm:") for name in list_backbones())
    assert NAME in backbones and "timm:resnet10" not in backbones


def test_tag_of_weights_may_stay():
    assert create_backbone("timm:resnet10t.c3_in1k", out_indices=(0,)).feature_info[0].stride == 2


@pytest.mark.parametrize("name", ["timm:resnet10", "timm:xyz"])
def test_unknown_name(name):
    with pytest.raises(ValueError, match=r"list_backbones\('timm:\*'\) lists all") as caught:
        create_backbone(name)
    assert ("did you mean 'timm:resnet10t'" in str(caught.value)) == (name == "timm:resnet10")


def test_without_timm(no_timm):
    for act in (lambda: create_backbone(NAME), lambda: list_backbones("timm:*")):
        with pytest.raises(ValueError, match="pip install timm"):
            act()
    assert "resnet18" in list_backbones()


# --- how it runs ---------------------------------------------------------------------------


def test_compiles_and_takes_odd_sizes_and_empty_batches():
    net = create_backbone(NAME, out_indices=(1, 2)).eval()
    x = torch.randn(1, 3, 65, 97)
    compiled = torch.compile(net, fullgraph=True, backend="eager")(x)
    for one, other in zip(compiled, net(x), strict=True):
        assert torch.equal(one, other)
    assert [len(level) for level in net(x[:0])] == [0, 0]
