"""The numbers of a benchmark add up, whatever the clock says; mistakes are told in one line."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

import detkit
from detkit.inference import Predictor
from detkit.inference.benchmark import (
    STAGES,
    WARMUP,
    as_dicts,
    benchmark,
    list_or_generate,
    look,
    read_numbers,
    table,
    variants_of,
)
from detkit.structures import Batch, Detections

TOOL = Path(__file__).parents[2] / "tools" / "benchmark.py"


@pytest.fixture(scope="module")
def predictor(tiny_checkpoint: Path) -> Predictor:
    return detkit.load(tiny_checkpoint, device="cpu")


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (40, 60, 3), dtype=np.uint8) for _ in range(3)]


def test_stages_of_a_look_by_hand(predictor: Predictor, pictures: list[np.ndarray]) -> None:
    ticks = itertools.count()  # every look at the clock is a second
    stages, found = look(predictor, pictures[:2], clock=lambda: next(ticks))
    # before and after decode, preprocessing, model and copying: a second each; during the model
    # both pictures have their boxes selected, a second each, and the clock is read twice for that
    assert stages == [1, 1, 5 - 2, 1 + 2]
    expected = predictor(pictures[:2])
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.boxes, other.boxes)
        torch.testing.assert_close(one.scores, other.scores)


def test_a_look_leaves_the_detector_as_it_was(
    predictor: Predictor, pictures: list[np.ndarray]
) -> None:
    before = predictor.detector.roi.selection  # type: ignore[union-attr]
    look(predictor, pictures[:1])
    assert predictor.detector.roi.selection is before  # type: ignore[union-attr]


def test_rows_by_hand(predictor: Predictor, pictures: list[np.ndarray]) -> None:
    ticks = itertools.count()
    variants = variants_of(predictor, "tiny", precisions=["fp32"], optimized=[False])
    rows = benchmark(variants * 2, pictures, batches=[1, 2], rounds=3, clock=lambda: next(ticks))
    # of one picture 1 + 1 + 3 + 1 ticks: see above, with a selection less
    first, twin, pairs, _ = rows
    assert [row.batch for row in rows] == [1, 1, 2, 2]
    assert first.median_ms == first.p95_ms == 6000
    assert first.pictures_per_second == pytest.approx(1 / 6)
    assert pairs.median_ms == 8000
    assert pairs.pictures_per_second == pytest.approx(2 / 8)
    assert first.shares == pytest.approx(
        {"decode": 1 / 6, "preprocessing": 1 / 6, "model": 2 / 6, "postprocess": 2 / 6}
    )
    assert twin.speedup == 1.0
    assert first.rounds == 3
    assert first.detections == sum(map(len, predictor(pictures)))
    assert list(as_dicts(rows)[0]) == [
        *("model", "device", "precision", "optimized", "batch", "rounds", "median_ms", "p95_ms"),
        *("pictures_per_second", "shares", "speedup", "detections"),
    ]


class Slow:
    """A clock that one detector moves on, and nothing else."""

    def __init__(self) -> None:
        self.now = 0.0
        self.looks: list[str] = []

    def watch(self, predictor: Predictor, name: str, seconds: Sequence[float]) -> Predictor:
        own, times = predictor.detector, itertools.cycle(seconds)

        class Timed(type(own)):  # type: ignore[misc]
            def predict(inner, batch: Batch) -> list[Detections]:
                self.looks.append(name)
                self.now += next(times)
                return [Detections.empty()] * len(batch)

        twin = object.__new__(Timed)
        twin.__dict__ = own.__dict__
        return predictor.with_detector(twin)


def test_variants_take_turns_and_ratios_are_those_of_the_rounds(
    predictor: Predictor, pictures: list[np.ndarray]
) -> None:
    slow = Slow()
    (plain,) = variants_of(predictor, "tiny", optimized=[False])
    busy = [10.0, 10.0, 1.0, 30.0, 2.0]  # the machine's neighbours; the first two warm up
    both = [
        type(plain)("a", "fp32", False, slow.watch(predictor, "a", busy)),
        type(plain)("b", "fp32", False, slow.watch(predictor, "b", [x / 2 for x in busy])),
    ]
    first, second = benchmark(both, pictures, rounds=3, clock=lambda: slow.now)
    assert slow.looks == ["b", "a", "a", "b"] * 2 + ["b", "a"]
    assert len(slow.looks) == 2 * (3 + WARMUP)
    assert first.median_ms == 2000
    assert first.p95_ms == pytest.approx(1000 * np.percentile([1, 30, 2], 95))
    assert second.speedup == 2.0
    assert second.shares["model"] == 1.0


def test_variants_are_plain_and_optimised(predictor: Predictor) -> None:
    both = variants_of(predictor, "tiny", precisions=["fp32", "bf16", "fp32"])
    ways = [(each.precision, each.optimized) for each in both]
    assert ways == [("fp32", False), ("bf16", False), ("fp32", True), ("bf16", True)]
    default = variants_of(predictor, "tiny")
    assert [each.optimized for each in default] == [False, True]
    assert default[0].precision == "fp32"


def test_table_and_pictures(predictor: Predictor, tmp_path: Path) -> None:
    paths = list_or_generate(None, tmp_path, count=2)
    assert [path.name for path in paths] == ["0.jpg", "1.jpg"]
    assert list_or_generate(str(tmp_path), tmp_path) == paths
    rows = benchmark(variants_of(predictor, "tiny"), paths, rounds=1)
    for row in rows:
        assert sum(row.shares.values()) == pytest.approx(1.0)
        assert min(row.shares.values()) > 0
        assert row.median_ms <= row.p95_ms
    head, *lines = table(rows).splitlines()
    assert head.split()[-4:] == list(STAGES)
    assert len(lines) == 2
    assert lines[0].startswith("tiny")


def test_mistakes(predictor: Predictor, pictures: list[np.ndarray], tmp_path: Path) -> None:
    variants = variants_of(predictor, "tiny", optimized=[False])
    with pytest.raises(ValueError, match="0 pictures"):
        benchmark(variants, [])
    with pytest.raises(ValueError, match="rounds 0"):
        benchmark(variants, pictures, rounds=0)
    with pytest.raises(ValueError, match="batches 1,0"):
        benchmark(variants, pictures, batches=[1, 0])
    with pytest.raises(ValueError, match="did you mean 'bf16'"):
        variants_of(predictor, "tiny", precisions=["b16"])
    with pytest.raises(ValueError, match="needs a GPU"):
        variants_of(predictor, "tiny", precisions=["fp16"])
    with pytest.raises(ValueError, match="give one as 1,8"):
        read_numbers("1;8")
    with pytest.raises(ValueError, match="no pictures"):
        list_or_generate(str(tmp_path), tmp_path)


def test_command_writes_a_table_and_json(tiny_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "speed.json"
    done = subprocess.run(
        [sys.executable, TOOL, tiny_checkpoint, "--device=cpu", "--rounds=1", f"--json={out}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "generated, 640x480" in done.stdout
    content = json.loads(out.read_text(encoding="utf-8"))
    assert [row["optimized"] for row in content["rows"]] == [False, True]
    wrong = subprocess.run(
        [sys.executable, TOOL, tmp_path / "none.pt"], capture_output=True, text=True
    )
    assert wrong.returncode == 2
    assert len(wrong.stderr.strip().splitlines()) == 1
