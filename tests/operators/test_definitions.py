"""Every operator follows its definition: columns, signs, normals, orthogonality and what each reads."""

from __future__ import annotations

import itertools
import math
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from operator_cases import BLOCKS, coordinates, dense
from torch import nn

import subcompress
from subcompress import SubcompressError
from subcompress.operators import HadamardBlocks, ScatteredBlocks, philox, walsh
from subcompress.operators.dense import KEPT, DenseGaussian, normals
from subcompress.operators.fastfood import Fastfood
from subcompress.operators.haar import HaarWavelets
from subcompress.operators.householder import HouseholderProduct
from subcompress.operators.kronecker import KroneckerProduct
from subcompress.operators.onehot import OneHot
from subcompress.operators.sparse import SparseProjection
from subcompress.operators.tucker import TuckerCore, ranks_of

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
    assert not again._cache
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


@pytest.mark.parametrize(("D", "d", "log2_m"), [(50, 5, 3), (37, 16, 6), (64, 32, 5), (1, 1, 0)])
def test_haar_follows_its_definition(D, d, log2_m):
    op, m = HaarWavelets(D, d, 3, log2_m), 1 << log2_m
    W = np.ones((m, m))
    for level in range(log2_m):
        half = m >> level + 1
        for k in range(1 << level):
            W[:, (1 << level) + k] = 0
            W[2 * k * half : (2 * k + 1) * half, (1 << level) + k] = round(2 ** (level / 2))
            W[(2 * k + 1) * half : (2 * k + 2) * half, (1 << level) + k] = -round(2 ** (level / 2))
    blocks = []
    for atoms, entries in zip(op.atoms, op.entries, strict=True):
        assert len(set(atoms.tolist())) == d
        blocks.append(W[:, atoms] * np.sign(entries))
    assert np.array_equal(dense(op).numpy(), np.concatenate(blocks)[:D])


def test_blocks_of_haar_draw_other_atoms():
    op = HaarWavelets(8_192, 300, 3, 10)
    assert len({tuple(sorted(atoms)) for atoms in op.atoms.tolist()}) == op.blocks == 8
    lengths = dense(op).square().sum(0).sqrt()
    assert lengths.max() / lengths.min() < 1.1


@pytest.mark.parametrize(("D", "d", "stages"), [(16, 16, 2), (50, 5, 2), (64, 40, 3), (1, 1, 0)])
def test_householder_is_a_product_of_reflections(D, d, stages):
    op, m = HouseholderProduct(D, d, 3, stages), 4**stages
    blocks = []
    for b in range(op.blocks):
        product = torch.diag(torch.from_numpy(op.signs[0, b])).double()
        for stage in range(stages):
            for group in {i & ~(3 << 2 * stage) for i in range(m)}:
                v = torch.zeros(m, dtype=torch.float64)
                for i in (group | k << 2 * stage for k in range(4)):
                    v[i] = int(op.signs[1 + stage, b, i])
                product = (torch.eye(m, dtype=torch.float64) - 2 * torch.outer(v, v) / (v @ v)) @ product
        blocks.append(2**stages * product[:, :d])
    P = dense(op)
    assert torch.equal(P, torch.cat(blocks)[:D])
    assert set(P.unique().tolist()) <= {-1.0, 1.0}


@pytest.mark.parametrize("kind", [HaarWavelets, HouseholderProduct])
def test_integer_coordinates_give_integer_weights_in_float32(kind):
    op, c = kind.sized(9_999, 300, 3), coordinates(300)
    truth = dense(op).numpy().astype(np.int64) @ c
    assert np.array_equal(op.matvec(torch.from_numpy(c).float()).numpy(), truth)


def test_whole_blocks_of_reflections_are_exactly_orthogonal():
    P = dense(HouseholderProduct(4 * 64, 40, 1, 3))
    assert torch.equal(P.T @ P, 256 * torch.eye(40, dtype=torch.float64))


def test_tucker_follows_its_definition():
    shapes = [(6, 5, 3, 3), (7, 4), (1, 9), (11,)]
    op, z = TuckerCore.shaped(shapes, 30, 3), torch.randn(30, dtype=torch.float64)
    found = op.matvec(z).split([math.prod(shape) for shape in shapes])
    for shape, core, w in zip(shapes, op.cores, found, strict=True):
        g = np.zeros(math.prod(core.ranks))
        np.add.at(g, core.cells, core.signs * z.numpy())
        g = g.reshape(core.ranks)
        for axis, u in enumerate(core.factors):
            assert np.allclose(u.T @ u, len(u) * np.eye(u.shape[1]))
            g = np.moveaxis(np.tensordot(u, np.moveaxis(g, axis, 0), 1), 0, axis)
        w = w.numpy()
        if core.places is None:
            assert np.allclose(g, w.reshape(shape))
        else:
            assert np.allclose(g.reshape(-1)[core.places], w)
    assert op.cores[0].ranks == (3, 3, 2, 2)
    assert ranks_of((16, 6, 5, 5), 290) == (5, 4, 4, 4)
    assert ranks_of((2, 3), 100) == (2, 3)


def test_operators_are_told_the_shapes_of_a_network():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(36, 3))
    (part,) = subcompress.Subspace.of(net, 20, operator="tucker").plan.parts
    assert part.operator.shapes == ((4, 1, 3, 3), (4,), (3, 36), (3,))
