"""Choose score thresholds: python tools/choose_thresholds.py best.pt --false-alarm 1 --miss 5."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from detkit import cli
from detkit.engine.checkpoint import load_checkpoint
from detkit.engine.device import pick_device
from detkit.engine.evaluate import validation_evaluator
from detkit.evaluation.thresholds import (
    choose_thresholds,
    prices_of,
    thresholds_table,
    thresholds_to_yaml,
)
from detkit.files import check_writable, write_atomically


def main(arguments: list[str]) -> None:
    """Find for each class what costs least on data.val, print it and write thresholds.yaml."""
    parser = argparse.ArgumentParser(
        description="The score threshold of each class at which mistakes cost least on data.val.",
        epilog="Costs and priors: a number for all classes, or NAME=NUMBER, as often as needed.",
    )
    add = parser.add_argument
    add("checkpoint", help="best.pt or last.pt of a run")
    add("overrides", nargs="*", metavar="key.path=value", help="changes to its recipe")
    cost = {"action": "append", "default": [], "metavar": "[NAME=]NUMBER"}
    add("--false-alarm", **cost, help="what a false alarm costs (default: 1)")
    add("--miss", **cost, help="what a missed object costs (default: 1)")
    add("--prior", **cost, help="objects in an image on average in use, if not as in data.val")
    add("--out", type=Path, help="file to write (default: thresholds.yaml beside the checkpoint)")
    add("--device", choices=("cpu", "cuda"), help="default: a GPU if there is one")
    options = parser.parse_intermixed_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    out = options.out or Path(options.checkpoint).parent / "thresholds.yaml"
    checkpoint = load_checkpoint(options.checkpoint, options.overrides)
    prices = prices_of(
        checkpoint.class_names,
        false_alarm=options.false_alarm,
        miss=options.miss,
        prior=options.prior,
    )
    check_writable(out)
    evaluator = validation_evaluator(checkpoint, device=pick_device(options.device))
    chosen = choose_thresholds(evaluator, prices)
    write_atomically(out, thresholds_to_yaml(chosen))
    print(f"cost of an image on average:\n{thresholds_table(chosen)}\n\nwritten to {out}")
    print(
        f"use: tools/test.py {options.checkpoint} test.thresholds={out}, demo.py --threshold {out}"
    )


if __name__ == "__main__":
    cli.run(main)
