"""What `--act-on` says: the tensors that coordinates act on whole, and the matrices that have factors."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from torch import Tensor, nn

from subcompress.base import tied_names
from subcompress.errors import SubcompressError
from subcompress.format.record import MAX_RANK, check_rank
from subcompress.subspace.roles import is_transposed, linear_layers, roles_of
from subcompress.subspace.start_notes import some_of
from subcompress.support.names import LOW_RANK, RANKS, ROLES
from subcompress.support.suggestions import suggestion
from subcompress.tensors.layout import Layout


@dataclass(frozen=True)
class LowRank:
    """How coordinates act on a matrix through factors. kind: a word of LOW_RANK; transposed: whether its rows are what
    the layer reads."""

    kind: str
    rank: int
    transposed: bool = False


@dataclass(frozen=True)
class Acting:
    """What coordinates act on: names of whole tensors, and by name the matrices with factors."""

    whole: set[str]
    low_rank: Mapping[str, LowRank] = field(default_factory=dict)


@dataclass
class _Clause:
    """A word of LOW_RANK, with the patterns that follow it."""

    kind: str
    rank: int
    patterns: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.kind}:{self.rank}"


def acting_of(module: nn.Module, act_on: str, new: frozenset[str]) -> Acting:
    """Parse the words, separated by commas: roles, names and patterns of names, and `lora[:rank]` or `sketch[:rank]`,
    after which patterns name linear layers. new: parameters that the base lacks, on all of which coordinates act whole.

    Without patterns, `lora` and `sketch` apply to all linear layers of the role `matrices` that nothing else names.
    Tied tensors count as one. Raises SubcompressError for an unknown word, a rank that is too high, and a tensor that
    is named for both.
    """
    whole, clauses = _parsed(act_on)
    ties = {n: names for names in tied_names(module) for n in names}
    named = _all_tied(_named(module, whole), ties)
    low: dict[str, LowRank] = {}
    for clause in sorted(clauses, key=lambda c: not c.patterns):  # those without patterns take what is left
        low |= _layers_of(module, clause, named | new, low, ties)
    return Acting(_all_tied(named | new, ties), low)


def acted_on(module: nn.Module, act_on: str, new: frozenset[str]) -> set[str]:
    """The parameters that are acted on whole; see `acting_of`."""
    return acting_of(module, act_on, new).whole


def _parsed(act_on: str) -> tuple[list[str], list[_Clause]]:
    words: list[str] = []
    clauses: list[_Clause] = []
    for word in filter(None, (w.strip() for w in act_on.split(","))):
        if found := re.fullmatch(rf"({'|'.join(LOW_RANK)})(?::(.*))?", word):
            clauses.append(_Clause(found[1], _rank(word, *found.groups())))
        elif clauses and word not in ROLES:
            clauses[-1].patterns.append(word)
        else:
            words.append(word)
    return words, clauses


def _rank(word: str, kind: str, given: str | None) -> int:
    if given is None:
        return RANKS[kind]
    if not re.fullmatch(r"\d{1,9}", given) or not 1 <= int(given) <= MAX_RANK:
        raise SubcompressError(
            f"--act-on takes a rank of 1 to {MAX_RANK} after a colon, such as {kind}:4; got {word!r}"
        )
    return int(given)


def _named(module: nn.Module, words: Iterable[str]) -> set[str]:
    """The parameters of roles, names and patterns of names."""
    roles, found = roles_of(module), set[str]()
    for word in words:
        if word in ROLES:
            # A network that may have no norms, say, is no reason to refuse the default.
            found |= {n for n, role in roles.items() if word in ("all", role)}
        elif named := {n for n in roles if fnmatchcase(n, word)}:
            found |= named
        else:
            raise SubcompressError(
                f"--act-on takes {', '.join((*ROLES, *LOW_RANK))} and patterns of tensor names, separated by commas; "
                f"{word!r} matches no tensor of the model, whose first is {next(iter(roles), '')}"
                f"{suggestion(word, (*ROLES, *LOW_RANK, *roles))}"
            )
    return found


def _all_tied(found: Iterable[str], ties: Mapping[str, list[str]]) -> set[str]:
    return {other for name in found for other in ties.get(name, [name])}


def _layers_of(
    module: nn.Module, clause: _Clause, whole: set[str], before: Mapping[str, LowRank], ties: Mapping[str, list[str]]
) -> dict[str, LowRank]:
    """The matrices of a clause, by each of their names. whole, before: what other words name."""
    layers, roles = linear_layers(module), roles_of(module)
    if not clause.patterns:
        names = [n for n in layers if roles[n] == "matrices" and n not in whole and n not in before]
        if not names:
            raise SubcompressError(
                f"--act-on {clause.kind} takes the linear layers that no other word names, except the last; "
                f"there is no such layer: {_linear_note(layers)}"
            )
    else:
        names = [n for word in clause.patterns for n in _matching(layers, word)]
    found: dict[str, LowRank] = {}
    for name in dict.fromkeys(names):
        if name in whole or name in before:
            raise SubcompressError(
                f"--act-on names {name} for {clause} and also in another way (a layer that the base lacks is "
                "trained whole): leave one of the two out"
            )
        weight = module.get_parameter(name)
        _check_matrix(clause, name, weight)
        found |= dict.fromkeys(ties[name], LowRank(clause.kind, clause.rank, is_transposed(layers[name])))
    return found


def _matching(layers: Mapping[str, nn.Module], word: str) -> list[str]:
    """The weights of the linear layers that a pattern names, by the name of the weight or of the layer."""
    if not (found := [n for n in layers if fnmatchcase(n, word) or fnmatchcase(n.rpartition(".")[0], word)]):
        raise SubcompressError(
            f"patterns after {' and '.join(LOW_RANK)} must name linear layers; {word!r} names none (write "
            f"other words of --act-on before it): {_linear_note(layers)}"
        )
    return found


def _linear_note(layers: Iterable[str]) -> str:
    owners = [n.rpartition(".")[0] or n for n in layers]
    return f"the model's linear layers are {some_of(owners)}" if owners else "the model has no linear layer"


def _check_matrix(clause: _Clause, name: str, weight: Tensor) -> None:
    (spec,) = Layout.of({name: weight.detach()}).tensors
    try:
        check_rank(clause.rank, spec, clause.kind == "sketch")
    except SubcompressError as e:
        raise SubcompressError(f"--act-on {clause}: {e}, or name other layers after it") from e


__all__ = ["Acting", "LowRank", "acted_on", "acting_of"]
