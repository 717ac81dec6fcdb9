"""subcompress serve."""

import os
import re
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from subcompress.errors import SubcompressError
from subcompress.support.files import read_bytes
from subcompress_cli.options import say
from subcompress_cli.streams import answer
from subcompress_cli.tracing import traced_beside

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 1 << 10, "MI": 1 << 20, "GI": 1 << 30}
TOKEN = "SUBCOMPRESS_TOKEN"


class Size(click.ParamType):  # type: ignore[type-arg]
    """Bytes: 1000000, 64MB, 1GiB."""

    name = "bytes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Bytes as a number."""
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"(\d{1,15})(?: ?([KMG]I?)?B)?", value.strip().upper())
        if found is None or not (size := int(found[1]) * UNITS[found[2] or ""]):
            self.fail(f"{value!r} is no size: give bytes, or 64MB, 1GiB", param, ctx)
        return size


@click.command()
@click.argument("sources", nargs=-1, required=True, metavar="PATH...")
@click.option("--model", "models", multiple=True, metavar="NAME", help="A network of files that none is known for.")
@click.option("--base", "bases", multiple=True, metavar="BASE", help="What files stand on, where the Hub has it not.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 is all.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 is any that is free.")
@click.option(
    "--memory", type=Size(), default="1GB", show_default=True, help="Of rebuilt models together, bases aside."
)
@click.option("--max-batch", type=click.IntRange(1, 1 << 16), default=64, show_default=True, help="Examples of a run.")
@click.option("--queue", type=click.IntRange(1, 1 << 20), default=1024, show_default=True, help="Requests at once.")
@click.option("--max-body", type=Size(), default="64MB", show_default=True, help="Of a request.")
@click.option("--token-file", type=click.Path(path_type=Path), help=f"What requests must bear; or ${TOKEN}.")
@click.option("--allow-origin", "origins", multiple=True, metavar="ORIGIN", help="Pages that may use it; may repeat.")
def serve(
    sources: tuple[str, ...],
    models: tuple[str, ...],
    bases: tuple[str, ...],
    host: str,
    port: int,
    memory: int,
    max_batch: int,
    queue: int,
    max_body: int,
    token_file: Path | None,
    origins: tuple[str, ...],
) -> None:
    """Answer inference requests to the models of PATH...: packed files, folders of them, hub:ORG/NAME, .onnx graphs;
    each also as NAME=PATH.

    Open Inference Protocol v2 over HTTP, metrics at /metrics, a page at /. A model is rebuilt at its first request;
    those used most recently stay. Files are looked at again every second. SIGTERM and Ctrl-C let requests end.
    """
    from subcompress.serving import running
    from subcompress.serving.addresses import is_loopback
    from subcompress.serving.app import Limits

    _hold_the_first()
    _open_many()
    token = _token(token_file)
    if token is None and not is_loopback(host):
        say(f"anybody who reaches {host} may use this server: ${TOKEN} or --token-file asks for a token")

    def ready(running: running.Running) -> None:
        models = running.models
        unavailable = sum(not m.readable for m in models)
        rest = f", {unavailable} of them unavailable" if unavailable else ""
        with suppress(OSError):  # nobody reads it
            answer(f"{running.address}: {len(models)} model{'s' if len(models) != 1 else ''}{rest}")

    answered = running.serve(
        sources,
        traced_beside(models, _tell),
        bases=bases,
        host=host,
        port=port,
        memory=memory,
        most=max_batch,
        limits=Limits(queue, max_body),
        token=token,
        origins=origins,
        say=_tell,
        ready=ready,
    )
    _tell("ended, after the last request was answered" if answered else "ended, and some requests were not answered")


def _tell(line: str) -> None:
    """`say`, also where nobody listens any more: a server goes on."""
    with suppress(OSError, ValueError):
        say(line)


def _open_many() -> None:
    """Connections are files: as many as the system lets this process have."""
    with suppress(ImportError, OSError, ValueError):
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _hold_the_first() -> None:
    """Where stdin, stdout or stderr is closed, a socket would take its number, and what is said would go there."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)


def _token(file: Path | None) -> str | None:
    """The token, None where none is asked for. Raises SubcompressError."""
    text = os.environ.get(TOKEN) if file is None else read_bytes(file, 1 << 12).decode("utf-8", "replace").strip()
    if text is not None and (len(text) < 8 or not text.isascii() or not text.isprintable() or " " in text):
        raise SubcompressError("a token is 8 or more letters, digits and signs without spaces: give another")
    return text
