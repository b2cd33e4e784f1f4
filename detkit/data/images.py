"""Read one picture: RGB uint8, upright, or an error that says which file and why.

H and W are the height and width of the picture as it is shown, after its EXIF orientation.
"""

from __future__ import annotations

import io
import os
import re
import warnings
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

MAX_IMAGE_PIXELS = 2**29  # 23,170 x 23,170: 1.6 GB as RGB, and as much again while it is decoded

_START, _SCAN, _END = 0xD8, 0xDA, b"\xff\xd9"  # JPEG markers SOI, SOS, EOI
_WITHOUT_LENGTH = {0x01, _START, *range(0xD0, 0xD8)}  # markers that stand alone: TEM, SOI, RSTn
_FRAME = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # SOF0 to SOF15, without DHT, JPG and DAC
_PNG = b"\x89PNG\r\n\x1a\n"


class ImageReadError(ValueError):
    """A picture that cannot be used; the message names the file and the reason."""

    def __init__(self, message: str) -> None:
        # A worker of torch's loader hands over its traceback as the message, ours at its end
        super().__init__(message.rpartition("ImageReadError: ")[2].strip())


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """Read a picture of any colour model as RGB.

    The EXIF orientation is applied, grey is repeated, alpha is dropped, 16 bits become 8, and of
    an animation, or of several pages, the first is taken. A picture whose header claims more than
    `MAX_IMAGE_PIXELS` is refused before any memory is taken for it.

    Returns:
        `[H, W, 3]` uint8, RGB.

    Raises:
        ImageReadError: no such file, not a picture, truncated or too large.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ImageReadError(f"cannot read image {path}: {error.strerror or error}") from None
    return decode_image(data, path)


def decode_image(data: bytes, path: str | os.PathLike[str]) -> np.ndarray:
    """Decode the bytes of a picture file, as `read_image` does.

    Args:
        data: the whole file, in any format that OpenCV reads.
        path: where they are from, for the message of an error.

    Returns:
        `[H, W, 3]` uint8, RGB.

    Raises:
        ImageReadError: not a picture, truncated or too large.
    """
    if not data:
        raise ImageReadError(f"cannot read image {path}: the file is empty")
    _check_claim(data, path)
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
    return data.rfind(_END, _segment(data, {_SCAN})) < 0


def claimed_pixels(data: bytes) -> int:
    """How many pixels the header of a picture claims; 0 where it does not say.

    The two usual formats are read here, which costs microseconds, others by Pillow, which does not
    decode either. What Pillow does not know has the limit of OpenCV, 2**30.
    """
    if data.startswith(_PNG) and data[12:16] == b"IHDR":
        return int.from_bytes(data[16:20], "big") * int.from_bytes(data[20:24], "big")
    if data[:2] == bytes((0xFF, _START)) and (frame := _segment(data, _FRAME)):
        height, width = data[frame + 5 : frame + 7], data[frame + 7 : frame + 9]
        return int.from_bytes(height, "big") * int.from_bytes(width, "big")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sizes that are allowed here
            with Image.open(io.BytesIO(data)) as picture:
                return picture.width * picture.height
    except Image.DecompressionBombError as error:  # of a lower limit; it names the number
        claim = re.search(r"\d+", str(error))
        return int(claim.group()) if claim else 0
    except (OSError, ValueError, SyntaxError, TypeError, IndexError, KeyError):
        return 0  # the decoder will say what is wrong with it


def _check_claim(data: bytes, path: str | os.PathLike[str]) -> None:
    pixels = claimed_pixels(data)
    if pixels > MAX_IMAGE_PIXELS:
        raise ImageReadError(
            f"cannot read image {path}: its header claims {pixels} pixels in {len(data)} bytes, "
            f"MAX_IMAGE_PIXELS is {MAX_IMAGE_PIXELS}; cut it into tiles, if it is a picture at all"
        )


def _segment(data: bytes, wanted: set[int]) -> int:
    """Where the first of some segments of a JPEG begins; 0 where the header cannot be followed."""
    position = 2
    while position + 4 <= len(data):
        if data[position] != 0xFF:
            return 0  # junk between segments
        marker = data[position + 1]
        if marker in wanted:
            return position
        if marker == _SCAN:
            return 0  # pixels, and no such segment before
        if marker == 0xFF:  # a fill byte
            position += 1
        elif marker in _WITHOUT_LENGTH:
            position += 2
        else:
            position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return len(data)  # the header itself is cut off
