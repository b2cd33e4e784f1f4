"""Time detkit's COCO metric beside every evaluator that is installed, and compare the numbers.

    python benchmarks/evaluator.py [--workloads coco lvis o365] [--rounds 5] [--peers NAME ...]
    python benchmarks/evaluator.py --scaling

Every measurement is a process of its own on one core with one thread, in seconds of the processor.
In each round all take their turn, in every other round in reverse; ratios are to the first
evaluator in the same round, the table shows their medians. The columns:

    JSON       two files to the 12 numbers, in a process that did it before
    process    the same with the start of the process and its imports
    memory     detections from an array [N, 7] to the 12 numbers, the ground truth being loaded
    core       evaluate + accumulate alone, of these
    peak       memory of the process that read the files

On the large workloads pycocotools takes minutes and many gigabytes: `--reference-rounds 1` runs it
once, 0 leaves it out. Peers that are not installed are left out, and nothing is installed here.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from evaluator_data import PRESETS, SCALES, write_workload
from evaluator_peers import ONLY_MEMORY, PEERS

ARRAYS = ("precision", "recall", "scores")
COLUMNS = ("JSON", "process", "memory", "core", "peak")
THREADS = ("OMP", "OPENBLAS", "MKL", "NUMEXPR", "RAYON", "NUMBA")
Report = dict[str, Any]
Runs = dict[str, list[Report]]  # name of the evaluator to one report a round


@dataclass
class Bench:
    """How measurements are made.

    Attributes:
        core: number of the processor's core.
        scratch: folder for what the processes leave.
        failed: evaluators with their last words, which are not asked again.
        notes: what evaluators say of themselves.
    """

    core: int
    scratch: Path
    failed: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)

    def measure(self, name: str, mode: str, folder: Path, keep: Path | None = None) -> Report:
        """One process; its report, empty if it fails.

        Args:
            name: of the evaluator.
            mode: "files", "memory" or "import".
            folder: of the workload.
            keep: existing folder in which it leaves its arrays.
        """
        if name in self.failed or (mode == "files" and name in ONLY_MEMORY):
            return {}
        report = self.scratch / "report.json"
        report.write_text("{}")
        script = str(Path(__file__).with_name("evaluator_peers.py"))
        done = subprocess.run(
            [
                *(sys.executable, script, name, mode),
                *(str(folder), str(self.core), str(report), str(keep or "")),
            ],
            env=self._environment(name),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        if done.returncode:
            self.failed[name] = (done.stderr.strip() or f"exit {done.returncode}").splitlines()[-1]
            return {}
        answer: Report = json.loads(report.read_text())
        if answer.get("note"):
            self.notes[name] = answer["note"]
        return answer

    def _environment(self, name: str) -> dict[str, str]:
        """One thread, this checkout, and byte code in a place where it can be written."""
        root = str(Path(__file__).resolve().parent.parent)
        path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        own = {f"{library}_NUM_THREADS": "1" for library in THREADS}
        own |= {"PYTHONPATH": path, "PYTHONPYCACHEPREFIX": str(self.scratch / "bytecode")}
        if name == "detkit-numpy":
            own["DETKIT_EVALUATOR"] = "numpy"
        inherited = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        return {**inherited, **own}


def installed() -> dict[str, str]:
    """The evaluators that can run, with their versions."""
    found = {}
    for name, (distribution, _) in PEERS.items():
        if not distribution:
            found[name] = "this checkout"
            continue
        try:
            found[name] = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def run_rounds(
    bench: Bench, names: Sequence[str], folder: Path, rounds: dict[str, int]
) -> tuple[Runs, dict[str, str]]:
    """All evaluators on one workload; their reports, and how their arrays compare."""
    runs: Runs = {name: [] for name in names}
    verdicts: dict[str, str] = {}
    for name in names:
        bench.measure(name, "import", folder)
    with tempfile.TemporaryDirectory(dir=bench.scratch) as kept:
        for turn in range(max(rounds.values())):
            for name in names if turn % 2 == 0 else names[::-1]:
                if turn >= rounds[name]:
                    continue
                keep = Path(kept) / name
                keep.mkdir(exist_ok=True)
                report = bench.measure(name, "files", folder, keep if turn == 0 else None)
                memory = bench.measure(name, "memory", folder)
                if name in bench.failed:
                    continue
                stats = report.get("stats", memory["stats"])
                runs[name].append({**_times(report, memory), "stats": stats})
        first = next((name for name in names if runs[name]), None)
        for name in names:
            if first and runs[name]:
                verdicts[name] = compare(Path(kept), first, name, runs)
    return runs, verdicts


def _times(report: Report, memory: Report) -> Report:
    """The columns of one round: seconds and bytes, None where there is nothing."""
    core = [seconds for seconds in memory["core"] if seconds is not None]
    return {
        "JSON": statistics.median(report["warm"]) if report else None,
        "process": report.get("first"),
        "core": statistics.median(core) if core else None,
        "memory": statistics.median(memory["warm"]),
        "peak": report.get("peak"),
    }


def compare(kept: Path, first: str, name: str, runs: Runs) -> str:
    """Whether numbers and arrays equal those of the first evaluator, in words."""
    theirs, mine = (np.array(runs[each][0]["stats"]) for each in (first, name))
    offered = ~np.isnan(mine)
    words = [_difference("stats", theirs[offered], mine[offered])]
    for key in ARRAYS:
        paths = [kept / each / f"{key}.npy" for each in (first, name)]
        if all(path.exists() for path in paths):
            words.append(_difference(key, *(np.load(path, mmap_mode="r") for path in paths)))
    different = [word for word in words if word]
    extent = f"{len(words) - 1} arrays" if len(words) > 1 else f"{offered.sum()} numbers"
    return "; ".join(different) if different else f"equal ({extent})"


def _difference(key: str, theirs: np.ndarray, mine: np.ndarray) -> str:
    if theirs.shape != mine.shape:
        return f"{key}: shape {mine.shape}, not {theirs.shape}"
    cells = np.count_nonzero(theirs != mine)
    return f"{key}: {cells} differ, <= {np.abs(theirs - mine).max():.1e}" if cells else ""


def table(runs: Runs, verdicts: dict[str, str]) -> str:
    """Medians of the ratios to the first evaluator, with seconds or megabytes, as Markdown."""
    names = [name for name in runs if runs[name]]
    rows = [["", *COLUMNS, "numbers"]]
    for name in names:
        cells = [_cell(column, runs[names[0]], runs[name]) for column in COLUMNS]
        rows.append([name, *cells, verdicts[name]])
    return markdown(rows)


def _cell(column: str, base: list[Report], mine: list[Report]) -> str:
    values = [report[column] for report in mine]
    if None in values:
        return "-"
    if column == "peak":
        return f"{statistics.median(values) / 1e6:.0f} MB"
    seconds = f"{statistics.median(values):.3g} s"
    # in rounds without the first evaluator its last one stands in
    bases = [base[min(turn, len(base) - 1)][column] for turn in range(len(mine))]
    if None in bases:
        return seconds
    ratio = statistics.median(b / v for b, v in zip(bases, values, strict=True))
    return f"{ratio:.1f} ({seconds})"


def markdown(rows: Iterable[Sequence[str]]) -> str:
    """A table whose first row is its head."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(1, "|" + "---|" * lines[0].count(" | ") + "---|")
    return "\n".join(lines)


def scaling(bench: Bench, names: Sequence[str], data: Path, rounds: int) -> str:
    """Seconds and peak memory of a fresh process over the number of images, as Markdown."""
    rows = [["images", "JSON MB", *names]]
    for name in names:
        bench.measure(name, "import", data)
    for images in SCALES:
        folder = write_workload(f"scale_{images}", data)
        size = sum((folder / each).stat().st_size for each in ("gt.json", "dt.json"))
        reports: Runs = {name: [] for name in names}
        for turn in range(rounds):
            for name in names if turn % 2 == 0 else names[::-1]:
                reports[name].append(bench.measure(name, "files", folder))
        row = [f"{images:,}", f"{size / 1e6:.0f}"]
        for name in names:
            row.append("failed" if name in bench.failed else _scale_cell(reports[name], images))
        rows.append(row)
        print(" | ".join(row), file=sys.stderr)  # the whole series takes a while
    return markdown(rows)


def _scale_cell(reports: list[Report], images: int) -> str:
    seconds = statistics.median(report["first"] for report in reports)
    peak = statistics.median(report["peak"] for report in reports) / 1e6
    each = 1e6 * seconds / images
    return f"{seconds:.3g} s ({each:.0f} us an image), {peak:.0f} MB"


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line, with names checked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add: Callable[..., Any] = parser.add_argument
    add("--workloads", nargs="+", default=["coco"], metavar="NAME", help=", ".join(PRESETS))
    add("--peers", nargs="+", metavar="NAME", help="default: all installed; " + ", ".join(PEERS))
    add("--rounds", type=int, default=5)
    add("--reference-rounds", type=int, help="how often pycocotools runs; default: as the others")
    add("--data", type=Path, default=Path(tempfile.gettempdir()) / "evaluator")
    add("--core", type=int, default=min(os.sched_getaffinity(0)), help="core of the processor")
    add("--scaling", action="store_true", help="seconds and memory over 1,000 .. 80,000 images")
    options = parser.parse_args(arguments)
    available = installed()
    default = [name for name in available if not options.scaling or name.startswith("detkit")]
    options.peers = options.peers or default
    for given, allowed in ((options.workloads, PRESETS), (options.peers, available)):
        unknown = [name for name in given if name not in allowed]
        if unknown:
            parser.error(f"unknown or not installed: {unknown}; allowed: {', '.join(allowed)}")
    options.peers = [name for name in PEERS if name in options.peers]
    return options


def main() -> None:
    """Print a table for each workload, or the one of the scaling."""
    options = parse()
    versions = installed()
    print(", ".join(f"{name} {versions[name]}" for name in options.peers))
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(options.core, Path(scratch))
        if options.scaling:
            print(scaling(bench, options.peers, options.data, options.rounds))
        for name in [] if options.scaling else options.workloads:
            folder = write_workload(name, options.data)
            rounds = dict.fromkeys(options.peers, options.rounds)
            if "pycocotools" in rounds and options.reference_rounds is not None:
                rounds["pycocotools"] = min(options.rounds, options.reference_rounds)
            runs, verdicts = run_rounds(
                bench, [peer for peer in rounds if rounds[peer]], folder, rounds
            )
            print(f"\n{name}, {options.rounds} rounds\n\n{table(runs, verdicts)}")
        for name, words in bench.notes.items():
            print(f"{name}: {words}")
        for name, words in bench.failed.items():
            print(f"{name} failed: {words}")


if __name__ == "__main__":
    main()
