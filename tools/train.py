"""Train a detector: python tools/train.py configs/quickstart.yaml [key.path=value ...]."""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path

from detkit import cli
from detkit.config import ConfigError, load_recipe
from detkit.engine.device import pick_device
from detkit.engine.distributed import process_group
from detkit.engine.run import RESUME_AUTO, advice_to_go_on, goes_on
from detkit.engine.train import train
from detkit.engine.trial_run import try_out


def main(arguments: list[str]) -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description="Train a detector from a recipe.")
    parser.add_argument("recipe", nargs="?", help="YAML file; with --resume that of the run")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="e.g. seed=1")
    parser.add_argument("--resume", metavar="RUN", help="folder to go on with; auto: if it exists")
    parser.add_argument("--out", default="runs", help="folder of all runs (default: runs)")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier run")
    parser.add_argument("--save-every", type=int, metavar="STEPS", help="also save within epochs")
    parser.add_argument("--sanity", action="store_true", help="can 8 pictures be learned by heart?")
    parser.add_argument("--find-lr", action="store_true", help="suggest train.optimizer.lr")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: a GPU if there is one")
    options = parser.parse_intermixed_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    if options.recipe and "=" in options.recipe:  # the recipe was left out
        options.overrides, options.recipe = [options.recipe, *options.overrides], None
    again = None if options.resume in (None, RESUME_AUTO) else Path(options.resume)
    if options.recipe is None and again is None:
        raise ConfigError("no recipe given; name one, e.g. configs/quickstart.yaml")
    if options.save_every is not None:
        options.overrides.append(f"train.save_every={options.save_every}")
    recipe = load_recipe(options.recipe or Path(again or "", "recipe.yaml"), options.overrides)
    folder = again or Path(options.out, recipe.name)
    device = pick_device(options.device, int(os.environ.get("LOCAL_RANK", "0")))
    if options.sanity or options.find_lr:
        print(try_out(recipe, folder=folder, device=device, rates=options.find_lr))
        return
    resume = goes_on(folder, options.resume, overwrite=options.overwrite)
    with advice_to_go_on(folder), process_group(device):
        train(recipe, folder=folder, device=device, resume=resume)


if __name__ == "__main__":
    cli.run(main)
