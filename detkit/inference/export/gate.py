"""The parity gate: does an exported file find what the detector finds?

All look at the same batches, one after the other. Where there are truths, AP decides; beside it
stands how far the detections themselves agree, which an untrained detector shows, too.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from detkit.config import Recipe
from detkit.data import CocoDataset
from detkit.data.loader import read_batches
from detkit.detectors import Detector
from detkit.engine.data import eval_loader
from detkit.engine.evaluate import measure
from detkit.engine.views import Preparation, with_views
from detkit.ops import box_iou
from detkit.structures import Batch, Detections

SAME_IOU, SAME_PIXELS, SAME_SCORE = (
    0.9,
    0.5,
    0.05,
)  # of two detections that are taken for one and the same
LEGEND = (
    f"same: detections in common with torch (class, IoU {SAME_IOU}, score within {SAME_SCORE}); "
    "box, score: the largest\ndifferences among these; ms: a picture, without reading it; MB: file"
)
LEAST_AGREEMENT = {"fp32": 0.99, "fp16": 0.9, "int8": 0.0}  # share of detections


@dataclass
class Looks:
    """What a detector found, and in which time.

    Attributes:
        found: by image id, on the CPU.
        seconds: a picture, of each batch.
    """

    found: dict[int, Detections] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)

    @property
    def milliseconds(self) -> float:
        """A picture; the first batch, which also allocates and warms up, does not count."""
        return 1000 * statistics.median(self.seconds[1:] or self.seconds)


@dataclass(frozen=True)
class Agreement:
    """How much alike two detectors' detections are.

    Attributes:
        share: of the detections of both that the other one has, too: of the same class, with an
            IoU of `SAME_IOU` (or within `SAME_PIXELS`) and a score within `SAME_SCORE`.
        box: largest difference of a coordinate among these, in pixels.
        score: largest difference of a score among these.
        count: detections of the first.
    """

    share: float
    box: float
    score: float
    count: int


@dataclass(frozen=True)
class Row:
    """One line of the gate's table.

    Attributes:
        name: torch, or the precision.
        ap: in 0..1, None where there are no truths.
        ap50: likewise.
        agreement: with torch; None in the line of torch itself.
        milliseconds: a picture.
        megabytes: of the file; None in the line of torch.
    """

    name: str
    ap: float | None
    ap50: float | None
    agreement: Agreement | None
    milliseconds: float
    megabytes: float | None = None


def look(
    detectors: Mapping[str, Detector],
    recipe: Recipe,
    dataset: CocoDataset,
    *,
    device: torch.device,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Looks]:
    """Let several detectors look at a data set as the recipe says, in turn at each batch.

    Args:
        detectors: by name, in evaluation mode, on the device.
        recipe: how pictures are prepared and looked at.
        dataset: the pictures.
        device: where the detectors are.
        clock: in seconds.
    """
    preparation = Preparation.of(recipe)
    loader: DataLoader[Batch] = eval_loader(
        recipe,
        dataset,
        pin_memory=False,
        transform=preparation.transform,
        batch_size=preparation.batch_size,
    )
    viewers = {name: with_views(detector, recipe) for name, detector in detectors.items()}
    looks = {name: Looks() for name in viewers}
    bar = tqdm(total=len(dataset), desc="compare", unit=" pictures", leave=False, disable=None)
    with bar, torch.no_grad():
        for turn, batch in enumerate(read_batches(loader)):
            assert batch.targets is not None
            ids = [target.image_id for target in batch.targets]
            given = batch.without_targets().to(device)
            # who comes first finds the caches cold: they take turns at that, too
            for name in list(viewers)[:: -1 if turn % 2 else 1]:
                start = clock()
                found = viewers[name].predict(given)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                looks[name].seconds.append((clock() - start) / len(batch))
                looks[name].found |= zip(ids, (each.to("cpu") for each in found), strict=True)
            bar.update(len(batch))
    return looks


def compare(
    looks: Mapping[str, Looks], dataset: CocoDataset | None, *, megabytes: Mapping[str, float]
) -> list[Row]:
    """A row for each detector.

    Args:
        looks: by name; the first is what the others are compared with.
        dataset: with the truths; None where there are none.
        megabytes: of the files, by name.
    """
    reference = next(iter(looks.values()))
    rows = []
    for name, each in looks.items():
        ap = ap50 = None
        if dataset is not None:
            ap, ap50 = measure(each.found, dataset).stats[:2].tolist()
        agreement = None if each is reference else agree(reference.found, each.found)
        rows.append(Row(name, ap, ap50, agreement, each.milliseconds, megabytes.get(name)))
    return rows


def agree(first: Mapping[int, Detections], second: Mapping[int, Detections]) -> Agreement:
    """Compare detections by image id; both have the same images."""
    pairs, total, box, score = 0, 0, 0.0, 0.0
    for image, one in first.items():
        other = second[image]
        total += len(one) + len(other)
        if not len(one) or not len(other):
            continue
        apart = (one.boxes[:, None] - other.boxes).abs().amax(dim=2)  # [K, L]
        same = one.labels[:, None] == other.labels
        same &= (one.scores[:, None] - other.scores).abs() <= SAME_SCORE
        # boxes without an area overlap with nothing
        same &= (box_iou(one.boxes, other.boxes) >= SAME_IOU) | (apart <= SAME_PIXELS)
        nearest, partner = apart.masked_fill(~same, torch.inf).min(dim=1)  # [K]
        mine = nearest.isfinite().nonzero().flatten()
        theirs = partner[mine]
        pairs += len(mine) + len(theirs.unique())
        if len(mine):
            box = max(box, float((one.boxes[mine] - other.boxes[theirs]).abs().max()))
            score = max(score, float((one.scores[mine] - other.scores[theirs]).abs().max()))
    return Agreement(
        share=pairs / total if total else 1.0,
        box=box,
        score=score,
        count=sum(map(len, first.values())),
    )


def faults(rows: list[Row], *, tolerance: float) -> dict[str, str]:
    """Why files are not as good as the detector, by the name of their row; empty if they are.

    Args:
        rows: see `compare`.
        tolerance: the largest difference of AP, in percent points.
    """
    reference, *exported = rows
    bad = {}
    for row in exported:
        assert row.agreement is not None
        if row.agreement.count == 0:
            bad[row.name] = (
                "torch finds nothing in these pictures, so that nothing can be compared; give "
                "pictures that it was made for (--data), or lower model.select.score_threshold"
            )
        elif (least := LEAST_AGREEMENT[row.name]) > row.agreement.share and (
            row.ap is None or row.name == "fp32"
        ):
            bad[row.name] = (
                f"{100 * row.agreement.share:.1f} % of the detections agree with those of torch, "
                f"at least {100 * least:.0f} % must"
            )
        elif row.ap is not None and reference.ap is not None:
            difference = 100 * (row.ap - reference.ap)
            if abs(difference) > tolerance:
                bad[row.name] = f"AP differs by {difference:+.2f} points, allowed are {tolerance:g}"
    return bad


def table(rows: list[Row]) -> str:
    """The rows beside each other, AP in percent."""
    head = ("", "AP", "AP50", "same", "box px", "score", "ms", "MB")
    lines: list[tuple[str, ...]] = [head]
    for row in rows:
        told = ["", "", ""]
        if row.agreement is not None:
            share = f"{100 * row.agreement.share:.2f} %"
            told = [share, f"{row.agreement.box:.2g}", f"{row.agreement.score:.2g}"]
        lines.append(
            (
                row.name,
                *("-" if ap is None else f"{100 * ap:.2f}" for ap in (row.ap, row.ap50)),
                *told,
                f"{row.milliseconds:.1f}",
                "" if row.megabytes is None else f"{row.megabytes:.1f}",
            )
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip()
        for line in lines
    )
