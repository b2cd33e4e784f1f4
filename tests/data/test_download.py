"""Downloads against a server on this machine, and archives that must not be unpacked."""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import io
import json
import os
import re
import shutil
import stat
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from detkit import cli
from detkit.data import sources as sources  # fills the registry
from detkit.data.download import (
    DATA_SETS,
    ArchiveError,
    DataSet,
    Downloaded,
    DownloadError,
    download,
    fetch,
    unpack,
)
from detkit.data.download import sets as sets_module
from detkit.data.download import transfer as transfer_module
from detkit.data.download.penn_fudan import boxes_of_mask
from detkit.data.download.sets import Source
from detkit.registry import datasets

ROOT = Path(__file__).resolve().parents[2]
PAYLOAD = np.random.default_rng(0).bytes(3_000_000)  # several chunks


@dataclass
class Server:
    """What the server has and how it misbehaves; what it was asked."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    etag: str | None = '"one"'
    ranges: bool = True
    length: bool = True  # says how much comes
    cuts: list[int] = field(default_factory=list)  # bytes after which each answer ends early
    statuses: list[int] = field(default_factory=list)  # of the first answers
    redirects: dict[str, str] = field(default_factory=dict)
    asked: list[tuple[str, str | None]] = field(default_factory=list)  # path, Range
    sent: int = 0

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path, wanted = request.path.lstrip("/"), request.headers.get("Range")
        self.asked.append((path, wanted))
        if self.statuses and (status := self.statuses.pop(0)) != 200:
            request.send_error(status)
        elif path in self.redirects:
            request.send_response(302)
            request.send_header("Location", self.redirects[path])
            request.end_headers()
        elif path not in self.files:
            request.send_error(404)
        else:
            self._send(request, self.files[path], wanted)

    def _send(self, request: BaseHTTPRequestHandler, body: bytes, wanted: str | None) -> None:
        start = 0
        if self.ranges and wanted and request.headers.get("If-Range") == self.etag:
            found = re.fullmatch(r"bytes=(\d+)-", wanted)
            assert found
            start = int(found[1])
            if start >= len(body):
                request.send_response(416)
                request.send_header("Content-Range", f"bytes */{len(body)}")
                request.end_headers()
                return
            request.send_response(206)
            request.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        else:
            request.send_response(200)
        if self.length:
            request.send_header("Content-Length", str(len(body) - start))
        if self.etag:
            request.send_header("ETag", self.etag)
        request.end_headers()
        stop = start + self.cuts.pop(0) if self.cuts else len(body)
        self.sent += len(body[start:stop])
        request.wfile.write(body[start:stop])


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "*")
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            try:
                state.answer(self)
            except ConnectionError:  # the client has left
                self.close_connection = True

        def log_message(self, *_: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    state.url = f"http://127.0.0.1:{http.server_port}"
    state.files["file.bin"] = PAYLOAD
    yield state
    http.shutdown()
    thread.join()
    http.server_close()


@pytest.fixture
def get(server: Server, tmp_path: Path) -> Callable[..., Path]:
    """Fetch file.bin without long pauses."""

    def call(**settings: Any) -> Path:
        target = tmp_path / "got" / "file.bin"
        fetch(f"{server.url}/file.bin", target, **{"pause": 0.001, "attempts": 3, **settings})
        return target

    return call


def left(folder: Path) -> list[str]:
    """All files below a folder."""
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


def md5(data: bytes) -> str:
    return "md5:" + hashlib.md5(data).hexdigest()


# Transfer


def test_a_file_comes_whole_and_once(server: Server, get: Callable[..., Path]) -> None:
    target = get(size=len(PAYLOAD), checksum="sha256:" + hashlib.sha256(PAYLOAD).hexdigest())
    assert target.read_bytes() == PAYLOAD
    assert left(target.parent) == ["file.bin"]
    get(size=len(PAYLOAD))
    assert server.asked == [("file.bin", None)]


def test_a_cut_transfer_goes_on_where_it_stopped(server: Server, get: Callable[..., Path]) -> None:
    server.cuts = [1_000_000, 500_000]
    assert get().read_bytes() == PAYLOAD
    assert server.asked == [
        ("file.bin", None),
        ("file.bin", "bytes=1000000-"),
        ("file.bin", "bytes=1500000-"),
    ]
    assert server.sent == len(PAYLOAD)


def test_a_later_call_goes_on_too(server: Server, get: Callable[..., Path], tmp_path: Path) -> None:
    server.cuts = [1_000_000, 0, 0, 0]
    with pytest.raises(DownloadError, match=r"gave up after 3 tries .* 1000000 bytes are kept"):
        get()
    assert left(tmp_path / "got") == ["file.bin.part", "file.bin.part.version"]
    assert get().read_bytes() == PAYLOAD
    assert server.asked[-1] == ("file.bin", "bytes=1000000-")
    assert server.sent == len(PAYLOAD)


def test_tries_count_only_without_progress(server: Server, get: Callable[..., Path]) -> None:
    server.cuts = [300_000] * 9  # more than attempts, each with new bytes
    assert get().read_bytes() == PAYLOAD
    assert len(server.asked) == 10


@pytest.mark.parametrize("lacks", ["ranges", "etag"])
def test_a_server_that_cannot_resume_sends_all_again(
    server: Server, get: Callable[..., Path], lacks: str
) -> None:
    setattr(server, lacks, False if lacks == "ranges" else None)
    server.cuts = [1_000_000]
    assert get().read_bytes() == PAYLOAD
    assert server.sent == len(PAYLOAD) + 1_000_000


def test_a_new_version_on_the_server_is_not_mixed_with_the_old(
    server: Server, get: Callable[..., Path]
) -> None:
    server.cuts = [1_000_000, 0, 0, 0]
    with pytest.raises(DownloadError):
        get()
    server.files["file.bin"], server.etag = PAYLOAD[::-1], '"two"'
    assert get().read_bytes() == PAYLOAD[::-1]


def test_a_part_that_is_complete_needs_no_byte_more(
    server: Server, get: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "got").mkdir()
    (tmp_path / "got" / "file.bin.part").write_bytes(PAYLOAD)
    (tmp_path / "got" / "file.bin.part.version").write_text('"one"')
    assert get().read_bytes() == PAYLOAD  # 416: nothing follows
    assert server.sent == 0


def test_a_part_longer_than_the_file_is_dropped(
    server: Server, get: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "got").mkdir()
    (tmp_path / "got" / "file.bin.part").write_bytes(PAYLOAD + b"more")
    (tmp_path / "got" / "file.bin.part.version").write_text('"one"')
    assert get().read_bytes() == PAYLOAD


def test_trouble_of_the_server_is_waited_for(server: Server, get: Callable[..., Path]) -> None:
    server.statuses = [503, 429]
    assert get().read_bytes() == PAYLOAD
    server.statuses = [500] * 3
    get().unlink()
    with pytest.raises(DownloadError, match=r"gave up after 3 tries \(HTTP 500"):
        get()


def test_what_is_not_there_is_not_tried_again(
    server: Server, get: Callable[..., Path], tmp_path: Path
) -> None:
    server.files.clear()
    with pytest.raises(DownloadError, match=r"/file.bin: the server says 404 Not Found$"):
        get()
    assert len(server.asked) == 1
    assert left(tmp_path / "got") == []


def test_nobody_listens(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=r"gave up after 2 tries .*refused"):
        fetch("http://127.0.0.1:1/a.zip", tmp_path / "a.zip", attempts=2, pause=0.001)


def test_redirects_are_followed_also_to_go_on(server: Server, tmp_path: Path) -> None:
    server.redirects["old.bin"] = f"{server.url}/file.bin"
    server.cuts = [1_000_000]
    fetch(f"{server.url}/old.bin", tmp_path / "a", pause=0.001)
    assert (tmp_path / "a").read_bytes() == PAYLOAD
    assert server.asked[-1] == ("file.bin", "bytes=1000000-")
    server.redirects["old.bin"] = "file:///etc/passwd"
    with pytest.raises(DownloadError):
        fetch(f"{server.url}/old.bin", tmp_path / "b", attempts=1)
    assert not (tmp_path / "b").exists()


def test_a_wrong_checksum_removes_the_file(get: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=r"its md5 is \w+ and should be 0{32}; the file was"):
        get(checksum="md5:" + "0" * 32)
    assert left(tmp_path / "got") == []


def test_another_size_is_seen_before_a_byte_comes(
    server: Server, get: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(DownloadError, match=r"has 3000000 bytes where 5 are expected"):
        get(size=5)
    assert left(tmp_path / "got") == []


@pytest.mark.parametrize(("size", "message"), [(5, "more than the 5 bytes"), (4_000_000, "early")])
def test_another_size_of_a_server_that_says_none(
    server: Server, get: Callable[..., Path], size: int, message: str
) -> None:
    server.length = server.ranges = False
    with pytest.raises(DownloadError, match=message):
        get(size=size)


def test_a_disk_without_room_is_seen_before_a_byte_comes(
    get: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 4_000_000})
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert get(reserve=1_000_000).read_bytes() == PAYLOAD
    get().unlink()
    with pytest.raises(DownloadError, match=r"0.00 GB free and file.bin needs 0.00 GB, unpacking"):
        get(reserve=1_000_001)
    assert left(tmp_path / "got") == []


def test_a_disk_that_fills_up_keeps_what_came(
    server: Server, get: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(io.FileIO):
        def write(self, data: Any) -> int:
            if self.tell() > 1_000_000:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(data)

    with monkeypatch.context() as patch:
        patch.setattr(
            transfer_module, "open", lambda path, mode, **_: Full(path, mode), raising=False
        )
        with pytest.raises(DownloadError, match=r"disk of .*file.bin.part is full; what has come"):
            get()
    kept = (tmp_path / "got" / "file.bin.part").stat().st_size
    assert 1_000_000 < kept < len(PAYLOAD)
    assert get().read_bytes() == PAYLOAD
    assert server.asked[-1] == ("file.bin", f"bytes={kept}-")


def test_an_interrupted_transfer_goes_on(
    server: Server, get: Callable[..., Path], tmp_path: Path
) -> None:
    class Interrupted:
        def __enter__(self) -> Interrupted:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def set_postfix_str(self, _: str) -> None:
            pass

        def update(self, n: int) -> None:
            if n:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match=r"MB are kept in .*file.bin.part; the same"):
        get(progress=lambda *_: Interrupted())
    kept = (tmp_path / "got" / "file.bin.part").stat().st_size
    assert 0 < kept < len(PAYLOAD)
    assert get().read_bytes() == PAYLOAD
    assert server.asked[-1] == ("file.bin", f"bytes={kept}-")


def test_progress_adds_up_to_the_size(server: Server, get: Callable[..., Path]) -> None:
    class Counting:
        count = 0

        def __enter__(self) -> Counting:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def set_postfix_str(self, _: str) -> None:
            pass

        def update(self, n: int) -> None:
            self.count += n

    server.ranges, server.cuts = False, [1_000_000]  # what came before the cut is taken back
    bar = Counting()
    get(progress=lambda *_: bar)
    assert bar.count == len(PAYLOAD)


# Archives


def zip_of(path: Path, *members: tuple[str | zipfile.ZipInfo, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return path


def tar_of(path: Path, *members: tuple[str | tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name) if isinstance(name, str) else name
            if info.isreg():
                info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def zip_link(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


def tar_info(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


MAKERS = {".zip": zip_of, ".tar": tar_of}


@pytest.mark.parametrize("suffix", MAKERS)
def test_archives_are_unpacked_beside_what_is_there(tmp_path: Path, suffix: str) -> None:
    folder = tmp_path / "to"
    (folder / "a").mkdir(parents=True)
    (folder / "a" / "mine.txt").write_text("mine")
    first = MAKERS[suffix](tmp_path / f"x{suffix}", ("a/1", b"one"), ("./b/c/2", b""))
    assert unpack(first, folder, max_bytes=3) == ["a/1", "b/c/2"]
    second = MAKERS[suffix](tmp_path / f"y{suffix}", ("a/1", b"one"), ("b/c/3", b"three"))
    unpack(second, folder, max_bytes=100)
    assert left(folder) == ["a/1", "a/mine.txt", "b/c/2", "b/c/3"]
    assert (folder / "b" / "c" / "3").read_text() == "three"


OUTSIDE = ["../out", "a/../../out", "/tmp/out", "a\\..\\out", "C:out", "a\x01b", "..", "."]


@pytest.mark.parametrize("suffix", MAKERS)
@pytest.mark.parametrize("name", OUTSIDE)
def test_names_outside_the_folder_are_refused(tmp_path: Path, name: str, suffix: str) -> None:
    archive = MAKERS[suffix](tmp_path / f"x{suffix}", ("good", b"1"), (name, b"2"))
    with pytest.raises(ArchiveError, match=r"is no name inside a folder"):
        unpack(archive, tmp_path / "to", max_bytes=1000)
    assert left(tmp_path) == [archive.name]


@pytest.mark.parametrize(
    ("info", "word"),
    [
        (tar_info("link", tarfile.SYMTYPE, "/etc"), "a symbolic link"),
        (tar_info("link", tarfile.LNKTYPE, "/etc/passwd"), "a hard link"),
        (tar_info("link", tarfile.CHRTYPE), "no plain file"),
        (tar_info("link", tarfile.FIFOTYPE), "no plain file"),
        (zip_link("link"), "a symbolic link"),
    ],
)
def test_links_and_devices_are_refused(
    tmp_path: Path, info: tarfile.TarInfo | zipfile.ZipInfo, word: str
) -> None:
    make: Any = tar_of if isinstance(info, tarfile.TarInfo) else zip_of
    suffix = ".tar" if make is tar_of else ".zip"
    archive = make(tmp_path / f"x{suffix}", (info, b"/etc"), ("link/passwd", b"2"))
    with pytest.raises(ArchiveError, match=f"'link' is {word}; it is not unpacked"):
        unpack(archive, tmp_path / "to", max_bytes=1000)
    assert left(tmp_path) == [archive.name]


def test_bombs_are_refused(tmp_path: Path) -> None:
    bomb = zip_of(tmp_path / "x.zip", ("zeros", bytes(20_000_000)))
    assert bomb.stat().st_size < 30_000
    with pytest.raises(ArchiveError, match=r"more than 5 files or 10 MB when unpacked"):
        unpack(bomb, tmp_path / "to", max_bytes=10_000_000, max_files=5)
    many = tar_of(tmp_path / "y.tar", *((str(index), b"") for index in range(6)))
    with pytest.raises(ArchiveError, match=r"more than 5 files"):
        unpack(many, tmp_path / "to", max_bytes=10_000_000, max_files=5)
    assert left(tmp_path / "to") == []


def test_a_zip_that_lies_about_a_size_is_damaged(tmp_path: Path) -> None:
    archive = zip_of(tmp_path / "x.zip", ("zeros", bytes(5_000_000)))
    data = archive.read_bytes()
    true, false = (5_000_000).to_bytes(4, "little"), (10).to_bytes(4, "little")
    assert data.count(true) == 2  # the member's own header, and the directory
    archive.write_bytes(data.replace(true, false))
    with pytest.raises(ArchiveError, match="damaged"):
        unpack(archive, tmp_path / "to", max_bytes=1000)
    assert left(tmp_path / "to") == []


@pytest.mark.parametrize("suffix", MAKERS)
@pytest.mark.parametrize("keep", [0, 100, 0.5, 0.9])
def test_truncated_archives_are_damaged(tmp_path: Path, suffix: str, keep: float) -> None:
    members = [(str(index), PAYLOAD[index : index + 30_000]) for index in range(5)]
    archive = MAKERS[suffix](tmp_path / f"x{suffix}", *members)
    data = archive.read_bytes()
    archive.write_bytes(data[: int(keep * len(data)) if keep < 1 else int(keep)])
    with pytest.raises(ArchiveError, match="damaged"):
        unpack(archive, tmp_path / "to", max_bytes=1_000_000)
    assert left(tmp_path / "to") == []


def test_a_flipped_bit_in_a_zip_is_damage(tmp_path: Path) -> None:
    archive = zip_of(tmp_path / "x.zip", ("a", PAYLOAD[:1000]))
    data = bytearray(archive.read_bytes())
    data[500] ^= 1
    archive.write_bytes(data)
    with pytest.raises(ArchiveError, match="damaged"):
        unpack(archive, tmp_path / "to", max_bytes=1000)


def test_the_same_name_twice_is_refused(tmp_path: Path) -> None:
    archive = tar_of(tmp_path / "x.tar", ("a", b"1"), ("./a", b"2"))
    with pytest.raises(ArchiveError, match="'a' is in it twice"):
        unpack(archive, tmp_path / "to", max_bytes=1000)
    archive = tar_of(tmp_path / "x.tar", ("a", b"1"), ("a/b", b"2"))
    with pytest.raises(ArchiveError, match="'a/b' has the name of another file or folder"):
        unpack(archive, tmp_path / "to", max_bytes=1000)


def test_a_changed_file_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "to").mkdir()
    (tmp_path / "to" / "a").write_text("my own work")
    archive = zip_of(tmp_path / "x.zip", ("a", b"1"))
    with pytest.raises(FileExistsError, match="a is there and is not the one of the archive"):
        unpack(archive, tmp_path / "to", max_bytes=1000)
    assert (tmp_path / "to" / "a").read_text() == "my own work"
    assert left(tmp_path / "to") == ["a"]


def test_no_room_to_unpack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = zip_of(tmp_path / "x.zip", ("a", bytes(1000)))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: type("Usage", (), {"free": 5095}))
    with pytest.raises(OSError, match=r"GB free and the files of x.zip need"):
        unpack(archive, tmp_path / "to", max_bytes=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: type("Usage", (), {"free": 5096}))
    assert unpack(archive, tmp_path / "to", max_bytes=1000) == ["a"]


# Data sets


def png(pixels: np.ndarray[Any, Any]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, "png")
    return buffer.getvalue()


def penn_fudan(path: Path) -> Path:
    members: list[tuple[str, bytes]] = [("PennFudanPed/readme.txt", b"Directory structure")]
    for place, count in (("FudanPed", 5), ("PennPed", 6)):
        for number in range(1, count + 1):
            name = f"{place}{number:05d}"
            mask = np.zeros((20, 30))
            mask[2:12, 3:8] = 1
            if number == 5:
                mask[15:20, 20:30] = 2
            members += [
                (f"PennFudanPed/PNGImages/{name}.png", png(np.full((20, 30, 3), number))),
                (f"PennFudanPed/PedMasks/{name}_mask.png", png(mask)),
                (f"PennFudanPed/Annotation/{name}.txt", b"# Compatible with PASCAL"),
            ]
    return zip_of(path, *members)


PAGE = """<annotation><filename>{name}.jpg</filename>
<source><database>The VOC2007 Database</database></source>
<size><width>30</width><height>20</height><depth>3</depth></size>
<object><name>{kind}</name><difficult>0</difficult>
<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>30</xmax><ymax>20</ymax></bndbox></object></annotation>"""


def voc(path: Path, year: int, lists: dict[str, list[str]]) -> Path:
    root = f"VOCdevkit/VOC{year}"
    members: list[tuple[str | tarfile.TarInfo, bytes]] = [
        (tar_info(folder, tarfile.DIRTYPE), b"") for folder in ("VOCdevkit", root)
    ]
    for split, names in lists.items():
        members.append((f"{root}/ImageSets/Main/{split}.txt", "\n".join(names).encode()))
        for name in names:
            page = PAGE.format(name=name, kind="cat" if split == "train" else "dog").encode()
            members += [
                (f"{root}/Annotations/{name}.xml", page),
                (f"{root}/JPEGImages/{name}.jpg", png(np.zeros((20, 30, 3)))),
            ]
    return tar_of(path, *members)


def coco_images(path: Path, split: str) -> Path:
    return zip_of(path, (f"{split}2017/", b""), (f"{split}2017/1.jpg", png(np.zeros((20, 30, 3)))))


def coco_annotations(path: Path) -> Path:
    content = {
        "images": [{"id": 1, "file_name": "1.jpg", "width": 30, "height": 20}],
        "annotations": [],
        "categories": [{"id": 18, "name": "dog"}],
    }
    return zip_of(
        path,
        *(
            (f"annotations/instances_{split}2017.json", json.dumps(content).encode())
            for split in ("train", "val")
        ),
    )


@pytest.fixture
def mirror(server: Server, tmp_path: Path) -> tuple[Server, dict[str, DataSet]]:
    """Small archives under the real names, and the data sets with their sizes and sums."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    penn_fudan(folder / "PennFudanPed.zip")
    voc(folder / "VOCtrainval_06-Nov-2007.tar", 2007, {"train": ["000005"], "val": ["000007"]})
    voc(folder / "VOCtest_06-Nov-2007.tar", 2007, {"test": ["000001"]})
    voc(folder / "VOCtrainval_11-May-2012.tar", 2012, {"train": ["2008_1"], "val": ["2008_2"]})
    coco_annotations(folder / "annotations_trainval2017.zip")
    for split in ("train", "val"):
        coco_images(folder / f"{split}2017.zip", split)
    server.files = {file.name: file.read_bytes() for file in folder.iterdir()}
    small = {}
    for name, data_set in DATA_SETS.items():
        archives = tuple(
            replace(each, size=len(data), checksum=each.checksum and md5(data))
            for each in data_set.archives
            for data in [server.files[each.name]]
        )
        small[name] = replace(data_set, archives=archives)
    return server, small


Mirror = tuple[Server, dict[str, DataSet]]


def obtain(mirror: Mirror, name: str, out: Path, **settings: Any) -> Downloaded:
    server, data_sets = mirror
    return download(name, out, base=server.url, pause=0.001, data_sets=data_sets, **settings)


def read(source: Source) -> Any:
    settings: dict[str, Any] = dict(source)
    return datasets[settings.pop("format")](**settings)


EXPECTED = {
    "penn_fudan": {"train": 4 + 5, "val": 1 + 1},
    "voc2007": {"train": 1, "val": 1, "test": 1},
    "voc2012": {"train": 1, "val": 1},
    "coco2017": {"train": 1, "val": 1},
}


@pytest.mark.parametrize("name", DATA_SETS)
def test_every_data_set_can_be_read_as_its_lines_say(
    mirror: Mirror, tmp_path: Path, name: str
) -> None:
    done = obtain(mirror, name, tmp_path / "out")
    assert done.changed
    assert {split: len(read(source)) for split, source in done.sources.items()} == EXPECTED[name]
    visible = {entry.name for entry in done.root.iterdir() if not entry.name.startswith(".")}
    assert visible <= {"PennFudanPed", "VOCdevkit", "annotations", "train2017", "val2017"}


@pytest.mark.parametrize("name", DATA_SETS)
def test_a_second_call_does_nothing(mirror: Mirror, tmp_path: Path, name: str) -> None:
    first = obtain(mirror, name, tmp_path / "out")
    before = {file: file.stat().st_mtime_ns for file in first.root.rglob("*")}
    mirror[0].asked.clear()
    again = obtain(mirror, name, tmp_path / "out")
    assert not again.changed
    assert again.sources == first.sources
    assert {file: file.stat().st_mtime_ns for file in first.root.rglob("*")} == before
    assert mirror[0].asked == []


def test_a_lost_file_comes_back_and_work_on_others_stays(mirror: Mirror, tmp_path: Path) -> None:
    done = obtain(mirror, "penn_fudan", tmp_path)
    folder = done.root / "PennFudanPed"
    (folder / "PNGImages" / "PennPed00001.png").unlink()
    (folder / "train.json").write_text("edited")
    assert obtain(mirror, "penn_fudan", tmp_path).changed
    assert (folder / "PNGImages" / "PennPed00001.png").is_file()
    assert (folder / "train.json").read_text() == "edited"


def test_a_lost_list_is_made_again_without_a_download(mirror: Mirror, tmp_path: Path) -> None:
    done = obtain(mirror, "penn_fudan", tmp_path)
    (done.root / "PennFudanPed" / "val.json").unlink()
    mirror[0].files.clear()
    assert obtain(mirror, "penn_fudan", tmp_path).changed
    assert len(read(done.sources["val"])) == 2


def test_splits_need_their_own_archives_alone(mirror: Mirror, tmp_path: Path) -> None:
    done = obtain(mirror, "coco2017", tmp_path, splits=["val"])
    assert [path for path, _ in mirror[0].asked] == ["annotations_trainval2017.zip", "val2017.zip"]
    assert list(done.sources) == ["val"]
    obtain(mirror, "coco2017", tmp_path)
    assert [path for path, _ in mirror[0].asked[2:]] == ["train2017.zip"]


def test_the_parts_of_voc_2007_share_their_folders(mirror: Mirror, tmp_path: Path) -> None:
    done = obtain(mirror, "voc2007", tmp_path)
    pages = done.root / "VOCdevkit" / "VOC2007" / "Annotations"
    assert left(pages) == ["000001.xml", "000005.xml", "000007.xml"]
    assert read(done.sources["test"]).class_names == ("cat", "dog")


def test_unknown_names_are_explained(mirror: Mirror, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no data set 'voc207'; did you mean 'voc2007'"):
        obtain(mirror, "voc207", tmp_path)
    with pytest.raises(ValueError, match=r"voc2012 has no split 'test'; .*allowed: train, val"):
        obtain(mirror, "voc2012", tmp_path, splits=["test"])
    assert left(tmp_path / "voc2012") == []


def test_a_damaged_archive_is_removed_and_comes_again(mirror: Mirror, tmp_path: Path) -> None:
    server, _ = mirror
    whole = server.files["PennFudanPed.zip"]
    server.files["PennFudanPed.zip"] = whole[:2000] + bytes(200) + whole[2200:]
    with pytest.raises(ArchiveError, match=r"damaged.*the file was removed"):
        obtain(mirror, "penn_fudan", tmp_path / "out")
    assert left(tmp_path / "out") == ["penn_fudan/.lock"]
    server.files["PennFudanPed.zip"] = whole
    assert len(read(obtain(mirror, "penn_fudan", tmp_path / "out").sources["val"])) == 2


def test_an_interrupt_while_unpacking_costs_no_download(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", interrupted)
        with pytest.raises(KeyboardInterrupt):
            obtain(mirror, "voc2012", tmp_path / "out")
    assert left(tmp_path / "out") == ["voc2012/.lock", "voc2012/VOCtrainval_11-May-2012.tar"]
    assert obtain(mirror, "voc2012", tmp_path / "out").changed
    assert len(mirror[0].asked) == 1


@pytest.mark.skipif(sets_module.fcntl is None, reason="no locks on this system")
def test_two_downloads_at_once_are_refused(mirror: Mirror, tmp_path: Path) -> None:
    with sets_module._alone(tmp_path / "voc2012"), pytest.raises(ValueError, match="another proc"):
        obtain(mirror, "voc2012", tmp_path)
    assert obtain(mirror, "voc2012", tmp_path).changed


def test_boxes_of_a_mask() -> None:
    mask = np.array([[0, 7, 7, 0], [0, 7, 0, 0], [2, 0, 0, 2]])
    boxes, areas = boxes_of_mask(mask)
    assert boxes.tolist() == [[0, 2, 4, 1], [1, 0, 2, 2]]
    assert areas.tolist() == [2, 3]
    boxes, areas = boxes_of_mask(np.zeros((3, 4)))
    assert (boxes.shape, areas.shape) == ((0, 4), (0,))


def test_penn_fudan_becomes_coco_json(mirror: Mirror, tmp_path: Path) -> None:
    done = obtain(mirror, "penn_fudan", tmp_path)
    content = json.loads(Path(done.sources["val"]["annotations"]).read_text())
    names = [image["file_name"] for image in content["images"]]
    assert names == ["FudanPed00005.png", "PennPed00006.png"]
    boxes = [(each["image_id"], each["bbox"], each["area"]) for each in content["annotations"]]
    assert boxes == [(1, [3, 2, 5, 10], 50), (1, [20, 15, 10, 5], 50), (2, [3, 2, 5, 10], 50)]
    assert [each["id"] for each in content["annotations"]] == [1, 2, 3]


def test_real_addresses_are_whole() -> None:
    lengths = {"md5": 32, "sha256": 64}
    for data_set in DATA_SETS.values():
        for archive in data_set.archives:
            assert re.fullmatch(r"https?://[\w./~-]+\.(zip|tar)", archive.url)
            assert archive.max_bytes > archive.size
            kind, _, digits = (archive.checksum or "md5:" + "0" * 32).partition(":")
            assert re.fullmatch(r"[0-9a-f]+", digits)
            assert len(digits) == lengths[kind]


def test_sums_of_voc_are_those_that_torchvision_has() -> None:
    published = pytest.importorskip("torchvision.datasets.voc").DATASET_YEAR_DICT
    theirs = {each["filename"]: each["md5"] for year, each in published.items() if year >= "2012"}
    theirs |= {published[key]["filename"]: published[key]["md5"] for key in ("2007", "2007-test")}
    ours = {
        archive.name: (archive.checksum or "").removeprefix("md5:")
        for name in ("voc2007", "voc2012")
        for archive in DATA_SETS[name].archives
    }
    assert ours == theirs


# The command


@pytest.fixture
def command(
    mirror: Mirror, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[object, str, str]]:
    path = ROOT / "tools" / "download_data.py"
    spec = importlib.util.spec_from_file_location("tools_download_data", path)
    assert spec
    assert spec.loader
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    monkeypatch.setattr(
        tool, "download", lambda *args, **kwargs: download(*args, **kwargs, data_sets=mirror[1])
    )

    def call(*arguments: object) -> tuple[object, str, str]:
        monkeypatch.setattr("sys.argv", ["download_data.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.run(tool.main)
        return ended.value.code, *capfd.readouterr()

    return call


def test_the_command_prints_lines_to_paste(
    command: Callable[..., tuple[object, str, str]], mirror: Mirror, tmp_path: Path
) -> None:
    arguments = ("voc2007", "--out", tmp_path / "o", "--mirror", mirror[0].url)
    code, out, _ = command(*arguments)
    assert code == 0
    first, _, lines = out.partition("\n\n")
    assert first == f"{tmp_path / 'o' / 'voc2007'}: complete; for a recipe:"
    pasted = yaml.safe_load(lines)["data"]
    assert pasted["val"] == {
        "format": "voc",
        "root": str(tmp_path / "o" / "voc2007" / "VOCdevkit" / "VOC2007"),
        "split": "val",
    }
    code, out, err = command(*arguments, "--splits", "train")
    assert (code, err) == (0, "")
    assert "all was there" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["voc2007", "--splits", "tes"], "voc2007 has no split 'tes'; did you mean 'test'"),
        (["coco2017"], r"annotations_trainval2017.zip: the server says 404"),
        (["voc2012"], r"its md5 is \w+ and should be \w+; the file was removed"),
        (["penn_fudan"], r"is no name inside a folder; it is not unpacked; the file was removed"),
    ],
)
def test_the_command_says_one_line(
    command: Callable[..., tuple[object, str, str]],
    mirror: Mirror,
    tmp_path: Path,
    arguments: list[str],
    message: str,
) -> None:
    server, data_sets = mirror
    del server.files["annotations_trainval2017.zip"]
    name = "VOCtrainval_11-May-2012.tar"
    server.files[name] = server.files[name][::-1]
    hostile = zip_of(tmp_path / "h.zip", ("../../out", b"1")).read_bytes()
    server.files["PennFudanPed.zip"] = hostile
    penn = data_sets["penn_fudan"]
    archive = replace(penn.archives[0], size=len(hostile))
    data_sets["penn_fudan"] = replace(penn, archives=(archive,))
    code, out, err = command(*arguments, "--out", tmp_path / "o", "--mirror", server.url)
    assert (code, out) == (2, "")
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert re.search(message, lines[0])
    assert "Traceback" not in err
    assert not [file for file in left(tmp_path / "o") if not file.endswith(".lock")]


def test_the_command_is_interrupted(
    command: Callable[..., tuple[object, str, str]],
    mirror: Mirror,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments = ("voc2012", "--out", tmp_path / "o", "--mirror", mirror[0].url)

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(transfer_module, "_read", interrupted)
        code, _, err = command(*arguments)
    assert code == 130
    assert re.search(r"interrupted; 0.0 MB are kept in .*tar.part; the same command goes on", err)
    assert command(*arguments)[0] == 0
