"""From a checkpoint and a picture to detections, the same way as in testing.

B pictures in a batch, H and W the height and width of one, C classes.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.models import get_model_weights

from detkit.backbones.weights import load_into, read_weights
from detkit.config import Recipe, build_recipe
from detkit.data import Sample, collate
from detkit.detectors import Detector, create_detector
from detkit.detectors.torchvision_weights import PUBLISHED, convert, is_torchvision
from detkit.engine.checkpoint import load_checkpoint
from detkit.engine.device import amp_dtype, pick_device
from detkit.engine.proposals import picture_proposals
from detkit.engine.views import Preparation, with_views
from detkit.evaluation.thresholds import Thresholds, above, read_thresholds
from detkit.inference.batches import Numbered, group_by_size, in_order, read_ahead
from detkit.inference.export.exported import load_exported
from detkit.inference.export.metadata import format_of
from detkit.inference.optimize import Cost
from detkit.inference.optimize import optimize as optimized
from detkit.inference.pictures import Picture, each_picture, stands_for_several, to_rgb
from detkit.inference.sources import Source
from detkit.inference.stream import Stream, open_stream
from detkit.registry import suggest
from detkit.structures import Detections


def load(
    model: str | Path,
    *,
    weights: str | Path | None = None,
    device: str | None = None,
    overrides: Sequence[str] = (),
    optimize: bool = False,
) -> Predictor:
    """A predictor from a checkpoint, an exported file, or a published model.

    It looks at pictures as tools/test.py does: what the section `test` of the recipe says of
    scales, mirror images, tiles and thresholds holds.

    Args:
        model: a checkpoint ("runs/quickstart/best.pt"), a file that tools/export.py wrote
            (".onnx"; of .torchscript and .pt2 load only those that you trust: they are programs),
            or the name of a published model ("fasterrcnn_resnet50_fpn").
        weights: only with a name: the path of a file with the 90 classes of COCO, instead of
            torchvision's published file ("coco"), which is downloaded once, into torch.hub's cache.
        device: "cpu" or "cuda"; None takes the GPU where there is one.
        overrides: changes to the recipe, as on the command line ("test.tile=640",
            "model.select.nms=soft_gaussian"); an exported file has its section `model` fixed.
        optimize: make it faster, and measure and tell what that changes; see `Predictor.optimize`.

    Raises:
        ValueError: no such file, name, weights, device or setting, or one that cannot be used.
        ConnectionError: the published file is neither in the cache nor to be had.
    """
    target = pick_device(device)
    overrides = [overrides] if isinstance(overrides, str) else list(overrides)
    if optimize:
        return load(model, weights=weights, device=device, overrides=overrides).optimize()
    if str(model) in PUBLISHED:
        return _load_published(str(model), weights or "coco", target, overrides)
    if weights is not None:
        raise ValueError(
            f"weights={str(weights)!r} goes with the name of a published model "
            f"({', '.join(PUBLISHED)}); {model} has its own"
        )
    path = _existing_file(model)
    if format_of(path) is not None:
        return _load_exported(path, device, overrides)
    checkpoint = load_checkpoint(path, overrides)
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
        recipe: see above.
        cost: of an optimised one, what was measured to differ from before; else None.

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
        self.recipe = recipe
        self.cost: Cost | None = None
        self._preparation = Preparation.of(recipe)
        self._propose = picture_proposals(recipe.model)
        self._divisor = recipe.model.size_divisor
        self._thresholds = self._read(recipe.test.thresholds)
        self._dtype = amp_dtype(recipe.test.amp, device)

    @overload
    def __call__(
        self,
        pictures: np.ndarray | Tensor | Image.Image,
        *,
        score_threshold: Thresholds | None = None,
    ) -> Detections: ...
    @overload  # Detections; of a folder or pattern a list of them, which no type can tell
    def __call__(
        self, pictures: str | os.PathLike[str], *, score_threshold: Thresholds | None = None
    ) -> Any: ...
    @overload
    def __call__(
        self,
        pictures: list[Any] | tuple[Any, ...],
        *,
        score_threshold: Thresholds | None = None,
    ) -> list[Detections]: ...
    @overload
    def __call__(
        self, pictures: Iterator[Any], *, score_threshold: Thresholds | None = None
    ) -> Iterator[Detections]: ...
    def __call__(
        self,
        pictures: Picture | Iterable[Any],
        *,
        score_threshold: Thresholds | None = None,
    ) -> Detections | list[Detections] | Iterator[Detections]:
        """Find objects in a picture, or in each of many.

        Pictures of one size are computed in batches of the recipe's test.batch_size, while the next
        ones are read; with test.tile one after the other, and their tiles in batches. What is
        found in a picture does not depend on the others, up to rounding (in float32 some 1e-4 px
        and 1e-6 of a score).

        Args:
            pictures: a path; an array `[H, W, 3]` or a tensor `[3, H, W]`, uint8 RGB (OpenCV reads
                BGR: `image[..., ::-1]`), or grey; or a Pillow image. For many, of any sizes: a
                folder, a pattern ("photos/*.jpg"; see `list_pictures` for the order of both), a
                list or tuple of all these, or a generator of them.
            score_threshold: only detections whose score is at least this, instead of the recipe's
                test.thresholds: a number, `{name of a class: number}`, or a file of these, as
                tools/choose_thresholds.py writes it. The detector itself reports none below its
                own threshold, model.select.score_threshold.

        Returns:
            Detections on the CPU, in pixels of the original picture, best first. A list of them for
            a list, folder or pattern. A generator for a generator: it reads some batches ahead, so
            that memory does not grow with the number of pictures.

        Raises:
            ValueError: a picture that cannot be read or is of another type or shape, no picture in
                a folder; a threshold that is none. A generator gives the detections in all
                pictures before a broken one first.
        """
        limits = self._thresholds if score_threshold is None else self._read(score_threshold)
        if isinstance(pictures, Iterator):
            return self._find(pictures, limits)
        if isinstance(pictures, str | os.PathLike) and stands_for_several(pictures):
            return list(self._find([pictures], limits))
        if isinstance(pictures, list | tuple):
            return list(self._find(pictures, limits))
        return self._predict([pictures], limits)[0]  # type: ignore[list-item]  # to_rgb checks it

    def stream(
        self,
        source: Source | str | os.PathLike[str] | int,
        *,
        every: int = 1,
        track: bool = False,
        classes: Sequence[str] | None = None,
        score_threshold: Thresholds | None = None,
    ) -> Stream:
        """Find objects in every frame of a video, camera, network stream, folder or pattern.

        Reading, detecting and what the caller does with a result overlap; of cameras and network
        streams, frames that come too fast are dropped; see `Stream` for how it ends.

        Args:
            source: as for `open_source`, or what that returned.
            every: the detector looks at every so many frames of a video; between them its last
                detections are given again.
            track: number the objects; the results then have ids.
            classes: names of the only classes to report.
            score_threshold: as for a call.

        Returns:
            An iterator of `(frame, detections, ids, fresh)`.

        Raises:
            ValueError: a source that cannot be used, or another setting that is none.

        Example:
            >>> for frame, found, *_ in predictor.stream("clip.mp4"):  # doctest: +SKIP
            ...     print(frame.index, len(found))
        """
        limits = self._thresholds if score_threshold is None else self._read(score_threshold)
        return open_stream(
            lambda image: self._predict([image], limits)[0],
            source,
            class_names=self.class_names,
            every=every,
            track=track,
            classes=classes,
        )

    def optimize(
        self, pictures: Picture | Iterable[Picture] | None = None, **settings: Any
    ) -> Predictor:
        """A faster one that finds nearly the same; see `detkit.inference.optimize.optimize`."""
        return optimized(self, pictures, **settings)

    def with_detector(self, detector: Detector) -> Predictor:
        """The same with another form of the detector, which is used as it is."""
        other = copy.copy(self)
        other.detector = detector
        return other

    def _read(self, thresholds: Thresholds | None) -> list[float] | None:
        return None if thresholds is None else read_thresholds(thresholds, self.class_names)

    def _find(
        self, pictures: Iterable[Picture], thresholds: list[float] | None
    ) -> Iterator[Detections]:
        """Detections in each picture, in their order; reads ahead."""
        size = self._preparation.batch_size
        samples = read_ahead(each_picture(pictures), self.prepare, ahead=size)
        with closing(samples):
            groups = group_by_size(samples, batch_size=size, divisor=self._divisor)
            yield from in_order(self._detect_numbered(groups, thresholds))

    def _detect_numbered(
        self, groups: Iterable[list[Numbered[Sample]]], thresholds: list[float] | None
    ) -> Iterator[Numbered[Detections]]:
        for group in groups:
            places, samples = zip(*group, strict=True)
            yield from zip(places, self._detect(samples, thresholds), strict=True)

    def _predict(
        self, pictures: Sequence[Picture], thresholds: list[float] | None
    ) -> list[Detections]:
        """Detections in the pictures of one batch."""
        return self._detect([self.prepare(picture) for picture in pictures], thresholds)

    def prepare(self, picture: Picture) -> Sample:
        """Read and resize as testing does; without truths."""
        image = to_rgb(picture)
        sample = _without_truth(image)
        if self._propose is not None:
            sample = replace(sample, proposals=self._propose(image))
        return self._preparation.transform(sample, 0)

    def _detect(
        self, samples: Sequence[Sample], thresholds: list[float] | None
    ) -> list[Detections]:
        batch = collate(samples, divisor=self._divisor).without_targets()
        with (
            torch.no_grad(),  # not inference_mode: callers may change what they get in place
            torch.autocast(self.device.type, dtype=self._dtype, enabled=self._dtype is not None),
        ):
            found = self.detector.predict(batch.to(self.device))
        found = [replace(each.to("cpu"), class_names=self.class_names) for each in found]
        if thresholds is None:
            return found
        return [above(each, thresholds) for each in found]


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


def _load_exported(path: Path, device: str | None, overrides: Sequence[str]) -> Predictor:
    detector, recipe = load_exported(path, device, overrides)
    return Predictor(
        detector,
        recipe,
        class_names=detector.metadata.class_names,
        category_ids=detector.metadata.category_ids,
        device=detector.device,
    )


def _load_published(
    name: str, weights: str | Path, device: torch.device, overrides: Sequence[str]
) -> Predictor:
    """A published architecture with the 90 category ids of COCO, ten of which name nothing."""
    names = get_model_weights(name)["COCO_V1"].meta["categories"][1:]  # 0 is the background
    model = PUBLISHED[name].model_dump(mode="json")
    recipe = build_recipe({"name": name, "model": model}, overrides, where=name)
    state = read_weights(name, weights)
    if is_torchvision(state):
        state = convert(state)
    detector = create_detector(recipe.model, num_classes=len(names))
    load_into(detector, state, source=str(weights))
    return Predictor(
        detector, recipe, class_names=names, category_ids=range(1, len(names) + 1), device=device
    )


def _existing_file(model: str | Path) -> Path:
    """The path, unless it is a folder, a URL or a misspelt name of a published model."""
    path = Path(model)
    if "://" in str(model):
        raise ValueError(f"{model} is a URL; download the file and give its path")
    if path.is_dir():
        inside = ", ".join(
            sorted(
                str(each)
                for each in path.iterdir()
                if each.suffix == ".pt" or format_of(each) is not None
            )
        )
        raise ValueError(
            f"{path} is a folder, name a checkpoint (.pt) in it: {inside or 'it holds none'}"
        )
    if not path.exists() and len(path.parts) == 1 and not path.suffix:
        raise ValueError(
            f"no checkpoint {str(path)!r}, and no published model of that name; "
            f"{suggest(str(path), PUBLISHED)}; or give a path"
        )
    return path
