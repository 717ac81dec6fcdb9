"""Writes the golden files: only for what the format newly holds. `python tests/make_golden.py`."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent / "helpers"))

from places import GOLDEN
from records import (
    based_record,
    factored_record,
    lenet_record,
    mixed_record,
    rounded_record,
    ruled_based_record,
    ruled_record,
    scattered_record,
    single_record,
    sketched_record,
    tied_record,
)

from subcompress import format
from subcompress.format.record import Record
from subcompress.rebuild.expand import expand


def records() -> dict[str, Record]:
    """The golden records by name."""
    rng = np.random.default_rng(0)
    return {
        "zeros": single_record(1_000, 100, 8, 16, 8, np.zeros(100)),
        "one": single_record(300, 1, 6, 16, 1, np.array([-8]), seed=2**64 - 1),
        "odd": single_record(12_345, 321, 10, 16, 6, rng.normal(0, 2.5, 321).round().clip(-8, 7), seed=300),
        "windows": single_record(5_001, 900, 7, 4, 3, rng.integers(-2, 2, 900), bits=2, seed=7),
        "bits12": single_record(70, 20, 7, 0, 0, rng.integers(-2048, 2048, 20), bits=12, seed=8),
        "lenet": lenet_record(),
        "mixed": mixed_record(),
        "tied": tied_record(),
        "based": based_record(),
        "rounded": rounded_record(),
        "ruled": ruled_record(),
        "ruled-based": ruled_based_record(),
        "scattered": scattered_record(),
        "factored": factored_record(),
        "sketched": sketched_record(),
    }


def tensor_digests(record: Record, backend: str = "numpy") -> dict[str, str]:
    """SHA-256 of each rebuilt tensor's little-endian bytes, by name."""
    state = expand(record, backend)
    raw = {name: tensor.cpu().reshape(-1).view(torch.uint8).numpy().tobytes() for name, tensor in state.items()}
    return {name: hashlib.sha256(data).hexdigest() for name, data in raw.items()}


def main() -> None:
    """Files and digests, in tests/golden."""
    GOLDEN.mkdir(exist_ok=True)
    truth = {}
    for name, record in records().items():
        data = format.to_bytes(record)
        (GOLDEN / f"{name}.safetensors").write_bytes(data)
        truth[name] = {"file": hashlib.sha256(data).hexdigest(), "tensors": tensor_digests(record)}
    (GOLDEN / "golden.json").write_text(json.dumps(truth, indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main()
