"""How likely a model finds given answers: teacher-forced, over the whole vocabulary."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from climafuse.backbones import find_blocks, num_blocks_below
from climafuse.climate_tokens import ClimateTokens
from climafuse.model.objective import IGNORED, labeled_positions
from climafuse.model.reuse import PrefixStore, Tokens
from climafuse.model.rows import select_rows

if TYPE_CHECKING:
    from climafuse.model.modeling import ClimateTextForCausalLM

_POSITIONS = 256  # whose logits are in memory together
_TOKENS = 4096  # that pass the blocks together
_STATES = 2**28  # bytes of states of texts in memory


@dataclass(frozen=True)
class TokenScores:
    """How likely an answer is.

    Args:
        log_probabilities: [n] float64, in nats, of each token of the answer, the one that ends it included.
        right: [n] bool, whether the token is the most likely one after those before it.
        num_bytes: Of the answer's text in UTF-8.
    """

    log_probabilities: np.ndarray
    right: np.ndarray
    num_bytes: int


@torch.no_grad()
def token_scores(
    model: ClimateTextForCausalLM,
    texts: Sequence[tuple[Tokens, int]],
    climate: ClimateTokens,
    rows: Sequence[int],
    *,
    progress: Callable[[int], object] | None = None,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Score the answers in texts.

    Args:
        model: The model, evaluating.
        texts: N texts: token numbers, and how many of them are the prompt's.
        climate: B windows.
        rows: Which window each text is about.
        progress: Called with how many texts are done.

    Returns:
        Of each text, the natural logarithms of the probabilities of its answer's n tokens [n] float64, and whether each
        is the most likely one [n] bool.
    """
    scores: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    # Of one length side by side, and what is alike among them: little padding, and states that are used again.
    order = sorted(range(len(texts)), key=lambda number: (len(texts[number][0]), texts[number]))
    for part in _parts(model, texts, order):
        with _stored(model, {texts[number][0] for number in part}):
            for batch in _batches(texts, part):
                scores.update(_score(model, texts, climate, rows, batch))
                if progress is not None:
                    progress(len(scores))
    return [scores[number] for number in range(len(texts))]


def _parts(
    model: ClimateTextForCausalLM, texts: Sequence[tuple[Tokens, int]], order: Sequence[int]
) -> Iterator[list[int]]:
    """Texts whose states are in memory together."""
    size = find_blocks(model.backbone).hidden_size * model.backbone.dtype.itemsize
    part: list[int] = []
    last: Tokens = ()
    held = 0
    for number in order:
        text = texts[number][0]
        if text != last:
            if held + len(text) * size > _STATES and part:
                yield part
                part, held = [], 0
            held += len(text) * size
            last = text
        part.append(number)
    if part:
        yield part


def _batches(texts: Sequence[tuple[Tokens, int]], numbers: Sequence[int]) -> Iterator[list[int]]:
    """Texts that are scored together; from short to long."""
    batch: list[int] = []
    positions = 0
    for number in numbers:
        text, prompt = texts[number]
        labeled = len(text) - prompt
        if batch and (positions + labeled > _POSITIONS or (len(batch) + 1) * len(text) > _TOKENS):
            yield batch
            batch, positions = [], 0
        batch.append(number)
        positions += labeled
    if batch:
        yield batch


@contextlib.contextmanager
def _stored(model: ClimateTextForCausalLM, texts: set[Tokens]) -> Iterator[None]:
    """Keep states of texts for a while; those that the model keeps in training are neither used nor added to."""
    before = model.prefix_store
    model.prefix_store = PrefixStore(model.backbone, model.prefix_site)
    if num_blocks_below(model.prefix_site, find_blocks(model.backbone).num_blocks):  # else none are used
        model.prefix_store.add(texts)
    try:
        yield
    finally:
        model.prefix_store = before


def _score(
    model: ClimateTextForCausalLM,
    texts: Sequence[tuple[Tokens, int]],
    climate: ClimateTokens,
    rows: Sequence[int],
    batch: Sequence[int],
) -> Iterator[tuple[int, tuple[np.ndarray, np.ndarray]]]:
    """Scores of a batch, by number."""
    longest = max(len(texts[number][0]) for number in batch)
    device = climate.states.device
    ids = torch.zeros(len(batch), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    labels = torch.full_like(ids, IGNORED)
    for row, number in enumerate(batch):
        text, prompt = texts[number]
        ids[row, : len(text)] = torch.tensor(text)
        mask[row, : len(text)] = 1
        labels[row, prompt : len(text)] = ids[row, prompt : len(text)]
    positions, targets = labeled_positions(labels)
    targets = targets.to(device)
    windows, index = torch.tensor([rows[number] for number in batch]).unique(return_inverse=True)
    logits = model.labeled_logits(
        ids.to(device),
        mask.to(device),
        positions.to(device),
        select_rows(climate, windows.to(device)),
        index.to(device),
    )
    logits = logits.float()
    found = (logits.gather(1, targets[:, None])[:, 0] - logits.logsumexp(dim=1)).double().cpu().numpy()
    right = (logits.argmax(dim=1) == targets).cpu().numpy()
    ends = positions.sum(dim=1).cumsum(dim=0)[:-1].numpy()
    return zip(batch, zip(np.split(found, ends), np.split(right, ends), strict=True), strict=True)
