"""How fast a detector is: python tools/benchmark.py best.pt [best.onnx ...] [--batch 1,8]."""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import detkit
from detkit import cli
from detkit.engine.device import pick_device
from detkit.engine.latency import conditions
from detkit.files import write_atomically
from detkit.inference.benchmark import (
    as_dicts,
    benchmark,
    list_or_generate,
    read_numbers,
    table,
    variants_of,
)


def main(arguments: list[str]) -> None:
    """Read the command line, time everything in turns, and print a table."""
    parser = argparse.ArgumentParser(description="Latency and throughput, from file to boxes.")
    add = parser.add_argument
    add("models", nargs="+", metavar="MODEL", help="checkpoints, exported files, published names")
    add("--set", nargs="+", default=[], metavar="key.path=value", help="changes to the recipes")
    add("--weights", help="of a published name: a file instead of torchvision's")
    add("--pictures", metavar="PATH", help="file, folder or pattern (default: generated ones)")
    add("--batch", default="1", help="sizes of batches, as 1,8 (default: %(default)s)")
    add("--rounds", type=int, default=20, help="timed batches (default: %(default)s)")
    add("--precision", metavar="NAMES", help="fp32, bf16, fp16 (default: fp32, then the quickest)")
    add("--only", choices=("plain", "optimized"), help="(default: both)")
    add("--device", choices=("cpu", "cuda"), help="default: a GPU if there is one")
    add("--json", metavar="FILE", help="also write all numbers there")
    options = parser.parse_args(arguments)
    kinds = {"plain": (False,), "optimized": (True,), None: (False, True)}[options.only]
    names = options.precision.split(",") if options.precision else None
    device, variants = pick_device(options.device), []
    for model in options.models:
        settings = {"weights": options.weights, "device": device.type, "overrides": options.set}
        predictor = detkit.load(model, **settings)
        name = "/".join(Path(model).parts[-2:])  # most checkpoints are called best.pt
        variants += variants_of(predictor, name, precisions=names, optimized=kinds)
    with tempfile.TemporaryDirectory() as folder:
        pictures = list_or_generate(options.pictures, Path(folder))
        batches = read_numbers(options.batch)
        rows = benchmark(variants, pictures, batches=batches, rounds=options.rounds)
    where = options.pictures or "generated, 640x480"
    print(f"{table(rows)}\n\n{len(pictures)} pictures ({where}), {conditions(device)}")
    if options.json:
        content = {"conditions": conditions(device), "pictures": where, "rows": as_dicts(rows)}
        write_atomically(options.json, json.dumps(content, indent=2).encode())


if __name__ == "__main__":
    cli.run(main)
