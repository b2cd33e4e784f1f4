"""Where numbers go while training: metrics.jsonl and TensorBoard."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from detkit.files import write_atomically


class RunLog:
    """Appends a line for each record to `metrics.jsonl` and its numbers to TensorBoard.

    Args:
        folder: of the run.
        resume_step: when a run goes on from this step, what was written after it is taken back,
            so that the log reads as if nothing had happened; 0 starts a new log.
    """

    def __init__(self, folder: Path, *, resume_step: int) -> None:
        self.path = folder / "metrics.jsonl"
        write_atomically(self.path, "".join(_lines_until(self.path, resume_step)))
        self._file = self.path.open("a", encoding="utf-8")
        # Ctrl-C inside the queue's lock can make the board's thread miss the call to end: close()
        # then waits until it looks again, by default after two minutes
        self._board = SummaryWriter(str(folder), purge_step=resume_step + 1, flush_secs=5)

    def write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Add one record, e.g. `write("step", 120, {"loss/rpn/box": 0.1})`."""
        self._file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
        self._file.flush()  # a killed run must show how far it came
        for name, value in values.items():
            if isinstance(value, (int, float)):
                self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close both."""
        self._file.close()
        self._board.close()


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
