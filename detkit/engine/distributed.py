"""Several processes as one: thin names over torch.distributed; without it, a world of one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn

T = TypeVar("T")


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Join the processes that torchrun started; does nothing when there is only this one."""
    if not dist.is_torchelastic_launched():
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)  # where nccl keeps the objects that it gathers
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def rank() -> int:
    """Number of this process, 0 being the one that writes."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def local_world_size() -> int:
    """Number of processes on this machine, which share its cores."""
    if torch.cuda.is_available():  # one process a GPU
        return min(world_size(), torch.cuda.device_count())
    return world_size()


def is_main() -> bool:
    """Whether this process writes files and talks to the user."""
    return rank() == 0


def gather(value: T) -> list[T]:
    """The values of all processes, in the order of ranks, on every process."""
    if not dist.is_initialized():
        return [value]
    values: list[T | None] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values  # type: ignore[return-value]


@torch.no_grad()
def share_buffers(module: nn.Module) -> None:
    """Give every process the buffers of the main one: batch norm saw other images on each."""
    if dist.is_initialized():
        for buffer in module.buffers():
            dist.broadcast(buffer, src=0)


def barrier() -> None:
    """Wait for all processes."""
    if dist.is_initialized():
        dist.barrier()
