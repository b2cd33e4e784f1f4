"""Sections about the detector.

The defaults of `model` are those of torchvision's `fasterrcnn_resnet50_fpn`.
"""

from __future__ import annotations

import itertools
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, model_validator

from detkit.config.base import (
    Focusing,
    Fraction,
    NonNegative,
    NonNegativeInt,
    OpenFraction,
    Positive,
    Scale,
    Section,
)

# On offsets or on boxes, see OFFSET_LOSSES and BOX_LOSSES in detkit/ops/losses.py
BoxLossName = Literal["smooth_l1", "l1", "l2", "iou", "giou", "diou", "ciou"]


class BackboneConfig(Section):
    """The network that turns pixels into feature maps. Null is the network's own default."""

    name: str = "resnet50"
    weights: str | None = None  # "imagenet" or a path
    out_indices: tuple[int, ...] | None = None  # null: strides 4, 8, 16, 32 where there are such
    frozen_stages: NonNegativeInt = 0
    norm: Literal["batch", "frozen_batch", "group", "sync_batch"] | None = None
    norm_eps: NonNegative | None = None
    attention: str | None = None  # a module of detkit.nn.attention
    attention_at: str | None = None  # a position, see detkit/backbones/placement.py
    attention_stages: tuple[int, ...] | dict[int, tuple[int, ...]] | None = None  # null: all
    attention_settings: dict[str, Any] | None = None
    attention_image_size: tuple[PositiveInt, PositiveInt] | None = None  # of modules of fixed size
    width: PositiveInt | None = None  # ResNets: channels of the stem, 64 as published
    zero_init_residual: bool | None = None
    drop_path: Fraction | None = None
    output_stride: PositiveInt | None = None
    settings: dict[str, Any] | None = None  # what only this network takes: {last_pool: false}

    @model_validator(mode="after")
    def _settings_have_no_key_of_their_own(self) -> BackboneConfig:
        for key in self.settings or ():
            if key in type(self).model_fields:
                raise ValueError(f"settings has {key!r}, a key of its own: set backbone.{key}")
            if key == "in_channels":
                raise ValueError("settings has 'in_channels', which of a detector are always 3")
        return self


class FPNConfig(Section):
    """Feature pyramid on top of the backbone."""

    channels: PositiveInt = 256
    extra: Literal["pool", "p6p7"] | None = "pool"
    p6_source: Literal["p5", "c5"] = "p5"  # of "p6p7": from the last map that comes out, or goes in
    norm: Literal["batch", "group"] | None = None


def check_ious(positive: float, negative: float) -> None:
    """Raise where an overlap would be that of an object and of background alike."""
    if positive < negative:
        raise ValueError(
            f"positive_iou {positive:g} is below negative_iou {negative:g}, and what overlaps by "
            "something between would be an object and background; lower negative_iou, too"
        )


class RPNConfig(Section):
    """Region proposal network."""

    # of each level; null: one of 8 times its stride (32 to 512 on a pyramid of strides 4 to 64)
    anchor_sizes: tuple[tuple[Positive, ...], ...] | None = None
    aspect_ratios: tuple[Positive, ...] = (0.5, 1.0, 2.0)
    # instead of both: (height, width) of each anchor, a list for each level, finest first
    anchor_boxes: tuple[tuple[tuple[Positive, Positive], ...], ...] | None = None
    convs: PositiveInt = 1  # before the last layers
    positive_iou: Fraction = 0.7
    negative_iou: Fraction = 0.3
    sampler: Literal["balanced", "random"] = "balanced"  # random: positives as they come
    samples: PositiveInt = 256
    positive_fraction: Fraction = 0.5
    pre_nms_train: PositiveInt = 2000
    pre_nms_test: PositiveInt = 1000
    post_nms_train: PositiveInt = 2000
    post_nms_test: PositiveInt = 1000
    nms_iou: Fraction = 0.7
    score_threshold: Fraction = 0.0
    min_size: NonNegative = 1e-3
    smooth_l1_beta: NonNegative = 1 / 9

    @model_validator(mode="after")
    def _fits_together(self) -> RPNConfig:
        check_ious(self.positive_iou, self.negative_iou)
        if self.anchor_boxes is not None and self.anchor_sizes is not None:
            raise ValueError("anchor_boxes and anchor_sizes exclude each other; set one to null")
        return self


class GridConfig(Section):
    """Proposals that are the same everywhere."""

    sizes: tuple[Positive, ...] = (32.0, 64.0, 128.0)  # square roots of the areas, in pixels
    aspect_ratios: tuple[Positive, ...] = (0.5, 1.0, 2.0)  # height / width
    stride: PositiveInt = 16  # pixels from one centre to the next

    @model_validator(mode="after")
    def _is_not_empty(self) -> GridConfig:
        if not (self.sizes and self.aspect_ratios):
            raise ValueError("a grid needs at least one of sizes and one of aspect_ratios")
        return self


class SelectiveSearchConfig(Section):
    """Proposals by grouping similar regions of the original picture."""

    mode: Literal["single", "fast", "quality"] = "fast"  # 1, 8 or 80 groupings
    color_spaces: tuple[str, ...] | None = None  # null: those of the mode; rgb, lab, hsv, ...
    scales: tuple[Positive, ...] | None = None  # k of the segmentation; null: those of the mode
    # letters of CTSF (colour, texture, size, fill), like "TSF"; null: those of the mode
    similarities: tuple[str, ...] | None = None
    sigma: NonNegative = 0.8  # pixels of blur before the segmentation
    min_size: PositiveInt | None = None  # of a first region in pixels; null: k, less if small
    min_side: PositiveInt = 8  # of a box in pixels
    longest: PositiveInt | None = 500  # side that larger pictures are scaled down to; null: none
    seed: NonNegativeInt = 0  # of the order


class RoIConfig(Section):
    """Second stage: what each proposal shows, and where exactly."""

    # what is cut out for a region: "align" and "pool" its part of the maps, "crop" its pixels, of
    # which the backbone then makes maps (R-CNN)
    pool: Literal["align", "pool", "crop"] = "align"
    resolution: PositiveInt | None = 7  # side of the patch; crop: null, the map as it comes
    sampling_ratio: NonNegativeInt = 2  # 0: as the size of the region asks for; crop: 0
    aligned: bool = False
    canonical_size: Positive = 224.0
    canonical_level: int = 4
    crop_size: PositiveInt = 224  # side of the square of pixels that a region is warped to
    context: NonNegative = 16.0  # pixels of it on each side that show what is around the region
    chunk: PositiveInt = 64  # crops at a time that the backbone sees when not in training
    max_regions: PositiveInt = 2000  # of an image that come with the data: the first
    convs: NonNegativeInt = 0  # on the patches, before they are flattened
    conv_channels: PositiveInt = 256
    conv_norm: Literal["batch", "group"] | None = "batch"
    fcs: PositiveInt = 2  # hidden layers
    hidden: PositiveInt = 1024  # features of each
    positive_iou: Fraction = 0.5
    negative_iou: Fraction = 0.5
    # random: positives as they come; ohem: those with the highest loss
    sampler: Literal["balanced", "random", "ohem"] = "balanced"
    hard_iou: Fraction = 0.7  # ohem: of candidates that overlap by more, the hardest stands for all
    samples: PositiveInt = 512
    positive_fraction: Fraction = 0.25
    class_loss: Literal["cross_entropy", "focal"] = "cross_entropy"
    focal_gamma: Focusing = 2.0
    label_smoothing: Fraction = 0.0
    class_weights: tuple[NonNegative, ...] | None = None  # of the class loss, background last
    box_weights: tuple[Positive, Positive, Positive, Positive] = (10.0, 10.0, 5.0, 5.0)
    box_loss: BoxLossName = "smooth_l1"
    box_loss_weight: NonNegative = 1.0
    smooth_l1_beta: NonNegative = 1 / 9
    class_agnostic: bool = False  # one box for all classes; of several stages: true
    # More than one is Cascade R-CNN: each refines the boxes of the one before, its box weights are
    # 1, 2, 3, .. times as large
    stages: PositiveInt = 1
    stage_ious: tuple[Fraction, ...] | None = None  # null: positive_iou, then 0.1 more each
    stage_loss_weights: tuple[NonNegative, ...] | None = None  # null: 1, then half of it each

    @model_validator(mode="after")
    def _fits_together(self) -> RoIConfig:
        check_ious(self.positive_iou, self.negative_iou)
        if self.pool == "crop":
            self._default("resolution", None)
            self._default("sampling_ratio", 0)
            if 2 * self.context >= self.crop_size:
                raise ValueError(
                    f"context {self.context:g} on both sides leaves nothing of crop_size "
                    f"{self.crop_size} for the region; give less than {self.crop_size / 2:g}"
                )
            if self.sampler == "ohem":
                raise ValueError(
                    "sampler=ohem judges all candidates in every step, for pool=crop one pass of "
                    "the backbone each; set sampler to balanced or random, or pool to align or pool"
                )
        elif self.resolution is None:
            raise ValueError(f"resolution null is for pool=crop; give pool={self.pool} a side")
        if self.stages > 1:
            self._default("class_agnostic", True)
            if not self.class_agnostic:
                raise ValueError(
                    f"stages={self.stages} hand on one box a region, not one for each class; "
                    "leave class_agnostic out, or set it to true"
                )
        for name in ("stage_ious", "stage_loss_weights"):
            given = getattr(self, name)
            if given is not None and len(given) != self.stages:
                raise ValueError(
                    f"{name} has {len(given)} entries for stages={self.stages}; give one a stage"
                )
        return self

    def _default(self, name: str, value: object) -> None:
        """What a field that was left out is here, where it is not as everywhere."""
        if name not in self.model_fields_set:
            self.__dict__[name] = value


class SlidingWindowConfig(Section):
    """A classifier of windows, slid over the image."""

    # "crop": each window cut out and resized, right for any network; "dense": the network over the
    # whole image at once, the same for networks that pad no border (LeNet) and much faster
    mode: Literal["crop", "dense"] = "crop"
    sizes: tuple[tuple[PositiveInt, PositiveInt], ...] = ((32, 32),)  # (height, width) in pixels
    input_size: tuple[PositiveInt, PositiveInt] | None = None  # of the classifier; null: sizes[0]
    # from one window to the next, in pixels of the classifier's input: a window of twice its size
    # moves twice as many pixels of the image
    stride: PositiveInt = 8
    pooled: bool = False  # the head sees the mean of the window's map; else all of it, flattened
    hidden: NonNegativeInt = 128  # features of the hidden layer; 0: none
    box_regression: bool = True  # else a window is its own box
    class_agnostic: bool = True  # one box for all classes, which OverFeat found better
    positive_iou: Fraction = 0.5
    negative_iou: Fraction = 0.4
    samples: PositiveInt = 64  # windows of an image that learn
    positive_fraction: Fraction = 0.25
    hard_negatives: PositiveInt = 1  # so many times as many are scored, and the worst of them learn
    copies: NonNegativeInt = 8  # of each truth, that are windows too
    jitter: Fraction = 0.15  # how far they are moved, as a share of their sides
    box_weights: tuple[Positive, Positive, Positive, Positive] = (10.0, 10.0, 5.0, 5.0)
    box_loss: BoxLossName = "smooth_l1"
    box_loss_weight: NonNegative = 1.0
    smooth_l1_beta: NonNegative = 1 / 9

    @model_validator(mode="after")
    def _overlaps_fit(self) -> SlidingWindowConfig:
        check_ious(self.positive_iou, self.negative_iou)
        return self


class RetinaNetConfig(Section):
    """Anchors on a pyramid, judged at once, with the focal loss."""

    # of each level; null: `octave_scales` a level, from 4 times its stride on, whole pixels
    anchor_sizes: tuple[tuple[Positive, ...], ...] | None = None
    octave_scales: PositiveInt = 3  # 4, 5.04 and 6.35 times the stride
    aspect_ratios: tuple[Positive, ...] = (0.5, 1.0, 2.0)
    convs: NonNegativeInt = 4  # before the last layers, of classes and of boxes
    # of these; no batch norm: the levels share it, and what they hold is not alike
    norm: Literal["group"] | None = None
    prior: OpenFraction = 0.01  # probability that the untrained head gives each class
    positive_iou: Fraction = 0.5
    negative_iou: Fraction = 0.4
    focal_alpha: Fraction = 0.25
    focal_gamma: Focusing = 2.0
    box_loss: Literal["smooth_l1", "giou"] = "smooth_l1"
    box_loss_weight: NonNegative = 1.0
    smooth_l1_beta: NonNegative = 0.0  # 0: L1

    @model_validator(mode="after")
    def _overlaps_fit(self) -> RetinaNetConfig:
        check_ious(self.positive_iou, self.negative_iou)
        return self


class FCOSConfig(Section):
    """Every cell inside a box predicts the box; no anchors."""

    # pixels to the farthest side, from which on a box is for the next level; null: 8 strides
    size_limits: tuple[Positive, ...] | None = None
    center_radius: Positive = 1.5  # strides from the centre of a box within which its cells are
    convs: NonNegativeInt = 4  # before the last layers, of classes and of boxes
    norm: Literal["group"] | None = "group"  # of these; see RetinaNetConfig
    prior: OpenFraction = 0.01  # probability that the untrained head gives each class
    focal_alpha: Fraction = 0.25
    focal_gamma: Focusing = 2.0


class TaskAlignedConfig(Section):
    """Cells learn from the objects that they both classify and locate best."""

    channels: PositiveInt | None = None  # of the towers; null: of the maps
    convs: NonNegativeInt = 2  # of each tower
    norm: Literal["batch", "group"] = "batch"
    # sides are at most bins - 1 strides from their cell: of stride 32 no box is larger than 1024
    # pixels, and images with larger objects need fpn.extra (stride 64) or more bins
    bins: Annotated[int, Field(ge=2)] = 17
    top_k: PositiveInt = 13  # cells that learn from an object at most
    alpha: NonNegative = 1.0  # weight of the score in the choice of these cells
    beta: NonNegative = 6.0  # weight of the overlap in it
    box_loss: Literal["iou", "giou", "diou", "ciou"] = "giou"
    class_weight: NonNegative = 1.0
    box_weight: NonNegative = 2.0
    distance_weight: NonNegative = 0.5


# How boxes of one object become one, see `suppress` in detkit/ops/selection.py
SuppressionName = Literal[
    "hard",
    "soft_linear",
    "soft_gaussian",
    "diou",
    "matrix_linear",
    "matrix_gaussian",
    "wbf",
    "nmm",
    "none",
]


class FusionConfig(Section):
    """How the detections that several looks at a picture gave become one answer."""

    nms: SuppressionName | None = None  # null: hard; for several checkpoints wbf
    iou_threshold: Fraction | None = None  # null: that of model.select
    sigma: Positive = 0.5  # of the Gaussian ones; the smaller, the more a score falls
    class_agnostic: bool | None = None  # null: as model.select
    score_threshold: Fraction = 1e-3  # only scores above it, before and after
    max_detections: PositiveInt | None = None  # null: that of model.select; for tiles no limit


# From and up to (not included) this many pixels; null: without end
SizeRange = tuple[NonNegative, Positive | None]


class ImagePyramidConfig(Section):
    """The same detector on scaled copies of the image."""

    scales: tuple[Scale, ...] | None = None  # null: 0.5, 1 and 2, or octaves where set
    smallest: PositiveInt | None = None  # octaves: halve until a side would be shorter than this
    per_octave: PositiveInt = 1  # copies from one size to its half
    # of the objects that a copy is for: side (root of the area) in pixels of the copy; one range a
    # scale, or one for all; null: each copy is for all
    ranges: tuple[SizeRange, ...] | None = None
    fusion: FusionConfig = FusionConfig()

    @model_validator(mode="after")
    def _scales_or_octaves(self) -> ImagePyramidConfig:
        if self.smallest is not None and self.scales is not None:
            raise ValueError("scales and smallest exclude each other; set one to null")
        if self.smallest is None and self.scales is None:
            self.__dict__["scales"] = (0.5, 1.0, 2.0)
        check_ranges(self.ranges, self.scales)
        return self


def check_ranges(ranges: tuple[SizeRange, ...] | None, scales: tuple[float, ...] | None) -> None:
    """Raise unless there is a range for each scale (None: as many as the image gives) or one."""
    if scales is not None and not scales:
        raise ValueError("scales are empty; give at least one, e.g. [1]")
    if ranges is None:
        return
    if len(ranges) != 1 and (scales is None or len(ranges) != len(scales)):
        wanted = "one for all octaves" if scales is None else f"one each of {len(scales)} scales"
        raise ValueError(f"ranges has {len(ranges)} entries; give {wanted}, or one for all")
    for low, high in ranges:
        if high is not None and not low < high:
            raise ValueError(f"ranges has [{low:g}, {high:g}], whose end is not above its start")


class SelectConfig(Section):
    """After the head: which boxes are reported."""

    score_threshold: Fraction = 0.05  # only scores above it, before and after suppression
    pre_nms: PositiveInt | None = None  # best candidates of each level that are looked at
    # wbf and nmm join boxes; nmm is for the pieces that tiles see, and too greedy for raw boxes
    nms: SuppressionName = "hard"
    iou_threshold: Fraction = 0.5
    sigma: Positive = 0.5  # of the Gaussian ones; the smaller, the more a score falls
    class_agnostic: bool = False  # boxes of different classes suppress each other, too
    max_detections: PositiveInt = 100
    min_size: NonNegative = 0.0  # shortest side in pixels


DetectorName = Literal["sliding_window", "region_proposal", "retinanet", "fcos", "task_aligned"]

# Which sections a detector has beside those that all have
_SECTIONS: dict[str, tuple[str, ...]] = {
    "sliding_window": ("sliding_window",),
    "region_proposal": ("fpn", "rpn", "selective_search", "grid", "roi"),
    "retinanet": ("fpn", "retinanet"),
    "fcos": ("fpn", "fcos"),
    "task_aligned": ("fpn", "task_aligned"),
}
_OPTIONAL = ("fpn", "image_pyramid")  # null leaves the part out

# What the sections shared by several detectors hold in one of them, where it is not their default
_DEFAULTS: dict[str, dict[str, dict[str, Any]]] = {
    "sliding_window": {"select": {"iou_threshold": 0.3}},
    "region_proposal": {"select": {"min_size": 1e-2}},
    "retinanet": {
        "fpn": {"extra": "p6p7"},
        "select": {"pre_nms": 1000, "max_detections": 300},
    },
    "fcos": {
        "fpn": {"extra": "p6p7"},
        "select": {"score_threshold": 0.2, "pre_nms": 1000, "iou_threshold": 0.6},
    },
    "task_aligned": {
        "fpn": {"extra": None},
        "select": {"pre_nms": 1000, "iou_threshold": 0.6},
    },
}


class ModelConfig(Section):
    """A detector. Sections of other detectors are null, and refused where they are given."""

    detector: DetectorName = "region_proposal"
    weights: str | None = None  # "coco", or a path of a checkpoint
    backbone: BackboneConfig = BackboneConfig()
    fpn: FPNConfig | None = None
    proposals: Literal["rpn", "selective_search", "grid", "file"] | None = None  # null: rpn
    rpn: RPNConfig | None = None
    selective_search: SelectiveSearchConfig | None = None
    grid: GridConfig | None = None
    roi: RoIConfig | None = None
    sliding_window: SlidingWindowConfig | None = None
    retinanet: RetinaNetConfig | None = None
    fcos: FCOSConfig | None = None
    task_aligned: TaskAlignedConfig | None = None
    image_pyramid: ImagePyramidConfig | None = None
    select: SelectConfig = SelectConfig()
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)  # of RGB in 0..1
    std: tuple[Positive, Positive, Positive] = (0.229, 0.224, 0.225)
    size_divisor: PositiveInt = 32  # images are padded to a multiple of it

    @model_validator(mode="after")
    def _has_the_sections_of_its_detector(self) -> ModelConfig:
        """Refuse those of others, and fill in what was left out as this detector has it."""
        sections = self._sections()
        for name in dict.fromkeys(itertools.chain(*_SECTIONS.values())):
            if name not in sections:
                if getattr(self, name) is not None:
                    what: str = self.detector
                    if name in _SECTIONS[what]:
                        why = "roi.pool=crop" if name == "fpn" else f"proposals={self.proposals}"
                        what = f"{what} with {why}"
                    raise ValueError(f"{what} has no section {name!r}; leave it out, or set null")
            elif getattr(self, name) is None and not (
                name in _OPTIONAL and name in self.model_fields_set
            ):
                self._fill(name, _SECTION_TYPES[name]())
        for name, values in _DEFAULTS[self.detector].items():
            section = getattr(self, name)
            if section is not None:
                missing = {k: v for k, v in values.items() if k not in section.model_fields_set}
                self._fill(name, section.model_copy(update=missing))
        return self

    def _sections(self) -> set[str]:
        """Which sections this detector has, by where its proposals and patches come from."""
        sections = set(_SECTIONS[self.detector])
        if self.detector != "region_proposal":
            if self.proposals is None:
                return sections
            raise ValueError(f"{self.detector} has no proposals: {self.proposals!r}; leave it out")
        self._fill("proposals", self.proposals or "rpn")
        sections -= {"rpn", "selective_search", "grid"} - {str(self.proposals)}
        if self.proposals != "rpn" and self.fpn is not None and self.fpn.extra == "p6p7":
            raise ValueError(
                "fpn.extra=p6p7 learns two levels that only proposals=rpn looks at; leave it out "
                f"with proposals={self.proposals}"
            )
        if self.roi is not None and self.roi.pool == "crop":
            sections.remove("fpn")  # the backbone sees regions, and its last map is used
            if self.proposals == "rpn":
                raise ValueError(
                    "roi.pool=crop makes no maps of the image, which proposals=rpn looks at; "
                    "set model.proposals to selective_search, grid or file"
                )
        return sections

    def _fill(self, name: str, value: object) -> None:
        """Set a field of this frozen section while it is being made."""
        self.__dict__[name] = value


_SECTION_TYPES: dict[str, type[Section]] = {
    "fpn": FPNConfig,
    "rpn": RPNConfig,
    "selective_search": SelectiveSearchConfig,
    "grid": GridConfig,
    "roi": RoIConfig,
    "sliding_window": SlidingWindowConfig,
    "retinanet": RetinaNetConfig,
    "fcos": FCOSConfig,
    "task_aligned": TaskAlignedConfig,
}
