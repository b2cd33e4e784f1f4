"""How often pictures are seen: the formulas, and what the sampler makes of them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from detkit.data import CocoDataset, read_coco
from detkit.data.loader import AspectBatchSampler
from detkit.data.sampling import class_balanced, draw_epoch, repeat_factors


@pytest.fixture
def dataset(tmp_path: Path) -> CocoDataset:
    """100 pictures: "often" in 64 of them, "some" in 16, "rare" in 1 (with "often"), 20 empty."""
    classes = [[1]] * 63 + [[1, 3]] + [[2]] * 16 + [[]] * 20
    annotations = [
        {"id": 10 * image + c, "image_id": image, "category_id": c, "bbox": [1, 1, 5, 5]}
        for image, present in enumerate(classes)
        for c in present
    ]
    # a crowd is no reason to see a picture more often
    annotations.append(
        {"id": 9999, "image_id": 99, "category_id": 3, "bbox": [1, 1, 5, 5], "iscrowd": 1}
    )
    images = [{"id": i, "file_name": f"{i}.png", "width": 8, "height": 8} for i in range(100)]
    names = ("often", "some", "rare")
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate(names)],
    }
    for image in images:
        (tmp_path / str(image["file_name"])).touch()
    (tmp_path / "a.json").write_text(json.dumps(content), encoding="utf-8")
    return read_coco(tmp_path / "a.json", tmp_path)


def test_repeat_factors(dataset: CocoDataset) -> None:
    factors = repeat_factors(dataset, threshold=0.36)
    # sqrt(.36 / .64) < 1, sqrt(.36 / .16) = 1.5, sqrt(.36 / .01) = 6
    assert factors.tolist() == pytest.approx([1.0] * 63 + [6.0] + [1.5] * 16 + [1.0] * 20)


def test_class_balanced(dataset: CocoDataset) -> None:
    weights = class_balanced(dataset)
    assert weights.mean() == pytest.approx(1)
    relative = weights / weights[0]
    assert relative.tolist() == pytest.approx([1.0] * 63 + [64.0] + [4.0] * 16 + [1.0] * 20)


def test_an_epoch_has_each_picture_as_often_as_told(dataset: CocoDataset) -> None:
    often = repeat_factors(dataset, threshold=0.36)
    total = np.zeros(100)
    for epoch in range(200):
        drawn = draw_epoch(often, np.random.default_rng(epoch))
        assert len(drawn) == 113  # 82 + 6 + 24 + ... = 63 + 6 + 24 + 20
        counts = np.bincount(drawn, minlength=100)
        assert (np.abs(counts - often) < 1).all()
        total += counts
    assert np.abs(total / 200 - often).max() < 0.12


def test_no_factors_draw_nothing() -> None:
    assert len(draw_epoch(np.zeros(3), np.random.default_rng(0))) == 0


@pytest.mark.parametrize("world", [1, 2])
def test_batches_of_all_processes_hold_the_epoch(dataset: CocoDataset, world: int) -> None:
    often = repeat_factors(dataset, threshold=0.36)
    keys = []
    for rank in range(world):
        sampler = AspectBatchSampler(
            dataset.sizes(),
            batch_size=4,
            seed=5,
            shuffle=True,
            rank=rank,
            world_size=world,
            often=often,
        )
        sampler.set_epoch(3)
        keys += [key for batch in sampler for key in batch]
        every = list(sampler)
        sampler.set_epoch(3, start=7)
        assert list(sampler) == every[7:]
        assert len(sampler) == len(every)
    counts = Counter(index for index, *_ in keys)
    assert sum(counts.values()) == -(-113 // world) * world
    assert counts[63] in (6, 7)
    assert len({seed for _, seed, *_ in keys}) == len(keys)  # a repeated picture looks different
