"""The HTTP application: Open Inference Protocol v2, the repository extension, metrics and a status page."""

from __future__ import annotations

import asyncio
import base64
import hmac
import logging
import secrets
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from importlib import resources
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from subcompress import __version__
from subcompress.errors import SubcompressError, memory_ran_out
from subcompress.serving import encodings, protocol
from subcompress.serving.addresses import host_of, is_loopback, origin_of
from subcompress.serving.documents import parse_json
from subcompress.serving.engines import ports
from subcompress.serving.metrics import Metrics
from subcompress.serving.models import Model, Models, now
from subcompress.serving.refusals import RefusedError, shown
from subcompress.serving.status import SORTS, status

EXTENSIONS = [
    "model_repository",
    "model_repository(unload_dependents)",
    "binary_tensor_data",
    "statistics",
    "model_configuration",
]

OPEN = ("/", "/v2/health/live", "/v2/health/ready")
"""What is told without a token: that the server is there, and a page without anything on it."""

IDLE = 30
"""Seconds that a request's body may pause, and be behind PACE."""

PACE = 4096
"""Bytes of a body a second: whoever sends less takes a place in the queue from others."""

DISCARDED = 1 << 30
"""Bytes of a refused request that are read past before it is told so."""

LOOK = 1.0
"""Seconds that the index waits for a look at the files: somebody may be tracing a network."""

LINGER = 1
"""Seconds that reading past it waits for more."""

HELD = 4
"""Bodies in memory take together at most as many bytes as so many of the largest size."""

HEADER_LENGTH = protocol.HEADER_LENGTH.encode()

PREFLIGHT = {
    "access-control-allow-methods": "GET, POST",
    "access-control-allow-headers": f"authorization, content-encoding, content-type, {protocol.HEADER_LENGTH}",
    "access-control-allow-private-network": "true",
    "access-control-max-age": "600",
}
"""What a browser is told before a page whose origin was allowed asks anything."""

Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True)
class Limits:
    """Limits of a server. waiting: the most requests at once; body: the most bytes of a request's body."""

    waiting: int = 1024
    body: int = 64 << 20


class _Incoming:
    """A request's body as it arrives. whole: all of it has arrived; over: the rest is no longer awaited."""

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
                408, f"a request's body comes within {IDLE} seconds, or {PACE} bytes a second; this one does not"
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
    """The ASGI application that serves `models`.

    token: required of requests, None for none; origins: whose pages may use the server, as `origin_of` spells them.
    """

    def __init__(
        self,
        models: Models,
        metrics: Metrics,
        limits: Limits | None = None,
        token: str | None = None,
        origins: Collection[str] = (),
    ) -> None:
        self.models, self.metrics, self.limits = models, metrics, limits or Limits()
        self.draining = False
        self.local = False  # whether it listens where this machine only comes
        self.waiting = self.held = 0
        self.cut = 0  # requests that were given up at the end
        self._awaited: set[_Incoming] = set()
        self._token = None if token is None else token.encode()
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
            self.cut += 1
            with suppress(Exception):  # an answer that had begun
                await _error(503, "this server is ending: ask another", {"retry-after": "1"})(scope, receive, send)

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
        if self._token is not None and path not in OPEN:
            kind, _, given = headers.get(b"authorization", b"").partition(b" ")
            if not (kind.lower() == b"bearer" and hmac.compare_digest(given.strip(), self._token)):
                return _error(
                    401,
                    "this server wants its token: send the header Authorization: Bearer TOKEN",
                    {"www-authenticate": "Bearer"},
                )
        if self._allowed(headers):
            return None
        origin, host = headers.get(b"origin"), headers.get(b"host", b"").decode("latin-1")
        by_page = origin is not None or b"sec-fetch-site" in headers
        if by_page and self.local and self._token is None and not is_loopback(host_of(host) or ""):
            # A name that was made to lead here.
            return _error(403, f"pages at {shown(host)} may not use a server of this machine without its token")
        if method != "GET" and origin is not None:
            page = origin_of(origin.decode("latin-1"))
            if page is None or page != origin_of(f"{page.partition('://')[0]}://{host}"):
                return _error(403, "pages of other sites may not use this server, but for those of --allow-origin")
        return None

    # Inference

    async def _infer(self, path: str, incoming: _Incoming, send: Send) -> None:
        model, code, began = None, 200, now()
        extra: list[tuple[bytes, bytes]] = []
        try:
            model = self.models.find(_name(path))
            self._admit()
            try:
                body = await self._body(incoming)
                began = now()
                try:
                    async with self.models.engine_of(model) as engine:
                        length = incoming.headers.get(HEADER_LENGTH)
                        text = None if length is None else length.decode("latin-1")
                        asked = protocol.parse_request(body, text, engine.inputs, engine.outputs, engine.batched)
                        values = await model.batches.run(engine, asked)
                        if model.engine is engine:
                            model.trial_error = ""  # it has run
                    answer, kind, json_bytes = protocol.encode_answer(model.name, asked, engine.outputs, values)
                finally:
                    self.held -= len(body)
            finally:
                self.waiting -= 1
            if json_bytes:
                extra.append((HEADER_LENGTH, b"%d" % json_bytes))
        except RefusedError as e:
            code, answer, kind = e.status, orjson.dumps({"error": str(e)}), protocol.JSON
            if code == 503:
                extra.append((b"retry-after", b"1"))
            if code == 415:
                extra.append((b"accept-encoding", encodings.TAKEN.encode()))
            await incoming.discard()
        except Exception as e:
            code, text = _failed(e)
            answer, kind = orjson.dumps({"error": text}), protocol.JSON
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
        self.metrics.ended(model, code, now() - began)
        await send(start)
        await send({"type": "http.response.body", "body": answer})

    def _admit(self) -> None:
        """Count a request as admitted. Raises RefusedError, 503, if there are too many."""
        if self.waiting >= self.limits.waiting:
            raise RefusedError(503, f"the queue is full, {self.limits.waiting} requests: ask again in a moment")
        self.waiting += 1

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
            self.held -= len(data)

    async def _inflated(self, data: bytes, encoding: bytes) -> bytes:
        """Decompress a body, counting its bytes as held. Raises RefusedError as `_body` does."""
        parts: list[bytes] = []
        size = 0
        try:
            for part in encodings.pieces(data, encoding):
                size += len(part)
                self._hold(size, len(part))
                parts.append(part)
                await asyncio.sleep(0)  # others' requests go on
        except BaseException:
            self.held -= size
            raise
        return b"".join(parts)

    def _hold(self, size: int, more: int) -> None:
        """Count more bytes of a body that has `size` by now. Raises RefusedError as `_body` does."""
        self.held += more
        if size > self.limits.body:
            raise RefusedError(413, f"a request has at most {self.limits.body} bytes; this one has more")
        if self.held > HELD * self.limits.body:
            raise RefusedError(503, "others' requests take the memory: ask again in a moment")

    async def _sent(self, incoming: _Incoming) -> bytes:
        """Read the body as it was sent; see `_body`."""
        most, headers = self.limits.body, incoming.headers
        length = headers.get(b"content-length", b"")
        if length.isdigit() and int(length[:20]) > most:
            raise RefusedError(413, f"a request has at most {most} bytes; this one has {shown(int(length[:20]))}")
        parts: list[bytes] = []
        size = 0
        try:
            while not incoming.is_complete:
                part = await incoming.next_bytes()
                size += len(part)
                self._hold(size, len(part))
                parts.append(part)
        except BaseException:
            self.held -= size
            raise
        return parts[0] if len(parts) == 1 else b"".join(parts)

    # What is told of the server and its models

    async def _about(self, request: Request) -> Response:
        return _json({"name": "subcompress", "version": __version__, "extensions": EXTENSIONS})

    async def _live(self, request: Request) -> Response:
        return Response()

    async def _ready(self, request: Request) -> Response:
        return Response(status_code=503 if self.draining else 200)

    async def _model_ready(self, request: Request) -> Response:
        await self.models.require_running(self._of(request))
        return Response()

    def _of(self, request: Request) -> Model:
        name, version = request.path_params["name"], request.path_params.get("version", protocol.VERSION)
        if version != protocol.VERSION:
            raise RefusedError(404, f"{shown(name)} has only version {protocol.VERSION}; got {shown(version)}")
        return self.models.find(name)

    async def _metadata(self, request: Request) -> Response:
        model = self._of(request)
        async with self.models.engine_of(model) as engine:
            told = {"inputs": ports(engine.inputs), "outputs": ports(engine.outputs)}
        packed = model.content.packed
        facts = {} if packed is None else packed.facts.to_json()
        platform = "subcompress" if packed is not None else "onnxruntime_onnx"
        said: dict[str, Any] = {"name": model.name, "versions": [protocol.VERSION], "platform": platform, **told}
        if facts:
            said["parameters"] = facts
        return _json(said)

    async def _config(self, request: Request) -> Response:
        model = self._of(request)
        async with self.models.engine_of(model) as engine:
            first = 1 if engine.batched else 0
            sides = [
                [{"name": p.name, "data_type": f"TYPE_{p.datatype}", "dims": list(p.shape[first:])} for p in side]
                for side in (engine.inputs, engine.outputs)
            ]
        said = {"name": model.name, "backend": "subcompress", "max_batch_size": self.models.most if first else 0}
        return _json({**said, "input": sides[0], "output": sides[1]})

    async def _stats(self, request: Request) -> Response:
        return _json({"model_stats": [_statistics(self._of(request))]})

    async def _all_stats(self, request: Request) -> Response:
        return _json({"model_stats": [_statistics(m) for m in self.models]})

    async def _index(self, request: Request) -> Response:
        body = await self._small(request)
        with suppress(TimeoutError):  # where somebody loads, what is known has to do
            async with asyncio.timeout(LOOK):
                await self.models.refresh()
                await asyncio.shield(self.models.start_trials())
        models = [m for m in self.models if m.ready] if body.get("ready") is True else list(self.models)
        return _json(
            [
                {
                    "name": m.name,
                    "version": protocol.VERSION,
                    "state": "READY" if m.ready else "LOADING" if m.loading or m.is_untried else "UNAVAILABLE",
                    "reason": "unloaded" if m.unloaded else m.reason,
                }
                for m in models
            ]
        )

    async def _load(self, request: Request) -> Response:
        body = await self._small(request)
        if body.get("parameters"):
            raise RefusedError(400, "a model is loaded from its file, without parameters; got some: leave them out")
        await self.models.load(request.path_params["name"])
        return Response()

    async def _unload(self, request: Request) -> Response:
        await self._small(request)
        self.models.unload(request.path_params["name"])
        return Response()

    async def _small(self, request: Request) -> dict[str, Any]:
        """Return the body of a repository request: an object, or nothing."""
        data = await self._body(_Incoming(dict(request.scope["headers"]), request.receive, self._awaited))
        self.held -= len(data)
        if not data.strip():
            return {}
        said = parse_json(data)
        if not isinstance(said, dict):
            raise RefusedError(400, "a request is a JSON object")
        return said

    async def _metrics(self, request: Request) -> Response:
        text = await self.metrics.exposition(self.models, self.waiting)
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
            raise RefusedError(400, f"limit is a number of models, and sort one of {', '.join(SORTS)}")
        queue = {"limit": self.limits.waiting, "waiting": self.waiting}
        told = await status(self.models, self.metrics, int(limit), sort, search.lower())
        return _json({**told, "state": "draining" if self.draining else "ready", "queue": queue})


def _statistics(model: Model) -> dict[str, Any]:
    """Return a model's statistics in the form of Triton's extension, as far as they are known."""
    good = model.requests - model.failed
    return {
        "name": model.name,
        "version": protocol.VERSION,
        "inference_count": model.examples,
        "execution_count": model.runs,
        "inference_stats": {
            "success": {"count": good, "ns": int(1e9 * model.seconds)},
            "fail": {"count": model.failed, "ns": 0},
        },
    }


def _name(path: str) -> str:
    """The name in /v2/models/NAME/infer or /v2/models/NAME/versions/1/infer. Raises RefusedError."""
    parts = path.split("/")[3:-1]
    if len(parts) == 3 and parts[1] == "versions":
        if parts[2] != protocol.VERSION:
            raise RefusedError(404, f"{shown(parts[0])} has only version {protocol.VERSION}; got {shown(parts[2])}")
        return parts[0]
    return "/".join(parts)


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
        404: f"nothing is at {what}: models are told by POST /v2/repository/index",
        405: f"{what} is not a request that is taken",
    }
    if request.url.path.endswith("/infer"):
        return _error(405, "inference is asked for by POST", {"allow": "POST"})
    return _error(e.status_code, text.get(e.status_code, e.detail), dict(e.headers or {}))


async def _bug(request: Request, e: Exception) -> Response:
    return _error(*_failed(e))


def _failed(e: Exception) -> tuple[int, str]:
    """Return the status and the text for a request that failed through no fault of its own: 503 if a retry may help."""
    if isinstance(e, SubcompressError):  # files that went away
        return 503, str(e)
    if memory_ran_out(e):
        return 503, "there is not enough memory for this request now: send less at once"
    return 500, f"this request failed ({type(e).__name__}): report it"
