"""Inputs on which COCO evaluators disagree, and what detkit and pycocotools make of each.

    python benchmarks/evaluator_edge_cases.py

prints a table in Markdown: what pycocotools gives; whether `strict=True` gives its bits (precision,
recall, scores and the 12 numbers), from JSON files and from memory, on each backend that is there;
and what the default gives. The tests of the evaluator hold each case to what is written here.
"""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detkit.evaluation import CocoEvaluator, CocoResult, evaluate_files
from detkit.evaluation.backend import COMPILED, NUMPY, backend, using
from detkit.evaluation.tables import markdown

Record = dict[str, Any]
UNIT = (0, 0, 10, 10)
NAN, INF = float("nan"), float("inf")


def truth(box: Sequence[float] = UNIT, image: Any = 1, category: Any = 1, **fields: Any) -> Record:
    """An annotation; a field given as None is left out."""
    record = {"image_id": image, "category_id": category, "bbox": list(box), "iscrowd": 0}
    record.update({"area": box[2] * box[3], **fields})
    return {key: value for key, value in record.items() if value is not None}


def detection(
    box: Sequence[float] = UNIT, score: float = 0.5, image: Any = 1, category: Any = 1, **more: Any
) -> Record:
    """A result."""
    found = {"image_id": image, "category_id": category, "bbox": list(box), "score": score}
    return {**found, **more}


def dataset(
    *truths: Record, images: Sequence[Any] = (1,), categories: Sequence[Any] = (1,)
) -> Record:
    """A ground truth; ids of annotations are 1, 2, .. unless given."""
    return {
        "images": [{"id": image} for image in images],
        "categories": [{"id": k, "name": f"class {k}"} for k in categories],
        "annotations": [{"id": i, **record} for i, record in enumerate(truths, 1)],
    }


@dataclass(frozen=True)
class Case:
    """An input and what becomes of it.

    Attributes:
        truths: ground truth.
        detections: results.
        options: of the evaluation, as `evaluate_files` names them.
        raises: exception of pycocotools, if it gives no numbers.
        default: what detkit gives unless `strict`: "equal" bits, "noted" (other numbers, and notes
            that tell both), "warned" (other numbers, and a note that tells why), "evaluated"
            (numbers where pycocotools raises) or "refused" (an error).
    """

    truths: Record
    detections: list[Record]
    options: Record = field(default_factory=dict)
    raises: str = ""
    default: str = "equal"


def _many(count: int, seed: int = 0) -> tuple[list[Record], list[Record]]:
    """Truths, and detections near them with few different scores, on a coarse grid."""
    rng = np.random.default_rng(seed)
    boxes = 10 * np.concatenate([rng.integers(0, 6, (count, 2)), rng.integers(2, 6, (count, 2))], 1)
    truths = [truth(box, iscrowd=int(i % 9 == 8)) for i, box in enumerate(boxes.tolist())]
    found = [
        detection((boxes[i % count] + 5 * rng.integers(-1, 2, 4)).tolist(), score / 8)
        for i, score in enumerate(rng.integers(1, 8, 4 * count).tolist())
    ]
    return truths, found


MANY_TRUTHS, MANY_DETECTIONS = _many(40)
FLOAT32 = np.random.default_rng(0).uniform(5, 60, (6, 4)).astype(np.float32).astype(float).tolist()
LEFT, MIDDLE, RIGHT = (0, 0, 10, 10), (2, 0, 10, 10), (4, 0, 10, 10)

CASES: dict[str, Case] = {
    # --------------------------------------------------------------------------- annotation ids
    "annotation id 0 that is matched": Case(
        dataset(truth(id=0), truth((50, 0, 10, 10), id=1)),
        [detection(), detection((50, 0, 10, 10), 0.4)],
        default="noted",
    ),
    "annotation id 0 that is not matched": Case(
        dataset(truth((90, 90, 10, 10), id=0), truth(id=1)), [detection()]
    ),
    "annotation id 0 of a crowd": Case(
        dataset(truth(id=0, iscrowd=1), truth(RIGHT)), [detection()]
    ),
    "negative annotation ids": Case(
        dataset(truth(id=-1), truth((50, 0, 10, 10), id=-7)), [detection()]
    ),
    "annotation ids beyond float64": Case(
        dataset(truth(id=2**53), truth((50, 0, 10, 10), id=2**53 + 1)), [detection()]
    ),
    "repeated annotation ids": Case(
        dataset(truth(id=5), truth((50, 0, 10, 10), id=5), truth((70, 0, 10, 10), id=6)),
        [detection(), detection((50, 0, 10, 10), 0.4)],
        default="noted",
    ),
    "repeated annotation ids in several images": Case(
        dataset(truth(id=5, image=2), truth(RIGHT, id=6), truth(LEFT, id=5), images=(1, 2)),
        [detection(MIDDLE, 0.9), detection(MIDDLE, 0.8), detection(RIGHT, 0.7)],
        default="noted",
    ),
    "repeated annotation ids, the last in an unlisted category": Case(
        dataset(truth(id=6), truth((70, 70, 10, 10), id=6, category=3), truth(RIGHT, id=7)),
        [detection()],
        default="noted",
    ),
    "repeated annotation ids without categories, one unlisted": Case(
        dataset(truth(category=3, id=6), truth(id=6), truth((50, 0, 10, 10), id=7)),
        [detection(), detection((50, 0, 10, 10), 0.4), detection((80, 0, 10, 10), 0.6)],
        {"use_categories": False},
        default="noted",
    ),
    "truths without id": Case(
        {**dataset(), "annotations": [truth()]},
        [detection()],
        raises="KeyError",
        default="evaluated",
    ),
    # ------------------------------------------------------------------- numbers that are none
    "NaN in a box of a detection": Case(
        dataset(truth(), truth((50, 0, 10, 10))),
        [detection((NAN, 0, 10, 10), 0.9), detection((50, 0, 10, 10), 0.4)],
        default="refused",
    ),
    "NaN as size of a detection": Case(
        dataset(truth(), truth((50, 0, 10, 10))),
        [detection((50, 0, NAN, 10), 0.9), detection((0, 0, NAN, NAN), 0.4)],
        default="refused",
    ),
    "NaN in a box of a truth": Case(
        dataset(truth((0, NAN, 10, 10)), truth((50, 0, 10, 10))),
        [detection((80, 0, 10, 10), 0.9), detection((50, 0, 10, 10), 0.4)],
        default="refused",
    ),
    "NaN as area of a truth": Case(
        dataset(truth(area=NAN), truth((50, 0, 10, 10))), [detection()], default="refused"
    ),
    "infinite coordinates of a detection": Case(
        dataset(truth(), truth((50, 0, 10, 10))),
        [detection((0, 0, INF, 10), 0.9), detection((-INF, 0, 10, 10), 0.8), detection()],
        default="refused",
    ),
    "infinite coordinates of a truth": Case(
        dataset(truth((0, 0, INF, INF)), truth((50, 0, 10, 10))), [detection()], default="refused"
    ),
    "NaN as score": Case(
        dataset(truth(), truth((50, 0, 10, 10))),
        [detection(score=NAN), detection((50, 0, 10, 10), 0.4), detection((80, 0, 5, 5), NAN)],
        default="refused",
    ),
    "infinite scores": Case(
        dataset(truth(), truth((50, 0, 10, 10))),
        [detection(score=-INF), detection((50, 0, 10, 10), INF), detection((80, 0, 5, 5), 0.3)],
        default="refused",
    ),
    "coordinates whose products overflow": Case(
        dataset(truth((0, 0, 1e200, 1e200)), truth()),
        [detection((0, 0, 1e200, 1e200), 0.9), detection()],
        default="refused",
    ),
    "sizes whose product underflows": Case(
        dataset(truth((0, 0, 1e-200, 1e-200)), truth((50, 0, 10, 10))),
        [detection((0, 0, 1e-200, 1e-200)), detection((50, 0, 10, 10), 0.4)],
        default="noted",
    ),
    "scores below the normal range": Case(
        dataset(truth(), truth((50, 0, 10, 10))),
        [detection(score=5e-324), detection((50, 0, 10, 10), 1e-310), detection(score=0.0)],
    ),
    # ------------------------------------------------------------------------- scores and order
    "zero and minus zero as scores": Case(
        dataset(truth(), truth((50, 0, 10, 10))),
        [detection(score=-0.0), detection((50, 0, 10, 10), 0.0), detection((9, 9, 1, 1), -0.0)],
    ),
    "negative and large scores": Case(
        dataset(truth(), truth((50, 0, 10, 10))),
        [detection(score=-3), detection((50, 0, 10, 10), -1e300), detection((9, 9, 1, 1), 7)],
    ),
    "ties in an image and over images": Case(
        dataset(truth(image=2), truth(image=1), images=(2, 1)),
        [detection((0, 90, 5, 5), image=2), detection(image=2), detection(image=1)] * 2,
    ),
    "all scores equal": Case(
        dataset(*MANY_TRUTHS), [{**found, "score": 0.5} for found in MANY_DETECTIONS]
    ),
    "ties at the limit of 100 detections": Case(dataset(*MANY_TRUTHS), MANY_DETECTIONS),
    "float32 decimals": Case(
        dataset(*map(truth, FLOAT32)),
        [detection(box, float(np.float32(0.1 * i))) for i, box in enumerate(FLOAT32[::-1])],
    ),
    # --------------------------------------------------------------------------- who takes whom
    "identical truths": Case(
        dataset(truth(), truth(), truth(MIDDLE)), [detection(), detection(MIDDLE, 0.4)] * 2
    ),
    "equal overlaps, none left for the next": Case(
        dataset(truth(LEFT), truth(RIGHT)), [detection(MIDDLE, 0.9), detection(RIGHT, 0.8)]
    ),
    "equal overlaps in more images than an unstable sort leaves in order": Case(
        dataset(
            *(truth(box, image) for image in range(200) for box in (LEFT, RIGHT)),
            images=range(200),
        ),
        [
            detection(box, score, image)
            for image in range(200)
            for box, score in ((MIDDLE, 0.9), (RIGHT, 0.8))
        ],
    ),
    "a crowd takes many": Case(
        dataset(truth((0, 0, 90, 90), iscrowd=1), truth((5, 5, 10, 10))),
        [detection((5, 5, 10, 10), score) for score in (0.9, 0.8, 0.7)],
    ),
    "a truth is preferred to a crowd of more overlap": Case(
        dataset(truth(iscrowd=1), truth((0, 0, 10, 14))), [detection(), detection(score=0.8)]
    ),
    "only crowds": Case(dataset(truth(iscrowd=1)), [detection(), detection(score=0.4)]),
    "a crowd given as true": Case(dataset(truth(iscrowd=True), truth(RIGHT)), [detection()]),
    "a truth out of range is taken once": Case(
        dataset(truth((0, 0, 40, 40)), truth((0, 0, 30, 30))),
        [detection((0, 0, 40, 38), score) for score in (0.9, 0.8, 0.7)],
    ),
    "overlaps exactly on thresholds": Case(
        dataset(truth((0, 0, 20, 10)), truth((50, 0, 40, 10)), truth((0, 50, 20, 20))),
        [
            detection((0, 0, 10, 10), 0.9),
            detection((50, 0, 30, 10), 0.8),
            detection((0, 50, 20, 18), 0.7),
        ],
    ),
    "detections outside of everything": Case(
        dataset(truth()), [detection((-900, -900, 10, 10)), detection((1e6, 1e6, 10, 10), 0.4)]
    ),
    # ----------------------------------------------------------------------------------- sizes
    "zero width and height": Case(
        dataset(truth((5, 5, 0, 0)), truth((0, 0, 10, 0)), truth()),
        [detection((5, 5, 0, 0)), detection((0, 0, 10, 0)), detection()],
    ),
    "negative sizes of detections": Case(
        dataset(truth()), [detection((9, 9, -4, -4), 0.9), detection()], default="refused"
    ),
    "negative sizes of truths": Case(
        dataset(truth((9, 9, -4, -4)), truth()), [detection()], default="refused"
    ),
    "area exactly 1024 and 9216": Case(
        dataset(truth((0, 0, 32, 32)), truth((100, 0, 96, 96))),
        [detection((0, 0, 32, 32)), detection((100, 0, 96, 96), 0.6)],
    ),
    "area exactly 1e10, and above": Case(
        dataset(truth((0, 0, 1e5, 1e5)), truth((5e5, 0, 1e5, 1e5), area=1e10 + 4)),
        [detection((0, 0, 1e5, 1e5)), detection((5e5, 0, 1e5, 1e5), 0.6)],
    ),
    "area of the mask, not of the box": Case(
        dataset(truth((0, 0, 40, 40), area=900), truth((100, 0, 10, 10), area=2000.5)),
        [detection((0, 0, 40, 40)), detection((100, 0, 10, 10), 0.6)],
    ),
    "whole numbers in boxes": Case(
        dataset(truth((1, 2, 30, 40))), [detection((1, 2, 30, 39)), detection((2, 2, 30, 40), 1)]
    ),
    "coordinates where a pixel is lost to rounding": Case(
        dataset(truth((1e16, 0, 3, 3)), truth((1e16, 50, 1.01, 1))),
        [detection((1e16, 0, 3, 3)), detection((1e16, 50, 1.01, 1), 0.4)],
    ),
    # --------------------------------------------------------------------- what is listed or not
    "nothing at all": Case(dataset(), [], raises="IndexError", default="evaluated"),
    "no image": Case(dataset(images=()), [], raises="IndexError", default="evaluated"),
    "no category": Case(dataset(categories=()), [detection()]),
    "no truth": Case(dataset(), [detection()]),
    "no detection": Case(dataset(truth()), [], raises="IndexError", default="evaluated"),
    "category without truth": Case(
        dataset(truth(), categories=(1, 2)), [detection(category=2), detection()]
    ),
    "images without truths": Case(
        dataset(truth(), images=(1, 2, 3)), [detection(), detection(image=2, score=0.9)]
    ),
    "only wrong detections": Case(dataset(truth()), [detection((90, 90, 5, 5))]),
    "detection of an unknown image": Case(
        dataset(truth()), [detection(image=9)], raises="AssertionError", default="refused"
    ),
    "detection of an unlisted category": Case(
        dataset(truth()), [detection(category=8, score=0.9), detection()]
    ),
    "truths of an unlisted image and category": Case(
        dataset(truth(), truth(image=9), truth(category=9)), [detection()]
    ),
    "images and categories listed twice": Case(
        dataset(truth(), images=(1, 1), categories=(1, 1)), [detection()]
    ),
    "ids with gaps, unsorted": Case(
        dataset(
            truth(image=70, category=90),
            truth(image=7, category=3),
            images=(70, 7, 12),
            categories=(90, 3, 17),
        ),
        [detection(image=7, category=3), detection(image=12, category=90, score=0.9)],
    ),
    "image ids beyond float64": Case(
        dataset(truth(image=2**53 + 1), images=(2**53, 2**53 + 1)), [detection(image=2**53 + 1)]
    ),
    "image ids that are text": Case(
        dataset(truth(image="b"), truth(image="a10"), images=("b", "a9", "a10")),
        [detection(image="a10"), detection(image="b"), detection(image="a9", score=0.5)],
    ),
    "whole numbers written as 1.0": Case(
        dataset(truth(image=1.0, category=1.0)), [detection(image=1.0, score=1)]
    ),
    "names beyond ASCII": Case(
        {**dataset(truth()), "categories": [{"id": 1, "name": "Bär 熊 🐻"}]}, [detection()]
    ),
    # ---------------------------------------------------------------------------------- fields
    "truths without iscrowd": Case(
        dataset(truth(iscrowd=None)), [detection()], raises="KeyError", default="evaluated"
    ),
    "truths without area": Case(
        dataset(truth(area=None)), [detection()], raises="KeyError", default="evaluated"
    ),
    "truths with ignore": Case(
        dataset(truth(ignore=1), truth(RIGHT)), [detection(), detection(RIGHT)]
    ),
    "detections with id, area and iscrowd of their own": Case(
        dataset(truth(), truth((50, 0, 40, 40))),
        [
            detection(id=0, area=5000, iscrowd=1),
            detection((50, 0, 40, 40), 0.4, id=0, area=1, iscrowd=1),
        ],
    ),
    # --------------------------------------------------------------------------------- settings
    "limits unsorted": Case(dataset(truth()), [detection()] * 3, {"max_dets": (100, 1, 10)}),
    "limits repeated": Case(dataset(truth()), [detection()] * 3, {"max_dets": (100, 100, 100)}),
    "limits without 100": Case(
        dataset(truth(), truth((50, 0, 10, 10))),
        [detection((20, 0, 5, 5), 0.9), detection(), detection((50, 0, 10, 10), 0.4)],
        {"max_dets": (1, 2, 3)},
        default="noted",
    ),
    "limits above 100": Case(dataset(*MANY_TRUTHS), MANY_DETECTIONS, {"max_dets": (1, 100, 150)}),
    "four limits": Case(dataset(truth()), [detection()] * 3, {"max_dets": (1, 2, 100, 300)}),
    "two limits": Case(dataset(truth()), [detection()] * 3, {"max_dets": (1, 100)}),
    "a single threshold": Case(dataset(truth()), [detection()], {"iou_thresholds": [0.6]}),
    "thresholds unsorted and repeated": Case(
        dataset(truth()), [detection((0, 0, 8, 10))], {"iou_thresholds": [0.9, 0.5, 0.7, 0.5]}
    ),
    "thresholds 0 and 1": Case(
        dataset(truth(), truth((50, 0, 10, 10))),
        [detection(), detection((9, 9, 4, 4), 0.9)],
        {"iou_thresholds": [0.0, 1.0]},
    ),
    "threshold 1 and an overlap that rounding left below": Case(
        dataset(truth(), truth((50, 0, 10, 10))),
        [detection((0, 0, 10, 10 - 1e-11)), detection((50, 0, 10, 10 - 1e-8), 0.4)],
        {"iou_thresholds": [1.0]},
    ),
    "more than 64 curves": Case(
        dataset(*MANY_TRUTHS),
        MANY_DETECTIONS,
        {"iou_thresholds": np.linspace(0.1, 0.95, 35).tolist()},
    ),
    "own area ranges": Case(
        dataset(truth((0, 0, 40, 40)), truth((100, 0, 10, 10))),
        [detection((0, 0, 40, 40)), detection((100, 0, 10, 10), 0.6)],
        {"area_ranges": {"tiny": (0, 100), "all": (0, 1e10), "rest": (100, 1e10)}},
    ),
    "without categories": Case(
        dataset(truth(category=2), truth((50, 0, 10, 10)), truth(category=9), categories=(2, 1)),
        [detection(), detection(category=2), detection(category=9), detection((50, 0, 9, 9), 0.4)],
        {"use_categories": False},
    ),
    "without categories, of which one is listed twice": Case(
        dataset(truth(category=2), truth(RIGHT, category=2), categories=(2, 2, 1)),
        [detection(category=2, score=0.9), detection((50, 0, 10, 10), category=2, score=0.4)],
        {"use_categories": False},
        default="warned",
    ),
    "without categories, of which none is listed": Case(
        dataset(truth(), categories=()), [detection()], {"use_categories": False}
    ),
}


@dataclass
class Numbers:
    """What an evaluator gives.

    Attributes:
        arrays: precision, recall and scores.
        stats: the 12 numbers, or None where pycocotools has none (it wants three limits).
        summary: as printed.
        notes: of detkit.
    """

    arrays: tuple[np.ndarray, ...]
    stats: np.ndarray | None
    summary: str
    notes: tuple[str, ...] = ()


def run_pycocotools(case: Case, folder: Path | None) -> Numbers:
    """From files in a folder, or from memory without one."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), np.errstate(all="ignore"):
        if folder is None:
            truths = COCO()
            truths.dataset = json.loads(json.dumps(case.truths))  # it writes into what it is given
            truths.createIndex()
            found = truths.loadRes(json.loads(json.dumps(case.detections)))
        else:
            truths = COCO(str(folder / "gt.json"))
            found = truths.loadRes(str(folder / "dt.json"))
        evaluation = COCOeval(truths, found, "bbox")
        parameters, options = evaluation.params, case.options
        if "iou_thresholds" in options:
            parameters.iouThrs = np.array(options["iou_thresholds"])
        if "area_ranges" in options:
            parameters.areaRngLbl = list(options["area_ranges"])
            parameters.areaRng = [list(each) for each in options["area_ranges"].values()]
        parameters.maxDets = list(options.get("max_dets", (1, 10, 100)))
        parameters.useCats = int(options.get("use_categories", True))
        evaluation.evaluate()
        evaluation.accumulate()
        arrays = tuple(evaluation.eval[name] for name in ("precision", "recall", "scores"))
        if len(parameters.maxDets) < 3:
            return Numbers(arrays, None, "")
        printed.truncate(0)
        printed.seek(0)
        evaluation.summarize()
    return Numbers(arrays, evaluation.stats, printed.getvalue().rstrip("\n"))


def from_files(case: Case, folder: Path, *, strict: bool) -> CocoResult:
    """By detkit, from the files in a folder."""
    return evaluate_files(folder / "gt.json", folder / "dt.json", strict=strict, **case.options)


def from_objects(case: Case, folder: Path, *, strict: bool) -> CocoResult:
    """By detkit, from what would be in the files."""
    return evaluate_files(case.truths, case.detections, strict=strict, **case.options)


def from_updates(case: Case, folder: Path, *, strict: bool) -> CocoResult:
    """By detkit, image by image, the last one first, as arrays."""
    evaluator = CocoEvaluator.from_coco(case.truths, strict=strict, **case.options)
    images = dict.fromkeys(found["image_id"] for found in case.detections)
    for image in reversed(images):
        own = [found for found in case.detections if found["image_id"] == image]
        boxes, scores, ids = ([d[key] for d in own] for key in ("bbox", "score", "category_id"))
        evaluator.update(image, boxes, scores, ids, box_format="xywh")
    return evaluator.compute()


Source = Callable[..., CocoResult]
SOURCES: dict[str, Source] = {
    "files": from_files,
    "objects": from_objects,
    "updates": from_updates,
}


def write_files(case: Case, folder: Path) -> None:
    """gt.json and dt.json."""
    (folder / "gt.json").write_text(json.dumps(case.truths))
    (folder / "dt.json").write_text(json.dumps(case.detections))


def numbers_of(result: CocoResult) -> Numbers:
    """What is compared."""
    arrays = (result.precision, result.recall, result.scores)
    return Numbers(arrays, result.stats, result.summary(), result.notes)


def same_bits(mine: Numbers, theirs: Numbers) -> bool:
    """Whether all that pycocotools gives is the same to the last bit."""
    equal = all(
        a.shape == b.shape and a.tobytes() == b.tobytes()
        for a, b in zip(mine.arrays, theirs.arrays, strict=True)
    )
    if theirs.stats is None:
        return equal
    assert mine.stats is not None
    same = mine.stats.tobytes() == theirs.stats.tobytes() and mine.summary == theirs.summary
    return equal and same


def backends() -> list[str]:
    """Those that are there."""
    return [NUMPY] if backend().name == NUMPY else [COMPILED, NUMPY]


def strict_outcome(case: Case, folder: Path, theirs: Numbers | None, names: Sequence[str]) -> str:
    """One word, or the first word that differs among the sources and backends."""
    outcomes: list[str] = []
    for code in backends():
        for name in names:
            with using(code):
                try:
                    mine = numbers_of(SOURCES[name](case, folder, strict=True))
                except ValueError as error:
                    outcomes.append(f"refused: {_short(error, folder)}")
                    continue
            if theirs is None:
                assert mine.stats is not None
                outcomes.append(f"AP {mine.stats[0]:.3f}")
            else:
                outcomes.append("equal" if same_bits(mine, theirs) else "DIFFERENT")
    return next((each for each in outcomes if each != outcomes[0]), outcomes[0])


def default_outcome(case: Case, folder: Path, theirs: Numbers | None) -> str:
    """The word "equal", or what is said."""
    try:
        mine = numbers_of(from_files(case, folder, strict=False))
    except ValueError as error:
        return f"refused: {_short(error, folder)}"
    if theirs is not None and same_bits(mine, theirs) and not mine.notes:
        return "equal"
    assert mine.stats is not None
    return "; ".join(map(_brief, mine.notes)) or f"AP {mine.stats[0]:.3f}"


def _brief(note: str) -> str:
    """A note with the first number only."""
    numbers, _, reason = note.rpartition(": ")
    if "(pycocotools" not in numbers:
        return note
    first, *others = numbers.split(", ")
    more = f" and {len(others)} more" if others else ""
    return f"{first}{more}: {reason}"


def _short(error: Exception, folder: Path) -> str:
    return str(error).replace(f"{folder}/", "")


def outcomes_of(name: str, case: Case) -> tuple[str, ...]:
    """A row of the table."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_files(case, folder)
        theirs: Numbers | None = None
        try:
            theirs = run_pycocotools(case, folder)
            first = f"AP {theirs.stats[0]:.3f}" if theirs.stats is not None else "arrays alone"
        except (AssertionError, IndexError, KeyError) as error:
            first = type(error).__name__
        files = strict_outcome(case, folder, theirs, ("files",))
        memory = strict_outcome(case, folder, theirs, ("objects", "updates"))
        return (name, first, files, memory, default_outcome(case, folder, theirs))


def main() -> None:
    """Print the table."""
    head = ("case", "pycocotools", "strict, files", "strict, memory", "default")
    rows = [outcomes_of(name, case) for name, case in CASES.items()]
    print(f"backends: {', '.join(backends())}; {len(rows)} cases\n")
    print(markdown([head, *(tuple(c.replace("|", "/") for c in row) for row in rows)]))


if __name__ == "__main__":
    main()
