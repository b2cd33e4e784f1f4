"""The built-in data set: what is annotated is what is drawn, and a split is written once."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from io import StringIO
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO

from detkit.data import synthetic
from detkit.data.synthetic import (
    colors,
    default_cache,
    distractors,
    glyphs,
    render_scene,
    write_synthetic,
    writer,
)
from detkit.data.synthetic.canvas import Canvas
from detkit.data.synthetic.digits import draw_digit
from detkit.data.synthetic.scene import MAX_DIGITS

SMALL = (96, 128)


@pytest.fixture(scope="module")
def scenes() -> list[synthetic.Scene]:
    return [render_scene(split="train", index=i, seed=3, image_size=SMALL) for i in range(150)]


def plain_canvas(height: int = 160, width: int = 160) -> Canvas:
    return Canvas(np.full((height, width, 3), 128, np.uint8))


def files(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# --- What is drawn


def test_boxes_are_tight_around_the_ink() -> None:
    drawn = 0
    for seed in range(150):
        canvas = plain_canvas()
        draw_digit(np.random.default_rng(seed), canvas)
        for x1, y1, x2, y2 in canvas.boxes:
            # Half ink is at least 16 units of lightness away from the grey, so this sees the
            # pixels of the box and at most one of the soft edge around them.
            changed = np.abs(canvas.pixels.astype(int) - 128).max(2) > 24
            rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
            seen = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
            np.testing.assert_allclose([x1, y1, x2, y2], seen, atol=1)
            drawn += 1
    assert drawn == 150


def test_boxes_lie_inside_and_match_their_labels(scenes: list[synthetic.Scene]) -> None:
    height, width = SMALL
    for scene in scenes:
        assert scene.image.shape == (height, width, 3) and scene.image.dtype == np.uint8
        assert scene.boxes.shape == (len(scene.labels), 4)
        x1, y1, x2, y2 = scene.boxes.T
        assert (x1 >= 0).all() and (y1 >= 0).all() and (x2 <= width).all() and (y2 <= height).all()
        assert (x2 - x1 >= 3).all() and (y2 - y1 >= 8).all()


def test_classes_are_even_and_some_images_are_empty(scenes: list[synthetic.Scene]) -> None:
    counts = np.bincount(np.concatenate([scene.labels for scene in scenes]), minlength=10)
    assert len(counts) == 10
    assert counts.min() > 0.6 * counts.mean() and counts.max() < 1.4 * counts.mean()
    empty = sum(len(scene.labels) == 0 for scene in scenes)
    assert 1 <= empty <= 12  # 3 % of 150 is 4.5
    assert max(len(scene.labels) for scene in scenes) <= MAX_DIGITS


def test_sizes_span_the_range_and_small_ones_prevail(scenes: list[synthetic.Scene]) -> None:
    heights = np.concatenate([scene.boxes[:, 3] - scene.boxes[:, 1] for scene in scenes])
    assert heights.min() < 0.2 * SMALL[0] and heights.max() > 0.5 * SMALL[0]
    assert np.median(heights) < 0.35 * SMALL[0]


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        (40, True),  # free
        (-2, True),  # 90 % inside
        (-5, False),  # 75 % inside
        (-30, False),  # outside
        (180, False),
        (100, False),  # on top of the block at 100..120, which it would hide
        (117, True),  # hides 3 of 20 columns
        (113, False),  # hides 7 of 20 columns
    ],
)
def test_a_digit_needs_room(x: int, expected: bool) -> None:
    block = np.ones((20, 20), np.float32)
    canvas = plain_canvas()
    canvas.add_digit(1, block, np.zeros((20, 20, 3), np.float32), 100, 50)
    assert canvas.boxes == [(100, 50, 120, 70)]
    assert canvas.has_room(block >= 0.5, x, 50) is expected


def test_two_digits_do_not_share_a_box() -> None:
    canvas = plain_canvas()
    block, black = np.ones((20, 20), np.float32), np.zeros((20, 20, 3), np.float32)
    canvas.add_digit(1, block, black, 100, 50)
    ring = np.ones((24, 24), bool)
    ring[2:-2, 2:-2] = False
    assert not canvas.has_room(ring, 98, 48)  # hides nothing, but its box has IoU 0.69
    assert canvas.has_room(ring, 88, 38)  # IoU 0.17


def test_hiding_adds_up() -> None:
    canvas = plain_canvas()
    block, black = np.ones((20, 20), np.float32), np.zeros((20, 20, 3), np.float32)
    canvas.add_digit(1, block, black, 100, 50)
    canvas.add_digit(2, block, black, 116, 50)  # hides 4 of 20 columns on the right
    assert canvas.owner[60, 115] == 1 and canvas.owner[60, 116] == 2
    assert canvas.boxes[0] == (100, 50, 120, 70)  # of the whole digit, hidden or not
    assert not canvas.has_room(block >= 0.5, 84, 50)  # 4 more on the left: 40 % hidden
    assert canvas.has_room(block >= 0.5, 81, 50)  # 1 more: 25 %


def test_a_digit_at_the_border_keeps_its_visible_box() -> None:
    canvas = plain_canvas()
    canvas.add_digit(7, np.ones((30, 20), np.float32), np.zeros((30, 20, 3), np.float32), -4, 140)
    assert canvas.boxes == [(0, 140, 16, 160)]
    assert canvas.ink == [16 * 20]


@pytest.mark.parametrize("grey", [0, 60, 128, 190, 255])
def test_colours_stand_off_from_their_surroundings(grey: int) -> None:
    around = np.full((50, 3), grey, np.float32)
    for seed in range(30):
        color, contrast = colors._standing_off(np.random.default_rng(seed), around)
        lab = cv2.cvtColor(np.stack([color, around[0]])[None] / 255, cv2.COLOR_BGR2LAB)[0]
        assert np.linalg.norm((lab[0] - lab[1]) * (1, 0.4, 0.4)) == pytest.approx(contrast, 1e-3)
        assert contrast >= colors.CONTRAST[0]


def test_the_edge_of_an_outlined_digit_stands_off_too() -> None:
    alpha, inner = np.zeros((2, 30, 30), np.float32)
    alpha[5:25, 5:25], inner[8:22, 8:22] = 1, 1
    grey, edge, fill = (128, 128, 128), (6, 6), (15, 15)
    for seed in range(40):
        rng = np.random.default_rng(seed)
        color, _ = colors.paint(rng, plain_canvas(), alpha, inner, 50, 50)
        seen = np.array([grey, color[edge], color[fill]], np.float32)
        lab = cv2.cvtColor(np.clip(seen, 0, 255)[None] / 255, cv2.COLOR_BGR2LAB)[0]
        # Shading inside a digit may take a little of the contrast again.
        assert np.linalg.norm(lab[1] - lab[0]) > 0.9 * colors.CONTRAST[0]
        assert np.linalg.norm(lab[1] - lab[2]) > 0.4 * colors.CONTRAST[0]


def test_every_typeface_draws_every_character() -> None:
    for typeface in glyphs.TYPEFACES:
        shapes = [glyphs.printed(c, typeface) for c in "0123456789" + distractors.DISTRACTORS]
        assert all(shape.max() > 0.9 for shape in shapes)
        digits = [cv2.resize(shape, (32, 48)) for shape in shapes[:10]]
        for first in range(10):
            for second in range(first):  # a missing glyph would be the same box twice
                assert np.abs(digits[first] - digits[second]).mean() > 0.05, typeface


def test_hand_drawn_digits_differ_and_fill_their_height() -> None:
    rng = np.random.default_rng(0)
    for digit in "0123456789":
        first, second = (glyphs.hand_drawn(rng, digit, 80) for _ in range(2))
        assert 64 <= first.shape[0] <= 88
        assert first.shape != second.shape or not np.array_equal(first, second)


# --- Seeds


def test_an_image_depends_on_its_seed_split_and_index_alone() -> None:
    def draw(**changes: object) -> bytes:
        given = {"split": "train", "index": 4, "seed": 0, "image_size": SMALL, **changes}
        return render_scene(**given).image.tobytes()  # type: ignore[arg-type]

    variants = [{}, {"split": "val"}, {"split": "test"}, {"index": 5}, {"seed": 1}]
    pictures = [draw(**changes) for changes in variants]
    assert len(set(pictures)) == len(variants)
    assert pictures == [draw(**changes) for changes in variants]


def test_same_seed_same_bytes_and_a_small_set_begins_a_large_one(tmp_path: Path) -> None:
    write = lambda root, n: write_synthetic(  # noqa: E731
        root, split="test", num_images=n, seed=5, image_size=SMALL
    )
    first, again, longer = write(tmp_path / "a", 6), write(tmp_path / "b", 6), write(tmp_path, 9)
    assert files(first.images_folder.parent) == files(again.images_folder.parent)
    assert files(first.images_folder).items() <= files(longer.images_folder).items()


def test_splits_share_no_image(tmp_path: Path) -> None:
    digests: list[str] = []
    for split in synthetic.SPLITS:
        paths = write_synthetic(tmp_path, split=split, num_images=10, seed=0, image_size=SMALL)
        digests += files(paths.images_folder).values()
    assert len(set(digests)) == 30


# --- Files


def test_the_json_is_coco_and_tells_what_was_drawn(tmp_path: Path) -> None:
    paths = write_synthetic(tmp_path, split="val", num_images=12, seed=1, image_size=SMALL)
    with contextlib.redirect_stdout(StringIO()):
        coco = COCO(paths.annotations_json_path)
    assert coco.getImgIds() == list(range(1, 13))
    assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == list("0123456789")
    assert coco.getCatIds() == list(range(1, 11))
    assert sorted(coco.anns) == list(range(1, len(coco.anns) + 1))
    for image in coco.loadImgs(coco.getImgIds()):
        pixels = cv2.imread(str(paths.images_folder / image["file_name"]))
        assert pixels.shape == (image["height"], image["width"], 3) == (*SMALL, 3)
        scene = render_scene(split="val", index=image["id"] - 1, seed=1, image_size=SMALL)
        # The right picture: a wrong one differs by about 50. JPEG at quality 70 by under 10.
        assert np.abs(pixels.astype(int) - scene.image.astype(int)).mean() < 15
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=[image["id"]]))
        assert [a["category_id"] - 1 for a in annotations] == scene.labels.tolist()
        for annotation, (x1, y1, x2, y2) in zip(annotations, scene.boxes.tolist(), strict=True):
            assert annotation["bbox"] == [x1, y1, x2 - x1, y2 - y1]
            assert annotation["area"] == (x2 - x1) * (y2 - y1)
            assert annotation["iscrowd"] == 0


def write_small(root: Path) -> synthetic.SyntheticPaths:
    return write_synthetic(root, split="train", num_images=5, seed=0, image_size=SMALL)


def test_a_second_call_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = write_small(tmp_path)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    monkeypatch.setattr(writer, "_write_split", lambda *_, **__: pytest.fail("drawn again"))
    assert write_small(tmp_path) == first
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == times


@pytest.mark.parametrize(
    "change", [{"split": "val"}, {"num_images": 4}, {"seed": 1}, {"image_size": (96, 96)}]
)
def test_every_parameter_is_in_the_folder_name(tmp_path: Path, change: dict[str, object]) -> None:
    given = {"split": "train", "num_images": 5, "seed": 0, "image_size": SMALL, **change}
    changed = write_synthetic(tmp_path, **given)  # type: ignore[arg-type]
    assert changed.images_folder != write_small(tmp_path).images_folder
    assert len(list(tmp_path.iterdir())) == 2


def test_an_error_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(writer, "_coco_document", fail)  # the images are written by then
    with pytest.raises(OSError, match="no space left"):
        write_small(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_killed_writer_is_not_taken_as_complete(tmp_path: Path) -> None:
    complete = write_small(tmp_path / "complete")
    name = complete.images_folder.parent.name
    private = tmp_path / "broken" / f".{name}.0123" / "images"  # what SIGKILL leaves
    private.mkdir(parents=True)
    images = tmp_path / "broken" / name / "images"  # what an interrupted copy leaves: no JSON
    images.mkdir(parents=True)
    (images / "000001.jpg").write_bytes(b"half a pict")
    paths = write_small(tmp_path / "broken")
    assert paths.images_folder == images
    assert files(images.parent) == files(complete.images_folder.parent)


def test_the_json_is_written_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dumps = json.dumps

    def check(document: object) -> str:
        (private,) = tmp_path.iterdir()
        assert private.name.startswith(".")
        assert len(list((private / "images").glob("*.jpg"))) == 5
        return dumps(document)

    monkeypatch.setattr(writer.json, "dumps", check)
    assert write_small(tmp_path).annotations_json_path.is_file()


def test_the_loser_of_a_race_takes_the_winners_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish = writer._publish

    def publish_second(private: Path, folder: Path) -> None:
        (folder / "images").mkdir(parents=True)
        (folder / "annotations.json").write_text("of the winner")
        publish(private, folder)

    monkeypatch.setattr(writer, "_publish", publish_second)
    paths = write_small(tmp_path)
    assert paths.annotations_json_path.read_text() == "of the winner"
    assert list(tmp_path.iterdir()) == [paths.images_folder.parent]


def test_writers_at_once_agree(tmp_path: Path) -> None:
    alone = write_small(tmp_path / "alone")
    start = threading.Barrier(4)
    results: list[synthetic.SyntheticPaths] = []

    def write() -> None:
        start.wait()
        results.append(write_small(tmp_path / "together"))

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4 and len(set(results)) == 1
    assert list((tmp_path / "together").iterdir()) == [results[0].images_folder.parent]
    assert files(tmp_path / "together") == files(alone.images_folder.parent.parent)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": "training"}, "split 'training' is not one of train, val, test"),
        ({"num_images": 0}, "num_images is 0, give at least 1"),
        ({"seed": -1}, "seed is -1, give an integer from 0"),
        ({"image_size": (256, 63)}, r"image_size is \(256, 63\), give \(height, width\)"),
        ({"image_size": (256,)}, r"image_size is \(256,\), give \(height, width\)"),
    ],
)
def test_bad_parameters(tmp_path: Path, change: dict[str, object], message: str) -> None:
    given = {"split": "train", "num_images": 2, "seed": 0, **change}
    with pytest.raises(ValueError, match=message):
        write_synthetic(tmp_path, **given)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"DETKIT_CACHE": "/a/b", "XDG_CACHE_HOME": "/x"}, "/a/b"),
        ({"XDG_CACHE_HOME": "/x"}, "/x/detkit"),
        ({"XDG_CACHE_HOME": "", "HOME": "/home/me"}, "/home/me/.cache/detkit"),
        ({"HOME": "/home/me"}, "/home/me/.cache/detkit"),
        ({"DETKIT_CACHE": "~/d", "HOME": "/home/me"}, "/home/me/d"),
    ],
)
def test_default_cache(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: str
) -> None:
    for name in ("DETKIT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert default_cache() == Path(expected)
