"""The tables: of one network, and of all backbones against what is published about them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from detkit.analysis import (
    Setting,
    describe,
    describe_speed,
    find_subject,
    parse_size,
    published_size,
)
from detkit.analysis.report import align
from detkit.backbones import list_backbones
from detkit.config import recipe_to_yaml

ROOT = Path(__file__).resolve().parent.parent.parent

# Parameters, and multiply-adds of convolutions and linear layers at the side of the published
# images, of torchvision's, timm's and the authors' networks
PUBLISHED = {
    "lenet5": (32, 61_706, 416_520),
    "lenet5_original": (32, 60_000, 325_680),
    "alexnet": (224, 61_100_840, 714_188_480),
    "alexnet_original": (227, 60_965_224, 724_406_816),
    "overfeat_fast": (231, 145_920_872, 2_801_403_904),
    "overfeat_accurate": (221, 144_656_488, 5_355_446_784),
    "vgg11": (224, 132_863_336, 7_609_090_048),
    "vgg11_bn": (224, 132_868_840, 7_609_090_048),
    "vgg13": (224, 133_047_848, 11_308_466_176),
    "vgg13_bn": (224, 133_053_736, 11_308_466_176),
    "vgg16": (224, 138_357_544, 15_470_264_320),
    "vgg16_bn": (224, 138_365_992, 15_470_264_320),
    "vgg19": (224, 143_667_240, 19_632_062_464),
    "vgg19_bn": (224, 143_678_248, 19_632_062_464),
    "googlenet": (224, 6_624_904, 1_498_376_192),
    "googlenet_original": (224, 6_998_552, 1_582_671_872),
    "resnet18": (224, 11_689_512, 1_814_073_344),
    "resnet34": (224, 21_797_672, 3_663_761_408),
    "resnet50": (224, 25_557_032, 4_089_184_256),
    "resnet50_v1": (224, 25_557_032, 3_857_973_248),
    "resnet101": (224, 44_549_160, 7_801_405_440),
    "resnet101_v1": (224, 44_549_160, 7_570_194_432),
    "resnet152": (224, 60_192_808, 11_513_626_624),
    "resnet152_v1": (224, 60_192_808, 11_282_415_616),
    "resnext50_32x4d": (224, 25_028_904, 4_230_479_872),
    "resnext101_32x8d": (224, 88_791_336, 16_414_015_488),
    "wide_resnet50_2": (224, 68_883_240, 11_398_021_120),
    "wide_resnet101_2": (224, 126_886_696, 22_753_050_624),
    "resnet50d": (224, 25_576_264, 4_328_824_832),
}
# The same where multiply-adds are published in 10^9, rounded
ROUNDED = {
    "resnet18d": (11_708_744, 2.054),
    "resnet26d": (16_014_408, 2.582),
    "resnet34d": (21_816_904, 3.903),
    "resnet101d": (44_568_392, 8.041),
    "resnet152d": (60_212_040, 11.753),
    "scnet50": (25_564_584, 3.925),
    "residual_attention56": (31_810_728, 6.271),
    "residual_attention92": (52_466_344, 10.534),
}
# Stride: receptive field of each stage, from the image on
FIELDS = {
    "resnet18": {2: 7, 4: 43, 8: 99, 16: 211, 32: 435},
    "resnet34": {2: 7, 4: 59, 8: 179, 16: 547, 32: 899},
    "resnet50": {2: 7, 4: 35, 8: 91, 16: 267, 32: 427},
    "resnet50_v1": {2: 7, 4: 35, 8: 99, 16: 291, 32: 483},
    "resnet101": {2: 7, 4: 35, 8: 91, 16: 811, 32: 971},
    "resnet101_v1": {2: 7, 4: 35, 8: 99, 16: 835, 32: 1027},
    "resnet152": {2: 7, 4: 35, 8: 155, 16: 1291, 32: 1451},
    "resnet152_v1": {2: 7, 4: 35, 8: 163, 16: 1315, 32: 1507},
    "resnet50d": {2: 11, 4: 39, 8: 95, 16: 271, 32: 431},
    "resnet101d": {2: 11, 4: 39, 8: 95, 16: 815, 32: 975},
    "resnext50_32x4d": {2: 7, 4: 35, 8: 91, 16: 267, 32: 427},
    "wide_resnet50_2": {2: 7, 4: 35, 8: 91, 16: 267, 32: 427},
}


class Row:
    """A line of the page."""

    def __init__(self, line: str) -> None:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        self.name = cells[0].strip("`")
        self.image, self.parameters, self.macs = (int(c.replace(",", "")) for c in cells[1:4])
        self.stages = cells[4].split()
        self.strides, self.fields = ([int(x) for x in cell.split()] for cell in cells[5:7])
        self.centers = [float(x) for x in cells[7].split()]


@pytest.fixture(scope="module")
def rows(page: str) -> dict[str, Row]:
    lines = [line for line in page.splitlines() if line.startswith("| `")]
    found = [Row(line) for line in lines]
    return {row.name: row for row in found}


def test_the_page_is_up_to_date(page):
    committed = (ROOT / "docs" / "backbones.md").read_text(encoding="utf-8")
    assert committed == page, "run: python tools/analyze.py --table docs/backbones.md"


def test_the_page_has_every_backbone(rows):
    assert sorted(rows) == list_backbones()
    for row in rows.values():
        assert len(row.stages) == len(row.strides) == len(row.fields)
        assert len(row.centers) in (1, len(row.stages))


@pytest.mark.parametrize("name", PUBLISHED)
def test_counts_are_those_published(rows, name):
    row = rows[name]
    assert (row.image, row.parameters, row.macs) == PUBLISHED[name]


@pytest.mark.parametrize("name", ROUNDED)
def test_counts_are_near_those_published(rows, name):
    row = rows[name]
    assert (row.parameters, round(row.macs / 1e9, 3)) == ROUNDED[name]


@pytest.mark.parametrize("name", FIELDS)
def test_receptive_fields_of_resnets(rows, name):
    row = rows[name]
    assert dict(zip(row.strides, row.fields, strict=True)) == FIELDS[name]
    assert row.centers == [0]


# --- one network ---------------------------------------------------------------------------


def columns(text: str) -> dict[str, dict[str, str]]:
    """By title and name of the part; columns are two blanks apart, numbers end where titles do."""
    lines = text.split("\n\n")[1].splitlines()
    titles = [title for title in lines[0].split("  ") if title.strip()]
    ends, at = [], 0
    for title in titles:
        at = lines[0].index(title.strip(), at) + len(title.strip())
        ends.append(at)
    starts = [0, max(len(line.split("  ")[0]) for line in lines), *ends[1:-1]]
    return {
        title.strip(): {line.split()[0]: line[start:end].strip() for line in lines[1:]}
        for title, start, end in zip(titles, starts, ends, strict=True)
    }


def test_a_backbone():
    text = describe(find_subject("resnet18", ["width=8", "num_classes=3"], size=(64, 32)))
    assert text.startswith("resnet18, images of 64x32\n\n")
    table = columns(text)
    assert table["output"]["layer4"] == "64x2x1"
    assert table["parameters"]["head"] == str(64 * 3 + 3)
    assert table["MACs"]["stem"] == f"{3 * 8 * 49 * 32 * 16:,}"
    total = sum(
        int(table["MACs"][part].replace(",", "")) for part in table["MACs"] if part != "total"
    )
    assert table["MACs"]["total"] == f"{total:,}"
    assert table["receptive field"]["layer3"] == "211"
    assert table["stride"]["layer3"] == "16"
    assert table["centre"]["layer3"] == "0"
    assert "matmul" not in text.split("\n\n")[1]
    assert "MACs: multiply-adds of convolutions and linear layers" in text
    assert "attention is left out" not in text


def test_a_backbone_with_attention_says_what_its_field_means():
    text = describe(find_subject("resnet18", ["width=16", "attention=nonlocal"], size=(64, 64)))
    assert "attention is left out of the receptive fields" in text
    assert int(columns(text)["matmul"]["total"].replace(",", "")) > 0


def test_measured_fields_stand_beside_the_derived_ones():
    text = describe(find_subject("resnet18", ["width=8"], size=(64, 64)), gradient=True)
    table = columns(text)
    assert table["field"] == table["receptive field"]
    assert table["by gradient: stride"] == table["stride"]


def test_attention_that_a_network_is_built_of_is_noted():
    text = describe(find_subject("botnet50", ["width=16"], size=(64, 64)))
    assert "attention is left out of the receptive fields" in text


def test_what_cannot_be_measured_is_noted(monkeypatch):
    monkeypatch.setattr("detkit.analysis.receptive_field._LAST_HEIGHT", 256)
    text = describe(find_subject("resnet18", ["width=8"], size=(64, 64)), gradient=True)
    assert "not measured by gradient: a cell of resnet18 sees more than 256 pixels" in text
    assert "by gradient" not in text.split("\n\n")[1]


def test_a_network_of_timm():
    pytest.importorskip("timm")
    text = describe(find_subject("timm:resnet18", size=(64, 64)))
    assert "another library's network: counted without its head" in text
    table = columns(text)
    ours = columns(describe(find_subject("resnet18", size=(64, 64))))
    for layer in ("layer1", "layer2", "layer3", "layer4"):
        assert table["MACs"][layer] == ours["MACs"][layer]
        assert table["receptive field"][layer] == "?"


def test_a_recipe(tiny_recipe, tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(recipe_to_yaml(tiny_recipe()), encoding="utf-8")
    subject = find_subject(str(path), ["model.rpn.post_nms_test=30"], num_classes=3)
    text = describe(subject)
    table = columns(text)
    assert subject.size == (64, 64)
    assert "3 classes; roi: 30 regions of an image, its activations with the 16 of training" in text
    assert list(table["output"]) == [
        "stem", "layer1", "layer2", "layer3", "neck", "rpn", "roi", "total",
    ]  # fmt: skip
    assert table["output"]["neck"] == "16x8x8 +1"
    features, hidden, classes = 16 * 7 * 7, 16, 3
    roi = features * hidden + hidden * hidden + hidden * (classes + 1 + 4 * classes)
    assert table["MACs"]["roi"] == f"{30 * roi:,}"


@pytest.mark.parametrize(
    ("pyramid", "note"),
    [
        ("{scales: [2, 0.5]}", "copies of 2, 0.5 times it, which have 4.25 times the pixels"),
        ("{smallest: 32}", "copies of 1, 0.5 times it, which have 1.25 times the pixels"),
    ],
)
def test_a_recipe_with_an_image_pyramid(tiny_recipe, tmp_path, pyramid, note):
    path = tmp_path / "tiny.yaml"
    path.write_text(recipe_to_yaml(tiny_recipe()), encoding="utf-8")
    plain = describe(find_subject(str(path)))
    text = describe(find_subject(str(path), [f"model.image_pyramid={pyramid}"]))
    assert columns(text) == columns(plain)
    assert note in text


def test_speed():
    subject = find_subject("resnet18", ["width=8"], size=(64, 64))
    text = describe_speed(subject, Setting(torch.device("cpu"), batch=2, rounds=2))
    assert "ms (median of 2 rounds" in text
    assert "MiB: largest sum of the blocks that torch's CPU allocator held" in text
    assert "batch of 2, float32, " in text and f"torch {torch.__version__}" in text
    assert "weights are random" not in text


def test_align():
    assert align([["a", "bb"], ["ccc", "d"]]) == "a    bb\nccc   d"


# --- what is asked for ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "side"),
    [("resnet50", 224), ("lenet5", 32), ("alexnet", 224), ("overfeat_fast", 231)],
)
def test_published_size(name, side):
    assert published_size(name) == (side, side)


def test_sizes():
    assert parse_size("224") == (224, 224)
    assert parse_size("480x640") == (480, 640)
    for wrong in ("", "x3", "3x", "3.5", "-4", "axb"):
        with pytest.raises(ValueError, match="is neither a side nor HEIGHTxWIDTH"):
            parse_size(wrong)


@pytest.mark.parametrize(
    ("overrides", "size", "classes"),
    [
        ([], (192, 192), 10),
        (["data.resize={shortest: 100, longest: 500}"], (128, 128), 10),
        (["data.train.image_size=[64, 128]"], (96, 192), 10),
        (["data.train={format: coco, annotations: a, images: b}"], (192, 192), 80),
        (
            ["data.train={format: coco, annotations: a, images: b}", "data.resize.longest=300"],
            (192, 320),
            80,
        ),
        (
            ["data.train={format: coco, annotations: a, images: b}", "data.resize.shortest=null"],
            (192, 192),
            80,
        ),
    ],
)
def test_size_and_classes_of_a_recipe(overrides, size, classes):
    subject = find_subject(str(ROOT / "configs" / "quickstart.yaml"), overrides)
    assert (subject.size, subject.num_classes) == (size, classes)
