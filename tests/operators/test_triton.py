"""Operators 1 and 2 in Triton: on the GPU where there is one, else interpreted; compiled for one either way."""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lazily import needed

from subcompress import SubcompressError
from subcompress.operators import EXACT, HadamardBlocks, ScatteredBlocks
from subcompress.operators.kernels import Segment
from subcompress.rebuild.backends import numpy_backend

triton = needed("triton")

NAME = "subcompress.operators.kernels.triton_hadamard"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}
HOPPER = 227 << 10
"""Bytes of shared memory that a block of threads may take."""


def slow(*case):
    """A case that takes the branch of a quicker one: the interpreter needs a second for it."""
    return pytest.param(*case, marks=pytest.mark.slow)


# D, d, log2_m, K, A, largest coordinate.
SHAPES = [
    (1, 1, 0, 0, 0, 65_000),
    (5_000, 5_000, 0, 0, 0, 65_000),
    (9_001, 700, 0, 0, 0, 127),
    (5_000, 900, 1, 1, 7, 30_000),
    (3_001, 2_000, 6, 16, 1, 500),
    (9_000, 40, 6, 16, 1, 127),
    (700, 300, 8, 3, 0, 127),
    (40, 7, 8, 16, 1, 127),
    (9_999, 290, 10, 16, 1, 127),
    (30_001, 2_500, 12, 16, 1, 4),
    (9_000, 4_500, 12, 0, 0, 14),
    (20_000, 2_000, 13, 16, 5, 20),
    (20_000, 14_000, 13, 16, 5, 7),
    (40_000, 3_000, 14, 16, 1, 15),
    (70_000, 20_000, 15, 16, 1, 3),
    (70_000, 60_000, 15, 16, 1, 1),
]
# Integers beyond what one part of an operand holds, in coordinates, in frozen slots and after the first product.
LARGE = [
    (9_999, 20, 10, 16, 1, 3_000),
    (9_999, 20, 10, 12, 5_000, 1),
    (9_999, 900, 10, 16, 1, 60),
    (9_999, 2_500, 10, 16, 1, 60),
    (9_000, 2, 13, 1, 30_000, 17_000),
    (40_000, 50, 15, 0, 0, 1_300),
    (70_000, 40_000, 15, 2, 30_000, 0),
]


@pytest.fixture(scope="module")
def kernels():
    """The module, interpreted where there is no GPU: a copy of its own, so that nothing else runs interpreted."""
    if DEVICE == "cuda":
        return importlib.import_module(NAME)
    spec = importlib.util.find_spec(NAME)
    module = importlib.util.module_from_spec(spec)
    with triton.knobs.runtime.scope():
        triton.knobs.runtime.interpret = True
        spec.loader.exec_module(module)
    return module


def coordinates(op, largest, seed=0):
    c = np.random.default_rng(seed).integers(-largest, largest + 1, op.d).astype(np.int32)
    c[0] = largest
    assert op.peak(c) < 1 << 16
    return c


def check(kernels, op, c, pieces):
    """Fills pieces (lo, n, dtype, scale, start), which must equal the NumPy backend's tensors and leave the rest."""
    segments = []
    for lo, n, dtype, scale, start in pieces:
        before = 1 if lo % 2 else 16  # aligned to 16 bytes or not
        whole = torch.full((before + n + 1,), 77.0, dtype=DTYPES[dtype], device=DEVICE)
        segments.append(Segment(lo, whole[before:-1], scale, start))
    kernels.fill(op, torch.from_numpy(c).to(DEVICE), segments)
    truth = [replace(s, out=torch.empty_like(s.out, device="cpu")) for s in segments]
    numpy_backend.fill(op, torch.from_numpy(c), [s for s in truth if len(s.out)])
    for piece, segment, want in zip(pieces, segments, truth, strict=True):
        found, base = segment.out.cpu(), segment.out._base
        assert torch.equal(found.view(torch.uint8), want.out.view(torch.uint8)), (op, piece)
        assert base is not None and (base[: -piece[1] - 1] == 77).all() and base[-1] == 77


QUICK = [slow(*case) if case[1] == 60_000 else case for case in SHAPES + LARGE]


@pytest.mark.parametrize(("D", "d", "log2_m", "K", "A", "largest"), QUICK)
def test_fill_equals_numpy(kernels, D, d, log2_m, K, A, largest):
    op = HadamardBlocks(D, d, 2**64 - 3, log2_m, K, A, 5)
    check(kernels, op, coordinates(op, largest), [(0, D, "F32", 3 * 2.0**-9, 0.7)])


@pytest.mark.parametrize(("D", "d", "log2_m", "K", "A", "largest"), [*SHAPES[5:14:2], *LARGE[2:-1], slow(*LARGE[-1])])
def test_fill_equals_numpy_where_columns_are_scattered(kernels, D, d, log2_m, K, A, largest):
    op = ScatteredBlocks(D, d, 2**64 - 3, log2_m, K, A, 5)
    check(kernels, op, coordinates(op, largest), [(0, D, "F32", 3 * 2.0**-9, 0.7)])


SEGMENTED = [(0, 9_999), slow(7, 40), (10, 290), slow(10, 3_000), (13, 300)]


@pytest.mark.parametrize(("log2_m", "d"), SEGMENTED)
def test_fill_of_segments(kernels, log2_m, d):
    op = HadamardBlocks(9_999, d, 11, log2_m, 4 if log2_m else 0, 1)
    pieces = [
        (17, 1, "F32", 0.5, -0.0),
        (18, 30, "BF16", 1.2109375, 0.1),
        (48, 4_096, "F32", -0.3125, 0.0),
        (4_144, 15, "F16", 0.0078125, 1e-3),
        (4_160, 16, "F64", 2.0**-10, 1 / 3),
        (4_176, 0, "F32", 1.0, 0.0),
        (4_176, 1_000, "F16", 0.0078125, 1.0),
        (8_000, 1_000, "BF16", 0.5, 0.0),
        (9_500, 499, "F64", 0.25, 0.0),
    ]
    c = coordinates(op, 100)
    check(kernels, op, c, pieces)
    check(kernels, op, c, pieces[-2:])


@pytest.mark.parametrize("log2_m", [slow(14), 15])
def test_fill_with_other_tiles(kernels, monkeypatch, log2_m):
    monkeypatch.setattr(kernels, "_is_hopper", lambda device: False)
    op = HadamardBlocks(70_000, 300, 3, log2_m)  # a unit is of 16,384 or 32,768 rows: the piece lies in two
    check(kernels, op, coordinates(op, 127), [(30_000, 10_000, "F32", 0.5, 0.1)])


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_fill_of_anything(kernels, data):
    log2_m = data.draw(st.integers(0, 9))
    K = data.draw(st.integers(0, min((1 << log2_m) - 1, 20)))
    D = data.draw(st.integers(1, 6_000))
    d = data.draw(st.integers(1, min(D, -(-D >> log2_m) * ((1 << log2_m) - K))))
    A = data.draw(st.integers(0, 300))
    kind = data.draw(st.sampled_from(list(EXACT.values())))
    op = kind(D, d, data.draw(st.integers(0, 2**64 - 1)), log2_m, K, A, data.draw(st.integers(0, 2**31 - 1)))
    c = coordinates(op, data.draw(st.integers(0, 110)), seed=1)
    cuts = sorted(data.draw(st.sets(st.integers(0, D), min_size=2, max_size=6) if D > 1 else st.just({0, 1})))
    pieces = []
    for lo, hi in itertools.pairwise(cuts):
        scale = data.draw(st.integers(-255, 255)) * 2.0 ** data.draw(st.integers(-16, -12))
        if data.draw(st.booleans()) or not pieces:
            start = data.draw(st.floats(-9, 9, width=32, allow_subnormal=False))
            pieces.append((lo, hi - lo, data.draw(st.sampled_from(list(DTYPES))), scale, start))
    check(kernels, op, c, pieces)


@pytest.mark.parametrize("log2_m", [0, 10, *map(slow, (1, 5, 13, 15))])
def test_the_trial_on_a_device(kernels, monkeypatch, log2_m):
    """What decides whether the kernel is used: right integers and products pass, others do not."""
    if DEVICE == "cpu":
        empty = torch.empty
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
        monkeypatch.setattr(torch.Tensor, "cuda", lambda self: self.clone())
        monkeypatch.setattr(torch, "empty", lambda *size, device="cpu", **kw: empty(*size, **kw))
    for training in (False, True):
        kernels.try_out(HadamardBlocks, log2_m, training)
    monkeypatch.setattr(kernels, "_seed", lambda op: {"seed_low": 5, "seed_high": 0, "stream": 0})
    for training in (False, True):
        with pytest.raises(SubcompressError, match="other numbers on this device"):
            kernels.try_out(HadamardBlocks, log2_m, training)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    with pytest.raises(SubcompressError, match=r"capability 8\.0"):
        kernels.try_out(HadamardBlocks, log2_m, False)


def test_coordinates_of_inference_mode(kernels):
    op, out = HadamardBlocks(300, 20, 1, 8), torch.empty(300, device=DEVICE)
    c = coordinates(op, 7)
    with torch.inference_mode():
        kernels.fill(op, torch.from_numpy(c).to(DEVICE).clone(), [Segment(0, out, 1.0)])
    assert np.array_equal(out.cpu().numpy(), op.rows(c, 0, 300))


def test_zero_has_no_sign(kernels):
    op = HadamardBlocks(300, 200, 1, 8)
    out = torch.empty(300, device=DEVICE)
    for scale in (0.5, -0.5, 0.0, -0.0):
        kernels.fill(op, torch.zeros(200, dtype=torch.int32, device=DEVICE), [Segment(0, out, scale, -0.0)])
        zeros = out == 0
        assert zeros.any() and not torch.signbit(out[zeros]).any()


FLOATS = [
    pytest.param(*case[:4], kind, marks=[] if i % 3 == 0 and i % 2 == j and i < 12 else [pytest.mark.slow])
    for i, case in enumerate(SHAPES[1:])
    for j, kind in enumerate(EXACT.values())
]
"""In the default run every third up to blocks of 2^12, of either kind in turn: the interpreter takes a second each."""


@pytest.mark.parametrize(("D", "d", "log2_m", "K", "kind"), FLOATS)
def test_affine(kernels, D, d, log2_m, K, kind):
    op = kind(D, d, 2**40 + 1, log2_m, K, 3, 2)
    z = torch.randn(d, generator=torch.Generator().manual_seed(0))
    theta_0 = torch.linspace(-1, 1, D)
    want = op.affine(z.double())
    cut = D // 3
    first, last = torch.empty(cut, device=DEVICE), torch.empty(D - cut, dtype=torch.float64, device=DEVICE)
    middle = torch.empty(D - cut, device=DEVICE)
    start = theta_0[cut:].to(DEVICE)
    kernels.affine(op, z.to(DEVICE), 3.0, [Segment(0, first, 0.5, 0.25), Segment(cut, middle, 1.0, start)])
    kernels.affine(op, z.to(DEVICE), 3.0, [Segment(cut, last, 1.0)])
    near = 2e-6 * float(want.abs().max())
    assert torch.allclose(first.cpu().double(), 0.25 + 0.5 * want[:cut], rtol=0, atol=near)
    assert torch.allclose(middle.cpu().double(), theta_0[cut:] + want[cut:], rtol=0, atol=near)
    assert torch.allclose(last.cpu(), want[cut:], rtol=0, atol=near)


@pytest.mark.parametrize(("D", "d", "log2_m", "K", "kind"), FLOATS)
def test_adjoint(kernels, D, d, log2_m, K, kind):
    op = kind(D, d, 2**63 + 5, log2_m, K, 3, 2)
    g = torch.randn(D, generator=torch.Generator().manual_seed(0))
    a, b, c = D // 5, D // 4, D // 4 + 2
    pieces = [(0, g[:a], 0.5), (b, g[b:c].half(), 2.0), (c, g[c:].bfloat16(), -1.25)]
    whole = torch.zeros(D, dtype=torch.float64)
    for lo, piece, scale in pieces:
        whole[lo : lo + len(piece)] = piece.double() * scale
    on_device = [(lo, piece.to(DEVICE), scale) for lo, piece, scale in pieces]
    found, again = kernels.adjoint(op, on_device), kernels.adjoint(op, on_device)
    want = op.rmatvec(whole)
    assert torch.equal(found, again)
    assert found.dtype == torch.float32
    assert torch.allclose(found.cpu().double(), want, rtol=0, atol=2e-6 * float(want.abs().max()))


@pytest.mark.parametrize(("log2_m", "d"), [slow(14, 40_000), (15, 300)])
def test_products_with_other_tiles(kernels, monkeypatch, log2_m, d):
    monkeypatch.setattr(kernels, "_is_hopper", lambda device: False)
    op = HadamardBlocks(60_000, d, 3, log2_m)
    z, g = torch.randn(d), torch.randn(10_000)
    out = torch.empty(10_000, device=DEVICE)
    kernels.affine(op, z.to(DEVICE), 1.0, [Segment(30_000, out, 1.0)])
    want = op.affine(z.double())[30_000:40_000]
    assert torch.allclose(out.cpu().double(), want, rtol=0, atol=2e-6 * float(want.abs().max()))
    found = kernels.adjoint(op, [(30_000, g.to(DEVICE), 1.0)])
    want = op.rmatvec(torch.nn.functional.pad(g.double(), (30_000, 20_000)))
    assert torch.allclose(found.cpu().double(), want, rtol=0, atol=2e-6 * float(want.abs().max()))


@pytest.mark.parametrize(("log2_m", "d"), [slow(5, 100), (10, 290), (15, 40_000)])
def test_far_rows(kernels, log2_m, d):
    """Numbers of rows, bits and quads above 2^32, where P^T is known from P alone."""
    D, lo = (1 << 41) + 77, (1 << 41) - 5_000
    op = HadamardBlocks(D, d, 9, log2_m, 7, 1)
    c = coordinates(op, 1)
    check(kernels, op, c, [(lo, D - lo, "F32", 1.0, 0.0)])
    g = torch.randn(D - lo, generator=torch.Generator().manual_seed(0))
    Pc = op.rows(c, lo, D).astype(np.float64) - op.rows(0 * c, lo, D)
    found = kernels.adjoint(op, [(lo, g.to(DEVICE), 1.0)]).cpu().double()
    assert float(found @ torch.from_numpy(c).double()) == pytest.approx(float(Pc @ g.double().numpy()), rel=1e-4)


def test_importing_subcompress_leaves_triton_alone():
    code = "import sys, subcompress, subcompress.operators.kernels; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def build(kernel, tile, pointers, constants):
    """The kernel compiled for compute capability 9.0, as a launch would."""
    constants = {"R": tile.rows, "C": tile.columns, "FOLD": tile.fold, "MIXED": True, **constants}
    constants["BRAIN"] = triton.language.bfloat16
    names = kernel.arg_names
    signature = {n: "constexpr" if n in constants else pointers.get(n, "i32") for n in names}
    aligned = {(names.index(n),): [["tt.divisibility", 16]] for n in pointers}
    source = triton.compiler.ASTSource(kernel, signature, constants, aligned)
    options = {"num_warps": tile.warps, "maxnreg": tile.registers, "enable_fp_fusion": True}
    return triton.compile(source, target=triton.backends.compiler.GPUTarget("cuda", 90, 32), options=options)


@pytest.mark.slow
@pytest.mark.parametrize("log2_m", [10, 15])
def test_compiles_for_hopper(monkeypatch, tmp_path, log2_m):
    """To a binary, by the assembler that Triton brings, without a GPU."""
    monkeypatch.setattr(triton.knobs.cache, "dir", str(tmp_path))
    module, float32 = importlib.import_module(NAME), triton.language.float32
    tables = {"bits": "*i16", "offsets": "*i32", "upper": "*fp16", "lower": "*fp16", "table": "*i64"}
    tile = module._tile(log2_m, True, True)
    options = {"WINDOW": log2_m == 15, "FIRST": 1, "SECOND": 2, "OUT": float32, "START": False, "ROUND": False}
    forward = build(module._forward, tile, {"values": "*fp32", **tables}, options)
    tile = module._tile(log2_m, False, True)
    adjoint = build(module._adjoint, tile, {"out": "*fp32", **tables}, {"WINDOW": log2_m == 15, "IN": float32})
    for kernel in (forward, adjoint):
        assert "wgmma.mma_async" in kernel.asm["ptx"]
        assert kernel.asm["cubin"]
        assert kernel.metadata.shared <= HOPPER
