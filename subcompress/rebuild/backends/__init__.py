"""Backends by name: each turns integers into weights, the same bits. A new one is one file and one line here."""

from subcompress.errors import SubcompressError
from subcompress.native.compiled import NUMPY, requested_kind
from subcompress.rebuild.backends import kernel_backend, numpy_backend, torch_backend
from subcompress.rebuild.backends.base import Backend
from subcompress.support.suggestions import suggestion

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
    """The backend of that name; of "cpu" and "cuda" the fastest that is there, of "cpu" NumPy where the environment
    asks for it.

    Raises SubcompressError for an unknown name, and for one that cannot run here.
    """
    if name == "cpu" and requested_kind() == NUMPY:
        return BACKENDS["numpy"]
    if name in ("cpu", "cuda"):
        for backend in reversed(BACKENDS.values()):
            if backend.device == name and backend.there():
                return backend
        raise SubcompressError("weights are rebuilt on a CUDA device only where torch sees one: leave the device out")
    if name not in BACKENDS:
        raise SubcompressError(
            f"backends are {', '.join(BACKENDS)}; {name!r} is none of them{suggestion(name, BACKENDS)}"
        )
    if not BACKENDS[name].there():
        raise SubcompressError(f"backends here are {', '.join(available())}; {name} cannot run on this machine")
    return BACKENDS[name]


def host_backend() -> Backend:
    """The fastest that is there of those that work on NumPy's arrays."""
    return backend_of("native" if BACKENDS["native"].there() else "numpy")


__all__ = ["BACKENDS", "Backend", "available", "backend_of", "host_backend"]
