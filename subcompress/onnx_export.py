"""ONNX with the weights inside: exported, stripped of what names the machine, compared with torch before it is kept."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from subcompress.errors import SubcompressError
from subcompress.facts import Facts
from subcompress.layout import DTYPES
from subcompress.record import Record

OPSET = 18
TOLERANCE = 1e-4
"""Outputs may differ by this share of their largest value: both engines sum in an order of their own."""


def export(record: Record, module: nn.Module, path: Path) -> None:
    """Write the graph of `module`, which holds the record's weights, with a dynamic batch axis, `input` and `output`.

    Raises SubcompressError where torch cannot export the module or ONNX Runtime computes something else.
    """
    if not record.facts.input_shape:
        raise SubcompressError("a graph needs the input's shape, which this file does not say: fit with data that do")
    example = example_input(record.facts)
    model = _trace(module, example)
    strip(model)
    describe(model, record)
    data = model.SerializeToString()
    compare(data, module, record.facts)
    path.write_bytes(data)


def example_input(facts: Facts, n: int = 2) -> Tensor:
    """(n, ...) values of the input's shape and dtype, the same every time: uniform in [0, 1), or zeros for integers."""
    dtype = DTYPES[facts.input_dtype or "F32"][0]
    values = torch.rand((n, *facts.input_shape), generator=torch.Generator().manual_seed(n))
    return values.to(dtype)


def _trace(module: nn.Module, example: Tensor) -> onnx.ModelProto:
    try:
        with warnings.catch_warnings(), _quiet("torch."):
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                module,
                (example,),
                dynamo=True,
                optimize=False,  # keeps the state dict's names on the initialisers
                input_names=["input"],
                output_names=["output"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                opset_version=OPSET,
                verbose=False,
            )
    except Exception as e:
        cause: BaseException = e
        while cause.__cause__ is not None:  # the exporter wraps what went wrong in pages of advice
            cause = cause.__cause__
        reason = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
        raise SubcompressError(f"torch.onnx cannot export this model ({reason}): unpack to .safetensors instead") from e
    assert program is not None
    return program.model_proto


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Errors only, for that logger and all below it: torch reports there that torchvision is absent."""
    loggers = [logging.getLogger(n) for n in [name, *logging.root.manager.loggerDict] if n.startswith(name)]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def strip(model: onnx.ModelProto) -> None:
    """Remove node metadata and doc strings: the exporter writes the user's source paths there."""
    graphs: list[Any] = [model.graph, *model.functions]
    for graph in graphs:  # grows: If and Loop hold graphs of their own
        graphs += [a.g for node in graph.node for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]
        graph.doc_string = ""
        del graph.metadata_props[:]
        for part in [*graph.node, *getattr(graph, "initializer", []), *graph.value_info]:
            part.doc_string = ""
            del part.metadata_props[:]
    for value in [*model.graph.input, *model.graph.output]:
        value.doc_string = ""
        del value.metadata_props[:]
    del model.metadata_props[:]
    model.doc_string = ""
    model.producer_name, model.producer_version = "subcompress", ""


def describe(model: onnx.ModelProto, record: Record) -> None:
    """What a receiver needs, as the model's metadata: the facts and the weights' digest."""
    for key, value in record.facts.to_json().items():
        model.metadata_props.add(key=key, value=json.dumps(value))
    model.metadata_props.add(key="weights_digest", value=record.digest.hex())


def compare(data: bytes, module: nn.Module, facts: Facts) -> None:
    """Raise SubcompressError unless ONNX Runtime gives torch's outputs, at two batch sizes."""
    import onnxruntime

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    if len(session.get_outputs()) != 1:
        raise SubcompressError("a graph has one output as yet; this model returns several: unpack to .safetensors")
    for n in (1, 3):
        x = example_input(facts, n)
        with torch.no_grad():
            expected = module(x).numpy()
        found = np.asarray(session.run(None, {"input": x.numpy()})[0])
        worst = float(np.abs(found - expected).max()) if found.shape == expected.shape else float("inf")
        if not worst <= TOLERANCE * max(1.0, float(np.abs(expected).max())):
            raise SubcompressError(
                f"the ONNX graph's outputs differ from torch's by {worst:.2g} at batch size {n}: it was not kept; "
                "does forward depend on values or on the batch size?"
            )
