"""Measure a checkpoint: python tools/test.py runs/quickstart/best.pt [key.path=value ...].

Several are measured together, as an ensemble: python tools/test.py a.pt b.pt test.weights=[2,1].
"""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path

from detkit import cli
from detkit.engine.checkpoint import load_checkpoint
from detkit.engine.device import pick_device
from detkit.engine.distributed import is_main, process_group
from detkit.engine.evaluate import measure_ensemble
from detkit.evaluation.report import check_report
from detkit.evaluation.side_by_side import results_text
from detkit.files import check_writable


def main(arguments: list[str]) -> None:
    """Evaluate on data.test, or data.val, and write metrics.json and detections.json."""
    parser = argparse.ArgumentParser(description="Measure checkpoints on their test data.")
    add = parser.add_argument
    add("checkpoint", help="best.pt or last.pt of a run")
    more = "more checkpoints, to be measured together as an ensemble; changes to their recipes"
    add("rest", nargs="*", metavar="checkpoint | key.path=value", help=more)
    add("--out", help="folder to write to (default: test/ or ensemble/ beside the checkpoint)")
    add("--report", action="store_true", help="also write report.html: tables, plots, pictures")
    resampling = "of the images, for the 95 %% intervals; 0 for none (default: %(default)s)"
    add("--resamples", type=int, default=1000, metavar="N", help=resampling)
    add("--device", choices=("cpu", "cuda"), help="default: a GPU if there is one")
    options = parser.parse_intermixed_args(arguments)
    overrides = [each for each in options.rest if "=" in each and not Path(each).is_file()]
    paths = [options.checkpoint, *(each for each in options.rest if each not in overrides)]
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if len(set(paths)) < len(paths):
        raise ValueError(f"a checkpoint is named twice: {', '.join(paths)}")
    for each in paths[1:]:
        if not Path(each).exists() and not each.endswith(".pt"):
            raise ValueError(f"{each!r} is neither a checkpoint nor of the form key.path=value")
    members = {path: load_checkpoint(path, overrides) for path in paths}
    device = pick_device(options.device, int(os.environ.get("LOCAL_RANK", "0")))
    resamples, name = options.resamples, "test" if len(paths) == 1 else "ensemble"
    folder = Path(options.out) if options.out else Path(paths[0]).parent / name
    check_writable(folder / "metrics.json")
    if options.report:
        check_report(folder)
    with process_group(device):
        result = measure_ensemble(
            members, folder=folder, device=device, report=options.report, resamples=resamples
        )
        if is_main():
            print(f"{results_text({name: result}, resamples=resamples)}\n\nwritten to {folder}")


if __name__ == "__main__":
    cli.run(main)
