"""Rounding during a training by transformers' Trainer."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from subcompress.errors import SubcompressError


class RoundCoordinates(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """Train on the rounded coordinates for the last part of a training.

    Args:
        after: The share of the steps after which rounding begins, 0 to 1.

    Raises:
        SubcompressError: The share is not between 0 and 1.
    """

    def __init__(self, after: float = 0.5) -> None:
        if not 0 <= after <= 1:
            raise SubcompressError(f"after must be a share of the steps, between 0 and 1; got {after}")
        self.after = after

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Begin to round where that share is reached."""
        tuner = getattr(model, "module", model).base_model
        if not tuner.rounds and state.global_step >= self.after * state.max_steps:
            tuner.round_coordinates()


__all__ = ["RoundCoordinates"]
