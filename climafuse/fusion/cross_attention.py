"""Gated multi-head cross-attention: each text position asks, the climate tokens answer.

Reference:
    Alayrac et al. 2022, Flamingo, arXiv:2204.14198, section 2.2 and figure 4.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from climafuse.climate_tokens import ClimateTokens
from climafuse.fusion.base import Fusion, at_least, at_least_float32, text_scale, visible


class CrossAttentionFusion(Fusion):
    """Multi-head attention from text to climate tokens, then a feed-forward layer, both gated.

    Gates are vectors, one number a channel, without a squashing function: with y the attention's answer and s
    the size of the text state, text + s * (attention_gate * y + feed_forward_gate * f(norm(text) + y)).

    Args:
        hidden_size: D, the width of the text states.
        climate_width: C, the width of the climate tokens.
        heads: Number of attention heads.
        head_width: Width of a head.
        feed_forward: Width of the feed-forward layer's hidden units; 0 for none.

    Raises:
        ConfigurationError: An option is not positive.
    """

    def __init__(
        self,
        hidden_size: int,
        climate_width: int,
        heads: int = 8,
        head_width: int = 64,
        feed_forward: int = 1152,
    ) -> None:
        super().__init__(hidden_size, climate_width)
        at_least(1, heads=heads, head_width=head_width)
        at_least(0, feed_forward=feed_forward)
        self.heads = heads
        width = heads * head_width
        self.norm = nn.LayerNorm(hidden_size)
        self.query = nn.Linear(hidden_size, width)
        self.key = nn.Linear(climate_width, width, bias=False)  # the softmax would not see it
        self.value = nn.Linear(climate_width, width)
        self.output = nn.Linear(width, hidden_size)
        self.attention_gate = nn.Parameter(torch.zeros(hidden_size))
        self.feed_forward = None
        if feed_forward:
            self.feed_forward = nn.Sequential(
                nn.LayerNorm(hidden_size),
                nn.Linear(hidden_size, feed_forward),
                nn.GELU(),
                nn.Linear(feed_forward, hidden_size),
            )
            self.feed_forward_gate = nn.Parameter(torch.zeros(hidden_size))

    def forward(self, text: Tensor, climate: ClimateTokens) -> Tensor:
        """Fuse; see `Fusion.forward`."""
        states = at_least_float32(text)
        normed = self.norm(states)
        query = rearrange(self.query(normed), "b s (h d) -> b h s d", h=self.heads)
        key, value = self._keys_values(climate)
        attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=visible(climate))
        answer = self.output(rearrange(attended, "b h s d -> b s (h d)"))
        change = self.attention_gate * answer
        if self.feed_forward is not None:
            change = change + self.feed_forward_gate * self.feed_forward(normed + answer)
        change = change * climate.mask.any(dim=1)[:, None, None]
        return (states + text_scale(text) * change).to(text.dtype)

    def attention(self, text: Tensor, climate: ClimateTokens) -> Tensor:
        """Attention weights; see `Fusion.attention`."""
        query = rearrange(self.query(self.norm(at_least_float32(text))), "b s (h d) -> b h s d", h=self.heads)
        key, _ = self._keys_values(climate)
        scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
        return scores.masked_fill(~visible(climate), torch.finfo(scores.dtype).min).softmax(dim=-1)

    def _keys_values(self, climate: ClimateTokens) -> tuple[Tensor, Tensor]:
        """Keys and values [B, heads, M, d], made once while text is generated."""

        def make() -> tuple[Tensor, Tensor]:
            key = rearrange(self.key(climate.states), "b m (h d) -> b h m d", h=self.heads)
            value = rearrange(self.value(climate.states), "b m (h d) -> b h m d", h=self.heads)
            return key, value

        return self.once(climate, make)
