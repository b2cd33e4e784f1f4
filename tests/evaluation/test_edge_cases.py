"""Inputs on which evaluators disagree, from JSON files and from memory, beside pycocotools."""

from __future__ import annotations

import re
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.evaluator_edge_cases import (
    CASES,
    SOURCES,
    Case,
    Numbers,
    Record,
    backends,
    dataset,
    detection,
    from_files,
    numbers_of,
    outcomes_of,
    run_pycocotools,
    same_bits,
    truth,
    write_files,
)
from detkit.evaluation.backend import using
from detkit.evaluation.result import STATISTICS

NAMES = [statistic.name for statistic in STATISTICS]


@pytest.fixture(params=["compiled", "numpy"])
def code(request):
    """Evaluates with each backend in turn."""
    try:
        with using(request.param):
            yield request.param
    except ValueError as error:
        if "compiled evaluator is chosen" not in str(error):
            raise
        pytest.skip(str(error))


def named(**fields: str) -> list[str]:
    return [
        name
        for name, case in CASES.items()
        if all(getattr(case, k) == v for k, v in fields.items())
    ]


def assert_same(mine: Numbers, theirs: Numbers) -> None:
    for name, a, b in zip(
        ("precision", "recall", "scores"), mine.arrays, theirs.arrays, strict=True
    ):
        np.testing.assert_array_equal(a, b, err_msg=name)
    assert same_bits(mine, theirs)


@cache
def reference(name: str, source: str = "files") -> Numbers:
    if source != "files":
        return run_pycocotools(CASES[name], None)
    with tempfile.TemporaryDirectory() as folder:
        write_files(CASES[name], Path(folder))
        return run_pycocotools(CASES[name], Path(folder))


@pytest.mark.parametrize("name", named(raises=""))
def test_strict_gives_the_bits_of_pycocotools(name, code, tmp_path):
    case = CASES[name]
    write_files(case, tmp_path)
    for source, evaluate in SOURCES.items():
        result = evaluate(case, tmp_path, strict=True)
        assert_same(numbers_of(result), reference(name, "files" if source == "files" else "memory"))
        assert result.notes == ()


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name].raises])
@pytest.mark.parametrize("memory", [False, True])
def test_pycocotools_raises(name, memory, tmp_path):
    case = CASES[name]
    write_files(case, tmp_path)
    with pytest.raises((AssertionError, IndexError, KeyError)) as error:
        run_pycocotools(case, None if memory else tmp_path)
    assert error.type.__name__ == case.raises


@pytest.mark.parametrize("name", named(default="equal"))
@pytest.mark.parametrize("source", SOURCES)
def test_default_is_pycocotools_where_that_is_right(name, source, tmp_path):
    case = CASES[name]
    write_files(case, tmp_path)
    result = SOURCES[source](case, tmp_path, strict=False)
    assert_same(numbers_of(result), reference(name))
    assert result.notes == ()


@pytest.mark.parametrize("name", named(default="noted"))
@pytest.mark.parametrize("source", SOURCES)
def test_default_says_which_numbers_differ(name, source, code, tmp_path):
    case = CASES[name]
    write_files(case, tmp_path)
    result = SOURCES[source](case, tmp_path, strict=False)
    theirs = reference(name)
    text = " ".join(result.notes)
    said = {
        key: (float(mine), float(other))
        for key, mine, other in re.findall(r"(\w+) (\S+) \(pycocotools: (\S+)\)", text)
    }
    assert theirs.stats is not None
    differing = {
        key: (mine, other)
        for key, mine, other in zip(NAMES, result.stats, theirs.stats, strict=True)
        if mine != other
    }
    assert differing and said.keys() == differing.keys()
    for key, pair in differing.items():
        assert said[key] == pytest.approx(pair, abs=5e-4)
    assert all("\n" not in note for note in result.notes)


@pytest.mark.parametrize("name", named(default="warned"))
def test_default_says_that_numbers_differ(name, tmp_path):
    write_files(CASES[name], tmp_path)
    result = from_files(CASES[name], tmp_path, strict=False)
    assert not same_bits(numbers_of(result), reference(name)) and len(result.notes) == 1


@pytest.mark.parametrize("name", named(default="evaluated"))
@pytest.mark.parametrize("source", SOURCES)
def test_default_evaluates_what_pycocotools_cannot(name, source, code, tmp_path):
    case = CASES[name]
    write_files(case, tmp_path)
    result = SOURCES[source](case, tmp_path, strict=False)
    known = result.stats[result.stats > -1]
    assert set(known.round(12)) <= ({0.0} if not case.detections else {1.0})
    assert (len(known) > 0) == bool(case.truths["annotations"])
    assert len(result.notes) == int(name == "no detection")


@pytest.mark.parametrize("name", named(default="refused"))
@pytest.mark.parametrize("source", SOURCES)
def test_default_refuses_what_has_no_right_answer(name, source, tmp_path):
    case = CASES[name]
    write_files(case, tmp_path)
    with pytest.raises(ValueError) as error:
        SOURCES[source](case, tmp_path, strict=False)
    message = str(error.value)
    assert "\n" not in message
    place = str(tmp_path) if source == "files" else r"ground truth|detections|image_id"
    assert re.match(place, message), message


def test_a_limit_of_300_is_said_and_printed(tmp_path):
    """AP is that of the largest limit, in the 12 lines as well."""
    case = CASES["limits without 100"]
    write_files(case, tmp_path)
    result = from_files(case, tmp_path, strict=False)
    assert result.summary().splitlines()[0].endswith("maxDets=  3 ] = 0.667")
    assert result.notes == (
        "AP 0.667 (pycocotools: -1.000): it is that of the limit 3, pycocotools wants a limit of "
        "exactly 100",
    )


def test_curves_that_differ_where_the_12_numbers_do_not(tmp_path):
    """The one wrong match lies in an area range of its own, which has no line among the 12."""
    data = dict(CASES["annotation id 0 that is matched"].truths)
    tiny = {"tiny": (0.0, 200.0), "none": (1e6, 1e7)}
    case = Case(data, CASES["annotation id 0 that is matched"].detections, {"area_ranges": tiny})
    write_files(case, tmp_path)
    result = from_files(case, tmp_path, strict=False)
    assert result.stats.tolist() == [-1] * 12
    assert result.notes == (
        "the 12 numbers are those of pycocotools, not all curves: pycocotools counts a match with "
        "annotation id 0 as a miss",
    )


def test_the_table_has_a_row_for_a_case():
    row = outcomes_of("NaN as score", CASES["NaN as score"])
    assert row[:4] == ("NaN as score", "AP 1.000", "equal", "equal")
    assert row[4].startswith("refused: dt.json: [0]: 'score' must be a finite number")


# A coarse grid: overlaps exactly on thresholds, equal overlaps and equal scores are the rule.
NAN, INF = float("nan"), float("inf")
USUAL = st.tuples(
    st.sampled_from([0, 5, 10, 20]),
    st.sampled_from([0, 10]),
    *[st.sampled_from([10, 15, 20, 30, 40, 100, 0])] * 2,
)
ODD = st.tuples(*[st.sampled_from([0, 10, 20, 0.1, -10, NAN, INF, -INF, 1e16, 1e200, 1e-200])] * 4)
AREAS = st.sampled_from([None, 0, 100, 1024, 9216, 9216.0000001, 1e10, 2e10, -1, NAN, INF])
USUAL_SCORES = st.sampled_from([0.5, 0.25, 0.75, 0, -1])
ODD_SCORES = st.sampled_from([0.5, 0.25, -0.0, 5e-324, NAN, INF, -INF, 2**53 + 1])
OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "max_dets": st.lists(st.sampled_from([1, 2, 3, 100]), min_size=3, max_size=3),
        "iou_thresholds": st.lists(st.sampled_from([0.0, 0.3, 0.5, 0.75, 1.0]), min_size=1),
        "use_categories": st.booleans(),
        "area_ranges": st.just(
            {"all": (0, 1e10), "small": (0, 300), "medium": (200, 400), "large": (400, 400)}
        ),
    },
)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    odd = draw(st.booleans())
    box, score = (USUAL | ODD, ODD_SCORES) if odd else (USUAL, USUAL_SCORES)
    images = draw(st.sampled_from([(8, 3, 1), ("b", "a10", "a9")]))
    categories = draw(st.sampled_from([(7, 2, 4), (7, 2, 2, 4), (2,)]))
    ids = st.integers(-1, 12) if draw(st.booleans()) else st.integers(1, 2**62)
    truths: list[Record] = []
    for _ in range(draw(st.integers(0, 10))):
        area = draw(AREAS) if odd or draw(st.booleans()) else None
        record = truth(
            draw(box),
            draw(st.sampled_from([*images, images[0] * 9])),
            draw(st.sampled_from([7, 2, 2, 50])),
            iscrowd=draw(st.sampled_from([0, 0, 0, 1])),
            id=draw(ids),
        )
        truths.append(record if area is None else {**record, "area": area})
    found = [
        detection(
            draw(box),
            draw(score),
            draw(st.sampled_from(images)),
            draw(st.sampled_from([7, 2, 2, 50])),
        )
        for _ in range(draw(st.integers(1, 14)))
    ]
    return Case(dataset(*truths, images=images, categories=categories), found, draw(OPTIONS))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(cases())
def test_random_cases_have_the_bits_of_pycocotools(case):
    with tempfile.TemporaryDirectory() as folder:
        write_files(case, Path(folder))
        theirs = run_pycocotools(case, Path(folder))
        for code in backends():
            for evaluate in SOURCES.values():
                with using(code):
                    assert_same(numbers_of(evaluate(case, Path(folder), strict=True)), theirs)
