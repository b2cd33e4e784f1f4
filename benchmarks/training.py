"""Training beside torchvision's reference loop in one run: images per second, waits for data.

    python benchmarks/training.py --rounds 5                              # CPU, 320 px, batch 2
    python benchmarks/training.py --device cuda --size 800 --batch 16 --workers 8 --pictures 512

Both train the same detector from the same weights, with the same frozen stages, on the same JPEG
files, flipped by chance, in batches of the same size, read by as many processes, on as many
threads. Torchvision's side is its reference loop: pictures by Pillow, float tensors in a list,
resized within the model, NCHW, float32, a check of the loss in every step. Detkit's is its engine:
its loader, uint8, its `train_step`, once as its recipes have it (autocast to what the hardware
computes in, channels_last) and once in float32 and NCHW. They take turns in short rounds, so that a
neighbour on the machine slows all; a figure is the median over the rounds, a ratio that of the
rounds' ratios. On a CPU the ratio of the processor's time stands beside that of the clock: it
leaves out the turns of the neighbours, and the processes that read.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from detectors import build_theirs  # the script beside this one
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.transforms import v2

from detkit.backbones.weights import load_into
from detkit.config import Recipe, build_recipe
from detkit.data.loader import AspectBatchSampler
from detkit.detectors.torchvision_weights import PUBLISHED, convert
from detkit.engine.data import build_dataset
from detkit.engine.run import prepare_run
from detkit.engine.state import build_state
from detkit.engine.train import train_step

NUM_CLASSES = 90
HEIGHT, WIDTH = 480, 640


def write_pictures(folder: Path, count: int) -> None:
    """Pictures of rectangles on noise as JPEG files, and their truths in COCO JSON."""
    rng = np.random.default_rng(0)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(count):
        noise = rng.integers(0, 256, (HEIGHT // 16, WIDTH // 16, 3), dtype=np.uint8)
        picture = cv2.resize(noise, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
        for _ in range(7):
            w, h = rng.integers(20, 200, 2).tolist()
            x, y = int(rng.integers(0, WIDTH - w)), int(rng.integers(0, HEIGHT - h))
            picture[y : y + h, x : x + w] = rng.integers(0, 256, 3)
            record = {"id": len(annotations) + 1, "image_id": index, "bbox": [x, y, w, h]}
            kind = int(rng.integers(1, NUM_CLASSES + 1))
            annotations.append({**record, "category_id": kind, "area": w * h, "iscrowd": 0})
        name = f"{index}.jpg"
        cv2.imwrite(str(folder / name), picture)
        images.append({"id": index, "file_name": name, "width": WIDTH, "height": HEIGHT})
    categories = [{"id": index + 1, "name": f"kind {index}"} for index in range(NUM_CLASSES)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "truths.json").write_text(json.dumps(content), encoding="utf-8")


class Pictures(Dataset[Any]):
    """As the reference's: Pillow, to a float tensor, flipped by chance.

    Args:
        dataset: ours, of which the file names and boxes are taken.
    """

    def __init__(self, dataset: Any) -> None:
        self.paths = [dataset.path(index) for index in range(len(dataset))]
        samples = [dataset[index] for index in range(len(dataset))]
        self.targets = [(torch.from_numpy(s.boxes), torch.from_numpy(s.labels)) for s in samples]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        image = v2.functional.pil_to_tensor(Image.open(self.paths[index]).convert("RGB"))
        boxes, labels = self.targets[index]
        if torch.rand(()) < 0.5:
            image = v2.functional.horizontal_flip(image)
            boxes = torch.stack(
                [WIDTH - boxes[:, 2], boxes[:, 1], WIDTH - boxes[:, 0], boxes[:, 3]], dim=1
            )
        image = v2.functional.to_dtype(image, torch.float32, scale=True)
        return image, {"boxes": boxes, "labels": labels + 1}


def _tuples(batch: list[Any]) -> tuple[Any, ...]:
    return tuple(zip(*batch, strict=True))


class Contestant:
    """Batches one after the other, and a step on each; keeps the time and the waits.

    Args:
        name: in the table.
        batches: without end.
        step: on one.
        device: whose work a round ends with.
    """

    def __init__(
        self, name: str, batches: Iterator[Any], step: Callable[[Any], None], device: torch.device
    ) -> None:
        self.name, self.batches, self.step, self.device = name, batches, step, device
        self.seconds: list[float] = []
        self.computing: list[float] = []
        self.waits: list[float] = []

    def round(self, steps: int) -> None:
        """So many steps."""
        begin, computed, waited = time.perf_counter(), time.process_time(), 0.0
        for _ in range(steps):
            mark = time.perf_counter()
            batch = next(self.batches)
            waited += time.perf_counter() - mark
            self.step(batch)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds.append(time.perf_counter() - begin)
        self.computing.append(time.process_time() - computed)
        self.waits.append(waited / self.seconds[-1])


def _endless(loader: DataLoader[Any]) -> Iterator[Any]:
    epoch = 0
    while True:
        if isinstance(loader.batch_sampler, AspectBatchSampler):
            loader.batch_sampler.set_epoch(epoch)
        yield from loader
        epoch += 1


def ours(name: str, recipe: Recipe, weights: dict[str, Tensor], device: torch.device) -> Contestant:
    """The engine's loader and step."""
    run = prepare_run(recipe, Path("unused"), device)
    state = build_state(run, with_weights=False)
    load_into(state.detector, weights, source="torchvision's model")
    state.detector.train()

    def step(batch: Any) -> None:
        train_step(state.detector, state, run, batch)

    return Contestant(name, _endless(run.loader), step, device)


def theirs(model: nn.Module, recipe: Recipe, workers: int, device: torch.device) -> Contestant:
    """Torchvision's reference loop."""
    assert recipe.data.train is not None
    loader = DataLoader(
        Pictures(build_dataset(recipe.data.train, role="train")),
        batch_size=recipe.train.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=_tuples,
    )
    model.train()
    learning = [each for each in model.parameters() if each.requires_grad]
    optimizer = torch.optim.SGD(learning, lr=1e-5, momentum=0.9, weight_decay=1e-4)

    def step(batch: Any) -> None:
        images = [image.to(device) for image in batch[0]]
        targets = [{key: value.to(device) for key, value in each.items()} for each in batch[1]]
        losses = model(images, targets)
        total = sum(losses.values())
        if not np.isfinite(total.item()):
            raise FloatingPointError("loss is not finite")
        optimizer.zero_grad()
        total.backward()
        optimizer.step()

    return Contestant("torchvision", _endless(loader), step, device)


def make_recipe(options: argparse.Namespace, folder: Path) -> Recipe:
    """Of our side as the recipes have it."""
    source = {"format": "coco", "annotations": str(folder / "truths.json"), "images": str(folder)}
    return build_recipe(
        {
            "name": "benchmark",
            "data": {
                "train": source,
                "resize": {"shortest": options.size, "longest": 2 * options.size},
                "augment": {"horizontal_flip": 0.5},
                "workers": options.workers,
            },
            "model": PUBLISHED[options.model].model_dump(mode="json", exclude_none=True),
            "train": {
                "batch_size": options.batch,
                "optimizer": {"name": "sgd", "lr": 1e-5},
                "schedule": {"name": "constant", "warmup_steps": 0},
            },
        }
    )


def in_float32(recipe: Recipe) -> Recipe:
    """The same without what makes it fast."""
    plain = recipe.train.model_copy(update={"amp": "off", "channels_last": False})
    return recipe.model_copy(update={"train": plain})


def main() -> None:
    """Read the command line and compare."""
    parser = argparse.ArgumentParser(description="Training of detkit and of torchvision.")
    parser.add_argument("--model", default="fasterrcnn_resnet50_fpn", choices=tuple(PUBLISHED))
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--size", type=int, default=320, help="shorter side of the pictures")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--workers", type=int, default=1, help="processes that read, of each")
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=4, help="in a round")
    options = parser.parse_args()
    device = torch.device(options.device)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        write_pictures(Path(folder), options.pictures)
        recipe = make_recipe(options, Path(folder))
        model = build_theirs(options.model, options.size, 0.05)
        assert isinstance(model.transform, GeneralizedRCNNTransform)
        model.transform.max_size = 2 * options.size
        weights = convert(model.state_dict())
        contestants = [
            ours("detkit", recipe, weights, device),
            ours("detkit float32", in_float32(recipe), weights, device),
            theirs(model.to(device), recipe, options.workers, device),
        ]
        for index in range(options.rounds + 1):  # the first warms up
            for each in contestants if index % 2 else contestants[::-1]:
                each.round(options.steps if index else 2)
    print(
        f"{options.model}: {torch.cuda.get_device_name() if device.type == 'cuda' else 'CPU'}, "
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {options.workers} workers, "
        f"{options.size} px, batch {options.batch}, {options.rounds} x {options.steps} steps"
    )
    images = options.steps * options.batch
    for each in contestants:
        seconds = statistics.median(each.seconds[1:])
        wait = statistics.median(each.waits[1:])
        line = f"{each.name:15} {images / seconds:7.2f} images/s  waits {wait:5.1%}  ratio "
        line += f"{_ratio(contestants[-1].seconds, each.seconds):.2f}"
        if device.type == "cpu":
            computing = _ratio(contestants[-1].computing, each.computing)
            line += f"  of the processor's time {computing:.2f}"
        print(line)


def _ratio(theirs: list[float], ours: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(theirs[1:], ours[1:], strict=True))


if __name__ == "__main__":
    main()
