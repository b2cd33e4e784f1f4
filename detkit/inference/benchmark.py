"""How long a detector takes for a picture, and for what.

Everything from the file to the detections counts, as whoever uses a detector waits for all of it:
decode (a file to pixels), preprocessing (resize, proposals, batch, copy to the device), model
(pixels to scored boxes), postprocess (scored boxes to detections on the CPU). All variants take
turns in each round, so that whatever slows a round slows all of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from detkit.data import collate
from detkit.data.synthetic.scene import render_scene
from detkit.detectors import Detector
from detkit.evaluation.tables import plain
from detkit.inference.export.exported import ExportedDetector
from detkit.inference.optimize import in_precision, optimize_detector, pick_precision
from detkit.inference.pictures import Picture, each_picture, to_rgb
from detkit.inference.predictor import Predictor
from detkit.ops import Selection
from detkit.structures import Detections, Size

STAGES = ("decode", "preprocessing", "model", "postprocess")
WARMUP = 2  # rounds that do not count
GENERATED = 16  # pictures, of GENERATED_SIZE
GENERATED_SIZE = (480, 640)
Clock = Callable[[], float]


@dataclass(frozen=True)
class Variant:
    """One way to compute.

    Attributes:
        model: the name of the file or the published model.
        precision: of its layers; "as exported" of an exported file.
        optimized: by `optimize_detector`.
        predictor: what is timed.
    """

    model: str
    precision: str
    optimized: bool
    predictor: Predictor


@dataclass(frozen=True)
class Row:
    """What was measured of a variant with one size of batch.

    Attributes:
        model: see `Variant`.
        device: "cpu" or "cuda".
        precision: see `Variant`.
        optimized: see `Variant`.
        batch: pictures at a time.
        rounds: batches that were timed.
        median_ms: of a batch, from the files to the detections.
        p95_ms: 95 % of the batches took no longer.
        pictures_per_second: at the median.
        shares: of the time, by stage; they add up to 1.
        speedup: median of the ratio, in each round, of the first variant's time to this one's.
        detections: found in all timed pictures.
    """

    model: str
    device: str
    precision: str
    optimized: bool
    batch: int
    rounds: int
    median_ms: float
    p95_ms: float
    pictures_per_second: float
    shares: dict[str, float]
    speedup: float
    detections: int


def variants_of(
    predictor: Predictor,
    name: str,
    *,
    precisions: Sequence[str] | None = None,
    optimized: Sequence[bool] = (False, True),
) -> list[Variant]:
    """A predictor in every way asked for.

    Args:
        predictor: as `detkit.load` gives it.
        name: for the table.
        precisions: names of them; None is fp32 for the plain detector, and what `optimize` takes
            by default for the optimised one.
        optimized: plain, optimised, or both. An exported file is what it is: it has one variant.

    Raises:
        ValueError: an unknown precision, or one that the device has not.
    """
    if any(isinstance(each, ExportedDetector) for each in predictor.detector.modules()):
        return [Variant(name, "as exported", False, predictor)]
    found = []
    for quick in optimized:
        default = pick_precision(None, predictor.device) if quick else "fp32"
        for each in dict.fromkeys(precisions or [default]):
            precision = pick_precision(each, predictor.device)
            if quick:
                detector = optimize_detector(predictor, precision=precision)
            else:
                detector = in_precision(predictor.detector, precision, predictor.device)
            found.append(Variant(name, precision, quick, predictor.with_detector(detector)))
    return found


def benchmark(
    variants: Sequence[Variant],
    pictures: Sequence[Picture],
    *,
    batches: Sequence[int] = (1,),
    rounds: int = 20,
    clock: Clock = time.perf_counter,
) -> list[Row]:
    """Time variants on the same pictures, in turns.

    Args:
        variants: at least one.
        pictures: files, to time their decoding, too; round r takes the r-th batch of them, and
            begins again at the end.
        batches: sizes of batches.
        rounds: batches of each variant that count; two before them warm up.
        clock: in seconds.

    Raises:
        ValueError: no variants, pictures or rounds, a batch of none, or a picture that is none.
    """
    if not variants or not pictures:
        raise ValueError(f"nothing to time: {len(variants)} variants, {len(pictures)} pictures")
    if rounds < 1 or not batches or min(batches) < 1:
        raise ValueError(
            f"rounds and batches must be at least 1, got rounds {rounds} and batches "
            f"{','.join(map(str, batches))}"
        )
    return [row for size in batches for row in _of_batch(variants, pictures, size, rounds, clock)]


def _of_batch(
    variants: Sequence[Variant],
    pictures: Sequence[Picture],
    batch: int,
    rounds: int,
    clock: Clock,
) -> list[Row]:
    times = np.zeros((len(variants), rounds, len(STAGES)))
    counts = [0] * len(variants)
    for index in range(-WARMUP, rounds):
        given = [pictures[(index * batch + i) % len(pictures)] for i in range(batch)]
        order = range(len(variants)) if index % 2 else reversed(range(len(variants)))
        for place in order:
            spent, found = look(variants[place].predictor, given, clock=clock)
            if index >= 0:
                times[place, index] = spent
                counts[place] += sum(map(len, found))
    totals = times.sum(axis=2)  # [V, rounds]
    return [
        Row(
            model=each.model,
            device=each.predictor.device.type,
            precision=each.precision,
            optimized=each.optimized,
            batch=batch,
            rounds=rounds,
            median_ms=1000 * float(np.median(own)),
            p95_ms=1000 * float(np.percentile(own, 95)),
            pictures_per_second=batch / float(np.median(own)),
            shares=dict(zip(STAGES, (stages.sum(axis=0) / own.sum()).tolist(), strict=True)),
            speedup=float(np.median(totals[0] / own)),
            detections=count,
        )
        for each, own, stages, count in zip(variants, totals, times, counts, strict=True)
    ]


def look(
    predictor: Predictor, pictures: Sequence[Picture], *, clock: Clock = time.perf_counter
) -> tuple[list[float], list[Detections]]:
    """Seconds of each of `STAGES` for a batch of pictures, and what was found.

    Post-processing of an exported file is inside it, and counts as model.
    """
    marks = [clock()]
    images = [to_rgb(picture) for picture in pictures]
    marks.append(clock())
    samples = [predictor.prepare(image) for image in images]
    batch = collate(samples, divisor=predictor.recipe.model.size_divisor)
    batch = batch.without_targets().to(predictor.device)
    _wait(predictor.device)
    marks.append(clock())
    with (
        _timed_selection(predictor.detector, predictor.device, clock) as selecting,
        torch.no_grad(),
    ):
        found = predictor.detector.predict(batch)
        _wait(predictor.device)
        marks.append(clock())
    found = [each.to("cpu") for each in found]
    marks.append(clock())
    decode, preparing, model, copying = np.diff(marks).tolist()
    return [decode, preparing, model - sum(selecting), copying + sum(selecting)], found


@contextmanager
def _timed_selection(
    detector: Detector, device: torch.device, clock: Clock
) -> Iterator[list[float]]:
    """Notes the seconds of every choice among scored boxes."""
    spent: list[float] = []
    places = [m for m in detector.modules() if isinstance(getattr(m, "selection", None), Selection)]
    kept = [module.selection for module in places]

    class Timed(Selection):
        def of_levels(self, *arguments: Any) -> Detections:
            _wait(device)
            start = clock()
            found = super().of_levels(*arguments)
            _wait(device)
            spent.append(clock() - start)
            return found

    for module, own in zip(places, kept, strict=True):
        settings = {each.name: getattr(own, each.name) for each in fields(Selection)}
        module.selection = Timed(**settings)  # type: ignore[assignment]
    try:
        yield spent
    finally:
        for module, own in zip(places, kept, strict=True):
            module.selection = own


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def list_or_generate(source: str | None, folder: Path, *, count: int = GENERATED) -> list[Path]:
    """Picture files to time on.

    Args:
        source: a file, folder or pattern; None generates some.
        folder: where generated ones are written.
        count: how many are generated.

    Raises:
        ValueError: there are none.
    """
    if source is not None:
        return [Path(str(each)) for each in each_picture([source])]
    return [_write(folder / f"{i}.jpg", i, GENERATED_SIZE) for i in range(count)]


def _write(path: Path, index: int, size: Size) -> Path:
    scene = render_scene(split="test", index=index, seed=0, image_size=size)
    cv2.imwrite(str(path), scene.image)
    return path


def read_numbers(text: str) -> list[int]:
    """Sizes of batches as on the command line, `1,8`.

    Raises:
        ValueError: it is not a list of numbers from 1.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ValueError(f"batch {text!r} is no list of numbers from 1; give one as 1,8")
    return [int(part) for part in parts]


def table(rows: Iterable[Row]) -> str:
    """The rows as a table for people."""
    head = ["model", "precision", "optimised", "batch", "ms median", "p95", "pictures/s", "speed"]
    lines = [
        [
            row.model,
            row.precision,
            "yes" if row.optimized else "no",
            str(row.batch),
            f"{row.median_ms:.1f}",
            f"{row.p95_ms:.1f}",
            f"{row.pictures_per_second:.1f}",
            f"{row.speedup:.2f}x",
            *(f"{100 * row.shares[stage]:.0f} %" for stage in STAGES),
        ]
        for row in rows
    ]
    return plain([[*head, *STAGES], *lines])


def as_dicts(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """The rows as plain values, for JSON."""
    return [asdict(row) for row in rows]
