"""Files that are either whole or not there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from detkit.files import check_writable, open_atomically, remove_leftovers, write_atomically


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("data", "content"), [("Füße\n", "Füße\n".encode()), (b"\x00\xff", b"\x00\xff"), ("", b"")]
)
def test_write(tmp_path: Path, data: str | bytes, content: bytes) -> None:
    write_atomically(tmp_path / "a" / "b" / "file.json", data)
    assert (tmp_path / "a" / "b" / "file.json").read_bytes() == content
    assert names(tmp_path / "a" / "b") == ["file.json"]


def test_new_content_takes_the_place_of_the_old(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(str(path), "a long first content")
    write_atomically(str(path), "second")
    assert path.read_text() == "second"
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("old", [None, b"old"])
def test_failure_leaves_everything_as_it_was(
    tmp_path: Path, error: type[BaseException], old: bytes | None
) -> None:
    path = tmp_path / "file"
    if old is not None:
        path.write_bytes(old)
    with pytest.raises(error), open_atomically(path) as handle:
        handle.write(b"half of the new")
        handle.flush()
        raise error
    assert names(tmp_path) == ([] if old is None else ["file"])
    assert old is None or path.read_bytes() == old


def test_nobody_sees_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with open_atomically(path) as handle:
        handle.write(b"new")
        handle.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"


def test_content_is_on_disk_before_it_has_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, int]] = []
    path = tmp_path / "file"
    fsync, replace = os.fsync, os.replace

    def noted_fsync(descriptor: int) -> None:
        calls.append(("fsync", os.fstat(descriptor).st_size))
        fsync(descriptor)

    def noted_replace(source: str, target: Path) -> None:
        calls.append(("replace", os.stat(source).st_size))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    write_atomically(path, b"12345")
    assert calls == [("fsync", 5), ("replace", 5)]


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_permissions_follow_the_umask(tmp_path: Path, mask: int, mode: int) -> None:
    before = os.umask(mask)
    try:
        write_atomically(tmp_path / "file", "x")
        assert os.umask(mask) == mask  # reading it has not changed it
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == mode


def test_a_name_that_is_a_folder_is_an_os_error(tmp_path: Path) -> None:
    (tmp_path / "file").mkdir()
    with pytest.raises(OSError, match="file"):
        write_atomically(tmp_path / "file", "x")
    assert names(tmp_path) == ["file"]


def test_what_cannot_be_written_is_said_before(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("old")
    check_writable(file)
    check_writable(tmp_path / "new" / "folder" / "file")
    for path, message in ((tmp_path, "is a folder"), (file / "a" / "b", f"{file} is a file")):
        with pytest.raises(ValueError, match=message):
            check_writable(path)
    assert names(tmp_path) == ["file"]


def test_leftovers_of_a_killed_process_are_removed_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "last[1].pt"  # brackets mean themselves, not a pattern
    if os.fork() == 0:  # dies while it writes
        writer = open_atomically(path)
        writer.__enter__().write(b"half")
        os._exit(0)
    os.wait()
    (left,) = names(tmp_path)
    assert left.startswith(".last[1].pt.")
    others = [
        ".best.pt.12345678.part",
        ".last[1].pt.swp",
        "last[1].pt",
        "x.part",
        ".last1.pt.a.part",
    ]
    for name in others:
        (tmp_path / name).touch()
    remove_leftovers(path)
    assert names(tmp_path) == sorted(others)
    remove_leftovers(tmp_path / "no" / "folder")
