"""A page in Chromium, driven through the pipe of the DevTools protocol: a browser and the standard library suffice."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-extensions",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--remote-debugging-pipe",
)
PATIENCE = 20  # seconds without a word from the browser


def found() -> str | None:
    """The browser's path: that of CHROME, or the first there is."""
    return os.environ.get("CHROME") or next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def opened(chrome: str, profile: Path, width: int = 1200, height: int = 800, scheme: str = "light") -> Iterator[Page]:
    """One tab in a browser of its own, which ends with the context."""
    theirs_in, out = os.pipe()
    back, theirs_out = os.pipe()
    # The browser reads its commands from descriptor 3 and answers on 4; the shell puts the pipes there.
    line = f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}'
    process = subprocess.Popen(
        ["bash", "-c", line, "bash", chrome, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
        pass_fds=(theirs_in, theirs_out),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(theirs_in)
    os.close(theirs_out)
    try:
        page = Page(back, out)
        page.size(width, height)
        page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        yield page
    finally:
        os.close(out)  # the browser ends with its pipe
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        os.close(back)


class Page:
    """A tab. `errors` holds what its scripts threw and what the browser refused, a breach of the CSP among it."""

    def __init__(self, back: int, out: int) -> None:
        self.back, self.out = back, out
        self.held, self.count, self.session = b"", 0, ""
        self.errors: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self.held:
            if not select.select([self.back], [], [], PATIENCE)[0]:
                raise TimeoutError(f"the browser has said nothing for {PATIENCE} s")
            read = os.read(self.back, 1 << 16)
            if not read:
                raise ConnectionError("the browser is gone")
            self.held += read
        message, self.held = self.held.split(b"\0", 1)
        found = json.loads(message)
        method, params = found.get("method"), found.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.errors.append(params["exceptionDetails"]["exception"].get("description", "an exception"))
        elif method == "Log.entryAdded" and params["entry"]["source"] != "network":
            self.errors.append(params["entry"]["text"])
        elif method == "Page.javascriptDialogOpening":  # nothing goes on before it is closed
            self.errors.append(f"{params['type']}: {params['message']}")
            self._send("Page.handleJavaScriptDialog", accept=True)
        return found

    def _send(self, method: str, **params: Any) -> int:
        self.count += 1
        message = {"id": self.count, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.out, json.dumps(message).encode() + b"\0")
        return self.count

    def call(self, method: str, **params: Any) -> Any:
        """What one command answers; raises RuntimeError where the browser refuses it."""
        number = self._send(method, **params)
        while (answer := self._message()).get("id") != number:
            pass
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        return answer["result"]

    def size(self, width: int, height: int, scale: float = 1) -> None:
        """The window, in CSS pixels; a narrow one is a phone's."""
        phone = width < 600
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=phone
        )

    def open(self, address: str) -> None:
        """The page at that address, loaded."""
        self.call("Page.navigate", url=address)
        while self._message().get("method") != "Page.loadEventFired":
            pass

    def value(self, expression: str) -> Any:
        """What a JavaScript expression, or the promise it gives, comes to; raises RuntimeError where it throws."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"]["exception"].get("description", expression))
        return answer["result"].get("value")

    def until(self, expression: str, seconds: float = 10) -> Any:
        """Its value as soon as it is true; raises RuntimeError with the expression where it never is."""
        failed = json.dumps(f"not within {seconds} s: {expression}")
        return self.value(
            f"""new Promise((done, fail) => {{
                const end = performance.now() + {1000 * seconds};
                (function look() {{
                    const value = {expression};
                    if (value) done(value);
                    else if (performance.now() > end) fail(Error({failed}));
                    else setTimeout(look, 10);
                }})();
            }})"""
        )

    def picture(self, path: Path) -> None:
        """A PNG of the window."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))
