"""subcompress serve."""

from __future__ import annotations

import os
import re
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from subcompress.errors import SubcompressError
from subcompress_cli.help import FIT, SERVER, Command, option
from subcompress_cli.options import PATH, say
from subcompress_cli.streams import answer

if TYPE_CHECKING:
    from subcompress.serving import running
    from subcompress.serving.workers import Place

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 1 << 10, "MI": 1 << 20, "GI": 1 << 30}
TOKEN = "SUBCOMPRESS_TOKEN"


class Size(click.ParamType):  # type: ignore[type-arg]
    """A number of bytes: 1000000, 64MB, 1GiB."""

    name = "bytes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number of bytes."""
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"(\d{1,15})(?: ?([KMG]I?)?B)?", value.strip().upper())
        if found is None or not (size := int(found[1]) * UNITS[found[2] or ""]):
            self.fail(f"{value!r} is not a number of bytes: give one such as 1000000, 64MB or 1GiB", param, ctx)
        return size


@click.command(cls=Command)
@click.argument("sources", nargs=-1, required=True, metavar="PATH...")
@option(
    "--model",
    "models",
    multiple=True,
    metavar="NAME",
    help="The network of files whose tensors do not show which network they hold. Can be repeated.",
    group=FIT,
)
@option(
    "--base",
    "bases",
    multiple=True,
    metavar="BASE",
    help="The base of fine-tunes, if it cannot be fetched from the Hub. Can be repeated.",
    group=FIT,
)
@option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="The address to listen on. 0.0.0.0 means all addresses of this machine.",
    group=SERVER,
)
@option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8000,
    show_default=True,
    help="The port to listen on. 0 means any free port.",
    group=SERVER,
)
@option(
    "--grpc-port",
    type=click.IntRange(0, 65535),
    metavar="N",
    help="Answer gRPC on this port too. 0: any free port.",
    group=SERVER,
)
@option(
    "--token-file",
    type=PATH,
    help=f"A file with the token that requests must carry, as in `Authorization: Bearer TOKEN`.  [default: ${TOKEN}]",
    group=SERVER,
)
@option(
    "--allow-origin",
    "origins",
    multiple=True,
    metavar="ORIGIN",
    help="Let web pages of this origin, such as https://app.example, use the server. Can be repeated.",
    group=SERVER,
)
@option(
    "--workers",
    type=click.IntRange(1, 256),
    default=1,
    show_default=True,
    metavar="N",
    help="Processes that answer, which share the port, --memory and --queue. One that dies is started again.",
    group=SERVER,
)
@option(
    "--raw-inputs",
    is_flag=True,
    help="Take tensors only: prepare no texts and no images, as the facts of a file would allow.",
    group=SERVER,
)
@option(
    "--device",
    type=click.Choice(["cpu", "cuda"]),
    default="cpu",
    show_default=True,
    help="Where networks run.",
    group=SERVER,
)
@option("--access-log", is_flag=True, help="Write a line about each request to stderr.", group=SERVER)
@option(
    "--memory",
    type=Size(),
    default="1GB",
    show_default=True,
    help="Memory for all rebuilt models together. Bases are not counted.",
    group=SERVER,
)
@option(
    "--max-batch",
    type=click.IntRange(1, 1 << 16),
    default=64,
    show_default=True,
    help="The most examples in a batch that is joined from waiting requests.",
    group=SERVER,
)
@option(
    "--queue",
    type=click.IntRange(1, 1 << 20),
    default=1024,
    show_default=True,
    help="The most requests that may wait at once. Further ones are answered with status 503.",
    group=SERVER,
)
@option(
    "--max-body", type=Size(), default="64MB", show_default=True, help="The largest body of a request.", group=SERVER
)
@option(
    "--graphs",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="The folder where traced graphs are kept for the next start.  [default: $SUBCOMPRESS_CACHE/graphs if that is "
    "set, otherwise ~/.cache/subcompress/graphs]",
    group=SERVER,
)
@option(
    "--keep-graphs/--trace-graphs",
    default=True,
    help="Keep traced graphs for the next start, or trace them again at each start.  [default: keep-graphs]",
    group=SERVER,
)
def serve(
    sources: tuple[str, ...],
    host: str,
    port: int,
    grpc_port: int | None,
    workers: int,
    max_batch: int,
    queue: int,
    max_body: int,
    token_file: Path | None,
    **given: Any,
) -> None:
    """Answer inference requests to many models over HTTP and gRPC.

    Each PATH is a packed file, a folder of packed files, hub:ORG/NAME[@REV] or an .onnx file. NAME=PATH gives a model
    another name. The server speaks the Open Inference Protocol v2. Metrics are at /metrics and a status page is at /. A
    model is rebuilt at its first request. When --memory is full, the least recently used models are dropped. Files are
    checked for changes every second. After Ctrl-C or SIGTERM, the server finishes the requests in progress and ends.
    """
    from subcompress.serving import running
    from subcompress.serving.addresses import is_loopback
    from subcompress.serving.service import Limits
    from subcompress.serving.workers import Place

    place = Place.of_this_process()
    _reserve_standard_streams()
    _raise_open_file_limit()
    token = _read_token(token_file)
    if place is None and token is None and not is_loopback(host):
        say(
            f"everybody who can reach {host} can use this server; to require a token, set ${TOKEN} or give --token-file"
        )
    if place is None and workers > 1:
        running.check(sources, given["bases"], given["origins"], grpc_port)
        _log_end(_supervise(workers, host, port, grpc_port))
        return
    given |= {"host": host, "port": port, "grpc_port": grpc_port, "token": token, "most": max_batch}
    _answer_requests(sources, place, limits=Limits(queue, max_body), **given)


def _answer_requests(
    sources: tuple[str, ...],
    place: Place | None,
    models: tuple[str, ...],
    graphs: Path | None,
    keep_graphs: bool,
    **given: Any,
) -> None:
    """Serve in this process, and report to the user, or from a worker to its supervisor."""
    from subcompress.onnx.graph_cache import GraphCache, default_folder
    from subcompress.serving import running
    from subcompress_cli.tracing import subprocess_tracer

    log = _log if place is None or not place.index else _ignore  # workers read the same files: one of them reports

    def ready(server: running.Running) -> None:
        served = server.models
        told = {"models": len(served), "unavailable": sum(not m.readable for m in served)}
        if place is None:
            _tell(server.address, server.grpc, told)
        else:
            place.tell(told)

    trace = subprocess_tracer(models, log, GraphCache(graphs or default_folder()) if keep_graphs else None)
    answered = running.serve(sources, trace, place=place, log=log, ready=ready, **given)
    if place is None:
        _log_end(answered)
    else:
        place.tell({"answered": answered})


def _supervise(workers: int, host: str, port: int, grpc_port: int | None) -> bool:
    """Run the command again for each worker; return whether all requests were answered."""
    from subcompress.serving.sockets import address_of
    from subcompress.serving.workers import Supervisor, require_shared_ports

    require_shared_ports()
    command = [sys.executable, *sys.orig_argv[1:]]

    def ready(port: int, grpc_port: int | None, told: dict[str, Any]) -> None:
        grpc = "" if grpc_port is None else address_of(host, grpc_port)
        _tell(f"http://{address_of(host, port)}", grpc, told)

    return Supervisor(workers, host, port, grpc_port, command, _log, ready).run()


def _tell(address: str, grpc: str, told: dict[str, Any]) -> None:
    """Print where requests are answered, and how many models there are."""
    models, unavailable = told["models"], told["unavailable"]
    rest = f", {unavailable} of them unavailable" if unavailable else ""
    place = f"{address} and grpc://{grpc}" if grpc else address
    with suppress(OSError):  # nobody reads it
        answer(f"{place}: {models} model{'s' if models != 1 else ''}{rest}")


def _log_end(answered: bool) -> None:
    _log("stopped after the last request was answered" if answered else "stopped, and some requests were not answered")


def _ignore(line: str) -> None:
    """Print nothing."""


def _log(line: str) -> None:
    """Print a line on stderr; ignore errors, because the server goes on when nobody reads it."""
    with suppress(OSError, ValueError):
        say(line)


def _raise_open_file_limit() -> None:
    """Raise the limit of open files to the maximum, because every connection is one."""
    with suppress(ImportError, OSError, ValueError):
        import resource

        _, maximum = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (maximum, maximum))


def _reserve_standard_streams() -> None:
    """Open closed standard streams on the null device, so that no socket gets their numbers and receives messages."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)


def _read_token(file: Path | None) -> str | None:
    """Return the token, None if none is required. Raises SubcompressError."""
    from subcompress.support.files import read_bytes

    text = os.environ.get(TOKEN) if file is None else read_bytes(file, 1 << 12).decode("utf-8", "replace").strip()
    if text is not None and (len(text) < 8 or not text.isascii() or not text.isprintable() or " " in text):
        raise SubcompressError("a token must have at least 8 letters, digits or signs, and no spaces: give another")
    return text
