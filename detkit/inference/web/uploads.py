"""Pictures that come over a network: what is refused, and how early.

Type and size are judged from the header of the request, bytes again as they arrive, pixels from the
header of the picture before anything is decoded.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import numpy as np
from aiohttp import web

from detkit.data.images import claimed_pixels, decode_image

_CHUNK = 2**16


@dataclass(frozen=True)
class Limits:
    """What a visitor may ask for.

    Attributes:
        bytes: of a picture file.
        pixels: of a picture; it takes three bytes a pixel, and as much again to decode some
            formats.
        seconds: for an upload.
        waiting: requests at once; each may hold `bytes` in memory.
    """

    bytes: int = 32 * 2**20
    pixels: int = 64_000_000
    seconds: float = 30.0
    waiting: int = 16


async def read_upload(request: web.Request, limits: Limits) -> bytes:
    """The body of a request, which is a picture file and nothing else.

    A form with its fields, names and boundaries is refused: there is one parser less to attack, and
    no browser sends a picture as such for another site without asking first (CORS).

    Raises:
        web.HTTPException: a wrong type (415), too large (413), too slow (408), empty (400).
    """
    # not request.content_type, which is application/octet-stream where there is none or nonsense
    kind = request.headers.get("Content-Type", "nothing").partition(";")[0].strip().lower()
    if not (kind.startswith("image/") or kind == "application/octet-stream"):
        raise web.HTTPUnsupportedMediaType(
            text=f"Content-Type is {kind[:60]}; send the bytes of one picture as the body, with "
            "Content-Type image/jpeg or the like"
        )
    if "Content-Encoding" in request.headers:
        raise web.HTTPUnsupportedMediaType(text="send the picture as it is, without compressing it")
    if (request.content_length or 0) > limits.bytes:
        raise _too_long(limits)
    try:
        data = await asyncio.wait_for(_collect(request, limits), limits.seconds)
    except asyncio.TimeoutError:  # until Python 3.11 another class than TimeoutError
        raise web.HTTPRequestTimeout(
            text=f"the upload took longer than {limits.seconds:g} seconds; send a smaller picture"
        ) from None
    if not data:
        raise web.HTTPBadRequest(
            text="the upload is empty; send the bytes of a picture as the body"
        )
    return data


async def _collect(request: web.Request, limits: Limits) -> bytes:
    parts, length = list[bytes](), 0
    async for part in request.content.iter_chunked(_CHUNK):
        length += len(part)
        if length > limits.bytes:  # without a Content-Length, or with a wrong one
            raise _too_long(limits)
        parts.append(part)
    return b"".join(parts)


def decode_upload(data: bytes, limits: Limits) -> np.ndarray:
    """`[H, W, 3]` uint8 RGB.

    Raises:
        web.HTTPException: more pixels than allowed (413), or a header that does not say (422).
        ImageReadError: not a picture, or a broken one.
    """
    pixels = claimed_pixels(data)
    if pixels > limits.pixels:
        raise web.HTTPRequestEntityTooLarge(
            max_size=limits.pixels,
            actual_size=pixels,
            text=f"the picture has {pixels / 1e6:.1f} megapixels, allowed are "
            f"{limits.pixels / 1e6:g}; make it smaller",
        )
    if not pixels:  # nobody knows what decoding it would take
        raise web.HTTPUnprocessableEntity(
            text=f"not a picture in a known format ({len(data)} bytes); send JPEG, PNG, WebP, GIF, "
            "BMP or TIFF"
        )
    return decode_image(data, "upload")


def _too_long(limits: Limits) -> web.HTTPException:
    return web.HTTPRequestEntityTooLarge(
        max_size=limits.bytes,
        actual_size=0,
        text=f"the file has more than {limits.bytes / 2**20:g} MB; make the picture smaller",
    )
