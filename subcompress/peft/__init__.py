"""A method of PEFT: an adapter is d numbers z, and the weights are those of the base + scale * P z.

import subcompress.peft
model = peft.get_peft_model(model, subcompress.peft.SubspaceConfig(d=500))
...                             # any loop, transformers' Trainer, or trainers of TRL
model.save_pretrained("reviews")    # a packed file of about a kilobyte

Importing this package registers the method. Nothing else of subcompress imports PEFT.
"""

import importlib

from subcompress.errors import SubcompressError

try:
    importlib.import_module("peft")
except ImportError as e:
    raise SubcompressError(f"subcompress.peft needs PEFT, which cannot be imported ({e}): pip install peft") from e

from subcompress.peft.callback import RoundCoordinates
from subcompress.peft.config import SubspaceConfig
from subcompress.peft.model import SubspaceModel
from subcompress.peft.registering import register

register(SubspaceConfig, SubspaceModel)

__all__ = ["RoundCoordinates", "SubspaceConfig", "SubspaceModel"]
