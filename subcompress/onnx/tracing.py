"""Tracing modules to ONNX graphs, without metadata that identifies the machine."""

from __future__ import annotations

import inspect
import json
import logging
import math
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from subcompress.data.in_memory import Tree, tensors_in
from subcompress.data.splits import main_output
from subcompress.errors import SubcompressError
from subcompress.format.facts import Facts, Input
from subcompress.format.record import Record
from subcompress.onnx.bags import plain_bags
from subcompress.onnx.crash_check import require_no_crash
from subcompress.onnx.registry import operators_read_once
from subcompress.onnx.sequences import padded
from subcompress.tensors.layout import DTYPES, array_of, torch_dtype

OPSET = 18

IR_VERSION = 8
"""The IR version that came with the opset. A newer one would exclude older runtimes without any use to these graphs."""

MAX_EXAMPLE = 1 << 26
"""The most bytes of the inputs with which a network is traced and compared. Three images of 3 x 1024 x 1024 take 38
million bytes. The activations take many times as much."""

OLDEST_RUNTIME = "1.15"
"""The oldest ONNX Runtime that these graphs are tested with (tests/onnx/test_runtimes.py)."""


def graph_of(module: nn.Module, facts: Facts) -> onnx.ModelProto:
    """The graph of a module, with its weights as initializers and a dynamic batch axis.

    Axes whose size in the facts is 0 are dynamic too. A single input is called `input`, and a single output `output`.
    Several inputs have their names, or `input_0`, ... without names; several outputs are `output_0`, ..., or the keys
    of a dictionary. The output of a transformers model is its `logits` or its `last_hidden_state`.

    Raises SubcompressError if torch cannot export the module, the facts do not describe the input, or the graph crashes
    ONNX Runtime.
    """
    if not facts.input_shape and not facts.inputs and not facts.input_dtype:
        raise SubcompressError(
            "a graph needs the input's shape, which this file does not state: fit with data that state it"
        )
    model = _trace(module, facts)
    _require_axes(model, facts)
    strip(model)
    lengths = lengths_of(module, facts)
    require_no_crash(model, (arrays(example_inputs(facts, *size, lengths)) for size in sizes_of(facts)))
    return model


TRACED = (2, 5)
"""Examples of the batch that is traced, and the size of its axes that vary."""


def sizes_of(facts: Facts) -> tuple[tuple[int, int], ...]:
    """Return the sizes of the batch and of varying axes at which a graph is compared with torch."""
    return ((1, 5), (3, 5), (2, 1), (1, 8)) if has_varying_axes(facts) else ((1, 5), (3, 5))


def arrays(x: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Return inputs for ONNX Runtime; bfloat16, which NumPy lacks, as its bits."""
    return {name: array_of(t) for name, t in x.items()}


def example_inputs(
    facts: Facts, n: int = TRACED[0], size: int = TRACED[1], lengths: Collection[str] = ()
) -> dict[str, Tensor]:
    """Example inputs by their names in the graph: (n, ...) values of the right shape and dtype, always the same ones.

    They are uniform in [0, 1), or zeros for integers. Texts need values that differ: `input_ids` are 0 and 1, and
    `attention_mask` leaves out the last half of every second example. size: the size of axes that vary. lengths: names
    of the inputs that hold the lengths of sequences, see `lengths_of`.
    """
    _check_example(facts, n, size)
    generator = torch.Generator().manual_seed(n)
    found = {}
    for i, each in enumerate(_inputs(facts)):
        x = torch.rand((n, *(k or size for k in each.shape)), generator=generator)
        if (each.name or f"input_{i}") in lengths:
            x = _lengths(n, next(s.shape[0] for s in _inputs(facts) if s.shape), size)
        if each.name == "input_ids":
            x = x.round()
        elif each.name == "attention_mask":
            x = torch.ones_like(x)
            x[1::2, (x.shape[-1] + 1) // 2 :] = 0
        found[each.name or f"input_{i}"] = x.to(torch_dtype(each.dtype))
    return found


def lengths_of(module: nn.Module, facts: Facts) -> frozenset[str]:
    """The inputs, by their names in the graph, that hold for each example the length of its sequence in another input.

    They are recognized by the name of the input, or of the argument of `forward`.
    """
    inputs = _inputs(facts)
    if all(not each.shape for each in inputs):
        return frozenset()
    try:
        arguments = [*inspect.signature(module.forward).parameters]
    except (TypeError, ValueError):
        arguments = []
    arguments += [""] * len(inputs)
    called = [each.name or name for each, name in zip(inputs, arguments, strict=False)]
    return frozenset(
        each.name or f"input_{i}"
        for i, (each, name) in enumerate(zip(inputs, called, strict=True))
        if not each.shape and not torch_dtype(each.dtype).is_floating_point and "len" in name.lower()
    )


def _lengths(n: int, whole: int, size: int) -> Tensor:
    """Lengths of n sequences in a batch, the longest first, as in a real batch.

    The longest is as long as the batch, except that of a single sequence if batches have a fixed length `whole`. If
    `whole` is 0, batches are padded to their longest sequence, of length `size`.
    """
    longest = whole or size
    if n == 1 and whole:
        longest = (whole + 1) // 2
    return (longest - torch.arange(n) * max(1, longest // 3)).clamp(min=1)


def _check_example(facts: Facts, n: int, size: int) -> None:
    """Raise SubcompressError if the facts, which may be forged, need too large an example."""
    widths = {name: max(4, kind.itemsize) for name, kind in DTYPES.items()}  # float32 is what is drawn
    taken = n * sum(math.prod(k or size for k in each.shape) * widths[each.dtype] for each in _inputs(facts))
    if taken > MAX_EXAMPLE:
        shapes = ", ".join(str(list(each.shape)) for each in _inputs(facts)[:3])
        raise SubcompressError(
            f"a graph is traced with inputs of at most {MAX_EXAMPLE} bytes; {n} of the file's shape {shapes} take "
            f"{taken}: unpack to .safetensors, and export the network yourself if the file is to be trusted"
        )


def inputs_by_name(x: Tree) -> dict[str, Tensor]:
    """Return a batch by the names of inputs in the graph."""
    if isinstance(x, dict):
        return x
    return {f"input_{i}": t for i, t in enumerate(x)} if isinstance(x, tuple) else {"input": x}


def _inputs(facts: Facts) -> tuple[Input, ...]:
    return facts.inputs or (Input("input", facts.input_dtype or "F32", facts.input_shape),)


def has_varying_axes(facts: Facts) -> bool:
    """Return whether an input has axes of varying size."""
    return any(0 in each.shape for each in _inputs(facts))


def _arguments(module: nn.Module, facts: Facts, n: int, size: int) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """Return the example as positional and keyword arguments of `forward`."""
    inputs = example_inputs(facts, n, size, lengths_of(module, facts))
    if facts.inputs and all(each.name for each in facts.inputs):
        return (), inputs
    return tuple(inputs.values()), {}


def outputs_of(module: nn.Module, facts: Facts, n: int, size: int = 5) -> list[Tensor]:
    """Return torch's outputs for the example. Raises SubcompressError unless they are one tensor or several."""
    return list(_outputs(module, *_arguments(module, facts, n, size)).values())


def _outputs(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The outputs by their names in a graph."""
    with torch.no_grad():
        found = module(*args, **kwargs)
    if main := main_output(found):
        return dict([main])
    if not (tensors := list(tensors_in(found))):
        raise SubcompressError("the model returns no tensors, which a graph needs: unpack to .safetensors instead")
    if len(tensors) == 1:
        return {"output": tensors[0]}
    keyed = found if isinstance(found, dict) and all(map(_names_one, found.items())) else {}
    plain = {name: t for name, t in keyed.items() if isinstance(t, Tensor)}
    taken = {*module.state_dict(), *_called(args, kwargs)}
    return plain if plain and taken.isdisjoint(plain) else {f"output_{i}": t for i, t in enumerate(tensors)}


def _names_one(entry: tuple[Any, Any]) -> bool:
    """Whether an entry of a dictionary is acceptable: a tensor with a name that a graph may have, or no tensor."""
    name, value = entry
    return isinstance(name, str) and name.isidentifier() if isinstance(value, Tensor) else not [*tensors_in(value)]


def _called(args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> set[str]:
    """Return the names of the inputs in the graph."""
    return {*kwargs, "input", *(f"input_{i}" for i in range(len(args)))}


def _trace(module: nn.Module, facts: Facts) -> onnx.ModelProto:
    args, kwargs = _arguments(module, facts, *TRACED)
    shapes = _shapes(module, [_axes(each.shape) for each in _inputs(facts)], kwargs)
    try:
        outputs = _outputs(module, args, kwargs)
        _require_names(module, {*example_inputs(facts), *outputs})
        held = list(outputs.values()), (*args, *kwargs.values())
        with warnings.catch_warnings(), quiet("torch."), _traceable(module, *held), operators_read_once():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                module,
                args,
                kwargs=kwargs,
                dynamo=True,
                optimize=False,  # keeps the state dict's names on the initializers
                input_names=list(example_inputs(facts)),
                output_names=list(outputs),
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


def _shapes(module: nn.Module, axes: list[Any], names: Collection[str]) -> Any:
    """Return the dynamic axes as torch.export takes them: bound to the parameters of `forward`, `*args` collecting
    several.

    names: those of the inputs, if they are given by name.
    """
    positional, keywords = ((), dict(zip(names, axes, strict=True))) if names else (tuple(axes), {})
    try:
        return inspect.signature(module.forward).bind(*positional, **keywords).arguments
    except (TypeError, ValueError):  # it tells nothing of its arguments
        return keywords or positional


def _axes(shape: tuple[int, ...]) -> dict[int, Any]:
    """The axes of an input that vary: the batch axis, and axes of size 0. Axes in the same place in several inputs vary
    together."""
    names = {0: "batch", 1: "length"}
    varying = [0, *(i for i, k in enumerate(shape, 1) if not k)]
    return {i: torch.export.Dim(names.get(i, f"length_{i}")) for i in varying}


BAKED = (
    "forward turns it into a plain number, as len(x) and int(x.shape[0]) do, so that the graph holds the value "
    "it was traced with: use x.shape[0] as it is, or unpack to .safetensors instead"
)


def _require_axes(model: onnx.ModelProto, facts: Facts) -> None:
    """Raise SubcompressError if the graph fixes an axis that varies to the size with which it was traced."""
    dims = {value.name: value.type.tensor_type.shape.dim for value in model.graph.input}
    for name, each in zip(example_inputs(facts), _inputs(facts), strict=True):
        for axis in _axes(each.shape) if name in dims else ():
            if dims[name][axis].HasField("dim_value"):
                what = f"{name} of any size in its axis {axis}" if axis else "batches of any size"
                raise SubcompressError(f"a graph must take {what}, and this one would not: {BAKED}")


@contextmanager
def _traceable(module: nn.Module, outputs: list[Tensor], inputs: tuple[Tensor, ...]) -> Iterator[None]:
    """Make the module exportable by torch within the block."""
    with _main_alone(module), _of_their_own(module, outputs, inputs), padded(module), plain_bags():
        yield


@contextmanager
def _main_alone(module: nn.Module) -> Iterator[None]:
    """Within the block, a transformers model returns one tensor, and a dictionary is replaced by its tensors."""

    def picked(_: nn.Module, __: Any, found: Any) -> Any:
        if main := main_output(found):
            return main[1]
        return tuple(tensors_in(found)) if isinstance(found, dict) else found

    hook = module.register_forward_hook(picked)
    try:
        yield
    finally:
        hook.remove()


def _require_names(module: nn.Module, taken: set[str]) -> None:
    for name in module.state_dict():
        if name in taken:
            raise SubcompressError(
                f"the model has a tensor called {name}, but a graph uses {', '.join(sorted(taken))} for its "
                "inputs and outputs: rename it, or unpack to .safetensors"
            )


@contextmanager
def _of_their_own(module: nn.Module, outputs: list[Tensor], inputs: tuple[Tensor, ...]) -> Iterator[None]:
    """Within the block, let the module return a copy if an output is an input, a weight or another output, because a
    graph has only one name for each value."""
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
    """Silence a logger and all below it except errors: torch warns there that torchvision is missing."""
    known = [logging.getLogger(n) for n in [name, *logging.root.manager.loggerDict] if n.startswith(name)]
    # Those that have no level take that of the one above. To set a level takes as long as there are loggers.
    loggers = [log for log in known if log.level or log.parent is None or not log.parent.name.startswith(name)]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def graphs_within(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """Return the subgraphs of an If, a Loop or a Scan."""
    found = []
    for attribute in node.attribute:
        found += [attribute.g] if attribute.HasField("g") else list(attribute.graphs)
    return found


def strip(model: onnx.ModelProto) -> None:
    """Remove node metadata and doc strings, in which the exporter writes the user's source paths."""
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
    """Write the facts and the weights' digest to the model's metadata."""
    for key, value in record.facts.to_json().items():
        model.metadata_props.add(key=key, value=json.dumps(value, separators=(",", ":")))
    model.metadata_props.add(key="weights_digest", value=record.digest.hex())
    model.metadata_props.add(key="onnxruntime", value=f">={OLDEST_RUNTIME}")
