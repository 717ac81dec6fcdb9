"""Backends by name: each turns integers into weights, the same bits. A new one is one file and one line here."""

from subcompress.backends import kernel_backend, numpy_backend, torch_backend
from subcompress.backends.base import Backend
from subcompress.errors import SubcompressError

BACKENDS: dict[str, Backend] = {
    "numpy": numpy_backend.BACKEND,
    "torch": torch_backend.on("cpu"),
    "native": kernel_backend.NATIVE,
    "torch-cuda": torch_backend.on("cuda"),
    "triton": kernel_backend.TRITON,
}
"""The later of two that run on one kind of device is the faster."""


def available() -> list[str]:
    """The backends that can run on this machine."""
    return [name for name, backend in BACKENDS.items() if backend.there()]


def backend_of(name: str) -> Backend:
    """The backend of that name; of "cpu" and "cuda" the fastest that is there.

    Raises SubcompressError for an unknown name, and for one that cannot run here.
    """
    there = available()
    if name in ("cpu", "cuda"):
        found = [BACKENDS[n] for n in there if BACKENDS[n].device == name]
        if found:
            return found[-1]
        raise SubcompressError("weights are rebuilt on a CUDA device only where torch sees one: leave the device out")
    if name not in BACKENDS:
        raise SubcompressError(f"backends are {', '.join(BACKENDS)}; {name!r} is none of them")
    if name not in there:
        raise SubcompressError(f"backends here are {', '.join(there)}; {name} cannot run on this machine")
    return BACKENDS[name]


__all__ = ["BACKENDS", "Backend", "available", "backend_of"]
