"""A pass over a data set: every image once, losses as means, numbers that a file gives again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from detkit.config import Recipe
from detkit.data import CocoDataset, read_coco
from detkit.detectors import Detector
from detkit.engine.checkpoint import load_checkpoint
from detkit.engine.data import build_dataset, eval_loader
from detkit.engine.evaluate import Evaluation, coco_results, evaluate, measure
from detkit.evaluation import evaluate_files
from detkit.structures import Batch, Detections

CPU = torch.device("cpu")
IMAGE_IDS = [10 * index + 3 for index in range(9)]


@pytest.fixture(scope="module")
def recipe(tiny_recipe: Callable[..., Recipe]) -> Recipe:
    return tiny_recipe()


@pytest.fixture(scope="module")
def dataset(recipe: Recipe) -> CocoDataset:
    assert recipe.data.val is not None
    return build_dataset(recipe.data.val, role="val")


@pytest.fixture(scope="module")
def detector(straight: Path) -> Detector:
    """One that finds something right and much that is wrong."""
    return load_checkpoint(straight / "best.pt").detector()


def run(detector: Any, recipe: Recipe, dataset: CocoDataset, **settings: Any) -> Evaluation:
    loader = eval_loader(recipe, dataset, pin_memory=False)
    return evaluate(detector, loader, dataset, device=CPU, **settings)


@pytest.fixture(scope="module")
def outcome(detector: Detector, recipe: Recipe, dataset: CocoDataset) -> Evaluation:
    return run(detector, recipe, dataset, with_loss=True)


def test_every_image_once(outcome: Evaluation) -> None:
    assert sorted(outcome.detections) == IMAGE_IDS
    assert sum(map(len, outcome.detections.values())) > 50
    assert (outcome.result.stats[[0, 1, 8]] > 0).all()  # enough to tell right from wrong


def test_losses_do_not_move_the_random_state_and_repeat(
    detector: Detector, recipe: Recipe, dataset: CocoDataset, outcome: Evaluation
) -> None:
    torch.manual_seed(99)
    before = torch.get_rng_state()
    again = run(detector, recipe, dataset, with_loss=True)
    assert torch.equal(torch.get_rng_state(), before)
    assert again.losses == outcome.losses
    assert set(again.losses) == {"rpn/objectness", "rpn/box", "roi/class", "roi/box"}
    assert all(0 < value < 10 for value in again.losses.values())


def test_losses_change_nothing_else(
    detector: Detector, recipe: Recipe, dataset: CocoDataset, outcome: Evaluation
) -> None:
    without = run(detector, recipe, dataset)
    assert without.losses == {}
    assert without.result.stats.tolist() == outcome.result.stats.tolist()
    assert not any(parameter.grad is not None for parameter in detector.parameters())


class Counting(nn.Module):
    """A detector whose loss is the number of images in the batch, and which finds one box each."""

    def features(self, batch: Batch) -> list[Tensor]:
        return [batch.images]

    def losses(self, features: list[Tensor], batch: Batch) -> dict[str, Tensor]:
        return {"count": torch.tensor(float(len(batch)))}

    def detections(self, features: list[Tensor], batch: Batch) -> list[Detections]:
        one = Detections(torch.tensor([[0.0, 0, 9, 9]]), torch.ones(1), torch.ones(1).long())
        return [one] * len(batch)


def test_loss_is_the_mean_over_images(recipe: Recipe, dataset: CocoDataset) -> None:
    outcome = run(Counting(), recipe, dataset, with_loss=True)
    assert outcome.losses == {"count": pytest.approx((4 * 4 + 4 * 4 + 1) / 9)}


def test_file_gives_the_same_numbers_to_the_last_bit(
    outcome: Evaluation, dataset: CocoDataset, tiny_data: Any, tmp_path: Path
) -> None:
    records = coco_results(outcome.detections, dataset.category_ids.tolist())
    (tmp_path / "dt.json").write_text(json.dumps(records))
    again = evaluate_files(tiny_data.annotations, tmp_path / "dt.json")
    assert again.stats.tolist() == outcome.result.stats.tolist()
    np.testing.assert_array_equal(again.precision, outcome.result.precision)
    np.testing.assert_array_equal(again.scores, outcome.result.scores)
    assert {record["category_id"] for record in records} == {7, 90, 300}


def test_results_format() -> None:
    found = Detections(
        torch.tensor([[1.0, 2, 4, 8], [0.1, 0.0, 0.30000001, 5.5]]),
        torch.tensor([0.9, 0.1]),
        torch.tensor([2, 0]),
    )
    records = coco_results({20: found, 3: Detections.empty(), 5: found[:1]}, [7, 90, 300])
    assert [(record["image_id"], record["category_id"]) for record in records] == [
        (5, 300),
        (20, 300),
        (20, 7),
    ]
    assert records[1]["bbox"] == [1.0, 2.0, 3.0, 6.0]
    assert records[1]["score"] == float(np.float32(0.9))
    x1, x2 = float(np.float32(0.1)), float(np.float32(0.30000001))
    assert records[2]["bbox"] == [x1, 0.0, x2 - x1, 5.5]  # the difference in float64
    assert all(type(record["category_id"]) is int for record in records)
    assert found.boxes[0].tolist() == [1, 2, 4, 8]


def test_nothing_found_is_a_score_of_zero(dataset: CocoDataset) -> None:
    result = measure({image_id: Detections.empty() for image_id in IMAGE_IDS}, dataset)
    assert result.stats[0] == 0
    assert coco_results({3: Detections.empty()}, [7, 90, 300]) == []


def perfect(dataset: CocoDataset) -> dict[int, Detections]:
    found = {}
    for index in range(len(dataset)):
        sample = dataset[index]
        real = ~sample.crowd
        boxes, labels = torch.from_numpy(sample.boxes[real]), torch.from_numpy(sample.labels[real])
        found[sample.image_id] = Detections(boxes, torch.ones(len(boxes)), labels)
    return found


def test_annotation_id_zero_is_spoken_of(
    dataset: CocoDataset, tiny_data: Any, tmp_path: Path
) -> None:
    data = json.loads(tiny_data.annotations.read_text())
    for index, record in enumerate(data["annotations"]):
        record["id"] = index
    (tmp_path / "gt.json").write_text(json.dumps(data))
    found = perfect(dataset)
    records = coco_results(found, dataset.category_ids.tolist())
    from_file = evaluate_files(tmp_path / "gt.json", records)
    from_dataset = measure(found, read_coco(tmp_path / "gt.json", tiny_data.images))
    assert from_dataset.notes == from_file.notes
    assert "annotation id 0" in from_file.notes[0]
    assert measure(found, dataset).notes == ()


def test_perfect_detections_have_an_ap_of_one(dataset: CocoDataset) -> None:
    found = perfect(dataset)
    assert measure(found, dataset).stats[0] == pytest.approx(1.0)
    shifted = {
        image_id: Detections(each.boxes, each.scores, (each.labels + 1) % 3)
        for image_id, each in found.items()
    }
    assert measure(shifted, dataset).stats[0] < 0.1
