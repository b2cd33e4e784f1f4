"""A way to make networks tell their differences: every parameter and buffer random."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from detkit.backbones import Backbone
from detkit.backbones.feature_info import describe, layers_along


def _randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Random values of the size that keeps activations of order one; float64, in evaluation.

    The last norm of a block gets a small gamma: with large ones the logits of a deep network
    reach 1e6, where an absolute tolerance means nothing.
    """
    generator = torch.Generator().manual_seed(seed)

    module.double().eval()
    state = module.state_dict()
    norms = {key.rsplit(".", 1)[0] for key in state if key.endswith("running_var")}
    for key, value in state.items():
        owner, _, kind = key.rpartition(".")
        deep = f"{owner[:-1]}3" in norms  # a bottleneck, whose last norm is bn3
        last = owner.endswith("bn3") or (owner.endswith("bn2") and not deep)
        if kind == "num_batches_tracked":
            value.fill_(7)
        elif kind == "running_var":
            value.uniform_(0.5, 1.5, generator=generator)
        elif owner in norms and kind == "weight":
            value.uniform_(*((0.1, 0.3) if last else (0.5, 1.5)), generator=generator)
        elif kind in ("bias", "running_mean"):
            value.normal_(0, 0.1, generator=generator)
        else:
            value.normal_(0, (2 / value[0].numel()) ** 0.5, generator=generator)
    return module


@pytest.fixture(scope="session")
def randomise() -> Callable[..., nn.Module]:
    """Fill a network with random values, in place and reproducibly."""
    return _randomise


@pytest.fixture(scope="session")
def difference() -> Callable[[Tensor, Tensor], float]:
    """Largest difference relative to the largest value; the shapes must be equal."""

    def relative(ours: Tensor, theirs: Tensor) -> float:
        assert ours.shape == theirs.shape
        return float((ours - theirs).abs().max() / theirs.abs().max())

    return relative


def _unfilled(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.device("meta"):
        net = build()
    return net.double().eval().to_empty(device="cpu")


@pytest.fixture(scope="session")
def unfilled() -> Callable[..., nn.Module]:
    """Build a network in float64 whose values are still to be set; initialising takes seconds."""
    return _unfilled


def _count_macs(net: nn.Module, side: int, channels: int = 3) -> int:
    """Of convolutions and linear layers, for one square image; the network is on meta."""
    total = 0

    def count(module: nn.Module, _: object, output: Tensor) -> None:
        nonlocal total
        weight = module.get_parameter("weight")
        total += output.numel() * weight[0].numel()

    hooks = [
        each.register_forward_hook(count)
        for each in net.modules()
        if isinstance(each, (nn.Conv2d, nn.Linear))
    ]
    net.eval()(torch.empty(1, channels, side, side, device="meta"))
    for hook in hooks:
        hook.remove()
    return total


@pytest.fixture(scope="session")
def count_macs() -> Callable[..., int]:
    """`count_macs(net, side, channels=3)`: multiply-adds of a network on the meta device."""
    return _count_macs


def _reached(
    net: nn.Module, side: int, rows: int = 1, width: int = 33
) -> Iterator[tuple[int, float]]:
    net.double().eval()
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.constant_(module.weight, 1 / module.weight[0].numel())
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        for name, child in module.named_children():
            if type(child) is nn.MaxPool2d:  # the maximum would pick one way only
                pool = (child.kernel_size, child.stride, child.padding, child.ceil_mode)
                setattr(module, name, nn.AvgPool2d(*pool))
    x = torch.rand(1, 3, side, width, dtype=torch.float64, requires_grad=True)
    for level, info in zip(net(x), net.feature_info, strict=True):
        sizes, centers = [], []
        for row in range(level.shape[2] // 2, level.shape[2] // 2 + rows):
            (gradient,) = torch.autograd.grad(level[0, :, row].sum(), x, retain_graph=True)
            seen = gradient.abs().sum(dim=(0, 1, 3)).nonzero().flatten()
            assert seen[0] > 0 and seen[-1] < side - 1, "the image is too small to tell"
            sizes.append(int(seen[-1] - seen[0]) + 1)
            centers.append(float(seen[0] + seen[-1]) / 2 - row * info.stride)
        yield max(sizes), sum(centers) / rows


@pytest.fixture(scope="session")
def reached() -> Callable[..., Iterator[tuple[int, float]]]:
    """`reached(net, side, rows=1, width=33)`: of each map what its cells see, by the gradient.

    A tall thin picture goes through the network, in which no way cancels another. The largest
    receptive field of so many cells, and the centre that the first cell of the map would have, on
    average. The network is changed.
    """
    return _reached


def _along_the_chain(net: Backbone) -> list[tuple[int, int, float]]:
    layers = list(net.features)
    described = [
        describe("map", net.in_channels, layers[: index + 1])
        for index, layer in enumerate(layers)
        if any(True for _ in layers_along(layer))
    ]
    return [(info.receptive_field, info.stride, info.center) for info in described]


@pytest.fixture(scope="session")
def along_the_chain() -> Callable[[Backbone], list[tuple[int, int, float]]]:
    """Receptive field, stride and centre behind each convolution and pool of a plain network."""
    return _along_the_chain
