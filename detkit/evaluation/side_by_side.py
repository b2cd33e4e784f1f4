"""One model or several on the same ground truth, as text for a terminal, as CSV and for JSON."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from detkit.evaluation.coco import evaluate_files
from detkit.evaluation.paired import PairedDifference, compare
from detkit.evaluation.result import CocoResult

# Names of classes come from files; a terminal would obey the control characters in them, and could
# not show half a surrogate pair
_UNPRINTABLE = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def distinct_names(paths: Sequence[str]) -> list[str]:
    """Short names of files: the parts of their paths in which they differ.

    `a/test/detections.json` and `b/test/detections.json` become `a` and `b`. A file alone keeps its
    path; where one is named twice, all get numbers.
    """
    if len(paths) == 1:
        return list(paths)
    parts = [Path(path).parts for path in paths]
    while all(len(each) > 1 and each[0] == parts[0][0] for each in parts):
        parts = [each[1:] for each in parts]
    while all(len(each) > 1 and each[-1] == parts[0][-1] for each in parts):
        parts = [each[:-1] for each in parts]
    names = [str(Path(*each)) for each in parts]
    if all(name.endswith(".json") for name in names):
        names = [name.removesuffix(".json") for name in names]
    if len(set(names)) == len(names):
        return names
    return [f"{place}: {name}" for place, name in enumerate(names, 1)]


def evaluate_all(
    gt_json: str | Path, dt_jsons: Sequence[str], *, strict: bool = False
) -> dict[str, CocoResult]:
    """Evaluate several files of detections against one ground truth, see `evaluate_files`.

    Returns:
        The results by `distinct_names`, in the order given.
    """
    return {
        name: evaluate_files(gt_json, path, strict=strict)
        for name, path in zip(distinct_names(dt_jsons), dt_jsons, strict=True)
    }


def results_text(results: Mapping[str, CocoResult], *, resamples: int = 1000) -> str:
    """What a command prints: the 12 lines, the interval of AP, notes, classes, who is better.

    Args:
        results: by name; the first is the one that the others are compared with.
        resamples: of the images, for the intervals; 0 for none.

    Raises:
        ValueError: results that cannot be compared, or 1 resample.
    """
    blocks = []
    for name, result in results.items():
        head = [f"{name}:"] if len(results) > 1 else []
        lines = [result.interval(resamples).sentence()] if resamples else []
        lines += [f"note: {note}" for note in result.notes]
        blocks.append("\n".join([*head, result.summary()]))
        blocks += ["\n".join(lines)] if lines else []
        blocks.append(result.table())
    differences = [each.sentence() for each in differences_to_first(results, resamples=resamples)]
    blocks += ["\n".join(differences)] if differences else []
    return printable("\n\n".join(blocks))


def printable(text: str) -> str:
    """The text without what a terminal would obey or cannot show."""
    return _UNPRINTABLE.sub("\ufffd", text)


def differences_to_first(
    results: Mapping[str, CocoResult], *, resamples: int = 1000
) -> list[PairedDifference]:
    """Each model but the first against the first, on the same resampled images."""
    (first, of_first), *others = results.items()
    return [
        compare(of_first, result, resamples=resamples, names=(first, name))
        for name, result in others
    ]


def results_csv(results: Mapping[str, CocoResult]) -> str:
    """The classes as CSV; of several models with a first column that names them."""
    if len(results) == 1:
        return next(iter(results.values())).csv()
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for place, (name, result) in enumerate(results.items()):
        head, *rows = csv.reader(io.StringIO(result.csv()))
        if place == 0:
            writer.writerow(["model", *head])
        writer.writerows([name, *row] for row in rows)
    return text.getvalue()


def results_dict(results: Mapping[str, CocoResult], *, resamples: int = 1000) -> dict[str, Any]:
    """The numbers with their intervals and notes, ready for JSON.

    Returns:
        Of one model its numbers; of several those of each by name under `models`, and under
        `differences` each but the first against the first.
    """
    every = {
        name: {
            **result.as_dict(),
            "interval": result.interval(resamples).as_dict(),
            "notes": list(result.notes),
        }
        for name, result in results.items()
    }
    if len(every) == 1:
        return next(iter(every.values()))
    differences = differences_to_first(results, resamples=resamples)
    return {"models": every, "differences": [each.as_dict() for each in differences]}
