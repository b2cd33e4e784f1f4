"""What each part of a network costs: parameters, multiply-adds, memory.

On the meta device, where a tensor has a shape and no values: a pass through the largest network
takes no memory and little time, and the counts are exact all the same.
B images, C channels, H, W height and width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils.flop_counter import FlopCounterMode

from detkit.backbones import Backbone, Classifier, FeatureInfo
from detkit.detectors import OneStage, RegionProposal, SlidingWindow
from detkit.detectors.crop import RoICrop
from detkit.detectors.roi import RegionPool
from detkit.detectors.rpn import RPN
from detkit.detectors.sliding_window import chain_of
from detkit.nn.dense import plan_offsets
from detkit.structures import Size

MACS_CONVENTION = (
    "MACs: multiply-adds of convolutions and linear layers for one image; bias, norm, activation, "
    "pooling and products of two maps (the matmul column) not counted"
)
MEMORY_CONVENTION = (
    "memory: float32; activations are what autograd keeps of one image for the backward pass "
    "(in a batch of 2)"
)
_TRAINING_BATCH = 2  # batch norm of a 1x1 map has no variance over one image


@dataclass(frozen=True, slots=True)
class PartCost:
    """One part of a network.

    Attributes:
        name: of the stage ("layer1"), or "head", "neck", "rpn", "roi".
        shapes: of what comes out of it, without the batch.
        parameters: how many numbers can be learnt, each in the first part that has it.
        macs: multiply-adds of convolutions and linear layers for one image.
        matmul_macs: multiply-adds of all other matrix products, which are attention's.
        parameter_bytes: of the parameters.
        activation_bytes: what training keeps of one image for the backward pass.
        feature: how the map lies in the image; None of parts that are no stage of a backbone.
    """

    name: str
    shapes: tuple[tuple[int, ...], ...] = ()
    parameters: int = 0
    macs: int = 0
    matmul_macs: int = 0
    parameter_bytes: int = 0
    activation_bytes: int = 0
    feature: FeatureInfo | None = None


def layer_macs(layer: nn.Module, given: Tensor, made: Tensor) -> int:
    """Multiply-adds of one call of a convolution or a linear layer, of any groups and dilation.

    Args:
        layer: `nn.Conv1d` to `nn.ConvTranspose3d`, or `nn.Linear`.
        given: its input.
        made: its output.

    Raises:
        TypeError: it is another layer.
    """
    if isinstance(layer, nn.Linear):
        return made.numel() * layer.in_features
    if not isinstance(layer, _ConvNd):
        raise TypeError(f"{type(layer).__name__} is neither a convolution nor a linear layer")
    # each number of the output is made of one filter; transposed, each of the input is spread
    each = given if layer.transposed else made
    return each.numel() * layer.weight[0].numel()


def count_network(
    net: Backbone | Classifier, size: Size, *, details: bool = True
) -> list[PartCost]:
    """What each stage of a backbone costs, and the head of a classifier.

    Args:
        net: built on the meta device; it is left in evaluation mode.
        size: (height, width) of the images.
        details: also count matrix products and what training keeps, which takes most of the time;
            without they are 0.

    Raises:
        ValueError: the images are too small, or not of the one size that the head takes.
    """
    body = net.body if isinstance(net, Classifier) else net

    def run(images: Tensor, meter: _Meter) -> None:
        maps = _run_backbone(body, images, meter)
        if isinstance(net, Classifier):
            with meter.part("head", net.head) as record:
                record(net.head(maps))

    return _count(net, run, (body.in_channels, *size), details=details)


def count_detector(net: RegionProposal | OneStage | SlidingWindow, size: Size) -> list[PartCost]:
    """What each part of a detector costs: of one in two stages or in one, or of sliding windows.

    The second stage is counted with as many proposals as it may get; windows as they are judged in
    the mode of the detector, cut out or all in one pass.

    Args:
        net: built on the meta device; it is left in evaluation mode.
        size: (height, width) of the images, with their padding.

    Raises:
        ValueError: the images are too small.
    """
    if isinstance(net, SlidingWindow):
        channels = net.backbone.in_channels
        return _count(net, partial(_run_windows, net), (channels, *size), details=True)
    if isinstance(net, OneStage):
        channels = _backbone(net).in_channels
        return _count(net, partial(_run_one_stage, net), (channels, *size), details=True)
    if not isinstance(net, RegionProposal):
        raise ValueError(f"parts of {type(net).__name__} are unknown; give a RegionProposal")

    body = net.backbone
    assert isinstance(body, Backbone)

    def run(images: Tensor, meter: _Meter) -> None:
        regions = len(images) * proposals_of(net, size)
        pool = net.roi_stages[0].pool
        if isinstance(pool, RoICrop):  # each region is a picture of its own
            images = images.new_empty(regions, body.in_channels, pool.size, pool.size)
        maps = _run_neck(net.neck, _run_backbone(body, images, meter), meter)
        if isinstance(net.rpn, RPN):
            with meter.part("rpn", net.rpn) as record:
                record(net.rpn.head(maps))
        with meter.part("roi", net.roi) as record:
            record(_run_stages(net, maps, regions))

    return _count(net, run, (body.in_channels, *size), details=True)


def _run_one_stage(net: OneStage, images: Tensor, meter: _Meter) -> None:
    maps = _run_neck(net.neck, _run_backbone(_backbone(net), images, meter), meter)
    with meter.part("head", net.head) as record:
        record(net.head(maps).logits)  # what it says of the boxes has as many cells


def _backbone(net: OneStage) -> Backbone:
    assert isinstance(net.backbone, Backbone)
    return net.backbone


def _run_neck(neck: nn.Module | None, maps: list[Tensor], meter: _Meter) -> list[Tensor]:
    if neck is None:
        return maps
    with meter.part("neck", neck) as record:
        maps = record(neck(maps))
    return maps


def _run_windows(net: SlidingWindow, images: Tensor, meter: _Meter) -> None:
    """All windows of images in the mode of the detector; in training those that are drawn."""
    grid, body = net.grid, net.backbone
    size = (images.shape[2], images.shape[3])
    counts = [grid.counts(window, size) for window in grid.sizes]
    if net.training or net.mode == "crop":
        windows = sum(rows * columns for rows, columns in counts)
        if net.training:
            windows = net.learning.assigner.samples
        crops = images.new_empty(len(images) * windows, images.shape[1], *grid.input_size)
        maps = [_run_backbone(body, crops, meter)[-1]]
    else:
        maps = [images.new_empty(*images.shape[:2], *grid.spans(count)) for count in counts]
        chain = chain_of(body)
        plan = plan_offsets([stride for _, stride in chain], grid.stride)
        done = 0
        for info, stage in zip(body.stage_info(), body.stages(), strict=True):
            count = len(stage) + (info.name in body.after_stage)
            part = [module for module, _ in chain[done : done + count]]
            with meter.part(info.name, *stage, feature=info) as record:
                maps = record([plan.part(done, count).run(part, each) for each in maps])
            done += count
    with meter.part("head", net.head) as record:
        record([net.head(each) for each in maps])


def _run_stages(net: RegionProposal, maps: list[Tensor], regions: int) -> list[Any]:
    """What the second stages say of so many regions, each as often as it is asked."""
    stages = net.roi_stages
    pool, (_, channels, *shape) = stages[0].pool, maps[-1].shape
    assert isinstance(pool, RegionPool | RoICrop)
    if pool.resolution is not None:
        shape = [pool.resolution] * 2
    patches = maps[-1].new_empty(regions, channels, *shape)
    # in testing what the last one looks at is judged by all
    asked = stages if net.training else [*stages[:-1], *stages]
    return [stage.head(patches) for stage in asked]


def proposals_of(net: RegionProposal, size: Size) -> int:
    """How many regions of an image of (height, width) the second stage looks at.

    Those that are drawn in training, else the most that there can be.
    """
    return net.roi_stages[0].assigner.samples if net.training else net.rpn.most(size)


def _run_backbone(net: Backbone, images: Tensor, meter: _Meter) -> list[Tensor]:
    """The maps of `out_indices`, stage by stage as `Backbone.forward` makes them."""
    side = min(images.shape[-2:])
    if side < net.least_side:
        raise ValueError(f"{net.name} needs images of {net.least_side} pixels or more, got {side}")
    if not all(net.stages()):  # another library's network that runs as one piece
        with meter.part(net.name, net) as record:
            whole: list[Tensor] = record(net(images))
        return whole
    maps, x = [], images
    for info, stage in zip(net.stage_info(), net.stages(), strict=True):
        if info.name in net.after_stage:
            stage = (*stage, net.after_stage[info.name])
        with meter.part(info.name, *stage, feature=info) as record:
            for module in stage:
                x = module(x)
            record(x)
        maps.append(x)
    return [maps[index] for index in net.out_indices]


def _count(
    net: nn.Module,
    run: Callable[[Tensor, _Meter], None],
    shape: tuple[int, ...],
    *,
    details: bool,
) -> list[PartCost]:
    """One image through the network as it is used, then a batch as it is trained."""
    try:
        with torch.no_grad(), _Meter(net.eval(), products=details) as used:
            run(torch.empty(1, *shape, device="meta"), used)
        if not details:
            return used.parts
        with torch.enable_grad(), _Meter(net.train(), products=False) as trained:
            run(torch.empty(_TRAINING_BATCH, *shape, device="meta"), trained)
    except RuntimeError as error:  # torch's word for sizes that do not fit
        reason = " ".join(str(error).split())
        raise ValueError(f"images of {shape[1]}x{shape[2]} do not fit: {reason}") from None
    finally:
        net.eval()
    kept = {part.name: part.activation_bytes // _TRAINING_BATCH for part in trained.parts}
    return [replace(part, activation_bytes=kept[part.name]) for part in used.parts]


@dataclass
class _Meter:
    """Counts what runs inside each `part`.

    Attributes:
        net: the whole network; its convolutions and linear layers are watched.
        products: matrix products are counted too.
        parts: what was counted.
    """

    net: nn.Module
    products: bool
    parts: list[PartCost] = field(default_factory=list)

    def __enter__(self) -> _Meter:
        self._macs = self._layer_products = 0
        self._flops: FlopCounterMode | None = None  # of the part that runs
        self._counted: set[int] = set()  # parameters, by identity
        # Storages are kept, so that none is freed and another takes its place
        values = [*self.net.parameters(), *self.net.buffers()]
        self._known = {each.untyped_storage()._cdata: each.untyped_storage() for each in values}
        layers = [each for each in self.net.modules() if isinstance(each, nn.Linear | _ConvNd)]
        self._hooks = [layer.register_forward_pre_hook(self._begin) for layer in layers]
        self._hooks += [layer.register_forward_hook(self._watch) for layer in layers]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _begin(self, layer: nn.Module, given: Sequence[Tensor]) -> None:
        self._products_before = _products(self._flops)

    def _watch(self, layer: nn.Module, given: Sequence[Tensor], made: Tensor) -> None:
        self._macs += layer_macs(layer, given[0], made)
        # a linear layer may run as a product of matrices or, over windows, as a convolution
        self._layer_products += _products(self._flops) - self._products_before

    @contextmanager
    def part(
        self, name: str, *modules: nn.Module, feature: FeatureInfo | None = None
    ) -> Iterator[Callable[[Any], Any]]:
        """Count what runs inside; the function it yields notes the shapes of what came out."""
        self._macs = self._layer_products = 0
        shapes: list[tuple[int, ...]] = []
        kept = 0

        def record(made: Any) -> Any:
            shapes.extend(tuple(tensor.shape[1:]) for tensor in _tensors(made))
            return made

        def keep(tensor: Tensor) -> None:
            nonlocal kept
            storage = tensor.untyped_storage()
            if storage._cdata not in self._known:
                self._known[storage._cdata] = storage
                kept += storage.nbytes()

        saved = torch.autograd.graph.saved_tensors_hooks(keep, _never)
        self._flops = FlopCounterMode(display=False) if self.products else None
        with saved, self._flops or nullcontext():
            yield record
        mine = [each for module in modules for each in module.parameters()]
        mine = [each for each in dict.fromkeys(mine) if id(each) not in self._counted]
        self._counted.update(id(each) for each in mine)
        self.parts.append(
            PartCost(
                name,
                tuple(shapes),
                parameters=sum(each.numel() for each in mine),
                macs=self._macs,
                matmul_macs=_products(self._flops) - self._layer_products,
                parameter_bytes=sum(each.numel() * each.element_size() for each in mine),
                activation_bytes=kept,
                feature=feature,
            )
        )


def _never(_: None) -> Tensor:
    raise AssertionError("nothing was kept: there is no backward pass")


def _products(flops: FlopCounterMode | None) -> int:
    """Multiply-adds so far of all that is no convolution: linear layers and products of maps."""
    if flops is None:
        return 0
    counts = flops.get_flop_counts().get("Global", {})
    return sum(count for op, count in counts.items() if "convolution" not in str(op)) // 2


def _tensors(made: Any) -> Iterator[Tensor]:
    if isinstance(made, Tensor):
        yield made
    elif made is not None:  # what a head leaves out
        for each in made:
            yield from _tensors(each)
