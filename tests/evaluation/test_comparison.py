"""Variants over several seeds: Welch's interval, and what the table, the words and the plot say."""

from __future__ import annotations

import csv
import json
import math

import pytest

from detkit.evaluation.comparison import (
    Comparison,
    RelativeLatency,
    SeedScore,
    Variant,
    t_quantile,
    welch_interval,
)
from detkit.evaluation.comparison_plot import comparison_figure, draw_comparison


def variant(name: str, *aps: float, planned: int = 3, ms: float | None = None) -> Variant:
    scores = tuple(SeedScore(seed, ap, ap + 0.2) for seed, ap in enumerate(aps))
    latency = None if ms is None else RelativeLatency(ms, ms / 10)
    return Variant((name,), 1_234_567, planned, scores, latency)


def compared(*variants: Variant) -> Comparison:
    return Comparison(("attention",), variants)


# ------------------------------------------------------------------------------------------ rule


@pytest.mark.parametrize(
    ("freedom", "expected"),  # of any table of Student's t
    [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (10, 2.228), (30, 2.042), (1e5, 1.960)],
)
def test_t_quantile(freedom: float, expected: float) -> None:
    assert t_quantile(freedom) == pytest.approx(expected, abs=5e-4)


def test_t_quantile_of_one_degree_is_a_tangent() -> None:
    assert t_quantile(1, 0.5) == pytest.approx(1)
    assert t_quantile(1, 0.9) == pytest.approx(math.tan(0.45 * math.pi))


@pytest.mark.parametrize(
    ("scores", "baseline"),
    [
        ((0.42, 0.44, 0.46), (0.40, 0.41, 0.42)),
        ((0.1, 0.3), (0.2, 0.21, 0.25, 0.22)),
        ((0.5, 0.5, 0.51), (0.40, 0.42, 0.41)),
    ],
)
def test_welch_interval_equals_scipy(scores: list[float], baseline: list[float]) -> None:
    stats = pytest.importorskip("scipy.stats")
    theirs = stats.ttest_ind(scores, baseline, equal_var=False)
    found = welch_interval(scores, baseline)
    assert found is not None
    bounds = theirs.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((bounds.low, bounds.high), rel=1e-4)
    assert found.difference == pytest.approx((found.low + found.high) / 2)
    assert found.beyond_spread == (theirs.pvalue < 0.05)


@pytest.mark.parametrize(
    ("scores", "reach"),
    [
        ((0.45, 0.46, 0.47), 2.7764 * math.sqrt(2e-4 / 3)),  # variances 1e-4 both: 4 degrees
        ((0.46, 0.46, 0.46), 4.3027 * math.sqrt(1e-4 / 3)),  # all that there is: 2 degrees
    ],
)
def test_welch_interval_by_hand(scores: list[float], reach: float) -> None:
    found = welch_interval(scores, (0.40, 0.41, 0.42))
    assert found is not None
    assert found == pytest.approx((0.05, 0.05 - reach, 0.05 + reach), abs=2e-6)


@pytest.mark.parametrize(
    ("scores", "baseline", "beyond"),
    [
        ((0.5, 0.5), (0.5, 0.5), False),
        ((0.6, 0.6), (0.5, 0.5), True),
        ((0.4, 0.4), (0.5, 0.5), True),
        ((0.4, 0.41, 0.42), (0.38, 0.40, 0.42), False),
    ],
)
def test_beyond_spread(scores: list[float], baseline: list[float], beyond: bool) -> None:
    found = welch_interval(scores, baseline)
    assert found is not None
    assert found.beyond_spread is beyond


@pytest.mark.parametrize(("scores", "baseline"), [((0.5,), (0.4, 0.41)), ((0.5, 0.6), ())])
def test_one_seed_has_no_spread(scores: list[float], baseline: list[float]) -> None:
    assert welch_interval(scores, baseline) is None


# ----------------------------------------------------------------------------------------- words


def test_table() -> None:
    table = compared(
        variant("none", 0.40, 0.41, 0.42, ms=10),
        variant("se", 0.45, 0.46, 0.47, ms=11),
        variant("eca", 0.35, 0.36, 0.37, ms=12.34),
        variant("cbam", 0.41, 0.43, 0.42),
        variant("coord", 0.43),
        variant("simam"),
    ).table()
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in table.splitlines()]
    assert cells[0] == [
        *("attention", "seeds", "params (M)", "ms (ratio)", "AP", "min to max", "std", "AP50"),
        *("difference (95 % interval)", "beyond the spread?"),
    ]
    assert set("".join(cells[1])) == {"-"}
    shared = ["0.410", "0.400 to 0.420", "0.010", "0.610"]
    assert cells[2:] == [
        ["none", "3", "1.235", "10.0 (1.00)", *shared, "-", "-"],
        [
            *("se", "3", "1.235", "11.0 (1.10)", "0.460", "0.450 to 0.470", "0.010", "0.660"),
            *("+0.050 (+0.027 to +0.073)", "yes, higher"),
        ],
        [
            *("eca", "3", "1.235", "12.3 (1.23)", "0.360", "0.350 to 0.370", "0.010", "0.560"),
            *("-0.050 (-0.073 to -0.027)", "yes, lower"),
        ],
        [
            *("cbam", "3", "1.235", "-", "0.420", "0.410 to 0.430", "0.010", "0.620"),
            *("+0.010 (-0.013 to +0.033)", "no"),
        ],
        [
            *("coord", "1 of 3", "1.235", "-", "0.430", "0.430 to 0.430", "-", "0.630"),
            *("+0.020", "unknown"),
        ],
        ["simam", "0 of 3", "1.235", "-", "-", "-", "-", "-", "-", "-"],
    ]
    assert len({len(line) for line in table.splitlines()}) == 1  # aligned


FIRST = variant("none", 0.40, 0.41, 0.42)
HIGHER = variant("se", 0.45, 0.46, 0.47)
LOWER = variant("eca", 0.35, 0.36, 0.37)
SAME = variant("cbam", 0.41, 0.43, 0.42)
ONE = variant("coord", 0.9)


@pytest.mark.parametrize(
    ("others", "sentence"),
    [
        ((), "One variant only: its spread is what any change has to exceed."),
        ((SAME,), "No difference is larger than the spread of the seeds."),
        ((SAME, ONE), "No difference is larger than the spread of the seeds (1 without a known sp"),
        ((ONE,), "Nothing can be said about the differences: that takes two seeds each at least."),
        (
            (HIGHER, LOWER),
            "Larger than the spread of the seeds: se (+0.050), eca (-0.050), compared with none.",
        ),
        (
            (SAME, HIGHER),
            "Larger than the spread of the seeds: se (+0.050), compared with none; of the others",
        ),
    ],
)
def test_conclusion(others: tuple[Variant, ...], sentence: str) -> None:
    assert compared(FIRST, *others).conclusion().startswith(sentence)


def test_cautions() -> None:
    text = "\n".join(compared(FIRST, SAME, variant("se", 0.40, 0.50, 0.60)).cautions())
    assert "difference to none" in text
    # of equal variances as above, and sqrt((1e-4 + 100e-4) / 3) * t(2.04) = 0.0580 * 4.22
    assert "reaches 0.023 to 0.245 to either side" in text
    assert "somewhere in 2 comparisons has a chance of up to about 10%" in text
    assert compared(FIRST, ONE).cautions() == []


def test_text_holds_everything() -> None:
    comparison = Comparison(("attention",), (FIRST, SAME), ("a note",))
    lines = comparison.text().splitlines()
    assert lines[:4] == comparison.table().splitlines()
    assert lines[4:6] == ["", f"- {comparison.conclusion()}"]
    assert lines[-1] == "- a note"


def test_records() -> None:
    first, higher = variant("none", 0.40, 0.41, 0.42, ms=10), variant("se, 2", 0.45, 0.46, 0.47)
    comparison = compared(first, higher, variant("eca"))
    content = json.loads(json.dumps(comparison.as_dict(), allow_nan=False))
    assert content["keys"] == ["attention"]
    assert [v["values"] for v in content["variants"]] == [["none"], ["se, 2"], ["eca"]]
    assert content["variants"][1]["scores"][2] == {
        "seed": 2,
        "ap": 0.47,
        "ap50": pytest.approx(0.67),
    }
    assert content["variants"][1]["beyond_spread"] is True
    assert content["variants"][0]["latency_ms"] == 10
    assert content["variants"][2]["AP_mean"] is None

    rows = list(csv.DictReader(comparison.csv().splitlines()))
    assert [row["attention"] for row in rows] == ["none", "se, 2", "eca"]
    assert float(rows[1]["AP_mean"]) == pytest.approx(0.46)
    assert float(rows[1]["difference_low"]) == pytest.approx(0.0273, abs=1e-4)
    assert (rows[0]["difference"], rows[1]["latency_ms"], rows[2]["AP_std"]) == ("", "", "")
    assert float(rows[0]["AP_std"]) == pytest.approx(0.01)


def test_nothing_varied() -> None:
    only = Variant((), 10, 2, (SeedScore(0, 0.5, 0.7), SeedScore(1, 0.6, 0.8)))
    comparison = Comparison((), (only,))
    assert comparison.table().splitlines()[0].startswith("| seeds | params (M) |")
    assert comparison.csv().startswith("seeds,parameters,")
    assert draw_comparison(comparison).startswith(b"\x89PNG")


# ------------------------------------------------------------------------------------------ plot


def test_figure_shows_every_seed() -> None:
    comparison = compared(
        variant("none", 0.40, 0.41, 0.42, ms=10), variant("se", 0.45, 0.46, 0.47, ms=11)
    )
    seeds, cost = comparison_figure(comparison).axes
    dots = [line.get_ydata() for line in seeds.lines if line.get_linestyle() == "None"]
    assert [list(each) for each in dots] == [[0.40, 0.41, 0.42], [0.45, 0.46, 0.47]]
    assert [label.get_text() for label in seeds.get_xticklabels()] == ["none", "se"]
    assert [(*line.get_xdata(), *line.get_ydata()) for line in cost.lines] == [
        pytest.approx((10, 0.41)),
        pytest.approx((11, 0.46)),
    ]
    ranges = [collection.get_segments()[0].tolist() for collection in cost.collections]
    assert ranges == [[[10, 0.40], [10, 0.42]], [[11, 0.45], [11, 0.47]]]
    assert [text.get_text() for text in cost.texts] == ["none", "se"]
    assert "ms" in cost.get_xlabel()
    colors = [line.get_color() for line in cost.lines]
    assert len(set(colors)) == 2  # beyond the spread is marked


def test_figure_without_latency_shows_parameters() -> None:
    _, cost = comparison_figure(compared(FIRST, SAME, variant("simam"))).axes
    assert "parameters" in cost.get_xlabel()
    assert [line.get_xdata()[0] for line in cost.lines] == pytest.approx([1.234567] * 2)
