"""Other ways to ship a network, by name. A new one is one file and one line here; the tests cover every one in the
list."""

from subcompress.peers.adapters import lora, unilora, vera
from subcompress.peers.bench import Bench, Peer, Row, SkippedError
from subcompress.peers.dense import dense
from subcompress.peers.float_subspace import float_subspace
from subcompress.peers.int4 import int4
from subcompress.peers.int8 import int8
from subcompress.peers.nncodec import nncodec
from subcompress.peers.ours import ours
from subcompress.peers.tiny import tiny

PEERS: dict[str, Peer] = {
    "ours": ours,
    "float-subspace": float_subspace,
    "tiny": tiny,
    "dense": dense,
    "int8": int8,
    "int4": int4,
    "lora": lora,
    "unilora": unilora,
    "vera": vera,
    "nncodec": nncodec,
}

__all__ = ["PEERS", "Bench", "Peer", "Row", "SkippedError"]
