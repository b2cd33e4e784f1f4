"""Time every suppression on 10,000 boxes beside torchvision's hard NMS, in one run.

    python benchmarks/nms.py [--boxes 10000] [--classes 1 20 80] [--rounds 7]

One thread of the processor. The candidates are those of a busy image: 300 objects with two thirds
of the boxes around them, the others anywhere. All boxes get a say: the thresholds on scores are 0,
which is the most work. First, a smaller set is compared with the plain loops of the definitions.
Seconds are those of the processor, so that other load on the machine counts less; the ratio is
the median over rounds in which all take their turn.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torchvision
from torch import Tensor
from torchvision.ops import box_iou

from detkit import ops

Scene = tuple[Tensor, Tensor, Tensor]
Runner = Callable[[Tensor, Tensor, Tensor], object]
OBJECTS, SIDE = 300, 1000.0

RUNNERS: dict[str, Runner] = {
    "torchvision hard": lambda b, s, g: torchvision.ops.batched_nms(b, s, g, 0.5),
    "hard": lambda b, s, g: ops.batched_nms(b, s, g, iou_threshold=0.5),
    "soft linear": lambda b, s, g: ops.soft_nms(b, s, g, method="linear", score_threshold=0.0),
    "soft gaussian": lambda b, s, g: ops.soft_nms(b, s, g, score_threshold=0.0),
    "soft gaussian > 0.05": lambda b, s, g: ops.soft_nms(b, s, g, score_threshold=0.05),
    "diou": lambda b, s, g: ops.diou_nms(b, s, g, iou_threshold=0.5),
    "matrix linear": lambda b, s, g: ops.matrix_nms(b, s, g, method="linear", score_threshold=0.0),
    "matrix gaussian": lambda b, s, g: ops.matrix_nms(b, s, g, score_threshold=0.0),
    "weighted boxes": lambda b, s, g: ops.weighted_boxes_fusion(b, s, g),
    "merging": lambda b, s, g: ops.non_maximum_merging(b, s, g),
}


def make_scene(boxes: int, classes: int) -> Scene:
    """Boxes `[K, 4]`, scores `[K]` all different, labels `[K]`."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    centre = torch.rand(OBJECTS, 2, generator=generator) * SIDE
    size = (normal(OBJECTS, 2) * 0.6 + 4.2).exp()
    own_class = torch.randint(classes, (OBJECTS,), generator=generator)
    which = torch.randint(OBJECTS, (boxes,), generator=generator)
    stray = torch.rand(boxes, generator=generator) < 1 / 3
    middle = centre[which] + 0.15 * normal(boxes, 2) * size[which]
    anywhere = torch.rand(boxes, 2, generator=generator) * SIDE
    middle = torch.where(stray[:, None], anywhere, middle)
    half = size[which] * (0.2 * normal(boxes, 2)).exp() / 2
    any_class = torch.randint(classes, (boxes,), generator=generator)
    scores = (torch.randperm(boxes, generator=generator) + 1) / (boxes + 1)
    corners = torch.cat([middle - half, middle + half], dim=1).clamp(0, SIDE)
    return corners, scores, torch.where(stray, any_class, own_class[which])


def check(classes: int) -> None:
    """Refuse to time what is wrong; the tests compare far more."""
    boxes, scores, labels = make_scene(800, classes)
    iou = box_iou(boxes, boxes) * (labels[:, None] == labels)
    for method in ("linear", "gaussian"):
        left, order = scores.clone(), []
        for _ in range(len(boxes)):
            best = left.argmax()
            order.append(int(best))
            overlap = iou[best]
            linear = torch.where(overlap >= 0.3, 1 - overlap, 1.0)
            left *= linear if method == "linear" else (-overlap.square() / 0.5).exp()
            left[best] = -1
        found, _ = ops.soft_nms(boxes, scores, labels, method=method, score_threshold=0.0)
        agree = sum(a == b for a, b in zip(order, found.tolist(), strict=False))
        if agree < 0.99 * len(order):  # scores that rounding makes equal may change places
            raise SystemExit(f"soft-NMS, {method}: {agree} of {len(order)} as in the plain loop")
    order = scores.argsort(descending=True)
    above = iou[order][:, order].triu(diagonal=1)
    decay = (-(above**2 - above.amax(dim=0)[:, None] ** 2) / 0.5).exp().amin(dim=0)
    _, lowered = ops.matrix_nms(boxes, scores, labels, score_threshold=0.0)
    torch.testing.assert_close(lowered, (scores[order] * decay).sort(descending=True).values)
    kept = ops.batched_nms(boxes, scores, labels, iou_threshold=0.5)
    assert torch.equal(kept, torchvision.ops.batched_nms(boxes, scores, labels, 0.5))
    merged = ops.non_maximum_merging(boxes, scores, labels, iou_threshold=0.5, metric="iou")
    assert torch.equal(merged[1], kept)


def main() -> None:
    """Print milliseconds and ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--boxes", type=int, default=10_000)
    parser.add_argument("--classes", type=int, nargs="+", default=[1, 20, 80])
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for classes in options.classes:
        check(classes)
        scene = make_scene(options.boxes, classes)
        seconds: dict[str, list[float]] = {name: [] for name in RUNNERS}
        for turn in range(options.rounds + 1):  # the first one warms up
            for name, run in RUNNERS.items():
                start = time.process_time()
                run(*scene)
                if turn:
                    seconds[name].append(time.process_time() - start)
        print(f"{options.boxes} boxes, {classes} classes")
        base = seconds["torchvision hard"]
        for name, own in seconds.items():
            ratio = statistics.median(a / b for a, b in zip(own, base, strict=True))
            print(f"  {name:22}{statistics.median(own) * 1e3:8.1f} ms  ratio {ratio:5.1f}")


if __name__ == "__main__":
    main()
