"""Export a detector: python tools/export.py best.pt --format onnx --precision fp32,fp16,int8."""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path

from detkit import cli
from detkit.engine.checkpoint import load_checkpoint
from detkit.engine.device import pick_device
from detkit.inference.export.metadata import SUFFIXES
from detkit.inference.export.release import Order, release


def main(arguments: list[str]) -> None:
    """Read the command line, export, compare with torch, and name the files that are as good."""
    parser = argparse.ArgumentParser(
        description="Export a checkpoint, and compare the file with it on the validation set.",
        epilog="A file that finds something else is kept as NAME.rejected, and the exit code is 1.",
    )
    add = parser.add_argument
    add("checkpoint", help="best.pt or last.pt of a run")
    add("overrides", nargs="*", metavar="key.path=value", help="changes to its recipe")
    add("--format", choices=tuple(SUFFIXES), default="onnx", help="(default: onnx)")
    add("--out", type=Path, metavar="FILE", help="to write (default: beside the checkpoint)")
    add(
        "--precision",
        default="fp32",
        help="ONNX: fp32, fp16 and int8, as fp32,int8 (default: fp32)",
    )
    add("--data", metavar="SOURCE", help="annotations to compare on (default: data.val)")
    add("--limit", type=int, metavar="N", help="compare on the first N pictures (default: all)")
    add("--tolerance", type=float, default=0.1, help="in points of AP (default: 0.1)")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="to compare on (default: cpu)")
    options = parser.parse_intermixed_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    overrides = list(options.overrides)
    if options.data:
        overrides.append(f"data.val={json.dumps({'format': 'auto', 'path': options.data})}")
    order = Order(
        options.format,
        options.out or Path(options.checkpoint).with_suffix(SUFFIXES[options.format]),
        precisions=tuple(dict.fromkeys(options.precision.split(","))),
        tolerance=options.tolerance,
        limit=options.limit,
    )
    checkpoint = load_checkpoint(options.checkpoint, overrides)
    outcome = release(checkpoint, order, device=pick_device(options.device))
    print(outcome, *(f"written to {path}" for path in outcome.written), sep="\n")
    if outcome.rejected:
        reasons = "; ".join(f"{path} ({why})" for path, why in outcome.rejected.items())
        raise FloatingPointError(f"not as good as the checkpoint: {reasons}")


if __name__ == "__main__":
    cli.run(main)
