"""tools/evaluate.py --metric voc and lvis: what it prints and writes, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from detkit.evaluation.other_metrics import evaluate_other

ROOT = Path(__file__).resolve().parent.parent.parent
HERE, AWAY = [0, 0, 40, 40], [0, 80, 40, 40]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with truth.json, good.json and bad.json; one of three truths is difficult."""

    def found(box: list[int], score: float) -> dict[str, Any]:
        return {"image_id": 1, "category_id": 5, "bbox": box, "score": score}

    truths = [HERE, AWAY, [80, 0, 40, 40]]
    data = {
        "images": [{"id": 1, "neg_category_ids": [], "not_exhaustive_category_ids": []}],
        "categories": [{"id": 5, "name": "a\x1b[31mcat", "frequency": "c"}],
        "annotations": [
            {"id": i, "image_id": 1, "category_id": 5, "bbox": box, "difficult": int(i == 3)}
            for i, box in enumerate(truths, 1)
        ],
    }
    (tmp_path / "truth.json").write_text(json.dumps(data))
    good, bad = found(HERE, 0.9), found([40, 80, 10, 10], 0.8)
    (tmp_path / "good.json").write_text(json.dumps([good, found(AWAY, 0.7)]))
    (tmp_path / "bad.json").write_text(json.dumps([bad, good]))
    return tmp_path


def call(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools" / "evaluate.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def test_voc_is_printed_and_written(files: Path) -> None:
    done = call(
        files / "truth.json", files / "good.json", "--metric", "voc", "--out", files / "o.json"
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [line.split() for line in done.stdout.splitlines()[1:]] == [
        ["a\ufffd[31mcat", "2", "1.000", "1.000", "1.000", "1.000"],
        ["mAP", "2", "1.000", "1.000", "1.000", "1.000"],
    ]
    numbers = json.loads((files / "o.json").read_text())
    assert list(numbers) == [
        "area",
        "11-point",
        "area, legacy pixels",
        "11-point, legacy pixels",
    ]
    assert numbers["11-point, legacy pixels"]["legacy_pixels"] is True
    assert numbers["area"]["mAP"] == 1


def test_several_files_stand_beside_each_other(files: Path) -> None:
    paths = [str(files / "good.json"), str(files / "bad.json")]
    text = evaluate_other("voc", files / "truth.json", paths, out=files / "o.json")
    assert text.splitlines()[0] == "good:" and "bad:" in text.splitlines()
    numbers = json.loads((files / "o.json").read_text())["models"]
    assert numbers["good"]["area"]["mAP"] == 1
    assert numbers["bad"]["area"]["mAP"] == pytest.approx(0.5)


def test_lvis_is_printed(files: Path) -> None:
    text = evaluate_other("lvis", files / "truth.json", [str(files / "bad.json")])
    lines = dict(line.split(maxsplit=1) for line in text.split("\n\n")[0].splitlines())
    assert lines["AR@300"] == "0.333" and lines["APr"] == "-"
    assert text.splitlines()[-1].split()[:3] == ["a\ufffd[31mcat", "c", "3"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ("--metric", "voc", "--strict"),
            "--strict are of --metric coco alone; --metric voc prints",
        ),
        (("--metric", "lvis", "--csv", "x.csv"), "--csv are of --metric coco alone; --metric lvis"),
        (("--metric", "map"), "invalid choice: 'map'"),
    ],
)
def test_what_does_not_fit_is_refused(files: Path, arguments: tuple[str, ...], expected: str):
    done = call(files / "truth.json", files / "good.json", *arguments)
    assert done.returncode == 2 and expected in done.stderr.splitlines()[-1]


def test_lvis_needs_its_fields(files: Path) -> None:
    data = json.loads((files / "truth.json").read_text())
    del data["images"][0]["neg_category_ids"]
    (files / "truth.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match=r"truth\.json: images\[0\]: 'neg_category_ids' must be"):
        evaluate_other("lvis", files / "truth.json", [str(files / "good.json")])
