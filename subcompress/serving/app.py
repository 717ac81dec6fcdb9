"""The HTTP application: Open Inference Protocol v2, the repository extension, metrics and a status page."""

from __future__ import annotations

import asyncio
import base64
import logging
import secrets
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from importlib import resources
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from subcompress.errors import SubcompressError
from subcompress.serving import encodings, protocol
from subcompress.serving.addresses import host_of, is_loopback, origin_of
from subcompress.serving.documents import parse_json
from subcompress.serving.models import now
from subcompress.serving.refusals import RefusedError, shown
from subcompress.serving.service import ABOUT, IDLE, PACE, Decode, Service, failure_of
from subcompress.serving.status import SORTS, status

OPEN = ("/", "/v2/health/live", "/v2/health/ready")
"""The paths that need no token: whether the server is live and ready, and the page without its figures."""

DISCARDED = 1 << 30
"""The most bytes of a refused request that are read and dropped before the refusal is sent."""

LINGER = 1
"""Seconds that dropping them waits for more."""

HEADER_LENGTH = protocol.HEADER_LENGTH.encode()

PREFLIGHT = {
    "access-control-allow-methods": "GET, POST",
    "access-control-allow-headers": f"authorization, content-encoding, content-type, {protocol.HEADER_LENGTH}",
    "access-control-allow-private-network": "true",
    "access-control-max-age": "600",
}
"""The headers of the answer to a browser's preflight request from an allowed origin."""

RETRIED = {503: [(b"retry-after", b"1")], 415: [(b"accept-encoding", encodings.TAKEN.encode())]}
"""Headers, by status, that say how to retry."""

Handler = Callable[[Request], Awaitable[Response]]


class _Incoming:
    """A request's body as it arrives. is_complete: all of it has come; is_abandoned: the rest is no longer awaited."""

    def __init__(self, headers: dict[bytes, bytes], receive: Receive, awaited: set[_Incoming]) -> None:
        self.headers, self.is_complete, self.is_abandoned = headers, False, False
        self._receive, self._awaited, self._until = receive, awaited, now() + IDLE
        self._task: asyncio.Task[Any] | None = None

    def check(self) -> None:
        """Stop waiting for bytes that are late. Called every second, which is cheaper than a timer for each body."""
        if now() > self._until and not self.is_abandoned and self._task is not None:
            self.is_abandoned = True
            self._task.cancel()

    async def next_bytes(self) -> bytes:
        """Return the next bytes. Raises RefusedError: 408 if they come too slowly, 400 if the body is cut off."""
        self._task = asyncio.current_task()
        self._awaited.add(self)
        try:
            message = await self._receive()
        except asyncio.CancelledError as e:
            if not self.is_abandoned or self._task is None:  # the server ends
                raise
            self._task.uncancel()
            raise RefusedError(
                408,
                f"the request's body came too slowly: it must arrive within {IDLE} seconds, or at {PACE} bytes "
                "per second",
            ) from e
        finally:
            self._awaited.discard(self)
        if message["type"] == "http.disconnect":
            self.is_abandoned = True
            raise RefusedError(400, "the request was cut off")
        self.is_complete = not message.get("more_body", False)
        next_bytes: bytes = message.get("body", b"")
        self._until = min(now() + IDLE, self._until + len(next_bytes) / PACE)
        return next_bytes

    async def discard(self) -> None:
        """Read and drop the rest, up to a limit, because a client that is still sending does not read the answer."""
        most = DISCARDED
        if b"expect" in self.headers:  # who waits to be asked for the body
            return
        with suppress(RefusedError):
            while not (self.is_complete or self.is_abandoned) and most > 0:
                self._until = now() + LINGER
                most -= len(await self.next_bytes())


class Server:
    """The ASGI application of a service.

    origins: whose pages may use the server, as `origin_of` spells them.
    """

    def __init__(self, service: Service, origins: Collection[str] = ()) -> None:
        self.service = service
        self.local = False  # whether it listens on an address that only this machine can reach
        self._awaited: set[_Incoming] = set()
        self._origins = frozenset(origins)
        self._page = resources.files("subcompress.serving").joinpath("page.html").read_text("utf-8")
        get, post = ["GET"], ["POST"]
        by_model: dict[str, Handler] = {
            "": self._metadata,
            "/ready": self._model_ready,
            "/config": self._config,
            "/stats": self._stats,
        }
        routes = [
            Route("/", self._show_page, methods=get),
            Route("/status", self._status, methods=get),
            Route("/metrics", self._metrics, methods=get),
            Route("/v2", self._about, methods=get),
            Route("/v2/health/live", self._live, methods=get),
            Route("/v2/health/ready", self._ready, methods=get),
            Route("/v2/repository/index", self._index, methods=[*post, *get]),
            Route("/v2/repository/models/{name}/load", self._load, methods=post),
            Route("/v2/repository/models/{name}/unload", self._unload, methods=post),
            Route("/v2/models/stats", self._all_stats, methods=get),
        ]
        for tail, handler in by_model.items():
            routes.append(Route("/v2/models/{name}" + tail, handler, methods=get))
            routes.append(Route("/v2/models/{name}/versions/{version}" + tail, handler, methods=get))
        self._others: ASGIApp = Starlette(
            routes=routes,
            exception_handlers={
                RefusedError: _refused,
                SubcompressError: _bug,
                MemoryError: _bug,
                HTTPException: _not_here,
                Exception: _bug,
            },
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request. Inference goes straight to its work; the rest through Starlette's routes."""
        if scope["type"] != "http":
            await self._others(scope, receive, send)
            return
        path: str = scope["path"]
        headers = dict(scope["headers"])
        if self._allowed(headers):
            send = _with_cors(send, headers[b"origin"])
            if scope["method"] == "OPTIONS" and b"access-control-request-method" in headers:
                await Response(status_code=204, headers=PREFLIGHT)(scope, receive, send)
                return
        try:
            if (wrong := self._forbidden(path, headers, scope["method"])) is not None:
                await wrong(scope, receive, send)
            elif scope["method"] == "POST" and path.startswith("/v2/models/") and path.endswith("/infer"):
                await self._infer(path, _Incoming(headers, receive, self._awaited), send)
            else:
                await self._others(scope, receive, send)
        except asyncio.CancelledError:  # the server's time to end is over
            self.service.cut += 1
            with suppress(Exception):  # an answer that had begun
                await _error(503, "this server is shutting down: ask another", {"retry-after": "1"})(
                    scope, receive, send
                )

    def _allowed(self, headers: dict[bytes, bytes]) -> bool:
        """Return whether the request comes from a page of an allowed origin."""
        origin = headers.get(b"origin") if self._origins else None
        return origin is not None and origin_of(origin.decode("latin-1")) in self._origins

    def check(self) -> None:
        """Give up on bodies that arrive too slowly. Called every second."""
        for incoming in list(self._awaited):
            incoming.check()

    def _forbidden(self, path: str, headers: dict[bytes, bytes], method: str) -> Response | None:
        """Return why a request is refused before it is read: no token, or a page of another site."""
        if path not in OPEN:
            try:
                self.service.check_token(headers.get(b"authorization", b""))
            except RefusedError as e:
                return _error(e.status, str(e), {"www-authenticate": "Bearer"})
        if self._allowed(headers):
            return None
        origin, host = headers.get(b"origin"), headers.get(b"host", b"").decode("latin-1")
        by_page = origin is not None or b"sec-fetch-site" in headers
        if by_page and self.local and not self.service.has_token and not is_loopback(host_of(host) or ""):
            # A name that was made to lead here.
            return _error(403, f"web pages at {shown(host)} may not use a server of this machine without its token")
        if method != "GET" and origin is not None:
            page = origin_of(origin.decode("latin-1"))
            if page is None or page != origin_of(f"{page.partition('://')[0]}://{host}"):
                return _error(403, "web pages of other sites may not use this server, except those of --allow-origin")
        return None

    # Inference

    async def _infer(self, path: str, incoming: _Incoming, send: Send) -> None:
        service, model, code, began = self.service, None, 200, now()
        extra: list[tuple[bytes, bytes]] = []
        try:
            model = service.find(*_address(path))
            with service.admitted():
                body = await self._body(incoming)
                began = now()
                try:
                    found = await service.infer(model, _decoder(body, incoming.headers.get(HEADER_LENGTH)))
                    answer, kind, json_bytes = protocol.encode_answer(
                        model.name, found.asked, found.outputs, found.values
                    )
                finally:
                    service.held -= len(body)
            if json_bytes:
                extra.append((HEADER_LENGTH, b"%d" % json_bytes))
        except Exception as e:
            code, text = failure_of(e)
            answer, kind = orjson.dumps({"error": text}), protocol.JSON
            extra += RETRIED.get(code, [])
            if code == 500:
                logging.getLogger("uvicorn.error").error("A request failed", exc_info=e)
            await incoming.discard()
        if incoming.is_abandoned or (not incoming.is_complete and b"expect" in incoming.headers):
            extra.append((b"connection", b"close"))  # what comes next may be the body, or not
        start = {
            "type": "http.response.start",
            "status": code,
            "headers": [
                (b"content-type", kind.encode()),
                (b"content-length", b"%d" % len(answer)),
                *extra,
            ],
        }
        service.metrics.ended(model, code, now() - began)
        await send(start)
        await send({"type": "http.response.body", "body": answer})

    async def _body(self, incoming: _Incoming) -> bytes:
        """Read the body and count its bytes as held in memory.

        Raises RefusedError: 413 if it is too large, 503 if others take the memory, 408 if it is too slow.
        """
        encoding = incoming.headers.get(b"content-encoding")
        if encoding is None or encodings.is_plain(encoding):
            return await self._sent(incoming)
        data = await self._sent(incoming)
        try:
            return await self._inflated(data, encoding)
        finally:
            self.service.held -= len(data)

    async def _inflated(self, data: bytes, encoding: bytes) -> bytes:
        """Decompress a body, counting its bytes as held. Raises RefusedError as `_body` does."""
        parts: list[bytes] = []
        size = 0
        try:
            for part in encodings.pieces(data, encoding):
                size += len(part)
                self.service.hold(size, len(part))
                parts.append(part)
                await asyncio.sleep(0)  # others' requests go on
        except BaseException:
            self.service.held -= size
            raise
        return b"".join(parts)

    async def _sent(self, incoming: _Incoming) -> bytes:
        """Read the body as it was sent; see `_body`."""
        length = incoming.headers.get(b"content-length", b"")
        if length.isdigit():
            self.service.check_size(int(length[:20]))
        parts: list[bytes] = []
        size = 0
        try:
            while not incoming.is_complete:
                part = await incoming.next_bytes()
                size += len(part)
                self.service.hold(size, len(part))
                parts.append(part)
        except BaseException:
            self.service.held -= size
            raise
        return parts[0] if len(parts) == 1 else b"".join(parts)

    # Descriptions of the server and its models

    async def _about(self, request: Request) -> Response:
        return _json(ABOUT)

    async def _live(self, request: Request) -> Response:
        return Response()

    async def _ready(self, request: Request) -> Response:
        return Response(status_code=200 if await self.service.is_ready() else 503)

    async def _model_ready(self, request: Request) -> Response:
        await self.service.models.require_running(self.service.find(*_named(request)))
        return Response()

    async def _metadata(self, request: Request) -> Response:
        return _json(await self.service.metadata(*_named(request)))

    async def _config(self, request: Request) -> Response:
        return _json(await self.service.config(*_named(request)))

    async def _stats(self, request: Request) -> Response:
        return _json({"model_stats": await self.service.statistics(*_named(request))})

    async def _all_stats(self, request: Request) -> Response:
        return _json({"model_stats": await self.service.statistics()})

    async def _index(self, request: Request) -> Response:
        body = await self._small(request)
        return _json(await self.service.index(only_ready=body.get("ready") is True))

    async def _load(self, request: Request) -> Response:
        body = await self._small(request)
        await self.service.load(request.path_params["name"], body.get("parameters"))
        return Response()

    async def _unload(self, request: Request) -> Response:
        await self._small(request)
        await self.service.unload(request.path_params["name"])
        return Response()

    async def _small(self, request: Request) -> dict[str, Any]:
        """Return the body of a repository request: an object, or nothing."""
        data = await self._body(_Incoming(dict(request.scope["headers"]), request.receive, self._awaited))
        self.service.held -= len(data)
        if not data.strip():
            return {}
        said = parse_json(data)
        if not isinstance(said, dict):
            raise RefusedError(400, "a request must be a JSON object")
        return said

    async def _metrics(self, request: Request) -> Response:
        service = self.service
        text = await service.metrics.exposition(service.models, service.waiting, await service.figures_of_others())
        return Response(text, media_type="text/plain; version=0.0.4")

    # For people

    async def _show_page(self, request: Request) -> Response:
        nonce = base64.b64encode(secrets.token_bytes(16)).decode()
        policy = (
            f"default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; connect-src 'self'; "
            "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        headers = {"content-security-policy": policy, "cache-control": "no-store", "x-content-type-options": "nosniff"}
        return Response(self._page.replace("{{nonce}}", nonce), media_type="text/html", headers=headers)

    async def _status(self, request: Request) -> Response:
        asked = request.query_params
        limit, sort, search = asked.get("limit", "100"), asked.get("sort", "requests"), asked.get("search", "")
        if not (limit.isascii() and limit.isdigit()) or len(limit) > 6 or sort not in SORTS:
            raise RefusedError(400, f"limit must be a number of models, and sort one of {', '.join(SORTS)}")
        service = self.service
        told = await status(
            service.models,
            service.metrics,
            (service.waiting, service.limits.waiting),
            (int(limit), sort, search.lower()),
            await service.figures_of_others(),
        )
        return _json({**told, "state": "draining" if service.draining else "ready"})


def _named(request: Request) -> tuple[str, str]:
    """The name and the version of a model in an address."""
    return request.path_params["name"], request.path_params.get("version", protocol.VERSION)


def _address(path: str) -> tuple[str, str]:
    """The name and the version in /v2/models/NAME/infer or /v2/models/NAME/versions/1/infer."""
    parts = path.split("/")[3:-1]
    if len(parts) == 3 and parts[1] == "versions":
        return parts[0], parts[2]
    return "/".join(parts), protocol.VERSION


def _decoder(body: bytes, header_length: bytes | None) -> Decode:
    """What decodes a request with that body and header."""
    length = None if header_length is None else header_length.decode("latin-1")
    return lambda takes: protocol.parse_request(body, length, takes)


def _with_cors(send: Send, origin: bytes) -> Send:
    """Wrap `send` so that a browser lets pages of this origin read the answer."""
    headers = [
        (b"access-control-allow-origin", origin),
        (b"access-control-expose-headers", HEADER_LENGTH),
        (b"vary", b"origin"),
    ]

    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), *headers]}
        await send(message)

    return sent


def _json(value: Any) -> Response:
    return Response(orjson.dumps(value), media_type=protocol.JSON)


def _error(status: int, text: str, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps({"error": text}), status, headers, protocol.JSON)


async def _refused(request: Request, e: Exception) -> Response:
    assert isinstance(e, RefusedError)
    return _error(e.status, str(e), {"retry-after": "1"} if e.status == 503 else None)


async def _not_here(request: Request, e: Exception) -> Response:
    assert isinstance(e, HTTPException)
    what = f"{request.method} {request.url.path[:100]}"
    text = {
        404: f"there is nothing at {what}: POST /v2/repository/index lists the models",
        405: f"this server does not answer {what}",
    }
    if request.url.path.endswith("/infer"):
        return _error(405, "use POST for inference", {"allow": "POST"})
    return _error(e.status_code, text.get(e.status_code, e.detail), dict(e.headers or {}))


async def _bug(request: Request, e: Exception) -> Response:
    return _error(*failure_of(e))
