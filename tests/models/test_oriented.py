"""The fixed layers of `Oriented`: they need no bytes, so nothing else would notice a change of theirs."""

from __future__ import annotations

import pytest
import torch

from subcompress_models.oriented import edges, upright


def leaning(slope: float) -> torch.Tensor:
    """A bar, (1, 1, 28, 28), of three pixels' width, that is `slope` columns further right with each row."""
    rows, columns = torch.meshgrid(torch.arange(28.0), torch.arange(28.0), indexing="ij")
    bar = (2 - (columns - 13.5 - slope * (rows - 13.5)).abs()).clamp(0, 1)
    return (bar * ((rows > 5) & (rows < 22)))[None, None] - 0.4


@pytest.mark.parametrize("slope", [-0.6, 0.3, 0.8])
def test_a_leaning_bar_is_made_upright(slope):
    assert torch.allclose(upright(leaning(slope)), upright(leaning(0.0)), atol=0.15)
    assert torch.allclose(upright(leaning(0.0)), leaning(0.0) + 0.4, atol=1e-3)


def test_a_blank_image_stays_blank():
    assert torch.equal(upright(torch.full((2, 1, 28, 28), -0.4)), torch.zeros(2, 1, 28, 28))


def test_each_direction_has_an_edge():
    ramp = torch.arange(8.0).expand(1, 1, 8, 8)
    for direction, image in ((0, ramp), (2, ramp.mT), (4, -ramp), (6, -ramp.mT)):
        inside = edges(image)[0, :, 1:-1, 1:-1]
        assert inside.sum((1, 2)).argmax() == direction
        assert torch.allclose(inside[direction], torch.tensor(2.0))
        assert torch.equal(inside[(direction + 4) % 8], torch.zeros(6, 6))
