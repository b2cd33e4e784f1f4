"""Read one picture: RGB uint8, upright, or an error that says which file and why.

H and W are the height and width of the picture as it is shown, after its EXIF orientation.
"""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np

_START, _SCAN, _END = 0xD8, 0xDA, b"\xff\xd9"  # JPEG markers SOI, SOS, EOI
_WITHOUT_LENGTH = {0x01, _START, *range(0xD0, 0xD8)}  # markers that stand alone: TEM, SOI, RSTn


class ImageReadError(ValueError):
    """A picture that cannot be used; the message names the file and the reason."""

    def __init__(self, message: str) -> None:
        # A worker of torch's loader hands over its traceback as the message, ours at its end
        super().__init__(message.rpartition("ImageReadError: ")[2].strip())


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """Read a picture of any colour model as RGB.

    The EXIF orientation is applied, grey is repeated, alpha is dropped, 16 bits become 8, and of
    an animation the first frame is taken.

    Returns:
        `[H, W, 3]` uint8, RGB.

    Raises:
        ImageReadError: no such file, not a picture, truncated or too large.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ImageReadError(f"cannot read image {path}: {error.strerror or error}") from None
    if not data:
        raise ImageReadError(f"cannot read image {path}: the file is empty")
    if is_truncated_jpeg(data):  # a decoder may return it with the missing part grey
        raise ImageReadError(f"cannot decode image {path}: truncated JPEG (no end-of-image marker)")
    try:
        image = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        reason = error.err or str(error).strip().splitlines()[-1]
        raise ImageReadError(f"cannot decode image {path}: {reason}") from None
    if image is None:
        kind = "broken, truncated or not an image"
        raise ImageReadError(f"cannot decode image {path}: {kind} ({len(data)} bytes)")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image)


def is_truncated_jpeg(data: bytes) -> bool:
    """Whether JPEG bytes stop before their end-of-image marker; other formats are never.

    The marker is looked for after the header, because a preview inside the EXIF block has its own.
    """
    if data[:2] != bytes((0xFF, _START)):
        return False
    return data.rfind(_END, _scan_position(data)) < 0


def _scan_position(data: bytes) -> int:
    """Where the first scan of a JPEG begins, or 0 where the header cannot be followed."""
    position = 2
    while position + 4 <= len(data):
        if data[position] != 0xFF:
            return 0  # junk between segments
        marker = data[position + 1]
        if marker == _SCAN:
            return position
        if marker == 0xFF:  # a fill byte
            position += 1
        elif marker in _WITHOUT_LENGTH:
            position += 2
        else:
            position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return len(data)  # the header itself is cut off
