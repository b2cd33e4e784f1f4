"""How the golden values of attention modules were computed: every tensor a known wave.

The values come from the authors' released code (float64, evaluation); this file repeats only how
input and state were filled and what was reported.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn


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
    """Output -> (sum, abs, chk), the three numbers of the golden table."""
    return _report


@pytest.fixture(scope="session")
def randomise() -> Callable[..., nn.Module]:
    """`randomise(module, seed=0)`: random parameters and statistics, float64, evaluation."""
    return _randomise
