"""tools/evaluate.py: what it prints and writes, and the one line for each mistake."""

from __future__ import annotations

import csv
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from detkit.cli import one_line
from detkit.evaluation import evaluate_files
from detkit.evaluation.paired import compare
from detkit.evaluation.side_by_side import distinct_names, results_text

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def tool(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Call the command's `main`; what it prints."""
    spec = importlib.util.spec_from_file_location("evaluate_tool", ROOT / "tools" / "evaluate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def call(*arguments: object) -> str:
        module.main([str(each) for each in arguments])
        return capsys.readouterr().out

    return call


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder with truth.json, a.json, b.json (better) and the pictures 0.png .. 5.png."""
    rng = np.random.default_rng(0)
    categories = [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]
    images = [
        {"id": i, "file_name": f"{i}.png", "width": 64, "height": 48} for i in range(6)
    ]  # fmt: skip
    annotations, good, bad = [], [], []
    for i in range(30):
        image, category = i % 6, (3, 7)[i % 2]
        box = [*rng.integers(0, 30, 2).tolist(), *rng.integers(8, 16, 2).tolist()]
        annotations.append(
            {"id": i + 1, "image_id": image, "category_id": category, "bbox": box,
             "area": box[2] * box[3], "iscrowd": 0}
        )  # fmt: skip
        found = {"image_id": image, "category_id": category, "score": float(rng.random())}
        good.append({**found, "bbox": box})
        bad.append({**found, "bbox": [box[0] + 3, *box[1:]]})
    truth = {"images": images, "annotations": annotations, "categories": categories}
    for name, content in (("truth", truth), ("a", bad), ("b", good)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    for image in range(6):
        pixels = rng.integers(0, 255, (48, 64, 3), dtype=np.uint8)
        cv2.imwrite(str(tmp_path / f"{image}.png"), pixels)
    return tmp_path


def test_one_file(tool: Callable[..., str], data: Path) -> None:
    printed = tool(data / "truth.json", data / "a.json", "--resamples", 50)
    result = evaluate_files(data / "truth.json", data / "a.json")
    blocks = printed.rstrip("\n").split("\n\n")
    assert blocks == [result.summary(), result.interval(50).sentence(), result.table()]
    assert "50 resamples of 6 images" in printed


def test_several_files_are_compared_with_the_first(tool: Callable[..., str], data: Path) -> None:
    files = [data / "a.json", data / "b.json"]
    printed = tool(data / "truth.json", *files, "--resamples", 50)
    a, b = (evaluate_files(data / "truth.json", path) for path in files)
    assert f"a:\n{a.summary()}" in printed
    assert f"b:\n{b.summary()}" in printed
    sentence = compare(a, b, resamples=50, names=("a", "b")).sentence()
    assert printed.endswith(f"\n\n{sentence}\n")
    assert sentence.startswith("b is better than a by ")


def test_no_resamples_no_interval(tool: Callable[..., str], data: Path) -> None:
    files, out = [data / "a.json", data / "b.json"], data / "out"
    assert "interval" not in tool(data / "truth.json", files[0], "--resamples", 0)
    tool(data / "truth.json", *files, "--resamples", 0, "--report", out)
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "95 % interval 0" not in page
    assert page.count("no interval: no resamples were asked for") == 3  # each model, the difference


def test_notes_are_printed(tool: Callable[..., str], data: Path) -> None:
    truth = json.loads((data / "truth.json").read_text())
    truth["annotations"][0]["id"] = 0
    (data / "truth.json").write_text(json.dumps(truth))
    printed = tool(data / "truth.json", data / "b.json", "--resamples", 2)
    result = evaluate_files(data / "truth.json", data / "b.json")
    (note,) = result.notes
    assert f"\nnote: {note}\n" in printed
    strict = tool(data / "truth.json", data / "b.json", "--resamples", 2, "--strict")
    assert "note:" not in strict
    assert strict.splitlines()[0] != printed.splitlines()[0]


@pytest.mark.parametrize("option", ["--out", "--json"])
def test_json(tool: Callable[..., str], data: Path, option: str) -> None:
    path = data / "new" / "numbers.json"
    tool(data / "truth.json", data / "a.json", "--resamples", 50, option, path)
    result = evaluate_files(data / "truth.json", data / "a.json")
    assert json.loads(path.read_text()) == {
        **result.as_dict(),
        "interval": result.interval(50).as_dict(),
        "notes": [],
    }


def test_json_of_several(tool: Callable[..., str], data: Path) -> None:
    path, files = data / "numbers.json", [data / "a.json", data / "b.json"]
    tool(data / "truth.json", *files, "--resamples", 50, "--out", path)
    content = json.loads(path.read_text())
    a, b = (evaluate_files(data / "truth.json", each) for each in files)
    assert list(content["models"]) == ["a", "b"]
    assert content["models"]["b"]["AP"] == b.stats[0]
    (difference,) = content["differences"]
    assert difference["names"] == ["a", "b"]
    assert difference["AP"]["estimate"] == b.stats[0] - a.stats[0]


def test_csv(tool: Callable[..., str], data: Path) -> None:
    path = data / "classes.csv"
    tool(data / "truth.json", data / "a.json", "--resamples", 2, "--csv", path)
    result = evaluate_files(data / "truth.json", data / "a.json")
    assert path.read_text() == result.csv()
    tool(data / "truth.json", data / "a.json", data / "b.json", "--resamples", 2, "--csv", path)
    with path.open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert [(row["model"], row["name"]) for row in rows] == [
        ("a", "cat"), ("a", "dog"), ("b", "cat"), ("b", "dog")
    ]  # fmt: skip
    assert float(rows[0]["AP"]) == result.per_class()[0].AP


def test_report(tool: Callable[..., str], data: Path) -> None:
    out = data / "out"
    printed = tool(
        data / "truth.json", data / "a.json", data / "b.json", "--resamples", 2,
        "--report", out, "--images", data,
    )  # fmt: skip
    assert printed.endswith(f"\nreport: {out / 'report.html'}\n")
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/jpeg;base64,") >= 6
    assert "<bdi>a</bdi>" in page and "<bdi>b</bdi>" in page
    tool(data / "truth.json", data / "a.json", "--resamples", 2, "--report", out)
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "data:image/jpeg" not in page
    assert "No pictures: name the folder" in page


def test_help_names_every_option(
    tool: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        tool("--help")
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for option in ("--report", "--images", "--out", "--csv", "--resamples", "--strict"):
        assert option in text
    assert "0 for none (default: 1000)" in " ".join(text.split())


MISTAKES: list[tuple[Sequence[str], str]] = [
    (["nothing.json", "a.json"], "nothing.json: No such file or directory"),
    (["truth.json", "nothing.json"], "nothing.json: No such file or directory"),
    (["a.json", "a.json"], "ground truth must be a JSON object"),
    (["truth.json", "0.png"], "0.png: not valid JSON"),
    (["truth.json", "a.json", "--images", "."], "name its folder with --report"),
    (["truth.json", "a.json", "--report", "truth.json/x"], "truth.json is a file, not a folder"),
    (["truth.json", "a.json", "--report", "out", "--images", "no"], "no folder of pictures at no"),
    (["truth.json", "a.json", "--out", "."], "it is a folder; name a file"),
    (["truth.json", "a.json", "--csv", "."], "it is a folder; name a file"),
    (["truth.json", "a.json", "--resamples", "1"], "resamples must be 0, for no interval, or"),
    (["truth.json", "a.json", "--resamples", "x"], "invalid int value: 'x'"),
    (["truth.json"], "the following arguments are required: detections"),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES, ids=[m for _, m in MISTAKES])
def test_mistakes(
    tool: Callable[..., str],
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: Sequence[str],
    message: str,
) -> None:
    monkeypatch.chdir(data)
    before = sorted(data.iterdir())
    with pytest.raises((ValueError, OSError, SystemExit)) as caught:
        tool(*arguments)
    if isinstance(caught.value, SystemExit):  # argparse's
        assert caught.value.code == 2
        assert message in capsys.readouterr().err
    else:
        assert message in one_line(caught.value)
    assert sorted(data.iterdir()) == before


def test_mistakes_are_told_before_the_work(
    tool: Callable[..., str], data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("the work has begun")

    monkeypatch.setattr("detkit.evaluation.side_by_side.evaluate_files", never)
    (data / "taken" / "report.html").mkdir(parents=True)
    for arguments in (["--report", data / "taken"], ["--out", data], ["--resamples", 1]):
        with pytest.raises(ValueError):
            tool(data / "truth.json", data / "a.json", *arguments)


def run(*arguments: object, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, ROOT / "tools" / "evaluate.py", *map(str, arguments)],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_a_mistake_is_one_line(data: Path) -> None:
    done = run(data / "truth.json", data / "nothing.json")
    assert done.returncode == 2
    assert done.stderr == f"error: {data / 'nothing.json'}: No such file or directory\n"
    assert done.stdout == ""


def test_numbers_alone_need_neither_torch_nor_opencv(data: Path) -> None:
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['evaluate.py', {str(data / 'truth.json')!r}, {str(data / 'a.json')!r}]\n"
        f"try: runpy.run_path({str(ROOT / 'tools' / 'evaluate.py')!r}, run_name='__main__')\n"
        "except SystemExit as end: assert end.code == 0\n"
        "print({'torch', 'cv2', 'matplotlib'} & {*sys.modules})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip
    assert done.stdout.endswith("set()\n"), done.stderr


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["a.json"], ["a.json"]),
        (["x/a.json"], ["x/a.json"]),
        (["a.json", "b.json"], ["a", "b"]),
        (["x/a.json", "x/b.json"], ["a", "b"]),
        (["a.json", "b.txt"], ["a.json", "b.txt"]),
        (["a.json", "a"], ["a.json", "a"]),
        (["runs/a/test/d.json", "runs/b/test/d.json"], ["a", "b"]),
        (["runs/a/1/d.json", "runs/b/2/d.json"], ["a/1", "b/2"]),
        (["runs/a/d.json", "runs/d.json"], ["a/d", "d"]),
        (["a.json", "a.json"], ["1: a", "2: a"]),
        (["x/a.json", "x/a.json", "x/b.json"], ["1: a", "2: a", "3: b"]),
        (["/a.json", "b.json"], ["/a", "b"]),
    ],
)
def test_names_are_distinct(paths: list[str], names: list[str]) -> None:
    assert [name.replace("\\", "/") for name in distinct_names(paths)] == names


def test_names_of_classes_do_not_reach_the_terminal_as_commands(data: Path) -> None:
    truth = json.loads((data / "truth.json").read_text())
    truth["categories"][0]["name"] = "\x1b[2Jcat\ud800\r"
    (data / "truth.json").write_text(json.dumps(truth))
    text = results_text({"a": evaluate_files(data / "truth.json", data / "a.json")}, resamples=2)
    assert "\ufffd[2Jcat\ufffd\ufffd" in text
    text.encode()
