"""Bases: public weights that a file's weights start from; the file names its base and never contains it."""

from subcompress.base.attaching import attach_base, tied_names
from subcompress.base.base import HUB, BaseReference, BaseTensors, OnBase
from subcompress.base.names import FLOATS
from subcompress.base.opening import WEIGHTS, find_base, open_base, weights_file, weights_files
from subcompress.tensors.mapping import file_location, release_pages

__all__ = [
    "FLOATS",
    "HUB",
    "WEIGHTS",
    "BaseReference",
    "BaseTensors",
    "OnBase",
    "attach_base",
    "file_location",
    "find_base",
    "open_base",
    "release_pages",
    "tied_names",
    "weights_file",
    "weights_files",
]
