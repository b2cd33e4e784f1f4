"""Files read by compiled code beside the same files read by Python's json."""

from __future__ import annotations

import json
import os
import random
import threading
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detkit.evaluation.backend import native_module, using
from detkit.evaluation.coco_json import read_detections, read_truths
from detkit.evaluation.inputs import CocoTruths
from detkit.evaluation.scan import scan_detections, scan_truths

pytestmark = pytest.mark.skipif(native_module() is None, reason="nothing was compiled")

Record = dict[str, Any]
BLOCK = 1 << 18  # bytes that native/scan.c reads at once
DETECTIONS = [
    {"image_id": 7, "category_id": 3, "bbox": [1.5, 2, 30.25, 4e1], "score": 0.875},
    {"image_id": 12, "category_id": 18, "bbox": [0.1, -3, 1.2345678901234567, 9], "score": 1e-07},
    {"image_id": 7, "category_id": 99, "bbox": [0, 0, 0, 0], "score": -2, "more": {"a": [None]}},
]
TRUTHS = {
    "info": {"year": 2017, "nested": [1, {"text": 'with "quotes" and \\ and é'}], "url": None},
    "images": [
        {"id": 12, "file_name": "b.jpg", "height": 4, "width": 5},
        {"id": 7, "file_name": "ä.jpg", "tags": []},
    ],
    "categories": [{"id": 18, "name": "dög"}, {"id": 3, "name": "cat", "supercategory": "pet"}],
    "licenses": [],
    "version": 1.25,
    "annotations": [
        {
            "segmentation": [[1.5, 2.25, 3, 4, -5e1, 6]],
            "area": 702.5,
            "iscrowd": 0,
            "image_id": 12,
            "bbox": [473.07, 395.93, 38.65, 28.67],
            "category_id": 18,
            "id": 1768,
        },
        {"id": 2, "image_id": 7, "category_id": 3, "bbox": [0, 0, 10, 10.0], "iscrowd": True},
        {
            "id": 9,
            "image_id": 7,
            "category_id": 3,
            "bbox": [5, 5, 3, 3],
            "area": 1,
            "segmentation": {"counts": "a\\`0\n", "size": [1, 2]},
        },
    ],
}


def plain(value: Any) -> Any:
    """Arrays by type, shape and bits, so that == compares everything."""
    if isinstance(value, np.ndarray):
        content = value.tolist() if value.dtype == object else value.tobytes()
        return value.dtype, value.shape, content
    if isinstance(value, CocoTruths):
        rest = (plain(getattr(value, f.name)) for f in fields(value) if f.name != "load_images")
        return [value.image_records(), *rest]
    if is_dataclass(value):
        return [plain(getattr(value, f.name)) for f in fields(value)]
    return value


def outcome(read, *arguments, **options) -> Any:
    try:
        return plain(read(*arguments, **options))
    except ValueError as error:
        return str(error)


def assert_both_read_alike(path: Path, truths: CocoTruths | None = None) -> Any:
    """As ground truth or, where that is given, as detections; in strict mode as well."""
    read, arguments = (read_detections, (path, truths)) if truths else (read_truths, (path,))
    for strict in (True, False):
        with using("numpy"):
            slow = outcome(read, *arguments, strict=strict)
        with using("compiled"):
            assert outcome(read, *arguments, strict=strict) == slow
    return slow


@pytest.fixture(scope="module")
def truths(tmp_path_factory) -> CocoTruths:
    path = tmp_path_factory.mktemp("truths") / "gt.json"
    path.write_text(json.dumps(TRUTHS))
    return read_truths(path)


LAYOUTS = [{}, {"separators": (",", ":")}, {"indent": 2}, {"ensure_ascii": False}]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_ordinary_files_are_taken(layout, tmp_path, truths):
    path = tmp_path / "dt.json"
    path.write_text(json.dumps(DETECTIONS, **layout))
    found = scan_detections(path)
    assert found.image_id.tolist() == [7, 12, 7] and found.category_id.tolist() == [3, 18, 99]
    assert found.bbox.tolist() == [d["bbox"] for d in DETECTIONS]
    assert found.score.tolist() == [0.875, 1e-07, -2]
    assert_both_read_alike(path, truths)

    path = tmp_path / "gt.json"
    path.write_text(json.dumps(TRUTHS, **layout), encoding="utf-8")
    found, _ = scan_truths(path)
    assert found.images.tolist() == [12, 7] and found.ids.tolist() == [1768, 2, 9]
    assert found.categories == TRUTHS["categories"]
    assert found.image_id.tolist() == [12, 7, 7] and found.category_id.tolist() == [18, 3, 3]
    assert found.bbox.tolist() == [a["bbox"] for a in TRUTHS["annotations"]]
    assert found.area.tolist() == [702.5, 100, 1] and found.iscrowd.tolist() == [False, True, False]
    assert_both_read_alike(path)


@pytest.mark.parametrize(
    "text", ["[]", " [ ] \n", '[{"image_id":7,"score":-0,"bbox":[-0,-0.0,0e9,1],"category_id":3}]']
)
def test_other_ordinary_detections_are_taken(text, tmp_path, truths):
    (tmp_path / "dt.json").write_text(text)
    assert scan_detections(tmp_path / "dt.json") is not None
    assert_both_read_alike(tmp_path / "dt.json", truths)


GOOD = json.dumps(DETECTIONS[0])
ODD = {
    "nothing": "",
    "an object": "{}",
    "a word": '"text"',
    "cut off": "[" + GOOD,
    "cut off in a record": "[" + GOOD[:-1],
    "cut off in a string": '[{"more": "te',
    "comma at the end": f"[{GOOD},]",
    "no comma": f"[{GOOD} {GOOD}]",
    "text behind": f"[{GOOD}] x",
    "zero byte behind": f"[{GOOD}]\0",
    "zero byte within": f"[{GOOD},\0{GOOD}]",
    "a mark in front": f"\ufeff[{GOOD}]",
    "null as a record": f"[{GOOD}, null]",
    "no field": f"[{GOOD}, {{}}]",
    "missing field": "[" + GOOD.replace('"score"', '"Score"') + "]",
    "key twice": "[" + GOOD.replace("{", '{"score": 1, ') + "]",
    "escaped key": "[" + GOOD.replace("score", "sc\\u006fre") + "]",
    "escaped key twice": "[" + GOOD.replace("{", '{"sc\\u006fre": 1, ') + "]",
    "string as id": "[" + GOOD.replace("7", '"7"') + "]",
    "fraction as id": "[" + GOOD.replace("7", "7.5", 1) + "]",
    "float as id": "[" + GOOD.replace("7", "7.0", 1) + "]",
    "exponent as id": "[" + GOOD.replace("7", "7e0", 1) + "]",
    "bool as id": "[" + GOOD.replace("7", "true", 1) + "]",
    "id of 64 bits": "[" + GOOD.replace("7", str(2**63), 1) + "]",
    "id of 65 bits": "[" + GOOD.replace("7", str(2**64 + 7), 1) + "]",
    "id of 100 digits": "[" + GOOD.replace("7", "1" * 100, 1) + "]",
    "three numbers": "[" + GOOD.replace("1.5, ", "") + "]",
    "five numbers": "[" + GOOD.replace("1.5, ", "1.5, 2, ") + "]",
    "box of boxes": "[" + GOOD.replace("1.5", "[1.5]") + "]",
    "NaN": "[" + GOOD.replace("0.875", "NaN") + "]",
    "infinite": "[" + GOOD.replace("0.875", "-Infinity") + "]",
    "too large": "[" + GOOD.replace("0.875", "1e999") + "]",
    "400 digits": "[" + GOOD.replace("0.875", "1" * 400) + "]",
    "5000 digits": "[" + GOOD.replace("0.875", "1" * 5000) + "]",
    "5000 digits of nothing": "[" + GOOD.replace("{", '{"more": ' + "1" * 5000 + ", ") + "]",
    "zero in front": "[" + GOOD.replace("0.875", "00.875") + "]",
    "plus": "[" + GOOD.replace("0.875", "+0.875") + "]",
    "no digit before the point": "[" + GOOD.replace("0.875", ".875") + "]",
    "no digit behind the point": "[" + GOOD.replace("0.875", "875.") + "]",
    "no exponent": "[" + GOOD.replace("0.875", "1e") + "]",
    "hexadecimal": "[" + GOOD.replace("0.875", "0x1") + "]",
    "null as score": "[" + GOOD.replace("0.875", "null") + "]",
    "wrong word": "[" + GOOD.replace("{", '{"more": nul, ') + "]",
    "wrong escape": "[" + GOOD.replace("{", '{"more": "\\x", ') + "]",
    "wrong code": "[" + GOOD.replace("{", '{"more": "\\u12g4", ') + "]",
    "tab in a string": "[" + GOOD.replace("{", '{"more": "\t", ') + "]",
    "nested brackets": "[" + GOOD.replace("{", '{"more": [}], ') + "]",
    "100 deep": "[" + GOOD.replace("{", '{"more": ' + "[" * 100 + "]" * 100 + ", ") + "]",
    "100000 deep": "[" * 100_000,
}
ODD_BYTES = {
    "no UTF-8": b"\xff",
    "lone continuation": b"\x80",
    "overlong": b"\xc0\xaf",
    "overlong of three": b"\xe0\x80\xaf",
    "overlong of four": b"\xf0\x80\x80\xaf",
    "surrogate": b"\xed\xa0\x80",
    "beyond Unicode": b"\xf4\x90\x80\x80",
    "cut character": b"\xe2\x82",
}


@pytest.mark.parametrize("case", [*ODD, *ODD_BYTES])
def test_odd_files_are_left_to_python(case, tmp_path, truths):
    content = f"[{GOOD}]".encode().replace(b"{", b'{"m": "' + ODD_BYTES.get(case, b"") + b'",', 1)
    path = tmp_path / "dt.json"
    path.write_bytes(ODD[case].encode() if case in ODD else content)
    assert scan_detections(path) is None
    assert_both_read_alike(path, truths)


@pytest.mark.parametrize("text", ["é", "€", "😀", "\\u00e9\\ud83d\\ude00 \\n\\/", "\x7f"])
def test_any_text_is_passed_over(text, tmp_path, truths):
    path = tmp_path / "dt.json"
    for padding in range(9):  # eight characters are looked at together
        more = f'{{"{"k" * padding}é": "{"v" * padding}{text}", '
        path.write_text(f"[{GOOD.replace('{', more)}]", encoding="utf-8")
        assert scan_detections(path) is not None
        assert_both_read_alike(path, truths)


@pytest.mark.parametrize(
    ("part", "other", "taken"),
    [
        ('"images"', '"image"', False),
        ('"licenses": []', '"images": []', False),
        ('"licenses": []', '"licenses": {"images": []}', True),
        ('"licenses": []', '"videos": [1, "a", {"id": 1, "id": 2}]', True),
        ('"id": 12', '"id": "12"', False),
        ('"iscrowd": 0', '"iscrowd": 2', False),
        ('"iscrowd": 0', '"iscrowd": false', True),
        ('"iscrowd": 0', '"iscrowd": "0"', False),
        ('"area": 702.5', '"area": null', False),
        ('"area": 702.5', '"area": -1', True),  # to be refused by both
        ('"id": 1768', '"id": "a"', False),
        (', "id": 1768', "", True),
        ('"id": 18, ', "", True),
        ('"id": 18', '"id": "18"', True),
        ('"name": "cat"', '"name": 5', True),
        ('"name": "cat"', '"title": 5', True),
        ("28.67", "-28.67", True),
        ('"bbox": [473.07', '"bbox": [NaN', False),
        ('"annotations": [', '"annotations": [{}, ', False),
        ("]}", "], }", False),
        ("]}", "]} {}", False),
    ],
)
def test_unusual_ground_truth(part, other, taken, tmp_path):
    text = json.dumps(TRUTHS)
    assert part in text
    (tmp_path / "gt.json").write_text(other.join(text.rsplit(part, 1)))
    assert (scan_truths(tmp_path / "gt.json") is not None) == taken
    assert_both_read_alike(tmp_path / "gt.json")


def test_strict_reading_needs_all_annotation_ids(tmp_path):
    (tmp_path / "gt.json").write_text(json.dumps(TRUTHS).replace(', "id": 1768', ""))
    with pytest.raises(ValueError, match=r"annotations\[0\]: 'id' is missing"):
        read_truths(tmp_path / "gt.json", strict=True)
    assert len(read_truths(tmp_path / "gt.json").truths) == 3


# ------------------------------------------------------------------------------------- numbers


def random_numbers(count: int) -> list[str]:
    """Decimals of every length, doubles and floats as they are printed, and halves between two."""
    rng = random.Random(0)
    values = np.random.default_rng(0).integers(0, 2**63, count).view(np.float64)
    texts = [repr(value) for value in values[: count // 4].tolist() if abs(value) < 1e300]
    texts += [repr(float(np.float32(rng.uniform(0, 640)))) for _ in range(count // 4)]
    while len(texts) < count:
        whole = str(rng.getrandbits(rng.choice([3, 8, 30, 53, 60, 63, 64, 70, 90])))
        sign, exponent = rng.choice(["", "-"]), rng.choice(["", "", f"e{rng.randint(-40, 40)}"])
        fraction = "".join(rng.choices("0123456789", k=rng.choice([1, 2, 7, 8, 9, 15, 16, 17, 24])))
        texts.append(f"{sign}{whole}{rng.choice(['', '.' + fraction])}{exponent}")
    for _ in range(count // 4):  # 54 bits: halfway between two doubles, and next to that
        half = (rng.getrandbits(53) | 1 << 52) * 2 + 1
        digits = str(half * 5 ** (power := rng.randint(1, 27)) // 2 ** rng.randint(0, 3))
        texts.append(f"{digits[:-power] or 0}.{digits[-power:]}{rng.choice(['', '0', '1'])}")
    return texts[: len(texts) // 5 * 5]


def test_numbers_are_those_of_python(tmp_path, truths):
    texts = random_numbers(40_000)
    records = [
        f'{{"image_id": 7, "category_id": 3, "bbox": [{a}, {b}, {c}, {d}], "score": {e}}}'
        for a, b, c, d, e in zip(*(texts[i::5] for i in range(5)), strict=True)
    ]
    (tmp_path / "dt.json").write_text(f"[{','.join(records)}]")
    found = scan_detections(tmp_path / "dt.json")
    given = np.column_stack([found.bbox, found.score]).ravel()
    expected = np.array([float(json.loads(text)) for text in texts])
    wrong = np.flatnonzero(given.view(np.int64) != expected.view(np.int64))
    assert [texts[i] for i in wrong[:5]] == []


@pytest.mark.parametrize("value", [0, -0, -1, 10**18, 2**53 + 1, 2**63 - 1, -(2**63) + 1])
def test_ids_of_64_bits(value, tmp_path):
    data = {**TRUTHS, "images": [{"id": value}]}
    (tmp_path / "gt.json").write_text(json.dumps(data))
    assert scan_truths(tmp_path / "gt.json")[0].images.tolist() == [value]
    assert_both_read_alike(tmp_path / "gt.json")


# -------------------------------------------------------------------------------------- blocks


def test_every_place_may_be_the_end_of_a_block(tmp_path, truths):
    """A detection that is moved over the end of the first block, byte by byte."""
    path = tmp_path / "dt.json"
    text = f"{GOOD}, {json.dumps(DETECTIONS[2])}"
    for before in range(BLOCK - len(text) - 4, BLOCK + 2):
        path.write_text("[" + " " * (before - 1) + text + "]")
        found = scan_detections(path)
        assert found.bbox.tolist() == [DETECTIONS[0]["bbox"], DETECTIONS[2]["bbox"]], before
        assert found.score.tolist() == [0.875, -2]


def test_a_number_may_go_on_behind_the_end_of_a_block(tmp_path):
    path = tmp_path / "gt.json"
    text = json.dumps({"numbers": [12345], "number": 67890, **TRUTHS})
    for before in range(BLOCK - 50, BLOCK):
        path.write_text(" " * before + text)
        assert scan_truths(path) is not None, before


def test_records_longer_than_a_block(tmp_path, truths):
    long = {**DETECTIONS[0], "mask": "x" * (3 * BLOCK), "points": list(range(BLOCK // 2))}
    path = tmp_path / "dt.json"
    path.write_text(json.dumps([DETECTIONS[1], long, DETECTIONS[2]] * 3))
    assert len(scan_detections(path).score) == 9
    assert_both_read_alike(path, truths)
    path = tmp_path / "gt.json"
    path.write_text(json.dumps({"extra": {"long": "x" * (2 * BLOCK)}, **TRUTHS, "more": long}))
    assert scan_truths(path) is not None
    assert_both_read_alike(path)


def test_many_records(tmp_path):
    """More than the first guess of the number of rows, and of several blocks."""
    images = [{"id": 3 * i, "name": "x" * (i % 200)} for i in range(5000)]
    annotations = [
        {"id": i + 1, "image_id": 3 * (i % 5000), "category_id": 1, "bbox": [i, i / 7, 1, 2]}
        for i in range(20_000)
    ]
    data = {"images": images, "annotations": annotations, "categories": [{"id": 1}]}
    (tmp_path / "gt.json").write_text(json.dumps(data))
    assert scan_truths(tmp_path / "gt.json") is not None
    assert_both_read_alike(tmp_path / "gt.json")


def test_a_pipe_is_read_once(tmp_path, truths):
    found = []
    path = tmp_path / "pipe"
    os.mkfifo(path)
    # daemons, so that a second attempt to read would fail here and not wait for ever
    reader = threading.Thread(
        target=lambda: found.append(read_detections(path, truths)), daemon=True
    )
    threading.Thread(target=path.write_text, args=[f"[{GOOD}]"], daemon=True).start()
    reader.start()
    reader.join(timeout=20)
    assert [len(each) for each in found] == [1]


def test_missing_files_and_folders(tmp_path, truths):
    for read in (read_truths, lambda path: read_detections(path, truths)):
        with pytest.raises(FileNotFoundError, match=r"nowhere\.json"):
            read(tmp_path / "nowhere.json")
        with pytest.raises(IsADirectoryError):
            read(tmp_path)


# ----------------------------------------------------------------------------------- mutations

TOKENS = [
    *'{}[],:"\\-.e0 ',
    "1e999",
    "NaN",
    "true",
    "null",
    '"id"',
    '"1"',
    "[1,2,3,4]",
    "é",
    "\\u0069",
]
EDIT = st.tuples(
    st.sampled_from(["put in", "replace", "cut out", "cut off", "repeat"]),
    st.integers(0, 2000),
    st.integers(1, 30),
    st.sampled_from(TOKENS),
)


def edited(text: str, edits: list[tuple[str, int, int, str]]) -> bytes:
    data = text.encode()
    for edit, place, length, token in edits:
        place %= len(data) + 1
        before, part, after = data[:place], data[place : place + length], data[place + length :]
        data = {
            "put in": before + token.encode() + part + after,
            "replace": before + token.encode() + data[place + len(token.encode()) :],
            "cut out": before + after,
            "cut off": before,
            "repeat": before + part + part + after,
        }[edit]
    return data


@settings(max_examples=300, deadline=None)
@given(st.booleans(), st.sampled_from(LAYOUTS), st.lists(EDIT, min_size=1, max_size=3))
def test_mutated_files_are_read_alike(tmp_path_factory, truths, detections, layout, edits):
    path = tmp_path_factory.getbasetemp() / "mutated.json"
    text = json.dumps(DETECTIONS if detections else TRUTHS, **layout)
    path.write_bytes(edited(text, edits))
    assert_both_read_alike(path, truths if detections else None)


# ---------------------------------------------------------------------------------- real files


def test_real_files_are_read_alike(shared_data):
    taken = 0
    for path in sorted(shared_data.rglob("*.json")):
        assert_both_read_alike(path)
        truths_of = path.parent / "instances_val2014_100.json"
        if truths_of.is_file():
            assert_both_read_alike(path, read_truths(truths_of))
        taken += scan_truths(path) is not None or scan_detections(path) is not None
    assert taken >= 7
