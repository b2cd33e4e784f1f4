"""Faults in the midst of training: one clear line, nothing lost that was kept, and it goes on.

What happens is described in benchmarks/faults.py; here each is held to what it says.
"""

from __future__ import annotations

import errno
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pytest
import torch

if sys.platform == "win32":
    pytest.skip("its faults are others", allow_module_level=True)

from detkit.config import Recipe
from detkit.engine import train as training
from detkit.engine.checkpoint import load_checkpoint
from detkit.engine.log import RunLog
from detkit.files import open_atomically

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "faults.py"


def _load() -> Any:
    spec = importlib.util.spec_from_file_location("faults", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["faults"] = module  # the name by which its processes know it
    spec.loader.exec_module(module)
    return module


faults = _load()


@pytest.fixture(scope="module")
def context() -> Iterator[Any]:
    with faults.server() as found:
        yield found


@pytest.fixture(scope="module")
def expected(context: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return faults.straight(faults.Trainer(context, tmp_path_factory.mktemp("straight")))


# Of the damaged checkpoints one: test_checkpoint.py has all of them
CHOSEN = [each for each in faults.FAULTS if each.damage in (None, faults.flip_bit)]


@pytest.mark.parametrize("fault", CHOSEN, ids=lambda fault: fault.name)
def test_fault(fault: Any, context: Any, expected: Any, tmp_path: Path) -> None:
    trainer = faults.Trainer(context, tmp_path / "place")
    try:
        outcome = faults.provoke(fault, trainer, expected)
    except PermissionError as error:
        pytest.skip(f"no right to mount: {error}")
    assert outcome.code == fault.code, outcome.lines
    assert fault.line in outcome.lines[-1]
    assert not any("Traceback" in line for line in outcome.lines)
    assert outcome.lost == fault.lost
    assert outcome.same


def test_kill_at_random_moments_with_savings_within_an_epoch(
    context: Any, expected: Any, tmp_path: Path
) -> None:
    outcome = faults.kill_at_random(faults.Trainer(context, tmp_path / "place"), 5, expected)
    assert outcome.lost <= faults.SAVE_EVERY
    assert outcome.same


# ----------------------------------------------------------------------------- full at any moment


@pytest.mark.parametrize("place", ["write", "fsync", "replace"])
def test_full_disk_leaves_the_old_file(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of whatever call: the old content, its name in the message, nothing beside it."""
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if place != "write":
        monkeypatch.setattr(os, place, full)
    with pytest.raises(OSError, match="No space left on device") as caught:  # noqa: SIM117
        with open_atomically(path) as handle:
            handle.write(b"new")
            if place == "write":
                full()
    assert caught.value.filename == str(path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


class FullAfter:
    """A file that takes so many writes and no more."""

    def __init__(self, handle: IO[bytes], writes: int) -> None:
        self.handle, self.left = handle, writes

    def write(self, data: bytes) -> int:
        self.left -= 1
        if self.left < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self.handle.write(data)

    def flush(self) -> None:
        self.handle.flush()


@pytest.mark.parametrize("writes", [0, 1, 2, 7, 30])
def test_full_disk_within_a_checkpoint(writes: int, tmp_path: Path) -> None:
    """torch's archive ends with an error of its own, which is not what the user has to know."""
    path = tmp_path / "last.pt"
    content = {str(i): torch.ones(100) for i in range(20)}
    with pytest.raises(OSError, match="No space left on device") as caught:  # noqa: SIM117
        with open_atomically(path) as handle:
            torch.save(content, FullAfter(handle, writes))  # type: ignore[arg-type]
    assert caught.value.filename == str(path)
    assert list(tmp_path.iterdir()) == []


def test_what_the_caller_is_saving_after_is_not_an_error_of_writing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="worker is killed"):
        try:
            raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")
        except ConnectionResetError:
            with open_atomically(tmp_path / "last.pt"):
                raise RuntimeError("worker is killed") from None


def test_other_errors_of_the_block_stay(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught, open_atomically(tmp_path / "file"):
        (tmp_path / "not there").read_bytes()
    assert caught.value.filename == str(tmp_path / "not there")
    with pytest.raises(RuntimeError, match="mine"), open_atomically(tmp_path / "file"):
        raise RuntimeError("mine")


def test_the_log_begins_anew_where_it_was_deleted(tmp_path: Path) -> None:
    log = RunLog(tmp_path, resume_step=0)
    log.write("step", 1, {"loss": 1.0})
    for path in tmp_path.iterdir():
        path.unlink()
    log.write("step", 2, {"loss": 0.5})
    log.close()
    text = (tmp_path / "metrics.jsonl").read_text()
    assert text == '{"kind": "step", "step": 2, "loss": 0.5}\n'


# -------------------------------------------------------------------------------- spoilt weights


def test_weights_that_are_not_finite_are_not_saved(
    tiny_recipe: Callable[..., Recipe],
    run: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """The last step of an epoch spoils them, and no loss has shown it yet."""
    original = training.train_step

    def spoiling(model: Any, state: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(model, state, *args, **kwargs)
        if state.step == 5:
            state.detector.roi.head.fc6.weight.data[0, 0] = float("inf")
        return result

    monkeypatch.setattr(training, "train_step", spoiling)
    with pytest.raises(FloatingPointError) as caught:
        run(tiny_recipe("data.val=null"), tmp_path)
    message = str(caught.value)
    assert message.startswith("1 weights are not finite after step 6 (the first: roi.head.fc6.w")
    assert load_checkpoint(tmp_path / "last.pt").epoch == 1
