"""The common part of reference operators whose P consists of blocks of m rows, where m is a power of two."""

from __future__ import annotations

from dataclasses import dataclass

from subcompress.errors import SubcompressError
from subcompress.operators.dense import Reference

LEAST_LOG2_M, MOST_LOG2_M = 8, 15
"""The usual sizes of a block, like those of `HadamardBlocks`."""


@dataclass(frozen=True)
class BlockedReference(Reference):
    """A reference of blocks. A block has m independent columns, and each coordinate takes one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.d > self.m:
            raise SubcompressError(
                f"a block of m = {self.m} rows can take {self.m} coordinates; got d = {self.d}: give larger blocks"
            )

    @property
    def bits(self) -> int:
        """The binary logarithm of m."""
        raise NotImplementedError

    @property
    def m(self) -> int:
        """The number of rows in a block."""
        return 1 << self.bits

    @property
    def blocks(self) -> int:
        """The number of blocks. The last one is cut at D."""
        return -(-self.D // self.m)

    @property
    def padded(self) -> int:
        return self.blocks * self.m


def block_bits(D: int, d: int) -> int:
    """Return log2 m: m is the smallest power of two that is at least 2 d, within [2^8, 2^15], and at most D if that
    leaves room for d."""
    wanted = min(max((2 * d - 1).bit_length(), LEAST_LOG2_M), MOST_LOG2_M)
    whole, least = D.bit_length() - 1, (d - 1).bit_length()
    return max(min(wanted, whole), least)
