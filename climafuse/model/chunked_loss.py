"""The loss over many positions, without the logits of all of them at once.

What the loss makes of a position's logits depends on that position alone. So their gradient is computed as soon as
they are, and both are let go: what remains is the gradient of the states that enter the head, [P, D]. Nothing is
computed twice. Two sizes:

- a chunk of positions passes the head together: few chunks, since each reads all of the head's weights;
- within it, some rows at a time get their softmax: in float32, what fits the cache of a processor.

Gradients equal those of the whole bit for bit where one chunk holds all positions (losses to 1e-6: another order of
the sum). Of several chunks, each is a matrix product of another shape: the tolerance is that of the backbone's type,
2 % of the largest gradient in bfloat16, 1e-5 in float32, as the tests hold it.

Reference:
    Wijmans et al. 2024, Cut Your Losses in Large-Vocabulary Language Models, arXiv:2411.09009, and Hsu et al. 2024,
    Liger Kernel, arXiv:2410.10989, section 3.2, from which the gradient in the forward pass is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

CHUNK = 2**25  # logits of a chunk: 682 positions of a vocabulary of 49,152, 261 of one of 128,256
ROWS = 2**19  # logits whose softmax is taken together: 2 MiB of float32
ROWS_ELSEWHERE = 2**23  # the same on devices on which a call costs more than its sums


def num_chunks(num_positions: int, num_columns: int) -> int:
    """In how many chunks so many positions pass a head of so many columns."""
    return min(-(-num_positions * num_columns // CHUNK), num_positions)


def row_loss(logits: Tensor, targets: Tensor, *, count: Tensor | int, added: Tensor | None = None) -> Tensor:
    """Compute the cross-entropy of one chunk, some rows at a time, with its gradient.

    Args:
        logits: [P, V].
        targets: [P], columns of the logits.
        count: By what the sum over positions is divided.
        added: [V] float32, to the logits of every position; None for nothing.

    Returns:
        The loss in float32; it can be differentiated once.
    """
    if not (logits.requires_grad and torch.is_grad_enabled()):
        return _by_rows(logits, targets, count, added)[0]
    result: Tensor = _ByRows.apply(logits, targets, count, added)
    return result


class _ByRows(torch.autograd.Function):
    """A loss that computes its gradient by the logits in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, targets: Tensor, count: Tensor | int, added: Tensor | None
    ) -> Tensor:
        loss, gradient = _by_rows(logits, targets, count, added, gradient=True)
        ctx.save_for_backward(gradient)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, given: Tensor) -> tuple[Tensor | None, ...]:
        return *_scaled(ctx.saved_tensors, given), None, None, None


def chunked_loss(
    head: Callable[[Tensor], Tensor],
    states: Tensor,
    targets: Tensor,
    *,
    num_columns: int,
    count: Tensor | int,
    added: Tensor | None = None,
    weights: Sequence[Tensor] = (),
) -> Tensor:
    """Compute the cross-entropy of many positions, chunk by chunk, with its gradient.

    Args:
        head: Logits [p, V] of states [p, D], for any p.
        states: [P, D], what enters the head.
        targets: [P], columns of the logits.
        num_columns: V, for the size of a chunk.
        count: By what the sum over positions is divided.
        added: [V] float32, to the logits of every position; None for nothing.
        weights: What the head is made of and is trained; none where it is frozen.

    Returns:
        The loss in float32; it can be differentiated once.
    """
    inputs = [tensor for tensor in (states, *weights) if tensor.requires_grad]
    if not (inputs and torch.is_grad_enabled()):
        parts = _chunks(states, targets, num_columns)
        return _total([_by_rows(head(part), its, count, added)[0] for part, its in parts])
    result: Tensor = _Chunked.apply(head, states, targets, num_columns, count, added, *weights)
    return result


class _Chunked(torch.autograd.Function):
    """A loss that computes its gradient in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        head: Callable[[Tensor], Tensor],
        states: Tensor,
        targets: Tensor,
        num_columns: int,
        count: Tensor | int,
        added: Tensor | None,
        *weights: Tensor,
    ) -> Tensor:
        totals: list[Tensor] = []
        of_states: list[Tensor] = []
        of_weights = [torch.zeros_like(weight) for weight in weights]
        for part, its in _chunks(states.detach(), targets, num_columns):
            part.requires_grad_()
            with torch.enable_grad():
                logits = head(part)
            total, gradient = _by_rows(logits, its, count, added, gradient=True)
            first, *others = torch.autograd.grad(logits, (part, *weights), gradient)
            del logits, gradient  # before those of the next chunk are made
            totals.append(total)
            of_states.append(first)
            for sum_, more in zip(of_weights, others, strict=True):
                sum_ += more
        ctx.save_for_backward(torch.cat(of_states), *of_weights)
        return _total(totals)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, given: Tensor) -> tuple[Tensor | None, ...]:
        of_states, *of_weights = _scaled(ctx.saved_tensors, given)
        return (None, of_states, None, None, None, None, *of_weights)


def _scaled(gradients: Sequence[Tensor], given: Tensor) -> Sequence[Tensor]:
    """Gradients times that of the loss itself, mostly 1: a pass over all logits less, where asking does not wait."""
    if type(given) is Tensor and given.device.type == "cpu" and float(given) == 1:  # one that has a value
        return gradients
    return [gradient * given for gradient in gradients]


def _by_rows(
    logits: Tensor, targets: Tensor, count: Tensor | int, added: Tensor | None, *, gradient: bool = False
) -> tuple[Tensor, Tensor | None]:
    """The loss of a chunk and its gradient by the logits, some rows at a time, each in float32."""
    rows = max((ROWS if logits.device.type == "cpu" else ROWS_ELSEWHERE) // logits.shape[1], 1)
    starts = range(0, len(logits), rows)
    # One place for all: a number of its own, made in the gap that a part leaves, would be in the way of the next part,
    # so that the heap would grow by a part each time.
    losses = logits.new_empty(len(starts), dtype=torch.float32)
    if gradient:
        found = torch.empty_like(logits)
        # By the logarithms: nothing but at the targets.
        above = torch.zeros_like(logits[:rows], dtype=torch.float32)
        share = 1 / count
    for number, start in enumerate(starts):
        part, its = logits.detach()[start : start + rows].float(), targets[start : start + rows]
        logs = torch.log_softmax(part if added is None else part + added, dim=1)
        losses[number] = functional.nll_loss(logs, its, reduction="sum")
        if gradient:
            place = torch.arange(len(its), device=its.device), its
            above[place] = -share
            # What autograd calls, without its copies, and in memory that stays in the cache.
            below = torch._log_softmax_backward_data(above[: len(its)], logs, 1, torch.float32)
            found[start : start + rows] = below
            above[place] = 0
    return losses.sum() / count, found if gradient else None


def _chunks(states: Tensor, targets: Tensor, num_columns: int) -> list[tuple[Tensor, Tensor]]:
    """Positions that pass the head together, in chunks of about one size."""
    number = num_chunks(len(states), num_columns)
    return list(zip(states.tensor_split(number), targets.tensor_split(number), strict=True))


def _total(losses: list[Tensor]) -> Tensor:
    return torch.stack(losses).sum()
