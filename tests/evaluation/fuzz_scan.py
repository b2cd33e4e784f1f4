"""Feed the compiled scanner mutated files under the address and undefined-behaviour sanitizers.

    python tests/evaluation/fuzz_scan.py [--runs 200000] [--seed 0]
    python tests/evaluation/fuzz_scan.py --seconds 300      # clang's libFuzzer

It is not part of the tests: it needs gcc or clang with their sanitizers, and time. A fault ends it
with the sanitizer's report and exit code 1. `test_scan.py` compares what is read with what Python's
json reads.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
NATIVE = HERE.parents[1] / "detkit" / "evaluation" / "native"
FLAGS = ["-std=c11", "-g", "-O1", "-fno-sanitize-recover=all", f"-I{NATIVE}"]
SOURCES = [HERE / "fuzz_scan.c", NATIVE / "scan.c"]
BLOCKS = (16, 1 << 18)  # tiny ones, so that everything is cut off once, and those in use

DETECTIONS = [
    {"image_id": 1, "category_id": 3, "bbox": [1.5, 2, 30.25, 4e1], "score": 0.875},
    {"image_id": 12, "category_id": 18, "bbox": [0.1, -3, 1.2345678901234567, 9], "score": 1e-07},
]
TRUTHS = {
    "info": {"year": 2017, "nested": [1, {"text": 'with "quotes" and \\ and é'}]},
    "images": [{"id": 1, "file_name": "ä.jpg", "height": 4}, {"id": 12, "tags": []}],
    "categories": [{"id": 3, "name": "cat"}, {"id": 18, "name": "dög"}],
    "version": 1.25,
    "licenses": [10, 2000, -3e7],
    "annotations": [
        {
            "segmentation": [[1.5, 2.25, 3, 4, -5e1, 6]],
            "area": 702.5,
            "iscrowd": 0,
            "image_id": 12,
            "bbox": [473.07, 395.93, 38.65, 28.67],
            "category_id": 18,
            "id": 1768,
        },
        {"id": 2, "image_id": 1, "category_id": 3, "bbox": [0, 0, 10, 10.0], "iscrowd": True},
    ],
}


def write_seeds(folder: Path) -> list[str]:
    """Well-formed files in the layouts that json writes."""
    layouts = ({}, {"separators": (",", ":"), "ensure_ascii": False}, {"indent": 1})
    paths = []
    for content in (DETECTIONS, TRUTHS, []):
        for layout in layouts:
            paths.append(folder / f"{len(paths)}.json")
            paths[-1].write_text(json.dumps(content, **layout), encoding="utf-8")
    return [str(path) for path in paths]


def build(folder: Path, compiler: str, block: int, *flags: str) -> str:
    """Compile the scanner with the fuzzer; returns the program."""
    program = str(folder / f"fuzz_{block}")
    command = [compiler, *FLAGS, *flags, f"-DSCAN_BLOCK={block}", *map(str, SOURCES)]
    subprocess.run([*command, "-o", program], check=True)
    return program


def main() -> int:
    """Fuzz with blocks of both sizes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=200_000, help="mutated files for each block")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=int, help="use libFuzzer (clang) for so long instead")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, corpus = Path(name), Path(name) / "corpus"
        corpus.mkdir()
        seeds = write_seeds(corpus)
        for block in BLOCKS:
            if options.seconds:
                flags = ("-fsanitize=fuzzer,address,undefined", "-DLIBFUZZER")
                command = [build(folder, "clang", block, *flags)]
                command += [f"-max_total_time={options.seconds // len(BLOCKS)}", "-verbosity=0"]
                command += ["-print_final_stats=1", f"-seed={options.seed + 1}", "-max_len=2000"]
                command.append(str(corpus))
            else:
                command = [build(folder, "gcc", block, "-fsanitize=address,undefined")]
                command += [str(options.runs), str(options.seed), *seeds]
            if subprocess.run(command).returncode:
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
