"""The operators by name. A new one is one file and one line here; the tests cover every operator in the list."""

from subcompress.operators.base import ExactOperator, Operator
from subcompress.operators.dense import DenseGaussian
from subcompress.operators.fastfood import Fastfood
from subcompress.operators.haar import HaarWavelets
from subcompress.operators.hadamard import HadamardBlocks
from subcompress.operators.householder import HouseholderProduct
from subcompress.operators.kronecker import KroneckerProduct
from subcompress.operators.onehot import OneHot
from subcompress.operators.scattered import ScatteredBlocks
from subcompress.operators.sparse import SparseProjection
from subcompress.operators.tucker import TuckerCore

OPERATORS: dict[str, type[Operator]] = {
    "hadamard": HadamardBlocks,
    "scattered": ScatteredBlocks,
    "dense": DenseGaussian,
    "sparse": SparseProjection,
    "fastfood": Fastfood,
    "onehot": OneHot,
    "kronecker": KroneckerProduct,
    "haar": HaarWavelets,
    "tucker": TuckerCore,
    "householder": HouseholderProduct,
}

EXACT: dict[str, type[ExactOperator]] = {n: op for n, op in OPERATORS.items() if issubclass(op, ExactOperator)}
"""Those that pack."""

__all__ = ["EXACT", "OPERATORS", "ExactOperator", "HadamardBlocks", "Operator", "ScatteredBlocks"]
