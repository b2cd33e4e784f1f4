"""What the web page's server answers to bad uploads, and what memory that takes.

    python benchmarks/web_faults.py runs/quickstart/best.pt

Starts demo/app.py with the checkpoint, sends each input, and prints status, line, seconds and the
highest memory during the answer above that before it. Needs Linux (/proc).
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import re
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np

from detkit import cli

APP = Path(__file__).resolve().parents[1] / "demo" / "app.py"
MB = 2**20
FORM = {"Content-Type": "multipart/form-data; boundary=x"}
Fault = tuple[str, bytes, dict[str, str]]


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description="Send bad uploads to the web page's server.")
    parser.add_argument("checkpoint", help="best.pt of a run")
    command = [sys.executable, str(APP), parser.parse_args(arguments).checkpoint, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            found = re.search(r"127\.0\.0\.1:(\d+)", process.stdout.readline())
            if found is None:
                raise ValueError("the server did not start; it says above why")
            report(int(found[1]), process.pid)
        finally:
            process.terminate()


def report(port: int, pid: int) -> None:
    photo = encoded(np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8))
    for _ in range(3):  # what the first answers allocate stays
        send(port, photo, {})
    print(f"at rest: {memory(pid, 'VmRSS'):.0f} MB\n")
    print("| input | status | answer | memory, MB | seconds |\n|---|---|---|---|---|")
    for name, data, headers in faults(photo):
        before, start = watch(pid), time.perf_counter()
        status, line = send(port, data, headers)
        seconds = time.perf_counter() - start
        used = memory(pid, "VmHWM") - before
        print(f"| {name} | {status} | {line} | {used:+.0f} | {seconds:.2f} |", flush=True)
    before, noise = watch(pid), os.urandom(30 * MB)
    with ThreadPoolExecutor(40) as pool:
        statuses = [each[0] for each in pool.map(lambda _: send(port, noise, {}), range(40))]
    used, counts = memory(pid, "VmHWM") - before, {s: statuses.count(s) for s in {*statuses}}
    print(f"| 40 times 30 MB of noise at once | {counts} | | {used:+.0f} | |")
    print(f"\nafter that: {send(port, photo, {})[0]}, at rest: {memory(pid, 'VmRSS'):.0f} MB")


def faults(photo: bytes) -> Iterator[Fault]:
    """Name, body and headers of each."""
    yield "photo of 640x480", photo, {}
    yield "8000x7990, just allowed", encoded(np.zeros((7990, 8000, 3), np.uint8)), {}
    yield "0 bytes", b"", {}
    yield "text", b"Dear Sir or Madam" * 99, {}
    yield "half a JPEG", photo[: len(photo) // 2], {}
    yield "20000x14000, header alone", png_claiming(20000, 14000, b""), {}
    yield "20000x14000, all pixels (34 kB)", png_claiming(20000, 14000), {}
    yield "a PNG of 2^31-1 x 2^31-1", png_claiming(2**31 - 1, 2**31 - 1, b""), {}
    sides = struct.pack("<HH", 65535, 65535)
    frame = b"GIF89a" + sides + bytes(3) + b"," + bytes(4) + sides + bytes(1) + b"\2\0;"
    yield f"GIF bomb ({len(frame)} bytes)", frame, {}
    yield "31 MB of noise", os.urandom(31 * MB), {}
    yield "33 MB of noise", os.urandom(33 * MB), {}
    yield "form with a picture", form(photo, 1, "a.png"), FORM
    yield "form of 5000 fields", form(b"1", 5000, "a.png"), FORM
    yield "form, name ../../etc/passwd", form(photo, 1, "../../etc/passwd"), FORM
    yield "form, name of 1 MB", form(photo, 1, "a" * MB), FORM
    yield (
        "512 MB of zeros, deflated",
        zlib.compress(bytes(512 * MB)),
        {"Content-Encoding": "deflate"},
    )
    yield "Content-Type: text/plain", photo, {"Content-Type": "text/plain"}
    yield "Host: evil.example", photo, {"Host": "evil.example"}
    yield "Origin: http://evil.example", photo, {"Origin": "http://evil.example"}


def encoded(picture: np.ndarray) -> bytes:
    return cv2.imencode(".jpg", picture)[1].tobytes()


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


def form(content: bytes, fields: int, name: str) -> bytes:
    part = f'--x\r\nContent-Disposition: form-data; name="f"; filename="{name}"\r\n\r\n'.encode()
    return (part + content + b"\r\n") * fields + b"--x--\r\n"


def send(port: int, data: bytes, headers: dict[str, str]) -> tuple[int, str]:
    """Status and line; the server may answer before it has read everything."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        connection.request("POST", "/api/detect", data, {"Content-Type": "image/jpeg"} | headers)
    answer = connection.getresponse()
    content = json.loads(answer.read())
    connection.close()
    return answer.status, content.get("error") or f"{len(content['boxes'])} boxes"


def watch(pid: int) -> float:
    """Forget the highest memory so far; what is in use now, in MB."""
    Path(f"/proc/{pid}/clear_refs").write_text("5", encoding="ascii")
    return memory(pid, "VmRSS")


def memory(pid: int, kind: str) -> float:
    found = re.search(rf"{kind}:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(encoding="ascii"))
    assert found is not None
    return int(found[1]) / 1024


if __name__ == "__main__":
    cli.run(main)
