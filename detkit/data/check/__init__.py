"""Check a data set of any format before it costs days of training.

Everything is asked of one neutral form, `Records`. COCO JSON is read leniently, record by record;
the other formats by their own readers, and where those refuse leniently too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from detkit.data.annotations import AnnotationError
from detkit.data.auto import PARSERS, Recognised, recognise, splits_of
from detkit.data.auto import describe as describe_format
from detkit.data.check.boxes import check_boxes, resized_sides, sizes_of_boxes
from detkit.data.check.findings import CHECKS, Check, DataReport, Finding
from detkit.data.check.labels import check_balance, check_ids, describe
from detkit.data.check.loose import loose_voc, loose_yolo
from detkit.data.check.pictures import (
    Picture,
    check_leaks,
    check_pictures,
    find_pictures,
    read_pictures,
    true_sizes,
)
from detkit.data.check.records import Records, load_coco, make_records, records_of
from detkit.data.check.repair import Repair
from detkit.data.images import ImageReadError
from detkit.data.pictures import guess_folder
from detkit.data.voc import ALL
from detkit.registry import suggest

__all__ = [
    "CHECKS",
    "Check",
    "CheckedData",
    "DataReport",
    "Finding",
    "check_data",
    "check_not_original",
]

Progress = Callable[[Iterable[Picture], int, str], Iterable[Picture]]


@dataclass(frozen=True)
class CheckedData:
    """A data set with what was found in it.

    Attributes:
        report: what was found.
        records: what its files say; None where they could not be read.
        pictures: N, as they were read.
    """

    report: DataReport
    records: Records | None
    pictures: list[Picture]

    def repair(self) -> dict[str, Any]:
        """The content of a repaired copy in COCO JSON; the changes stand in the report.

        Raises:
            ValueError: the annotations could not be read.
        """
        if self.records is None:
            raise ValueError(f"{self.report.source} cannot be read, and so not be repaired")
        repair = Repair(self.records, self.pictures, self.report)
        content = repair.run()
        self.report.changes = repair.changes
        return content

    def resized_boxes(self, resize: tuple[int | None, int | None]) -> tuple[np.ndarray, np.ndarray]:
        """Sound boxes without crowds: their indices `[K]`, and (height, width) `[K, 2]` resized."""
        if self.records is None:
            return np.zeros(0, np.int64), np.zeros((0, 2))
        sizes = sizes_of_boxes(self.records, true_sizes(self.records, self.pictures))
        boxes = self.records.boxes
        sound = (sizes > 0).all(axis=1) & (boxes[:, 2:] > 0).all(axis=1) & ~self.records.crowd
        return np.flatnonzero(sound), resized_sides(boxes[sound], sizes[sound], resize)


def check_data(
    source: str | Path,
    *,
    images: str | Path | None = None,
    against: Sequence[str | Path] = (),
    format: str | None = None,
    resize: tuple[int | None, int | None] = (None, None),
    workers: int = 1,
    progress: Progress = lambda pictures, total, label: pictures,
) -> CheckedData:
    """Ask every check of `CHECKS` of a data set; each picture is read once.

    Args:
        source: annotations in any format, see `recognise`; "PATH@SPLIT" names a split.
        images: the folder of the pictures, where the annotations do not say.
        against: other splits, whose pictures must be others.
        format: of all sources ("coco", "voc", "yolo", "csv"); default: what they look like.
        resize: limits of the shortest and of the longest side in training, see `resized_shape`.
        workers: pictures that are read at a time.
        progress: wraps the pictures while they are read: (pictures, how many, of what).

    Raises:
        ValueError: no such path, or nothing known is there.
    """
    report = DataReport(str(source))
    records = _read(source, images, format, report)
    others = {str(other): _find_other(other, images, format, report) for other in against}
    if records is None:
        return CheckedData(report, None, [])

    def read(paths: Sequence[Path | None], label: str) -> list[Picture]:
        return list(progress(read_pictures(paths, workers=workers), len(paths), label))

    pictures = read(_paths(records), "read pictures")
    report.add(check_ids(records))
    report.add(check_pictures(records, pictures))
    for name, paths in others.items():
        found = read(paths, f"read pictures of {name}")
        report.add([check_leaks(records, pictures, name, found)])
    sizes = true_sizes(records, pictures)
    report.add(check_boxes(records, sizes, resize=resize))
    report.add(check_balance(records))
    report.numbers |= describe(records, sizes)
    return CheckedData(report, records, pictures)


def check_not_original(path: str | Path, sources: Sequence[str | Path]) -> None:
    """Raise if writing a file would replace what is checked.

    Raises:
        ValueError: the path is that of a source.
    """
    for source in sources:
        original = Path(_split_of(str(source))[0])
        if Path(path).exists() and original.exists() and Path(path).samefile(original):
            raise ValueError(f"{path} is what is checked, and stays as it is; name another file")


def _read(
    source: str | Path, images: str | Path | None, name: str | None, report: DataReport
) -> Records | None:
    """Records of a source; None, and a finding, where they cannot be read."""
    found = _recognise(source, images, name)
    settings = found.settings
    try:
        if found.format != "coco":
            return records_of(found.parse(), str(source))
        return _read_coco(str(source), Path(settings["annotations"]), settings["images"])
    except (AnnotationError, ImageReadError) as error:
        report.add([Finding.of_texts("annotations_refused", [f"{source}: {error}"])])
    try:
        if found.format == "voc":
            return loose_voc(str(source), Path(settings["root"]), settings["split"])
        if found.format == "yolo":
            return loose_yolo(str(source), Path(settings["data"]), settings["split"])
    except AnnotationError:
        pass  # said above
    return None


def _read_coco(source: str, file: Path, images: str | Path | None) -> Records:
    content, dropped = load_coco(file)
    names = [image["file_name"] for image in content["images"]]
    folder = guess_folder(file, names) if images is None else Path(images)
    return make_records(source, folder, content, dropped)


def _paths(records: Records) -> list[Path | None]:
    return find_pictures([image["file_name"] for image in records.images], records.folder)


def _find_other(
    source: str | Path, images: str | Path | None, name: str | None, report: DataReport
) -> list[Path | None]:
    """The pictures of another split: in its own usual place, or where those of the first are.

    Raises:
        ValueError: none of them can be found, so that nothing could be compared.
    """
    for folder in dict.fromkeys((None, images)):
        records = _read(source, folder, name, report)
        if records is None:
            return []
        paths = _paths(records)
        if not paths or any(paths):
            return paths
    raise ValueError(f"no picture of {source} can be found; name their folder with --images")


def _recognise(source: str | Path, images: str | Path | None, name: str | None) -> Recognised:
    """The format of a source; of Pascal VOC without a split every annotation."""
    path, split = _split_of(str(source))
    if not Path(path).exists():
        raise ValueError(f"{path} does not exist; give annotations, or a folder that has some")
    if images is not None and not Path(images).is_dir():
        raise ValueError(f"{images} is no folder; give that of the pictures")
    if name is not None and name not in PARSERS:
        raise ValueError(f"unknown format {name!r}; {suggest(name, PARSERS)}")

    def find(split: str | None) -> Recognised:
        if name is None:
            return recognise(path, split=split, images=images)
        return describe_format(name, Path(path), split=split, images=images)

    found = find(split)
    splits = splits_of(found) if split is None else []
    if found.format == "yolo" and len(splits) > 1:
        named = f"{path}@{splits[0]}"
        raise ValueError(f"{path} has the splits {', '.join(splits)}; name one, as in {named}")
    if splits:
        return find(ALL if found.format == "voc" else splits[0])
    return found


def _split_of(source: str) -> tuple[str, str | None]:
    """A path and the split behind its last @."""
    path, mark, split = source.rpartition("@")
    if not mark or Path(source).exists():
        return source, None
    return path, split
