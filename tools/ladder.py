"""Train and test detectors of different kinds, and put them in one table.

python tools/ladder.py configs/ladder/*.yaml
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from detkit import cli
from detkit.engine.device import pick_device
from detkit.engine.ladder import plan_ladder, run_ladder


def main(arguments: list[str]) -> None:
    """Read the command line, train what is not done yet, and print the table."""
    parser = argparse.ArgumentParser(
        description="Train and test each recipe, and put the results in one table.",
        epilog="Interrupted, the same command goes on; once all is done, it remakes the table.",
    )
    parser.add_argument("recipes", nargs="+", help="YAML files, and key.path=value for all of them")
    parser.add_argument("--out", default="runs/ladder", help="folder of all runs (runs/ladder)")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: a GPU if there is one")
    options = parser.parse_intermixed_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    overrides = [text for text in options.recipes if "=" in text]
    recipes = [text for text in options.recipes if "=" not in text]
    device, folder = pick_device(options.device), Path(options.out)
    trials = plan_ladder(recipes, overrides=overrides, folder=folder)
    try:
        ladder = run_ladder(trials, folder=folder, device=device)
    except KeyboardInterrupt:
        done = sum(trial.result.exists() for trial in trials)
        raise KeyboardInterrupt(
            f"{done} of {len(trials)} runs are done; the same command goes on"
        ) from None
    print(f"{ladder.text()}\n\nwritten to {folder}: ladder.md, ladder.json")
    if len(ladder.rungs) < len(trials):
        raise FloatingPointError(f"{len(trials) - len(ladder.rungs)} runs failed, see above")


if __name__ == "__main__":
    cli.run(main)
