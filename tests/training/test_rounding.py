"""Weights in bfloat16. Oracles: neighbors and shares by hand, AdamW of torch in float32."""

from __future__ import annotations

import pytest
import torch

from climafuse.training import rounding
from climafuse.training.rounding import RoundingAdamW, rounded_at_random


@pytest.mark.parametrize(
    ("value", "below", "above", "share"),
    [
        # Next to 1 the step is 1/128, to -3 it is 1/64, to 1e-3 = 1.024 · 2^-10 it is 2^-17.
        (1 + 1 / 512, 1.0, 1 + 1 / 128, 1 / 4),
        (-3 - 3 / 256, -3.0, -3 - 1 / 64, 3 / 4),
        (131 * 2.0**-17 + 2.0**-18, 131 * 2.0**-17, 132 * 2.0**-17, 1 / 2),
        (2 - 1 / 1280, 2 - 1 / 128, 2.0, 9 / 10),  # over a power of two
    ],
)
def test_rounding_is_to_a_neighbor_and_without_bias(
    value: float, below: float, above: float, share: float
) -> None:
    torch.manual_seed(0)
    found = rounded_at_random(torch.full((100_000,), value))
    assert found.dtype == torch.bfloat16
    assert set(found.tolist()) == {below, above}
    up = (found == above).float().mean().item()
    assert up == pytest.approx(share, abs=4 * (share * (1 - share) / 100_000) ** 0.5)  # four standard errors


def test_what_bfloat16_can_hold_stays() -> None:
    values = torch.randn(1000).bfloat16()
    special = torch.tensor([0.0, -0.0, float("inf"), -float("inf"), 3.3895e38, 1e-40]).bfloat16()
    for held in (values, special):
        assert torch.equal(rounded_at_random(held.float()), held)


def test_the_update_is_that_of_adamw_in_float32() -> None:
    """Each step from the same weights: within one neighbor of it, and equal to it in the mean over weights."""
    torch.manual_seed(0)
    start = torch.randn(200, 300).bfloat16()
    coarse, fine = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.float())
    options = {"lr": 1e-3, "betas": (0.9, 0.98), "weight_decay": 0.1}
    one, other = RoundingAdamW([coarse], **options), torch.optim.AdamW([fine], fused=True, **options)
    for _ in range(5):
        with torch.no_grad():
            fine.copy_(coarse.float())
        coarse.grad = torch.randn(200, 300).bfloat16()
        fine.grad = coarse.grad.float()
        one.step()
        other.step()
        for key in ("step", "exp_avg", "exp_avg_sq"):
            assert one.state[coarse][key].dtype == torch.float32
            assert torch.equal(one.state[coarse][key], other.state[fine][key])
        error = coarse.detach().float() - fine.detach()
        assert (error.abs() <= fine.detach().abs() * 2**-7 + 1e-30).all()
        assert error.mean().abs() < 5 * error.std() / 60_000**0.5


@pytest.mark.parametrize("shape", [(), (1,), (50,), (3, 1000), (7, 5, 9), (0, 4)])
def test_pieces_are_updated_as_the_whole(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows at a time, and also of a weight that lies in memory the other way round; no row is left out."""
    monkeypatch.setattr(rounding, "PIECE", 20)
    torch.manual_seed(0)
    start = (1 + torch.rand(shape)).bfloat16()
    for transposed in (False, True):
        backwards = tuple(reversed(range(start.ndim)))
        own = start.permute(backwards).contiguous().permute(backwards)
        coarse = torch.nn.Parameter(own if transposed else start.clone())
        fine = torch.nn.Parameter(start.float())
        one, other = RoundingAdamW([coarse], lr=0.1), torch.optim.AdamW([fine], lr=0.1, fused=True)
        for _ in range(3):
            with torch.no_grad():
                fine.copy_(coarse.float())
            coarse.grad = torch.randn(shape).bfloat16()
            fine.grad = coarse.grad.float()
            one.step()
            other.step()
            for key in ("step", "exp_avg", "exp_avg_sq"):
                torch.testing.assert_close(one.state[coarse][key], other.state[fine][key])
            assert ((coarse.float() - fine).abs() <= fine.abs() * 2**-7).all()


def test_small_steps_are_not_lost() -> None:
    """A hundred steps of 1e-4 from 1. To the nearest neighbor, which is 2e-3 or more away, none would be seen."""
    ended: dict[str, torch.Tensor] = {}
    for name, kind in (("rounded", RoundingAdamW), ("plain", torch.optim.AdamW)):
        torch.manual_seed(0)
        weight = torch.nn.Parameter(torch.ones(10_000, dtype=torch.bfloat16))
        optimizer = kind([weight], lr=1e-4, weight_decay=0.0)
        for _ in range(100):
            weight.grad = torch.ones_like(weight)
            optimizer.step()
        ended[name] = weight.detach().float()
    assert (ended["plain"] == 1).all()
    assert ended["rounded"].mean().item() == pytest.approx(0.99, abs=2e-4)


def test_float32_weights_of_the_same_optimizer_are_updated_as_ever() -> None:
    torch.manual_seed(0)
    start, gradient = torch.randn(20), torch.randn(20)
    fine, own = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    coarse = torch.nn.Parameter(start.bfloat16())
    one = RoundingAdamW([{"params": [fine]}, {"params": [coarse], "lr": 0.0, "weight_decay": 0.0}], lr=0.1)
    other = torch.optim.AdamW([own], lr=0.1, fused=True)
    for _ in range(3):
        fine.grad = own.grad = gradient
        coarse.grad = gradient.bfloat16()
        one.step()
        other.step()
        assert coarse.grad is not None  # as any optimizer leaves it
    assert torch.equal(fine, own)
    assert torch.equal(coarse, start.bfloat16())  # no rate, no change, however often it is rounded


def test_random_numbers_are_those_of_torch() -> None:
    values = torch.randn(50)
    torch.manual_seed(3)
    first = rounded_at_random(values)
    second = rounded_at_random(values)
    torch.manual_seed(3)
    assert torch.equal(rounded_at_random(values), first)
    assert not torch.equal(first, second)
