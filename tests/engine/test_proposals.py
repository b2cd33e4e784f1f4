"""From a recipe's proposals to the batches of its loaders, the predictor and the command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from detkit.config import ConfigError, ModelConfig, Recipe, SelectiveSearchConfig
from detkit.data import SearchedProposals, proposals, read_image
from detkit.detectors import create_detector
from detkit.engine.data import build_dataset, eval_loader, train_loader
from detkit.engine.proposal_recall import measure_proposals
from detkit.engine.proposals import picture_proposals, search_settings
from detkit.engine.train import train
from detkit.inference import Predictor
from detkit.proposals import MODES, SearchSettings, selective_search

ROOT = Path(__file__).resolve().parent.parent.parent
SEARCH = ("model.proposals=selective_search", "model.rpn=null")
FEW = (*SEARCH, "model.selective_search.mode=single", "model.roi.max_regions=30")
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DETKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def searches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with each search of this process: none is left for workers to do."""
    calls: list[int] = []

    def counted(image: np.ndarray, settings: SearchSettings) -> np.ndarray:
        calls.append(1)
        return selective_search(image, settings)

    monkeypatch.setattr(proposals, "selective_search", counted)
    monkeypatch.setattr("detkit.engine.proposals.usable_cores", lambda: 1)
    return calls


def test_config_becomes_settings() -> None:
    assert search_settings(SelectiveSearchConfig()) == SearchSettings()
    config = SelectiveSearchConfig(mode="quality", scales=(80.0,), min_size=5, longest=None, seed=3)
    found = search_settings(config)
    assert found.strategies.color_spaces == MODES["quality"].color_spaces
    assert found.strategies.scales == (80.0,)
    assert (found.min_size, found.longest, found.seed) == (5, None, 3)
    with pytest.raises(ValueError, match="unknown color space 'lav'"):
        search_settings(SelectiveSearchConfig(color_spaces=("lav",)))


def test_sections_of_proposals() -> None:
    model = ModelConfig(proposals="selective_search")
    assert model.rpn is None and model.grid is None
    assert model.selective_search == SelectiveSearchConfig()
    assert ModelConfig().selective_search is None
    with pytest.raises(ValueError, match="proposals=rpn has no section 'selective_search'"):
        ModelConfig.model_validate({"selective_search": {}})


def test_every_picture_is_searched_once(
    tiny_recipe: Callable[..., Recipe], searches: list[int]
) -> None:
    recipe = tiny_recipe(*FEW)
    assert recipe.data.train is not None
    dataset = build_dataset(recipe.data.train, role="train")
    batches = list(train_loader(recipe, dataset, pin_memory=False))
    assert len(searches) == 9
    for batch in batches:
        assert batch.proposals is not None
        assert all(0 < len(boxes) <= 30 for boxes in batch.proposals)
    (first, *_) = eval_loader(recipe, dataset, pin_memory=False)
    assert len(searches) == 9
    assert first.proposals is not None and first.targets is not None
    index = dataset.image_ids.tolist().index(first.targets[0].image_id)
    assert recipe.model.selective_search is not None
    fresh = selective_search(dataset[index].image, search_settings(recipe.model.selective_search))
    assert np.array_equal(first.proposals[0].numpy(), fresh[:30])  # 64 px: nothing is resized


def test_other_detectors_get_none(tiny_recipe: Callable[..., Recipe], cache: Path) -> None:
    recipe = tiny_recipe()
    assert recipe.data.train is not None
    dataset = build_dataset(recipe.data.train, role="train")
    for loader in (train_loader, eval_loader):
        batch = next(iter(loader(recipe, dataset, pin_memory=False)))
        assert batch.proposals is None
    assert not cache.exists()


def test_changed_picture_is_searched_again(
    tiny_recipe: Callable[..., Recipe], searches: list[int], cache: Path
) -> None:
    recipe = tiny_recipe(*FEW)
    assert recipe.data.train is not None
    dataset = build_dataset(recipe.data.train, role="train")
    eval_loader(recipe, dataset, pin_memory=False)
    lost = next(path for path in cache.rglob("*") if path.is_file() and len(path.name) == 30)
    lost.unlink()
    list(eval_loader(recipe, dataset, pin_memory=False))  # not ahead, but when it is asked for
    assert len(searches) == 10


def test_file_is_read_and_asked_for(
    tiny_recipe: Callable[..., Recipe], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asked = ("model.proposals=file", "model.rpn=null")
    recipe = tiny_recipe(*asked)
    assert recipe.data.train is not None
    dataset = build_dataset(recipe.data.train, role="train")
    with pytest.raises(ConfigError, match=r"none is named; set data\.train\.proposals=FILE"):
        train_loader(recipe, dataset, pin_memory=False)
    path = tmp_path / "p.json"
    content = [{"image_id": int(i), "bbox": [1, 2, 30, 40]} for i in dataset.image_ids]
    path.write_text(json.dumps(content))
    recipe = tiny_recipe(*asked, f"data.train.proposals={path}")
    assert recipe.data.train is not None
    dataset = build_dataset(recipe.data.train, role="train")
    batch = next(iter(eval_loader(recipe, dataset, pin_memory=False)))
    assert batch.proposals is not None
    assert batch.proposals[0].tolist() == [[1, 2, 31, 42]]
    plain = tiny_recipe(f"data.train.proposals={path}")  # of a detector that finds its own
    assert "not used" not in caplog.text
    assert next(iter(eval_loader(plain, dataset, pin_memory=False))).proposals is None
    assert "proposals is not used: model.proposals is rpn; set it to file" in caplog.text


def test_trains_and_predicts_on_searched_proposals(
    tiny_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    recipe = tiny_recipe(*FEW, "train.epochs=1")
    train(recipe, folder=tmp_path / "run", device=CPU)
    assert (tmp_path / "run" / "best.pt").exists()


def predictor(recipe: Recipe) -> Predictor:
    torch.manual_seed(0)
    detector = create_detector(recipe.model, num_classes=3)
    return Predictor(detector, recipe, class_names="abc", category_ids=(1, 2, 3), device=CPU)


def test_predictor_searches_the_picture(
    tiny_recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe(*FEW, "model.select.score_threshold=0")
    assert recipe.data.train is not None and recipe.model.selective_search is not None
    seen = []
    one = predictor(recipe)
    monkeypatch.setattr(
        one.detector.rpn, "find", lambda features, batch: seen.append(batch) or batch.proposals
    )
    dataset = build_dataset(recipe.data.train, role="train")
    found = one(dataset.path(0))
    assert len(found)
    expected = selective_search(
        read_image(dataset.path(0)), search_settings(recipe.model.selective_search)
    )
    assert np.array_equal(seen[0].proposals[0].numpy(), expected[:30])


def test_predictor_has_no_file_for_other_pictures(tiny_recipe: Callable[..., Recipe]) -> None:
    one = predictor(tiny_recipe("model.proposals=file", "model.rpn=null"))
    with pytest.raises(ValueError, match=r"model\.proposals=file has regions for the images of a"):
        one(np.zeros((64, 64, 3), np.uint8))
    assert picture_proposals(ModelConfig()) is None


def test_recall_of_searched_boxes_of_a_file_and_of_a_first_stage(
    tiny_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    recipe = tiny_recipe(*SEARCH)
    report = measure_proposals(recipe, split="train", detector=None, device=CPU)
    assert len(report.proposals) == 9
    assert report.recall.at(0.5, 100) > 0.7  # plain rectangles, some of them overlapping
    assert report.seconds is not None and report.seconds > 0
    assert str(report).startswith("selective search: ") and "recall@0.5" in str(report)
    assert "seconds a picture" in str(report)
    rpn = tiny_recipe()
    detector = create_detector(rpn.model, num_classes=3)
    report = measure_proposals(rpn, split="train", detector=detector, device=CPU)
    assert all(len(boxes) <= 20 for boxes in report.proposals.values())
    assert str(report).startswith("first stage, RPN: ")
    assert 0 <= report.recall.at(0.5, 100) <= 1
    with pytest.raises(ConfigError, match=r"names no data\.test"):
        measure_proposals(rpn, split="test", detector=None, device=CPU)
    retina = create_detector(
        {"detector": "sliding_window", "backbone": {"name": "lenet5"}}, num_classes=3
    )
    with pytest.raises(ValueError, match=r"proposes no regions; give a checkpoint"):
        measure_proposals(rpn, split="train", detector=retina, device=CPU)


def test_command_writes_what_a_recipe_reads(
    tiny_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    recipe = tiny_recipe(*SEARCH)
    assert recipe.data.train is not None
    source = recipe.data.train.model_dump_json()
    path, out = tmp_path / "recipe.yaml", tmp_path / "out.json"
    path.write_text(f"name: tiny\ndata: {{train: {source}}}\n")

    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "proposals.py", path, "--split", "train", "--out", out],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    stored = measure_proposals(
        tiny_recipe("model.proposals=file", "model.rpn=null", f"data.train.proposals={out}"),
        split="train",
        detector=None,
        device=CPU,
    )
    table = str(stored).splitlines()[2:]
    assert done.stdout.splitlines()[2:] == [*table, "", f"written to {out}"]
    assert "recall@0.5:0.95" in done.stdout
    assert SearchedProposals(SearchSettings()).folder().exists()
