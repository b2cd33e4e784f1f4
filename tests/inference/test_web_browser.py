"""The web page in a real browser, with a camera that shows a test picture.

Skipped where there is no Chromium, see tests/browser.py.
"""

from __future__ import annotations

import asyncio
import base64
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("aiohttp")
from aiohttp import web

import detkit
from detkit.inference import Predictor
from detkit.inference.web.server import create_app
from detkit.inference.web.serving import address_of, listen
from detkit.structures import Detections
from tests.browser import DESKTOP, PHONE, Browser, Open, Tab

HOSTILE = "../../etc/<img src=x onerror='window.pwned = 1'>.png"
LEAST = 0.1  # of the model: model.select.score_threshold

Visit = Callable[[], Tab]


class Served:
    """The server in a thread of its own, and what was asked of it."""

    def __init__(self, predictor: Predictor) -> None:
        self.asked: list[str] = []
        self._listening = listen("127.0.0.1", 0)
        self.address = address_of(self._listening)
        app = create_app(predictor, name="run/best.pt", threshold=0.3)
        app.on_response_prepare.append(self._note)
        self._loop = asyncio.new_event_loop()
        self._end = asyncio.Event()
        self._thread = threading.Thread(
            target=lambda: self._loop.run_until_complete(self._serve(app))
        )
        self._thread.start()

    async def _note(self, request: web.Request, response: web.StreamResponse) -> None:
        self.asked.append(f"{request.method} {request.path_qs} {response.status}")

    async def _serve(self, app: web.Application) -> None:
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        await web.SockSite(runner, self._listening).start()
        await self._end.wait()
        await runner.cleanup()

    def close(self) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._end.set)
            self._thread.join()
            self._loop.close()


@pytest.fixture(scope="module")
def predictor(tiny_checkpoint: Path) -> Predictor:
    return detkit.load(tiny_checkpoint, device="cpu")


@pytest.fixture
def served(predictor: Predictor) -> Iterator[Served]:
    served = Served(predictor)
    yield served
    served.close()


@pytest.fixture
def visit(show: Open, served: Served) -> Visit:
    """Open the page and wait until it knows its model."""

    def visit() -> Tab:
        tab = show(f"{served.address}/")
        tab.wait_for("document.querySelectorAll('#classes li').length")
        return tab

    return visit


@pytest.fixture(scope="module")
def pixels() -> list[np.ndarray]:
    """Two pictures, RGB."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in ((60, 90), (400, 300))]


def encode(picture: np.ndarray, suffix: str = ".png") -> bytes:
    return cv2.imencode(suffix, picture[..., ::-1])[1].tobytes()


def drop(tab: Tab, files: dict[str, bytes]) -> None:
    """Files onto the page, as from a file manager; and wait for what the server says of them."""
    content = {name: base64.b64encode(data).decode() for name, data in files.items()}
    tab.run(
        f"""(() => {{
          const data = new DataTransfer();
          for (const [name, text] of Object.entries({json.dumps(content)}))
            data.items.add(new File([Uint8Array.from(atob(text), c => c.charCodeAt(0))], name));
          for (const kind of ["dragenter", "dragover", "drop"])
            document.body.dispatchEvent(
              new DragEvent(kind, {{dataTransfer: data, bubbles: true, cancelable: true}}));
        }})()"""
    )
    settle(tab)


def settle(tab: Tab) -> None:
    tab.wait_for(
        "document.getElementById('status').textContent.match(/ in /)"
        " && !document.getElementById('status').textContent.includes('to go')"
        " && !document.querySelector('.asking')"
    )


def choose(tab: Tab, name: str, value: float | str, kind: str) -> None:
    tab.run(
        f"(e => {{ e.value = {json.dumps(value)}; e.dispatchEvent(new Event('{kind}')) }})"
        f"(document.getElementById('{name}'))"
    )


def captions(tab: Tab, card: int = 0) -> list[str]:
    """What the boxes of a card say, best first."""
    boxes = f"document.querySelectorAll('.card')[{card}].querySelectorAll('.box span')"
    return tab.run(f"[...{boxes}].map(each => each.textContent)")[::-1]


def expected(predictor: Predictor, found: Detections) -> list[str]:
    return [
        f"{predictor.class_names[label]} {score:.2f}"
        for label, score in zip(found.labels.tolist(), found.scores.tolist(), strict=True)
    ]


def foreign(tab: Tab, served: Served) -> list[str]:
    """Requests to anybody else."""
    own = (served.address, f"blob:{served.address}")
    return [url for url in tab.requests() if not url.startswith(own)]


def test_dropped_pictures_show_what_the_predictor_finds(
    visit: Visit, served: Served, predictor: Predictor, pixels: list[np.ndarray]
) -> None:
    tab = visit()
    assert tab.run("document.title") == "run/best.pt \N{EN DASH} detkit"
    assert tab.run("document.getElementById('empty').hidden") is False
    drop(tab, {"first.png": encode(pixels[0]), "second.png": encode(pixels[1])})
    both = [predictor(each, score_threshold=0.3) for each in pixels]
    assert min(map(len, both)) > 0
    for card, found in enumerate(both):
        assert captions(tab, card) == expected(predictor, found)
        height, width = pixels[card].shape[:2]
        # where the boxes are, as parts of the picture
        places = tab.run(
            f"(card => {{ const [s, ...b] = [card.querySelector('img'),"
            " ...card.querySelectorAll('.box')].map(each => each.getBoundingClientRect());"
            " return b.map(r => [(r.x - s.x) / s.width, (r.y - s.y) / s.height,"
            " (r.right - s.x) / s.width, (r.bottom - s.y) / s.height]) })"
            f"(document.querySelectorAll('.card')[{card}])"
        )
        wanted = found.boxes.flip(0).numpy() / (width, height, width, height)
        assert np.allclose(places, wanted, atol=0.02)
    total = sum(map(len, both))
    assert (
        tab.run("document.getElementById('status').textContent") == f"{total} objects in 2 pictures"
    )
    assert tab.problems() == [] and foreign(tab, served) == []


def test_threshold_moves_without_asking(
    visit: Visit, served: Served, predictor: Predictor, pixels: list[np.ndarray]
) -> None:
    tab = visit()
    assert float(tab.run("document.getElementById('threshold').min")) == LEAST
    drop(tab, {"a.png": encode(pixels[0])})
    before, counts = list(served.asked), []
    for threshold in (LEAST, 0.35, 0.4, 1.0, 0.3):
        choose(tab, "threshold", threshold, "input")
        found = predictor(pixels[0], score_threshold=threshold)
        assert captions(tab) == expected(predictor, found)
        counts.append(len(found))
    assert counts[0] > counts[1] > 0 == counts[3]
    assert served.asked == before
    assert tab.run("document.getElementById('threshold-value').textContent") == "0.30"
    assert tab.problems() == []


def test_another_suppression_is_asked_for(
    visit: Visit, served: Served, tiny_checkpoint: Path, pixels: list[np.ndarray]
) -> None:
    tab = visit()
    drop(tab, {"a.png": encode(pixels[0])})
    shown = {len(captions(tab))}
    for kind, iou in (("none", 0.5), ("hard", 0.9), ("soft_linear", 0.3)):
        choose(tab, "iou", iou, "input")
        choose(tab, "nms", kind, "change")
        time.sleep(0.3)  # it waits for the hand to rest
        settle(tab)
        changes = [f"model.select.nms={kind}", f"model.select.iou_threshold={iou}"]
        other = detkit.load(tiny_checkpoint, device="cpu", overrides=changes)
        assert captions(tab) == expected(other, other(pixels[0], score_threshold=0.3)), kind
        assert tab.run("document.getElementById('iou-field').hidden") == (kind == "none")
        shown.add(len(captions(tab)))
    assert len(shown) > 2
    asked = [each for each in served.asked if "/api/detect" in each]
    assert asked[-1] == "POST /api/detect?nms=soft_linear&iou_threshold=0.3 200"
    assert len(asked) == 4 and tab.problems() == []


def test_classes_are_chosen(visit: Visit, predictor: Predictor, pixels: list[np.ndarray]) -> None:
    tab = visit()
    drop(tab, {"a.png": encode(pixels[0])})
    choose(tab, "threshold", LEAST, "input")
    found = predictor(pixels[0], score_threshold=LEAST)
    everything = expected(predictor, found)
    counts = tab.run("[...document.querySelectorAll('#classes .count')].map(e => e.textContent)")
    assert counts == [str(n) if n else "" for n in found.labels.bincount(minlength=3).tolist()]
    label = int(found.labels.mode().values)
    tab.click("#classes input", label)
    name = predictor.class_names[label]
    assert captions(tab) == [each for each in everything if not each.startswith(name)]
    tab.click("#classes-none")
    assert captions(tab) == []
    assert tab.run("document.getElementById('classes-count').textContent") == "0 of 3"
    tab.click("#classes-all")
    assert captions(tab) == everything and tab.problems() == []


def download(browser: Browser, tab: Tab, folder: Path, selector: str) -> Path:
    browser.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))
    tab.click(selector)
    deadline = time.monotonic() + 30
    while not (done := [p for p in folder.iterdir() if p.suffix != ".crdownload"]):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return done[0]


def test_json_is_what_is_shown(
    browser: Browser, visit: Visit, predictor: Predictor, pixels: list[np.ndarray], tmp_path: Path
) -> None:
    tab = visit()
    assert tab.run("document.getElementById('save-json').disabled")
    drop(tab, {"Füße.png": encode(pixels[0]), "b.png": encode(pixels[1])})
    choose(tab, "threshold", 0.35, "input")
    path = download(browser, tab, tmp_path, "#save-json")
    wanted: list[dict[str, Any]] = []
    for image, name in enumerate(("Füße.png", "b.png")):
        found = predictor(pixels[image], score_threshold=0.35)
        boxes = found.boxes.double()
        boxes[:, 2:] -= boxes[:, :2]
        for box, score, label in zip(boxes, found.scores, found.labels, strict=True):
            wanted.append(
                {
                    "image_id": image + 1,
                    "file_name": name,
                    "category_id": (2, 5, 9)[int(label)],
                    "category": predictor.class_names[int(label)],
                    "bbox": box.tolist(),
                    "score": float(score),
                }
            )
    assert path.name == "detections.json" and len(wanted) > 1
    assert json.loads(path.read_text(encoding="utf-8")) == wanted
    assert tab.problems() == []


def test_drawn_picture_has_its_own_size(
    browser: Browser, visit: Visit, predictor: Predictor, pixels: list[np.ndarray], tmp_path: Path
) -> None:
    tab = visit()
    drop(tab, {"a.b.png": encode(pixels[1])})
    path = download(browser, tab, tmp_path, ".save")
    drawn = cv2.imread(str(path))[..., ::-1].astype(int)
    assert path.name == "a.b_detected.png" and drawn.shape == pixels[1].shape
    changed = np.abs(drawn - pixels[1]).max(axis=2) > 2
    assert 0 < changed.mean() < 0.9
    x1, y1, x2, y2 = predictor(pixels[1]).boxes[0].round().int().tolist()  # the best is on top
    assert changed[min((y1 + y2) // 2, 399), [min(x1, 299), min(x2, 299)]].any()
    assert tab.problems() == []


def test_pictures_that_the_browser_cannot_show(
    visit: Visit, served: Served, predictor: Predictor, pixels: list[np.ndarray]
) -> None:
    tab = visit()
    drop(tab, {"a.tif": encode(pixels[0], ".tif")})
    assert captions(tab) == expected(predictor, predictor(pixels[0], score_threshold=0.3))
    assert "POST /api/preview 200" in served.asked
    assert tab.run("document.querySelector('.stage img').naturalWidth") == 90
    assert tab.problems() == []


def test_what_is_no_picture_is_said_on_its_card(
    visit: Visit, served: Served, pixels: list[np.ndarray]
) -> None:
    tab = visit()
    drop(tab, {HOSTILE: encode(pixels[0]), "notes.txt": b"Dear Sir", "empty.png": b""})
    faults = "[...document.querySelectorAll('.fault')].map(each => each.hidden || each.textContent)"
    shown = tab.run(faults)
    assert shown[0] is True
    assert shown[1].startswith("not a picture in a known format (8 bytes); send JPEG")
    assert shown[2].startswith("the upload is empty")
    names = "[...document.querySelectorAll('.card h2')].map(each => each.textContent)"
    assert tab.run(names)[0].endswith(HOSTILE[-40:]) and tab.run("window.pwned") is None
    assert not any("etc" in each for each in served.asked)  # names stay in the page
    tab.click(".card .remove", 1)
    assert tab.run(names)[1:] == ["empty.png"]
    tab.click("#clear")
    assert tab.run(names) == [] and foreign(tab, served) == []


def test_webcam_starts_and_stops(visit: Visit, served: Served) -> None:
    tab = visit()
    tab.click("#camera")
    summary = "document.querySelector('.live .summary')?.textContent ?? ''"
    tab.wait_for(f"/ frames per second$/.test({summary})")
    assert tab.run("document.getElementById('camera').getAttribute('aria-pressed')") == "true"
    clock = "document.querySelector('.live canvas').toDataURL()"
    before = tab.run(clock)
    tab.wait_for(f"{clock} !== {json.dumps(before)}")  # the next frames come
    choose(tab, "threshold", LEAST, "input")
    tab.wait_for("document.querySelectorAll('.live .box').length > 0")
    tab.click("#camera")
    assert tab.run("document.querySelector('.live')") is None
    assert tab.run("document.getElementById('camera').getAttribute('aria-pressed')") == "false"
    time.sleep(0.5)
    asked = len(served.asked)
    time.sleep(0.5)
    assert len(served.asked) == asked
    streams = {each.partition("stream=")[2].split()[0] for each in served.asked if "stream" in each}
    assert len(streams) == 1 and tab.problems() == [] and foreign(tab, served) == []


def test_server_that_has_gone_is_named(
    visit: Visit, served: Served, pixels: list[np.ndarray]
) -> None:
    tab = visit()
    served.close()
    drop(tab, {"a.png": encode(pixels[0])})
    fault = tab.run("document.querySelector('.fault').textContent")
    assert fault == "the server does not answer; is it still running?"


def test_everything_is_reached_by_keys(visit: Visit, pixels: list[np.ndarray]) -> None:
    tab = visit()
    drop(tab, {"a.png": encode(pixels[0])})
    tab.run("document.activeElement.blur()")
    reached = list[str]()
    while "remove" not in reached and len(reached) < 30:
        tab.press("Tab", 9)
        reached.append(
            tab.run("(e => e.id || e.className || e.closest('label, details')?.textContent.trim()"
                    " || e.tagName)(document.activeElement)")
        )  # fmt: skip
        if reached[-1] == "camera":
            tab.press("Enter", 13, "\r")
            tab.wait_for("document.querySelector('.live') !== null")
            tab.press("Enter", 13, "\r")
            assert tab.run("document.querySelector('.live')") is None
    wanted = ["skip", "files", "camera", "threshold", "nms", "iou", "classes-all", "classes-none",
              "save-json", "clear", "save", "remove"]  # fmt: skip
    assert [each for each in reached if each in wanted] == wanted, reached


def test_appearance(visit: Visit, pixels: list[np.ndarray]) -> None:
    """Readable in both schemes, and no wider than the window."""
    tab = visit()
    drop(tab, {"a.png": encode(pixels[0]), "long" * 60: b"Dear Sir", "b.png": encode(pixels[1])})
    texts = ["body", "#about", ".drop strong", ".drop span", "button:enabled", "select", "output",
             ".summary", ".fault:not([hidden])", "#classes .name", "#classes .count", "summary",
             "legend", ".caption .score", ".box span"]  # fmt: skip
    for size in (DESKTOP, PHONE):
        for scheme in ("light", "dark"):
            tab.appear(size, scheme)
            features = {"prefers-color-scheme": scheme, "prefers-reduced-motion": "reduce"}
            tab.call(  # colours change at once
                "Emulation.setEmulatedMedia",
                features=[{"name": name, "value": value} for name, value in features.items()],
            )
            assert tab.run("document.documentElement.scrollWidth") <= size[0]
            luminance, contrasts = tab.contrasts(texts)
            assert (luminance > 0.5) == (scheme == "light")
            assert {k: round(v, 1) for k, v in contrasts.items() if v < 4.5} == {}  # WCAG 2.1, AA
