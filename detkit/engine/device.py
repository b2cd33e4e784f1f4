"""Where and in which precision to compute."""

from __future__ import annotations

import os

import torch

from detkit.registry import suggest


def pick_device(name: str | None, local_rank: int = 0) -> torch.device:
    """The device of that name; None takes the GPU where there is one.

    Raises:
        ValueError: the name is unknown, or there is no such device.
    """
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda"):
        raise ValueError(f"unknown device {name!r}; {suggest(name, ('cpu', 'cuda'))}")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device 'cuda' was asked for, but torch sees no GPU; use --device cpu")
    return torch.device("cuda", local_rank) if name == "cuda" else torch.device("cpu")


def amp_dtype(setting: str, device: torch.device) -> torch.dtype | None:
    """The type for autocast, None for full precision.

    "auto" is bfloat16 where the hardware computes in it, float16 on older GPUs, and off on CPUs
    that would only emulate it.
    """
    if setting == "bf16":
        return torch.bfloat16
    if setting == "fp16":
        if device.type == "cpu":
            raise ValueError("amp 'fp16' needs a GPU; use 'auto', 'bf16' or 'off' on a CPU")
        return torch.float16
    if setting == "off":
        return None
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float16
    return torch.bfloat16 if cpu_has_bf16() else None


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware (AVX512-BF16 or AMX)."""
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, check, lambda: False)() for check in checks)


def usable_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def leave_cores_to(workers: int) -> None:
    """Compute on no more threads than there are cores beside those of the data workers.

    OpenMP's threads wait for each other actively: with more threads than free cores a step of a
    small network took thirty times as long (two threads, two cores, one of them busy).
    """
    free = max(usable_cores() - workers, 1)
    torch.set_num_threads(min(torch.get_num_threads(), free))
