"""Philox against Random123's published vectors, and against itself in slices."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from subcompress.operators import philox

# github.com/DEShawResearch/random123, tests/kat_vectors, lines "philox4x32 10": counter, key, result.
VECTORS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


@pytest.mark.parametrize(("counter", "key", "result"), VECTORS)
@pytest.mark.parametrize("array", [np.array, torch.tensor])
def test_published_vectors(counter, key, result, array):
    words = [array([int(w, 16)]) for w in counter.split()]
    k0, k1 = (int(w, 16) for w in key.split())
    found = philox.philox4x32(tuple(words), (k0, k1))
    assert " ".join(f"{int(w[0]):08x}" for w in found) == result


@given(
    seed=st.integers(0, 2**64 - 1), stream=st.integers(0, 2**32 - 1), start=st.integers(0, 2**40), n=st.integers(0, 400)
)
def test_bits_are_slices_of_one_stream(seed, stream, start, n):
    whole = philox.bits(seed, stream, start, n)
    cut = n // 3
    parts = [philox.bits(seed, stream, start, cut), philox.bits(seed, stream, start + cut, n - cut)]
    assert np.array_equal(whole, np.concatenate(parts))
    assert set(whole.tolist()) <= {0, 1}


@given(seed=st.integers(0, 2**64 - 1), stream=st.integers(0, 2**32 - 1), quad=st.integers(0, 2**62))
def test_numpy_and_torch_agree(seed, stream, quad):
    a = philox.words(seed, stream, np.arange(quad, quad + 5))
    b = philox.words(seed, stream, torch.arange(quad, quad + 5), torch)
    assert np.array_equal(a, b.numpy())
    assert a.min() >= 0
    assert a.max() < 2**32


def test_bit_n_is_bit_n_mod_32_of_word_n_div_32():
    words = philox.words(7, 3, np.arange(4)).reshape(-1)
    bits = philox.bits(7, 3, 0, 512)
    assert all(bits[n] == words[n // 32] >> n % 32 & 1 for n in range(512))


def test_streams_and_seeds_differ():
    rows = [philox.bits(seed, stream, 0, 4096) for seed in range(4) for stream in range(4)]
    agreement = np.array([[(a == b).mean() for b in rows] for a in rows])
    off = agreement[~np.eye(len(rows), dtype=bool)]
    assert off.min() > 0.45
    assert off.max() < 0.55
