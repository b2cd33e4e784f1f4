"""Where numbers go while training: metrics.jsonl and TensorBoard; and what a step costs."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter

from detkit.files import write_atomically

logger = logging.getLogger(__name__)

try:
    import resource
except ImportError:  # Windows has none
    resource = None  # type: ignore[assignment]


class RunLog:
    """Appends a line for each record to `metrics.jsonl` and its numbers to TensorBoard.

    Args:
        folder: of the run; None: another process writes, and this log takes in nothing.
        resume_step: when a run goes on from this step, what was written after it is taken back,
            so that the log reads as if nothing had happened; 0 starts a new log.
    """

    def __init__(self, folder: Path | None, *, resume_step: int) -> None:
        self.silent = folder is None
        self._named: set[str] = set()  # files that a warning has named
        if folder is None:
            return
        self.path = folder / "metrics.jsonl"
        self._hook = threading.excepthook
        self._open(resume_step)

    def _open(self, resume_step: int) -> None:
        write_atomically(self.path, "".join(_lines_until(self.path, resume_step)))
        self._file = self.path.open("a", encoding="utf-8")
        threading.excepthook = partial(_report_thread, self._hook)
        # Ctrl-C inside the queue's lock can make the board's thread miss the call to end: close()
        # then waits until it looks again, by default after two minutes
        self._board = SummaryWriter(str(self.path.parent), purge_step=resume_step + 1, flush_secs=5)

    def write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Add one record, e.g. `write("step", 120, {"loss/rpn/box": 0.1})`.

        Raises:
            OSError: it cannot be written, e.g. because the disk is full.
        """
        if self.silent:
            return
        if not self.path.exists():  # a file that is deleted takes in lines that nobody will see
            logger.warning("%s was deleted; a new one begins with step %d", self.path, step)
            self.close()
            self._open(step)
        try:
            self._file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
            self._file.flush()  # a killed run must show how far it came
            for name, value in values.items():
                if isinstance(value, (int, float)):
                    self._board.add_scalar(name, value, step)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error

    def write_skipped(self, step: int, files: Sequence[str]) -> None:
        """Record pictures that could not be read; a warning names each file once.

        Of several processes each warns of its own, and the log holds those of the main one: to
        gather them would make every step wait for the slowest.
        """
        for file in dict.fromkeys(files):
            if file not in self._named:
                logger.warning("%s cannot be read: another picture takes its place", file)
                self._named.add(file)
        if files:
            self.write("skipped", step, {"pictures_skipped": len(files), "files": list(files)})

    def close(self) -> None:
        """Flush and close both."""
        if self.silent:
            return
        for each in (self._file, self._board):
            with contextlib.suppress(OSError):  # of what `write` has complained about before
                each.close()
        threading.excepthook = self._hook


def _report_thread(report: Callable[[Any], Any], arguments: threading.ExceptHookArgs) -> None:
    """Leave out the traceback of the board's thread: the next `write` raises its error."""
    ours = type(arguments.thread).__name__ == "_AsyncWriterThread"
    if not (ours and isinstance(arguments.exc_value, OSError)):
        report(arguments)


class StepMeter:
    """Time, throughput and memory of the steps since they were last read.

    Args:
        device: whose memory counts; on a CPU that of this process.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._mark = time.perf_counter()  # since when data is waited for
        self._start()

    def _start(self) -> None:
        self._begin, self._waited, self._steps, self._images = self._mark, 0.0, 0, 0

    def data_came(self) -> None:
        """A batch has arrived."""
        self._waited += time.perf_counter() - self._mark

    def step_done(self, images: int) -> None:
        """A step on so many images is complete; the wait for the next batch begins."""
        self._mark = time.perf_counter()
        self._steps += 1
        self._images += images

    def read(self) -> dict[str, float]:
        """Means over the steps, and start anew.

        Returns:
            `time/step` and `time/data` (of it waiting for data) in seconds, `time/data_share` of
            the latter in 0..1, `time/images_per_second` of this process, and `memory_mib`, the
            highest so far, where the system tells.
        """
        spent, steps = self._mark - self._begin, max(self._steps, 1)
        record = {
            "time/step": spent / steps,
            "time/data": self._waited / steps,
            "time/data_share": self._waited / max(spent, 1e-9),
            "time/images_per_second": self._images / max(spent, 1e-9),
        }
        if (peak := _peak_memory(self.device)) is not None:
            record["memory_mib"] = peak / 2**20
        self._start()
        return record


def _peak_memory(device: torch.device) -> int | None:
    """Bytes: of the GPU's tensors, or of this process; None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if resource is None:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # bytes there, kilobytes elsewhere


def _lines_until(path: Path, step: int) -> list[str]:
    """The lines of a log up to a step; a last line that a kill cut off is dropped, or ended."""
    if step == 0 or not path.is_file():
        return []
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if record["step"] <= step:
            kept.append(f"{line}\n")
    return kept
