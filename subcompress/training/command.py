"""What makes two commands the same: the options, and digests of the network's start, of its code and of the data."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from subcompress.base import OnBase
from subcompress.data import Data
from subcompress.subspace.starts import Starts
from subcompress.tensors.layout import raw_bytes
from subcompress.training.metrics import identity
from subcompress.training.settings import Settings
from subcompress.training.tasks import Task

_SOURCES: WeakKeyDictionary[Any, str] = WeakKeyDictionary()


@dataclass(frozen=True)
class Network:
    """A network and how it starts. lines: the plan of its smallest subspace, for people; exact: whether it packs."""

    model: nn.Module
    known: Starts
    lines: Sequence[str]
    base: OnBase | None
    exact: bool


def command_of(network: Network, data: Data, task: Task, settings: Settings) -> dict[str, Any]:
    """The command in groups, as `subcompress.training.schemas` reads them; without its goal and its limits."""
    options = {name: value for name, value in asdict(settings).items() if name != "device"}
    if settings.steps is None:
        del options["steps"]  # runs that were begun before there were any have none
    for name in ("shards", "accumulate", "checkpointing"):
        if options[name] in (1, False):
            del options[name]
    options |= {"loss": task.loss_name, "metric": task.metric_name, "minimise": task.minimise}
    digests = {"start": _start_digest(network), "code": _code_digest(network.model, data, task), "data": data.digest()}
    return {
        "recipe": options,
        **({} if network.base is None else {"base": network.base.reference.where}),
        "network": digests,
        "machine": {"device": settings.device, "threads": torch.get_num_threads()},
    }


def _start_digest(network: Network) -> str:
    """A digest of what the weights start from."""
    starts = network.known.of()
    root = hashlib.sha256("\n".join(network.lines).encode())
    for name, start in starts.items():  # what was chosen, to the bit
        root.update(repr((name, start.kind, [(p.form, p.reals) for p in start.pieces], start.runs)).encode())
    if network.base is not None:
        root.update(network.base.reference.digest)
    stored = {name for name, start in starts.items() if start.kind in ("stored", "buffer")}
    for name, tensor in network.model.state_dict().items():
        if name in stored or not network.exact:  # else the seed starts it, or the base has it
            root.update(raw_bytes(tensor))
    return root.hexdigest()[:16]


def _code_digest(model: nn.Module, data: Data, task: Task) -> str:
    """A digest of the source of the functions and classes that are the user's."""
    code = "".join(_source(f) for f in (type(model), task.loss, task.metric, data.augment)) + identity(task.metric)
    return hashlib.sha256(code.encode()).hexdigest()[:16]


def _source(f: Any) -> str:
    """The source of a function or a class, read once while that lives: Python goes through the whole file that it is
    in, and a fit asks several times. Empty if there is none."""
    f = getattr(f, "__func__", f)  # methods are made anew whenever they are looked up
    try:
        return _SOURCES[f]
    except KeyError:
        return _SOURCES.setdefault(f, _read(f))
    except TypeError:  # no key of such a dictionary
        return _read(f)


def _read(f: Any) -> str:
    try:
        return inspect.getsource(f)
    except (OSError, TypeError):
        return ""


__all__ = ["Network", "command_of"]
