"""What other programs read: a list with names, COCO results, LabelMe files."""

from __future__ import annotations

import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from detkit.inference.records import CocoSink, JsonSink, LabelmeSink
from detkit.inference.sinks import Sink
from detkit.inference.sources import ImageFiles
from detkit.inference.stream import Result
from detkit.inference.video import Frame
from detkit.structures import Detections

NAMES, IDS = ("cat", "Füße"), (2, 9)


def frame_of(index: int) -> Frame:
    """A frame of a video."""
    return Frame(np.zeros((48, 64, 3), np.uint8), "clip.mp4", index)


def feed(sink: Sink, results: list[Result], error: BaseException | None = None) -> None:
    """Write results into a sink and leave its block, by an error if there is one."""
    with sink:
        for result in results:
            sink.write(result, result.frame.image)
        if error is not None:
            raise error


def detections() -> Detections:
    return Detections(
        torch.tensor([[1.0, 2.0, 11.0, 22.5], [0.0, 0.0, 3.0, 4.0]]),
        torch.tensor([0.75, 0.5]),
        torch.tensor([1, 0]),
        NAMES,
    )


def test_json_has_a_record_for_each_detection(tmp_path: Path) -> None:
    path = tmp_path / "out" / "found.json"
    picture = Frame(np.zeros((30, 30, 3), np.uint8), "a.png", 4, tmp_path / "a.png")
    with JsonSink(path, class_names=NAMES, category_ids=IDS) as sink:
        sink.write(Result(picture, detections()), picture.image)
        sink.write(Result(frame_of(7), detections()[[1]]), picture.image)
        sink.write(Result(frame_of(8), Detections.empty()), picture.image)
        assert not path.exists()
    first = {"category_id": 9, "category": "Füße", "bbox": [1, 2, 10, 20.5], "score": 0.75}
    second = {"category_id": 2, "category": "cat", "bbox": [0, 0, 3, 4], "score": 0.5}
    assert json.loads(path.read_text(encoding="utf-8")) == [
        {"file_name": "a.png", **first},
        {"file_name": "a.png", **second},
        {"file_name": "clip.mp4", "frame": 7, **second},
    ]


def test_json_without_detections_is_an_empty_list(tmp_path: Path) -> None:
    feed(JsonSink(tmp_path / "a.json", class_names=NAMES, category_ids=IDS), [])
    assert json.loads((tmp_path / "a.json").read_text()) == []


def test_json_after_an_interrupt_and_after_a_failure(tmp_path: Path) -> None:
    for error, expected in ((KeyboardInterrupt(), True), (ValueError("boxes"), False)):
        path = tmp_path / f"{expected}.json"
        sink = JsonSink(path, class_names=NAMES, category_ids=IDS)
        with pytest.raises(type(error)):
            feed(sink, [Result(frame_of(0), detections())], error)
        assert path.exists() == expected


def test_records_of_a_video_have_ids_and_only_what_was_looked_at(tmp_path: Path) -> None:
    path, ids = tmp_path / "a.json", torch.tensor([4, 1])
    results = [
        Result(frame_of(index), detections(), ids, fresh=index % 2 == 0) for index in range(4)
    ]
    feed(JsonSink(path, class_names=NAMES, category_ids=IDS), results)
    records = json.loads(path.read_text())
    assert [(record["frame"], record["track_id"]) for record in records] == [
        (0, 4), (0, 1), (2, 4), (2, 1),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("names", "ids"),
    [
        (["000000000139.jpg", "000000000285.jpg"], [139, 285]),  # as COCO's own are called
        (["cat.jpg", "0007.jpg"], [0, 1]),
        (["7.jpg", "0007.jpg"], [0, 1]),  # one number for two
    ],
)
def test_coco_results_of_pictures(tmp_path: Path, names: list[str], ids: list[int]) -> None:
    path, source = tmp_path / "a.json", ImageFiles([tmp_path / name for name in names])
    image = np.zeros((30, 30, 3), np.uint8)
    results = [
        Result(Frame(image, name, index, tmp_path / name), detections()[[0]])
        for index, name in enumerate(names)
    ]
    feed(CocoSink(path, source=source, class_names=NAMES, category_ids=IDS), results)
    assert json.loads(path.read_text(encoding="utf-8")) == [
        {
            "image_id": image_id,
            "file_name": name,
            "category_id": 9,
            "category": "Füße",
            "bbox": [1, 2, 10, 20.5],
            "score": 0.75,
        }
        for image_id, name in zip(ids, names, strict=True)
    ]


def test_coco_results_are_read_by_pycocotools(tmp_path: Path) -> None:
    coco = pytest.importorskip("pycocotools.coco")
    path, source = tmp_path / "a.json", ImageFiles([tmp_path / "3.jpg"])
    frame = Frame(np.zeros((30, 30, 3), np.uint8), "3.jpg", 0, tmp_path / "3.jpg")
    sink = CocoSink(path, source=source, class_names=NAMES, category_ids=IDS)
    feed(sink, [Result(frame, detections(), torch.tensor([1, 2]))])
    truths = coco.COCO()
    truths.dataset = {
        "images": [{"id": 3}],
        "annotations": [],
        "categories": [{"id": i} for i in IDS],
    }
    truths.createIndex()
    loaded = truths.loadRes(str(path)).loadAnns([1, 2])
    assert [(each["image_id"], each["bbox"]) for each in loaded] == [
        (3, [1, 2, 10, 20.5]), (3, [0, 0, 3, 4]),
    ]  # fmt: skip


def test_labelme_file_of_a_picture_points_at_it(tmp_path: Path) -> None:
    pictures = [tmp_path / "in" / name for name in ("a.png", "b.png", "b.jpg")]
    sink = LabelmeSink(tmp_path / "out", source=ImageFiles(pictures))
    image = np.zeros((30, 40, 3), np.uint8)
    feed(sink, [Result(Frame(image, p.name, i, p), detections()) for i, p in enumerate(pictures)])
    assert sorted(os.listdir(tmp_path / "out")) == ["a.json", "b.jpg.json", "b.png.json"]
    document = json.loads((tmp_path / "out" / "a.json").read_text(encoding="utf-8"))
    assert (document["imageHeight"], document["imageWidth"]) == (30, 40)
    assert document["imagePath"] == "../in/a.png" and document["imageData"] is None
    first = document["shapes"][0]
    assert (first["label"], first["shape_type"]) == ("Füße", "rectangle")
    assert first["points"] == [[1, 2], [11, 22.5]] and len(document["shapes"]) == 2


def test_labelme_files_of_a_video_come_with_their_frames(tmp_path: Path) -> None:
    sink = LabelmeSink(tmp_path, source=ImageFiles([]))
    feed(sink, [Result(frame_of(7), detections(), torch.tensor([5, 6]))])
    assert sorted(os.listdir(tmp_path)) == ["clip_000007.jpg", "clip_000007.json"]
    document = json.loads((tmp_path / "clip_000007.json").read_text())
    assert document["imagePath"] == "clip_000007.jpg"
    assert [shape["group_id"] for shape in document["shapes"]] == [5, 6]
    assert cv2.imread(str(tmp_path / "clip_000007.jpg")).shape == (48, 64, 3)


def test_labelme_file_that_a_person_may_have_corrected_stays(tmp_path: Path) -> None:
    (tmp_path / "clip_000007.json").write_text("by hand")
    sink = LabelmeSink(tmp_path, source=ImageFiles([]))
    with pytest.raises(ValueError, match=r"clip_000007\.json is there and may hold"):
        feed(sink, [Result(frame_of(7), detections())])
    assert (tmp_path / "clip_000007.json").read_text() == "by hand"
    assert os.listdir(tmp_path) == ["clip_000007.json"]
