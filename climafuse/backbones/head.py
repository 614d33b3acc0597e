"""The head of a language model: called on what was already computed, or for some tokens only.

Both go through the model's own forward call, as everything in `blocks` does: what an architecture does to
logits after its head (scaling, capping) happens here too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from climafuse.backbones.blocks import find_blocks, replaced_forward, resume
from climafuse.backbones.compact_linear import CompactLinear
from climafuse.backbones.native import product_dtype
from climafuse.errors import BackboneError


def head_logits(model: PreTrainedModel, states: Tensor) -> Tensor:
    """Compute logits of hidden states that stand at the output site; no block runs.

    Args:
        model: A causal language model.
        states: [P, D], what would enter the head, in the model's type.

    Returns:
        Logits [P, V].
    """
    # P texts of one token each: nothing in the model then depends on the neighbors, and no mask is built.
    ids = torch.zeros(len(states), 1, dtype=torch.long, device=states.device)
    with resume(model, "output", states.unsqueeze(1)):
        logits: Tensor = model(input_ids=ids, use_cache=False).logits
    return logits.squeeze(1)  # not [:, 0], whose gradient is made of zeros first, and then copied there


@contextlib.contextmanager
def headless(model: PreTrainedModel) -> Iterator[list[Tensor]]:
    """Leave out the head: while this lasts, what would enter it is kept, and the logits mean nothing.

    What `gather` leaves of it enters, so that both together give the states of some positions at the output.

    Args:
        model: A causal language model.

    Yields:
        The states of each forward call, [B, S, D] or, within `gather`, [1, P, D].
    """
    entered: list[Tensor] = []

    def keep(hidden: Tensor) -> Tensor:
        entered.append(hidden)
        return hidden[..., :1].detach()

    with replaced_forward(find_blocks(model).head, keep):
        yield entered


@contextlib.contextmanager
def dense_input(model: PreTrainedModel) -> Iterator[None]:
    """Let the head read a dense copy of its states: while this lasts, the last of several positions costs no more.

    transformers hands the head of a batch the last position of each prompt as a view with gaps. torch multiplies
    such a view with a copy of the whole head for each text: for eight prompts and 49,152 tokens that is 0.45 GB, and
    takes longer than the blocks. The logits are the same.

    Args:
        model: A causal language model.
    """

    def dense(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(argument.contiguous() for argument in args)

    handle = find_blocks(model).head.register_forward_pre_hook(dense)
    try:
        yield
    finally:
        handle.remove()


@contextlib.contextmanager
def narrowed(model: PreTrainedModel, tokens: Tensor) -> Iterator[None]:
    """Let the head compute logits of some tokens only: while this lasts, logits are [..., K].

    Args:
        model: A causal language model.
        tokens: [K] token numbers, in any order; one may come more than once.

    Raises:
        BackboneError: The head is no linear layer, so that a part of it cannot be taken.
    """
    head = find_blocks(model).head
    if not isinstance(head, nn.Linear):
        raise BackboneError(
            type(model).__name__,
            expected="a linear head",
            received=type(head).__name__,
            remedy="Train with the whole vocabulary: training.sampled_vocabulary=null.",
        )
    # Of a head that is trained, each call has a graph of its own.
    trained = any(parameter.requires_grad for parameter in head.parameters())
    rows: tuple[Tensor, Tensor | None] | None = None

    def narrow(hidden: Tensor) -> Tensor:
        nonlocal rows
        if rows is None or trained:  # in the call: a head that is spread over processes is whole only there
            dtype = product_dtype(hidden.dtype, hidden.device)
            compact = isinstance(head, CompactLinear)
            weight: Tensor = head.rows(tokens, dtype) if compact else head.weight[tokens].to(dtype)  # type: ignore[operator]
            rows = weight, None if head.bias is None else head.bias[tokens].to(dtype)
        wide = rows[0].dtype
        return (
            functional.linear(hidden, *rows)
            if wide == hidden.dtype
            else functional.linear(hidden.to(wide), *rows).to(hidden.dtype)
        )

    with replaced_forward(head, narrow):
        yield
