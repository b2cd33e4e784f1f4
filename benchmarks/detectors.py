"""Published detectors beside torchvision's in one run: images per second, ratio, peak memory.

    python benchmarks/detectors.py                                     # GPU, 800 px, batch 16, AMP
    python benchmarks/detectors.py --device cpu --size 320 --batch 2 --rounds 3
    python benchmarks/detectors.py --model retinanet_resnet50_fpn --threshold 0.05

Both models have the same random weights and two frozen stages, and see the same random images of
their final size with ten boxes each, so that the models alone are timed. At the default threshold
as many boxes as may reach NMS; above 0.2 there are none, as a picture of nothing has. Their rounds
alternate, so that a neighbour on the machine slows both; each figure is the median over the rounds.
Torchvision runs as in its reference loop: NCHW, autocast to the same type, a check of the loss in
every step. Detkit runs as its engine does: channels_last.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.models import get_model, resnet50
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from detkit.backbones.weights import load_into
from detkit.config import OptimizerConfig
from detkit.detectors import create_detector
from detkit.detectors.torchvision_weights import PUBLISHED, convert
from detkit.engine.device import amp_dtype
from detkit.engine.optim import build_optimizer
from detkit.structures import Batch, Target

NUM_CLASSES = 90
SCORE_THRESHOLD = 0.005  # random weights give each class about 0.01: all boxes reach NMS


@dataclass
class Contestant:
    """A name and its two timed actions."""

    name: str
    train_step: Callable[[], None]
    predict: Callable[[], None]


def make_batch(batch: int, size: int, device: torch.device) -> Batch:
    """Random images with ten random boxes each."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8, generator=generator)
    targets = []
    for index in range(batch):
        corner = torch.rand(10, 2, generator=generator) * size * 0.6
        side = (0.05 + 0.3 * torch.rand(10, 2, generator=generator)) * size
        boxes = torch.cat([corner, corner + side], dim=1)
        labels = torch.randint(0, NUM_CLASSES, (10,), generator=generator)
        targets.append(
            Target(boxes, labels, index, torch.zeros(10, dtype=torch.bool), side.prod(dim=1))
        )
    sizes = ((size, size),) * batch
    return Batch(images, sizes, sizes, tuple(targets)).to(device)


def build_pair(
    name: str, size: int, threshold: float, device: torch.device
) -> tuple[nn.Module, nn.Module]:
    """Both with the same weights and frozen layers, as they start from published weights."""
    theirs = build_theirs(name, size, threshold)
    config = PUBLISHED[name]
    select = config.select.model_copy(update={"score_threshold": threshold})
    ours = create_detector(config.model_copy(update={"select": select}), num_classes=NUM_CLASSES)
    load_into(ours, convert(theirs.state_dict()), source="torchvision's model")
    return ours.to(device, memory_format=torch.channels_last), theirs.to(device)


def build_theirs(name: str, size: int, threshold: float) -> nn.Module:
    """Torchvision's function without weights builds the first versions with other norms."""
    kind = name.partition("_")[0]
    limit = "box_score_thresh" if kind == "fasterrcnn" else "score_thresh"
    settings = {"min_size": size, "max_size": size, limit: threshold}
    if name.endswith("_v2"):
        theirs = get_model(name, weights=None, weights_backbone=None, **settings)
        body = theirs.backbone.body
        for part in (body.conv1, body.bn1, body.layer1):
            part.requires_grad_(False)
        return theirs
    body = resnet50(weights=None, norm_layer=FrozenBatchNorm2d)
    if kind == "fasterrcnn":
        return FasterRCNN(_resnet_fpn_extractor(body, 3), NUM_CLASSES + 1, **settings)
    backbone = _resnet_fpn_extractor(
        body, 3, returned_layers=[2, 3, 4], extra_blocks=LastLevelP6P7(256, 256)
    )
    return {"retinanet": RetinaNet, "fcos": FCOS}[kind](backbone, NUM_CLASSES + 1, **settings)


def ours_against(
    ours: nn.Module, batch: Batch, device: torch.device, dtype: torch.dtype | None
) -> Contestant:
    """Our model in the steps of its engine."""
    optimizer = build_optimizer(ours, OptimizerConfig(lr=1e-5))

    def train_step() -> None:
        ours.train()
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            losses = ours(batch)
        step(optimizer, losses)

    def predict() -> None:
        ours.eval()
        with (
            torch.inference_mode(),
            torch.autocast(device.type, dtype=dtype, enabled=dtype is not None),
        ):
            ours(batch.without_targets())

    return Contestant("detkit", train_step, predict)


def theirs_against(
    theirs: nn.Module, batch: Batch, device: torch.device, dtype: torch.dtype | None
) -> Contestant:
    """Their model in the steps of its reference loop."""
    assert batch.targets is not None
    images = list(batch.images.float() / 255)
    targets = [{"boxes": t.boxes, "labels": t.labels + 1} for t in batch.targets]
    learning = [p for p in theirs.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(learning, lr=1e-5, momentum=0.9, weight_decay=1e-4)

    def train_step() -> None:
        theirs.train()
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            losses = theirs(images, [dict(target) for target in targets])
        step(optimizer, losses)

    def predict() -> None:
        theirs.eval()
        with (
            torch.inference_mode(),
            torch.autocast(device.type, dtype=dtype, enabled=dtype is not None),
        ):
            theirs(images)

    return Contestant("torchvision", train_step, predict)


def step(optimizer: torch.optim.Optimizer, losses: dict[str, Tensor]) -> None:
    """One step as both loops do it."""
    total = torch.stack(list(losses.values())).sum()
    optimizer.zero_grad()
    total.backward()
    if not torch.isfinite(total):
        raise FloatingPointError("loss is not finite")
    optimizer.step()


def seconds(action: Callable[[], None], device: torch.device) -> float:
    """Wall-clock time of an action, including all that it started on the GPU."""
    start = time.perf_counter()
    action()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def compare(
    pair: list[Contestant], what: str, *, images: int, rounds: int, device: torch.device
) -> None:
    """Time both in turn and print a line each."""
    times: dict[str, list[float]] = {contestant.name: [] for contestant in pair}
    peak: dict[str, float] = {}
    for index in range(rounds + 2):  # two rounds to warm up
        for contestant in pair if index % 2 else pair[::-1]:
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            spent = seconds(getattr(contestant, what), device)
            if index >= 2:
                times[contestant.name].append(spent)
            if device.type == "cuda":
                peak[contestant.name] = torch.cuda.max_memory_allocated(device) / 2**30
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, median in medians.items():
        memory = f"  peak {peak[name]:.2f} GiB" if peak else ""
        print(f"{what:12} {name:12} {images / median:8.2f} images/s{memory}")
    ratios = [b / a for a, b in zip(times[pair[0].name], times[pair[1].name], strict=True)]
    print(f"{what:12} ratio {statistics.median(ratios):.2f} (detkit's speed / torchvision's)")


def main() -> None:
    """Read the command line and compare."""
    parser = argparse.ArgumentParser(description="Detectors of detkit and torchvision.")
    parser.add_argument("--model", default="fasterrcnn_resnet50_fpn", choices=tuple(PUBLISHED))
    parser.add_argument("--threshold", type=float, default=SCORE_THRESHOLD, help="of scores")
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"))
    parser.add_argument("--size", type=int, default=800, help="side of the images")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--amp", default="auto", choices=("auto", "bf16", "fp16", "off"))
    options = parser.parse_args()
    device = torch.device(options.device)
    dtype = amp_dtype(options.amp, device)
    torch.manual_seed(0)
    batch = make_batch(options.batch, options.size, device)
    ours, theirs = build_pair(options.model, options.size, options.threshold, device)
    pair = [ours_against(ours, batch, device, dtype), theirs_against(theirs, batch, device, dtype)]
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(
        f"{options.model}: {name}, torch {torch.__version__}, {options.size} px, "
        f"batch {options.batch}, {dtype}"
    )
    for what in ("train_step", "predict"):
        compare(pair, what, images=options.batch, rounds=options.rounds, device=device)


if __name__ == "__main__":
    main()
