"""The contract of every operator in the registry: being listed is being tested."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from operator_cases import coordinates, dense

from subcompress import SubcompressError
from subcompress.operators import OPERATORS, ExactOperator

SIZES = [(1, 1), (7, 3), (50, 30), (64, 64 - 16), (1_450, 400), (4_096, 100), (9_999, 7), (44_426, 290), (3_001, 2_000)]


EXACT = [name for name, op in OPERATORS.items() if issubclass(op, ExactOperator)]


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
    "haar": (0.9, 1.1),  # lengths of integer atoms differ by 6 %, over 44 blocks by less
    "tucker": (0.8, 1.2),  # 1,230 of 45,656 orthonormal rows are cut
    "householder": (0.9, 1.1),
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


@pytest.mark.parametrize(("D", "d"), SIZES)
def test_adjoint(name, D, d):
    op = OPERATORS[name].sized(D, d, 3)
    z, g = torch.randn(d, dtype=torch.float64), torch.randn(D, dtype=torch.float64)
    left, right = op.matvec(z) @ g, z @ op.rmatvec(g)
    assert torch.allclose(left, right), f"<P z, g> = {left}, <z, P^T g> = {right}"
    assert op.matvec(z).shape == (D,)
    assert op.rmatvec(g).shape == (d,)


@pytest.mark.parametrize(
    ("D", "d"), [(7, 3), (50, 30), (1_450, 400), pytest.param(3_001, 2_000, marks=pytest.mark.slow)]
)
def test_linear_and_equal_to_the_dense_matrix(name, D, d):
    op = OPERATORS[name].sized(D, d, 3)
    P, z = dense(op), torch.randn(d, dtype=torch.float64)
    assert torch.allclose(op.matvec(z), P @ z)
    assert torch.allclose(op.affine(z), op.start(torch.float64) + P @ z)
    g = torch.randn(op.padded, dtype=torch.float64)
    g[D:] = 0
    assert torch.equal(op.rmatvec(g), op.rmatvec(g[:D]))
    assert torch.allclose(op.matvec(z.float()).double(), P @ z, atol=1e-3 * float(z.norm()))


@pytest.mark.parametrize("every", [3, pytest.param(1, marks=pytest.mark.slow)])
def test_gram_matrix(name, every):
    """Eigenvalues of some of the columns lie between those of all."""
    op = OPERATORS[name].sized(44_426, 290, 3)
    P = dense(op, every)
    values = torch.linalg.eigvalsh(P.T @ P)
    low, high = SPREAD[name]
    assert values.min() / values.mean() > low
    assert values.max() / values.mean() < high


@pytest.mark.parametrize(("D", "d"), [(1_450, 400), (9_999, 7)])
def test_row_norm(name, D, d):
    op = OPERATORS[name].sized(D, d, 3)
    assert dense(op).square().sum(1).mean().sqrt() == pytest.approx(op.row_norm, rel=0.1)


@pytest.mark.parametrize(("D", "d"), [(100, 40), (1_450, 400), pytest.param(3_001, 2_000, marks=pytest.mark.slow)])
def test_full_rank_where_D_fills_a_block(name, D, d):
    if name == "householder":  # its columns are independent over whole blocks, no less
        D = max(D, 4 ** OPERATORS[name].sized(D, d, 3).stages)
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


@pytest.mark.parametrize("d", [64, 300, pytest.param(1_000, marks=pytest.mark.slow)])
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
    assert ", a reference: " in lines[0]
    assert lines[0].endswith(", and it cannot be packed.")
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
    with pytest.raises(SubcompressError, match=rf"^D = 100 .*got d = {d}: .*$"):
        OPERATORS[name].sized(100, d, 0)


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
