"""Hard attention: a network that looks at a few small parts of an image, one after the other.

The recurrent attention model (RAM; Mnih, Heess, Graves and Kavukcuoglu, "Recurrent models of
visual attention", NIPS 2014, arXiv 1406.6247). It chooses where to look next from what it has seen
so far. Looking somewhere has no gradient, so the choice is learnt by REINFORCE from whether the
answer was right; all else is learnt by cross entropy (section 3, hybrid supervised loss).

B images, C channels, H, W their size, T glimpses, P patches of a glimpse, each g x g, K classes.
A location is (x, y) in -1..1 from the left and top edge of the image to the right and bottom one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Episode(NamedTuple):
    """One look at a batch of images.

    Attributes:
        logits: `[B, K]`, after the last glimpse.
        locations: `[B, T, 2]`, where it looked; no gradient.
        log_probabilities: `[B, T]`, of these locations under the policy that drew them.
        baselines: `[B, T]`, the reward expected before each glimpse was chosen.
    """

    logits: Tensor
    locations: Tensor
    log_probabilities: Tensor
    baselines: Tensor


def take_glimpses(images: Tensor, locations: Tensor, *, patches: Sequence[int]) -> Tensor:
    """Cut square patches around a location of each image, all reduced to the size of the first.

    The glimpse sensor of figure 1A: sharp in the middle, coarse around it. Pixels between the grid
    are interpolated, larger patches averaged, and outside the image there are zeros.

    Args:
        images: `[B, C, H, W]`.
        locations: `[B, 2]`, the centres.
        patches: sides in pixels, the first of them g; the others are multiples of it.

    Returns:
        `[B, P * C, g, g]`, the channels of the first patch first.
    """
    height, width = images.shape[2:]
    size = locations.new_tensor([width, height])
    taken = []
    for side in patches:
        steps = torch.arange(side, device=images.device, dtype=locations.dtype) - (side - 1) / 2
        offsets = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), dim=-1)  # [s, s, 2]
        grid = locations[:, None, None] + offsets * 2 / size  # [B, s, s, 2]
        patch = F.grid_sample(images, grid, padding_mode="zeros", align_corners=False)
        taken.append(F.avg_pool2d(patch, side // patches[0]))  # [B, C, g, g]
    return torch.cat(taken, dim=1)


class GlimpseNetwork(nn.Module):
    """What is seen and where, as one vector (figure 1B).

    Args:
        inputs: numbers in a glimpse, P * C * g * g.
        hidden: of the result; what and where have half of it each.
    """

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.what = nn.Linear(inputs, hidden // 2)
        self.where = nn.Linear(2, hidden // 2)
        self.from_what = nn.Linear(hidden // 2, hidden)
        self.from_where = nn.Linear(hidden // 2, hidden)

    def forward(self, glimpse: Tensor, location: Tensor) -> Tensor:
        """From `[B, P * C, g, g]` and `[B, 2]` to `[B, hidden]`."""
        what = F.relu(self.what(glimpse.flatten(1)))
        where = F.relu(self.where(location))
        return F.relu(self.from_what(what) + self.from_where(where))


class RecurrentAttention(nn.Module):
    """The recurrent attention model as a classifier of images `[B, C, H, W]`.

    Of what the paper leaves open, or what released versions do otherwise:

    - the core is the plain rectified RNN that the paper has for classification;
    - the mean of the policy is squashed by tanh, so that it stays inside the image (the paper's is
      linear); drawn locations may fall outside, where a glimpse sees zeros;
    - the first location comes from the policy as well: from a state of zeros, that is its bias;
    - REINFORCE trains the location network alone, cross entropy all that leads to the answer:
      neither the policy nor the baseline moves the recurrent state;
    - the defaults of `glimpses` and `std` are those of a common port.

    Trained by `reinforce_loss(model.look(images, sample=True), labels)`.

    Args:
        num_classes: K.
        in_channels: C.
        glimpses: T.
        patches: sides in pixels of the patches of a glimpse, the first g, the others multiples.
        hidden: of the recurrent state and of the glimpse vector.
        std: standard deviation of the policy, in the units of a location.
        learn_where: False draws all locations uniformly, in evaluation as well: to see what the
            policy is worth.

    Raises:
        ValueError: no glimpse, sides that are not multiples of the first, an odd `hidden`, or a
            `std` that is not above 0.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        in_channels: int = 1,
        glimpses: int = 6,
        patches: Sequence[int] = (8,),
        hidden: int = 256,
        std: float = 0.17,
        learn_where: bool = True,
    ) -> None:
        super().__init__()
        if glimpses < 1:
            raise ValueError(f"glimpses must be at least 1, got {glimpses}")
        if not patches or min(patches) < 1 or any(side % patches[0] for side in patches):
            raise ValueError(
                f"patches {tuple(patches)}: give sides in pixels, all multiples of the first"
            )
        if hidden < 2 or hidden % 2:  # half for what, half for where
            raise ValueError(f"hidden must be an even number from 2, got {hidden}")
        if std <= 0:
            raise ValueError(f"std must be above 0, got {std}")
        self.glimpses, self.patches, self.hidden = glimpses, tuple(patches), hidden
        self.std, self.learn_where = std, learn_where
        self.glimpse = GlimpseNetwork(len(patches) * in_channels * patches[0] ** 2, hidden)
        self.from_state = nn.Linear(hidden, hidden)
        self.from_glimpse = nn.Linear(hidden, hidden)
        self.locate = nn.Linear(hidden, 2)
        self.baseline = nn.Linear(hidden, 1)
        self.classify = nn.Linear(hidden, num_classes)
        nn.init.zeros_(self.locate.bias)  # the first look is at the centre

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[B, K]`; in evaluation it looks where the policy points, without chance."""
        return self.look(images, sample=self.training).logits

    def look(self, images: Tensor, *, sample: bool) -> Episode:
        """Take T glimpses.

        Args:
            images: `[B, C, H, W]`, normalised, so that zero is a middling grey.
            sample: draw locations from the policy; else take its mean.
        """
        state = images.new_zeros(len(images), self.hidden)
        locations, log_probabilities, baselines = [], [], []
        for _ in range(self.glimpses):
            seen = state.detach()
            location, log_probability = self._choose(seen, sample=sample)
            glimpse = take_glimpses(images, location, patches=self.patches)
            vector = self.glimpse(glimpse, location)
            state = F.relu(self.from_state(state) + self.from_glimpse(vector))  # [B, hidden]
            locations.append(location)
            log_probabilities.append(log_probability)
            baselines.append(self.baseline(seen).squeeze(1))
        return Episode(
            self.classify(state),
            torch.stack(locations, dim=1),
            torch.stack(log_probabilities, dim=1),
            torch.stack(baselines, dim=1),
        )

    def _choose(self, state: Tensor, *, sample: bool) -> tuple[Tensor, Tensor]:
        """Locations `[B, 2]` and the logarithm of their density `[B]`."""
        mean = torch.tanh(self.locate(state))
        if not self.learn_where:
            return torch.rand_like(mean) * 2 - 1, mean.new_zeros(len(mean))
        noise = torch.randn_like(mean) if sample else torch.zeros_like(mean)
        location = (mean + self.std * noise).detach()  # a choice, not a path for gradients
        return location, log_normal(location, mean, self.std)


def log_normal(values: Tensor, means: Tensor, std: float) -> Tensor:
    """Logarithm of the density of independent normal numbers, summed over the last axis."""
    squares = ((values - means) / std).square() / 2
    return (-squares - math.log(std * math.sqrt(2 * math.pi))).sum(dim=-1)


def reinforce_loss(episode: Episode, labels: Tensor) -> dict[str, Tensor]:
    """The losses of a look; their sum is what training minimises.

    The reward R is 1 if the answer is right, else 0, and it is the return of every glimpse. The
    gradient of "policy", the mean over images of sum_t -(R - b_t) grad log pi(l_t), is an unbiased
    estimate of that of the expected reward, with its sign turned; the baseline b lowers its
    variance and leaves its mean (section 3, variance reduction).

    Args:
        episode: whose locations were drawn, see `RecurrentAttention.look`.
        labels: `[B]` in `0..K-1`.

    Returns:
        Scalars: "class" (cross entropy), "policy", "baseline" (squared error).
    """
    right = (episode.logits.argmax(dim=1) == labels).to(episode.logits.dtype)
    reward = right[:, None].expand_as(episode.baselines)  # [B, T]
    advantage = (reward - episode.baselines).detach()
    return {
        "class": F.cross_entropy(episode.logits, labels),
        "policy": -(advantage * episode.log_probabilities).sum(dim=1).mean(),
        "baseline": F.mse_loss(episode.baselines, reward),
    }
