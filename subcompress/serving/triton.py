"""Exporting to model repositories of NVIDIA Triton Inference Server: a folder for each model with configuration and
graph."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from subcompress.errors import SubcompressError, one_line
from subcompress.support.files import atomic_folder, read_bytes, write_bytes
from subcompress.support.suggestions import suggestion

if TYPE_CHECKING:  # loaded where they are needed
    import onnx
    from torch import nn

CONFIG, VERSION, GRAPH = "config.pbtxt", "1", "model.onnx"

TEMPLATES = Path(__file__).parent.parent / "templates"

MAX_BATCH = 64
"""The most examples in a run by default."""

MAX_GRAPH_BYTES = (1 << 31) - 1
"""The most bytes of a protobuf message."""

MARK = re.compile(r"# Written by `subcompress export`: ([0-9a-f]{32})\n")
"""The first line of our configurations, with a digest of the rest and of the other files in the folder."""

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")

TYPES = {
    "BOOL": "TYPE_BOOL",
    "UINT8": "TYPE_UINT8",
    "UINT16": "TYPE_UINT16",
    "UINT32": "TYPE_UINT32",
    "UINT64": "TYPE_UINT64",
    "INT8": "TYPE_INT8",
    "INT16": "TYPE_INT16",
    "INT32": "TYPE_INT32",
    "INT64": "TYPE_INT64",
    "FLOAT16": "TYPE_FP16",
    "FLOAT": "TYPE_FP32",
    "DOUBLE": "TYPE_FP64",
}
"""ONNX's type -> Triton's, for types that ONNX Runtime, NumPy and both backends have."""


@dataclass(frozen=True)
class Backend:
    """files: name in the version's folder -> template that it is a copy of; settings: lines of the configuration."""

    files: Mapping[str, str] = field(default_factory=dict)
    settings: tuple[str, ...] = ()


BACKENDS: dict[str, Backend] = {
    "onnxruntime": Backend(),
    # One process, which computes on the CPU: without the line Triton starts one for each GPU.
    "python": Backend({"model.py": "triton_model.py"}, ("instance_group [ { count: 1 kind: KIND_CPU } ]",)),
}
"""Triton's name of a backend -> the files and settings that it needs in addition to the graph."""


@dataclass(frozen=True)
class Source:
    """A model to export. path: a packed file, or an .onnx file, which is taken as it is; name: what Triton calls it;
    module: the network of a packed file, to trace; base: its base, see `subcompress.load`."""

    path: Path
    name: str
    module: nn.Module | None = None
    base: Any = None

    @property
    def is_graph(self) -> bool:
        """Whether the file is an .onnx file."""
        return self.path.suffix == ".onnx"


@dataclass(frozen=True)
class Exported:
    """A model that was written. folder: that of the model; max_batch: the most examples in a run, 0 if its inputs have
    no batch axis; files: the bytes of each file in the folder."""

    name: str
    folder: Path
    max_batch: int
    files: dict[str, int]


def export(
    sources: Iterable[Source],
    repository: str | Path,
    *,
    backend: str = "onnxruntime",
    dense: bool = False,
    max_batch: int = MAX_BATCH,
    force: bool = False,
) -> list[Exported]:
    """Write a model repository: REPOSITORY/NAME/config.pbtxt and REPOSITORY/NAME/1/model.onnx for each source, a
    folder whole or not at all, in place of one that an export wrote.

    backend: one of BACKENDS. dense: graphs of packed files hold their weights, else they compute them where they are
    loaded (docs/ONNX.md). max_batch: requests are joined up to this many examples; 0: never. force: replace folders
    that no export wrote, or that were changed since.

    Raises SubcompressError before anything is written, if a name is invalid for Triton, given twice or that of a folder
    that no export wrote, or if a packed file cannot be read, lacks its network, or cannot unfold itself and should.
    """
    if backend not in BACKENDS:
        known = ", ".join(BACKENDS)
        raise SubcompressError(f"backend must be one of {known}; got {backend!r}{suggestion(backend, BACKENDS)}")
    if not 0 <= max_batch < 1 << 31:
        raise SubcompressError(
            f"the batch must be at least 1 example, or 0 to leave requests separate; got {max_batch}"
        )
    sources, repository = list(sources), Path(repository)
    check_names((source.name, source.path) for source in sources)
    for source in sources:
        if not force and not is_own_export(repository / source.name):
            raise SubcompressError(
                f"{repository / source.name} exists and was not written by an export, or was changed since: "
                "move it away, or give --force"
            )
        if not source.is_graph:
            _require(source, dense)
    return [_export(source, repository, backend, dense, max_batch) for source in sources]


def check_names(named: Iterable[tuple[str, str | Path]]) -> None:
    """Raise SubcompressError unless Triton accepts the names of these files and each occurs once. named: pairs."""
    seen: dict[str, str | Path] = {}
    for name, file in named:
        if not NAME.fullmatch(name):
            raise SubcompressError(
                "the name of a model must be at most 200 letters, digits and . _ -, not beginning with a dot "
                f"or dash; {file} would be called {name!r}: give --name"
            )
        if name in seen:
            raise SubcompressError(
                f"{seen[name]} and {file} would both be called {name}: export them one by one, with --name"
            )
        seen[name] = file


def is_own_export(folder: Path) -> bool:
    """Return whether a model's folder may be replaced: it is missing, or unchanged since an export wrote it."""
    if not os.path.lexists(folder):
        return True
    try:
        with (folder / CONFIG).open("rb") as f:
            head = f.readline(200)
        mark = MARK.fullmatch(head.decode("utf-8", "replace"))
        return mark is not None and not folder.is_symlink() and mark[1] == _digest(folder, len(head))
    except OSError:
        return False


def _digest(folder: Path, head: int) -> str:
    """Over the files of a folder: the configuration without its first `head` bytes, and not what Python compiled."""
    whole = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.parent.name != "__pycache__":
            of_file = hashlib.sha256()
            with path.open("rb") as f:
                f.seek(head if path == folder / CONFIG else 0)
                while chunk := f.read(1 << 20):
                    of_file.update(chunk)
            whole.update(f"{path.relative_to(folder).as_posix()}\n{of_file.hexdigest()}\n".encode())
    return whole.hexdigest()[:32]


def _require(source: Source, dense: bool) -> None:
    """Raise SubcompressError for a packed file of which no graph can be made, as far as it says itself."""
    from subcompress import format  # which imports NumPy, and help texts do not

    base = format.contents(source.path).base
    if base is not None and not dense:
        raise SubcompressError(
            f"the self-unfolding graph of {source.path} would need the base {base.where}, which Triton does not "
            "have: give --dense"
        )
    if source.module is None:
        raise SubcompressError(
            f"{source.path} does not show which network it is, from which the graph is traced: give --model"
        )


def _export(source: Source, repository: Path, backend: str, dense: bool, max_batch: int) -> Exported:
    kind, target = BACKENDS[backend], repository / source.name
    with atomic_folder(target) as folder:
        (folder / VERSION).mkdir()
        model = _graph(source, folder / VERSION / GRAPH, dense)
        for name, template in kind.files.items():
            write_bytes(folder / VERSION / name, (TEMPLATES / template).read_bytes())
        joined = max_batch if has_batch_axis(model.graph) else 0
        text = configuration(source, model.graph, backend, joined)
        write_bytes(folder / CONFIG, text.encode())
        write_bytes(folder / CONFIG, f"# Written by `subcompress export`: {_digest(folder, 0)}\n{text}".encode())
        found = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        files = {path.relative_to(folder).as_posix(): path.stat().st_size for path in found}
    return Exported(source.name, target, joined, files)


def _graph(source: Source, path: Path, dense: bool) -> onnx.ModelProto:
    """Write the graph of a source and return it."""
    import onnx

    from subcompress.api.unpack import unpack

    if source.is_graph:
        write_bytes(path, _checked(source.path))
    else:
        unpack(source.path, path, source.module, base=source.base, self_unfolding=not dense)
    return onnx.load(path, load_external_data=False)


def _checked(path: Path) -> bytes:
    """Load an .onnx file that ONNX Runtime opens without other files. Raises SubcompressError."""
    import onnx

    from subcompress.onnx.runtime import open_graph

    data = read_bytes(path, MAX_GRAPH_BYTES)
    try:
        model = onnx.load_from_string(data)
    except Exception as e:  # protobuf's exceptions differ from release to release
        raise SubcompressError(f"{path} is not an ONNX file ({one_line(e)}): give one that ONNX Runtime opens") from e
    if any(t.data_location == onnx.TensorProto.EXTERNAL for t in model.graph.initializer):
        raise SubcompressError(f"{path} keeps weights in other files: save it with its weights inside")
    try:
        open_graph(data)
    except SubcompressError as e:
        raise SubcompressError(f"{path}: {e}") from e
    return data


def _inputs(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    inside = {t.name for t in graph.initializer}
    return [value for value in graph.input if value.name not in inside]


def _axes(value: onnx.ValueInfoProto) -> list[int | str]:
    """Of a tensor: the size of each axis, or the name of one that varies, which may be empty (or its size -1)."""
    return [dim.dim_value if dim.dim_value > 0 else dim.dim_param for dim in value.type.tensor_type.shape.dim]


def has_batch_axis(graph: onnx.GraphProto) -> bool:
    """Return whether all inputs and outputs have the same varying first axis, the batch's."""
    axes = [_axes(value) for value in [*_inputs(graph), *graph.output]]
    return all(a and isinstance(a[0], str) for a in axes) and len({a[0] for a in axes}) == 1


def configuration(source: Source, graph: onnx.GraphProto, backend: str, max_batch: int) -> str:
    """config.pbtxt: text of Triton's ModelConfig. max_batch: above 0 the first axis of every tensor goes without
    saying. Raises SubcompressError for a graph without inputs or outputs and for what is no tensor of numbers."""
    lines = [f'name: "{source.name}"', f'backend: "{backend}"', f"max_batch_size: {max_batch}"]
    for kind, values in (("input", _inputs(graph)), ("output", list(graph.output))):
        if not values:
            raise SubcompressError(f"the graph of {source.path} has no {kind}, which Triton needs")
        lines += [f"{kind} [", ",\n".join(_tensor(source, value, max_batch > 0) for value in values), "]"]
    lines += BACKENDS[backend].settings
    if max_batch:
        lines.append("dynamic_batching { }")  # joins what waits already, and never waits itself
    return "\n".join(lines) + "\n"


def _tensor(source: Source, value: onnx.ValueInfoProto, has_batch_axis: bool) -> str:
    import onnx

    of = value.type.tensor_type
    kind = {number: name for name, number in onnx.TensorProto.DataType.items()}.get(of.elem_type, "UNDEFINED")
    if kind not in TYPES or not of.HasField("shape"):
        raise SubcompressError(
            f"Triton takes only tensors with a shape, of {', '.join(TYPES)}; {value.name} in the graph of "
            f"{source.path} is {kind}{'' if of.HasField('shape') else ', without a shape'}"
        )
    axes = [size if isinstance(size, int) else -1 for size in _axes(value)][int(has_batch_axis) :]
    # Triton has no tensor without axes: one of a single value stands for it outside.
    shape = f"dims: [ {', '.join(map(str, axes))} ]" if axes else "dims: [ 1 ]\n    reshape { shape: [ ] }"
    return f"  {{\n    name: {quoted(value.name)}\n    data_type: {TYPES[kind]}\n    {shape}\n  }}"


def quoted(text: str) -> str:
    """Quote a string in protobuf's text format."""
    plain = [chr(c) if 32 <= c < 127 and c not in b'"\\' else f"\\{c:03o}" for c in text.encode()]
    return f'"{"".join(plain)}"'
