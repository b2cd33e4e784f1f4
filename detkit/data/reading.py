"""Read the samples of training, also where some of the pictures cannot be read."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from detkit.data.dataset import CocoDataset, Sample
from detkit.data.images import ImageReadError

ATTEMPTS = 20  # pictures tried before it is no longer a matter of single files
_REPLACEMENT = 1  # tells the draws of replacements from others of the same seed


@dataclass(frozen=True)
class Reader:
    """Reads samples; where wanted, another picture takes the place of one that cannot be read.

    Which one follows from the seed of the sample alone, so that neither the number of workers nor
    an interruption changes it.

    Attributes:
        dataset: whose samples.
        skip: replace an unreadable picture, else raise.
    """

    dataset: CocoDataset
    skip: bool = False

    def __call__(self, index: int, seed: int) -> Sample:
        """The sample, or the one in its place; its `skipped` names the files given up.

        Raises:
            ImageReadError: it cannot be read, nor can `ATTEMPTS` others, where they are tried.
        """
        if not self.skip:
            return self.dataset[index]
        rng = np.random.default_rng((seed, _REPLACEMENT))
        skipped: list[str] = []
        for _ in range(ATTEMPTS):
            try:
                sample = self.dataset[index]
            except ImageReadError as error:
                reason = error
                skipped.append(str(self.dataset.path(index)))
                index = int(rng.integers(len(self.dataset)))
            else:
                return replace(sample, skipped=tuple(skipped)) if skipped else sample
        raise ImageReadError(
            f"{ATTEMPTS} pictures in a row cannot be read, check the data set; the last: {reason}"
        )

    def draw(self, rng: np.random.Generator) -> Sample:
        """A random sample, each as likely as any other."""
        index, seed = rng.integers(len(self.dataset)), rng.integers(2**32)
        return self(int(index), int(seed))
