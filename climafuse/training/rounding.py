"""AdamW for weights in bfloat16: what a step changes is rounded at random, so that on average nothing is lost.

bfloat16 has eight bits: next to 1 lie 0.996 and 1.008. A step of fine-tuning changes a weight by some 1e-5 of itself,
and rounding to the nearest would undo each of them. Rounded up with a probability of where the result lies between its
two neighbors, the mean of what is stored is the result itself, and a hundred steps in one direction move a weight as
far as they would in float32. Moments stay in float32. This takes 2 + 2 + 8 bytes a weight (weight, gradient, moments),
float32 weights take 4 + 4 + 8. What an update needs beside these, in float32, it needs for a few rows at a time: for
all of an embedding it would be more than a step of a short text holds.

Reference:
    Gupta et al. 2015, Deep Learning with Limited Numerical Precision, arXiv:1502.02551, section 3; for language models
    Zamirai et al. 2020, Revisiting BFloat16 Training, arXiv:2010.06192.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

PIECE = 1 << 20  # weights that are updated at a time, in 14 bytes each


class RoundingAdamW(torch.optim.AdamW):
    """AdamW, fused, in which weights in bfloat16 are rounded at random; others are updated as ever.

    What is drawn comes from torch's global generator, as dropout does: a resumed run draws the same.

    Args:
        params: Parameters or groups, as of AdamW.
        **options: Those of AdamW: `lr`, `betas`, `eps`, `weight_decay`.
    """

    def __init__(self, params: Any, **options: Any) -> None:
        super().__init__(params, fused=True, **options)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take a step."""
        coarse = [
            (parameter, parameter.grad, group)
            for group in self.param_groups
            for parameter in group["params"]
            if parameter.dtype == torch.bfloat16 and parameter.grad is not None
        ]
        for parameter, _, _ in coarse:
            parameter.grad = None  # AdamW itself would keep its moments in bfloat16, too
            self._make_moments(parameter)  # of all first: between them, pieces would leave gaps
        loss = super().step(closure)
        for parameter, gradient, group in coarse:
            parameter.grad = gradient
            self._update(parameter, gradient, group)
        return loss

    def _make_moments(self, parameter: Tensor) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            for moment in ("exp_avg", "exp_avg_sq"):
                state[moment] = torch.zeros_like(
                    parameter, dtype=torch.float32, memory_format=torch.contiguous_format
                )

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        state["step"] += 1
        moments = (state["exp_avg"], state["exp_avg_sq"])
        all_pieces = (pieces(tensor) for tensor in (parameter, gradient, *moments))
        for piece, of_gradient, first, second in zip(*all_pieces, strict=True):
            weight = piece.float().contiguous()  # the kernel goes through memory, whatever strides say
            adamw(
                [weight],
                [of_gradient.float().contiguous()],
                [first],
                [second],
                [],
                [state["step"] - 1],  # of which the kernel counts one
                fused=True,
                amsgrad=False,
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                maximize=False,
            )
            piece.copy_(rounded_at_random(weight))


def pieces(tensor: Tensor) -> tuple[Tensor, ...]:
    """Some rows of a tensor at a time, or where it is spread over processes of this one's part: the same memory."""
    own: Tensor = torch.atleast_1d(tensor.to_local() if hasattr(tensor, "to_local") else tensor)
    return own.split(max(PIECE * len(own) // max(own.numel(), 1), 1))


def rounded_at_random(values: Tensor) -> Tensor:
    """Round float32 to bfloat16, up or down with the probability that leaves the mean where it is.

    Args:
        values: Finite float32 of any shape.

    Returns:
        bfloat16. What bfloat16 can hold is left as it is.
    """
    # The lower half of the bits is where a value lies between two neighbors, in 65,536ths.
    noise = torch.randint(1 << 16, values.shape, dtype=torch.int32, device=values.device)
    bits = noise.add_(values.view(torch.int32)).bitwise_and_(-(1 << 16))
    return bits.view(torch.float32).to(torch.bfloat16)
