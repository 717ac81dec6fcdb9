"""An independent decoder of docs/FORMAT.md: it shares no code with the package it is compared with."""

import json
import math
import re
import zlib
from typing import Any

import numpy as np
from oracle_lists import read_groups, read_layout, read_tensors
from oracle_making import Making, read_coordinates, rows, summands, weights, weights_digest
from oracle_terms import DTYPES, SHELL, WIDTHS, Decoded, Given, Reader, Refused, Rule, Tensor, need


def read_shell(data: bytes) -> bytes:
    need(8 <= len(data) <= 2**30, "the file has too few or too many bytes")
    start = 8 + int.from_bytes(data[:8], "little")
    need(data[8:start] == SHELL.format(len(data) - start).encode(), "the shell has another form")
    payload = data[start:]
    need(len(payload) >= 4, "the payload has no checksum")
    need(zlib.crc32(payload[:-4]) == int.from_bytes(payload[-4:], "little"), "the checksum differs")
    return payload[:-4]


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    need(len(dict(pairs)) == len(pairs), "a fact is given twice")
    return dict(pairs)


def read_facts(reader: Reader, tables: dict[str, Any]) -> dict[str, Any]:
    number = reader.varint()
    if number != 1:
        need(number == 0 or str(number) in tables["facts"], "unknown facts")
        return dict(tables["facts"][str(number)]["facts"]) if number else {}
    try:
        facts = json.loads(reader.deflated(2**20).decode(), object_pairs_hook=unique)  # which refuses a mark
    except (ValueError, RecursionError) as error:
        raise Refused("the facts are not JSON in UTF-8") from error
    need(isinstance(facts, dict), "the facts are not an object")
    kinds = {"input_shape": int, "mean": float, "std": float, "labels": str}
    for key, value in facts.items():
        if key == "inputs":
            need(isinstance(value, list) and len(value) <= 4_096, "inputs are not a list, or too long a one")
            for each in value:
                need(isinstance(each, list) and len(each) == 3, "an input is not three things")
                name, dtype, shape = each
                need(isinstance(name, str) and not re.search("[\ud800-\udfff]", name), "a name is not text")
                need(isinstance(dtype, str) and dtype in DTYPES, "an input's dtype is not a dtype")
                need(isinstance(shape, list) and all(type(k) is int and k >= 0 for k in shape), "a shape is wrong")
                sound = len(shape) <= 16 and math.prod(max(1, k) for k in shape) <= 2**26
                need(sound, "a shape is out of bounds")
            given = [name for name, _, _ in value if name]
            need(len(set(given)) == len(given), "two inputs have one name")
        elif key == "input_dtype":
            need(isinstance(value, str) and value in DTYPES, "input_dtype is not a dtype")
        else:
            need(key in kinds and isinstance(value, list), "an unknown fact, or one that is not a list")
            need(all(type(item) is kinds[key] for item in value), f"{key} has an item of the wrong type")
            need(key == "labels" or all(math.isfinite(item) for item in value), "a number is not finite")
            if key == "input_shape":
                sound = len(value) <= 16 and all(item >= 0 for item in value)
                need(sound and math.prod(max(1, item) for item in value) <= 2**26, "input_shape is out of bounds")
            need(key != "std" or all(item > 0 for item in value), "std is not positive")
            need(key != "labels" or not re.search("[\ud800-\udfff]", "".join(value)), "a label is not text")
    return facts


def read_stored(reader: Reader, tensors: list[Tensor], rules: list[Rule]) -> Reader:
    """The values of the stored tensors, after the tables that go to the rules."""
    stored = [t for t in tensors if t.group is None and t.tied is None and not t.kept and not t.pieces]
    starts = [each for rule in rules if rule.start for each in (rule.start, rule.start.center)]
    tables = [start for start in starts if start and start.number == 3]
    total = sum(table.p * WIDTHS[table.dtype] for table in tables) + sum(tensor.nbytes for tensor in stored)
    need(total <= 2**30, "the stored part is too large")
    data = reader.deflated(total) if stored or tables else b""
    need(len(data) == total, "the stored part has another length")
    values = Reader(data)
    for table in tables:
        table.table = values.take(table.p * WIDTHS[table.dtype])
        need(bool(np.isfinite(summands(table.dtype, table.table)).all()), "a value of a table is not finite")
    return values


def decode(data: bytes, tables: dict[str, Any], base: Given | None = None) -> Decoded:
    reader = Reader(read_shell(data))
    magic, version = reader.take(2), reader.take(1)[0]
    need(magic == b"SC" and version in (1, 2) and reader.varint() == 1, "unknown magic, version or generator")
    seed = reader.varint()
    (tensors, based), groups = read_layout(reader, tables, base), read_groups(reader)
    rules = read_tensors(reader, tensors, groups, based, version)
    facts, accuracy, digest = read_facts(reader, tables), reader.varint(10_001), reader.take(16)
    stored = read_stored(reader, tensors, rules)
    coordinates = read_coordinates(reader.take(len(reader.data) - reader.at), groups)
    sizes = [sum(tensor.weights_of(g) for tensor in tensors) for g in range(len(groups))]
    integers = [rows(seed, g, groups[g], sizes[g], coordinates[g]) for g in range(len(groups))]
    making, values = Making(seed, tensors, integers), []
    for i, tensor in enumerate(tensors):
        if tensor.pieces:
            values.append(making.tensor(i))
        elif tensor.tied is not None:
            values.append(values[tensor.tied])
        elif tensor.kept:
            assert tensor.given is not None
            values.append(tensor.given)
        elif (g := tensor.group) is None:
            values.append(stored.take(tensor.nbytes))
            need(tensor.dtype != "BOOL" or not values[-1].strip(b"\0\1"), "a BOOL is neither 0 nor 1")
        else:
            values.append(weights(tensor, integers[g][: tensor.reals]))
            integers[g] = integers[g][tensor.reals :]
    need(weights_digest(tensors, values) == digest, "the weights are not those that were packed")
    named = {t.name: (t.dtype, t.shape, value) for t, value in zip(tensors, values, strict=True)}
    return Decoded(seed, coordinates, named, digest, facts, (accuracy - 1) / 10_000 if accuracy else None)
