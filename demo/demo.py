"""Draw what a detector finds: python demo/demo.py runs/quickstart/best.pt photo.jpg.

The source is a picture, a folder of pictures, a video file, a camera (0) or a URL (rtsp://...).
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

# Before OpenCV is imported: a failure is said in one line of ours, not in many of FFmpeg's
os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

import detkit
from detkit import cli
from detkit.detectors.torchvision_weights import PUBLISHED
from detkit.engine.device import leave_cores_to
from detkit.inference.predictor import Predictor
from detkit.inference.sinks import (
    JsonSink,
    SheetSink,
    Sink,
    Window,
    check_output_file,
    picture_or_video_sink,
)
from detkit.inference.sources import Frame, ImageFiles, Source, open_source
from detkit.visualize import draw_detections


@dataclass
class Tally:
    """What was done so far."""

    frames: int = 0
    detections: int = 0
    predict_seconds: list[float] = field(default_factory=list)
    start: float = field(default_factory=time.perf_counter)


def main(arguments: list[str]) -> None:
    """Hand every frame from its source to the detector and on to the sinks."""
    options = parse(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    leave_cores_to(1)  # whatever else runs on this machine must not stall the detector
    with ExitStack() as stack:
        stack.enter_context(logging_redirect_tqdm())
        source = stack.enter_context(open_source(options.source))
        still = isinstance(source, ImageFiles)
        window = stack.enter_context(Window(wait=still)) if options.show else None
        predictor = detkit.load(
            options.checkpoint,
            weights=options.weights,
            device=options.device,
            overrides=[*options.overrides, f"test.thresholds={json.dumps(options.threshold)}"],
        )
        total = frame_count(source, options.max_frames)
        sinks = create_sinks(options, source, predictor, total)
        frames = tqdm(
            islice(source, options.max_frames),
            total=total,
            unit=" pictures" if still else " frames",
            disable=True if total == 1 else None,  # None: unless standard error is a terminal
        )
        tally = Tally()
        try:
            with ExitStack() as writing:
                for sink in sinks:
                    writing.enter_context(sink)
                process(frames, predictor, sinks, window, tally)
        except KeyboardInterrupt:  # the sinks have completed their files
            frames.close()
            report(tally, source, predictor, sinks, options.threshold)
            raise
        frames.close()
        report(tally, source, predictor, sinks, options.threshold)


def process(
    frames: Iterable[Frame],
    predictor: Predictor,
    sinks: Sequence[Sink],
    window: Window | None,
    tally: Tally,
) -> None:
    """Predict, draw and pass on each frame, until the user closes the window."""
    for frame in frames:
        start = time.perf_counter()
        found = predictor(frame.image)
        tally.predict_seconds.append(time.perf_counter() - start)
        picture = draw_detections(frame.image, found, predictor.class_names)
        for sink in sinks:
            sink.write(frame, picture, found)
        tally.frames += 1
        tally.detections += len(found)
        if window is not None and not window.show(picture):
            break


def create_sinks(
    options: argparse.Namespace, source: Source, predictor: Predictor, total: int | None
) -> list[Sink]:
    """Everything that takes results; pictures go beside the checkpoint unless told otherwise."""
    names, sinks = predictor.class_names, list[Sink]()
    if options.out is not None or not options.show:
        sinks.append(picture_or_video_sink(source, options.out or default_folder(options)))
    if options.save_json is not None:
        check_output_file(options.save_json, source)
        sinks.append(
            JsonSink(options.save_json, class_names=names, category_ids=predictor.category_ids)
        )
    if options.sheet is not None:
        check_output_file(options.sheet, source)
        sinks.append(SheetSink(options.sheet, class_names=names, total=total))
    return sinks


def default_folder(options: argparse.Namespace) -> Path:
    """`demo` beside the checkpoint; a published model has a folder of its own."""
    if Path(options.checkpoint).is_file():
        return Path(options.checkpoint).parent / "demo"
    return Path("runs", options.checkpoint, "demo")


def frame_count(source: Source, limit: int | None) -> int | None:
    """How many frames will come, as far as is known."""
    announced = len(source) if isinstance(source, ImageFiles) else source.announced
    known = [count for count in (announced, limit) if count is not None]
    return min(known, default=None)


def report(
    tally: Tally,
    source: Source,
    predictor: Predictor,
    sinks: Sequence[Sink],
    threshold: float | str,
) -> None:
    """Say what was found, how fast and where it is."""
    if not tally.frames:
        return
    unit = "pictures" if isinstance(source, ImageFiles) else "frames"
    skipped = source.skipped if isinstance(source, ImageFiles) else 0
    limit = f"that reach the scores of {threshold}"
    if isinstance(threshold, float):
        limit = f"of score {threshold:g} or more"
    print(
        f"{unit}: {tally.frames}, detections {limit}: {tally.detections}"
        + (f", pictures that cannot be read: {skipped}" if skipped else "")
    )
    # the first prediction also allocates and warms up
    steady = tally.predict_seconds[1:] or tally.predict_seconds
    elapsed = time.perf_counter() - tally.start
    print(
        f"{unit} per second on {predictor.device.type}: {len(steady) / sum(steady):.2f} detector "
        f"alone, {tally.frames / elapsed:.2f} with reading, drawing and writing"
    )
    for sink in sinks:
        print(f"written: {sink.path}")


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Draw what a detector finds.")
    add = parser.add_argument
    published = ", ".join(PUBLISHED)
    add("checkpoint", help=f"best.pt of a run, or with --weights coco one of {published}")
    add(
        "source",
        help="a picture, a folder of pictures, a video, a camera (0) or a URL (rtsp://...)",
    )
    add(
        "overrides",
        nargs="*",
        metavar="key.path=value",
        help="changes to its recipe, e.g. test.tile=640 for large pictures",
    )
    add(
        "--out", type=Path, help="folder or file to write to (default: demo/ beside the checkpoint)"
    )
    add(
        "--threshold",
        type=number_or_file,
        default=0.5,
        metavar="NUMBER|FILE",
        help="lowest score shown: a number (default: 0.5), or thresholds.yaml of "
        "tools/choose_thresholds.py",
    )
    add("--show", action="store_true", help="show a window; without --out nothing is written then")
    add("--save-json", type=Path, metavar="FILE", help="write all detections into this file")
    add("--sheet", type=Path, metavar="FILE", help="draw up to 16 results on one picture (.jpg)")
    add("--max-frames", type=positive, metavar="N", help="stop after so many")
    add("--weights", help="of a published model: coco, or a file")
    add("--device", choices=("cpu", "cuda"), help="default: a GPU if there is one")
    return parser.parse_intermixed_args(arguments)


def number_or_file(text: str) -> float | str:
    try:
        number = float(text)
    except ValueError:
        if not Path(text).is_file():
            reason = f"{text} is neither a number in 0..1 nor a file"
            raise argparse.ArgumentTypeError(reason) from None
        return text
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not in 0..1")
    return number


def positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return int(text)


if __name__ == "__main__":
    cli.run(main)
