"""Where the public data sets are, and what becomes of each."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from detkit.data.download.penn_fudan import write_penn_fudan
from detkit.data.download.progress import Progress, no_progress
from detkit.data.download.transfer import fetch
from detkit.data.download.unpack import ArchiveError, unpack
from detkit.files import write_atomically
from detkit.registry import suggest

try:
    import fcntl
except ImportError:  # not on Windows: nobody warns of a second download there
    fcntl = None  # type: ignore[assignment]

Source = dict[str, str]  # a section of a recipe, such as data.train


@dataclass(frozen=True, slots=True)
class Archive:
    """A file to download.

    Args:
        url: where its publisher has it.
        size: bytes.
        checksum: "md5:..." or "sha256:..."; None: none is known.
        max_bytes: more than its files can have.
        splits: of the data set that need it.
    """

    url: str
    size: int
    checksum: str | None
    max_bytes: int
    splits: tuple[str, ...]

    @property
    def name(self) -> str:
        """Of the file."""
        return self.url.rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class DataSet:
    """Archives, and what reads them.

    Args:
        archives: small ones first, so that mistakes show early.
        source: root and split to the section of a recipe.
        made: files that `make` writes, relative to the root.
        make: called with the root after unpacking.
    """

    archives: tuple[Archive, ...]
    source: Callable[[Path, str], Source]
    made: tuple[str, ...] = ()
    make: Callable[[Path], None] | None = None

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits, each once."""
        return tuple(dict.fromkeys(split for each in self.archives for split in each.splits))


@dataclass(frozen=True, slots=True)
class Downloaded:
    """A data set on the disk.

    Args:
        root: its folder.
        changed: whether anything had to be done.
        sources: what a recipe says under `data`, by split.
    """

    root: Path
    changed: bool
    sources: dict[str, Source]


def _coco(root: Path, split: str) -> Source:
    annotations = root / "annotations" / f"instances_{split}2017.json"
    return {"annotations": str(annotations), "images": str(root / f"{split}2017")}


def _penn_fudan(root: Path, split: str) -> Source:
    folder = root / "PennFudanPed"
    return {"annotations": str(folder / f"{split}.json"), "images": str(folder / "PNGImages")}


def _voc(year: int) -> Callable[[Path, str], Source]:
    def source(root: Path, split: str) -> Source:
        return {"format": "voc", "root": str(root / "VOCdevkit" / f"VOC{year}"), "split": split}

    return source


_VOC = "https://thor.robots.ox.ac.uk/pascal/VOC"
_COCO = "http://images.cocodataset.org"  # its certificate is of another host; the checksums hold

# MD5 of VOC: torchvision, datasets/voc.py. Sizes, SHA-256 of COCO: TensorFlow Datasets,
# url_checksums/{voc,coco}.txt. For Penn-Fudan nobody publishes a checksum: the size and the
# CRC-32 of every member in the zip are what there is.
DATA_SETS: dict[str, DataSet] = {
    "penn_fudan": DataSet(
        (
            Archive(
                "https://www.cis.upenn.edu/~jshi/ped_html/PennFudanPed.zip",
                53_723_336,
                None,
                500_000_000,
                ("train", "val"),
            ),
        ),
        _penn_fudan,
        made=("PennFudanPed/train.json", "PennFudanPed/val.json"),
        make=lambda root: write_penn_fudan(root / "PennFudanPed"),
    ),
    "voc2007": DataSet(
        (
            Archive(
                f"{_VOC}/voc2007/VOCtrainval_06-Nov-2007.tar",
                460_032_000,
                "md5:c52e279531787c972589f7e41ab4ae64",
                1_000_000_000,
                ("train", "val"),
            ),
            Archive(
                f"{_VOC}/voc2007/VOCtest_06-Nov-2007.tar",
                451_020_800,
                "md5:b6e924de25625d8de591ea690078ad9f",
                1_000_000_000,
                ("test",),
            ),
        ),
        _voc(2007),
    ),
    "voc2012": DataSet(
        (
            Archive(
                f"{_VOC}/voc2012/VOCtrainval_11-May-2012.tar",
                1_999_639_040,
                "md5:6cd6e144f989b92b3379bac3b3de84fd",
                4_000_000_000,
                ("train", "val"),
            ),
        ),
        _voc(2012),
    ),
    "coco2017": DataSet(
        (
            Archive(
                f"{_COCO}/annotations/annotations_trainval2017.zip",
                252_907_541,
                "sha256:113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268",
                2_000_000_000,
                ("train", "val"),
            ),
            Archive(
                f"{_COCO}/zips/val2017.zip",
                815_585_330,
                "sha256:4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05",
                2_000_000_000,
                ("val",),
            ),
            Archive(
                f"{_COCO}/zips/train2017.zip",
                19_336_861_798,
                "sha256:69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929",
                40_000_000_000,
                ("train",),
            ),
        ),
        _coco,
    ),
}


def download(
    name: str,
    out: str | Path = "data",
    *,
    splits: Sequence[str] | None = None,
    base: str | None = None,
    progress: Progress = no_progress,
    pause: float = 1.0,
    data_sets: Mapping[str, DataSet] = DATA_SETS,
) -> Downloaded:
    """Download a data set into the folder `out/NAME`; does nothing where all is there.

    Archives are removed when they are unpacked. Which files each held stands in
    `out/NAME/.unpacked/`; one that has been lost since makes its archive come again.

    Args:
        name: of the data set.
        out: the folder of all data sets.
        splits: those to have; default: all.
        base: URL of a folder that has the archives, instead of the publishers'.
        progress: shows the bytes.
        pause: seconds before the second try of a transfer that was cut.
        data_sets: by name.

    Raises:
        ValueError: unknown names; ArchiveError: an archive is damaged or hostile; it is removed.
        OSError: it cannot be downloaded (see `fetch`) or written, or the disk has no room.
    """
    if name not in data_sets:
        raise ValueError(f"no data set {name!r}; {suggest(name, data_sets)}")
    data_set = data_sets[name]
    chosen = data_set.splits if splits is None else tuple(dict.fromkeys(splits))
    for split in chosen:
        if split not in data_set.splits:
            raise ValueError(f"{name} has no split {split!r}; {suggest(split, data_set.splits)}")
    root = Path(out) / name
    sources = {split: {"format": "coco", **data_set.source(root, split)} for split in chosen}
    missing = [
        archive
        for archive in data_set.archives
        if set(archive.splits) & set(chosen) and not _is_unpacked(root, archive)
    ]
    unmade = not all((root / file).is_file() for file in data_set.made)
    if missing or unmade:
        with _alone(root):
            for archive in missing:
                _obtain(archive, root, base, progress, pause)
            if unmade and data_set.make is not None:  # else it may have been edited since
                data_set.make(root)
    return Downloaded(root, bool(missing or unmade), sources)


def _obtain(
    archive: Archive, root: Path, base: str | None, progress: Progress, pause: float
) -> None:
    """Download, unpack, and note what was in it."""
    file = root / archive.name
    fetch(
        archive.url if base is None else f"{base.rstrip('/')}/{archive.name}",
        file,
        size=archive.size,
        checksum=archive.checksum,
        reserve=archive.size,  # pictures are packed no smaller than they are
        progress=progress,
        pause=pause,
    )
    try:
        names = unpack(file, root, max_bytes=archive.max_bytes, progress=progress)
    except ArchiveError as error:
        file.unlink()
        raise ArchiveError(f"{error}; the file was removed") from None
    write_atomically(_note(root, archive), "".join(f"{name}\n" for name in names))
    file.unlink()


def _note(root: Path, archive: Archive) -> Path:
    return root / ".unpacked" / f"{archive.name}.txt"


def _is_unpacked(root: Path, archive: Archive) -> bool:
    """Whether all files of an archive are there."""
    note = _note(root, archive)
    if not note.is_file():
        return False
    return all((root / name).is_file() for name in note.read_text("utf-8").splitlines())


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Keep others from the folder meanwhile: two writers of one part would spoil it.

    Raises:
        ValueError: another process is at it.
    """
    root.mkdir(parents=True, exist_ok=True)
    lock = os.open(root / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if fcntl is not None:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(
                    f"another process is downloading into {root}; wait until it is done"
                ) from None
        yield
    finally:
        os.close(lock)
