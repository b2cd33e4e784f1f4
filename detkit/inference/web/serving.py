"""Listen, answer until somebody says stop, and leave cleanly."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable
from typing import Any

from aiohttp import web

from detkit.signals import Terminated


def listen(host: str, port: int) -> socket.socket:
    """A socket that waits for visitors; to be opened before the work of loading a model.

    Args:
        host: a name or an address of this machine.
        port: 0 for any that is free.

    Raises:
        ValueError: the port is taken, or may not be used; the host is not this machine's.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        return socket.create_server(address[:2], family=family)
    except OSError as error:
        reason = (error.strerror or str(error)).partition(" (while")[0]
        raise ValueError(
            f"cannot listen on {host} port {port}: {reason}; try another --port or --host"
        ) from None


def address_of(listening: socket.socket) -> str:
    """What to type into a browser."""
    host, port = listening.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def serve(
    app: web.Application, listening: socket.socket, *, ready: Callable[[], None] = lambda: None
) -> None:
    """Answer until Ctrl-C or SIGTERM; from the main thread.

    A picture that is being worked on is finished; a second signal does not wait for it.

    Args:
        app: what answers.
        listening: where, from `listen`.
        ready: called once it answers and heeds signals.

    Raises:
        KeyboardInterrupt: Ctrl-C.
        Terminated: SIGTERM.
    """
    if asyncio.run(_serve(app, listening, ready)) == signal.SIGTERM:
        raise Terminated
    raise KeyboardInterrupt


async def _serve(app: web.Application, listening: socket.socket, ready: Callable[[], None]) -> int:
    loop = asyncio.get_running_loop()
    asked: asyncio.Future[int] = loop.create_future()
    by_default: dict[int, Any] = {}

    def ask(number: int, _frame: object) -> None:
        signal.signal(number, by_default[number])  # a second one does what it always does
        loop.call_soon_threadsafe(_settle, asked, number)

    for number in (signal.SIGINT, signal.SIGTERM):
        by_default[number] = signal.signal(number, ask)
    runner = web.AppRunner(app, access_log=None, auto_decompress=False, shutdown_timeout=1.0)
    try:
        await runner.setup()
        await web.SockSite(runner, listening).start()
        ready()
        return await asked
    finally:
        await runner.cleanup()
        for each, handler in by_default.items():
            signal.signal(each, handler)


def _settle(asked: asyncio.Future[int], number: int) -> None:
    if not asked.done():
        asked.set_result(number)
