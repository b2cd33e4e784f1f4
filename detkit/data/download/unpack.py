"""Unpack archives of strangers: nothing outside the folder, nothing without end, nothing by half.

Plain files and folders alone; a link, a device, or a name that leaves the folder refuses the whole
archive before anything is written.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from detkit.data.download.progress import Bar, Progress, no_progress

_CHUNK = 1 << 18  # bytes
_BLOCK = 4096  # bytes that even a tiny file takes on the disk
_ENCRYPTED = 1  # bit of a zip member's flags
_LISTS = "ImageSets"  # of Pascal VOC


class ArchiveError(ValueError):
    """An archive is damaged, or holds what is not unpacked."""


class _Member(NamedTuple):
    """A file in an archive."""

    name: str
    size: int
    open: Callable[[], IO[bytes] | None]


def unpack(
    archive: str | Path,
    folder: str | Path,
    *,
    max_bytes: int,
    max_files: int = 200_000,
    progress: Progress = no_progress,
) -> list[str]:
    """Unpack a zip or an uncompressed tar file into a folder that may hold other files.

    All is unpacked aside, then moved to its place; a file that is there stays if it has the size
    of the new one. If anything fails, what was unpacked aside is removed.

    Args:
        archive: the file.
        folder: is created where it is missing.
        max_bytes: of all files together.
        max_files: in the archive.
        progress: shows the bytes.

    Returns:
        The files, relative to the folder.

    Raises:
        ArchiveError: damaged; holds names outside the folder, links or devices; beyond the limits.
        OSError: it cannot be written, the disk has no room, or another file has a name.
    """
    archive, folder = Path(archive), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / f".{archive.name}.unpacking"
    shutil.rmtree(aside, ignore_errors=True)  # left by a process that was killed
    try:
        with _members(archive) as members:
            files = _check(archive, members, max_bytes, max_files)
            total = sum(file.size for file in files)
            _check_room(folder, total + _BLOCK * len(files), archive)
            aside.mkdir()
            with progress("unpack", total) as bar:
                for file in files:
                    _write(archive, file, aside / file.name, bar)
        if hasattr(os, "sync"):
            os.sync()  # contents are on the disk before names say that all is there
        for entry in aside.iterdir():
            _move(entry, folder / entry.name)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return [file.name for file in files]


@contextmanager
def _members(archive: Path) -> Iterator[Iterator[_Member]]:
    """Whatever the archive holds but folders; the damage found within the block has one class."""
    try:
        if archive.suffix == ".zip":  # not by content: a tar may end with a zip
            with zipfile.ZipFile(archive) as packed:
                yield (_zip_member(packed, info) for info in packed.infolist() if not info.is_dir())
        else:
            # Uncompressed alone: the size of the file then limits what it can hold
            with tarfile.open(archive, "r:") as tar:
                yield (_tar_member(tar, info) for info in tar if not info.isdir())
    except (
        zipfile.BadZipFile,
        tarfile.TarError,
        zlib.error,
        EOFError,
        UnicodeError,
        NotImplementedError,
    ) as error:
        raise ArchiveError(f"{archive} is damaged, or no archive at all ({error})") from None


def _zip_member(packed: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Member:
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFREG):
        what = "a symbolic link" if kind == stat.S_IFLNK else "no plain file"
        raise ArchiveError(f"{packed.filename}: {info.filename!r} is {what}; it is not unpacked")
    if info.flag_bits & _ENCRYPTED:
        raise ArchiveError(f"{packed.filename}: {info.filename!r} is encrypted")
    # filename ends at a zero byte and has the separators of this system: check what was written
    return _Member(info.orig_filename, info.file_size, lambda: packed.open(info))


def _tar_member(tar: tarfile.TarFile, info: tarfile.TarInfo) -> _Member:
    if info.issparse() or not info.isreg():  # a sparse file is written longer than it is stored
        kinds = {tarfile.SYMTYPE: "a symbolic link", tarfile.LNKTYPE: "a hard link"}
        what = kinds.get(info.type, "no plain file")
        raise ArchiveError(f"{tar.name!s}: {info.name!r} is {what}; it is not unpacked")
    return _Member(info.name, info.size, lambda: tar.extractfile(info))


def _check(
    archive: Path, members: Iterator[_Member], max_bytes: int, max_files: int
) -> list[_Member]:
    """The files with their names made plain.

    Raises:
        ArchiveError: too many, too large, the same name twice, or a name that is not inside.
    """
    files: dict[str, _Member] = {}
    total = 0
    for member in members:
        name = _inside(archive, member.name)
        total += max(member.size, 0)
        if name in files:
            raise ArchiveError(f"{archive}: {name!r} is in it twice")
        if len(files) >= max_files or total > max_bytes:
            raise ArchiveError(
                f"{archive}: more than {max_files} files or {max_bytes / 1e6:.0f} MB when unpacked;"
                " that is not the data set"
            )
        files[name] = member._replace(name=name)
    return list(files.values())


def _inside(archive: Path, name: str) -> str:
    """A name that stays in the folder on every system."""
    path = PurePosixPath(name)
    outside = path.is_absolute() or ".." in path.parts or not path.parts
    if outside or re.search(r"[\\:\x00-\x1f]", name):  # as in C:\, or a stream of a file
        raise ArchiveError(f"{archive}: {name!r} is no name inside a folder; it is not unpacked")
    return str(path)


def _check_room(folder: Path, needed: int, archive: Path) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            f"{folder} has {free / 1e9:.2f} GB free and the files of {archive.name} need "
            f"{needed / 1e9:.2f} GB; make room and run it again"
        )


def _write(archive: Path, file: _Member, target: Path, bar: Bar) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        written = open(target, "xb")  # noqa: SIM115 (errors of the reader are others)
    except (FileExistsError, NotADirectoryError):
        raise ArchiveError(
            f"{archive}: {file.name!r} has the name of another file or folder here"
        ) from None
    left = file.size
    with written, file.open() or _nothing() as source:
        while chunk := source.read(min(_CHUNK, left + 1)):  # a byte more shows a false size
            left -= len(chunk)
            if left < 0:
                break
            written.write(chunk)
            bar.update(len(chunk))
    if left:
        raise ArchiveError(f"{archive} is damaged: {file.name!r} has not the {file.size} bytes")


def _nothing() -> IO[bytes]:
    return open(os.devnull, "rb")


def _move(source: Path, target: Path) -> None:
    """Rename whole folders where nothing is yet, single files otherwise."""
    if source.is_dir() and target.is_dir():
        # Lists last: a split that can be named is complete
        for entry in sorted(source.iterdir(), key=lambda entry: (entry.name == _LISTS, entry.name)):
            _move(entry, target / entry.name)
    elif not target.exists():
        os.rename(source, target)
    elif source.is_dir() or target.is_dir() or source.stat().st_size != target.stat().st_size:
        raise FileExistsError(
            f"{target} is there and is not the one of the archive; move it away and run it again"
        )
