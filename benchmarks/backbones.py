"""Classifiers of detkit beside torchvision's in one run: forward pass and training step.

    python benchmarks/backbones.py                          # CPU: fp32, and channels_last + bf16
    python benchmarks/backbones.py --device cuda --batch 64 --models resnet50 vgg16_bn

Both networks have the same weights and see the same images. Their rounds alternate, so that a
neighbour on the machine slows both; a ratio is the median over the rounds of detkit's time /
torchvision's, with the quartiles beside it: so much differ two runs of one and the same network.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Callable

import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from detkit.backbones import create_classifier

MODELS = ("resnet18", "resnet50", "resnext50_32x4d", "vgg11_bn", "googlenet", "alexnet")
MODES = {"fp32": (torch.float32, False), "bf16 channels_last": (torch.bfloat16, True)}


def build_pair(name: str, device: torch.device, *, channels_last: bool) -> list[nn.Module]:
    """Ours and theirs with the same weights."""
    settings = {"aux_logits": False, "init_weights": True} if name == "googlenet" else {}
    theirs = getattr(torchvision.models, name)(**settings)
    ours = create_classifier(name)
    ours.load_state_dict(theirs.state_dict())
    pair = [ours.to(device), theirs.to(device)]
    if channels_last:  # otherwise each in the layout that its library builds it in
        pair = [net.to(memory_format=torch.channels_last) for net in pair]
    return pair


def forward_pass(
    net: nn.Module, images: torch.Tensor, dtype: torch.dtype
) -> Callable[[], torch.Tensor]:
    """What is timed: logits in evaluation."""

    def run() -> torch.Tensor:
        net.eval()
        with torch.inference_mode(), autocast(images.device, dtype):
            return net(images)

    return run


def training_step(
    net: nn.Module, images: torch.Tensor, dtype: torch.dtype
) -> Callable[[], torch.Tensor]:
    """What is timed: forward, backward, and a step of SGD."""
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-4, momentum=0.9)
    labels = torch.arange(len(images), device=images.device)

    def run() -> torch.Tensor:
        net.train()
        with autocast(images.device, dtype):
            loss = F.cross_entropy(net(images).float(), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return run


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Half precision where it is asked for."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


def seconds(action: Callable[[], torch.Tensor]) -> float:
    """Wall-clock time of an action, including all that it started on a GPU."""
    start = time.perf_counter()
    result = action()
    if result.is_cuda:
        torch.cuda.synchronize(result.device)
    return time.perf_counter() - start


def compare(pair: list[Callable[[], torch.Tensor]], rounds: int) -> list[list[float]]:
    """Times of both, in turn; the order changes with every round."""
    times: list[list[float]] = [[], []]
    for index in range(rounds + 2):  # two rounds to warm up
        for which in (0, 1) if index % 2 else (1, 0):
            spent = seconds(pair[which])
            if index >= 2:
                times[which].append(spent)
    return times


def report(label: str, times: list[list[float]], images: int) -> None:
    """A line: milliseconds an image of both, their ratio and its quartiles."""
    ours, theirs = (1000 * statistics.median(each) / images for each in times)
    ratios = [a / b for a, b in zip(*times, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    print(f"{label:52} {ours:9.2f} {theirs:12.2f} {middle:7.3f}  ({low:.3f} to {high:.3f})")


def main() -> None:
    """Read the command line and compare."""
    parser = argparse.ArgumentParser(description="Classifiers of detkit and torchvision.")
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--size", type=int, default=224, help="side of the images")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--modes", nargs="+", default=list(MODES), choices=list(MODES))
    options = parser.parse_args()
    device = torch.device(options.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(
        f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}, torchvision "
        f"{torchvision.__version__}, {options.size} px, batch {options.batch}"
    )
    print(f"{'':52} detkit ms/image  torchvision   ratio  (quartiles)")
    for model in options.models:
        for mode in options.modes:
            dtype, channels_last = MODES[mode]
            torch.manual_seed(0)
            pair = build_pair(model, device, channels_last=channels_last)
            images = torch.randn(options.batch, 3, options.size, options.size, device=device)
            if channels_last:
                images = images.contiguous(memory_format=torch.channels_last)
            for what, action in (("forward", forward_pass), ("training step", training_step)):
                actions = [action(net, images, dtype) for net in pair]
                label = f"{model}, {mode}, {what}"
                report(label, compare(actions, options.rounds), options.batch)
            del pair, actions
            gc.collect()


if __name__ == "__main__":
    main()
