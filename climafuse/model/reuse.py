"""Frozen-prefix reuse: what the blocks below the first fusion site (or adapter) make of a text, computed once.

Those blocks see only text, and they are frozen: their states are the same in every epoch and for every
climate. A store keeps them by the tokens of the text, in memory or on the disk (`stored_states.py`). Texts that begin
alike (the same question, the same first words of the answer) share the states of that beginning, so it is computed and
kept once.

States equal those of a full forward pass up to the rounding of the backbone's type (other shapes, other order
of sums): within 2 % of the states' size in bfloat16, 1e-5 in float32, as the tests hold it.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache, PreTrainedModel

from climafuse.backbones import Site, find_blocks, num_blocks_below, prefix_states
from climafuse.errors import ModelInputError
from climafuse.memory import in_halves
from climafuse.model.stored_states import MemoryStates, StoredStates, Tokens, group_key

logger = logging.getLogger(__name__)
PASS = 64  # what a pass through the backbone costs beside its tokens, in tokens: its weights are read anew


@dataclass(frozen=True)
class _Group:
    """Texts whose states are computed together.

    Args:
        texts: Sorted.
        shared: How many tokens all begin with, which are computed once.
        key: By which their states are kept.
    """

    texts: Sequence[Tokens]
    shared: int
    key: str

    @property
    def lengths(self) -> list[int]:
        """Tokens of the common beginning, and of the rest of each text."""
        return [self.shared, *(len(text) - self.shared for text in self.texts)]


class PrefixStore:
    """States of texts at a site of a frozen backbone.

    Args:
        backbone: The frozen causal language model.
        site: `prefix_site` of the model, or one below it.
        batch: How many texts are computed at a time.
        states: Where they are kept: `MemoryStates`, if None, or `DiskStates`.
        say: Told what the user should know; None for the log.

    Raises:
        ModelInputError: Something below the site is trained: states would be those of old weights.
    """

    def __init__(
        self,
        backbone: PreTrainedModel,
        site: Site,
        *,
        batch: int = 64,
        states: StoredStates | None = None,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self.backbone = backbone
        self.site = site
        self.batch = batch
        self.states = MemoryStates(device=backbone.device) if states is None else states
        self._say = logger.warning if say is None else say
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
        self._groups: dict[Tokens, tuple[_Group, int]] = {}  # with the number of the text in its group
        self._full = (
            False  # then what is kept stays the same: a resumed run computes what an uninterrupted one does
        )

    def __len__(self) -> int:
        return len(self._groups)

    def add(self, texts: Iterable[Tokens], *, progress: Callable[[int, int], None] | None = None) -> None:
        """Have the states of texts kept: those that are not there yet are computed, as far as there is room.

        Args:
            texts: Token numbers of each text.
            progress: Called with how many texts are done and how many there are.
        """
        given = set(texts)
        present = {self._groups[text][0].key: self._groups[text][0] for text in given & self._groups.keys()}
        present = {key: group for key, group in present.items() if self.states.find(key, group.lengths)}
        missing = sorted(t for t in given if t not in self._groups or self._groups[t][0].key not in present)
        groups = list(_alike(missing, self.batch))
        self.states.want([*present, *map(group_key, groups)])
        self._full = False
        done = 0
        with _evaluating(self.backbone):
            for group in groups:
                while group and not self._full:
                    part, group = group[: self.batch], group[self.batch :]
                    if (pieces := in_halves(part, self._keep)) > 1:  # no memory for all of it at once
                        self.batch = max(len(part) // pieces, 1)
                    done += len(part)
                    if progress is not None:
                        progress(done, len(missing))
        self._full = not self.states.flush() or self._full
        if self._full:
            held = {key for key, group in self._by_key().items() if self.states.find(key, group.lengths)}
            kept = sum(text in self._groups and self._groups[text][0].key in held for text in given)
            self._say(
                f"prefix store: full with {kept:,} of {len(given):,} texts; the states of "
                "the others are computed anew in each step. Allow more: training.prefix_store_gb."
            )

    def _keep(self, texts: Sequence[Tokens]) -> None:
        """Have the states of sorted texts kept that are computed together, if there is room."""
        group = self._group(texts)
        if self.states.find(group.key, group.lengths) or self.states.put(group.key, self._compute(texts)):
            self._note(group)
        else:
            self._full = True

    def lookup(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the states of a batch; texts that are not in the store are computed and, if there is room, kept.

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
        found = {text: self._kept(text) for text in dict.fromkeys(texts)}
        if missing := [text for text, parts in found.items() if parts is None]:
            found |= self._renewed(missing)
        first, *_ = found.values()
        assert first is not None
        # Where the batch is: the model may have moved since they were stored.
        states = first[1].new_zeros(*input_ids.shape, first[1].shape[1], device=input_ids.device)
        for row, text in enumerate(texts):
            beginning, rest = found[text]  # type: ignore[misc]
            states[row, : len(beginning)] = beginning
            states[row, len(beginning) : len(text)] = rest
        return states

    def _kept(self, text: Tokens) -> tuple[Tensor, Tensor] | None:
        """The states of the beginning that a text shares with others, and of its rest; None where they are not kept."""
        if text not in self._groups:
            return None
        group, number = self._groups[text]
        beginning, rest = self.states.part(group.key, 0), self.states.part(group.key, number + 1)
        return None if beginning is None or rest is None else (beginning, rest)

    def _renewed(self, texts: Sequence[Tokens]) -> dict[Tokens, tuple[Tensor, Tensor]]:
        """Compute the states of texts, those that were kept in their group of then: the same bits."""
        found: dict[Tokens, tuple[Tensor, Tensor]] = {}
        lost = {self._groups[text][0].key: self._groups[text][0] for text in texts if text in self._groups}
        new = sorted(text for text in texts if text not in self._groups)
        with _evaluating(self.backbone):
            for group in (*lost.values(), *map(self._group, _alike(new, self.batch))):
                beginning, *rests = parts = self._compute(group.texts)
                found |= {text: (beginning, rest) for text, rest in zip(group.texts, rests, strict=True)}
                if not self._full and self.states.put(group.key, parts):
                    self._note(group)
                else:  # next time only what is asked for is computed
                    for text in group.texts:
                        self._groups.pop(text, None)
        return {text: found[text] for text in texts}

    def _by_key(self) -> dict[str, _Group]:
        return {group.key: group for group, _ in self._groups.values()}

    def _note(self, group: _Group) -> None:
        self._groups.update({text: (group, number) for number, text in enumerate(group.texts)})

    def _group(self, texts: Sequence[Tokens]) -> _Group:
        """Say how sorted texts are computed together."""
        shared = 0
        if len(texts) > 1 and self._shares:
            # Sorted: what the first and the last have in common, all have. Each text keeps a rest of its own.
            shared = min(_common(texts[0], texts[-1]), *(len(text) - 1 for text in texts))
        return _Group(texts, shared, group_key(texts))

    def _compute(self, texts: Sequence[Tokens]) -> list[Tensor]:
        """Compute the states of the common beginning of sorted texts, and of the rest of each.

        In the backbone's own type, also when a training step asks: they are the same bits whenever they are computed.
        """
        with torch.no_grad(), torch.autocast(self.backbone.device.type, enabled=False):
            return self._computed(texts)

    def _computed(self, texts: Sequence[Tokens]) -> list[Tensor]:
        device, shared = self.backbone.device, self._group(texts).shared
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
        own = [row[: len(rest)].clone() for rest, row in zip(rests, states, strict=True)]
        return [own[0][:0] if beginning is None else beginning, *own]


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
