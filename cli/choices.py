"""What the options can be given by name, as constants: help and completion need no torch. Most are those of
`subcompress.support.names`; a test compares each with the registry that it names."""

from subcompress.support.names import (
    AUGMENTS,
    AUTO,
    DATA,
    EXACT,
    EXECUTORS,
    FOLDERS,
    FORMATS,
    GRAPHS,
    LOSSES,
    METRICS,
    MODELS,
    OPERATORS,
    OPTIMIZERS,
    PEERS,
    RANKS,
    ROLES,
    TASKS,
)
from subcompress.support.names import DEFAULT_ROLES as ACT_ON

KNOBS = ("d", "price")
PRECISIONS = ("fp32", "bf16")
DTYPES = ("fp32", "fp16", "bf16")
STRUCTURED = ("random", "store", "guess")
SHUFFLES = ("pixels", "labels")
TRITON_BACKENDS = ("onnxruntime", "python")
MAX_BATCH = 64
VECTORS = ("plain", "avx2", "avx512", "numpy")

__all__ = [
    "ACT_ON",
    "AUGMENTS",
    "AUTO",
    "DATA",
    "DTYPES",
    "EXACT",
    "EXECUTORS",
    "FOLDERS",
    "FORMATS",
    "GRAPHS",
    "KNOBS",
    "LOSSES",
    "MAX_BATCH",
    "METRICS",
    "MODELS",
    "OPERATORS",
    "OPTIMIZERS",
    "PEERS",
    "PRECISIONS",
    "RANKS",
    "ROLES",
    "SHUFFLES",
    "STRUCTURED",
    "TASKS",
    "TRITON_BACKENDS",
    "VECTORS",
]
