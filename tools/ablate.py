"""Compare values of a setting over several seeds: trainings, a table and a plot by one command.

python tools/ablate.py configs/ablation.yaml --sweep model.backbone.attention=null,se --seeds 0,1,2
"""

from __future__ import annotations

import argparse
import logging

from detkit import cli
from detkit.engine.ablation import parse_seeds, parse_sweep, plan_ablation, run_ablation
from detkit.engine.device import pick_device


def main(arguments: list[str]) -> None:
    """Read the command line, train what is not done yet, and print the table."""
    parser = argparse.ArgumentParser(
        description="Train each combination of values with each seed, and compare.",
        epilog="Interrupted, the same command goes on; once all is done, it remakes the table.",
    )
    parser.add_argument("recipe", help="YAML file that all runs start from")
    parser.add_argument(
        "overrides", nargs="*", metavar="key.path=value", help="changes for all runs"
    )
    parser.add_argument(
        "--sweep",
        action="append",
        default=[],
        metavar="key.path=value,value,...",
        help="values are YAML, also [value, value, ...]; given again: every combination",
    )
    parser.add_argument("--seeds", default="0,1,2", help="of each combination (default: 0,1,2)")
    parser.add_argument("--out", help="folder of all runs (default: runs/<recipe>_<keys>)")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: a GPU if there is one")
    options = parser.parse_intermixed_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    sweeps = [parse_sweep(text) for text in options.sweep]
    seeds = parse_seeds(options.seeds)
    device = pick_device(options.device)
    plan = plan_ablation(
        options.recipe, sweeps, seeds, overrides=options.overrides, folder=options.out
    )
    try:
        comparison = run_ablation(plan, device=device)
    except KeyboardInterrupt:
        done = sum(trial.result.exists() for trial in plan.trials)
        raise KeyboardInterrupt(
            f"{done} of {len(plan.trials)} runs are done; the same command goes on"
        ) from None
    print(f"{comparison.text()}\n\nwritten to {plan.folder}: ablation.md, .csv, .json, .png")
    missing = sum(variant.planned - len(variant.scores) for variant in comparison.variants)
    if missing:
        raise FloatingPointError(f"{missing} of {len(plan.trials)} runs failed, see above")


if __name__ == "__main__":
    cli.run(main)
