"""Download a public data set: python tools/download_data.py voc2007 --splits train val."""

from __future__ import annotations

import argparse

import yaml
from tqdm import tqdm

from detkit import cli
from detkit.data.download import DATA_SETS, download


def main(arguments: list[str]) -> None:
    """Read the command line, download, print the lines of a recipe that read the data."""
    parser = argparse.ArgumentParser(description="Download a public data set and unpack it.")
    add = parser.add_argument
    add("name", choices=DATA_SETS)
    add("--out", default="data", metavar="FOLDER", help="of all data sets (default: data)")
    add("--splits", nargs="+", metavar="SPLIT", help="train, val, test (default: all there are)")
    add("--mirror", metavar="URL", help="of a folder that has the same archives")
    options = parser.parse_args(arguments)

    done = download(
        options.name,
        options.out,
        splits=options.splits,
        base=options.mirror,
        progress=lambda label, total: tqdm(
            desc=label, total=total, unit="B", unit_scale=True, dynamic_ncols=True, leave=False
        ),
    )
    print(f"{done.root}: {'complete' if done.changed else 'all was there'}; for a recipe:\n")
    # Paths are not folded: the lines are to be pasted
    lines = yaml.safe_dump(
        {"data": done.sources}, sort_keys=False, default_flow_style=None, width=10_000
    )
    print(lines, end="")


if __name__ == "__main__":
    cli.run(main)
