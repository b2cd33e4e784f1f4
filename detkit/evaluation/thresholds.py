"""Score thresholds of each class: given, or chosen from what a false alarm and a miss cost.

Let a class have r objects in an image on average. Reporting what scores t or more finds the share
recall(t) of them and raises f(t) false alarms in an image, so that an image costs

    cost(t) = cost_false_alarm * f(t) + cost_miss * r * (1 - recall(t))

on average. f and recall are counted on validation data, r is what the detector will meet in use:
the prior. Where objects are rarer or more frequent there than in the validation data, recall stays,
being a share of the objects, and so do false alarms, which the rest of the picture raises. With
I images, M truths, TP(t) hits and FP(t) false alarms in the data, and w = r / (M / I),

    I * cost(t) = cost_false_alarm * FP(t) + w * cost_miss * (M - TP(t)),

that is, a miss weighs as much as objects are more frequent in use. Moving t below the scores near
s adds hits and false alarms in the ratio p : 1 - p, p being the precision of these scores, and
lowers the cost exactly if p > cost_false_alarm / (cost_false_alarm + w * cost_miss). If scores are
calibrated, p = s, this is the threshold of Bayes' rule (Duda, Hart and Stork, Pattern
Classification, section 2.2). Nothing of that is assumed: all thresholds are tried.

C classes, n detections of a class, M truths, I images.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from detkit.config import ConfigError, parse_yaml
from detkit.config.training import check_thresholds
from detkit.evaluation.coco import CocoEvaluator
from detkit.evaluation.inputs import Floats
from detkit.evaluation.outcomes import find_outcomes
from detkit.evaluation.sweep import Sweep, judged_by_category
from detkit.registry import suggest
from detkit.structures import Detections

Thresholds = float | Mapping[str, float] | str | os.PathLike[str]  # a path: a YAML file of these


@dataclass(frozen=True)
class ClassThreshold:
    """The threshold of a class, and what the validation data says of it.

    Attributes:
        name: of the class.
        threshold: lowest score that is reported; 1 where nothing should be.
        truths: M.
        precision: of what is reported; NaN where nothing is.
        recall: NaN without truths.
        cost: of an image on average; NaN without truths.
        cost_at_half: the same with a threshold of 0.5.
    """

    name: str
    threshold: float
    truths: int
    precision: float
    recall: float
    cost: float
    cost_at_half: float


@dataclass(frozen=True)
class Prices:
    """What mistakes cost, and how frequent objects are in use; one number a class.

    Attributes:
        false_alarm: `[C]`.
        miss: `[C]`.
        prior: `[C]` objects in an image on average; None: as in the validation data.
    """

    false_alarm: Sequence[float]
    miss: Sequence[float]
    prior: Sequence[float | None]


def choose_thresholds(
    evaluator: CocoEvaluator, prices: Prices, *, iou_threshold: float = 0.5
) -> list[ClassThreshold]:
    """For each class the threshold that costs least on validation data.

    Of several that cost the same, the highest. A class without truths shows no recall: it gets the
    threshold of calibrated scores, `false_alarm / (false_alarm + miss)`.

    Args:
        evaluator: has ground truth and detections; their scores should go down to where a
            threshold may be.
        prices: of the evaluator's classes, in its order.
        iou_threshold: least overlap of a hit.
    """
    found = evaluator.flat_detections()
    outcomes = find_outcomes(
        evaluator.truths.truths,
        found,
        num_categories=len(evaluator.truths.class_names),
        iou_thresholds=(iou_threshold,),
        area_range=(-math.inf, math.inf),
        limit=len(found) + 1,
    )
    images = max(len(evaluator.truths.image_ids), 1)
    chosen = []
    for index, judged in enumerate(judged_by_category(evaluator.truths, outcomes)):
        sweep, count = Sweep.of(judged.scores, judged.right), judged.truths
        false_alarm, miss = prices.false_alarm[index], prices.miss[index]
        prior = prices.prior[index]
        if count:
            rate = count / images if prior is None else prior
            recall = sweep.right / count
            cost = false_alarm * sweep.wrong / images + miss * rate * (1 - recall)
            threshold = _cheapest(sweep.thresholds, cost)
        else:
            recall = cost = np.full(len(sweep.right), math.nan)
            threshold = false_alarm / (false_alarm + miss)
        place, half = ((sweep.thresholds >= t).sum() for t in (threshold, 0.5))
        reported = sweep.right[place] + sweep.wrong[place]
        chosen.append(
            ClassThreshold(
                judged.name,
                threshold=threshold,
                truths=count,
                precision=float(sweep.right[place] / reported) if reported else math.nan,
                recall=float(recall[place]),
                cost=float(cost[place]),
                cost_at_half=float(cost[half]),
            )
        )
    return chosen


def _cheapest(scores: Floats, cost: Floats) -> float:
    """The highest threshold of those that cost least; `scores` are `[n]`, `cost` is `[n + 1]`."""
    # above all scores there is no threshold, where the best one is 1
    never = [1.0] if not len(scores) or scores[0] < 1 else [math.inf]
    thresholds = np.concatenate([never, scores])
    cost = np.where(thresholds <= 1, cost, math.inf)
    # a hair more than the least is the same: sums of fractions are not exact
    least = cost.min()
    return float(thresholds[np.argmax(cost <= least + 1e-12 * abs(cost[-1] + least))])


def prices_of(
    class_names: Sequence[str],
    *,
    false_alarm: Sequence[str],
    miss: Sequence[str],
    prior: Sequence[str] = (),
) -> Prices:
    """Prices as they are written on a command line: `5` for all classes, `cat=5` for one.

    Args:
        class_names: `[C]`.
        false_alarm: cost of a false alarm, 1 where not given.
        miss: cost of a miss, 1 where not given.
        prior: objects of a class in an image on average, where it is not as in the data.

    Raises:
        ValueError: no number, a negative one, an unknown class; or both costs of a class are 0.
    """
    alarms = _by_class("--false-alarm", false_alarm, class_names, 1.0)
    misses = _by_class("--miss", miss, class_names, 1.0)
    for name, pair in zip(class_names, zip(alarms, misses, strict=True), strict=True):
        if not any(pair):
            raise ValueError(f"both --false-alarm and --miss of {name!r} are 0; set one above it")
    priors = _by_class("--prior", prior, class_names, math.nan)
    return Prices(alarms, misses, [None if math.isnan(each) else each for each in priors])


def _by_class(
    option: str, given: Sequence[str], class_names: Sequence[str], default: float
) -> list[float]:
    values: dict[str, float] = {}
    everyone = default
    for text in given:
        name, _, number = text.rpartition("=")
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if not 0 <= value < math.inf:
            raise ValueError(f"{option} {text}: {number!r} is not a number from 0 on")
        if not name:
            everyone = value
        elif name not in class_names:
            raise ValueError(f"{option} {text}: unknown class; {suggest(name, class_names)}")
        else:
            values[name] = value
    return [values.get(name, everyone) for name in class_names]


def read_thresholds(given: Thresholds, class_names: Sequence[str]) -> list[float]:
    """The lowest score of each class, `[C]`; of classes that are not named 0.

    Args:
        given: a number for all classes; or by name; or a YAML file of either.
        class_names: `[C]`.

    Raises:
        ValueError: a file that cannot be read, a number outside of 0..1, an unknown class.
    """
    where = "thresholds"
    if isinstance(given, str | os.PathLike):
        where, given = str(given), _read_file(Path(given))
    try:
        checked = check_thresholds(dict(given) if isinstance(given, Mapping) else given)
    except ValueError as error:
        raise ValueError(f"{where}: got {given!r}; {error}") from None
    if not isinstance(checked, dict):
        assert isinstance(checked, float)
        return [checked] * len(class_names)
    for name in checked:
        if name not in class_names:
            raise ValueError(f"{where}: unknown class {name!r}; {suggest(name, class_names)}")
    return [checked.get(name, 0.0) for name in class_names]


def _read_file(path: Path) -> float | dict[str, float]:
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError:
        raise ValueError(
            f"no thresholds at {path}; write them with tools/choose_thresholds.py, or give a number"
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"cannot read thresholds {path}: {error}") from None
    if isinstance(content, str) or content is None:
        raise ValueError(f"{path}: holds no thresholds; a line a class, e.g. 'cat: 0.3'")
    return content


def thresholds_to_yaml(chosen: Sequence[ClassThreshold]) -> str:
    """A line for each class, for `read_thresholds`."""
    # a name in double quotes is text in YAML, whatever it looks like
    return "".join(
        f"{json.dumps(each.name, ensure_ascii=False)}: {each.threshold!r}\n" for each in chosen
    )


def thresholds_table(chosen: Sequence[ClassThreshold]) -> str:
    """A line for each class, and what an image costs in all."""
    width = max([5, *(len(each.name) for each in chosen)])
    head = f"{'class':<{width}}  threshold  truths  precision  recall      cost  cost at 0.5"
    lines = [
        f"{each.name:<{width}}  {each.threshold:9.4f}  {each.truths:6d}  "
        f"{_number(each.precision, 9)}  {_number(each.recall, 6)}  "
        f"{_number(each.cost, 8, 4)}  {_number(each.cost_at_half, 11, 4)}"
        for each in chosen
    ]
    known = [each for each in chosen if each.truths]
    total, at_half = sum(e.cost for e in known), sum(e.cost_at_half for e in known)
    lines.append(f"{'all':<{width}}  {'':34}  {total:8.4f}  {at_half:11.4f}")
    if len(known) < len(chosen):
        lines.append("classes without truths: the threshold of calibrated scores")
    return "\n".join([head, *lines])


def _number(value: float, width: int, digits: int = 3) -> str:
    return f"{'-':>{width}}" if math.isnan(value) else f"{value:{width}.{digits}f}"


def above(found: Detections, thresholds: Sequence[float]) -> Detections:
    """Detections that reach the threshold of their class, `[C]`."""
    return found[found.scores >= found.scores.new_tensor(thresholds)[found.labels]]
