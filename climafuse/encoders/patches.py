"""Patches of a grid: where they lie, which hold any value, and how their tokens are pooled."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional

from climafuse.climate_tokens import ClimateTokens
from climafuse.encoders.positions import fresh
from climafuse.errors import ConfigurationError

POOLINGS = ("none", "time")


def check_options(*, pooling: str = "none", **sizes: int) -> None:
    """Refuse options of an encoder that do not make sense.

    Args:
        pooling: "none" or "time", of an encoder that pools.
        **sizes: Numbers that must be at least one.

    Raises:
        ConfigurationError: The pooling is unknown, or a number too small.
    """
    for name, value in sizes.items():
        if value < 1:
            raise ConfigurationError(
                f"encoder.options.{name}", expected="at least 1", received=value, remedy="Raise it."
            )
    if pooling not in POOLINGS:
        raise ConfigurationError(
            "encoder.options.pooling",
            expected=" or ".join(POOLINGS),
            received=repr(pooling),
            remedy="Choose one of these.",
        )


def padded_channels(fields: Tensor, mask: Tensor, size: int) -> Tensor:
    """Put values and mask side by side as channels, the grid padded to whole patches.

    Args:
        fields: [B, T, V, H, W].
        mask: [B, T, V, H, W] bool.
        size: Height and width of a patch in cells.

    Returns:
        [B, T, 2V, H', W']; all channels are 0 in the padding, and values where the mask is.
    """
    bottom, right = -fields.shape[-2] % size, -fields.shape[-1] % size
    values = fields.masked_fill(~mask, 0.0)
    return functional.pad(torch.cat([values, mask.to(fields.dtype)], dim=2), (0, right, 0, bottom))


@dataclass(frozen=True)
class PatchGrid:
    """The patches of one time step, P = rows * columns of them, row by row from south-west.

    Attributes:
        rows: Number of rows.
        columns: Number of columns.
        latitude: [B, P] of the patches' centers.
        longitude: [B, P] of the patches' centers, in [0, 360).
        extent: [B, P, 2] height and width of the patches, degrees.
        valid: [B, T, P] bool, whether a patch holds any value.
    """

    rows: int
    columns: int
    latitude: Tensor
    longitude: Tensor
    extent: Tensor
    valid: Tensor

    @classmethod
    def of(cls, mask: Tensor, latitude: Tensor, longitude: Tensor, size: int) -> PatchGrid:
        """Lay patches over windows.

        Args:
            mask: [B, T, V, H, W] bool.
            latitude: [B, H].
            longitude: [B, W], west to east.
            size: Height and width of a patch in cells.
        """
        any_value = functional.pad(
            mask.any(dim=2), (0, -mask.shape[-1] % size, 0, -mask.shape[-2] % size)
        )  # [B, T, H', W']
        valid = rearrange(any_value, "b t (h p) (w q) -> b t (h w) (p q)", p=size, q=size).any(dim=-1)
        north, height = _centers(latitude, size)  # [B, rows]
        unrolled = longitude[:, :1] + (longitude - longitude[:, :1]) % 360  # rising eastward without a jump
        east, width = _centers(unrolled, size)  # [B, columns]
        rows, columns = north.shape[1], east.shape[1]
        extent = torch.stack([height.repeat_interleave(columns, dim=1), width.repeat(1, rows)], dim=-1)
        return cls(
            rows,
            columns,
            north.repeat_interleave(columns, dim=1),
            (east % 360).repeat(1, rows),
            extent,
            valid,
        )

    def tokens(self, states: Tensor, time: Tensor, pooling: str) -> ClimateTokens:
        """Make climate tokens of the states of all patches.

        Args:
            states: [B, T, P, C].
            time: [B, T].
            pooling: "none": a token for each patch and step; "time": the mean over valid patches, one a step.
        """
        steps = states.shape[1]
        if pooling == "time":
            weight = self.valid.unsqueeze(-1).to(states.dtype)  # [B, T, P, 1]
            pooled = (states * weight).sum(dim=2) / weight.sum(dim=2).clamp(min=1)
            nowhere = torch.full_like(pooled[..., 0], torch.nan)
            labels = tuple(f"step {step - steps + 1}" for step in range(steps))
            return ClimateTokens(pooled, self.valid.any(dim=2), nowhere, nowhere, time, labels)
        return ClimateTokens(
            states=rearrange(states, "b t p c -> b (t p) c"),
            mask=rearrange(self.valid, "b t p -> b (t p)"),
            latitude=self.latitude.repeat(1, steps),
            longitude=self.longitude.repeat(1, steps),
            time=time.repeat_interleave(states.shape[2], dim=1),
            labels=tuple(
                f"patch {row},{column} at step {step - steps + 1}"
                for step in range(steps)
                for row in range(self.rows)
                for column in range(self.columns)
            ),
            extent=self.extent.repeat(1, steps, 1),
        )


def _centers(coordinate: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Mean coordinate and extent of each patch, of the cells it has where padding or the edge cuts it off; [B, N]."""
    real = fresh(coordinate)
    known = coordinate.masked_fill(~real, torch.nan)
    padded = functional.pad(known, (0, -coordinate.shape[1] % size), value=torch.nan)
    cells = rearrange(padded, "b (n p) -> b n p", p=size)
    centers = torch.nanmean(cells, dim=-1)
    spacing = (coordinate[:, -1:] - coordinate[:, :1]) / (real.sum(dim=1, keepdim=True) - 1).clamp(min=1)
    # A patch of nothing but padding is masked, but a number all the same: NaN would spread from it.
    return torch.where(centers.isnan(), coordinate[:, -1:], centers), (~cells.isnan()).sum(dim=-1) * spacing
