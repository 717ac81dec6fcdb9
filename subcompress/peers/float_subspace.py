"""The same contract without rounding: a seed and d float32 coordinates, as Li et al. 2018 (arXiv:1804.08838) and PRANC
(Nooralinejad et al. 2023, arXiv:2206.08464) keep them, at the bytes of our file. The projection is ours, which costs
less than a dense one and is no worse (benchmarks/operators.py)."""

from __future__ import annotations

import safetensors.torch
import torch
from torch import Tensor

from subcompress.errors import SubcompressError
from subcompress.peers.bench import Bench, Row, SkippedError, joined
from subcompress.subspace.plan import make_plan
from subcompress.subspace.starts import recognize


def float_subspace(bench: Bench) -> list[Row]:
    """The float32 coordinates that fit into our bytes, together with what no seed gives: buffers and stored tensors."""
    if bench.record.base is not None:
        raise SkippedError("for networks that start from a seed")
    kept = [name for name, start in recognize(bench.model).of().items() if start.kind in ("stored", "buffer")]
    state, seed = bench.model.state_dict(), bench.recipe.seed
    d = (bench.size - len(_file(torch.zeros(0), state, kept, seed))) // 4
    while d > 0 and len(_file(torch.zeros(d), state, kept, seed)) > bench.size:
        d -= 1
    try:
        make_plan(bench.model, d)
    except SubcompressError as e:
        raise SkippedError(f"{bench.size} bytes hold {max(d, 0)} float32 coordinates: {e}") from e
    state, z, seconds = bench.floats(d, f"float32 subspace, d = {d}")
    size = bench.write("float-subspace.safetensors", _file(z, state, kept, seed))
    value, note = bench.value(bench.loaded(state))
    return [Row("float32 subspace (Li et al., PRANC)", size, value, seconds, joined(f"d = {d}", note))]


def _file(z: Tensor, state: dict[str, Tensor], kept: list[str], seed: int) -> bytes:
    tensors = {"z": z.contiguous()} | {name: state[name].detach().clone().contiguous() for name in kept}
    return safetensors.torch.save(tensors, {"seed": str(seed)})
