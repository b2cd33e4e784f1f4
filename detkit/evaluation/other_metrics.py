"""The VOC and LVIS metrics for a command: of one file of detections or several, text and JSON."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detkit.evaluation.coco_json import read_detections
from detkit.evaluation.lvis import LvisResult, evaluate_lvis_files
from detkit.evaluation.side_by_side import distinct_names, printable
from detkit.evaluation.tables import number, plain
from detkit.evaluation.voc import (
    INTERPOLATIONS,
    VocResult,
    VocSettings,
    evaluate_voc,
    read_voc_truths,
)
from detkit.files import write_json

METRICS = ("coco", "voc", "lvis")


def check_metric(metric: str, **options: object) -> None:
    """Options that a command has for the COCO metric alone.

    Raises:
        ValueError: one of them is set beside another metric.
    """
    asked = [f"--{name}" for name, value in options.items() if value]
    if metric != "coco" and asked:
        raise ValueError(
            f"{', '.join(asked)} are of --metric coco alone; --metric {metric} prints its numbers, "
            "and writes them to the file of --out"
        )


def evaluate_other(
    metric: str, gt_json: str | Path, dt_jsons: Sequence[str], *, out: str | Path | None = None
) -> str:
    """Evaluate by another metric than COCO's.

    Args:
        metric: "voc" or "lvis".
        gt_json: ground truth.
        dt_jsons: files of detections.
        out: JSON file for the numbers: of one file of detections its own, of several those of each
            under `models`.

    Returns:
        What a command prints.

    Raises:
        ValueError: a file is malformed, or lacks what the metric needs.
        OSError: a file cannot be read or written.
    """
    evaluate = {"voc": _voc, "lvis": _lvis}[metric]
    names = distinct_names(dt_jsons)
    outcomes = [evaluate(gt_json, path) for path in dt_jsons]
    if out:
        every = {name: numbers for name, (_, numbers) in zip(names, outcomes, strict=True)}
        chosen = {"models": every} if len(names) > 1 else outcomes[0][1]
        write_json(out, chosen)
    heads = [f"{name}:\n" if len(names) > 1 else "" for name in names]
    return printable(
        "\n\n".join(head + text for head, (text, _) in zip(heads, outcomes, strict=True))
    )


def _lvis(gt_json: str | Path, dt_json: str) -> tuple[str, dict[str, Any]]:
    result: LvisResult = evaluate_lvis_files(gt_json, dt_json)
    return f"{result.summary()}\n\n{result.table()}", result.as_dict()


def _voc(gt_json: str | Path, dt_json: str) -> tuple[str, dict[str, Any]]:
    """By each interpolation, without and with the pixel more of VOC's own annotations."""
    truths = read_voc_truths(gt_json)
    detections = read_detections(dt_json, truths)
    results: dict[str, VocResult] = {}
    for legacy in (False, True):
        for interpolation in INTERPOLATIONS:
            settings = VocSettings(interpolation=interpolation, legacy_pixels=legacy)
            name = f"{interpolation}{', legacy pixels' if legacy else ''}"
            results[name] = evaluate_voc(truths, detections, settings)
    columns = list(results.values())
    rows = [("AP at IoU 0.50", "truths", *results)]
    for index, row in enumerate(columns[0].classes):
        values = [number(each.classes[index].AP) for each in columns]
        rows.append((row.name, str(row.truths), *values))
    total = sum(row.truths for row in columns[0].classes)
    rows.append(("mAP", str(total), *(number(each.mAP) for each in columns)))
    return plain(rows), {name: result.as_dict() for name, result in results.items()}
