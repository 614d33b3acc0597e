"""Prefix: the climate as soft tokens that stand before the text, where the language model's own attention reads them.

Nothing in the blocks is changed, so there is no gate: even an untrained prefix is something that the words can see.

References:
    Li and Liang 2021, Prefix-Tuning, arXiv:2101.00190 (vectors in place of words);
    Alayrac et al. 2022, Flamingo, arXiv:2204.14198, section 2.1 (learned queries make any number of tokens into a few).
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from climafuse.climate_tokens import ClimateTokens
from climafuse.fusion.base import Fusion, at_least, text_scale, visible


class PrefixFusion(Fusion):
    """Learned queries read the climate tokens; each becomes one soft token, of the size of the embeddings of words.

    With q the queries and a their multi-head attention to the climate tokens, the soft tokens are
    norm(project(h + f(norm(h)))), where h = q + a; the outer norm has size 1 and is scaled to that of words.

    Args:
        hidden_size: D, the width of the text states.
        climate_width: C, the width of the climate tokens.
        length: P, how many soft tokens stand before a text.
        heads: Number of attention heads.
        head_width: Width of a head.
        feed_forward: Width of the hidden units of f.

    Raises:
        ConfigurationError: An option is not positive.
    """

    def __init__(
        self,
        hidden_size: int,
        climate_width: int,
        length: int = 16,
        heads: int = 8,
        head_width: int = 64,
        feed_forward: int = 1152,
    ) -> None:
        super().__init__(hidden_size, climate_width)
        at_least(1, length=length, heads=heads, head_width=head_width, feed_forward=feed_forward)
        self.num_soft_tokens = length
        self.heads = heads
        width = heads * head_width
        self.queries = nn.Parameter(torch.randn(length, width))
        self.key = nn.Linear(climate_width, width, bias=False)  # the softmax would not see it
        self.value = nn.Linear(climate_width, width)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, feed_forward), nn.GELU(), nn.Linear(feed_forward, width)
        )
        self.projection = nn.Linear(width, hidden_size)
        self.norm = nn.LayerNorm(hidden_size)

    def forward(self, text: Tensor, climate: ClimateTokens) -> Tensor:
        """Make what stands in the places before the text; see `Fusion.forward`."""
        return (text_scale(text) * self.once(climate, lambda: self._soft_tokens(climate))).to(text.dtype)

    def _soft_tokens(self, climate: ClimateTokens) -> Tensor:
        """[B, P, D], of size 1."""
        key, value = (
            rearrange(layer(climate.states), "b m (h d) -> b h m d", h=self.heads)
            for layer in (self.key, self.value)
        )
        query = rearrange(self.queries, "p (h d) -> h p d", h=self.heads).expand(len(key), -1, -1, -1)
        attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=visible(climate))
        hidden = self.queries + rearrange(attended, "b h p d -> b p (h d)")
        made: Tensor = self.norm(self.projection(hidden + self.feed_forward(hidden)))
        return made
