"""The weights' digest: 16 bytes of a two-level SHA-256 over names, shapes, dtypes and values (docs/FORMAT.md)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from subcompress.layout import Layout

CHUNK = 1 << 22
"""Bytes of one leaf: leaves are independent, so that they can be hashed in parallel and while streaming."""

SIZE = 16


def weights_digest(layout: Layout, tensors: Mapping[str, memoryview]) -> bytes:
    """tensors: name -> little-endian bytes of the tensor, nbytes of them. Returns the first 16 bytes of the root."""
    root = hashlib.sha256(hashlib.sha256(layout.text()).digest())
    for spec in layout:
        data = tensors[spec.name]
        for at in range(0, spec.nbytes, CHUNK):
            root.update(hashlib.sha256(data[at : at + CHUNK]).digest())
    return root.digest()[:SIZE]
