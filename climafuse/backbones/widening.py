"""Weights of 16 bits on a processor that cannot multiply them: held as they are, multiplied in float32.

Without instructions for bfloat16, torch multiplies it one number at a time: the backward pass of one 4096 × 4096 matrix
took 5 s where float32 takes 17 ms (two cores without AVX-512). In float32 the whole model would fit no more. So weights
stay as they lie in the file, mapped, and some rows at a time become float32; activations keep the model's type.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from .compact_linear import CompactLinear, Part, chunk_rows, slices, workspace
from .native import multiplies

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import PreTrainedModel


class WidenedLinear(CompactLinear):
    """A linear layer of 16-bit weights whose products are in float32 where the processor has none of their type.

    Args:
        layer: The layer in whose place it is, or the one-dimensional convolution that GPT-2 calls its linear layers:
            that keeps its weights the other way round, [K, N]. Weights and bias are the very same parameters.

    Attributes:
        transposed: Whether weights are [K, N].
    """

    def __init__(self, layer: nn.Module) -> None:
        nn.Module.__init__(self)  # not that of nn.Linear, which would make weights
        weight = cast("nn.Parameter", layer.weight)
        self.transposed = not isinstance(layer, nn.Linear)
        shape = weight.shape[::-1] if self.transposed else weight.shape
        self.out_features, self.in_features = shape
        self.kind = str(weight.dtype).removeprefix("torch.")
        self.register_parameter("weight", weight)
        self.register_parameter("bias", cast("nn.Parameter | None", layer.bias))
        self.train(layer.training)

    def parts(self, dtype: torch.dtype) -> list[Part]:
        """Rows of the weights in a type, a few at a time."""
        held = self.weight.detach()
        if held.dtype == dtype:
            return [(slice(0, len(held)), lambda: held)]
        length, columns = held.shape
        most = chunk_rows(columns, dtype.itemsize, held.device.type)
        buffer = workspace(min(most, length), columns, dtype, held.device)

        def filled(rows: slice) -> Callable[[], Tensor]:
            return lambda: buffer[: rows.stop - rows.start].copy_(held[rows])

        return [(rows, filled(rows)) for rows in slices(length, most)]

    def product(self, x: Tensor) -> Tensor:
        """Return x Wᵀ, in the type of x."""
        return self.along_rows(x, self.out_features).to(x.dtype) if self.transposed else self.along_columns(x)

    def product_back(self, gradient: Tensor) -> Tensor:
        """Return the gradient by x."""
        if self.transposed:
            return self.along_columns(gradient)
        return self.along_rows(gradient, self.in_features)

    def gradient(self, x: Tensor, gradient: Tensor) -> Tensor:
        """Return the gradient by the weights, in their type."""
        one, other = (x, gradient) if self.transposed else (gradient, x)
        found = torch.empty_like(self.weight)
        for rows in slices(len(found), chunk_rows(found.shape[1], x.dtype.itemsize, x.device.type)):
            found[rows] = one[:, rows].t() @ other
        return found

    def rows(self, numbers: Tensor, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        """Return some rows of W; a gradient passes."""
        return (self.weight[:, numbers].t() if self.transposed else self.weight[numbers]).to(dtype)


def widen_products(model: PreTrainedModel) -> None:
    """Let linear layers multiply in float32, where their device does not multiply their own type natively; in place.

    Tensors, their names and what they hold stay the same.

    Args:
        model: A language model.
    """
    from transformers.pytorch_utils import Conv1D

    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) in (nn.Linear, Conv1D):
                weight = cast("Tensor", child.weight)
                if not multiplies(weight.dtype, weight.device):
                    setattr(module, name, WidenedLinear(child))
