"""Measure a checkpoint: python tools/test.py runs/quickstart/best.pt [key.path=value ...]."""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path

from detkit import cli
from detkit.engine.checkpoint import load_checkpoint
from detkit.engine.device import pick_device
from detkit.engine.distributed import is_main, process_group
from detkit.engine.evaluate import measure_checkpoint


def main(arguments: list[str]) -> None:
    """Evaluate on data.test, or data.val, and write metrics.json and detections.json."""
    parser = argparse.ArgumentParser(description="Measure a checkpoint on its test data.")
    parser.add_argument("checkpoint", help="best.pt or last.pt of a run")
    parser.add_argument(
        "overrides", nargs="*", metavar="key.path=value", help="changes to its recipe"
    )
    parser.add_argument("--out", help="folder to write to (default: test/ beside the checkpoint)")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: a GPU if there is one")
    options = parser.parse_intermixed_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    checkpoint = load_checkpoint(options.checkpoint, options.overrides)
    device = pick_device(options.device, int(os.environ.get("LOCAL_RANK", "0")))
    folder = Path(options.out) if options.out else Path(options.checkpoint).parent / "test"
    with process_group(device):
        result = measure_checkpoint(checkpoint, folder=folder, device=device)
        if is_main():
            print(f"{result.summary()}\n\n{result.table()}\n\nwritten to {folder}")


if __name__ == "__main__":
    cli.run(main)
