"""Packed sequences in ONNX graphs, which torch.export does not support.

Within `padded`, packed data stay padded; recurrent layers run over all of them, and the results are taken where each
sequence ends. The cell state of an LSTM is the one after the padding: if a network uses it, its graph differs from
torch and is refused, like any other that differs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import rnn
from torch.nn.utils.rnn import PackedSequence

_VF: Any = torch._VF


@contextmanager
def padded(module: nn.Module) -> Iterator[None]:
    """Within the block, let the recurrent layers of a module (in evaluation mode) read padded data as packed sequences.

    `pack_padded_sequence` then returns padded data (T, N, F), and for each of the T steps the number of sequences that
    reach it. The longest of the N sequences comes first.
    """
    layers = [part for part in module.modules() if isinstance(part, nn.RNNBase)]
    names = vars(rnn)
    before = names["_VF"]
    try:
        names["_VF"] = _Packing()
        for layer in layers:
            layer.forward = partial(_forward, layer)
        yield
    finally:
        names["_VF"] = before
        for layer in layers:
            vars(layer).pop("forward", None)


class _Packing:
    """Replaces the functions that `torch.nn.utils.rnn` calls to pack and to pad."""

    def __getattr__(self, name: str) -> Any:
        return getattr(_VF, name)

    def _pack_padded_sequence(self, x: Tensor, lengths: Tensor, batch_first: bool) -> tuple[Tensor, Tensor]:
        data = x.transpose(0, 1) if batch_first else x
        return data, _inside(data, lengths.cpu()).sum(1)

    def _pad_packed_sequence(
        self, data: Tensor, reached: Tensor, batch_first: bool, padding_value: float, length: int
    ) -> tuple[Tensor, Tensor]:
        lengths = _lengths(data, reached)
        inside = _inside(data, lengths).view(*data.shape[:2], *[1] * (data.ndim - 2))
        found = torch.where(inside, data, padding_value)
        if length != data.shape[0]:
            more = found.new_full((length - data.shape[0], *data.shape[1:]), padding_value)
            found = torch.cat([found, more])
        return (found.transpose(0, 1) if batch_first else found), lengths


def _inside(data: Tensor, lengths: Tensor) -> Tensor:
    """Return a mask (T, N): whether a step belongs to the sequence."""
    return torch.arange(data.shape[0])[:, None] < lengths


def _lengths(data: Tensor, reached: Tensor) -> Tensor:
    """Return the lengths (N,), given how many sequences reach each step."""
    return (reached[:, None] > torch.arange(data.shape[1])).sum(0)


def _forward(layer: nn.RNNBase, x: Any, hx: Any = None) -> Any:
    """`layer.forward`, which also accepts a packed sequence whose data are padded."""
    if not isinstance(x, PackedSequence):
        return type(layer).forward(layer, x, hx)
    data, lengths = x.data, _lengths(x.data, x.batch_sizes)
    given: Any = None if hx is None else layer.permute_hidden(hx, x.sorted_indices)
    ways = 1 + layer.bidirectional
    names = layer._flat_weights_names
    per = len(names) // (layer.num_layers * ways)
    ends: list[tuple[Tensor, ...]] = []
    for level in range(layer.num_layers):
        outputs = []
        for way in range(ways):
            at = level * ways + way
            weights = [getattr(layer, name) for name in names[at * per : (at + 1) * per]]  # known to the exporter
            out, *end = _one(layer, _turned(data, lengths, way), _start(layer, data, given, at), weights)
            last = (lengths - 1).view(1, -1, 1).expand(1, -1, out.shape[2])
            ends.append((out.gather(0, last), *end[1:]))
            outputs.append(_turned(out, lengths, way))
        data = torch.cat(outputs, -1)
    hidden = tuple(torch.cat(each) for each in zip(*ends, strict=True))
    found: Any = hidden if isinstance(layer, nn.LSTM) else hidden[0]
    packed = PackedSequence(data, x.batch_sizes, x.sorted_indices, x.unsorted_indices)
    return packed, layer.permute_hidden(found, x.unsorted_indices)


def _one(layer: nn.RNNBase, x: Tensor, start: Any, weights: Any) -> Any:
    """Run one layer in one direction; return outputs, the last hidden state and cell state."""
    run = getattr(_VF, layer.mode.lower())
    return run(x, start, weights, layer.bias, 1, 0.0, False, False, False)


def _start(layer: nn.RNNBase, x: Tensor, given: Any, at: int) -> Any:
    """Return the initial states of one layer in one direction."""
    if given is not None:
        return tuple(t[at : at + 1] for t in given) if isinstance(given, tuple) else given[at : at + 1]
    hidden = x.new_zeros(1, x.shape[1], layer.proj_size or layer.hidden_size)
    return (hidden, x.new_zeros(1, x.shape[1], layer.hidden_size)) if isinstance(layer, nn.LSTM) else hidden


def _turned(x: Tensor, lengths: Tensor, way: int) -> Tensor:
    """Reverse each sequence, leaving its padding in place; for direction 0 return x. It is its own inverse."""
    if not way:
        return x
    step = torch.arange(x.shape[0])[:, None]
    at = torch.where(_inside(x, lengths), lengths - 1 - step, step)
    return x.gather(0, at[:, :, None].expand(-1, -1, x.shape[2]))
