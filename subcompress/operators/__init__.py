"""Operators by name. A new one is one file and one line here; being listed is being tested."""

from subcompress.operators.base import ExactOperator, Operator
from subcompress.operators.dense import DenseGaussian
from subcompress.operators.fastfood import Fastfood
from subcompress.operators.hadamard import HadamardBlocks
from subcompress.operators.kronecker import KroneckerProduct
from subcompress.operators.onehot import OneHot
from subcompress.operators.sparse import SparseProjection

OPERATORS: dict[str, type[Operator]] = {
    "hadamard": HadamardBlocks,
    "dense": DenseGaussian,
    "sparse": SparseProjection,
    "fastfood": Fastfood,
    "onehot": OneHot,
    "kronecker": KroneckerProduct,
}

__all__ = ["OPERATORS", "ExactOperator", "HadamardBlocks", "Operator"]
