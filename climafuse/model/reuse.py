"""Frozen-prefix reuse: what the blocks below the first fusion site (or adapter) make of a text, computed once.

Those blocks see only text, and they are frozen: their states are the same in every epoch and for every
climate. A store keeps them by the tokens of the text. Texts that begin alike (the same question, the same
first words of the answer) share the states of that beginning, so it is computed and kept once.

States equal those of a full forward pass up to the rounding of the backbone's type (other shapes, other order
of sums): within 2 % of the states' size in bfloat16, 1e-5 in float32, as the tests hold it.
"""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache, PreTrainedModel

from climafuse.backbones import Site, find_blocks, num_blocks_below, prefix_states
from climafuse.errors import ModelInputError
from climafuse.memory import in_halves

Tokens = tuple[int, ...]
PASS = 64  # what a pass through the backbone costs beside its tokens, in tokens: its weights are read anew


class PrefixStore:
    """States of texts at a site of a frozen backbone, in memory.

    Args:
        backbone: The frozen causal language model.
        site: `prefix_site` of the model, or one below it.
        batch: How many texts are computed at a time.

    Raises:
        ModelInputError: Something below the site is trained: states would be those of old weights.
    """

    def __init__(self, backbone: PreTrainedModel, site: Site, *, batch: int = 64) -> None:
        self.backbone = backbone
        self.site = site
        self.batch = batch
        layout = find_blocks(backbone)
        below = layout.blocks[: num_blocks_below(site, layout.num_blocks)]
        if any(parameter.requires_grad for parameter in below.parameters()):
            raise ModelInputError(
                "site",
                expected="a site with nothing but frozen weights below it",
                received=f"{site!r}, above weights that are trained",
                remedy="Make it with PrefixStore(model.backbone, model.prefix_site).",
            )
        self._shares = len(below) > 0 and shares_beginnings(backbone)  # embeddings are not worth sharing
        # Text -> states of its beginning, which other texts share, and of its rest.
        self._states: dict[Tokens, tuple[Tensor, Tensor]] = {}

    def __len__(self) -> int:
        return len(self._states)

    def add(self, texts: Iterable[Tokens], *, progress: Callable[[int, int], None] | None = None) -> None:
        """Compute and keep the states of texts that are not in the store yet.

        Args:
            texts: Token numbers of each text.
            progress: Called with how many texts are done and how many there are.
        """
        missing = sorted({text for text in texts if text not in self._states})
        done = 0
        with _evaluating(self.backbone):
            for group in _alike(missing, self.batch):
                while group:
                    part, group = group[: self.batch], group[self.batch :]
                    if (pieces := in_halves(part, self._compute)) > 1:  # no memory for all of it at once
                        self.batch = max(len(part) // pieces, 1)
                    done += len(part)
                    if progress is not None:
                        progress(done, len(missing))

    def lookup(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the states of a batch; texts that are not in the store are computed and kept.

        Args:
            input_ids: [N, S], padded on the right.
            attention_mask: [N, S].

        Returns:
            [N, S, D], zero in the padding.

        Raises:
            ModelInputError: A text is padded on the left, or has no token.
        """
        mask = attention_mask.bool()
        if not mask[:, 0].all() or (mask[:, 1:] & ~mask[:, :-1]).any():
            raise ModelInputError(
                "attention_mask",
                expected="texts of one token or more, padded on the right",
                received="other padding",
                remedy="Make training batches with ClimateTextProcessor, or set prefix_store to None.",
            )
        lengths = attention_mask.sum(dim=1).tolist()
        texts = [tuple(row[:length]) for row, length in zip(input_ids.tolist(), lengths, strict=True)]
        missing = [text for text in texts if text not in self._states]
        if missing:
            self.add(missing)
        rows = [torch.cat(self._states[text]) for text in texts]
        states = pad_sequence(rows, batch_first=True)
        states = torch.nn.functional.pad(states, (0, 0, 0, input_ids.shape[1] - states.shape[1]))
        return states.to(input_ids.device)  # the model may have moved since they were stored

    @torch.no_grad()
    def _compute(self, texts: Sequence[Tokens]) -> None:
        """Compute the states of sorted texts; what they begin with alike is run once for all of them."""
        device = self.backbone.device
        shared = 0
        if len(texts) > 1 and self._shares:
            # Sorted: what the first and the last have in common, all have. Each text keeps a rest of its own.
            shared = min(_common(texts[0], texts[-1]), *(len(text) - 1 for text in texts))
        inputs: dict[str, Any] = {}
        beginning = None
        if shared:
            cache = DynamicCache(config=self.backbone.config)
            first = torch.tensor([texts[0][:shared]], device=device)
            states = prefix_states(self.backbone, self.site, input_ids=first, past_key_values=cache)
            beginning = states[0].clone()
            cache.batch_repeat_interleave(len(texts))
            inputs["past_key_values"] = cache
        rests = [torch.tensor(text[shared:], device=device) for text in texts]
        ids = pad_sequence(rests, batch_first=True)  # causal: what is padded on the right is never seen
        if shared:
            inputs["attention_mask"] = torch.ones(
                len(texts), shared + ids.shape[1], dtype=torch.long, device=device
            )
        states = prefix_states(self.backbone, self.site, input_ids=ids, **inputs)
        for text, rest, row in zip(texts, rests, states, strict=True):
            own = row[: len(rest)].clone()
            self._states[text] = (own[:0] if beginning is None else beginning, own)


def shares_beginnings(backbone: PreTrainedModel) -> bool:
    """Whether several texts can go on from what a backbone has made of their common beginning.

    What a recurrent model has read cannot be repeated for several texts, and a model that knows no cache would read
    each rest as if nothing stood before it.

    Args:
        backbone: A causal language model.
    """
    return not backbone._is_stateful and "past_key_values" in inspect.signature(backbone.forward).parameters


@contextlib.contextmanager
def _evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Evaluate for a while: in training with recomputed activations, blocks drop the cache they get."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def _alike(texts: Sequence[Tokens], most: int) -> Iterator[list[Tokens]]:
    """Cut sorted texts into the groups that cost least, by dynamic programming.

    A group costs its common beginning once, the rest of each text padded to the longest, and two passes.
    """
    neighbors = [0, *(_common(one, other) for one, other in pairwise(texts))]
    best = [0.0]  # least cost of the first n texts
    starts = [0]  # where the last of their groups begins
    for end in range(1, len(texts) + 1):
        shared = longest = len(texts[end - 1])
        least, start = math.inf, end - 1
        for first in range(end - 1, max(end - most, 0) - 1, -1):
            longest = max(longest, len(texts[first]))
            cost = best[first] + shared + (end - first) * (longest - shared) + 2 * PASS
            if cost < least:
                least, start = cost, first
            shared = min(shared, neighbors[first])
        best.append(least)
        starts.append(start)
    ends = [len(texts)]
    while ends[-1]:
        ends.append(starts[ends[-1]])
    for start, end in pairwise(reversed(ends)):
        yield list(texts[start:end])


def _common(one: Tokens, other: Tokens) -> int:
    """How many tokens two texts begin with alike."""
    for index, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return index
    return min(len(one), len(other))
