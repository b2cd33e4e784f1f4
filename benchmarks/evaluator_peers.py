"""One measurement of one evaluator in a process of its own; `evaluator.py` starts these.

The seconds are those of the processor since the process began, so that other load on the machine
counts less. Nothing but the standard library is imported here, so that the first run holds what a
user's command would: the start of Python, the imports of the evaluator, the files, the numbers.

Modes. `files`: from two JSON files to the 12 numbers. `memory`: the ground truth is loaded, the
detections are an array `[N, 7]` of image id, x, y, w, h, score, category id. `import`: nothing is
measured, but Python's byte code is there from then on.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

WARM_RUNS = 3  # after the first one
PATIENCE = 20.0  # seconds: no further warm run after these


class Outcome(NamedTuple):
    """What a run gives.

    Attributes:
        stats: the 12 numbers; NaN where an evaluator does not offer one.
        core: seconds of evaluate + accumulate, None where they cannot be told apart.
        arrays: returns precision, recall and scores; None where they are not offered.
    """

    stats: list[float]
    core: float | None
    arrays: Callable[[], dict[str, Any]] | None


class DropIn:
    """An evaluator with the interface of pycocotools.

    Args:
        data: module of the class COCO.
        judge: module of the class that evaluates; default the same.
        name: of that class.
    """

    def __init__(self, data: str, judge: str = "", name: str = "COCOeval") -> None:
        self.coco = import_module(data).COCO
        self.cocoeval = getattr(import_module(judge or data), name)

    def files(self, folder: Path) -> Outcome:
        """From two files to the 12 numbers."""
        truths = self.coco(str(folder / "gt.json"))
        return self._judge(truths, truths.loadRes(str(folder / "dt.json")))

    def prepare(self, folder: Path) -> None:
        """Load what `memory` starts from."""
        self.truths = self.coco(str(folder / "gt.json"))
        self.rows = _rows(folder)

    def memory(self) -> Outcome:
        """From what is loaded to the 12 numbers."""
        return self._judge(self.truths, self.truths.loadRes(self.rows))

    def _judge(self, truths: Any, found: Any) -> Outcome:
        judge = self.cocoeval(truths, found, "bbox")
        start = time.process_time()
        judge.evaluate()
        judge.accumulate()
        arrays = {key: judge.eval[key] for key in ("precision", "recall", "scores")}
        core = time.process_time() - start
        judge.summarize()
        return Outcome([float(value) for value in judge.stats], core, lambda: arrays)


class Detkit:
    """Files as `tools/evaluate.py` reads them, arrays through the drop-in."""

    def files(self, folder: Path) -> Outcome:
        """From two files to the 12 numbers."""
        from detkit.evaluation import evaluate_files

        result = evaluate_files(folder / "gt.json", folder / "dt.json")

        def arrays() -> dict[str, Any]:
            return {key: getattr(result, key) for key in ("precision", "recall", "scores")}

        return Outcome([float(value) for value in result.stats], None, arrays)

    def prepare(self, folder: Path) -> None:
        """Load what `memory` starts from."""
        self.drop_in = DropIn("detkit.evaluation.compat")
        self.drop_in.prepare(folder)

    def memory(self) -> Outcome:
        """From what is loaded to the 12 numbers."""
        return self.drop_in.memory()

    def note(self) -> str:
        """Which of its two halves ran."""
        from detkit.evaluation.backend import backend

        return str(backend())


class Vernier:
    """vernier's own interface; its drop-in still reads with pycocotools."""

    def __init__(self) -> None:
        from vernier.instance import Bbox, CocoDataset, Evaluator

        self.dataset = CocoDataset
        self.evaluator = Evaluator(iou=Bbox(), parity_mode="strict")

    def files(self, folder: Path) -> Outcome:
        """From two files to the 12 numbers."""
        truths = self.dataset.from_json((folder / "gt.json").read_bytes())
        return self._judge(truths, (folder / "dt.json").read_bytes())

    def prepare(self, folder: Path) -> None:
        """Load what `memory` starts from."""
        self.truths = self.dataset.from_json((folder / "gt.json").read_bytes())
        self.rows = _rows(folder)

    def memory(self) -> Outcome:
        """From what is loaded to the 12 numbers."""
        batches = [
            {"image_id": image, "boxes": boxes.copy(), "scores": scores, "labels": labels}
            for image, boxes, scores, labels in _by_image(self.rows)
        ]
        return self._judge(self.truths, batches)

    def _judge(self, truths: Any, found: Any) -> Outcome:
        summary = self.evaluator.evaluate(truths, found, num_threads=1)

        def arrays() -> dict[str, Any]:
            from vernier._core import evaluate_bbox_grid

            grid = evaluate_bbox_grid(
                truths,
                found,
                parity_mode="strict",
                max_dets_per_image=100,
                use_cats=True,
                num_threads=1,
            )
            curves = grid.accumulate([1, 10, 100])
            return {key: getattr(curves, key) for key in ("precision", "recall", "scores")}

        return Outcome(list(summary.stats), None, arrays)


class Torchmetrics:
    """Takes tensors, image by image; has no files."""

    def prepare(self, folder: Path) -> None:
        """Load what `memory` starts from."""
        import torch
        from torchmetrics.detection import MeanAveragePrecision

        torch.set_num_threads(1)
        self.make = lambda: MeanAveragePrecision("xywh", "bbox", backend="pycocotools")
        self.batches = []
        for boxes, scores, labels, truths in _pairs(folder):
            found = {"boxes": boxes, "scores": scores, "labels": labels}
            found, truths = (
                {key: torch.from_numpy(value) for key, value in record.items()}
                for record in (found, truths)
            )
            self.batches.append(([found], [truths]))

    def memory(self) -> Outcome:
        """From what is loaded to the 12 numbers."""
        metric = self.make()
        for found, truths in self.batches:
            metric.update(found, truths)
        result = metric.compute()
        names = "map map_50 map_75 map_small map_medium map_large mar_1 mar_10 mar_100"
        names += " mar_small mar_medium mar_large"
        return Outcome([float(result[name]) for name in names.split()], None, None)


class Supervision:
    """Takes its own records, image by image; has no files, and no recall in this class."""

    def prepare(self, folder: Path) -> None:
        """Load what `memory` starts from."""
        import supervision
        from supervision.metrics import MeanAveragePrecision

        self.make = MeanAveragePrecision
        self.found, self.truths = [], []
        for boxes, scores, labels, truths in _pairs(folder):
            self.found.append(
                supervision.Detections(_corners(boxes), confidence=scores, class_id=labels)
            )
            self.truths.append(
                supervision.Detections(
                    _corners(truths["boxes"]),
                    class_id=truths["labels"],
                    data={"area": truths["area"], "iscrowd": truths["iscrowd"]},
                )
            )

    def memory(self) -> Outcome:
        """From what is loaded to the 12 numbers."""
        result = self.make().update(self.found, self.truths).compute()
        parts = (result.small_objects, result.medium_objects, result.large_objects)
        stats = [result.map50_95, result.map50, result.map75, *(part.map50_95 for part in parts)]
        return Outcome([float(value) for value in stats] + [float("nan")] * 6, None, None)


def _rows(folder: Path) -> Any:
    import numpy as np

    return np.load(folder / "detections.npy")


def _by_image(rows: Any) -> Any:
    """Image id, boxes, scores and categories of every image that `[N, 7]` has."""
    import numpy as np

    rows = rows[np.argsort(rows[:, 0], kind="stable")]
    images, first = np.unique(rows[:, 0].astype(np.int64), return_index=True)
    for image, part in zip(images.tolist(), np.split(rows, first[1:]), strict=True):
        yield image, part[:, 1:5], part[:, 5].copy(), part[:, 6].astype(np.int64)


def _pairs(folder: Path) -> Any:
    """Boxes, scores and labels found in every image, and a record of its truths."""
    import numpy as np

    truths = np.load(folder / "truths.npz")
    image, image_ids = truths["image"], truths["image_ids"]
    order = np.argsort(image_ids[image], kind="stable")
    columns = {
        "boxes": truths["boxes"][order],
        "labels": truths["category_ids"][truths["category"][order]],
        "area": truths["area"][order],
        "iscrowd": truths["crowd"][order].astype(np.int64),
    }
    owners = image_ids[image][order]
    for image_id, boxes, scores, labels in _by_image(_rows(folder)):
        low, high = np.searchsorted(owners, [image_id, image_id + 1])
        yield boxes.copy(), scores, labels, {k: v[low:high] for k, v in columns.items()}


def _corners(boxes: Any) -> Any:
    import numpy as np

    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)


# Name to the distribution that it comes in and what measures it. The first that runs is what the
# others are compared with.
PEERS: dict[str, tuple[str, Callable[[], Any]]] = {
    "pycocotools": ("pycocotools", lambda: DropIn("pycocotools.coco", "pycocotools.cocoeval")),
    "ultrafast": ("ultrafast-pycocotools", lambda: DropIn("ultrafast_pycocotools")),
    "hotcoco": ("hotcoco", lambda: DropIn("hotcoco")),
    "vernier": ("vernier", Vernier),
    "faster-coco-eval": (
        "faster-coco-eval",
        lambda: DropIn("faster_coco_eval", name="COCOeval_faster"),
    ),
    "torchmetrics": ("torchmetrics", Torchmetrics),
    "supervision": ("supervision", Supervision),
    "detkit-numpy": ("", Detkit),
    "detkit": ("", Detkit),
}
ONLY_MEMORY = ("torchmetrics", "supervision")


def measure(name: str, mode: str, folder: Path) -> tuple[dict[str, Any], Outcome]:
    """Run once from the start of the process, then again while it is warm.

    Args:
        name: of the evaluator.
        mode: "files" or "memory".
        folder: of the workload.

    Returns:
        Seconds of the first and of the warm runs, those of evaluate + accumulate alone, the peak of
        the memory after the first run, what the evaluator says of itself; and the last outcome.
    """
    _, make = PEERS[name]
    peer = make()
    before = 0.0
    if mode == "memory":
        peer.prepare(folder)
        before = time.process_time()
    run = (lambda: peer.files(folder)) if mode == "files" else peer.memory
    outcome = run()
    first = time.process_time() - before
    report: dict[str, Any] = {"first": first, "peak": _peak_memory(), "warm": [], "core": []}
    while len(report["warm"]) < WARM_RUNS and first + sum(report["warm"]) < PATIENCE:
        outcome = Outcome([], None, None)  # lets go of the arrays before new ones are made
        gc.collect()
        begin = time.process_time()
        outcome = run()
        report["warm"].append(time.process_time() - begin)
        report["core"].append(outcome.core)
    if not report["warm"]:  # so slow that being warm makes no difference
        report["warm"], report["core"] = [first], [outcome.core]
    note = peer.note() if hasattr(peer, "note") else ""
    return {**report, "stats": outcome.stats, "note": note}, outcome


def _peak_memory() -> int:
    """Bytes; of this process alone, for what getrusage says holds the peak of its parent."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("the kernel does not tell the peak of the memory")


def main() -> None:
    """Measure what the command line names; write the report where it says."""
    name, mode, folder, core, report_path, keep = sys.argv[1:]
    os.sched_setaffinity(0, {int(core)})
    if mode == "import":
        PEERS[name][1]()
        if name.startswith("detkit"):
            import_module("detkit.evaluation")
        return
    report, outcome = measure(name, mode, Path(folder))
    if keep and outcome.arrays is not None:
        import numpy as np

        for key, values in outcome.arrays().items():
            np.save(Path(keep) / f"{key}.npy", values)
    Path(report_path).write_text(json.dumps(report))


if __name__ == "__main__":
    main()
