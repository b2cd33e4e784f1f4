"""Ctrl-C and SIGTERM at any moment: everything is saved, and going on gives the same bits."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from detkit.config import Recipe, load_recipe
from detkit.engine import train as training
from detkit.engine.checkpoint import load_checkpoint
from detkit.engine.stop import StopRequests, stop_requests
from detkit.signals import Terminated

if sys.platform == "win32":
    pytest.skip("no signals to send here", allow_module_level=True)

MakeRecipe = Callable[..., Recipe]
SIGNALS = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: Terminated}


def send_in(
    monkeypatch: pytest.MonkeyPatch, name: str, number: int, *, call: int, times: int = 1
) -> None:
    """Send this process a signal in the middle of a call to a function of training."""
    original, calls = getattr(training, name), 0

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            for _ in range(times):
                os.kill(os.getpid(), number)
        return original(*args, **kwargs)

    monkeypatch.setattr(training, name, counted)


@pytest.mark.parametrize(
    ("number", "place", "call", "epoch", "batch", "step"),
    [
        (signal.SIGTERM, "train_step", 1, 0, 1, 1),
        (signal.SIGINT, "train_step", 5, 1, 2, 5),  # three steps an epoch
        (signal.SIGTERM, "train_step", 6, 1, 3, 6),  # all of the epoch, but not its validation
        (signal.SIGTERM, "evaluate", 2, 1, 3, 6),
        (signal.SIGINT, "_take_in", 2, 2, 0, 6),
    ],
)
def test_going_on_gives_the_same_bits(
    number: int,
    place: str,
    call: int,
    epoch: int,
    batch: int,
    step: int,
    straight: Path,
    tiny_recipe: MakeRecipe,
    run: Callable[..., Path],
    content: Callable[[Path], dict[str, Any]],
    records: Callable[[Path], list[dict[str, Any]]],
    difference: Callable[[Any, Any], str | None],
    tmp_path: Path,
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        send_in(patch, place, number, call=call)
        with pytest.raises(SIGNALS[signal.Signals(number)]):
            run(tiny_recipe(), tmp_path)
    stopped = content(tmp_path / "last.pt")
    place_now = (stopped["epoch"], stopped["training"]["batch"], stopped["training"]["step"])
    assert place_now == (epoch, batch, step)

    torch.manual_seed(12345)  # whatever the new process draws before
    workers = "data.workers=2" if step == 5 else "data.workers=0"  # any number will do
    run(load_recipe(tmp_path / "recipe.yaml", [workers]), tmp_path, resume=True)
    for name in ("last.pt", "best.pt"):
        found, expected = content(tmp_path / name), content(straight / name)
        found["recipe"], expected["recipe"] = {}, {}  # the number of workers
        assert difference(expected, found) is None
    assert difference(records(straight), records(tmp_path)) is None


def test_second_ctrl_c_does_not_wait_and_saves_nothing_torn(
    tiny_recipe: MakeRecipe, run: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        send_in(patch, "train_step", signal.SIGINT, call=5, times=2)
        with pytest.raises(KeyboardInterrupt):
            run(tiny_recipe(), tmp_path)
    last = load_checkpoint(tmp_path / "last.pt")
    assert last.training is not None
    assert (last.epoch, last.training["step"]) == (1, 3)


def test_saving_within_an_epoch(
    straight: Path,
    tiny_recipe: MakeRecipe,
    run: Callable[..., Path],
    content: Callable[[Path], dict[str, Any]],
    difference: Callable[[Any, Any], str | None],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """A fault, which saves nothing, loses the steps since the last saving only."""
    recipe = tiny_recipe("train.save_every=2")
    with pytest.MonkeyPatch.context() as patch:
        original = training._finite

        def infinite(losses: Any, batch: Any, state: Any) -> Any:
            if state.step == 5:
                raise FloatingPointError("loss")
            return original(losses, batch, state)

        patch.setattr(training, "_finite", infinite)
        with pytest.raises(FloatingPointError):
            run(recipe, tmp_path)
    stopped = content(tmp_path / "last.pt")["training"]
    assert (stopped["batch"], stopped["step"]) == (1, 4)
    run(tiny_recipe(), tmp_path, resume=True)  # how often it saves may change
    found, expected = content(tmp_path / "last.pt"), content(straight / "last.pt")
    assert difference(expected, found) is None


def test_handlers_come_back_and_requests_wait_while_held() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with stop_requests() as stop:
        steps = []
        with pytest.raises(Terminated), stop.held():
            os.kill(os.getpid(), signal.SIGTERM)
            steps.append("went on")
        assert steps == ["went on"]
        assert not stop.torn
        with pytest.raises(Terminated):
            os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


def test_what_fails_while_held_is_torn() -> None:
    stop = StopRequests()
    with pytest.raises(ZeroDivisionError), stop.held():
        _ = 1 / 0
    assert stop.torn
