"""What a record adds to its base as a LoRA adapter of PEFT.

Where coordinates act on factors of a linear layer's weight, the adapter has these factors, and is exact. The
difference in another weight of a linear layer is cut to a rank. Other tensors that differ are kept whole: norms,
embeddings and new heads as modules that PEFT saves, biases of linear layers as biases.
"""

from __future__ import annotations

import math
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from subcompress.api.formats.base import Wanted
from subcompress.api.formats.companions import copy_companions
from subcompress.api.formats.networks import find_network, quiet
from subcompress.errors import SubcompressError, one_line
from subcompress.format.record import Factored, Record, Tied
from subcompress.rebuild.arrays import changed_names, check_digest, factors_of, rebuild
from subcompress.rebuild.filling import require_base
from subcompress.rebuild.streaming import stream
from subcompress.subspace.roles import is_linear
from subcompress.tensors.layout import raw_bytes, tensor_of

PREFIX = "base_model.model."
"""What PEFT puts before the name of each tensor."""

TASKS = {
    "CausalLM": "CAUSAL_LM",
    "SequenceClassification": "SEQ_CLS",
    "TokenClassification": "TOKEN_CLS",
    "QuestionAnswering": "QUESTION_ANS",
    "LMHeadModel": "CAUSAL_LM",
}
"""The end of a class's name -> PEFT's task."""

HEADED, HEADS = ("SEQ_CLS", "TOKEN_CLS"), ("classifier", "score")
"""The tasks for which PEFT always saves modules with these endings of names whole, whatever its configuration says."""

SMALL = 1 << 9
"""Up to this many rows or columns, the singular values are computed exactly."""

OVERSAMPLING, PASSES = 16, 6
"""Parameters of the randomized decomposition of larger matrices."""


@dataclass
class Split:
    """Where the changes go. linear: layers whose weight has factors, or is approximated; biased: those whose bias alone
    differs; saved: modules that are kept whole."""

    linear: list[str] = field(default_factory=list)
    biased: list[str] = field(default_factory=list)
    saved: list[str] = field(default_factory=list)


class Adapter:
    """A LoRA adapter for what a record adds to its base. place: how PEFT calls the base, and its commit."""

    def __init__(self, record: Record, wanted: Wanted, rank: int, place: tuple[str, str | None]) -> None:
        self.record, self.rank, self.place = record, rank, place
        self.peft = _peft()
        check_digest(record, stream(record, done=wanted.done))
        with tempfile.TemporaryDirectory() as folder:  # of the configuration, which an adapter does not have
            copy_companions(record, wanted, Path(folder))
            self.found = find_network(record, Path(folder))
        if "vocab_size" in self.found.changes:
            raise SubcompressError(
                "an adapter needs the vocabulary of the base, but that of the file has another size: give "
                "--format transformers"
            )
        self.modules = dict(self.found.module.named_modules())
        self.split = self._split()
        self.ranks = {
            spec.name: entry.rank
            for spec, entry in zip(record.layout, record.entries, strict=True)
            if isinstance(entry, Factored)
        }
        self.errors: dict[str, float] = {}
        self._decompositions: dict[str, tuple[Tensor, Tensor]] = {}
        self._square = [0.0, 0.0]  # of all differences, and of what is lost of them

    def write(self, folder: Path) -> dict[str, Any]:
        """Write the adapter; return its error, in all and of each weight of a linear layer."""
        config = self._config()
        tensors = {name: self._tensor(name) for name in self._expected(config)}
        data = safetensors.torch.save(tensors, {"format": "pt"})
        (folder / "adapter_model.safetensors").write_bytes(data)  # the library's own file is for its owner alone
        config.base_model_name_or_path, config.revision = self.place
        config.inference_mode = True
        config.modules_to_save = list(dict.fromkeys(self.split.saved)) or None
        with quiet("write a configuration of PEFT"):
            config.save_pretrained(str(folder))
        total = math.sqrt(self._square[1] / self._square[0]) if self._square[0] else 0.0
        return {
            "architecture": self.found.name,
            "base": "@".join(part for part in self.place if part),
            "rank": config.r,
            "approximation": total > EXACT,
            "relative_error": total,
            "errors": dict(sorted(self.errors.items())),
            "kept_whole": self.split.saved,
        }

    def _split(self) -> Split:
        split = Split()
        linear, changed, heads = dict[str, str](), list[str](), dict[str, None]()
        for name in self._changed():
            owner, _, leaf = name.rpartition(".")
            if (head := self._head(owner)) is not None:
                heads[head] = None
            elif is_linear(self.modules[owner]) and owner and self._based(name) and leaf in ("weight", "bias"):
                linear[name] = owner
            else:
                changed.append(name)
        saved = dict.fromkeys(self._saved(name) for name in changed)
        split.saved = [*saved, *heads]
        inside = {name for name in linear if _within(linear[name], split.saved)}
        rest = {name: owner for name, owner in linear.items() if name not in inside}
        split.linear = [owner for name, owner in rest.items() if name.endswith("weight")]
        split.biased = [owner for name, owner in rest.items() if name.endswith("bias")]
        return split

    @property
    def task(self) -> str | None:
        """PEFT's task, None for one that it does not know."""
        return next((task for end, task in TASKS.items() if self.found.name.endswith(end)), None)

    def _head(self, owner: str) -> str | None:
        """The module around a layer that PEFT keeps whole by itself; None if there is none."""
        parts = owner.split(".")
        names = [".".join(parts[: i + 1]) for i in range(len(parts))] if self.task in HEADED else []
        return next((name for name in names if name.endswith(HEADS)), None)

    def _changed(self) -> list[str]:
        """The names of tensors that differ from the base, each tied one once."""
        tied = {
            spec.name: entry
            for spec, entry in zip(self.record.layout, self.record.entries, strict=True)
            if isinstance(entry, Tied)
        }
        return [name for name in changed_names(self.record) if name not in tied and self._differs(name)]

    @property
    def _ties(self) -> bool:
        """Whether a module that is kept whole has a weight that the network ties to that of another."""
        names = {name for pair in self.found.ties.items() for name in pair}
        return any(_within(name, self.split.saved) for name in names)

    def _saved(self, name: str) -> str:
        """The module that is kept whole for a tensor. Raises SubcompressError if it is the network itself."""
        owner = name.rpartition(".")[0]
        if not owner or any(is_linear(m) for n, m in self.modules.items() if n.startswith(f"{owner}.")):
            raise SubcompressError(
                f"an adapter cannot hold {name}, only linear layers and whole modules without any: give "
                "--format transformers"
            )
        return owner

    def _based(self, name: str) -> bool:
        return name in require_base(self.record)

    def _differs(self, name: str) -> bool:
        if not self._based(name):
            return True
        return raw_bytes(require_base(self.record).values(name)) != raw_bytes(self._values(name))

    def _values(self, name: str) -> np.ndarray:
        return rebuild(self.record, [name], check=False)[name]

    def _config(self) -> Any:
        """The configuration of PEFT."""
        targets = list(dict.fromkeys([*self.split.linear, *self.split.biased]))
        ranks = {name: self._rank(name) for name in targets}
        linear = Counter(ranks[name] for name in self.split.linear)
        usual = linear.most_common(1)[0][0] if linear else self.rank
        other = {name: rank for name, rank in ranks.items() if rank != usual}
        kinds = {type(self.modules[name]) for name in targets}
        with quiet("take a configuration of PEFT"):
            return self.peft.LoraConfig(
                r=usual,
                lora_alpha=usual,
                lora_dropout=0.0,
                target_modules=targets or self.peft.utils.constants.DUMMY_TARGET_MODULES,
                modules_to_save=list(self.split.saved) or None,
                bias="lora_only" if self.split.biased else "none",
                rank_pattern=other,
                alpha_pattern=other,  # what is added is B A, not a multiple of it
                ensure_weight_tying=self._ties,
                fan_in_fan_out=bool(kinds) and nn.Linear not in kinds,
                task_type=self.task,
            )

    def _rank(self, module: str) -> int:
        """The rank of a linear layer: that of its factors, of an approximation, or 1 where its bias alone differs."""
        return self.ranks.get(f"{module}.weight", self.rank if module in self.split.linear else 1)

    def _expected(self, config: Any) -> list[str]:
        """The names of the tensors that PEFT loads for a configuration."""
        with quiet("put an adapter of PEFT into this network"):
            model = self.peft.get_peft_model(self.found.module, config, low_cpu_mem_usage=True)
            return list(self.peft.get_peft_model_state_dict(model, save_embedding_layers=False))

    def _tensor(self, expected: str) -> Tensor:
        """The tensor under a name of PEFT."""
        name = expected.removeprefix(PREFIX)
        for which, part in enumerate((".lora_A.weight", ".lora_B.weight")):
            if name.endswith(part):
                return self._factors(name.removesuffix(part))[which]
        name = name.replace(".base_layer.", ".")
        return tensor_of(self._values(name)).clone()

    def _factors(self, module: str) -> tuple[Tensor, Tensor]:
        """A and B of a linear layer."""
        if module not in self._decompositions:
            self._decompositions[module] = self._decomposed(module)
        return self._decompositions[module]

    def _decomposed(self, module: str) -> tuple[Tensor, Tensor]:
        name = f"{module}.weight"
        if name in self.ranks:
            self.errors[name] = 0.0
            return self._exact_factors(module)
        base = tensor_of(require_base(self.record).values(name)).double()
        delta = tensor_of(self._values(name)).double() - base
        delta = delta if isinstance(self.modules[module], nn.Linear) else delta.t()
        a, b = low_rank(delta, self._rank(module))
        if module in self.split.linear:
            whole = float(delta.square().sum())
            lost = float((delta - b.double() @ a.double()).square().sum())
            self._square[0] += whole
            self._square[1] += lost
            self.errors[name] = math.sqrt(lost / whole)
        return a, b

    def _exact_factors(self, module: str) -> tuple[Tensor, Tensor]:
        """A and B as the file has them."""
        right, left = (tensor_of(side) for side in factors_of(self.record, f"{module}.weight"))
        if isinstance(self.modules[module], nn.Linear):
            return right, left
        return left.t().contiguous(), right.t().contiguous()


EXACT = 1e-5
"""The relative error, of rounding to float32, up to which an adapter is called exact."""


def low_rank(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return A (rank, columns) and B (rows, rank) in float32 whose product B A is nearest to a matrix; rows and columns
    beyond its own rank are zero."""
    rows, columns = matrix.shape
    u, s, v = _singular(matrix, min(rank, rows, columns))
    a, b = torch.zeros(rank, columns), torch.zeros(rows, rank)
    root = s.sqrt()
    a[: len(s)], b[:, : len(s)] = root[:, None] * v, u * root
    return a, b


def _singular(matrix: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The k largest singular values, with their vectors; of a large matrix by subspace iteration from a fixed seed."""
    if min(matrix.shape) <= max(SMALL, k + OVERSAMPLING):
        u, s, v = torch.linalg.svd(matrix, full_matrices=False)
        return u[:, :k], s[:k], v[:k]
    matrix = matrix.float()
    start = torch.randn(matrix.shape[1], k + OVERSAMPLING, generator=torch.Generator().manual_seed(0))
    q = torch.linalg.qr(matrix @ start).Q
    for _ in range(PASSES):
        q = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.t() @ q).Q).Q
    u, s, v = torch.linalg.svd(q.t() @ matrix, full_matrices=False)
    return (q @ u)[:, :k], s[:k], v[:k]


def _within(name: str, modules: list[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def _peft() -> Any:
    """The library. Raises SubcompressError without it."""
    try:
        import peft
    except ImportError as e:
        raise SubcompressError(
            f"the format peft needs the library of that name, and it is not here ({one_line(e)}): pip install peft"
        ) from e
    return peft
