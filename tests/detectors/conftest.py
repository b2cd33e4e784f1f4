"""Torchvision's detectors beside ours: the same weights, the same pictures, the same draws.

A pair holds both models, `Pair` of Faster R-CNN, `DensePair` of RetinaNet or FCOS; its methods
`expected` and `found` compute the same named quantities, each a list of tensors: what torchvision
gives, and what we give.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch

import cv2
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import get_model
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import (
    FastRCNNConvFCHead,
    FastRCNNPredictor,
    TwoMLPHead,
)
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.rpn import (
    AnchorGenerator,
    RPNHead,
    concat_box_prediction_layers,
)
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from detkit.config import ModelConfig, build_recipe
from detkit.data.transforms import resized_shape
from detkit.detectors import Detector, create_detector
from detkit.detectors.torchvision_weights import convert
from detkit.ops import Sample, decode, sampling, scale_boxes
from detkit.structures import Batch, Target

NUM_CLASSES = 7
PADDING = 114.0  # any grey: the models must not see it

Quantities = dict[str, list[Tensor]]


# ------------------------------------------------------------------------------------- pictures


@dataclass
class Scene:
    """Pictures `[3, H, W]` in 0..1, their truths in original pixels, and how to resize both."""

    images: list[Tensor]
    boxes: list[Tensor]
    labels: list[Tensor]
    min_size: int = 160
    max_size: int = 224

    def to(self, dtype: torch.dtype) -> Scene:
        """The same in another precision."""
        images, boxes = ([x.to(dtype) for x in part] for part in (self.images, self.boxes))
        return Scene(images, boxes, self.labels, self.min_size, self.max_size)

    def first(self) -> Scene:
        """The first picture alone."""
        parts = (self.images[:1], self.boxes[:1], self.labels[:1])
        return Scene(*parts, self.min_size, self.max_size)

    def for_torchvision(self) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
        """Its arguments; its class 0 is the background."""
        pairs = zip(self.boxes, self.labels, strict=True)
        return list(self.images), [{"boxes": b.clone(), "labels": c + 1} for b, c in pairs]

    def batch(self, divisor: int = 32) -> Batch:
        """Our argument: resized, in 0..255, padded."""
        originals = [(image.shape[1], image.shape[2]) for image in self.images]
        sizes = [
            resized_shape(*s, shortest=self.min_size, longest=self.max_size) for s in originals
        ]
        height, width = (
            math.ceil(max(side) / divisor) * divisor for side in zip(*sizes, strict=True)
        )
        images = self.images[0].new_full((len(sizes), 3, height, width), PADDING)
        targets = []
        for i, (image, size, original) in enumerate(
            zip(self.images, sizes, originals, strict=True)
        ):
            resized = F.interpolate(image[None], size=size, mode="bilinear", align_corners=False)
            images[i, :, : size[0], : size[1]] = 255 * resized[0]
            boxes = scale_boxes(self.boxes[i], original, size)
            targets.append(target(boxes, self.labels[i]))
        return Batch(images, tuple(sizes), tuple(originals), tuple(targets))


def target(boxes: Tensor, labels: Tensor, crowd: Tensor | None = None) -> Target:
    if crowd is None:
        crowd = torch.zeros(len(boxes), dtype=torch.bool)
    return Target(boxes, labels, image_id=0, crowd=crowd, area=torch.ones(len(boxes)))


def picture(height: int, width: int, seed: int) -> Tensor:
    """Smooth noise of several sizes: every place looks different."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.zeros(1, 3, height, width)
    for cells in (4, 16, 64):
        noise = torch.rand(1, 3, cells, cells, generator=generator)
        image += F.interpolate(noise, size=(height, width), mode="bilinear", align_corners=False)
    return image[0] / 3


def truths(height: int, width: int, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Boxes of all sizes and shapes, and their labels."""
    generator = torch.Generator().manual_seed(seed)
    draw = torch.rand(count, 4, generator=generator)
    side = 16 * (min(height, width) / 20) ** draw[:, 2]
    stretch = 2 ** (draw[:, 3] - 0.5)
    size = torch.stack([side * stretch, side / stretch], dim=1)
    centre = draw[:, :2] * torch.tensor([width, height])
    limit = torch.tensor([width, height, width, height]) - 1.0
    boxes = torch.cat([centre - size / 2, centre + size / 2], dim=1).clamp(min=0).minimum(limit)
    boxes = boxes[(boxes[:, 2:] - boxes[:, :2] > 4).all(dim=1)]
    return boxes, torch.randint(0, NUM_CLASSES, (len(boxes),), generator=generator)


def scene_of(
    images: list[Tensor], *, min_size: int, max_size: int = 1000, count: int = 60
) -> Scene:
    """Pictures with `count` generated truths each, in float64."""
    found = [truths(*image.shape[1:], count=count, seed=i) for i, image in enumerate(images)]
    boxes, labels = ([each[part] for each in found] for part in (0, 1))
    return Scene(images, boxes, labels, min_size, max_size).to(torch.float64)


@pytest.fixture(scope="session")
def generated() -> Scene:
    """Two pictures of different shape with many truths, so that every limit is reached."""
    images = [picture(190, 240, seed=0), picture(250, 180, seed=1)]
    return scene_of(images, min_size=160, max_size=224)


@pytest.fixture(scope="session")
def small() -> Scene:
    """One small picture with many truths."""
    return scene_of([picture(140, 170, seed=0)], min_size=128)


@pytest.fixture(scope="session")
def photos(shared_data: Path) -> Scene:
    """Two real photos."""
    images = []
    for name in ("dog.jpg", "person.jpg"):
        pixels = cv2.cvtColor(cv2.imread(str(shared_data / "photos" / name)), cv2.COLOR_BGR2RGB)
        images.append(torch.from_numpy(pixels).permute(2, 0, 1).float() / 255)
    return scene_of(images, min_size=128, max_size=180)


# --------------------------------------------------------------------------------------- models


class _Body(nn.Module):
    """A ResNet without a pyramid under torchvision's detectors."""

    def __init__(self, resnet: nn.Module, layers: dict[str, str], out_channels: int) -> None:
        super().__init__()
        self.body = IntermediateLayerGetter(resnet, return_layers=layers)
        self.out_channels = out_channels

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return self.body(images)


def torchvision_body(config: ModelConfig, finest: int) -> nn.Module:
    """Torchvision's backbone and pyramid of the same settings, from the stage `finest` on."""
    norms = {None: nn.BatchNorm2d, "batch": nn.BatchNorm2d, "frozen_batch": FrozenBatchNorm2d}
    eps = config.backbone.norm_eps
    norm = partial(norms[config.backbone.norm], eps=1e-5 if eps is None else eps)
    resnet = get_model(config.backbone.name, weights=None, norm_layer=norm)
    every = range(finest, 5) if config.fpn else (4,)
    indices = config.backbone.out_indices or every
    layers = {f"layer{index}": str(i) for i, index in enumerate(indices)}
    widths = [resnet.inplanes // 2 ** (4 - index) for index in indices]
    if config.fpn is None:
        return _Body(resnet, layers, widths[-1])
    channels = config.fpn.channels
    extra = LastLevelMaxPool()
    if config.fpn.extra == "p6p7":
        extra = LastLevelP6P7(channels if config.fpn.p6_source == "p5" else widths[-1], channels)
    norm = {None: None, "batch": nn.BatchNorm2d, "group": group_norm}[config.fpn.norm]
    backbone = BackboneWithFPN(resnet, layers, widths, channels, extra, norm)
    if config.fpn.extra is None:
        backbone.fpn.extra_blocks = None
    return backbone


def group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(min(32, channels // 2), channels)


def torchvision_faster_rcnn(config: ModelConfig) -> FasterRCNN:
    """Torchvision's detector of the same settings: which of our settings is which of its own."""
    backbone = torchvision_body(config, finest=1)
    rpn, roi = config.rpn, config.roi
    sizes = rpn.anchor_sizes or ((32,), (64,), (128,), (256,), (512,))
    box_head = TwoMLPHead(backbone.out_channels * roi.resolution**2, roi.hidden)
    if roi.convs:
        box_head = FastRCNNConvFCHead(
            (backbone.out_channels, roi.resolution, roi.resolution),
            [roi.conv_channels] * roi.convs,
            [roi.hidden] * roi.fcs,
            {None: None, "batch": nn.BatchNorm2d, "group": group_norm}[roi.conv_norm],
        )
    model = FasterRCNN(
        backbone,
        image_mean=list(config.mean),
        image_std=list(config.std),
        size_divisible=config.size_divisor,
        rpn_anchor_generator=AnchorGenerator(sizes, (rpn.aspect_ratios,) * len(sizes)),
        rpn_fg_iou_thresh=rpn.positive_iou,
        rpn_bg_iou_thresh=rpn.negative_iou,
        rpn_batch_size_per_image=rpn.samples,
        rpn_positive_fraction=rpn.positive_fraction,
        rpn_pre_nms_top_n_train=rpn.pre_nms_train,
        rpn_pre_nms_top_n_test=rpn.pre_nms_test,
        rpn_post_nms_top_n_train=rpn.post_nms_train,
        rpn_post_nms_top_n_test=rpn.post_nms_test,
        rpn_nms_thresh=rpn.nms_iou,
        rpn_score_thresh=rpn.score_threshold,
        box_roi_pool=MultiScaleRoIAlign(
            list(backbone.body.return_layers.values()),
            roi.resolution,
            roi.sampling_ratio,
            canonical_scale=roi.canonical_size,
            canonical_level=roi.canonical_level,
        ),
        rpn_head=RPNHead(
            backbone.out_channels, len(sizes[0]) * len(rpn.aspect_ratios), conv_depth=rpn.convs
        ),
        box_head=box_head,
        box_predictor=FastRCNNPredictor(roi.hidden, NUM_CLASSES + 1),
        box_fg_iou_thresh=roi.positive_iou,
        box_bg_iou_thresh=roi.negative_iou,
        box_batch_size_per_image=roi.samples,
        box_positive_fraction=roi.positive_fraction,
        bbox_reg_weights=roi.box_weights,
        box_score_thresh=config.select.score_threshold,
        box_nms_thresh=config.select.iou_threshold,
        box_detections_per_img=config.select.max_detections,
    )
    model.rpn.min_size = rpn.min_size  # an attribute, no argument
    return model


def torchvision_dense(config: ModelConfig) -> RetinaNet | FCOS:
    """The same for the detectors in one stage."""
    backbone = torchvision_body(config, finest=2)
    shared = {
        "image_mean": list(config.mean),
        "image_std": list(config.std),
        "size_divisible": config.size_divisor,
        "score_thresh": config.select.score_threshold,
        "nms_thresh": config.select.iou_threshold,
        "detections_per_img": config.select.max_detections,
        "topk_candidates": config.select.pre_nms,
    }
    channels, section = backbone.out_channels, config.retinanet
    if section is None:
        section = config.fcos
        return FCOS(
            backbone,
            NUM_CLASSES + 1,
            head=FCOSHead(channels, 1, NUM_CLASSES + 1, section.convs),
            center_sampling_radius=section.center_radius,
            **shared,
        )
    anchors = None
    if section.anchor_sizes or section.aspect_ratios != (0.5, 1.0, 2.0):
        octaves = [
            (x, int(x * 2 ** (1 / 3)), int(x * 2 ** (2 / 3))) for x in (32, 64, 128, 256, 512)
        ]
        sizes = section.anchor_sizes or octaves
        anchors = AnchorGenerator(sizes, (section.aspect_ratios,) * len(sizes))
    model = RetinaNet(
        backbone,
        NUM_CLASSES + 1,
        anchor_generator=anchors,
        fg_iou_thresh=section.positive_iou,
        bg_iou_thresh=section.negative_iou,
        **shared,
    )
    count = model.anchor_generator.num_anchors_per_location()[0]
    norm = {None: None, "batch": nn.BatchNorm2d, "group": group_norm}[section.norm]
    model.head = RetinaNetHead(channels, count, NUM_CLASSES + 1, norm_layer=norm)
    kind = section.box_loss
    if kind == "smooth_l1" and section.smooth_l1_beta == 0:
        kind = "l1"
    model.head.regression_head._loss_type = kind
    return model


def randomise(model: nn.Module, seed: int = 0) -> None:
    """Give every parameter and buffer a random value of a size that keeps activations of order one.

    The last norm of a block gets a small gamma, as the sum over blocks grows otherwise.
    """
    generator = torch.Generator().manual_seed(seed)
    state = model.state_dict()
    norms = {key.rpartition(".")[0] for key in state if key.endswith("running_var")}
    for key, value in state.items():
        owner, _, kind = key.rpartition(".")
        last = owner.endswith("bn3") or (owner.endswith("bn2") and f"{owner[:-1]}3" not in norms)
        if kind == "num_batches_tracked":
            value.fill_(7)
        elif kind == "running_var":
            value.uniform_(0.5, 1.5, generator=generator)
        elif owner in norms and kind == "weight":
            value.uniform_(*((0.1, 0.3) if last else (0.5, 1.5)), generator=generator)
        elif kind in ("bias", "running_mean"):
            value.normal_(0, 0.1, generator=generator)
        else:
            gain = 1 if key.startswith("backbone.fpn.") else 2  # no ReLU behind them
            value.normal_(0, math.sqrt(gain / value[0].numel()), generator=generator)


def draw(positive: Tensor, negative: Tensor, count: int, fraction: float) -> tuple[Tensor, Tensor]:
    """The stub of both samplers: positives and negatives in one fixed, mixed-up order."""
    order = torch.randperm(len(positive), generator=torch.Generator().manual_seed(0))
    positives = order[positive[order]][: int(count * fraction)]
    negatives = order[negative[order]][: count - len(positives)]
    return positives, negatives


class _StubSampler:
    """In the place of torchvision's BalancedPositiveNegativeSampler."""

    def __init__(self, sampler: object) -> None:
        self.sampler = sampler

    def __call__(self, labels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        masks: tuple[list[Tensor], list[Tensor]] = ([], [])
        for each in labels:
            drawn = draw(
                each >= 1,
                each == 0,
                self.sampler.batch_size_per_image,
                self.sampler.positive_fraction,
            )
            for part, index in zip(masks, drawn, strict=True):
                part.append(torch.zeros(len(each), dtype=torch.uint8).index_fill_(0, index, 1))
        return masks


def _stub_sample_balanced(
    positive: Tensor, negative: Tensor, *, count: int, positive_fraction: float
) -> Sample:
    """In the place of our `sample_balanced`."""
    positives, negatives = draw(positive, negative, count, positive_fraction)
    drawn = torch.cat([positives, negatives])
    size = min(count, len(positive))
    index = torch.zeros(size, dtype=torch.int64)
    index[: len(drawn)] = drawn
    place = torch.arange(size)
    return Sample(index, place < len(positives), place < len(drawn))


class _Pair:
    """Both detectors with the same weights.

    Args:
        config: of ours.
        theirs: torchvision's; built from the same settings if None.
        weights: of torchvision's; random if None.
        dtype: of both.
        train_norms: batch norm uses the statistics of the batch.
    """

    def __init__(
        self,
        config: ModelConfig,
        theirs: nn.Module | None = None,
        *,
        weights: dict[str, Tensor] | None = None,
        dtype: torch.dtype = torch.float64,
        train_norms: bool = False,
    ) -> None:
        self.config, self.dtype, self.train_norms = config, dtype, train_norms
        self.theirs = theirs or self.build(config)
        self.theirs.to(dtype)
        # in float32, as ours has them, so that float64 shows every other difference
        for name in ("image_mean", "image_std"):
            value = torch.tensor(getattr(self.theirs.transform, name), dtype=torch.float32)
            setattr(self.theirs.transform, name, value.tolist())
        if weights is None:
            randomise(self.theirs)
            self._balance()
        else:
            self.theirs.load_state_dict(weights)
        self.stub_draws()
        self.ours = self.with_settings(config)

    def build(self, config: ModelConfig) -> nn.Module:
        """Torchvision's detector of these settings."""
        raise NotImplementedError

    def stub_draws(self) -> None:
        """Make torchvision draw what ours draws."""

    def outputs(self, run: _Recorder) -> list[tuple[nn.Module, Tensor, float, float]]:
        """Last layers of torchvision's heads: what they said `[cells, channels]`.

        And the deviation and mean that this should have.
        """
        raise NotImplementedError

    def heads(self) -> dict[str, nn.Module]:
        """The modules of torchvision's that `outputs` needs to have seen."""
        raise NotImplementedError

    @torch.no_grad()
    def _balance(self) -> None:
        """Spread what the heads say about a picture: else one class would win everywhere."""
        model, scene = self.theirs.eval(), scene_of([picture(96, 128, seed=9)], min_size=96)
        self.set_norms(model)
        self._resize_to(scene)
        with _Recorder(**self.heads()) as run:
            model([image.to(self.dtype) for image in scene.images])
        for layer, output, deviation, mean in self.outputs(run):
            scale = deviation / output.std(dim=0)
            layer.weight.mul_(scale.view(-1, *[1] * (layer.weight.ndim - 1)))
            layer.bias.sub_(output.mean(dim=0)).mul_(scale).add_(mean)

    def set_norms(self, model: nn.Module) -> None:
        """Put the batch norms of a model in the state that this pair has them in."""
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.train(self.train_norms)

    @cached_property
    def state(self) -> dict[str, Tensor]:
        """Torchvision's weights under our names."""
        return convert(self.theirs.state_dict())

    def with_settings(
        self, config: ModelConfig, state: dict[str, Tensor] | None = None
    ) -> Detector:
        """Ours with these settings, and torchvision's weights or others."""
        ours = create_detector(config, num_classes=NUM_CLASSES).to(self.dtype)
        ours.load_state_dict(state or self.state)
        return ours.train(self.train_norms)

    def losses(self, scene: Scene) -> list[Tensor]:
        """Torchvision's training losses, with their graph; the norms stay as this pair has them."""
        images, targets = scene.for_torchvision()
        self._resize_to(scene)
        self.set_norms(self.theirs.train())
        losses = self.theirs(images, targets)
        return [losses[key] for key in self.LOSSES]

    def our_losses(self, scene: Scene, ours: Detector | None = None) -> list[Tensor]:
        """Ours with the same draws."""
        with patch.object(sampling, "sample_balanced", _stub_sample_balanced):
            losses = (ours or self.ours)(scene.batch())
        return [losses[key] for key in self.LOSSES.values()]

    def _resize_to(self, scene: Scene) -> None:
        self.theirs.transform.min_size = (scene.min_size,)
        self.theirs.transform.max_size = scene.max_size

    @torch.no_grad()
    def expected(self, scene: Scene) -> Quantities:
        """What torchvision gives: one run in training, one in testing, looked into."""
        model = self.theirs
        with _Recorder(**self.heads()) as training:
            losses = self.losses(scene)
        self.set_norms(model.eval())
        parts = {
            "transform": model.transform,
            "body": model.backbone.body,
            "backbone": model.backbone,
            **self.heads(),
        }
        with _Recorder(**parts) as run:
            found = model(scene.for_torchvision()[0])
        return {
            "input": [run.output["transform"][0].tensors],
            "stages": list(run.output["body"].values()),
            "pyramid": list(run.output["backbone"].values()),
            **self.expected_heads(run, training, len(scene.images)),
            "losses": losses,
            **_detections([(x["boxes"], x["scores"], x["labels"] - 1) for x in found]),
        }

    def expected_heads(self, run: _Recorder, training: _Recorder, count: int) -> Quantities:
        """What torchvision's heads said about `count` pictures."""
        raise NotImplementedError

    @torch.no_grad()
    def found(self, scene: Scene, ours: Detector | None = None) -> Quantities:
        """What we give, or what ours with other settings gives."""
        model, batch = ours or self.ours, scene.batch()
        losses = self.our_losses(scene, model)
        parts = {
            "backbone": model.backbone,
            "neck": model.neck or model.backbone,
            **self.our_heads(model),
        }
        with _Recorder(**parts) as run:
            detections = model(batch.without_targets())
        return {
            "input": list(run.inputs["backbone"]),
            "stages": run.output["backbone"],
            "pyramid": run.output["neck"],
            **self.found_heads(run, model, batch),
            "losses": losses,
            **_detections([(x.boxes, x.scores, x.labels) for x in detections]),
        }

    def our_heads(self, model: Detector) -> dict[str, nn.Module]:
        """The modules of ours that `found_heads` needs to have seen."""
        raise NotImplementedError

    def found_heads(self, run: _Recorder, model: Detector, batch: Batch) -> Quantities:
        """What our heads said."""
        raise NotImplementedError


class Pair(_Pair):
    """Faster R-CNN."""

    LOSSES: ClassVar = {
        "loss_objectness": "rpn/objectness",
        "loss_rpn_box_reg": "rpn/box",
        "loss_classifier": "roi/class",
        "loss_box_reg": "roi/box",
    }

    def build(self, config: ModelConfig) -> FasterRCNN:
        return torchvision_faster_rcnn(config)

    def stub_draws(self) -> None:
        for part in (self.theirs.rpn, self.theirs.roi_heads):
            part.fg_bg_sampler = _StubSampler(part.fg_bg_sampler)

    def heads(self) -> dict[str, nn.Module]:
        model = self.theirs
        return {
            "rpn": model.rpn,
            "rpn_head": model.rpn.head,
            "anchors": model.rpn.anchor_generator,
            "pool": model.roi_heads.box_roi_pool,
            "predictor": model.roi_heads.box_predictor,
        }

    def outputs(self, run: _Recorder) -> list[tuple[nn.Module, Tensor, float, float]]:
        head, predictor = self.theirs.rpn.head, self.theirs.roi_heads.box_predictor
        logits, offsets = (
            torch.cat([level[0].flatten(1) for level in levels], dim=1).T
            for levels in run.output["rpn_head"]
        )
        classes, boxes = run.output["predictor"]
        return [
            (head.cls_logits, logits, 2.0, 0.0),
            (head.bbox_pred, offsets, 0.5, 0.0),  # half a box
            (predictor.cls_score, classes, 2.0, 0.0),
            (predictor.bbox_pred, boxes, 2.0, 0.0),  # a fifth or two fifths of a box
        ]

    def expected_heads(self, run: _Recorder, training: _Recorder, count: int) -> Quantities:
        logits, offsets = concat_box_prediction_layers(*run.output["rpn_head"])
        decoded = self.theirs.rpn.box_coder.decode(offsets, run.output["anchors"])
        classes, boxes = run.output["predictor"]
        return {
            "anchors": run.output["anchors"][:1],
            "rpn logits": [logits.view(count, -1)],
            "rpn offsets": [offsets.view(count, -1, 4)],
            "decoded": [decoded.view(count, -1, 4)],
            "train proposals": training.output["rpn"][0],
            "test proposals": run.inputs["pool"][1],
            "patches": [run.output["pool"]],
            "roi logits": [classes.roll(-1, dims=1)],  # background last
            "roi offsets": [boxes.unflatten(1, (-1, 4))[:, 1:]],
        }

    def our_heads(self, model: Detector) -> dict[str, nn.Module]:
        return {"rpn": model.rpn, "pool": model.roi.pool, "head": model.roi.head}

    def found_heads(self, run: _Recorder, model: Detector, batch: Batch) -> Quantities:
        output = run.output["rpn"]
        anchors, offsets = torch.cat(output.anchors), torch.cat(output.offsets, dim=1)
        return {
            "anchors": [anchors],
            "rpn logits": [torch.cat(output.logits, dim=1)],
            "rpn offsets": [offsets],
            "decoded": [decode(offsets, anchors)],
            "train proposals": model.rpn.propose(output, batch.sizes, model.rpn.train_limits),
            "test proposals": run.inputs["pool"][1],
            "patches": [run.output["pool"]],
            "roi logits": [run.output["head"][0]],
            "roi offsets": [run.output["head"][1]],
        }


class DensePair(_Pair):
    """RetinaNet or FCOS. Torchvision's class 0, which ours leave out, is never likely."""

    LOSSES: ClassVar = {}  # of each object

    def __init__(self, config: ModelConfig, *args: Any, **options: Any) -> None:
        name = config.detector
        self.LOSSES = {"classification": f"{name}/class", "bbox_regression": f"{name}/box"}
        if name == "fcos":
            self.LOSSES["bbox_ctrness"] = f"{name}/centerness"
        super().__init__(config, *args, **options)

    def build(self, config: ModelConfig) -> RetinaNet | FCOS:
        return torchvision_dense(config)

    @torch.no_grad()
    def _balance(self) -> None:
        super()._balance()
        layer = self.theirs.head.classification_head.cls_logits
        layer.weight.view(-1, NUM_CLASSES + 1, *layer.weight.shape[1:])[:, 0] = 0
        layer.bias.view(-1, NUM_CLASSES + 1)[:, 0] = -1e4

    def heads(self) -> dict[str, nn.Module]:
        head = self.theirs.head
        parts = {
            "head": head,
            "anchors": self.theirs.anchor_generator,
            "cls_logits": head.classification_head.cls_logits,
            "bbox_reg": head.regression_head.bbox_reg,
        }
        if self.config.detector == "fcos":
            parts["bbox_ctrness"] = head.regression_head.bbox_ctrness
        return parts

    def outputs(self, run: _Recorder) -> list[tuple[nn.Module, Tensor, float, float]]:
        parts = self.heads()
        wanted = [("cls_logits", 2.0, -2.0), ("bbox_reg", 0.5, 0.0)]
        if "bbox_ctrness" in parts:
            # four strides to each side; some cells even have none
            wanted = [("cls_logits", 2.0, -1.0), ("bbox_reg", 2.0, 4.0), ("bbox_ctrness", 1.0, 0.0)]
        return [
            (
                parts[name],
                torch.cat([each[0].flatten(1) for each in run.every[name]], dim=1).T,
                deviation,
                mean,
            )
            for name, deviation, mean in wanted
        ]

    def expected_heads(self, run: _Recorder, training: _Recorder, count: int) -> Quantities:
        output, anchors = run.output["head"], run.output["anchors"]
        offsets = output["bbox_regression"]
        quantities = {
            "anchors": anchors[:1],
            "logits": [output["cls_logits"][..., 1:]],
            "offsets": [offsets],
        }
        if "bbox_ctrness" in output:
            # the anchors of FCOS are squares of a stride around the points
            first, last = anchors[0][:, :2], anchors[0][:, 2:]
            quantities["anchors"] = [torch.cat([(first + last) / 2, (last - first)[:, :1]], dim=1)]
            quantities["centerness"] = [output["bbox_ctrness"]]
            decoded = self.theirs.box_coder.decode(offsets, torch.stack(anchors))
        else:
            decoded = torch.stack(
                [
                    self.theirs.box_coder.decode_single(*each)
                    for each in zip(offsets, anchors, strict=True)
                ]
            )
        return quantities | {"decoded": [decoded]}

    def our_heads(self, model: Detector) -> dict[str, nn.Module]:
        return {"head": model.head}

    def found_heads(self, run: _Recorder, model: Detector, batch: Batch) -> Quantities:
        head, output = model.head, run.output["head"]
        padded = tuple(batch.images.shape[-2:])
        rows = {
            name: [torch.cat([_rows(each, width) for each in maps], dim=1)]
            for name, maps, width in zip(
                ("logits", "offsets", "centerness"), output, (NUM_CLASSES, 4, 1), strict=False
            )
        }
        if self.config.detector == "fcos":
            cells = head.cells(output, padded)
            anchors = [torch.cat([each.points, each.strides[:, None]], dim=1) for each in cells]
        else:
            anchors = head.anchors(output.offsets, padded)
        boxes = [boxes for boxes, _ in head.candidates(output, padded)]
        return rows | {"anchors": [torch.cat(anchors)], "decoded": [torch.cat(boxes, dim=1)]}


def _rows(values: Tensor, width: int) -> Tensor:
    """A map `[B, A * width, H, W]` as torchvision orders it: `[B, H*W*A, width]`."""
    batch, _, height, columns = values.shape
    values = values.view(batch, -1, width, height, columns).permute(0, 3, 4, 1, 2)
    return values.reshape(batch, -1, width)


def _detections(images: list[tuple[Tensor, Tensor, Tensor]]) -> Quantities:
    """Boxes, scores and labels of each image, with equal scores in the order of the boxes.

    Scores can be equal: a region at the border of the maps may see nothing but zeros.
    """
    result: Quantities = {"boxes": [], "scores": [], "labels": []}
    for parts in images:
        order = parts[0][:, 0].argsort()
        order = order[parts[1][order].round(decimals=9).argsort(descending=True, stable=True)]
        for values, part in zip(result.values(), parts, strict=True):
            values.append(part[order])
    return result


class _Recorder:
    """Arguments and output of the last call of each module, while the `with` block runs.

    And the outputs of every call, in `every`.
    """

    def __init__(self, **modules: nn.Module) -> None:
        self.modules = modules
        self.inputs: dict[str, Any] = {}
        self.output: dict[str, Any] = {}
        self.every: dict[str, list[Any]] = {name: [] for name in modules}

    def __enter__(self) -> _Recorder:
        self.handles = [
            module.register_forward_hook(partial(self._note, name))
            for name, module in self.modules.items()
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()

    def _note(self, name: str, _: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        self.inputs[name], self.output[name] = inputs, output
        self.every[name].append(output)


def _difference(found: list[Tensor], expected: list[Tensor]) -> float:
    """Largest absolute difference; infinite where shapes differ."""
    if [x.shape for x in found] != [x.shape for x in expected]:
        return math.inf
    pairs = zip(found, expected, strict=True)
    return max((float((f - e).detach().abs().max()) for f, e in pairs if f.numel()), default=0.0)


def _check_float32(found: Quantities, expected: Quantities, steps: Sequence[str]) -> None:
    """Steps agree to 1e-4, and so do all but chance detections."""
    for quantity in steps:
        torch.testing.assert_close(found[quantity], expected[quantity], rtol=0, atol=1e-4)
    torch.testing.assert_close(found["decoded"], expected["decoded"], rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(found["losses"], expected["losses"], rtol=1e-3, atol=1e-4)
    ours, theirs = (
        torch.cat([r["boxes"][0], r["scores"][0][:, None], r["labels"][0][:, None]], dim=1)
        for r in (found, expected)
    )
    near = (ours[:, None] - theirs).abs() < torch.tensor([0.01] * 4 + [1e-4, 0.5])
    assert near.all(dim=2).any(dim=1).float().mean() > 0.95


def _config(**sections: object) -> ModelConfig:
    """A model section of a recipe, checked like one."""
    return build_recipe({"name": "test", "model": sections}).model


@pytest.fixture(scope="session")
def difference() -> Callable[[list[Tensor], list[Tensor]], float]:
    return _difference


@pytest.fixture(scope="session")
def check_float32() -> Callable[[Quantities, Quantities, Sequence[str]], None]:
    return _check_float32


@pytest.fixture(scope="session")
def make_pair() -> Callable[..., Pair]:
    return Pair


@pytest.fixture(scope="session")
def make_dense_pair() -> Callable[..., DensePair]:
    return DensePair


@pytest.fixture(scope="session")
def make_config() -> Callable[..., ModelConfig]:
    return _config


@pytest.fixture(scope="session")
def make_scene() -> Callable[..., Scene]:
    return Scene


@pytest.fixture(scope="session")
def make_target() -> Callable[..., Target]:
    return target


@pytest.fixture(scope="session")
def make_picture() -> Callable[..., Tensor]:
    return picture
