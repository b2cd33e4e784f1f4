"""Try a detector in the browser: python demo/app.py runs/quickstart/best.pt.

Serves one page on this machine: drop pictures or use the webcam, choose threshold, suppression and
classes while you look. Needs aiohttp: pip install "detkit-vision[web]".
"""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path

# Before OpenCV is imported: a broken picture is the visitor's to hear of, not the terminal's
os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")

import detkit
from detkit import cli


def main(arguments: list[str]) -> None:
    """Load the model once, then answer the page."""
    options = parse(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        from detkit.inference.web import guard, server, serving
        from detkit.inference.web.uploads import Limits
    except ModuleNotFoundError as error:
        if error.name != "aiohttp":
            raise
        raise ValueError('the web page needs aiohttp: pip install "aiohttp>=3.10"') from None
    limits = Limits(bytes=round(options.max_mb * 2**20), pixels=round(options.max_megapixels * 1e6))
    with serving.listen(options.host, options.port) as listening:
        predictor = detkit.load(
            options.model,
            weights=options.weights,
            device=options.device,
            overrides=options.overrides,
        )
        name = "/".join(Path(options.model).parts[-2:])
        app = server.create_app(
            predictor, name=name, threshold=options.threshold, limits=limits, host=options.host
        )
        address = serving.address_of(listening)
        reach = "" if guard.is_loopback(options.host) else ", for everyone who can reach it"
        line = f"{name} is at {address}{reach} (Ctrl-C ends)"
        serving.serve(app, listening, ready=lambda: print(line, flush=True))


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Serve a page that draws what a detector finds.")
    add = parser.add_argument
    add("model", help="best.pt of a run, an exported file, or the name of a published model")
    add("overrides", nargs="*", metavar="key.path=value", help="changes to its recipe")
    add("--host", default="127.0.0.1", help="where to listen (default: this machine only)")
    add("--port", type=port, default=8000, metavar="N", help="0: any that is free (default: 8000)")
    add("--threshold", type=fraction, default=0.5, help="lowest score at first (default: 0.5)")
    add("--max-mb", type=positive, default=32, metavar="MB", help="of a picture (default: 32)")
    add("--max-megapixels", type=positive, default=64, metavar="N", help="(default: 64)")
    add("--weights", help="of a published model: coco (default), or a file")
    add("--device", choices=("cpu", "cuda"), help="default: a GPU if there is one")
    return parser.parse_intermixed_args(arguments)


def port(text: str) -> int:
    if not 0 <= int(text) < 2**16:
        raise argparse.ArgumentTypeError(f"{text} is not in 0..65535")
    return int(text)


def fraction(text: str) -> float:
    if not 0 <= float(text) <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not in 0..1")
    return float(text)


def positive(text: str) -> float:
    if not 0 < float(text) < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return float(text)


if __name__ == "__main__":
    cli.run(main)
