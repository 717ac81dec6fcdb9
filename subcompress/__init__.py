"""A PyTorch model as a few hundred bytes: a seed and d small integers, rebuilt bit for bit anywhere.

subcompress.fit(model, data, "run", d=2000)
subcompress.pack("run", "net.safetensors")
subcompress.unpack("net.safetensors", "dense.safetensors")
subcompress.load("net.safetensors", model)
"""

from subcompress.comparing import Comparison, compare
from subcompress.data import Data, Split, load_data
from subcompress.doctor import Finding, doctor
from subcompress.errors import SubcompressError
from subcompress.facts import Facts
from subcompress.fitting import fit
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

__version__ = "0.1.0"

__all__ = [
    "Comparison",
    "Data",
    "Facts",
    "Finding",
    "Fit",
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
    "info",
    "load",
    "load_data",
    "measure_dimension",
    "pack",
    "report",
    "unpack",
    "verify",
]
