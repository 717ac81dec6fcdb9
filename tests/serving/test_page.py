"""The server's page: by its text, and in a browser against a stand-in for the server."""

from __future__ import annotations

import json
import queue
import re
import secrets
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

import chromium
import pytest
from places import ROOT

PAGE = ROOT / "subcompress" / "serving" / "page.html"
HOSTILE = "<img src=x onerror=alert(1)> it's $(id) \"`x`"
NAME = quote(HOSTILE, safe="()'")  # as encodeURIComponent writes it
POLICY = (
    "default-src 'none'; style-src 'nonce-{0}'; script-src 'nonce-{0}'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@pytest.fixture(scope="module")
def text() -> str:
    return PAGE.read_text(encoding="utf-8")


def test_the_page_asks_nobody_else(text):
    assert set(re.findall(r"[\w+.-]*://[^\s\"'`]*", text)) <= {"http://www.w3.org/2000/svg"}  # a name, not an address
    assert not re.search(r"url\(|@import|\bsrc=|<link|<iframe|import\(|WebSocket|sendBeacon", text)
    # Everything it asks is relative: it works below a prefix as well.
    assert re.findall(r"(?:ask|fetch|new URL)\([`\"']?([^,)`\"'?$]+)", text) == [
        "path",  # ask's parameter, in its definition and in its call of fetch
        "path",
        "status",
        "v2/models/",
        "v2/repository/models/",
        "v2/models/",
    ]


def test_every_script_and_style_waits_for_the_servers_nonce(text):
    assert re.findall(r"<(?:script|style)\b[^>]*>", text) == ['<style nonce="{{nonce}}">', '<script nonce="{{nonce}}">']
    assert text.count("{{") == 2
    assert not re.search(r"<[^>]+\s(?:style|on\w+)=|javascript:", text)  # a nonce does not cover these


def test_nothing_is_read_as_html_or_code(text):
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|setHTML|createContextualFragment|document\.write|DOMParser|srcdoc|eval\(|Function\(",
        text,
    )


def test_the_page_is_small_and_plain(text):
    assert PAGE.stat().st_size < 31_000
    assert {c for c in text if ord(c) > 127} <= set("–…“”")
    ids = re.findall(r'\bid="(\w+)"', text)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'\$\("(\w+)"\)', text)) <= set(ids)
    assert set(re.findall(r'(?:for|labelledby)="(\w+)"', text)) <= set(ids)


def model(name: str, **more: Any) -> dict[str, Any]:
    """What /status says of one model."""
    tensor = {"name": name, "datatype": "FP32", "shape": [-1, 1, 28, 28]}
    facts = {
        "name": name,
        "file": f"{name}.safetensors",
        "kind": "packed",
        "file_bytes": 343,
        "dense_bytes": 177_704,
        "base": "",
        "state": "loaded",
        "reason": "",
        "memory": 190_000,
        "requests": 12,
        "failed": 0,
        "batches": 9,
        "p50_ms": 0.7,
        "p99_ms": 1.9,
        "last_s": 3.2,
        "inputs": [tensor, {"name": "ids", "datatype": "INT64", "shape": [-1, -1]}],
        "outputs": [{"name": "output", "datatype": "FP32", "shape": [-1, 10]}],
    }
    return facts | more


MODELS = [
    model("digits"),
    model(HOSTILE),
    model(
        "torn",
        state="unavailable",
        reason="<b>torn</b> is cut short",
        dense_bytes=0,
        memory=0,
        requests=0,
        batches=0,
        p50_ms=None,
        p99_ms=None,
        last_s=None,
        inputs=[],
        outputs=[],
    ),
]


class StandIn(ThreadingHTTPServer):
    """Answers as the server does. `asked` receives (method, path, arguments) of every request but the page's."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.asked: queue.Queue[tuple[str, str, dict[str, str]]] = queue.Queue()
        self.address = f"http://127.0.0.1:{self.server_port}/"
        self.token = ""
        self.dead = False

    def await_asked(self, path: str, **arguments: str) -> None:
        """Returns at the next request for that path with these arguments; raises queue.Empty after 10 s of silence."""
        while True:
            _, found, given = self.asked.get(timeout=10)
            if found == path and arguments.items() <= given.items():
                return

    def posted(self) -> str:
        """The path of the next POST."""
        while True:
            method, path, _ = self.asked.get(timeout=10)
            if method == "POST":
                return path


class Answers(BaseHTTPRequestHandler):
    server: StandIn

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, code: int, body: bytes, kind: str = "application/json", **headers: str) -> None:
        self.send_response(code)
        for name, value in {"content-type": kind, "content-length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        if address.path == "/":
            nonce = secrets.token_urlsafe(16)
            page = PAGE.read_text(encoding="utf-8").replace("{{nonce}}", nonce)
            return self.answer(
                200, page.encode(), "text/html; charset=utf-8", **{"content-security-policy": POLICY.format(nonce)}
            )
        query = {key: values[0] for key, values in parse_qs(address.query).items()}
        self.server.asked.put((self.command, address.path, query))
        if address.path != "/status":
            return self.answer(404, b"{}")
        if self.server.dead:
            return None  # the connection closes without a word
        if self.server.token and self.headers.get("authorization") != f"Bearer {self.server.token}":
            return self.answer(401, b'{"error": "a token is needed"}')
        models = [m for m in MODELS if query.get("search", "") in (m["name"], m["state"], "")]
        status = {
            "name": "subcompress",
            "version": "0.1.0",
            "uptime_s": 11_600.5,
            "state": "ready",
            "memory": {"limit": 1 << 30, "models": 151_234_567, "bases": 0, "process": 398_000_000},
            "queue": {"limit": 1024, "waiting": 0},
            "requests": {"total": 24, "failed": 1, "refused": 0, "per_s": 3.5, "p50_ms": 0.8, "p99_ms": 2.1},
            "counts": {"models": 3, "loaded": 2, "unavailable": 1},
            "models": models,
            "shown": len(models),
            "matching": len(models),
        }
        return self.answer(200, json.dumps(status).encode())

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        self.server.asked.put((self.command, self.path, json.loads(body or b"{}")))
        if "digits" in self.path and self.path.endswith("/infer"):
            output = {"name": "<b>y</b>", "datatype": "FP32", "shape": [1, 11], "data": list(range(11))}
            return self.answer(200, json.dumps({"outputs": [output]}).encode())
        return self.answer(400, b'{"error": "<i>no</i>"}')


@pytest.fixture(scope="module")
def stand_in() -> Iterator[StandIn]:
    with StandIn() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[chromium.Page]:
    chrome = chromium.found()
    if not chrome:
        pytest.skip("no Chromium here: install one, or name it in CHROME")
    with chromium.opened(chrome, tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture
def page(browser: chromium.Page, stand_in: StandIn) -> Iterator[chromium.Page]:
    """The page, with its three models in sight; whatever a test does, no script of it may throw or be refused."""
    browser.size(1200, 800)
    browser.open(stand_in.address)
    browser.until("document.querySelectorAll('.row').length === 3")
    stand_in.asked.queue.clear()
    yield browser
    assert browser.errors == []


def press(page: chromium.Page, within: str, text: str) -> None:
    """The button of that text, pressed."""
    page.value(f"[...document.querySelectorAll('{within} button')].find((e) => e.textContent === '{text}').click()")


def cells(page: chromium.Page, row: int) -> list[str]:
    return page.value(f"[...document.querySelectorAll('.row')[{row}].cells].map((e) => e.textContent)")


def test_figures_have_their_units_and_names_stay_text(page):
    assert cells(page, 0) == ["digits", "loaded", "343 B", "178 kB", "190 kB", "12", "0", "0.70", "1.90", "3 s ago"]
    assert cells(page, 1)[0] == HOSTILE
    assert cells(page, 2) == ["torn", "unavailable", "343 B", "–", "–", "0", "0", "–", "–", "never"]
    figures = page.value("$('figures').innerText")
    for part in ("3.5 per second", "0.80 ms", "2.10 ms", "151 MB", "1.1 GB", "14 % of the limit", "67 % loaded"):
        assert part in figures
    assert "up 3 h 13 min" in page.value("document.querySelector('header').innerText")
    page.value("document.querySelectorAll('.row .plain')[2].click()")
    assert "<b>torn</b> is cut short" in page.value("document.querySelector('.detail').innerText")
    assert page.value("document.querySelectorAll('img, .row b, .detail b').length") == 0


def test_the_line_for_the_shell_sends_what_the_model_takes(page):
    page.value("document.querySelectorAll('.row .plain')[1].click()")
    script, curl = page.value("document.querySelector('.detail pre').textContent").split(" | curl ")
    command, option, code = shlex.split(script)
    assert (command, option) == ("python3", "-c")
    sent = json.loads(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout)
    assert sent["inputs"] == [
        {"name": HOSTILE, "datatype": "FP32", "shape": [1, 1, 28, 28], "data": [0.5] * 784},
        {"name": "ids", "datatype": "INT64", "shape": [1, 8], "data": [1] * 8},
    ]
    *options, address = shlex.split(curl)
    assert options == ["-sS", "-H", "Content-Type: application/json", "--data-binary", "@-"]
    assert unquote(address) == f"{page.value('location.origin')}/v2/models/{HOSTILE}/infer"


def test_a_row_opens_and_closes_by_keyboard(page):
    page.value(
        "getSelection().selectAllChildren(document.querySelector('h1'))"
    )  # a selection elsewhere is no hindrance
    page.value("document.querySelector('.row .plain').focus()")
    for opened in ("true", "false"):
        for kind in ("rawKeyDown", "char", "keyUp"):
            page.call("Input.dispatchKeyEvent", type=kind, key="Enter", text="\r", windowsVirtualKeyCode=13)
        assert page.value("document.activeElement.getAttribute('aria-expanded')") == opened
        assert page.value("document.querySelectorAll('.detail').length") == (opened == "true")


def test_load_and_unload_are_asked_for_and_a_refusal_is_shown(page, stand_in):
    page.value("document.querySelectorAll('.row .plain')[1].click()")
    press(page, ".detail", "Load")  # it is in memory: there is nothing to ask
    press(page, ".detail", "Unload")
    assert stand_in.posted() == f"/v2/repository/models/{NAME}/unload"
    page.until("document.querySelector('output').textContent === '<i>no</i>'")


def test_an_example_is_sent_and_its_answer_shown(page, stand_in):
    page.value("document.querySelectorAll('.row .plain')[0].click()")
    press(page, ".detail", "Send")
    page.until("document.querySelector('output').textContent.includes(' ms. <b>y</b> [1, 11]: 0, 1, 2')")
    assert page.value("document.querySelector('output').textContent").endswith("8, 9, …")
    sent = next(given for method, path, given in stand_in.asked.queue if path == "/v2/models/digits/infer")
    assert [(t["shape"], t["data"][:2]) for t in sent["inputs"]] == [([1, 1, 28, 28], [0.5, 0.5]), ([1, 8], [1, 1])]
    page.value("document.querySelectorAll('.row .plain')[1].click()")
    page.value("[...document.querySelectorAll('.detail button')].filter((e) => e.textContent === 'Send')[1].click()")
    page.until("document.querySelectorAll('output')[1].textContent === '<i>no</i>'")


def test_the_server_searches_and_sorts(page, stand_in):
    page.value("$('search').value = 'digits'; $('search').dispatchEvent(new Event('input'))")
    stand_in.await_asked("/status", search="digits", sort="requests", limit="100")
    page.until("document.querySelectorAll('.row').length === 1")
    press(page, "th", "Model")
    stand_in.await_asked("/status", search="digits", sort="name")
    assert page.value("[...document.querySelectorAll('th[aria-sort]')].map((e) => e.textContent)") == ["Model"]
    page.value("at.lacking.click()")  # the number of unavailable models
    stand_in.await_asked("/status", search="unavailable")
    page.until("document.querySelector('.row .name').textContent === 'torn'")
    page.value("$('search').value = 'nothing'; $('search').dispatchEvent(new Event('input'))")
    page.until("!$('empty').hidden && $('empty').textContent.includes('nothing')")


def test_a_phone_shows_it_all(page):
    page.size(360, 740)
    page.value("document.querySelectorAll('.row .plain')[1].click()")
    assert page.value("document.documentElement.scrollWidth") == 360
    heights = page.value(
        "[$('search'), $('sort'), document.querySelector('.actions button')].map((e) => e.offsetHeight)"
    )
    assert min(heights) >= 44  # a finger's


def test_a_server_that_is_gone_is_said_and_found_again(page, stand_in):
    stand_in.dead = True
    page.value("wait = 200; poll()")
    page.until("$('said').textContent.includes('the server does not answer')")
    assert page.value("[$('state').textContent, $('retry').hidden]") == ["no answer", False]
    assert page.value("document.querySelectorAll('.row').length") == 3  # from before
    stand_in.dead = False
    page.until("$('notice').hidden && $('state').textContent === 'ready'")  # by itself


def test_a_page_out_of_sight_asks_nothing(page, stand_in):
    page.value("Object.defineProperty(document, 'hidden', { value: true, configurable: true })")
    page.value("document.dispatchEvent(new Event('visibilitychange'))")
    asked = """(async () => {
        let asked = 0;
        const kept = fetch;
        fetch = (...given) => { asked++; return kept(...given); };
        await poll();
        fetch = kept;
        return asked;
    })()"""
    assert page.value(asked) == 0
    page.value("delete document.hidden; document.dispatchEvent(new Event('visibilitychange'))")
    stand_in.await_asked("/status")
    assert page.value(asked) == 1


def test_nothing_moves_under_the_pointer(page, stand_in):
    """What the server sorts anew waits until the keyboard or the pointer has left, or another order is asked for."""
    names = "[...document.querySelectorAll('.row .name')].map((e) => e.textContent)"
    page.value("document.querySelectorAll('.row .plain')[1].focus()")
    MODELS.reverse()
    try:
        page.value("poll()")
        assert page.value(names) == ["digits", HOSTILE, "torn"]
        page.value("document.activeElement.blur(); poll()")
        page.until(f"{names}[0] === 'torn'")
    finally:
        MODELS.reverse()


def test_a_token_is_asked_for_tried_kept_and_forgotten(page, stand_in):
    stand_in.token = "right"
    page.value("poll()")
    page.until("!$('enter').hidden && $('main').hidden && document.activeElement === $('token')")
    page.value("$('token').value = 'wrong'; $('enter').requestSubmit()")
    page.until("$('wrong').textContent.includes('does not take this token')")
    page.value("$('token').value = 'right'; $('enter').requestSubmit()")
    page.until("!$('main').hidden && $('enter').hidden")
    page.open(stand_in.address)
    page.until("document.querySelectorAll('.row').length === 3")
    page.value("document.querySelector('.row .plain').click()")
    assert '-H "Authorization: Bearer $TOKEN"' in page.value("document.querySelector('pre').textContent")
    page.value("$('forget').click()")
    page.until("!$('enter').hidden")
    assert not page.value("sessionStorage.getItem(KEY)")
    stand_in.token = ""
