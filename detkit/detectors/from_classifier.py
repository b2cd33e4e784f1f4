"""Any trained classifier as a detector: slide it over the image (OverFeat, section 3.5)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from detkit.backbones import Backbone, Classifier
from detkit.detectors.roi import BoxLoss
from detkit.detectors.sliding_window import SlidingWindow, WindowLearning, map_of
from detkit.detectors.window_head import ClassifierHead
from detkit.detectors.windows import WindowGrid
from detkit.ops import Assigner, Selection
from detkit.ops.box_coder import UNIT
from detkit.structures import Size

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# For those who train it on, which takes a class for the background
_LEARNING = WindowLearning(
    assigner=Assigner(positive_iou=0.5, negative_iou=0.4, samples=64, positive_fraction=0.25),
    hard_negatives=1,
    copies=8,
    jitter=0.15,
    box_weights=UNIT,
    box_loss=BoxLoss("smooth_l1", weight=0.0, beta=1.0),  # there are no boxes to learn
)


def from_classifier(
    net: nn.Module,
    *,
    window: Size,
    stride: int,
    sizes: Sequence[Size] | None = None,
    background: int | None = None,
    score_threshold: float = 0.5,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> SlidingWindow:
    """A detector that says of every window what the classifier says of it.

    Its layers are those of the classifier, not copies, and run over the whole image at once: fully
    connected layers as convolutions, global pooling as pooling of a window's cells. What it says
    of a window is exactly what `net` says of the pixels if `net` pads no border (LeNet); see
    `detkit.detectors.sliding_window` for the others, and set `mode` of the detector to "crop" to
    have it exactly anyway. The boxes are the windows. `selection` of the detector may be replaced.

    Args:
        net: of `create_classifier` or `load_classifier`, or Sequential(backbone, classifier head).
            It is put into evaluation mode. One that takes grey images gets the brightness.
        window: (height, width) in pixels that the classifier sees.
        stride: pixels from one window to the next.
        sizes: of the windows in the image, which are resized to `window`; None for `window` alone.
            A window moves by `stride` pixels of the resized image.
        background: the class that means nothing is there, which is not reported and not counted:
            the labels of the classes behind it are one lower. None if there is no such class; then
            every window shows something, and only the threshold tells what is an object.
        score_threshold: only scores above it are reported, between 0 and 1.
        mean: that the classifier was trained with, of R, G and B in 0..1.
        std: that the classifier was trained with, of R, G and B in 0..1.

    Raises:
        ValueError: the classifier cannot be slid over such windows, or not at this stride.
    """
    body, head = _parts(net)
    net.eval()
    _, rows, columns = map_of(body, window)
    classes = _count_classes(net, body, window)
    return SlidingWindow(
        body,
        ClassifierHead(head, (rows, columns), classes=classes, background=background),
        WindowGrid(tuple(sizes or (window,)), stride, window),
        learning=_LEARNING,
        selection=Selection(score_threshold, iou_threshold=0.3, max_detections=100),
        mode="dense",
        mean=mean,
        std=std,
    )


def _parts(net: nn.Module) -> tuple[Backbone, nn.Module]:
    """The backbone and the head of a classifier."""
    if isinstance(net, Classifier):
        return net.body, net.head
    if isinstance(net, nn.Sequential) and len(net) == 2 and isinstance(net[0], Backbone):
        return net[0], net[1]
    raise ValueError(
        f"{type(net).__name__} has no backbone and head that can be told apart: give a classifier "
        "of create_classifier or load_classifier, or Sequential(backbone, classifier_head)"
    )


@torch.no_grad()
def _count_classes(net: nn.Module, body: Backbone, window: Size) -> int:
    weight = next(net.parameters())
    logits = net(weight.new_zeros(1, body.in_channels, *window))
    return int(logits.shape[1])
