"""Who may ask the server, how a mistake is answered, and what a browser may do with an answer."""

from __future__ import annotations

import ipaddress
import logging
import socket
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web

from detkit.data import ImageReadError
from detkit.inference.web.worker import Busy, Superseded

logger = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src 'self' blob: data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    "Server": "detkit",
}


def is_ours(authority: str, host: str) -> bool:
    """Whether a request was meant for this server, by its header Host.

    A page elsewhere can give its own name the address of this machine and then read what is
    answered (DNS rebinding): its requests still carry its name. An address is nobody's name.

    Args:
        authority: the header, "name:port".
        host: where the server listens: a name or an address.
    """
    try:
        name = urlsplit(f"//{authority}").hostname or ""
    except ValueError:
        return False
    local = is_loopback(host)
    if name in ("localhost", host.lower()):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback or not local
    except ValueError:
        return not local and name == socket.gethostname().lower()


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens there."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def only_ours(host: str) -> Any:
    """Answer requests for this server that come from its own page, or from no page at all."""

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        if not is_ours(request.headers.get("Host", ""), host):
            name = request.headers.get("Host", "")[:60]
            raise web.HTTPForbidden(text=f"{name!r} is not this server; open it by its address")
        origin = request.headers.get("Origin", f"http://{request.host}")
        if origin.partition("://")[2].lower() != request.host.lower():
            raise web.HTTPForbidden(text="this server answers no pages but its own")
        return await handler(request)

    return guard


@web.middleware
async def explain(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Say every mistake in one line of JSON, which a page can show and a script can read."""
    try:
        return await handler(request)
    except web.HTTPNotFound:
        return _error(404, f"nothing is at {request.path[:60]}; the page is at /")
    except web.HTTPMethodNotAllowed as refused:
        allowed = ", ".join(sorted(refused.allowed_methods))
        answer = _error(405, f"{request.method[:20]} is not for {request.path}; use {allowed}")
        answer.headers["Allow"] = allowed
        return answer
    except web.HTTPException as refused:
        return _error(refused.status, refused.text or refused.reason)
    except ImageReadError as error:
        return _error(422, str(error))
    except Busy as error:
        answer = _error(503, str(error))
        answer.headers["Retry-After"] = "1"
        return answer
    except Superseded:
        return web.Response(status=204)
    except ConnectionError:  # whoever asked has gone
        raise
    except Exception:
        logger.exception("%s %s failed", request.method, request.path)
        return _error(500, "the detector failed on this; the server's terminal says why")


def _error(status: int, line: str) -> web.Response:
    return web.json_response({"error": line}, status=status)


async def add_headers(_request: web.Request, response: web.StreamResponse) -> None:
    """What a browser may do with the answer: as little as the page needs."""
    response.headers.update(_HEADERS)
