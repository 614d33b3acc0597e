"""Features of where and when: smooth on the sphere, the same for every grid and resolution."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

WAVENUMBERS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)  # of a full circle: down to about 11°
NUM_PLACE_FEATURES = 4 * len(WAVENUMBERS)
NUM_TIME_FEATURES = 6
TROPICAL_YEAR = 365.2422  # days


def fresh(coordinate: Tensor) -> Tensor:
    """Tell real coordinates from padding, which repeats the last one.

    Args:
        coordinate: [B, N] along one axis of the windows.

    Returns:
        [B, N] bool, False where the value before is repeated.
    """
    return functional.pad(coordinate.diff(dim=1) != 0, (1, 0), value=True)


def place_features(latitude: Tensor, longitude: Tensor) -> Tensor:
    """Features of places.

    Args:
        latitude: [...] degrees north.
        longitude: [...] degrees east; any convention, since only its circle counts.

    Returns:
        [..., NUM_PLACE_FEATURES] float32.
    """
    wavenumbers = latitude.new_tensor(WAVENUMBERS)
    north = torch.deg2rad(latitude).unsqueeze(-1) * wavenumbers
    east = torch.deg2rad(longitude).unsqueeze(-1) * wavenumbers
    return torch.cat([north.sin(), north.cos(), east.sin(), east.cos()], dim=-1)


def time_features(time: Tensor) -> Tensor:
    """Features of times: phase of the year and of the day, and the lead over the valid (last) time.

    Args:
        time: [B, T] days since 1970-01-01, float64 (float32 keeps only minutes of today's dates).

    Returns:
        [B, T, NUM_TIME_FEATURES] float32.
    """
    year = 2 * math.pi * time / TROPICAL_YEAR
    day = 2 * math.pi * time
    before = time[:, -1:] - time  # days before the valid time
    features = [
        year.sin(), year.cos(), day.sin(), day.cos(), torch.tanh(before), torch.tanh(before / 30),
    ]  # fmt: skip
    return torch.stack(features, dim=-1).float()
