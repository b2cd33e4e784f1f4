"""A picture of where the recurrent attention model looks."""

from __future__ import annotations

import io
from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from torch import Tensor

COLUMNS = 8


def draw_glimpses(
    images: Tensor, locations: Tensor, *, titles: Sequence[str], patches: Sequence[int]
) -> bytes:
    """Each image with the way of the glimpses, numbered, and the sharp patch of each.

    Args:
        images: `[B, C, H, W]` in 0..1, C 1 or 3.
        locations: `[B, T, 2]` in -1..1.
        titles: one above each image.
        patches: sides in pixels; the first is drawn at each glimpse, the others at the last one.

    Returns:
        A PNG file.
    """
    columns = min(COLUMNS, max(len(images), 1))
    rows = max(-(-len(images) // columns), 1)
    figure = Figure(figsize=(1.6 * columns, 1.85 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    height, width = images.shape[2:]
    pixels = images.permute(0, 2, 3, 1).cpu().numpy()
    # Pixel p covers p - 0.5 .. p + 0.5 in matplotlib's picture
    ways = (locations.cpu() + 1) / 2 * locations.new_tensor([width, height]).cpu() - 0.5
    for axis in axes:
        axis.set_axis_off()
    for axis, image, way, title in zip(axes, pixels, ways.tolist(), titles, strict=False):
        axis.imshow(image, cmap="gray", vmin=0, vmax=1)
        axis.set_title(title, fontsize=9)
        axis.plot(*zip(*way, strict=True), color="tab:orange", linewidth=1)
        for number, (x, y) in enumerate(way, start=1):
            mark = axis.text(
                x, y, str(number), color="yellow", fontsize=8, ha="center", va="center"
            )
            mark.set_path_effects([withStroke(linewidth=1.5, foreground="black")])
            for side in patches if number == len(way) else patches[:1]:
                corner = (x - side / 2, y - side / 2)
                outline = "tab:red" if number == len(way) else "tab:orange"
                axis.add_patch(Rectangle(corner, side, side, fill=False, ec=outline, lw=0.7))
        axis.set_xlim(-0.5, width - 0.5)
        axis.set_ylim(height - 0.5, -0.5)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()
