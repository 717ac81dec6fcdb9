"""A PyTorch model as a few hundred bytes: a seed and d small integers, rebuilt bit for bit anywhere.

subcompress.fit(model, data, "run", d=2000)
subcompress.pack("run", "net.safetensors")
subcompress.unpack("net.safetensors", "dense.safetensors")
subcompress.load("net.safetensors", model)
"""

from typing import TYPE_CHECKING, Any

from subcompress.comparing import Comparison, compare
from subcompress.data import Data, Split, load_data
from subcompress.doctor import Finding, doctor
from subcompress.errors import SubcompressError
from subcompress.facts import Facts
from subcompress.fitting import fit
from subcompress.hub import from_pretrained, pull, push
from subcompress.measuring import measure_dimension
from subcompress.packing import pack
from subcompress.probe import Fit
from subcompress.reporting import report
from subcompress.session import Session
from subcompress.subspace import Subspace
from subcompress.training import Listener, Progress
from subcompress.unpacking import load, unpack
from subcompress.variants import Variants
from subcompress.verifying import Verification, info, verify

if TYPE_CHECKING:
    from subcompress.hub.mixin import HubMixin

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
    "pack",
    "pull",
    "push",
    "report",
    "unpack",
    "verify",
]


def __getattr__(name: str) -> Any:
    """HubMixin, the one name that imports huggingface_hub."""
    if name == "HubMixin":
        from subcompress.hub.mixin import HubMixin

        return HubMixin
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
