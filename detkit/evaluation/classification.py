"""How good a classifier is: one class for each picture, as the classifiers of `detkit.backbones`.

With one answer for each sample every wrong one is a false positive of one class and a false
negative of another, so that precision, recall and F1 over all samples (micro average) are the
accuracy; the macro average treats classes alike, however many samples they have (Sokolova and
Lapalme, "A systematic analysis of performance measures for classification tasks", 2009).

N samples, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from detkit.evaluation.calibration import Reliability, reliability
from detkit.evaluation.inputs import Floats, Ints
from detkit.evaluation.roc import Roc, mean_of_known, roc_curve
from detkit.evaluation.sweep import Sweep
from detkit.evaluation.tables import known, number, plain


@dataclass(frozen=True)
class ClassScores:
    """The numbers of one class; NaN where there is nothing to divide by.

    Attributes:
        name: of the class.
        samples: of the class.
        answers: how often it was the answer.
        precision: share of right ones in the answers.
        recall: share of the samples that were recognised.
        f1: harmonic mean of the two; 0 where the class is never the answer.
        auc: area under the ROC curve of the class against the rest.
    """

    name: str
    samples: int
    answers: int
    precision: float
    recall: float
    f1: float
    auc: float


@dataclass(frozen=True, eq=False)
class ClassificationResult:
    """Answers and truths of a classifier.

    Attributes:
        probabilities: `[N, K]`.
        labels: `[N]` in 0..K-1.
        class_names: K.
    """

    probabilities: Floats = field(repr=False)
    labels: Ints = field(repr=False)
    class_names: tuple[str, ...]

    @cached_property
    def rank(self) -> Ints:
        """Place of the right class among the answers, 0 the first; of equal ones in label order."""
        right = self.probabilities[np.arange(len(self.labels)), self.labels][:, None]
        ahead = self.probabilities > right
        ahead |= (self.probabilities == right) & (
            np.arange(len(self.class_names)) < self.labels[:, None]
        )
        return ahead.sum(axis=1)

    def top(self, k: int) -> float:
        """Share of samples whose class is among the k most likely; NaN without samples."""
        return float((self.rank < k).mean()) if len(self.labels) else np.nan

    @property
    def accuracy(self) -> float:
        """Share of right answers, also precision, recall and F1 over all samples (micro)."""
        return self.top(1)

    @property
    def top5(self) -> float:
        """Share of samples whose class is among the 5 most likely; NaN where 5 are all."""
        return self.top(5) if len(self.class_names) > 5 else np.nan

    @cached_property
    def confusion(self) -> Ints:
        """Counts of samples by class (rows) and answer (columns), `[K, K]`."""
        classes = len(self.class_names)
        if not len(self.labels):
            return np.zeros((classes, classes), np.int64)
        pairs = self.labels * classes + self.probabilities.argmax(axis=1)
        return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)

    @cached_property
    def roc(self) -> Roc:
        """The ROC curve of each class against the rest, by its probability."""
        curves = []
        for label, name in enumerate(self.class_names):
            of_class = self.labels == label
            sweep = Sweep.of(self.probabilities[:, label], of_class)
            samples = int(of_class.sum())
            counts = {"positives": samples, "negatives": len(of_class) - samples}
            curves.append(roc_curve(sweep, category_id=label, name=name, **counts))
        return Roc(tuple(curves))

    def reliability(self, bins: int = 15, *, equal_mass: bool = False) -> Reliability:
        """Probability of the answers against the share of right ones, and their ECE."""
        top = self.probabilities.max(axis=1, initial=0.0)
        return reliability(top, self.rank == 0, bins=bins, equal_mass=equal_mass)

    def per_class(self) -> list[ClassScores]:
        """The numbers of each class, in label order."""
        right, samples = np.diag(self.confusion), self.confusion.sum(axis=1)
        answers = self.confusion.sum(axis=0)
        precision, recall = _shares(right, answers), _shares(right, samples)
        f1 = _shares(2 * right, (samples + answers) * (samples > 0))
        return [
            ClassScores(
                curve.name,
                samples=int(samples[label]),
                answers=int(answers[label]),
                precision=float(precision[label]),
                recall=float(recall[label]),
                f1=float(f1[label]),
                auc=curve.auc,
            )
            for label, curve in enumerate(self.roc.classes)
        ]

    def numbers(self) -> dict[str, float]:
        """Accuracy, top 5, macro precision, recall, F1 and AUC, and ECE; NaN where unknown.

        The macro averages are over the classes that have samples; precision counts as 0 where one
        of these is never the answer.
        """
        rows = [row for row in self.per_class() if row.samples]
        return {
            "accuracy": self.accuracy,
            "top5": self.top5,
            "precision": mean_of_known([row.precision if row.answers else 0.0 for row in rows]),
            "recall": mean_of_known([row.recall for row in rows]),
            "f1": mean_of_known([row.f1 for row in rows]),
            "auc": self.roc.mean_auc,
            "ece": self.reliability().ece,
        }

    def table(self) -> str:
        """A line for each class, and the macro average."""
        rows = [["class", "samples", "precision", "recall", "F1", "AUC"]]
        for each in self.per_class():
            cells = map(number, (each.precision, each.recall, each.f1, each.auc))
            rows.append([each.name, str(each.samples), *cells])
        mean = self.numbers()
        last = [number(mean[key]) for key in ("precision", "recall", "f1", "auc")]
        rows.append(["mean", str(len(self.labels)), *last])
        head = f"accuracy {number(self.accuracy)}, ECE {number(mean['ece'])}"
        return f"{head}\n{plain(rows)}"

    def as_dict(self) -> dict[str, Any]:
        """The numbers, those of each class and the confusion matrix, ready for JSON."""
        rows = [
            {key: known(value) if isinstance(value, float) else value for key, value in row.items()}
            for row in map(asdict, self.per_class())
        ]
        numbers = {key: known(value) for key, value in self.numbers().items()}
        return {**numbers, "per_class": rows, "confusion": self.confusion.tolist()}


def _shares(part: Ints, whole: Ints) -> Floats:
    """NaN where the whole is 0."""
    return np.divide(part, whole, out=np.full(len(part), np.nan), where=whole > 0)


def evaluate_classifier(
    outputs: ArrayLike,
    labels: ArrayLike,
    *,
    class_names: Sequence[str] | None = None,
    logits: bool = True,
) -> ClassificationResult:
    """Compare the outputs of a classifier with the right classes.

    Args:
        outputs: `[N, K]` logits, or probabilities.
        labels: `[N]` in 0..K-1.
        class_names: K; default the labels.
        logits: the outputs are logits; otherwise probabilities, which add up to 1 in each row.

    Raises:
        ValueError: shapes or names that do not fit each other, labels out of range, outputs that
            are not finite, or that are no probabilities where they should be.
    """
    values, classes = np.asarray(outputs, np.float64), np.asarray(labels, np.int64)
    if values.ndim != 2 or classes.shape != values.shape[:1]:
        raise ValueError(
            "outputs and labels must be [N, K] and [N], "
            f"got {list(values.shape)} and {list(classes.shape)}"
        )
    num_classes = values.shape[1]
    names = [str(i) for i in range(num_classes)] if class_names is None else class_names
    if len(names) != num_classes:
        raise ValueError(f"outputs are of {num_classes} classes, class_names of {len(names)}")
    wrong = (classes < 0) | (classes >= num_classes)
    if wrong.any():
        raise ValueError(f"labels must lie in 0..{num_classes - 1}, got {classes[wrong][0]}")
    finite = np.isfinite(values).all(axis=1)
    if not finite.all():
        row = int(np.argmin(finite))
        raise ValueError(f"outputs[{row}] must be finite, got {values[row].tolist()}")
    probabilities = _softmax(values) if logits else _checked(values)
    return ClassificationResult(probabilities, classes, tuple(map(str, names)))


def _softmax(logits: Floats) -> Floats:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True, initial=-np.inf))
    return powers / powers.sum(axis=1, keepdims=True)


def _checked(probabilities: Floats) -> Floats:
    """The same.

    Raises:
        ValueError: they are no probabilities.
    """
    total = probabilities.sum(axis=1)
    good = (probabilities >= 0).all(axis=1) & (np.abs(total - 1) < 1e-3)  # of float16 maybe
    if not good.all():
        row = int(np.argmin(good))
        raise ValueError(
            f"outputs[{row}] must be probabilities that add up to 1, got "
            f"{probabilities[row].tolist()}; pass logits=True if they are logits"
        )
    return probabilities
