"""Time the intervals of AP, and plant a difference of two models that they have to find.

    python benchmarks/bootstrap.py [ground_truth.json detections.json]
    python benchmarks/bootstrap.py --workload lvis

Without files it takes a workload of benchmarks/evaluator_data.py. Seconds are those of the
processor, for all resamples. Planted are the same detections with a part of the boxes shifted,
which the paired interval has to find, and the same files in another order, which is no difference.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from evaluator_data import PRESETS, write_workload

from detkit.evaluation import CocoResult, compare, evaluate_files
from detkit.evaluation.backend import load_native, using

Record = dict[str, Any]


def time_intervals(truths: Record, detections: list[Record], resamples: int) -> None:
    """With all the code there is, which must agree to the last bit."""
    drawn = []
    for name in ("numpy", "compiled")[: 1 if load_native()[0] is None else 2]:
        with using(name):
            result = evaluate_files(truths, detections)
            start = time.process_time()
            interval = result.interval(resamples)
            seconds = time.process_time() - start
        print(f"{name:9} {seconds:7.2f} s  {interval.sentence()}", flush=True)
        drawn.append(interval.resamples.drawn_of_classes.tobytes())
    if len(set(drawn)) > 1:
        raise SystemExit("the two give different bits")


def shift(detections: list[Record], share: float, rng: np.random.Generator) -> list[Record]:
    """Some of the boxes moved by half of their width to the right."""
    moved = rng.random(len(detections)) < share
    return [
        {**found, "bbox": [found["bbox"][0] + found["bbox"][2] / 2, *found["bbox"][1:]]}
        if change
        else found
        for found, change in zip(detections, moved.tolist(), strict=True)
    ]


def reorder(records: list[Record], rng: np.random.Generator) -> list[Record]:
    """In random order."""
    return [records[index] for index in rng.permutation(len(records)).tolist()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", help="ground truth and detections")
    parser.add_argument("--workload", choices=list(PRESETS), default="coco")
    parser.add_argument("--data", type=Path, help="folder that keeps the workloads")
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--share", type=float, default=0.02, help="of the boxes that are shifted")
    options = parser.parse_args()
    if len(options.files) not in (0, 2):
        parser.error("name both files, ground truth and detections, or none")

    with tempfile.TemporaryDirectory() as scratch:
        files = [Path(path) for path in options.files]
        if not files:
            folder = write_workload(options.workload, options.data or Path(scratch))
            files = [folder / "gt.json", folder / "dt.json"]
        truths, detections = (json.loads(path.read_text()) for path in files)
    counts = f"{len(truths['images'])} images, {len(detections)} detections"
    print(f"{files[1].name}: {counts}, {len(truths['categories'])} categories", flush=True)
    time_intervals(truths, detections, options.resamples)

    rng = np.random.default_rng(0)
    shuffled = {key: reorder(truths[key], rng) for key in ("images", "annotations", "categories")}
    results: dict[str, CocoResult] = {
        "given": evaluate_files(truths, detections),
        f"{options.share:.0%} shifted": evaluate_files(
            truths, shift(detections, options.share, rng)
        ),
        "reordered": evaluate_files(shuffled, reorder(detections, rng)),
    }
    given, *others = results.items()
    for name, result in others:
        difference = compare(given[1], result, resamples=options.resamples, names=(given[0], name))
        print(f"{difference.sentence()}; {name} is better: {difference.probability:.1%}")


if __name__ == "__main__":
    main()
