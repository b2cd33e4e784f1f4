"""Draw what a detector finds: python demo/demo.py runs/quickstart/best.pt photo.jpg.

The source is a picture, a folder or pattern of pictures, a video file, a camera (0) or a URL
(rtsp://..., http://...).
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
from detkit.engine.stop import StopRequests, stop_requests
from detkit.inference.predictor import Predictor
from detkit.inference.records import CocoSink, JsonSink, LabelmeSink
from detkit.inference.sinks import (
    KEEPING,
    SheetSink,
    Sink,
    check_output_files,
    picture_or_video_sink,
)
from detkit.inference.sources import ImageFiles, Source, open_source
from detkit.inference.stream import Result, Stream
from detkit.inference.video import Reconnect
from detkit.inference.window import Window
from detkit.visualize import draw_detections


@dataclass
class Tally:
    """What was done so far."""

    frames: int = 0
    detections: int = 0
    start: float = field(default_factory=time.perf_counter)


def main(arguments: list[str]) -> None:
    """Hand every frame from its source to the detector and on to the sinks."""
    options = parse(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    leave_cores_to(1)  # reading, drawing and writing must not stall the detector
    with ExitStack() as stack:
        stop = stack.enter_context(stop_requests())
        stack.enter_context(logging_redirect_tqdm())
        patience = Reconnect(limit=options.reconnect)
        source = stack.enter_context(open_source(options.source, reconnect=patience))
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
        stream = stack.enter_context(
            predictor.stream(
                source, every=options.every, track=options.track, classes=options.classes
            )
        )
        results = tqdm(
            islice(stream, options.max_frames),
            total=total,
            unit=" pictures" if still else " frames",
            disable=True if total == 1 else None,  # None: unless standard error is a terminal
        )
        tally = Tally()
        try:
            with ExitStack() as writing:
                for sink in sinks:
                    writing.enter_context(sink)
                process(results, predictor.class_names, sinks, window, tally, stop)
        except KEEPING:  # the sinks have completed their files
            results.close()
            report(tally, stream, predictor, sinks, options.threshold)
            raise
        results.close()
        report(tally, stream, predictor, sinks, options.threshold)


def process(
    results: Iterable[Result],
    class_names: Sequence[str],
    sinks: Sequence[Sink],
    window: Window | None,
    tally: Tally,
    stop: StopRequests,
) -> None:
    """Draw and pass on each frame, until the user closes the window."""
    for result in results:
        found = result.detections
        picture = draw_detections(result.frame.image, found, class_names, ids=result.ids)
        with stop.held():  # all sinks have a frame, or none has
            for sink in sinks:
                sink.write(result, picture)
            tally.frames += 1
            tally.detections += len(found)
        if window is not None and not window.show(picture):
            break


def create_sinks(
    options: argparse.Namespace, source: Source, predictor: Predictor, total: int | None
) -> list[Sink]:
    """Everything that takes results; pictures go beside the checkpoint unless told otherwise."""
    names, ids = predictor.class_names, predictor.category_ids
    sinks = list[Sink]()
    if options.out is not None or not options.show:
        sinks.append(picture_or_video_sink(source, options.out or default_folder(options)))
    if options.save_json is not None:
        sinks.append(JsonSink(options.save_json, class_names=names, category_ids=ids))
    if options.save_coco is not None:
        coco = CocoSink(options.save_coco, source=source, class_names=names, category_ids=ids)
        sinks.append(coco)
    if options.sheet is not None:
        sinks.append(SheetSink(options.sheet, class_names=names, total=total))
    files = [options.save_json, options.save_coco, options.sheet]
    check_output_files([path for path in files if path is not None], source, options.checkpoint)
    if options.save_labelme is not None:
        sinks.append(LabelmeSink(options.save_labelme, source=source))
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
    stream: Stream,
    predictor: Predictor,
    sinks: Sequence[Sink],
    threshold: float | str,
) -> None:
    """Say what was found, how fast and where it is."""
    if not tally.frames:
        return
    still = isinstance(stream.source, ImageFiles)
    unit = "pictures" if still else "frames"
    limit = f"that reach the scores of {threshold}"
    if isinstance(threshold, float):
        limit = f"of score {threshold:g} or more"
    losses = {
        "pictures that cannot be read": stream.source.skipped if still else 0,
        "frames dropped to keep up": stream.dropped,
        "times lost and found again": 0 if still else stream.source.reconnected,
    }
    said = "".join(f", {what}: {count}" for what, count in losses.items() if count)
    print(f"{unit}: {tally.frames}, detections {limit}: {tally.detections}{said}")
    elapsed = time.perf_counter() - tally.start
    print(
        f"{unit} per second on {predictor.device.type}: {stream.meter.rate:.2f} detector alone, "
        f"{tally.frames / elapsed:.2f} with reading, drawing and writing"
    )
    for sink in sinks:
        print(f"written: {sink.path}")


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Draw what a detector finds.")
    add = parser.add_argument
    published = ", ".join(PUBLISHED)
    add("checkpoint", help=f"best.pt of a run, an exported file, or one of {published}")
    add(
        "source",
        help="a picture, a folder or 'pattern/*.jpg' of pictures, a video, a camera (0) or a URL "
        "(rtsp://..., http://...)",
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
    add("--classes", type=names, metavar="NAME,NAME", help="report only these classes")
    add("--every", type=positive, default=1, metavar="N", help="detect in every Nth frame only")
    add("--track", action="store_true", help="number the objects")
    add(
        "--reconnect",
        type=float,
        default=Reconnect().limit,
        metavar="SECONDS",
        help="how long a lost camera or stream is sought (default: %(default)g)",
    )
    add("--show", action="store_true", help="show a window; without --out nothing is written then")
    add("--save-json", type=Path, metavar="FILE", help="write all detections into this file")
    add("--save-coco", type=Path, metavar="FILE", help="write them as COCO results")
    add("--save-labelme", type=Path, metavar="DIR", help="write a LabelMe file for each picture")
    add("--sheet", type=Path, metavar="FILE", help="draw up to 16 results on one picture (.jpg)")
    add("--max-frames", type=positive, metavar="N", help="stop after so many")
    add("--weights", help="of a published model: coco (default), or a file")
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


def names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return int(text)


if __name__ == "__main__":
    cli.run(main)
