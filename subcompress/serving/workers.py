"""Several worker processes that serve on one port, and the supervisor that starts them, and restarts those that die.

The supervisor opens no model and answers no request. It runs its own command for each worker, with a `Place` in the
environment. The kernel spreads connections over the workers (SO_REUSEPORT). A worker listens once it can answer. If
the supervisor dies, its workers end as after SIGTERM.
"""

from __future__ import annotations

import asyncio
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson

from subcompress.errors import SubcompressError, ToldError
from subcompress.serving.sockets import open_socket
from subcompress.support.threads import thread_count

VARIABLE = "SUBCOMPRESS_WORKER"
"""The environment variable that makes a process a worker. Its value is the worker's `Place`, in JSON."""

PROMETHEUS = "PROMETHEUS_MULTIPROC_DIR"
"""The environment variable that makes prometheus_client count in files of a folder that processes share."""

PATIENCE = 5.0
"""Seconds that another worker may take to answer."""

LOAD_PATIENCE = 600.0
"""Seconds that another worker may take to load a model."""

MOST_BYTES = 1 << 28
"""The most bytes of an answer of another worker."""

LONGEST_FOLDER = 95
"""The longest path of the folder with the workers' sockets, in bytes. The path of a socket has at most 107."""

SHORT_LIFE = 10.0
"""Seconds after which a worker that dies is restarted at once. If it lived for less, it is restarted after a pause."""

LONGEST_PAUSE = 30.0
"""The pause in seconds, which doubles with each short life, is at most this long."""

GRACE = 40.0
"""Seconds after which a worker that was told to end is killed: more than its requests may take."""


@dataclass(frozen=True)
class Place:
    """What a worker knows of its place among `count` workers.

    folder: the folder of their sockets; lifeline: the file descriptor of a socket to the supervisor.
    """

    index: int
    count: int
    folder: str
    port: int
    grpc_port: int | None
    lifeline: int

    @classmethod
    def of_this_process(cls) -> Place | None:
        """Return the place of this process, None if it is no worker."""
        text = os.environ.pop(VARIABLE, None)  # which is not for its children
        return None if text is None else cls(**json.loads(text))

    def share(self, of_all: int) -> int:
        """Return a worker's share of an amount that all workers have together."""
        return max(1, of_all // self.count)

    def tell(self, what: dict[str, Any]) -> None:
        """Send the supervisor a line of JSON."""
        with suppress(OSError):
            os.write(self.lifeline, json.dumps(what).encode() + b"\n")


Answer = Callable[[dict[str, Any]], Awaitable[Any]]


class Fleet:
    """The other workers, from the view of one of them. It asks them, and answers them."""

    def __init__(self, place: Place) -> None:
        self._place = place

    @property
    def metrics(self) -> str:
        """The folder of the counters that all workers share."""
        return str(Path(self._place.folder) / "metrics")

    def _socket(self, index: int) -> str:
        return str(Path(self._place.folder) / f"{index}.sock")

    @asynccontextmanager
    async def answering(self, answer: Answer, stop: Callable[[], object]) -> AsyncIterator[None]:
        """Answer the others within the block. stop: called when the supervisor is gone."""

        async def answer_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with suppress(OSError, ValueError):
                asked = json.loads(await reader.readline())
                writer.write(orjson.dumps(await answer(asked)) + b"\n")
                await writer.drain()
            writer.close()

        loop, lifeline = asyncio.get_running_loop(), self._place.lifeline

        def read_lifeline() -> None:
            with suppress(OSError):
                if os.read(lifeline, 1 << 10):
                    return
            loop.remove_reader(lifeline)
            stop()

        path = self._socket(self._place.index)
        Path(path).unlink(missing_ok=True)  # the file of a worker that died
        server = await asyncio.start_unix_server(answer_one, path, limit=MOST_BYTES)
        loop.add_reader(lifeline, read_lifeline)
        try:
            yield
        finally:
            loop.remove_reader(lifeline)
            server.close()
            Path(path).unlink(missing_ok=True)

    async def ask(self, patience: float = PATIENCE, **asked: Any) -> list[Any]:
        """Return what each of the others answers, None for one that does not."""
        others = [i for i in range(self._place.count) if i != self._place.index]
        return list(await asyncio.gather(*(self._ask(i, asked, patience) for i in others)))

    async def _ask(self, index: int, asked: dict[str, Any], patience: float) -> Any:
        try:
            async with asyncio.timeout(patience):
                reader, writer = await asyncio.open_unix_connection(self._socket(index), limit=MOST_BYTES)
                try:
                    writer.write(json.dumps(asked).encode() + b"\n")
                    return orjson.loads(await reader.readline())
                finally:
                    writer.close()
        except (OSError, ValueError, TimeoutError):
            return None


@dataclass
class _Worker:
    """A worker's process. told: its messages so far: `models` once it listens, `answered` when it has ended."""

    process: subprocess.Popen[bytes]
    line: socket.socket
    began: float
    told: dict[str, Any] = field(default_factory=dict)
    unread: bytes = b""

    def read(self) -> None:
        """Read the messages that it has sent."""
        with suppress(OSError):
            self.unread += self.line.recv(1 << 16)
        *lines, self.unread = self.unread.split(b"\n")
        for line in lines:
            self.told |= json.loads(line)


class Supervisor:
    """Starts workers and keeps them alive.

    command: runs one; log: for lines; ready: called once all are ready, with the ports and what the first worker told.
    """

    def __init__(
        self,
        count: int,
        host: str,
        port: int,
        grpc_port: int | None,
        command: Sequence[str],
        log: Callable[[str], None],
        ready: Callable[[int, int | None, dict[str, Any]], None],
    ) -> None:
        self._count, self._host, self._command, self._log, self._ready = count, host, list(command), log, ready
        self._ports = port, grpc_port
        self._workers: dict[int, _Worker] = {}
        self._due: dict[int, float] = {}  # when a worker is started again
        self._pauses: dict[int, float] = {}  # seconds before the last restart of each worker
        self._signals = 0
        self._was_ready = False

    def run(self) -> bool:
        """Serve until SIGTERM or Ctrl-C; return whether all requests were answered.

        Raises SubcompressError if the ports are taken, ToldError where a worker cannot start and has said why.
        """
        with ExitStack() as stack:
            self._folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="subcompress-"))
            if len(self._folder) > LONGEST_FOLDER:
                raise SubcompressError(
                    f"the path in $TMPDIR is too long for sockets ({self._folder}): give a shorter one"
                )
            (Path(self._folder) / "metrics").mkdir()
            port, grpc_port = self._ports
            port = stack.enter_context(_reserved(self._host, port, "--port"))
            if grpc_port is not None:
                grpc_port = stack.enter_context(_reserved(self._host, grpc_port, "--grpc-port"))
            self._ports = port, grpc_port
            stack.enter_context(self._catching_signals())
            self._due = {0: 0.0}  # alone at first, so that the others find the graphs that it has traced
            try:
                while not self._signals:
                    self._start_due()
                    self._listen(0.1)
                    self._replace_dead()
                    self._report()
            finally:
                answered = self._end()
            return answered

    @contextmanager
    def _catching_signals(self) -> Iterator[None]:
        def caught(number: int, frame: Any) -> None:
            self._signals += 1
            for worker in self._workers.values():
                with suppress(OSError):
                    worker.process.send_signal(signal.SIGTERM)

        before = {number: signal.signal(number, caught) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _start_due(self) -> None:
        for index, due in list(self._due.items()):
            if time.monotonic() >= due and not self._signals:
                del self._due[index]
                self._workers[index] = self._started(index)

    def _started(self, index: int) -> _Worker:
        ours, theirs = socket.socketpair()
        place = Place(index, self._count, self._folder, *self._ports, theirs.fileno())
        env = os.environ | {
            VARIABLE: json.dumps(asdict(place)),
            PROMETHEUS: str(Path(self._folder) / "metrics"),
            "OMP_NUM_THREADS": str(place.share(thread_count())),
        }
        with theirs:
            # A session of its own keeps Ctrl-C, which is for the supervisor, from the worker.
            process = subprocess.Popen(self._command, env=env, pass_fds=[theirs.fileno()], start_new_session=True)
        ours.setblocking(False)
        return _Worker(process, ours, time.monotonic())

    def _listen(self, seconds: float) -> None:
        """Read what workers tell, for so long at most."""
        with selectors.DefaultSelector() as selector:
            for worker in self._workers.values():
                selector.register(worker.line, selectors.EVENT_READ, worker)
            for key, _ in selector.select(seconds):
                key.data.read()
        time.sleep(0.01)  # a line whose worker has ended is readable for ever

    def _replace_dead(self) -> None:
        for index, worker in list(self._workers.items()):
            if (status := worker.process.poll()) is None:
                continue
            worker.read()
            worker.line.close()
            del self._workers[index]
            if self._signals:
                return
            if not self._was_ready and "models" not in worker.told:
                raise ToldError(f"worker {index} could not start, for the reason above")
            for path in Path(self._folder, "metrics").glob(f"gauge_live*_{worker.process.pid}.db"):
                path.unlink(missing_ok=True)
            lived = time.monotonic() - worker.began
            pause = 0.0 if lived > SHORT_LIFE else min(LONGEST_PAUSE, 2 * self._pauses.get(index, 0.0) or 0.5)
            self._pauses[index], self._due[index] = pause, time.monotonic() + pause
            how = f"signal {-status}" if status < 0 else f"exit status {status}"
            self._log(f"worker {index} ended ({how}) and is started again")

    def _report(self) -> None:
        """Start the others once the first is ready, and tell when all are."""
        if self._was_ready or "models" not in (self._workers[0].told if 0 in self._workers else {}):
            return
        for index in range(1, self._count):
            if index not in self._workers and index not in self._due:
                self._due[index] = 0.0
        if len(self._workers) == self._count and all("models" in w.told for w in self._workers.values()):
            self._was_ready = True
            port, grpc_port = self._ports
            self._ready(port, grpc_port, self._workers[0].told)

    def _end(self) -> bool:
        """End all workers; return whether they answered all requests."""
        for worker in self._workers.values():
            if not self._signals:
                with suppress(OSError):
                    worker.process.send_signal(signal.SIGTERM)
        until, answered = time.monotonic() + GRACE, True
        for worker in self._workers.values():
            try:
                worker.process.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()
            worker.read()
            worker.line.close()
            answered &= worker.told.get("answered", False) or "models" not in worker.told
        return answered


@contextmanager
def _reserved(host: str, port: int, option: str) -> Iterator[int]:
    """Hold a port that workers listen on within the block. Raises SubcompressError if it is taken."""
    with open_socket(host, port, option=option) as alone:  # another server that shares ports would let us in
        found = int(alone.getsockname()[1])
    with open_socket(host, found, shared=True):
        yield found


def require_shared_ports() -> None:
    """Raise SubcompressError if processes cannot listen on one port."""
    if not sys.platform.startswith("linux"):
        raise SubcompressError(f"--workers needs Linux, where processes can share a port; this is {sys.platform}")
