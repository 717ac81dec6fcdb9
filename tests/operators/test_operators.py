"""The contract of every operator in the registry: being listed is being tested."""

from __future__ import annotations

import itertools
import math
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from subcompress import SubcompressError
from subcompress.operators import OPERATORS, ExactOperator, HadamardBlocks, ScatteredBlocks, philox, walsh
from subcompress.operators.dense import KEPT, DenseGaussian, normals
from subcompress.operators.fastfood import Fastfood
from subcompress.operators.kronecker import KroneckerProduct
from subcompress.operators.onehot import OneHot
from subcompress.operators.sparse import SparseProjection

SIZES = [(1, 1), (7, 3), (50, 30), (64, 64 - 16), (1_450, 400), (4_096, 100), (9_999, 7), (44_426, 290), (3_001, 2_000)]
EXACT = [name for name, op in OPERATORS.items() if issubclass(op, ExactOperator)]
BLOCKS = [HadamardBlocks, ScatteredBlocks]
FLOAT = [name for name in OPERATORS if name not in EXACT]

# Eigenvalues of P^T P over their mean, for D = 44,426 and d = 290.
SPREAD = {
    "hadamard": (0.9, 1.1),  # the last of its blocks is cut
    "scattered": (0.9, 1.1),
    "dense": (0.82, 1.19),  # Marchenko and Pastur: (1 -+ sqrt(d / D))^2
    "sparse": (0.7, 1.35),  # as dense, and columns have 211 -+ 15 nonzeros
    "fastfood": (0.75, 1.3),  # 86.8 blocks whose eigenvalues are squared normals
    "onehot": (1 - 1e-9, 1 + 1e-9),  # columns of one length without common rows
    "kronecker": (0.95, 1.05),  # 95 of 44,521 orthonormal rows are cut
}

# D, d and the growth allowed in kB, 1 GB where P would be 160 GB in float32. Dense draws D d normals a product, half an
# hour for both at that size: it gets about the smallest P that it does not keep, 404 MB, and may grow by half as much.
# It comes first: growth is measured from the start of one process for all.
MEMORY = {"dense": (101_000, 1_000, 200_000)}
MEMORY |= {name: (400_000, 20_000, 500_000) for name in OPERATORS if name != "dense"}


@pytest.fixture(params=OPERATORS)
def name(request):
    return request.param


@pytest.fixture(params=EXACT)
def exact(request):
    return OPERATORS[request.param]


def dense(op) -> torch.Tensor:
    """P, (D, d) float64, a column at a time. Dense gives its rows: a product with each column would read all of P."""
    if isinstance(op, DenseGaussian):
        return op.rows(0, op.D).double()
    return torch.stack([op.matvec(e) for e in torch.eye(op.d, dtype=torch.float64)], 1)


@pytest.mark.parametrize(("D", "d"), SIZES)
def test_adjoint(name, D, d):
    op = OPERATORS[name].sized(D, d, 3)
    z, g = torch.randn(d, dtype=torch.float64), torch.randn(D, dtype=torch.float64)
    left, right = op.matvec(z) @ g, z @ op.rmatvec(g)
    assert torch.allclose(left, right), f"<P z, g> = {left}, <z, P^T g> = {right}"
    assert op.matvec(z).shape == (D,)
    assert op.rmatvec(g).shape == (d,)


@pytest.mark.parametrize(("D", "d"), [(7, 3), (50, 30), (1_450, 400), (3_001, 2_000)])
def test_linear_and_equal_to_the_dense_matrix(name, D, d):
    op = OPERATORS[name].sized(D, d, 3)
    P, z = dense(op), torch.randn(d, dtype=torch.float64)
    assert torch.allclose(op.matvec(z), P @ z)
    assert torch.allclose(op.affine(z), op.start(torch.float64) + P @ z)
    g = torch.randn(op.padded, dtype=torch.float64)
    g[D:] = 0
    assert torch.equal(op.rmatvec(g), op.rmatvec(g[:D]))
    assert torch.allclose(op.matvec(z.float()).double(), P @ z, atol=1e-3 * float(z.norm()))


def test_gram_matrix(name):
    op = OPERATORS[name].sized(44_426, 290, 3)
    P = dense(op)
    values = torch.linalg.eigvalsh(P.T @ P)
    low, high = SPREAD[name]
    assert values.min() / values.mean() > low
    assert values.max() / values.mean() < high


@pytest.mark.parametrize(("D", "d"), [(1_450, 400), (9_999, 7)])
def test_row_norm(name, D, d):
    op = OPERATORS[name].sized(D, d, 3)
    assert dense(op).square().sum(1).mean().sqrt() == pytest.approx(op.row_norm, rel=0.1)


@pytest.mark.parametrize(("D", "d"), [(100, 40), (1_450, 400), (3_001, 2_000)])
def test_full_rank_where_D_fills_a_block(name, D, d):
    P = dense(OPERATORS[name].sized(D, d, 3))
    # The distance of each column from the span of those before it; Cholesky's factor has it on its diagonal.
    assert torch.linalg.cholesky(P.T @ P / D).diagonal().min() > 1e-3


def test_the_seed_is_the_only_state(name):
    z = torch.randn(40)
    torch.manual_seed(1)
    first = OPERATORS[name].sized(1_000, 40, 5).matvec(z)
    torch.manual_seed(2)
    np.random.default_rng(0).random(10)
    again = OPERATORS[name].sized(1_000, 40, 5)
    assert torch.equal(first, again.matvec(z))
    assert torch.equal(first, again.matvec(z))
    assert not torch.equal(first, OPERATORS[name].sized(1_000, 40, 6).matvec(z))


def test_gradients(name):
    op = OPERATORS[name].sized(61, 9, 3)
    z = torch.randn(9, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(op, (z,))
    assert torch.autograd.gradgradcheck(op, (z,))


@pytest.mark.parametrize("d", [64, 300, 1_000])
def test_rows_of_a_square_matrix_are_distinct_and_nearly_uncorrelated(name, d):
    op = OPERATORS[name].sized(256 * 256, d, 3)
    signs = torch.from_numpy(np.random.default_rng(0).choice([-1.0, 1.0], d))
    rows = (op.start(torch.float64) + op.matvec(signs)).view(256, 256)
    correlation = torch.corrcoef(rows)
    off = correlation[~torch.eye(256, dtype=torch.bool)]
    assert off.abs().max() < 0.75, off.abs().max()
    assert off.square().mean().sqrt() < 0.15


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from /proc")
def test_memory_is_never_of_the_order_of_D_times_d():
    # Not getrusage's peak: a child inherits it from the process that starts it, and growth below that goes unseen.
    code = f"""
import re, torch
from subcompress.operators import OPERATORS

def peak():
    return int(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1])

before = peak()
for name, (D, d, growth) in {MEMORY}.items():
    op = OPERATORS[name].sized(D, d, 0)
    op.rmatvec(op.matvec(torch.ones(d)))
    assert peak() - before < growth, f"{{name}} grew by {{peak() - before}} kB"
"""
    found = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr


@pytest.mark.parametrize("name", FLOAT)
def test_a_reference_is_called_one_and_starts_at_zero(name):
    op = OPERATORS[name].sized(100, 10, 3)
    lines = sys.modules[type(op).__module__].__doc__.splitlines()
    assert "a reference: not exact between devices, and it cannot be packed" in lines[0]
    assert not op.exact
    assert not op.has_start
    assert not op.start().any()


@pytest.mark.parametrize("name", FLOAT)
def test_a_reference_leaves_the_random_state_alone(name):
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    op = OPERATORS[name].sized(500, 40, 3)
    op.rmatvec(op.matvec(torch.ones(40)))
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])


@pytest.mark.parametrize("name", FLOAT)
def test_a_reference_is_not_touched_by_autocast(name):
    op, z = OPERATORS[name].sized(500, 40, 3), torch.randn(40)
    out, back = op.matvec(z), op.rmatvec(op.matvec(z))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(op.matvec(z), out)
        assert torch.equal(op.rmatvec(out), back)


@pytest.mark.parametrize("name", FLOAT)
@pytest.mark.parametrize("d", [0, 101])
def test_a_reference_refuses_sizes_that_cannot_be_in_one_line(name, d):
    with pytest.raises(SubcompressError, match=rf"^D = 100 .*given d = {d}: .*$"):
        OPERATORS[name].sized(100, d, 0)


def coordinates(d: int, top: int = 7) -> np.ndarray:
    return np.random.default_rng(d).integers(-top, top + 1, d).astype(np.int32)


@pytest.mark.parametrize(("D", "d"), SIZES)
def test_backends_give_the_same_integers(exact, D, d):
    op, c = exact.sized(D, d, 3), coordinates(d)
    rows = op.rows(c, 0, D)
    assert rows.dtype == np.int32
    assert np.array_equal(rows, op.rows(torch.from_numpy(c), 0, D).numpy())
    assert torch.equal(torch.from_numpy(rows).float(), op.start() + op.matvec(torch.from_numpy(c).float()))
    assert np.abs(rows).max() <= op.peak(c) < 1 << 16


def test_slices_equal_the_whole(exact):
    op, c = exact.sized(5_003, 700, 3), coordinates(700)
    for given in (c, torch.from_numpy(c)):
        whole = op.rows(given, 0, 5_003)
        for chunk in (1, 17, 1_000, 4_999):
            for lo in range(0, 5_003, max(chunk, 331)):
                hi = min(lo + chunk, 5_003)
                assert (op.rows(given, lo, hi) == whole[lo:hi]).all()


def test_zero_is_never_negative(exact):
    op = exact.sized(9_999, 100, 3)
    rows = op.rows(torch.from_numpy(coordinates(100, 1)), 0, 9_999)
    assert (rows == 0).sum() > 100
    assert not rows[rows == 0].signbit().any()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_the_same_bytes_under_autocast_and_every_precision(exact, precision, threads):
    op, c = exact.sized(44_426, 290, 3), coordinates(290)
    truth = op.rows(c, 0, 44_426).astype(np.float32).tobytes()
    before = torch.get_float32_matmul_precision(), torch.get_num_threads(), torch.get_default_dtype()
    try:
        torch.set_float32_matmul_precision(precision)
        torch.set_num_threads(threads)
        torch.set_default_dtype(torch.float64)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = op.rows(torch.from_numpy(c), 0, 44_426)
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.set_num_threads(before[1])
        torch.set_default_dtype(before[2])
    assert found.numpy().tobytes() == truth


def test_codes_are_given_once():
    codes = [OPERATORS[n].code for n in EXACT]
    assert len(set(codes)) == len(codes)


# --- signed Hadamard blocks, against the definition ---


@pytest.mark.parametrize("kind", BLOCKS)
@pytest.mark.parametrize(("D", "d", "log2_m", "K"), [(50, 5, 3, 2), (37, 30, 4, 0), (21, 9, 6, 16), (40, 35, 3, 1)])
def test_hadamard_blocks_follow_their_definition(D, d, log2_m, K, kind):
    op = kind(D, d, 11, log2_m, K, 5, group=2)
    m, free, c = 1 << log2_m, (1 << log2_m) - K, coordinates(d)
    truth = []
    for i in range(D):
        b, r = divmod(i, m)
        total = 0
        for j, column in enumerate(op.columns.tolist()):
            value = 5 if j < K else int(c[(j - K) if d <= free else (b * free + j - K) % d])
            sign = -1 if op._signs(b, b + 1)[0, j] < 0 else 1
            total += value * sign * (-1) ** (r & column).bit_count()
        truth.append(total)
    assert op.rows(c, 0, D).tolist() == truth


@pytest.mark.parametrize("log2_m", [0, 1, 2, 5, 8])
def test_columns_are_ordered_by_sequency_in_both_halves(log2_m):
    low = log2_m - log2_m // 2

    def changes(n: int, column: int) -> int:
        signs = [(-1) ** (r & column).bit_count() for r in range(1 << n)]
        return sum(a != b for a, b in itertools.pairwise(signs))

    def distance(v: int) -> tuple[int, int]:
        along_low = changes(low, v & ((1 << low) - 1)) * ((1 << (log2_m - low)) - 1)
        along_high = changes(log2_m - low, v >> low) * ((1 << low) - 1)
        return along_low**2 + along_high**2, v

    assert walsh.order(log2_m).tolist() == sorted(range(1 << log2_m), key=distance)


@pytest.mark.parametrize("kind", BLOCKS)
@pytest.mark.parametrize(("log2_m", "K", "d"), [(6, 16, 20), (9, 16, 400), (3, 7, 1), (4, 0, 16), (5, 3, 29)])
def test_slots_take_distinct_columns(log2_m, K, d, kind):
    op = kind(5_000, d, 1, log2_m, K, 1)
    assert len(set(op.columns.tolist())) == K + d == len(op.columns)


@pytest.mark.parametrize("seed", [0, 3, 2**64 - 1])
@pytest.mark.parametrize("log2_m", [0, 3, 10, 20])
def test_scattered_columns_follow_their_definition(log2_m, seed):
    op = ScatteredBlocks(1 << 20, 1, seed, log2_m, min(9, (1 << log2_m) - 1), 1, group=7)
    w0, w1, w2, w3 = (int(w) for w in philox.words(seed, 15, np.arange(1, dtype=np.int64))[0, :4])
    half = -(-log2_m // 2)
    for j, column in enumerate(op.columns.tolist()):
        x = ((w0 | 1) * j + w1) % op.m
        x = (x ^ (x >> half)) * (w2 | 1) % op.m
        assert column == (x ^ (x >> half)) * (w3 | 1) % op.m
    assert len(set(op.columns.tolist())) == len(op.columns)


@pytest.mark.parametrize(("d", "log2_m"), [(64, 8), (300, 10), (1000, 11)])
def test_rows_of_scattered_blocks_are_as_little_alike_as_with_columns_drawn_at_random(d, log2_m):
    m, worst = 1 << log2_m, []
    for seed in range(30):
        chosen = np.zeros(m, np.int64)
        chosen[ScatteredBlocks(m, d, seed, log2_m, 0, 0).columns] = 1
        worst.append(np.abs(walsh.transform(chosen[None])[0, 1:]).max() / d)
    # Of d random signs in m sums the largest is about sqrt(2 ln(m) / d).
    assert np.median(worst) < 1.5 * np.sqrt(2 * np.log(m) / d)


def test_another_operator_is_another_one_whatever_makes_it():
    op = ScatteredBlocks.sized(5_000, 90, 1)
    assert op != HadamardBlocks.sized(5_000, 90, 1)
    assert op == replace(op) == ScatteredBlocks.of(5_000, 1, 0, op.parameters())
    changed = op.with_constant(7)
    assert type(changed) is ScatteredBlocks
    assert changed.A == 7
    assert np.array_equal(changed.columns, op.columns)
    assert pickle.loads(pickle.dumps(op)) == op


@pytest.mark.parametrize("kind", BLOCKS)
def test_whole_blocks_are_exactly_orthogonal(kind):
    op = kind(4 * 64, 40, 1, 6, 16, 1)
    P = dense(op)
    assert torch.equal(P.T @ P, 256 * torch.eye(40, dtype=torch.float64))
    assert torch.equal(P.T @ op.start(torch.float64), torch.zeros(40, dtype=torch.float64))


@pytest.mark.parametrize("kind", BLOCKS)
def test_a_larger_d_starts_with_the_smaller_one(kind):
    small, large = kind(5_000, 30, 1, 9), kind(5_000, 60, 1, 9)
    z = torch.randn(30, dtype=torch.float64)
    assert torch.equal(small.matvec(z), large.matvec(torch.cat([z, torch.zeros(30, dtype=torch.float64)])))


def test_windows_read_every_coordinate_about_equally():
    op = HadamardBlocks(10_000, 900, 1, 6, 16, 1)
    norms = torch.stack([op.matvec(e) for e in torch.eye(900)[:200]]).square().sum(1)
    assert norms.min() > 0
    assert norms.max() / norms.min() < 1.5


def test_sizes_that_cannot_be_are_refused_in_one_line():
    for sizes in [{"d": 101}, {"d": 0}, {"log2_m": 21}, {"K": 64, "log2_m": 6}, {"A": 1 << 15}]:
        with pytest.raises(SubcompressError) as error:
            HadamardBlocks(**{"D": 100, "d": 5, "seed": 0, **sizes})
        assert "\n" not in str(error.value)


def test_the_peak_counts_every_window():
    op = HadamardBlocks(4_000, 300, 1, 6, 0, 0)
    c = np.zeros(300, np.int32)
    c[290:] = 2_000
    blocks = [sum(abs(int(c[(b * 64 + j) % 300])) for j in range(64)) for b in range(op.blocks)]
    assert op.peak(c) == max(blocks)


# --- references, against their definitions ---


def test_normals_are_standard_and_the_same_in_any_slice():
    x = normals(7, 0, 0, 1_000_003).astype(np.float64)
    assert abs(x.mean()) < 0.004
    assert abs(x.var() - 1) < 0.006
    assert abs((x**4).mean() - 3) < 0.04
    assert abs(np.corrcoef(x[:-1], x[1:])[0, 1]) < 0.004
    assert 4.3 < np.abs(x).max() < 6.7
    for lo, count in [(0, 1), (3, 5), (16_383, 3), (999_990, 13)]:
        assert np.array_equal(normals(7, 0, lo, count), x[lo : lo + count].astype(np.float32))


def test_dense_is_drawn_the_same_in_pieces_and_at_once(monkeypatch):
    op, z, g = DenseGaussian(3_001, 700, 3), torch.randn(700), torch.randn(3_001)
    P = op.rows(0, op.D)
    assert op.D * op.d < KEPT
    assert torch.equal(op.rows(2_321, 2_400), P[2_321:2_400])
    kept = op.matvec(z), op.rmatvec(g)
    monkeypatch.setattr("subcompress.operators.dense.KEPT", 0)
    again = DenseGaussian(3_001, 700, 3)
    assert torch.equal(kept[0], again.matvec(z))
    assert torch.equal(kept[1], again.rmatvec(g))
    assert not again._kept
    assert torch.equal(again.matvec(torch.eye(700)[699]), P[:, 699])


@pytest.mark.parametrize(("D", "d"), [(10_000, 300), (1, 1), (900, 900)])
def test_sparse_has_the_density_and_the_variance(D, d):
    P = dense(SparseProjection(D, d, 3))
    assert set((P.abs() / D**0.25).unique().tolist()) <= {0.0, 1.0}
    expected = D * d / math.sqrt(D)
    assert abs((P != 0).sum() - expected) <= 4 * math.sqrt(expected * (1 - 1 / math.sqrt(D)))
    assert abs(P.sign().sum()) <= 4 * math.sqrt(expected)
    # Entries are independent: nonzeros a column spread as a binomial does.
    if D == 10_000:
        assert (P != 0).sum(0).double().var().item() == pytest.approx(D / math.sqrt(D), rel=0.4)


@pytest.mark.parametrize(("D", "d"), [(50, 5), (37, 16), (64, 33), (3, 1), (1, 1)])
def test_fastfood_follows_its_definition(D, d):
    op = Fastfood(D, d, 3)
    size = 1 << op.log2_l
    assert size // 2 < d <= size
    H = torch.ones(1, 1, dtype=torch.float64)
    while len(H) < size:
        H = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64), H)
    blocks = []
    for B, Pi, G in zip(*(torch.from_numpy(part) for part in op.draws()), strict=True):
        assert sorted(Pi.tolist()) == list(range(size))
        assert set(B.tolist()) <= {-1, 1}
        permute = torch.eye(size, dtype=torch.float64)[Pi]
        V = H @ torch.diag(G.double()) @ permute @ H @ torch.diag(B.double())
        assert torch.allclose(V.square().sum(1), torch.tensor(float(size), dtype=torch.float64))
        blocks.append(V[:, :d])
    assert torch.allclose(dense(op), torch.cat(blocks)[:D], atol=1e-6)


def test_fastfood_blocks_differ():
    signs, reads, g = Fastfood(1_000, 100, 3).draws()
    for part in (signs, reads, g):
        assert len({row.tobytes() for row in part}) == len(part) == 8


@pytest.mark.parametrize(("D", "d"), [(1_000, 300), (40, 40)])
def test_onehot_reads_one_coordinate_a_weight_evenly(D, d):
    P = dense(OneHot(D, d, 3))
    count = (P != 0).sum(0)
    assert ((P != 0).sum(1) == 1).all()
    assert count.min() == D // d
    assert count.max() == -(-D // d)
    assert (P >= 0).all()
    assert torch.allclose(P.T @ P, D * torch.eye(d, dtype=torch.float64))


@pytest.mark.parametrize(("D", "d"), [(36, 9), (50, 5), (101, 101), (1, 1)])
def test_kronecker_follows_its_definition(D, d):
    op = KroneckerProduct(D, d, 3)
    first, second = (torch.from_numpy(q) for q in op.factors())
    assert first.shape == second.shape == (math.ceil(math.sqrt(D)), math.ceil(math.sqrt(d)))
    for q in (first, second):
        assert torch.allclose(q.T @ q, len(q) * torch.eye(q.shape[1], dtype=torch.float64))
    P = dense(op)
    assert torch.allclose(P, torch.kron(first, second)[op.rows][:, op.columns])
    assert len(set(op.rows.tolist())) == D
    assert len(set(op.columns.tolist())) == d
    assert torch.linalg.matrix_rank(P) == d
    if D == 36:
        assert torch.allclose(P.T @ P, D * torch.eye(d, dtype=torch.float64))
