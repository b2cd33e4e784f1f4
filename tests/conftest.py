"""Fixtures shared by all tests."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

# Before torch is there, and for the commands that tests start: what they compute is too small to
# share among threads, and workers side by side would wait for each other's
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell has what it starts in the background ignore Ctrl-C, and so would the commands of the tests
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from detkit.config import Recipe, build_recipe
from detkit.detectors import create_detector
from detkit.engine.checkpoint import Checkpoint, save_checkpoint

pytest_plugins = ["tests.browser"]

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real pictures and annotations for stronger tests; skips where there is none."""
    folder = Path(os.environ.get("DETKIT_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("no real test data here (set DETKIT_TEST_DATA to its folder)")
    return folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests marked `gpu` where there is none."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector of three classes (ids 2, 5, 9) with random weights that finds something."""
    recipe = build_recipe(
        {
            "name": "tiny",
            "data": {"resize": {"shortest": 64, "longest": 96}},
            "model": {
                "backbone": {"name": "resnet18", "width": 8, "out_indices": [2, 3]},
                "fpn": {"channels": 16, "extra": None},
                "rpn": {"anchor_sizes": [[16], [32]], "post_nms_test": 50},
                "roi": {"hidden": 32},
                "select": {"score_threshold": 0.1},
            },
            "test": {"batch_size": 4},
        }
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        detector = create_detector(recipe.model, num_classes=3)
    path = tmp_path_factory.mktemp("run") / "best.pt"
    save_checkpoint(
        path,
        Checkpoint(
            recipe=recipe,
            class_names=("cat", "Füße", "dog"),
            category_ids=(2, 5, 9),
            weights=detector.state_dict(),
            epoch=1,
            metrics={},
            training=None,
        ),
    )
    return path


class TinyData(NamedTuple):
    """A data set in COCO JSON."""

    annotations: Path
    images: Path


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> TinyData:
    """Nine pictures of coloured rectangles, category ids 7, 90 and 300, image ids with gaps.

    One is empty, one has a crowd region, two are of another shape.
    """
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    colors = {7: (220, 40, 40), 90: (40, 220, 40), 300: (40, 40, 220)}  # BGR
    images, annotations = [], []
    for index in range(9):
        height, width = (48, 64) if index in (2, 5) else (64, 64)
        picture = rng.integers(90, 150, (height, width, 3), dtype=np.uint8)
        image_id, name = 10 * index + 3, f"{index}.png"
        for _ in range(0 if index == 4 else 2):
            w, h = rng.integers(14, 30, 2).tolist()
            x, y = int(rng.integers(0, width - w)), int(rng.integers(0, height - h))
            category = int(rng.choice(list(colors)))
            picture[y : y + h, x : x + w] = colors[category]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": category,
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "iscrowd": int(len(annotations) == 6),
                }
            )
        images.append({"id": image_id, "file_name": name, "width": width, "height": height})
        (folder / "images").mkdir(exist_ok=True)
        cv2.imwrite(str(folder / "images" / name), picture)
    categories = [
        {"id": i, "name": n} for i, n in zip(colors, ("blue", "green", "red"), strict=True)
    ]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(content), encoding="utf-8")
    return TinyData(folder / "annotations.json", folder / "images")


@pytest.fixture(scope="session")
def tiny_recipe(tiny_data: TinyData) -> Callable[..., Recipe]:
    """`tiny_recipe("key.path=value", ...)`: a small detector to train on `tiny_data`."""
    source = {
        "format": "coco",
        "annotations": str(tiny_data.annotations),
        "images": str(tiny_data.images),
    }
    tree = {
        "name": "tiny",
        "data": {
            "train": source,
            "val": source,
            "resize": {"shortest": None, "longest": 64},
            "augment": {"scale_jitter": [0.8, 1.2], "color": 0.1},
            "workers": 0,
        },
        "model": {
            "backbone": {"name": "resnet18", "width": 8, "out_indices": [2, 3]},
            "fpn": {"channels": 16, "extra": None},
            "rpn": {
                "anchor_sizes": [[12], [24]],
                "samples": 32,
                "post_nms_train": 40,
                "post_nms_test": 20,
            },
            "roi": {"hidden": 16, "samples": 16, "canonical_size": 24.0, "canonical_level": 3},
        },
        "train": {
            "epochs": 4,
            "batch_size": 3,
            "optimizer": {"name": "adamw", "lr": 3e-3},
            "schedule": {"name": "cosine", "warmup_steps": 2},
            "ema": {"decay": 0.9, "warmup_steps": 5},
            "clip_norm": 5.0,
            "amp": "off",
            "log_every": 1,
        },
        "test": {"batch_size": 4},
    }

    def make(*overrides: str) -> Recipe:
        return build_recipe(tree, overrides)

    return make


# --- how golden values were computed: every tensor a known wave -----------------------------
#
# The values come from the authors' released code (float64, evaluation); this repeats only how
# input and state were filled and what was reported.


def _wave(shape: tuple[int, ...], k: float) -> Tensor:
    """sin(0.7 i + k) over the elements in row-major order."""
    count = int(torch.tensor(shape).prod()) if shape else 1
    return torch.sin(0.7 * torch.arange(count, dtype=torch.float64) + k).view(shape)


def _golden_input(shape: tuple[int, ...]) -> Tensor:
    """The input; for (2, 32, 8, 8) its sum is 101.759815 and its absolute sum 2773.297820."""
    count = int(torch.tensor(shape).prod())
    slow = 0.5 * torch.sin(0.01 * torch.arange(count, dtype=torch.float64)).view(shape)
    return _wave(shape, 0.3) + slow


def _fill(module: nn.Module, *, first: int = 1) -> nn.Module:
    """Give the k-th floating tensor of the state_dict its wave; float64, in evaluation.

    Args:
        module: changed in place.
        first: k of the first tensor.
    """
    module.double().eval()
    tensors = [(n, t) for n, t in module.state_dict().items() if t.is_floating_point()]
    for k, (name, tensor) in enumerate(tensors, start=first):
        values = _wave(tuple(tensor.shape), k)
        tensor.copy_(1 + 0.5 * values**2 if name.endswith("running_var") else 0.5 * values)
    return module


def _report(y: Tensor) -> tuple[float, float, float]:
    """Sum, absolute sum, and a sum in which every place counts differently."""
    flat = y.detach().double().flatten()
    weights = (37 * torch.arange(len(flat), dtype=torch.float64)) % 101 / 101
    return float(flat.sum()), float(flat.abs().sum()), float((flat * weights).sum())


def _randomise(module: nn.Module, *, seed: int = 0) -> nn.Module:
    """Random parameters and statistics: modules that start as the identity hide every mistake."""
    generator = torch.Generator().manual_seed(seed)
    module.double().eval()
    for parameter in module.parameters():
        parameter.data.normal_(0, 0.5, generator=generator)
    for norm in module.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            norm.weight.data.uniform_(0.5, 1.5, generator=generator)
            norm.running_mean.normal_(0, 0.1, generator=generator)
            norm.running_var.uniform_(0.5, 1.5, generator=generator)
    return module


@pytest.fixture(scope="session")
def golden_input() -> Callable[[tuple[int, ...]], Tensor]:
    """Shape -> the input of that shape, float64."""
    return _golden_input


@pytest.fixture(scope="session")
def fill() -> Callable[..., nn.Module]:
    """`fill(module, first=1)`: known values in every tensor of the state_dict, in its order."""
    return _fill


@pytest.fixture(scope="session")
def report() -> Callable[[Tensor], tuple[float, float, float]]:
    """Output -> (sum, abs, chk), the three numbers of a golden value."""
    return _report


@pytest.fixture(scope="session")
def randomise() -> Callable[..., nn.Module]:
    """`randomise(module, seed=0)`: random parameters and statistics, float64, evaluation."""
    return _randomise
