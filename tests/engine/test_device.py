"""Where and in which precision to compute."""

from __future__ import annotations

import os

import pytest
import torch

from detkit.engine.device import amp_dtype, cpu_has_bf16, leave_cores_to, pick_device, usable_cores

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("setting", "device", "native", "dtype"),
    [
        ("off", CPU, True, None),
        ("off", GPU, True, None),
        ("bf16", CPU, False, torch.bfloat16),  # asked for: also where it is emulated
        ("bf16", GPU, False, torch.bfloat16),
        ("fp16", GPU, True, torch.float16),
        ("auto", CPU, True, torch.bfloat16),
        ("auto", CPU, False, None),
        ("auto", GPU, True, torch.bfloat16),
        ("auto", GPU, False, torch.float16),
    ],
)
def test_amp_dtype(
    monkeypatch: pytest.MonkeyPatch,
    setting: str,
    device: torch.device,
    native: bool,
    dtype: torch.dtype | None,
) -> None:
    def gpu_has_bf16(including_emulation: bool = True) -> bool:
        return native or including_emulation

    monkeypatch.setattr("detkit.engine.device.cpu_has_bf16", lambda: native)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", gpu_has_bf16)
    assert amp_dtype(setting, device) is dtype


def test_fp16_on_a_cpu_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^amp 'fp16' needs a GPU; use 'auto', 'bf16' or 'off'"):
        amp_dtype("fp16", CPU)


@pytest.mark.parametrize(
    ("avx", "amx", "expected"),
    [(True, False, True), (False, True, True), (False, False, False), (None, None, False)],
)
def test_cpu_has_bf16(
    monkeypatch: pytest.MonkeyPatch, avx: bool | None, amx: bool | None, expected: bool
) -> None:
    for name, value in (("_is_avx512_bf16_supported", avx), ("_is_amx_tile_supported", amx)):
        monkeypatch.delattr(torch.cpu, name, raising=False)
        if value is not None:  # else a torch that cannot tell
            monkeypatch.setattr(torch.cpu, name, lambda value=value: value, raising=False)
    assert cpu_has_bf16() is expected


def test_cpu_check_agrees_with_the_kernel() -> None:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            flags = next(line for line in file if line.startswith("flags")).split()
    except (OSError, StopIteration):
        pytest.skip("this system does not list its processor's flags")
    assert cpu_has_bf16() == ("avx512_bf16" in flags or "amx_tile" in flags)


@pytest.mark.parametrize(
    ("name", "there", "device"),
    [
        (None, False, "cpu"),
        (None, True, "cuda:3"),
        ("cpu", True, "cpu"),
        ("cuda", True, "cuda:3"),
    ],
)
def test_pick_device(
    monkeypatch: pytest.MonkeyPatch, name: str | None, there: bool, device: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert pick_device(name, 3) == torch.device(device)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gpu", "unknown device 'gpu'; did you mean 'cpu'. allowed: cpu, cuda"),
        ("cuda", "device 'cuda' was asked for, but torch sees no GPU; use --device cpu"),
    ],
)
def test_no_such_device(monkeypatch: pytest.MonkeyPatch, name: str, message: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=message):
        pick_device(name)


@pytest.mark.parametrize("cores", [1, 2, 64])
def test_usable_cores(monkeypatch: pytest.MonkeyPatch, cores: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)), raising=False)
    assert usable_cores() == cores
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    assert usable_cores() == cores


@pytest.mark.parametrize(
    ("cores", "workers", "threads", "left"),
    [(2, 1, 2, 1), (2, 0, 2, 2), (8, 1, 8, 7), (8, 1, 4, 4), (1, 1, 1, 1), (2, 8, 2, 1)],
)
def test_computing_leaves_cores_to_the_workers(
    monkeypatch: pytest.MonkeyPatch, cores: int, workers: int, threads: int, left: int
) -> None:
    monkeypatch.setattr("detkit.engine.device.usable_cores", lambda: cores)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)  # of OMP_NUM_THREADS
    chosen: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    leave_cores_to(workers)
    assert chosen == [left]
