"""The independent decoder's arithmetic: coordinates, blocks, rounding and starts."""

import hashlib
import math
from collections import defaultdict

import numpy as np
from oracle_terms import NUMPY, WIDTHS, Group, Piece, Start, Tensor, converted, narrowed, need, widened


def initial_scale(tensors: list[Tensor], i: int, f: int) -> float:
    """The scale of seeded values that an initializer's formula gives."""
    shapes = [t.shape for t in tensors[: i + 1] if len(t.shape) >= 2 and t.size]
    need(bool(shapes), "no tensor of two axes gives the initializer its scale")
    inputs = math.prod(shapes[-1][1:])
    outputs = math.prod(shapes[-1]) // shapes[-1][1]
    variance = [1 / (3 * inputs), 2 / inputs, 2 / (inputs + outputs), 1 / inputs][f - 1]
    word = np.array([math.sqrt(variance / 63)], np.float32).view(np.uint32)
    return float(widened(narrowed(word))[0])


class RangeDecoder:
    def __init__(self, stream: bytes) -> None:
        self.stream, self.at, self.range = stream, 4, 2**32 - 1
        self.further = 0  # decisions of nonzero coordinates beside their first
        self.code = int.from_bytes(stream[:4].ljust(4, b"\0"), "big")

    def decide(self, counts: list[int]) -> int:
        p = min(max(counts[0] * 65536 // (counts[0] + counts[1]), 1), 65535)
        bound = self.range * p >> 16
        decision = int(self.code >= bound)
        self.further += 1
        self.code -= decision * bound
        self.range = self.range - bound if decision else bound
        counts[decision] += 2
        while self.range < 2**24:
            self.range *= 256
            self.code = self.code * 256 + (self.stream[self.at] if self.at < len(self.stream) else 0)
            self.at += 1
        return decision

    def coordinate(self, bits: int, kept: dict[str, list[int]]) -> int:
        self.further -= 1
        if self.decide(kept["Z"]) == 0:
            return 0
        negative, k, i = self.decide(kept["S"]), 0, 1
        while k < bits - 2 + negative and self.decide(kept[f"C{k}"]):
            k += 1
        if k == bits - 1:
            return -(2**k)
        for _ in range(k):
            i = 2 * i + self.decide(kept[f"M{k},{i}"] if i < 4 else [1, 1])
        return -i if negative else i


def read_coordinates(stream: bytes, groups: list[Group]) -> list[np.ndarray]:
    need(not stream.endswith(b"\0"), "the coordinates end in a zero byte")
    coder, coordinates = RangeDecoder(stream), []
    most = 524_288 + 256 * len(stream)
    need(coder.code < coder.range and (bool(groups) or not stream), "the stream is not a range coder's")
    for group in groups:
        kept: dict[str, list[int]] = defaultdict(lambda: [1, 1])
        values = []
        for _ in range(group.d):
            values.append(coder.coordinate(group.bits, kept))
            need(coder.further <= most, "nonzero coordinates take too many decisions")
        coordinates.append(np.array(values, np.int32))
    need(coder.at >= len(stream), "bytes follow the last coordinate")
    return coordinates


def philox(seed: int, stream: int, count: int) -> np.ndarray:
    q, low, half = np.arange((count + 3) // 4, dtype=np.uint64), np.uint64(2**32 - 1), np.uint64(32)
    c0, c1, c2, c3 = q & low, q >> half, np.full_like(q, stream), np.zeros_like(q)
    for turn in range(10):
        k0 = np.uint64(((seed & 0xFFFFFFFF) + turn * 0x9E3779B9) & 0xFFFFFFFF)
        k1 = np.uint64(((seed >> 32) + turn * 0xBB67AE85) & 0xFFFFFFFF)
        a, b = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c1, c2, c3 = (b >> half) ^ c1 ^ k0, b & low, (a >> half) ^ c3 ^ k1, a & low
    return np.stack([c0, c1, c2, c3], axis=1).reshape(-1)[:count].astype("<u4")


def sequency(u: int, n: int) -> int:
    s = t = 0
    for i in range(n):
        t ^= u >> i & 1
        s = 2 * s + t
    return s


def columns(seed: int, g: int, group: Group) -> list[int]:
    """The column of each slot, frozen ones first."""
    m, K, h = group.m, group.K, (group.m.bit_length() - 1) // 2
    w0, w1, w2, w3 = (int(word) for word in philox(seed, 2 * g + 1, 4))
    if group.operator == 2:
        found, half = [], math.ceil(math.log2(m) / 2)
        for j in range(K + min(group.d, m - K)):
            x = ((w0 | 1) * j + w1) % m
            for w in (w2, w3):
                x = (x ^ (x >> half)) * (w | 1) % m
            found.append(x)
        return found
    a = m.bit_length() - 1 - h
    along_x = [(sequency(x, a) * (2**h - 1)) ** 2 for x in range(2**a)]
    along_y = [(sequency(y, h) * (2**a - 1)) ** 2 for y in range(2**h)]
    V = sorted(range(m), key=lambda v: (along_x[v % 2**a] + along_y[v >> a], v))
    Q = max(m // 4, 1)
    while Q < K:
        Q *= 2
    frozen = [V[((w0 | 1) * j + w1) % Q] for j in range(K)]
    taken = set(frozen)
    return frozen + [v for v in V if v not in taken]


def rows(seed: int, g: int, group: Group, D: int, c: np.ndarray) -> np.ndarray:
    """The D integers of group g (section 9)."""
    d, m, K, f, B = group.d, group.m, group.K, group.m - group.K, -(-D // group.m)
    j = np.arange(min(d, f))
    slots = np.full((B, K + len(j)), group.A, np.int32)
    slots[:, K:] = c[j] if d <= f else c[(np.arange(B)[:, None] * f + j) % d]
    need(bool((np.abs(slots).sum(axis=1, dtype=np.int64) < 2**16).all()), "the slots of a block are too large")
    signs = np.unpackbits(philox(seed, 2 * g, (B * m + 31) // 32).view(np.uint8), bitorder="little")
    slots[signs[: B * m].reshape(B, m)[:, : slots.shape[1]] == 1] *= -1
    block = np.zeros((B, m), np.int32)
    block[:, columns(seed, g, group)[: slots.shape[1]]] = slots
    half = 1
    while half < m:
        pairs = block.reshape(-1, 2, half)
        block = np.stack([pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]], axis=1)
        half *= 2
    return block.reshape(-1)[:D]


def numbers(tensor: Tensor) -> np.ndarray:
    """The base's values, as what they are added in."""
    assert tensor.given is not None
    return summands(tensor.real_dtype, tensor.given)


def summands(dtype: str, raw: bytes) -> np.ndarray:
    """Values of a dtype, as what they are added in."""
    if dtype == "BF16":
        return widened(raw)
    value = np.frombuffer(raw, NUMPY[dtype])
    return value if dtype == "F64" else value.astype(np.float32)


def weights(tensor: Tensor, w: np.ndarray) -> bytes:
    product = np.float32(tensor.scale) * w.astype(np.float32)
    if tensor.moved:
        return rounded(tensor.dtype, moved(tensor.dtype, numbers(tensor), product))
    return rounded(tensor.dtype, np.float32(tensor.start) + product)


def moved(dtype: str, start: np.ndarray, product: np.ndarray) -> np.ndarray:
    """Products added to what they start at, as on a base."""
    if dtype == "F64":
        return start.astype(np.float64) + product.astype(np.float64)
    value = np.where(np.abs(start) < 2.0**-126, np.float32(0), start) + product
    return np.where(np.abs(value) < 2.0**-126, np.float32(0), value)


def rounded(dtype: str, value: np.ndarray) -> bytes:
    if dtype == "BF16":
        return narrowed(value.view(np.uint32))
    with np.errstate(over="ignore"):
        return value.astype(NUMPY[dtype]).tobytes()


def factored(tensor: Tensor, right: np.ndarray, left: np.ndarray) -> bytes:
    """The base's values and the product of two factors, in float64."""
    rows, columns = tensor.shape
    right = right.astype(np.float64).reshape(tensor.rank, columns)
    left = left.astype(np.float64).reshape(rows, tensor.rank)
    found = np.zeros((rows, columns))
    for q in range(tensor.rank):
        found = found + left[:, q, None] * right[q] if q else left[:, q, None] * right[q]
    value, base = found.reshape(-1), numbers(tensor)
    if tensor.dtype == "F64":
        return (value + base).astype("<f8").tobytes()
    value = value + np.where(np.abs(base) < 2.0**-126, np.float32(0), base)
    with np.errstate(over="ignore"):  # beyond float32 it is infinite
        single = np.where(np.abs(value) < 2.0**-126, 0, value).astype(np.float32)
    return rounded(tensor.dtype, single)


def directions(tensor: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """U and V of a matrix of the base (section 15), in Python's integers."""
    (rows, columns), r, held = tensor.shape, tensor.rank, numbers(tensor)
    value = held if tensor.dtype == "F64" else np.where(np.abs(held) < 2.0**-126, np.float32(0), held)
    wide = [float(v) for v in value]
    e = 15 - math.frexp(max(map(abs, wide)))[1] if any(wide) else 0
    W = np.array([round(math.ldexp(v, e)) for v in wide], object).reshape(rows, columns)
    bits = np.unpackbits(philox(0, 514, (columns * r + 31) // 32).view(np.uint8), bitorder="little")
    Z = (1 - 2 * bits[: columns * r].astype(object)).reshape(columns, r)
    for _ in range(3):
        Y = orth(W.dot(Z))
        Z = orth(W.T.dot(Y))
    return divided(Y), np.ascontiguousarray(divided(Z).T)


def orth(X: np.ndarray) -> np.ndarray:
    made: list[np.ndarray] = []
    for x in X.T:
        x = scaled(x)
        for _ in range(2):
            for p in made:
                if any(p):
                    x = (2**20 * x - 2**20 * x.dot(p) // p.dot(p) * p) // 2**20
            x = scaled(x)
        made.append(x)
    return np.stack(made, axis=1)


def scaled(x: np.ndarray) -> np.ndarray:
    largest = max(map(abs, x))
    n = 20 - int(largest).bit_length()
    return x if not largest else x * 2**n if n >= 0 else x // 2**-n


def divided(X: np.ndarray) -> np.ndarray:
    """Columns divided by their lengths."""
    columns = [[float(v) / (math.sqrt(float(x.dot(x))) or 1.0) for v in x] for x in X.T]
    return np.array(columns, np.float64).T.astype(np.float32)


class Making:
    """Makes the tensors of rules, in order: each takes what follows of the integers of a group, and of the seeded."""

    def __init__(self, seed: int, tensors: list[Tensor], integers: list[np.ndarray]) -> None:
        self.tensors, self.integers, self.at = tensors, integers, defaultdict(int)
        seeded = sum(p.count for t in tensors for p in t.pieces if p.rule.start and p.rule.start.number == 5)
        self.seeded = rows(seed, 256, Group(0, 64, 63, 1, 2), seeded, np.zeros(0, np.int32))

    def take(self, g: int, count: int) -> np.ndarray:
        self.at[g] += count
        source = self.seeded if g == 256 else self.integers[g]
        return source[self.at[g] - count : self.at[g]].astype(np.float32)

    def tensor(self, i: int) -> bytes:
        tensor = self.tensors[i]
        made = [self.piece(i, piece, "F32" if tensor.rank else tensor.real_dtype) for piece in tensor.pieces]
        if tensor.rank:
            sides = [np.frombuffer(raw, "<f4") for raw in made]
            if tensor.sketched:
                u, v = directions(tensor)
                zeros = Tensor("", "F32", v.shape, given=bytes(v.nbytes), rank=tensor.rank)
                sides = [np.frombuffer(factored(zeros, v, sides[0]), "<f4"), u]
            return factored(tensor, *sides)
        if tensor.which is None:
            return made[0]
        words = np.zeros(tensor.reals, f"u{WIDTHS[tensor.real_dtype]}")
        for item, raw in enumerate(made):
            words[tensor.which == item] = np.frombuffer(raw, words.dtype)
        return words.tobytes()

    def piece(self, i: int, piece: Piece, dtype: str) -> bytes:
        rule = piece.rule
        start, exact = self.start(i, rule.start, piece.count)
        if rule.tag == 3:
            return exact or rounded(dtype, start)
        product = np.float32(piece.scale) * self.take(rule.group, piece.count)
        assert rule.start is not None
        return rounded(dtype, start + product if rule.start.number < 2 else moved(dtype, start, product))

    def start(self, i: int, start: Start | None, n: int) -> tuple[np.ndarray, bytes]:
        """The values of a start as what they are added in, and their own bytes if it has the tensor's dtype."""
        assert start is not None
        tensor = self.tensors[i]
        if start.number == 2:
            return numbers(tensor), b""
        if start.number in (3, 4):
            raw = ramp(start, n) if start.number == 4 else repeated(start, n)
            return summands(start.dtype, raw), raw
        if start.number == 5:
            return self.seeds(i, start, n), b""
        return np.full(n, start.value, np.float32), b""

    def seeds(self, i: int, start: Start, n: int) -> np.ndarray:
        scale = initial_scale(self.tensors, i, start.initializer) if start.initializer else start.scale
        product = np.float32(scale) * self.take(256, n)
        assert start.center is not None
        with np.errstate(over="ignore"):
            center = self.start(i, start.center, n)[0].astype(np.float32)
        return center + product if start.center.number < 2 else moved("F32", center, product)


def repeated(start: Start, n: int) -> bytes:
    return np.resize(np.frombuffer(start.table, f"u{WIDTHS[start.dtype]}"), n).tobytes()


def ramp(start: Start, n: int) -> bytes:
    k = np.arange(n) % min(start.p, 2**62)
    return converted("F64", (start.a + start.b * k.astype(np.float64)).tobytes(), start.dtype)[1]


def weights_digest(tensors: list[Tensor], values: list[bytes]) -> bytes:
    text = "".join(f"{t.name} {t.dtype} {','.join(map(str, t.shape))}\n" for t in tensors)
    leaves = [value[at : at + 2**22] for value in values for at in range(0, len(value), 2**22)]
    parts = [hashlib.sha256(part).digest() for part in [text.encode(), *leaves]]
    return hashlib.sha256(b"".join(parts)).digest()[:16]
