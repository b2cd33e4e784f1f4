"""A classifier of windows, slid over the image: the oldest detector of the ladder.

LeCun et al. 1998 (Proceedings of the IEEE 86, section VII), OverFeat (arXiv 1312.6229).
B images, N windows of an image, R windows of all images, C classes, H and W height and width.

There are two ways to compute what it says of its windows. Mode "crop" cuts each window out, resizes
it, and runs the classifier on it: the textbook's way, right for any network. Mode "dense" resizes
the image, once for each size of windows, and runs the classifier on the whole of it, as a
convolution: what windows share is computed once. The two differ

- nowhere where the network does not pad its borders (LeNet, and OverFeat's first layers);
- where it does (VGG, ResNet, most others), in the cells of a window's map whose receptive field
  reaches over the border of the window: there a crop has zeros, and the image has its next pixels.
  Cells whose receptive field lies inside the window are the same. A network whose receptive field
  is larger than the window has no such cell, and may need "crop";
- with attention that looks at the whole map (squeeze and excitation, non-local): of a crop it sees
  the window, of the image everything.

Training always cuts windows out, so that a trained detector can be used either way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from detkit.backbones import Backbone
from detkit.backbones.feature_info import describe
from detkit.detectors.base import Detector, Losses
from detkit.detectors.roi import BoxLoss, region_losses, with_image
from detkit.detectors.window_head import ClassifierHead, SlidingHead
from detkit.detectors.windows import WindowGrid, cut_windows, jitter_boxes, resize_for
from detkit.nn.dense import plan_offsets
from detkit.nn.modes import evaluating
from detkit.ops import Assigned, Assigner, Selection, cross_entropy, decode, hardest
from detkit.ops.box_coder import Weights
from detkit.structures import Batch, Detections, Size, Target

Mode = Literal["crop", "dense"]
Module = Callable[[Tensor], Tensor]

# How much goes through the network together in mode "crop"
AT_ONCE = 1024  # windows
PIXELS_AT_ONCE = 1024 * 64 * 64  # of the classifier's input
GREY = (0.299, 0.587, 0.114)  # of R, G and B in the brightness


class Judged(NamedTuple):
    """What the classifier says of the windows of one image.

    Attributes:
        logits: `[N, C + 1]`, background last.
        offsets: `[N, C, 4]`, or `[N, 1, 4]` where all classes share a box.
    """

    logits: Tensor
    offsets: Tensor


@dataclass(frozen=True)
class WindowLearning:
    """How a window classifier is trained.

    Attributes:
        assigner: which windows learn what.
        hard_negatives: so many times as many windows are scored as learn; of the background those
            with the highest loss learn. 1 takes random ones.
        copies: of each truth that are windows too, moved and scaled a little.
        jitter: how much, see `jitter_boxes`.
        box_weights: of the offsets.
        box_loss: of the positives.
    """

    assigner: Assigner
    hard_negatives: int
    copies: int
    jitter: float
    box_weights: Weights
    box_loss: BoxLoss


class SlidingWindow(Detector):
    """Judge every window of a grid.

    Args:
        backbone: windows, as pictures of the classifier's input size, to a list with one map; of
            one channel if it takes grey pictures.
        head: judges windows of maps.
        grid: where the windows are.
        learning: how it is trained.
        selection: what is reported.
        mode: "crop" or "dense", see above; the attribute may be changed at any time.
        mean: of R, G and B in 0..1.
        std: of R, G and B in 0..1.

    Raises:
        ValueError: "dense" cannot give the stride of the grid.
    """

    def __init__(
        self,
        backbone: Backbone,
        head: SlidingHead | ClassifierHead,
        grid: WindowGrid,
        *,
        learning: WindowLearning,
        selection: Selection,
        mode: Mode,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        super().__init__(mean=mean, std=std)
        self.backbone = backbone
        self.head = head
        self.grid = grid
        self.learning = learning
        self.selection = selection
        self.mode = mode
        if mode == "dense":  # find out now whether it can
            plan_offsets([stride for _, stride in chain_of(backbone)], grid.stride)

    def features(self, batch: Batch) -> list[Tensor]:
        """The pixels: everything else depends on the windows."""
        images = self.normalize(batch)
        if self.backbone.in_channels == 1:
            images = (images * images.new_tensor(GREY)[:, None, None]).sum(dim=1, keepdim=True)
        return [images]

    # ------------------------------------------------------------------------- the two modes

    def judge(self, images: Tensor, sizes: Sequence[Size]) -> list[Judged]:
        """What the classifier says of the windows of each image, in the order of the grid.

        Args:
            images: `[B, D, H, W]`, normalised, zero beyond their sizes.
            sizes: (height, width) of each image.
        """
        return (self._judge_crops if self.mode == "crop" else self._judge_images)(images, sizes)

    def classify(self, crops: Tensor) -> Judged:
        """The same of windows that were cut out, `[R, D, h_in, w_in]`."""
        logits, offsets = self.head(self.backbone(crops)[-1])
        return Judged(logits[:, 0, 0], offsets[:, 0, 0])

    def _judge_crops(self, images: Tensor, sizes: Sequence[Size]) -> list[Judged]:
        """Every window on its own."""
        windows = [self._windows(images, size) for size in sizes]
        parts = [
            self.classify(cut_windows(images, regions, self.grid.input_size))
            for regions in with_image(windows).split(self._at_once())
        ]
        joined = (torch.cat(part) for part in zip(*parts, strict=True))
        split = (part.split([len(each) for each in windows]) for part in joined)
        return [Judged(*each) for each in zip(*split, strict=True)]

    def _judge_images(self, images: Tensor, sizes: Sequence[Size]) -> list[Judged]:
        """All windows of a size at once."""
        chain = chain_of(self.backbone)
        plan = plan_offsets([stride for _, stride in chain], self.grid.stride)
        modules = [module for module, _ in chain]
        found: list[list[Judged]] = [[] for _ in sizes]
        for window in self.grid.sizes:
            counts = [self.grid.counts(window, size) for size in sizes]
            most = (max(rows for rows, _ in counts), max(columns for _, columns in counts))
            span = self.grid.spans(most)
            resized = resize_for(images, window, self.grid.input_size, span)
            # [B, H', W', ...] of the windows of the largest image
            parts = [
                plan.interleave(part, len(sizes)) for part in self.head(plan.run(modules, resized))
            ]
            for image, (rows, columns) in enumerate(counts):
                own = (part[image, :rows, :columns].flatten(0, 1) for part in parts)
                found[image].append(Judged(*own))
        return [Judged(*(torch.cat(part) for part in zip(*each, strict=True))) for each in found]

    def _at_once(self) -> int:
        """Windows that fit into memory together whatever their size, at least one."""
        height, width = self.grid.input_size
        return max(1, min(AT_ONCE, PIXELS_AT_ONCE // (height * width)))

    def _windows(self, images: Tensor, size: Size) -> Tensor:
        return self.grid.boxes(size, device=images.device, dtype=images.dtype)

    # ------------------------------------------------------------------------------ learning

    def losses(self, features: list[Tensor], batch: Batch) -> Losses:
        """Cross entropy over classes and background, and the box loss of the positives.

        Raises:
            ValueError: a classifier without a class for the background.
        """
        assert batch.targets is not None
        (images,) = features
        if not self.head.background:
            raise ValueError(
                "this classifier has no class for the background, so that windows without an "
                "object could teach it nothing; train a detector with model.detector=sliding_window"
            )
        if len(batch) == 0:
            parts = ("class", "box") if self.head.regresses else ("class",)
            return {f"window/{part}": images.sum() for part in parts}
        candidates = [
            self._candidates(images, size, target)
            for size, target in zip(batch.sizes, batch.targets, strict=True)
        ]
        assigner = _with_more_negatives(self.learning.assigner, self.learning.hard_negatives)
        drawn = [
            assigner(boxes, target) for boxes, target in zip(candidates, batch.targets, strict=True)
        ]
        if self.learning.hard_negatives > 1:
            drawn = self._hardest(images, candidates, drawn)
        regions = _regions(candidates, drawn)  # [R, 5]
        judged = self.classify(cut_windows(images, regions, self.grid.input_size))
        return self._loss_of(judged, regions[:, 1:], drawn)

    def _candidates(self, images: Tensor, size: Size, target: Target) -> Tensor:
        """Windows `[N, 4]` of an image to learn from: the grid, and some around each truth."""
        grid = self._windows(images, size)
        truths = target.boxes[~target.crowd].to(grid)
        near = jitter_boxes(truths, copies=self.learning.copies, amount=self.learning.jitter)
        return torch.cat([grid, near])

    @torch.no_grad()
    def _hardest(
        self, images: Tensor, candidates: list[Tensor], drawn: list[Assigned]
    ) -> list[Assigned]:
        """Of what was drawn all positives and, to fill up, the negatives of highest loss."""
        regions = _regions(candidates, drawn)
        positive = torch.cat([each.positive for each in drawn])  # [R]
        labels = torch.cat([each.labels for each in drawn])
        with evaluating(self):  # scores leave no trace in the statistics of batch norm
            logits = torch.cat(
                [
                    self.classify(cut_windows(images, part, self.grid.input_size)).logits
                    for part in regions.split(self._at_once())
                ]
            )
        loss = cross_entropy(logits, labels.where(positive, self.head.num_classes))
        loss = loss.masked_fill(positive, torch.finfo(loss.dtype).max)
        count = self.learning.assigner.samples
        parts = loss.split([len(each.index) for each in drawn])
        return [hardest(each, part, count=count) for each, part in zip(drawn, parts, strict=True)]

    def _loss_of(self, judged: Judged, windows: Tensor, drawn: list[Assigned]) -> Losses:
        """Means over the windows `[R, 4]` that count."""
        classes, boxes = region_losses(
            judged.logits,
            judged.offsets,
            windows,
            drawn,
            class_loss=cross_entropy,
            box_loss=self.learning.box_loss,
            box_weights=self.learning.box_weights,
        )
        count = torch.cat([each.valid for each in drawn]).sum().clamp(min=1)
        losses = {"window/class": classes.sum() / count}
        if self.head.regresses:
            losses["window/box"] = boxes.sum() / count
        return losses

    def detections(self, features: list[Tensor], batch: Batch) -> list[Detections]:
        """Score every window, move it to its object, select; each size of windows is a level."""
        judged = self.judge(features[0], batch.sizes)
        found = []
        for (logits, offsets), size, original in zip(
            judged, batch.sizes, batch.original_sizes, strict=True
        ):
            windows = self._windows(features[0], size)
            boxes = decode(offsets, windows[:, None], weights=self.learning.box_weights)
            scores = logits.softmax(dim=1)[:, :-1]  # [N, C], background dropped
            counts = [rows * columns for rows, columns in self.grid.all_counts(size)]
            levels = list(zip(boxes.split(counts), scores.split(counts), strict=True))
            found.append(self.selection.of_levels(levels, size, original))
        return found


def chain_of(backbone: Backbone) -> list[tuple[Module, int]]:
    """The modules from the image to the last map, and the stride of each.

    A network of another library, of whose layers nothing is known, is one module.
    """
    chain: list[tuple[Module, int]] = []
    try:
        for name, stage in zip(backbone.stage_names, backbone.stages(), strict=False):
            behind = (backbone.after_stage[name],) if name in backbone.after_stage else ()
            chain += [(each, describe(name, 1, [each]).stride) for each in (*stage, *behind)]
    except TypeError:
        return [(lambda images: backbone(images)[-1], backbone.feature_info[-1].stride)]
    return chain


@torch.no_grad()
def map_of(backbone: Backbone, size: Size) -> tuple[int, int, int]:
    """(channels, rows, columns) of the map of a picture of (height, width).

    Raises:
        ValueError: it is too small.
    """
    weight = next(backbone.parameters())
    with evaluating(backbone):
        last = backbone(weight.new_zeros(1, backbone.in_channels, *size))[-1]
    return last.shape[1], last.shape[2], last.shape[3]


def _regions(candidates: Sequence[Tensor], drawn: Sequence[Assigned]) -> Tensor:
    """The drawn windows of all images `[R, 5]`, the image's index in front."""
    chosen = (boxes[each.index] for boxes, each in zip(candidates, drawn, strict=True))
    return with_image(list(chosen))


def _with_more_negatives(assigner: Assigner, factor: int) -> Assigner:
    """As many positives at most, but `factor` times as many windows."""
    positives = int(assigner.samples * assigner.positive_fraction)
    samples = assigner.samples * factor
    # half a window more, for the product must not come out below the whole number
    fraction = min(1.0, (positives + 0.5) / samples)
    return replace(assigner, samples=samples, positive_fraction=fraction)
