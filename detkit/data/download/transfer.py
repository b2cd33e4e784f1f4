"""Fetch a file over HTTP: resumed where it was cut, checked before it gets its name.

Ranges and validators as in RFC 9110, sections 13.1.5 (If-Range) and 14.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import os
import re
import shutil
import ssl
import time
import urllib.error
import urllib.request
from email.message import Message
from http import HTTPStatus
from pathlib import Path
from typing import NamedTuple

from detkit.data.download.progress import Bar, Progress, no_progress

_CHUNK = 1 << 18  # bytes
_TIMEOUT = 30  # seconds without a byte
_LONGEST_PAUSE = 30  # seconds
_TRY_AGAIN = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS}


class DownloadError(OSError):
    """A file cannot be had; its message is complete."""


class _Cut(Exception):
    """The transfer ended early; another try may go on."""


class _Part(NamedTuple):
    """A file under way, and beside it which version on the server it is of."""

    data: Path
    validator: Path

    @property
    def size(self) -> int:
        return self.data.stat().st_size if self.data.is_file() else 0

    def remove(self) -> None:
        self.data.unlink(missing_ok=True)
        self.validator.unlink(missing_ok=True)


def fetch(
    url: str,
    target: str | Path,
    *,
    size: int | None = None,
    checksum: str | None = None,
    reserve: int = 0,
    attempts: int = 6,
    pause: float = 1.0,
    progress: Progress = no_progress,
) -> None:
    """Download a file; does nothing when it is there.

    What has come is kept in `target.part`, also over Ctrl-C and kill, and the next call goes on
    there if the server still has the same version.

    Args:
        url: http or https; redirects are followed.
        target: the file.
        size: bytes it must have.
        checksum: that it must have, "md5:..." or "sha256:...".
        reserve: bytes that must be left on the disk afterwards.
        attempts: tries in a row without a new byte before giving up.
        pause: seconds before the second of them, doubled each time.
        progress: shows the bytes.

    Raises:
        DownloadError: not there, refused, cut again and again, of another size or checksum (then
            nothing is left), or the disk is full.
        KeyboardInterrupt: with what is kept, for the last line of a command.
    """
    target = Path(target)
    if target.is_file():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    part = _Part(*(target.with_name(target.name + suffix) for suffix in (".part", ".part.version")))
    try:
        with progress(target.name, size) as bar:
            bar.update(part.size)
            _receive_all(url, part, size, reserve, bar, attempts, pause)
        _verify(url, part, size, checksum, progress)
    except KeyboardInterrupt:
        kept = f"{part.size / 1e6:.1f} MB are kept in {part.data}; the same command goes on there"
        raise KeyboardInterrupt(kept) from None
    part.validator.unlink(missing_ok=True)
    os.replace(part.data, target)


def _receive_all(
    url: str,
    part: _Part,
    size: int | None,
    reserve: int,
    bar: Bar,
    attempts: int,
    pause: float,
) -> None:
    """Try until all is there, or nothing new has come for too many tries."""
    most, failed = part.size, 0
    while True:
        try:
            return _receive(url, part, size, reserve, bar)
        except _Cut as cut:
            failed = 1 if part.size > most else failed + 1
            most = max(most, part.size)
            if failed >= attempts:
                kept = f"; {part.size} bytes are kept in {part.data}" if part.size else ""
                raise DownloadError(
                    f"{url}: gave up after {attempts} tries ({cut}){kept}; try again later"
                ) from None
            seconds = min(pause * 2 ** (failed - 1), _LONGEST_PAUSE)
            bar.set_postfix_str(f"{cut}; again in {seconds:.0f} s")
            time.sleep(seconds)


def _receive(url: str, part: _Part, size: int | None, reserve: int, bar: Bar) -> None:
    """One try: what is missing of the file, or all of it."""
    have = part.size
    if have == size:
        return
    version = part.validator.read_text() if have and part.validator.is_file() else ""
    # Without a validator nobody knows what the beginning is of
    headers = {"Range": f"bytes={have}-", "If-Range": version} if version else {}
    response = _open(url, headers, part)
    if response is None:
        return
    with response:
        start, total = _extent(response, have, version, part)
        _check_size(url, total, size)
        _check_space(part.data, (total or 0) - start + reserve)
        bar.set_postfix_str("")
        bar.update(start - have)
        _store(response, part, start, size if total is None else total, bar)


def _open(url: str, headers: dict[str, str], part: _Part) -> http.client.HTTPResponse | None:
    """The server's answer; None: what is there is all there is.

    Raises:
        _Cut: another try may succeed.
        DownloadError: it will not.
    """
    # Some servers refuse urllib's own name; and what is compressed on the way has no ranges
    headers = {"User-Agent": "detkit", "Accept-Encoding": "identity", **headers}
    try:
        response = urllib.request.urlopen(
            urllib.request.Request(url, headers=headers), timeout=_TIMEOUT
        )
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and part.size:
            if error.headers.get("Content-Range") == f"bytes */{part.size}":
                return None
            part.remove()
            raise _Cut("the file on the server is shorter than before") from None
        if error.code >= HTTPStatus.INTERNAL_SERVER_ERROR or error.code in _TRY_AGAIN:
            raise _Cut(f"HTTP {error.code} {error.reason}") from None
        raise DownloadError(f"{url}: the server says {error.code} {error.reason}") from None
    except urllib.error.URLError as error:
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            raise DownloadError(
                f"{url}: the server's certificate cannot be verified ({error.reason.verify_message}"
                "); update the system's certificates, or fetch the file by hand into the folder"
            ) from None
        raise _Cut(str(error.reason)) from None
    except (http.client.HTTPException, OSError) as error:
        raise _Cut(str(error) or type(error).__name__) from None
    return response


def _extent(
    response: http.client.HTTPResponse, have: int, version: str, part: _Part
) -> tuple[int, int | None]:
    """At which byte the answer starts, and how many bytes the whole file has."""
    if response.status == HTTPStatus.PARTIAL_CONTENT:
        extent = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
        if not extent or int(extent[1]) != have or _validator(response.headers) != version:
            part.remove()
            raise _Cut("the server sent another part than was asked for")
        return have, int(extent[2])
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if length.isdecimal() else None


def _validator(headers: Message) -> str:
    """What names the version of a file; empty if nothing does."""
    tag = headers.get("ETag", "")
    # A weak tag does not promise equal bytes and may not stand in If-Range
    return headers.get("Last-Modified", "") if not tag or tag.startswith("W/") else tag


def _store(
    response: http.client.HTTPResponse, part: _Part, start: int, total: int | None, bar: Bar
) -> None:
    """Append the answer to the part, or begin it anew."""
    try:
        with open(part.data, "ab" if start else "wb", buffering=0) as handle:
            # Not before the old bytes are gone: they must never stand beside a new version
            part.validator.write_text(_validator(response.headers))
            have = start
            while chunk := _read(response):
                handle.write(chunk)
                bar.update(len(chunk))
                have += len(chunk)
                if total is not None and have > total:
                    break
    except OSError as error:
        raise _not_written(error, part.data) from None
    if total is not None and have < total:
        raise _Cut(f"the connection closed {total - have} bytes early")
    if total is not None and have > total:
        part.remove()
        raise DownloadError(f"{response.url}: more than the {total} bytes that it should have")


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read1(_CHUNK)
    except (http.client.HTTPException, OSError) as error:
        raise _Cut(str(error) or type(error).__name__) from None


def _not_written(error: OSError, path: Path) -> DownloadError:
    if error.errno == errno.ENOSPC:
        return DownloadError(
            f"the disk of {path} is full; what has come is kept: make room and run it again"
        )
    return DownloadError(f"cannot write {path}: {error.strerror or error}")


def _check_size(url: str, total: int | None, size: int | None) -> None:
    if size is not None and total is not None and total != size:
        raise DownloadError(
            f"{url}: the server has {total} bytes where {size} are expected; it is another file, "
            "or a page of the network in between"
        )


def _check_space(path: Path, needed: int) -> None:
    """Raise unless the disk has room.

    Raises:
        DownloadError: it has not.
    """
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise DownloadError(
            f"{path.parent} has {free / 1e9:.2f} GB free and {path.name.removesuffix('.part')} "
            f"needs {needed / 1e9:.2f} GB, unpacking included; make room or choose another folder"
        )


def _verify(
    url: str, part: _Part, size: int | None, checksum: str | None, progress: Progress
) -> None:
    """Raise, and remove the part, unless it is what was wanted."""
    if size is not None and part.size != size:
        problem = f"{part.size} bytes came where {size} are expected"
    elif checksum is None:
        return
    else:
        kind, _, wanted = checksum.partition(":")
        found = hashlib.new(kind, usedforsecurity=False)
        with progress("check", part.size) as bar, open(part.data, "rb") as handle:
            while chunk := handle.read(_CHUNK):
                found.update(chunk)
                bar.update(len(chunk))
        if found.hexdigest() == wanted:
            return
        problem = f"its {kind} is {found.hexdigest()} and should be {wanted}"
    part.remove()
    raise DownloadError(f"{url}: {problem}; the file was removed, download it again")
