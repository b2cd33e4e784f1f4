"""Weights by name and by path, and what is said when they do not fit."""

from __future__ import annotations

import hashlib
import io
import urllib.error

import pytest
import torch
import torchvision
from torch import nn

from detkit.backbones import create_backbone, create_classifier, weights
from detkit.backbones.weights import (
    adapt_stem,
    load_into,
    load_published,
    load_weights_file,
    published_url,
    read_weights,
)


@pytest.fixture
def cache(tmp_path):
    """An empty torch.hub cache."""
    before = torch.hub._hub_dir
    torch.hub.set_dir(tmp_path)
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    yield folder
    torch.hub._hub_dir = before


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(0)
    return torchvision.models.resnet18().state_dict()


@pytest.fixture
def published(cache, state, monkeypatch):
    """A cached file of random weights that everybody believes to be the published one."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()
    url = f"https://example.invalid/models/resnet18-{digest[:8]}.pth"
    (cache / url.rsplit("/", 1)[1]).write_bytes(buffer.getvalue())
    monkeypatch.setattr(weights, "published_url", lambda model, name: url)
    return url


# --- published files -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "name", "file"),
    [
        ("resnet18", "imagenet", "resnet18-f37072fd.pth"),
        ("resnet34", "imagenet", "resnet34-b627a593.pth"),
        ("resnet50", "imagenet", "resnet50-11ad3fa6.pth"),
        ("resnet50", "imagenet_v1", "resnet50-0676ba61.pth"),
        ("resnet101", "imagenet", "resnet101-cd907fc2.pth"),
        ("resnet152", "imagenet", "resnet152-f82ba261.pth"),
        ("fasterrcnn_resnet50_fpn", "coco", "fasterrcnn_resnet50_fpn_coco-258fb6c6.pth"),
    ],
)
def test_published_url(model, name, file):
    assert published_url(model, name).endswith(f"/{file}")


@pytest.mark.parametrize(
    ("model", "name", "message"),
    [
        ("resnet50", "coco", "no weights 'coco' .* resnet50; allowed: None, imagenet, imagenet_v1"),
        ("lenet", "imagenet", "no weights 'imagenet' .* for lenet; allowed: None, a path"),
    ],
)
def test_nothing_published(model, name, message):
    with pytest.raises(ValueError, match=message):
        published_url(model, name)


def test_imagenet_weights_come_from_the_cache(published, state):
    classifier = create_classifier("resnet18", weights="imagenet")
    assert all(torch.equal(value, state[name]) for name, value in classifier.state_dict().items())
    backbone = create_backbone("resnet18", weights="imagenet", out_indices=(2,))
    assert torch.equal(backbone.layer2[1].conv2.weight, state["layer2.1.conv2.weight"])
    assert not hasattr(backbone, "layer3")


def test_a_cached_file_of_another_hash_is_refused(cache, state):
    path = cache / "resnet18-f37072fd.pth"
    torch.save(state, path)
    with pytest.raises(
        ValueError, match=r"resnet18-f37072fd\.pth does not match its hash; delete it"
    ):
        create_backbone("resnet18", weights="imagenet")


def test_a_truncated_cached_file_is_refused(cache, published):
    (path,) = cache.iterdir()
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="does not match its hash"):
        load_published(published)


def test_no_network_says_where_to_put_the_file(cache, monkeypatch):
    def unreachable(*_args, **_kwargs):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(torch.hub, "urlopen", unreachable)
    with pytest.raises(ConnectionError) as caught:
        create_backbone("resnet18", weights="imagenet")
    message = str(caught.value)
    assert "https://download.pytorch.org/models/resnet18-f37072fd.pth" in message
    assert "no route to host" in message
    assert str(cache / "resnet18-f37072fd.pth") in message
    assert "\n" not in message
    assert list(cache.iterdir()) == []


class Response(io.BytesIO):
    """What urlopen returns."""

    def info(self):
        return self

    def get_all(self, _name):
        return [str(len(self.getvalue()))]


def test_download_is_checked_and_kept(cache, published, state, monkeypatch):
    (path,) = cache.iterdir()
    content = path.read_bytes()
    path.unlink()
    monkeypatch.setattr(torch.hub, "urlopen", lambda *_, **__: Response(content + b"x"))
    with pytest.raises(ValueError, match="sent does not match its hash; try again"):
        load_published(published)
    assert not path.exists()
    monkeypatch.setattr(torch.hub, "urlopen", lambda *_, **__: Response(content))
    assert torch.equal(load_published(published)["fc.bias"], state["fc.bias"])
    assert path.read_bytes() == content


def test_a_name_without_hash_cannot_be_checked(cache):
    with pytest.raises(ValueError, match=r"'net\.pth': its name carries no hash"):
        load_published("https://example.invalid/net.pth")


# --- files ---------------------------------------------------------------------------------


@pytest.mark.parametrize("wrap", [dict, lambda s: {"model": s}, lambda s: {"state_dict": s}])
def test_file_with_a_state_dict(tmp_path, state, wrap):
    path = tmp_path / "net.pth"
    torch.save(wrap(state), path)
    for given in (path, str(path)):
        net = create_backbone("resnet18", weights=given)
        assert torch.equal(net.bn1.weight, state["bn1.weight"])
        assert torch.equal(net.layer4[1].conv2.weight, state["layer4.1.conv2.weight"])


def test_missing_file():
    with pytest.raises(ValueError, match="'imagnet': no such file; did you mean 'imagenet'"):
        read_weights("resnet18", "imagnet")
    with pytest.raises(ValueError, match="does not exist"):
        load_weights_file("no/such/file.pth")


@pytest.mark.parametrize("content", [b"", b"not weights", b"PK\x03\x04 damaged", b"\x80\x02}q"])
def test_damaged_file(tmp_path, content):
    path = tmp_path / "net.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot read weights from .*net\.pth") as caught:
        load_weights_file(path)
    assert "\n" not in str(caught.value)


class Trap:
    """Runs code when unpickled carelessly."""

    def __reduce__(self):
        return (print, ("code ran",))


def test_file_with_code_is_refused_unread(tmp_path, capsys):
    path = tmp_path / "net.pth"
    torch.save({"model": Trap()}, path)
    with pytest.raises(ValueError, match="cannot read weights"):
        load_weights_file(path)
    assert "code ran" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "content", [torch.zeros(3), {"epoch": 3}, {}, [torch.zeros(1)], {1: torch.zeros(1)}]
)
def test_file_without_a_state_dict(tmp_path, content):
    path = tmp_path / "net.pth"
    torch.save(content, path)
    with pytest.raises(ValueError, match=r"net\.pth holds no state_dict"):
        load_weights_file(path)


# --- loading -------------------------------------------------------------------------------


def test_what_does_not_fit_is_listed_in_one_line():
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 4))
    state = net.state_dict()
    state["0.weight"] = torch.zeros(3, 5)
    for key in ("0.bias", "1.weight", "2.weight", "2.bias"):
        del state[key]
    state["9.weight"] = torch.zeros(1)
    with pytest.raises(ValueError) as caught:
        load_into(net, state, source="a.pth")
    assert str(caught.value) == (
        "weights a.pth do not fit Sequential: 4 missing (0.bias, 1.weight, 2.weight, ...); "
        "1 unexpected (9.weight); 1 of another shape (0.weight [3, 5] instead of [3, 2])"
    )


def test_nothing_is_loaded_when_something_does_not_fit():
    net = nn.Linear(2, 2)
    before = net.weight.clone()
    with pytest.raises(ValueError, match="1 missing"):
        load_into(net, {"weight": torch.zeros(2, 2)}, source="a.pth")
    assert torch.equal(net.weight, before)


def test_the_batch_count_is_optional(state):
    without = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    net = create_classifier("resnet18")
    load_into(net, without, source="old.pth")
    assert torch.equal(net.body.bn1.weight, state["bn1.weight"])
    frozen = create_classifier("resnet18", norm="frozen_batch")
    load_into(frozen, state, source="new.pth")
    assert torch.equal(frozen.head.fc.weight, state["fc.weight"])


def test_a_deeper_networks_weights_are_not_taken_for_ours(tmp_path):
    """17 more blocks of 15 values; every weight of resnet50 has a namesake of its shape there."""
    path = tmp_path / "resnet101.pth"
    torch.save(create_classifier("resnet101", width=8).state_dict(), path)
    with pytest.raises(ValueError, match=r"do not fit resnet50: 255 unexpected \(layer3.6.conv1"):
        create_backbone("resnet50", width=8, weights=path)


def test_a_classifier_takes_no_more_than_it_has(tmp_path, state):
    path = tmp_path / "net.pth"
    torch.save({**state, "fc.scale": torch.ones(1)}, path)
    with pytest.raises(ValueError, match=r"do not fit resnet18: 1 unexpected \(fc.scale\)"):
        create_classifier("resnet18", weights=path)


def test_weights_of_another_width_or_class_count_are_explained(tmp_path, state):
    path = tmp_path / "resnet18.pth"
    torch.save(state, path)
    with pytest.raises(
        ValueError, match=r"conv1.weight \[64, 3, 7, 7\] instead of \[32, 3, 7, 7\]"
    ):
        create_backbone("resnet18", width=32, weights=path)
    with pytest.raises(ValueError, match=r"2 of another shape \(fc.weight \[1000, 512\]"):
        create_classifier("resnet18", num_classes=10, weights=path)


# --- other numbers of channels -------------------------------------------------------------


def test_grey_input_gives_what_the_colour_network_gives(published):
    grey = create_backbone("resnet18", weights="imagenet", in_channels=1).eval()
    colour = create_backbone("resnet18", weights="imagenet").eval()
    x = torch.rand(1, 1, 64, 64)
    for ours, theirs in zip(grey(x), colour(x.expand(1, 3, 64, 64)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_other_channels_repeat_the_kernels_in_turn():
    kernel = torch.tensor([3.0, 6.0, 9.0]).view(1, 3, 1, 1)
    state = {"conv1.weight": kernel}

    def adapted(channels: int) -> list[float]:
        return adapt_stem(state, "conv1.weight", channels)["conv1.weight"].flatten().tolist()

    assert adapted(1) == [18]
    assert adapted(2) == [4.5, 9]
    assert adapted(3) == [3, 6, 9]
    assert adapted(4) == [2.25, 4.5, 6.75, 2.25]
    assert adapted(6) == [1.5, 3, 4.5, 1.5, 3, 4.5]
    assert state["conv1.weight"] is kernel


def test_four_channels_load(published, state):
    net = create_backbone("resnet18", weights="imagenet", in_channels=4)
    torch.testing.assert_close(net.conv1.weight[:, 3], state["conv1.weight"][:, 0] * 0.75)
