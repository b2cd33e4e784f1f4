"""Intervals of AP over resampled images, and paired differences."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detkit.evaluation import CocoEvaluator, CocoResult, compare, resampling
from detkit.evaluation import evaluate_files as evaluate
from detkit.evaluation.backend import load_native, using
from detkit.evaluation.outcomes import find_outcomes
from detkit.evaluation.paired import PairedDifference
from detkit.evaluation.resampling import rank_classes, weighted_precision

Record = dict[str, Any]

pytestmark = pytest.mark.usefixtures("each_backend")


def make_case(seed: int, *, images: int = 30, tied: bool = False) -> tuple[Record, list[Record]]:
    """Truths with crowds in three classes, the last one rare, and a detector of middling skill."""
    rng = np.random.default_rng(seed)
    truths: Record = {
        "images": [{"id": 7 * image + 3} for image in range(images)],
        "categories": [{"id": k, "name": f"class {k}"} for k in (2, 5, 9)],
        "annotations": [],
    }
    detections: list[Record] = []
    for image in truths["images"]:
        hard = rng.normal(0, 0.5)  # what makes the detections of an image depend on each other
        for _ in range(rng.integers(0, 6)):
            size = rng.uniform(10, 120, 2)
            box = np.concatenate([rng.uniform(0, 300, 2), size])
            category = int(rng.choice([2, 5, 9], p=[0.5, 0.4, 0.1]))
            truths["annotations"].append(
                {
                    "id": len(truths["annotations"]) + 1,
                    "image_id": image["id"],
                    "category_id": category,
                    "bbox": box.tolist(),
                    "area": float(size.prod()),
                    "iscrowd": int(rng.random() < 0.1),
                }
            )
            if rng.random() < 0.85:
                noise = rng.normal(0, 0.06 * np.exp(hard), 4) * np.tile(size, 2)
                near = {"image_id": image["id"], "category_id": category}
                near |= {"bbox": (box + noise).tolist(), "score": rng.beta(4, 2)}
                detections.append(near)
        for _ in range(rng.integers(0, 5)):
            box = np.concatenate([rng.uniform(0, 300, 2), rng.uniform(10, 120, 2)])
            category = int(rng.choice([2, 5, 9]))
            far = {"image_id": image["id"], "category_id": category}
            detections.append(far | {"bbox": box.tolist(), "score": rng.beta(2, 4)})
    if tied:
        for found in detections:
            found["score"] = round(found["score"], 1)
    return truths, detections


def repeat(
    truths: Record, detections: list[Record], weights: np.ndarray
) -> tuple[Record, list[Record]]:
    """The data set in which every image stands as often as its weight says."""
    repeated: Record = {"images": [], "annotations": [], "categories": truths["categories"]}
    more: list[Record] = []
    for image, weight in zip(truths["images"], weights.tolist(), strict=True):
        for _ in range(weight):
            new = {"image_id": len(repeated["images"]) + 1}
            repeated["images"].append({"id": new["image_id"]})
            for annotation in truths["annotations"]:
                if annotation["image_id"] == image["id"]:
                    new_id = {"id": len(repeated["annotations"]) + 1}
                    repeated["annotations"].append({**annotation, **new, **new_id})
            more += [{**d, **new} for d in detections if d["image_id"] == image["id"]]
    return repeated, more


def weigh(result: CocoResult, weights: np.ndarray) -> np.ndarray:
    """Average precision by category and threshold under these weights, `[K, T]`."""
    outcomes = find_outcomes(
        result.truths.truths,
        result.detections,
        num_categories=len(result.category_ids),
        iou_thresholds=result.settings.iou_thresholds,
    )
    classes = rank_classes(outcomes, len(result.category_ids))
    return np.concatenate(list(weighted_precision(classes, weights[None])))


def drawn(images: int, seed: int) -> np.ndarray:
    return np.bincount(np.random.default_rng(seed).integers(0, images, images), minlength=images)


@pytest.mark.parametrize("seed", range(12))
def test_a_weight_is_a_copy(seed: int, pycocotools: Callable[..., Any]) -> None:
    truths, detections = make_case(seed, images=[1, 4, 30][seed % 3])
    weights = drawn(len(truths["images"]), seed)
    reference = pycocotools(*repeat(truths, detections, weights))
    expected = reference.precision[:, :, :, 0, 2].mean(axis=1).T  # [K, T]
    expected[(reference.precision[:, :, :, 0, 2] == -1).all(axis=(0, 1))] = np.nan
    found = weigh(evaluate(truths, detections), weights)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_copies_stand_together_where_scores_tie() -> None:
    """Equal scores in different images: as in the repeated set, image by image."""
    truths, detections = make_case(3)
    for place, found in enumerate(sorted(detections, key=lambda d: d["score"])):
        found["score"] = place // 4 / 100
    apart = {(d["image_id"], d["category_id"], d["score"]): d for d in detections}
    detections = list(apart.values())  # none tie in their own image
    result = evaluate(truths, detections)
    for seed in range(5):
        weights = drawn(30, seed)
        expected = evaluate(*repeat(truths, detections, weights)).stats[0]
        assert np.nanmean(weigh(result, weights)) == pytest.approx(expected, abs=1e-12)


def test_tied_detections_of_one_image_keep_their_copies() -> None:
    """Right, wrong of equal score, twice: right right wrong wrong, not right wrong right wrong."""
    truths: Record = {
        "images": [{"id": 1}],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9]}],
    }
    one = {"image_id": 1, "category_id": 1, "score": 0.5}
    detections = [{**one, "bbox": [0, 0, 9, 9]}, {**one, "bbox": [50, 50, 9, 9]}]
    assert weigh(evaluate(truths, detections), np.array([2])) == pytest.approx(1.0)
    alternating = evaluate(*repeat(truths, detections, np.array([2]))).stats[0]
    assert alternating == pytest.approx((51 + 50 * 2 / 3) / 101)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("options", [{}, {"strict": True}, {"use_categories": False}])
def test_estimate_is_the_ap(seed: int, options: dict[str, bool]) -> None:
    truths, detections = make_case(seed, tied=True)
    for annotation in truths["annotations"][:8]:
        annotation["id"] -= 1  # an id of 0, which `strict` takes for no match
    result = evaluate(truths, detections, **options)
    interval = result.interval(resamples=20)
    estimates = [each.estimate for each in (interval.AP, interval.AP50, interval.AP75)]
    assert estimates == pytest.approx(result.stats[:3].tolist(), abs=1e-12)
    rows = zip(interval.per_class(), result.per_class(), strict=True)
    for mine, row in rows:
        assert (mine.category_id, mine.name) == (row.category_id, row.name)
        assert mine.AP.estimate == pytest.approx(row.AP, abs=1e-12)


def test_interval_is_that_of_a_binomial() -> None:
    """One truth in each image, found or not and nothing else: AP is the part that is found."""
    images, found = 400, 240
    truths: Record = {
        "images": [{"id": image} for image in range(images)],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [
            {"id": image + 1, "image_id": image, "category_id": 1, "bbox": [0, 0, 9, 9]}
            for image in range(images)
        ],
    }
    detections = [
        {"image_id": image, "category_id": 1, "bbox": [0, 0, 9, 9], "score": 1 - image / images}
        for image in range(found)
    ]
    interval = evaluate(truths, detections).interval()
    assert interval.AP.estimate == pytest.approx(61 / 101)
    # 95 % of Binomial(400, 0.6) are in 221..259: the recalls 0.55 and 0.64, on the other side each
    assert interval.AP.low == pytest.approx((2 * 61 - 65) / 101, abs=0.01)
    assert interval.AP.high == pytest.approx((2 * 61 - 56) / 101, abs=0.01)


def test_interval_covers_the_true_ap() -> None:
    """A light version of benchmarks/bootstrap_coverage.py."""
    truths, detections = make_case(1, images=800)
    everything = evaluate(truths, detections)
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(40):
        chosen = set(rng.choice([image["id"] for image in truths["images"]], 60, replace=False))
        part = {**truths, "images": [i for i in truths["images"] if i["id"] in chosen]}
        part["annotations"] = [a for a in truths["annotations"] if a["image_id"] in chosen]
        result = evaluate(part, [d for d in detections if d["image_id"] in chosen])
        interval = result.interval(resamples=200).AP
        covered += interval.low <= everything.stats[0] <= interval.high
    assert 33 <= covered <= 40


def test_same_seed_same_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    truths, detections = make_case(5)
    first = evaluate(truths, detections).interval(resamples=50).as_dict()
    other = evaluate(truths, detections).interval(resamples=50, seed=1).as_dict()
    monkeypatch.setattr(resampling, "WEIGHTS_PER_CHUNK", 100)
    monkeypatch.setattr(resampling, "SUMS_PER_CHUNK", 70)
    assert evaluate(truths, detections).interval(resamples=50).as_dict() == first
    assert other["AP"] != first["AP"]


def reorder(records: list[Record]) -> list[Record]:
    return [records[i] for i in np.random.default_rng(9).permutation(len(records))]


def write(folder: Path, name: str, content: Any) -> Path:
    path = folder / name
    path.write_text(json.dumps(content))
    return path


def test_order_of_the_files_does_not_matter(tmp_path: Path) -> None:
    truths, detections = make_case(6, images=200)
    shuffled = {key: reorder(rows) for key, rows in truths.items()}
    results = [
        evaluate(write(tmp_path, "gt.json", gt), write(tmp_path, "dt.json", dt))
        for gt, dt in [(truths, detections), (shuffled, reorder(detections))]
    ]
    first, second = (result.interval(resamples=200).as_dict() for result in results)
    assert first == second
    difference = compare(*results, resamples=200)
    assert difference.AP == (0, 0, 0)
    assert difference.better is None
    assert difference.probability == 0.5
    assert difference.sentence() == (
        "no difference can be told from these 200 images: "
        "B less A is 0.000 (95 % interval 0.000 to 0.000)"
    )


def test_order_of_equal_scores_makes_no_model_better() -> None:
    truths, detections = make_case(7, images=200)
    for found in detections:
        found["score"] = 0.5
    best_first = sorted(detections, key=lambda found: len(str(found["bbox"])))
    first, second = evaluate(truths, detections), evaluate(truths, best_first)
    assert first.stats[0] != second.stats[0]
    assert first.interval(100).AP != second.interval(100).AP
    shuffled = {**truths, "annotations": reorder(truths["annotations"])}
    for other in (second, evaluate(shuffled, best_first)):
        assert compare(first, other, resamples=100).AP == (0, 0, 0)


def test_two_percent_of_shifted_boxes_are_noticed() -> None:
    truths, detections = make_case(8, images=300)
    rng = np.random.default_rng(0)
    worse = copy.deepcopy(detections)
    for found in worse:
        if rng.random() < 0.02:
            found["bbox"][0] += found["bbox"][2]  # by its whole width
    a, b = evaluate(truths, detections), evaluate(truths, worse)
    difference = compare(a, b, names=("plain", "shifted"))
    assert difference.AP.estimate == pytest.approx(b.stats[0] - a.stats[0], abs=1e-12)
    assert difference.AP.high < 0
    assert difference.better == "plain"
    assert difference.probability < 0.01
    assert difference.sentence().startswith("plain is better than shifted by 0.0")
    # two intervals side by side would not have told it
    assert b.interval().AP.high > a.interval().AP.low
    assert compare(b, a, names=("shifted", "plain")).sentence() == difference.sentence()


def test_sentences_and_tables() -> None:
    result = evaluate(*make_case(2))
    interval = result.interval(resamples=100)
    ap = interval.AP
    assert ap.low < ap.estimate < ap.high
    assert interval.sentence() == (
        f"AP {ap.estimate:.3f} (95 % interval {ap.low:.3f} to {ap.high:.3f}, "
        "100 resamples of 30 images)"
    )
    lines = interval.table().splitlines()
    assert lines[0].split() == ["estimate", "low", "high"]
    assert [line.split("  ")[0] for line in lines[1:]] == [
        *("AP", "AP50", "AP75", "class 2", "class 5", "class 9")
    ]
    record = interval.as_dict()
    assert record == json.loads(json.dumps(record, allow_nan=False))
    assert record["AP"] == {"estimate": ap.estimate, "low": ap.low, "high": ap.high}
    assert (record["resamples"], record["images"], record["reason"]) == (100, 30, None)
    record = compare(result, result, resamples=100).as_dict()
    assert record == json.loads(json.dumps(record, allow_nan=False))
    assert (record["names"], record["better"], record["probability"]) == (["A", "B"], None, 0.5)


def test_digits_of_a_difference() -> None:
    result = evaluate(*make_case(2))

    def told(drawn: list[float]) -> str:
        of_b = copy.copy(result.interval(10).resamples)
        rows = np.repeat(of_b.numbers[None], len(drawn), axis=0)
        a = replace(of_b, drawn=rows)
        b = replace(a, drawn=rows + np.array(drawn)[:, None], numbers=a.numbers + np.mean(drawn))
        pair = [replace(result.interval(10), resamples=each) for each in (a, b)]
        return PairedDifference(*pair).sentence().split(" by ")[-1].split(": ")[-1]

    assert told([0.01, 0.01]) == "0.010 (95 % interval 0.010 to 0.010)"
    assert told([-0.01, -0.01]) == "0.010 (95 % interval 0.010 to 0.010)"
    assert told([0.0002, 0.0002]) == "0.0002 (95 % interval 0.0002 to 0.0002)"
    assert told([-1e-7, 1e-7]) == "B less A is 0.000 (95 % interval 0.000 to 0.000)"


def test_sentence_says_where_few_truths_make_ap_too_high() -> None:
    """Each of 30 classes has three truths, two of them found behind a false positive each."""
    truths: Record = {
        "images": [{"id": image} for image in range(90)],
        "categories": [{"id": category, "name": str(category)} for category in range(30)],
        "annotations": [
            {"id": image + 1, "image_id": image, "category_id": image // 3, "bbox": [0, 0, 9, 9]}
            for image in range(90)
        ],
    }
    detections = [
        {"image_id": image, "category_id": image // 3, "bbox": [x, x, 9, 9], "score": score}
        for image in range(90)
        if image % 3
        for x, score in ((0, 0.5 + image % 3 / 10), (50, 0.7))
    ]
    interval = evaluate(truths, detections).interval()
    assert interval.bias > 0.01
    assert interval.bias == pytest.approx(
        interval.resamples.drawn[:, 0].mean() - interval.AP.estimate
    )
    assert interval.as_dict()["bias"] == interval.bias
    text = f"; classes with few truths make AP too high, by about {interval.bias:.3f} or more)"
    assert interval.sentence().endswith(text)
    assert "too high" not in evaluate(*make_case(0, images=100)).interval().sentence()


@pytest.mark.parametrize(
    ("images", "with_truths", "reason"),
    [
        (0, 0, "it takes 2 images, and there are none"),
        (1, 1, "it takes 2 images, and there is 1"),
        (3, 0, "it takes 2 images with truths, and there are none"),
        (3, 1, "it takes 2 images with truths, and there is 1"),
        (3, 2, None),
    ],
)
def test_too_little_for_an_interval(images: int, with_truths: int, reason: str | None) -> None:
    truths: Record = {
        "images": [{"id": image} for image in range(images)],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [
            {"id": image + 1, "image_id": image, "category_id": 1, "bbox": [0, 0, 9, 9]}
            for image in range(with_truths)
        ],
    }
    result = evaluate(truths, [])
    interval = result.interval(resamples=10)
    assert interval.reason == reason
    difference = compare(result, result, resamples=10)
    for record in (interval.as_dict(), difference.as_dict()):
        json.dumps(record, allow_nan=False)
    interval.table(), difference.table()
    if reason is None:
        assert interval.AP == (0, 0, 0)  # nothing is found in any resample
    else:
        assert np.isnan(interval.AP[1:]).all()
        assert interval.sentence() == f"no interval: {reason}"
        assert difference.sentence().endswith(f"(no interval: {reason})")
        assert difference.better is None


def test_numbers_that_are_none_have_no_interval() -> None:
    truths, detections = make_case(4)
    detections[0]["bbox"] = [np.nan, 0.0, 5.0, 5.0]
    result = evaluate(truths, detections, strict=True)
    reason = "no interval: it takes boxes, areas and scores that are finite numbers"
    assert result.interval(resamples=10).sentence() == reason
    difference = compare(evaluate(truths, detections[1:], strict=True), result, resamples=10)
    assert difference.sentence().endswith(f"({reason})")


def test_a_class_in_one_image_has_no_interval() -> None:
    truths, detections = make_case(4)
    truths["annotations"] = [a for a in truths["annotations"] if a["category_id"] != 9]
    image = {"image_id": 3, "category_id": 9, "bbox": [5, 5, 40, 40]}
    truths["annotations"].append({**image, "id": 999})
    interval = evaluate(truths, [*detections, {**image, "score": 1.0}]).interval(resamples=50)
    rare = interval.per_class()[2].AP
    assert rare.estimate == pytest.approx(1.0)
    assert np.isnan(rare.low) and np.isnan(rare.high)
    assert not np.isnan(interval.AP.low)


def test_intervals_stay_within_what_ap_can_be() -> None:
    truths, _ = make_case(11, images=12)
    perfect = [{**a, "score": 1.0} for a in truths["annotations"] if not a["iscrowd"]]
    interval = evaluate(truths, perfect).interval(resamples=50)
    assert interval.AP == (1, 1, 1)
    for found in perfect[:2]:
        found["bbox"] = [900.0, 900.0, 5.0, 5.0]
    assert evaluate(truths, perfect).interval(resamples=50).AP.high <= 1


def test_other_ground_truth_is_refused(tmp_path: Path) -> None:
    truths, detections = make_case(2)
    result = evaluate(truths, detections)
    fewer = {**truths, "images": truths["images"][:-1]}
    moved = copy.deepcopy(truths)
    moved["annotations"][0]["bbox"][0] += 1
    evaluator = CocoEvaluator.from_coco(truths, iou_thresholds=[0.5])
    only = {**truths, "categories": truths["categories"][:2]}
    for other, what in [
        (evaluate(fewer, []), r"image_ids \(30 and 29\)"),
        (evaluate(only, []), r"category_ids \(3 and 2\)"),
        (evaluate(moved, detections), r"truths \(\d+ and \d+\)"),
        (evaluator.compute(), "settings"),
    ]:
        with pytest.raises(ValueError, match=f"same ground truth.* the {what}.* differ"):
            compare(result, other, resamples=10)


@pytest.mark.parametrize("resamples", [1, -3])
def test_number_of_resamples(resamples: int) -> None:
    message = f"resamples must be 0, for no interval, or at least 2, got {resamples}"
    with pytest.raises(ValueError, match=message):
        evaluate(*make_case(2)).interval(resamples)


def test_without_resamples() -> None:
    truths, detections = make_case(2)
    a, b = evaluate(truths, detections), evaluate(truths, detections[10:])
    interval = a.interval(resamples=0)
    assert interval.AP.estimate == pytest.approx(a.stats[0])
    assert interval.sentence() == "no interval: no resamples were asked for"
    assert compare(a, b, resamples=0, names=("plain", "fewer")).sentence() == (
        f"fewer less plain is {b.stats[0] - a.stats[0]:.3f} "
        "(no interval: no resamples were asked for)"
    )


def test_both_backends_give_the_same_bits() -> None:
    if load_native()[0] is None:
        pytest.skip("no compiled evaluator")
    for seed, tied in [(21, False), (22, True)]:
        result = evaluate(*make_case(seed, images=120, tied=tied))
        drawn = []
        for name in ("numpy", "compiled"):
            with using(name):
                drawn.append(replace(result).interval(resamples=70).resamples)
        for name in ("numbers", "drawn", "of_classes", "drawn_of_classes"):
            first, second = (getattr(each, name) for each in drawn)
            assert first.tobytes() == second.tobytes(), name


ARRAYS = {
    "truth_image": np.array([0, 2]),
    "image": np.array([1, 2]),
    "settled": np.array([0, 1]),
    "right": np.ones((1, 2), bool),
    "ignored": np.zeros((1, 2), bool),
    "weights": np.ones((4, 3), np.uint32),
    "precision": np.zeros((4, 1)),
    "sizes": np.array([4, 3, 1]),
}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("truth_image", np.array([0, 3]), "images must lie in"),
        ("image", np.array([1, -1]), "images must lie in"),
        ("settled", np.array([0, 2]), "settled must ascend"),
        ("settled", np.array([1, 0]), "settled must ascend"),
        ("settled", np.array([0, 0]), "settled must ascend"),
        ("right", np.ones((1, 3), bool), "right and ignored"),
        ("ignored", np.ones((2, 2), bool), "right and ignored"),
        ("weights", np.ones((4, 2), np.uint32), "weights must be"),
        ("precision", np.zeros((4, 2)), "precision must be"),
        ("sizes", np.array([4, -3, 1]), "must be"),
        ("sizes", np.array([2**31, 3, 1]), "at most"),
        ("sizes", np.array([4, 3, 2**16]), "at most"),
        ("sizes", np.array([4, 2**40, 1]), "at most"),
    ],
)
def test_compiled_code_refuses_what_does_not_fit(name: str, value: Any, message: str) -> None:
    module, fault = load_native()
    if module is None:
        pytest.skip(fault)
    for arrays in (ARRAYS, {**ARRAYS, name: value}):
        *columns, weights, precision, sizes = arrays.values()
        arguments = (tuple(columns), weights, precision, *sizes.tolist())
        if arrays is ARRAYS:
            module.weigh_class(*arguments)
            assert (precision == 1).all()
        else:
            with pytest.raises(ValueError, match=message):
                module.weigh_class(*arguments)


@pytest.mark.parametrize("truths", [1, 7, 29, 100, 57 * 3, 1000])
def test_levels_of_recall_are_those_of_the_grid(truths: int) -> None:
    """Each found count of so many truths reaches the levels that a comparison says."""
    found = np.arange(truths + 1)
    levels = (np.linspace(0, 1, 101) <= (found / truths)[:, None]).sum(axis=1)
    for count, expected in zip(
        found.tolist()[1 :: max(1, truths // 60)],
        levels.tolist()[1 :: max(1, truths // 60)],
        strict=True,
    ):
        image = np.arange(count)
        ranking = resampling.ClassRanking(
            truth_image=np.arange(truths),
            image=image,
            settled=image,
            right=np.ones((1, count), bool),
            ignored=np.zeros((1, count), bool),
        )
        weights = np.ones((1, truths), np.int64)
        (precision,) = weighted_precision([ranking], weights)
        assert precision.item() == pytest.approx(expected / 101, abs=1e-9)
