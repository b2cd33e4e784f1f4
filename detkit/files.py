"""Files that are either whole or not there: written aside, synced, then renamed."""

from __future__ import annotations

import glob
import json
import os
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

_ASIDE = ".part"


@contextmanager
def open_atomically(path: str | Path) -> Iterator[IO[bytes]]:
    """A binary file to write that takes the place of `path` once it is complete and on disk.

    If the block fails or the process dies, `path` stays as it was. A process that is killed leaves
    what it wrote aside, see `remove_leftovers`.

    Raises:
        OSError: it cannot be written, for want of space or permission; the error names `path`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handled = sys.exc_info()[1]  # what the caller is saving after, if it is
    descriptor, aside = tempfile.mkstemp(prefix=f".{path.name}.", suffix=_ASIDE, dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        os.chmod(aside, 0o666 & ~_umask())
        os.replace(aside, path)
    except BaseException as error:
        Path(aside).unlink(missing_ok=True)
        if (failed := _failed_write(error, handled)) is not None:
            raise OSError(failed.errno, failed.strerror, str(path)) from error
        raise


def _failed_write(error: BaseException, handled: BaseException | None) -> OSError | None:
    """The error of writing that does not name its file; None for every other one."""
    # Where a write fails in the middle of torch.save, its archive complains in turn when it ends
    context = error.__context__
    if isinstance(error, RuntimeError) and isinstance(context, OSError) and context is not handled:
        error = context
    if isinstance(error, OSError) and error.errno is not None and error.filename is None:
        return error
    return None


def write_atomically(path: str | Path, data: bytes | str) -> None:
    """Write a whole file, see `open_atomically`; text becomes UTF-8."""
    with open_atomically(path) as handle:
        handle.write(data.encode() if isinstance(data, str) else data)


def write_json(path: str | Path, value: Any) -> None:
    """Write a whole JSON file, see `open_atomically`."""
    write_atomically(path, json.dumps(value, indent=1) + "\n")


def check_writable(path: str | Path) -> None:
    """Raise unless a file can be written there, as far as can be seen without writing.

    To be asked before the work whose result goes there.

    Raises:
        ValueError: it is a folder, or lies in what is no folder or may not be written to.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"cannot write {path}: it is a folder; name a file")
    for parent in path.absolute().parents:
        if parent.exists():
            if not parent.is_dir():
                raise ValueError(f"cannot write {path}: {parent} is a file, not a folder")
            if not os.access(parent, os.W_OK | os.X_OK):
                raise ValueError(f"cannot write {path}: no permission to write in {parent}")
            return


def damaged_member(path: str | Path) -> str | None:
    """The first member of a zip archive that is not what was written; None if all are.

    For archives of torch.save, whose reader does not look at the checksums. Of a file that is no
    such archive nothing is known: None.
    """
    if not zipfile.is_zipfile(path):
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip()
    except (zipfile.BadZipFile, NotImplementedError, EOFError) as error:
        return str(error) or type(error).__name__


def remove_leftovers(path: str | Path) -> None:
    """Delete what killed processes left of writing `path`; nobody may be writing it now."""
    path = Path(path)
    for aside in path.parent.glob(f".{glob.escape(path.name)}.*{_ASIDE}"):
        aside.unlink(missing_ok=True)


def _umask() -> int:
    # The mask can only be read by setting it; mkstemp made the file private
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
