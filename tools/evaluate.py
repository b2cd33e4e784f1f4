"""Evaluate detections: python tools/evaluate.py ground_truth.json detections.json [--out FILE]."""

from __future__ import annotations

import argparse
import json

from detkit import cli
from detkit.evaluation import evaluate_files
from detkit.files import write_atomically


def main(arguments: list[str]) -> None:
    """Read the command line, evaluate, print the 12 numbers and a line for each class."""
    parser = argparse.ArgumentParser(description="The COCO metric for boxes.")
    parser.add_argument("ground_truth", help="COCO annotation file")
    parser.add_argument("detections", help="COCO results file: image_id, category_id, bbox, score")
    parser.add_argument("--out", metavar="FILE", help="also write the numbers to this JSON file")
    parser.add_argument(
        "--strict",
        action="store_true",
        help="reproduce pycocotools also where it is wrong: annotation id 0, repeated ids",
    )
    options = parser.parse_args(arguments)

    result = evaluate_files(options.ground_truth, options.detections, strict=options.strict)
    print(f"{result.summary()}\n\n{result.table()}")
    if options.out:
        write_atomically(options.out, json.dumps(result.as_dict(), indent=1) + "\n")


if __name__ == "__main__":
    cli.run(main)
