"""Every way to compute rows against NumPy, bit for bit; products of training against float64; and no kernel at all."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import KINDS, OPERATORS, VECTORS, needs_native

import subcompress
from subcompress import SubcompressError
from subcompress.format import codec
from subcompress.native import compiled
from subcompress.native.compiled import PATHS
from subcompress.operators import HadamardBlocks
from subcompress.operators.forms import NO_COORDINATES, seeded_integers
from subcompress.operators.kernels import SeededRows, Segment
from subcompress.rebuild.backends import BACKENDS, available, backend_of
from subcompress.support import threads
from subcompress.support.threads import for_each
from subcompress.tensors.layout import DTYPES as DTYPES_OF
from subcompress.tensors.rounding import rounded

OTHERS = [name for name in available() if name not in ("numpy", "native")] + [f"native/{kind}" for kind in VECTORS]


DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


def coordinates(d: int, top: int = 7) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(d).integers(-top, top + 1, d).astype(np.int32))


def filled(name: str, op: HadamardBlocks, c: torch.Tensor, cuts: list[tuple[int, int]], dtype, scale, start):
    """The weights of rows lo .. hi for each of the cuts, in one call; what lies around them stays as it was."""
    name, _, kind = name.partition("/")
    backend = BACKENDS[name]
    wide = [torch.full((hi - lo + 6,), 7.0, dtype=dtype, device=backend.device) for lo, hi in cuts]
    segments = [Segment(lo, out[3:-3], scale, start) for (lo, _), out in zip(cuts, wide, strict=True)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(compiled.VECTORS, kind)
        backend.fill(op, c.to(backend.device), segments)
    assert all((out[:3] == 7).all() and (out[-3:] == 7).all() for out in wide)
    return [out[3:-3].cpu().view(torch.uint8) for out in wide]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", OPERATORS, ids=str)
@pytest.mark.parametrize("name", OTHERS)
def test_the_same_bytes_in_every_dtype(name, sizes, kind):
    D, d, log2_m, K, A = sizes
    op, c = kind(D, d, 2**63 + 11, log2_m, K, A, group=2), coordinates(d, 1 if d > 9_000 else 7)
    cuts = [(0, 1), (1, D // 3), (D // 3 + 2, D - 1), (D - 1, D)]
    for dtype in DTYPES:
        for scale, start in ((0.0078125, 0.0), (2.0**-20, 1.0), (3.0, -0.0)):
            truth = filled("numpy", op, c, cuts, dtype, scale, start)
            assert same(filled(name, op, c, cuts, dtype, scale, start), truth), (dtype, scale, start)


@pytest.mark.parametrize("name", OTHERS)
def test_float16_over_its_whole_range(name):
    op, c = HadamardBlocks(20_000, 900, 5, 10, 16, 1), coordinates(900)
    for exponent in range(-32, 10):
        truth = filled("numpy", op, c, [(0, op.D)], torch.float16, 1.6875 * 2.0**exponent, 0.0)
        assert same(filled(name, op, c, [(0, op.D)], torch.float16, 1.6875 * 2.0**exponent, 0.0), truth), exponent


@st.composite
def blocks(draw):
    log2_m = draw(st.integers(0, 11))
    m = 1 << log2_m
    K = draw(st.integers(0, min(m - 1, 20)))
    D = draw(st.integers(1, 6 * m + 5))
    d = draw(st.integers(1, min(D, -(-D // m) * (m - K))))
    op = draw(st.sampled_from(KINDS))(
        D, d, draw(st.integers(0, 2**64 - 1)), log2_m, K, draw(st.integers(0, 9)), draw(st.integers(0, 3))
    )
    ends = sorted(draw(st.lists(st.integers(0, D), min_size=2, max_size=8)))
    return op, list(zip(ends[::2], ends[1::2], strict=False))


@settings(max_examples=60, deadline=None)
@given(blocks(), st.sampled_from(DTYPES))
def test_any_rows_of_any_operator(case, dtype):
    op, cuts = case
    c = coordinates(op.d, 3)
    truth = filled("numpy", op, c, cuts, dtype, 0.75, 0.5)
    for name in OTHERS:
        assert same(filled(name, op, c, cuts, dtype, 0.75, 0.5), truth)


@pytest.mark.parametrize("number", [1, 2, 5])
@pytest.mark.parametrize("name", OTHERS)
def test_threads_and_pieces_change_nothing(name, number):
    D = 1_500_001  # more than one thread's share
    op, c = HadamardBlocks.sized(D, 900, 1), coordinates(900)
    truth = filled("numpy", op, c, [(0, D)], torch.float32, 0.5, 0.0)
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        assert same(filled(name, op, c, [(0, D)], torch.float32, 0.5, 0.0), truth)
        cuts = [(lo, min(lo + 350_001, D)) for lo in range(0, D, 350_001)]
        assert torch.equal(torch.cat(filled(name, op, c, cuts, torch.float32, 0.5, 0.0)), truth[0])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("kind", VECTORS)
def test_what_is_written_past_the_caches_is_the_same(monkeypatch, kind):
    op, c = HadamardBlocks.sized(100_003, 300, 1), coordinates(300)
    truth = filled("numpy", op, c, [(0, 5), (5, 100_003)], torch.float32, 0.5, 2.0)
    monkeypatch.setattr("subcompress.operators.kernels.native.CACHED", 0)
    assert same(filled(f"native/{kind}", op, c, [(0, 5), (5, 100_003)], torch.float32, 0.5, 2.0), truth)


def seeded_sums(op, c, cuts, dtype):
    """(center + scale * seeded integer) + scale * row for rows of each of the cuts, summed in float32 by NumPy."""
    integers = seeded_integers(3, op.D + 50)
    found = []
    for at, (lo, hi) in enumerate(cuts):
        start = np.float32(0.25) + np.float32(2**-9) * integers.rows(NO_COORDINATES, lo + at, hi + at).astype(
            np.float32
        )
        found.append(rounded(start + np.float32(2**-7) * op.rows(c, lo, hi).astype(np.float32), DTYPES_OF[dtype]))
    return found


@pytest.mark.parametrize("kind", VECTORS)
@pytest.mark.parametrize(
    "sizes", [(37, 30, 4, 0, 0), (9_999, 100, 8, 16, 1), (5_003, 700, 7, 16, 1), (50_000, 900, 14, 2, 1)]
)
def test_seeded_starts_are_added_where_rows_are_written(monkeypatch, sizes, kind):
    monkeypatch.setenv(compiled.VECTORS, kind)
    op, integers = HadamardBlocks(sizes[0], sizes[1], 5, *sizes[2:]), seeded_integers(3, sizes[0] + 50)
    c, cuts = coordinates(op.d).numpy(), [(0, 1), (1, op.D // 2), (op.D // 2 + 3, op.D)]
    for dtype in ("F32", "F16", "BF16"):
        outs = [np.zeros(hi - lo, DTYPES_OF[dtype]) for lo, hi in cuts]
        starts = [SeededRows(integers, lo + at, 2.0**-9, 0.25) for at, (lo, _) in enumerate(cuts)]
        segments = [Segment(lo, out, 2.0**-7, s) for (lo, _), out, s in zip(cuts, outs, starts, strict=True)]
        BACKENDS["native"].fill(op, c, segments)
        truth = seeded_sums(op, c, cuts, dtype)
        assert all(np.array_equal(a, b) for a, b in zip(outs, truth, strict=True)), dtype


@pytest.mark.skipif(len(VECTORS) < 2, reason="needs a kind of vectors beside plain C")
def test_vectors_that_compute_something_else_are_not_taken(monkeypatch):
    native = importlib.import_module("subcompress.operators.kernels.native")
    fastest, tried = PATHS.index(VECTORS[-1]), native._trial_weights
    assert tried(fastest) == tried(0)
    monkeypatch.setattr(native, "UNPROVEN", VECTORS[-1:])
    for wrong, taken in ((False, fastest), (True, PATHS.index(VECTORS[-2]))):
        monkeypatch.setattr(native, "_trial_weights", lambda kind, wrong=wrong: b"" if wrong and kind else tried(0))
        native._fastest.cache_clear()
        assert native._fastest() == taken
    native._fastest.cache_clear()


@pytest.mark.parametrize("name", [f"native/{kind}" for kind in VECTORS])
def test_seeded_starts_alone(name):
    op = seeded_integers(2**63 + 11, 5_003)
    cuts = [(0, 1), (1, 65), (100, 3_000), (3_001, 5_003)]
    for dtype in DTYPES:
        truth = filled("numpy", op, torch.zeros(0, dtype=torch.int32), cuts, dtype, 0.0078125, 0.5)
        assert same(filled(name, op, torch.zeros(0, dtype=torch.int32), cuts, dtype, 0.0078125, 0.5), truth)


@pytest.mark.parametrize("name", [f"native/{kind}" for kind in VECTORS])
def test_sums_at_the_edge_of_16_bits(name):
    """All coordinates meet in the first row of a block: just below 2^15 in integers, and beyond in floats."""
    for top in (2**15 - 1, 2**15, 2**16 - 1):
        op = HadamardBlocks(4_096, 8, 1, 9, 1, 7)
        c = torch.tensor([top - 7 - 7 * 100, *[100] * 7], dtype=torch.int32)
        truth = filled("numpy", op, c, [(0, op.D)], torch.float32, 1.0, 0.0)
        assert same(filled(name, op, c, [(0, op.D)], torch.float32, 1.0, 0.0), truth)


def test_vectors_are_chosen_by_the_environment(monkeypatch):
    monkeypatch.setenv(compiled.VECTORS, "sse9")
    with pytest.raises(
        SubcompressError, match=r"^SUBCOMPRESS_VECTORS must be one of plain, avx2, avx512, numpy, or unset; .*'sse9'"
    ):
        available()
    monkeypatch.setenv(compiled.VECTORS, "numpy")
    assert "native" not in available()
    assert backend_of("cpu") is BACKENDS["numpy"]
    monkeypatch.setattr(compiled, "available_kinds", lambda: ("plain",))
    monkeypatch.setenv(compiled.VECTORS, "avx512")
    with pytest.raises(
        SubcompressError, match=r"^SUBCOMPRESS_VECTORS=avx512: this machine has the vectors plain; give one"
    ):
        compiled.selected_kind()
    monkeypatch.delenv(compiled.VECTORS)
    assert compiled.selected_kind() == "plain"


# --- the compiled decoder ---


@needs_native
@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60), st.lists(st.tuples(st.integers(0, 120), st.integers(2, 12)), max_size=3))
def test_the_compiled_decoder_reads_any_bytes_alike(data, groups):
    def read():
        try:
            return [group.tolist() for group in codec.decode(data, groups)]
        except subcompress.SubcompressError as e:
            return str(e)

    fast = read()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codec, "library", lambda: None)
        assert read() == fast


@pytest.mark.usefixtures("no_kernel")
def test_a_file_is_read_and_rebuilt_without_the_compiled_part(small_file):
    assert subcompress.verify(small_file).ok


def test_a_library_that_does_not_load_is_left_alone(monkeypatch, tmp_path):
    broken = tmp_path / "_native.so"
    broken.write_bytes(b"not a library")
    compiled._load.cache_clear()
    monkeypatch.setattr(compiled.importlib.util, "find_spec", lambda name: type("Spec", (), {"origin": str(broken)}))
    try:
        assert compiled.library() is None
    finally:
        compiled._load.cache_clear()


# --- threads ---


def test_each_does_not_wait_for_another_callers_work():
    go = threading.Event()

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    pool = threads._pool(os.getpid())
    held = [pool.submit(go.wait) for _ in range(os.cpu_count() or 1)]  # every thread is taken
    try:
        seen: list[int] = []
        for_each(seen.append, range(10))
        assert len(seen) == 10
    finally:
        go.set()
        torch.set_num_threads(before)
    assert all(h.result() for h in held)


@pytest.mark.slow
def test_work_while_the_interpreter_ends(tmp_path):
    code = """
import atexit, torch
from subcompress.support.threads import for_each
from subcompress.tensors.rounding import rounded
torch.set_num_threads(2)
seen = []
for_each(seen.append, range(2))
atexit.register(lambda: (for_each(seen.append, range(5)), print(sorted(seen))))
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "[0, 0, 1, 1, 2, 3, 4]\n"


def test_each_does_all_once_and_raises_the_first_error():
    seen: list[int] = []
    for_each(seen.append, range(100))
    assert sorted(seen) == list(range(100))

    def work(i: int) -> None:
        for_each(seen.append, range(3))  # within work: in this thread
        if i == 5:
            raise ValueError("five")

    with pytest.raises(ValueError, match="five"):
        for_each(work, range(50))
    for_each(work, range(5))


def test_tables_of_a_seeded_start_outlive_an_equal_operator(monkeypatch):
    """They are shared by operators that are equal, and the first of these may be gone before the rows are written."""
    native = importlib.import_module("subcompress.operators.kernels.native")
    op, first = HadamardBlocks.sized(5_000, 300, 5), [seeded_integers(77, 5_000)]
    native._tables(first[0])
    c, call, gone = coordinates(300).numpy().astype(np.float32), native.for_each, []

    def late(work, items):
        first.clear()  # the operator that the tables were made for
        gone.extend(np.zeros(5_000, np.int8) for _ in range(500))  # what takes the memory that it leaves
        call(work, items)

    def written():
        out = np.zeros(5_000, np.float32)
        start = SeededRows(seeded_integers(77, 5_000), 0, 2.0**-9, 0.25)
        BACKENDS["native"].fill(op, c, [Segment(0, out, 2.0**-7, start)])
        return out

    monkeypatch.setattr(native, "for_each", late)
    found = written()
    monkeypatch.undo()
    assert np.array_equal(found, written())
