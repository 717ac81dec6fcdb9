"""The contract of every operator in the registry: being listed is being tested."""

from __future__ import annotations

import itertools
import resource
import subprocess
import sys

import numpy as np
import pytest
import torch

from subcompress import SubcompressError
from subcompress.operators import OPERATORS, ExactOperator, HadamardBlocks, walsh

SIZES = [(1, 1), (7, 3), (50, 30), (64, 64 - 16), (1_450, 400), (4_096, 100), (9_999, 7), (44_426, 290), (3_001, 2_000)]
EXACT = [name for name, op in OPERATORS.items() if issubclass(op, ExactOperator)]

# Eigenvalues of P^T P over their mean, for (D, d) with D at least 20 times the rows of a block: the last block is cut.
SPREAD = {"hadamard": (0.9, 1.1)}


@pytest.fixture(params=OPERATORS)
def name(request):
    return request.param


@pytest.fixture(params=EXACT)
def exact(request):
    return OPERATORS[request.param]


def dense(op) -> torch.Tensor:
    """P, (D, d) float64, a column at a time."""
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


@pytest.mark.parametrize(("D", "d"), [(100, 40), (1_450, 400), (3_001, 2_000)])
def test_full_rank_where_D_fills_a_block(name, D, d):
    assert torch.linalg.matrix_rank(dense(OPERATORS[name].sized(D, d, 3))) == d


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


def test_memory_is_never_of_the_order_of_D_times_d(name):
    """D d would be 160 GB; the process may grow by 1 GB."""
    code = (
        "import resource, sys, torch; from subcompress.operators import OPERATORS\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        f"op = OPERATORS[{name!r}].sized(2_000_000, 20_000, 0)\n"
        "op.rmatvec(op.matvec(torch.ones(20_000)))\n"
        "sys.exit(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before > 1_000_000)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > 0


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


@pytest.mark.parametrize(("D", "d", "log2_m", "K"), [(50, 5, 3, 2), (37, 30, 4, 0), (21, 9, 6, 16), (40, 35, 3, 1)])
def test_hadamard_blocks_follow_their_definition(D, d, log2_m, K):
    op = HadamardBlocks(D, d, 11, log2_m, K, 5, group=2)
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


@pytest.mark.parametrize(("log2_m", "K", "d"), [(6, 16, 20), (9, 16, 400), (3, 7, 1), (4, 0, 16), (5, 3, 29)])
def test_slots_take_distinct_columns(log2_m, K, d):
    op = HadamardBlocks(5_000, d, 1, log2_m, K, 1)
    assert len(set(op.columns.tolist())) == K + d == len(op.columns)


def test_whole_blocks_are_exactly_orthogonal():
    op = HadamardBlocks(4 * 64, 40, 1, 6, 16, 1)
    P = dense(op)
    assert torch.equal(P.T @ P, 256 * torch.eye(40, dtype=torch.float64))
    assert torch.equal(P.T @ op.start(torch.float64), torch.zeros(40, dtype=torch.float64))


def test_a_larger_d_starts_with_the_smaller_one():
    small, large = HadamardBlocks(5_000, 30, 1, 9), HadamardBlocks(5_000, 60, 1, 9)
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
