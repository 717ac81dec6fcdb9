"""What a search turns: d, or the price of a bit. A new knob is a file here: a `Knob` that says what a value means to a
training, its bounds, and what is known of it beforehand."""

from subcompress.search.knobs.coordinates import Coordinates, first_d
from subcompress.search.knobs.knob import Knob, Made
from subcompress.search.knobs.price import Price

KNOBS = (Coordinates.name, Price.name)
"""The knobs that `fit` can turn, by name."""


def knob_of(name: str, D: int) -> Knob:
    """The knob of that name, for a network of D weights."""
    return Price(D) if name == Price.name else Coordinates(D)


__all__ = ["KNOBS", "Coordinates", "Knob", "Made", "Price", "first_d", "knob_of"]
