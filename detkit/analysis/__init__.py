"""What a network costs and what it sees: counts, receptive fields, speed, tables and a picture."""

from detkit.analysis.anchors import AnchorFit, fit_anchors
from detkit.analysis.complexity import PartCost, count_detector, count_network, layer_macs
from detkit.analysis.plot import plot_scales, save_plot
from detkit.analysis.receptive_field import measure_receptive_fields
from detkit.analysis.report import backbones_page, describe, describe_speed
from detkit.analysis.scales import Level, Scales, box_shapes, box_sides, levels_of
from detkit.analysis.speed import DTYPES, Latency, Setting, measure_latency, peak_memory
from detkit.analysis.subject import Subject, find_subject, parse_size, published_size

__all__ = [
    "DTYPES",
    "AnchorFit",
    "Latency",
    "Level",
    "PartCost",
    "Scales",
    "Setting",
    "Subject",
    "backbones_page",
    "box_shapes",
    "box_sides",
    "count_detector",
    "count_network",
    "describe",
    "describe_speed",
    "find_subject",
    "fit_anchors",
    "layer_macs",
    "levels_of",
    "measure_latency",
    "measure_receptive_fields",
    "parse_size",
    "peak_memory",
    "plot_scales",
    "published_size",
    "save_plot",
]
