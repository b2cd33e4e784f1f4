"""Whether the objects of a checked data set suit the maps and anchors of a recipe's detector.

K objects, A anchors.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from detkit.analysis.anchors import shapes_of
from detkit.analysis.scales import levels_of, pyramid_of
from detkit.analysis.subject import Subject, backbone_of, without_pyramid
from detkit.config import Recipe
from detkit.data.check import CheckedData, Finding
from detkit.data.check.labels import quantiles
from detkit.ops import shape_iou

MATCHED = 0.5  # IoU with an anchor, centred, from which on an object can become its positive
NOTABLE = 0.05  # share of the objects that a detector may lose without a warning
_ROWS = 65536  # objects at a time: their overlaps with all anchors take K * A floats


def check_fit(data: CheckedData, recipe: Recipe) -> None:
    """Add to a report how large the objects are beside the cells and anchors of a detector.

    Args:
        data: checked.
        recipe: of the detector that is to be trained on it.
    """
    if data.records is None:
        return
    resize = recipe.data.resize
    indices, shapes = data.resized_boxes((resize.shortest, resize.longest))
    subject = Subject(recipe.name, (0, 0), recipe, num_classes=len(data.records.categories) or 1)
    net = without_pyramid(subject.build("cpu"))  # anchors have values
    levels = levels_of(backbone_of(net).feature_info, net)
    _, grid = pyramid_of(net)
    stride = min(level.stride for level in levels)
    below = np.sqrt(shapes.prod(axis=1)) < stride
    numbers: dict[str, Any] = {
        "recipe": recipe.name,
        "resized_sides": quantiles(np.sqrt(shapes.prod(axis=1))),
        "strides": [level.stride for level in levels],
        "share_below_a_cell": _share(below),
    }
    found = {"box_below_cell": below}
    if grid is not None:
        best = best_iou(torch.from_numpy(shapes).float(), shapes_of(grid))
        numbers["anchors"] = [list(level.anchors) for level in levels]
        numbers["mean_best_iou"] = round(float(best.mean()), 3) if len(best) else None
        numbers["share_without_an_anchor"] = _share(best < MATCHED)
        found["box_without_anchor"] = best < MATCHED
    data.report.numbers["fit"] = numbers
    data.report.add(
        Finding(code, indices[mask], data.records.box_name)
        for code, mask in found.items()
        if _share(mask) > NOTABLE
    )


def best_iou(shapes: torch.Tensor, anchors: torch.Tensor) -> np.ndarray:
    """IoU `[K]` of each object with the anchor that fits best, both centred.

    Args:
        shapes: `[K, 2]` (height, width) of the objects.
        anchors: `[A, 2]`.
    """
    parts = [shape_iou(part, anchors).amax(dim=1) for part in shapes.split(_ROWS) if len(part)]
    return torch.cat([torch.zeros(0), *parts]).numpy()


def _share(mask: np.ndarray) -> float:
    return round(float(mask.mean()), 4) if len(mask) else 0.0
