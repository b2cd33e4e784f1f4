"""Faults of training, each provoked for real: what happened, and what was lost.

    python benchmarks/faults.py                     # every fault, and 50 times kill -9
    python benchmarks/faults.py --kills 5 --only kill

Each ends a small training (tools/train.py, four epochs of three steps, in a process of its own).
Then the fault is mended, the run goes on with --resume, and what it ends with is compared, to the
last bit, with a training to which nothing happened.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import resource
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any
from unittest.mock import patch

import cv2
import numpy as np
import torch
import yaml

from detkit.engine import train as training  # also what the server of processes imports once
from detkit.engine.checkpoint import read_checkpoint

ROOT = Path(__file__).resolve().parent.parent
STEPS = 12
SAVE_EVERY = 2
Act = Callable[[Any], None]  # takes the state of training


# ------------------------------------------------------------------------------------ a training


def prepare(place: Path) -> None:
    """Nine pictures of rectangles and a recipe, all below `place`."""
    source = {"format": "coco", "annotations": "data/truths.json", "images": "data"}
    recipe = {
        "name": "tiny",
        "data": {
            "train": source,
            "val": source,
            "resize": {"shortest": None, "longest": 64},
            "workers": 0,
        },
        "model": {
            "backbone": {"name": "resnet18", "width": 8, "out_indices": [2, 3]},
            "fpn": {"channels": 16, "extra": None},
            "rpn": {"anchor_sizes": [[12], [24]], "post_nms_train": 40, "post_nms_test": 20},
            "roi": {"hidden": 16, "samples": 16},
        },
        "train": {
            "epochs": 4,
            "batch_size": 3,
            "optimizer": {"name": "adamw", "lr": 3e-3},
            "schedule": {"name": "cosine", "warmup_steps": 2},
            "ema": {"decay": 0.9, "warmup_steps": 5},
            "save_every": SAVE_EVERY,
            "amp": "off",
            "log_every": 1,
        },
    }
    rng = np.random.default_rng(0)
    images, annotations = [], []
    (place / "data").mkdir(parents=True)
    for index in range(9):
        picture = rng.integers(90, 150, (64, 64, 3), dtype=np.uint8)
        x, y, w, h = rng.integers(10, 30, 4).tolist()
        picture[y : y + h, x : x + w] = 220
        cv2.imwrite(str(place / "data" / f"{index}.png"), picture)
        images.append({"id": index, "file_name": f"{index}.png", "width": 64, "height": 64})
        box = {"id": index + 1, "image_id": index, "category_id": 1, "bbox": [x, y, w, h]}
        annotations.append({**box, "area": w * h, "iscrowd": 0})
    categories = [{"id": 1, "name": "rectangle"}]
    truths = {"images": images, "annotations": annotations, "categories": categories}
    (place / "data" / "truths.json").write_text(json.dumps(truths), encoding="utf-8")
    (place / "tiny.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")


def command(place: Path, arguments: list[str], act: Act | None, step: int) -> None:
    """Be tools/train.py, in which something happens just before a step; never returns."""
    os.chdir(place)
    out = os.open("stderr", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    os.dup2(out, 1)
    os.dup2(out, 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    multiprocessing.set_start_method("fork", force=True)  # of the workers, as it is by default
    torch.set_num_threads(1)
    original = training.train_step

    def acting(model: Any, state: Any, *args: Any, **kwargs: Any) -> Any:
        if act is not None and state.step + 1 == step:
            act(state)
        return original(model, state, *args, **kwargs)

    with patch.object(training, "train_step", acting):
        sys.argv = ["tools/train.py", *arguments]
        runpy.run_path(str(ROOT / "tools" / "train.py"), run_name="__main__")


@contextlib.contextmanager
def server() -> Iterator[ForkServerContext]:
    """Starts processes that have torch imported already."""
    here = Path(__file__).resolve().parent
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(map(str, (here, ROOT)))
    sys.path.insert(0, str(here))
    try:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["faults"])
        yield context
    finally:
        sys.path.remove(str(here))
        os.environ.pop("PYTHONPATH")
        if before is not None:
            os.environ["PYTHONPATH"] = before


@dataclass
class Trainer:
    """Runs trainings in one folder.

    Attributes:
        context: to start processes with.
        place: the folder with data and recipe, in which all paths begin.
    """

    context: ForkServerContext
    place: Path

    @property
    def run(self) -> Path:
        """The folder of the run."""
        return self.place / "runs" / "tiny"

    def start(self, *arguments: str, act: Act | None = None, step: int = 0) -> ForkServerProcess:
        """Begin, or with `--resume` go on."""
        import faults  # by this name the server knows it, also where it is __main__ here

        words = ["tiny.yaml", "--device", "cpu", "--out", "runs", *arguments]
        process = self.context.Process(target=faults.command, args=(self.place, words, act, step))
        process.start()
        return process

    def finish(self, *arguments: str, **happening: Any) -> tuple[int, list[str]]:
        """Run to the end: the exit code, and the lines on the screen without progress bars."""
        process = self.start(*arguments, **happening)
        process.join(300)
        assert process.exitcode is not None
        written = (self.place / "stderr").read_text(encoding="utf-8", errors="replace")
        lines = [part.rpartition("\r")[2].rstrip() for part in written.split("\n")]
        return process.exitcode, [line for line in lines if line and "it/s" not in line]

    def done(self) -> int:
        """Steps that the log knows."""
        path = self.run / "metrics.jsonl"
        steps = [0]
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
            with contextlib.suppress(json.JSONDecodeError):  # cut off
                steps.append(json.loads(line)["step"])
        return steps[-1]

    def kept(self) -> int:
        """Steps that the checkpoint holds; it must be readable."""
        path = self.run / "last.pt"
        return int(read_checkpoint(path)["training"]["step"]) if path.exists() else 0

    def result(self) -> dict[str, Any]:
        """What a finished training ends with, but for times and settings that change nothing."""
        content = read_checkpoint(self.run / "last.pt")
        return {key: content[key] for key in ("model", "epoch", "metrics", "training")}


def same(one: Any, other: Any) -> bool:
    """Whether two trees of plain values and tensors are equal to the last bit."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


# ------------------------------------------------------------------------------ what can happen


def send(state: object, *, number: int, times: int = 1) -> None:
    """A signal to the training itself."""
    for _ in range(times):
        os.kill(os.getpid(), number)


def kill_worker(state: object) -> None:
    """As the system does where memory is short."""
    multiprocessing.active_children()[0].kill()


def vanish(state: object, *, path: str) -> None:
    """A file or folder is moved away."""
    os.rename(path, f"{path}.gone")


def remove_folder(state: object, *, path: str) -> None:
    """A folder is deleted."""
    shutil.rmtree(path)


def fill_disk(state: object, *, folder: str) -> None:
    """Not a byte is left."""
    with contextlib.suppress(OSError), open(f"{folder}/filler", "wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def limit_files(state: object, *, size: int) -> None:
    """No file may grow larger, as under a quota."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def diverge(state: Any) -> None:
    """A weight is no number any more."""
    next(state.detector.parameters()).data.fill_(float("nan"))


def cut(path: Path) -> None:
    """Half of a file is missing."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    """All of it is missing."""
    path.write_bytes(b"")


def other_file(path: Path) -> None:
    """A picture bears its name."""
    shutil.copy(path.parents[2] / "data" / "0.png", path)


def flip_bit(path: Path) -> None:
    """One bit in the middle, among the weights, is another."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def other_version(path: Path) -> None:
    """Written by a detkit of the future."""
    content = torch.load(path, weights_only=True)
    torch.save({**content, "format": 99}, path)


@dataclass(frozen=True)
class Fault:
    """One way in which training ends.

    Attributes:
        name: of the fault.
        how: it is provoked.
        act: what happens in the training process before a step; None: nothing.
        step: before which.
        arguments: of the command.
        damage: what happens to the `last.pt` of an interrupted run before it goes on.
        disk: size of a file system of its own for the run (needs the right to mount), MiB.
        read_only: nobody may write to the folder of runs.
        also: what was lost beside steps.
        code: the exit code to expect; 0 where training goes on.
        line: what the last line must have.
        lost: steps that were complete and have to be done again.
    """

    name: str
    how: str
    code: int
    line: str
    act: Act | None = None
    step: int = 5
    arguments: tuple[str, ...] = ()
    damage: Callable[[Path], None] | None = None
    disk: int = 0
    read_only: bool = False
    lost: int = 0
    also: str = ""


MENDED_BY_COPY = "nothing with a copy of it, without one all but the weights of best.pt"

FAULTS = (
    Fault(
        "Ctrl-C", "SIGINT in step 5", 130, "interrupted; go on with --resume runs/tiny",
        partial(send, number=signal.SIGINT),
    ),
    Fault(
        "SIGTERM", "SIGTERM in step 5", 143, "terminated; go on with --resume runs/tiny",
        partial(send, number=signal.SIGTERM),
    ),
    Fault(
        "Ctrl-C twice", "SIGINT twice in step 6", 130, "interrupted; go on with --resume runs/tiny",
        partial(send, number=signal.SIGINT, times=2), step=6, lost=1,
    ),
    Fault(
        "a data worker dies", "SIGKILL to the worker in step 5", 1,
        "error: a process that reads pictures has died (DataLoader worker",
        kill_worker, arguments=("data.workers=1",),
    ),
    Fault(
        "a picture vanishes", "moved away in step 5", 2,
        "cannot read image data/3.png: No such file or directory",
        partial(vanish, path="data/3.png"),
    ),
    Fault(
        "loss is NaN", "weights are NaN in step 6", 1, "in step 6, image ids",
        diverge, step=6, lost=1,
    ),
    Fault(
        "disk full", "a disk of 8 MiB is filled in step 5", 2, "No space left on device",
        partial(fill_disk, folder="runs"), disk=8, lost=2,
    ),
    Fault(
        "quota", "RLIMIT_FSIZE below the checkpoint's size in step 5", 2,
        "runs/tiny/last.pt: File too large", partial(limit_files, size=100_000), lost=2,
    ),
    Fault(
        "read-only folder", "no right to write in it", 2,
        "cannot write runs/tiny/last.pt: no permission to write in", read_only=True,
    ),
    Fault(
        "folder deleted", "the run's folder is deleted in step 5", 0, "trained in",
        partial(remove_folder, path="runs/tiny"), also="the log up to there",
    ),
    *(
        Fault(
            f"checkpoint {name}", f"last.pt of step 5: {how}", 2, line,
            damage=damage, also=MENDED_BY_COPY,
        )
        for name, how, line, damage in (
            ("cut", "second half gone", "last.pt is damaged or no checkpoint (", cut),
            ("empty", "0 bytes", "last.pt is damaged or no checkpoint (", empty),
            ("with a wrong bit", "one bit flipped", "is damaged (wrong checksum of ", flip_bit),
            ("is another file", "a PNG", "last.pt is damaged or no checkpoint (", other_file),
            ("of another version", "format 99", "has checkpoint format 99, this", other_version),
        )
    ),
)  # fmt: skip


# ------------------------------------------------------------------------------------ and does


@dataclass(frozen=True)
class Outcome:
    """What a fault did.

    Attributes:
        code: exit code of the command.
        lines: what it wrote on the screen.
        lost: complete steps that have to be done again.
        same: whether the mended run ended as if nothing had happened.
    """

    code: int
    lines: list[str] = field(repr=False)
    lost: int
    same: bool


def provoke(fault: Fault, trainer: Trainer, expected: dict[str, Any]) -> Outcome:
    """Let it happen, mend it, go on.

    Args:
        fault: what is to happen.
        trainer: in a new place.
        expected: the result of a training to which nothing happened.

    Raises:
        PermissionError: a disk of its own cannot be mounted here.
    """
    trainer.place.mkdir(exist_ok=True, parents=True)
    prepare(trainer.place)
    with _disk(trainer, fault.disk or (8 if fault.read_only and os.geteuid() == 0 else 0)):
        return _provoked(fault, trainer, expected)


def _provoked(fault: Fault, trainer: Trainer, expected: dict[str, Any]) -> Outcome:
    whole = trainer.place / "whole.pt"
    if fault.damage is not None:
        trainer.finish(act=partial(send, number=signal.SIGTERM), step=fault.step)
        shutil.copy(trainer.run / "last.pt", whole)
        fault.damage(trainer.run / "last.pt")
    if fault.read_only:
        _allow_writing(trainer, False)
    again = ("--resume", "auto")
    words = (*fault.arguments, *(again if fault.damage else ()))
    code, lines = trainer.finish(*words, act=fault.act, step=fault.step)
    if fault.read_only:
        _allow_writing(trainer, True)
    if fault.damage is not None:  # nothing but a copy helps
        shutil.copy(whole, trainer.run / "last.pt")
    lost = trainer.done() - trainer.kept()
    for gone in (trainer.place / "data").glob("*.gone"):
        gone.rename(gone.with_suffix(""))
    (trainer.place / "runs" / "filler").unlink(missing_ok=True)
    trainer.finish(*again)
    return Outcome(code, lines, lost, same(expected, trainer.result()))


@contextlib.contextmanager
def _disk(trainer: Trainer, size: int) -> Iterator[None]:
    if not size:
        yield
        return
    folder = trainer.place / "runs"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}m", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PermissionError(done.stderr.strip())
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def _allow_writing(trainer: Trainer, allowed: bool) -> None:
    """To the folder of runs; to root, who may write anywhere, by its file system."""
    folder = trainer.place / "runs"
    if os.geteuid() == 0:
        way = f"remount,{'rw' if allowed else 'ro'}"
        subprocess.run(["mount", "-o", way, str(folder)], check=True, capture_output=True)
        return
    folder.mkdir(exist_ok=True)
    folder.chmod(0o755 if allowed else 0o555)


def kill_at_random(trainer: Trainer, kills: int, expected: dict[str, Any]) -> Outcome:
    """`kill -9` at moments of chance, from the start of the command to its end.

    Raises:
        RuntimeError: a checkpoint is behind one before, or a run ended by an error of its own.
    """
    trainer.place.mkdir(exist_ok=True, parents=True)
    prepare(trainer.place)
    start = time.perf_counter()
    trainer.finish()
    duration = time.perf_counter() - start
    shutil.rmtree(trainer.run)
    rng, lost, before = random.Random(0), 0, 0
    for _ in range(kills):
        if before == STEPS:  # finished between two kills: another run
            shutil.rmtree(trainer.run)
            before = 0
        process = trainer.start("--resume", "auto")
        process.join(rng.uniform(0, duration))
        process.kill()
        process.join()
        if process.exitcode not in (-signal.SIGKILL, 0) or trainer.kept() < before:
            raise RuntimeError(f"exit {process.exitcode}, {trainer.kept()} steps after {before}")
        before, lost = trainer.kept(), max(lost, trainer.done() - trainer.kept())
    trainer.finish("--resume", "auto")
    return Outcome(-signal.SIGKILL, [], lost, same(expected, trainer.result()))


def straight(trainer: Trainer) -> dict[str, Any]:
    """The result of a training to which nothing happens.

    Raises:
        RuntimeError: something did.
    """
    trainer.place.mkdir(exist_ok=True, parents=True)
    prepare(trainer.place)
    code, lines = trainer.finish()
    if code:
        raise RuntimeError("; ".join(lines[-3:]))
    return trainer.result()


def _row(name: str, how: str, outcome: Outcome, also: str = "") -> str:
    ended = f"exit {outcome.code}: {outcome.lines[-1]}" if outcome.lines else "gone"
    lost = ", ".join(filter(None, (f"{outcome.lost} steps" if outcome.lost else "", also)))
    result = "mended, the same bits in the end" if outcome.same else "another result"
    return f"| {name} | {how} | {ended} | {lost or 'nothing'}; {result} |"


def main() -> None:
    """Read the command line and print the table."""
    parser = argparse.ArgumentParser(description="Faults of training, provoked for real.")
    parser.add_argument("--kills", type=int, default=50, help="times of kill -9 (default: 50)")
    parser.add_argument("--only", default="", help="faults whose names have this in them")
    options = parser.parse_args()
    print("| fault | how provoked | what happened | what was lost |")
    print("|---|---|---|---|", flush=True)
    with server() as context, tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        expected = straight(Trainer(context, Path(folder, "straight")))
        for number, fault in enumerate(FAULTS):
            if options.only in fault.name:
                trainer = Trainer(context, Path(folder, str(number)))
                try:
                    outcome = provoke(fault, trainer, expected)
                except PermissionError as error:
                    print(f"| {fault.name} | {fault.how} | not provoked: {error} | |")
                    continue
                print(_row(fault.name, fault.how, outcome, fault.also), flush=True)
        if options.only in "kill -9":
            outcome = kill_at_random(Trainer(context, Path(folder, "k")), options.kills, expected)
            print(_row("kill -9", f"{options.kills} times, at moments of chance", outcome))


if __name__ == "__main__":
    main()
