"""Rounding by the curvature of the loss."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from subcompress.subspace import curvature
from subcompress.subspace.curvature import MEMORY, Curvature

TOP = 7


def drawn(d: int, rank: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Gradients (4 * rank, d) in a few directions, and coordinates (d,) in units of a step."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(rank, d, generator=generator)
    gradients = torch.randn(4 * rank, rank, generator=generator) @ directions
    return gradients, 2.5 * torch.randn(d, generator=generator)


def seen(gradients: Tensor) -> Curvature:
    found = Curvature(gradients.shape[1])
    for g in gradients:
        found.see(g)
    return found


def rise(gradients: Tensor, error: Tensor) -> float:
    """How much a quadratic loss of that curvature rises with an error of the coordinates."""
    return float((gradients.double() @ error.double()).square().sum())


def test_the_moment_is_the_sum_over_all_gradients() -> None:
    gradients, _ = drawn(5, 9)
    found = seen(gradients)
    found.flush()
    torch.testing.assert_close(found.moment[0], gradients.T @ gradients)


def test_errors_cancel_out_where_the_loss_is_steep() -> None:
    gradients, x = drawn(300, 10)
    found = seen(gradients).integers(x, torch.ones(300), TOP)
    assert torch.equal(found, found.round()) and found.abs().max() <= TOP
    nearest = x.round().clamp(-TOP, TOP)
    assert rise(gradients, found - x) < 0.1 * rise(gradients, nearest - x)


def test_coordinates_that_do_not_interact_become_the_nearest_integers() -> None:
    _, x = drawn(6, 1)
    assert torch.equal(seen(torch.eye(6)).integers(x, torch.ones(6), TOP), x.round().double())


def test_each_coordinate_has_its_own_step() -> None:
    """Coordinates in other units, with gradients in those units, become the same integers."""
    gradients, x = drawn(40, 4)
    steps = torch.linspace(0.5, 2, 40)
    found = seen(gradients / steps).integers(x, steps, TOP)
    assert torch.equal(found, seen(gradients).integers(x, torch.ones(40), TOP))


@pytest.mark.parametrize("gradient", [0.0, float("nan"), float("inf")])
def test_without_a_usable_gradient_the_nearest_integers_are_taken(gradient: float) -> None:
    _, x = drawn(8, 1)
    found = seen(torch.full((3, 8), gradient)).integers(x, torch.ones(8), TOP)
    assert torch.equal(found, x.double().round().clamp(-TOP, TOP))


@settings(max_examples=30, deadline=None)
@given(d=st.integers(1, 40), rank=st.integers(1, 5), top=st.sampled_from([1, 3, 7]), block=st.integers(1, 40))
def test_any_number_of_coordinates_and_any_block(d: int, rank: int, top: int, block: int) -> None:
    gradients, x = drawn(d, rank, seed=d)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(curvature, "BLOCK", block)
        found = seen(gradients).integers(x, torch.ones(d), top)
    assert found.shape == (d,) and found.abs().max() <= top and torch.equal(found, found.round())


def test_many_coordinates_take_no_more_memory() -> None:
    for d in (10, 3_000, 200_000, 10_000_000):
        held = Curvature(d, "meta").moment
        assert held.numel() <= 1.1 * MEMORY + d and held.shape[0] * held.shape[1] >= d
