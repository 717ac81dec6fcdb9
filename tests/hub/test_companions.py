"""The files beside the weights of a base on the Hub."""

from __future__ import annotations

CODE = """
from subcompress.api.formats.companions import is_companion
from subcompress.remote import companions_of
said = []
found = companions_of(PLACE, is_companion, log=said.append)
result = {"files": {name: path.read_text() for name, path in found.items()}, "said": said}
"""


def test_configuration_and_tokenizer_come_at_the_commit(hub, client, name):
    hub.make(name)
    texts = {"config__json": b"{}", "tokenizer__json": b"words", "LICENSE": b"free"}
    commit = hub.put(name, "first", **texts, model__safetensors=b"weights", own__py=b"code")
    hub.put(name, "second", tokenizer__json=b"other words")
    code = CODE.replace("PLACE", repr(f"hub:{name}@{commit}"))
    wanted = {"config.json": "{}", "tokenizer.json": "words", "LICENSE": "free"}
    assert client.python(code)["files"] == wanted
    client.offline = True
    again = client.python(code)
    assert again["files"] == wanted
    assert f"using the files in the cache, of commit {commit[:12]}" in again["said"][0]
