"""Gated addition: one climate vector a sample, added to every text position.

The cheapest fusion. It cannot look at different tokens for different words; what the words need must be in
one vector, and the blocks above (or the feed-forward layer here) must pick it out.

Reference:
    Arevalo et al. 2017, Gated Multimodal Units, arXiv:1702.01992, equation 2.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from climafuse.climate_tokens import ClimateTokens
from climafuse.fusion.base import at_least, at_least_float32, text_scale
from climafuse.fusion.pooling import PooledFusion


class GatedAdditionFusion(PooledFusion):
    """Pools the climate tokens with learned queries, mixes them with each text state, adds the result gated.

    With p the pooled climate, projected, and s the size of the text state, it gives
    text + s * gate * f(norm(text) + p).

    Args:
        hidden_size: D, the width of the text states.
        climate_width: C, the width of the climate tokens.
        queries: Number of learned queries, each of which pools the tokens in its own way.
        feed_forward: Width of the hidden units of f.

    Raises:
        ConfigurationError: An option is not positive.
    """

    def __init__(
        self, hidden_size: int, climate_width: int, queries: int = 16, feed_forward: int = 1152
    ) -> None:
        at_least(1, queries=queries, feed_forward=feed_forward)
        super().__init__(hidden_size, climate_width, queries, hidden_size)
        self.norm = nn.LayerNorm(hidden_size)
        self.feed_forward = nn.Sequential(
            nn.Linear(hidden_size, feed_forward), nn.GELU(), nn.Linear(feed_forward, hidden_size)
        )
        self.gate = nn.Parameter(torch.zeros(hidden_size))

    def forward(self, text: Tensor, climate: ClimateTokens) -> Tensor:
        """Fuse; see `Fusion.forward`."""
        states = at_least_float32(text)
        pooled = self.once(climate, lambda: self.pool(climate)).unsqueeze(1)  # [B, 1, D]
        change = self.gate * self.feed_forward(self.norm(states) + pooled)
        change = change * climate.mask.any(dim=1)[:, None, None]
        return (states + text_scale(text) * change).to(text.dtype)
