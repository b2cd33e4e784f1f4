"""What holds for every backbone in the registry, and for every detector on every backbone."""

from __future__ import annotations

import inspect
import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from detkit.backbones import create_backbone, create_classifier, list_backbones
from detkit.backbones.placement import is_attention
from detkit.detectors import create_detector
from detkit.registry import backbones
from detkit.structures import Batch, Target

NAMES = list_backbones()
# without those that only have more of the same blocks than another one
DISTINCT = [name for name in NAMES if not any(depth in name for depth in ("101", "152", "92"))]
DETECTORS = ("region_proposal",)
# One of each kind of network, cut short where it repeats itself: tracing takes seconds each
KINDS: dict[str, dict[str, Any]] = {
    "alexnet": {},
    "alexnet_original": {},
    "botnet50": {"width": 16},
    "googlenet": {},
    "googlenet_original": {},
    "lenet5": {},
    "lenet5_original": {},
    "overfeat_accurate": {},
    "residual_attention56": {"out_indices": (2,)},
    "resnet18": {"width": 16},
    "resnet50d": {"width": 16, "output_stride": 16},
    "scnet50": {"width": 16, "out_indices": (2,)},
    "vgg11": {},
}


def allowed(name: str) -> set[str]:
    """The settings that a backbone takes."""
    return set(inspect.signature(backbones[name]).parameters)


def narrow(name: str, width: int = 16) -> dict[str, Any]:
    """A sixteenth of the weights where the network can be made narrow."""
    if "width" not in allowed(name):
        return {}
    return {"width": max(width, 16) if "next" in name else width}  # a group keeps one channel


def on_meta(build, *arguments: Any, **settings: Any) -> nn.Module:
    with torch.device("meta"):
        return build(*arguments, **settings)


def side_for(net) -> int:
    """Side of a picture that every map has some cells of."""
    return max(64, net.least_side)


@pytest.mark.parametrize("name", NAMES)
def test_maps_are_as_described(name):
    count = len(on_meta(create_backbone, name, **narrow(name)).stage_names)
    net = on_meta(create_backbone, name, out_indices=range(count), in_channels=1, **narrow(name))
    side = side_for(net)
    shape = (side + 1, side + 35)
    maps = net.eval()(torch.empty(2, 1, *shape, device="meta"))
    assert [info.name for info in net.feature_info] == list(net.stage_names)
    for level, info in zip(maps, net.feature_info, strict=True):
        assert level.shape[:2] == (2, info.channels)
        for cells, pixels in zip(level.shape[2:], shape, strict=True):
            if info.center == 0:
                assert cells == math.ceil(pixels / info.stride)
            else:  # the last cell at most hangs over by half, and no further one fits by far
                assert 0 <= info.center + (cells - 1) * info.stride < pixels + info.stride / 2
                assert info.center + (cells + 1) * info.stride > pixels - info.receptive_field


@pytest.mark.parametrize("name", NAMES)
def test_default_maps_get_coarser(name):
    net = on_meta(create_backbone, name, **narrow(name))
    strides = [info.stride for info in net.feature_info]
    assert strides == sorted(set(strides))
    assert net.in_channels == (1 if name.startswith("lenet") else 3)
    assert (
        net.feature_info
        == on_meta(create_backbone, name, in_channels=2, **narrow(name)).feature_info
    )


@pytest.mark.parametrize("name", KINDS)
def test_runs_in_channels_last_and_compiles_as_one_graph(name):
    torch._dynamo.reset()  # it counts the programs of one function
    torch.manual_seed(0)
    net = create_backbone(name, in_channels=3, **KINDS[name]).eval()
    side = side_for(net)
    x = torch.randn(2, 3, side + 1, side + 5)
    with torch.no_grad():
        expected = net(x)
        compiled = torch.compile(net, fullgraph=True, backend="eager")(x)
        assert all(torch.equal(a, b) for a, b in zip(compiled, expected, strict=True))
        net.to(memory_format=torch.channels_last)
        for level, plain in zip(
            net(x.contiguous(memory_format=torch.channels_last)), expected, strict=True
        ):
            assert level.isfinite().all() and level.std() > 0
            torch.testing.assert_close(
                level, plain, rtol=1e-3, atol=1e-4 * float(plain.abs().max())
            )


@pytest.mark.parametrize("name", NAMES)
def test_classifier_has_the_asked_classes(name):
    net = on_meta(create_classifier, name, num_classes=7, **narrow(name))
    side = {"lenet5": 32, "lenet5_original": 32, "alexnet_original": 227, "overfeat_fast": 231,
            "overfeat_accurate": 221}.get(name, 224)  # fmt: skip
    channels = net.body.in_channels
    logits = net.eval()(torch.empty(2, channels, side, side, device="meta"))
    assert logits.shape == (2, 7)


@pytest.mark.parametrize("norm", ["batch", "frozen_batch", "group", "sync_batch"])
@pytest.mark.parametrize("name", DISTINCT)
def test_norm_is_a_choice(name, norm):
    kinds = {
        "batch": nn.BatchNorm2d,
        "frozen_batch": "FrozenBatchNorm2d",
        "group": nn.GroupNorm,
        "sync_batch": nn.SyncBatchNorm,
    }
    net = on_meta(create_backbone, name, norm=norm, **narrow(name))
    norms = [
        m for m in net.modules() if "Norm" in type(m).__name__ and "Local" not in type(m).__name__
    ]
    assert norms
    for module in norms:
        kind = kinds[norm]
        assert type(module).__name__ == kind if isinstance(kind, str) else type(module) is kind


@pytest.mark.parametrize("name", NAMES)
def test_frozen_stages(name):
    net = on_meta(create_backbone, name, frozen_stages=1, **narrow(name))
    first, *rest = net.stages()
    frozen = [p for module in first for p in module.parameters()]
    assert frozen and not any(p.requires_grad for p in frozen)
    assert any(p.requires_grad for stage in rest for module in stage for p in module.parameters())
    assert not any(module.training for module in first)
    everything = on_meta(create_backbone, name, frozen_stages=len(net.stage_names), **narrow(name))
    assert not any(p.requires_grad for p in everything.parameters())


@pytest.mark.parametrize("name", DISTINCT)
def test_attention_stands_at_each_position(name):
    builder = backbones[name]
    network = builder.func if isinstance(builder, partial) else builder
    plain = on_meta(create_backbone, name, **narrow(name))
    assert "after_stage" in network.attention_positions
    for at in network.attention_positions:
        net = on_meta(create_backbone, name, attention="se", attention_at=at, **narrow(name))
        added = net.attention_names()
        assert added and any(is_attention(module) for module in net.modules())
        # published names stay as they are beside it
        assert [k for k in net.state_dict() if not k.startswith(added)] == list(plain.state_dict())
        assert net.feature_info == plain.feature_info
        side = side_for(net)
        maps = net(torch.empty(2, net.in_channels, side, side, device="meta"))
        assert [m.shape[1] for m in maps] == [info.channels for info in net.feature_info]


@pytest.mark.parametrize("drop_path", [0.0, 0.3])
@pytest.mark.parametrize("name", [n for n in DISTINCT if "drop_path" in allowed(n)])
def test_stochastic_depth_acts_in_training_only(name, drop_path):
    torch.manual_seed(0)
    net = create_backbone(name, drop_path=drop_path, out_indices=(-1,), **narrow(name, 8))
    for module in net.modules():  # the statistics of a batch change with it
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.0
    x = torch.randn(4, net.in_channels, 64, 64)
    with torch.no_grad():
        net.eval()
        assert torch.equal(net(x)[0], net(x)[0])
        net.train()
        assert torch.equal(net(x)[0], net(x)[0]) == (drop_path == 0)


@pytest.mark.parametrize("name", [n for n in DISTINCT if "output_stride" in allowed(n)])
def test_output_stride_keeps_names_and_makes_maps_larger(name):
    plain = on_meta(create_backbone, name, **narrow(name)).eval()
    net = on_meta(create_backbone, name, output_stride=16, **narrow(name)).eval()
    assert list(net.state_dict()) == list(plain.state_dict())
    assert (plain.feature_info[-1].stride, net.feature_info[-1].stride) == (32, 16)
    images = torch.empty(1, net.in_channels, 320, 320, device="meta")
    assert net(images)[-1].shape[2] >= 1.5 * plain(images)[-1].shape[2]


# --- under detectors -----------------------------------------------------------------------


def batch_of(side: int) -> Batch:
    """Two pictures, one without any box."""
    generator = torch.Generator().manual_seed(0)
    height, width = -(-side // 32) * 32, -(-(side + 20) // 32) * 32
    images = torch.randint(0, 256, (2, 3, height, width), dtype=torch.uint8, generator=generator)
    boxes = torch.tensor([[8.0, 8, 50, 60], [20, 16, 60, 40]])
    area = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
    full = Target(boxes, torch.tensor([0, 2]), 0, torch.zeros(2, dtype=torch.bool), area)
    empty = Target(boxes[:0], torch.tensor([], dtype=torch.long), 1, full.crowd[:0], area[:0])
    sizes = ((side, side + 20), (side - 7, side))
    return Batch(images, sizes, sizes, (full, empty))


@pytest.mark.parametrize("detector", DETECTORS)
@pytest.mark.parametrize("pyramid", [True, False], ids=["fpn", "no fpn"])
@pytest.mark.parametrize("name", NAMES)
def test_trains_under_every_detector(name, pyramid, detector):
    """Nothing but the name of the backbone changes in the recipe."""
    torch.manual_seed(0)
    settings = {
        "detector": detector,
        "backbone": {"name": name, **narrow(name, 8)},
        "fpn": {"channels": 8} if pyramid else None,
        "rpn": {"pre_nms_train": 50, "post_nms_train": 20, "pre_nms_test": 50, "post_nms_test": 20},
        "roi": {"hidden": 16, "samples": 16, "resolution": 3},
    }
    net = create_detector(settings, num_classes=3)
    batch = batch_of(side_for(net.backbone))
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    losses = net.train()(batch)
    total = sum(losses.values())
    assert total.isfinite() and total > 0
    total.backward()
    first = next(p for p in net.backbone.parameters() if p.requires_grad)
    assert first.grad is not None and first.grad.isfinite().all() and first.grad.abs().sum() > 0
    optimizer.step()
    with torch.no_grad():
        assert len(net.eval()(batch.without_targets())) == 2


# --- exported ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_exported_file_computes_the_same(name, tmp_path):
    """Through torch.export to ONNX, for any batch."""
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    net = create_backbone(name, **KINDS[name]).eval()
    side = side_for(net)
    x = torch.randn(2, net.in_channels, side, side + 3)
    path = tmp_path / "net.onnx"
    with torch.no_grad():
        expected = net(x)
        torch.onnx.export(
            net, (x,), path, dynamo=True, dynamic_shapes=({0: "batch"},), external_data=False
        )
        session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
        for part in (x, x[:1]):
            found = session.run(None, {session.get_inputs()[0].name: part.numpy()})
            for level, wanted in zip(found, expected, strict=True):
                torch.testing.assert_close(
                    torch.from_numpy(level), wanted[: len(part)], rtol=1e-3, atol=1e-3
                )
