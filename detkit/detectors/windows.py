"""Windows of a few sizes on a regular grid, and their pixels.

A window of any size is seen by the classifier as a picture of one input size (h_in, w_in). B
images, S sizes, N windows of an image, R windows of all images, H and W height and width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import roi_align

from detkit.detectors.roi import with_image
from detkit.structures import Size


@dataclass(frozen=True)
class WindowGrid:
    """Where the windows of an image are.

    The first has its corner in that of the image, and each next one is `stride` pixels of the
    classifier's input away: in the image h / h_in as many down and w / w_in as many to the right,
    so that a window twice as large moves twice as far. The last row and column reach the border of
    the image or hang over it by less than a step, so that every pixel is in a window, and an image
    smaller than a window has one.

    Attributes:
        sizes: (height, width) of the windows in pixels of the image.
        stride: in pixels of the classifier's input.
        input_size: (height, width) of the classifier's input.

    Raises:
        ValueError: no size, or a number below 1.
    """

    sizes: tuple[Size, ...]
    stride: int
    input_size: Size

    def __post_init__(self) -> None:
        numbers = (self.stride, *self.input_size, *(side for size in self.sizes for side in size))
        if not self.sizes or min(numbers) < 1:
            raise ValueError(
                f"windows of sizes {self.sizes}, stride {self.stride} and input size "
                f"{self.input_size}: give one size at least, and numbers from 1"
            )

    def counts(self, size: Size, image: Size) -> tuple[int, int]:
        """Rows and columns of windows of a size in an image of (height, width)."""
        rows, columns = (
            # in whole numbers: a quotient of floats may lie on the wrong side of the last step
            -(-max(side - window, 0) * seen // (self.stride * window)) + 1
            for side, window, seen in zip(image, size, self.input_size, strict=True)
        )
        return rows, columns

    def all_counts(self, image: Size) -> list[tuple[int, int]]:
        """The same of every size."""
        return [self.counts(size, image) for size in self.sizes]

    def spans(self, counts: tuple[int, int]) -> Size:
        """Pixels of the classifier's input that so many rows and columns of windows cover."""
        height, width = (
            (count - 1) * self.stride + seen
            for count, seen in zip(counts, self.input_size, strict=True)
        )
        return height, width

    def boxes(
        self, image: Size, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Windows `[N, 4]` of an image of (height, width): size by size, row by row."""
        parts = []
        for size in self.sizes:
            y, x = (
                torch.arange(count, device=device, dtype=dtype) * (self.stride * window) / seen
                for count, window, seen in zip(
                    self.counts(size, image), size, self.input_size, strict=True
                )
            )
            y, x = torch.meshgrid(y, x, indexing="ij")
            corners = torch.stack([x, y], dim=2).flatten(0, 1)  # [rows * columns, 2]
            height, width = size
            parts.append(torch.cat([corners, corners + corners.new_tensor([width, height])], dim=1))
        return torch.cat(parts)


def cut_windows(images: Tensor, regions: Tensor, output: Size) -> Tensor:
    """The pixels of each window, resized.

    Each pixel of the output is an interpolated one of the image (bilinear), or, where the output
    is smaller than the window, the mean of as many to a side as it covers pixels. An output as
    large as a window that lies on whole pixels is a plain cut. Beyond the image it is zero.

    Args:
        images: `[B, C, H, W]`.
        regions: `[R, 5]`, boxes, the image's index in front.
        output: (height, width).

    Returns:
        `[R, C, height, width]`.
    """
    images, regions = _fringed(images), regions.to(images.dtype)
    sides = regions[:, [4, 3]] - regions[:, [2, 1]]
    points = _points(sides / sides.new_tensor(output))  # [R]
    kinds = points.unique().tolist()  # one or two where sizes differ little
    if len(kinds) == 1:
        return _sampled(images, regions, output, kinds[0])
    cut = images.new_zeros(len(regions), images.shape[1], *output)
    for kind in kinds:
        index = (points == kind).nonzero()[:, 0]
        cut[index] = _sampled(images, regions[index], output, kind)
    return cut


def resize_for(images: Tensor, window: Size, input_size: Size, output: Size) -> Tensor:
    """Resize whole images so that a window of them becomes as large as the classifier's input.

    The same pixels as `cut_windows` gives of each window, as far as their corners lie on pixels of
    the output; an aspect ratio other than that of the input stretches the image.

    Args:
        images: `[B, C, H, W]`.
        window: (height, width) in the images.
        input_size: (height, width) that the window gets.
        output: (height, width) of what comes out, from the top left corner on; zero beyond the
            images.
    """
    scale = [side / seen for side, seen in zip(window, input_size, strict=True)]
    if window == input_size:
        height, width = images.shape[-2:]
        return F.pad(images, (0, output[1] - width, 0, output[0] - height))
    whole = images.new_tensor([[0.0, 0.0, output[1] * scale[1], output[0] * scale[0]]])
    points = int(_points(torch.tensor([scale])))
    regions = with_image([whole] * len(images))
    return _sampled(_fringed(images), regions, output, points)


def _points(scale: Tensor) -> Tensor:
    """Points to a side `[R]` that a pixel is the mean of, from pixels a pixel `[R, 2]`."""
    # a window of exactly twice the size must not get three for a rounding error
    return (scale.amax(dim=1) - 1e-3).ceil().clamp(min=1).long()


def _fringed(images: Tensor) -> Tensor:
    """With a row and a column of zeros behind the last ones.

    Where they end RoI align repeats the last pixel, and would so look at an image differently when
    it is alone than in a batch with larger ones.
    """
    return F.pad(images, (0, 1, 0, 1))


def _sampled(images: Tensor, regions: Tensor, output: Size, points: int) -> Tensor:
    images = images.contiguous()  # RoI align reads no other layout
    return roi_align(images, regions, output, sampling_ratio=points, aligned=True)


def jitter_boxes(boxes: Tensor, *, copies: int, amount: float) -> Tensor:
    """Boxes near the given ones: moved by up to `amount` of their sides, and scaled.

    Args:
        boxes: `[M, 4]`.
        copies: of each box.
        amount: largest move as a share of the side; each side is multiplied by up to
            exp(2 amount) or divided by it.

    Returns:
        `[copies * M, 4]`.
    """
    boxes = boxes.repeat(copies, 1)
    noise = (2 * torch.rand_like(boxes) - 1) * amount
    side = boxes[:, 2:] - boxes[:, :2]
    center = boxes[:, :2] + side / 2 + noise[:, :2] * side
    half = side / 2 * (2 * noise[:, 2:]).exp()
    return torch.cat([center - half, center + half], dim=1)
