"""unpack and load: a file as dense weights, as ONNX, or inside a module."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from subcompress import format
from subcompress.base import weights_files
from subcompress.errors import SubcompressError
from subcompress.format.record import Record, Tied
from subcompress.rebuild.arrays import check_digest
from subcompress.rebuild.dense import write_dense
from subcompress.rebuild.streaming import stream
from subcompress.support.files import atomic_file
from subcompress.support.lazy import torch
from subcompress.tensors.layout import Layout, raw_bytes

if TYPE_CHECKING:
    from torch import Tensor, nn


def load(path: str | Path, module: nn.Module, *, base: Any = None, check: bool = True) -> nn.Module:
    """Rebuild the weights of a file into a module.

    The weights are computed on the module's device and in its own memory, without a second copy. What torch wraps
    around a network (torch.compile, DataParallel, ...) stays, and the file may know nothing of it.

    Args:
        path: A packed file.
        module: A module with the tensors that the file holds.
        base: The base that the file was fine-tuned from, if it has one; see `fit`. By default it is fetched from the
            Hub.
        check: Compare the weights with the digest in the file before the module is changed.

    Returns:
        The module, in evaluation mode.

    Raises:
        SubcompressError: The file is damaged, the module has other tensors (the message names the first that differs),
            or it holds other values once they are loaded.
    """
    record, _ = format.read(path, base)
    return load_record(record, module, check=check)


def load_record(record: Record, module: nn.Module, *, check: bool = True) -> nn.Module:
    """`load` for a record at hand."""
    from subcompress.subspace.copying import own_memory  # these import torch, and `unpack` need not
    from subcompress.subspace.unwrapping import unwrapped_for

    _load(record, own_memory(unwrapped_for(module, record.layout)), check)
    return module.eval()


def _load(record: Record, module: nn.Module, check: bool) -> None:
    from subcompress.rebuild.expand import expand, expand_checked, expand_into

    state = module.state_dict()
    record.layout.require(Layout.of(state), "the model")
    devices = {t.device for t in state.values()}
    device = next(iter(devices)) if len(devices) == 1 else torch.device("cpu")
    kind = device.type if device.type in ("cpu", "cuda") else "cpu"
    if kind == device.type and _writable(record, module, state):
        if check:
            check_digest(record, stream(record, backend=kind))
        expand_into(record, state)
        for tensor in state.values():
            torch.autograd.graph.increment_version(tensor)
    else:
        _load_state((expand_checked if check else expand)(record, kind), module)


def _load_state(given: Mapping[str, Tensor], module: nn.Module) -> None:
    """Load a state dict as the module does it. Raises SubcompressError, with the module as it was, where it holds other
    values afterwards: tensors may share memory, and a module may change what it loads."""
    before = {name: t.clone() for name, t in module.state_dict().items()}
    module.load_state_dict(given, strict=True)
    now = module.state_dict()
    odd = next((name for name, t in given.items() if name not in now or not _holds(now[name], t)), None)
    if odd is None:
        return
    module.load_state_dict(before, strict=True)
    from subcompress.subspace.hidden import shared_memory  # which needs torch, and dense weights do not

    shared = shared_memory(module)
    why = "it ties this to another, or changes what it loads"
    why = f"{shared[0]} and {shared[1]} overlap in memory" if shared else why
    raise SubcompressError(
        f"a module holds the file's weights once they are loaded; this one has other values in {odd} ({why}): give "
        "the module that was fitted, with memory of its own for each tensor"
    )


def _holds(tensor: Tensor, values: Tensor) -> bool:
    """Whether the bits are the same; a subclass that keeps its values in a way of its own is not asked."""
    return type(tensor) not in (torch.Tensor, torch.nn.Parameter) or raw_bytes(tensor) == raw_bytes(values)


def _writable(record: Record, module: nn.Module, state: Mapping[str, Tensor]) -> bool:
    """Whether writing into the tensors of the state dict, no two of which lie in one place but for those that the
    record ties, is all that loading it would do."""
    live = {
        t.data_ptr() for t in (*module.parameters(), *module.buffers()) if type(t) in (torch.Tensor, torch.nn.Parameter)
    }
    places: list[tuple[int, int]] = []
    for spec, entry in zip(record.layout, record.entries, strict=True):
        t = state[spec.name]
        if t.is_conj() or t.is_neg() or t.is_inference() or not t.is_contiguous():
            return False
        if not t.numel():
            continue
        if not t.data_ptr() or t.data_ptr() not in live:
            return False
        tie = isinstance(entry, Tied) and t.data_ptr() == state[record.layout.tensors[entry.index].name].data_ptr()
        if not tie:
            places.append((t.data_ptr(), t.data_ptr() + t.nbytes))
    places.sort()
    apart = all(end <= begin for (_, end), (begin, _) in pairwise(places))
    return apart and not any(_own_loading(m) for m in module.modules())


def _own_loading(m: nn.Module) -> bool:
    """Whether a module does more than copying when a state dict is loaded."""
    if m._load_state_dict_pre_hooks or m._load_state_dict_post_hooks:
        return True
    if "load_state_dict" in vars(m) or type(m).load_state_dict is not torch.nn.Module.load_state_dict:
        return True
    return "_load_from_state_dict" in vars(m) or not type(m)._load_from_state_dict.__module__.startswith("torch.")


def unpack(
    path: str | Path,
    output: str | Path,
    module: nn.Module | None = None,
    *,
    base: Any = None,
    self_unfolding: bool = False,
    dtype: str | None = None,
    done: Callable[[int], None] | None = None,
) -> Path:
    """Rebuild the weights of a file, check them against its digest, and write them.

    Args:
        path: A packed file.
        output: The file to write, whole or not at all. `.safetensors`: dense weights with the names, shapes and types
            of the state dict, written in bounded memory. `.onnx`: a graph, for which `module` is needed.
        module: The network, to trace a graph of.
        base: The base that the file was fine-tuned from, if it has one; see `load`.
        self_unfolding: Write a graph of a few kilobytes that computes its own weights.
        dtype: fp32, fp16 or bf16: round floating-point tensors of a .safetensors file to this type.
        done: Called with the number of bytes that were written, a few at a time, from any thread.

    Returns:
        The path of the output.

    Raises:
        SubcompressError: The file is damaged, its weights do not match, or the output cannot be written.
    """
    output = Path(output)
    record, _ = format.read(path, base)
    if output.suffix not in (suffixes := sorted({suffix for suffix, _ in EXPORTS}, reverse=True)):
        raise SubcompressError(
            f"unpack writes {' and '.join(suffixes)} files; {output.name} is neither: rename the output"
        )
    if (kind := (output.suffix, self_unfolding)) not in EXPORTS:
        raise SubcompressError(f"a self-unfolding graph must be an .onnx file; got {output.name}: rename the output")
    if dtype is not None and output.suffix != DENSE:
        raise SubcompressError(f"a dtype is chosen for {DENSE} files; {output.name} has the network's: leave it out")
    taken = {"the file itself": Path(path)}
    if isinstance(base, (str, Path)) and os.path.exists(base):
        taken |= {f"its base ({file.name})": file for file in weights_files(Path(base))}
    for what, other in taken.items():
        if os.path.exists(other) and os.path.exists(output) and os.path.samefile(other, output):
            raise SubcompressError(f"{output} is {what}: give another place for what it unpacks to")
    with atomic_file(output) as temporary:
        EXPORTS[kind](record, Wanted(module, dtype, done), temporary)
    return output


@dataclass(frozen=True)
class Wanted:
    """What was asked of an export: see `unpack`."""

    module: nn.Module | None
    dtype: str | None
    done: Callable[[int], None] | None

    def traced(self, record: Record) -> nn.Module:
        """The module to trace, with the record's weights. Raises SubcompressError without one."""
        if self.module is None:
            raise SubcompressError("an ONNX graph is traced from the network: give it with --model")
        from subcompress.subspace.unwrapping import unwrapped_for

        return unwrapped_for(load_record(record, self.module), record.layout)


Export = Callable[[Record, Wanted, Path], None]


def _dense(record: Record, wanted: Wanted, path: Path) -> None:
    if wanted.module is not None:
        from subcompress.subspace.unwrapping import unwrapped_for  # which imports torch

        module = unwrapped_for(wanted.module, record.layout)
        record.layout.require(Layout.of(module.state_dict()), "the model")
    write_dense(record, path, dtype=wanted.dtype, done=wanted.done)


def _onnx(record: Record, wanted: Wanted, path: Path) -> None:
    from subcompress.onnx import export  # onnx and onnxruntime are loaded only where they are needed

    export(record, wanted.traced(record), path)


def _self_unfolding(record: Record, wanted: Wanted, path: Path) -> None:
    if record.base is not None:
        raise SubcompressError(
            f"a self-unfolding graph holds no weights, and this one would hold the base {record.base.reference.where}: "
            "leave --self-unfolding out"
        )
    from subcompress.onnx import export_self_unfolding

    export_self_unfolding(record, wanted.traced(record), path)


DENSE = ".safetensors"

EXPORTS: dict[tuple[str, bool], Export] = {
    (DENSE, False): _dense,
    (".onnx", False): _onnx,
    (".onnx", True): _self_unfolding,
}
"""What unpack writes, by the output's suffix and whether it unfolds itself."""
