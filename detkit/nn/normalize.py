"""Mean subtraction, the oldest preparation of pixels.

B batch, C channels, H, W height and width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class MeanSubtraction(nn.Module):
    """Subtract the mean of each channel and, if told so, divide by its standard deviation.

    Detectors do this themselves (`Detector.normalize`); this is for classifiers of images and
    windows. Mean and deviation are settings and not part of the state_dict.

    Args:
        mean: of each channel over the data set, in the units of the images (0..255 for pixels);
            None takes each image's own mean.
        std: of each channel over the data set, in the same units; None does not divide.

    Raises:
        ValueError: not as many deviations as means, or one is not above 0.
    """

    mean: Tensor | None
    std: Tensor | None

    def __init__(
        self, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
    ) -> None:
        super().__init__()
        if mean is not None and std is not None and len(mean) != len(std):
            raise ValueError(f"{len(mean)} means but {len(std)} deviations; give one per channel")
        if std is not None and min(std) <= 0:
            raise ValueError(f"std must be above 0, got {list(std)}")
        for name, values in (("mean", mean), ("std", std)):
            # [C, 1, 1]
            value = None if values is None else torch.tensor(values, dtype=torch.float32)
            value = None if value is None else value.view(-1, 1, 1)
            self.register_buffer(name, value, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """From `[B, C, H, W]` of any type to floats; subtract before padding, not after."""
        if not images.is_floating_point():
            images = images.to(torch.float32)
        mean = images.mean(dim=(2, 3), keepdim=True) if self.mean is None else self.mean
        images = images - mean
        return images if self.std is None else images / self.std
