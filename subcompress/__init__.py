"""A PyTorch model as a few hundred bytes: a seed and d small integers, rebuilt bit for bit anywhere.

subcompress.fit(model, data, "run", d=2000)
subcompress.pack("run", "net.safetensors")
subcompress.unpack("net.safetensors", "dense.safetensors")
subcompress.load("net.safetensors", model)
"""

from typing import TYPE_CHECKING

from subcompress.errors import SubcompressError

if TYPE_CHECKING:
    from subcompress.comparing import Comparison, compare
    from subcompress.data import Data, Split, load_data
    from subcompress.diagnosing import Finding, doctor
    from subcompress.facts import Facts
    from subcompress.fitting import fit
    from subcompress.hub import from_pretrained, pull, push
    from subcompress.hub.mixin import HubMixin
    from subcompress.inspecting import info
    from subcompress.measuring import measure_dimension
    from subcompress.packing import pack
    from subcompress.preparing import measure_moves
    from subcompress.probe import Fit, TargetMissedError
    from subcompress.reporting import report
    from subcompress.session import Session
    from subcompress.subspace import Subspace
    from subcompress.training import Listener, Progress
    from subcompress.unpacking import load, unpack
    from subcompress.variants import Variants
    from subcompress.verifying import Verification, verify
else:
    from subcompress import lazy

    # What is used is imported: most of these need torch, and serving a file needs none of them.
    __getattr__, __dir__ = lazy.exports(
        __name__,
        {
            "comparing": ("Comparison", "compare"),
            "data": ("Data", "Split", "load_data"),
            "diagnosing": ("Finding", "doctor"),
            "facts": ("Facts",),
            "fitting": ("fit",),
            "hub": ("from_pretrained", "pull", "push"),
            "hub.mixin": ("HubMixin",),
            "inspecting": ("info",),
            "measuring": ("measure_dimension",),
            "packing": ("pack",),
            "preparing": ("measure_moves",),
            "probe": ("Fit", "TargetMissedError"),
            "reporting": ("report",),
            "session": ("Session",),
            "subspace": ("Subspace",),
            "training": ("Listener", "Progress"),
            "unpacking": ("load", "unpack"),
            "variants": ("Variants",),
            "verifying": ("Verification", "verify"),
        },
    )

__version__ = "0.1.0"

__all__ = [
    "Comparison",
    "Data",
    "Facts",
    "Finding",
    "Fit",
    "HubMixin",
    "Listener",
    "Progress",
    "Session",
    "Split",
    "SubcompressError",
    "Subspace",
    "TargetMissedError",
    "Variants",
    "Verification",
    "compare",
    "doctor",
    "fit",
    "from_pretrained",
    "info",
    "load",
    "load_data",
    "measure_dimension",
    "measure_moves",
    "pack",
    "pull",
    "push",
    "report",
    "unpack",
    "verify",
]
