"""Clusters of box shapes: planted ones come back, and no step makes the fit worse."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detkit.ops import cell_anchors, centred_boxes, cluster_boxes, cluster_step, shape_iou
from detkit.ops.boxes import box_iou


def shapes_of(*centres, each=50, spread=0.03, seed=0):
    """`each` boxes around every centre, in mixed order."""
    generator = torch.Generator().manual_seed(seed)
    shapes = torch.tensor(centres).repeat(each, 1)
    noise = 1 + spread * torch.randn(shapes.shape, generator=generator)
    return shapes * noise


def test_iou_of_shapes_is_that_of_centred_boxes():
    shapes, others = torch.rand(7, 2) * 50 + 1, torch.rand(4, 2) * 50 + 1
    expected = box_iou(centred_boxes(shapes), centred_boxes(others))
    torch.testing.assert_close(shape_iou(shapes, others), expected)
    # 10 x 4 (h x w) and 5 x 8: they share 5 x 4
    iou = shape_iou(torch.tensor([[10.0, 4]]), torch.tensor([[5.0, 8]]))
    assert iou.item() == pytest.approx(20 / (40 + 40 - 20))


def test_centred_boxes_are_height_first():
    assert centred_boxes([(2.0, 6.0)]).tolist() == [[-3, -1, 3, 1]]
    squares = centred_boxes([(16.0, 16.0), (32.0, 32.0)])
    assert torch.equal(squares, cell_anchors((16, 32), (1,)))
    assert centred_boxes([]).shape == (0, 4)


@pytest.mark.parametrize("seed", range(5))
def test_planted_clusters_come_back(seed):
    planted = [[10.0, 30], [40, 20], [15, 120], [100, 100]]
    clusters, fit = cluster_boxes(shapes_of(*planted), 4, seed=seed)
    wanted = torch.tensor(planted)
    order = wanted.prod(dim=1).argsort()
    torch.testing.assert_close(clusters, wanted[order], rtol=0.02, atol=0)
    assert 0.93 < fit < 1


def test_a_cluster_of_equal_shapes_is_that_shape():
    sizes = torch.tensor([[4.0, 8]] * 3 + [[40, 8]] * 5)
    clusters, fit = cluster_boxes(sizes, 2)
    assert clusters.tolist() == [[4, 8], [40, 8]]
    assert fit == 1


def test_one_step_by_hand():
    """Of (2, 2), (4, 2) and (30, 30), two go to (2, 3) and move it to their mean."""
    sizes = torch.tensor([[2.0, 2], [4, 2], [30, 30]])
    clusters = torch.tensor([[2.0, 3], [30, 30], [500, 1]])
    # before: 4 / 6 and 4 / 10; the mean (3, 2) has 4 / 6 and 6 / 8. The last cluster has no box.
    assert cluster_step(sizes, clusters).tolist() == [[3, 2], [30, 30], [500, 1]]


def test_a_mean_that_fits_worse_is_not_taken():
    """One huge box draws the mean away from two small ones that were met exactly."""
    sizes = torch.tensor([[1.0, 1], [1, 1], [1, 1], [1, 100]])
    clusters = torch.tensor([[1.0, 1]])
    # exact: 1 + 1 + 1 + 0.01; the mean of width 25.75: 3 / 25.75 + 0.2575
    assert cluster_step(sizes, clusters).tolist() == [[1, 1]]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 8))
def test_no_step_makes_the_fit_worse(seed, count, k):
    generator = torch.Generator().manual_seed(seed)
    sizes = 1000 ** torch.rand(count, 2, generator=generator, dtype=torch.float64)
    clusters = 1000 ** torch.rand(k, 2, generator=generator, dtype=torch.float64)
    fits = []
    for _ in range(6):
        fits.append(shape_iou(sizes, clusters).amax(dim=1).mean().item())
        clusters = cluster_step(sizes, clusters)
    assert all(later >= earlier - 1e-12 for earlier, later in itertools.pairwise(fits))
    _, fit = cluster_boxes(sizes, k, seed=seed)
    assert 0 < fit <= 1


def test_more_clusters_fit_better_than_squares():
    sizes = 8 + 100 * torch.rand(300, 2, generator=torch.Generator().manual_seed(0))
    fits = [cluster_boxes(sizes, k)[1] for k in (1, 3, 9, 27)]
    assert fits == sorted(fits)
    squares = torch.tensor([[s, s] for s in (8.0, 16, 24, 32, 48, 64, 80, 96, 110)])
    assert fits[2] > shape_iou(sizes, squares).amax(dim=1).mean()


def test_the_same_seed_gives_the_same():
    sizes = 5 + 50 * torch.rand(200, 2, generator=torch.Generator().manual_seed(0))
    first, again, other = (cluster_boxes(sizes, 6, seed=seed)[0] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_fewer_boxes_than_clusters():
    sizes = torch.tensor([[9.0, 3], [2, 2]])
    clusters, fit = cluster_boxes(sizes, 5)
    assert (clusters.tolist(), fit) == ([[2, 2], [9, 3]], 1.0)
    clusters, fit = cluster_boxes(torch.zeros(0, 2), 3)
    assert (clusters.shape, fit) == ((0, 2), 0.0)


def test_what_has_no_clusters():
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        cluster_boxes(torch.ones(3, 2), 0)
    with pytest.raises(ValueError, match="without an area"):
        cluster_boxes(torch.tensor([[3.0, 0]]), 1)
