"""Valid and invalid requests, mixed, from several threads: what `serving.py soak` runs in a process of its own.

    python benchmarks/soak.py < plan.json          # one JSON object: the answers by kind of request

Three requests in four are valid: most to models, some for what the server tells of itself, some to models whose files
`serving.py` spoils, deletes and restores meanwhile. The invalid kinds, what each is answered with if the server is
right, and how it is made are the table KINDS. An answer of 4xx to a request that was whole is JSON with one line in
`error`. With a `grpc_port` in the plan, one request in three is a call over gRPC, of soak_grpc.py.
"""

from __future__ import annotations

import base64
import json
import random
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from load import Answer, near, request

CUT = "cut"
"""In place of a status: the server closed the connection without an answer (or we did, where that was the request)."""
OVERLOAD = "503"
PATIENCE = 10
"""Seconds without a byte after which a request counts as not answered."""
NAME, PATH, ZEROS = "lenet-0", "/v2/models/lenet-0/infer", [0.0] * 784


def tensor(**changed: Any) -> dict[str, Any]:
    """The description of a valid input of zeros, with some of its fields changed."""
    return {"name": "input", "shape": [1, 1, 28, 28], "datatype": "FP32", "data": ZEROS} | changed


def plain(*inputs: dict[str, Any], path: str = PATH, **fields: Any) -> bytes:
    """An infer request in JSON, invalid or not."""
    return request(path, json.dumps({"inputs": list(inputs), **fields}).encode(), {"Content-Type": "application/json"})


def binary(size: Any, data: bytes, header: str | None = None, shape: tuple[int, ...] = (1, 1, 28, 28)) -> bytes:
    """An infer request with `data` behind its JSON, of which it says that it is `size` bytes."""
    described = tensor(shape=shape, parameters={"binary_data_size": size})
    del described["data"]
    head = json.dumps({"inputs": [described]}).encode()
    length = str(len(head)) if header is None else header
    return request(PATH, head + data, {"Inference-Header-Content-Length": length})


def raw(line: str, *headers: str, body: bytes = b"") -> bytes:
    return "\r\n".join([line, "Host: 127.0.0.1", *headers, "", ""]).encode("latin-1") + body


def chunks(total: int) -> bytes:
    """A body of `total` bytes without a declared length."""
    piece = b"%x\r\n" % (1 << 16) + b" " * (1 << 16) + b"\r\n"
    return raw(f"POST {PATH} HTTP/1.1", "Transfer-Encoding: chunked") + piece * (total >> 16) + b"0\r\n\r\n"


FLOATS = bytes(4 * 784)
NANS = b"\x00\x00\xc0\x7f" * 784
BAD, ABSENT = ("400",), ("404",)
ODD = ("400", "404", "405", CUT)
CHANGING, GET = "valid, of a model whose file changes", "valid, GET {}"
GETS = ("/v2/health/live", "/v2/health/ready", "/v2", "/v2/models/lenet-0", "/v2/models/lenet-0/ready", "/metrics", "/")
VALID: dict[str, tuple[str, ...]] = {
    "valid, JSON": ("200",), "valid, binary": ("200",), CHANGING: ("200", "404"),
    **{GET.format(path): ("200",) for path in GETS},
}  # fmt: skip
"""Kinds of valid requests, and what they are answered with; any request may be answered 503."""

Kind = tuple[tuple[str, ...], Callable[[int], bytes]]
"""What it is answered with, and the request; it is given the server's limit on a body."""

KINDS: dict[str, Kind] = {
    "wrong input name": (BAD, lambda _: plain(tensor(name="x"))),
    "no input": (BAD, lambda _: plain()),
    "the same input twice": (BAD, lambda _: plain(tensor(), tensor())),
    "an input too many": (BAD, lambda _: plain(tensor(), tensor(name="other"))),
    "unknown output asked for": (BAD, lambda _: plain(tensor(), outputs=[{"name": "logits"}])),
    "wrong rank": (BAD, lambda _: plain(tensor(shape=[784]))),
    "wrong shape": (BAD, lambda _: plain(tensor(shape=[1, 1, 14, 56]))),
    "no batch": (BAD, lambda _: plain(tensor(shape=[0, 1, 28, 28], data=[]))),
    "negative shape": (BAD, lambda _: plain(tensor(shape=[-1, -1, 28, 28]))),
    "shape of texts": (BAD, lambda _: plain(tensor(shape=["1", "1", "28", "28"]))),
    "shape and data disagree": (BAD, lambda _: plain(tensor(data=ZEROS[:700]))),
    "wrong dtype": (BAD, lambda _: plain(tensor(datatype="INT64", data=[0] * 784))),
    "unknown dtype": (BAD, lambda _: plain(tensor(datatype="FP99"))),
    "texts as data": (BAD, lambda _: plain(tensor(data=["0"] * 784))),
    "data of objects": (BAD, lambda _: plain(tensor(data=[{}] * 784))),
    "data too large for a float": (("200", "400"), lambda _: plain(tensor(data=[1e39] * 784))),
    "integers of 200 digits": (("200", "400"), lambda _: plain(tensor(data=[10**200] * 784))),
    "no data": (BAD, lambda _: plain({k: v for k, v in tensor().items() if k != "data"})),
    "NaN in JSON": (BAD, lambda _: plain(tensor(data=[float("nan")] * 784))),
    "NaN as binary data": (("200", "400"), lambda _: binary(3136, NANS)),
    "huge shape": (BAD, lambda _: plain(tensor(shape=[10**9, 1, 28, 28]))),
    "shape beyond 64 bits": (BAD, lambda _: plain(tensor(shape=[2**62, 2**62, 28, 28]))),
    "huge binary size": (BAD, lambda _: binary(2**60, FLOATS)),
    "huge shape, binary": (BAD, lambda _: binary(3136, FLOATS, shape=(10**9, 1, 28, 28))),
    "negative binary size": (BAD, lambda _: binary(-3136, FLOATS)),
    "binary size is a text": (BAD, lambda _: binary("3136", FLOATS)),
    "binary size and shape disagree": (BAD, lambda _: binary(3000, FLOATS[:3000])),
    "binary data too short": (BAD, lambda _: binary(3136, FLOATS[:100])),
    "binary data left over": (BAD, lambda _: binary(3136, FLOATS + b"more")),
    "header length beyond the body": (BAD, lambda _: binary(3136, FLOATS, header="999999")),
    "header length negative": (BAD, lambda _: binary(3136, FLOATS, header="-1")),
    "header length of 5,000 digits": (BAD, lambda _: binary(3136, FLOATS, header="9" * 5000)),
    "header length is a text": (BAD, lambda _: binary(3136, FLOATS, header="many")),
    "invalid JSON": (BAD, lambda _: request(PATH, b'{"inputs": [')),
    "not UTF-8": (BAD, lambda _: request(PATH, b'{"inputs": "\xff\xfe"}')),
    "JSON 100,000 deep": (BAD, lambda _: request(PATH, b"[" * 100_000)),
    "JSON of another kind": (BAD, lambda _: request(PATH, b"[1, 2]")),
    "inputs of another kind": (BAD, lambda _: request(PATH, b'{"inputs": {"input": 3}}')),
    "empty body": (BAD, lambda _: request(PATH, b"")),
    "said to be gzip": (("400", "415"), lambda _: request(PATH, b"\x1f\x8b" + FLOATS, {"Content-Encoding": "gzip"})),
    "unknown model": (ABSENT, lambda _: plain(tensor(), path="/v2/models/nobody/infer")),
    "unknown version": (("400", "404"), lambda _: plain(tensor(), path=f"/v2/models/{NAME}/versions/7/infer")),
    "path trick": (ODD, lambda _: plain(tensor(), path="/v2/models/../../etc/passwd/infer")),
    "path trick, escaped": (ODD, lambda _: plain(tensor(), path="/v2/models/..%2f..%2fetc%2fpasswd/infer")),
    "path trick, zero byte": (ODD, lambda _: plain(tensor(), path="/v2/models/lenet-0%00.safetensors/infer")),
    "path trick, bad escape": (ODD, lambda _: plain(tensor(), path="/v2/models/%ff%fe%zz/infer")),
    "a long name": ((*ODD, "414", "431"), lambda _: plain(tensor(), path=f"/v2/models/{'n' * 20_000}/infer")),
    "load of a path": (("400", "404"), lambda _: request("/v2/repository/models/..%2f..%2fetc%2fpasswd/load", b"{}")),
    "unload of nothing": (("400", "404"), lambda _: request("/v2/repository/models/nobody/unload", b"{}")),
    "GET instead of POST": (("405", "404"), lambda _: raw(f"GET {PATH} HTTP/1.1")),
    "unknown method": (("400", "404", "405", "501", CUT), lambda _: raw(f"BREW {PATH} HTTP/1.1", "Content-Length: 0")),
    "body over the limit, announced": (
        ("413", CUT), lambda n: raw(f"POST {PATH} HTTP/1.1", f"Content-Length: {n + 1}", "Expect: 100-continue")
    ),
    "body over the limit, sent": (("413", CUT), lambda n: request(PATH, b" " * (n + (1 << 17)))),
    "body over the limit, in chunks": (("413", CUT), lambda n: chunks(n + (1 << 17))),
    "1 MB of headers": (("400", "431", CUT), lambda _: raw("GET /v2 HTTP/1.1", f"X: {'x' * 1_000_000}")),
    "not HTTP": (("400", CUT), lambda _: bytes(range(256)) * 8),
    "TLS hello": (("400", CUT), lambda _: b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500)),
    "cut within the headers": ((CUT,), lambda _: raw(f"POST {PATH} HTTP/1.1", "Content-Length: 5000")[:-3]),
    "cut within the body": ((CUT,), lambda _: raw(f"POST {PATH} HTTP/1.1", "Content-Length: 5000", body=b"{" * 100)),
    "cut before the answer": ((CUT,), lambda _: binary(3136, FLOATS)),
}  # fmt: skip

NO_HTTP = ("unknown method", "1 MB of headers", "not HTTP", "TLS hello")
"""Kinds that need not get as far as to an answer in JSON."""

UNFINISHED = ("body over the limit, announced",)
"""Kinds after which the connection is of no use: the rest of the body would have to come first."""


class Client(threading.Thread):
    """One of the clients: a connection, opened again where the server or a request closed it."""

    def __init__(self, plan: dict[str, Any], number: int) -> None:
        super().__init__(daemon=True)
        self.plan, self.random = plan, random.Random(number)
        self.valid = [
            (kind, base64.b64decode(made["body"]), made["headers"]) for kind, made in sorted(plan["valid"].items())
        ]
        self.bad = [(name, make(plan["max_body"])) for name, (_, make) in KINDS.items()]
        self.answers: dict[str, Counter[str]] = {}
        self.unexpected: Counter[str] = Counter()
        self.said: dict[str, str] = {}
        self.times: list[float] = []
        self.socket: socket.socket | None = None
        self.failure: str | None = None
        self.calls: Any = None
        if plan.get("grpc_port"):
            import soak_grpc

            self.grpc, self.calls = soak_grpc, soak_grpc.Calls(plan["grpc_port"])

    def run(self) -> None:
        ends = time.perf_counter() + self.plan["seconds"]
        try:
            while time.perf_counter() < ends:
                drawn = self.random.random()
                if self.calls is not None and self.random.random() < 1 / 3:
                    self._call(drawn)
                elif drawn < 0.05:
                    path = self.random.choice(GETS)
                    status, answer = self._ask(raw(f"GET {path} HTTP/1.1"))
                    self._note(GET.format(path), status, status in ("200", OVERLOAD), "", answer)
                elif drawn < 0.1:
                    self._valid(self.plan["changing"], CHANGING)
                elif drawn < 0.75:
                    self._valid(self.plan["models"])
                else:
                    self._invalid()
        except Exception as e:
            self.failure = f"{type(e).__name__}: {e}"

    def _valid(self, models: dict[str, list[list[float]]], kind: str = "") -> None:
        """A request to one of the models, each with the answers that are right."""
        encoding, body, headers = self.random.choice(self.valid)
        name, expected = self.random.choice(list(models.items()))
        kind = kind or f"valid, {encoding}"
        began = time.perf_counter()
        status, answer = self._ask(request(f"/v2/models/{name}/infer", body, headers))
        if status == "200":
            self.times.append(1000 * (time.perf_counter() - began))
        wrong = status == "200" and not any(map(answer.answers, expected))
        right = status in (*VALID[kind], OVERLOAD) and not wrong
        self._note(kind, status, right, "a wrong answer" * wrong, answer)

    def _call(self, drawn: float) -> None:
        """A call over gRPC."""
        if drawn < 0.05:
            method, data = self.random.choice(list(self.grpc.ASKED.items()))
            status, said = self.calls.call(method, data)
            kind = self.grpc.kind_of(method)
            self._note_call(kind, status, self.grpc.EXPECTED[kind], said)
        elif drawn < 0.75:
            kind = self.grpc.CHANGING if drawn < 0.1 else self.grpc.VALID
            models = self.plan["changing" if drawn < 0.1 else "models"]
            name, expected = self.random.choice(list(models.items()))
            status, said = self.calls.call("ModelInfer", self.grpc.valid(name, base64.b64decode(self.plan["image"])))
            found = self.grpc.outputs(said) if status == "OK" else []
            wrong = status == "OK" and not any(near(found, row) for row in expected)
            self._note_call(kind, "a wrong answer" if wrong else status, self.grpc.EXPECTED[kind], said)
        else:
            kind, (expected, method, make) = self.random.choice(list(self.grpc.KINDS.items()))
            status, said = self.calls.call(method, make(self.plan["max_body"]), kind == self.grpc.GIVEN_UP)
            self._note_call(kind, status, expected, said)

    def _note_call(self, kind: str, status: str, expected: tuple[str, ...], said: bytes) -> None:
        answer = Answer()
        answer.body = said if status != "OK" else b""
        right = status in (*expected, self.grpc.OVERLOAD) and b"\n" not in answer.body
        self._note(kind, status, right, "", answer)

    def _invalid(self) -> None:
        name, data = self.random.choice(self.bad)
        expected = KINDS[name][0]
        if name.startswith("cut"):
            with suppress(ConnectionError):  # the server may have closed it meanwhile
                self._connection().sendall(data)
            self._close()
            self._note(name, CUT, True, "", None)
            return
        status, answer = self._ask(data)
        if name in UNFINISHED:
            self._close()
        why = ""
        if status[0] == "4" and name not in NO_HTTP:
            why = explained(answer.body)
        elif status == "200":
            why = strict(answer)
        self._note(name, status, status in (*expected, OVERLOAD) and not why, why, answer)

    def _connection(self) -> socket.socket:
        if self.socket is None:
            self.socket = socket.create_connection(("127.0.0.1", self.plan["port"]), timeout=PATIENCE)
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self.socket

    def _close(self) -> None:
        if self.socket is not None:
            self.socket.close()
        self.socket = None

    def _ask(self, data: bytes) -> tuple[str, Answer]:
        """Send a request and read its answer: the status, or CUT where there was none."""
        connection, answer = self._connection(), Answer()
        try:
            with suppress(ConnectionError):  # it may have answered all the same
                connection.sendall(data)
            while received := connection.recv(1 << 18):
                if answer.feed(received):
                    if answer.closes:
                        self._close()
                    return str(answer.status), answer
        except ConnectionError:
            pass
        except TimeoutError:
            self._close()
            return f"none in {PATIENCE} s", answer
        except ValueError:
            self._close()
            return "no HTTP", answer
        self._close()
        # An answer without a length, which the end of the connection ends.
        return (str(answer.status) if answer.status else CUT), answer

    def _note(self, kind: str, status: str, right: bool, why: str, answer: Answer | None) -> None:
        self.answers.setdefault(kind, Counter())[status] += 1
        if not right:
            self.unexpected[kind] += 1
            said = answer.body[:120].decode(errors="replace") if answer is not None else ""
            self.said.setdefault(kind, why or f"{status}: {said}".replace("|", "/").replace("\n", " "))


def strict(answer: Answer) -> str:
    """What is wrong with the JSON of a 200: empty if it is JSON that any parser reads, NaN not among it."""
    odd: list[str] = []
    try:
        json.loads(
            answer.body[: int(answer.header(b"inference-header-content-length") or len(answer.body))],
            parse_constant=odd.append,
        )
    except ValueError as e:
        return f"the answer is no JSON: {e}"
    return f"{odd[0]} in the JSON of the answer" if odd else ""


def explained(body: bytes) -> str:
    """What is wrong with the body of a 4xx: empty if it is JSON with one line in `error`."""
    try:
        error = json.loads(body)["error"]
    except (ValueError, KeyError, TypeError):
        return f"the body is no error in JSON: {body[:80].decode(errors='replace')}".replace("|", "/")
    return "" if isinstance(error, str) and error and "\n" not in error else "the error is not one line"


def main() -> None:
    plan = json.load(sys.stdin)
    sys.setswitchinterval(0.001)
    began = time.perf_counter()
    clients = [Client(plan, i) for i in range(plan["clients"])]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    if failures := [c.failure for c in clients if c.failure]:
        raise SystemExit(f"{len(failures)} of {len(clients)} clients ended: {failures[0]}")
    kinds: dict[str, dict[str, Any]] = {}
    known = VALID | {k: statuses for k, (statuses, _) in KINDS.items()}
    if clients[0].calls is not None:
        known |= clients[0].grpc.EXPECTED
    for kind, expected in known.items():
        answers: Counter[str] = sum((c.answers.get(kind, Counter()) for c in clients), Counter())
        said = next((c.said[kind] for c in clients if kind in c.said), "")
        unexpected = sum(c.unexpected[kind] for c in clients)
        kinds[kind] = {"answers": answers, "expected": expected, "unexpected": unexpected, "said": said}
    times = sorted(t for c in clients for t in c.times) or [float("nan")]
    found = {
        "kinds": kinds,
        "total": sum(sum(k["answers"].values()) for k in kinds.values()),
        "seconds": time.perf_counter() - began,
        "p50": times[len(times) // 2],
        "p99": times[len(times) * 99 // 100],
        "max": times[-1],
    }
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
