"""Files on a base, made by hand."""

from __future__ import annotations

import pytest
import torch
from forged_rules import deflated, number, scale, with_weights_digest
from records import plain_base
from torch import Tensor, nn

from subcompress import SubcompressError
from subcompress.base import BaseTensors
from subcompress.tensors.layout import Layout, raw_bytes


def raw(tensor: Tensor) -> bytes:
    return bytes(raw_bytes(tensor))


def refusal(call, *args, **kwargs) -> str:
    with pytest.raises(SubcompressError) as error:
        call(*args, **kwargs)
    line = str(error.value)
    assert "\n" not in line
    assert len(line) < 500  # two paths and what a library says
    return line


def module_of(layout: Layout) -> nn.Module:
    """A module with such tensors."""
    top = nn.Module()
    for spec in layout:
        owner = top
        *path, leaf = spec.name.split(".")
        for part in path:
            if part not in owner._modules:
                owner._modules[part] = nn.Module()
            owner = owner._modules[part]
        owner._buffers[leaf] = torch.ones(spec.shape).to(spec.torch_dtype)  # `half` is a method of modules, too
    return top


# --- forgeries, one rule at a time ---

TENSORS = [("m.a", "F32", (3, 4)), ("m.b", "I64", (2,)), ("m.c", "F32", (5,)), ("x", "F16", (2,))]
"""144 bytes without x."""


HELD = plain_base(TENSORS)


def text(value: bytes) -> bytes:
    return number(len(value)) + value


PARTS: dict[str, bytes] = {
    "begin": b"SC\1\1\0",
    "number": b"\7",
    "name": text(b"base"),
    "revision": b"\0",
    "digest": BaseTensors(HELD, "base").digest,
    "count": b"\4",
    "strip": text(b"m."),
    "add": text(b""),
    "cast": b"\0",
    "unused": b"\1\3",
    "new": b"\1" + b"\0\1w" + b"\0\1\3",  # w F32 [3]
    "dense": number(96),
    "groups": b"\1\1" + bytes([10, 4, 0, 0]) + b"\4",
    "kind": b"\3",
    # Entries: the base's with coordinates, kept, from zero; tensors a, b, c, w.
    "entries": b"\3" + b"\5" + scale(0.5) + b"\4" + b"\1" + scale(0.25) + b"\0\1\0\2",
    "sizes": number(20),
    "facts": b"\0",
    "accuracy": b"\0",
    "weights": bytes(16),
    "stored": b"",
    "coordinates": b"",
}


def forged(base: dict[str, Tensor] = HELD, **changes: bytes) -> bytes:
    """The file of PARTS, changed, with the digest of its weights where it has any. `entries` are deflated."""
    parts = {**PARTS, **changes}
    parts["entries"] = deflated(parts["entries"])
    return with_weights_digest(parts, base)
