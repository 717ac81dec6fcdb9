"""The coder against the empirical entropy, and against constriction's, which gets the frequencies for free.

python benchmarks/coder.py [-o benchmarks/results]
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import constriction
import numpy as np

from subcompress.format.codec import decode, encode


def row(n: int, bits: int, spread: float) -> str:
    """n normally distributed coordinates with this number of bits and this standard deviation."""
    top = (1 << (bits - 1)) - 1
    z = np.random.default_rng(n).normal(0, spread, n).round().clip(-top, top).astype(np.int32)
    counts = np.bincount(z + top, minlength=2 * top + 1)
    p = counts[counts > 0] / n
    entropy = float(-(p * np.log2(p)).sum() * n / 8)
    oracle = constriction.stream.queue.RangeEncoder()
    oracle.encode(z + top, constriction.stream.model.Categorical(counts / n, perfect=False))
    data = encode([(z, bits)])
    began = time.perf_counter()
    assert np.array_equal(decode(data, [(n, bits)])[0], z)
    seconds = time.perf_counter() - began
    above = f"{len(data) - entropy:.1f} | {1.03 * entropy + 8 - entropy:.1f}"
    theirs = 4 * len(oracle.get_compressed())
    return f"| {n:,} | {bits} | {entropy:,.1f} | {len(data):,} | {above} | {theirs:,} | {1e3 * seconds:.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
    lines = [
        "| coordinates | bits | entropy, B | ours, B | above | allowed, 3 % + 8 | constriction, B | decode, ms |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for n in (300, 600, 2_000, 10_000, 100_000):
        lines += [row(n, bits, spread) for bits, spread in ((2, 0.7), (3, 1.3), (4, 2.5), (6, 10.0))]
    print("\n".join(lines))
    if options.output:
        (options.output / "coder.md").write_text("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
