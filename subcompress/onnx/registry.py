"""A cache of torch's registry of ONNX operators, which is read once per process.

`torch.onnx.export` reads the sources of some 500 operators for every graph, which is 40 % of its time for a small
network. They do not change while a process runs.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

PLACE = "torch.onnx._internal.exporter._registration"
"""The module that has the class in torch 2.6 to 2.13. If a release has it elsewhere, the table is read each time."""


@contextmanager
def operators_read_once() -> Iterator[None]:
    """Share the registry among exports within the block; the first export of the process reads it."""
    try:
        registry: Any = importlib.import_module(PLACE).ONNXRegistry
        original = registry.__dict__["from_torchlib"]
    except (ImportError, AttributeError, KeyError):
        yield
        return
    registry.from_torchlib = classmethod(functools.partial(_copied, original.__func__))
    try:
        yield
    finally:
        registry.from_torchlib = original


def _copied(original: Any, registry: Any, opset_version: int) -> Any:
    """Return a copy of the table for each export, which may add to it."""
    read, found = _read(original, registry, opset_version), registry()
    found.__dict__ |= read.__dict__
    found.functions = {target: list(versions) for target, versions in read.functions.items()}
    return found


@functools.cache
def _read(original: Any, registry: Any, opset_version: int) -> Any:
    return original(registry, opset_version)
