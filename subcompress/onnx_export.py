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

from subcompress.data.splits import Split, leaves
from subcompress.errors import SubcompressError
from subcompress.facts import Facts, Input
from subcompress.layout import DTYPES
from subcompress.record import Record

OPSET = 18
TOLERANCE = 1e-4
"""Outputs may differ by this share of their largest value: both engines sum in an order of their own."""


def export(record: Record, module: nn.Module, path: Path) -> None:
    """Write the graph of `module`, which holds the record's weights, with a dynamic batch axis: `input` and
    `output`, or, where there are several, the inputs by their names (`input_0`, ... without) and `output_0`, ...

    Raises SubcompressError where torch cannot export the module or ONNX Runtime computes something else.
    """
    if not record.facts.input_shape and not record.facts.inputs and not record.facts.input_dtype:
        raise SubcompressError("a graph needs the input's shape, which this file does not say: fit with data that do")
    model = graph_of(module, record.facts)
    describe(model, record)
    data = model.SerializeToString()
    compare(data, module, record.facts)
    path.write_bytes(data)


def graph_of(module: nn.Module, facts: Facts) -> onnx.ModelProto:
    """The graph of a module, its weights as initialisers. Raises SubcompressError where torch cannot export it."""
    model = _trace(module, facts)
    strip(model)
    return model


def accuracy_of_graph(data: bytes, split: Split) -> float:
    """Fraction of a split in memory that the graph puts first, one example at a time, in ONNX Runtime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    x = split.x.numpy()
    first = [int(np.argmax(session.run(None, {"input": x[i : i + 1]})[0])) for i in range(len(x))]
    return float(np.mean(np.array(first) == split.y.numpy()))


def example_inputs(facts: Facts, n: int = 2) -> dict[str, Tensor]:
    """Name in the graph -> (n, ...) values of the input's shape and dtype, the same every time: uniform in [0, 1), or
    zeros for integers."""
    generator = torch.Generator().manual_seed(n)
    inputs = facts.inputs or (Input("input", facts.input_dtype or "F32", facts.input_shape),)
    return {
        each.name or f"input_{i}": torch.rand((n, *each.shape), generator=generator).to(DTYPES[each.dtype][0])
        for i, each in enumerate(inputs)
    }


def _arguments(facts: Facts, n: int) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """The example as `forward` takes it: in order, and by name."""
    named = example_inputs(facts, n)
    if facts.inputs and all(each.name for each in facts.inputs):
        return (), named
    return tuple(named.values()), {}


def _outputs(module: nn.Module, facts: Facts, n: int) -> list[Tensor]:
    """What torch gives for the example. Raises SubcompressError where it is not one tensor or several."""
    args, kwargs = _arguments(facts, n)
    with torch.no_grad():
        found = list(leaves(module(*args, **kwargs)))
    if not found:
        raise SubcompressError("a graph gives tensors; this model returns none: unpack to .safetensors instead")
    return found


def _trace(module: nn.Module, facts: Facts) -> onnx.ModelProto:
    args, kwargs = _arguments(facts, 2)
    batch = torch.export.Dim("batch")
    shapes: Any = {name: {0: batch} for name in kwargs} if kwargs else tuple({0: batch} for _ in args)
    try:
        n = len(_outputs(module, facts, 2))
        with warnings.catch_warnings(), _quiet("torch."):
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                module,
                args,
                kwargs=kwargs,
                dynamo=True,
                optimize=False,  # keeps the state dict's names on the initialisers
                input_names=list(example_inputs(facts)),
                output_names=["output"] if n == 1 else [f"output_{i}" for i in range(n)],
                dynamic_shapes=shapes,
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

    try:
        session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    except Exception as e:  # its exceptions have no common base of their own
        raise SubcompressError(
            f"ONNX Runtime does not load this graph ({_line(e)}): unpack to .safetensors instead"
        ) from e
    for n in (1, 3):
        fed = {name: x.numpy() for name, x in example_inputs(facts, n).items()}
        taken = {i.name for i in session.get_inputs()}  # the exporter drops inputs that nothing depends on
        try:
            found = session.run(None, {name: x for name, x in fed.items() if name in taken})
        except Exception as e:
            raise SubcompressError(
                f"ONNX Runtime does not run this graph at batch size {n} ({_line(e)}): unpack to .safetensors instead"
            ) from e
        for expected, given in zip(_outputs(module, facts, n), found, strict=True):
            worst = _difference(expected.numpy(), np.asarray(given))
            if not worst <= TOLERANCE:
                raise SubcompressError(
                    f"the ONNX graph's outputs differ from torch's by {worst:.2g} at batch size {n}: it was not kept; "
                    "does forward depend on values, on the batch size or on random numbers?"
                )


def _difference(expected: np.ndarray, found: np.ndarray) -> float:
    """The largest difference, as a share of the largest value where that is above one."""
    if found.shape != expected.shape:
        return float("inf")
    if not expected.size:
        return 0.0
    reach = max(1.0, float(np.abs(expected).max()))
    return float(np.abs(found.astype(np.complex128) - expected.astype(np.complex128)).max()) / reach


def _line(e: BaseException) -> str:
    return " ".join(str(e).split())[:200]
