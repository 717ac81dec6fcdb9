"""Operators by name. A new one is one file and one line here; being listed is being tested."""

from subcompress.operators.base import ExactOperator, Operator
from subcompress.operators.hadamard import HadamardBlocks

OPERATORS: dict[str, type[Operator]] = {
    "hadamard": HadamardBlocks,
}

__all__ = ["OPERATORS", "ExactOperator", "HadamardBlocks", "Operator"]
