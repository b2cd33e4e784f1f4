"""Two processes on the CPU compute what one does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from detkit.config import Recipe, recipe_to_yaml
from detkit.data import CocoDataset
from detkit.detectors import create_detector
from detkit.engine import distributed, state
from detkit.engine.checkpoint import load_checkpoint
from detkit.engine.data import build_dataset, eval_loader
from detkit.engine.evaluate import Evaluation, evaluate

ROOT = Path(__file__).resolve().parent.parent.parent
HERE = Path(__file__).resolve().parent
CPU = torch.device("cpu")
IMAGE_IDS = [10 * index + 3 for index in range(9)]

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_gloo_available(), reason="this torch has no gloo"
)


def torchrun(*arguments: object) -> subprocess.CompletedProcess[str]:
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.run(
        [sys.executable, "-m", *launcher, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


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


# ------------------------------------------------------------------------------- without torchrun


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
