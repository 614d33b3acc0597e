"""The loss: shifted cross-entropy on answer tokens, over the whole vocabulary or an unbiased sample of it.

Most of a training step on a CPU would be the product with a head of 49,152 tokens, nearly all of which are
out of the question. The sum over the vocabulary can be estimated: exact for the tokens that matter (those
that answers are made of, and those the bare language model would say instead), and for the rest from a few
drawn anew at every step, each standing for many. The loss that is logged in training is then an estimate (of
the sum, without bias; a little low in its logarithm); every evaluation and all generation use the whole
vocabulary.

Reference:
    Jean et al. 2015, On Using Very Large Target Vocabulary for NMT, arXiv:1412.2007, section 3.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from climafuse.errors import ModelInputError

IGNORED = -100  # label of positions that are not answer tokens; the convention of transformers


def labeled_positions(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Find the positions whose next token is a label.

    Args:
        labels: [N, S], `IGNORED` where there is none; labels[:, s] is the token at s itself.

    Returns:
        positions [N, S] bool, P of them true; targets [P], the tokens after them, in row-major order.

    Raises:
        ModelInputError: No position has a label.
    """
    positions = functional.pad(labels[:, 1:] != IGNORED, (0, 1), value=False)
    if not positions.any():
        raise ModelInputError(
            "labels",
            expected="at least one answer token after the first position",
            received="none",
            remedy="Give answers to the processor, and a longer maximum length if they were cut off.",
        )
    return positions, labels[:, 1:][positions[:, :-1]]


class SampledVocabulary:
    """The tokens over which the sum of a softmax is taken in a training step.

    Args:
        kept: [K] tokens that are always in, among them every label.
        size: V, the size of the vocabulary.
        num_sampled: How many of the others are drawn at each step.

    Raises:
        ModelInputError: A token is outside the vocabulary, or the number negative.
    """

    def __init__(self, kept: Tensor, size: int, num_sampled: int) -> None:
        kept = kept.unique()
        if len(kept) == 0 or kept.min() < 0 or kept.max() >= size:
            raise ModelInputError(
                "kept",
                expected=f"tokens from 0 to {size - 1}",
                received="others",
                remedy="Check the tokenizer.",
            )
        if num_sampled < 0:
            raise ModelInputError(
                "num_sampled", expected="0 or more", received=num_sampled, remedy="Check the configuration."
            )
        kept = kept.cpu()
        column = torch.full((size,), -1, dtype=torch.long)
        column[kept] = torch.arange(len(kept))
        self.kept = kept
        self._column = column
        self._others = (column < 0).nonzero().squeeze(1)
        self.num_sampled = min(num_sampled, len(self._others))

    def draw(self) -> Tensor:
        """Return the tokens of one step, kept ones first; with replacement, from torch's global generator."""
        if self.num_sampled == len(self._others):
            return torch.cat([self.kept, self._others])
        drawn = torch.randint(len(self._others), (self.num_sampled,))
        return torch.cat([self.kept, self._others[drawn]])

    @property
    def added(self) -> Tensor | None:
        """What is added to the logits of the tokens of `draw`, [K + num_sampled] float32; None for nothing.

        Each drawn one stands for many.
        """
        if not self.num_sampled:
            return None
        stands_for = math.log(len(self._others) / self.num_sampled)
        return torch.cat([torch.zeros(len(self.kept)), torch.full((self.num_sampled,), stands_for)])

    def columns(self, targets: Tensor) -> Tensor:
        """Return where tokens [P] stand among those of `draw`.

        Raises:
            ModelInputError: A target is not among the kept tokens.
        """
        columns = self._column[targets.cpu()]
        if (columns < 0).any():
            raise ModelInputError(
                "labels",
                expected="tokens that occur in the training texts",
                received=f"token {int(targets.cpu()[columns < 0][0])}",
                remedy="Make the sampled vocabulary from all texts the model is trained on.",
            )
        return columns.to(targets.device)


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy over the whole vocabulary in float32, summed; logits [P, V], targets [P]."""
    return functional.cross_entropy(logits.float(), targets, reduction="sum")
