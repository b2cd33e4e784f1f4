"""`detkit.ops.suppress` for a batch of images with boxes in a fixed number of places.

Hard suppression is done by the operator that every runtime has: torchvision's in a file of torch,
`NonMaxSuppression` in one of ONNX. The others are written out: soft and DIoU as so many turns as
boxes are reported, which are the best ones as no turn takes a better box than the one before;
matrix NMS as the matrix of its name. Those that join boxes (wbf, nmm) have no fixed size.

B images, M places, K reported, G groups.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torchvision.ops import nms

from detkit.inference.export.places import NOTHING, Found, best_of, rows_at
from detkit.ops.neighbours import distance_overlap, overlap

EXPORTABLE = (
    "hard",
    "soft_linear",
    "soft_gaussian",
    "diou",
    "matrix_linear",
    "matrix_gaussian",
    "none",
)
MOST_PAIRED = 1000  # boxes of an image that matrix NMS looks at, each with each

_for_onnx = False


@contextmanager
def onnx_operators() -> Iterator[None]:
    """Within it what is traced holds operators that ONNX has and torch has not."""
    global _for_onnx
    before, _for_onnx = _for_onnx, True
    try:
        yield
    finally:
        _for_onnx = before


def check_exportable(kind: str) -> None:
    """Raise unless there is a form of fixed size.

    Raises:
        ValueError: there is none.
    """
    if kind not in EXPORTABLE:
        raise ValueError(
            f"nms={kind} joins boxes in as many steps as a picture asks for and cannot be "
            f"exported; choose one of {', '.join(EXPORTABLE)}"
        )


def suppress(
    found: Found,
    *,
    nms: str,
    iou_threshold: float,
    num_classes: int,
    count: int,
    sigma: float = 0.5,
    class_agnostic: bool = False,
    score_threshold: float = 0.0,
) -> Found:
    """The best K after suppression, best first; see `detkit.ops.suppress`.

    Args:
        found: the candidates.
        nms: see there, as the next ones.
        iou_threshold: of hard, soft_linear, diou.
        sigma: of the Gaussian ones.
        class_agnostic: boxes of different classes touch each other, too.
        score_threshold: scores that suppression has lowered must stay above it.
        num_classes: labels are below it.
        count: K.
    """
    family, _, method = nms.partition("_")
    if family == "matrix":
        found = best_of(found, MOST_PAIRED)
    groups = torch.zeros_like(found.labels) if class_agnostic else found.labels
    num_groups = 1 if class_agnostic else num_classes
    if family == "none":
        return best_of(found, count)
    if family == "hard":
        kept = keep(found.boxes, found.scores, groups, num_groups, iou_threshold)
        return best_of(found._replace(scores=found.scores.where(kept, NOTHING)), count)
    if family == "diou":
        return _turns(found, groups, _unlike(iou_threshold), 0.0, count)
    if family == "soft":
        factor = _linear(iou_threshold) if method == "linear" else _gaussian(sigma)
        return _turns(found, groups, factor, score_threshold, count)
    scores = _matrix(found, groups, method, sigma)
    return best_of(found._replace(scores=scores.where(scores > score_threshold, NOTHING)), count)


def keep(
    boxes: Tensor, scores: Tensor, groups: Tensor, num_groups: int, iou_threshold: float
) -> Tensor:
    """Which boxes `[B, M]` hard suppression keeps; none of those with a score of `NOTHING`.

    Args:
        boxes: `[B, M, 4]`.
        scores: `[B, M]`, of equal ones the first wins.
        groups: `[B, M]` int64; boxes of different groups never suppress each other.
        num_groups: groups are below it.
        iou_threshold: of two boxes that overlap by more than this, the lower score goes.
    """
    if _for_onnx:
        return torch.ops.detkit.keep(boxes, scores, groups, num_groups, iou_threshold)
    return _keep(boxes, scores, groups, num_groups, iou_threshold)


def _keep(
    boxes: Tensor, scores: Tensor, groups: Tensor, num_groups: int, iou_threshold: float
) -> Tensor:
    """By one call of torchvision's operator: images and groups are moved apart.

    In float64, as the shift would cost float32 boxes their last digits and with them the exact IoU.
    """
    count = boxes.shape[0] * num_groups
    image = torch.arange(boxes.shape[0], device=boxes.device)[:, None]
    # two boxes without an area, which always stay: torch.export is told that so many do
    group = torch.cat([(image * num_groups + groups).flatten(), count + torch.arange(2).to(groups)])
    score = torch.cat([scores.flatten(), scores.new_full((2,), NOTHING / 2)])
    columns = torch.cat([boxes.flatten(0, 1), boxes.new_zeros(2, 4)]).double()
    columns = columns + (group * (columns.abs().amax() + 1))[:, None]
    valid = (score > NOTHING).nonzero()[:, 0]
    kept = valid[nms(columns[valid], score[valid].double(), iou_threshold)]
    return (torch.zeros_like(group).index_fill(0, kept, 1) > 0)[:-2].view_as(scores)


@torch.library.custom_op("detkit::keep", mutates_args=())
def _keep_operator(
    boxes: Tensor, scores: Tensor, groups: Tensor, num_groups: int, iou_threshold: float
) -> Tensor:
    """`keep` as one operator, which the exporter to ONNX replaces by `NonMaxSuppression`."""
    return _keep(boxes, scores, groups, num_groups, iou_threshold)


@_keep_operator.register_fake
def _(
    boxes: Tensor, scores: Tensor, groups: Tensor, num_groups: int, iou_threshold: float
) -> Tensor:
    return torch.empty_like(scores, dtype=torch.bool)


Factor = Callable[[Tensor, Tensor], Tensor]  # of boxes in columns [4, ...]: what the second keeps


def _unlike(iou_threshold: float) -> Factor:
    return lambda first, second: (distance_overlap(first, second) < iou_threshold).to(first)


def _linear(iou_threshold: float) -> Factor:
    def factor(first: Tensor, second: Tensor) -> Tensor:
        iou = overlap(first, second)
        return torch.where(iou >= iou_threshold, 1 - iou, 1.0)

    return factor


def _gaussian(sigma: float) -> Factor:
    return lambda first, second: (-overlap(first, second).square() / sigma).exp()


def _turns(
    found: Found, groups: Tensor, factor: Factor, score_threshold: float, count: int
) -> Found:
    """K times: take the best box, multiply the scores of those of its group (`take_turns`)."""
    columns = found.boxes.permute(2, 0, 1)  # [4, B, M]
    scores, taken, values = found.scores, [], []
    for _ in range(count):
        value, place = scores.max(dim=1, keepdim=True)  # [B, 1]
        own = columns.gather(2, place.expand(4, -1, -1))  # [4, B, 1]
        changed = scores * factor(own, columns)
        scores = changed.where(groups == groups.gather(1, place), scores)
        scores = scores.scatter(1, place, NOTHING)
        taken.append(place)
        values.append(value)
    index, lowered = torch.cat(taken, dim=1), torch.cat(values, dim=1)  # [B, K]
    lowered = lowered.where(lowered > score_threshold, NOTHING)
    return Found(rows_at(found.boxes, index), lowered, found.labels.gather(1, index))


def _matrix(found: Found, groups: Tensor, method: str, sigma: float) -> Tensor:
    """Scores `[B, M]` of boxes, best first, as `detkit.ops.matrix_nms` lowers them."""

    def decay(iou: Tensor) -> Tensor:
        return 1 - iou if method == "linear" else (-iou.square() / sigma).exp()

    columns = found.boxes.permute(2, 0, 1)  # [4, B, M]
    iou = overlap(
        columns[:, :, :, None], columns[:, :, None]
    )  # [B, M, M] of the row's, the column's
    same = groups[:, :, None] == groups[:, None]
    iou = (iou * same).triu(1)  # of the better box, in the row, with the worse
    own = decay(iou.amax(dim=1))[:, :, None]  # [B, M, 1]
    ratio = torch.where((own > 0) & (iou > 0), decay(iou) / own, 1.0)
    return found.scores * ratio.amin(dim=1)
