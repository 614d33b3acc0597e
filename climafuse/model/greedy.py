"""Greedy answers to many prompts at once, where the backbone's states depend on the text alone.

With the fusion at the output only, what the blocks make of a text is the same whatever the climate: prompts that are
alike are read once for all windows, and answers are continued once for all that have said the same so far. Only the
fusion and the head run for each answer. The words are those of `generate`, up to ties within the rounding of the
backbone's type.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from transformers import DynamicCache

from climafuse.backbones import prefix_states
from climafuse.backbones.head import dense_input, head_logits
from climafuse.climate_tokens import ClimateTokens
from climafuse.fusion import Fusion
from climafuse.model.generation import end_tokens, is_plain_greedy
from climafuse.model.reuse import PASS, Tokens, shares_beginnings
from climafuse.model.rows import fuse_flat, select_rows

if TYPE_CHECKING:
    from climafuse.model.modeling import ClimateTextForCausalLM

_ANSWERS = 1024  # at a time: as many windows may have their keys and values in memory
_PROMPTS = 64  # at a time: as many whole prompts pass the blocks together
_TOGETHER = 64  # answers by `generate` at a time
_HEAD = 256  # positions whose logits are in memory together
_CACHE = 2**29  # bytes of keys and values of texts, beside those that wait while a part of them goes on


def decodes_greedily(model: ClimateTextForCausalLM) -> bool:
    """Whether `greedy_words` gives what the model's `generate` would, without sampling, by itself."""
    return (
        model.sites == ("output",)
        and shares_beginnings(model.backbone)
        and is_plain_greedy(model.generation_config)
    )


@torch.no_grad()
def greedy_words(
    model: ClimateTextForCausalLM,
    prompts: Sequence[Tokens],
    climate: ClimateTokens,
    rows: Sequence[int],
    *,
    max_new_tokens: int,
    progress: Callable[[int], object] | None = None,
) -> list[list[int]]:
    """Answer prompts, each with the words that are most likely one by one.

    Args:
        model: One that `decodes_greedily`, evaluating.
        prompts: Token numbers of N prompts.
        climate: B windows.
        rows: Which window each prompt is about.
        max_new_tokens: Longest answer.
        progress: Called with how many answers are done.

    Returns:
        Token numbers of N answers, the one that ends a text included.
    """
    said: list[list[int]] = [[] for _ in prompts]
    done = 0
    for numbers in _batches(prompts):
        windows, row = torch.tensor([rows[number] for number in numbers]).unique(return_inverse=True)
        device = climate.states.device
        shown = replace(select_rows(climate, windows.to(device)), memory={})
        walk = _Walk(model, shown, row.to(device), max_new_tokens)
        for number, words in zip(numbers, walk.answers([prompts[number] for number in numbers]), strict=True):
            said[number] = words
        done += len(numbers)
        if progress is not None:
            progress(done)
    return said


@torch.no_grad()
def generated_words(
    model: ClimateTextForCausalLM,
    prompts: Sequence[Tokens],
    climate: ClimateTokens,
    rows: Sequence[int],
    *,
    max_new_tokens: int,
    progress: Callable[[int], object] | None = None,
) -> list[list[int]]:
    """Answer prompts by the `generate` of transformers, for any model; as `greedy_words`."""
    said: dict[int, list[int]] = {}
    order = sorted(range(len(prompts)), key=lambda number: (len(prompts[number]), prompts[number]))
    for start in range(0, len(order), _TOGETHER):
        numbers = order[start : start + _TOGETHER]
        device = climate.states.device
        ids, mask = _padded([prompts[number] for number in numbers], device)
        shown = select_rows(climate, torch.tensor([rows[number] for number in numbers], device=device))
        with model.conditioned(shown) as backbone, dense_input(backbone):
            generated = cast("Any", backbone).generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=max_new_tokens, do_sample=False
            )
        said.update(zip(numbers, generated[:, ids.shape[1] :].tolist(), strict=True))
        if progress is not None:
            progress(len(said))
    return [said[number] for number in range(len(prompts))]


def _padded(prompts: Sequence[Tokens], device: torch.device) -> tuple[Tensor, Tensor]:
    """Tokens and mask [N, S], padded on the left: all go on at one place."""
    longest = max(map(len, prompts))
    ids = torch.zeros(len(prompts), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    return ids.to(device), mask.to(device)


def _batches(prompts: Sequence[Tokens]) -> Iterator[list[int]]:
    """Numbers of the prompts that are answered together: alike ones side by side, lengths mixed where they are few."""
    batch: list[int] = []
    distinct: set[Tokens] = set()
    for number in sorted(range(len(prompts)), key=lambda number: (len(prompts[number]), prompts[number])):
        prompt = prompts[number]
        full = len(batch) == _ANSWERS or (len(distinct) == _PROMPTS and prompt not in distinct)
        other = batch and len(prompt) != len(prompts[batch[0]])
        if full or (other and len(batch) >= PASS):
            yield batch
            batch, distinct = [], set()
        batch.append(number)
        distinct.add(prompt)
    if batch:
        yield batch


class _Walk:
    """The texts that grow from some prompts, step by step: each distinct one passes the blocks once."""

    def __init__(
        self, model: ClimateTextForCausalLM, climate: ClimateTokens, row: Tensor, max_new_tokens: int
    ) -> None:
        self.model = model
        self.climate = climate
        self.row = row  # [N], the window of each answer
        self.max_new_tokens = max_new_tokens
        self.fusion = cast("Fusion", model.fusions["output"])
        self.ends = torch.tensor(end_tokens(model.generation_config), dtype=torch.long, device=row.device)
        self.places = "position_ids" in inspect.signature(model.backbone.forward).parameters
        self.said: list[list[int]] = [[] for _ in row]

    def answers(self, prompts: Sequence[Tokens]) -> list[list[int]]:
        """Words of N answers."""
        distinct = {prompt: text for text, prompt in enumerate(dict.fromkeys(prompts))}
        device = self.row.device
        ids, mask = _padded(list(distinct), device)
        cache = DynamicCache(config=self.model.backbone.config)
        states = self._states(ids, mask, cache)
        text = torch.tensor([distinct[prompt] for prompt in prompts], device=device)
        self._continue(states, mask, cache, torch.arange(len(prompts), device=device), text)
        return self.said

    def _states(self, ids: Tensor, mask: Tensor, cache: DynamicCache) -> Tensor:
        """[K, D], what would enter the head after the last of new tokens [K, S]; mask [K, all so far]."""
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "past_key_values": cache}
        if self.places:
            inputs["position_ids"] = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        return prefix_states(self.model.backbone, "output", **inputs)[:, -1]

    def _continue(
        self, states: Tensor, mask: Tensor, cache: DynamicCache, answers: Tensor, text: Tensor
    ) -> None:
        """Go on with K texts until their answers have ended.

        Args:
            states: [K, D].
            mask: [K, S].
            cache: Keys and values of K texts of S tokens.
            answers: [n] numbers of the answers that go on.
            text: [n], which of the texts each has said so far.
        """
        while True:
            words = self._words(states[text], self.row[answers])
            for answer, word in zip(answers.tolist(), words.tolist(), strict=True):
                self.said[answer].append(word)
            if len(self.said[int(answers[0])]) == self.max_new_tokens:
                return
            going = ~torch.isin(words, self.ends)
            if not going.any():
                return
            answers = answers[going]
            said, text = torch.stack([text[going], words[going]]).unique(dim=1, return_inverse=True)
            parent, word = said
            mask = torch.nn.functional.pad(mask[parent], (0, 1), value=1)
            most = max(_CACHE * len(states) // max(_num_bytes(cache), 1), 1)
            if len(parent) > most:
                for start in range(0, len(parent), most):
                    part = slice(start, start + most)
                    here = (text >= start) & (text < start + most)
                    selected = _selected(cache, parent[part])
                    grown = self._states(word[part, None], mask[part], selected)
                    self._continue(grown, mask[part], selected, answers[here], text[here] - start)
                return
            cache = _selected(cache, parent)
            states = self._states(word[:, None], mask, cache)

    def _words(self, states: Tensor, row: Tensor) -> Tensor:
        """[n], the most likely word after each of n states, each with its window."""
        fused = fuse_flat(self.fusion, states, self.climate, row)
        parts = fused.split(_HEAD)
        return torch.cat([head_logits(self.model.backbone, part).argmax(dim=-1) for part in parts])


def _selected(cache: DynamicCache, texts: Tensor) -> DynamicCache:
    """Keys and values of some texts; those of the cache stay as they are."""
    selected = copy.copy(cache)
    selected.layers = [copy.copy(layer) for layer in cache.layers]
    selected.batch_select_indices(texts)
    return selected


def _num_bytes(cache: DynamicCache) -> int:
    return sum(
        tensor.nbytes
        for layer in cache.layers
        for tensor in (getattr(layer, "keys", None), getattr(layer, "values", None))
        if tensor is not None
    )
