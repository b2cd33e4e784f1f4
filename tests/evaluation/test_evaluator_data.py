"""The workloads of the benchmark: files and arrays hold the same, and each time the same."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "evaluator_data.py"


@pytest.fixture
def data(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("evaluator_data", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "evaluator_data", module)  # where dataclasses look
    spec.loader.exec_module(module)
    tiny = {"rounded": module.Preset(60), "exact": module.Preset(60, rounded=False)}
    monkeypatch.setattr(module, "PRESETS", tiny)
    return module


@pytest.mark.parametrize("name", ["rounded", "exact"])
def test_files_hold_the_arrays(data: ModuleType, name: str, tmp_path: Path) -> None:
    folder = data.write_workload(name, tmp_path)
    work = data.make_workload(name)
    assert np.array_equal(np.load(folder / "detections.npy"), work.detections)
    found = json.loads((folder / "dt.json").read_text())
    rows = [[r["image_id"], *r["bbox"], r["score"], r["category_id"]] for r in found]
    assert np.array_equal(rows, work.detections)

    truths = json.loads((folder / "gt.json").read_text())
    columns = {key: [r[key] for r in truths["annotations"]] for key in truths["annotations"][0]}
    assert columns["image_id"] == work.image_ids[work.image].tolist()
    assert columns["category_id"] == work.category_ids[work.category].tolist()
    assert columns["bbox"] == work.boxes.tolist()
    assert columns["area"] == work.area.tolist()
    assert columns["id"] == work.ids.tolist() and len(set(work.ids.tolist())) == len(work.ids)
    assert columns["iscrowd"] == work.crowd.astype(int).tolist()
    masks = zip(columns["segmentation"], columns["iscrowd"], strict=True)
    assert all(isinstance(mask, dict) == bool(crowd) for mask, crowd in masks)
    assert [image["id"] for image in truths["images"]] == work.image_ids.tolist()


def test_a_workload_is_like_its_data_set(data: ModuleType) -> None:
    work = data.make_workload("rounded")
    assert len(work.category_ids) == 80 and work.category_ids[-1] == 90
    assert len(work.detections) == 60 * 100
    assert 3 < len(work.ids) / 60 < 12
    small = (work.area < 32**2).mean()
    assert 0.25 < small < 0.55
    sizes = work.sizes[work.image]
    assert (work.boxes[:, 2:] > 0).all() and (work.boxes[:, :2] >= 0).all()
    assert (work.boxes[:, :2] + work.boxes[:, 2:] <= sizes + 1e-9).all()
