"""Random windows as the tensors that encoders take."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from climafuse.encoders import Channels, ClimateEncoder, ConvEncoder, GridTransformerEncoder
from climafuse.encoders.blind import BlindEncoder

VARIABLES = ("t2m", "msl", "ws10")
# Natural units: °C around 5, hPa around 1013, m/s.
CHANNELS = Channels(VARIABLES, (12.0, 9.0, 6.0), (5.0, 1013.0, 0.5))
Inputs = dict[str, Tensor]


def inputs(
    *,
    batch: int = 2,
    steps: int = 2,
    height: int = 7,
    width: int = 9,
    south: float = 40.0,
    west: float = 10.0,
    spacing: float = 1.0,
    missing: float = 0.0,
    seed: int = 0,
) -> Inputs:
    """Noise in boxes of one size; `missing` is the share of cells without a value."""
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, steps, len(VARIABLES), height, width)
    mask = torch.rand(shape, generator=generator) >= missing
    fields = torch.randn(shape, generator=generator).masked_fill(~mask, 0.0)
    latitude = south + spacing * torch.arange(height, dtype=torch.float64)
    longitude = (west + spacing * torch.arange(width, dtype=torch.float64)) % 360
    return {
        "fields": fields,
        "mask": mask,
        "latitude": latitude.float().repeat(batch, 1),
        "longitude": longitude.float().repeat(batch, 1),
        "time": 20500.25 + torch.arange(steps, dtype=torch.float64).repeat(batch, 1),
    }


def padded(given: Inputs, *, steps: int, height: int, width: int) -> Inputs:
    """The same windows in a batch with larger ones, padded as `collate_windows` does it."""
    old = given["fields"].shape
    more = (0, width - old[4], 0, height - old[3], 0, 0, 0, steps - old[1])
    return {
        "fields": nn.functional.pad(given["fields"], more),
        "mask": nn.functional.pad(given["mask"], more, value=False),
        "latitude": _repeat_last(given["latitude"], height),
        "longitude": _repeat_last(given["longitude"], width),
        "time": _repeat_last(given["time"], steps),
    }


def encoders(channels: Channels = CHANNELS, **options: object) -> dict[str, ClimateEncoder]:
    """All encoders, small, in eval mode, with parameters large enough to leave a mark.

    Those without patches have nothing to pool and no summary; these options are not for them.
    """
    torch.manual_seed(3)
    made: dict[str, ClimateEncoder] = {
        "grid_transformer": GridTransformerEncoder(
            channels, **({"width": 16, "depth": 2, "heads": 2, "patch": 3} | options)
        ),
        "conv": ConvEncoder(channels, **({"width": 16} | options)),
        "blind": BlindEncoder(channels, width=16, tokens=3),
        "blind_place": BlindEncoder(channels, width=16, tokens=3, place=True),
    }
    return {name: encoder.eval() for name, encoder in made.items()}


def _repeat_last(coordinate: Tensor, length: int) -> Tensor:
    last = coordinate[:, -1:].expand(-1, length - coordinate.shape[1])
    return torch.cat([coordinate, last], dim=1)


def numpy(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()
