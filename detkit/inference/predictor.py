"""From a checkpoint and a picture to detections, the same way as in testing.

B pictures in a batch, H and W the height and width of one, C classes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor
from torchvision.models import get_model_weights

from detkit.backbones.weights import load_into, read_weights
from detkit.config import Recipe, build_recipe
from detkit.data import Sample, collate, read_image
from detkit.detectors import Detector, create_detector
from detkit.detectors.torchvision_weights import PUBLISHED, convert, is_torchvision
from detkit.engine.checkpoint import load_checkpoint
from detkit.engine.device import amp_dtype, pick_device
from detkit.engine.proposals import picture_proposals
from detkit.engine.views import Preparation, with_views
from detkit.evaluation.thresholds import Thresholds, above, read_thresholds
from detkit.registry import suggest
from detkit.structures import Batch, Detections

Picture = str | os.PathLike[str] | np.ndarray | Tensor
Pictures = list[Any] | tuple[Any, ...]  # of Picture; not Sequence, which a path is too


def load(
    model: str | Path,
    *,
    weights: str | Path | None = None,
    device: str | None = None,
    overrides: Sequence[str] = (),
) -> Predictor:
    """A predictor from a checkpoint, or from a published model.

    It looks at pictures as tools/test.py does: what the section `test` of the recipe says of
    scales, mirror images, tiles and thresholds holds.

    Args:
        model: a checkpoint ("runs/quickstart/best.pt"), or the name of a published model
            ("fasterrcnn_resnet50_fpn").
        weights: only with a name: "coco" for torchvision's published file, or the path of a file
            with the 90 classes of COCO.
        device: "cpu" or "cuda"; None takes the GPU where there is one.
        overrides: changes to the recipe, as on the command line ("test.tile=640",
            "model.select.nms=soft_gaussian").

    Raises:
        ValueError: no such checkpoint, name, weights, device or setting, or one that cannot be
            used.
        ConnectionError: the published file is neither in the cache nor to be had.
    """
    target = pick_device(device)
    overrides = [overrides] if isinstance(overrides, str) else list(overrides)
    if str(model) in PUBLISHED:
        return _load_published(str(model), weights, target, overrides)
    if weights is not None:
        raise ValueError(
            f"weights={str(weights)!r} goes with the name of a published model "
            f"({', '.join(PUBLISHED)}); the checkpoint {model} has its own"
        )
    checkpoint = load_checkpoint(_checkpoint_path(model), overrides)
    return Predictor(
        checkpoint.detector(),
        checkpoint.recipe,
        class_names=checkpoint.class_names,
        category_ids=checkpoint.category_ids,
        device=target,
    )


class Predictor:
    """Detections in pictures, prepared exactly as for testing.

    Args:
        detector: moved to `device` and put into evaluation mode.
        recipe: says how pictures are resized, padded, batched and looked at, in which precision,
            and what is reported.
        class_names: of labels `0..C-1`.
        category_ids: of labels `0..C-1` in the data set that the detector learnt from.
        device: where to compute.

    Attributes:
        detector: the module; where `test` asks for more than a plain look, what looks.
        class_names: of labels `0..C-1`.
        category_ids: of labels `0..C-1`.
        device: where it computes.

    Example:
        >>> predictor = detkit.load("runs/quickstart/best.pt")  # doctest: +SKIP
        >>> found = predictor("photo.jpg", score_threshold=0.5)  # doctest: +SKIP
        >>> found.names  # doctest: +SKIP
    """

    def __init__(
        self,
        detector: Detector,
        recipe: Recipe,
        *,
        class_names: Sequence[str],
        category_ids: Sequence[int],
        device: torch.device,
    ) -> None:
        self.detector = with_views(detector.to(device), recipe)
        self.class_names = tuple(class_names)
        self.category_ids = tuple(category_ids)
        self.device = device
        self._preparation = Preparation.of(recipe)
        self._propose = picture_proposals(recipe.model)
        self._divisor = recipe.model.size_divisor
        self._thresholds = self._read(recipe.test.thresholds)
        self._dtype = amp_dtype(recipe.test.amp, device)

    @overload
    def __call__(
        self, pictures: Picture, *, score_threshold: Thresholds | None = None
    ) -> Detections: ...
    @overload
    def __call__(
        self, pictures: Pictures, *, score_threshold: Thresholds | None = None
    ) -> list[Detections]: ...
    def __call__(
        self, pictures: Picture | Pictures, *, score_threshold: Thresholds | None = None
    ) -> Detections | list[Detections]:
        """Find objects in a picture, or in each of a list of pictures.

        The pictures of a list are read and computed in batches of the recipe's test.batch_size;
        with test.tile one after the other, and their tiles in batches.

        Args:
            pictures: a path, an array `[H, W, 3]` uint8 RGB or a tensor `[3, H, W]` uint8 RGB; or
                a list of these, of any sizes.
            score_threshold: only detections whose score is at least this, instead of the recipe's
                test.thresholds: a number, `{name of a class: number}`, or a file of these, as
                tools/choose_thresholds.py writes it. The detector itself reports none below its
                own threshold, model.select.score_threshold.

        Returns:
            Detections on the CPU, in pixels of the original picture, best first; a list of them
            for a list.

        Raises:
            ValueError: a picture that cannot be read or is of another type or shape; a threshold
                that is none.
        """
        limits = self._thresholds if score_threshold is None else self._read(score_threshold)
        if not isinstance(pictures, list | tuple):
            return self._predict([pictures], limits)[0]
        found: list[Detections] = []
        size = self._preparation.batch_size
        for start in range(0, len(pictures), size):
            found += self._predict(pictures[start : start + size], limits)
        return found

    def _read(self, thresholds: Thresholds | None) -> list[float] | None:
        return None if thresholds is None else read_thresholds(thresholds, self.class_names)

    def _predict(
        self, pictures: Sequence[Picture], thresholds: list[float] | None
    ) -> list[Detections]:
        batch = self._batch([to_rgb(picture) for picture in pictures])
        with (
            torch.no_grad(),  # not inference_mode: callers may change what they get in place
            torch.autocast(self.device.type, dtype=self._dtype, enabled=self._dtype is not None),
        ):
            found = self.detector.predict(batch.to(self.device))
        found = [replace(each.to("cpu"), class_names=self.class_names) for each in found]
        if thresholds is None:
            return found
        return [above(each, thresholds) for each in found]

    def _batch(self, images: Sequence[np.ndarray]) -> Batch:
        """Resize and pad as testing does."""
        prepare = self._preparation.transform
        samples = [prepare(self._sample(image), 0) for image in images]
        return collate(samples, divisor=self._divisor).without_targets()

    def _sample(self, image: np.ndarray) -> Sample:
        sample = _without_truth(image)
        return sample if self._propose is None else replace(sample, proposals=self._propose(image))


def to_rgb(picture: Picture) -> np.ndarray:
    """A picture in any accepted form as `[H, W, 3]` uint8 RGB.

    Raises:
        ValueError: a file that is no picture, or an array of another type or shape.
    """
    if isinstance(picture, str | os.PathLike):
        return read_image(picture)
    if isinstance(picture, Tensor):
        _check_pixels(picture, "tensor", "[3, H, W]", channels=0)
        return picture.permute(1, 2, 0).cpu().numpy()
    if isinstance(picture, np.ndarray):
        _check_pixels(picture, "array", "[H, W, 3]", channels=2)
        return picture
    raise ValueError(
        f"cannot take a {type(picture).__name__} for a picture; give a path, an array [H, W, 3] "
        "uint8 RGB (np.asarray(picture) of a Pillow image), a tensor [3, H, W] uint8, or a list"
    )


def _check_pixels(image: np.ndarray | Tensor, kind: str, wanted: str, *, channels: int) -> None:
    shape = list(image.shape)
    given = f"the {kind} is {shape} {str(image.dtype).removeprefix('torch.')}"
    if len(shape) == 4:
        raise ValueError(f"{given}, a picture is {wanted} uint8; give several as list({kind})")
    if len(shape) != 3 or shape[channels] != 3:
        raise ValueError(f"{given}, a picture is {wanted} uint8, RGB; convert it first")
    if str(image.dtype).removeprefix("torch.") != "uint8":
        raise ValueError(
            f"{given}, a picture is {wanted} uint8 in 0..255; scale and convert it first"
        )
    if 0 in shape:
        raise ValueError(f"{given}, it has no pixels; a picture has at least one")


def _without_truth(image: np.ndarray) -> Sample:
    return Sample(
        image=image,
        boxes=np.zeros((0, 4), np.float32),
        labels=np.zeros(0, np.int64),
        crowd=np.zeros(0, np.bool_),
        area=np.zeros(0, np.float32),
        image_id=0,
        original_size=(image.shape[0], image.shape[1]),
    )


def _load_published(
    name: str, weights: str | Path | None, device: torch.device, overrides: Sequence[str]
) -> Predictor:
    """A published architecture with the 90 category ids of COCO, ten of which name nothing."""
    if weights is None:
        raise ValueError(f"{name} needs weights: 'coco', or the path of a file with its classes")
    names = get_model_weights(name)["COCO_V1"].meta["categories"][1:]  # 0 is the background
    model = PUBLISHED[name].model_dump(mode="json")
    recipe = build_recipe({"name": name, "model": model}, overrides, where=name)
    detector = create_detector(recipe.model, num_classes=len(names))
    state = read_weights(name, weights)
    if is_torchvision(state):
        state = convert(state)
    load_into(detector, state, source=str(weights))
    return Predictor(
        detector, recipe, class_names=names, category_ids=range(1, len(names) + 1), device=device
    )


def _checkpoint_path(model: str | Path) -> Path:
    """The path, unless it is a folder or looks like a misspelt name of a published model."""
    path = Path(model)
    if path.is_dir():
        inside = ", ".join(sorted(str(each) for each in path.glob("*.pt"))) or "it holds none"
        raise ValueError(f"{path} is a folder, name a checkpoint (.pt) in it: {inside}")
    if not path.exists() and len(path.parts) == 1 and not path.suffix:
        raise ValueError(
            f"no checkpoint {str(path)!r}, and no published model of that name; "
            f"{suggest(str(path), PUBLISHED)}; or give a path"
        )
    return path
