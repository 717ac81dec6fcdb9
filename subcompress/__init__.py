"""A PyTorch model as a few hundred bytes: a seed and d small integers, rebuilt bit for bit anywhere.

subcompress.fit(model, data, "run", d=2000)
subcompress.pack("run", "net.safetensors")
subcompress.unpack("net.safetensors", "dense.safetensors")
subcompress.load("net.safetensors", model)
"""

from typing import TYPE_CHECKING

from subcompress.errors import SubcompressError

if TYPE_CHECKING:
    from subcompress.api.compare import Comparison, compare
    from subcompress.api.dim import measure_dimension
    from subcompress.api.dim_predict import PredictedDimension, predict_dimension
    from subcompress.api.doctor import Finding, doctor
    from subcompress.api.fit import fit
    from subcompress.api.info import info
    from subcompress.api.load import load
    from subcompress.api.pack import pack
    from subcompress.api.predict import Prediction, generate, predict
    from subcompress.api.report import report
    from subcompress.api.runs import RunState, runs
    from subcompress.api.unpack import unpack
    from subcompress.api.variants import Variants
    from subcompress.api.verify import Verification, verify
    from subcompress.data import Data, Split, load_data
    from subcompress.format.facts import Facts
    from subcompress.hub import from_pretrained, pull, push
    from subcompress.hub.mixin import HubMixin
    from subcompress.onnx.session import Session
    from subcompress.subspace.curvature import Curvature
    from subcompress.subspace.module import Subspace
    from subcompress.subspace.preparing import measure_moves
    from subcompress.support.listener import Listener, Progress
    from subcompress.training.options import Base, Goal, Machine, Recipe
    from subcompress.training.probe import Fit, TargetMissedError
else:
    from subcompress.support import lazy

    # What is used is imported: most of these need torch, and serving a file needs none of them.
    __getattr__, __dir__ = lazy.exports(
        __name__,
        {
            "api.compare": ("Comparison", "compare"),
            "data": ("Data", "Split", "load_data"),
            "api.doctor": ("Finding", "doctor"),
            "format.facts": ("Facts",),
            "api.fit": ("fit",),
            "hub": ("from_pretrained", "pull", "push"),
            "hub.mixin": ("HubMixin",),
            "api.info": ("info",),
            "support.listener": ("Listener", "Progress"),
            "api.dim": ("measure_dimension",),
            "api.dim_predict": ("PredictedDimension", "predict_dimension"),
            "api.pack": ("pack",),
            "api.predict": ("Prediction", "generate", "predict"),
            "subspace.curvature": ("Curvature",),
            "subspace.preparing": ("measure_moves",),
            "training.options": ("Base", "Goal", "Machine", "Recipe"),
            "training.probe": ("Fit", "TargetMissedError"),
            "api.report": ("report",),
            "api.runs": ("RunState", "runs"),
            "onnx.session": ("Session",),
            "subspace.module": ("Subspace",),
            "api.load": ("load",),
            "api.unpack": ("unpack",),
            "api.variants": ("Variants",),
            "api.verify": ("Verification", "verify"),
        },
    )

__version__ = "0.2.0"

__all__ = [
    "Base",
    "Comparison",
    "Curvature",
    "Data",
    "Facts",
    "Finding",
    "Fit",
    "Goal",
    "HubMixin",
    "Listener",
    "Machine",
    "PredictedDimension",
    "Prediction",
    "Progress",
    "Recipe",
    "RunState",
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
    "generate",
    "info",
    "load",
    "load_data",
    "measure_dimension",
    "measure_moves",
    "pack",
    "predict",
    "predict_dimension",
    "pull",
    "push",
    "report",
    "runs",
    "unpack",
    "verify",
]
