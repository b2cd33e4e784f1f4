"""What a finished detector reports can be changed, wherever it keeps that."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import detkit
from detkit.inference.selection import select_by, selection_of


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)


@pytest.mark.parametrize("views", [[], ["test.flip=true"], ["test.tile=64"]])
def test_changed_is_as_loaded_so(
    tiny_checkpoint: Path, picture: np.ndarray, views: list[str]
) -> None:
    predictor = detkit.load(tiny_checkpoint, device="cpu", overrides=views)
    before, usual = predictor(picture), selection_of(predictor.detector)
    assert usual is not None and usual.nms == "hard" and len(before) > 0

    select_by(predictor.detector, replace(usual, nms="none", max_detections=7))
    changed = predictor(picture)
    assert 0 < len(changed) < len(before)
    if not views:  # what joins several answers is as it was
        wanted = ["model.select.nms=none", "model.select.max_detections=7"]
        expected = detkit.load(tiny_checkpoint, device="cpu", overrides=wanted)(picture)
        assert torch.equal(changed.boxes, expected.boxes) and len(changed) == 7

    select_by(predictor.detector, usual)
    assert torch.equal(predictor(picture).boxes, before.boxes)


def test_fixed_selection_says_so() -> None:
    fixed = nn.Sequential(nn.Identity())
    fixed.selection = "none of ours"  # type: ignore[assignment]
    assert selection_of(fixed) is None
    with pytest.raises(ValueError, match="Sequential has its suppression built in"):
        select_by(fixed, None)  # type: ignore[arg-type]
