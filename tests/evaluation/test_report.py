"""The report: what it says, that no text becomes markup, and every kind of emptiness."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterable, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from detkit.evaluation import CocoEvaluator, CocoResult
from detkit.evaluation.coco import _evaluate
from detkit.evaluation.coco_json import read_detections, read_truths
from detkit.evaluation.inputs import CocoSettings
from detkit.evaluation.paired import compare
from detkit.evaluation.report import check_report, find_pictures, render, write_report
from detkit.evaluation.report.html import Markup, element, escape, join, json_block, shorten
from detkit.evaluation.report.pictures import Album, Box, window_around
from detkit.evaluation.report.svg import (
    FRAME,
    Axis,
    Line,
    bar_plot,
    line_plot,
    matrix_plot,
    unit_axis,
)

Record = dict[str, Any]

HOSTILE = [
    "<script>alert(1)</script>",
    '" onmouseover="alert(1)',
    "' onclick='alert(1)'",
    "</script><script>alert(1)</script>",
    "</style><img src=x onerror=alert(1)>",
    "</title></svg><iframe src=//evil.example>",
    "<!-- ]]> -->",
    "&lt;b&gt; &amp;",
    "${7*7} {{7*7}} %s",
    "名前 Füße 🦓",
]


# --------------------------------------------------------------------------------------- fixtures


def coco(
    names: Sequence[str],
    truths: Iterable[tuple[int, int, Sequence[float]]],
    *,
    images: int = 3,
    files: Sequence[str] = (),
) -> Record:
    """Ground truth from (image, category, box); images and categories count from 1."""
    return {
        "images": [
            {"id": i + 1, "width": 64, "height": 48, **({"file_name": files[i]} if files else {})}
            for i in range(images)
        ],
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate(names)],
        "annotations": [
            {"id": i + 1, "image_id": image, "category_id": category, "bbox": list(box),
             "area": box[2] * box[3], "iscrowd": 0}
            for i, (image, category, box) in enumerate(truths)
        ],
    }  # fmt: skip


def evaluate(
    data: Record,
    found: Iterable[tuple[int, int, Sequence[float], float]] = (),
    *,
    strict: bool = False,
) -> CocoResult:
    """Of detections as (image, category, box, score)."""
    truths = read_truths(data, strict=strict)
    records = [
        {"image_id": image, "category_id": category, "bbox": list(box), "score": score}
        for image, category, box, score in found
    ]
    detections = read_detections(records, truths, strict=strict)
    return _evaluate(truths, detections, CocoSettings.of(strict=strict))


BOX, FAR = (10, 10, 20, 20), (40, 25, 15, 15)


def every_kind_of_error(names: Sequence[str] = ("cat", "dog"), **facts: Any) -> CocoResult:
    """Image 1: right and a duplicate. Image 2: another class, background. Image 3: missed, off."""
    truths = [(1, 1, BOX), (2, 1, BOX), (3, 1, BOX), (3, 2, FAR)]
    found = [
        (1, 1, BOX, 0.9),
        (1, 1, (11, 10, 20, 20), 0.8),
        (2, 2, BOX, 0.7),
        (2, 1, FAR, 0.6),
        (3, 1, (18, 10, 20, 20), 0.5),
    ]
    return evaluate(coco(names, truths, **facts), found)


class Page(HTMLParser):
    """A page as a browser reads it: elements with their attributes, and texts."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.scripts: list[tuple[dict[str, str], str]] = []
        self.style = ""
        self._inside = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        self.elements.append((tag, attributes))
        if tag == "script":
            self.scripts.append((attributes, ""))
        self._inside = tag

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            attributes, text = self.scripts.pop()
            self.scripts.append((attributes, text + data))
        elif self._inside == "style":
            self.style += data
        else:
            self.texts.append(data)

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def all(self, tag: str, **attributes: str) -> list[dict[str, str]]:
        """Attributes of the elements with this tag and all of these."""
        return [
            each for name, each in self.elements
            if name == tag
            and all(each.get(key.rstrip("_")) == value for key, value in attributes.items())
        ]  # fmt: skip

    @property
    def values(self) -> list[str]:
        """All that a browser shows or acts on."""
        return [*self.texts, *(value for _, each in self.elements for value in each.values())]


def check(page: str) -> Page:
    """What holds for every report."""
    read = Page(page)
    (policy,) = (each["content"] for each in read.all("meta") if "http-equiv" in each)
    (style,) = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    (script,) = (text for attributes, text in read.scripts if "type" not in attributes)
    for kind, text in (("style", style), ("script", script)):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    allowed = {"html", "head", "meta", "title", "link", "style", "body", "h1", "h2", "h3", "p",
               "div", "section", "main", "nav", "a", "b", "i", "br", "bdi", "span", "ul", "li",
               "table", "thead", "tbody", "tr", "th", "td", "button", "input", "select", "option",
               "label", "details", "summary", "figure", "figcaption", "script", "svg", "g", "path",
               "rect", "circle", "text", "image", "use"}  # fmt: skip
    assert {tag for tag, _ in read.elements} <= allowed
    for tag, attributes in read.elements:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, attributes)
            assert name != "style"
            if name in ("href", "src"):
                assert value.startswith(("#", "data:image/jpeg;base64,")) or value == "data:,"
    assert len(read.scripts) <= 2
    identifiers = [each["id"] for _, each in read.elements if "id" in each]
    assert len(identifiers) == len(set(identifiers))
    for text in read.values:
        assert not re.search(r"\b(nan|inf)\b", text, re.IGNORECASE), text
    for drawing in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        ElementTree.fromstring(drawing)  # well-formed
    return read


def numbers_in(read: Page) -> list[float]:
    return [float(each["data-value"]) for each in read.all("td") if "data-value" in each]


# ------------------------------------------------------------------------------------------- html


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("a < b & c > d", "a &lt; b &amp; c &gt; d"),
        ("\"double\" 'single'", "&quot;double&quot; &#x27;single&#x27;"),
        ("&lt;", "&amp;lt;"),
        (0.5, "0.5"),
        ("a\x00b\x1b[31m", "a\ufffdb\ufffd[31m"),
        ("half a pair \ud800.", "half a pair ?."),
        ("\u202egpj.exe", "\ufffdgpj.exe"),
        ("Füße 名前\n", "Füße 名前\n"),
        (Markup("<b>"), "<b>"),
    ],
)
def test_escape(text: object, escaped: str) -> None:
    assert escape(text) == escaped


def test_element() -> None:
    inner = element("b", "1 < 2")
    assert inner == "<b>1 &lt; 2</b>"
    assert element("p", inner, None, " & ", 3) == "<p><b>1 &lt; 2</b> &amp; 3</p>"
    assert element("br") == "<br>"
    attributes = {"class_": "a b", "data_value": 0.1, "open": True, "id": None, "hidden": False}
    assert element("td", **attributes) == '<td class="a b" data-value="0.1" open></td>'
    assert element("i", title='"><b>') == '<i title="&quot;&gt;&lt;b&gt;"></i>'
    assert element("i", title=Markup('"')) == '<i title="&quot;"></i>'
    assert join("<", None, inner) == f"&lt;{inner}"


@pytest.mark.parametrize("text", HOSTILE)
def test_data_for_scripts_stay_data(text: str) -> None:
    block = json_block("x", {"name": text})
    read = Page(block)
    assert [tag for tag, _ in read.elements] == ["script"]
    ((attributes, content),) = read.scripts
    assert attributes == {"type": "application/json", "id": "x"}
    assert json.loads(content) == {"name": text}
    assert not set(content) & set("<>&")


def test_shorten() -> None:
    assert shorten("abc", 3) == "abc"
    assert shorten("abcd", 3) == "ab\u2026"


# -------------------------------------------------------------------------------------------- svg


def drawing(plot: str) -> ElementTree.Element:
    return ElementTree.fromstring(plot[plot.index("<svg") : plot.index("</svg>") + 6])


def points(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"[ML]([\d.]+) ([\d.]+)", path)]


def test_line_runs_from_corner_to_corner() -> None:
    line = Line("", np.array([0.0, 1.0]), np.array([0.0, 1.0]), key="k")
    plot = drawing(line_plot([line], unit_axis("x"), unit_axis("y")))
    (path,) = plot.findall(".//path[@data-line='k']")
    left, top, width, height = FRAME
    assert points(path.attrib["d"]) == [(left, top + height), (left + width, top)]


def test_logarithmic_axis_has_equal_steps_for_equal_ratios() -> None:
    axis = Axis("x", [0.5, 1, 2])
    log = Axis("x", [0.5, 1, 2], log=True)
    values = np.array([0.5, 1, 2, 0.1, 9])
    assert axis.place(values).tolist() == pytest.approx([0, 1 / 3, 1, 0, 1])
    assert log.place(values).tolist() == pytest.approx([0, 0.5, 1, 0, 1])


def test_unknown_values_interrupt_a_line() -> None:
    y = np.array([0.1, math.nan, 0.3, 0.4])
    notes = ["a", "b", "c", "d"]
    line = Line("", np.linspace(0, 1, 4), y, key="k", notes=notes)
    plot = drawing(line_plot([line], unit_axis("x"), unit_axis("y")))
    (path,) = plot.findall(".//path[@data-line='k']")
    assert re.sub(r"[^ML]", "", path.attrib["d"]) == "MML"
    assert [each.text for each in plot.findall(".//circle/title")] == ["a", "c", "d"]


def test_long_lines_are_thinned_but_keep_their_shape() -> None:
    x = np.linspace(0, 1, 500_000)
    plot = line_plot([Line("", x, x**2)], unit_axis("x"), unit_axis("y"))
    assert len(plot) < 30_000
    left, top, width, height = FRAME
    (path,) = (p for p in drawing(plot).findall(".//path") if "line" in p.attrib["class"])
    for px, py in points(path.attrib["d"]):
        assert py == pytest.approx(top + height * (1 - ((px - left) / width) ** 2), abs=0.6)


def test_bars_are_as_long_as_their_values() -> None:
    plot = drawing(bar_plot(["a", "b", "c"], [("", [0.2, 0.4, math.nan])], notes=["1", "2", "3"]))
    widths = [float(bar.attrib["width"]) for bar in plot.findall("rect")]
    assert widths[1] == pytest.approx(2 * widths[0], abs=0.1)
    assert widths[2] == 0
    texts = [text.text for text in plot.findall("text")]
    assert [each for each in texts if each in ("0.200", "0.400", "-")] == ["0.200", "0.400", "-"]


def test_matrix_shades_by_the_share_of_the_row() -> None:
    plot = drawing(matrix_plot(np.array([[3, 1], [0, 5]]), ["cat", "<dog>"]))
    cells = {
        cell.find("title").text: (cell.attrib["class"], float(cell.attrib["fill-opacity"]))  # type: ignore[union-attr]
        for cell in plot.findall(".//rect")
        if cell.find("title") is not None
    }
    assert cells == {
        "cat as cat: 3 (75% of the row)": ("hit", 0.76),  # 0.06 + 0.94 * 0.75, two digits
        "cat as <dog>: 1 (25% of the row)": ("slip", 0.29),
        "<dog> as <dog>: 5 (100% of the row)": ("hit", 1.0),
    }


def test_plots_of_nothing() -> None:
    none: np.ndarray = np.zeros(0)
    drawing(line_plot([], unit_axis("x"), unit_axis("y")))
    drawing(line_plot([Line("a", none, none)], unit_axis("x"), unit_axis("y"), diagonal=True))
    drawing(bar_plot([], []))
    drawing(bar_plot(["a"], [("", [0.0])]))
    drawing(matrix_plot(np.zeros((0, 0), int), []))


# --------------------------------------------------------------------------------------- pictures


@pytest.mark.parametrize(
    ("name", "inside"),
    [
        ("a.jpg", True),
        ("train/a.jpg", True),
        ("..a/b..jpg", True),
        ("12:30:00.jpg", True),
        ("../a.jpg", False),
        ("b/../../a.jpg", False),
        ("b\\..\\..\\a.jpg", False),
        ("/etc/passwd", False),
        ("\\\\server\\share\\a.jpg", False),
        ("C:\\a.jpg", False),
        ("c:a.jpg", False),
        ("a\0.jpg", False),
        ("", False),
    ],
)
def test_names_do_not_lead_out_of_the_folder(tmp_path: Path, name: str, inside: bool) -> None:
    data = coco(["cat"], [], images=1, files=["x"])
    data["images"][0]["file_name"] = name
    (found,) = find_pictures(read_truths(data), tmp_path)
    assert found == (tmp_path / name if inside else None)


def test_images_without_a_name(tmp_path: Path) -> None:
    data = coco(["cat"], [], images=2)
    data["images"][1]["file_name"] = 5
    assert find_pictures(read_truths(data), tmp_path) == [None, None]
    assert find_pictures(read_truths(data), None) == [None, None]
    arrays = CocoEvaluator.from_arrays(
        image_ids=[1], category_ids=[1], gt_image_index=[], gt_category_index=[], gt_boxes=[]
    )
    assert find_pictures(arrays.truths, tmp_path) == [None]


@pytest.mark.parametrize(
    ("boxes", "window"),
    [
        ([[100, 100, 50, 50]], (70, 70, 180, 180)),  # 0.6 of the side around it
        ([[100, 100, 10, 10]], (73, 73, 137, 137)),  # at least 64 pixels
        ([[0, 0, 10, 10]], (0, 0, 64, 64)),
        ([[390, 290, 10, 10]], (336, 236, 400, 300)),
        ([[100, 100, 10, 10], [140, 120, 10, 10]], (70, 60, 180, 170)),
        ([[0, 0, 400, 300]], (0, 0, 400, 300)),
        ([[-900, -900, 10, 10]], (0, 0, 64, 64)),
        ([[1e6, 1e6, 10, 10]], (336, 236, 400, 300)),
    ],
)
def test_window(boxes: list[list[float]], window: tuple[int, ...]) -> None:
    assert window_around(np.array(boxes, float), (300, 400)) == window


def test_window_of_a_tiny_picture() -> None:
    assert window_around(np.array([[5.0, 5, 9, 9]]), (3, 7)) == (0, 0, 7, 3)


def write_picture(path: Path, size: tuple[int, int] = (48, 64), seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)
    cv2.imwrite(str(path), pixels)


def jpeg_of(figure: object) -> bytes:
    """The file in a figure."""
    (data,) = re.findall(r"base64,([^\"]+)\"", str(figure))
    return base64.b64decode(data)


def pixels_of(figure: object) -> np.ndarray:
    """The picture in a figure, RGB."""
    data = np.frombuffer(jpeg_of(figure), np.uint8)
    return cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1]


def test_part_of_a_picture_lies_under_its_box(tmp_path: Path) -> None:
    pixels = np.zeros((400, 600, 3), np.uint8)
    pixels[250:300, 450:500] = (0, 0, 255)  # red in BGR
    cv2.imwrite(str(tmp_path / "a.png"), pixels)
    album = Album([tmp_path / "a.png"], ["a.png"])
    figure = album.show_part(0, [Box([450, 250, 50, 50], "wrong", "cat 0.9")], caption="c")
    assert figure is not None
    svg = drawing(figure)
    _, _, width, height = map(float, svg.attrib["viewBox"].split())
    box = svg.find("g/rect").attrib  # type: ignore[union-attr]
    shown = cv2.resize(pixels_of(figure), (int(width), int(height)))
    red = np.argwhere(shown[..., 0] > 127)
    top, left = red.min(axis=0).tolist()
    bottom, right = (red.max(axis=0) + 1).tolist()
    x, y, w, h = (float(box[name]) for name in ("x", "y", "width", "height"))
    assert (x, y, x + w, y + h) == pytest.approx((left, top, right, bottom), abs=2)
    assert w == pytest.approx(260 / 2.2, abs=1)  # the box and 0.6 of it on each side


def test_large_pictures_are_sent_small(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png", (1200, 1600))
    figure = Album([tmp_path / "a.png"], ["a.png"]).show(0, [], caption="c")
    assert figure is not None
    assert pixels_of(figure).shape == (420, 560, 3)


def test_boxes_beyond_everything_can_be_drawn(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png")
    album = Album([tmp_path / "a.png"], ["a.png"])
    boxes = [
        Box(xywh, "wrong", "cat")
        for xywh in (
            [1e300, -1e300, 1e300, 1e300], [-5, -5, 0, 0], [3, 3, -9, -9],
            [math.nan, 0, math.inf, 1],
        )
    ]  # fmt: skip
    for figure in (album.show(0, boxes, caption=""), album.show_part(0, boxes, caption="")):
        assert figure is not None
        svg = drawing(figure)
        limit = max(map(float, svg.attrib["viewBox"].split())) + 10
        for rect in svg.findall("g/rect"):
            assert all(abs(float(rect.attrib[n])) <= limit for n in ("x", "y", "width", "height"))


def test_what_cannot_be_shown_is_counted(tmp_path: Path) -> None:
    write_picture(tmp_path / "whole.png")
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 no picture")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "folder.jpg").mkdir()
    names = ["whole.png", "broken.jpg", "empty.jpg", "folder.jpg", "missing.jpg", "unknown"]
    files = [*(tmp_path / name for name in names[:-1]), None]
    album = Album(files, names)
    shown = [album.show(index, [], caption="") is not None for index in range(len(files))]
    assert shown == [True, False, False, False, False, False]
    assert album.unreadable == {"broken.jpg", "empty.jpg", "folder.jpg", "missing.jpg"}
    assert album.left_out == 0


def test_pictures_end_where_the_page_is_full(tmp_path: Path) -> None:
    files = [tmp_path / f"{i}.png" for i in range(4)]
    for seed, path in enumerate(files):
        write_picture(path, seed=seed)
    names = [path.name for path in files]
    free = Album(files, names)
    sizes = [
        len(pixels) for pixels in map(jpeg_of, (free.show(i, [], caption="") for i in range(4)))
    ]
    album = Album(files, names, budget=sizes[0] + sizes[1])
    assert [album.show(i, [], caption="") is not None for i in range(4)] == [
        True,
        True,
        False,
        False,
    ]
    assert (album.budget, album.left_out) == (0, 2)
    assert album.show_part(3, [Box([0, 0, 9, 9], "right", "")], caption="") is None
    assert (album.left_out, album.unreadable) == (3, set())


def test_pictures_are_embedded_once(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png")
    album = Album([tmp_path / "a.png"], ["a.png"])
    figures = [album.show(0, [], caption="") for _ in range(3)]
    assert ["base64" in str(each) for each in figures] == [True, False, False]
    assert 'id="picture-0"' in str(figures[0])
    assert '<use href="#picture-0">' in str(figures[1])


# ------------------------------------------------------------------------------------------- page


def test_numbers_of_the_page_are_those_of_the_result() -> None:
    result = every_kind_of_error()
    page = render({"model": result}, resamples=50)
    read = check(page)
    text = " ".join(read.texts)
    interval = result.interval(50).AP
    assert f"AP {result.stats[0]:.3f}" in text
    assert f"95 % interval {interval.low:.3f} to {interval.high:.3f}" in text
    numbers = numbers_in(read)
    assert set(result.stats[result.stats > -1].tolist()) <= set(numbers)
    for row in result.per_class():
        assert {row.AP, row.AP50, row.AP75, row.AR} <= set(numbers)  # unrounded, to sort by
        assert row.name in read.texts
    for gain in result.errors().delta_ap.values():
        assert f"{gain:.3f}" in read.texts
    best = result.operating_points().overall.best
    assert f"F1 {best.f1:.3f}" in text
    assert f"at scores from {best.threshold:.3f} on" in text


def test_curves_of_each_class_are_in_the_page() -> None:
    result = every_kind_of_error(["cat", "dog"])
    read = check(render({"model": result}, resamples=2))
    ((_, text),) = [each for each in read.scripts if each[0].get("type") == "application/json"]
    data = json.loads(text)
    assert data["frame"] == list(FRAME)
    paths = {each["data-line"] for each in read.all("path") if "data-line" in each}
    assert paths == set(data["lines"])
    cat, dog = (np.round(curve.interpolated * 1000) for curve in result.pr_curves(0.5))
    mean, *classes = data["lines"]["pr-0-0"]
    assert classes == [cat.tolist(), dog.tolist()]
    assert mean == np.round(result.pr_curve(None, 0.5).interpolated * 1000).tolist()
    above_all, *_ = (each[-1] for each in data["lines"]["precision-0"])
    assert above_all == -1  # nothing is reported at a score of 1: no precision is known
    options = [text for text in read.texts if re.search(r"\(\d+\)$", text)]
    assert options == ["cat (3)", "dog (1)"]


def test_worst_images_come_first(tmp_path: Path) -> None:
    # at the best threshold, 0.9, images 2 and 4 lack one object each, image 3 lacks two
    truths = [(1, 1, BOX), (2, 1, BOX), (3, 1, BOX), (3, 1, FAR), (4, 1, BOX)]
    found = [(1, 1, BOX, 0.9), (4, 1, FAR, 0.1)]
    files = [f"{i}.png" for i in range(1, 6)]
    data = coco(["cat"], truths, images=5, files=files)
    for name in files:
        write_picture(tmp_path / name)
    result = evaluate(data, found)
    pictures = find_pictures(result.truths, tmp_path)
    page = render({"model": result}, pictures=pictures, resamples=2)
    check(page)
    worst = page[page.index('id="images"') : page.index('id="examples"')]
    captions = re.findall(r"<figcaption><bdi>(.*?)</bdi><br><bdi>(.*?)</bdi>", worst)
    assert captions == [
        ("2 missed, 0 false alarms, 0 right", "3.png"),
        ("1 missed, 0 false alarms, 0 right", "2.png"),
        ("1 missed, 0 false alarms, 0 right", "4.png"),
    ]


def test_examples_of_each_error(tmp_path: Path) -> None:
    files = ["a.png", "b.png", "c.png"]
    for name in files:
        write_picture(tmp_path / name)
    result = every_kind_of_error(["cat", "dog"], files=files)
    pictures = find_pictures(result.truths, tmp_path)
    page = render({"model": result}, pictures=pictures, resamples=2)
    read = check(page)
    counts = result.errors().counts
    titles = [text for text in read.texts if re.match(r"[a-z]+: .* \(\d+\)$", text)]
    assert [re.sub(r":.*\((\d+)\)", r" \1", title) for title in titles] == [
        f"{label} {count}" for label, count in counts.items() if count
    ]
    assert sum(count > 0 for count in counts.values()) >= 5
    captions = re.findall(r"<figcaption><bdi>(.*?)</bdi><br><bdi>(.*?)</bdi>", page)
    assert ("dog 0.70; truth cat, IoU 1.00", "b.png") in captions
    assert ("cat 0.80; truth cat, IoU 0.90", "a.png") in captions
    assert ("cat 0.60", "b.png") in captions
    assert ("dog", "c.png") in captions


def test_parts_and_suspicious_labels(tmp_path: Path) -> None:
    # image 1: a confident cat where no box is, and one whose box is called dog
    truths = [(1, 2, BOX), (2, 1, BOX), (3, 1, BOX), (3, 1, FAR)]
    found = [(1, 1, FAR, 0.95), (1, 1, BOX, 0.9), (2, 1, BOX, 0.8), (3, 1, BOX, 0.7)]
    files = ["a.png", "b.png", "c.png"]
    for name in files:
        write_picture(tmp_path / name)
    result = evaluate(coco(["cat", "dog"], truths, files=files), found)
    pictures = find_pictures(result.truths, tmp_path)
    page = render({"model": result}, pictures=pictures, resamples=2)
    read = check(page)
    for part in (result.by_size(), result.by_density(), result.by_aspect_ratio()):
        for each in part.slices:
            assert each.truths == 0 or {each.label, f"{each.AP:.3f}"} <= set(read.texts)
    assert "below 8" not in read.texts  # parts without truths are left out
    labels = page[page.index('id="labels"') :]
    rows = re.findall(r"<tr>(.*?)</tr>", labels[labels.index("<tbody>") :])
    cells = [re.findall(r"<td[^>]*>(?:<bdi>)?(.*?)(?:</bdi>)?</td>", row) for row in rows]
    assert cells == [
        [files[0], error.kind.value, error.name, error.found, *(
            "-" if math.isnan(value) else f"{value:.3f}"
            for value in (error.suspicion, error.score, error.iou)
        )]
        for error in result.label_errors()
    ]  # fmt: skip
    assert [row[1:4] for row in cells] == [
        ["missing box", "cat", "cat"], ["wrong class", "dog", "cat"]
    ]  # fmt: skip
    captions = re.findall(r"<figcaption><bdi>(.*?)</bdi>", labels)
    assert captions == ["missing box: cat"]  # one for each image


def test_pictures_that_are_not_there_are_named(tmp_path: Path) -> None:
    files = ["a.png", "b.png", "<c>.png"]
    write_picture(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no picture")
    result = every_kind_of_error(files=files)
    page = render({"m": result}, pictures=find_pictures(result.truths, tmp_path), resamples=2)
    read = check(page)
    assert "Pictures that are missing or broken: <c>.png, b.png." in read.texts
    none = check(render({"m": result}, resamples=2))
    assert any(text.startswith("No pictures") for text in none.texts)
    assert not none.all("input", type="checkbox")
    assert not none.all("a", href="#examples")  # nothing to be seen there


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    long = "x" * 100_000
    names = [*HOSTILE, long, "\x1b[31mred\x00", "half \ud800"]
    files = [f"{i} <img src=x onerror=alert(1)>\"'&.png" for i in range(3)]
    for name in files:
        (tmp_path / name).write_bytes(b"")
    truths = [(i % 3 + 1, i + 1, BOX) for i in range(len(names))]
    found = [(i % 3 + 1, (i + 1) % len(names) + 1, BOX, 0.5) for i in range(len(names))]
    result = evaluate(coco(names, truths, files=files), found)
    models = {HOSTILE[0]: result, HOSTILE[3]: result}
    page = render(models, pictures=find_pictures(result.truths, tmp_path), resamples=2)
    read = check(page)
    for name in HOSTILE:
        assert any(name in text for text in read.texts), name
    assert long not in page
    assert page.isprintable() or not set(page) & {"\x00", "\x1b", "\ud800"}
    page.encode()


@pytest.fixture(scope="module")
def many_classes() -> CocoResult:
    rng = np.random.default_rng(0)
    names = [f"class {i}" for i in range(250)]
    truths = [(int(i % 30) + 1, int(i % 250) + 1, BOX) for i in range(700)]
    found = [
        (image, category if rng.random() < 0.8 else 3, box, float(rng.random()))
        for image, category, box in truths
    ]
    return evaluate(coco(names, truths, images=30), found)


def test_many_classes(many_classes: CocoResult) -> None:
    page = render({"model": many_classes}, resamples=2)
    read = check(page)
    assert sum(text == "class 249" for text in read.texts) >= 1
    assert "50 rarer classes are left out" in read.texts
    assert any("40 classes that are confused most; 210 others" in text for text in read.texts)
    assert len(page) < 1_500_000


def strange_results() -> dict[str, Callable[[], CocoResult]]:
    truths = [(1, 1, BOX), (2, 1, BOX)]
    crowd = coco(["cat"], truths)
    for each in crowd["annotations"]:
        each["iscrowd"] = 1
    text_ids = coco(["cat"], truths)
    for each in text_ids["images"]:
        each["id"] = f"<{each['id']}>"
    for each in text_ids["annotations"]:
        each["image_id"] = f"<{each['image_id']}>"
    return {
        "nothing at all": lambda: evaluate(coco([], [], images=0)),
        "no images": lambda: evaluate(coco(["cat"], [], images=0)),
        "no classes": lambda: evaluate(coco([], [])),
        "no truths, no detections": lambda: evaluate(coco(["cat"], [])),
        "no truths": lambda: evaluate(coco(["cat"], []), [(1, 1, BOX, 0.5)]),
        "no detections": lambda: evaluate(coco(["cat"], truths)),
        "one image": lambda: evaluate(coco(["cat"], truths[:1], images=1), [(1, 1, BOX, 0.5)]),
        "one class": lambda: evaluate(coco(["cat"], truths), [(1, 1, BOX, 0.5)]),
        "all right": lambda: evaluate(
            coco(["cat"], truths), [(1, 1, BOX, 0.5), (2, 1, BOX, 0.5)]
        ),
        "all wrong": lambda: evaluate(coco(["cat"], truths), [(1, 1, FAR, 0.5)]),
        "a class without truths": lambda: evaluate(coco(["cat", "dog"], truths)),
        "crowds only": lambda: evaluate(crowd, [(1, 1, BOX, 0.5)]),
        "scores beyond 0..1": lambda: evaluate(
            coco(["cat"], truths), [(1, 1, BOX, -7), (2, 1, FAR, 40)]
        ),
        "names of images": lambda: evaluate(text_ids, [("<1>", 1, BOX, 0.5)]),  # type: ignore[list-item]
        "the same name twice": lambda: every_kind_of_error(["cat", "cat"]),
        "no name": lambda: every_kind_of_error(["", ""]),
        "strict, no number": lambda: evaluate(
            coco(["cat"], truths), [(1, 1, (math.nan, 1, math.inf, 5), 0.5)], strict=True
        ),
    }  # fmt: skip


@pytest.mark.parametrize("case", strange_results())
@pytest.mark.parametrize("count", [1, 2])
def test_every_kind_of_emptiness(case: str, count: int) -> None:
    results = {f"model {i}": strange_results()[case]() for i in range(count)}
    read = check(render(results, resamples=10))
    assert {each["href"] for each in read.all("a")} >= {"#numbers", "#classes", "#curves"}


def test_models_side_by_side(tmp_path: Path) -> None:
    files = ["a.png", "b.png", "c.png"]
    for seed, name in enumerate(files):
        write_picture(tmp_path / name, seed=seed)
    first = every_kind_of_error(files=files)
    other = evaluate(
        coco(["cat", "dog"], [(1, 1, BOX), (2, 1, BOX), (3, 1, BOX), (3, 2, FAR)], files=files),
        [(1, 1, BOX, 0.9), (2, 1, BOX, 0.9), (3, 1, BOX, 0.9)],
    )
    results = {"<first>": first, "other": other, "third": first}
    pictures = find_pictures(first.truths, tmp_path)
    page = render(results, pictures=pictures, resamples=50)
    read = check(page)
    sentences = [text for text in read.texts if "95 % interval" in text and "<first>" in text]
    assert len(sentences) == 2
    numbers = numbers_in(read)
    for mine, theirs in zip(first.per_class(), other.per_class(), strict=True):
        assert mine.AP in numbers
        assert any(number == pytest.approx(theirs.AP - mine.AP) for number in numbers)
    paired = compare(first, other, resamples=50).per_class()
    bold = [float(each["data-value"]) for each in read.all("td", class_="bold")]
    assert bold == [each.AP.estimate for each in paired if each.AP.low > 0 or each.AP.high < 0]
    assert bold
    assert {"Images on which the models differ most"} <= set(read.texts)
    assert page.count("base64,") < page.count("<figure>")  # the same picture is there once


def test_models_on_other_truths_are_refused() -> None:
    first, other = every_kind_of_error(), evaluate(coco(["cat"], [(1, 1, BOX)]))
    with pytest.raises(ValueError, match="same ground truth"):
        render({"a": first, "b": other}, resamples=2)
    with pytest.raises(ValueError, match="got none"):
        render({})
    with pytest.raises(ValueError, match="1 pictures were given for 3 images"):
        render({"a": first}, pictures=[None], resamples=2)


def test_notes_of_the_result_are_shown() -> None:
    data = coco(["cat"], [(1, 1, BOX), (2, 1, BOX)])
    data["annotations"][0]["id"] = 0
    result = evaluate(data, [(1, 1, BOX, 0.5)])
    (note,) = result.notes
    assert note in check(render({"m": result}, resamples=2)).texts


def test_same_results_give_the_same_page() -> None:
    first, second = (render({"m": every_kind_of_error()}, resamples=20) for _ in range(2))
    assert first == second


# ------------------------------------------------------------------------------------------- file


def test_report_is_one_whole_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "new" / "out"
    result = every_kind_of_error()
    path = write_report({"m": result}, folder, resamples=2)
    assert [each.name for each in folder.iterdir()] == ["report.html"]
    before = path.read_text(encoding="utf-8")
    assert before == render({"m": result}, resamples=2)

    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_report({"m": result, "other": result}, folder, resamples=2)
    assert path.read_text(encoding="utf-8") == before
    assert [each.name for each in folder.iterdir()] == ["report.html"]


def test_mistakes_are_told_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "taken" / "report.html").mkdir(parents=True)
    check_report(tmp_path / "new", images=tmp_path)
    with pytest.raises(ValueError, match="is a file, not a folder"):
        check_report(tmp_path / "file" / "out")
    with pytest.raises(ValueError, match="it is a folder"):
        check_report(tmp_path / "taken")
    with pytest.raises(ValueError, match="no folder of pictures"):
        check_report(tmp_path / "new", images=tmp_path / "file")
