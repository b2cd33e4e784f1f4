"""Anchors from the data: python tools/cluster_anchors.py RECIPE [key=value ...] [--k 9]."""

from __future__ import annotations

import argparse

from detkit import cli
from detkit.analysis import find_subject, fit_anchors


def main(arguments: list[str]) -> None:
    """Read the command line, cluster, print both fits and the override to paste."""
    parser = argparse.ArgumentParser(
        description="Cluster the boxes of the training data, as the recipe resizes them (YOLO9000)."
    )
    parser.add_argument("recipe", help="YAML file of a detector with a region proposal network")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="data.resize.longest=640")
    parser.add_argument("--k", type=int, help="how many (default: as many as the recipe has)")
    parser.add_argument("--seed", type=int, default=0, help="of where clusters start (default: 0)")
    options = parser.parse_intermixed_args(arguments)

    subject = find_subject(options.recipe, options.overrides)
    print(fit_anchors(subject, k=options.k, seed=options.seed))


if __name__ == "__main__":
    cli.run(main)
