"""pycocotools' COCO and COCOeval for boxes, fast: an existing script changes one import.

    from detkit.evaluation.compat import COCO, COCOeval

Both are pycocotools' own classes, so that everything they offer is there. What is replaced is the
reading of files and arrays, and `evaluate` and `accumulate` for boxes: the same numbers to the last
bit from detkit's metric. Dicts (`dataset`, `anns`, `evalImgs` ...) are made when they are first
asked for; from then on they are what counts, for they may be changed. Masks and keypoints, and what
pycocotools treats in a way of its own (ids that repeat, numbers that are none ...), run its code.
Two things are no errors here: no detections at all, which give an AP of 0, and files without `area`
and `iscrowd`, where w * h and 0 stand for them.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

import numpy as np
from pycocotools import coco, cocoeval
from pycocotools.cocoeval import Params

from detkit.evaluation.accumulation import evaluate_arrays
from detkit.evaluation.coco_json import read_detections, read_truths
from detkit.evaluation.compat_arrays import (
    Found,
    Selection,
    check_ordinary,
    cut_unreached,
    detections_of_records,
    found_of_rows,
    records_of,
    select_detections,
    select_truths,
    settings_of,
    truths_of_records,
)
from detkit.evaluation.compat_cells import Inputs, Record, accumulate_cells, evaluate_cells
from detkit.evaluation.inputs import (
    CocoSettings,
    CocoTruths,
    FlatDetections,
    FlatTruths,
    Floats,
)

_INDEX = ("dataset", "anns", "cats", "imgs", "imgToAnns", "catToImgs")
_EVALUATED = ("evalImgs", "ious", "_gts", "_dts")
# What may go wrong with unusual data: pycocotools then has the word.
_ODD = (AttributeError, KeyError, OverflowError, TypeError, ValueError)
Truths = tuple[FlatTruths, Sequence[Record] | None]
Detections = tuple[FlatDetections, Sequence[Record] | None]


class COCO(coco.COCO):
    """`pycocotools.coco.COCO`, but files and arrays of boxes are read fast.

    Args:
        annotation_file: path of ground truth, or None for an empty one.
    """

    # What the dicts will hold, and what makes them; None once they are there.
    _arrays: CocoTruths | Found | None = None
    _make: Callable[[], coco.COCO] | None = None

    def __init__(self, annotation_file: str | os.PathLike[str] | None = None) -> None:
        super().__init__()
        if annotation_file is None:
            return
        start = time.time()
        try:
            truths = read_truths(os.fspath(annotation_file), strict=True)
        except ValueError:  # pycocotools takes more, or has its own complaint
            super().__init__(annotation_file)
            return
        _say("loading annotations into memory...")
        _say(f"Done (t={time.time() - start:0.2f}s)")
        self._defer(truths, partial(_read_truths, os.path.abspath(annotation_file)))

    def createIndex(self) -> None:
        """Index `dataset` as it is now."""
        if "dataset" not in self.__dict__:
            self.__getattr__("dataset")
        self._arrays = self._make = None
        super().createIndex()

    def loadRes(self, resFile: Any) -> COCO:
        """Detections on this ground truth.

        Args:
            resFile: path of a results file, list of its records (which are completed in place, as
                by pycocotools), or array `[N, 7]` of image id, x, y, w, h, score, category id.

        Raises:
            AssertionError: an image that the ground truth does not have.
        """
        start = time.time()
        if isinstance(resFile, os.PathLike):
            resFile = os.fspath(resFile)
        try:
            found, load = self._read_results(resFile)
        except _ODD:
            return self._load_records(resFile)
        results = COCO()
        _say("Loading and preparing results...")
        if isinstance(resFile, np.ndarray):
            _say("Converting ndarray to lists...")
            _say(str(resFile.shape))
            for done in range(0, len(resFile), 1000000):
                _say(f"{done}/{len(resFile)}")
        _say(f"DONE (t={time.time() - start:0.2f}s)")
        results._defer(found, partial(_complete, self, load))
        return results

    def _read_results(self, given: Any) -> tuple[Found, Callable[[], list[Record]]]:
        """Detections as arrays, and what gives their records; an exception leaves it to others."""
        truths = self._arrays
        if type(given) is np.ndarray:
            if isinstance(truths, CocoTruths):
                ids = truths.image_ids, truths.category_ids
            else:
                ids = np.unique(list(self.imgs)), np.unique(list(self.cats))
            found = found_of_rows(given, *ids)
            return found, partial(records_of, found)
        if not isinstance(given, str) or not isinstance(truths, CocoTruths):
            raise ValueError("neither a file nor an array")
        detections = read_detections(given, truths, strict=True)
        found = Found(truths.image_ids, truths.category_ids, detections)
        return found, partial(_read_json, os.path.abspath(given))

    def _load_records(self, given: Any) -> COCO:
        if type(given) is str:
            given = _read_json(given)
        if isinstance(given, list | np.ndarray) and not len(given):
            made = coco.COCO()  # pycocotools looks at the first detection, also where there is none
            made.dataset["info"] = copy.deepcopy(self.dataset.get("info", {}))
            made.dataset["images"] = list(self.dataset["images"])
            made.dataset["categories"] = copy.deepcopy(self.dataset["categories"])
            made.dataset["annotations"] = []
            made.createIndex()
        else:
            made = super().loadRes(given)
        results = COCO()
        results.__dict__.update(made.__dict__)
        return results

    def _defer(self, arrays: CocoTruths | Found, make: Callable[[], coco.COCO]) -> None:
        """Hold arrays, and make the dicts when they are asked for."""
        _say("creating index...")
        for name in _INDEX:
            del self.__dict__[name]
        self._arrays, self._make = arrays, make
        _say("index created!")

    def __getattr__(self, name: str) -> Any:  # asked for what is not there
        if name not in _INDEX or self._make is None:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        with contextlib.redirect_stdout(io.StringIO()):
            made = self._make()
        self._arrays = self._make = None  # whoever holds the dicts may change them
        for key in _INDEX:
            self.__dict__.setdefault(key, getattr(made, key))
        return self.__dict__[name]


def _read_truths(path: str) -> coco.COCO:
    made = coco.COCO()
    made.dataset = _read_json(path)
    made.createIndex()
    return made


def _complete(truths: COCO, load: Callable[[], list[Record]]) -> coco.COCO:
    return truths._load_records(load())


def _read_json(path: str) -> Any:
    with open(path, encoding="utf-8") as file:
        return json.load(file)


@dataclass(frozen=True, slots=True, eq=False)
class _Evaluation:
    """What `evaluate` found in order, for `accumulate` to draw the curves of.

    Attributes:
        truths: ground truth and, where they are there already, its records.
        found: detections, likewise.
        selection: images and categories.
        settings: thresholds, ranges and limits.
        params: as they were.
        sources: the objects with ground truth and detections.
    """

    truths: Truths
    found: Detections
    selection: Selection
    settings: CocoSettings
    params: Params
    sources: tuple[Any, Any]


class COCOeval(cocoeval.COCOeval):
    """`pycocotools.cocoeval.COCOeval`, but boxes are evaluated fast.

    `evalImgs` is made when it is first asked for; `accumulate` then starts from it, also where it
    was set by hand, as by those who evaluate batch by batch.

    Args:
        cocoGt: ground truth, of `COCO` or of pycocotools.
        cocoDt: detections.
        iouType: "bbox"; "segm" (the default, as in pycocotools) and "keypoints" run its code.
    """

    params: Any
    eval: dict[str, Any]
    _evaluation: _Evaluation | None = None

    def __init__(self, cocoGt: Any = None, cocoDt: Any = None, iouType: str = "segm") -> None:
        super().__init__(None, None, iouType)
        self.cocoGt, self.cocoDt = cocoGt, cocoDt
        arrays = getattr(cocoGt, "_arrays", None)
        if isinstance(arrays, CocoTruths):
            self.params.imgIds = arrays.image_ids.tolist()
            self.params.catIds = arrays.category_ids.tolist()
        elif cocoGt is not None:
            self.params.imgIds = sorted(cocoGt.getImgIds())
            self.params.catIds = sorted(cocoGt.getCatIds())

    def evaluate(self) -> None:
        """Take ground truth and detections as they are now; `params` say what of them."""
        start = time.time()
        self._evaluation = None
        try:
            self._evaluation = self._arrange()
        except _ODD:
            super().evaluate()
            return
        _say("Running per image evaluation...")
        _say(f"Evaluate annotation type *{self.params.iouType}*")
        self.eval = {}
        self._paramsEval = self._evaluation.params
        for name in _EVALUATED:
            self.__dict__.pop(name, None)
        _say(f"DONE (t={time.time() - start:0.2f}s).")

    def _arrange(self) -> _Evaluation:
        """What is to be evaluated, in arrays; an exception leaves it to pycocotools."""
        p = self.params
        if p.iouType != "bbox" or p.useSegm is not None or p.useCats not in (0, 1):
            raise ValueError("not boxes, or a mode of pycocotools alone")
        p.imgIds, p.maxDets = list(np.unique(p.imgIds)), sorted(p.maxDets)
        if p.useCats:
            p.catIds = list(np.unique(p.catIds))
        settings, _ = settings_of(p)
        selection = Selection(list(p.imgIds), list(p.catIds), bool(p.useCats))
        if not selection.images or not selection.categories:
            raise ValueError("nothing to evaluate")
        truths = _truths_of(self.cocoGt, selection)
        found = _detections_of(self.cocoDt, selection, settings)
        check_ordinary(truths[0], found[0])
        params = copy.copy(p)
        params.__dict__.update({name: copy.copy(value) for name, value in vars(p).items()})
        sources = self.cocoGt, self.cocoDt
        return _Evaluation(truths, found, selection, settings, params, sources)

    def accumulate(self, p: Params | None = None) -> None:
        """Draw the curves: precision, recall and scores in `eval`.

        Args:
            p: other parameters; default `params`.
        """
        start = time.time()
        try:
            curves = self._draw(self.params if p is None else p)
        except _ODD:
            super().accumulate(p)
            return
        _say("Accumulating evaluation results...")
        p = self.params if p is None else p
        p.catIds = p.catIds if p.useCats == 1 else [-1]
        precision, recall, scores = curves
        self.eval = {
            "params": p,
            "counts": list(precision.shape),
            "date": datetime.now().strftime("%Y-%m-%d %H:%M:%S"),
            "precision": precision,
            "recall": recall,
            "scores": scores,
        }
        _say(f"DONE (t={time.time() - start:0.2f}s).")

    def _draw(self, p: Params) -> tuple[Floats, Floats, Floats]:
        """Precision, recall and scores; an exception leaves it to pycocotools."""
        done = self._evaluation
        if (
            done is None
            or "evalImgs" in self.__dict__  # handed out or set by hand
            or self._paramsEval is not done.params
            or not _same_work(p, done.params)
        ):
            return self._draw_records(p)
        settings, place = settings_of(p)
        arrays = evaluate_arrays(
            done.truths[0],
            done.found[0],
            num_categories=done.selection.num_categories,
            settings=settings,
            with_scores=True,
        )
        precision, recall, scores = arrays.precision, arrays.recall, arrays.scores
        if not np.array_equal(settings.recall_levels, p.recThrs):
            precision, scores = precision[:, place], scores[:, place]
            precision, scores = cut_unreached(precision, recall, scores, np.asarray(p.recThrs))
        return precision, recall, scores

    def _draw_records(self, p: Params) -> tuple[Floats, Floats, Floats]:
        """The same from `evalImgs`, which others may have set."""
        if not self.evalImgs or p.useCats not in (0, 1):
            raise ValueError("nothing was evaluated, or in a mode of pycocotools alone")
        told = copy.copy(p)
        told.catIds = p.catIds if p.useCats else [-1]
        return accumulate_cells(self.evalImgs, told, self._paramsEval)

    def __getattr__(self, name: str) -> Any:  # asked for what is not there
        done = self._evaluation
        if name not in _EVALUATED or done is None:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        current, self.params = self.params, done.params  # they may have changed since
        try:
            if name == "evalImgs":
                self.evalImgs = self._evaluate_cells(done)
            elif name == "ious":
                categories = done.params.catIds if done.params.useCats else [-1]
                self.ious = {
                    (image, category): self.computeIoU(image, category)
                    for image in done.params.imgIds
                    for category in categories
                }
            else:
                self._sort_records()
        finally:
            self.params = current
        return self.__dict__[name]

    def _sort_records(self) -> None:
        """Set `_gts` and `_dts`; `_prepare` of pycocotools also forgets the results."""
        kept = {**self.__dict__}
        self._prepare()
        del self.evalImgs
        self.__dict__.update({key: kept[key] for key in ("eval", "evalImgs") if key in kept})

    def _evaluate_cells(self, done: _Evaluation) -> list[Record | None]:
        params = done.params
        try:
            (truths, gts), (found, dts) = done.truths, done.found
            if gts is None or dts is None:  # the arrays have no ids
                truths, gts = _truths_of_records(done.sources[0], done.selection)
                found, dts = _detections_of_records(done.sources[1], done.selection, done.settings)
            return evaluate_cells(Inputs(truths, gts, found, dts, params, done.settings))
        except _ODD:
            return [
                self.evaluateImg(image, category, area_range, params.maxDets[-1])
                for category in (params.catIds if params.useCats else [-1])
                for area_range in params.areaRng
                for image in params.imgIds
            ]


def _truths_of(source: Any, selection: Selection) -> Truths:
    held = getattr(source, "_arrays", None)
    if not isinstance(held, CocoTruths):
        return _truths_of_records(source, selection)
    truths = select_truths(held.truths, held.image_ids, held.category_ids, selection)
    if held.by_id is not None and truths is not held.truths:
        raise ValueError("ids that repeat are looked up among those of the selection")
    return truths, None


def _truths_of_records(source: Any, selection: Selection) -> tuple[FlatTruths, Sequence[Record]]:
    records = _records(source, selection)
    truths, kept = truths_of_records(records, selection)
    return truths, [records[index] for index in kept.tolist()]


def _detections_of(source: Any, selection: Selection, settings: CocoSettings) -> Detections:
    held = getattr(source, "_arrays", None)
    if not isinstance(held, Found):
        return _detections_of_records(source, selection, settings)
    return select_detections(held, selection, settings.area_ranges.values()), None


def _detections_of_records(
    source: Any, selection: Selection, settings: CocoSettings
) -> tuple[FlatDetections, Sequence[Record]]:
    records = _records(source, selection)
    found, kept = detections_of_records(records, selection, settings.area_ranges.values())
    return found, [records[index] for index in kept.tolist()]


def _records(source: Any, selection: Selection) -> list[Record]:
    """The records of the images; of all categories, for pycocotools is slow to leave some out."""
    records: list[Record] = source.loadAnns(source.getAnnIds(imgIds=selection.images))
    return records


def _same_work(p: Params, evaluated: Params) -> bool:
    """Whether the parameters are those of the evaluation, but for the levels of recall."""
    names = ["imgIds", "iouThrs", "maxDets", "useCats", *(["catIds"] if evaluated.useCats else [])]
    if [tuple(each) for each in p.areaRng] != [tuple(each) for each in evaluated.areaRng]:
        return False
    pairs = ((getattr(p, name), getattr(evaluated, name)) for name in names)
    return all(np.array_equal(mine, theirs) for mine, theirs in pairs)


def _say(text: str) -> None:
    print(text)  # noqa: T201  what pycocotools prints
