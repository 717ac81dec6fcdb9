"""The range coder: exact both ways, close to the entropy, and refusing what it did not write."""

import constriction
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from timing import takes_at_most

from subcompress import SubcompressError
from subcompress.format import codec
from subcompress.format.codec import MAX_BITS, MIN_BITS, decode, encode


@st.composite
def groups(draw):
    bits = draw(st.integers(MIN_BITS, MAX_BITS))
    top = 1 << (bits - 1)
    values = draw(arrays(np.int32, st.integers(0, 200), elements=st.integers(-top, top - 1)))
    return values, bits


@given(st.lists(groups(), max_size=3))
def test_round_trip(given_groups):
    data = encode(given_groups)
    found = decode(data, [(len(values), bits) for values, bits in given_groups])
    assert all(np.array_equal(a, b) for a, (b, _) in zip(found, given_groups, strict=True))
    assert not data.endswith(b"\0")


@pytest.fixture
def plain(monkeypatch):
    """Without the compiled part."""
    monkeypatch.setattr(codec, "library", lambda: None)


@given(
    st.integers(MIN_BITS, MAX_BITS),
    st.lists(st.tuples(st.integers(-(1 << 11), 1 << 11), st.integers(1, 2_000)), max_size=4),
    st.lists(st.integers(0, 2_000), max_size=8),
)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_stretches_of_equal_coordinates_are_read_as_they_were_written(plain, bits, runs, noise):
    top = 1 << (bits - 1)
    parts = [np.full(n, max(-top, min(v, top - 1)), np.int32) for v, n in runs]
    values = np.concatenate([np.zeros(700, np.int32), *parts])
    for at in noise:
        values[at : at + 1] = min(1, top - 1)
    (found,) = decode(encode([(values, bits)]), [(len(values), bits)])
    assert np.array_equal(found, values)


@pytest.mark.parametrize("compiled", [True, False])
def test_decisions_are_bounded(monkeypatch, compiled):
    """Of nonzero coordinates: equal ones take more than a file of their bytes has."""
    if not compiled:
        monkeypatch.setattr(codec, "library", lambda: None)
    monkeypatch.setattr(codec, "FREE_DECISIONS", 1_200)
    data = encode([(np.full(500, -2_048), 12)])
    most = (1_200 + 256 * len(data)) // 12  # sign and eleven classes
    assert (decode(data, [(most, 12)])[0][:500] == -2_048).all()
    with pytest.raises(SubcompressError, match="nonzero coordinates take more than 1200 decisions"):
        decode(encode([(np.full(most + 1, -2_048), 12)]), [(most + 1, 12)])


def test_no_file_whose_signs_cost_a_bit_takes_too_many_decisions():
    most = max(
        len(codec._decisions_of(codec._Contexts(bits), v)) - 1 for bits in (12,) for v in (-2_048, -2_047, 2_047)
    )
    assert 8 * most < codec.DECISIONS_A_BYTE


def test_four_million_zeros_are_read_in_a_few_hundred_milliseconds(plain):
    (found,) = decode(b"", [(1 << 22, 12)])
    assert not found.any()
    assert takes_at_most(lambda: decode(b"", [(1 << 22, 12)]), 20)  # 6 as it is, 70 if they are decoded one by one


def entropy_bytes(z: np.ndarray) -> float:
    _, counts = np.unique(z, return_counts=True)
    p = counts / len(z)
    return float(-(p * np.log2(p)).sum() * len(z) / 8)


def _normal(spread: float, top: int):
    return lambda rng, n: rng.normal(0, spread, n).round().clip(-top, top)


SOURCES = {
    "normal 4 bits": (4, _normal(2.5, 7)),
    "narrow 4 bits": (4, _normal(0.8, 7)),
    "laplace 4 bits": (4, lambda rng, n: rng.laplace(0, 1.5, n).round().clip(-8, 7)),
    "uniform 4 bits": (4, lambda rng, n: rng.integers(-8, 8, n)),
    "uniform 2 bits": (2, lambda rng, n: rng.integers(-2, 2, n)),
    "ternary": (2, lambda rng, n: rng.integers(-1, 2, n)),
    "odd levels": (3, lambda rng, n: rng.integers(0, 4, n) * 2 - 3),
    "skewed": (4, lambda rng, n: rng.normal(1.5, 2.5, n).round().clip(-8, 7)),
    "normal 6 bits": (6, _normal(10, 31)),
    "zeros": (4, lambda rng, n: np.zeros(n)),
    "one value": (4, lambda rng, n: np.full(n, -8)),
}


@pytest.mark.parametrize("n", [300, 1_000, 10_000, pytest.param(100_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("source", SOURCES)
def test_within_three_percent_and_eight_bytes_of_the_entropy(source, n):
    bits, draw = SOURCES[source]
    z = draw(np.random.default_rng(n), n).astype(np.int32)
    assert len(encode([(z, bits)])) <= 1.03 * entropy_bytes(z) + 8


@pytest.mark.parametrize("n", [300, 3_000, 30_000])
def test_level_with_constriction_that_knows_the_frequencies(n):
    """constriction is given the true frequencies for nothing; ours learns them on the way."""
    z = SOURCES["normal 4 bits"][1](np.random.default_rng(n), n).astype(np.int32)
    counts = np.bincount(z + 7, minlength=15).astype(np.float64)
    model = constriction.stream.model.Categorical(counts / counts.sum(), perfect=False)
    oracle = constriction.stream.queue.RangeEncoder()
    oracle.encode(z + 7, model)
    assert len(encode([(z, 4)])) <= 1.03 * 4 * len(oracle.get_compressed()) + 8


def test_values_outside_their_bits_are_refused():
    with pytest.raises(SubcompressError, match=r"4 bits must lie in \[-8, 7\]; these reach from 0 to 8"):
        encode([(np.array([0, 8]), 4)])


def test_bytes_that_no_coordinate_asks_for_are_refused():
    data = encode([(np.arange(-8, 8), 4)])
    with pytest.raises(SubcompressError, match="more than d"):
        decode(data + b"\1" * 8, [(16, 4)])
    with pytest.raises(SubcompressError, match="more than d"):
        decode(data + b"\0", [(16, 4)])


def test_carries_reach_back_over_runs_of_ones():
    """Long runs of the likelier symbol drive `low` to 0xFF bytes: every seed must survive."""
    for seed in range(200):
        rng = np.random.default_rng(seed)
        z = np.where(rng.random(400) < 0.02, rng.integers(-8, 8, 400), 7).astype(np.int32)
        assert np.array_equal(decode(encode([(z, 4)]), [(400, 4)])[0], z)
