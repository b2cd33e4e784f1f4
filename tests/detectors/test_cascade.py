"""Several second stages in a row: what each hands on, what it asks for, how they judge together."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from detkit.detectors import create_detector
from detkit.detectors.base import MapGeometry
from detkit.detectors.cascade import CascadeHead
from detkit.detectors.roi import BoxLoss, ClassLoss, RoIAlign, RoIHead
from detkit.ops import Assigner, Selection, decode
from detkit.structures import Batch

SMALL = {
    "backbone": {"name": "resnet18", "width": 8, "out_indices": [2]},
    "fpn": {"channels": 8, "extra": None},
    "rpn": {"anchor_sizes": [[16, 32]]},
    "select": {"score_threshold": 0.0},
}


class Says(nn.Module):
    """A head that says the same of every region."""

    def __init__(self, logits, offsets):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))
        self.offsets = nn.Parameter(torch.tensor(offsets))
        self.seen = []

    def forward(self, patches):
        self.seen.append(patches.detach())
        count = len(patches)
        return self.logits.expand(count, -1), self.offsets.expand(count, 1, -1)


def stage(logits, offsets, weight=1.0, iou=0.5):
    pool = RoIAlign(
        [MapGeometry(1, 0.0)],
        resolution=2,
        sampling_ratio=1,
        aligned=True,
        canonical_size=1.0,
        canonical_level=0,
    )
    return RoIHead(
        pool,
        Says(logits, offsets),
        assigner=Assigner(iou, iou, 8, 0.5),
        box_weights=(weight,) * 4,
        class_loss=ClassLoss(),
        box_loss=BoxLoss("l1", 1.0, 1.0),
        selection=Selection(0.0, 1.0, 10),
    )


@pytest.fixture
def cascade():
    """Steps of a tenth, a tenth and half of the width to the right; two classes."""
    stages = [
        stage([2.0, 0.0, 0.0], [0.1, 0, 0, 0]),
        stage([0.0, 1.0, 0.0], [0.2, 0, 0, 0], weight=2.0, iou=0.6),
        stage([0.0, 0.0, 0.0], [0.5, 0, 0, 0], iou=0.7),
    ]
    return CascadeHead(stages, loss_weights=(1.0, 0.5, 0.25))


def picture():
    return [torch.randn(1, 1, 40, 60, generator=torch.manual_seed(0))]


def batch_of(targets=None):
    size = ((40, 60),)
    return Batch(torch.zeros(1, 3, 40, 60), size, size, targets)


def test_each_stage_looks_at_what_the_one_before_refined(cascade):
    first, second, third = cascade
    features, box = picture(), torch.tensor([[10.0, 10, 20, 20]])
    cascade.detect(features, [box], batch_of())
    steps = [box + torch.tensor([d, 0, d, 0]) for d in (0.0, 1, 2)]
    seen = [each.pool(features, [step]) for each, step in zip(cascade, steps, strict=True)]
    assert torch.equal(first.head.seen[0], seen[0])
    assert torch.equal(second.head.seen[0], seen[1])
    assert len(third.head.seen) == 1
    # what the last one looks at is judged by all
    for each in cascade:
        assert torch.equal(each.head.seen[-1], seen[2])


def test_boxes_are_the_last_stages_and_scores_the_mean_of_all(cascade):
    box = torch.tensor([[10.0, 10, 20, 20]])
    (found,) = cascade.detect(picture(), [box], batch_of())
    e = torch.e
    scores = [
        (e**2 / (e**2 + 2) + 1 / (2 + e) + 1 / 3) / 3,
        (1 / (e**2 + 2) + e / (2 + e) + 1 / 3) / 3,
    ]
    assert found.labels.tolist() == [0, 1]
    torch.testing.assert_close(found.scores, torch.tensor(scores))
    assert found.boxes.tolist() == [[17, 10, 27, 20]] * 2  # 1, 1 and 5 pixels to the right


def test_refined_boxes_are_decoded_and_clipped():
    head = stage([0.0, 0.0], [0.5, -0.3, 0.1, 1.0], weight=2.0)
    proposals = [torch.tensor([[10.0, 10, 20, 20], [40, 30, 60, 40]]), torch.zeros(0, 4)]
    offsets = head.head(torch.zeros(2, 1))[1]
    found = head.refine(offsets, proposals, ((40, 60), (40, 60)))
    expected = decode(offsets[:, 0].detach(), proposals[0], weights=(2.0,) * 4)
    assert torch.equal(found[0][0], expected[0])
    assert expected[1, 2] > 60 and expected[1, 3] > 40
    assert found[0][1, 2:].tolist() == [60, 40]
    assert found[1].shape == (0, 4)
    assert not found[0].requires_grad


def test_losses_are_weighted_and_of_matched_boxes(cascade, make_target):
    """The truth lies two steps from the proposal; a truth is a candidate of every stage."""
    truth = torch.tensor([[12.0, 10, 22, 20]])
    proposals = [torch.tensor([[10.0, 10, 20, 20]])]
    batch = batch_of((make_target(truth, torch.tensor([1])),))
    losses = cascade.loss(picture(), proposals, batch)
    assert list(losses) == [f"roi{i}/{kind}" for i in (1, 2, 3) for kind in ("class", "box")]
    # Both are drawn by the first stage, IoU 8 / 12 and 1, of half positives at most 4. The offsets
    # wanted are 0.2 and 0: both are missed by 0.1.
    plain = torch.tensor([2.0, 0, 0]).logsumexp(0)
    assert losses["roi1/box"].item() == pytest.approx(0.1)
    assert losses["roi1/class"].item() == pytest.approx(plain.item())
    # Second: boxes 1 before and 1 behind, IoU 9 / 11, and the truth: offsets 0.2, -0.2, 0, said 0.2
    assert losses["roi2/box"].item() == pytest.approx(0.5 * (0 + 0.4 + 0.2) / 3, abs=1e-6)
    # Third: 0, 2 (IoU 8 / 12, too little) and 1 behind, and the truth; said is 0.5
    wanted = (0.5 + 0.6 + 0.5) / 4
    assert losses["roi3/box"].item() == pytest.approx(0.25 * wanted, abs=1e-6)
    third = torch.tensor([0.0, 0, 0]).logsumexp(0)  # of any class the same
    assert losses["roi3/class"].item() == pytest.approx(0.25 * third.item())


def test_gradients_do_not_go_through_refined_boxes(cascade, make_target):
    truth = torch.tensor([[12.0, 10, 22, 20]])
    batch = batch_of((make_target(truth, torch.tensor([1])),))
    losses = cascade.loss(picture(), [torch.tensor([[10.0, 10, 20, 20]])], batch)
    losses["roi3/box"].backward()
    first, second, third = cascade
    assert third.head.offsets.grad.abs().sum() > 0
    assert first.head.offsets.grad is None and second.head.offsets.grad is None


def test_settings_reach_the_stages():
    roi = {"stages": 3, "hidden": 8}
    detector = create_detector({**SMALL, "roi": roi}, num_classes=3)
    stages = detector.roi_stages
    ious = [(s.assigner.positive_iou, s.assigner.negative_iou) for s in stages]
    assert ious == [(0.5, 0.5), (pytest.approx(0.6),) * 2, (pytest.approx(0.7),) * 2]
    assert [s.box_weights for s in stages] == [
        (10, 10, 5, 5),
        (20, 20, 10, 10),
        (30, 30, 15, 15),
    ]
    assert detector.roi.loss_weights == (1, 0.5, 0.25)
    assert all(s.head.bbox_pred.out_features == 4 for s in stages)
    own = {"stage_ious": [0.4, 0.8], "stage_loss_weights": [1, 3], "stages": 2, "hidden": 8}
    detector = create_detector({**SMALL, "roi": own}, num_classes=3)
    assert [s.assigner.positive_iou for s in detector.roi] == [0.4, 0.8]
    assert detector.roi.loss_weights == (1, 3)
    gap = {"stages": 2, "positive_iou": 0.6, "negative_iou": 0.5, "hidden": 8}
    detector = create_detector({**SMALL, "roi": gap}, num_classes=3)
    last = detector.roi_stages[-1].assigner
    assert (last.positive_iou, last.negative_iou) == pytest.approx((0.7, 0.6))


def test_names_of_the_weights():
    """One stage is named as ever; several have numbers, and share nothing."""
    one = create_detector({**SMALL, "roi": {"hidden": 8}}, num_classes=3).state_dict()
    assert "roi.head.cls_score.weight" in one
    three = create_detector({**SMALL, "roi": {"stages": 3, "hidden": 8}}, num_classes=3)
    heads = {key for key in three.state_dict() if key.startswith("roi.")}
    assert heads == {
        f"roi.stages.{i}.head.{layer}.{kind}"
        for i in range(3)
        for layer in ("fc6", "fc7", "cls_score", "bbox_pred")
        for kind in ("weight", "bias")
    }
