"""States that stand before each text, where a language model attends to them as to words.

The model is called as before, with the text alone, and returns logits of the text alone. In between, its texts are
longer: masks, positions and the cache count the places of the soft prompt, and `generate` needs to know nothing of it.

Reference:
    Lester et al. 2021, The Power of Scale for Parameter-Efficient Prompt Tuning, arXiv:2104.08691.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from climafuse.backbones.blocks import Site, attach, find_blocks, prefix_states, replaced_forward
from climafuse.errors import BackboneError, ModelInputError

Prompt = Callable[[int], tuple[Tensor, Tensor]]


@contextlib.contextmanager
def soft_prompt(model: PreTrainedModel, length: int, prompt: Prompt) -> Iterator[None]:
    """Let states stand before each text while this lasts.

    They come after padding on the left: attention that sees the last so many places only would lose them behind it. A
    cache that was filled while this lasts goes on while this lasts.

    Args:
        model: A causal language model.
        length: P, how many states.
        prompt: Gives, for a number N of texts, their states at the input site [N, P, D], and which of the texts have
            any [N] bool. The others are read as if nothing stood before them.

    Raises:
        BackboneError: The model keeps what it has read in another form than `past_key_values`.
        ModelInputError: A call gives no token numbers, an attention mask of another form than [N, S], or a cache that
            was cut or filled elsewhere, or with padding alone.
    """
    forward = model.forward
    signature = inspect.signature(forward)
    if model._is_stateful and "past_key_values" not in signature.parameters:
        raise BackboneError(
            type(model).__name__,
            expected="a language model with past_key_values, which tells what stands before the next word",
            received="one that keeps what it has read in another form",
            remedy="Choose a fusion that changes the text's own states, such as cross_attention.",
        )
    others = next((p.name for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD), "")
    filling: tuple[Tensor, Tensor] | None = (
        None  # states and their places in this call; None where a cache has them
    )
    num_tokens = 0

    @functools.wraps(forward)
    def prompted(*args: Any, **kwargs: Any) -> Any:
        nonlocal filling, num_tokens
        given = dict(signature.bind(*args, **kwargs).arguments)
        given |= given.pop(others, {})
        ids = given.get("input_ids")
        if ids is None:
            raise ModelInputError(
                "input_ids",
                expected="token numbers, before which climate stands",
                received="none",
                remedy="Give texts as token numbers, not as embeddings.",
            )
        num_tokens = ids.shape[1]
        cache = given.get("past_key_values")
        past = 0 if cache is None else cache.get_seq_length()
        states, present = prompt(len(ids))
        mask = _mask(given.get("attention_mask"), ids, max(past - length, 0))
        places = _places(mask, length)
        before = present.to(mask)[:, None].expand(-1, length)  # [N, P]
        given["attention_mask"] = _joined(before, mask, places)
        if past and places[:, past:].any():
            raise ModelInputError(
                "past_key_values",
                expected="a cache of the beginning of each text, with the states before it",
                received="one in which a text has nothing but padding",
                remedy="Read prompts of different lengths at once, without prefill_chunk_size.",
            )
        # In what is not in the cache. The prompt stands at positions 0 to P - 1, text after it.
        filling = None if past else (states, places)
        if not past:
            given["input_ids"] = _joined(torch.zeros_like(before).to(ids), ids, places)
        if "position_ids" in signature.parameters:
            positions = (given["attention_mask"].long().cumsum(dim=1) - 1).clamp(min=0)
            chosen = given.get("position_ids")
            if chosen is not None:  # by the caller, for the text
                chosen = chosen + before.sum(dim=1, keepdim=True)
                first = torch.arange(length, device=ids.device).expand(len(ids), -1)
                positions = chosen if past else _joined(first, chosen, places)
            given["position_ids"] = positions[:, -given["input_ids"].shape[1] :]
        return forward(**given)

    def fill(site: Site, hidden: Tensor) -> Tensor:
        if filling is None:
            return hidden
        states, places = filling
        return hidden.masked_scatter(places.unsqueeze(-1), states.to(hidden))

    def trim(module: torch.nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        # Of each text its tokens, and garbage in the padding as ever; none less where only the last are asked for.
        hidden, *rest = args
        return (hidden[:, -num_tokens:], *rest)

    # First of all hooks: whatever else looks at the output site sees the text alone.
    handle = find_blocks(model).head.register_forward_pre_hook(trim, prepend=True)
    try:
        with attach(model, "input", fill), replaced_forward(model, prompted):
            yield
    finally:
        handle.remove()


def _mask(mask: Tensor | None, ids: Tensor, past: int) -> Tensor:
    """The attention mask of the text, [N, what is in the cache of it + S]."""
    shape = (len(ids), past + ids.shape[1])
    if mask is None:
        return ids.new_ones(shape)
    if not isinstance(mask, Tensor) or mask.shape != shape:
        raise ModelInputError(
            "attention_mask",
            expected=f"{shape}, for {shape[1]} tokens of each text with those in the cache",
            received=tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__,
            remedy="With states before the text, use a cache that grows by what is read, and leave it whole.",
        )
    return mask


def _places(mask: Tensor, length: int) -> Tensor:
    """Where the prompt stands among text and prompt, [N, P + S] bool: after the padding on the left."""
    start = (mask.cumsum(dim=1) == 0).sum(dim=1, keepdim=True)  # [N, 1]
    slots = torch.arange(length + mask.shape[1], device=mask.device)
    return (slots >= start) & (slots < start + length)


def _joined(prompt: Tensor, text: Tensor, places: Tensor) -> Tensor:
    """Put values of the prompt [N, P] and of the text [N, S] in their places, [N, P + S]."""
    joined = text.new_empty(places.shape)
    joined[places] = prompt.to(text).flatten()
    joined[~places] = text.expand(len(places), -1).flatten()
    return joined


def word_size(model: PreTrainedModel, *, words: int = 1024) -> float:
    """Measure the root mean square of the states of words at the input of a language model.

    Args:
        model: A causal language model.
        words: Of how many tokens of the vocabulary, evenly spread.
    """
    size = len(cast("Tensor", model.get_input_embeddings().weight))
    ids = torch.linspace(0, size - 1, words, device=model.device).long().view(-1, 16)  # texts of 16 tokens
    return float(prefix_states(model, "input", input_ids=ids).double().pow(2).mean().sqrt())
