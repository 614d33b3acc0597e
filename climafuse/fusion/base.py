"""What a fusion is: it lets text states look at climate tokens.

A fusion knows nothing of the language model it serves, nor of where in it it sits (its site). There are two kinds:

- One changes the states of the text at any site. Its gates start at zero: before training, text passes through
  unchanged, bit for bit.
- One of `num_soft_tokens` makes states that stand before those of the text, at the input. Texts get longer by them, and
  the language model sees them from the beginning.

A new fusion is a subclass of `Fusion` in one file; see `examples/own_fusion.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from climafuse.climate_tokens import ClimateTokens
from climafuse.errors import ConfigurationError

T = TypeVar("T")


class Fusion(nn.Module, ABC):
    """Base of fusions.

    Parameters named `gate`, or ending in `_gate`, are gates: they start at zero and have their own rate.

    Args:
        hidden_size: D, the width of the text states.
        climate_width: C, the width of the climate tokens.

    Attributes:
        num_soft_tokens: P, how many states it puts before each text; 0 for a fusion that changes the text's own.
    """

    num_soft_tokens: int = 0

    def __init__(self, hidden_size: int, climate_width: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.climate_width = climate_width

    @abstractmethod
    def forward(self, text: Tensor, climate: ClimateTokens) -> Tensor:
        """Fuse.

        Args:
            text: [B, S, D], of the backbone's type (bfloat16, say). With `num_soft_tokens`: [B, P, D], the places
                to fill before the text, which hold nothing but the size of the embeddings of words.
            climate: B rows of climate tokens. A row without any valid token must leave its text unchanged; what a
                prefix gives for it is not seen.

        Returns:
            [B, S, D] of the same type, [B, P, D] with `num_soft_tokens`.
        """

    def attention(self, text: Tensor, climate: ClimateTokens) -> Tensor | None:
        """How much each text position looks at each climate token, for maps and reports.

        Args:
            text: [B, S, D].
            climate: B rows of M climate tokens.

        Returns:
            [B, heads, S, M] float32, of which rows sum to one where any token is valid. None for a fusion whose words
            do not look each for itself: one that pools the climate before it meets the text, or puts states before it.
        """
        return None

    def once(self, climate: ClimateTokens, compute: Callable[[], T]) -> T:
        """Compute what depends on the climate alone: anew in training, once while text is generated.

        It is kept with the tokens, never in the fusion: it cannot outlive them, nor meet other weights.

        Args:
            climate: The climate tokens.
            compute: What is computed.
        """
        if climate.memory is None or torch.is_grad_enabled():
            return compute()
        if self not in climate.memory:
            climate.memory[self] = compute()
        found: T = climate.memory[self]
        return found


def at_least(least: int, **options: int) -> None:
    """Check options of a fusion.

    Args:
        least: The least value they may have.
        **options: Their values by name.

    Raises:
        ConfigurationError: One is less.
    """
    for name, value in options.items():
        if value < least:
            raise ConfigurationError(
                f"fusion.options.{name}", expected=f"at least {least}", received=value, remedy="Raise it."
            )


def at_least_float32(text: Tensor) -> Tensor:
    """Text states in the precision that fusions compute in: float32, whatever the backbone's is."""
    return text.to(torch.promote_types(text.dtype, torch.float32))


def text_scale(text: Tensor) -> Tensor:
    """Root mean square of each text state, [B, S, 1].

    The states of language models differ in size by orders of magnitude between models, blocks and positions.
    A fusion's change is measured in units of the state it is added to, so one initialization and learning
    rate serves every site. The scale has a gradient: where the states have one (above another site, or an
    adapter), it would else not be that of the loss.
    """
    square = at_least_float32(text).pow(2).mean(dim=-1, keepdim=True)
    return square.clamp(min=torch.finfo(square.dtype).tiny).sqrt()  # the slope of a root at zero is infinite


def visible(climate: ClimateTokens) -> Tensor:
    """Which tokens attention may look at, [B, 1, 1, M]: all of them in a row that has none, masked later."""
    return (climate.mask | ~climate.mask.any(dim=1, keepdim=True))[:, None, None, :]
