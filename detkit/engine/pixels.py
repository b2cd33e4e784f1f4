"""Do the pixels that a network sees have about zero mean and unit variance?"""

from __future__ import annotations

import contextlib
import logging

import numpy as np
import torch

from detkit.data import CocoDataset, EvalTransform, ImageReadError, collate
from detkit.detectors import Detector
from detkit.engine.run import Run

logger = logging.getLogger(__name__)

IMAGES = 8
LARGEST_MEAN = 2.5  # in standard deviations: white pictures have 2.6 under ImageNet's settings
STD_RANGE = (0.2, 4.0)


def warn_of_pixels(detector: Detector, run: Run) -> None:
    """Log a warning where `model.mean` and `model.std` do not fit the training pictures."""
    resize = EvalTransform(**run.recipe.data.resize.model_dump())
    problem = pixel_problem(detector, run.train_set, resize)
    if problem is not None:
        logger.warning("%s", problem)


@torch.no_grad()
def pixel_problem(detector: Detector, dataset: CocoDataset, transform: EvalTransform) -> str | None:
    """What is wrong with the normalisation of some pictures, or None."""
    indices = np.linspace(0, len(dataset) - 1, min(IMAGES, len(dataset))).astype(int)
    dataset, samples = dataset.with_proposals(None), []
    for index in indices:
        with contextlib.suppress(ImageReadError):  # training will name it, or take another
            samples.append(transform(dataset[int(index)], 0))
    if not samples:
        return None
    device = detector.mean.device
    values = torch.cat(
        [detector.normalize(collate([each], divisor=1).to(device)).flatten() for each in samples]
    )
    mean, std = float(values.mean()), float(values.std())
    if abs(mean) <= LARGEST_MEAN and STD_RANGE[0] <= std <= STD_RANGE[1]:
        return None
    settings = (detector.mean.flatten().tolist(), detector.std.flatten().tolist())
    given = " and ".join(str([round(v, 4) for v in values]) for values in settings)
    return (
        f"normalised pixels have mean {mean:.2f} and deviation {std:.3g} instead of about 0 and 1: "
        f"model.mean and model.std are {given}; they are of RGB in 0..1, by default "
        "[0.485, 0.456, 0.406] and [0.229, 0.224, 0.225]"
    )
