"""Facts about a network's inputs and outputs: shape, dtype, preprocessing, labels."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Input:
    """An input of a network with several: its name if `forward` takes it by name, else empty; its shape without the
    batch axis."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Facts:
    """What a receiver must know to prepare an input and read an output. All fields are optional.

    An image is prepared as x = (pixel / 255 - mean) / std, with one mean and one std per channel.

    Attributes:
        input_shape: Shape of one example, without the batch axis.
        input_dtype: Its type by the names of safetensors; empty means F32.
        mean: One number per channel.
        std: One number per channel.
        labels: One text per class, in the order of the outputs.
        inputs: The inputs of a network that takes several, in the order of `forward`.
    """

    input_shape: tuple[int, ...] = ()
    input_dtype: str = ""
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    labels: tuple[str, ...] = ()
    inputs: tuple[Input, ...] = ()

    def __post_init__(self) -> None:
        plain = {"input_shape": int, "mean": float, "std": float, "labels": str}
        for name, kind in plain.items():
            object.__setattr__(self, name, tuple(map(kind, getattr(self, name))))

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Facts:
        """Rebuild facts from the result of `to_json`."""
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
        values["inputs"] = tuple(Input(n, t, tuple(shape)) for n, t, shape in fields.get("inputs", ()))
        return cls(**values)

    def to_json(self) -> dict[str, Any]:
        """Return the fields that are set as JSON values."""
        found = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items() if v}
        if self.inputs:
            found["inputs"] = [[i.name, i.dtype, list(i.shape)] for i in self.inputs]
        return found
