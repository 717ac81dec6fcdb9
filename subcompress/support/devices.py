"""Choosing the device on which torch computes: the one requested, or by default CUDA where it works.

A driver that is installed does not mean that kernels run: a torch build without the device's compute capability, or a
driver that is too old, fails only when a kernel starts. So one is started.
"""

from __future__ import annotations

import os
import re
import warnings
from dataclasses import dataclass
from functools import cache

import torch

from subcompress.errors import SubcompressError, one_line

AUTO = "auto"

VARIABLE = "SUBCOMPRESS_DEVICE"
"""The environment variable that overrides what `auto` means."""

DRIVER = ("/dev/nvidiactl", "/proc/driver/nvidia/version")
"""Paths of which one exists where NVIDIA's driver is installed."""


@dataclass(frozen=True)
class Device:
    """The device chosen. name: cpu, cuda or cuda:N; line: one line for the user that says why it was chosen."""

    name: str
    line: str


def choose_device(requested: str) -> Device:
    """Choose the device for a --device value; `auto` is CUDA if a kernel runs on it, else the CPU.

    Raises SubcompressError for an unknown name, and for a CUDA device that does not work: no other device is used in
    its place.
    """
    if requested == AUTO and (configured := os.environ.get(VARIABLE, AUTO)) != AUTO:
        found = choose_device(configured)
        return Device(found.name, found.line.replace("as asked", f"as {VARIABLE} says"))
    if requested == AUTO:
        return _choose_automatically()
    if not re.fullmatch(r"cpu|cuda(:\d{1,4})?", requested):
        raise SubcompressError(f"--device must be auto, cpu, cuda or cuda:N; got {requested}")
    if requested == "cpu":
        return Device(requested, "device: cpu, as asked")
    index = int(requested.partition(":")[2] or 0)
    if (fault := cuda_fault(index)) is not None:
        raise SubcompressError(
            f"--device {requested} needs a GPU that torch can use, and there is none ({fault}): leave it out, "
            "or give cpu"
        )
    return Device(requested, f"device: {requested} ({_name(requested)}), as asked")


def _choose_automatically() -> Device:
    fault = cuda_fault(0)
    if fault is None:
        return Device("cuda", f"device: cuda ({_name('cuda')}); --device cpu computes without it")
    if cuda_is_present():
        return Device("cpu", f"device: cpu, because CUDA does not work here: {fault}")
    return Device("cpu", "device: cpu (there is no CUDA device)")


def cuda_is_present() -> bool:
    """Return whether the machine has an NVIDIA device, even one that torch cannot use."""
    return any(os.path.exists(path) for path in DRIVER) or _device_count() > 0


def cuda_fault(index: int) -> str | None:
    """Return why a CUDA device does not work, or None if a kernel has just run on it."""
    if torch.version.cuda is None and torch.version.hip is None:
        return "this torch is built without CUDA"
    if index >= _device_count():
        return _no_device_reason() if not _device_count() else f"torch sees {_device_count()}, from cuda:0 on"
    return _kernel_fault(index)


def _device_count() -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # such as of a driver that is too old, which `_no_device_reason` reports
        return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _no_device_reason() -> str:
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return "CUDA_VISIBLE_DEVICES hides it"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.cuda.init()
    except (RuntimeError, AssertionError) as e:
        return one_line(e, 160)
    return "torch sees no device"


@cache
def _kernel_fault(index: int) -> str | None:
    """Run a product and a sum on the device and check the result."""
    try:
        x = torch.arange(4.0, device=f"cuda:{index}")
        is_correct = float((x * x).sum()) == 14.0
    except Exception as e:  # whatever a driver or a build that does not fit raises
        return one_line(e, 160)
    return None if is_correct else "a sum of four numbers came out wrong"


def _name(device: str) -> str:
    return str(torch.cuda.get_device_name(device))


__all__ = ["AUTO", "Device", "choose_device"]
