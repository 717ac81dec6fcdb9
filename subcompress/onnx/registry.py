"""Caches of what `torch.onnx.export` reads again and again.

For every graph, it reads the sources of some 500 ONNX operators, which is 40 % of its time for a small network. They do
not change while a process runs. It also asks for all of torch's composite operators some fifty times, once for each of
their namespaces; they do not change during an export.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

PLACE = "torch.onnx._internal.exporter._registration"
"""The module that has the class in torch 2.6 to 2.13. If a release has it elsewhere, the table is read each time."""

COMPOSITE = "torch._export.utils"
"""The module that asks for composite operators. If a release of torch has it elsewhere, it is done each time."""

ASKS = "_materialize_cpp_cia_ops"
"""Its function that asks."""


@contextmanager
def operators_read_once() -> Iterator[None]:
    """Share the registry among exports within the block; the first export of the process reads it. Composite operators
    are asked for once within the block."""
    with _replaced(PLACE, "ONNXRegistry.from_torchlib", _shared), _replaced(COMPOSITE, ASKS, functools.cache):
        yield


@contextmanager
def _replaced(module: str, name: str, by: Any) -> Iterator[None]:
    """Replace an attribute of a module, or of a class in it, by what `by` makes of it; not if it is not there."""
    *parents, last = name.split(".")
    try:
        owner: Any = functools.reduce(getattr, parents, importlib.import_module(module))
        original = owner.__dict__[last]
    except (ImportError, AttributeError, KeyError):
        yield
        return
    setattr(owner, last, by(original))
    try:
        yield
    finally:
        setattr(owner, last, original)


def _shared(original: Any) -> Any:
    return classmethod(functools.partial(_copied, original.__func__))


def _copied(original: Any, registry: Any, opset_version: int) -> Any:
    """Return a copy of the table for each export, which may add to it."""
    read, found = _read(original, registry, opset_version), registry()
    found.__dict__ |= read.__dict__
    found.functions = {target: list(versions) for target, versions in read.functions.items()}
    return found


@functools.cache
def _read(original: Any, registry: Any, opset_version: int) -> Any:
    return original(registry, opset_version)
