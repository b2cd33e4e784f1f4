"""How often each picture is seen in an epoch, so that rare classes are seen more.

N images, C classes.
"""

from __future__ import annotations

import numpy as np

from detkit.data.dataset import CocoDataset


def repeat_factors(dataset: CocoDataset, *, threshold: float) -> np.ndarray:
    """Repeat factor sampling (Gupta et al., LVIS, CVPR 2019, section 5.1).

    A class that is in a share f of the images has the factor `max(1, sqrt(threshold / f))`, an
    image the largest factor of its classes; images without truths have 1.

    Args:
        dataset: whose images.
        threshold: share of the images below which a class is repeated.

    Returns:
        `[N]` float64, how often an image is seen in an epoch on average.
    """
    present = _present(dataset)
    share = present.mean(axis=0)
    factors = np.maximum(1, np.sqrt(threshold / np.maximum(share, 1e-12)))  # [C]
    return np.where(present, factors, 1.0).max(axis=1, initial=1.0)


def class_balanced(dataset: CocoDataset) -> np.ndarray:
    """As many images in an epoch as there are, drawn so that classes come up about equally often.

    An image weighs as much as its rarest class, `1 / f` for a class in a share f of the images;
    images without truths weigh as little as the most frequent class.

    Returns:
        `[N]` float64, how often an image is seen in an epoch on average; the mean is 1.
    """
    present = _present(dataset)
    share = present.mean(axis=0)
    if not share.any():
        return np.ones(len(dataset))
    least = 1 / share.max()
    weights = np.where(present, 1 / np.maximum(share, 1e-12), least).max(axis=1, initial=least)
    return weights / weights.mean()


def _present(dataset: CocoDataset) -> np.ndarray:
    """`[N, C]` bool: the class is in the image, crowds aside."""
    present = np.zeros((len(dataset), len(dataset.class_names)), bool)
    images, labels, crowd = dataset.truths()
    present[images[~crowd], labels[~crowd]] = True
    return present


def draw_epoch(often: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Indices of an epoch in random order: each image as often as told, rounded up or down.

    Systematic sampling: one random number places a comb on the factors in a random order, so that
    the length is the same in every epoch and no image is off by one or more.

    Args:
        often: `[N]` how often each image is seen on average, not negative.
        rng: of the epoch.

    Returns:
        `[round(sum)]` int64.
    """
    order = rng.permutation(len(often))
    length = round(float(often.sum()))
    if length == 0:
        return order[:0]
    ends = np.cumsum(often[order])
    teeth = (np.arange(length) + rng.random()) * (ends[-1] / length)
    drawn = order[np.searchsorted(ends, teeth, side="right").clip(max=len(order) - 1)]
    return rng.permutation(drawn)
