"""torch to ONNX: the graph of a module, without what names the machine it was traced on."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from subcompress.data.splits import leaves
from subcompress.errors import SubcompressError
from subcompress.facts import Facts, Input
from subcompress.layout import DTYPES
from subcompress.record import Record

OPSET = 18

IR_VERSION = 8
"""The one that came with the opset: newer ones shut older runtimes out for nothing that these graphs use."""

OLDEST_RUNTIME = "1.15"
"""The oldest ONNX Runtime that these graphs are tested with (tests/test_runtimes.py)."""


def graph_of(module: nn.Module, facts: Facts) -> onnx.ModelProto:
    """The graph of a module, its weights as initialisers, with a dynamic batch axis: `input` and `output`, or, where
    there are several, the inputs by their names (`input_0`, ... without) and `output_0`, ...

    Raises SubcompressError where torch cannot export the module, and for facts that do not say what goes in.
    """
    if not facts.input_shape and not facts.inputs and not facts.input_dtype:
        raise SubcompressError("a graph needs the input's shape, which this file does not say: fit with data that do")
    model = _trace(module, facts)
    strip(model)
    return model


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


def outputs_of(module: nn.Module, facts: Facts, n: int) -> list[Tensor]:
    """What torch gives for the example. Raises SubcompressError where it is not one tensor or several."""
    return _outputs(module, *_arguments(facts, n))


def _outputs(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> list[Tensor]:
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
        outputs = _outputs(module, args, kwargs)
        names = ["output"] if len(outputs) == 1 else [f"output_{i}" for i in range(len(outputs))]
        _require_names(module, {*example_inputs(facts), *names})
        with warnings.catch_warnings(), quiet("torch."), _of_their_own(module, outputs, (*args, *kwargs.values())):
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                module,
                args,
                kwargs=kwargs,
                dynamo=True,
                optimize=False,  # keeps the state dict's names on the initialisers
                input_names=list(example_inputs(facts)),
                output_names=names,
                dynamic_shapes=shapes,
                opset_version=OPSET,
                verbose=False,
            )
    except SubcompressError:
        raise
    except Exception as e:
        cause: BaseException = e
        while cause.__cause__ is not None:  # the exporter wraps what went wrong in pages of advice
            cause = cause.__cause__
        reason = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
        raise SubcompressError(f"torch.onnx cannot export this model ({reason}): unpack to .safetensors instead") from e
    assert program is not None
    return program.model_proto


def _require_names(module: nn.Module, taken: set[str]) -> None:
    for name in module.state_dict():
        if name in taken:
            raise SubcompressError(
                f"a graph calls its inputs and outputs {', '.join(sorted(taken))}, so no tensor may be called so; "
                f"the model has {name}: rename it, or unpack to .safetensors"
            )


@contextmanager
def _of_their_own(module: nn.Module, outputs: list[Tensor], inputs: tuple[Tensor, ...]) -> Iterator[None]:
    """Within, the module gives copies where an output is an input, a weight or another output: a graph has one name for
    a value."""
    known = {t.data_ptr() for t in (*inputs, *module.parameters(), *module.buffers()) if t.numel()}
    places = [t.data_ptr() for t in outputs if t.numel()]
    if not known.intersection(places) and len(set(places)) == len(places):
        yield
        return

    def copied(_: nn.Module, __: Any, found: Any) -> Any:
        return torch.utils._pytree.tree_map_only(Tensor, torch.clone, found)

    hook = module.register_forward_hook(copied)
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def quiet(name: str) -> Iterator[None]:
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


def graphs_within(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """The branches and bodies of an If, a Loop or a Scan."""
    found = []
    for attribute in node.attribute:
        found += [attribute.g] if attribute.HasField("g") else list(attribute.graphs)
    return found


def strip(model: onnx.ModelProto) -> None:
    """Remove node metadata and doc strings: the exporter writes the user's source paths there."""
    graphs: list[Any] = [model.graph, *model.functions]
    for graph in graphs:  # grows: If and Loop hold graphs of their own
        graphs += [inner for node in graph.node for inner in graphs_within(node)]
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
    model.ir_version = min(model.ir_version, IR_VERSION)
    model.producer_name, model.producer_version = "subcompress", ""


def describe(model: onnx.ModelProto, record: Record) -> None:
    """What a receiver needs, as the model's metadata: the facts and the weights' digest."""
    for key, value in record.facts.to_json().items():
        model.metadata_props.add(key=key, value=json.dumps(value, separators=(",", ":")))
    model.metadata_props.add(key="weights_digest", value=record.digest.hex())
    model.metadata_props.add(key="onnxruntime", value=f">={OLDEST_RUNTIME}")
