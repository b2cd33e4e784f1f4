"""One picture from its seed: background, distractors, digits, camera.

`(seed, split, index)` seeds the generator and the size is given, so any image can be drawn again
alone. The order in which the generator is asked is part of the data set: a draw added anywhere
changes every picture, and VERSION in writer.py must rise. M counts the digits of an image.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from detkit.data.synthetic.backgrounds import draw_background
from detkit.data.synthetic.canvas import Canvas, Pixels
from detkit.data.synthetic.digits import draw_digit
from detkit.data.synthetic.distractors import draw_distractors
from detkit.structures import Size

SPLITS = ("train", "val", "test")  # the position seeds the split: append only
MIN_SIDE = 64  # below it the smallest readable digit would already be a large one
EMPTY_SHARE = 0.03  # of the images, background and distractors only
MAX_DIGITS = 12


@dataclass(frozen=True, slots=True)
class Scene:
    """One picture and its truth.

    Attributes:
        image: `[H, W, 3]` BGR.
        boxes: `[M, 4]` xyxy in whole pixels, tight around the ink inside the image.
        labels: `[M]` in 0..9.
    """

    image: Pixels
    boxes: NDArray[np.int64]
    labels: NDArray[np.int64]


def render_scene(*, split: str, index: int, seed: int, image_size: Size = (256, 256)) -> Scene:
    """Draw one image of a split, as it is before JPEG compression.

    Args:
        split: "train", "val" or "test".
        index: position in the split, from 0 (its image id less one).
        seed: any integer from 0.
        image_size: (height, width) in pixels, each at least 64.

    Raises:
        ValueError: a parameter is out of its range.
    """
    check_parameters(split, index + 1, seed, image_size)
    return draw_scene(generator_of(seed, split, index), image_size)


def check_parameters(split: str, num_images: int, seed: int, image_size: Size) -> None:
    """Refuse what no picture or split can be made of.

    Raises:
        ValueError: a parameter is out of its range.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is not one of {', '.join(SPLITS)}")
    if num_images < 1:
        raise ValueError(f"num_images is {num_images}, give at least 1")
    if seed < 0:
        raise ValueError(f"seed is {seed}, give an integer from 0")
    if len(image_size) != 2 or min(image_size) < MIN_SIDE:
        raise ValueError(
            f"image_size is {tuple(image_size)}, give (height, width) of at least {MIN_SIDE} each"
        )


def generator_of(seed: int, split: str, index: int) -> Generator:
    """The random numbers of one image, independent of those of any other."""
    return np.random.default_rng(np.random.SeedSequence([seed, SPLITS.index(split), index]))


def draw_scene(rng: Generator, image_size: Size) -> Scene:
    """Draw an image from the numbers that `generator_of` began for it."""
    canvas = Canvas(draw_background(rng, image_size))
    draw_distractors(rng, canvas)
    if rng.random() >= EMPTY_SHARE:
        # Squared, so that few digits are more frequent than many.
        count = 1 + int(MAX_DIGITS * rng.random() ** 2)
        for _ in range(count):
            draw_digit(rng, canvas)
    return Scene(
        _photograph(rng, canvas.pixels),
        np.array(canvas.boxes, np.int64).reshape(-1, 4),
        np.array(canvas.labels, np.int64),
    )


def _photograph(rng: Generator, pixels: Pixels) -> Pixels:
    """A camera's faults: slight blur, grain, exposure."""
    sigma = rng.uniform(0, 0.8)
    if sigma > 0.3:  # a narrower one changes nothing
        pixels = cv2.GaussianBlur(pixels, (0, 0), sigma)
    # The difference of two random bytes: much faster than a normal number, standard deviation 104.
    noise = np.frombuffer(rng.bytes(2 * pixels.size), np.uint8).reshape(2, *pixels.shape)
    grain = cv2.subtract(noise[0], noise[1], dtype=cv2.CV_16S)
    gain, offset, strength = rng.uniform(0.8, 1.15), rng.uniform(-12, 12), rng.uniform(0, 9)
    return cv2.addWeighted(pixels, gain, grain, strength / 104, offset, dtype=cv2.CV_8U)
