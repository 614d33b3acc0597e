"""What a fusion is: it lets text states look at climate tokens.

A fusion knows nothing of the language model it serves, nor of where in it it sits (its site). Its gates start at
zero: before training, text passes through unchanged, bit for bit. A new fusion is a subclass of `Fusion` in one
file; see `examples/own_fusion.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from climafuse.climate_tokens import ClimateTokens


class Fusion(nn.Module, ABC):
    """Base of fusions.

    Parameters named `gate`, or ending in `_gate`, are gates: they start at zero and learn at a rate of their own.

    Args:
        hidden_size: D, the width of the text states.
        climate_width: C, the width of the climate tokens.
    """

    def __init__(self, hidden_size: int, climate_width: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.climate_width = climate_width

    @abstractmethod
    def forward(self, text: Tensor, climate: ClimateTokens) -> Tensor:
        """Fuse.

        Args:
            text: [B, S, D], of the backbone's type (bfloat16, say).
            climate: B rows of climate tokens. A row without any valid token must leave its text unchanged.

        Returns:
            [B, S, D] of the same type.
        """


def text_scale(text: Tensor) -> Tensor:
    """Root mean square of each text state, [B, S, 1].

    The states of language models differ in size by orders of magnitude between models, blocks and positions. A
    fusion's change is measured in units of the state it is added to, so one initialization and learning rate
    serves every site.
    """
    return text.detach().float().pow(2).mean(dim=-1, keepdim=True).sqrt()
