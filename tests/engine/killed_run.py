"""Training that kills its own process at a chosen point of the third epoch (see test_kill.py)."""

from __future__ import annotations

import io
import os
import signal
from pathlib import Path
from typing import IO, Any, NoReturn

import torch

from detkit.config import Recipe
from detkit.engine import state as states
from detkit.engine import train as training
from detkit.engine.checkpoint import Checkpoint
from detkit.engine.log import RunLog

save_checkpoint, save, write = states.save_checkpoint, torch.save, RunLog.write


def die(*_: Any) -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("alive")


def save_half(content: object, handle: IO[bytes]) -> None:
    buffer = io.BytesIO()
    save(content, buffer)
    handle.write(buffer.getvalue()[: buffer.tell() // 2])
    handle.flush()
    die()


def train_and_die(point: str, recipe: Recipe, folder: Path, threads: int) -> None:
    """Train and be gone at a point: write, rename, between, after (a save) or log (a line)."""
    torch.set_num_threads(threads)

    def dying_save(path: Path, checkpoint: Checkpoint) -> None:
        if path.name == "last.pt" and checkpoint.epoch == 3:
            if point == "between":
                die()
            elif point == "write":
                torch.save = save_half
            elif point == "rename":
                os.replace = die
        save_checkpoint(path, checkpoint)
        if path.name == "last.pt" and checkpoint.epoch == 3 and point == "after":
            die()

    def dying_write(log: RunLog, kind: str, step: int, values: dict[str, Any]) -> None:
        if point == "log" and step == 8:
            log._file.write('{"kind": "step", "st')
            log._file.flush()
            die()
        write(log, kind, step, values)

    states.save_checkpoint = dying_save
    RunLog.write = dying_write  # type: ignore[method-assign]
    training.train(recipe, folder=folder, device=torch.device("cpu"))


def train_quietly(recipe: Recipe, folder: Path, resume: bool) -> None:
    torch.set_num_threads(1)
    training.train(recipe, folder=folder, device=torch.device("cpu"), resume=resume)
