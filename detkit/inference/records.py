"""Detections as files for other programs: a list with names, COCO results, LabelMe.

A sink of `detkit.inference.sinks` each. Frames of a video that the detector did not look at are
left out: what was found in the frame before says nothing measured about them.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from detkit.files import write_atomically, write_json
from detkit.inference.interchange import to_coco, to_labelme
from detkit.inference.sinks import Sink, encode
from detkit.inference.sources import ImageFiles, Source
from detkit.inference.stream import Result
from detkit.inference.video import Frame


class JsonSink(Sink):
    """All detections as one JSON list, a record each, like COCO results with names.

    A record has "file_name", for videos and cameras "frame" (from 0), "category_id", "category",
    "bbox" (x, y, width, height in pixels), "score", and with a tracker "track_id".

    Args:
        path: of the file.
        class_names: of labels `0..C-1`.
        category_ids: of labels `0..C-1`.
    """

    def __init__(
        self, path: Path, *, class_names: Sequence[str], category_ids: Sequence[int]
    ) -> None:
        super().__init__(path)
        self.class_names, self.category_ids = class_names, category_ids
        self._records: list[dict[str, Any]] = []

    def origin(self, frame: Frame) -> dict[str, Any]:
        """What the records of a frame begin with."""
        if frame.path is not None:
            return {"file_name": frame.name}
        return {"file_name": frame.name, "frame": frame.index}

    def write(self, result: Result, picture: np.ndarray) -> None:
        """Keep the detections of a frame."""
        if not result.fresh:
            return
        origin, found = self.origin(result.frame), result.detections
        records = [
            {**origin, **_without_image(record), "category": self.class_names[label]}
            for record, label in zip(
                to_coco(found, 0, self.category_ids), found.labels.tolist(), strict=True
            )
        ]
        if result.ids is not None:
            for record, track in zip(records, result.ids.tolist(), strict=True):
                record["track_id"] = track
        self._records += records

    def complete(self) -> None:
        """Write the list."""
        lines = ",\n".join(json.dumps(record, ensure_ascii=False) for record in self._records)
        write_atomically(self.path, f"[\n{lines}\n]\n")


class CocoSink(JsonSink):
    """All detections as COCO results, which tools/evaluate.py and other programs read.

    "image_id" is the number that is the name of the picture, as in COCO's own data; where not all
    pictures have such a name, and in videos, it is the place in the source, from 0. Names and
    "track_id" stand beside what the format asks for.

    Args:
        path: of the file.
        source: of the frames.
        class_names: of labels `0..C-1`.
        category_ids: of labels `0..C-1`.
    """

    def __init__(
        self, path: Path, *, source: Source, class_names: Sequence[str], category_ids: Sequence[int]
    ) -> None:
        super().__init__(path, class_names=class_names, category_ids=category_ids)
        self._numbers: list[int] | None = None
        if isinstance(source, ImageFiles):
            stems = [PurePosixPath(name).stem for name in source.names]
            if all(stem.isascii() and stem.isdigit() for stem in stems):
                numbers = [int(stem) for stem in stems]
                self._numbers = numbers if len(set(numbers)) == len(numbers) else None

    def origin(self, frame: Frame) -> dict[str, Any]:
        """What the records of a frame begin with."""
        image_id = frame.index if self._numbers is None else self._numbers[frame.index]
        return {"image_id": image_id, "file_name": frame.name}


class LabelmeSink(Sink):
    """A LabelMe file for every picture, to be corrected there by a person.

    Frames of videos and cameras are written beside their files as pictures. A file that is there
    already is never replaced: it may hold what a person drew.

    Args:
        path: the folder.
        source: of the frames.
    """

    def __init__(self, path: Path, *, source: Source) -> None:
        super().__init__(path)
        names = source.names if isinstance(source, ImageFiles) else []
        self._stems = Counter(str(PurePosixPath(name).with_suffix("")) for name in names)

    def write(self, result: Result, picture: np.ndarray) -> None:
        """Write the file of a picture.

        Raises:
            ValueError: it is there.
        """
        if not result.fresh:
            return
        frame = result.frame
        path = self.path / self._name(frame)
        if path.exists():
            raise ValueError(
                f"{path} is there and may hold what a person drew; name another folder, or move it"
            )
        if frame.path is None:
            image = path.with_suffix(".jpg")
            write_atomically(image, encode(frame.image, image.suffix))
        else:
            image = frame.path
        name = Path(os.path.relpath(image, self.path)).as_posix()
        height, width = frame.image.shape[:2]
        document = to_labelme(result.detections, name, (height, width))
        if result.ids is not None:
            for shape, number in zip(document["shapes"], result.ids.tolist(), strict=True):
                shape["group_id"] = number
        write_json(path, document)

    def _name(self, frame: Frame) -> str:
        if frame.path is None:
            return f"{PurePosixPath(frame.name).stem}_{frame.index:06d}.json"
        stem = str(PurePosixPath(frame.name).with_suffix(""))
        return f"{frame.name if self._stems[stem] > 1 else stem}.json"  # a.jpg and a.png


def _without_image(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key != "image_id"}
