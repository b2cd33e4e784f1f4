"""Counts of parameters and multiply-adds: by hand, as published, and as torch counts them."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from detkit.analysis import count_detector, count_network, layer_macs, published_size
from detkit.backbones import Backbone, create_backbone, create_classifier
from detkit.detectors import create_detector
from detkit.structures import Batch

TINY = {
    "backbone": {"name": "resnet18", "width": 8, "out_indices": [2, 3]},
    "fpn": {"channels": 16, "extra": "pool"},
    "rpn": {"anchor_sizes": [[16], [32], [64]], "post_nms_test": 20},
    "roi": {"hidden": 32, "samples": 8},
}


def macs_by_torch(run) -> int:
    """Half the floating point operations that torch's own counter sees."""
    with torch.no_grad(), FlopCounterMode(display=False) as flops:
        run()
    return flops.get_total_flops() // 2


@pytest.mark.parametrize(
    ("layer", "shape", "expected"),
    [
        # outputs x numbers in a filter
        (nn.Conv2d(3, 8, 3), (1, 3, 10, 12), 8 * 8 * 10 * 27),
        (nn.Conv2d(3, 8, 3, stride=2, padding=1), (2, 3, 10, 12), 2 * 8 * 5 * 6 * 27),
        (nn.Conv2d(3, 8, 3, dilation=2, bias=False), (1, 3, 10, 12), 8 * 6 * 8 * 27),
        (nn.Conv2d(4, 8, (1, 5), groups=2), (1, 4, 6, 7), 8 * 6 * 3 * 2 * 5),
        (nn.Conv2d(6, 6, 3, groups=6, padding=1), (1, 6, 4, 4), 6 * 16 * 9),
        (nn.Conv1d(4, 5, 3, padding=1), (2, 4, 9), 2 * 5 * 9 * 12),
        (nn.Conv3d(2, 3, 2), (1, 2, 4, 4, 4), 3 * 27 * 16),
        # inputs x numbers that each is spread to
        (nn.ConvTranspose2d(4, 6, 2, stride=2), (1, 4, 5, 5), 4 * 25 * 6 * 4),
        (nn.ConvTranspose2d(4, 6, 4, stride=2, groups=2), (1, 4, 5, 5), 4 * 25 * 3 * 16),
        (nn.Linear(7, 3), (2, 7), 2 * 21),
        (nn.Linear(7, 3, bias=False), (2, 5, 4, 7), 40 * 21),
        (nn.Linear(7, 3), (0, 7), 0),
    ],
)
def test_macs_of_a_layer(layer, shape, expected):
    x = torch.zeros(shape)
    assert layer_macs(layer, x, layer(x)) == expected
    assert macs_by_torch(lambda: layer(x)) == expected


def test_other_layers_have_no_macs():
    x = torch.zeros(1, 3, 4, 4)
    with pytest.raises(TypeError, match="MaxPool2d is neither a convolution nor a linear"):
        layer_macs(nn.MaxPool2d(2), x, x)


@pytest.mark.parametrize("size", [(64, 64), (97, 65)])
@pytest.mark.parametrize("name", ["resnet18", "resnet50_v1", "resnet50d", "resnext50_32x4d"])
def test_a_network_without_attention_counts_as_torch_does(meta, name, size):
    net = create_classifier(name, in_channels=4).eval()
    parts = count_network(net, size)
    images = torch.empty(1, 4, *size)
    assert sum(part.macs for part in parts) == macs_by_torch(lambda: net(images))
    assert sum(part.matmul_macs for part in parts) == 0
    assert sum(part.parameters for part in parts) == sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize("name", ["lenet5", "alexnet_original", "overfeat_fast"])
def test_linear_layers_that_slide_count_once(meta, name):
    """They run as convolutions over windows, the layers behind them as products of matrices."""
    net, size = create_classifier(name).eval(), published_size(name)
    parts = count_network(net, size)
    images = torch.empty(1, net.body.in_channels, *size)
    assert sum(part.macs for part in parts) == macs_by_torch(lambda: net(images))
    assert [part.matmul_macs for part in parts] == [0] * len(parts)


def test_stages_by_hand(meta):
    net = create_backbone("resnet18", width=8, out_indices=(0, 1))
    stem, layer1 = count_network(net, (64, 32))
    assert (stem.name, stem.shapes) == ("stem", ((8, 32, 16),))
    assert stem.parameters == 3 * 8 * 49 + 2 * 8
    assert stem.macs == 3 * 8 * 49 * 32 * 16
    assert (layer1.name, layer1.shapes) == ("layer1", ((8, 16, 8),))
    assert layer1.parameters == 4 * (8 * 8 * 9 + 2 * 8)
    assert layer1.macs == 4 * 8 * 8 * 9 * 16 * 8
    assert layer1.parameter_bytes == 4 * layer1.parameters
    assert (stem.feature, layer1.feature) == net.feature_info
    # Kept: the image, what norm and activation read. Of the norm: mean and deviation, of a batch
    image, stem_map = 4 * 3 * 64 * 32, 4 * 8 * 32 * 16
    assert stem.activation_bytes == image + 2 * stem_map + 4 * 2 * 8 // 2
    # The max-pool keeps its input, which the stem kept already, and int64 places; each of four
    # convolutions its input, each norm its own; the last activation its output
    layer_map = 4 * 8 * 16 * 8
    assert layer1.activation_bytes == 2 * layer_map + (4 + 4 + 1) * layer_map + 4 * 4 * 2 * 8 // 2


def test_frozen_stages_keep_nothing(meta):
    net = create_backbone("resnet18", width=8, frozen_stages=2)
    kept = [part.activation_bytes for part in count_network(net, (64, 64))]
    assert kept[:2] == [0, 0] and min(kept[2:]) > 0


def test_a_shared_parameter_counts_once(meta):
    net = create_classifier("resnet18", width=8)
    net.body.layer1[0].bn1.weight = net.body.bn1.weight
    parts = count_network(net, (64, 64), details=False)
    assert sum(part.parameters for part in parts) == sum(p.numel() for p in net.parameters())


class OnePiece(Backbone):
    """A network whose stages cannot be told apart."""

    stage_names = ("first", "last")
    default_out_indices = (0, 1)

    def __init__(self) -> None:
        super().__init__("one_piece", 2, None)
        self.net = nn.Conv2d(2, 3, 3, padding=1)

    def stages(self) -> list[tuple[nn.Module, ...]]:
        return [(), (self.net,)]

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        fine = self.net(images)
        return [fine, fine[:, :, ::2, ::2]]


def test_one_piece_is_counted_whole(meta):
    (part,) = count_network(OnePiece(), (8, 8))
    assert (part.name, part.macs, part.feature) == ("one_piece", 3 * 64 * 18, None)
    assert part.shapes == ((3, 8, 8), (3, 4, 4))


def test_details_can_be_left_out(meta):
    net = create_classifier("resnet18", width=8)
    for short, long in zip(
        count_network(net, (64, 64), details=False), count_network(net, (64, 64)), strict=True
    ):
        assert short.activation_bytes == short.matmul_macs == 0 < long.activation_bytes
        assert (short.macs, short.parameters, short.shapes) == (
            long.macs,
            long.parameters,
            long.shapes,
        )


def test_counting_leaves_no_trace(meta):
    net = create_classifier("resnet18", width=8)
    count_network(net, (64, 64))
    assert not net.training
    assert not any(module._forward_hooks for module in net.modules())


@pytest.mark.parametrize(
    ("name", "settings", "parameters", "giga_macs"),
    [  # as their authors place them, at the end of each residual branch or between the stages
        ("se", {}, 28_088_024, 4.092),
        ("cbam", {}, 28_089_624, 4.096),
        ("bam", {"attention_at": "after_stage", "attention_stages": [1, 2, 3]}, 25_915_099, 4.171),
        ("triplet", {}, 25_561_832, 4.136),
        ("simam", {"attention_at": "after_conv2"}, 25_557_032, 4.089),
    ],
)
def test_resnet50_with_attention(meta, name, settings, parameters, giga_macs):
    net = create_classifier("resnet50", attention=name, **settings)
    parts = count_network(net, (224, 224), details=False)
    assert sum(part.parameters for part in parts) == parameters
    assert round(sum(part.macs for part in parts) / 1e9, 3) == giga_macs


def test_matrix_products_of_attention_stand_apart(meta):
    """A non-local block multiplies every cell with every other one, twice."""
    settings = {"attention_at": "after_block", "attention_stages": {3: [-1]}}
    net = create_backbone("resnet18", attention="nonlocal", **settings)
    parts = {part.name: part for part in count_network(net, (64, 64))}
    cells, inner = 4 * 4, 128
    assert parts["layer3"].matmul_macs >= 2 * cells * cells * inner // 4  # keys may be pooled
    assert parts["layer4"].matmul_macs == 0
    with torch.device("meta"):
        images = torch.empty(1, 3, 64, 64)
    total = sum(part.macs + part.matmul_macs for part in parts.values())
    assert total == macs_by_torch(lambda: net.eval()(images))


def test_detector_counts_as_torch_does():
    with torch.device("meta"):
        parts = count_detector(create_detector(TINY, num_classes=3), (96, 128))
    assert [part.name for part in parts[-3:]] == ["neck", "rpn", "roi"]
    assert parts[-1].shapes == ((4,), (3, 4))
    torch.manual_seed(0)
    net = create_detector(TINY, num_classes=3).eval()
    assert sum(part.parameters for part in parts) == sum(p.numel() for p in net.parameters())
    images = torch.randint(0, 256, (1, 3, 96, 128), dtype=torch.uint8)
    batch = Batch(images, ((96, 128),), ((96, 128),))
    found = []
    net.roi.head.register_forward_hook(lambda _, given, __: found.append(len(given[0])))
    run = macs_by_torch(lambda: net.predict(batch))
    assert found == [20]  # as many as it may get
    assert sum(part.macs for part in parts) == run


REGIONS = {"backbone": {"name": "resnet18", "width": 8, "out_indices": [2]}, "fpn": None}
CROP = {"pool": "crop", "crop_size": 32, "context": 4, "hidden": 16, "max_regions": 12, "chunk": 5}


@pytest.mark.parametrize(
    "model",
    [
        REGIONS | {"proposals": "file", "roi": CROP},
        REGIONS | {"proposals": "file", "roi": {"pool": "pool", "hidden": 16, "max_regions": 12}},
        REGIONS | {"proposals": "grid", "grid": {"sizes": [20], "stride": 32}, "roi": CROP},
        TINY | {"roi": TINY["roi"] | {"stages": 3}},
    ],
    ids=["rcnn", "fast", "grid of crops", "cascade"],
)
def test_other_rungs_count_as_torch_does(model):
    """Crops are a pass of the backbone each; all heads of a cascade judge the last boxes."""
    with torch.device("meta"):
        parts = count_detector(create_detector(model, num_classes=3), (96, 128))
    torch.manual_seed(0)
    net = create_detector(model, num_classes=3).eval()
    assert sum(part.parameters for part in parts) == sum(p.numel() for p in net.parameters())
    images = torch.randint(0, 256, (1, 3, 96, 128), dtype=torch.uint8)
    boxes = torch.tensor([[3.0, 4, 50, 60]]).repeat(20, 1)
    batch = Batch(images, ((96, 128),), ((96, 128),), proposals=(boxes,))
    assert sum(part.macs for part in parts) == macs_by_torch(lambda: net.predict(batch))


@pytest.mark.parametrize("neck", [{"channels": 16}, None])
@pytest.mark.parametrize("detector", ["retinanet", "fcos", "task_aligned"])
def test_detector_in_one_stage_counts_as_torch_does(detector, neck):
    model = {"detector": detector, "backbone": {"name": "resnet18", "width": 8}, "fpn": neck}
    with torch.device("meta"):
        parts = count_detector(create_detector(model, num_classes=3), (96, 128))
    assert [part.name for part in parts[-3:]][neck is None :] == (
        ["layer4", "head"] if neck is None else ["layer4", "neck", "head"]
    )
    net = create_detector(model, num_classes=3).eval()
    assert sum(part.parameters for part in parts) == sum(p.numel() for p in net.parameters())
    images = torch.randint(0, 256, (1, 3, 96, 128), dtype=torch.uint8)
    batch = Batch(images, ((96, 128),), ((96, 128),))
    assert sum(part.macs for part in parts) == macs_by_torch(lambda: net.predict(batch))
    assert all(part.activation_bytes > 0 for part in parts)


def test_head_of_a_retinanet_by_hand(meta):
    """Two towers of one convolution on maps of 12x16 and 6x8 cells."""
    backbone = {"name": "resnet18", "width": 8, "out_indices": [2, 3]}
    model = {"detector": "retinanet", "backbone": backbone, "fpn": {"channels": 4, "extra": None}}
    net = create_detector({**model, "retinanet": {"convs": 1}}, num_classes=5)
    head = count_detector(net, (96, 128))[-1]
    assert head.shapes == ((9 * 5, 12, 16), (9 * 5, 6, 8))
    rows = 2 * 4 + 9 * 5 + 9 * 4
    assert head.parameters == rows * (4 * 9 + 1)
    assert head.macs == rows * 4 * 9 * (12 * 16 + 6 * 8)


def test_second_stage_grows_with_its_proposals():
    with torch.device("meta"):
        few, many = (
            count_detector(create_detector(TINY | {"rpn": rpn}, num_classes=3), (96, 128))[-1].macs
            for rpn in (TINY["rpn"], TINY["rpn"] | {"post_nms_test": 60})
        )
    assert many == 3 * few


def test_sizes_that_do_not_fit_are_explained(meta):
    net = create_classifier("resnet18", width=8)
    net.head.fc = nn.Linear(5, 2)
    with pytest.raises(ValueError, match="images of 40x48 do not fit: ") as caught:
        count_network(net, (40, 48))
    assert "\n" not in str(caught.value)


def test_images_that_are_too_small_are_refused(meta):
    net = create_backbone("vgg11", out_indices=(-1,))
    assert count_network(net, (32, 40))[-1].shapes == ((512, 1, 1),)
    with pytest.raises(ValueError, match="vgg11 needs images of 32 pixels or more, got 31"):
        count_network(net, (40, 31))


def test_unknown_detector():
    with pytest.raises(ValueError, match="parts of Linear are unknown"):
        count_detector(nn.Linear(1, 1), (4, 4))
