"""Several processes on the CPU compute what one does, also after some of them were ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from detkit.config import Recipe, build_recipe, load_recipe, recipe_to_yaml
from detkit.data import CocoDataset
from detkit.detectors import create_detector
from detkit.engine import distributed, state
from detkit.engine.checkpoint import load_checkpoint
from detkit.engine.data import build_dataset, eval_loader
from detkit.engine.evaluate import Evaluation, evaluate
from detkit.engine.stop import LISTEN_EVERY

ROOT = Path(__file__).resolve().parent.parent.parent
HERE = Path(__file__).resolve().parent
CPU = torch.device("cpu")
IMAGE_IDS = [10 * index + 3 for index in range(9)]

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_gloo_available(), reason="this torch has no gloo"
)


def start(*arguments: object, processes: int = 2, restarts: int = 0) -> subprocess.Popen[str]:
    launcher = ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return subprocess.Popen(
        [sys.executable, "-m", *launcher, f"--max-restarts={restarts}", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def torchrun(*arguments: object, processes: int = 2) -> subprocess.CompletedProcess[str]:
    started = start(*arguments, processes=processes)
    out, err = started.communicate(timeout=300)
    return subprocess.CompletedProcess(started.args, started.returncode, out, err)


def measured(recipe: Recipe, detector: torch.nn.Module) -> tuple[CocoDataset, Evaluation]:
    """On the validation data, by this process alone."""
    assert recipe.data.val is not None
    dataset = build_dataset(recipe.data.val, role="val")
    loader = eval_loader(recipe, dataset, pin_memory=False)
    return dataset, evaluate(detector.eval(), loader, dataset, device=CPU)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def recipe(tiny_recipe: Callable[..., Recipe]) -> Recipe:
    return tiny_recipe(
        "test.batch_size=2",
        "train.batch_size=4",
        "model.backbone.norm=frozen_batch",
        "model.rpn.nms_iou=0.95",
        "model.roi.samples=8",
        "model.select.score_threshold=0.1",
    )


@pytest.fixture(scope="module")
def ranks(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each process found."""
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "recipe.yaml").write_text(recipe_to_yaml(recipe), encoding="utf-8")
    done = torchrun(HERE / "two_processes.py", folder / "recipe.yaml", folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


def test_there_are_two(ranks: list[dict[str, Any]]) -> None:
    assert [rank["world"] for rank in ranks] == [2, 2]


def test_gradients_are_those_of_the_joint_batch(ranks: list[dict[str, Any]]) -> None:
    """In float64, with the same number of candidates drawn in every image: equal but for rounding.

    Each of its own half is far from it, so nothing but the average can be equal.
    """
    joint = ranks[0]["joint"]
    assert len(joint) > 30
    for rank in ranks:
        assert rank["shared"].keys() == joint.keys()
        for name, expected in joint.items():
            torch.testing.assert_close(rank["shared"][name], expected, rtol=1e-9, atol=1e-12)
        norm = torch.stack([gradient.norm() for gradient in joint.values()]).norm()
        off = torch.stack([(rank["own"][name] - g).norm() for name, g in joint.items()]).norm()
        assert off > 0.05 * norm > 0


def test_every_image_is_evaluated_once(ranks: list[dict[str, Any]]) -> None:
    read = [[image for batch in rank["read"] for image in batch] for rank in ranks]
    assert sorted(read[0] + read[1]) == IMAGE_IDS  # 9 images in batches of 2: 5 and 4, or 4 and 5
    assert sorted(map(len, read)) == [4, 5]
    for rank in ranks:
        assert rank["images"] == IMAGE_IDS
    assert ranks[0]["losses"] == {"id": pytest.approx(sum(IMAGE_IDS) / 9)}


def test_metric_is_that_of_one_process(ranks: list[dict[str, Any]], recipe: Recipe) -> None:
    torch.manual_seed(0)
    _, alone = measured(recipe, create_detector(recipe.model, num_classes=3))
    assert sum(map(len, alone.detections.values())) > 50
    for rank in ranks:
        assert rank["stats"] == alone.result.stats.tolist()
        for image_id, scores in rank["scores"].items():
            torch.testing.assert_close(scores, alone.detections[image_id].scores)


def test_one_that_is_asked_to_stop_ends_the_validation_of_all(ranks: list[dict[str, Any]]) -> None:
    """Of five batches the first process has done none or those up to where it looks again."""
    (first, batches), second = (rank["stopped"] for rank in ranks)
    assert (first, second) == ("terminated", ("terminated", 0))
    assert batches in (0, LISTEN_EVERY)


def test_training_deals_the_images_out(ranks: list[dict[str, Any]]) -> None:
    """Every image at least once, batches of two in each process, equally many."""
    first, second = (rank["trained"] for rank in ranks)
    assert [len(batch) for batch in first] == [len(batch) for batch in second] == [2, 2, 1]
    assert {image for batch in first + second for image in batch} == set(IMAGE_IDS)


def test_buffers_become_those_of_the_main_process(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert rank["buffers"].tolist() == [1, 1]


def test_training_by_two(tiny_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    """Files are written by one, and hold what was measured by both."""
    recipe = tiny_recipe(
        "train.epochs=2",
        "train.batch_size=4",
        "test.batch_size=2",
        "model.select.score_threshold=0.1",
    )
    (tmp_path / "two.yaml").write_text(recipe_to_yaml(recipe), encoding="utf-8")
    done = torchrun("tools/train.py", tmp_path / "two.yaml", "--out", tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("epoch   1  AP") == 1
    assert done.stderr.count("train: 9 images") == 1

    folder = tmp_path / "tiny"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [(line["kind"], line["step"]) for line in lines] == [
        *(("step", 1), ("step", 2), ("step", 3), ("epoch", 3)),
        *(("step", 4), ("step", 5), ("step", 6), ("epoch", 6)),
    ]
    assert len(list(folder.glob("events.*"))) == 1
    last = load_checkpoint(folder / "last.pt")
    assert last.training is not None
    assert (last.epoch, last.training["step"]) == (2, 6)

    _, alone = measured(recipe, last.detector())
    assert alone.result.as_dict() == last.metrics
    assert last.metrics["AR100"] > 0


def test_a_process_without_boxes_neither_waits_nor_fails(ranks: list[dict[str, Any]]) -> None:
    """Every weight has its gradient on both, so that neither waits for one that never comes."""
    first, second = (rank["empty"] for rank in ranks)
    assert list(first) == ["region_proposal", "retinanet", "fcos", "task_aligned"]
    for name, gradient in first.items():
        assert gradient.isfinite().all()
        assert gradient.abs().sum() > 0
        torch.testing.assert_close(second[name], gradient, rtol=1e-5, atol=1e-7)


# ------------------------------------------------------------------------- the same as one process


@pytest.fixture(scope="module")
def joint_recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve images in batches of eight and four; losses are means over the images."""
    tree = {
        "name": "joint",
        "data": {
            "train": {"format": "synthetic", "num_images": 12, "image_size": [64, 64]},
            "resize": {"shortest": None, "longest": 64},
            "workers": 0,
        },
        "model": {
            "detector": "retinanet",
            "backbone": {
                "name": "resnet18",
                "width": 8,
                "norm": "frozen_batch",
                "out_indices": [2, 3],
            },
            "fpn": {"channels": 16, "extra": None},
            "retinanet": {"anchor_sizes": [[16], [32]], "convs": 1},
        },
        "train": {
            "epochs": 3,
            "batch_size": 8,
            "optimizer": {"name": "sgd", "lr": 0.005},
            "schedule": {"name": "constant", "warmup_steps": 0},
            "clip_norm": 1.0,
            "amp": "off",
            "log_every": 1,
        },
    }
    path = tmp_path_factory.mktemp("joint") / "joint.yaml"
    path.write_text(recipe_to_yaml(build_recipe(tree)), encoding="utf-8")
    return path


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    training = load_checkpoint(folder / "last.pt").training
    assert training is not None
    weights: dict[str, torch.Tensor] = training["detector"]
    return weights


@pytest.fixture(scope="module")
def alone(
    joint_recipe: Path, run: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    return run(load_recipe(joint_recipe), tmp_path_factory.mktemp("alone"))


@pytest.mark.parametrize("processes", [2, 4])
def test_training_is_that_of_one_process(
    processes: int, joint_recipe: Path, alone: Path, tmp_path: Path
) -> None:
    """Six steps in float32, of which every second is on half a batch: equal but for rounding.

    The weights move by a thousand times of what they may differ.
    """
    done = torchrun("tools/train.py", joint_recipe, "--out", tmp_path, processes=processes)
    assert done.returncode == 0, done.stderr[-3000:]
    torch.manual_seed(0)
    first = create_detector(load_recipe(joint_recipe).model, num_classes=10).state_dict()
    found, expected = weights_of(tmp_path / "joint"), weights_of(alone)
    moved = max(float((expected[name] - first[name]).abs().max()) for name in expected)
    assert moved > 1e-3
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=0, atol=1e-6)


# --------------------------------------------------------------------------------- interruptions

LONG = ("train.epochs=30", "data.train.num_images=24", "--save-every=7")


@pytest.fixture(scope="module")
def long_run(joint_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ninety steps by two processes without interruption."""
    folder = tmp_path_factory.mktemp("long")
    done = torchrun("tools/train.py", joint_recipe, *LONG, "--out", folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "joint"


def steps(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def wait_for_steps(folder: Path, count: int, process: subprocess.Popen[str]) -> None:
    limit = time.monotonic() + 300  # of a loaded machine
    while steps(folder) < count:
        assert process.poll() is None, process.communicate()[1][-3000:]
        assert time.monotonic() < limit
        time.sleep(0.01)


def pid_of_rank(rank: int, launcher: int) -> int:
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            environment = (folder / "environ").read_bytes().split(b"\0")
        except OSError:  # gone meanwhile
            continue
        if parent == launcher and f"RANK={rank}".encode() in environment:
            return int(folder.name)
    raise AssertionError(f"no process of rank {rank}")


@pytest.mark.skipif(
    "DETKIT_TEST_ELASTIC" not in os.environ,
    reason="a launcher on a busy machine may kill before all have stopped; DETKIT_TEST_ELASTIC=1",
)
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes in /proc")
def test_a_killed_process_is_made_good_by_a_restart(
    joint_recipe: Path,
    long_run: Path,
    content: Callable[[Path], dict[str, Any]],
    records: Callable[[Path], list[dict[str, Any]]],
    difference: Callable[[Any, Any], str | None],
    tmp_path: Path,
) -> None:
    """The same command goes on from the last saving, to the bit."""
    command = ("tools/train.py", joint_recipe, *LONG, "--resume", "auto", "--out", tmp_path)
    process = start(*command, restarts=3)
    wait_for_steps(tmp_path / "joint", 9, process)
    os.kill(pid_of_rank(1, process.pid), signal.SIGKILL)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err[-3000:]
    assert "error: another process of this training has ended" in err
    found, expected = content(tmp_path / "joint" / "last.pt"), content(long_run / "last.pt")
    assert difference(expected, found) is None
    assert difference(records(long_run), records(tmp_path / "joint")) is None


@pytest.mark.skipif(
    "DETKIT_TEST_ELASTIC" not in os.environ,
    reason="a launcher on a busy machine may kill before all have stopped; DETKIT_TEST_ELASTIC=1",
)
@pytest.mark.skipif(sys.platform == "win32", reason="no SIGTERM here")
def test_sigterm_to_the_launcher_saves_once_and_going_on_gives_the_same_bits(
    joint_recipe: Path,
    long_run: Path,
    content: Callable[[Path], dict[str, Any]],
    records: Callable[[Path], list[dict[str, Any]]],
    difference: Callable[[Any, Any], str | None],
    tmp_path: Path,
) -> None:
    """Within an epoch: the random numbers of both processes are kept."""
    folder = tmp_path / "joint"
    process = start("tools/train.py", joint_recipe, *LONG, "--out", tmp_path)
    wait_for_steps(folder, 10, process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=300)
    assert process.returncode != 0
    assert err.count(f"terminated; go on with --resume {folder}") == 2
    stopped = content(folder / "last.pt")["training"]
    assert stopped["step"] == steps(folder) < 90  # nothing is done again
    assert len(stopped["random"]) == (2 if stopped["batch"] else 0)
    done = torchrun("tools/train.py", "--resume", folder)
    assert done.returncode == 0, done.stderr[-3000:]
    assert difference(content(long_run / "last.pt"), content(folder / "last.pt")) is None
    assert difference(records(long_run), records(folder)) is None


# ------------------------------------------------------------------------------- without torchrun


def test_restarted_processes_meet_where_nothing_is_left_of_ended_ones() -> None:
    """The main process answers the ended one first, and knows that nobody has come."""
    store = torch.distributed.HashStore()
    store.set("asks/1", "an ended process")
    store.set("0/address", "of an ended process")
    join = distributed.store_of_this_start
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(join, store, 0, 3)
        store.wait(["part/an ended process"])
        second = pool.submit(join, store, 1, 3)
        third = join(store, 2, 3)
        parts = [first.result(timeout=60), second.result(timeout=60), third]
    parts[0].set("0/address", "new")
    assert [part.get("0/address") for part in parts] == [b"new"] * 3
    assert store.get("0/address") == b"of an ended process"
    again = join(store, 0, 1)
    assert not again.check(["0/address"])


def test_a_process_that_does_not_come_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "JOINING", timedelta(seconds=0.1))
    with pytest.raises(ConnectionError, match=r"processes \[1\] of 2 did not come within 0:00"):
        distributed.store_of_this_start(torch.distributed.HashStore(), 0, 2)


def test_one_process_is_a_world_of_one() -> None:
    with distributed.process_group(CPU):
        assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)
        assert distributed.gather("value") == ["value"]
        distributed.barrier()
        distributed.share_buffers(torch.nn.BatchNorm2d(2))


def test_every_epoch_and_process_has_random_numbers_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def first_number(seed: int, epoch: int, rank: int) -> float:
        monkeypatch.setattr(distributed, "rank", lambda: rank)
        run = SimpleNamespace(recipe=SimpleNamespace(seed=seed), device=CPU)
        state.seed_epoch(SimpleNamespace(epoch=epoch, random=[]), run)  # type: ignore[arg-type]
        return float(torch.rand(()))

    settings = [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (2**63 - 1, 3, 1)]
    numbers = [first_number(*setting) for setting in settings]
    assert len(set(numbers)) == len(numbers)
    assert first_number(0, 1, 0) == numbers[2]
