"""Receptive fields by gradient: those of small networks by hand, those of backbones as derived."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from detkit.analysis import measure_receptive_fields
from detkit.backbones import Backbone, FeatureInfo, create_backbone


class Chain(Backbone):
    """One stage of any layers."""

    stage_names = ("chain",)
    default_out_indices = (0,)

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__("chain", 2, None)
        self.layers = nn.Sequential(*layers)

    def stages(self) -> list[tuple[nn.Module, ...]]:
        return [(self.layers,)]


def conv(kernel: int, **settings: object) -> nn.Conv2d:
    return nn.Conv2d(2, 2, kernel, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("layers", "stride", "field", "center"),
    [
        ([conv(3, padding=1)], 1, 3, 0),
        ([conv(3)], 1, 3, 1),
        ([conv(5, dilation=3)], 1, 13, 6),
        ([conv(11, stride=4)], 4, 11, 5),
        ([conv(3, padding=1), nn.ReLU(inplace=True), conv(3, padding=1)], 1, 5, 0),
        ([conv(7, stride=2, padding=3), nn.MaxPool2d(3, 2, padding=1)], 4, 11, 0),
        ([conv(3, padding=1), nn.MaxPool2d(2), conv(3, padding=1)], 2, 8, 0.5),
        ([nn.AvgPool2d(2), nn.BatchNorm2d(2), nn.Sigmoid(), conv(1)], 2, 2, 0.5),
        ([nn.LocalResponseNorm(5), conv(3, groups=2), nn.Dropout(0.5)], 1, 3, 1),
        ([nn.GroupNorm(1, 2), conv(3, padding="same")], 1, 3, 0),
    ],
)
def test_by_hand(layers, stride, field, center):
    expected = FeatureInfo("chain", 2, stride, field, center)
    net = Chain(*layers)
    assert measure_receptive_fields(net) == [expected]
    assert net.stage_info() == [expected]


@pytest.mark.parametrize(
    "name",
    [
        *("resnet18", "resnet34", "resnet50", "resnet50_v1", "resnet50d", "resnext50_32x4d"),
        *("alexnet", "alexnet_original", "googlenet", "googlenet_original", "vgg11", "vgg16_bn"),
        *("lenet5", "lenet5_original", "overfeat_fast", "overfeat_accurate", "botnet50"),
    ],
)
def test_the_gradient_reaches_what_is_derived(meta, name):
    net = create_backbone(name, out_indices=(-1,))
    assert measure_receptive_fields(net) == net.stage_info()


@pytest.mark.parametrize(
    ("name", "last", "fields"),
    [("scnet50", 2, [7, 199, 631]), ("residual_attention56", 1, [7, 355])],
)
def test_cells_that_differ(meta, name, last, fields):
    """Behind an upsampling the neighbours of a cell may see more than it does."""
    net = create_backbone(name, out_indices=(last,))
    measured, derived = measure_receptive_fields(net), net.stage_info()
    assert [info.receptive_field for info in measured] == fields
    assert [info.receptive_field for info in derived] == fields
    assert [info.stride for info in measured] == [info.stride for info in derived]


@pytest.mark.parametrize("output_stride", [8, 16])
def test_dilation(meta, output_stride):
    net = create_backbone("resnet18", width=8, output_stride=output_stride)
    assert measure_receptive_fields(net) == net.stage_info()
    assert net.stage_info()[-1].stride == output_stride


def test_attention_is_switched_off(meta):
    plain = create_backbone("resnet18", width=16)
    for settings in ({"attention": "se"}, {"attention": "se", "attention_at": "after_conv2"}):
        net = create_backbone("resnet18", width=16, **settings)
        assert measure_receptive_fields(net) == plain.stage_info()


def test_the_network_stays_as_it_is():
    net = create_backbone("resnet18", width=8).train()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    measure_receptive_fields(net)
    assert net.training
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


class Forgetful(Chain):
    """Runs two layers, describes one."""

    def stage_info(self) -> list[FeatureInfo]:
        return Chain(self.layers[0]).stage_info()


def test_a_wrong_description_is_noticed():
    net = Forgetful(conv(3, padding=1), conv(3, padding=1))
    assert net.stage_info()[0].receptive_field == 3
    assert measure_receptive_fields(net)[0].receptive_field == 5


class Everywhere(nn.Module):
    """Adds the mean of the map, as attention that a network is built of."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + x.mean(dim=(2, 3), keepdim=True)


def test_a_look_at_everything_has_no_receptive_field():
    with pytest.raises(ValueError, match="a cell of chain sees more than 8192 pixels"):
        measure_receptive_fields(Chain(Everywhere()))
