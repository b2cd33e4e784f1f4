"""The web page's server: what it answers, and what it does to those who mean no good."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib.util
import json
import logging
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import urllib.request
import weakref
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, TypeVar

import cv2
import numpy as np
import pytest
import torch

pytest.importorskip("aiohttp")
from aiohttp import FormData, web
from aiohttp.test_utils import TestClient, TestServer

import detkit
from detkit.data import ImageReadError, read_image
from detkit.data.images import claimed_pixels
from detkit.inference import Predictor
from detkit.inference.web import uploads
from detkit.inference.web.guard import is_loopback, is_ours
from detkit.inference.web.server import create_app
from detkit.inference.web.serving import address_of, listen
from detkit.inference.web.uploads import Limits
from detkit.inference.web.worker import Superseded, Worker
from detkit.ops import SUPPRESSIONS
from detkit.structures import Detections

T = TypeVar("T")
Client = TestClient  # generic in newer versions of aiohttp only
Headers = dict[str, str]

ROOT = Path(__file__).resolve().parents[2]
APP = ROOT / "demo" / "app.py"
JPEG = {"Content-Type": "image/jpeg"}
PATIENCE = 120  # seconds


class Answer(NamedTuple):
    """What came back."""

    status: int
    headers: Any
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def line(self) -> str:
        """The message of a refusal, which is one line."""
        assert list(self.json) == ["error"] and "\n" not in self.json["error"]
        return self.json["error"]


def talk(app: web.Application, conversation: Callable[[Client], Awaitable[T]]) -> T:
    """Serve the application as long as the conversation lasts."""

    async def main() -> T:
        async with TestClient(TestServer(app)) as client:
            return await asyncio.wait_for(conversation(client), PATIENCE)

    return asyncio.run(main())


async def ask(client: Client, method: str, address: str, **more: Any) -> Answer:
    async with client.request(method, address, **more) as answer:
        return Answer(answer.status, answer.headers, await answer.read())


def once(app: web.Application, method: str, address: str, **more: Any) -> Answer:
    return talk(app, lambda client: ask(client, method, address, **more))


def post(app: web.Application, data: Any, address: str = "/api/detect") -> Answer:
    return once(app, "POST", address, data=data, headers=JPEG)


async def say(client: Client, *parts: bytes, pause: float = 0.0, end: bool = False) -> bytes:
    """Bytes as they are, and all that comes back until the connection is closed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", client.server.port)
    for part in parts:
        writer.write(part)
        await writer.drain()
        await asyncio.sleep(pause)
    if end:
        writer.write_eof()
    answer = await reader.read()
    writer.close()
    return answer


# -------------------------------------------------------------------------------------- pictures


def png(pixels: np.ndarray) -> bytes:
    return cv2.imencode(".png", pixels)[1].tobytes()


def png_claiming(width: int, height: int, rows: bytes | None = None) -> bytes:
    """A grey PNG of 1 bit with these sides; all its pixels are there, unless rows are given."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    if rows is None:
        rows = bytes((1 + -(-width // 8)) * height)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data


def gif_claiming(width: int, height: int) -> bytes:
    """A GIF with no pixels for its one frame."""
    sides = struct.pack("<HH", width, height)
    return b"GIF89a" + sides + bytes(3) + b"," + bytes(4) + sides + bytes(1) + b"\2\0;"


def jpeg() -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    return cv2.imencode(".jpg", pixels)[1].tobytes()


@pytest.fixture(scope="module")
def picture() -> bytes:
    return png(np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def predictor(tiny_checkpoint: Path) -> Predictor:
    return detkit.load(tiny_checkpoint, device="cpu")


@pytest.fixture
def app(predictor: Predictor) -> web.Application:
    return create_app(predictor, name="tiny", threshold=0.25)


class Stub:
    """Looks as long as a test wants."""

    class_names, category_ids = ("thing",), (4,)
    device = torch.device("cpu")
    detector = torch.nn.Identity()

    def __init__(self, found: Detections | Exception | None = None) -> None:
        self.found = found if found is not None else Detections.empty()
        self.go = threading.Event()
        self.seen: list[int] = []  # widths

    def __call__(self, image: np.ndarray, *, score_threshold: float) -> Detections:
        self.seen.append(image.shape[1])
        assert self.go.wait(PATIENCE)
        if isinstance(self.found, Exception):
            raise self.found
        return self.found


@pytest.fixture
def stub() -> Iterator[Stub]:
    stub = Stub()
    yield stub
    stub.go.set()


# -------------------------------------------------------------------------------- what is answered


@pytest.mark.parametrize(
    ("path", "kind", "part"),
    [
        ("/", "text/html", b"<title>detkit</title>"),
        ("/page.js", "text/javascript", b'post("api/preview"'),
        ("/page.css", "text/css", b"prefers-color-scheme: dark"),
    ],
)
def test_page(app: web.Application, path: str, kind: str, part: bytes) -> None:
    answer = once(app, "GET", path)
    assert answer.status == 200 and part in answer.body
    assert answer.headers["Content-Type"].startswith(kind)
    policy = answer.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; ") and "unsafe" not in policy
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert "Access-Control-Allow-Origin" not in answer.headers
    assert answer.headers["Server"] == "detkit"  # and not which versions


def test_page_names_no_other_host() -> None:
    for path in (ROOT / "detkit" / "inference" / "web").glob("page.*"):
        addresses = set(re.findall(r"https?://[\w.]+", path.read_text(encoding="utf-8")))
        assert addresses <= {"http://www.w3.org"}, path  # the name of SVG; nobody goes there


def test_about_the_model(app: web.Application) -> None:
    about = once(app, "GET", "/api/model").json
    assert about["name"] == "tiny" and about["device"] == "cpu" and about["threshold"] == 0.25
    assert [(each["name"], each["id"]) for each in about["classes"]] == [
        ("cat", 2), ("Füße", 5), ("dog", 9),
    ]  # fmt: skip
    assert about["classes"][0]["color"] == "#ff2626"
    assert about["selection"]["nms"] == "hard" and about["selection"]["score_threshold"] == 0.1
    assert tuple(about["selection"]["kinds"]) == SUPPRESSIONS
    assert about["limits"] == {"bytes": 32 * 2**20, "pixels": 64_000_000}


def assert_same(answer: Answer, found: Detections) -> None:
    assert answer.status == 200, answer.body
    assert answer.json["boxes"] == found.boxes.double().tolist()
    assert answer.json["scores"] == found.scores.double().tolist()
    assert answer.json["labels"] == found.labels.tolist()


def test_detections_are_the_predictors(
    app: web.Application, predictor: Predictor, picture: bytes, tmp_path: Path
) -> None:
    (tmp_path / "a.png").write_bytes(picture)
    answer = post(app, picture)
    assert (answer.json["height"], answer.json["width"]) == (60, 90)
    assert len(answer.json["scores"]) > 5
    assert_same(answer, predictor(tmp_path / "a.png", score_threshold=0))


def test_suppression_is_chosen_for_each_request(
    app: web.Application, tiny_checkpoint: Path, picture: bytes, tmp_path: Path
) -> None:
    (tmp_path / "a.png").write_bytes(picture)
    queries = ["", "?nms=none", "?nms=wbf&iou_threshold=0.3", "?iou_threshold=0.9", ""]

    async def conversation(client: Client) -> list[Answer]:
        return [
            await ask(client, "POST", f"/api/detect{query}", data=picture, headers=JPEG)
            for query in queries
        ]

    answers = talk(app, conversation)
    for query, answer in zip(queries, answers, strict=True):
        changes = [f"model.select.{each}" for each in query[1:].split("&") if each]
        loaded = detkit.load(tiny_checkpoint, device="cpu", overrides=changes)
        assert_same(answer, loaded(tmp_path / "a.png", score_threshold=0))
    assert len({len(answer.body) for answer in answers}) > 2


def test_model_with_built_in_suppression(stub: Stub, picture: bytes) -> None:
    stub.go.set()

    async def conversation(client: Client) -> tuple[Answer, ...]:
        about = await ask(client, "GET", "/api/model")
        plain = await ask(client, "POST", "/api/detect", data=picture, headers=JPEG)
        other = await ask(client, "POST", "/api/detect?nms=wbf", data=picture, headers=JPEG)
        return about, plain, other

    about, plain, other = talk(create_app(stub), conversation)
    assert about.json["selection"] is None and plain.json["boxes"] == []
    assert (other.status, other.line) == (
        400, "this model has its suppression built in; leave nms out",
    )  # fmt: skip


def test_numbers_that_json_lacks_are_left_out(stub: Stub, picture: bytes) -> None:
    boxes = torch.tensor([[0, 0, 1, 1], [0, 0, torch.nan, 1], [0, 0, torch.inf, 1.0]])
    stub.found = Detections(boxes, torch.tensor([0.9, 0.8, 0.7]), torch.zeros(3).long())
    stub.go.set()
    answer = post(create_app(stub), picture)
    assert answer.json["boxes"] == [[0, 0, 1, 1]] and b"NaN" not in answer.body


def test_preview_is_the_picture_as_it_was_seen(app: web.Application) -> None:
    pixels = np.full((500, 4000, 3), (0, 128, 255), np.uint8)
    answer = post(app, cv2.imencode(".tiff", pixels)[1].tobytes(), "/api/preview")
    shown = cv2.imdecode(np.frombuffer(answer.body, np.uint8), cv2.IMREAD_COLOR)
    assert answer.headers["Content-Type"] == "image/jpeg" and shown.shape == (200, 1600, 3)
    assert np.abs(shown.astype(int) - (0, 128, 255)).max() < 4


# ------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("method", "address", "status", "line"),
    [
        ("GET", "/nothing", 404, "nothing is at /nothing; the page is at /"),
        ("GET", "/..%2f..%2fetc/passwd", 404, "nothing is at "),
        ("GET", "/page.html", 404, "nothing is at "),
        ("GET", "/api/detect", 405, "GET is not for /api/detect; use POST"),
        ("PUT", "/api/detect", 405, "PUT is not for /api/detect; use POST"),
        ("DELETE", "/", 405, "DELETE is not for /; use GET, HEAD"),
        ("OPTIONS", "/api/detect", 405, "OPTIONS is not for /api/detect; use POST"),
        ("POST", "/api/detect?nms=sotf_linear", 400, "did you mean 'soft_linear' or"),
        ("POST", "/api/detect?nms=", 400, "unknown nms ''"),
        ("POST", "/api/detect?iou=0.5", 400, "unknown setting 'iou'; allowed: nms, iou"),
        ("POST", "/api/detect?nms=hard&nms=none", 400, "nms is given twice"),
        ("POST", "/api/detect?iou_threshold=nan", 400, "'nan', allowed: a number in 0..1"),
        ("POST", "/api/detect?iou_threshold=1e999", 400, "allowed: a number in 0..1"),
        ("POST", "/api/detect?iou_threshold=-0.1", 400, "allowed: a number in 0..1"),
        ("POST", "/api/detect?iou_threshold=", 400, "allowed: a number in 0..1"),
        ("POST", '/api/detect?iou_threshold={"a":1}', 400, "allowed: a number in 0..1"),
        ("POST", "/api/detect?stream=" + "s" * 65, 400, "stream has 65 characters"),
        ("POST", "/api/detect?" + "x" * 4000, 400, "unknown setting 'xxx"),
    ],
)
def test_wrong_requests(
    app: web.Application, picture: bytes, method: str, address: str, status: int, line: str
) -> None:
    body = {"data": picture, "headers": JPEG} if method == "POST" else {}
    answer = once(app, method, address, **body)
    assert (answer.status, line in answer.line) == (status, True), answer.body
    assert len(answer.line) < 400
    assert ("Allow" in answer.headers) == (status == 405)


def form(*fields: tuple[str, bytes, str | None]) -> FormData:
    made = FormData(quote_fields=False)
    for name, value, filename in fields:
        made.add_field(name, value, filename=filename, content_type="image/png")
    return made


@pytest.mark.parametrize(
    "made",
    [
        pytest.param(lambda picture: form(("picture", picture, "a.png")), id="a form"),
        pytest.param(lambda picture: form(("p", picture, "../../etc/passwd")), id="path"),
        pytest.param(lambda picture: form(("p", picture, "a" * 10**6)), id="huge name"),
        pytest.param(
            lambda picture: form(*((f"f{i}", b"1", "a") for i in range(5000))), id="5000 fields"
        ),
    ],
)
def test_forms_are_not_even_read(
    app: web.Application,
    picture: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    made: Callable[[bytes], FormData],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    answer = once(app, "POST", "/api/detect", data=made(picture))
    assert answer.status == 415
    assert answer.line.startswith("Content-Type is multipart/form-data; send the bytes of one")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("headers", "line"),
    [
        ({"Content-Type": "application/json"}, "Content-Type is application/json; send the bytes"),
        ({"Content-Type": "text/plain"}, "Content-Type is text/plain; send"),
        ({"Content-Type": "x" * 3000}, "send the bytes of one picture"),
        ({"Content-Type": "image/png", "Content-Encoding": "gzip"}, "without compressing it"),
    ],
)
def test_other_types_are_refused(
    app: web.Application, picture: bytes, headers: Headers, line: str
) -> None:
    # as the server is run, it does not decompress either; a client compresses what it says it does
    answer = once(app, "POST", "/api/detect", data=picture, headers=headers)
    assert (answer.status, line in answer.line) == (415, True)


def test_no_type_is_refused(app: web.Application) -> None:
    """A page elsewhere could send that without asking."""
    request = b"POST /api/detect HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    answer = talk(app, lambda client: say(client, request + b"Content-Length: 2\r\n\r\nab"))
    assert answer.startswith(b"HTTP/1.1 415 ") and b"Content-Type is nothing" in answer


HUGE = "the picture has 280.0 megapixels, allowed are 64; make it smaller"
BROKEN = "cannot decode image upload: broken, truncated or not an image"
UNKNOWN = "not a picture in a known format"


@pytest.mark.parametrize(
    ("data", "status", "line"),
    [
        pytest.param(b"", 400, "the upload is empty", id="0 bytes"),
        pytest.param(b"\0", 422, UNKNOWN, id="1 byte"),
        pytest.param(b"Dear Sir or Madam" * 99, 422, UNKNOWN, id="text"),
        pytest.param(b"<svg xmlns='http://www.w3.org/2000/svg'/>", 422, UNKNOWN, id="SVG"),
        pytest.param(b"PK\3\4" + bytes(999), 422, UNKNOWN, id="zip"),
        pytest.param(b"\xff\xd8\xff\xe0", 422, UNKNOWN, id="start of a JPEG"),
        pytest.param(jpeg()[:-99], 422, "truncated JPEG", id="most of a JPEG"),
        pytest.param(png_claiming(20000, 14000, b""), 413, HUGE, id="20000x14000 header"),
        pytest.param(png_claiming(20000, 14000), 413, HUGE, id="20000x14000 for real"),
        pytest.param(png_claiming(2**31 - 1, 2**31 - 1, b""), 413, "allowed are 64", id="2^62"),
        pytest.param(gif_claiming(65535, 65535), 413, "4294.8 megapixels", id="GIF bomb"),
        pytest.param(png_claiming(0, 0), 422, UNKNOWN, id="no pixels"),
        pytest.param(png_claiming(1000, 1000, b"\0"), 422, BROKEN, id="missing pixels"),
    ],
)
def test_what_is_no_picture_or_too_large(
    app: web.Application,
    monkeypatch: pytest.MonkeyPatch,
    data: bytes,
    status: int,
    line: str,
) -> None:
    if status == 413:
        monkeypatch.setattr(uploads, "decode_image", lambda *_: pytest.fail("was decoded"))
    answer = post(app, data)
    assert (answer.status, line in answer.line) == (status, True), answer.body


def test_the_largest_allowed_is_taken(stub: Stub) -> None:
    stub.go.set()
    limits = Limits(bytes=10_000, pixels=1_000_000)
    assert post(create_app(stub, limits=limits), png_claiming(1000, 1000)).status == 200
    assert post(create_app(stub, limits=limits), png_claiming(1001, 1000)).status == 413
    # bytes behind the end of a PNG are nobody's
    fitting = png_claiming(10, 10).ljust(10_000, b"\0")
    assert post(create_app(stub, limits=limits), fitting).status == 200
    too_long = post(create_app(stub, limits=limits), fitting + b"\0")
    assert too_long.status == 413
    assert too_long.line == "the file has more than 0.00953674 MB; make the picture smaller"


async def chunks(count: int) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield bytes(1000)


def test_bytes_are_counted_where_nobody_says_how_many(stub: Stub) -> None:
    answer = post(create_app(stub, limits=Limits(bytes=10_000)), chunks(1000))
    assert answer.status == 413


def test_slow_upload_ends(stub: Stub) -> None:
    head = (
        b"POST /api/detect HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        b"Content-Type: image/png\r\nContent-Length: 5\r\n\r\n"
    )
    app = create_app(stub, limits=Limits(seconds=0.2))
    answer = talk(app, lambda client: say(client, head, *[b"x"] * 5, pause=0.1))
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"the upload took longer than 0.2 seconds" in answer


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"POST /api/detect HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
        b"Content-Length: 100\r\n\r\n\x89PNG",
        b"POST /api/detect HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
        b"Transfer-Encoding: chunked\r\n\r\nffff\r\nabc",
        b"POST /api/detect HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
        b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST /api/detect HTTP/1.1\r\nHost: localhost\r\n"
        b"Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 99\r\n\r\n--x\r\nConte",
        b"GET / HTTP/1.1\r\n",
        b"GET / HTTP/1.1\r\nHost: " + b"x" * 100_000,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        b"\0" * 1000,
    ],
)
def test_cut_and_garbled_requests_leave_the_server_well(
    app: web.Application, picture: bytes, request_bytes: bytes
) -> None:
    async def conversation(client: Client) -> tuple[bytes, Answer]:
        cut = await asyncio.wait_for(say(client, request_bytes, end=True), 30)
        return cut, await ask(client, "POST", "/api/detect", data=picture, headers=JPEG)

    cut, after = talk(app, conversation)
    assert not cut or re.match(rb"HTTP/1\.[01] 4\d\d ", cut), cut
    assert b"Traceback" not in cut and after.status == 200


def test_every_odd_file(predictor: Predictor, shared_data: Path) -> None:
    """What can be read is looked at, as a file is; of everything else one line is said."""
    paths = sorted(
        path
        for folder in ("odd", "photos")
        for path in (shared_data / folder).iterdir()
        if path.suffix not in (".md", ".json")
    )
    assert len(paths) > 25

    async def conversation(client: Client) -> list[Answer]:
        return [
            await ask(client, "POST", "/api/detect", data=path.read_bytes(), headers=JPEG)
            for path in paths
        ]

    answers = talk(create_app(predictor), conversation)
    for path, answer in zip(paths, answers, strict=True):
        try:
            image = read_image(path)
        except ImageReadError:
            claim = claimed_pixels(path.read_bytes())
            assert answer.status == (413 if claim > 64e6 else 422), path
            assert answer.line
        else:
            assert (answer.json["height"], answer.json["width"]) == image.shape[:2], path
            assert_same(answer, predictor(image, score_threshold=0))
    statuses = [answer.status for answer in answers]
    assert statuses.count(200) > 20 and 413 in statuses and 422 in statuses


# ------------------------------------------------------------------------------------- who may ask


@pytest.mark.parametrize(
    ("authority", "host", "ours"),
    [
        ("127.0.0.1:8000", "127.0.0.1", True),
        ("localhost:8000", "127.0.0.1", True),
        ("LOCALHOST", "127.0.0.1", True),
        ("[::1]:8000", "::1", True),
        ("127.0.0.1", "localhost", True),
        ("evil.example:8000", "127.0.0.1", False),
        ("localhost.evil.example", "127.0.0.1", False),
        ("127.0.0.1.evil.example", "127.0.0.1", False),
        ("user@evil.example", "127.0.0.1", False),
        ("192.168.0.7:8000", "127.0.0.1", False),
        ("0.0.0.0:8000", "127.0.0.1", False),
        ("", "127.0.0.1", False),
        ("[::1", "127.0.0.1", False),
        ("192.168.0.7:8000", "0.0.0.0", True),  # no name, so nobody can have pointed it here
        ("[fe80::1]:8000", "::", True),
        (socket.gethostname(), "0.0.0.0", True),
        ("box.lan:8000", "box.lan", True),
        ("evil.example:8000", "0.0.0.0", False),
        (socket.gethostname(), "127.0.0.1", False),
        ("evil.example:8000", "box.lan", False),
    ],
)
def test_names_of_the_server(authority: str, host: str, ours: bool) -> None:
    assert is_ours(authority, host) == ours


def test_loopback() -> None:
    assert [is_loopback(each) for each in ("127.0.0.1", "127.9.9.9", "::1", "localhost")] == [
        True
    ] * 4
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.0.7", "example.com")))


@pytest.mark.parametrize("address", ["/", "/api/model", "/page.js", "/nothing"])
@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "127.0.0.1.evil.example:8000"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},  # another server of this machine
    ],
)
def test_other_sites_are_sent_away(app: web.Application, address: str, headers: Headers) -> None:
    answer = once(app, "GET", address, headers=headers)
    assert answer.status == 403 and "Access-Control-Allow-Origin" not in answer.headers
    assert answer.line.endswith(("is not this server; open it by its address", "but its own"))


def test_own_page_may_ask(app: web.Application, picture: bytes) -> None:
    async def conversation(client: Client) -> Answer:
        origin = {"Origin": f"http://127.0.0.1:{client.server.port}"}
        return await ask(client, "POST", "/api/detect", data=picture, headers=JPEG | origin)

    assert talk(app, conversation).status == 200


# ---------------------------------------------------------------------------------------- the queue


async def until(condition: Callable[[], bool]) -> None:
    async def look() -> None:
        while not condition():
            await asyncio.sleep(0.01)

    await asyncio.wait_for(look(), PATIENCE)


def blank(width: int) -> bytes:
    return png(np.zeros((2, width, 3), np.uint8))


def test_who_comes_while_too_many_wait_is_sent_away(stub: Stub) -> None:
    async def conversation(client: Client) -> tuple[list[Answer], Answer, Answer]:
        async def look(width: int) -> Answer:
            return await ask(client, "POST", "/api/detect", data=blank(width), headers=JPEG)

        first = asyncio.create_task(look(1))
        await until(lambda: stub.seen == [1])
        second = asyncio.create_task(look(2))
        await asyncio.sleep(0.2)
        third = await look(3)
        about = await ask(client, "GET", "/api/model")  # that costs nothing
        stub.go.set()
        return [await first, await second, await look(4)], third, about

    served, refused, about = talk(create_app(stub, limits=Limits(waiting=2)), conversation)
    assert [answer.status for answer in served] == [200, 200, 200] and about.status == 200
    assert (refused.status, refused.headers["Retry-After"]) == (503, "1")
    assert refused.line == "2 requests are waiting already; try again in a second"
    assert stub.seen == [1, 2, 4]


def test_of_a_cameras_frames_the_newest_waits(stub: Stub) -> None:
    async def conversation(client: Client) -> list[Answer]:
        async def look(width: int, stream: str) -> Answer:
            address = f"/api/detect?stream={stream}"
            return await ask(client, "POST", address, data=blank(width), headers=JPEG)

        tasks = []
        for width, stream in ((1, "a"), (2, "a"), (3, "b"), (4, "a"), (5, "a")):
            tasks.append(asyncio.create_task(look(width, stream)))
            await until(lambda: stub.seen == [1])
            await asyncio.sleep(0.1)
        stub.go.set()
        return list(await asyncio.gather(*tasks))

    answers = talk(create_app(stub), conversation)
    assert [answer.status for answer in answers] == [200, 204, 200, 204, 200]
    assert answers[1].body == b""
    assert stub.seen == [1, 5, 3]  # the newest has the place of those before it


def test_failure_of_the_detector_is_told_and_over(
    picture: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    stub = Stub(RuntimeError("secret path /home/x"))
    stub.go.set()

    async def conversation(client: Client) -> tuple[Answer, Answer]:
        bad = await ask(client, "POST", "/api/detect", data=picture, headers=JPEG)
        stub.found = Detections.empty()
        return bad, await ask(client, "POST", "/api/detect", data=picture, headers=JPEG)

    with caplog.at_level(logging.ERROR):
        bad, good = talk(create_app(stub), conversation)
    assert (bad.status, good.status) == (500, 200)
    assert bad.line == "the detector failed on this; the server's terminal says why"
    assert "POST /api/detect failed" in caplog.text and "secret path" in caplog.text


def test_worker_drops_what_nobody_waits_for() -> None:
    async def main() -> list[str]:
        worker, go, done = Worker(9), threading.Event(), list[str]()
        first = asyncio.create_task(worker.run(lambda: (go.wait(9), done.append("first"))))
        gone = asyncio.create_task(worker.run(lambda: done.append("gone")))
        old = asyncio.create_task(worker.run(lambda: done.append("old"), stream="s"))
        new = asyncio.create_task(worker.run(lambda: done.append("new"), stream="s"))
        await asyncio.sleep(0.1)
        gone.cancel()
        go.set()
        with pytest.raises(Superseded):
            await old
        await asyncio.gather(first, new)
        worker.close()
        return done

    assert asyncio.run(main()) == ["first", "new"]


def test_worker_lets_go_of_a_picture_that_failed() -> None:
    """At once, and not when the garbage is collected: pictures are large."""

    class Work:
        def __call__(self) -> None:
            raise ValueError

    async def main() -> bool:
        worker, work = Worker(9), Work()
        watch = weakref.ref(work)
        with contextlib.suppress(ValueError):
            await worker.run(work)
        del work
        await asyncio.sleep(0.1)
        worker.close()
        return watch() is None

    gc.disable()
    try:
        assert asyncio.run(main())
    finally:
        gc.enable()


# -------------------------------------------------------------------------------------- the command


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "DETKIT_DEBUG": "",
    }  # fmt: skip
    return subprocess.Popen(
        [sys.executable, str(APP), *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    ("order", "code", "word"),
    [(signal.SIGINT, 130, "interrupted\n"), (signal.SIGTERM, 143, "terminated\n")],
)
def test_command_serves_until_it_is_told(
    tiny_checkpoint: Path, picture: bytes, order: int, code: int, word: str
) -> None:
    process = start(tiny_checkpoint, "--port", "0", "--device", "cpu")
    assert process.stdout is not None
    line = process.stdout.readline()
    found = re.fullmatch(
        rf"{tiny_checkpoint.parent.name}/best.pt is at (http://127.0.0.1:\d+) \(Ctrl-C ends\)\n",
        line,
    )
    assert found, (line, process.communicate())
    request = urllib.request.Request(f"{found[1]}/api/detect", data=picture, headers=JPEG)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=PATIENCE) as answer:
        assert len(json.load(answer)["boxes"]) > 5
    process.send_signal(order)
    output, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, output, errors) == (code, "", word)


@pytest.fixture(scope="module")
def demo() -> ModuleType:
    spec = importlib.util.spec_from_file_location("app", APP)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{best}", "--port", "{taken}"], "cannot listen on 127.0.0.1 port {taken}: "),
        (["{best}", "--host", "192.0.2.1"], "cannot listen on 192.0.2.1 port 8000: "),
        (["no", "--port", "0"], "no checkpoint 'no'"),
        (["{best}", "model.select.nms=no", "--port", "0"], "model.select.nms: got 'no'"),
        (["{best}", "--weights", "coco", "--port", "0"], "has its own"),
    ],
)
def test_mistakes_are_named(
    demo: ModuleType, tiny_checkpoint: Path, arguments: list[str], message: str
) -> None:
    with listen("127.0.0.1", 0) as taken:
        names = {"best": tiny_checkpoint, "taken": taken.getsockname()[1]}
        with pytest.raises(ValueError, match=re.escape(message.format(**names))) as caught:
            demo.main([each.format(**names) for each in arguments])
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--port", "65536"], ["--port", "-1"], ["--port", "http"], ["--threshold", "1.5"],
        ["--threshold", "nan"], ["--max-mb", "0"], ["--max-megapixels", "inf"],
    ],
)  # fmt: skip
def test_numbers_out_of_range_are_usage_errors(
    demo: ModuleType, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        demo.main(["best.pt", *arguments])
    errors = capsys.readouterr().err
    assert caught.value.code == 2 and arguments[0] in errors and len(errors) < 1500


def test_without_aiohttp_it_says_what_to_install(
    demo: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("detkit.inference.web")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    with pytest.raises(ValueError, match=r'needs aiohttp: pip install "aiohttp>=3\.10"$'):
        demo.main(["best.pt"])


def test_addresses() -> None:
    with listen("127.0.0.1", 0) as listening:
        assert address_of(listening) == f"http://127.0.0.1:{listening.getsockname()[1]}"
    with pytest.raises(ValueError, match=r"cannot listen on no\.such\.invalid port 1: "):
        listen("no.such.invalid", 1)


def test_the_page_travels_with_the_package() -> None:
    settings = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    patterns = re.findall(r'"(inference/web/[^"]+)"', settings)
    folder = ROOT / "detkit"
    packed = {path for pattern in patterns for path in folder.glob(pattern)}
    page = {
        p for p in (folder / "inference" / "web").iterdir() if p.suffix in (".html", ".js", ".css")
    }
    assert len(page) == 3 and page <= packed
