"""What a window shows, and where exactly, from the map of the window.

Heads slide: of a larger map they judge every window at once. B maps, C classes, D channels, K
classes of a classifier, H and W height and width of a map, H' and W' rows and columns of windows.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detkit.backbones.googlenet import Head as GoogLeNetHead
from detkit.backbones.plain import PooledHead, WindowHead
from detkit.backbones.residual_attention import Head as PreactivatedHead
from detkit.detectors.base import at_least_float32
from detkit.nn import LogisticHead, MLPHead
from detkit.nn.dense import SlidingLinear
from detkit.structures import Size


class SlidingHead(nn.Module):
    """A hidden layer, then class logits and box offsets (OverFeat, sections 3 and 4).

    Args:
        channels: D of the map.
        cells: (rows, columns) of a window's map.
        num_classes: C, without background.
        pooled: the mean of the window's cells instead of all of them, flattened.
        hidden: width of the hidden layer; 0 for none.
        box_regression: whether boxes are predicted.
        class_agnostic: one box for all classes instead of one for each.
    """

    background = True

    def __init__(
        self,
        channels: int,
        cells: Size,
        num_classes: int,
        *,
        pooled: bool,
        hidden: int,
        box_regression: bool,
        class_agnostic: bool,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.pool = nn.AvgPool2d(cells, stride=1) if pooled else None
        if pooled:
            cells = (1, 1)
        self.fc = SlidingLinear(channels, cells, hidden) if hidden else None
        if hidden:
            channels, cells = hidden, (1, 1)
        self.cls_score = SlidingLinear(channels, cells, num_classes + 1)  # background last
        boxes = 1 if class_agnostic else num_classes
        self.bbox_pred = SlidingLinear(channels, cells, 4 * boxes) if box_regression else None

    @property
    def regresses(self) -> bool:
        """Whether boxes are predicted; if not, they are the windows."""
        return self.bbox_pred is not None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Judge every window of maps `[B, D, H, W]`.

        Returns:
            Logits `[B, H', W', C + 1]`; offsets `[B, H', W', C, 4]`, with 1 in place of C if
            class-agnostic.
        """
        if self.pool is not None:
            x = self.pool(x)
        if self.fc is not None:
            x = F.relu(self.fc(x)).permute(0, 3, 1, 2)  # [B, hidden, H', W']
        logits = at_least_float32(self.cls_score(x))
        if self.bbox_pred is None:
            return logits, _no_offsets(logits)
        return logits, at_least_float32(self.bbox_pred(x)).unflatten(3, (-1, 4))


class ClassifierHead(nn.Module):
    """The head of a trained classifier, slid; its parameters are the classifier's own.

    Its windows are its boxes.

    Args:
        head: of the classifier.
        cells: (rows, columns) of a window's map.
        classes: K.
        background: which of them is none, or None.

    Raises:
        ValueError: nobody knows how to slide this head, or not over such windows.
    """

    regresses = False

    def __init__(
        self, head: nn.Module, cells: Size, *, classes: int, background: int | None
    ) -> None:
        super().__init__()
        if background is not None and not 0 <= background < classes:
            raise ValueError(f"background {background} not in 0..{classes - 1}, or None for none")
        self.num_classes = classes - (background is not None)
        self.classifier = head
        self.cells = cells
        self.index = background
        self.background = background is not None
        slide_head(head, cells)  # find out now

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Judge every window of maps `[B, D, H, W]`.

        Returns:
            Logits `[B, H', W', C + 1]`, background last: without one C is K, and its logit minus
            infinity. Offsets `[B, H', W', 1, 4]` of zeros.
        """
        logits = at_least_float32(slide_head(self.classifier, self.cells)(x))
        if self.index is None:
            logits = F.pad(logits, (0, 1), value=-torch.inf)
        else:
            before, own, after = logits.tensor_split((self.index, self.index + 1), dim=-1)
            logits = torch.cat([before, after, own], dim=-1)
        return logits, _no_offsets(logits)


def _no_offsets(logits: Tensor) -> Tensor:
    """That lead from windows to themselves: `[B, H', W', 1, 4]`."""
    return logits.new_zeros(*logits.shape[:3], 1, 4)


Slide = Callable[[Tensor], Tensor]  # [B, D, H, W] -> [B, H', W', K]


def slide_head(head: nn.Module, cells: Size) -> Slide:
    """How a classifier's head judges every window of a map as if it were alone.

    Args:
        head: of `create_classifier`, or a classifier head of `detkit.nn`.
        cells: (rows, columns) of a window's map.

    Raises:
        ValueError: nobody knows how to slide this head, or not over such windows.
    """
    if isinstance(head, WindowHead):
        return lambda x: _slide_window_head(head, x, cells)
    if isinstance(head, PooledHead):
        grid = _grid_of(head, cells)
        return lambda x: _slide_pooled_head(head.classifier, x, grid, cells)
    if isinstance(head, PreactivatedHead):
        return lambda x: head.fc(_means(F.relu(head.bn(x)), cells))
    if type(head) in (LogisticHead, MLPHead, GoogLeNetHead):
        return lambda x: _slide_mean_head(head, x, cells)
    raise ValueError(
        f"no way is known to slide the head {type(head).__name__}: give a classifier of "
        "create_classifier or tools/train_classifier.py, or Sequential(backbone, classifier_head)"
    )


def _means(x: Tensor, cells: Size) -> Tensor:
    """`[B, H', W', D]`: the mean of every window of `[B, D, H, W]`."""
    return F.avg_pool2d(x, cells, stride=1).permute(0, 2, 3, 1)


def _slide_mean_head(head: nn.Module, x: Tensor, cells: Size) -> Tensor:
    """Of a head that begins with the mean of the map."""
    means = _means(x, cells)
    logits: Tensor = head([means.flatten(0, 2)[..., None, None]])  # of maps of one cell
    return logits.unflatten(0, means.shape[:3])


def _slide_window_head(head: WindowHead, x: Tensor, cells: Size) -> Tensor:
    """Of a head that already slides inside the window and takes the mean."""
    places = head.places([x])  # [B, K, H - reach, W - reach]
    lost = [side - left for side, left in zip(x.shape[2:], places.shape[2:], strict=True)]
    return _means(places, (cells[0] - lost[0], cells[1] - lost[1]))


def _slide_pooled_head(layers: nn.Sequential, x: Tensor, grid: Size, cells: Size) -> Tensor:
    """Of fully connected layers on the averages of a grid, which covers the window."""
    first = next(i for i, layer in enumerate(layers) if isinstance(layer, nn.Linear))
    linear = layers[first]
    assert isinstance(linear, nn.Linear)
    parts = [max(1, side // count) for side, count in zip(cells, grid, strict=True)]
    averages = F.avg_pool2d(layers[:first](x), parts, stride=1)
    kernel = linear.weight.unflatten(1, (-1, *grid))  # [D, C, rows, columns]
    for dim, side in ((2, cells[0]), (3, cells[1])):
        if kernel.shape[dim] > side:  # the same cell stands in several places of the grid
            kernel = kernel.unflatten(dim, (side, -1)).sum(dim=dim + 1)
    x = F.conv2d(averages, kernel, linear.bias, dilation=parts)
    return layers[first + 1 :](x.permute(0, 2, 3, 1))


def _grid_of(head: PooledHead, cells: Size) -> Size:
    """(rows, columns) of averages that the head takes.

    Raises:
        ValueError: the parts of a window that it averages are not all of one size.
    """
    rows, columns = nn.modules.utils._pair(head.avgpool.output_size)
    if any(max(a, b) % min(a, b) for a, b in zip(cells, (rows, columns), strict=True)):
        raise ValueError(
            f"the head averages to {rows}x{columns} cells, which the {cells[0]}x{cells[1]} cells "
            "of a window do not divide into; give a window whose map has a multiple of them, or a "
            "divisor"
        )
    return rows, columns
