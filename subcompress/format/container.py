"""The safetensors container around the payload, and error messages for files of other kinds."""

from __future__ import annotations

import json
import re

from subcompress.errors import SubcompressError
from subcompress.format.wire import unique_keys

_FORM = re.compile(rb'\{"z":\{"dtype":"U8","shape":\[(\d{1,18})\],"data_offsets":\[0,(\d{1,18})\]\}\}')

_RULE = "a subcompress file is a safetensors file with one tensor z"


def header(n: int) -> bytes:
    """Return the only safetensors header of an n-byte payload: a tensor `z` of n bytes, no padding, no metadata."""
    text = b'{"z":{"dtype":"U8","shape":[%d],"data_offsets":[0,%d]}}' % (n, n)
    return len(text).to_bytes(8, "little") + text


def wrap(payload: bytes) -> bytes:
    """Wrap a payload in a safetensors file."""
    return header(len(payload)) + payload


def unwrap(data: bytes) -> bytes:
    """Return the payload of a file. Raises SubcompressError that says what the bytes are, if not a packed file."""
    n = int.from_bytes(data[:8], "little")
    payload = data[8 + n :] if 8 + n <= len(data) else b""
    if payload and data[: 8 + n] == header(len(payload)):
        return payload
    raise SubcompressError(_diagnosis(data))


def _diagnosis(data: bytes) -> str:
    """Describe in one line bytes that are not a packed file."""
    text = data[:512].lstrip().lower()
    kinds = [
        (not data, "an empty file"),
        (data[:4] == b"PK\x03\x04", "a zip archive (as torch.save writes: it is the dense model)"),
        (data[:1] == b"\x80" and data[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"), "a pickle, which is never opened"),
        (
            text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")),
            "an HTML page in place of the file: download it again",
        ),
        (text.startswith(b"version https://git-lfs"), "a git-lfs pointer: run `git lfs pull`"),
        (data[:2] == b"\x1f\x8b", "a gzip archive: unpack it first"),
        (data[:1] == b"\x08" and b"subcompress" in data[:64] + data[-64:], "an ONNX graph that was unpacked from one"),
    ]
    for found, name in kinds:
        if found:
            return f"{_RULE}; this is {name}"
    return _safetensors_diagnosis(data)


def _safetensors_diagnosis(data: bytes) -> str:
    n = int.from_bytes(data[:8], "little")
    head = data[8 : 8 + n]
    if match := _FORM.match(data, 8):
        claimed = int(match[1])
        if match[1] == match[2] and n == len(match[0]):
            present = len(data) - 8 - n
            return f"the file is cut or padded: its header claims {claimed} bytes, {present} are there; fetch it again"
        return "the safetensors header is damaged: its sizes disagree; fetch the file again"
    if n > len(data) - 8 or not head.startswith(b"{"):
        return f"{_RULE}; this is another file, or it is cut: fetch it again"
    try:
        tensors = json.loads(head, object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as e:
        why = str(e) if str(e).startswith("duplicate") else "not JSON"
        return f"the safetensors header is damaged ({why}); fetch the file again"
    names = [k for k in tensors if k != "__metadata__"] if isinstance(tensors, dict) else []
    if names == ["z"]:
        return "the safetensors header is not the canonical one (metadata, spaces, dtype): fetch the original file"
    return f"{_RULE}; this one holds {len(names)} others: is it the dense model?"
