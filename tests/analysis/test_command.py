"""tools/analyze.py: what it prints and writes, its exit code and one line for each mistake."""

from __future__ import annotations

import pytest
from PIL import Image


@pytest.fixture
def analyze(load_command):
    return load_command("analyze")


def test_a_backbone(analyze):
    code, out, err = analyze("resnet18", "width=16", "attention=se", "--size", "96x64")
    assert (code, err) == (0, "")
    assert out.startswith("resnet18, images of 96x64\n")
    assert "latency" not in out


def test_measuring(analyze):
    code, out, err = analyze("resnet18", "width=8", "--size", 64, "--measure", "--device", "cpu")
    assert (code, err) == (0, "")
    assert "by gradient" in out and "latency" in out and "peak memory" in out


def test_a_recipe_and_its_picture(analyze, recipe, tmp_path):
    picture = tmp_path / "new" / "scales.png"
    code, out, err = analyze(
        recipe, "model.rpn.anchor_sizes=[[10], [30]]", "--classes", 3, "--plot", picture,
        "--measure", "--device", "cpu", "--batch", 2, "--dtype", "bfloat16", "--channels-last",
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert "3 classes" in out
    assert "batch of 2, bfloat16, channels_last, " in out
    assert "weights are random" in out
    assert out.endswith(f"drawn to {picture}\n")
    assert Image.open(picture).width > 1000


def test_a_picture_of_a_backbone(analyze, tmp_path):
    code, _, _ = analyze("resnet18", "width=8", "--plot", tmp_path / "a.svg")
    assert code == 0
    assert "svg" in (tmp_path / "a.svg").read_text(encoding="utf-8")


def test_the_page(analyze, monkeypatch, tmp_path):
    monkeypatch.setattr("detkit.analysis.report.list_backbones", lambda: ["resnet34", "resnet18"])
    path = tmp_path / "page.md"
    code, out, err = analyze("--table", path)
    assert (code, out, err) == (0, "", "")
    page = path.read_text(encoding="utf-8")
    assert f"Written by `python tools/analyze.py --table {path}`" in page
    assert page.index("`resnet18`") < page.index("`resnet34`")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to analyse; name a backbone (resnet50) or a recipe (FILE.yaml)"),
        (["resnet5"], "unknown backbone or recipe 'resnet5'; did you mean 'resnet50'"),
        (["resnet18", "--table", "a.md"], "--table is of all backbones; leave 'resnet18' out"),
        (["no.yaml"], "no recipe at no.yaml"),
        (["resnet18", "widht=3"], "resnet18 has no setting 'widht'; did you mean 'width'?"),
        (["resnet18", "width"], "setting 'width' is not of the form key=value, e.g. width=32"),
        (["resnet18", "width=abc"], "settings {'width': 'abc'} of resnet18: "),
        (["resnet18", "width={"], "setting 'width={': not valid YAML"),
        (["resnet18", "attention=sse"], "unknown attention module 'sse'; did you mean '"),
        (["resnet18", "weights=imagenet"], "weights change nothing that is counted; leave"),
        (["resnet18", "--size", "2.5"], "size '2.5' is neither a side nor HEIGHTxWIDTH"),
        (["resnet18", "--size", "0"], "size must be at least 1 pixel, got 0x0"),
        (["resnet18", "--measure", "--batch", "0"], "batch must be at least 1 image, got 0"),
        (["resnet18", "--plot", "a.pgn"], "a.pgn: unknown kind of picture; did you mean 'png'"),
        (["RECIPE", "--classes", "0"], "num_classes must be at least 1"),
        (["RECIPE", "model.roi.hiden=3"], "model.roi.hiden: unknown key; did you mean 'hidden'?"),
        (["RECIPE", "data.train.annotations=no.json", "--plot", "a.png"], "no.json"),
    ],
)
def test_mistakes_are_one_line(analyze, recipe, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, _, err = analyze(*(recipe if word == "RECIPE" else word for word in arguments))
    assert code == 2
    assert err.startswith("error: ") and err.count("\n") == 1
    assert message in err
    assert not list(tmp_path.glob("a.*"))
