"""Image pyramids, and how the answers of several looks become one, from the config."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from detkit.config import FusionConfig, ModelConfig, SelectConfig
from detkit.detectors.base import Detector
from detkit.detectors.image_pyramid import Fuse, ImagePyramid, Octaves
from detkit.ops import fuse


def build_image_pyramid(config: ModelConfig, detector: Detector) -> ImagePyramid:
    """`model.image_pyramid` around a detector."""
    pyramid = config.image_pyramid
    assert pyramid is not None
    scales: Sequence[float] | Octaves
    if pyramid.smallest is not None:
        scales = Octaves(pyramid.smallest, pyramid.per_octave)
    else:
        assert pyramid.scales is not None
        scales = pyramid.scales
    return ImagePyramid(
        detector,
        scales,
        fuse=build_fuse(pyramid.fusion, config.select),
        ranges=pyramid.ranges,
        divisor=config.size_divisor,
    )


def build_fuse(
    config: FusionConfig,
    select: SelectConfig,
    *,
    nms: str = "hard",
    limited: bool = True,
    weights: Sequence[float] | None = None,
) -> Fuse:
    """The function that makes one answer of several.

    Args:
        config: what is null in it, is as in `select`.
        select: of the detector.
        nms: the kind where none is named.
        limited: whether the limit of `select` on the number of detections counts.
        weights: of the answers; None: all alike.
    """
    agnostic = select.class_agnostic if config.class_agnostic is None else config.class_agnostic
    limit = config.max_detections
    if limit is None and limited:
        limit = select.max_detections
    return partial(
        fuse,
        nms=config.nms or nms,
        iou_threshold=(
            select.iou_threshold if config.iou_threshold is None else config.iou_threshold
        ),
        sigma=config.sigma,
        class_agnostic=agnostic,
        score_threshold=config.score_threshold,
        max_detections=limit,
        weights=weights,
    )
