"""A ResNet with its feature pyramid, beside torchvision's."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from detkit.backbones import create_backbone
from detkit.nn import FPN


@pytest.mark.parametrize(
    ("levels", "extra_blocks", "settings"),
    [
        ((1, 2, 3, 4), LastLevelMaxPool(), {"extra": "pool"}),
        ((2, 3, 4), LastLevelP6P7(256, 256), {"extra": "p6p7"}),
        ((2, 3, 4), LastLevelP6P7(512, 256), {"extra": "p6p7", "p6_source": "c5"}),
    ],
    ids=["pool", "p6p7", "p6p7 of c5"],
)
def test_pyramid_equals_torchvisions(levels, extra_blocks, settings, randomise, difference):
    theirs = resnet_fpn_backbone(
        backbone_name="resnet18",
        weights=None,
        norm_layer=torchvision.ops.FrozenBatchNorm2d,
        returned_layers=list(levels),
        extra_blocks=extra_blocks,
    )
    randomise(theirs)
    body = create_backbone("resnet18", out_indices=levels, norm="frozen_batch")
    ours = nn.ModuleDict(
        {"body": body, "fpn": FPN([i.channels for i in body.feature_info], **settings)}
    )
    ours.double().load_state_dict(theirs.state_dict(), strict=True)
    x = torch.randn(2, 3, 75, 101, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = list(theirs(x).values())
        maps = ours["fpn"](ours["body"](x))
    assert ours["fpn"].num_levels == len(expected)
    for level, (ours_map, theirs_map) in enumerate(zip(maps, expected, strict=True)):
        assert difference(ours_map, theirs_map) < 1e-9, level
