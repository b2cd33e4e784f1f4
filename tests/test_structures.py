"""Target, Detections and Batch."""

from __future__ import annotations

import dataclasses
import pickle
from typing import Any

import pytest
import torch

from detkit.structures import Batch, Detections, Target


def make_target(count: int = 2, image_id: int = 5) -> Target:
    return Target(
        boxes=torch.arange(4.0 * count).view(count, 4),
        labels=torch.arange(count),
        image_id=image_id,
        crowd=torch.zeros(count, dtype=torch.bool),
        area=torch.ones(count),
    )


def make_batch(targets: bool = True) -> Batch:
    return Batch(
        images=torch.full((2, 3, 4, 6), 7, dtype=torch.uint8),
        sizes=((4, 6), (3, 5)),
        original_sizes=((8, 12), (6, 10)),
        targets=(make_target(2, 5), make_target(0, 9)) if targets else None,
    )


def make_detections() -> Detections:
    boxes = torch.tensor([[0.0, 0, 1, 1], [0, 0, 2, 2], [0, 0, 3, 3]])
    return Detections(boxes, torch.tensor([0.9, 0.5, 0.1]), torch.tensor([2, 0, 1]))


# ---------------------------------------------------------------------------------- Detections


@pytest.mark.parametrize(
    ("boxes", "scores", "labels", "message"),
    [
        ((3,), 3, 3, r"boxes must be \[K, 4\], got \[3\]"),
        ((3, 5), 3, 3, r"boxes must be \[K, 4\], got \[3, 5\]"),
        ((1, 3, 4), 1, 1, r"boxes must be \[K, 4\], got \[1, 3, 4\]"),
        ((0,), 0, 0, r"boxes must be \[K, 4\], got \[0\]"),
        ((3, 4), 2, 3, "one length, got 3, 2, 3"),
        ((3, 4), 3, 4, "one length, got 3, 3, 4"),
        ((0, 4), 1, 1, "one length, got 0, 1, 1"),
    ],
)
def test_wrong_shapes_are_refused(
    boxes: tuple[int, ...], scores: int, labels: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Detections(torch.zeros(boxes), torch.zeros(scores), torch.zeros(labels, dtype=torch.int64))


@pytest.mark.parametrize(
    ("index", "scores"),
    [
        (torch.tensor([True, False, True]), [0.9, 0.1]),
        (torch.tensor([2, 0]), [0.1, 0.9]),
        ([1], [0.5]),
        (slice(0, 2), [0.9, 0.5]),
        (slice(5, 9), []),
        (torch.zeros(3, dtype=torch.bool), []),
        (torch.zeros(0, dtype=torch.int64), []),
    ],
)
def test_index_selects_in_all_three(index: Any, scores: list[float]) -> None:
    found = make_detections()[index]
    assert found.scores.tolist() == pytest.approx(scores)
    sides, labels = {0.9: 1, 0.5: 2, 0.1: 3}, {0.9: 2, 0.5: 0, 0.1: 1}
    assert found.boxes[:, 2].tolist() == [sides[score] for score in scores]
    assert found.labels.tolist() == [labels[score] for score in scores]


def test_single_integer_is_refused() -> None:
    with pytest.raises(TypeError, match="not by the integer 1"):
        make_detections()[1]  # type: ignore[index]


def test_empty() -> None:
    empty = Detections.empty()
    assert len(empty) == 0
    assert [t.dtype for t in (empty.boxes, empty.scores, empty.labels)] == [
        torch.float32,
        torch.float32,
        torch.int64,
    ]
    assert len(Detections.cat([])) == 0
    assert len(Detections.cat([empty, empty])) == 0
    assert len(Detections.cat([empty, make_detections()])) == 3


def test_cat_puts_the_best_first_and_keeps_the_order_of_ties() -> None:
    first = make_detections()
    second = dataclasses.replace(first, labels=first.labels + 10)
    joined = Detections.cat([first, second])
    assert joined.scores.tolist() == pytest.approx([0.9, 0.9, 0.5, 0.5, 0.1, 0.1])
    assert joined.labels.tolist() == [2, 12, 0, 10, 1, 11]
    assert joined.boxes[:, 2].tolist() == [1, 1, 2, 2, 3, 3]


def test_names_of_labels_follow_selection_and_order() -> None:
    found = dataclasses.replace(make_detections(), class_names=("ant", "bee", "cat"))
    assert found.names == ["cat", "ant", "bee"]  # labels 2, 0, 1
    assert found[[2, 0]].names == ["bee", "cat"]
    assert found.to("cpu").class_names == found.class_names
    unnamed = make_detections()
    assert Detections.cat([Detections.empty(), found[1:], unnamed[:1]]).names == [
        *("cat", "ant", "bee")
    ]
    assert Detections.cat([unnamed]).class_names == ()


def test_labels_without_names() -> None:
    assert Detections.empty().names == []
    with pytest.raises(ValueError, match="labels without names; set them"):
        _ = make_detections().names


def test_labels_of_different_classes_are_not_joined() -> None:
    cats = dataclasses.replace(make_detections(), class_names=("cat", "dog", "cow"))
    cars = dataclasses.replace(make_detections(), class_names=("car", "bus", "van"))
    with pytest.raises(ValueError, match=r"different class_names.*'car'.* and .*'cat'"):
        Detections.cat([cats, cars])


# ------------------------------------------------------------------------------------------ all


def same(one: Any, other: Any) -> bool:
    """Equal, tensors by dtype and value."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if dataclasses.is_dataclass(one):
        names = [field.name for field in dataclasses.fields(one)]
        return all(same(getattr(one, name), getattr(other, name)) for name in names)
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


@pytest.mark.parametrize(
    "value", [make_target(), make_target(0), make_detections(), make_batch(), make_batch(False)]
)
def test_pickle_and_to(value: Any) -> None:
    assert same(pickle.loads(pickle.dumps(value)), value)
    assert same(value.to("cpu"), value)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(value, dataclasses.fields(value)[0].name, None)
    with pytest.raises((AttributeError, TypeError)):
        value.no_such_attribute = 1


@pytest.mark.parametrize("value", [make_target(), make_detections(), make_batch()])
def test_to_moves_every_tensor(value: Any) -> None:
    moved = value.to("meta")
    parts = [moved, *(getattr(moved, "targets", None) or ())]
    tensors = [
        getattr(part, field.name)
        for part in parts
        for field in dataclasses.fields(part)
        if isinstance(getattr(part, field.name), torch.Tensor)
    ]
    assert len(tensors) >= 3
    assert all(tensor.device.type == "meta" for tensor in tensors)


@pytest.mark.gpu
@pytest.mark.parametrize("value", [make_target(), make_batch()])
def test_pin_memory(value: Any) -> None:
    pinned = value.pin_memory()
    assert same(pinned, value)
    assert getattr(pinned, "images", getattr(pinned, "boxes", None)).is_pinned()


def test_lengths() -> None:
    assert (len(make_target(3)), len(make_detections()), len(make_batch())) == (3, 3, 2)


def test_without_targets_keeps_the_rest() -> None:
    batch = make_batch()
    bare = batch.without_targets()
    assert bare.targets is None
    assert bare.images is batch.images
    assert (bare.sizes, bare.original_sizes) == (batch.sizes, batch.original_sizes)
    assert batch.targets is not None
