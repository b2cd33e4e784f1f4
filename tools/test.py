"""Measure a checkpoint: python tools/test.py runs/quickstart/best.pt [key.path=value ...]."""

from __future__ import annotations

import argparse
import json
import logging
import os
from pathlib import Path

from detkit import cli
from detkit.config import ConfigError
from detkit.engine.checkpoint import load_checkpoint
from detkit.engine.data import build_dataset, check_same_classes, eval_loader, share_cores
from detkit.engine.device import amp_dtype, pick_device
from detkit.engine.distributed import is_main, process_group
from detkit.engine.evaluate import coco_results, evaluate
from detkit.files import write_atomically


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
    source = checkpoint.recipe.data.test or checkpoint.recipe.data.val
    if source is None:
        raise ConfigError(
            "the recipe names no data.test and no data.val; set data.test.format=coco "
            "data.test.annotations=FILE data.test.images=FOLDER"
        )
    device = pick_device(options.device, int(os.environ.get("LOCAL_RANK", "0")))
    dtype = amp_dtype(checkpoint.recipe.test.amp, device)
    share_cores(checkpoint.recipe)
    with process_group(device):
        dataset = build_dataset(source, role="test")
        check_same_classes(dataset, checkpoint.class_names, "test")
        loader = eval_loader(checkpoint.recipe, dataset, pin_memory=device.type == "cuda")
        outcome = evaluate(
            checkpoint.detector().to(device), loader, dataset, device=device, dtype=dtype
        )
        if is_main():
            folder = Path(options.out) if options.out else Path(options.checkpoint).parent / "test"
            records = coco_results(outcome.detections, dataset.category_ids.tolist())
            write_atomically(folder / "detections.json", json.dumps(records))
            write_atomically(
                folder / "metrics.json", json.dumps(outcome.result.as_dict(), indent=1)
            )
            print(f"{outcome.result.summary()}\n\n{outcome.result.table()}\n\nwritten to {folder}")


if __name__ == "__main__":
    cli.run(main)
