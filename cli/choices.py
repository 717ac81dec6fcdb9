"""What the options can be given by name, as constants: help and completion need no torch. A test compares each with the
registry that it names."""

MODELS = (
    "mlp",
    "lenet",
    "lenet5",
    "cifar-lenet",
    "conv3-4-6-8",
    "conv3-8-12-16",
    "mobilenet-v2",
    "separable-16-32-48-64",
)
DATA = ("digits", "mnist", "cifar10")
AUGMENTS = ("shift", "flip", "flip-shift")
LOSSES = ("cross-entropy", "mse", "l1", "bce")
METRICS = ("accuracy", "binary-accuracy", "mse", "l1", "loss")
EXACT = ("hadamard", "scattered")
OPERATORS = (*EXACT, "dense", "sparse", "fastfood", "onehot", "kronecker")
AUTO = "auto"
OPTIMIZERS = ("adam", "eigen")
PRECISIONS = ("fp32", "bf16")
DTYPES = ("fp32", "fp16", "bf16")
STRUCTURED = ("random", "store", "guess")
SHUFFLES = ("pixels", "labels")
ROLES = ("all", "norms", "biases", "heads", "embeddings", "matrices")
ACT_ON = "norms,biases,heads"
PEERS = ("ours", "float-subspace", "tiny", "dense", "int8", "int4", "lora", "unilora", "vera", "nncodec")
GRAPHS = ("auto", "dense", "none")
TRITON_BACKENDS = ("onnxruntime", "python")
MAX_BATCH = 64
VECTORS = ("plain", "avx2", "avx512", "numpy")
