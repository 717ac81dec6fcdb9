"""The layout and facts sections of a payload."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from subcompress.base import FLOATS, BaseReference
from subcompress.errors import SubcompressError
from subcompress.format import tables
from subcompress.format.facts import Facts, Input
from subcompress.format.wire import Reader, Writer, unique_keys
from subcompress.tensors.digest import SIZE as DIGEST_SIZE
from subcompress.tensors.layout import DTYPES, MAX_NAME, Layout, TensorSpec, is_valid_name, is_valid_text

ON_BASE = 7
"""The layout number that marks a layout on a base; the table does not use it."""

MAX_TENSORS = 1 << 16
FREE_TENSORS, TENSORS_A_BYTE = 1 << 14, 4
"""The most tensors in a list, and how many more per byte of the file. In regular networks of thousands of layers a
tensor takes a fifth of a byte; only a forged list takes less."""

MAX_AXES = 16
MAX_DENSE_BYTES = 1 << 36
MAX_LAYOUT_BYTES = 1 << 24
MAX_FACTS_BYTES = 1 << 20
MAX_INPUT = 1 << 26
MAX_INPUTS = 1 << 12
_CODES = list(DTYPES)
_LISTS = {"input_shape": int, "mean": float, "std": float, "labels": str}


def write_layout(w: Writer, layout: Layout) -> None:
    """Write the layout's number in the table, or 0 and the deflated list of tensors, names front-coded."""
    if number := tables.number_of(tables.layouts(), layout):
        w.varint(number)
        return
    body = Writer()
    _write_list(body, layout)
    w.varint(0)
    w.deflated(bytes(body.data))


def _write_list(w: Writer, layout: Layout) -> None:
    previous = b""
    w.varint(len(layout))
    for spec in layout:
        name = spec.name.encode()
        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(name, previous, strict=False)))
        for number in (same, len(name) - same):
            w.varint(number)
        w.raw(name[same:])
        for number in (_CODES.index(spec.dtype), len(spec.shape), *spec.shape):
            w.varint(number)
        previous = name


def read_layout(r: Reader) -> Layout | BasedLayout:
    """Read what `write_layout` or `write_based_layout` wrote, checking sizes before allocating anything."""
    number = r.varint("the layout's number", 1 << 32)
    if number == ON_BASE:
        return _read_based_layout(r)
    if number:
        if number not in tables.layouts():
            raise r.fail(f"layout {number} is unknown to this version: a newer subcompress may know it; otherwise")
        return tables.layouts()[number]
    body = Reader(r.deflated("layout", MAX_LAYOUT_BYTES), r.bytes)
    body.part("layout")
    layout = _read_list(body)
    if body.at != len(body.data):
        raise r.fail("a layout ends with the last tensor")
    if layout.nbytes > MAX_DENSE_BYTES:
        raise r.fail(f"the tensors of a file may take at most {MAX_DENSE_BYTES} bytes; these claim {layout.nbytes}")
    return layout


def _read_list(r: Reader) -> Layout:
    specs: list[TensorSpec] = []
    previous = b""
    most = min(MAX_TENSORS, FREE_TENSORS + TENSORS_A_BYTE * r.bytes)
    for _ in range(r.varint("the number of tensors", most)):
        spec, previous = _read_spec(r, previous)
        specs.append(spec)
    if len({s.name for s in specs}) != len(specs):
        raise r.fail("a layout names each tensor once")
    return Layout(tuple(specs))


@dataclass(frozen=True)
class BasedLayout:
    """The layout of a file on a base: the base's tensors as `base` maps them, then the `new` ones. nbytes: dense bytes
    of all."""

    base: BaseReference
    new: Layout
    nbytes: int

    def __len__(self) -> int:
        return self.base.count - len(self.base.unused) + len(self.new)

    def on(self, base: Layout) -> Layout:
        """Return the layout of the model, given the base's. Raises SubcompressError if it is another base."""
        layout = Layout((*self.base.layout(base), *self.new))
        if len({s.name for s in layout}) != len(layout) or layout.nbytes != self.nbytes:
            raise SubcompressError(
                "the file names a tensor twice, or the bytes of its tensors are not those that it states: the file "
                "is forged"
            )
        if bad := next((s for s in layout if not is_valid_text(s.name) or not is_valid_name(s.name)), None):
            raise SubcompressError(
                f"the file calls a tensor {bad.name[:80]!r}, which is not a valid name: it is forged"
            )
        return layout


def write_based_layout(w: Writer, base: BaseReference, new: Layout, nbytes: int) -> None:
    """Write the layout number of a file on a base, the reference to the base, and the differences from it."""
    w.varint(ON_BASE)
    _write_text(w, base.name)
    w.varint(1 if base.revision else 0)
    w.raw(bytes.fromhex(base.revision))
    w.raw(base.digest)
    w.varint(base.count)
    _write_text(w, base.strip)
    _write_text(w, base.add)
    w.varint(1 + FLOATS.index(base.dtype) if base.dtype else 0)
    w.varint(len(base.unused))
    previous = -1
    for number in base.unused:
        w.varint(number - previous - 1)
        previous = number
    _write_list(w, new)
    w.varint(nbytes)


def _read_based_layout(r: Reader) -> BasedLayout:
    r.part("base")
    name = _read_text(r, "the base's name")
    if not name:
        raise r.fail("a base has a name")
    revision = r.raw(20).hex() if r.varint("whether the base has a revision", 1) else ""
    digest = r.raw(DIGEST_SIZE)
    count = r.varint("the number of tensors of the base", MAX_TENSORS)
    strip, add = _read_text(r, "a prefix"), _read_text(r, "a prefix")
    dtype = ("", *FLOATS)[r.varint("a dtype of floats", len(FLOATS))]
    unused: list[int] = []
    for _ in range(r.varint("the number of unused tensors", count)):
        unused.append((unused[-1] + 1 if unused else 0) + r.varint("the number of an unused tensor", count))
    if unused and unused[-1] >= count:
        raise r.fail("unused tensors are among those of the base")
    r.part("layout")
    new = _read_list(r)
    if count - len(unused) + len(new) > MAX_TENSORS:
        raise r.fail(f"a file has at most {MAX_TENSORS} tensors")
    dense = r.varint("the bytes of all tensors", MAX_DENSE_BYTES)
    return BasedLayout(BaseReference(name, revision, digest, count, strip, add, dtype, tuple(unused)), new, dense)


def _write_text(w: Writer, text: str) -> None:
    w.varint(len(text.encode()))
    w.raw(text.encode())


def _read_text(r: Reader, what: str) -> str:
    try:
        text = r.raw(r.varint(f"the length of {what}", MAX_NAME)).decode()
    except UnicodeDecodeError as e:
        raise r.fail(f"{what} is UTF-8") from e
    if text and min(text) < " ":
        raise r.fail(f"{what} has no control characters")
    return text


def _read_spec(body: Reader, previous: bytes) -> tuple[TensorSpec, bytes]:
    same = body.varint("a shared prefix", len(previous))
    name = previous[:same] + body.raw(body.varint("a name's length", MAX_NAME))
    dtype = _CODES[body.varint("a dtype", len(_CODES) - 1)]
    axes = body.varint("the number of axes", MAX_AXES)
    shape = tuple(body.varints(axes, "an axis", MAX_DENSE_BYTES))
    if len(name) > MAX_NAME or math.prod(filter(None, shape)) > MAX_DENSE_BYTES:
        raise body.fail(
            f"a tensor may have at most {MAX_DENSE_BYTES} values and {MAX_NAME} bytes of name; "
            f"this one has the shape {shape}"
        )
    try:
        text = name.decode()
    except UnicodeDecodeError as e:
        raise body.fail("a tensor's name is UTF-8") from e
    if not is_valid_name(text):
        raise body.fail("a tensor's name has no control characters and is not __metadata__")
    return TensorSpec(text, dtype, shape), name


def write_facts(w: Writer, facts: Facts) -> None:
    """Write 0 for no facts, their number in the table, or 1 and deflated JSON."""
    if facts == Facts():
        w.varint(0)
    elif number := tables.number_of(tables.facts(), facts):
        w.varint(number)
    else:
        w.varint(1)
        w.deflated(json.dumps(facts.to_json(), separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode())


def read_facts(r: Reader) -> Facts:
    """Read what `write_facts` wrote."""
    number = r.varint("the facts' number", 1 << 32)
    if number == 0:
        return Facts()
    if number > 1:
        if number not in tables.facts():
            raise r.fail(f"facts {number} are unknown to this version: a newer subcompress may know them; otherwise")
        return tables.facts()[number]
    try:
        found = json.loads(r.deflated("facts", MAX_FACTS_BYTES).decode(), object_pairs_hook=unique_keys)
        return _parse_facts(found)
    except (ValueError, TypeError, RecursionError, UnicodeDecodeError) as e:
        raise r.fail("facts must be a JSON object of known fields") from e


def _parse_facts(found: Any) -> Facts:
    """Convert JSON to facts. Raises TypeError or ValueError for unknown fields and wrong types."""
    if not isinstance(found, dict):
        raise TypeError(found)
    if "input_dtype" in found and found["input_dtype"] not in DTYPES:
        raise ValueError(found["input_dtype"])
    dtype = found.pop("input_dtype", "")
    inputs = found.pop("inputs", [])
    if not isinstance(inputs, list) or len(inputs) > MAX_INPUTS or not all(isinstance(each, list) for each in inputs):
        raise TypeError("inputs")
    names = [each[0] for each in inputs if each and each[0] != ""]
    if len(set(names)) != len(names):
        raise ValueError("two inputs have the same name")
    lists = {}
    for key, values in found.items():
        kind = _LISTS.get(key)
        if kind is None or not isinstance(values, list) or any(type(v) is not kind for v in values):
            raise TypeError(key)
        if kind is float and not all(map(math.isfinite, values)):
            raise ValueError(key)
        lists[key] = tuple(values)
    if not _is_valid_shape(lists.get("input_shape", ())):
        raise ValueError("input_shape")
    if any(k <= 0 for k in lists.get("std", ())):
        raise ValueError("std")
    for label in lists.get("labels", ()):
        label.encode()  # a lone surrogate raises UnicodeEncodeError, a ValueError
    return Facts(input_dtype=dtype, inputs=tuple(_parse_input(*each) for each in inputs), **lists)


def _is_valid_shape(shape: tuple[int, ...]) -> bool:
    return len(shape) <= MAX_AXES and min(shape, default=0) >= 0 and math.prod(max(1, k) for k in shape) <= MAX_INPUT


def _parse_input(name: Any, dtype: Any, shape: Any) -> Input:
    """Convert a name, a dtype and a shape to an Input. Raises TypeError or ValueError."""
    if type(name) is not str or type(shape) is not list or any(type(k) is not int for k in shape):
        raise TypeError(name)
    name.encode()
    if dtype not in DTYPES or not _is_valid_shape(tuple(shape)):
        raise ValueError(name)
    return Input(name, dtype, tuple(shape))
