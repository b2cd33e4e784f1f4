"""How often the 95 % intervals of AP, and of a difference of two models, cover the true value.

    python benchmarks/bootstrap_coverage.py [--images 200] [--classes 5] [--samples 200]

Two synthetic detectors are evaluated on a population of images, which gives the true AP of each.
Then a few of these images are drawn, again and again, and the intervals made from these alone. The
percentile interval stands beside the basic one, which detkit uses.
"""

from __future__ import annotations

import argparse
from typing import NamedTuple

import numpy as np

from detkit.evaluation import CocoEvaluator, CocoResult, compare
from detkit.evaluation.bootstrap import Resamples
from detkit.evaluation.inputs import Floats, Ints


class Boxes(NamedTuple):
    """Truths or detections of a population, by image."""

    image: Ints
    category: Ints
    xywh: Floats
    scores: Floats


def make_truths(images: int, classes: int, rng: np.random.Generator) -> Boxes:
    """About 6 in an image, of 3 classes at most; the k-th class is about 1/k as frequent."""
    frequency = 1 / np.arange(1, classes + 1) ** 0.9
    present = rng.choice(classes, (images, 3), p=frequency / frequency.sum())
    image = np.repeat(np.arange(images), 1 + rng.poisson(5, images))
    category = present[image, rng.integers(0, 3, len(image))]
    size = np.exp(rng.normal(4, 0.8, (len(image), 2))).clip(8, 400)
    return Boxes(image, category, np.hstack([rng.uniform(0, 600, size.shape), size]), size[:, 0])


def detect(truths: Boxes, hard: Floats, ease: Floats, rng: np.random.Generator) -> Boxes:
    """Find part of the truths, and about as much that is none.

    Args:
        truths: of the population.
        hard: how hard each image is, for all detectors.
        ease: how easy each truth is, for this one.
        rng: of the noise.
    """
    found = np.flatnonzero(ease > -1)
    ease = ease[found]
    near = truths.xywh[found]
    reach = 0.12 * np.exp(-0.5 * ease)[:, None] * near[:, [2, 3, 2, 3]]
    near = near + reach * rng.normal(0, 1, near.shape)
    near[:, 2:] = near[:, 2:].clip(1)
    score = ease + rng.normal(0, 0.8, len(found))
    image = np.repeat(np.arange(len(hard)), rng.poisson(5 * np.exp(0.3 * hard)))
    far = np.hstack([rng.uniform(0, 600, (len(image), 2)), rng.uniform(10, 200, (len(image), 2))])
    return Boxes(
        np.concatenate([truths.image[found], image]),
        np.concatenate([truths.category[found], rng.choice(truths.category, len(image))]),
        np.concatenate([near, far]),
        np.concatenate([score, rng.normal(-1.3, 1, len(image))]),
    )


def evaluate(truths: Boxes, found: Boxes, chosen: Ints, classes: int) -> CocoResult:
    """The result of a detector on the chosen images, which are ascending."""
    place = np.full(truths.image.max() + 1, -1)
    place[chosen] = np.arange(len(chosen))
    ours = place[truths.image] >= 0
    evaluator = CocoEvaluator.from_arrays(
        image_ids=np.arange(len(chosen)),
        category_ids=np.arange(classes),
        gt_image_index=place[truths.image[ours]],
        gt_category_index=truths.category[ours],
        gt_boxes=truths.xywh[ours],
    )
    order = np.argsort(found.image, kind="stable")
    ends = np.searchsorted(found.image[order], np.arange(len(place) + 1))
    for new, image in enumerate(chosen.tolist()):
        own = order[ends[image] : ends[image + 1]]
        corners = found.xywh[own].copy()
        corners[:, 2:] += corners[:, :2]
        evaluator.update(new, corners, found.scores[own], found.category[own])
    return evaluator.compute()


def covers(resamples: Resamples, true: float) -> tuple[bool, bool, float]:
    """Whether the basic and the percentile interval of AP cover it, and how wide the first is."""
    basic = resamples.intervals()["AP"]
    low, high = np.quantile(resamples.drawn[:, 0], [0.025, 0.975])
    return basic.low <= true <= basic.high, bool(low <= true <= high), basic.high - basic.low


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=200, help="in each sample")
    parser.add_argument("--classes", type=int, default=5)
    parser.add_argument("--samples", type=int, default=200, help="how often the sample is drawn")
    parser.add_argument("--resamples", type=int, default=500, help="for each interval")
    parser.add_argument("--population", type=int, default=40_000, help="images")
    options = parser.parse_args()

    rng = np.random.default_rng(0)
    truths = make_truths(options.population, options.classes, rng)
    hard = rng.normal(0, 0.7, options.population)
    ease = rng.normal(0, 0.8, len(truths.image)) - hard[truths.image]
    models = []
    for skill in (0.3, 0.36):
        own_ease = ease + rng.normal(skill, 0.6, len(ease))
        models.append(detect(truths, hard, own_ease, rng))
    everything = np.arange(options.population)
    true = [evaluate(truths, found, everything, options.classes).stats[0] for found in models]
    true.append(true[1] - true[0])
    hits = []
    for _ in range(options.samples):
        chosen = np.sort(rng.choice(options.population, options.images, replace=False))
        a, b = (evaluate(truths, found, chosen, options.classes) for found in models)
        pair = compare(a, b, resamples=options.resamples)
        intervals = (pair.a.resamples, pair.b.resamples, pair.resamples)
        hits.append([covers(each, value) for each, value in zip(intervals, true, strict=True)])
    print(
        f"{options.samples} samples of {options.images} images, {options.classes} classes, "
        f"{options.resamples} resamples each"
    )
    print(f"{'':12} {'true':>7} {'basic':>7} {'percentile':>10} {'width':>7}")
    rows = zip(("AP of A", "AP of B", "B less A"), true, np.mean(hits, 0), strict=True)
    for name, value, row in rows:
        print(f"{name:12} {value:7.4f} {row[0]:7.1%} {row[1]:10.1%} {row[2]:7.4f}")


if __name__ == "__main__":
    main()
