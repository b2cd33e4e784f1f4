"""Run the compiled evaluation on hostile input under AddressSanitizer and UBSan (Linux, gcc).

    python tests/evaluation/fuzz_native.py [--cases 2000] [--seed 0]

It builds the module with the sanitizers, starts itself again with it, and compares random cases
with numpy, as test_native.py does, and feeds arrays of random bytes and lengths. The first error
of a sanitizer ends it with a report; the last line counts what was run.
"""

from __future__ import annotations

import argparse
import glob
import importlib.util
import os
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from types import ModuleType

import numpy as np

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "detkit" / "evaluation" / "native"
FLAGS = ["-std=c11", "-O1", "-g", "-ffp-contract=off", "-fno-omit-frame-pointer"]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


def build(folder: str) -> str:
    """The module with sanitizers."""
    target = f"{folder}/_native.so"
    include = f"-I{sysconfig.get_paths()['include']}"
    command = ["gcc", "-shared", "-fPIC", include, *FLAGS, *SANITIZERS, "-o", target]
    subprocess.run([*command, *sorted(glob.glob(f"{SOURCES}/*.c"))], check=True)
    return target


def run_again(module: str) -> int:
    """This script with the sanitizers in the process from its start."""
    libraries = [
        subprocess.check_output(["gcc", f"-print-file-name={name}"], text=True).strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    environment = {
        **os.environ,
        "LD_PRELOAD": " ".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1:max_allocation_size_mb=512",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, __file__, *sys.argv[1:], "--module", module]
    return subprocess.run(command, env=environment).returncode


def load(name: str, path: str | Path) -> ModuleType:
    """A module from a file, under a name of ours."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def hostile_array(rng: np.random.Generator, length: int, kind: str) -> np.ndarray:
    """Random bytes, or numbers at the edges of what a type holds."""
    if kind == "index":
        edges = [-1, 2**31, 2**62, -(2**63)] if rng.random() < 0.03 else []
        return rng.choice(np.array([0, 1, 2, *edges]), length)
    if kind == "flag":
        return rng.integers(0, 256, length, np.uint8)
    if rng.random() < 0.3:
        return np.frombuffer(rng.bytes(8 * length), np.float64)
    edges = [np.nan, np.inf, -np.inf, 0.0, -0.0, 5e-324, 1e308, -1.0, 0.5, 1.0]
    return rng.choice(np.array([*edges, *rng.uniform(0, 9, 10)]), length)


def call_with_anything(native: ModuleType, rng: np.random.Generator) -> bool:
    """Call both functions with hostile arrays; whether they took them."""
    truths, found = int(rng.integers(0, 30)), int(rng.integers(0, 120))
    thresholds, ranges, limits, levels = (int(rng.integers(1, most)) for most in (30, 6, 4, 12))
    huge = [0, -1, 2**31 - 1, 2**62]
    images, categories = (int(rng.choice([3] * 20 + huge)) for _ in range(2))
    wrong = rng.random() < 0.3

    def arrays(*wanted: tuple[int, str]) -> tuple[np.ndarray, ...]:
        off = rng.integers(-1, 2, len(wanted)) if wrong else np.zeros(len(wanted), int)
        return tuple(
            hostile_array(rng, max(0, length + change), kind)
            for (length, kind), change in zip(wanted, off.tolist(), strict=True)
        )

    index, flags = [(truths, "index")] * 2, [(truths, "flag")] * 2
    arguments = (
        arrays(*index, (4 * truths, "number"), (truths, "number"), *flags),
        arrays(*[(found, "index")] * 2, (4 * found, "number"), (found, "number")),
        arrays(
            *((thresholds, "number"), (2 * ranges, "number")),
            *((limits, "index"), (levels, "number")),
        ),
        images,
        categories,
    )
    rows = 3 * ranges * limits * thresholds
    curves = [np.zeros(n) for n in (rows * levels, rows * levels, rows, 3 * ranges)]
    takes = [np.zeros(n, np.int32) for n in (found, thresholds * ranges * found)]
    taken = 0
    for function, tables in ((native.draw_curves, curves), (native.find_takes, takes)):
        try:
            function(*arguments, tuple(tables))
            taken += 1
        except (ValueError, OverflowError, MemoryError):
            pass
    return taken == 2


def weigh_anything(native: ModuleType, rng: np.random.Generator) -> bool:
    """Call the sums over resampled images with hostile arrays; whether they were taken."""
    sizes = resamples, images, thresholds = rng.integers(0, 4, 3).tolist()
    truths, found, settled = rng.integers(0, 40, 3).tolist()
    places = np.sort(rng.permutation(max(found, settled))[:settled])
    flags = [hostile_array(rng, thresholds * settled, "flag") for _ in range(2)]
    off = int(rng.integers(0, 10))  # mostly none of the arrays
    arrays = [
        *(rng.integers(0, max(images, 1), count) for count in (truths, found)),
        *(places, *flags),
        rng.choice(np.array([0, 1, 2, 2**32 - 1], np.uint32), resamples * images),
        np.zeros(resamples * thresholds),
    ]
    if off < len(arrays) and len(arrays[off]):
        wrong = arrays[off][:-1] if rng.random() < 0.5 else arrays[off].copy()
        if off < 3:
            wrong[-1:] = rng.choice([-1, 2**31, 2**62])
        arrays[off] = wrong
    if rng.random() < 0.2:
        sizes[int(rng.integers(0, 3))] = int(rng.choice([-1, 0, 2**31, 2**62]))
    try:
        native.weigh_class(tuple(arrays[:5]), *arrays[5:], *sizes)
    except ValueError:
        return False
    return True


def main() -> int:
    """Build and start again, or run the cases."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--module", help="the built module; without it, build one")
    options = parser.parse_args()
    if options.module is None:
        with tempfile.TemporaryDirectory() as folder:
            return run_again(build(folder))
    native = load("detkit.evaluation._native", options.module)
    tests = load("test_native", Path(__file__).with_name("test_native.py"))
    rng = np.random.default_rng(options.seed)
    taken = 0
    for case in range(options.cases):
        tests.assert_same_curves(tests.random_case(options.seed + case))
        tests.outcomes_by("compiled", tests.random_case(options.seed + case))
        taken += sum(call_with_anything(native, rng) for _ in range(10))
        taken += sum(weigh_anything(native, rng) for _ in range(10))
    print(  # noqa: T201
        f"{options.cases} cases equal to numpy; {20 * options.cases} calls with hostile arrays, "
        f"{taken} of them taken, the others errors; the sanitizers found nothing"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
