"""Evaluate detections: python tools/evaluate.py ground_truth.json detections.json [...].

Several files are compared with the first; --images FOLDER --report out/ writes a page of it all.
"""

from __future__ import annotations

import argparse

from detkit import cli
from detkit.evaluation.bootstrap import check_resamples
from detkit.evaluation.other_metrics import METRICS, check_metric, evaluate_other
from detkit.evaluation.side_by_side import evaluate_all, results_csv, results_dict, results_text
from detkit.files import check_writable, write_atomically, write_json


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
    add("--strict", action="store_true", help="reproduce pycocotools also where it is wrong")
    add("--metric", choices=METRICS, default="coco", help="voc and lvis: the numbers alone")
    options = parser.parse_args(arguments)
    gt, dts, resamples = options.ground_truth, options.detections, options.resamples
    check_resamples(resamples)
    check_metric(options.metric, report=options.report, csv=options.csv, strict=options.strict)
    if options.images and not options.report:
        raise ValueError("--images shows pictures in a report; name its folder with --report")
    for path in filter(None, (options.out, options.csv)):
        check_writable(path)
    if options.report:  # imports OpenCV, which takes longer than to evaluate most files
        from detkit.evaluation.report import check_report, find_pictures, write_report

        check_report(options.report, images=options.images)
    if options.metric != "coco":
        print(evaluate_other(options.metric, gt, dts, out=options.out))
        return
    results = evaluate_all(gt, dts, strict=options.strict)
    print(results_text(results, resamples=resamples))
    if options.out:
        write_json(options.out, results_dict(results, resamples=resamples))
    if options.csv:
        write_atomically(options.csv, results_csv(results))
    if options.report:
        pictures = find_pictures(next(iter(results.values())).truths, options.images)
        page = write_report(results, options.report, pictures=pictures, resamples=resamples)
        print(f"\nreport: {page}")


if __name__ == "__main__":
    cli.run(main)
