"""Pictures a second, decoded and augmented, beside torchvision's v2 transforms; and memory.

    python benchmarks/loader.py --data FOLDER [--rounds 7] [--images 64]
    python benchmarks/loader.py --memory [--images 100000] [--epochs 4]

The folder holds `coco.json` and the pictures it names. Each contestant is a process of its own with
one thread; in every round all take their turn on the same pictures, and the ratios are medians over
the rounds. Seconds are those of the processor, so that other load on the machine counts less.

The work: decode, longest side to 640 (bilinear, no antialias), flip, brightness, contrast,
saturation and hue; "mosaic" puts four pictures together first. Ultralytics takes part where it is
installed, with its own default settings: its mosaic has the same four pictures, but three of them
from a buffer of decoded ones, so that it decodes one where the others decode four.

With `--memory`: the memory of all processes (proportional set size: shared pages count once, and
libraries not at all, because their share depends on other programs) in each epoch over a generated
annotation file, with four workers.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader
from torchvision import io, tv_tensors
from torchvision.transforms import v2

from detkit.data import TrainTransform, create_loader, read_coco
from detkit.data.loader import objects_left_alone
from detkit.data.mixing import CENTER, GREY, MOSAIC_SCALE, MixTransform
from detkit.data.reading import Reader
from detkit.structures import Batch

SIDE, WORKERS = 640, 4
Make = Callable[[int, int], Any]  # (index, seed) -> whatever a picture and its boxes are


def detkit_maker(folder: Path, *, mosaic: bool) -> Make:
    """Ours."""
    reader = Reader(read_coco(folder / "coco.json", folder))
    transform = TrainTransform(shortest=None, longest=SIDE, color=0.5)
    mixed = MixTransform(transform=transform, reader=reader, mosaic=1.0)
    return lambda index, seed: (mixed if mosaic else transform)(reader(index, seed), seed)


def torchvision_maker(folder: Path, *, mosaic: bool) -> Make:
    """The same steps of torchvision's, in the same order, on tensors."""
    dataset = read_coco(folder / "coco.json", folder)
    _, labels, _ = dataset.truths()
    ends = np.cumsum(dataset.counts())
    after = v2.Compose(
        [
            v2.RandomHorizontalFlip(0.5),
            v2.RandomApply([v2.ColorJitter(0.2, 0.2, 0.3, 0.015)], 0.8),
            v2.RandomGrayscale(0.025),
            v2.ClampBoundingBoxes(),
            v2.SanitizeBoundingBoxes(),
        ]
    )

    def read(index: int, longest: int) -> dict[str, Any]:
        data = io.read_file(str(dataset.path(index)))
        image = io.decode_image(data, io.ImageReadMode.RGB, apply_exif_orientation=True)
        part = slice(ends[index - 1] if index else 0, ends[index])
        boxes = tv_tensors.BoundingBoxes(
            torch.from_numpy(dataset._boxes[part]), format="XYXY", canvas_size=image.shape[1:]
        )
        found = {
            "image": tv_tensors.Image(image),
            "boxes": boxes,
            "labels": torch.from_numpy(labels[part]),
        }
        return v2.Resize(None, max_size=longest, antialias=False)(found)

    def join(indices: list[int]) -> dict[str, Any]:
        factors = torch.empty(4).uniform_(*MOSAIC_SCALE)
        parts = [read(i, round(SIDE * float(f))) for i, f in zip(indices, factors, strict=True)]
        height, width = (round(side / float(factors[0])) for side in parts[0]["image"].shape[1:])
        x, y = (
            int(s * f)
            for s, f in zip((width, height), torch.empty(2).uniform_(*CENTER), strict=True)
        )
        canvas, boxes = torch.full((3, height, width), GREY, dtype=torch.uint8), []
        for turn, part in enumerate(parts):
            h, w = part["image"].shape[1:]
            left, top = (x if turn % 2 else x - w), (y if turn // 2 else y - h)
            x1, y1, x2, y2 = max(left, 0), max(top, 0), min(left + w, width), min(top + h, height)
            canvas[:, y1:y2, x1:x2] = part["image"][:, y1 - top : y2 - top, x1 - left : x2 - left]
            moved = part["boxes"].as_subclass(torch.Tensor) + torch.tensor([left, top] * 2)
            low, high = torch.tensor([x1, y1] * 2), torch.tensor([x2, y2] * 2)
            boxes.append(moved.clamp(low, high))
        joined = tv_tensors.BoundingBoxes(
            torch.cat(boxes), format="XYXY", canvas_size=(height, width)
        )
        every = torch.cat([part["labels"] for part in parts])
        return {"image": tv_tensors.Image(canvas), "boxes": joined, "labels": every}

    def make(index: int, seed: int) -> Any:
        torch.manual_seed(seed)
        if not mosaic:
            return after(read(index, SIDE))
        return after(join([index, *torch.randint(len(dataset), (3,)).tolist()]))

    return make


def ultralytics_maker(folder: Path, *, mosaic: bool) -> Make:
    """Its training data with its defaults, in a copy of the files: it writes beside them."""
    from ultralytics.cfg import get_cfg
    from ultralytics.data.dataset import YOLODataset

    settings = get_cfg()
    settings.mosaic = float(mosaic)
    # never in the folder itself, nor in links to it: labels get a cache beside them
    copied = tempfile.TemporaryDirectory()
    for name in ("images", "labels"):
        shutil.copytree(folder / name, Path(copied.name, name), copy_function=shutil.copyfile)
        Path(copied.name, name).chmod(0o700)
    names = {i: str(i) for i in range(80)}
    dataset = YOLODataset(
        img_path=str(Path(copied.name, "images")),
        data={"names": names, "nc": 80, "channels": 3},
        imgsz=SIDE,
        augment=True,
        hyp=settings,
        batch_size=16,
    )

    def make(index: int, seed: int) -> Any:
        assert copied  # it goes with its last user
        random.seed(seed)
        np.random.seed(seed % 2**32)
        return dataset[index % len(dataset)]

    return make


MAKERS = {
    "detkit": detkit_maker,
    "torchvision": torchvision_maker,
    "ultralytics": ultralytics_maker,
}


def serve(name: str, folder: Path, mosaic: bool, pipe: Connection) -> None:
    """Make the pictures that are asked for; answer with the seconds that it took."""
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    make = MAKERS[name](folder, mosaic=mosaic)
    while (order := pipe.recv()) is not None:
        start = time.process_time()
        for index, seed in order:
            make(index, seed)
        pipe.send(time.process_time() - start)


def compare(folder: Path, *, mosaic: bool, names: list[str], rounds: int, images: int) -> None:
    """Print pictures a second, and how many times those of torchvision they are."""
    context = multiprocessing.get_context("spawn")
    pipes, processes = {}, []
    for name in names:
        pipes[name], theirs = context.Pipe()
        processes.append(context.Process(target=serve, args=(name, folder, mosaic, theirs)))
        processes[-1].start()
    count = len(json.loads((folder / "coco.json").read_text(encoding="utf-8"))["images"])
    rng = np.random.default_rng(0)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds + 1):  # the first warms up
        order = [(int(i), int(rng.integers(2**31))) for i in rng.integers(count, size=images)]
        for name in names if turn % 2 else names[::-1]:
            pipes[name].send(order)
            taken = pipes[name].recv()
            if turn:
                seconds[name].append(taken)
    for name in names:
        pipes[name].send(None)
        rate = images / statistics.median(seconds[name])
        ratios = [a / b for a, b in zip(seconds["torchvision"], seconds[name], strict=True)]
        print(
            f"{'mosaic' if mosaic else 'single':7} {name:12} {rate:6.1f} pictures/s  "
            f"{statistics.median(ratios):5.2f}x torchvision ({min(ratios):.2f}..{max(ratios):.2f})",
            flush=True,
        )
    for process in processes:
        process.join()


def proportional_memory(pids: list[int]) -> float:
    """MiB of some processes, what they share counted once; without the files that are mapped.

    The share in libraries changes with who else on the machine uses them.
    """
    total, counted = 0, ("Pss_Anon:", "Pss_Shmem:")
    for pid in pids:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
        total += sum(int(line.split()[1]) for line in lines if line.startswith(counted))
    return total / 1024


def write_large_data(folder: Path, images: int) -> None:
    """Annotations of many images with three boxes each; 16 files stand for all of them."""
    rng = np.random.default_rng(0)
    for n in range(16):
        cv2.imwrite(str(folder / f"{n}.jpg"), rng.integers(0, 255, (32, 48, 3), np.uint8))
    pictures = [
        {"id": i, "file_name": f"{i % 16}.jpg", "width": 48, "height": 32} for i in range(images)
    ]
    truths = [
        {"id": i, "image_id": i // 3, "category_id": 1 + i % 80, "bbox": [5, 5, 9 + i % 20, 12]}
        | {"area": 100, "iscrowd": 0}
        for i in range(3 * images)
    ]
    classes = [{"id": 1 + i, "name": f"class {i}"} for i in range(80)]
    content = {"images": pictures, "annotations": truths, "categories": classes}
    (folder / "coco.json").write_text(json.dumps(content), encoding="utf-8")


def watch_epoch(loader: DataLoader[Batch], epoch: int) -> None:
    """Print memory twice within an epoch, when the workers are there."""
    loader.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]
    start, batches, pictures = time.perf_counter(), len(loader), 0
    for turn, batch in enumerate(loader):
        pictures += len(batch)
        if turn in (batches // 10, batches - 5):
            workers = [w.pid for w in loader._iterator._workers]  # type: ignore[union-attr]
            total = proportional_memory([os.getpid(), *workers])
            print(f"epoch {epoch + 1}, batch {turn:6d}: {total:7.1f} MiB", flush=True)
    print(f"epoch {epoch + 1}: {pictures / (time.perf_counter() - start):.0f} pictures/s")


def watch_memory(images: int, epochs: int) -> None:
    """Print the memory of the loader and its workers after each epoch."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_large_data(folder, images)
        dataset = read_coco(folder / "coco.json", folder)
        transform = TrainTransform(shortest=None, longest=48, color=0.5)
        loader = create_loader(
            dataset, transform, batch_size=64, seed=0, shuffle=True, workers=WORKERS
        )
        print(f"{images} images, {WORKERS} workers; {dataset.report}")
        with objects_left_alone():  # as in training
            for epoch in range(epochs):
                watch_epoch(loader, epoch)
                gc.collect()  # would happen by chance, some time in a long training


def main() -> None:
    """Run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="a folder with coco.json and its pictures")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--images", type=int, help="pictures in a round, or in the file of --memory"
    )
    parser.add_argument("--memory", action="store_true", help="watch memory instead")
    parser.add_argument("--epochs", type=int, default=4, help="of --memory")
    args = parser.parse_args()
    if args.memory:
        watch_memory(args.images or 100_000, args.epochs)
        return
    if args.data is None:
        parser.error("--data FOLDER is needed, or --memory")
    names = ["torchvision", "detkit"] + ["ultralytics"] * bool(find_spec("ultralytics"))
    for mosaic in (False, True):
        settings = {"rounds": args.rounds, "images": args.images or 64}
        compare(args.data.resolve(), mosaic=mosaic, names=names, **settings)


if __name__ == "__main__":
    main()
