"""Check a data set: python tools/check_data.py train.json --against val.json (1: it has errors)."""

from __future__ import annotations

import argparse
import json
import sys

from tqdm import tqdm

from detkit import cli
from detkit.analysis.data_fit import check_fit
from detkit.config import load_recipe
from detkit.data.auto import PARSERS
from detkit.data.check import check_data, check_not_original
from detkit.engine.device import usable_cores
from detkit.files import check_writable, write_atomically, write_json


def main(arguments: list[str]) -> None:
    """Read the command line, check, say what was found, write a report and a repaired copy."""
    parser = argparse.ArgumentParser(description="Find what is wrong with a data set.")
    add = parser.add_argument
    add("source", help="COCO JSON, data.yaml, VOC root, CSV or a folder; PATH@SPLIT for a split")
    add("--images", metavar="FOLDER", help="of the pictures (default: one of the usual places)")
    add("--format", choices=PARSERS, help="of the sources (default: what they look like)")
    add("--against", nargs="+", default=[], metavar="SOURCE", help="splits with other pictures")
    add("--recipe", metavar="FILE", help="compare boxes with its sizes, strides and anchors")
    add("--json", metavar="FILE", help="write the report to this file")
    add("--fix", metavar="FILE", help="write a repaired copy of the annotations, as COCO JSON")
    options = parser.parse_args(arguments)
    for path in filter(None, (options.json, options.fix)):
        check_writable(path)
        check_not_original(path, [options.source, *options.against])
    recipe = load_recipe(options.recipe) if options.recipe else None
    limits = (recipe.data.resize.shortest, recipe.data.resize.longest) if recipe else (None, None)
    data = check_data(
        options.source,
        images=options.images,
        against=options.against,
        format=options.format,
        resize=limits,
        workers=usable_cores(),
        progress=lambda pictures, total, label: tqdm(pictures, label, total, leave=False),
    )
    if recipe:
        check_fit(data, recipe)
    print(data.report)
    if options.fix and data.records:
        write_atomically(options.fix, json.dumps(data.repair()))
        print(data.report.changes_text(), f"written to {options.fix}", sep="\n")
    if options.json:
        write_json(options.json, data.report.as_dict())
    if data.report.failed:
        sys.exit(cli.COMPUTATION_FAILED)


if __name__ == "__main__":
    cli.run(main)
