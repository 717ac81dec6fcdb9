"""The versions that a run was made with."""

from __future__ import annotations

import platform
import time
from functools import cache
from importlib import metadata
from typing import Any

PACKAGES = ("subcompress", "torch", "numpy", "onnx", "onnxruntime-gpu", "onnxruntime", "safetensors")


def about() -> dict[str, Any]:
    """Return the date, the machine and the versions of packages."""
    versions = {"python": platform.python_version()}
    versions |= {name: version for name in PACKAGES if (version := _version(name))}
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.system()} {platform.machine()}",
        "versions": versions,
    }


@cache
def _version(name: str) -> str:
    """The version of a package, read once; empty if it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""
