"""The built-in data set: digits on busy pictures, generated from a seed, nothing to download.

Ten classes, the digits "0".."9", in 21 typefaces and a hand-drawn one, turned, sheared, filled in
several ways, overlapping and cut off by the border, over textures and blurred scenes, among letters
and shapes that are not annotated. Written as JPEG files and one COCO JSON file, so that it is read
like any other data set.

An image is a pure function of (seed, split, index, size): any image can be drawn again alone, and
a set of 100 images is the beginning of a set of 1000. Pictures are BGR uint8 as in OpenCV.

From the top: `writer` puts a split on disk, `scene` draws one picture out of `backgrounds`,
`distractors` and `digits`; these take shapes from `glyphs` and colours from `colors`, and `canvas`
knows what is drawn where. Each imports only from those named after it.
"""

from __future__ import annotations

from detkit.data.synthetic.digits import CLASS_NAMES
from detkit.data.synthetic.scene import SPLITS, Scene, render_scene
from detkit.data.synthetic.writer import VERSION, SyntheticPaths, default_cache, write_synthetic

__all__ = [
    "CLASS_NAMES",
    "SPLITS",
    "VERSION",
    "Scene",
    "SyntheticPaths",
    "default_cache",
    "render_scene",
    "write_synthetic",
]
