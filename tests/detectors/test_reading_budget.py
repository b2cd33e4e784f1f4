"""How much a reader has to open to follow one training step of Faster R-CNN."""

from __future__ import annotations

import sys
from pathlib import Path
from types import FrameType

import torch

import detkit
from detkit.detectors import create_detector
from detkit.structures import Batch, Target

PACKAGE = Path(detkit.__file__).parent
MAX_FILES, MAX_FUNCTIONS = 14, 45


def test_a_training_step_stays_within_a_readers_budget() -> None:
    detector = create_detector({"backbone": {"name": "resnet18"}}, num_classes=3)
    boxes = torch.tensor([[10.0, 20, 60, 70]])
    target = Target(boxes, torch.tensor([1]), 7, torch.tensor([False]), torch.tensor([2500.0]))
    images = torch.zeros(1, 3, 96, 128, dtype=torch.uint8)
    batch = Batch(images, ((96, 128),), ((96, 128),), (target,))
    called: set[tuple[str, str, int]] = set()

    def note(frame: FrameType, event: str, _argument: object) -> None:
        code = frame.f_code
        inside = Path(code.co_filename).is_relative_to(PACKAGE)
        if event == "call" and inside and not code.co_name.startswith("<"):
            called.add((code.co_filename, code.co_name, code.co_firstlineno))

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        detector(batch)
    finally:
        sys.setprofile(before)
    files = {Path(file).name for file, _, _ in called}
    assert {"rpn.py", "roi.py", "matching.py", "fpn.py"} <= files
    assert len({file for file, _, _ in called}) <= MAX_FILES, sorted(files)
    assert len(called) <= MAX_FUNCTIONS, sorted(called)
