"""Several processes as one: thin names over torch.distributed; without it, a world of one."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn

T = TypeVar("T")

_messages: list[dist.Store] = []  # where processes leave words for each other, while there is one

JOINING = timedelta(minutes=10)  # for all processes to come up: imports from a slow disk take long


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Join the processes that torchrun started; does nothing when there is only this one."""
    if not dist.is_torchelastic_launched():
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)  # where nccl keeps the objects that it gathers
    store, own_rank, size = next(dist.rendezvous("env://", timeout=JOINING))
    store = store_of_this_start(store, own_rank, size)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=own_rank, world_size=size)
    _messages.append(dist.PrefixStore("messages", store))
    try:
        yield
    finally:
        _messages.clear()
        dist.destroy_process_group()


def store_of_this_start(store: dist.Store, own_rank: int, size: int) -> dist.Store:
    """A part of torchrun's store in which nothing is left of processes that have ended.

    torchrun keeps one store over all restarts, and who finds the address of an ended process there
    before the new one has written its own connects to nobody. The count of restarts would be no
    name for the part: every machine has its own. So rank 0 draws one and hands it to all others,
    each of which asks under a name that nobody had before.

    Args:
        store: torchrun's, the same for all processes.
        own_rank: of this process.
        size: how many processes there are.

    Raises:
        ConnectionError: not all have come in time.
    """
    mine = uuid.uuid4().hex
    if own_rank > 0:
        store.set(f"asks/{own_rank}", mine)
        part = store.get(f"part/{mine}").decode()
        store.set(f"{part}/{own_rank}", "here")
        return dist.PrefixStore(part, store)
    missing = list(range(1, size))
    limit = time.monotonic() + JOINING.total_seconds()
    while missing := [other for other in missing if not store.check([f"{mine}/{other}"])]:
        if time.monotonic() > limit:
            raise ConnectionError(f"processes {missing} of {size} did not come within {JOINING}")
        for other in missing:  # again and again: the first answer may be to an ended process
            if store.check([f"asks/{other}"]):
                store.set(f"part/{store.get(f'asks/{other}').decode()}", mine)
        time.sleep(0.02)
    return dist.PrefixStore(mine, store)


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


def tell_all(message: str) -> None:
    """Leave a word that every process can look for, from now on, without waiting for others."""
    for store in _messages:
        store.set(message, "told")


def was_told(message: str) -> bool:
    """Whether any process has left this word; asks the launcher, not the other processes."""
    return any(store.check([message]) for store in _messages)


def barrier() -> None:
    """Wait for all processes."""
    if dist.is_initialized():
        dist.barrier()
