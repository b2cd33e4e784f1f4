"""Batch norm of a finished network as part of the convolutions before it.

A batch norm with fixed statistics scales and shifts each channel, and so does what its convolution
can do itself: `s (w * x + b) + t = (s w) * x + (s b + t)` (Jacob et al. 2018, arXiv 1712.05877,
section 3.2). Which convolution a norm gets its input from is seen by watching the network look at
an example. So it does not matter how a network is written, and nothing is folded where anything
else (a residual sum, attention, another norm) sees what the convolution gave.

D channels of a convolution's output.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.hooks import RemovableHandle

from detkit.detectors.towers import LevelConv
from detkit.nn import FrozenBatchNorm2d

_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm, torchvision.ops.FrozenBatchNorm2d, FrozenBatchNorm2d)
# Timm's, with an activation built in; known by their names, as timm is an optional package
_TIMM_NORMS = ("BatchNormAct2d", "FrozenBatchNormAct2d", "SyncBatchNormAct")


@torch.no_grad()
def fold_batch_norm(net: nn.Module, look: Callable[[], object]) -> tuple[int, int]:
    """Fold batch norms into convolutions, in place.

    Args:
        net: in evaluation mode; changed.
        look: has the network look at an example, e.g. `lambda: net(images)`.

    Returns:
        How many batch norms of maps were folded, and how many are left.

    Raises:
        ValueError: the network is in training mode.
    """
    if net.training:
        raise ValueError("batch norm can be folded in evaluation mode only; call net.eval() first")
    _own_convolutions(net)
    seen = _watch(net, look)
    owners = _places(net)
    norms = [each for each in net.modules() if _is_norm(each)]
    folded = 0
    for norm in norms:
        convs = seen.convs_of(norm)
        if not convs or norm not in owners:
            continue
        scale, shift = affine_of(norm)
        for conv in convs:
            _scale(conv, scale, shift)
        for parent, name in owners[norm]:
            setattr(parent, name, _behind(norm))
        folded += 1
    return folded, len(norms) - folded


def affine_of(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Scale and shift `[D]`, float64, that a norm with fixed statistics comes to."""
    mean, variance = norm.get_buffer("running_mean"), norm.get_buffer("running_var")
    scale = (variance.double() + norm.eps).rsqrt()  # type: ignore[operator]
    if norm.weight is not None:
        scale = scale * norm.weight.double()  # type: ignore[operator]
    shift = -mean.double() * scale
    if norm.bias is not None:
        shift = shift + norm.bias.double()  # type: ignore[operator]
    return scale, shift


def _scale(conv: nn.Conv2d, scale: Tensor, shift: Tensor) -> None:
    dtype = conv.weight.dtype
    bias = shift if conv.bias is None else conv.bias.double() * scale + shift
    # parameters of its own: others may share the old ones
    conv.weight = nn.Parameter((conv.weight.double() * scale.view(-1, 1, 1, 1)).to(dtype))
    conv.bias = nn.Parameter(bias.to(dtype))


def _is_norm(module: nn.Module) -> bool:
    # a subclass may do more than a norm does
    known = type(module) in _NORMS or type(module).__name__ in _TIMM_NORMS
    return known and getattr(module, "running_var", None) is not None


def _behind(norm: nn.Module) -> nn.Module:
    """What remains in the place of a norm: nothing, or timm's built-in activation."""
    parts = [getattr(norm, name, None) for name in ("drop", "act")]
    return nn.Sequential(*(each for each in parts if isinstance(each, nn.Module)))


def _places(net: nn.Module) -> dict[nn.Module, list[tuple[nn.Module, str]]]:
    """Parents and names of every module, all of them where it stands in several places."""
    places: dict[nn.Module, list[tuple[nn.Module, str]]] = {}
    for parent in net.modules():
        for name, child in parent._modules.items():  # named_children leaves repetitions out
            if child is not None:
                places.setdefault(child, []).append((parent, name))
    return places


# -------------------------------------------------------------------------- who feeds which norm


@dataclass
class _Seen:
    """What happened while the network looked.

    Attributes:
        modules: convolutions by the id of their weight; None where several share it.
        made: convolutions by the id of what they gave.
        held: what they gave, so that no id is used twice.
        taken: ids of those outputs, by what took them: norms, or None for anything else.
        inputs: of each norm what gave its inputs: convolutions, or None for anything else.
    """

    modules: Mapping[int, nn.Conv2d | None]
    made: dict[int, nn.Conv2d] = field(default_factory=dict)
    held: list[Tensor] = field(default_factory=list)
    taken: dict[int, set[nn.Module | None]] = field(default_factory=dict)
    inputs: dict[nn.Module, set[nn.Conv2d | None]] = field(default_factory=dict)

    def convs_of(self, norm: nn.Module) -> list[nn.Conv2d]:
        """The convolutions that feed this norm and nothing else; none where others feed it, too."""
        sources = self.inputs.get(norm, set())
        convs = [each for each in sources if each is not None]
        outputs = [key for key, conv in self.made.items() if conv in sources]
        alone = all(self.taken.get(key) == {norm} for key in outputs)
        return convs if alone and len(convs) == len(sources) else []


class _Watcher(TorchDispatchMode):
    """Notes what convolutions give, and who takes it."""

    def __init__(self, seen: _Seen) -> None:
        super().__init__()
        self.seen = seen
        self.norms: list[nn.Module] = []  # that are at work, the innermost last

    def enter(self, norm: nn.Module, given: tuple[Any, ...]) -> None:
        """A norm begins."""
        self.seen.inputs.setdefault(norm, set()).add(self.seen.made.get(id(given[0])))
        self.norms.append(norm)

    def leave(self, norm: nn.Module, given: tuple[Any, ...], result: Any) -> None:
        """A norm ends."""
        self.norms.pop()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        taker = self.norms[-1] if self.norms else None
        for each in _tensors((args, kwargs or {})):
            if id(each) in self.seen.made:
                self.seen.taken.setdefault(id(each), set()).add(taker)
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.convolution.default:
            conv = self.seen.modules.get(id(args[1]))
            if conv is not None:
                self.seen.made[id(result)] = conv
                self.seen.held.append(result)
        return result


def _tensors(values: Any) -> list[Tensor]:
    if isinstance(values, Tensor):
        return [values]
    if isinstance(values, Mapping):
        values = values.values()
    elif not isinstance(values, Sequence) or isinstance(values, str):
        return []
    return [tensor for value in values for tensor in _tensors(value)]


def _watch(net: nn.Module, look: Callable[[], object]) -> _Seen:
    by_weight: dict[int, nn.Conv2d | None] = {}
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            key = id(module.weight)
            by_weight[key] = None if key in by_weight else module
    watcher = _Watcher(_Seen(by_weight))
    hooks: list[RemovableHandle] = []
    for module in net.modules():
        if _is_norm(module):
            hooks += [
                module.register_forward_pre_hook(watcher.enter),
                module.register_forward_hook(watcher.leave),
            ]
    try:
        with watcher:
            look()
    finally:
        for hook in hooks:
            hook.remove()
    return watcher.seen


# ------------------------------------------------------------------- a convolution for each level


class LevelConvs(nn.Module):
    """`LevelConv` with a convolution of each level's own, into which its norm can go.

    Args:
        shared: what it stands for.
    """

    def __init__(self, shared: LevelConv) -> None:
        super().__init__()
        self.levels = nn.ModuleList(
            nn.Sequential(_copy_of(shared.conv), norm, nn.ReLU(inplace=True))
            for norm in shared.norms
        )

    def forward(self, level: int, x: Tensor) -> Tensor:
        """From `[B, in_channels, H, W]` of a level to `[B, D, H, W]`."""
        found: Tensor = self.levels[level](x)
        return found


def _copy_of(conv: nn.Conv2d) -> nn.Conv2d:
    # the weight is copied where a norm is folded in, and stays shared where none is
    copied = nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,  # type: ignore[arg-type]
        padding=conv.padding,  # type: ignore[arg-type]
        bias=False,
        device="meta",
    )
    copied.weight = nn.Parameter(conv.weight.detach().clone())
    return copied


def _own_convolutions(net: nn.Module) -> None:
    """Give levels that share a convolution, but not its norm, one each."""
    for parent in list(net.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, LevelConv) and all(map(_is_norm, child.norms)):
                setattr(parent, name, LevelConvs(child))
