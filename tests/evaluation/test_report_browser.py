"""The report in a real browser: it sorts and filters, asks no network, and executes no name.

Skipped where there is no Chromium, see tests/browser.py.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from detkit.evaluation import CocoEvaluator, CocoResult
from detkit.evaluation.report import find_pictures, write_report
from tests.browser import DESKTOP, PHONE, Open

HOSTILE = [
    "<script>window.pwned = 1</script>",
    '" onmouseover="window.pwned = 1" x="',
    "</script><script>window.pwned = 1</script>",
    "</style></title></svg><img src=x onerror='window.pwned = 1'>",
    "javascript:window.pwned=1",
    "<b>&amp;",
    "名前 Füße 🦓",
    "long " * 100,
]


def measure(names: list[str], files: list[str], *, seed: int = 0) -> CocoResult:
    """Truths of all classes but the last; detections near them, by the seed, some wrong."""
    rng = np.random.default_rng(0)
    images = [
        {"id": i + 1, "file_name": name, "width": 160, "height": 120}
        for i, name in enumerate(files)
    ]
    annotations = [
        {"id": i + 1, "image_id": i % len(files) + 1, "category_id": i % (len(names) - 1) + 1,
         "bbox": [*rng.integers(0, 90, 2).tolist(), *rng.integers(15, 30, 2).tolist()]}
        for i in range(12 * len(names))
    ]  # fmt: skip
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(names)]
    evaluator = CocoEvaluator.from_coco(
        {"images": images, "annotations": annotations, "categories": categories}
    )
    rng = np.random.default_rng(seed)
    for image in range(1, len(files) + 1):
        own = [each for each in annotations if each["image_id"] == image]
        boxes = np.array([each["bbox"] for each in own], float)
        boxes[:, 2:] += boxes[:, :2] + 5
        boxes += rng.normal(0, 1, boxes.shape)
        labels = np.array([each["category_id"] for each in own])
        swapped = rng.random(len(own)) < 0.2
        labels[swapped] = rng.integers(1, len(names), swapped.sum())
        evaluator.update(image, boxes, rng.random(len(own)), labels)
    return evaluator.compute()


def write_pictures(folder: Path, files: list[str]) -> None:
    for seed, name in enumerate(files):
        pixels = np.random.default_rng(seed).integers(0, 255, (120, 160, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / name), pixels)


CLASSES = ["zebra", "ant", "Bee", "cat", "dog 10", "dog 9", "unseen"]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, CocoResult]:
    folder = tmp_path_factory.mktemp("report")
    files = [f"{i}.png" for i in range(8)]
    write_pictures(folder, files)
    result = measure(CLASSES, files)
    pictures = find_pictures(result.truths, folder)
    return write_report({"model": result}, folder, pictures=pictures, resamples=20), result


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("several")
    files = [f"{i}.png" for i in range(4)]
    write_pictures(folder, files)
    results = {f"runs/model_{i}/detections": measure(CLASSES, files, seed=i) for i in range(3)}
    pictures = find_pictures(next(iter(results.values())).truths, folder)
    return write_report(results, folder, pictures=pictures, resamples=20)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    files = [f"{i} {name[:60].replace('/', '|')}.png" for i, name in enumerate(HOSTILE)]
    write_pictures(folder, files)
    result = measure(HOSTILE, files)
    pictures = find_pictures(result.truths, folder)
    models = {HOSTILE[0]: result, HOSTILE[2]: result}
    return write_report(models, folder, pictures=pictures, resamples=20)


ROWS = "[...document.querySelectorAll('#classes-table tbody tr')].filter(row => !row.hidden)"
NAMES = f"{ROWS}.map(row => row.cells[0].textContent)"


def test_harness_sees_errors_and_requests(show: Open, tmp_path: Path) -> None:
    path = tmp_path / "bad.html"
    path.write_text("<script>nothing()</script><img src=missing.png>", encoding="utf-8")
    bad = show(path)
    assert any("nothing is not defined" in each for each in bad.problems())
    assert [Path(url).name for url in bad.requests()] == ["missing.png"]


@pytest.mark.parametrize("kind", ["report", "several", "hostile"])
def test_no_error_no_request_no_overflow(
    show: Open, request: pytest.FixtureRequest, kind: str
) -> None:
    made = request.getfixturevalue(kind)
    tab = show(made[0] if isinstance(made, tuple) else made)
    tab.run("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert tab.run("document.querySelectorAll('svg.picture').length") > 10
    for size in (DESKTOP, PHONE):
        for scheme in ("light", "dark"):
            tab.appear(size, scheme)
            width = tab.run("document.documentElement.scrollWidth")
            assert width <= tab.run("window.innerWidth") == size[0]
    assert tab.problems() == []
    assert tab.requests() == []


def test_click_on_a_head_sorts(show: Open, report: tuple[Path, CocoResult]) -> None:
    tab, rows = show(report[0]), report[1].per_class()
    heads = tab.run("[...document.querySelectorAll('#classes-table th')].map(h => h.textContent)")
    assert tab.run(NAMES) == CLASSES
    button = "#classes-table th button"

    tab.click(button, heads.index("AP"))
    known = [row for row in rows if row.AP > -1]
    assert len(known) == len(CLASSES) - 1
    best_first = [row.name for row in sorted(known, key=lambda row: -row.AP)]
    assert tab.run(NAMES) == [*best_first, "unseen"]
    sort = f"document.querySelectorAll('#classes-table th')[{heads.index('AP')}].ariaSort"
    assert tab.run(sort) == "descending"

    tab.click(button, heads.index("AP"))
    assert tab.run(NAMES) == [*best_first[::-1], "unseen"]  # what is unknown stays last
    assert tab.run(sort) == "ascending"

    tab.click(button, heads.index("class"))
    assert tab.run(NAMES) == ["ant", "Bee", "cat", "dog 9", "dog 10", "unseen", "zebra"]
    assert tab.run(sort) is None
    assert tab.problems() == []


def test_keys_sort_as_well(show: Open, report: tuple[Path, CocoResult]) -> None:
    tab = show(report[0])
    tab.run("document.querySelector('#classes-table th button').focus()")
    for kind in ("keyDown", "keyUp"):
        tab.call(
            "Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", text="\r",
            windowsVirtualKeyCode=13,
        )  # fmt: skip
    assert tab.run(NAMES)[:3] == ["ant", "Bee", "cat"]


def test_filter(show: Open, report: tuple[Path, CocoResult]) -> None:
    tab = show(report[0])
    count = "document.getElementById('classes-table-count').textContent"
    tab.click("input[data-filters='classes-table']")
    tab.type("DOG")
    assert tab.run(NAMES) == ["dog 10", "dog 9"]
    assert tab.run(count) == "2 of 7"
    tab.type("gy")
    assert tab.run(NAMES) == []
    field = "document.querySelector(\"input[data-filters='classes-table']\")"
    tab.run(f"{field}.value = ''; {field}.dispatchEvent(new Event('input'))")
    assert tab.run(NAMES) == CLASSES
    assert tab.run(count) == ""


def test_curves_of_a_class(show: Open, report: tuple[Path, CocoResult]) -> None:
    tab, result = show(report[0]), report[1]
    path = "document.querySelector(\"path[data-line='pr-0-0']\").getAttribute('d')"
    frame = tab.run("JSON.parse(document.getElementById('curve-data').textContent).frame")
    of_all = tab.run(path)
    choice = "document.getElementById('curve-class')"
    options = tab.run(f"[...{choice}.options].map(each => each.text.split(' (')[0])")
    assert options == ["all classes", "ant", "Bee", "cat", "dog 10", "dog 9", "zebra"]

    def choose(index: int) -> str:
        tab.run(f"{choice}.selectedIndex = {index}; {choice}.dispatchEvent(new Event('change'))")
        return tab.run(path)

    curve = result.pr_curves(0.5)[CLASSES.index("cat")].interpolated
    drawn = np.array([list(map(float, pair.split())) for pair in choose(3)[1:].split("L")])
    left, top, width, height = frame
    assert np.allclose(drawn[:, 0], left + np.linspace(0, 1, 101) * width, atol=0.06)
    assert np.allclose(drawn[:, 1], top + (1 - curve) * height, atol=0.2)
    assert choose(0) != of_all  # drawn from the data, with all of its points
    again = np.array([list(map(float, pair.split())) for pair in tab.run(path)[1:].split("L")])
    mean = result.pr_curve(None, 0.5).interpolated
    assert np.allclose(again[:, 1], top + (1 - mean) * height, atol=0.2)
    assert tab.problems() == []


def test_boxes_can_be_hidden_and_pictures_enlarged(
    show: Open, report: tuple[Path, CocoResult]
) -> None:
    tab = show(report[0])
    boxes = "getComputedStyle(document.querySelector('.box.{}')).display"
    for kind in ("right", "wrong", "missed", "truth"):
        assert tab.run(boxes.format(kind)) != "none"
        tab.click(f"#show-{kind}")
        assert tab.run(boxes.format(kind)) == "none"
        tab.click(f"#show-{kind}")
        assert tab.run(boxes.format(kind)) != "none"
    width = "document.querySelector('svg.picture').getBoundingClientRect().width"
    small = tab.run(width)
    tab.click("svg.picture")
    assert tab.run(width) > 2 * small
    tab.click("svg.picture")
    assert tab.run(width) == small


def test_hostile_names_do_nothing(show: Open, hostile: Path) -> None:
    tab = show(hostile)
    tab.run(
        "for (const each of document.querySelectorAll('*'))"
        " for (const kind of ['mouseover', 'click', 'focus', 'error', 'load'])"
        "  if (!each.closest('a')) each.dispatchEvent(new Event(kind, {bubbles: true}))"
    )
    assert tab.run("window.pwned") is None
    names = tab.run(NAMES)
    assert set(HOSTILE[:-1]) <= set(names)  # as they are written, to the last character
    assert tab.problems() == []
    assert tab.requests() == []


ATTACKS = [
    "document.body.append(Object.assign(document.createElement('script'),"
    " {textContent: 'window.pwned = 1'}))",
    "document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.pwned = 1\">')",
    "document.body.insertAdjacentHTML('beforeend', '<b id=b onclick=\"window.pwned = 1\">');"
    " document.getElementById('b').click()",
    "fetch('https://example.com').then(() => window.pwned = 1, () => 0)",
    "document.body.append(Object.assign(document.createElement('script'),"
    " {src: 'https://example.com/x.js', onload: () => window.pwned = 1}))",
]


def test_even_what_gets_into_the_page_may_do_nothing(
    show: Open, report: tuple[Path, CocoResult]
) -> None:
    tab, seen = show(report[0]), 0
    for attack in ATTACKS:
        tab.run(f"(async () => {{ {attack}; await new Promise(go => setTimeout(go, 100)) }})()")
        refused = [each for each in tab.problems() if "Content Security Policy" in each]
        assert tab.run("window.pwned") is None, attack
        assert len(refused) > seen, attack
        seen = len(refused)


def test_text_can_be_read_in_both_schemes(show: Open, several: Path) -> None:
    tab = show(several)
    texts = ["body", ".about", ".card .faint", "figcaption", "nav a", "td", "th", "svg .tick",
             "svg .label", "select", ".verdict"]  # fmt: skip
    for scheme in ("light", "dark"):
        tab.appear(DESKTOP, scheme)
        background, contrasts = tab.contrasts(texts)
        assert (background > 0.5) == (scheme == "light")
        assert {k: round(v, 1) for k, v in contrasts.items() if v < 4.5} == {}  # WCAG 2.1, AA
