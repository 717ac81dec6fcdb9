"""The versions that a run was made with."""

from __future__ import annotations

import platform
import time
from importlib import metadata
from typing import Any

PACKAGES = ("subcompress", "torch", "numpy", "onnx", "onnxruntime-gpu", "onnxruntime", "safetensors")


def about() -> dict[str, Any]:
    """Return the date, the machine and the versions of packages."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.system()} {platform.machine()}",
        "versions": versions,
    }
