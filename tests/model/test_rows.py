"""Rows of climate tokens. Oracle: each row before."""

from __future__ import annotations

import pytest
import torch

from climafuse.climate_tokens import ClimateTokens
from climafuse.model.rows import stack_rows


def tokens(batch: int, length: int, *, extent: bool) -> ClimateTokens:
    return ClimateTokens(
        states=torch.randn(batch, length, 3),
        mask=torch.rand(batch, length) < 0.7,
        latitude=torch.randn(batch, length),
        longitude=torch.randn(batch, length),
        time=torch.randn(batch, length),
        extent=torch.rand(batch, length, 2) if extent else None,
    )


@pytest.mark.parametrize("extent", [False, True])
def test_batches_below_each_other(extent: bool) -> None:
    parts = [tokens(batch, length, extent=extent) for batch, length in ((2, 4), (1, 6), (3, 6))]
    stacked = stack_rows(parts)
    assert stacked.states.shape == (6, 6, 3)
    row = 0
    for part in parts:
        for number, length in enumerate([part.states.shape[1]] * len(part.states)):
            for name in ("states", "mask", "latitude", "longitude", "time", *(("extent",) if extent else ())):
                assert torch.equal(getattr(stacked, name)[row, :length], getattr(part, name)[number]), name
            assert not stacked.mask[row, length:].any()
            row += 1
    assert (stacked.extent is not None) == extent
