"""metrics.jsonl and TensorBoard: what is written, and what is taken back on resuming."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from detkit.engine.log import RunLog


def write_run(folder: Path, steps: range, *, resume_step: int = 0, scale: float = 1.0) -> None:
    log = RunLog(folder, resume_step=resume_step)
    for step in steps:
        log.write("step", step, {"loss/rpn/box": scale * step, "lr": 0.1})
    log.write("epoch", steps[-1], {"epoch": 1, "val/AP": 0.5, "note": "text"})
    log.close()


def records(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_lines_and_events_hold_the_numbers(tmp_path: Path) -> None:
    write_run(tmp_path, range(1, 4))
    assert records(tmp_path) == [
        *({"kind": "step", "step": i, "loss/rpn/box": float(i), "lr": 0.1} for i in (1, 2, 3)),
        {"kind": "epoch", "step": 3, "epoch": 1, "val/AP": 0.5, "note": "text"},
    ]
    events = EventAccumulator(str(tmp_path)).Reload()
    assert sorted(events.Tags()["scalars"]) == ["epoch", "loss/rpn/box", "lr", "val/AP"]
    found = [(event.step, event.value) for event in events.Scalars("loss/rpn/box")]
    assert found == [(1, 1.0), (2, 2.0), (3, 3.0)]


def test_line_is_there_at_once(tmp_path: Path) -> None:
    log = RunLog(tmp_path, resume_step=0)
    log.write("step", 1, {"lr": 0.1})
    assert len(records(tmp_path)) == 1
    log.close()


@pytest.mark.parametrize(
    ("resume_step", "steps"), [(0, []), (1, [1]), (2, [1, 2]), (3, [1, 2, 3, 3]), (9, [1, 2, 3, 3])]
)
def test_what_came_after_the_checkpoint_is_taken_back(
    tmp_path: Path, resume_step: int, steps: list[int]
) -> None:
    write_run(tmp_path, range(1, 4))
    RunLog(tmp_path, resume_step=resume_step).close()
    assert [record["step"] for record in records(tmp_path)] == steps


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_half_a_line_is_dropped(tmp_path: Path, cut: int) -> None:
    write_run(tmp_path, range(1, 4))
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])  # killed while the last line was written
    write_run(tmp_path, range(4, 5), resume_step=3)
    lasting = 4 if cut == 1 else 3  # the line itself was whole
    assert [record["step"] for record in records(tmp_path)] == [*[1, 2, 3, 3][:lasting], 4, 4]


def test_events_after_the_checkpoint_are_taken_back(tmp_path: Path) -> None:
    write_run(tmp_path, range(1, 6))
    (events_file,) = tmp_path.glob("events.*")
    events_file.rename(tmp_path / "events.out.tfevents.0000000001.host")  # some time ago
    write_run(tmp_path, range(4, 6), resume_step=3, scale=100.0)
    events = EventAccumulator(str(tmp_path)).Reload()
    found = [(event.step, event.value) for event in events.Scalars("loss/rpn/box")]
    assert found == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 400.0), (5, 500.0)]
