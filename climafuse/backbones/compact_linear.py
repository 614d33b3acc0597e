"""Linear layers whose weights are held in a smaller form than they are multiplied in.

Weights are turned into the type of the product a few hundred rows at a time, in a buffer that stays in the processor's
cache, and forgotten again: what is read from memory is the small form. Products are in the type of the activations, or
in float32 where the processor has no instructions for that type (see `native`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .native import product_dtype

CHUNK_BYTES = {"cpu": 4 << 20}  # of weights turned back at a time: what a core's share of the cache holds
CHUNK_BYTES_ELSEWHERE = 256 << 20  # of a GPU: few launches

Part = tuple[slice, Callable[[], Tensor]]


def buffer_bytes(rows: int, columns: int, *, device: str = "cpu", element_size: int = 2) -> int:
    """Bytes of the rows that are turned into the type of the product at a time.

    Args:
        rows: Of the matrix as it is held.
        columns: Of it.
        device: Type of the device.
        element_size: Bytes of a number in the product.
    """
    return min(rows, chunk_rows(columns, element_size, device)) * columns * element_size


class CompactLinear(nn.Linear):
    """A linear layer whose weights are held in a form of their own.

    It is a linear layer to all who look for one: `weight` holds that form, `in_features` and `out_features` are those
    of the product. What derives from it says how rows are turned back (`parts`), and makes both products of them.
    """

    kind: str

    def forward(self, input: Tensor) -> Tensor:
        """Multiply: [..., K] to [..., N], in the type of the input."""
        product: Tensor = _Product.apply(input, self.weight, self)
        return product if self.bias is None else product + self.bias.to(product.dtype)

    def parts(self, dtype: torch.dtype) -> list[Part]:
        """Rows of what is held, in a type, a few at a time: which rows, and what fills a buffer with them.

        The buffer is one: what is filled in last is overwritten next.
        """
        raise NotImplementedError

    def product(self, x: Tensor) -> Tensor:
        """Return x Wᵀ, [P, K] to [P, N], in the type of x."""
        raise NotImplementedError

    def product_back(self, gradient: Tensor) -> Tensor:
        """Return the gradient by x of that by the product, [P, N] to [P, K]; float32."""
        raise NotImplementedError

    def gradient(self, x: Tensor, gradient: Tensor) -> Tensor:
        """Return the gradient by the weights, as they are held; of a layer that is trained."""
        raise NotImplementedError

    def rows(self, numbers: Tensor, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        """Return some rows of W, [n, K].

        Args:
            numbers: [n] which rows.
            dtype: Type to return them in.
        """
        raise NotImplementedError

    def extra_repr(self) -> str:
        """Shape and kind, for printing."""
        return f"{self.in_features}, {self.out_features}, {self.kind}, bias={self.bias is not None}"

    def along_columns(self, x: Tensor) -> Tensor:
        """Multiply [P, columns] by each held row: [P, rows], in the type of x."""
        parts = self.parts(x.dtype)
        out = x.new_empty(len(x), max(rows.stop for rows, _ in parts))
        for rows, fill in parts:
            if x.dtype == torch.float32 and x.device.type == "cpu":
                # MKL is quick where the longer side is that of the rows: 14 ms for 4096 × 4096 and 36 positions, where
                # the other way round takes 16 or 30, from process to process.
                out[:, rows] = torch.mm(fill(), x.t()).t()
            else:
                torch.mm(x, fill().t(), out=out[:, rows])
        return out

    def along_rows(self, x: Tensor, columns: int) -> Tensor:
        """Sum held rows, each times its column of [P, rows]: [P, columns] in float32.

        Parts are summed in float32: in bfloat16 the last of fifty would count for little.
        """
        total = x.new_zeros(len(x), columns, dtype=torch.float32)
        if x.dtype == torch.float32:
            for rows, fill in self.parts(x.dtype):
                total.addmm_(x[:, rows], fill())
            return total
        part = workspace(len(x), columns, x.dtype, x.device, use="part")
        for rows, fill in self.parts(x.dtype):
            total += torch.mm(x[:, rows], fill(), out=part)
        return total


class _Product(torch.autograd.Function):
    """x Wᵀ and its gradients: by x, and by W where that is trained."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, layer: CompactLinear) -> Tensor:
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        ctx.layer, ctx.before = layer, x.dtype
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None)
        with torch.autocast(device, enabled=False):
            out = layer.product(_flat(x, layer.in_features, dtype))
        return out.to(dtype).view(*x.shape[:-1], layer.out_features)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        layer: CompactLinear = ctx.layer
        (x,) = ctx.saved_tensors
        below = by_weights = None
        with torch.autocast(grad.device.type, enabled=False):
            flat = _flat(grad, layer.out_features, grad.dtype)
            if ctx.needs_input_grad[0]:
                below = layer.product_back(flat).to(ctx.before).view(*grad.shape[:-1], layer.in_features)
            if x is not None:
                by_weights = layer.gradient(_flat(x, layer.in_features, grad.dtype), flat)
        return below, by_weights, None


def _flat(x: Tensor, columns: int, dtype: torch.dtype) -> Tensor:
    """[..., columns] as [P, columns], in the type in which numbers of a type are multiplied."""
    return x.reshape(-1, columns).to(product_dtype(dtype, x.device))


_local = threading.local()


def workspace(
    rows: int, columns: int, dtype: torch.dtype, device: torch.device, *, use: str = "weights"
) -> Tensor:
    """Return memory that is written to and read again before anybody else asks: on a CPU the same one each time.

    A new one would be asked of the system and given back with every product, a page at a time.

    Args:
        rows: Of a matrix.
        columns: Of it.
        dtype: Its type.
        device: Where.
        use: What is in it: of two uses each has its own.
    """
    if device.type != "cpu":
        return torch.empty(rows, columns, dtype=dtype, device=device)
    kept: dict[tuple[torch.dtype, str], Tensor] = _local.__dict__.setdefault("kept", {})
    found = kept.get((dtype, use))
    if found is None or found.numel() < rows * columns:
        with torch.inference_mode(False):  # else nothing could be written to it but in that mode
            found = kept[dtype, use] = torch.empty(rows * columns, dtype=dtype)
    return found[: rows * columns].view(rows, columns)


def chunk_rows(columns: int, element_size: int, device: str) -> int:
    """Return how many rows are turned back at a time, at most."""
    return max(CHUNK_BYTES.get(device, CHUNK_BYTES_ELSEWHERE) // (columns * element_size), 1)


def slices(length: int, step: int) -> list[slice]:
    """Cut a range into parts of one length; the last may be shorter."""
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]
