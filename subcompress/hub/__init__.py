"""The Hugging Face Hub: push a file, pull it, load it. huggingface_hub is imported when it is needed, not before.

subcompress.push("net.safetensors", "ORG/NAME", module)
subcompress.pull("ORG/NAME", "net.safetensors")
subcompress.from_pretrained("ORG/NAME", module)
"""

from subcompress.hub.card import About
from subcompress.hub.fetching import fetch, from_pretrained, local, pull
from subcompress.hub.publishing import GRAPHS, Pushed, push
from subcompress.remote import Fetched, Reference

__all__ = [
    "GRAPHS",
    "About",
    "Fetched",
    "Pushed",
    "Reference",
    "fetch",
    "from_pretrained",
    "local",
    "pull",
    "push",
]
