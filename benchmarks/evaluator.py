"""Time evaluate + accumulate of detkit's COCO metric beside pycocotools, on one synthetic set.

    python benchmarks/evaluator.py [--images 500] [--categories 80] [--per-image 100] [--rounds 5]

Both get the data in memory and run on one core; their order alternates; seconds are those of the
processor, so that other load on the machine counts less; the ratio is the median over the rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import time
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detkit.evaluation.accumulation import evaluate_arrays
from detkit.evaluation.coco_json import read_detections, read_truths
from detkit.evaluation.inputs import CocoSettings

Record = dict[str, Any]


def make_truths(images: int, categories: int, rng: np.random.Generator) -> Record:
    """About 7.5 truths an image of few classes each, over COCO's range of sizes, 1 % crowd."""
    annotations: list[Record] = []
    for image in range(images):
        classes = rng.choice(categories, size=min(categories, 3), replace=False)
        for _ in range(rng.poisson(7.5)):
            width, height = np.exp(rng.normal(4.0, 1.0, 2)).clip(4, 500)
            x, y = rng.uniform(0, 640 - width), rng.uniform(0, 640 - height)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": int(rng.choice(classes)),
                    "bbox": [round(float(v), 2) for v in (x, y, width, height)],
                    "area": round(float(width * height) * 0.7, 2),
                    "iscrowd": int(rng.random() < 0.01),
                }
            )
    return {
        "images": [{"id": image} for image in range(images)],
        "categories": [{"id": k, "name": f"class {k}"} for k in range(categories)],
        "annotations": annotations,
    }


def make_detections(truths: Record, per_image: int, rng: np.random.Generator) -> list[Record]:
    """Jittered truths and, half of it in classes that the image lacks, background."""
    by_image: dict[int, list[Record]] = {image["id"]: [] for image in truths["images"]}
    for annotation in truths["annotations"]:
        by_image[annotation["image_id"]].append(annotation)
    categories = len(truths["categories"])
    detections: list[Record] = []
    for image, near_truths in by_image.items():
        for _ in range(per_image):
            near = bool(near_truths) and rng.random() < 0.6
            if near:
                annotation = near_truths[rng.integers(len(near_truths))]
                category, box = annotation["category_id"], np.array(annotation["bbox"])
                box = box + rng.normal(0, 0.12, 4) * box[[2, 3, 2, 3]]
            else:
                category, box = int(rng.integers(categories)), rng.uniform(10, 200, 4)
            detections.append(
                {
                    "image_id": image,
                    "category_id": category,
                    "bbox": [round(float(v), 2) for v in np.maximum(box, 1)],
                    "score": round(float(rng.beta(2, 3) if near else rng.beta(1, 6)), 3),
                }
            )
    return detections


def main() -> None:
    """Print the seconds of both and the ratio, after checking that the arrays are equal."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("images", 500), ("categories", 80), ("per-image", 100), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    truths = make_truths(options.images, options.categories, rng)
    detections = make_detections(truths, options.per_image, rng)
    data = read_truths(truths)
    found = read_detections(detections, data)
    silence = contextlib.redirect_stdout(open(os.devnull, "w"))  # noqa: SIM115
    with silence:
        reference = COCO()
        reference.dataset = truths
        reference.createIndex()
        results = reference.loadRes([dict(record) for record in detections])

    def run_pycocotools() -> Any:
        evaluation = COCOeval(reference, results, "bbox")
        with silence:
            start = time.process_time()
            evaluation.evaluate()
            evaluation.accumulate()
        return time.process_time() - start, evaluation.eval

    def run_detkit() -> Any:
        start = time.process_time()
        arrays = evaluate_arrays(
            data.truths, found, num_categories=len(data.category_ids), settings=CocoSettings()
        )
        return time.process_time() - start, arrays

    seconds: dict[Any, list[float]] = {run_pycocotools: [], run_detkit: []}
    outcome: dict[Any, Any] = {}
    for turn in range(options.rounds):
        for run in (run_pycocotools, run_detkit)[:: 1 if turn % 2 == 0 else -1]:
            spent, outcome[run] = run()
            seconds[run].append(spent)
    for name in ("precision", "recall", "scores"):
        same = np.array_equal(outcome[run_pycocotools][name], getattr(outcome[run_detkit], name))
        print(f"{name}: {'equal' if same else 'DIFFERENT'}")
    slow, fast = seconds[run_pycocotools], seconds[run_detkit]
    ratio = statistics.median(a / b for a, b in zip(slow, fast, strict=True))
    print(f"{len(data.truths)} truths, {len(found)} detections")
    print(f"pycocotools {statistics.median(slow):.3f} s, detkit {statistics.median(fast):.4f} s")
    print(f"ratio {ratio:.1f} (median of {options.rounds} rounds)")


if __name__ == "__main__":
    main()
