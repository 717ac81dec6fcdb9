"""Names that options accept, for help texts and completion, which must not import torch to list them.

The comment above each constant names the registry that it mirrors; tests compare the two.
"""

# subcompress_models.MODELS
MODELS = (
    "mlp",
    "lenet",
    "lenet5",
    "cifar-lenet",
    "conv3-4-6-8",
    "conv3-8-12-16",
    "frequencies-32-48-64",
    "mobilenet-v2",
    "oriented-10-16",
    "oriented-6-8",
    "separable-16-32-48-64",
)

# subcompress.data.DATA
DATA = ("digits", "mnist", "cifar10")

# subcompress.data.texts.SUFFIXES
TEXTS = (".csv", ".tsv", ".jsonl", ".ndjson")

# subcompress.data.pretrained.TASKS
TASKS = ("classification", "causal-lm", "token-classification", "image-classification", "features")

# subcompress.data.AUGMENTS
AUGMENTS = ("shift", "flip", "flip-shift")

# subcompress.training.tasks.LOSSES
LOSSES = ("cross-entropy", "mse", "l1", "bce", "next-token", "per-token")

# subcompress.training.tasks.METRICS
METRICS = ("accuracy", "binary-accuracy", "mse", "l1", "loss", "perplexity", "token-accuracy", "exact-match")

# subcompress.training.optimizers.OPTIMIZERS
OPTIMIZERS = ("adam", "eigen")

# subcompress.peers.PEERS
PEERS = ("ours", "float-subspace", "tiny", "dense", "int8", "int4", "lora", "unilora", "vera", "nncodec")

# subcompress.subspace.acting.ROLES
ROLES = ("all", "norms", "biases", "heads", "embeddings", "matrices")
DEFAULT_ROLES = "norms,biases,heads"

# How coordinates act on linear layers beside roles, see subcompress.subspace.acting; and the ranks by default
LOW_RANK = ("lora", "sketch")
RANKS = {"lora": 4, "sketch": 8}

# What subcompress.push makes of a graph: self-unfolding where the file can be, with its weights inside, or none
GRAPHS = ("auto", "dense", "none")

# subcompress.operators.OPERATORS, and EXACT, those that pack
OPERATORS = (
    "hadamard",
    "scattered",
    "dense",
    "sparse",
    "fastfood",
    "onehot",
    "kronecker",
    "haar",
    "tucker",
    "householder",
)
EXACT = ("hadamard", "scattered")

# subcompress.search.executors.EXECUTORS
EXECUTORS = ("processes", "ray", "slurm")

# What subcompress.subspace.plan takes beside subcompress.operators.OPERATORS
AUTO = "auto"
"""The exact operator whose columns suit how the weights move (`Moves.operator`)."""

# subcompress.api.formats.FORMATS
FORMATS = ("safetensors", "onnx", "self-unfolding", "transformers", "peft")
FOLDERS = ("transformers", "peft")
"""The formats that are folders."""
