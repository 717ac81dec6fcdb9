"""A server as a process: a socket, uvicorn, signals, and an end that lets everybody finish."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn

from subcompress.base import HUB, weights_files
from subcompress.errors import SubcompressError, one_line
from subcompress.serving import catalogue
from subcompress.serving.addresses import allowed, is_loopback
from subcompress.serving.app import Limits, Server
from subcompress.serving.connections import Connection
from subcompress.serving.metrics import Metrics
from subcompress.serving.models import Models, Say
from subcompress.serving.networks import Bases, Networks, Trace
from subcompress.serving.refusals import shown

EVERY = 1.0
"""Seconds between looks at the files."""

SWITCH = 0.001
"""Seconds after which a thread that has run a network gets the interpreter back from the loop; Python's own five are
longer than most answers take."""

DRAIN = 30
"""Seconds that requests may take to end, once the server is told to."""


def open_socket(host: str, port: int) -> socket.socket:
    """A socket that listens there; port 0 is any that is free. Raises SubcompressError where it cannot."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, kind, proto)
    except (OSError, UnicodeError) as e:
        raise SubcompressError(
            f"a server binds to an address of this machine; {shown(host)} is none ({getattr(e, 'strerror', e)})"
        ) from e
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(1024)
        sock.setblocking(False)
    except OSError as e:
        sock.close()
        if e.errno == errno.EADDRINUSE:
            raise SubcompressError(f"port {port} of {host} is taken by another program: give another --port") from e
        raise SubcompressError(f"{host}:{port} cannot be listened to ({e.strerror or e}): give another") from e
    return sock


@dataclass(frozen=True)
class Running:
    """A server that answers. stop: lets requests end, and then `serve` return; from any thread."""

    address: str
    models: Models
    server: Server
    stop: Callable[[], object]


def serve(
    sources: Sequence[str],
    trace: Trace,
    *,
    bases: Sequence[str] = (),
    host: str = "127.0.0.1",
    port: int = 8000,
    memory: int = 1 << 30,
    most: int = 64,
    limits: Limits | None = None,
    token: str | None = None,
    origins: Sequence[str] = (),
    say: Say,
    ready: Callable[[Running], None],
) -> bool:
    """Serve until SIGTERM or Ctrl-C, then answer what was asked; returns whether all of it was.

    sources: files, folders, `hub:ORG/NAME`, each also as NAME=FILE; trace: see `subcompress.serving.networks`; memory:
    bytes of rebuilt models together; most: examples of a run; origins: pages that may use it, SCHEME://HOST[:PORT].
    ready: told once requests are answered.
    Raises SubcompressError where nothing can be served at all.
    """
    catalogue.require_all(sources)
    pages = allowed(origins)
    for base in bases:
        if not base.startswith(HUB):
            weights_files(Path(base))
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH)
    try:
        with suppress(_EndedError), open_socket(host, port) as sock, asyncio.Runner(loop_factory=_loops()) as runner:
            networks = Networks(trace, Bases(bases))
            of_server = (limits or Limits(), token, pages)
            return runner.run(_serve(sock, sources, networks, memory, most, of_server, say, ready))
    finally:
        sys.setswitchinterval(before)
    return True


def _loops() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """The faster loop, where there is one for this system."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


async def _serve(
    sock: socket.socket,
    sources: Sequence[str],
    networks: Networks,
    memory: int,
    most: int,
    of_server: tuple[Limits, str | None, frozenset[str]],
    say: Say,
    ready: Callable[[Running], None],
) -> bool:
    metrics = Metrics()
    models = Models(sources, networks, memory=memory, most=most, say=say, ran=metrics.ran)
    server = Server(models, metrics, *of_server)
    try:
        with _ended_by_a_signal():
            await models.warm()
            await models.look()
        if len(models) and not any(m.readable for m in models) and not any(map(os.path.isdir, sources)):
            raise SubcompressError("nothing of what was named can be served, for the reasons above: give what can be")
        config = uvicorn.Config(
            server,
            http=Connection,
            ws="none",
            log_level="error",
            access_log=False,
            lifespan="off",
            server_header=False,
            proxy_headers=False,  # nothing here asks who sent a request
            timeout_graceful_shutdown=DRAIN,
            timeout_keep_alive=75,
        )
        host, port = sock.getsockname()[:2]
        server.local = is_loopback(host)
        address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        process, loop = _Uvicorn(config, server), asyncio.get_running_loop()

        def stop() -> None:
            with suppress(RuntimeError):  # it has ended
                loop.call_soon_threadsafe(process.handle_exit, signal.SIGTERM, None)

        ready(Running(address, models, server, stop))
        async with _looking(models, say):
            await process.serve(sockets=[sock])
        return not (process.force_exit or server.cut)
    finally:
        models.close()


class _EndedError(Exception):
    """A signal has come before anything was served."""


@contextmanager
def _ended_by_a_signal() -> Iterator[None]:
    """Within, SIGTERM and Ctrl-C give the task up. Raises _EndedError then: Python's own handlers would raise in the
    loop, which goes on."""
    if threading.current_thread() is not threading.main_thread():  # no signals come here
        yield
        return
    loop, task, came = asyncio.get_running_loop(), asyncio.current_task(), []
    assert task is not None

    def end(number: int) -> None:
        came.append(number)
        task.cancel()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end, number)
    try:
        yield
    except asyncio.CancelledError as e:
        if came:
            task.uncancel()
            raise _EndedError from e
        raise
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


@asynccontextmanager
async def _looking(models: Models, say: Say) -> AsyncIterator[None]:
    """Within, files are looked at every second."""

    async def look() -> None:
        said = ""
        models.proving()
        while True:
            await asyncio.sleep(EVERY)
            try:
                await models.look()
                models.proving()
            except Exception as e:  # whatever it is: what is served stays, and the next look may find it mended
                if (text := one_line(e)) != said:
                    said = text
                    say(f"files could not be looked at: {text}")

    task = asyncio.create_task(look())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


class _Uvicorn(uvicorn.Server):
    """A first signal lets everybody finish, a second ends at once; the process then goes on where it was called."""

    def __init__(self, config: uvicorn.Config, server: Server) -> None:
        super().__init__(config)
        self._server = server

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second."""
        if counter % 10 == 0:
            self._server.check()
            for connection in list(self.server_state.connections):
                assert isinstance(connection, Connection)
                connection.check()
        return await super().on_tick(counter)

    def handle_exit(self, sig: int, frame: Any) -> None:
        """See `capture_signals`."""
        self._server.draining = True
        if self.should_exit:
            self.force_exit = True
        self.should_exit = True

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Uvicorn's own would raise the signal again at the end."""
        if threading.current_thread() is not threading.main_thread():  # no signals come here
            yield
            return
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)
