"""Task-aligned assignment: small tables, and a slow reference written from the paper."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from detkit.ops import (
    Alignment,
    box_iou,
    cells_inside,
    pad_truths,
    task_aligned_match,
)
from detkit.structures import Target


def target(boxes: list[list[float]], labels: list[int], crowd: list[bool] | None = None) -> Target:
    crowd = crowd or [False] * len(boxes)
    return Target(
        torch.tensor(boxes, dtype=torch.float32).view(-1, 4),
        torch.tensor(labels, dtype=torch.int64),
        image_id=0,
        crowd=torch.tensor(crowd, dtype=torch.bool),
        area=torch.ones(len(boxes)),
    )


def grid(side: int, stride: int) -> tuple[Tensor, Tensor]:
    """Points and strides of the cells of one level of side x side cells."""
    along = (torch.arange(side) + 0.5) * stride
    y, x = torch.meshgrid(along, along, indexing="ij")
    return torch.stack([x, y], dim=2).view(-1, 2), torch.full((side * side,), float(stride))


def reference(
    scores: Tensor,
    boxes: Tensor,
    points: Tensor,
    truth: Target,
    *,
    strides: Tensor,
    top_k: int,
    alpha: float,
    beta: float,
) -> tuple[list[int], list[float], list[bool]]:
    """Truth (or -1), quality and whether ignored of each cell of one image."""
    iou = box_iou(truth.boxes, boxes).tolist()
    claims: list[list[int]] = [[] for _ in points]
    metric = {}
    for m in range(len(truth)):
        if truth.crowd[m]:
            continue
        x1, y1, x2, y2 = truth.boxes[m].tolist()
        ranked = []
        for n, (x, y) in enumerate(points.tolist()):
            half = float(strides[n]) / 2
            fits_x = x1 <= x <= x2 or abs(x - (x1 + x2) / 2) <= half
            fits_y = y1 <= y <= y2 or abs(y - (y1 + y2) / 2) <= half
            metric[m, n] = float(scores[n, truth.labels[m]]) ** alpha * iou[m][n] ** beta
            if fits_x and fits_y and metric[m, n] > 0:
                ranked.append((metric[m, n], n))
        for _, n in sorted(ranked, reverse=True)[:top_k]:
            claims[n].append(m)
    owner = [max(c, key=lambda m, n=n: iou[m][n]) if c else -1 for n, c in enumerate(claims)]
    quality = [0.0] * len(points)
    for n, m in enumerate(owner):
        if m >= 0:
            own = [k for k in range(len(points)) if owner[k] == m]
            scale = max(iou[m][k] for k in own) / max(metric[m, k] for k in own)
            quality[n] = metric[m, n] * scale
    ignored = []
    for n, (x, y) in enumerate(points.tolist()):
        crowds = truth.boxes[truth.crowd].tolist()
        half = float(strides[n]) / 2
        inside = any(
            abs(x - (x1 + x2) / 2) <= max((x2 - x1) / 2, half)
            and abs(y - (y1 + y2) / 2) <= max((y2 - y1) / 2, half)
            for x1, y1, x2, y2 in crowds
        )
        ignored.append(inside and owner[n] < 0)
    return owner, quality, ignored


def random_image(count: int, seed: int) -> tuple[Target, Tensor, Tensor]:
    """Truths of all sizes, some of them crowds, and what the 84 cells of two levels predict."""
    generator = torch.Generator().manual_seed(seed)
    draw = torch.rand(count, 4, generator=generator)
    size = 2 + 30 * draw[:, 2:] ** 2
    boxes = torch.cat([64 * draw[:, :2] - size / 2, 64 * draw[:, :2] + size / 2], dim=1)
    crowd = torch.rand(count, generator=generator) < 0.2
    labels = torch.randint(0, 3, (count,), generator=generator)
    truth = Target(boxes, labels, image_id=0, crowd=crowd, area=size.prod(dim=1))
    points = torch.cat([grid(8, 8)[0], grid(4, 16)[0], grid(2, 32)[0]])
    sides = 16 * torch.rand(len(points), 4, generator=generator)
    predicted = torch.cat([points - sides[:, :2], points + sides[:, 2:]], dim=1)
    return truth, torch.rand(len(points), 3, generator=generator), predicted


@pytest.mark.parametrize(
    ("top_k", "alpha", "beta"), [(13, 1.0, 6.0), (1, 0.5, 2.0), (200, 1.0, 0.5)]
)
def test_equals_the_slow_reference(top_k, alpha, beta):
    points, strides = (
        torch.cat(parts) for parts in zip(grid(8, 8), grid(4, 16), grid(2, 32), strict=True)
    )
    counts = (0, 1, 9, 25)
    images = [random_image(count, seed) for seed, count in enumerate(counts)]
    truths = pad_truths([truth for truth, _, _ in images])
    found = task_aligned_match(
        torch.stack([scores for _, scores, _ in images]),
        torch.stack([boxes for _, _, boxes in images]),
        cells_inside(points, strides, truths),
        truths,
        top_k=top_k,
        alpha=alpha,
        beta=beta,
    )
    for index, (truth, scores, boxes) in enumerate(images):
        owner, quality, ignored = reference(
            scores, boxes, points, truth, strides=strides, top_k=top_k, alpha=alpha, beta=beta
        )
        mine = torch.where(found.positive[index], found.truth[index], -1)
        assert mine.tolist() == owner
        torch.testing.assert_close(found.quality[index], torch.tensor(quality))
        assert found.ignored[index].tolist() == ignored
    assert found.positive.sum() > len(counts)  # so that the comparison says something
    assert found.ignored.any()


def test_which_cells_are_inside():
    points = torch.tensor([[5.0, 5.0], [15.0, 5.0], [25.0, 5.0], [16.0, 16.0]])
    strides = torch.tensor([10.0, 10.0, 10.0, 32.0])
    truths = pad_truths([target([[4, 4, 20, 6], [19, 1, 21, 3], [40, 4, 50, 6]], [0, 0, 0])])
    assert cells_inside(points, strides, truths)[0].tolist() == [
        [True, True, False, True],
        # narrow: 10 wide around (20, 2) for the first three, whose borders count, 32 for the last
        [False, True, True, True],
        [False, False, False, False],
    ]
    padded = truths._replace(valid=torch.tensor([[True, False, True]]))
    assert cells_inside(points, strides, padded)[0].any(dim=1).tolist() == [True, False, False]


# Four cells in a row, 10 pixels apart, at (5, 5) to (35, 5)
ROW = torch.tensor([[5.0, 5.0], [15.0, 5.0], [25.0, 5.0], [35.0, 5.0]])


def match_row(
    truth: Target, boxes: list[list[float]], scores: list[list[float]], top_k: int = 4
) -> Alignment:
    truths = pad_truths([truth])
    return task_aligned_match(
        torch.tensor([scores]),
        torch.tensor([boxes]),
        cells_inside(ROW, torch.full((4,), 10.0), truths),
        truths,
        top_k=top_k,
        alpha=1.0,
        beta=1.0,
    )


def test_alignment_of_one_truth():
    """IoU 1, 1/2 and 0 inside the truth, and a perfect box outside, which does not count."""
    truth = target([[0, 0, 30, 10]], [1])
    boxes = [[0, 0, 30, 10], [0, 0, 15, 10], [40, 0, 50, 10], [0, 0, 30, 10]]
    found = match_row(truth, boxes, [[0.9, 0.2], [0.9, 0.8], [0.9, 0.9], [0.9, 0.9]])
    assert found.positive.tolist() == [[True, True, False, False]]
    # alignments 0.2 and 0.4: the second is the best and gets the largest IoU, 1
    torch.testing.assert_close(found.quality, torch.tensor([[0.5, 1.0, 0.0, 0.0]]))
    best = match_row(truth, boxes, [[0.9, 0.2], [0.9, 0.8], [0.9, 0.9], [0.9, 0.9]], top_k=1)
    assert best.positive.tolist() == [[False, True, False, False]]
    torch.testing.assert_close(best.quality, torch.tensor([[0.0, 0.5, 0.0, 0.0]]))


def test_a_cell_that_two_truths_want_goes_to_the_one_it_overlaps_most():
    """Even where its score speaks for the other one."""
    truth = target([[0, 0, 40, 10], [0, 0, 20, 10]], [0, 1])
    boxes = [[0, 0, 20, 10], [0, 0, 30, 10], [0, 0, 40, 10], [0, 0, 40, 10]]
    found = match_row(truth, boxes, [[0.9, 0.1]] * 4)
    assert found.truth[found.positive].tolist() == [1, 0, 0, 0]  # 3/4 > 2/3 decides the second


def test_a_truth_too_small_for_the_cells_has_the_nearest_one():
    truth = target([[19, 1, 21, 3], [11, 3, 13, 4]], [0, 0])
    boxes = [[0.0, 0.0, 10, 10], [10, 0, 22, 10], [18, 0, 30, 10], [30, 0, 40, 10]]
    found = match_row(truth, boxes, [[0.5]] * 4)
    # the first truth is 5 pixels from two cells, the second 3 pixels from one, which it gets not:
    # this cell overlaps the first one more
    assert found.positive.tolist() == [[False, True, True, False]]
    assert found.truth[found.positive].tolist() == [0, 0]


def test_cells_in_a_crowd_are_ignored_unless_they_serve_an_object():
    truth = target([[0, 0, 20, 10], [10, 0, 40, 10]], [0, 0], [False, True])
    boxes = [[0, 0, 20, 10], [0, 0, 20, 10], [10, 0, 40, 10], [10, 0, 40, 10]]
    found = match_row(truth, boxes, [[0.5]] * 4)
    assert found.positive.tolist() == [[True, True, False, False]]
    assert found.ignored.tolist() == [[False, False, True, True]]


@pytest.mark.parametrize("cells", [0, 4])
def test_without_truths_every_cell_is_negative(cells):
    truths = pad_truths([target([], []), target([], [])])
    inside = cells_inside(ROW[:cells], torch.full((cells,), 10.0), truths)
    found = task_aligned_match(torch.rand(2, cells, 3), torch.rand(2, cells, 4), inside, truths)
    assert found.positive.shape == found.quality.shape == (2, cells)
    assert not found.positive.any() and not found.ignored.any() and not found.quality.any()


def test_without_cells_nobody_is_positive():
    truths = pad_truths([target([[0, 0, 9, 9]], [0])])
    inside = cells_inside(ROW[:0], torch.zeros(0), truths)
    found = task_aligned_match(torch.rand(1, 0, 3), torch.rand(1, 0, 4), inside, truths)
    assert found.positive.shape == (1, 0)


def test_truths_of_a_batch_are_padded():
    truths = pad_truths([target([], []), target([[1, 2, 3, 4]] * 2, [5, 6], [False, True])])
    assert truths.valid.tolist() == [[False, False], [True, True]]
    assert truths.boxes.shape == (2, 2, 4)
    assert truths.labels.tolist() == [[0, 0], [5, 6]]
    assert truths.crowd.tolist() == [[False, False], [False, True]]


def test_empty_boxes_align_with_nothing():
    """A truth and a box without area: 0 / 0 is no overlap."""
    truth = target([[5, 5, 5, 5]], [0])
    found = match_row(truth, [[5.0, 5, 5, 5]] * 4, [[0.5]] * 4)
    assert not found.positive.any()
    assert not found.quality.any()
