"""The real client in a process of its own, which a test drives by lines of JSON: huggingface_hub reads where the Hub is
when it is imported, and the process of the tests is none of its users.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DRIVER = Path(__file__)


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    exit_code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        """What --json printed."""
        return json.loads(self.stdout)

    @property
    def error(self) -> str:
        """The one line of a mistake, after what was said meanwhile."""
        assert self.exit_code == 1, (self.stdout, self.stderr)
        lines = self.stderr.strip().splitlines()
        assert lines[-1].startswith("error: "), self.stderr
        assert "Traceback" not in self.stderr
        assert "hf_writer" not in self.stderr
        return lines[-1]


class Client:
    """A user with a cache: `client("push", file, "me/net")` is that command. token, cache, offline and xet hold for the
    commands that follow. traces: where traces of networks are kept."""

    def __init__(self, url: str, home: Path, traces: Path | None = None) -> None:
        self.home, self.token, self.offline, self.xet = home, "hf_writer", False, False
        self.cache = home / "hub"
        clean = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
        env = clean | {"HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1"}
        env["TRACES"] = str(traces or "")
        self.process = subprocess.Popen(
            [sys.executable, str(DRIVER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
        )

    def __call__(self, *args: object) -> Done:
        """Run a command of the command line there."""
        self.begin(*args)
        return self.end()

    def python(self, code: str) -> Any:
        """Run Python there; what it leaves in `result`."""
        self._send({"code": code})
        done = self.end()
        assert done.exit_code == 0, done.stderr
        return json.loads(done.stdout)

    def begin(self, *args: object) -> None:
        """Start a command, and do not wait."""
        self._send({"args": [str(a) for a in args]})

    def end(self) -> Done:
        """Wait for what was started."""
        assert self.process.stdout is not None
        return Done(**json.loads(self.process.stdout.readline()))

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(20)
        self.process.stdout.close()

    def _send(self, command: dict[str, Any]) -> None:
        command |= {"token": self.token, "cache": str(self.cache), "offline": self.offline, "xet": self.xet}
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()


def serve() -> None:
    """The other end: a command a line, its outcome a line."""
    from click.testing import CliRunner
    from huggingface_hub import constants

    from subcompress.remote import transport
    from subcompress_cli import main

    transport.WAITS = (0.05, 0.1, 0.2)
    sleep = time.sleep
    time.sleep = lambda seconds: sleep(
        min(seconds, 0.05)
    )  # nor does huggingface_hub wait a second before it asks again
    if folder := os.environ["TRACES"]:
        _remember(Path(folder))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever prints by itself is no answer
    for line in sys.stdin:
        asked = json.loads(line)
        os.environ["HF_TOKEN"] = asked["token"]
        constants.HF_HUB_CACHE = asked["cache"]
        constants.HF_HUB_OFFLINE = asked["offline"]
        constants.HF_HUB_DISABLE_XET = not asked["xet"]
        if "code" in asked:
            done = _python(asked["code"])
        else:
            result = CliRunner().invoke(main, asked["args"], catch_exceptions=True)
            done = Done(result.exit_code, result.stdout, result.stderr)
            if result.exception is not None and not isinstance(result.exception, SystemExit):
                done = Done(99, result.stdout, "".join(traceback.format_exception(result.exception)))
        answers.write(json.dumps(done.__dict__) + "\n")
        answers.flush()


def _remember(folder: Path) -> None:
    from traces import remembered

    from subcompress.onnx import tracing

    tracing._trace = remembered(folder, tracing._trace)


def _python(code: str) -> Done:
    names: dict[str, Any] = {}
    try:
        exec(code, names)
        return Done(0, json.dumps(names.get("result")), "")
    except BaseException:
        return Done(1, "", traceback.format_exc())


if __name__ == "__main__":
    serve()
