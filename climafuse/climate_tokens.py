"""Climate tokens: what encoders make, fusions read and maps draw."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class ClimateTokens:
    """What the language model may look at.

    Attributes:
        states: [B, M, C] float32.
        mask: [B, M] bool, True where a token stands for any valid value.
        latitude: [B, M] degrees north of what a token is about; NaN where it is about the whole box.
        longitude: [B, M] degrees east, likewise.
        time: [B, M] days since 1970-01-01.
        extent: [B, M, 2] height and width in degrees of what a token is about, such as a patch; 0 for a point. None
            where all with a place are about points.
        labels: M descriptions such as "t2m mean", the same for every sample; for reading, not for computing.
        memory: What fusions made of these tokens, by fusion, while text is generated; None where nothing is
            kept.
    """

    states: Tensor
    mask: Tensor
    latitude: Tensor
    longitude: Tensor
    time: Tensor
    labels: tuple[str, ...] = ()
    memory: dict[Any, Any] | None = None
    extent: Tensor | None = None


def concatenate(parts: list[ClimateTokens]) -> ClimateTokens:
    """Put the tokens of several parts of an encoder side by side."""
    if len(parts) == 1:
        return parts[0]
    extents = None
    if any(part.extent is not None for part in parts):
        points = (part.states.new_zeros(*part.states.shape[:2], 2) for part in parts)
        extents = [
            point if part.extent is None else part.extent for part, point in zip(parts, points, strict=True)
        ]
    return ClimateTokens(
        states=torch.cat([part.states for part in parts], dim=1),
        mask=torch.cat([part.mask for part in parts], dim=1),
        latitude=torch.cat([part.latitude for part in parts], dim=1),
        longitude=torch.cat([part.longitude for part in parts], dim=1),
        time=torch.cat([part.time for part in parts], dim=1),
        labels=sum((part.labels for part in parts), ()),
        extent=None if extents is None else torch.cat(extents, dim=1),
    )
