"""Tables of what was counted and measured: for the terminal, and for the docs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

import torch

from detkit.analysis.complexity import (
    MACS_CONVENTION,
    MEMORY_CONVENTION,
    PartCost,
    count_detector,
    count_network,
    proposals_of,
)
from detkit.analysis.receptive_field import attends, measure_receptive_fields
from detkit.analysis.speed import (
    CPU_PEAK,
    CUDA_PEAK,
    Setting,
    calls_of,
    measure_latency,
    peak_memory,
)
from detkit.analysis.subject import Subject, backbone_of, published_size, without_pyramid
from detkit.backbones import Backbone, Classifier, FeatureInfo, list_backbones
from detkit.detectors import ImagePyramid, OneStage, RegionProposal, SlidingWindow
from detkit.detectors.image_pyramid import Octaves
from detkit.structures import Size

_FIELD_NOTE = (
    "receptive field: side in pixels of the square that one cell depends on; centre: pixel, "
    "counted from 0, that the first cell stands on"
)
_ATTENTION_NOTE = "attention is left out of the receptive fields: with it a cell may see everything"
_FOREIGN_NOTE = (
    "another library's network: counted without its head; receptive fields are not known (?)"
)
Row = Sequence[str]


def describe(subject: Subject, *, gradient: bool = False) -> str:
    """A table with a line for each part of a network, and what its columns mean.

    Args:
        subject: what is described.
        gradient: also measure the receptive fields, for columns of their own.

    Raises:
        ValueError: it cannot be built, or does not take images of that size.
    """
    whole = subject.build()
    net = without_pyramid(whole)
    notes = [MACS_CONVENTION, MEMORY_CONVENTION, _FIELD_NOTE]
    if isinstance(whole, ImagePyramid):
        notes.append(_pyramid_note(whole, subject.size))
    measured: list[FeatureInfo] = []
    if gradient:
        try:
            measured = measure_receptive_fields(backbone_of(net))
        except ValueError as reason:
            notes.append(f"not measured by gradient: {reason}")
    if isinstance(net, RegionProposal):
        parts = count_detector(net, subject.size)
        training, testing = (proposals_of(net.train(mode), subject.size) for mode in (True, False))
        notes.append(
            f"{subject.num_classes} classes; roi: {testing} regions of an image, "
            f"its activations with the {training} of training"
        )
    elif isinstance(net, OneStage):
        parts = count_detector(net, subject.size)
        notes.append(f"{subject.num_classes} classes; of the head's output the class logits")
    elif isinstance(net, SlidingWindow):
        parts = count_detector(net, subject.size)
        notes.append(
            f"{subject.num_classes} classes; all windows in mode {net.mode!r}, activations with "
            f"the {net.learning.assigner.samples} windows of training"
        )
    elif isinstance(net, Backbone | Classifier):
        parts = count_network(net, subject.size)
        if isinstance(net, Backbone):
            notes.append(_FOREIGN_NOTE)
    else:
        raise ValueError(f"parts of {type(net).__name__} are unknown; give a backbone or a recipe")
    if any(attends(module) for module in backbone_of(net).modules()):
        notes.append(_ATTENTION_NOTE)
    height, width = subject.size
    table = align(_columns(parts, measured))
    return "\n".join([f"{subject.name}, images of {height}x{width}", "", table, "", *notes])


def _pyramid_note(net: ImagePyramid, size: Size) -> str:
    scales = net.scales(size) if isinstance(net.scales, Octaves) else net.scales
    ratio = sum(scale**2 for scale in scales)
    return (
        "one copy of the image, of its own size; image_pyramid looks at copies of "
        f"{', '.join(f'{scale:g}' for scale in scales)} times it, which have {ratio:.2f} times "
        "the pixels"
    )


def describe_speed(subject: Subject, setting: Setting) -> str:
    """Latency and peak memory of a network with random weights, and what was measured how.

    Raises:
        ValueError: it cannot be built, or does not take images of that size.
    """
    net = subject.build(setting.device)
    run = calls_of(net, subject.size, setting)
    try:
        latency = measure_latency(run, device=setting.device, rounds=setting.rounds)
        peak = peak_memory(run, device=setting.device)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # torch's word for sizes that do not fit
        raise ValueError(f"{subject.name} cannot run {setting}: {error}") from None
    what = CUDA_PEAK if setting.device.type == "cuda" else CPU_PEAK
    lines = [f"latency      {latency}", f"peak memory  {mebibytes(peak)} MiB: {what}", str(setting)]
    if subject.recipe is not None:
        lines.append("weights are random: a trained detector may report and suppress more or less")
        if subject.recipe.model.proposals in ("selective_search", "file"):
            lines.append("regions are random, and the time of finding them is not counted")
    return "\n".join(lines)


def backbones_page(command: str) -> str:
    """The page of the docs with every backbone, in Markdown.

    Args:
        command: that writes the page.
    """
    header = (
        "backbone",
        "image",
        "parameters",
        "MACs",
        "stages",
        "stride",
        "receptive field",
        "centre",
    )
    rows = [_backbone_row(name) for name in sorted(list_backbones(), key=_natural)]
    return "\n".join(
        [
            "# Backbones",
            "",
            f"Written by `{command}`; do not edit.",
            "",
            "Parameters and MACs are those of the image classifier that the backbone comes from, "
            "with the head of the published number of classes, for an image of the given side.",
            f"{MACS_CONVENTION}.",
            "",
            "Strides, receptive fields and centres are those of the stages, from the first to the "
            "last (`out_indices` 0, 1, ...).",
            f"{_FIELD_NOTE[0].upper()}{_FIELD_NOTE[1:]}; one centre stands for equal ones.",
            f"{_ATTENTION_NOTE[0].upper()}{_ATTENTION_NOTE[1:]}.",
            "",
            _markdown(header, rows),
            "",
        ]
    )


def align(rows: Sequence[Row]) -> str:
    """Plain text: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _columns(parts: Sequence[PartCost], measured: Sequence[FeatureInfo]) -> list[Row]:
    columns: list[Row] = [
        ["part", *(part.name for part in parts), "total"],
        ["output", *(_shapes(part) for part in parts), ""],
        _summed("parameters", parts, lambda part: part.parameters),
        _summed("MACs", parts, lambda part: part.macs),
        _summed("weights MiB", parts, lambda part: part.parameter_bytes, mebibytes),
        _summed("activations MiB", parts, lambda part: part.activation_bytes, mebibytes),
    ]
    if any(part.matmul_macs for part in parts):
        columns.insert(4, _summed("matmul", parts, lambda part: part.matmul_macs))
    described = [part.feature for part in parts]
    columns += _geometry(described, ("stride", "receptive field", "centre"))
    if measured:
        by_name = {info.name: info for info in measured}
        found = [by_name.get(part.name) for part in parts]
        columns += _geometry(found, ("by gradient: stride", "field", "centre"))
    return [list(row) for row in zip(*columns, strict=True)]


def _summed(
    title: str,
    parts: Sequence[PartCost],
    value: Callable[[PartCost], int],
    show: Callable[[int], str] = "{:,}".format,
) -> Row:
    values = [value(part) for part in parts]
    return [title, *map(show, values), show(sum(values))]


def _geometry(infos: Sequence[FeatureInfo | None], titles: Row) -> list[Row]:
    stride, field, center = titles
    return [
        [stride, *(str(info.stride) if info else "" for info in infos), ""],
        [field, *(str(info.receptive_field or "?") if info else "" for info in infos), ""],
        [center, *(f"{info.center:g}" if info else "" for info in infos), ""],
    ]


def _shapes(part: PartCost) -> str:
    """The first shape, and how many more: a pyramid has a map a level."""
    first = "x".join(map(str, part.shapes[0]))
    more = len(part.shapes) - 1
    return f"{first} +{more}" if more else first


def mebibytes(count: int) -> str:
    """Bytes in MiB."""
    return f"{count / 2**20:,.1f}"


def _backbone_row(name: str) -> Row:
    size = published_size(name)
    net = Subject(name, size).build()
    assert isinstance(net, Classifier)
    parts = count_network(net, size, details=False)
    infos = net.body.stage_info()
    centers = [f"{info.center:g}" for info in infos]
    return (
        f"`{name}`",
        str(size[0]),
        f"{sum(part.parameters for part in parts):,}",
        f"{sum(part.macs for part in parts):,}",
        " ".join(info.name for info in infos),
        " ".join(str(info.stride) for info in infos),
        " ".join(str(info.receptive_field) for info in infos),
        " ".join(centers if len(set(centers)) > 1 else centers[:1]),
    )


def _markdown(header: Row, rows: Iterable[Row]) -> str:
    rule = ["---", "---:", "---:", "---:", *["---"] * (len(header) - 4)]
    return "\n".join(f"| {' | '.join(row)} |" for row in [header, rule, *rows])


def _natural(name: str) -> list[str | int]:
    """Sort resnet18 before resnet101."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
