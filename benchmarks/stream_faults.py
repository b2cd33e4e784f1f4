"""Faults of sources and sinks, each provoked for real on demo/demo.py: how it ended, what it left.

    python benchmarks/stream_faults.py                 # every fault
    python benchmarks/stream_faults.py --only stream   # those whose name has this in it

The detector is a small one that has learnt nothing. A row of the table is one command: its exit
code, its seconds without the start of Python, its memory, what stays on the disk, and what it said.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import resource
import runpy
import shutil
import signal
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.context import ForkServerContext
from pathlib import Path

import cv2
import numpy as np
import torch

from detkit.config import build_recipe
from detkit.detectors import create_detector
from detkit.engine.checkpoint import Checkpoint, save_checkpoint
from detkit.inference import video

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "demo" / "demo.py"

# ------------------------------------------------------------------------------------ what is shown


def write_checkpoint(path: Path) -> Path:
    """A detector of three classes with random weights."""
    recipe = build_recipe(
        {
            "name": "tiny",
            "data": {"resize": {"shortest": 64, "longest": 96}},
            "model": {
                "backbone": {"name": "resnet18", "width": 8, "out_indices": [2, 3]},
                "fpn": {"channels": 16, "extra": None},
                "rpn": {"anchor_sizes": [[16], [32]], "post_nms_test": 50},
                "roi": {"hidden": 32},
            },
        }
    )
    torch.manual_seed(0)
    names, ids = ("cat", "dog", "hen"), (1, 2, 3)
    detector = create_detector(recipe.model, num_classes=3)
    save_checkpoint(path, Checkpoint(recipe, names, ids, detector.state_dict(), 1, {}, None))
    return path


def write_video(path: Path, frames: int, *, table_first: bool = False) -> Path:
    """Noise, whose frames take 10 kB each."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 25, (160, 120))
    rng = np.random.default_rng(0)
    for _ in range(frames):
        writer.write(rng.integers(0, 256, (120, 160, 3), dtype=np.uint8))
    writer.release()
    if table_first:
        path.write_bytes(with_table_first(path.read_bytes()))
    return path


def with_table_first(data: bytes) -> bytes:
    """An MP4 with its table (moov) before the frames (mdat), as web pages have it."""
    boxes, position = {}, 0
    while position < len(data):
        size, kind = struct.unpack(">I4s", data[position : position + 8])
        boxes[kind] = data[position : position + size]
        position += size
    moov = bytearray(boxes.pop(b"moov"))
    start = moov.index(b"stco") + 8
    (count,) = struct.unpack(">I", moov[start : start + 4])
    places = np.frombuffer(moov[start + 4 : start + 4 + 4 * count], ">u4") + len(moov)
    moov[start + 4 : start + 4 + 4 * count] = places.astype(">u4").tobytes()
    return boxes.pop(b"ftyp") + bytes(moov) + b"".join(boxes.values())


class Server:
    """A network camera of 25 frames per second, which can be cut, fall silent, and come back."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.silent = threading.Event()
        self.port = 0
        self.server: ThreadingHTTPServer | None = None

    @property
    def sent(self) -> int:
        """Frames since the beginning, also while nobody could get them."""
        return int((time.monotonic() - self.started) * 25)

    @property
    def url(self) -> str:
        """Where to read it."""
        return f"http://127.0.0.1:{self.port}/camera"

    def start(self) -> None:
        """Begin, or begin again at the same address."""
        camera = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
                self.end_headers()
                while camera.server is self.server:
                    time.sleep(0.04)
                    if camera.silent.is_set():
                        continue
                    picture = np.full((120, 160, 3), camera.sent % 256, np.uint8)
                    data = cv2.imencode(".jpg", picture)[1].tobytes()
                    head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}"
                    try:
                        self.wfile.write(f"{head}\r\n\r\n".encode() + data + b"\r\n")
                    except OSError:
                        return

            def log_message(self, *arguments: object) -> None: ...

        ThreadingHTTPServer.allow_reuse_address = True
        self.server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        """Cut every connection and refuse new ones."""
        server, self.server = self.server, None
        if server is not None:
            server.shutdown()
            server.server_close()


# ------------------------------------------------------------------------------------------ running


class Camera:
    """A camera of 25 frames per second that is lost after some."""

    def __init__(self, frames: int) -> None:
        self.left = frames

    def isOpened(self) -> bool:
        """Whether it was there when it was opened."""
        return self.left > 0

    def get(self, key: int, /) -> float:
        """Says nothing about itself."""
        return 0.0

    def set(self, key: int, value: float, /) -> bool:
        """Cannot be changed."""
        return False

    def read(self) -> tuple[bool, np.ndarray]:
        """The next frame."""
        time.sleep(0.04)
        self.left -= 1
        return self.left >= 0, np.full((120, 160, 3), max(self.left, 0), np.uint8)

    def release(self) -> None:
        """Nothing to let go of."""


def command(folder: Path, words: list[str], camera: list[int], limit_files: int | None) -> None:
    """Be demo/demo.py; never returns.

    Args:
        folder: for what is said.
        words: arguments.
        camera: how many frames a camera gives each time that it is opened; it is not there then.
        limit_files: size that a file may have, as if the disk was full.
    """
    said = os.open(folder / "stderr", os.O_WRONLY | os.O_CREAT, 0o666)
    os.dup2(os.open(folder / "stdout", os.O_WRONLY | os.O_CREAT, 0o666), 1)
    os.dup2(said, 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)
    if camera:
        cameras = map(Camera, [*camera, *[0] * 1000])
        video._open_capture = lambda address: next(cameras)
    if limit_files is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit_files, limit_files))
    sys.argv = [str(DEMO), *words]
    try:
        runpy.run_path(str(DEMO), run_name="__main__")
    finally:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        threads = [each.name for each in threading.enumerate() if each.name.startswith("detkit")]
        (folder / "end").write_text(f"{peak} {len(threads)}")


@dataclass
class Outcome:
    """How a command ended.

    Attributes:
        code: of its exit.
        seconds: that it took.
        memory: at most, in MiB.
        threads: of the stream that were left.
        said: first line of the output, last one of the errors.
    """

    code: int
    seconds: float
    memory: int
    threads: int
    said: list[str]


@dataclass
class Place:
    """A folder with the detector, in which one fault happens.

    Attributes:
        context: to start processes with.
        folder: nothing else is in it.
    """

    context: ForkServerContext
    folder: Path

    @property
    def out(self) -> Path:
        """Where the demo writes to."""
        return self.folder / "out"

    def run(
        self,
        *arguments: object,
        act: Callable[[int], None] | None = None,
        camera: Sequence[int] = (),
        limit_files: int | None = None,
    ) -> Outcome:
        """Run the demo; `act` does something to the process once its film has begun."""
        import stream_faults  # by this name the server knows it, also where it is __main__ here

        words = [str(self.folder / "best.pt"), *map(str, arguments), "--device", "cpu"]
        words += ["--out", str(self.out), "--save-json", str(self.out / "a.json")]
        process = self.context.Process(
            target=stream_faults.command, args=(self.folder, words, list(camera), limit_files)
        )
        start = time.monotonic()
        process.start()
        assert process.pid is not None
        if act is not None:
            while process.is_alive() and not list(self.folder.glob("out/.*.mp4")):
                time.sleep(0.02)
            act(process.pid)
        process.join(120)
        seconds = time.monotonic() - start
        assert process.exitcode is not None, "it hangs"
        memory, threads = map(int, (self.folder / "end").read_text().split())
        output, errors = ((self.folder / name).read_text() for name in ("stdout", "stderr"))
        said = [*output.splitlines()[:1], *errors.splitlines()[-1:]]
        return Outcome(
            process.exitcode, seconds, memory, threads,
            [line.replace(str(self.folder), "") for line in said],
        )  # fmt: skip

    def left(self) -> str:
        """What is on the disk, with the frames of films, hidden files too."""
        found = []
        for path in sorted(self.out.rglob("*")) if self.out.is_dir() else ():
            if path.suffix == ".mp4":
                found.append(f"{path.name} ({film_length(path)} frames)")
            elif path.is_file():
                found.append(path.name)
        return ", ".join(found) or "nothing"


def film_length(path: Path) -> int:
    """Frames that can be decoded."""
    capture, count = cv2.VideoCapture(str(path)), 0
    while capture.read()[0]:
        count += 1
    return count


# ------------------------------------------------------------------------------------------- faults


def camera_lost(place: Place) -> Outcome:
    return place.run("0", "--reconnect", 3, camera=[30, 0, 30])


def stream_cut(place: Place) -> Outcome:
    server = Server()
    server.start()

    def cut(process: int) -> None:
        time.sleep(2)
        server.stop()
        time.sleep(5)
        server.start()

    try:
        return place.run(server.url, "--max-frames", 200, act=cut)
    finally:
        server.stop()


def stream_silent(place: Place) -> Outcome:
    server = Server()
    server.start()

    def fall_silent(process: int) -> None:
        time.sleep(2)
        server.silent.set()
        time.sleep(8)
        server.silent.clear()

    try:
        return place.run(server.url, "--max-frames", 120, act=fall_silent)
    finally:
        server.stop()


def stream_never_back(place: Place) -> Outcome:
    server = Server()
    server.start()

    def cut(process: int) -> None:
        time.sleep(2)
        server.stop()

    return place.run(server.url, "--reconnect", 5, act=cut)


def stream_not_there(place: Place) -> Outcome:
    return place.run("http://127.0.0.1:9/camera")


def cut_video(share: float, *, table_first: bool) -> Callable[[Place], Outcome]:
    def run(place: Place) -> Outcome:
        path = write_video(place.folder / "clip.mp4", 60, table_first=table_first)
        data = path.read_bytes()
        path.write_bytes(data[: int(share * len(data))])
        return place.run(path)

    return run


def content(data: bytes) -> Callable[[Place], Outcome]:
    def run(place: Place) -> Outcome:
        path = place.folder / "clip.mp4"
        path.write_bytes(data)
        return place.run(path)

    return run


def large_picture(height: int, width: int) -> Callable[[Place], Outcome]:
    """Grey, so that the file is small and its pixels are many."""

    def run(place: Place) -> Outcome:
        path = place.folder / "large.png"
        if height * width < 2**29:
            cv2.imwrite(str(path), np.full((height, width), 128, np.uint8))
        else:  # the header is enough
            header = struct.pack(">II5B", width, height, 8, 0, 0, 0, 0)
            path.write_bytes(
                b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + header + b"crc."
            )
        return place.run(path)

    return run


def disk_full(place: Place) -> Outcome:
    return place.run(write_video(place.folder / "clip.mp4", 100), limit_files=200_000)


def sent(number: signal.Signals) -> Callable[[Place], Outcome]:
    def run(place: Place) -> Outcome:
        path = write_video(place.folder / "clip.mp4", 3000)

        def send(process: int) -> None:
            time.sleep(1)
            os.kill(process, number)

        return place.run(path, act=send)

    return run


def output_is_input(place: Place) -> Outcome:
    place.out.mkdir()
    return place.run(write_video(place.out / "clip.mp4", 10))


FAULTS: dict[str, Callable[[Place], Outcome]] = {
    "camera lost twice, the second time for good": camera_lost,
    "stream cut for 5 s": stream_cut,
    "stream silent for 8 s": stream_silent,
    "stream never back (limit 5 s)": stream_never_back,
    "stream not there": stream_not_there,
    "video cut at 50 %, table at its end": cut_video(0.5, table_first=False),
    "video cut at 99 %, table at its end": cut_video(0.99, table_first=False),
    "video cut at 1 %, table first": cut_video(0.01, table_first=True),
    "video cut at 50 %, table first": cut_video(0.5, table_first=True),
    "video cut at 90 %, table first": cut_video(0.9, table_first=True),
    "video of 0 bytes": content(b""),
    "text named .mp4": content(b"This is no video.\n" * 100),
    "picture of 20000x14000": large_picture(14000, 20000),
    "picture that claims 40000x30000": large_picture(30000, 40000),
    "disk full": disk_full,
    "Ctrl-C": sent(signal.SIGINT),
    "SIGTERM": sent(signal.SIGTERM),
    "output is the input": output_is_input,
}


@contextlib.contextmanager
def server_of_processes() -> Iterator[ForkServerContext]:
    """Starts processes that have torch imported already."""
    here = Path(__file__).resolve().parent
    os.environ["PYTHONPATH"] = os.pathsep.join(map(str, (here, ROOT)))
    os.environ.update(OPENCV_LOG_LEVEL="SILENT", OPENCV_FFMPEG_LOGLEVEL="-8")  # as in the demo
    sys.path.insert(0, str(here))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["stream_faults"])
    yield context


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default="", help="faults with this in their name")
    wanted = parser.parse_args().only.lower()
    print("| fault | exit | s | MiB | threads left | left on the disk | said |")
    print("|---|---|---|---|---|---|---|")
    with server_of_processes() as context, tempfile.TemporaryDirectory() as shared:
        checkpoint = write_checkpoint(Path(shared) / "best.pt")
        for name, fault in FAULTS.items():
            if wanted not in name.lower():
                continue
            with tempfile.TemporaryDirectory() as folder:
                shutil.copy(checkpoint, folder)
                place = Place(context, Path(folder))
                end = fault(place)
                figures = f"{end.code} | {end.seconds:.1f} | {end.memory} | {end.threads}"
                print(
                    f"| {name} | {figures} | {place.left()} | {'<br>'.join(end.said)} |", flush=True
                )


if __name__ == "__main__":
    main()
