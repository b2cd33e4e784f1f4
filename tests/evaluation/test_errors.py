"""TIDE: types and costs beside those of the authors' package, tidecv 1.0.1."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from detkit.evaluation import CocoEvaluator
from detkit.evaluation.coco_json import read_detections, read_truths
from detkit.evaluation.errors import ERRORS, ErrorAnalysis, ErrorKind, analyse_errors

Record = dict[str, Any]
Box = tuple[float, float, float, float]
UNIT: Box = (0, 0, 10, 10)
FAR: Box = (50, 50, 10, 10)
LABELS = [error.label for error in ERRORS]


def as_coco(
    truths: list[tuple[int, Box]],
    detections: list[tuple[int, Box, float]],
    *,
    crowds: list[tuple[int, Box]] = (),  # type: ignore[assignment]
) -> tuple[Record, list[Record]]:
    """One image, three categories; (category, box) and (category, box, score)."""
    annotations = [
        {"id": i, "image_id": 1, "category_id": category, "bbox": list(box), "iscrowd": crowd}
        for i, (category, box, crowd) in enumerate(
            [(*truth, 0) for truth in truths] + [(*truth, 1) for truth in crowds], 1
        )
    ]
    found = [
        {"image_id": 1, "category_id": category, "bbox": list(box), "score": score}
        for category, box, score in detections
    ]
    categories = [{"id": k, "name": f"class {k}"} for k in (1, 2, 3)]
    return {"images": [{"id": 1}], "categories": categories, "annotations": annotations}, found


def analyse(case: tuple[Record, list[Record]], **options: Any) -> ErrorAnalysis:
    truths = read_truths(case[0])
    return analyse_errors(truths, read_detections(case[1], truths), **options)


def kinds(analysis: ErrorAnalysis) -> list[str]:
    return [ErrorKind(kind).label for kind in analysis.kind.tolist()]


def numbers(analysis: ErrorAnalysis) -> list[float]:
    special = (analysis.delta_false_positives, analysis.delta_false_negatives)
    return [analysis.ap, *analysis.delta_ap.values(), *special]


# ------------------------------------------------------------------------------- checked by hand


@pytest.mark.parametrize(
    ("truths", "detections", "expected"),
    [
        pytest.param([(1, UNIT)], [(1, (0, 0, 10, 5), 0.9)], ["none"], id="overlap of a match"),
        pytest.param([(1, UNIT)], [(1, (0, 0, 10, 4), 0.9)], ["localisation"], id="a bit less"),
        pytest.param([(1, UNIT)], [(1, (0, 0, 10, 1), 0.9)], ["localisation"], id="a touch"),
        pytest.param([(1, UNIT)], [(1, (0, 0, 10, 0.9), 0.9)], ["background"], id="no touch"),
        pytest.param([(2, UNIT)], [(1, (0, 0, 10, 5), 0.9)], ["classification"], id="other class"),
        pytest.param([(2, UNIT)], [(1, (0, 0, 10, 4), 0.9)], ["both"], id="other class, less"),
        pytest.param([(2, UNIT)], [(1, (0, 0, 10, 1), 0.9)], ["background"], id="other, a touch"),
        pytest.param(
            [(1, UNIT)], [(1, UNIT, 0.9), (1, UNIT, 0.8)], ["none", "duplicate"], id="again"
        ),
        pytest.param(
            [(1, UNIT)],
            [(1, UNIT, 0.9), (1, (0, 0, 10, 5), 0.8)],
            ["none", "localisation"],
            id="again, overlap of a match",
        ),
        pytest.param(
            [(1, UNIT), (2, UNIT)],
            [(1, UNIT, 0.9), (1, UNIT, 0.8)],
            ["none", "classification"],
            id="classification goes before duplicate",
        ),
        pytest.param(
            [(1, (0, 0, 10, 3)), (2, UNIT)],
            [(1, (0, 0, 10, 9), 0.9)],
            ["localisation"],
            id="localisation goes before classification",
        ),
        pytest.param([], [(1, UNIT, 0.9)], ["background"], id="no truths"),
    ],
)
def test_types(truths: list[Any], detections: list[Any], expected: list[str]) -> None:
    analysis = analyse(as_coco(truths, detections))
    assert kinds(analysis) == expected
    counts = {label: expected.count(label) for label in LABELS if label != "missed"}
    assert {**analysis.counts, "missed": 0} == {**counts, "missed": 0}


def test_a_truth_at_which_an_error_points_is_not_missed() -> None:
    truths = [(1, UNIT), (1, FAR), (2, (100, 0, 10, 10)), (3, (0, 100, 10, 10))]
    found = [
        (1, (0, 0, 10, 3), 0.9),  # localisation
        (2, FAR, 0.9),  # classification
        (1, (100, 0, 10, 3), 0.9),  # both: corrects nothing
    ]
    analysis = analyse(as_coco(truths, found))
    assert kinds(analysis) == ["localisation", "classification", "both"]
    assert analysis.truth.tolist() == [0, 1, 2]
    assert analysis.missed.tolist() == [False, False, True, True]
    assert analysis.counts["missed"] == 2


def test_cost_of_a_background_error() -> None:
    """One truth; precision 1/2 at all levels as a wrong detection goes before the right one."""
    analysis = analyse(as_coco([(1, UNIT)], [(1, FAR, 0.9), (1, UNIT, 0.8)]))
    assert analysis.ap == pytest.approx(0.5)
    expected = dict.fromkeys(LABELS, 0.0) | {"background": pytest.approx(0.5)}
    assert analysis.delta_ap == expected
    assert analysis.delta_false_positives == pytest.approx(0.5)
    assert analysis.delta_false_negatives == pytest.approx(0.0)
    assert analysis.typical(ErrorKind.BACKGROUND).tolist() == [0]
    assert "background           1  0.5000" in analysis.table()


def test_cost_of_a_missed_truth() -> None:
    """Recall ends at 1/2, which 51 of the 101 levels reach."""
    analysis = analyse(as_coco([(1, UNIT), (1, FAR)], [(1, UNIT, 0.8)]))
    assert analysis.ap == pytest.approx(51 / 101)
    assert analysis.delta_ap["missed"] == pytest.approx(50 / 101)
    assert analysis.delta_false_negatives == pytest.approx(50 / 101)
    assert analysis.typical(ErrorKind.MISSED).tolist() == [1]


def test_a_corrected_class_counts_where_the_truth_is() -> None:
    """Class 2 holds nothing but the wrong detection: AP 0 before, no class any more after."""
    analysis = analyse(as_coco([(1, UNIT)], [(2, UNIT, 0.9)]))
    assert analysis.ap == 0
    assert analysis.delta_ap["classification"] == pytest.approx(1.0)


def test_only_the_best_of_the_errors_at_a_truth_is_corrected() -> None:
    """Localisation, 0.9, goes before classification, 0.8: the oracle of the latter drops it."""
    truths = [(1, UNIT), (1, FAR)]
    found = [(1, (0, 0, 10, 4), 0.9), (2, UNIT, 0.8), (1, FAR, 0.5)]
    analysis = analyse(as_coco(truths, found))
    half = 0.5 * 51 / 101  # class 1: the second of two is right, half of the truths found
    assert analysis.ap == pytest.approx(half / 2)
    assert analysis.delta_ap["localisation"] == pytest.approx(0.5 - half / 2)
    assert analysis.delta_ap["classification"] == pytest.approx(half - half / 2)


def test_a_crowd_excuses_but_is_no_truth() -> None:
    inside, half_inside = (0, 0, 5, 5), (0, 0, 10, 20)
    case = as_coco(
        [(1, FAR)],
        [(1, inside, 0.9), (1, half_inside, 0.8), (2, inside, 0.7), (1, FAR, 0.6)],
        crowds=[(1, UNIT)],
    )
    analysis = analyse(case)
    assert analysis.weighs.tolist() == [False, True, True, True]
    assert kinds(analysis) == ["background", "background", "background", "none"]
    assert analysis.typical(ErrorKind.BACKGROUND).tolist() == [1, 2]
    assert analysis.ap == pytest.approx((1 / 2 + 0) / 2)


def test_of_equal_overlaps_the_first_truth_is_taken() -> None:
    left, right = (0, 0, 10, 10), (10, 0, 10, 10)
    case = as_coco([(1, left), (1, right)], [(1, (0, 0, 20, 10), 0.8), (1, left, 0.7)])
    analysis = analyse(case)
    assert analysis.truth.tolist() == [0, 0]
    assert kinds(analysis) == ["none", "duplicate"]


def test_a_correction_gains_nothing_from_ties() -> None:
    """All score the same: the two right ones come first by the file, and last once corrected."""
    truths = [(1, UNIT), (1, FAR), (1, (100, 100, 10, 10))]
    wrong = [(1, (200 + 20 * i, 0, 10, 10), 0.8) for i in range(5)]
    analysis = analyse(as_coco(truths, [(1, UNIT, 0.8), (1, FAR, 0.8), *wrong]))
    assert analysis.ap == pytest.approx(67 / 101)  # recall 2/3 at precision 1
    assert analysis.delta_ap["missed"] == 0
    assert analysis.delta_false_negatives == pytest.approx(2 / 7 - 67 / 101)


def test_the_best_100_of_an_image_count() -> None:
    found = [(1, FAR, 0.9)] * 60 + [(2, FAR, 0.8)] * 40 + [(3, UNIT, 0.7)]
    analysis = analyse(as_coco([(3, UNIT)], found))
    assert analysis.ap == 0 and analysis.counts["missed"] == 1
    assert not analysis.weighs[100] and analysis.kind[100] == ErrorKind.NONE
    assert analyse(as_coco([(3, UNIT)], found), limit=101).counts["missed"] == 0


@pytest.mark.parametrize("truths", [[], [(1, UNIT)]])
@pytest.mark.parametrize("detections", [[], [(1, FAR, 0.9)]])
def test_empty(truths: list[Any], detections: list[Any]) -> None:
    analysis = analyse(as_coco(truths, detections))
    assert analysis.ap == 0 if truths or detections else np.isnan(analysis.ap)
    assert set(analysis.delta_ap.values()) == {0.0}
    assert analysis.counts["missed"] == len(truths)
    assert analysis.counts["background"] == len(detections)
    assert json.loads(json.dumps(analysis.as_dict()))["counts"] == analysis.counts
    assert len(analysis.table().splitlines()) == 10


@pytest.mark.parametrize(
    "options", [{"iou": 0.05}, {"background_iou": 0.0}, {"iou": 1.5}, {"limit": 0}]
)
def test_wrong_settings(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="got"):
        analyse(as_coco([], []), **options)


def test_errors_of_a_result() -> None:
    evaluator = CocoEvaluator.from_coco(as_coco([(1, UNIT), (1, FAR)], [])[0])
    evaluator.update(1, [[0, 0, 10, 10], [0, 0, 10, 3]], [0.9, 0.8], [1, 1])
    result = evaluator.compute()
    assert kinds(result.errors()) == ["none", "localisation"]
    assert kinds(result.errors(background_iou=0.4)) == ["none", "background"]


# ------------------------------------------------------------------------------------- tidecv


def random_case(seed: int) -> tuple[Record, list[Record]]:
    """Crowded images with crowds, equal scores, equal overlaps, more than 100 detections."""
    rng = np.random.RandomState(seed)  # its stream is the same in every numpy
    annotations: list[Record] = []
    detections: list[Record] = []
    for image in range(1, 9):
        boxes = np.concatenate([rng.randint(0, 30, (9, 2)), rng.randint(2, 20, (9, 2))], axis=1)
        categories = rng.randint(1, 5, 9)  # the fifth category has no truth
        for box, category in zip(boxes.tolist(), categories.tolist(), strict=True):
            crowd = int(rng.rand() < 0.1)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": category,
                    "bbox": box,
                    "iscrowd": crowd,
                }
            )
        for _ in range(130 if image == 3 else 25):
            row = rng.randint(9)
            near = boxes[row] + rng.randint(-2, 3, 4) * (rng.rand() < 0.7)
            box = near if rng.rand() < 0.8 else np.append(rng.randint(0, 40, 2), [8, 8])
            category = categories[row] if rng.rand() < 0.7 else rng.randint(1, 6)
            detections.append(
                {
                    "image_id": image,
                    "category_id": int(category),
                    "bbox": [*box[:2].tolist(), *box[2:].clip(1).tolist()],
                    "score": rng.randint(0, 60) / 60,
                }
            )
    order = rng.permutation(len(detections))
    records = {
        "images": [{"id": image} for image in range(1, 9)],
        "categories": [{"id": k, "name": str(k)} for k in range(1, 6)],
        "annotations": annotations,
    }
    return records, [detections[i] for i in order]


# AP, dAP of the six types, of false positives, of false negatives; a line for each seed
TIDECV = """
.26381059 .02829234 .08398513 .02291173 .03910102 .00976428 .02956043 .36985278 .05734453
.20579764 .01926501 .14755013 .00808092 .00956776 .01362721 .00038783 .36251920 .06345703
.22027228 .02559385 .10975228 .00093523 .00869035 .02482021 .00294243 .30646039 .07723281
.20790207 .02546132 .21008182 .01388805 .01343778 .01314626 .00911967 .35051378 .07814241
.08340517 .02961203 .15668657 .00586437 .00161995 .04584349 .01535936 .34827800 .06955978
"""


@pytest.mark.parametrize(
    ("seed", "overlaps", "counts"),
    [
        (0, (0.5, 0.1), [27, 70, 36, 47, 40, 9]),
        (1, (0.5, 0.1), [23, 61, 37, 51, 59, 4]),
        (2, (0.5, 0.1), [30, 72, 41, 57, 31, 6]),
        (3, (0.5, 0.1), [33, 68, 40, 55, 31, 4]),
        (4, (0.75, 0.3), [17, 76, 20, 15, 112, 11]),
    ],
)
def test_numbers_of_tidecv(seed: int, overlaps: tuple[float, float], counts: list[int]) -> None:
    analysis = analyse(random_case(seed), iou=overlaps[0], background_iou=overlaps[1])
    assert list(analysis.counts.values()) == counts
    expected = np.array(TIDECV.split(), float).reshape(5, 9)[seed]
    np.testing.assert_allclose(numbers(analysis), expected, rtol=0, atol=1e-8)


def test_numbers_of_tidecv_on_coco(shared_data) -> None:
    folder = shared_data / "coco_eval_reference"
    truths = read_truths(folder / "instances_val2014_100.json")
    detections = read_detections(folder / "instances_val2014_fakebbox100_results.json", truths)
    analysis = analyse_errors(truths, detections)
    assert list(analysis.counts.values()) == [83, 1, 0, 1, 0, 97]
    expected = [64.20498881733425, 22.2460397441685, 0.22789102370710168, 0, 0.018972971237033676]
    expected += [0, 8.523573787723365, 6.821587524510463, 17.684978535217184]
    np.testing.assert_allclose(numbers(analysis), np.array(expected) / 100, rtol=0, atol=1e-9)
