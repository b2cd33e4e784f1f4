"""Formats by name, as a recipe gives them."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from detkit.data import CocoDataset
from detkit.registry import datasets


def test_coco(tmp_path: Path):
    content = {
        "images": [{"id": 4, "file_name": "a.png", "width": 8, "height": 6}],
        "annotations": [],
        "categories": [{"id": 1, "name": "cat"}],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((6, 8, 3), np.uint8))
    dataset = datasets["coco"](annotations=str(tmp_path / "a.json"), images=str(tmp_path))
    assert isinstance(dataset, CocoDataset)
    assert dataset[0].image.shape == (6, 8, 3)


def test_the_built_in_set_goes_through_the_same_reader(tmp_path: Path):
    settings = {"split": "val", "num_images": 2, "seed": 1, "image_size": (64, 96)}
    dataset = datasets["synthetic"](**settings, cache=tmp_path)
    assert isinstance(dataset, CocoDataset)
    assert len(dataset) == 2
    assert len(dataset.class_names) == 10
    assert dataset[1].image.shape == (64, 96, 3)
    files = sorted(path.stat().st_mtime_ns for path in tmp_path.rglob("*.jpg"))
    datasets["synthetic"](**settings, cache=tmp_path)  # written once
    assert sorted(path.stat().st_mtime_ns for path in tmp_path.rglob("*.jpg")) == files


def test_an_unknown_format_is_suggested():
    with pytest.raises(ValueError, match="did you mean 'coco'"):
        datasets["cocoa"]
