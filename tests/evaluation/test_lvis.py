"""The LVIS metric: its rules by hand, and numbers of the lvis package on generated data."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from detkit.evaluation.backend import using
from detkit.evaluation.lvis import LvisResult, evaluate_lvis_files

Record = dict[str, Any]
HERE, THERE, AWAY = [0, 0, 40, 40], [60, 0, 40, 40], [0, 200, 40, 40]


def truth(box: list[float], image=1, category=1, **fields) -> Record:
    record = {"image_id": image, "category_id": category, "bbox": box, **fields}
    return {"area": box[2] * box[3], **record}


def detection(box: list[float], score: float, image=1, category=1) -> Record:
    return {"image_id": image, "category_id": category, "bbox": box, "score": score}


def dataset(truths: list[Record], *, absent=(), not_exhaustive=(), frequency="rcf") -> Record:
    """Two images and a category for each letter; the lists are of image 1."""
    fields = ("neg_category_ids", "not_exhaustive_category_ids")
    of_first = zip(fields, (list(absent), list(not_exhaustive)), strict=True)
    return {
        "images": [{"id": 1, **dict(of_first)}, {"id": 2, **{key: [] for key in fields}}],
        "categories": [
            {"id": k, "name": f"class {k}", "frequency": each}
            for k, each in enumerate(frequency, 1)
        ],
        "annotations": [{"id": i, **record} for i, record in enumerate(truths, 1)],
    }


def evaluate(data: Record, found: list[Record], **options) -> LvisResult:
    return evaluate_lvis_files(data, found, **options)


# ------------------------------------------------------------------------------- checked by hand


def test_of_what_an_image_does_not_tell_nothing_counts():
    """A wrong detection of a category costs where the image is known not to hold it."""
    found = [detection(AWAY, 0.9, category=2), detection(HERE, 0.8, category=2, image=2)]
    truths = [truth(HERE, image=2, category=2)]
    assert evaluate(dataset(truths), found).stats["AP"] == pytest.approx(1)
    assert evaluate(dataset(truths, absent=[2]), found).stats["AP"] == pytest.approx(0.5)
    assert evaluate(dataset(truths, absent=[1, 3]), found).stats["AP"] == pytest.approx(1)


def test_where_not_every_object_is_annotated_what_is_beyond_is_ignored():
    found = [detection(AWAY, 0.9), detection(HERE, 0.8), detection(HERE, 0.7)]
    assert evaluate(dataset([truth(HERE)]), found).stats["AP"] == pytest.approx(0.5)
    data = dataset([truth(HERE)], not_exhaustive=[1])
    assert evaluate(data, found).stats["AP"] == pytest.approx(1)
    # what was to be found is still to be found
    data = dataset([truth(HERE), truth(THERE)], not_exhaustive=[1])
    assert evaluate(data, found).stats["AR@300"] == 0.5


def test_the_limit_is_of_the_image_over_all_categories():
    data = dataset([truth(HERE), truth(HERE, category=2)])
    found = [detection(HERE, 0.9), detection(HERE, 0.8, category=2)]
    assert evaluate(data, found, max_dets=2).stats["AR@2"] == 1
    assert evaluate(data, found, max_dets=1).stats["AR@1"] == 0.5
    # also over categories that the ground truth does not list
    foreign = detection(AWAY, 0.95, category=77)
    assert evaluate(data, [foreign, *found], max_dets=2).stats["AR@2"] == 0.5


def test_more_than_a_hundred_of_a_category_count():
    truths = [truth([50 * i, 0, 40, 40]) for i in range(150)]
    found = [detection(record["bbox"], 0.5) for record in truths]
    assert evaluate(dataset(truths), found).stats["AR@300"] == 1


def test_groups_of_frequency_have_their_own_mean():
    truths = [truth(HERE), truth(HERE, category=2), truth(HERE, category=3)]
    found = [
        detection(HERE, 0.9),
        detection(AWAY, 0.9, category=2),
        detection(HERE, 0.8, category=2),
    ]
    stats = evaluate(dataset(truths), found).stats
    assert (stats["APr"], stats["APc"], stats["APf"]) == pytest.approx((1, 0.5, 0))
    assert stats["AP"] == pytest.approx(0.5)
    stats = evaluate(dataset(truths, frequency="fff"), found).stats
    assert (stats["APr"], stats["APc"], stats["APf"]) == pytest.approx((-1, -1, 0.5))


def test_there_are_no_crowds_but_truths_to_ignore():
    found = [detection(HERE, 0.9), detection(THERE, 0.8), detection(THERE, 0.7)]
    truths = [truth(HERE, iscrowd=1), truth(THERE, ignore=1)]
    result = evaluate(dataset(truths), found)
    assert result.num_truths[0].tolist() == [1, 0, 0]
    # the second detection there finds the truth taken: it is wrong, but after recall 1
    assert result.stats["AP"] == pytest.approx(1)
    assert evaluate(dataset(truths), found[::-1]).stats["AP"] == pytest.approx(1)
    swapped = [detection(THERE, 0.9), detection(THERE, 0.8), detection(HERE, 0.7)]
    assert evaluate(dataset(truths), swapped).stats["AP"] == pytest.approx(0.5)


def test_what_has_no_area_is_left_out():
    data = dataset([truth(HERE), truth([5, 5, 0, 10])])
    found = [detection([0, 0, 0, 40], 0.9), detection(HERE, 0.8)]
    assert evaluate(data, found).stats["AP"] == pytest.approx(1)


@pytest.mark.parametrize("not_exhaustive", [(), (1, 2, 3)])
def test_empty(not_exhaustive):
    nothing = dataset([], not_exhaustive=not_exhaustive)
    assert set(evaluate(nothing, []).stats.values()) == {-1}
    assert set(evaluate(nothing, [detection(HERE, 0.5)]).stats.values()) == {-1}
    data = dataset([truth(HERE)], not_exhaustive=not_exhaustive)
    assert evaluate(data, []).stats["AP"] == 0
    none = {"images": [], "categories": [], "annotations": []}
    assert set(evaluate(none, []).stats.values()) == {-1}


def test_tables_and_json():
    result = evaluate(dataset([truth(HERE)], absent=[2]), [detection(HERE, 0.9)])
    assert result.summary().splitlines()[:4] == [
        "AP       1.000",
        "AP50     1.000",
        "AP75     1.000",
        "APs          -",
    ]
    assert result.table().splitlines() == [
        "class    frequency  truths     AP     AR",
        "class 1  r               1  1.000  1.000",
        "class 2  c               0      -      -",
        "class 3  f               0      -      -",
    ]
    numbers = json.loads(json.dumps(result.as_dict()))
    assert numbers["APr"] == pytest.approx(1) and numbers["per_class"][1]["truths"] == 0
    assert len(result.stats) == 13


# ------------------------------------------------------------------- beside the package of LVIS


def scene(seed: int, detections: int) -> tuple[Record, list[Record]]:
    rng = np.random.default_rng(seed)
    categories = rng.permutation(100)[:8].tolist()
    images = rng.permutation(1000)[:6].tolist()

    def box() -> list[float]:
        values = (*rng.uniform(0, 150, 2), *np.exp(rng.uniform(1.5, 5, 2)))
        return [round(float(value), 1) for value in values]

    truths: list[Record] = []
    for index in range(60):
        b = box()
        image, category = int(rng.choice(images)), int(rng.choice(categories[:-1]))
        area = round(b[2] * b[3] * float(rng.choice([1, 0.6])), 2)
        truths.append(truth(b, image, category, area=area, id=index + 1))
        if rng.random() < 0.05:
            truths[-1]["ignore"] = 1
    records = []
    for image in images:
        held = {record["category_id"] for record in truths if record["image_id"] == image}
        absent = [k for k in categories if k not in held and rng.random() < 0.4]
        not_exhaustive = [k for k in categories if rng.random() < 0.25]
        lists = {"neg_category_ids": absent, "not_exhaustive_category_ids": not_exhaustive}
        records.append({"id": image, **lists})
    found = []
    for _ in range(detections):
        if rng.random() < 0.6:
            near = truths[rng.integers(len(truths))]
            b = np.array(near["bbox"])
            b = [round(float(value), 1) for value in b + rng.normal(0, 0.08, 4) * b[[2, 3, 2, 3]]]
            b[2:] = [max(value, 0.1) for value in b[2:]]
            image, category = near["image_id"], near["category_id"]
            category = category if rng.random() < 0.9 else int(rng.choice(categories))
        else:
            b, image = box(), int(rng.choice(images))
            category = int(rng.choice([*categories, 101]))
        if rng.random() < 0.02:
            b[2] = 0.0
        found.append(detection(b, round(float(rng.random()), 2), image, category))
    names = [
        {"id": k, "name": f"class {k}", "frequency": "rcf"[i % 3]} for i, k in enumerate(categories)
    ]
    return {"images": records, "categories": names, "annotations": truths}, found


GOLDEN = {
    (0, 200, 20): [
        0.22333291599836674,
        0.45250040310153467,
        0.16844618135282916,
        0.20743180440493025,
        0.27690829797265437,
        -1.0,
        0.1491767033846242,
        0.2853423951417698,
        0.2725577557755775,
        0.3632422339565197,
        0.2890986394557823,
        0.42333333333333334,
        -1.0,
    ],
    (5, 900, 300): [
        0.38207262041301326,
        0.6355553450487799,
        0.45358191271942144,
        0.4560695150517476,
        0.33929514784077147,
        0.49479166666666663,
        0.4040187682888188,
        0.3406528731920853,
        0.3905731458202329,
        0.7748299319727892,
        0.7708503401360545,
        0.7491666666666668,
        0.85,
    ],
    (9, 200, 300): [
        0.3704332587408026,
        0.6410489008084481,
        0.32953263912153286,
        0.3743410667597371,
        0.44066925978312116,
        -1.0,
        0.2996627481644954,
        0.45860068424424855,
        0.38842159910181734,
        0.5837556689342405,
        0.5707142857142857,
        0.632,
        -1.0,
    ],
}


@pytest.mark.parametrize("code", ["numpy", "compiled"])
@pytest.mark.parametrize(("seed", "detections", "limit"), GOLDEN)
def test_numbers_of_the_lvis_package(seed, detections, limit, code):
    """Those of lvis 0.5.3, to the last bit."""
    data, found = scene(seed, detections)
    try:
        with using(code):
            stats = evaluate(data, found, max_dets=limit).stats
    except ValueError as error:
        if "compiled evaluator is chosen" not in str(error):
            raise
        pytest.skip(str(error))
    assert list(stats.values()) == GOLDEN[seed, detections, limit]


# -------------------------------------------------------------------------------------- mistakes


def changed(part: str, index: int, **fields) -> Record:
    data = dataset([truth(HERE)])
    records = [dict(record) for record in data[part]]
    records[index].update(fields)
    return {**data, part: records}


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ([], "gt.json: ground truth must be a JSON object, got [] (list)"),
        ({"images": []}, "gt.json: 'categories' is missing"),
        (changed("images", 1, neg_category_ids=3), "images[1]: 'neg_category_ids' must be a list"),
        (changed("images", 0, not_exhaustive_category_ids=["1"]), "must be a list of category ids"),
        (changed("images", 0, neg_category_ids=None), "must be a list of category ids, got None"),
        (changed("categories", 2, frequency="x"), "categories[2]: 'frequency' must be one of r, c"),
        (
            changed("annotations", 0, ignore="no"),
            "annotations[0]: 'ignore' must be 0 or 1, got 'no'",
        ),
        (changed("annotations", 0, bbox=[1]), "gt.json: annotations[0]: 'bbox' must be [x, y, wid"),
    ],
)
def test_wrong_ground_truth_is_named(data, expected, tmp_path):
    (tmp_path / "gt.json").write_text(json.dumps(data))
    with pytest.raises(ValueError) as error:
        evaluate_lvis_files(tmp_path / "gt.json", [])
    message = str(error.value).replace(f"{tmp_path}/", "")
    assert message.startswith("gt.json: ") and expected in message and "\n" not in message


def test_wrong_limit_is_named():
    with pytest.raises(ValueError, match="max_dets must be positive whole numbers"):
        evaluate(dataset([]), [], max_dets=0)
