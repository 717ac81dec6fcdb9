"""A public base: the tensors that a file's weights start from, named in the file and never contained in it."""

from subcompress.base.attaching import stand_on, ties_of
from subcompress.base.base import HUB, Base, BaseReference, OnBase
from subcompress.base.names import FLOATS
from subcompress.base.opening import WEIGHTS, find_base, open_base, weights_file, weights_files
from subcompress.tensors.mapping import let_go, place_of

__all__ = [
    "FLOATS",
    "HUB",
    "WEIGHTS",
    "Base",
    "BaseReference",
    "OnBase",
    "find_base",
    "let_go",
    "open_base",
    "place_of",
    "stand_on",
    "ties_of",
    "weights_file",
    "weights_files",
]
