"""The parity gate: a table that can be checked by hand, and each way to fail."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from detkit.config import Recipe
from detkit.data import CocoDataset
from detkit.detectors import Detector
from detkit.engine.data import build_dataset
from detkit.inference.export.gate import Agreement, Looks, Row, agree, compare, faults, look, table
from detkit.structures import Batch, Detections


def detections(*rows: tuple[float, float, float, float, float, int]) -> Detections:
    """Of (x1, y1, x2, y2, score, label)."""
    values = torch.tensor(rows).view(-1, 6)
    return Detections(values[:, :4], values[:, 4], values[:, 5].long())


ONE = detections((0, 0, 10, 10, 0.9, 0), (20, 20, 40, 40, 0.8, 1))


def test_detections_agree_with_themselves() -> None:
    assert agree({1: ONE, 2: Detections.empty()}, {1: ONE, 2: Detections.empty()}) == Agreement(
        share=1.0, box=0.0, score=0.0, count=2
    )
    assert agree({}, {}).share == 1.0


def test_boxes_without_an_area_agree_where_they_are_the_same() -> None:
    flat = detections((5, 5, 5, 9, 0.9, 0))
    assert agree({1: flat}, {1: detections((5, 5.25, 5, 9, 0.9, 0))}).share == 1.0
    assert agree({1: flat}, {1: detections((5, 5.75, 5, 9, 0.9, 0))}).share == 0.0


@pytest.mark.parametrize(
    ("other", "share", "box", "score"),
    [
        # both are found again, a little off
        (((0, 0, 10, 10.25, 0.88, 0), (20, 20.5, 40, 40, 0.8, 1)), 1.0, 0.5, 0.02),
        (((20, 20, 40, 40, 0.8, 1),), 2 / 3, 0.0, 0.0),  # one is missing
        (((0, 0, 10, 10, 0.9, 1), (20, 20, 40, 40, 0.8, 1)), 0.5, 0.0, 0.0),  # another class
        (((0, 0, 10, 10, 0.8, 0), (20, 20, 40, 40, 0.8, 1)), 0.5, 0.0, 0.0),  # another score
        (((0, 0, 8, 10, 0.9, 0), (20, 20, 40, 40, 0.8, 1)), 0.5, 0.0, 0.0),  # IoU of 0.8
        # twice the same counts once
        (((0, 0, 10, 10, 0.9, 0), (0, 0, 10, 10, 0.9, 0), (20, 20, 40, 40, 0.8, 1)), 0.8, 0, 0),
        ((), 0.0, 0.0, 0.0),
    ],
)
def test_how_far_detections_agree(other: tuple, share: float, box: float, score: float) -> None:
    found = agree({1: ONE}, {1: detections(*other)})
    assert (found.share, found.box, found.score) == pytest.approx((share, box, score), abs=1e-6)
    assert found.count == 2


class Finds(Detector):
    """The same in every image, where it stands in the batch; slower by `seconds` of a clock."""

    def __init__(self, found: Detections) -> None:
        super().__init__(mean=(0, 0, 0), std=(1, 1, 1))
        self.found = found
        self.seen: list[tuple[int, ...]] = []

    def predict(self, batch: Batch) -> list[Detections]:
        assert batch.targets is None
        self.seen.append(tuple(batch.images.shape))
        return [self.found] * len(batch)


@pytest.fixture
def dataset(tiny_recipe: Callable[..., Recipe]) -> CocoDataset:
    return build_dataset(tiny_recipe().data.val, role="val")


def test_all_look_at_every_picture_of_the_data(
    tiny_recipe: Callable[..., Recipe], dataset: CocoDataset
) -> None:
    ticks = iter(range(1000))
    detectors = {"torch": Finds(ONE), "fp32": Finds(ONE), "fp16": Finds(ONE[:1])}
    looks = look(
        detectors,
        tiny_recipe(),
        dataset,
        device=torch.device("cpu"),
        clock=lambda: float(next(ticks)),
    )
    assert list(looks) == ["torch", "fp32", "fp16"]
    assert all(sorted(each.found) == sorted(dataset.image_ids) for each in looks.values())
    assert {shape[0] for shape in detectors["fp16"].seen} <= {1, 2, 3, 4}  # test.batch_size
    assert sum(shape[0] for shape in detectors["fp16"].seen) == len(dataset)
    for each, shape in zip(looks["torch"].seconds, detectors["torch"].seen, strict=True):
        assert each == 1 / shape[0]  # one tick of the clock for each batch
    rows = compare(looks, dataset, megabytes={"fp32": 2.0})
    assert [row.agreement and row.agreement.share for row in rows] == [None, 1.0, 2 / 3]
    assert rows[0].ap == rows[1].ap is not None
    assert [row.megabytes for row in rows] == [None, 2.0, None]


def test_truths_have_an_ap_of_one(dataset: CocoDataset) -> None:
    found = {}
    for image in range(len(dataset)):
        sample = dataset[image]
        plain = ~sample.crowd
        boxes, labels = torch.from_numpy(sample.boxes[plain]), sample.labels[plain]
        found[sample.image_id] = Detections(boxes, torch.ones(len(boxes)), torch.from_numpy(labels))
    (row,) = compare({"torch": Looks(found, [1.0])}, dataset, megabytes={})
    assert (row.ap, row.ap50) == (1.0, 1.0)
    (row,) = compare({"torch": Looks(found, [1.0])}, None, megabytes={})
    assert (row.ap, row.ap50) == (None, None)


def test_the_first_batch_warms_up() -> None:
    assert Looks({}, [9.0, 0.001, 0.002, 0.003]).milliseconds == pytest.approx(2)
    assert Looks({}, [9.0]).milliseconds == 9000


TORCH = Row("torch", 0.5, 0.8, None, 10.0)
SAME = Agreement(share=1.0, box=1e-4, score=1e-6, count=40)


@pytest.mark.parametrize(
    ("name", "ap", "share", "complaint"),
    [
        ("fp32", 0.5, 1.0, None),
        ("fp32", 0.5009, 0.99, None),
        ("fp32", 0.4985, 1.0, "AP differs by -0.15 points, allowed are 0.1"),
        ("fp32", 0.5015, 1.0, "AP differs by +0.15 points"),
        ("fp32", 0.5, 0.98, "98.0 % of the detections agree"),
        ("fp32", None, 0.98, "98.0 % of the detections agree"),
        ("fp16", 0.5, 0.6, None),  # AP decides
        ("fp16", None, 0.6, "60.0 % of the detections agree"),
        ("int8", 0.5, 0.6, None),
        ("int8", 0.49, 0.6, "AP differs by -1.00 points"),
    ],
)
def test_what_is_not_as_good_as_torch(
    name: str, ap: float | None, share: float, complaint: str | None
) -> None:
    first = replace(TORCH, ap=ap and 0.5)
    row = Row(name, ap, ap, replace(SAME, share=share), 10.0)
    bad = faults([first, row], tolerance=0.1)
    assert (complaint or "") in bad.get(name, "")
    assert bool(bad) == (complaint is not None)


def test_a_wider_tolerance_lets_int8_pass() -> None:
    row = Row("int8", 0.49, 0.8, SAME, 5.0)
    assert faults([TORCH, row], tolerance=0.9) != {}
    assert faults([TORCH, row], tolerance=1.1) == {}


def test_where_nothing_is_found_nothing_is_proved() -> None:
    row = Row("fp32", 0.0, 0.0, replace(SAME, count=0), 10.0)
    assert "nothing can be compared" in faults([replace(TORCH, ap=0.0), row], tolerance=0.1)["fp32"]


def test_the_table() -> None:
    rows = [TORCH, Row("fp32", 0.5, 0.8, SAME, 5.04, 12.3), Row("int8", None, None, SAME, 5.0, 3.0)]
    assert table(rows).splitlines() == [
        "          AP   AP50      same  box px  score    ms    MB",
        "torch  50.00  80.00                           10.0",
        "fp32   50.00  80.00  100.00 %  0.0001  1e-06   5.0  12.3",
        "int8       -      -  100.00 %  0.0001  1e-06   5.0   3.0",
    ]
