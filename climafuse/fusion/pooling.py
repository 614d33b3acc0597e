"""Fusions that see the climate as one vector a sample, pooled from its tokens by learned queries."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from climafuse.climate_tokens import ClimateTokens
from climafuse.fusion.base import Fusion


class PooledFusion(Fusion):
    """Base of fusions that pool the climate tokens into one vector for all text positions.

    Args:
        hidden_size: D, the width of the text states.
        climate_width: C, the width of the climate tokens.
        queries: Number of learned queries, each of which pools the tokens in its own way.
        pooled_width: Width of the vector.
    """

    def __init__(self, hidden_size: int, climate_width: int, queries: int, pooled_width: int) -> None:
        super().__init__(hidden_size, climate_width)
        self.queries = nn.Linear(climate_width, queries, bias=False)  # the softmax would not see it
        self.projection = nn.Linear(queries * climate_width, pooled_width)

    def pool(self, climate: ClimateTokens) -> Tensor:
        """The climate as one vector, [B, pooled_width]."""
        scores = self.queries(climate.states)  # [B, M, queries]
        weight = scores.masked_fill(~climate.mask[..., None], torch.finfo(scores.dtype).min).softmax(dim=1)
        pooled = torch.einsum("bmq,bmc->bqc", weight, climate.states)
        projected: Tensor = self.projection(rearrange(pooled, "b q c -> b (q c)"))
        return projected
