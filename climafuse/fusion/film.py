"""FiLM: the climate scales and shifts every channel of the text states, the same for every word.

Reference:
    Perez et al. 2018, FiLM: Visual Reasoning with a General Conditioning Layer, arXiv:1709.07871, equation 2.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from climafuse.climate_tokens import ClimateTokens
from climafuse.fusion.base import at_least, at_least_float32, text_scale
from climafuse.fusion.pooling import PooledFusion


class FiLMFusion(PooledFusion):
    """Pools the climate tokens with learned queries and makes of them a factor and a shift for each channel.

    With γ and β [D] of the pooled climate and s the size of the text state, it gives
    (1 + scale_gate * γ) * text + s * shift_gate * β.

    Args:
        hidden_size: D, the width of the text states.
        climate_width: C, the width of the climate tokens.
        queries: Number of learned queries, each of which pools the tokens in its own way.
        feed_forward: Width of the hidden units between the pooled climate and γ, β.

    Raises:
        ConfigurationError: An option is not positive.
    """

    def __init__(
        self, hidden_size: int, climate_width: int, queries: int = 16, feed_forward: int = 1152
    ) -> None:
        at_least(1, queries=queries, feed_forward=feed_forward)
        super().__init__(hidden_size, climate_width, queries, feed_forward)
        self.modulation = nn.Sequential(nn.GELU(), nn.Linear(feed_forward, 2 * hidden_size))
        self.scale_gate = nn.Parameter(torch.zeros(hidden_size))
        self.shift_gate = nn.Parameter(torch.zeros(hidden_size))

    def forward(self, text: Tensor, climate: ClimateTokens) -> Tensor:
        """Fuse; see `Fusion.forward`."""
        states = at_least_float32(text)
        modulation = self.once(climate, lambda: self.modulation(self.pool(climate)))  # [B, 2D]
        scale, shift = modulation.unsqueeze(1).chunk(2, dim=-1)  # [B, 1, D] each
        change = self.scale_gate * scale * states + text_scale(text) * self.shift_gate * shift
        change = change * climate.mask.any(dim=1)[:, None, None]
        return (states + change).to(text.dtype)
