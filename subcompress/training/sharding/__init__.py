"""One training shared by several workers, exactly: see `shards` for who runs what, `exact` for the sums, `steps` for a
step, `workers` for torch.distributed."""

from subcompress.training.sharding.shards import NoCheckpoint, Shards, ToldError, WorkerLostError
from subcompress.training.sharding.steps import Step
from subcompress.training.sharding.workers import sharing

__all__ = ["NoCheckpoint", "Shards", "Step", "ToldError", "WorkerLostError", "sharing"]
