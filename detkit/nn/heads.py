"""Classifiers on top of features: of whole images (maps) and of windows (vectors or maps).

B images or windows, C channels, H, W height and width, K classes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from detkit.nn.layers import activation_layer
from detkit.nn.regularization import regularizer
from detkit.registry import suggest


class LogisticHead(nn.Module):
    """Logistic regression: one linear layer, `fc`; with cross-entropy over K classes, softmax.

    Args:
        channels: C.
        num_classes: K.
    """

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, features: Tensor | Sequence[Tensor]) -> Tensor:
        """Logits `[B, K]` of what `pooled` takes."""
        return self.fc(pooled(features))


class MLPHead(nn.Module):
    """Multi-layer perceptron: hidden layers of linear, batch norm, activation, dropout; then `fc`.

    Args:
        channels: C.
        num_classes: K.
        hidden: features of each hidden layer.
        activation: a name of `detkit.nn.activation_layer`.
        batch_norm: whether the hidden layers have one; without it they have biases.
        dropout: probability that a hidden feature is dropped while training.

    Raises:
        ValueError: an unknown activation or a probability that is none.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        *,
        hidden: Sequence[int] = (512,),
        activation: str = "prelu",
        batch_norm: bool = True,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.batch_norm = batch_norm
        self.hidden = nn.ModuleList()
        make_activation = activation_layer(activation)
        for width in hidden:
            layer = nn.Sequential(nn.Linear(channels, width, bias=not batch_norm))
            if batch_norm:
                layer.append(nn.BatchNorm1d(width))
            layer.append(make_activation())
            layer.append(regularizer("dropout", dropout))
            self.hidden.append(layer)
            channels = width
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, features: Tensor | Sequence[Tensor]) -> Tensor:
        """Logits `[B, K]` of what `pooled` takes.

        Raises:
            ValueError: a single sample while training, which has no variance to normalise by.
        """
        x = pooled(features)
        # layer by layer: frozen ones (in evaluation) and no layers at all need no batch
        if self.batch_norm and x.shape[0] == 1 and any(layer.training for layer in self.hidden):
            raise ValueError(
                "batch norm cannot train on 1 sample: use larger batches (drop the last one), "
                "batch_norm=False, or eval() to predict"
            )
        for layer in self.hidden:
            x = layer(x)
        return self.fc(x)


def pooled(features: Tensor | Sequence[Tensor]) -> Tensor:
    """One vector `[B, C]` per sample.

    Args:
        features: the vectors; or a map `[B, C, H, W]`, which is averaged; or a list of maps, of
            which the last counts.

    Raises:
        ValueError: the tensor has neither 2 nor 4 dimensions.
    """
    x = features if isinstance(features, Tensor) else features[-1]
    if x.dim() not in (2, 4):
        raise ValueError(
            f"a head takes vectors [B, C] or maps [B, C, H, W], got a tensor of {list(x.shape)}"
        )
    return x.mean(dim=(2, 3)) if x.dim() == 4 else x


_HEADS: dict[str, Callable[..., nn.Module]] = {"logistic": LogisticHead, "mlp": MLPHead}


def classifier_head(name: str, channels: int, num_classes: int, **settings: Any) -> nn.Module:
    """Build a classifier head by name.

    Args:
        name: "logistic" (`LogisticHead`) or "mlp" (`MLPHead`).
        channels: C.
        num_classes: K.
        settings: what else this head takes, such as `hidden` of "mlp".

    Raises:
        ValueError: unknown name or setting.
    """
    if name not in _HEADS:
        raise ValueError(f"unknown classifier head {name!r}; {suggest(name, _HEADS)}")
    build = _HEADS[name]
    allowed = list(inspect.signature(build).parameters)[2:]
    for key in settings:
        if key not in allowed:
            choices = suggest(key, allowed) if allowed else "it has none"
            raise ValueError(f"classifier head {name!r} has no setting {key!r}; {choices}")
    return build(channels, num_classes, **settings)
