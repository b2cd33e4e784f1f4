"""Attention along the frames of a clip.

B = M T maps are M clips of T frames; C channels, H, W height and width, K taps of a kernel.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from detkit.nn.attention.gates import check_positive, hidden_channels
from detkit.registry import attentions


@attentions.register("tam")
class TemporalAdaptive(nn.Module):
    """Temporal adaptive module (Liu et al. 2021, section 3): y = kernel * (importance x) over time.

    Both come from the frames' means v `[M, C, T]`. Local: importance = sigmoid(W2 ReLU(BN(W1 v))),
    W1 a convolution over K frames from C to C/4 channels, W2 from C/4 to C. Global: per clip and
    channel, kernel = softmax(W4 ReLU(BN(W3 v_c))), W3 from T to 2T, W4 from 2T to K. y is the
    convolution over time of each channel with its own kernel, zeros before the first and after
    the last frame. No biases.

    The frames of a clip follow each other in the batch: map m T + t is frame t of clip m. The
    authors place it before the 3x3 convolution of every bottleneck.

    Args:
        channels: C.
        frames: T.
        kernel_size: K, odd.
        reduction: channels per channel of the local branch; at least one is left.
        expansion: hidden units of the global branch per frame.

    Raises:
        ValueError: a setting below 1, or an even kernel_size.
    """

    def __init__(
        self,
        channels: int,
        *,
        frames: int = 8,
        kernel_size: int = 3,
        reduction: int = 4,
        expansion: int = 2,
    ) -> None:
        super().__init__()
        check_positive(frames=frames, expansion=expansion)
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd to centre on a frame, got {kernel_size}")
        self.frames = frames
        self.kernel_size = kernel_size
        hidden = expansion * frames
        inner = hidden_channels(channels, reduction)
        self.kernel = nn.Sequential(
            nn.Linear(frames, hidden, bias=False),
            nn.BatchNorm1d(hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, kernel_size, bias=False),
            nn.Softmax(dim=-1),
        )
        self.importance = nn.Sequential(
            nn.Conv1d(channels, inner, kernel_size, padding=kernel_size // 2, bias=False),
            nn.BatchNorm1d(inner),
            nn.ReLU(inplace=True),
            nn.Conv1d(inner, channels, 1, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """From `[M T, C, H, W]` to the same shape.

        Raises:
            ValueError: the batch is no whole number of clips.
        """
        batch, channels = x.shape[:2]
        if batch % self.frames:
            raise ValueError(
                f"tam was built for clips of frames={self.frames}, which do not divide a batch of "
                f"{batch}; change frames or the batch size"
            )
        clips = x.unflatten(0, (batch // self.frames, self.frames))  # [M, T, C, H, W]
        means = clips.mean(dim=(3, 4)).mT  # [M, C, T]
        kernel = self.kernel(means.flatten(0, 1)).unflatten(0, (len(means), channels))  # [M, C, K]
        importance = self.importance(means).mT[..., None, None]  # [M, T, C, 1, 1]
        weighted = clips * importance
        y = _convolve_time(weighted, kernel.to(x.dtype))  # softmax leaves autocast in float32
        return y.flatten(0, 1)


def _convolve_time(clips: Tensor, kernel: Tensor) -> Tensor:
    """Convolve `[M, T, C, H, W]` over T with a kernel `[M, C, K]` per clip and channel."""
    frames, taps = clips.shape[1], kernel.shape[2]
    margin = taps // 2
    padded = F.pad(clips, (0, 0) * 3 + (margin, margin))
    weights = kernel[:, None, :, :, None, None]  # [M, 1, C, K, 1, 1]
    y = weights[:, :, :, 0] * padded[:, :frames]
    for tap in range(1, taps):
        y = y + weights[:, :, :, tap] * padded[:, tap : tap + frames]
    return y
