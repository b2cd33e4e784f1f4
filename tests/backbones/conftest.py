"""A way to make networks tell their differences: every parameter and buffer random."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn


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
