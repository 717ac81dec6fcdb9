"""Running a server in a process: socket, uvicorn, signals, and a graceful end."""

from __future__ import annotations

import asyncio
import copy
import importlib.util
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import uvicorn

from subcompress.base import HUB, weights_files
from subcompress.errors import SubcompressError, one_line
from subcompress.serving import catalog
from subcompress.serving.addresses import is_loopback, parse_origins
from subcompress.serving.app import Server
from subcompress.serving.connections import Connection
from subcompress.serving.engines import use_device
from subcompress.serving.metrics import Metrics
from subcompress.serving.models import Log, Models
from subcompress.serving.networks import Bases, Networks, Trace
from subcompress.serving.service import Limits, Service
from subcompress.serving.sockets import address_of, open_socket
from subcompress.serving.workers import Fleet, Place

REFRESH_SECONDS = 1.0
"""Seconds between checks of the files."""

SWITCH_SECONDS = 0.001
"""The thread switch interval of the interpreter in seconds; Python's default of five milliseconds is longer than most
answers take."""

DRAIN_SECONDS = 30
"""Seconds that requests may take to finish once the server is stopping."""


@dataclass(frozen=True)
class Settings:
    """How a server serves; see `serve`."""

    memory: int
    most: int
    limits: Limits
    token: str | None
    origins: frozenset[str]
    grpc_port: int | None
    raw_inputs: bool = False
    place: Place | None = None
    access_log: bool = False


@dataclass(frozen=True)
class Running:
    """A server that answers requests.

    Attributes:
        address: Its address over HTTP.
        models: Its models.
        service: What answers, over both protocols.
        stop: Makes `serve` finish the requests under way and return. May be called from any thread.
        grpc: HOST:PORT of gRPC. Empty if it is off.
    """

    address: str
    models: Models
    service: Service
    stop: Callable[[], object]
    grpc: str = ""


def serve(
    sources: Sequence[str],
    trace: Trace,
    *,
    bases: Sequence[str] = (),
    host: str = "127.0.0.1",
    port: int = 8000,
    grpc_port: int | None = None,
    device: str = "cpu",
    raw_inputs: bool = False,
    access_log: bool = False,
    memory: int = 1 << 30,
    most: int = 64,
    limits: Limits | None = None,
    token: str | None = None,
    origins: Sequence[str] = (),
    place: Place | None = None,
    log: Log,
    ready: Callable[[Running], None],
) -> bool:
    """Serve until SIGTERM or Ctrl-C, then finish the requests under way; return whether all were answered.

    sources: files, folders, `hub:ORG/NAME`, each also as NAME=FILE; trace: see `subcompress.serving.networks`; memory:
    the most bytes of rebuilt models; most: the most examples in a run; grpc_port: where gRPC is answered too, 0 for any
    free port, None for not at all; device: cpu or cuda; raw_inputs: whether texts and images are not prepared;
    access_log: whether a line about each request is written to stderr; origins: pages that may use the server,
    SCHEME://HOST[:PORT]; place: that of a worker among others, which gives its share of memory and queue; ready: called
    once requests are answered. Raises SubcompressError if nothing can be served.
    """
    pages = check(sources, bases, origins, grpc_port)
    use_device(device)
    if place is not None:
        limits = limits or Limits()
        memory, grpc_port = place.share(memory), place.grpc_port
        limits = replace(limits, waiting=place.share(limits.waiting))
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_SECONDS)
    try:
        with (
            suppress(_EndedError),
            open_socket(host, place.port if place else port, shared=place is not None) as sock,
            asyncio.Runner(loop_factory=_loop_factory()) as runner,
        ):
            settings = Settings(
                memory, most, limits or Limits(), token, pages, grpc_port, raw_inputs, place, access_log
            )
            return runner.run(_serve(sock, sources, Networks(trace, Bases(bases)), settings, log, ready))
    finally:
        sys.setswitchinterval(before)
    return True


def check(
    sources: Sequence[str], bases: Sequence[str], origins: Sequence[str], grpc_port: int | None
) -> frozenset[str]:
    """Raise SubcompressError for what could not be served; return the origins as `origin_of` spells them."""
    if grpc_port is not None:
        require_grpc()
    catalog.require_all(sources)
    for base in bases:
        if not base.startswith(HUB):
            weights_files(Path(base))
    return parse_origins(origins)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return uvloop's event loop factory if it is installed."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


async def _serve(
    sock: socket.socket,
    sources: Sequence[str],
    networks: Networks,
    settings: Settings,
    log: Log,
    ready: Callable[[Running], None],
) -> bool:
    fleet = None if settings.place is None else Fleet(settings.place)
    metrics = Metrics("" if fleet is None else fleet.metrics)
    models = Models(sources, networks, memory=settings.memory, most=settings.most, log=log, ran=metrics.ran)
    service = Service(models, metrics, settings.limits, settings.token, settings.raw_inputs, fleet)
    try:
        with _interruptible_start():
            await models.preload()
            await models.refresh()
        if len(models) and not any(m.readable for m in models) and not any(map(os.path.isdir, sources)):
            raise SubcompressError("none of the models can be served, for the reasons above: give files that can be")
        server = Server(service, settings.origins)
        process, loop = _Uvicorn(_uvicorn_config(server, settings.access_log), server), asyncio.get_running_loop()

        def stop() -> None:
            with suppress(RuntimeError):  # it has ended
                loop.call_soon_threadsafe(process.handle_exit, signal.SIGTERM, None)

        host, port = sock.getsockname()[:2]
        server.local = is_loopback(host)
        async with (
            _grpc(service, host, settings) as grpc_address,
            _refreshing(models, log),
            nullcontext() if fleet is None else fleet.answering(service.answer, stop),
        ):
            running = Running(f"http://{address_of(host, port)}", models, service, stop, grpc_address)
            process.when_listening = lambda: ready(running)
            await process.serve(sockets=[sock])
        return not (process.force_exit or service.cut)
    finally:
        models.close()


def _uvicorn_config(server: Server, access_log: bool) -> uvicorn.Config:
    log_config = copy.deepcopy(uvicorn.config.LOGGING_CONFIG)
    log_config["handlers"]["access"]["stream"] = "ext://sys.stderr"
    config = uvicorn.Config(
        server,
        http=Connection,
        ws="none",
        log_config=log_config,
        log_level="error",
        access_log=access_log,
        lifespan="off",
        server_header=False,
        proxy_headers=False,  # nothing here asks who sent a request
        timeout_graceful_shutdown=DRAIN_SECONDS,
        timeout_keep_alive=75,
    )
    if access_log:
        logging.getLogger("uvicorn.access").setLevel(logging.INFO)
    return config


def _grpc(service: Service, host: str, settings: Settings) -> AbstractAsyncContextManager[str]:
    """Return a context in which gRPC is answered. It yields HOST:PORT, or an empty text if gRPC is off."""
    if settings.grpc_port is None:
        return nullcontext("")
    from subcompress.serving import grpc_server  # grpcio is an optional dependency

    return grpc_server.answering(service, host, settings.grpc_port, DRAIN_SECONDS, settings.place is not None)


def require_grpc() -> None:
    """Raise SubcompressError if a package that gRPC needs is not installed."""
    for name, package in (("grpc", "grpcio"), ("google.protobuf", "protobuf")):
        if importlib.util.find_spec(name) is None:
            raise SubcompressError(f"gRPC needs {package}, which is not installed: pip install 'subcompress[serve]'")


class _EndedError(Exception):
    """A signal arrived before the server was ready."""


@contextmanager
def _interruptible_start() -> Iterator[None]:
    """Let SIGTERM and Ctrl-C cancel the block.

    Raises _EndedError then: Python's own handlers would raise inside the event loop, which goes on.
    """
    if threading.current_thread() is not threading.main_thread():  # no signals come here
        yield
        return
    loop, task, received = asyncio.get_running_loop(), asyncio.current_task(), []
    assert task is not None

    def cancel(number: int) -> None:
        received.append(number)
        task.cancel()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, cancel, number)
    try:
        yield
    except asyncio.CancelledError as e:
        if received:
            task.uncancel()
            raise _EndedError from e
        raise
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


@asynccontextmanager
async def _refreshing(models: Models, log: Log) -> AsyncIterator[None]:
    """Check the files every second while the block lasts."""

    async def refresh_forever() -> None:
        logged = ""
        models.start_trials()
        while True:
            await asyncio.sleep(REFRESH_SECONDS)
            try:
                await models.refresh()
                models.start_trials()
            except Exception as e:  # whatever it is: models stay served, and the next check may succeed
                if (text := one_line(e)) != logged:
                    logged = text
                    log(f"the files could not be checked: {text}")

    task = asyncio.create_task(refresh_forever())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


class _Uvicorn(uvicorn.Server):
    """Finishes requests on a first signal and ends at once on a second; the process then continues after `serve`."""

    def __init__(self, config: uvicorn.Config, server: Server) -> None:
        super().__init__(config)
        self._server = server
        self.when_listening: Callable[[], None] = lambda: None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen, and tell."""
        await super().startup(sockets)
        self.when_listening()

    async def on_tick(self, counter: int) -> bool:
        """Check for slow bodies and connections once a second; called ten times a second."""
        if counter % 10 == 0:
            self._server.check()
            for connection in list(self.server_state.connections):
                assert isinstance(connection, Connection)
                connection.check()
        return await super().on_tick(counter)

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Stop gracefully, or at once on a second signal."""
        self._server.service.ending.set()
        if self.should_exit:
            self.force_exit = self._server.service.is_forced = True
        self.should_exit = True

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals while serving; uvicorn's own version raises them again at the end."""
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
