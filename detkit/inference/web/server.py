"""The web page's server: what a browser may ask, and who may.

    GET  /             the page; /page.js and /page.css beside it
    GET  /api/model    classes, colours, settings and limits
    POST /api/detect   a picture file as the body -> its detections
    POST /api/preview  a picture file as the body -> a JPEG of it, for formats that browsers lack

A mistake is answered by `{"error": "one line"}`. Nothing is written to disk, nothing is kept.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from functools import partial
from importlib.resources import files
from typing import Any

import cv2
import numpy as np
from aiohttp import web

from detkit.inference.predictor import Predictor
from detkit.inference.selection import select_by, selection_of
from detkit.inference.web.guard import add_headers, explain, only_ours
from detkit.inference.web.uploads import Limits, decode_upload, read_upload
from detkit.inference.web.worker import Worker
from detkit.ops import SUPPRESSIONS, Selection
from detkit.registry import suggest
from detkit.structures import Detections
from detkit.visualize import class_color, text_color

PREVIEW_SIDE = 1600  # pixels
_ASSETS = {
    "/": ("page.html", "text/html"),
    "/page.js": ("page.js", "text/javascript"),
    "/page.css": ("page.css", "text/css"),
}


@dataclass(frozen=True)
class Settings:
    """What a visitor may change for a picture.

    Attributes:
        nms: one of `SUPPRESSIONS`; None: as loaded.
        iou_threshold: None: as loaded.
        stream: names a camera, of whose frames only the newest waits.
    """

    nms: str | None = None
    iou_threshold: float | None = None
    stream: str | None = None

    @classmethod
    def of(cls, request: web.Request) -> Settings:
        """From the query of an address.

        Raises:
            web.HTTPBadRequest: an unknown name, one given twice, or a value that is not allowed.
        """
        given = request.query
        for name in given:
            if name not in ("nms", "iou_threshold", "stream"):
                known = suggest(name[:60], ("nms", "iou_threshold", "stream"))
                raise web.HTTPBadRequest(text=f"unknown setting {name[:60]!r}; {known}")
            if len(given.getall(name)) > 1:
                raise web.HTTPBadRequest(text=f"{name} is given twice; give it once")
        nms, stream, iou = given.get("nms"), given.get("stream"), given.get("iou_threshold")
        if nms is not None and nms not in SUPPRESSIONS:
            known = suggest(nms[:60], SUPPRESSIONS)
            raise web.HTTPBadRequest(text=f"unknown nms {nms[:60]!r}; {known}")
        if stream is not None and not 0 < len(stream) <= 64:
            raise web.HTTPBadRequest(text=f"stream has {len(stream)} characters, allowed: 1 to 64")
        return cls(nms, None if iou is None else _fraction("iou_threshold", iou), stream)

    def applied(self, selection: Selection) -> Selection:
        """The selection with these settings in it."""
        changes = {"nms": self.nms, "iou_threshold": self.iou_threshold}
        return replace(selection, **{k: v for k, v in changes.items() if v is not None})  # type: ignore[arg-type]


def _fraction(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:  # nan is not, either
        raise web.HTTPBadRequest(text=f"{name} is {text[:60]!r}, allowed: a number in 0..1")
    return value


class Site:
    """The answers.

    Args:
        predictor: used by one thread, and by nobody else meanwhile.
        name: of the model, for the page.
        threshold: lowest score shown at first, in 0..1.
        limits: on what is sent.
    """

    def __init__(
        self, predictor: Predictor, *, name: str, threshold: float, limits: Limits
    ) -> None:
        self.predictor, self.limits = predictor, limits
        self.worker = Worker(limits.waiting)
        self.selection = selection_of(predictor.detector)
        self._about = _about(predictor, self.selection, name, threshold, limits)

    async def asset(self, request: web.Request) -> web.Response:
        """A file of the page."""
        file, kind = _ASSETS[request.path]
        text = files("detkit.inference.web").joinpath(file).read_text(encoding="utf-8")
        return web.Response(text=text, content_type=kind)

    async def about(self, request: web.Request) -> web.Response:
        """What the page has to know."""
        return web.json_response(self._about)

    async def detect(self, request: web.Request) -> web.Response:
        """What is in a picture: all that the detector reports, whatever its score."""
        settings = Settings.of(request)
        if self.selection is None and (settings.nms, settings.iou_threshold) != (None, None):
            raise web.HTTPBadRequest(text="this model has its suppression built in; leave nms out")
        with self.worker.place():
            data = await read_upload(request, self.limits)
            look = partial(self._look, data, settings)
            return web.json_response(await self.worker.run(look, stream=settings.stream))

    async def preview(self, request: web.Request) -> web.Response:
        """The picture as the detector sees it."""
        with self.worker.place():
            data = await read_upload(request, self.limits)
            jpeg = await self.worker.run(partial(_preview, data, self.limits))
        return web.Response(body=jpeg, content_type="image/jpeg")

    def _look(self, data: bytes, settings: Settings) -> dict[str, Any]:
        image = decode_upload(data, self.limits)
        if self.selection is not None:
            select_by(self.predictor.detector, settings.applied(self.selection))
        start = time.perf_counter()
        found = self.predictor(image, score_threshold=0.0)
        return _answer(found, image, time.perf_counter() - start)


def _about(
    predictor: Predictor, selection: Selection | None, name: str, threshold: float, limits: Limits
) -> dict[str, Any]:
    classes = zip(predictor.class_names, predictor.category_ids, strict=True)
    return {
        "name": name,
        "device": predictor.device.type,
        "threshold": threshold,
        "classes": [
            {"name": each, "id": category, "color": _hex(color), "ink": _hex(text_color(color))}
            for each, category, color in ((*c, class_color(i)) for i, c in enumerate(classes))
        ],
        "selection": None
        if selection is None
        else {
            "nms": selection.nms,
            "iou_threshold": selection.iou_threshold,
            "score_threshold": selection.score_threshold,
            "kinds": SUPPRESSIONS,
        },
        "limits": {"bytes": limits.bytes, "pixels": limits.pixels},
    }


def _hex(color: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*color)


def _answer(found: Detections, image: np.ndarray, seconds: float) -> dict[str, Any]:
    finite = found[found.boxes.isfinite().all(dim=1) & found.scores.isfinite()]  # JSON has no NaN
    return {
        "height": image.shape[0],
        "width": image.shape[1],
        "boxes": finite.boxes.double().tolist(),
        "scores": finite.scores.double().tolist(),
        "labels": finite.labels.tolist(),
        "seconds": seconds,
    }


def _preview(data: bytes, limits: Limits) -> bytes:
    image = decode_upload(data, limits)
    scale = PREVIEW_SIDE / max(image.shape[:2])
    if scale < 1:
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    _, jpeg = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    return jpeg.tobytes()


def create_app(
    predictor: Predictor,
    *,
    name: str = "detector",
    threshold: float = 0.5,
    limits: Limits | None = None,
    host: str = "127.0.0.1",
) -> web.Application:
    """The server as an aiohttp application.

    Args:
        predictor: see `Site`.
        name: see `Site`.
        threshold: see `Site`.
        limits: see `Site`; None: the usual ones.
        host: where it will listen, see `guard.is_ours`.
    """
    limits = limits or Limits()
    site = Site(predictor, name=name, threshold=threshold, limits=limits)
    app = web.Application(middlewares=[explain, only_ours(host)])
    for path in _ASSETS:
        app.router.add_get(path, site.asset)
    app.router.add_get("/api/model", site.about)
    app.router.add_post("/api/detect", site.detect)
    app.router.add_post("/api/preview", site.preview)
    app.on_response_prepare.append(add_headers)

    async def close(_app: web.Application) -> None:
        site.worker.close()

    app.on_cleanup.append(close)
    return app
