"""The backends by name: each turns integers into the same weights. A new one is one file and one line here, or in
`operators.kernels.KERNELS` where it also serves training."""

from subcompress.errors import SubcompressError
from subcompress.native.compiled import NUMPY, requested_kind
from subcompress.operators.kernels import KERNELS
from subcompress.rebuild.backends import kernel_backend, numpy_backend, torch_backend
from subcompress.rebuild.backends.base import Backend
from subcompress.support.suggestions import suggestion

BACKENDS: dict[str, Backend] = {
    "numpy": numpy_backend.BACKEND,
    "torch": torch_backend.on("cpu"),
    "torch-cuda": torch_backend.on("cuda"),
    **{name: kernel_backend.of(kernel) for name, kernel in KERNELS.items()},
}
"""The backends by name. Of those for the same kind of device, the last is the fastest."""


def available() -> list[str]:
    """Return the names of the backends that can run on this machine."""
    return [name for name, backend in BACKENDS.items() if backend.is_available()]


def backend_of(name: str) -> Backend:
    """Return the backend of a name; for "cpu" and "cuda" the fastest available, or NumPy if the environment requests
    it.

    Raises SubcompressError for an unknown name, and for a backend that cannot run here.
    """
    if name == "cpu" and requested_kind() == NUMPY:
        return BACKENDS["numpy"]
    if name in ("cpu", "cuda"):
        for backend in reversed(BACKENDS.values()):
            if backend.device == name and backend.is_available():
                return backend
        raise SubcompressError("torch sees no CUDA device to rebuild weights on: leave the device out")
    if name not in BACKENDS:
        raise SubcompressError(
            f"backend must be one of {', '.join(BACKENDS)}; got {name!r}{suggestion(name, BACKENDS)}"
        )
    if not BACKENDS[name].is_available():
        raise SubcompressError(
            f"the backend {name} cannot run on this machine; those that can are {', '.join(available())}"
        )
    return BACKENDS[name]


def host_backend() -> Backend:
    """Return the fastest available backend that works on NumPy arrays."""
    return backend_of("native" if BACKENDS["native"].is_available() else "numpy")


__all__ = ["BACKENDS", "Backend", "available", "backend_of", "host_backend"]
