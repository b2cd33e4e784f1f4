"""Measure proposals: python tools/proposals.py configs/quickstart.yaml [key.path=value ...]."""

from __future__ import annotations

import argparse
import json
import logging

from detkit import cli
from detkit.config import load_recipe
from detkit.data import proposal_records
from detkit.engine.checkpoint import load_checkpoint
from detkit.engine.device import pick_device
from detkit.engine.proposal_recall import measure_proposals
from detkit.files import check_writable, write_atomically


def main(arguments: list[str]) -> None:
    """Find (or read) the proposals of a recipe's data and report their recall."""
    parser = argparse.ArgumentParser(
        description="Recall of proposals: of a recipe those of its model.proposals "
        "(selective_search, grid, file), or else selective search; of a checkpoint those of its "
        "first stage."
    )
    parser.add_argument("recipe", help="YAML file, or best.pt of a detector with two stages")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="changes to it")
    parser.add_argument("--split", choices=("train", "val", "test"), help="default: test, else val")
    parser.add_argument("--out", metavar="FILE", help="write them for data.train.proposals=FILE")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: a GPU if there is one")
    options = parser.parse_intermixed_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    if options.out:
        check_writable(options.out)
    detector = None
    if options.recipe.endswith(".pt"):
        checkpoint = load_checkpoint(options.recipe, options.overrides)
        recipe, detector = checkpoint.recipe, checkpoint.detector()
    else:
        recipe = load_recipe(options.recipe, options.overrides)
    device = pick_device(options.device)
    report = measure_proposals(recipe, split=options.split, detector=detector, device=device)
    print(report)
    if options.out:
        write_atomically(options.out, json.dumps(proposal_records(report.proposals)))
        print(f"\nwritten to {options.out}")


if __name__ == "__main__":
    cli.run(main)
