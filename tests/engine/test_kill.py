"""`kill -9` at any moment leaves a checkpoint from which training goes on, to the bit."""

from __future__ import annotations

import multiprocessing
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest
import torch

from detkit.config import Recipe
from detkit.engine.checkpoint import load_checkpoint

if sys.platform == "win32":
    pytest.skip("no kill -9 here", allow_module_level=True)

SIGKILL = -9


@pytest.fixture(scope="module")
def processes() -> Iterator[ForkServerContext]:
    """Starts processes that have torch imported already."""
    here = Path(__file__).resolve().parent
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(here)
        patch.setenv("PYTHONPATH", os.pathsep.join(map(str, (here, here.parent.parent))))
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["killed_run"])
        yield context


@pytest.fixture(scope="module")
def killed_run(processes: ForkServerContext) -> Any:
    import killed_run

    return killed_run


@pytest.mark.parametrize(
    ("point", "epoch", "left"),
    [
        ("log", 2, 0),  # half a line of the log is written
        ("between", 2, 0),  # best.pt is written, last.pt is not
        ("write", 2, 1),  # half of last.pt is written
        ("rename", 2, 1),  # all of last.pt is written, but not under its name
        ("after", 3, 0),
    ],
)
def test_kill_at_a_point(
    point: str,
    epoch: int,
    left: int,
    processes: ForkServerContext,
    killed_run: Any,
    straight: Path,
    tiny_recipe: Callable[..., Recipe],
    run: Callable[..., Path],
    content: Callable[[Path], dict[str, Any]],
    records: Callable[[Path], list[dict[str, Any]]],
    difference: Callable[[Any, Any], str | None],
    tmp_path: Path,
) -> None:
    process = processes.Process(
        target=killed_run.train_and_die,
        args=(point, tiny_recipe(), tmp_path, torch.get_num_threads()),
    )
    process.start()
    process.join(300)
    assert process.exitcode == SIGKILL
    assert load_checkpoint(tmp_path / "last.pt").epoch == epoch
    assert len(list(tmp_path.glob(".last.pt.*"))) == left

    run(tiny_recipe(), tmp_path, resume=True)
    for name in ("last.pt", "best.pt"):
        assert difference(content(straight / name), content(tmp_path / name)) is None
    assert difference(records(straight), records(tmp_path)) is None
    assert not list(tmp_path.glob(".*"))


def test_kill_at_random_moments(
    processes: ForkServerContext,
    killed_run: Any,
    tiny_recipe: Callable[..., Recipe],
    tmp_path: Path,
) -> None:
    """Epochs of one step, so that most of the time goes into saving."""
    rng = random.Random(0)
    recipe = tiny_recipe("train.epochs=100000", "train.batch_size=9", "data.val=null")
    last, epoch = tmp_path / "last.pt", 0
    for attempt in range(5):
        process = processes.Process(
            target=killed_run.train_quietly, args=(recipe, tmp_path, attempt > 0)
        )
        process.start()
        limit = time.monotonic() + 120
        while process.is_alive() and not (last.exists() and load_checkpoint(last).epoch > epoch):
            assert time.monotonic() < limit
        time.sleep(rng.uniform(0, 0.3))
        process.kill()
        process.join()
        assert process.exitcode == SIGKILL  # not its own error
        checkpoint = load_checkpoint(last)
        assert checkpoint.training is not None
        assert checkpoint.epoch == checkpoint.training["step"] > epoch  # it went on
        assert len(list(tmp_path.glob(".*"))) <= 1  # what this kill left, not those before
        epoch = checkpoint.epoch
        load_checkpoint(tmp_path / "best.pt").detector()
