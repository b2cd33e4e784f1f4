"""Train a classifier: python tools/train_classifier.py configs/ram_digits.yaml [key=value ...]."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from detkit import cli
from detkit.config import ClassifierRecipe, ConfigError, load_recipe_as
from detkit.engine.classify import train_classifier
from detkit.engine.device import pick_device


def main(arguments: list[str]) -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description="Train a classifier of boxes from a recipe.")
    parser.add_argument("recipe", help="YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="e.g. seed=1")
    parser.add_argument("--out", default="runs", help="folder of all runs (default: runs)")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier run")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: a GPU if there is one")
    options = parser.parse_intermixed_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    recipe = load_recipe_as(ClassifierRecipe, options.recipe, options.overrides)
    folder = Path(options.out, recipe.name)
    if any((folder / name).exists() for name in ("best.pt", "last.pt")) and not options.overwrite:
        raise ConfigError(
            f"{folder} holds a run already; start a new one with name=other_name, or replace it "
            "with --overwrite"
        )
    accuracy = train_classifier(recipe, folder=folder, device=pick_device(options.device))
    measured = "no test data" if accuracy is None else f"accuracy {accuracy:.3f} on the test data"
    print(f"{measured}; results in {folder}")


if __name__ == "__main__":
    cli.run(main)
