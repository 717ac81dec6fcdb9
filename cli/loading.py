"""Loading the user's code, `file.py:name` or `package.module:name`, and reporting its mistakes."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import random
import sys
import traceback
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from subcompress import Data, SubcompressError, load_data
from subcompress.data import DATA
from subcompress.format.facts import Facts
from subcompress.remote.references import HF
from subcompress.search.executors import BY_VALUE
from subcompress.subspace.seeds import seed_everything
from subcompress.support.suggestions import suggestion
from subcompress.tensors.layout import Layout
from subcompress.training.metrics import TORCHMETRICS, accumulates
from subcompress_cli import texts
from subcompress_models import MODELS


def model_of(name: str, seed: int = 0, facts: Facts | None = None, layout: Layout | None = None) -> nn.Module:
    """The network of that name, or what the user's factory returns; its start depends on the seed alone.

    facts: of the data it is to learn; layout: of the file it is for. A network of transformers is made to fit them.
    """
    with _seeded(seed):
        return _build_model(name, facts, layout)


def factory_of(name: str, facts: Facts | None = None) -> Callable[[], nn.Module]:
    """Return a function that builds the network of a name; the caller sets the seeds before."""
    return lambda: _build_model(name, facts, None)


def _build_model(name: str, facts: Facts | None, layout: Layout | None) -> nn.Module:
    return texts.model(name, facts, layout) if name.startswith(HF) else _known_or_user_model(name)


def _known_or_user_model(name: str) -> nn.Module:
    if ":" not in name:
        if name not in MODELS:
            raise SubcompressError(
                f"--model takes one of {', '.join(MODELS)}, file.py:factory, package.module:factory or hf:DIR_OR_ID; "
                f"got {name!r}{suggestion(name, MODELS)}"
            )
        factory: Any = MODELS[name]
    else:
        factory = load_object(name, "--model")
    found = _call_factory(factory, name) if ":" in name else factory()
    if not isinstance(found, nn.Module):
        raise SubcompressError(
            f"a model factory must return an nn.Module; {name} returned {_describe_type(found)}: return the network"
        )
    return found


def data_of(name: str, folder: Path | None = None, model_name: str | None = None) -> Data:
    """Return the data set of a name or of the user's factory. model_name: the network whose tokenizer texts go
    through."""
    if texts.is_texts(name):
        if folder is not None:
            raise SubcompressError(
                f"--data {name} does not use --data-dir, which is for mnist and cifar10: leave it out"
            )
        return texts.data(name, model_name)
    if ":" not in name:
        if name not in DATA:
            raise SubcompressError(
                f"--data takes one of {', '.join(DATA)}, file.py:factory, package.module:factory or FILE.csv; got "
                f"{name!r}{suggestion(name, DATA)}"
            )
        return load_data(name, folder)
    if folder is not None:
        raise SubcompressError(f"{name} does not use --data-dir, which is for mnist and cifar10: leave it out")
    with _seeded(0):  # so that a random split is the same in every run
        found = _call_factory(load_object(name, "--data"), name)
        if isinstance(found, Data):
            return found
        if not isinstance(found, (tuple, list)) or len(found) != 3:
            raise SubcompressError(
                f"a data factory must return (train, validation, test); {name} returned "
                f"{_describe_type(found)}: return three datasets or DataLoaders"
            )
        return Data(*found)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Make random numbers of the user's code, at import and in its factory, depend on the seed alone."""
    states = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            seed_everything(seed, 0)
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


def function_of(name: str | None, option: str, known: Collection[str]) -> Any:
    """Return a known name, the user's function, or the user's accumulating metric."""
    if name is None or ":" not in name or (option == "--metric" and name.startswith(TORCHMETRICS)):
        return name
    f = load_object(name, option)
    if option == "--metric" and accumulates(f):
        return f
    if not callable(f):
        raise SubcompressError(f"{option} must name a function; {name} is {_describe_type(f)}: name a function")
    try:
        inspect.signature(f).bind(None, None)
    except TypeError as e:
        raise SubcompressError(f"{option} needs a function of two arguments; {name} takes others: {e}") from e
    except ValueError:
        pass
    return f


def load_object(name: str, option: str) -> Any:
    """Import the object that `file.py:name` or `package.module:name` names. Raises SubcompressError, citing the user's
    own lines if their code raised."""
    where, _, attribute = name.rpartition(":")
    if not where or not attribute:
        raise SubcompressError(f"{option} takes file.py:name or package.module:name; got {name!r}")
    module = _from_file(Path(where), option) if where.endswith(".py") else _from_package(where, option)
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            names = ", ".join(n for n, v in vars(module).items() if callable(v) and not n.startswith("_")) or "nothing"
            raise SubcompressError(
                f"{option}: {where} has no {attribute}; it defines {names}" + suggestion(attribute, vars(module))
            )
        found = getattr(found, part)
    return found


def _from_file(path: Path, option: str) -> Any:
    path = path.resolve()
    if not path.is_file():
        raise SubcompressError(f"{option}: no such file: {path}")
    name = f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # so that classes in it find their module
    sys.path.insert(0, str(path.parent))  # it may import modules from its folder
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as e:
        del sys.modules[name]
        raise user_error(e, str(path)) from e
    BY_VALUE.append(module)
    return module


def _from_package(name: str, option: str) -> Any:
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as e:
        if e.name is not None and (name == e.name or name.startswith(f"{e.name}.")):
            raise SubcompressError(f"{option}: {name} cannot be imported: {e}") from e
        raise user_error(e, name) from e
    except (Exception, SystemExit) as e:
        raise user_error(e, name) from e


def _call_factory(factory: Any, name: str) -> Any:
    """Call the user's factory. Raises SubcompressError if it needs arguments or raises."""
    if not callable(factory):
        raise SubcompressError(
            f"a factory must be a function or a class; {name} is {_describe_type(factory)}: name a function"
        )
    try:
        needed = [
            p.name
            for p in inspect.signature(factory).parameters.values()
            if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
        ]
    except (TypeError, ValueError):
        needed = []
    if needed:
        raise SubcompressError(
            f"a factory must need no arguments; {name} needs {', '.join(needed)}: give them defaults, or write "
            "a function that calls it"
        )
    try:
        return factory()
    except SubcompressError:
        raise
    except (Exception, SystemExit) as e:
        raise user_error(e, name) from e


def user_error(e: BaseException, name: str) -> SubcompressError:
    """Describe an exception of the user's code in one line, with the lines of their own files."""
    this_folder = Path(__file__).parent
    frames = [
        f
        for f in traceback.extract_tb(e.__traceback__)
        if f.filename[0] != "<" and Path(f.filename).parent != this_folder
    ]
    user_frames = [
        f for f in frames if "site-packages" not in f.filename and not f.filename.startswith(sys.base_prefix)
    ]
    where = [f"{Path(f.filename).name}:{f.lineno} in {f.name}" for f in user_frames]
    if isinstance(e, SyntaxError) and e.filename:
        where.append(f"{Path(e.filename).name}:{e.lineno}")
    message = " ".join(str(e).split())[:300]
    return SubcompressError(
        f"{name} raised {type(e).__name__}: {message}" + (f" ({' -> '.join(where[-4:])})" if where else "")
    )


def _describe_type(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return f"{type(value).__name__} of {len(value)}"
    return type(value).__name__
