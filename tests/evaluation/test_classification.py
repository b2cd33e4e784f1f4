"""Numbers of classifiers: by hand, by slow references, and scikit-learn's."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from detkit.evaluation.classification import ClassificationResult, evaluate_classifier


def random_outputs() -> tuple[np.ndarray, np.ndarray]:
    """Logits of 60 samples with ties, and labels; the last of 6 classes has no sample."""
    rng = np.random.default_rng(7)
    raw, labels = rng.random((60, 6)), rng.integers(0, 6, 60)
    labels[labels == 5] = 4
    raw[np.arange(60), labels] += 0.4
    return np.round(raw, 1) * 3, labels


@pytest.fixture
def result() -> ClassificationResult:
    """Two of three cats are recognised and one of two dogs; birds are never the answer."""
    answers = [0, 0, 1, 1, 0, 0]
    labels = [0, 0, 0, 1, 1, 2]
    return evaluate_classifier(3.0 * np.eye(3)[answers], labels, class_names=["cat", "dog", "bird"])


def test_by_hand(result: ClassificationResult) -> None:
    assert result.confusion.tolist() == [[2, 1, 0], [1, 1, 0], [1, 0, 0]]
    cat, dog, bird = result.per_class()
    assert (cat.precision, cat.recall) == (2 / 4, 2 / 3)
    assert cat.f1 == pytest.approx(4 / 7)
    assert (dog.precision, dog.recall, dog.f1) == (1 / 2, 1 / 2, 1 / 2)
    assert math.isnan(bird.precision) and (bird.recall, bird.f1) == (0, 0)
    # cats against the rest: score high 2 of 3, low 1; the others high 2 of 3, low 1
    assert cat.auc == pytest.approx((2 * 1 + (2 * 2 + 1 * 1) / 2) / 9)
    assert bird.auc == 0.5
    numbers = result.numbers()
    assert numbers["accuracy"] == 0.5
    assert numbers["precision"] == pytest.approx((2 / 4 + 1 / 2 + 0) / 3)
    assert numbers["recall"] == pytest.approx((2 / 3 + 1 / 2) / 3)
    confidence = math.e**3 / (math.e**3 + 2)
    assert numbers["ece"] == pytest.approx(confidence - 0.5)


def test_scikit_learn_and_torchmetrics() -> None:
    """scikit-learn 1.9.1 (macro over classes with samples), torchmetrics 1.9.0 and netcal 1.4.0."""
    numbers = evaluate_classifier(*random_outputs()).numbers()
    expected = {
        "accuracy": 0.5333333333333333,
        "precision": 0.5257575757575758,
        "recall": 0.514090909090909,
        "f1": 0.5160137039986852,
        "auc": 0.8501262610198186,
        "ece": 0.18022333507070923,
    }
    assert {key: numbers[key] for key in expected} == pytest.approx(expected, abs=1e-12)


def test_slow_references() -> None:
    logits, labels = random_outputs()
    found = evaluate_classifier(logits, labels)
    for k in (1, 2, 5):
        best = [np.argsort(-row, kind="stable")[:k].tolist() for row in logits]
        hits = [label in row for label, row in zip(labels, best, strict=True)]
        assert found.top(k) == pytest.approx(np.mean(hits))
    assert found.accuracy == (logits.argmax(axis=1) == labels).mean()
    for label, curve in enumerate(found.roc.classes[:5]):
        own = found.probabilities[:, label]
        pairs = [(p > n) + (p == n) / 2 for p in own[labels == label] for n in own[labels != label]]
        assert curve.auc == pytest.approx(np.mean(pairs))
    none = found.per_class()[5]  # an answer at times, and always a wrong one
    assert none.answers and none.precision == 0
    assert math.isnan(none.recall) and math.isnan(none.f1) and math.isnan(none.auc)


def test_micro_average_is_accuracy() -> None:
    found = evaluate_classifier(*random_outputs())
    right = np.trace(found.confusion)
    wrong = found.confusion.sum(axis=0) - np.diag(found.confusion)
    missed = found.confusion.sum(axis=1) - np.diag(found.confusion)
    assert found.accuracy == right / (right + wrong.sum()) == right / (right + missed.sum())


def test_logits_and_probabilities_agree() -> None:
    logits, labels = random_outputs()
    logits = np.round(logits * 4) / 4  # exact, so that what is added below makes no other ties
    powers = np.exp(logits)
    probabilities = powers / powers.sum(axis=1, keepdims=True)
    found = evaluate_classifier(probabilities, labels, logits=False)
    assert found.numbers() == pytest.approx(evaluate_classifier(logits, labels).numbers())
    far = evaluate_classifier(logits + 1e4, labels)  # exp of that is no number
    assert far.numbers() == pytest.approx(found.numbers())


def test_top_5_of_few_classes_says_nothing(result: ClassificationResult) -> None:
    assert math.isnan(result.top5) and result.as_dict()["top5"] is None
    assert evaluate_classifier(*random_outputs()).top5 == 1


def test_table_and_json(result: ClassificationResult) -> None:
    assert result.table().splitlines() == [
        "accuracy 0.500, ECE 0.409",
        "class  samples  precision  recall     F1    AUC",
        "cat          3      0.500   0.667  0.571  0.500",
        "dog          2      0.500   0.500  0.500  0.625",
        "bird         1          -   0.000  0.000  0.500",
        "mean         6      0.333   0.389  0.357  0.542",
    ]
    content = result.as_dict()
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    assert content["per_class"][2]["precision"] is None


@pytest.mark.parametrize("classes", [0, 3])
def test_no_samples(classes: int) -> None:
    found = evaluate_classifier(np.zeros((0, classes)), [])
    assert all(math.isnan(value) for value in found.numbers().values())
    assert found.confusion.shape == (classes, classes)
    assert found.table().splitlines()[-1].split() == ["mean", "0", "-", "-", "-", "-"]


@pytest.mark.parametrize(
    ("outputs", "labels", "settings", "message"),
    [
        ([0.5, 0.5], [0], {}, r"must be \[N, K\] and \[N\], got \[2\] and \[1\]"),
        ([[0.5, 0.5]], [0, 1], {}, r"got \[1, 2\] and \[2\]"),
        ([[0.5, 0.5]], [2], {}, r"labels must lie in 0\.\.1, got 2"),
        ([[0.5, 0.5]], [-1], {}, r"labels must lie in 0\.\.1, got -1"),
        ([[0.5, 0.5]], [1], {"class_names": ["a"]}, "outputs are of 2 classes, class_names of 1"),
        ([[1, 2], [1, math.nan]], [0, 1], {}, r"outputs\[1\] must be finite, got \[1.0, nan\]"),
        ([[0.5, 0.6]], [1], {"logits": False}, r"outputs\[0\] must be probabilities that add up"),
        ([[1.5, -0.5]], [1], {"logits": False}, "pass logits=True if they are logits"),
    ],
)
def test_mistakes(outputs: list, labels: list, settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        evaluate_classifier(outputs, labels, **settings)
    assert "\n" not in str(caught.value)
