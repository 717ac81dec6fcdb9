"""Where torch computes: a device that is asked for, or, by default, CUDA where it works.

A driver that is there does not say that a kernel runs: a build of torch without the device's capability, or a driver
that is too old, shows only when one is started. So one is.
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
"""The environment variable that says what `auto` means, where it is set."""

DRIVER = ("/dev/nvidiactl", "/proc/driver/nvidia/version")
"""What is there where the system has NVIDIA's driver."""


@dataclass(frozen=True)
class Device:
    """name: cpu, cuda or cuda:N; line: one for a person, which says why it is this one."""

    name: str
    line: str


def choose_device(asked: str) -> Device:
    """The device that is meant: by `auto` CUDA where a kernel runs on it, else the CPU.

    Raises SubcompressError for a name that is none, and for a CUDA device that does not work: there is no other in its
    place.
    """
    if asked == AUTO and (told := os.environ.get(VARIABLE, AUTO)) != AUTO:
        found = choose_device(told)
        return Device(found.name, found.line.replace("as asked", f"as {VARIABLE} says"))
    if asked == AUTO:
        return _automatic()
    if not re.fullmatch(r"cpu|cuda(:\d{1,4})?", asked):
        raise SubcompressError(f"--device is auto, cpu, cuda or cuda:N; given {asked}")
    if asked == "cpu":
        return Device(asked, "device: cpu, as asked")
    if (fault := cuda_fault(int(asked.partition(":")[2] or 0))) is not None:
        raise SubcompressError(
            f"--device {asked} needs a GPU that torch can use, and none is here ({fault}): leave it out, or give cpu"
        )
    return Device(asked, f"device: {asked} ({_name(asked)}), as asked")


def _automatic() -> Device:
    fault = cuda_fault(0)
    if fault is None:
        return Device("cuda", f"device: cuda ({_name('cuda')}); --device cpu computes without it")
    if cuda_is_present():
        return Device("cpu", f"device: cpu, because CUDA does not work here: {fault}")
    return Device("cpu", "device: cpu (there is no CUDA device)")


def cuda_is_present() -> bool:
    """Whether the machine has an NVIDIA device, whether torch can use it or not."""
    return any(os.path.exists(path) for path in DRIVER) or _count() > 0


def cuda_fault(index: int) -> str | None:
    """Why a CUDA device cannot be computed with, None where a kernel has just run on it."""
    if torch.version.cuda is None and torch.version.hip is None:
        return "this torch is built without CUDA"
    if index >= _count():
        return _why_none() if not _count() else f"torch sees {_count()}, from cuda:0 on"
    return _fault_of_kernel(index)


def _count() -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # such as of a driver that is too old, which `_why_none` says
        return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _why_none() -> str:
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
def _fault_of_kernel(index: int) -> str | None:
    """One product and one sum, whose result is looked at."""
    try:
        x = torch.arange(4.0, device=f"cuda:{index}")
        right = float((x * x).sum()) == 14.0
    except Exception as e:  # whatever a driver or a build that does not fit raises
        return one_line(e, 160)
    return None if right else "a sum of four numbers came out wrong"


def _name(device: str) -> str:
    return str(torch.cuda.get_device_name(device))


__all__ = ["AUTO", "Device", "choose_device"]
