"""tools/browse_data.py: which samples are on the sheet, where their boxes are, and mistakes."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from detkit import cli
from detkit.config import Recipe, recipe_to_yaml
from detkit.engine.browse import draw_sheet, find_recipe
from detkit.visualize import class_color

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def browse(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run the command: its exit code, what it printed, and the line of its mistake."""
    path = ROOT / "tools" / "browse_data.py"
    spec = importlib.util.spec_from_file_location("tools_browse_data", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["browse_data.py", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as caught:
            cli.run(module.main)
        out, err = capfd.readouterr()
        return int(caught.value.code or 0), out, err

    return call


@pytest.fixture
def corner_data(tmp_path: Path) -> Path:
    """One black picture of 400x200, in the left half a white object: x 40, y 60, w 80, h 100."""
    picture = np.zeros((200, 400, 3), np.uint8)
    picture[60:160, 40:120] = 255
    cv2.imwrite(str(tmp_path / "a.png"), picture)
    file = tmp_path / "a.json"
    item = {"id": 1, "image_id": 1, "category_id": 5, "bbox": [40, 60, 80, 100]}
    file.write_text(
        json.dumps(
            {
                "images": [{"id": 1, "file_name": "a.png", "width": 400, "height": 200}],
                "annotations": [item],
                "categories": [{"id": 5, "name": "cat"}],
            }
        ),
        encoding="utf-8",
    )
    return file


def flipping(file: Path) -> Recipe:
    recipe = find_recipe(str(file))
    augment = recipe.data.augment.model_copy(update={"horizontal_flip": 1.0})
    data = recipe.data.model_copy(update={"augment": augment})
    return recipe.model_copy(update={"data": data})


def box_of(image: np.ndarray) -> tuple[int, int, int, int]:
    """x1, y1, x2, y2 around the lines in the colour of the first class."""
    line = (image == np.array(class_color(0))).all(axis=2)
    line = line & (line.sum(axis=1) > 20)[:, None]  # not what is left of the caption
    rows, columns = np.nonzero(line)
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


def test_the_box_is_drawn_around_the_object(corner_data: Path) -> None:
    sheet = draw_sheet(find_recipe(str(corner_data)), side=200)
    assert sheet.image.shape == (8 + 100 + 8, 8 + 200 + 8, 3)
    cell = sheet.image[8:-8, 8:-8]
    x1, _, x2, y2 = box_of(cell)
    assert (x1, x2, y2) == pytest.approx((20, 60, 80), abs=1)
    assert sheet.files == [corner_data.parent / "a.png"]
    assert sheet.report.startswith("1 images")


def test_beside_it_stands_what_training_sees(corner_data: Path) -> None:
    sheet = draw_sheet(flipping(corner_data), augmented=True, side=200)
    assert sheet.image.shape == (8 + 2 + 100 + 2 + 8, 8 + 2 + 200 + 2 + 200 + 2 + 8, 3)
    before, after = sheet.image[10:-10, 10:210], sheet.image[10:-10, 212:412]
    assert box_of(before)[::2] == pytest.approx((20, 60), abs=1)
    assert box_of(after)[::2] == pytest.approx((140, 180), abs=1)
    inside = after[40:70, 150:170]  # the object itself, mirrored with its box
    assert inside.min() > 200


def test_a_seed_gives_one_sheet(tiny_recipe: Callable[..., Recipe]) -> None:
    def draw(seed: int) -> np.ndarray:
        return draw_sheet(tiny_recipe(), count=3, augmented=True, seed=seed, side=64).image

    assert np.array_equal(draw(1), draw(1))
    assert not np.array_equal(draw(1), draw(2))


def test_no_more_samples_than_there_are(tiny_recipe: Callable[..., Recipe]) -> None:
    sheet = draw_sheet(tiny_recipe(), count=100, side=64)
    assert [path.name for path in sheet.files] == [f"{index}.png" for index in range(9)]
    assert len(set(draw_sheet(tiny_recipe(), count=4, side=64).files)) == 4


def test_a_recipe_and_its_splits(
    browse: Any, tiny_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    recipe, out = tmp_path / "tiny.yaml", tmp_path / "new" / "sheet.jpg"
    recipe.write_text(recipe_to_yaml(tiny_recipe()), encoding="utf-8")
    code, said, err = browse(
        recipe, "--split", "val", "--augmented", "--count", 4, "--side", 64, "--out", out
    )
    assert (code, err) == (0, "")
    assert said.count(".png\n") == 4 and said.endswith(f"drawn to {out}\n")
    assert cv2.imread(str(out)).shape[1] > 2 * 64
    code, _, err = browse(recipe, "--split", "test", "--out", out)
    assert (code, err) == (2, f"error: {recipe} has no data.test; allowed: train, val\n")


@pytest.mark.parametrize("ending", [".png", ".webp", ".JPG"])
def test_endings(browse: Any, corner_data: Path, tmp_path: Path, ending: str) -> None:
    out = tmp_path / f"sheet{ending}"
    assert browse(corner_data, "--out", out)[0] == 0
    assert cv2.imread(str(out)) is not None


def test_yolo_is_no_recipe(browse: Any, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    cv2.imwrite(str(tmp_path / "images" / "a.png"), np.zeros((50, 50, 3), np.uint8))
    (tmp_path / "labels" / "a.txt").write_text("0 0.5 0.5 0.4 0.4\n", encoding="utf-8")
    (tmp_path / "data.yaml").write_text("train: images\nnames: [cat]\n", encoding="utf-8")
    code, out, _ = browse(tmp_path / "data.yaml", "--out", tmp_path / "sheet.png")
    assert code == 0
    assert "1 boxes" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no.json", "--out", "s.png"], "no.json does not exist"),
        (["no.yaml", "--out", "s.png"], "no recipe at no.yaml"),
        (
            ["a.json", "--out", "s.pgn"],
            "s.pgn: unknown kind of picture '.pgn'; did you mean '.png'",
        ),
        (["a.json", "--out", "."], "unknown kind of picture"),
        (["a.json", "--count", "0", "--out", "s.png"], "count and side must be at least 1, got 0"),
        (["a.json", "--split", "val", "--out", "s.png"], "which has no 'split'"),
        (["a.json", "--images", "no", "--out", "s.png"], "no does not exist"),
    ],
)
def test_mistakes_are_one_line(
    browse: Any,
    corner_data: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(corner_data.parent)
    code, _, err = browse(*arguments)
    assert code == 2
    assert message in err and err.count("\n") == 1
    assert not list(corner_data.parent.glob("s.*"))


def test_real_pictures(browse: Any, shared_data: Path, tmp_path: Path) -> None:
    out = tmp_path / "sheet.jpg"
    source = shared_data / "coco128" / "coco.json"
    code, said, _ = browse(source, "--augmented", "--count", 6, "--side", 200, "--out", out)
    assert code == 0
    assert "128 images (2 without boxes), 929 boxes" in said
    assert cv2.imread(str(out)).std() > 30
