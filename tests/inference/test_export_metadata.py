"""What an exported file says of itself: written, read again, and refused where it is damaged."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from detkit.config import Recipe
from detkit.inference.export.metadata import (
    Metadata,
    archive_metadata,
    format_of,
    parse_metadata,
)


def test_what_is_written_is_read(toy_metadata: Metadata) -> None:
    again = parse_metadata(json.dumps(toy_metadata.as_dict()), "model.onnx")
    assert again == toy_metadata


def test_what_other_programs_need_stands_beside_the_recipe(toy_metadata: Metadata) -> None:
    content = toy_metadata.as_dict()
    assert content["version"] == 1
    assert content["detector"] == "region_proposal"
    assert content["class_names"] == ["blue", "green", "red"]
    assert content["category_ids"] == [7, 90, 300]
    assert content["divisor"] == 32
    assert content["resize"] == {"shortest": None, "longest": 64}
    assert (content["max_detections"], content["score_threshold"]) == (100, 0.05)
    assert (content["inputs"], content["precision"]) == (["images", "sizes"], "fp32")


def test_pictures_are_resized_as_for_the_largest_look(tiny_recipe: Any) -> None:
    recipe: Recipe = tiny_recipe("test.scales=[1.0,1.5]")
    assert Metadata(recipe, ("a",), (1,)).as_dict()["resize"] == {"shortest": None, "longest": 96}


@pytest.mark.parametrize("proposals", ["selective_search", "file"])
def test_regions_from_outside_are_an_input(tiny_recipe: Any, proposals: str) -> None:
    recipe = tiny_recipe("model.rpn=null", f"model.proposals={proposals}")
    assert Metadata(recipe, ("a",), (1,)).inputs == ("images", "sizes", "proposals")


def changed(metadata: Metadata, **changes: Any) -> str:
    content = metadata.as_dict() | changes
    return json.dumps({key: value for key, value in content.items() if value != "gone"})


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"version": 2}, "metadata version 2, this detkit reads 1"),
        ({"version": "gone"}, "names no version"),
        ({"class_names": "gone"}, "lacks class_names"),
        ({"class_names": ["a"]}, "damaged"),
        ({"category_ids": 3}, "damaged"),
        ({"recipe": []}, "damaged"),
        ({"precision": "fp8"}, "precision 'fp8'"),
        ({"inputs": ["pixels"]}, "inputs"),
        ({"recipe": {"name": "x", "modle": {}}}, "modle"),
    ],
)
def test_damage_is_said_in_one_line(
    toy_metadata: Metadata, changes: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ValueError, match=r"model\.onnx") as caught:
        parse_metadata(changed(toy_metadata, **changes), "model.onnx")
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [(None, "was not exported by detkit"), ("{", "no JSON"), ("[]", "version")],
)
def test_text_that_is_no_metadata(text: str | None, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        parse_metadata(text, "model.onnx")


def test_overrides_change_the_recipe(toy_metadata: Metadata) -> None:
    assert toy_metadata.with_overrides(["test.batch_size=3"]).test.batch_size == 3
    with pytest.raises(ValueError, match="did you mean"):
        toy_metadata.with_overrides(["test.batchsize=3"])


@pytest.mark.parametrize(
    ("name", "format_name"),
    [
        ("a/best.onnx", "onnx"),
        ("best.ONNX", "onnx"),
        ("best.torchscript", "torchscript"),
        ("best.pt2", "torch_export"),
        ("best.pt", None),
        ("fasterrcnn_resnet50_fpn", None),
    ],
)
def test_the_suffix_says_the_format(name: str, format_name: str | None) -> None:
    assert format_of(name) == format_name


@pytest.mark.parametrize("member", ["best/extra/detkit", "extra_files/detkit"])
def test_archives_are_read_without_loading_them(tmp_path: Path, member: str) -> None:
    path = tmp_path / "best.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, "text")
        archive.writestr("data.pkl", b"not a pickle")
    assert archive_metadata(path) == "text"


def test_archives_of_others_have_none(tmp_path: Path) -> None:
    path = tmp_path / "best.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data.pkl", b"not a pickle")
    assert archive_metadata(path) is None


def test_damaged_archives_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "best.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("extra/detkit", "text")
        archive.writestr("weights", bytes(1000))
    data = bytearray(path.read_bytes())
    data[data.index(bytes(500)) + 100] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="damaged"):
        archive_metadata(path)
    path.write_bytes(data[:300])
    with pytest.raises(ValueError, match="damaged"):
        archive_metadata(path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="damaged"):
        archive_metadata(path)
