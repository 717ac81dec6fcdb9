"""The base of a record in a graph: initializers whose data lie in the base's own safetensors files."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto

from subcompress.base import OnBase, file_location
from subcompress.errors import SubcompressError
from subcompress.format.record import Coded, Factored, Record, Unchanged
from subcompress.onnx.nodes import Nodes
from subcompress.onnx.outside import BASE, FILES, sha256_of
from subcompress.tensors.layout import DTYPES, TensorSpec, raw_bytes
from subcompress.tensors.rounding import TINY, rounded

KINDS = {
    "F32": TensorProto.FLOAT,
    "F16": TensorProto.FLOAT16,
    "BF16": TensorProto.BFLOAT16,
    "F64": TensorProto.DOUBLE,
    "I64": TensorProto.INT64,
    "I32": TensorProto.INT32,
    "I16": TensorProto.INT16,
    "I8": TensorProto.INT8,
    "U8": TensorProto.UINT8,
    "BOOL": TensorProto.BOOL,
    "C64": TensorProto.FLOAT,
}
"""Dtype -> ONNX's name for the type of its real numbers."""


@dataclass(frozen=True)
class Place:
    """Where a tensor of the base lies: a file, the first byte in it, and its values."""

    file: Path
    offset: int
    values: np.ndarray


def files_of(record: Record) -> dict[str, Path]:
    """Return the files, by name, that hold the tensors that a record takes from its base.

    Raises SubcompressError if the base's tensors do not lie in safetensors files as the network needs them, and for
    matrices with factors.
    """
    if kinds := {entry.kind for entry in record.entries if isinstance(entry, Factored)}:
        raise SubcompressError(
            "a self-unfolding graph cannot add factors to the base's tensors, as this file does (--act-on "
            f"{kinds.pop()}): leave --self-unfolding out"
        )
    files: dict[str, Path] = {}
    for name in taken(record):
        path = _place(record, name).file
        if files.setdefault(path.name, path) != path:
            raise SubcompressError(
                "the files of the base are placed in the graph's folder, but two of them are called "
                f"{path.name}: rename one"
            )
    return files


def taken(record: Record) -> list[str]:
    """Return the names of the tensors that equal, or start at, those of the base."""
    return [
        spec.name
        for spec, entry in zip(record.layout, record.entries, strict=True)
        if spec.size and (isinstance(entry, Unchanged) or (isinstance(entry, Coded) and entry.based))
    ]


def converted(record: Record) -> int:
    """Return the bytes of the tensors that a session has to convert from the base's dtype to the network's."""
    base, specs = _base(record), {spec.name: spec for spec in record.layout}
    return sum(specs[n].nbytes for n in taken(record) if base.own(n)[0].dtype != specs[n].dtype)


def _base(record: Record) -> OnBase:
    assert record.base is not None, "only records on a base are given"
    return record.base


def _place(record: Record, name: str) -> Place:
    base = _base(record)
    spec, values = base.own(name)
    if (found := file_location(values)) is not None:
        return Place(found[0], found[1], values)
    where = base.reference.where
    if all(file_location(base.own(n)[1]) is None for n in taken(record)):
        raise SubcompressError(
            f"a graph reads its base from a safetensors file, but {where} was given in another way (a file of "
            "torch.save, or tensors in memory): save its tensors with safetensors once, which keeps the "
            "digest, and give that file with --base"
        )
    raise SubcompressError(
        f"a graph cannot read {spec.name} of {where} directly from the file, because the network has more rows "
        "of it, or because it begins at an odd offset: leave --self-unfolding out"
    )


class ExternalBase:
    """The tensors of a record's base as values of a graph, each added to `nodes` when it is asked for.

    places: where the data of each initializer lie, by its name.
    """

    def __init__(self, record: Record, nodes: Nodes) -> None:
        self.record, self.nodes = record, nodes
        self.places: dict[str, Place] = {}
        self._known: dict[tuple[str, tuple[int, ...]], str] = {}

    def kept(self, spec: TensorSpec, dims: Iterable[int]) -> str:
        """Return the name of a tensor's values in the network's dtype and in the given shape."""
        own, value = self._initializer(spec.name, dims)
        return self._cast(value, own.dtype, spec.dtype)

    def start(self, spec: TensorSpec, wide: bool) -> str:
        """Return the name of the values that products are added to: flat, float32, or float64 where that is wide.
        Values below 2^-126 in absolute value are zero in float32 (docs/FORMAT.md, section 10)."""
        n = self.nodes
        own, value = self._initializer(spec.name, [spec.reals])
        value = self._cast(value, own.dtype, spec.dtype)
        if spec.dtype in ("F16", "BF16"):
            value = n("Cast", value, to=TensorProto.FLOAT)
        values = rounded(_base(self.record).reals(spec.name), DTYPES["F32"])
        if not wide and ((values != 0) & (np.abs(values) < TINY)).any():
            value = n("Where", n("Less", n("Abs", value), np.float32(TINY)), np.float32(0), value)
        return value

    def _cast(self, value: str, own: str, dtype: str) -> str:
        if own == dtype:
            return value
        steps = ["F32", dtype] if own == "F64" and dtype != "F32" else [dtype]
        for step in steps:
            value = self.nodes("Cast", value, to=KINDS[step])
        return value

    def _initializer(self, name: str, dims: Iterable[int]) -> tuple[TensorSpec, str]:
        """The tensor as the base holds it, and the name of an initializer that reads it."""
        spec, place = _base(self.record).own(name)[0], _place(self.record, name)
        if (key := (name, tuple(dims))) in self._known:
            return spec, self._known[key]
        tensor = TensorProto(name=next(self.nodes.names), data_type=KINDS[spec.dtype], dims=key[1])
        tensor.data_location = TensorProto.EXTERNAL
        entries = {"location": place.file.name, "offset": place.offset, "length": place.values.nbytes}
        for entry, value in entries.items():
            tensor.external_data.add(key=entry, value=str(value))
        self.nodes.constants.append(tensor)
        self._known[key] = tensor.name
        self.places[tensor.name] = place
        return spec, tensor.name

    def describe(self, model: onnx.ModelProto, folder: Path) -> None:
        """Write to the metadata which base the graph reads, and the SHA-256 of the base's files in the folder."""
        names = sorted({place.file.name for place in self.places.values()})
        digests = {name: sha256_of(folder / name) for name in names}
        model.metadata_props.add(key=BASE, value=_base(self.record).reference.where)
        model.metadata_props.add(key=FILES, value=json.dumps(digests, separators=(",", ":")))

    def check(self, folder: Path) -> None:
        """Raise SubcompressError unless the files in that folder hold the base's values where the graph reads them."""
        for place in self.places.values():
            values = place.values
            with (folder / place.file.name).open("rb") as f:
                f.seek(place.offset)
                same = f.read(values.nbytes) == raw_bytes(values)
            if not same:
                raise SubcompressError(
                    f"{folder / place.file.name} does not hold the base's tensors in the same places as "
                    f"{place.file}: give another folder, or remove it"
                )
