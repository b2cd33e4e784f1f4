"""How finished detectors look at pictures: what reaches them, and that a plain look stays plain."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from detkit.config import ConfigError, Recipe
from detkit.data import CocoDataset, Sample, read_coco
from detkit.detectors import Detector, ImagePyramid, Tiled
from detkit.engine.checkpoint import Checkpoint, load_checkpoint
from detkit.engine.data import build_dataset
from detkit.engine.evaluate import (
    _ensemble_fuse,
    detect_with,
    measure,
    measure_ensemble,
    validation_evaluator,
)
from detkit.engine.views import Preparation, with_views
from detkit.evaluation import evaluate_files
from detkit.ops import scale_boxes
from detkit.structures import Batch, Detections

CPU = torch.device("cpu")
Found = dict[int, Detections]


@pytest.fixture(scope="module")
def dataset(tiny_recipe: Callable[..., Recipe]) -> CocoDataset:
    source = tiny_recipe().data.val
    assert source is not None
    return build_dataset(source, role="val")


@pytest.fixture(scope="module")
def finished(straight: Path) -> Callable[..., Checkpoint]:
    """`finished("key.path=value", ...)`: a trained detector that finds something right."""

    def load(*overrides: str) -> Checkpoint:
        return load_checkpoint(
            straight / "best.pt", ["model.select.score_threshold=0.1", *overrides]
        )

    return load


@pytest.fixture(scope="module")
def plain(finished: Callable[..., Checkpoint], dataset: CocoDataset) -> Found:
    found = detect_with(finished("test.batch_size=1"), dataset, device=CPU)
    assert sum(map(len, found.values())) > 30
    return found


def close(first: Found, second: Found) -> bool:
    """The same detections, but for rounding: batches of another size sum in another order."""
    return list(first) == list(second) and all(
        len(first[image]) == len(second[image])
        and torch.allclose(first[image].boxes, second[image].boxes, atol=1e-2)
        and torch.allclose(first[image].scores, second[image].scores, atol=1e-4)
        for image in first
    )


def sample(height: int, width: int) -> Sample:
    return Sample(
        image=np.zeros((height, width, 3), np.uint8),
        boxes=np.array([[0, 0, width / 2, height]], np.float32),
        labels=np.zeros(1, np.int64),
        crowd=np.zeros(1, np.bool_),
        area=np.ones(1, np.float32),
        image_id=1,
        original_size=(height, width),
    )


# ------------------------------------------------------------------------------------ preparation


@pytest.mark.parametrize(
    ("overrides", "size"),
    [
        ([], (38, 64)),  # longest: 64
        (["test.scales=[0.5,1,2]"], (76, 128)),  # pixels for the largest come from the original
        (["test.scales=[0.25,0.5]"], (19, 32)),
        (["test.tile=100"], (38, 64)),
        (["test.tile=100", "test.scales=[1,2]"], (76, 128)),
        (["test.tile=99"], (60, 100)),  # to be cut as it is
        (["test.tile=99", "test.scales=[1,2]"], (60, 100)),
    ],
)
def test_pictures_are_prepared_for_the_largest_look(
    tiny_recipe: Callable[..., Recipe], overrides: list[str], size: tuple[int, int]
) -> None:
    recipe = tiny_recipe(*overrides)
    preparation = Preparation.of(recipe)
    prepared = preparation.transform(sample(60, 100), 0)
    assert prepared.image.shape[:2] == size
    assert prepared.boxes[0].tolist() == pytest.approx([0, 0, size[1] / 2, size[0]])
    assert preparation.batch_size == (1 if recipe.test.tile else 4)


def test_what_looks(finished: Callable[..., Checkpoint]) -> None:
    def wrapped(*overrides: str) -> torch.nn.Module:
        checkpoint = finished(*overrides)
        return with_views(checkpoint.detector(), checkpoint.recipe)

    detector = finished().detector()
    for asked in ([], ["test.scales=[2]"]):  # larger pictures alone need nothing around
        recipe = finished(*asked).recipe
        assert with_views(detector, recipe) is detector
    several = wrapped("test.scales=[0.5,1,2]", "test.ranges=[[0,9],[3,null],[0,null]]")
    assert isinstance(several, ImagePyramid) and several.scales == (0.25, 0.5, 1)
    assert several.ranges == ((0, 9), (3, None), (0, None)) and not several.flip
    mirrored = wrapped("test.flip=true")
    assert isinstance(mirrored, ImagePyramid) and mirrored.scales == (1,) and mirrored.flip
    tiled = wrapped(
        "test.flip=true", "test.tile=40", "test.tile_overlap=0.5", "test.fusion.iou_threshold=0.7"
    )
    assert isinstance(tiled, Tiled) and isinstance(tiled.detector, ImagePyramid)
    assert (tiled.tiling.side, tiled.tiling.overlap, tiled.batch_size) == (40, 0.5, 4)
    assert tiled.resize(40, 20) == (64, 32) and not tiled.training
    fusing = tiled.fuse.keywords  # type: ignore[attr-defined]
    assert (fusing["iou_threshold"], fusing["max_detections"]) == (0.7, None)
    assert tiled.detector.fuse.keywords["max_detections"] == 100  # type: ignore[attr-defined]


# --------------------------------------------------------------------------------------- findings


def test_one_plain_look(
    finished: Callable[..., Checkpoint], dataset: CocoDataset, plain: Found
) -> None:
    for asked in (["test.tile=64"], ["model.image_pyramid.scales=[1]"]):
        found = detect_with(finished("test.batch_size=1", *asked), dataset, device=CPU)
        assert close(found, plain), asked


@pytest.mark.parametrize(
    "asked",
    [
        ["test.flip=true"],
        ["test.scales=[0.75,1,1.5]"],
        ["test.scales=[1,2]", "test.flip=true", "test.tile=40", "test.tile_whole=true"],
        ["model.image_pyramid={scales: [1, 0.5], ranges: [[0, 24], [8, null]]}"],
    ],
)
def test_other_looks_find_other_things_inside_the_picture(
    finished: Callable[..., Checkpoint], dataset: CocoDataset, plain: Found, asked: list[str]
) -> None:
    found = detect_with(finished(*asked), dataset, device=CPU)
    assert not close(found, plain)
    sizes = dict(zip(dataset.image_ids.tolist(), dataset.sizes().tolist(), strict=True))
    for image, each in found.items():
        height, width = sizes[image]
        low, high = each.boxes[:, :2], each.boxes[:, 2:]
        assert (low >= -1e-3).all() and (high <= torch.tensor([width, height]) + 1e-3).all()
        assert (each.scores[1:] <= each.scores[:-1]).all()


class Bright(Detector):
    """Finds the one place that is brighter than half, to a pixel of what it is given."""

    def __init__(self) -> None:
        super().__init__(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))

    def predict(self, batch: Batch) -> list[Detections]:
        found = []
        for image, size, original in zip(
            batch.images, batch.sizes, batch.original_sizes, strict=True
        ):
            rows, columns = (image[0] > 127).nonzero(as_tuple=True)
            boxes = torch.zeros(0, 4)
            if len(rows):
                box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
                boxes = scale_boxes(torch.stack(box)[None].float(), size, original)
            label = torch.zeros(len(boxes), dtype=torch.long)
            found.append(Detections(boxes, torch.full((len(boxes),), 0.9), label))
        return found


@pytest.fixture(scope="module")
def spots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Annotations of pictures of several shapes, each with one white rectangle."""
    folder = tmp_path_factory.mktemp("spots")
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for index in range(12):
        height, width = rng.integers(60, 160, 2).tolist()
        h, w = rng.integers(16, 32, 2).tolist()
        y, x = int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1))
        picture = np.zeros((height, width, 3), np.uint8)
        picture[y : y + h, x : x + w] = 255
        name = f"{index}.png"
        cv2.imwrite(str(folder / name), picture)
        images.append({"id": index, "file_name": name, "height": height, "width": width})
        annotations.append(
            {"id": index + 1, "image_id": index, "category_id": 1, "bbox": [x, y, w, h]}
        )
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "spot"}],
    }
    (folder / "annotations.json").write_text(json.dumps(content))
    return folder / "annotations.json"


@pytest.mark.parametrize(
    "asked",
    [
        [],
        ["test.flip=true"],
        ["test.scales=[0.5,1,2]"],
        ["test.scales=[0.7,1.3]", "test.flip=true"],
        ["test.tile=64", "test.tile_overlap=0.5"],
        ["test.tile=64", "test.tile_overlap=0.5", "test.tile_whole=true"],
        ["test.tile=70", "test.tile_overlap=0.5", "test.scales=[0.6,1,1.5]", "test.flip=true"],
    ],
)
def test_objects_are_found_however_one_looks(
    tiny_recipe: Callable[..., Recipe], spots: Path, asked: list[str]
) -> None:
    """One box for each object, where it is: a shifted, doubled or lost one would show."""
    recipe = tiny_recipe("data.resize.longest=100", "test.batch_size=3", *asked)
    checkpoint = _Stubbed(recipe, ("spot",), (1,), {}, 1, {}, None)
    data = read_coco(spots, spots.parent)
    found = detect_with(checkpoint, data, device=CPU)
    assert [len(each) for each in found.values()] == [1] * 12
    result = measure(found, data)
    assert result.stats[1] == pytest.approx(1) and result.stats[2] == pytest.approx(1)  # AP50, AP75


class _Stubbed(Checkpoint):
    def detector(self) -> Detector:
        return Bright()


# -------------------------------------------------------------------------------------- ensembles


def test_twice_the_same_is_as_once(
    finished: Callable[..., Checkpoint], tiny_data: tuple[Path, Path], tmp_path: Path
) -> None:
    checkpoint = finished("test.fusion.nms=hard")
    once = measure_ensemble({"a": checkpoint}, folder=tmp_path / "once", device=CPU)
    members = {"a": checkpoint, "b": checkpoint}
    twice = measure_ensemble(members, folder=tmp_path / "twice", device=CPU)
    assert once.stats.tolist() == twice.stats.tolist() and once.stats[1] > 0
    first, second = (
        json.loads((tmp_path / n / "detections.json").read_text()) for n in ("once", "twice")
    )
    assert first == second and len(first) > 30
    metrics = json.loads((tmp_path / "twice" / "metrics.json").read_text())
    assert metrics.pop("checkpoints") == ["a", "b"]
    assert metrics == json.loads((tmp_path / "once" / "metrics.json").read_text())
    again = evaluate_files(tiny_data[0], tmp_path / "twice" / "detections.json")
    assert again.stats.tolist() == twice.stats.tolist()


@pytest.mark.parametrize(
    ("asked", "checkpoints", "noticed"),
    [
        (["test.fusion.nms=soft_gaussian"], 1, True),
        (["test.fusion.nms=soft_gaussian", "test.flip=true"], 1, False),
        (["test.fusion.nms=soft_gaussian"], 2, False),
        ([], 1, False),
    ],
)
def test_a_fusion_of_one_look_is_noticed(
    finished: Callable[..., Checkpoint],
    caplog: pytest.LogCaptureFixture,
    asked: list[str],
    checkpoints: int,
    noticed: bool,
) -> None:
    _ensemble_fuse(dict.fromkeys("ab"[:checkpoints], finished(*asked)))
    assert ("model.select.nms" in caplog.text) == noticed


def test_each_member_prepares_pictures_its_own_way(
    finished: Callable[..., Checkpoint], dataset: CocoDataset, tmp_path: Path
) -> None:
    small, plain = finished("data.resize.longest=48"), finished()
    folder = tmp_path / "both"
    members = {"plain": plain, "small": small}
    without = replace(plain, recipe=_with_fusion(plain.recipe, "none", 1000))
    measure_ensemble({**members, "plain": without}, folder=folder, device=CPU)
    records = json.loads((folder / "detections.json").read_text())
    scores = [
        torch.cat([each.scores for each in detect_with(m, dataset, device=CPU).values()])
        for m in members.values()
    ]
    expected = sorted(torch.cat(scores).tolist())
    assert sorted(record["score"] for record in records) == expected


def _with_fusion(recipe: Recipe, nms: str, limit: int) -> Recipe:
    fusion = recipe.test.fusion.model_copy(update={"nms": nms, "max_detections": limit})
    return recipe.model_copy(update={"test": recipe.test.model_copy(update={"fusion": fusion})})


def test_members_must_know_the_same_classes(
    finished: Callable[..., Checkpoint], tmp_path: Path
) -> None:
    other = replace(finished(), class_names=("cat", "dog", "eel"))
    with pytest.raises(ValueError, match="b knows the classes cat, dog, eel, a knows blue, green"):
        measure_ensemble({"a": finished(), "b": other}, folder=tmp_path / "x", device=CPU)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("names", "weights", "message"),
    [
        ("ab", "[2]", "test.weights has 1 entries for 2 checkpoints; give one each"),
        ("a", "[2,1]", "test.weights has 2 entries for 1 checkpoint; give one each"),
    ],
)
def test_as_many_weights_as_members(
    finished: Callable[..., Checkpoint], tmp_path: Path, names: str, weights: str, message: str
) -> None:
    checkpoint = finished(f"test.weights={weights}")
    with pytest.raises(ValueError, match=message):
        measure_ensemble(dict.fromkeys(names, checkpoint), folder=tmp_path / "x", device=CPU)


def test_validation_data_for_thresholds(
    finished: Callable[..., Checkpoint], dataset: CocoDataset
) -> None:
    evaluator = validation_evaluator(finished(), device=CPU)
    found = detect_with(finished(), dataset, device=CPU)
    assert len(evaluator.flat_detections()) == sum(map(len, found.values()))
    assert evaluator.truths.class_names == ("blue", "green", "red")
    with pytest.raises(ConfigError, match=r"names no data\.val; set data\.val\.format=coco"):
        validation_evaluator(finished("data.val=null"), device=CPU)
