"""Recipes: what a file may say, and the one line for each thing it may not."""

from __future__ import annotations

import copy
import math
import os
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from detkit.config import (
    AutoSource,
    ClassifierRecipe,
    CocoSource,
    ConfigError,
    CsvSource,
    ModelConfig,
    Recipe,
    VocSource,
    YoloSource,
    apply_override,
    build_recipe,
    load_recipe,
    load_recipe_as,
    parse_yaml,
    recipe_to_yaml,
)

ROOT = Path(__file__).resolve().parent.parent
RECIPES = sorted((ROOT / "configs").rglob("*.yaml"))
CLASSIFIERS = [p for p in RECIPES if "crop" in yaml.safe_load(p.read_text("utf-8"))["data"]]
COCO = {"format": "coco", "annotations": "a.json", "images": "images"}


def written(folder: Path, text: str | bytes, name: str = "r.yaml") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def refused(path: Path, *overrides: str) -> str:
    """The message with which a recipe is refused, without the file's name."""
    with pytest.raises(ConfigError) as caught:
        load_recipe(path, overrides)
    return str(caught.value).replace(str(path), "FILE")


# ------------------------------------------------------------------------------ what is wrong


@pytest.mark.parametrize(
    ("text", "message"),
    [
        # unknown keys, at several depths and inside unions
        ("trian: {}", "trian: unknown key; did you mean 'train'? allowed: name, seed, data, model"),
        ("model: {bakbone: {}}", "model.bakbone: unknown key; did you mean 'backbone'? allowed: d"),
        (
            "model: {fpn: {chanels: 8}}",
            "model.fpn.chanels: unknown key; did you mean 'channels'? a",
        ),
        (
            "train: {ema: {decy: 0.9}}",
            "train.ema.decy: unknown key; did you mean 'decay'? allowed:",
        ),
        (
            "data: {val: {format: coco, annotations: a, images: b, image: c}}",
            "data.val.image: unknown key; did you mean 'images'? allowed: format, annotations, im",
        ),
        (
            "data: {train: {format: synthetic, splt: val}}",
            "data.train.splt: unknown key; did you mean 'split'? allowed: format, split, num_imag",
        ),
        ("zzz: 1", "zzz: unknown key; allowed: name, seed, data, model, train, test"),
        ("1: 2", "1: unknown key; allowed: name"),
        # wrong types
        ("train: {epochs: many}", "train.epochs: got 'many'; should be a valid integer"),
        ("train: {epochs: 4.5}", "train.epochs: got 4.5; should be a valid integer"),
        ("train: {epochs: true}", "train.epochs: got True; should be a valid integer"),
        (
            "train: {optimizer: {lr: '0.1'}}",
            "train.optimizer.lr: got '0.1'; should be a valid numb",
        ),
        ("train: {channels_last: 1}", "train.channels_last: got 1; should be a valid boolean"),
        ("model: {weights: 5}", "model.weights: got 5; should be a valid string"),
        ("model: 5", "model: got 5; should be an object"),
        ("model: {backbone: [a]}", "model.backbone: got ['a']; should be an object"),
        (
            "model: {backbone: {out_indices: 2}}",
            "model.backbone.out_indices: got 2; should be a list, in br",
        ),
        (
            "model: {backbone: {settings: {width: 8}}}",
            "model.backbone: got {'settings': {'width': 8}}; settings has 'width', a key of",
        ),
        (
            "model: {backbone: {settings: {in_channels: 1}}}",
            "model.backbone: got {'settings': {'in_channels': 1}}; settings has 'in_channels', wh",
        ),
        ("model: {rpn: {anchor_sizes: [[8], 16]}}", "model.rpn.anchor_sizes.1: got 16; should be"),
        ("name: 5", "name: got 5; should be a valid string"),
        # wrong values
        ("train: {epochs: 0}", "train.epochs: got 0; should be greater than 0"),
        ("train: {ema: {decay: 2}}", "train.ema.decay: got 2; should be less than or equal to 1"),
        (
            "train: {optimizer: {lr: .nan}}",
            "train.optimizer.lr: got nan; should be a finite number",
        ),
        ("train: {optimizer: {weight_decay: .inf}}", "train.optimizer.weight_decay: got inf; shou"),
        ("seed: 9223372036854775808", "seed: got 9223372036854775808; should be less than 9223372"),
        ("data: {resize: {shortest: null, longest: null}}", "data.resize: got {'shortest': None,"),
        ("name: a/b", "name 'a/b' becomes a folder: use letters, digits, '.', '-', '_'"),
        ("name: ..", "name '..' becomes a folder: use letters, digits, '.', '-', '_'"),
        (
            "model: {roi: {focal_gamma: 0.5}}",
            "model.roi.focal_gamma: got 0.5; gamma of a focal loss is 0 (cross entropy) or at leas",
        ),
        (
            "model: {rpn: {positive_iou: 0.2}}",
            "model.rpn: got {'positive_iou': 0.2}; positive_iou 0.2 is below negative_iou 0.3, and",
        ),
        ("model: {roi: {positive_iou: 0.4}}", "model.roi: got {'positive_iou': 0.4}; positive_iou"),
        (
            "model: {detector: retinanet, retinanet: {negative_iou: 0.6}}",
            "model.retinanet: got {'negative_iou': 0.6}; positive_iou 0.5 is below negative_iou",
        ),
        (
            "model: {detector: sliding_window, sliding_window: {positive_iou: 0.3}}",
            "model.sliding_window: got {'positive_iou': 0.3}; positive_iou 0.3 is below negative_i",
        ),
        (
            "model: {detector: fcos, roi: {hidden: 8}, select: {score_threshold: 0.1, nms: diou}}",
            "model: fcos has no section 'roi'; leave it out",  # without all that model holds
        ),
        ("test: {tile_whole: true}", "test: got {'tile_whole': True}; tile_whole is about tiles"),
        # wrong choices
        (
            "train: {optimizer: {name: adamx}}",
            "train.optimizer.name: got 'adamx'; did you mean 'adam' or",
        ),
        ("train: {amp: on}", "train.amp: got 'on'; allowed: auto, bf16, fp16, off"),
        ("model: {fpn: {extra: p6}}", "model.fpn.extra: got 'p6'; did you mean 'p6p7'? allowed: p"),
        ("data: {train: {format: vocc}}", "data.train.format: got 'vocc'; did you mean 'voc'"),
        (
            "data: {train: {split: val}}",
            "data.train: got {'split': 'val'}; it needs 'format: coco'",
        ),
        ("data: {train: images/}", "data.train: got 'images/'; should be an object"),
        # missing
        ("data: {val: {format: coco, annotations: a}}", "data.val.images: missing; set it"),
        ("model: {mean: [1, 2]}", "model.mean.2: missing; set it"),
        # not a recipe at all
        ("", "a recipe is a mapping of keys to values, e.g. 'name: my_run'"),
        ("# nothing", "a recipe is a mapping"),
        ("[a, b]", "a recipe is a mapping"),
        ("train", "a recipe is a mapping"),
        ("a: [", "not valid YAML: while parsing a flow node expected the node content"),
        ("a: \x07", "not valid YAML: unacceptable character"),
        ("--- {a: 1}\n--- {b: 1}", "not valid YAML: expected a single document"),
        ("seed: 1\nname: a\nseed: 2", "not valid YAML: key 'seed' is given twice, again in line 3"),
        ("train: {epochs: 1, epochs: 1}", "not valid YAML: key 'epochs' is given twice"),
        ("{[1, 2]: 3}", "not valid YAML: the key in line 1 is a list, not text"),
        ("{{a: 1}: 3}", "not valid YAML: the key in line 1 is a dict, not text"),
        (
            "a: !!python/object/apply:os.getcwd []",
            "not valid YAML: could not determine a construct",
        ),
        ("a: !!python/name:os.system", "not valid YAML: could not determine a constructor"),
        ("a: !!python/tuple [1]", "not valid YAML: could not determine a constructor"),
        (
            "a: !!binary aGk=",
            "a recipe holds mappings, lists, text and numbers only: Object of type",
        ),
        (
            "a: !!set {x}",
            "a recipe holds mappings, lists, text and numbers only: Object of type set",
        ),
        ("a: &a [*a]", "a recipe holds mappings, lists, text and numbers only: Circular reference"),
    ],
)
def test_mistake_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    got = refused(written(tmp_path, text))
    assert got.startswith(f"FILE: {message}"), got
    assert "\n" not in got


def test_a_value_of_neither_type_is_one_line_for_each(tmp_path: Path) -> None:
    key = "model.backbone.attention_stages"
    got = refused(written(tmp_path, "model: {backbone: {attention_stages: 3}}"))
    assert got.split("\n") == [
        f"FILE: {key}: got 3; should be a list, in brackets: [...]",
        f"FILE: {key}: got 3; should be an object",
    ]


def test_two_mistakes_are_two_lines(tmp_path: Path) -> None:
    got = refused(written(tmp_path, "train: {epochs: 0, epoch: 3}"))
    assert [line.partition(";")[0] for line in got.splitlines()] == [
        "FILE: train.epochs: got 0",
        "FILE: train.epoch: unknown key",
    ]


def test_long_value_is_cut(tmp_path: Path) -> None:
    got = refused(written(tmp_path, f"train: {'x' * 500}"))
    assert len(got) < 120


def test_missing_file_names_its_neighbours(tmp_path: Path) -> None:
    written(tmp_path, "name: a", "quickstart.yaml")
    written(tmp_path, "repos: []", ".pre-commit-config.yaml")
    got = refused(tmp_path / "quikstart.yaml")
    assert "pre-commit" not in got
    assert got.startswith(
        f"no recipe at FILE; did you mean '{tmp_path / 'quickstart.yaml'}'? allowed: "
    )
    assert refused(tmp_path / "no" / "r.yaml") == "no recipe at FILE"


@pytest.mark.parametrize(
    ("text", "reason"), [(None, "Is a directory"), (b"\xff\xfe\x00\x80", "'utf-8' codec")]
)
def test_unreadable_file(tmp_path: Path, text: bytes | None, reason: str) -> None:
    path = tmp_path if text is None else written(tmp_path, text)
    got = refused(path)
    assert got.startswith("cannot read recipe FILE: ")
    assert reason in got


def test_file_without_permission(tmp_path: Path) -> None:
    path = written(tmp_path, "name: a")
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    assert "Permission denied" in refused(path)


# ----------------------------------------------------------------------------------- overrides


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epochs", "override 'train.epochs' is not of the form key.path=value"),
        ("=3", "override '=3' is not of the form key.path=value"),
        ("", "override '' is not of the form key.path=value"),
        ("trian.epochs=3", "override 'trian.epochs=3': unknown key; did you mean 'train'?"),
        ("train.epoch=3", "FILE: train.epoch: unknown key; did you mean 'epochs'?"),
        ("train..epochs=3", "FILE: train.: unknown key; allowed: epochs"),
        ("model.neck.channels=8", "FILE: model.neck: unknown key; allowed: detector"),
        ("data.train.foo.bar=1", "FILE: data.train: got {'foo': {'bar': 1}}; it needs 'format: co"),
        ("train.epochs.value=3", "FILE: train.epochs: got {'value': 3}; should be a valid integer"),
        ("model.rpn.anchor_sizes.0=[8]", "FILE: model.rpn.anchor_sizes: got {'0': [8]}; should be"),
        ("train.epochs=", "FILE: train.epochs: got None; should be a valid integer"),
        ("train.epochs=[", "override 'train.epochs=[': not valid YAML:"),
        ("name=a=b", "FILE: name 'a=b' becomes a folder"),
    ],
)
def test_mistaken_override_is_one_line(tmp_path: Path, override: str, message: str) -> None:
    got = refused(written(tmp_path, "name: a"), override)
    assert got.startswith(message), got
    assert "\n" not in got


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("train.optimizer.lr=1e-3", "train.optimizer.lr", 0.001),
        ("train.optimizer.lr=1", "train.optimizer.lr", 1.0),
        ("train.epochs=3", "train.epochs", 3),
        ("train.ema=null", "train.ema", None),
        ("train.ema.decay=0.5", "train.ema.decay", 0.5),  # from null: the section appears
        ("model.fpn=null", "model.fpn", None),
        ("model.rpn.anchor_sizes=[[8], [16, 32]]", "model.rpn.anchor_sizes", ((8,), (16, 32))),
        ("model.backbone.out_indices=[-1]", "model.backbone.out_indices", (-1,)),
        ("train.amp=off", "train.amp", "off"),
        ("data.train.images=a=b", "data.train.images", "a=b"),
        ("data.train.images=2024-01-31", "data.train.images", "2024-01-31"),
        ("data.train.images=C:\\x", "data.train.images", "C:\\x"),
        ("name='007'", "name", "007"),
        ("data.val={format: synthetic, split: val}", "data.val.split", "val"),
    ],
)
def test_override_is_set(override: str, path: str, value: Any) -> None:
    recipe = build_recipe({"name": "a", "data": {"train": COCO}}, [override])
    found: Any = recipe
    for key in path.split("."):
        found = getattr(found, key)
    assert found == value
    assert type(found) is type(value)


def test_last_override_wins_and_keeps_its_neighbours() -> None:
    tree = {"name": "a", "train": {"epochs": 2, "batch_size": 3}}
    recipe = build_recipe(tree, ["train.epochs=5", "train.epochs=7"])
    assert (recipe.train.epochs, recipe.train.batch_size) == (7, 3)


def test_override_leaves_the_input_alone() -> None:
    tree: dict[str, Any] = {"name": "a", "train": {"optimizer": {"lr": 0.1}}, "data": None}
    before = copy.deepcopy(tree)
    changed = apply_override(tree, "train.optimizer.lr=9")
    assert changed["train"]["optimizer"]["lr"] == 9
    build_recipe(tree, ["train.optimizer.name=sgd", "name=b", "data.workers=0"])
    assert tree == before


# ---------------------------------------------------------------------------------------- YAML


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1E5", 100000.0),
        ("-2.5e+2", -250.0),
        (".5", 0.5),
        ("2.", 2.0),
        ("-.inf", -math.inf),
        ("12", 12),
        ("-3", -3),
        ("1e", "1e"),
        ("e3", "e3"),
        ("1e3.5", "1e3.5"),
        ("1.2.3", "1.2.3"),
        ("2024-01-31", "2024-01-31"),
        ("2024-01-31 10:00:00", "2024-01-31 10:00:00"),
        ("off", "off"),
        ("no", "no"),
        ("Yes", "Yes"),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("'1e-3'", "1e-3"),
        ("[1, 2.0]", [1, 2.0]),
    ],
)
def test_scalar(text: str, value: Any) -> None:
    found = parse_yaml(text, "test")
    assert found == value
    assert type(found) is type(value)


def test_name_defaults_to_the_file(tmp_path: Path) -> None:
    assert load_recipe(written(tmp_path, "seed: 3", "my_run.yaml")).name == "my_run"


# ---------------------------------------------------------------------------------- round trip


def back(recipe: Recipe, folder: Path) -> Recipe:
    return load_recipe(written(folder, recipe_to_yaml(recipe), "back.yaml"))


def test_defaults_survive_the_round_trip(tmp_path: Path) -> None:
    recipe = build_recipe({"name": "a"})
    assert back(recipe, tmp_path) == recipe


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_recipe_survives_the_round_trip(path: Path, tmp_path: Path) -> None:
    schema = ClassifierRecipe if path in CLASSIFIERS else Recipe
    recipe = load_recipe_as(schema, path)
    written_back = written(tmp_path, recipe_to_yaml(recipe), "back.yaml")
    assert load_recipe_as(schema, written_back) == recipe


def test_there_are_recipes() -> None:
    assert RECIPES


@pytest.mark.parametrize(
    "name", ["1e3", "12", "1.5", "0x1f", "1_000", "off", "null", "true", "2024-01-31", "Ünï"]
)
def test_name_survives_the_round_trip(name: str, tmp_path: Path) -> None:
    """A resolved recipe has to be read with the loader's rules, which are not the dumper's own."""
    assert back(build_recipe({"name": name}), tmp_path).name == name


@settings(max_examples=30, deadline=None)
@given(text=st.text(min_size=1), number=st.floats(1e-300, 1e300), count=st.integers(1, 2**40))
def test_values_survive_the_round_trip(text: str, number: float, count: int) -> None:
    tree = {
        "name": "a",
        "data": {"train": {"format": "coco", "annotations": text, "images": text}},
        "train": {"epochs": count, "optimizer": {"lr": number}},
    }
    try:
        recipe = build_recipe(tree)
    except ConfigError:  # half of a surrogate pair is no text
        assert any("\ud800" <= c <= "\udfff" for c in text)
        return
    assert build_recipe(parse_yaml(recipe_to_yaml(recipe), "test")) == recipe


def test_every_default_is_written_out() -> None:
    tree = yaml.safe_load(recipe_to_yaml(build_recipe({"name": "a"})))
    assert tree["model"]["roi"]["box_weights"] == [10.0, 10.0, 5.0, 5.0]
    assert tree["train"]["ema"] is None
    assert set(tree) == set(Recipe.model_fields)


def test_recipe_cannot_be_changed() -> None:
    recipe = build_recipe({"name": "a"})
    with pytest.raises(ValueError, match="frozen"):
        recipe.train.epochs = 3  # type: ignore[misc]


def test_a_mapping_takes_the_place_of_a_source_of_another_format() -> None:
    """As the README tells those who test on other annotations."""
    tree = {"name": "a", "data": {"test": {"format": "synthetic", "num_images": 7}}}
    override = "data.test={format: coco, annotations: t.json, images: img}"
    source = build_recipe(tree, [override]).data.test
    assert source == CocoSource(annotations="t.json", images="img")


@pytest.mark.parametrize(
    ("override", "source"),
    [
        ("{format: voc, root: d, split: train}", VocSource(root="d", split="train")),
        ("{format: voc, root: d, classes: [b, a]}", VocSource(root="d", classes=("b", "a"))),
        ("{format: yolo, data: d.yaml, split: val}", YoloSource(data="d.yaml", split="val")),
        ("{format: csv, annotations: d.csv}", CsvSource(annotations="d.csv")),
        ("{format: auto, path: d}", AutoSource(path="d")),
    ],
)
def test_a_source_of_each_format(override, source):
    assert build_recipe({"name": "a"}, [f"data.train={override}"]).data.train == source


def test_what_a_format_does_not_have_is_an_unknown_key():
    with pytest.raises(ConfigError, match=r"splitt: unknown key; did you mean .split."):
        build_recipe({"name": "a"}, ["data.train={format: yolo, data: d, split: a, splitt: b}"])
    with pytest.raises(ConfigError, match=r"data\.train\.data: missing"):
        build_recipe({"name": "a"}, ["data.train={format: yolo, split: train}"])


# --- sections of one detector ----------------------------------------------------------------


def test_a_detector_has_its_own_sections_and_its_own_defaults():
    model = build_recipe({"name": "a", "model": {"detector": "retinanet"}}).model
    assert model.rpn is None and model.roi is None and model.proposals is None
    assert (model.fpn.extra, model.select.max_detections) == ("p6p7", 300)
    model = build_recipe({"name": "a"}).model
    assert model.proposals == "rpn" and model.retinanet is None
    assert (model.fpn.extra, model.select.max_detections) == ("pool", 100)


def test_what_is_given_outweighs_the_defaults_of_the_detector():
    tree = {"detector": "retinanet", "fpn": None, "select": {"max_detections": 7}}
    model = build_recipe({"name": "a", "model": tree}).model
    assert model.fpn is None
    assert (model.select.max_detections, model.select.pre_nms) == (7, 1000)


@pytest.mark.parametrize("detector", get_args(ModelConfig.model_fields["detector"].annotation))
def test_a_resolved_recipe_is_read_as_the_same(detector, tmp_path):
    recipe = build_recipe({"name": "a", "model": {"detector": detector}})
    again = load_recipe(written(tmp_path, recipe_to_yaml(recipe)))
    assert again == recipe


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"detector": "fcos", "rpn": {}}, "fcos has no section 'rpn'; leave it out, or set null"),
        ({"retinanet": {}}, "region_proposal has no section 'retinanet'"),
        ({"detector": "fcos", "proposals": "grid"}, "fcos has no proposals"),
        (
            {"proposals": "grid", "rpn": {}},
            "region_proposal with proposals=grid has no section 'rpn'",
        ),
        (
            {"proposals": "file", "fpn": {"extra": "p6p7"}},
            "p6p7 learns two levels that only proposals=rpn looks at; leave it out",
        ),
    ],
)
def test_a_section_of_another_detector_is_refused(model, message):
    with pytest.raises(ConfigError, match=message):
        build_recipe({"name": "a", "model": model})
