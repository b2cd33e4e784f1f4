"""Evaluate detections: python tools/evaluate.py ground_truth.json detections.json [...].

Several files of detections are compared with the first. A page with everything that is known:
python tools/evaluate.py ground_truth.json detections.json --images FOLDER --report out/
"""

from __future__ import annotations

import argparse
import json

from detkit import cli
from detkit.evaluation.bootstrap import check_resamples
from detkit.evaluation.side_by_side import evaluate_all, results_csv, results_dict, results_text
from detkit.files import check_writable, write_atomically


def main(arguments: list[str]) -> None:
    """Read the command line, evaluate, print the numbers and a line for each class."""
    parser = argparse.ArgumentParser(description="The COCO metric for boxes, and what lies behind.")
    add = parser.add_argument
    add("ground_truth", help="COCO annotation file")
    add("detections", nargs="+", help="COCO results files, the others compared with the first")
    add("--report", metavar="FOLDER", help="write report.html here: tables, plots, pictures")
    add("--images", metavar="FOLDER", help="the pictures, to be shown in the report")
    add("--out", "--json", metavar="FILE", help="write the numbers to this JSON file")
    add("--csv", metavar="FILE", help="write the table of the classes to this CSV file")
    resampling = "of the images, for the 95 %% intervals; 0 for none (default: %(default)s)"
    add("--resamples", type=int, default=1000, metavar="N", help=resampling)
    exactness = "reproduce pycocotools also where it is wrong: annotation id 0, repeated ids"
    add("--strict", action="store_true", help=exactness)
    options = parser.parse_args(arguments)
    gt, dts, resamples = options.ground_truth, options.detections, options.resamples
    check_resamples(resamples)
    if options.images and not options.report:
        raise ValueError("--images shows pictures in a report; name its folder with --report")
    for path in filter(None, (options.out, options.csv)):
        check_writable(path)
    if options.report:  # imports OpenCV, which takes longer than to evaluate most files
        from detkit.evaluation.report import check_report, find_pictures, write_report

        check_report(options.report, images=options.images)

    results = evaluate_all(gt, dts, strict=options.strict)
    print(results_text(results, resamples=resamples))
    if options.out:
        numbers = results_dict(results, resamples=resamples)
        write_atomically(options.out, json.dumps(numbers, indent=1) + "\n")
    if options.csv:
        write_atomically(options.csv, results_csv(results))
    if options.report:
        pictures = find_pictures(next(iter(results.values())).truths, options.images)
        page = write_report(results, options.report, pictures=pictures, resamples=resamples)
        print(f"\nreport: {page}")


if __name__ == "__main__":
    cli.run(main)
