"""Texts and images in requests: prepared as `predict` prepares them, answered with labels and probabilities."""

from __future__ import annotations

import base64
import io
import json
import struct
import zlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import tritonclient.http as triton
from lazily import needed
from on_transformers import network_of, record_on, saved, tiny_bert
from PIL import Image
from records import lenet_record, record_of
from serving import Answer, Client, packed, serving, traced_here

import subcompress
from subcompress.format.facts import Facts, Input
from subcompress.serving import prepared
from subcompress_models import MODELS

tokenizers = needed("tokenizers")

TOKENS = tuple(Input(name, "I64", (0,)) for name in ("input_ids", "attention_mask"))
LABELS = ("bad", "fair", "good")
TEXTS = ["a b c", "q", "x y z z z y x"]
LONG = " ".join("abcdefghij" * 5)
"""More tokens than the network takes."""

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghijklmnopqrstuvwxyz"]
CONTEXT = 32


class Bag(torch.nn.Module):
    """A classifier by the mean of its tokens, called as those of transformers are."""

    config = SimpleNamespace(max_position_embeddings=CONTEXT, id2label=None)

    def __init__(self) -> None:
        super().__init__()
        self.words = torch.nn.Embedding(len(WORDS), 3)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """The sum of the words of each text over their number."""
        mask = attention_mask.unsqueeze(-1).to(torch.float32)
        return 40 * (self.words(input_ids) * mask).sum(1) / mask.sum(1)


class ForPredict:
    """The tokenizer as `predict` calls one of transformers."""

    model_max_length, pad_token_id, eos_token_id = 1000, 0, None

    def __init__(self, folder: Path) -> None:
        self._tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))

    def __call__(self, texts: Any, pairs: Any, truncation: bool, max_length: int, verbose: bool) -> Any:
        self._tokenizer.enable_truncation(max_length)
        found = [self._tokenizer.encode(text) for text in texts]
        return {"input_ids": [t.ids for t in found], "attention_mask": [t.attention_mask for t in found]}


def made_tokenizer(folder: Path) -> Path:
    """A folder with a tokenizer and what is said of it."""
    folder.mkdir()
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate(WORDS)}, "[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    ends = [(word, WORDS.index(word)) for word in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    tokenizer.save(str(folder / "tokenizer.json"))
    said = {"model_max_length": 1000, "pad_token": "[PAD]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(said))
    (folder / "config.json").write_text(json.dumps({"max_position_embeddings": CONTEXT}))
    return folder


class Served:
    """What is served, and what `predict` says of it."""

    def __init__(self, folder: Path) -> None:
        self.place, self.files, self.bag = made_tokenizer(folder / "place, with a comma"), folder / "files", Bag()
        self.files.mkdir()
        self.text = packed(self.files, "text", record_of(self.bag, Facts(labels=LABELS, inputs=TOKENS)))
        self.image = packed(self.files, "image", lenet_record(300, 1, 9.0))
        self._trace = traced_here(MODELS["lenet"](), self.bag)

    def trace(self, jobs: Any) -> Any:
        """Graphs that were traced from a network of transformers in a folder."""
        return [replace(found, network=f"hf:{self.place},task=x") for found in self._trace(jobs)]  # type: ignore[type-var]

    def of_texts(self, texts: Any) -> list[tuple[Any, Any]]:
        """Labels and probabilities."""
        found = subcompress.predict(self.text, texts, self.bag, tokenizer=ForPredict(self.place))
        return [(p.label, p.probability) for p in found]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    return Served(tmp_path_factory.mktemp("prepared"))


@pytest.fixture(scope="module")
def client(served: Served) -> Any:
    """A server of a classifier of texts and one of images."""
    with serving(served.files, trace=served.trace) as found:
        yield found


def ask(client: Client, name: str, body: Any, **headers: str) -> Answer:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return client("POST", f"/v2/models/{name}/infer", data, **headers)


def same(found: Any, wanted: Any) -> None:
    assert [p["label"] for p in found] == [label for label, _ in wanted]
    np.testing.assert_allclose([p["probability"] for p in found], [p for _, p in wanted], atol=1e-4)


def test_texts_get_what_predict_says(client: Client, served: Served) -> None:
    wanted = served.of_texts(TEXTS)
    found = ask(client, "text", {"text": TEXTS, "id": "7"}).said
    assert (found["model_name"], found["id"]) == ("text", "7")
    same(found["predictions"], wanted)
    same(ask(client, "text", {"text": TEXTS[0]}).said["predictions"], served.of_texts(TEXTS[0]))
    found = ask(client, "text", {"text": [LONG, "a"]}).said["predictions"]
    same(found, served.of_texts([LONG, "a"]))
    assert [p.get("truncated") for p in found] == [True, None]  # and said so


def test_texts_as_tensors_with_the_real_client(client: Client, served: Served) -> None:
    x = np.array(TEXTS, object)
    with triton.InferenceServerClient(f"{client.host}:{client.port}") as real:
        told = real.get_model_metadata("text")["parameters"]["prepared"]
        assert [t["name"] for t in told["inputs"]] == ["text"]
        assert [t["name"] for t in told["outputs"]] == ["label", "probability", "truncated", "output"]
        for binary in (True, False):
            given = triton.InferInput("text", x.shape, "BYTES").set_data_from_numpy(x, binary_data=binary)
            found = real.infer("text", [given])
            labels = [v if isinstance(v, str) else v.decode() for v in found.as_numpy("label")]
            same(
                [{"label": a, "probability": b} for a, b in zip(labels, found.as_numpy("probability"), strict=True)],
                served.of_texts(TEXTS),
            )
            assert not found.as_numpy("truncated").any() and found.as_numpy("output").shape == (3, 3)


def picture(size: tuple[int, int] = (28, 28), form: str = "PNG", mode: str = "L") -> bytes:
    """An image."""
    pixels = np.random.default_rng(0).integers(0, 256, (*size[::-1], len(mode)), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels.squeeze()).save(file, form)
    return file.getvalue()


@pytest.mark.parametrize("how", [{}, {"form": "JPEG"}, {"size": (50, 20), "mode": "RGB"}])
def test_images_get_what_predict_says(client: Client, served: Served, how: Any, tmp_path: Path) -> None:
    data = picture(**how)
    path = tmp_path / f"x.{how.get('form', 'png').lower()}"
    path.write_bytes(data)
    wanted = [(p.label, p.probability) for p in subcompress.predict(served.image, path, MODELS["lenet"]())]
    text = base64.b64encode(data).decode()
    for body in (data, {"image": text}, {"image": [text]}):
        same(ask(client, "image", body, content_type="image/png").said["predictions"], wanted)
    with triton.InferenceServerClient(f"{client.host}:{client.port}") as real:
        x = np.array([data, data], object)
        given = triton.InferInput("image", x.shape, "BYTES").set_data_from_numpy(x)
        assert [v.decode() for v in real.infer("image", [given]).as_numpy("label")] == [wanted[0][0]] * 2


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that says that it is large."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


SMALL = base64.b64encode(picture()).decode()
WRONG: dict[str, tuple[str, Any, str]] = {
    "a bomb": ("image", bomb(20_000, 20_000), "pixels"),
    "a larger bomb": ("image", bomb(200_000, 200_000), "pixels"),
    "a bomb with a warning": ("image", bomb(10_000, 10_000), "pixels"),
    "a torn image": ("image", picture()[:200], "must be a PNG or a JPEG; the 200 bytes given are neither"),
    "another format": ("image", {"image": base64.b64encode(picture(form="GIF")).decode()}, "a PNG or a JPEG"),
    "no base64": ("image", {"image": "%%%"}, "files in base64; one is not"),
    "no image": ("image", {"image": []}, "image must be an image in base64, or a list of some; got a list"),
    "a number": ("text", {"text": 3}, "text must be a text, or a list of some; got a number"),
    "numbers among texts": ("text", {"text": ["a", 3]}, "text must be a text, or a list"),
    "a text for images": ("image", {"text": "a"}, "takes no text, because it takes image BYTES [-1]: send input FP32"),
    "an image for texts": ("text", picture(), "takes no image, because it takes text BYTES [-1]"),
    "a text beyond any context": ("text", {"text": "a" * ((1 << 20) + 1)}, "at most 1048576 characters"),
    "many short texts beside a long one": ("text", {"text": [LONG, *["a"] * 300_000]}, "send fewer at once"),
    "many images": ("image", {"image": [SMALL] * 22_000}, "send fewer at once"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_what_cannot_be_prepared_is_told_in_a_line(client: Client, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, body, text = WRONG[what]
    if what.startswith("many"):  # which need not be many to be too many
        monkeypatch.setattr(prepared, "MOST_VALUES", 1000)
        body = {key: values[:60] for key, values in body.items()}
    found = ask(client, name, body)
    assert found.status == 400 and text in found.error, found.error


def test_what_is_not_prepared_says_why(client: Client, served: Served, tmp_path: Path) -> None:
    packed(tmp_path, "one", lenet_record(300, 1))
    with serving(tmp_path, served.text, trace=served.trace, raw_inputs=True) as raw:
        assert "takes no image, because --raw-inputs was given" in ask(raw, "one", picture()).error
        assert "prepared" not in raw("GET", "/v2/models/one").said["parameters"]
        assert raw.infer("one", np.zeros((1, 1, 28, 28))).status == 200
    (served.place / "tokenizer.json").rename(served.place / "away.json")
    try:
        with serving(served.text, trace=served.trace) as bare:
            assert "its tokenizer is not known" in ask(bare, "text", {"text": "a"}).error
    finally:
        (served.place / "away.json").rename(served.place / "tokenizer.json")


@pytest.mark.slow
def test_a_network_of_transformers_on_a_base(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    base = tiny_bert(tmp_path / "base")
    bert = network_of(base, "AutoModelForSequenceClassification", num_labels=3)
    record = record_on(bert, base, ["*LayerNorm*", "*.bias"], Facts(labels=LABELS, inputs=TOKENS))
    file, tokenizer = saved(record, tmp_path / "text.safetensors"), transformers.AutoTokenizer.from_pretrained(base)
    with serving(file, trace=traced_here(bert), bases=[str(base)]) as client:
        for texts in (TEXTS, [LONG, "a"]):
            wanted = subcompress.predict(file, texts, bert, base=base, tokenizer=tokenizer)
            found = ask(client, "text", {"text": texts}).said["predictions"]
            same(found, [(p.label, p.probability) for p in wanted])
