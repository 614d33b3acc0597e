"""Frozen linear layers in 8 or 4 bits: smaller to hold, with gradients through to what lies below.

- `int8`: a row of weights is q · s with q from -127 to 127 and one scale s a row.
- `int4`: each 32 weights of a row are q · s + m with q from 0 to 15, and a scale s and a minimum m of their own: five
  bits a weight in all.

Products are in the type of the activations. The weights are turned into it a few hundred rows at a time, in a buffer
that stays in the processor's cache, and forgotten again: what is read from memory is the small form. The scale of int8
and the minimum of int4 are applied to the product, not to the weights, which saves passes over them.

Reference:
    Dettmers et al. 2022, LLM.int8(), arXiv:2208.07339, section 2 (absolute maximum by row, without its outliers);
    `Q4_1` of the GGUF format (blocks of 32 with scale and minimum).
"""

from __future__ import annotations

import ctypes
import mmap
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from ..errors import BackboneError, ConfigurationError
from .blocks import find_blocks

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Quantization = Literal["int8", "int4"]
QUANTIZATIONS: tuple[str, ...] = get_args(Quantization)
GROUP = 32  # weights of a row that share scale and minimum, int4
CHUNK_BYTES = {"cpu": 4 << 20}  # of weights turned back at a time: what a core's share of the cache holds
CHUNK_BYTES_ELSEWHERE = 256 << 20  # of a GPU: few launches
_QUANTIZED_AT_ONCE = 4 << 20  # bytes of float32 while a matrix is quantized


def stored_bytes(rows: int, columns: int, kind: str) -> int:
    """Bytes that a matrix takes once quantized.

    Args:
        rows: Outputs of the layer.
        columns: Its inputs.
        kind: A quantization.
    """
    if kind == "int8":
        return rows * columns + 4 * rows
    return (rows + rows % 2) // 2 * columns + 2 * 2 * rows * -(-columns // GROUP)


def buffer_bytes(rows: int, columns: int, *, device: str = "cpu", element_size: int = 2) -> int:
    """Bytes of the rows that are turned back into the type of the activations at a time.

    Args:
        rows: Outputs of the layer.
        columns: Its inputs.
        device: Type of the device.
        element_size: Bytes of an activation.
    """
    return min(rows, _chunk_rows(columns, element_size, device)) * columns * element_size


class QuantizedLinear(nn.Linear):
    """A frozen linear layer in 8 or 4 bits.

    It is a linear layer to all who look for one. Its `weight` holds the numbers q, [N, K] int8 or [N / 2, K] uint8
    (row n in the low half of a byte, row n + N / 2 in the high half), and never requires a gradient.

    Args:
        weight: [N, K] the weights.
        bias: [N], or None.
        kind: `int8` or `int4`.

    Attributes:
        scale: [N] float32, or [N, K / 32] bfloat16.
        minimum: [N, K / 32] bfloat16; None for int8.
    """

    minimum: Tensor | None
    scale: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None, kind: Quantization) -> None:
        nn.Module.__init__(self)  # not that of nn.Linear, which would make weights
        self.kind = kind
        self.out_features, self.in_features = weight.shape
        numbers, scale, minimum = _quantize(weight.detach(), kind)
        self.weight = nn.Parameter(numbers, requires_grad=False)
        own = None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=False)
        self.register_parameter("bias", own)
        self.register_buffer("scale", scale)
        self.register_buffer("minimum", minimum)

    def forward(self, input: Tensor) -> Tensor:
        """Multiply: [..., K] to [..., N], in the type of the input."""
        product: Tensor = _Product.apply(input, self)
        return product if self.bias is None else product + self.bias.to(product.dtype)

    def rows(self, numbers: Tensor, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        """Return some rows of the weights, [n, K].

        Args:
            numbers: [n] which rows.
            dtype: Type to return them in; they are computed in float32.
        """
        if self.minimum is None:
            return (self.weight[numbers].float() * self.scale[numbers, None]).to(dtype)
        half = len(self.weight)
        both = self.weight[numbers % half]
        q = torch.where((numbers < half)[:, None], both & 15, both >> 4).float()
        _scale_groups(q, self.scale[numbers].float())
        minimum = self.minimum[numbers].float().repeat_interleave(GROUP, dim=1)
        return (q + minimum[:, : self.in_features]).to(dtype)

    def extra_repr(self) -> str:
        """Shape and kind, for printing."""
        return f"{self.in_features}, {self.out_features}, {self.kind}, bias={self.bias is not None}"

    def _blocks(self, dtype: torch.dtype) -> list[tuple[slice, Callable[[], Tensor]]]:
        """Rows of q in a type, a few at a time: which rows, and what fills a buffer with them (times s for int4).

        The buffer is one: what is filled in last is overwritten next.
        """
        columns, half = self.in_features, len(self.weight)
        most = _chunk_rows(columns, dtype.itemsize, self.weight.device.type)
        buffer = _workspace(min(most, half), columns, dtype, self.weight.device)
        if self.minimum is None:

            def plain(rows: slice) -> Callable[[], Tensor]:
                return lambda: buffer[: rows.stop - rows.start].copy_(self.weight[rows])

            return [(rows, plain(rows)) for rows in _slices(half, most)]
        nibbles = _workspace(len(buffer), columns, torch.uint8, buffer.device)

        def unpacked(rows: slice, high: bool) -> tuple[slice, Callable[[], Tensor]]:
            start, stop = (rows.start + half * high, min(rows.stop + half * high, self.out_features))

            def fill() -> Tensor:
                count = stop - start
                packed, part = self.weight[rows][:count], nibbles[:count]
                if high:
                    torch.bitwise_right_shift(packed, 4, out=part)
                else:
                    torch.bitwise_and(packed, 15, out=part)
                filled = buffer[:count].copy_(part)
                _scale_groups(filled, self.scale[start:stop].to(dtype))
                return filled

            return slice(start, stop), fill

        blocks = [unpacked(rows, high) for high in (False, True) for rows in _slices(half, most)]
        return [(rows, fill) for rows, fill in blocks if rows.start < rows.stop]


class _Product(torch.autograd.Function):
    """x Wᵀ and its gradient by x; W gets none."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: QuantizedLinear) -> Tensor:
        ctx.layer = layer
        if torch.is_autocast_enabled(x.device.type):
            ctx.before, x = x.dtype, x.to(torch.get_autocast_dtype(x.device.type))
        else:
            ctx.before = x.dtype
        flat = x.reshape(-1, layer.in_features)
        out = flat.new_empty(len(flat), layer.out_features)
        with torch.autocast(x.device.type, enabled=False):
            for rows, fill in layer._blocks(x.dtype):
                torch.mm(flat, fill().t(), out=out[:, rows])
            if layer.minimum is None:
                out *= layer.scale.to(out.dtype)
            else:
                out.addmm_(_group_sums(flat), layer.minimum.to(out.dtype).t())
        return out.view(*x.shape[:-1], layer.out_features)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        layer = ctx.layer
        flat = grad.reshape(-1, layer.out_features)
        with torch.autocast(grad.device.type, enabled=False):
            # Parts are summed in float32: in bfloat16 the last of fifty would count for little.
            below = torch.zeros(len(flat), layer.in_features, dtype=torch.float32, device=grad.device)
            scaled = flat * layer.scale.to(flat.dtype) if layer.minimum is None else flat
            part = _workspace(len(flat), layer.in_features, flat.dtype, grad.device, use="part")
            for rows, fill in layer._blocks(flat.dtype):
                below += torch.mm(scaled[:, rows], fill(), out=part)
            if layer.minimum is not None:
                groups = flat @ layer.minimum.to(flat.dtype)  # [P, K / 32]
                below += groups.repeat_interleave(GROUP, dim=1)[:, : layer.in_features]
        return below.to(ctx.before).view(*grad.shape[:-1], layer.in_features), None


def quantize_model(
    model: PreTrainedModel,
    kind: Quantization,
    *,
    head: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Replace the linear layers in a language model's blocks by quantized ones, in place.

    One after the other, and what was read from a file is let go of before the next: memory rises to the small weights
    and one matrix, not to both forms of the model. Embeddings stay as they are: a step reads a few of their rows.

    Args:
        model: A frozen causal language model.
        kind: `int8` or `int4`.
        head: Whether the head is quantized, too; of one that shares its weights with the embeddings, a copy.
        progress: Called with how many layers are done and how many there are.

    Raises:
        ConfigurationError: The kind is not known.
        BackboneError: Half of the blocks' weights or more are in no linear layers.
    """
    if kind not in QUANTIZATIONS:
        raise ConfigurationError(
            "quantization",
            expected=" or ".join(QUANTIZATIONS),
            received=repr(kind),
            remedy="Choose one of these, or none.",
        )
    layout = find_blocks(model)
    places = [
        (module, name)
        for module in layout.blocks.modules()
        for name, child in module.named_children()
        if matrix(child) is not None
    ]
    inside = sum(getattr(module, name).weight.numel() for module, name in places)
    all_ = sum(parameter.numel() for parameter in layout.blocks.parameters())
    if 2 * inside < all_:
        raise BackboneError(
            type(model).__name__,
            expected="blocks of linear layers",
            received=f"{inside:,} of {all_:,} weights in such",
            remedy="Load this backbone without quantization: its weights would stay as large as they are.",
        )
    mapped = MappedFiles()
    total = len(places) + head
    for done, (module, name) in enumerate(places, start=1):
        setattr(module, name, _quantized(getattr(module, name), kind, mapped))
        if progress is not None:
            progress(done, total)
    if head:
        model.set_output_embeddings(_quantized(layout.head, kind, mapped))
        if progress is not None:
            progress(total, total)


def _quantized(layer: nn.Module, kind: Quantization, mapped: MappedFiles) -> QuantizedLinear:
    weight = matrix(layer)
    if weight is None:
        raise BackboneError(
            type(layer).__name__,
            expected="a linear layer",
            received="another module",
            remedy="Set quantize_head to false.",
        )
    quantized = QuantizedLinear(weight, cast("Tensor | None", layer.bias), kind)
    quantized.train(layer.training)
    mapped.let_go(weight)
    return quantized


def matrix(layer: nn.Module) -> Tensor | None:
    """Return the weights of a linear layer as [N, K], or None for another module.

    Args:
        layer: A layer; the one-dimensional convolution that GPT-2 calls its linear layers is one.
    """
    from transformers.pytorch_utils import Conv1D

    weight = layer._parameters.get("weight")
    if weight is None or isinstance(layer, QuantizedLinear):
        return None
    if isinstance(layer, Conv1D):
        return weight.detach().t()
    return weight.detach() if type(layer) is nn.Linear else None


class MappedFiles:
    """Which memory of this process is files mapped into it, as it was when this was made (Linux; elsewhere none)."""

    def __init__(self) -> None:
        self._ranges: list[tuple[int, int]] = []
        if sys.platform.startswith("linux"):
            with open("/proc/self/maps", encoding="utf-8", errors="replace") as lines:
                for line in lines:
                    addresses, *fields = line.split(maxsplit=5)
                    if len(fields) == 5 and fields[4].startswith("/"):
                        first, _, last = addresses.partition("-")
                        self._ranges.append((int(first, 16), int(last, 16)))

    def let_go(self, tensor: Tensor) -> None:
        """Tell the system that the pages of mapped weights are not needed now; read again, they come from the file.

        Without this they would count as the process's own until the whole file is closed.

        Args:
            tensor: Weights that nobody has written to, as that would be lost. If they are not mapped from a file,
                nothing happens.
        """
        start = tensor.data_ptr()
        stop = start + tensor.numel() * tensor.element_size()
        if tensor.device.type != "cpu" or not any(
            first <= start < stop <= last for first, last in self._ranges
        ):
            return
        page = mmap.PAGESIZE  # whole pages only: those at the ends are shared with neighbors
        first, last = -(-start // page) * page, stop // page * page
        if first < last:
            ctypes.CDLL(None).madvise(
                ctypes.c_void_p(first), ctypes.c_size_t(last - first), mmap.MADV_DONTNEED
            )


_local = threading.local()


def _workspace(
    rows: int, columns: int, dtype: torch.dtype, device: torch.device, *, use: str = "weights"
) -> Tensor:
    """Memory that is written to and read again before anybody else asks: on a CPU the same one each time.

    A new one would be asked of the system and given back with every product, a page at a time.
    """
    if device.type != "cpu":
        return torch.empty(rows, columns, dtype=dtype, device=device)
    kept: dict[tuple[torch.dtype, str], Tensor] = _local.__dict__.setdefault("kept", {})
    found = kept.get((dtype, use))
    if found is None or found.numel() < rows * columns:
        with torch.inference_mode(False):  # else nothing could be written to it but in that mode
            found = kept[dtype, use] = torch.empty(rows * columns, dtype=dtype)
    return found[: rows * columns].view(rows, columns)


def _chunk_rows(columns: int, element_size: int, device: str) -> int:
    return max(CHUNK_BYTES.get(device, CHUNK_BYTES_ELSEWHERE) // (columns * element_size), 1)


def _slices(length: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]


def _quantize(weight: Tensor, kind: str) -> tuple[Tensor, Tensor, Tensor | None]:
    """Numbers, scales and minima of a matrix [N, K], a part of its rows at a time."""
    num_rows, columns = weight.shape
    weight = weight.contiguous()  # GPT-2 keeps its matrices the other way round
    step = max(_QUANTIZED_AT_ONCE // (4 * columns), 1)
    if kind == "int8":
        numbers = torch.empty(num_rows, columns, dtype=torch.int8, device=weight.device)
        scale = torch.empty(num_rows, dtype=torch.float32, device=weight.device)
        for rows in _slices(num_rows, step):
            part = weight[rows].float()
            scale[rows] = part.abs().amax(dim=1).clamp(min=1e-30) / 127
            numbers[rows] = (part / scale[rows, None]).round_()
        return numbers, scale, None
    half = (num_rows + 1) // 2
    groups = -(-columns // GROUP)
    numbers = torch.zeros(half, columns, dtype=torch.uint8, device=weight.device)
    scale, minimum = (
        torch.empty(num_rows, groups, dtype=torch.bfloat16, device=weight.device) for _ in range(2)
    )
    for begin, shift in ((0, 0), (half, 4)):
        for place in _slices(half, step):
            rows = slice(place.start + begin, min(place.stop + begin, num_rows))
            if rows.start >= rows.stop:
                continue
            part = weight[rows].float()
            # A group that is not full repeats its last weight.
            padded = functional.pad(part[:, None], (0, groups * GROUP - columns), mode="replicate")[:, 0]
            grouped = padded.view(len(part), groups, GROUP)
            low, high = grouped.aminmax(dim=2)
            minimum[rows] = low.bfloat16()
            scale[rows] = ((high - low) / 15).bfloat16()
            by = scale[rows].float()[..., None]
            q = ((grouped - minimum[rows].float()[..., None]) / by.clamp(min=1e-30)).round_().clamp_(0, 15)
            packed = q.to(torch.uint8).flatten(1)[:, :columns]
            numbers[place][: len(packed)] |= packed << shift
    return numbers, scale, minimum


def _scale_groups(values: Tensor, scale: Tensor) -> None:
    """Multiply [n, K] by the scale of each group [n, K / 32], in place."""
    whole = values.shape[1] // GROUP
    values[:, : whole * GROUP].unflatten(1, (whole, GROUP)).mul_(scale[:, :whole, None])
    if whole < scale.shape[1]:
        values[:, whole * GROUP :].mul_(scale[:, -1:])


def _group_sums(x: Tensor) -> Tensor:
    """Sums over each group, [P, K] to [P, K / 32]."""
    padded = functional.pad(x, (0, -x.shape[1] % GROUP))
    return padded.unflatten(1, (-1, GROUP)).sum(dim=2)
