"""Frozen linear layers in 8 or 4 bits: smaller to hold, with gradients through to what lies below.

- `int8`: a row of weights is q · s with q from -127 to 127 and one scale s a row.
- `int4`: each 32 weights of a row are q · s + m with q from 0 to 15, and a scale s and a minimum m of their own: five
  bits a weight in all.

The scale of int8 and the minimum of int4 are applied to the product, not to the weights, which saves passes over them.
In float16, where sums of q would be too large and gradients times s too small, the scale of int8 is applied to the
weights.

Reference:
    Dettmers et al. 2022, LLM.int8(), arXiv:2208.07339, section 2 (absolute maximum by row, without its outliers);
    `Q4_1` of the GGUF format (blocks of 32 with scale and minimum).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import BackboneError, ConfigurationError
from .blocks import find_blocks
from .compact_linear import CompactLinear, Part, chunk_rows, slices, workspace
from .mapped_files import MappedFiles
from .widening import WidenedLinear

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Quantization = Literal["int8", "int4"]
QUANTIZATIONS: tuple[str, ...] = get_args(Quantization)
GROUP = 32  # weights of a row that share scale and minimum, int4
AHEAD = 2  # matrices that are read from the disk while one is quantized
_QUANTIZED_AT_ONCE = 4 << 20  # bytes of float32 of the rows that are quantized together
QUANTIZING = (
    8 * _QUANTIZED_AT_ONCE
)  # bytes that this takes beside the matrix in both forms: of two parts, four each


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


class QuantizedLinear(CompactLinear):
    """A frozen linear layer in 8 or 4 bits.

    Its `weight` holds the numbers q, [N, K] int8 or [N / 2, K] uint8 (row n in the low half of a byte, row n + N / 2 in
    the high half), and never requires a gradient.

    Args:
        weight: [N, K] the weights.
        bias: [N], or None.
        kind: `int8` or `int4`.
        let_go: Called with rows of the weights that are not read again.
        name: Of the weights, for errors.

    Attributes:
        scale: [N] float32, or [N, K / 32] bfloat16.
        minimum: [N, K / 32] bfloat16; None for int8.

    Raises:
        BackboneError: Weights are not finite: no numbers with a scale would be.
    """

    minimum: Tensor | None
    scale: Tensor

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        kind: Quantization,
        let_go: Callable[[Tensor], None] = lambda rows: None,
        *,
        name: str = "weight",
    ) -> None:
        nn.Module.__init__(self)  # not that of nn.Linear, which would make weights
        self.kind = kind
        self.out_features, self.in_features = weight.shape
        numbers, scale, minimum = _quantize(weight.detach(), kind, let_go)
        _check_finite(name, scale, minimum)
        self.weight = nn.Parameter(numbers, requires_grad=False)
        own = None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=False)
        self.register_parameter("bias", own)
        self.register_buffer("scale", scale)
        self.register_buffer("minimum", minimum)

    def rows(self, numbers: Tensor, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        """Return some rows of W; they are computed in float32."""
        if self.minimum is None:
            return (self.weight[numbers].float() * self.scale[numbers, None]).to(dtype)
        half = len(self.weight)
        both = self.weight[numbers % half]
        q = torch.where((numbers < half)[:, None], both & 15, both >> 4).float()
        _scale_groups(q, self.scale[numbers].float())
        minimum = self.minimum[numbers].float().repeat_interleave(GROUP, dim=1)
        return (q + minimum[:, : self.in_features]).to(dtype)

    def product(self, x: Tensor) -> Tensor:
        """Return x Wᵀ, in the type of x."""
        out = self.along_columns(x)
        if self.minimum is not None:
            out.addmm_(_group_sums(x), self.minimum.to(out.dtype).t())
        elif x.dtype != torch.float16:
            out *= self.scale.to(out.dtype)
        return out

    def product_back(self, gradient: Tensor) -> Tensor:
        """Return the gradient by x."""
        if self.minimum is None:
            if gradient.dtype != torch.float16:
                gradient = gradient * self.scale.to(gradient.dtype)
            return self.along_rows(gradient, self.in_features)
        below = self.along_rows(gradient, self.in_features)
        groups = gradient @ self.minimum.to(gradient.dtype)  # [P, K / 32]
        return below.add_(groups.repeat_interleave(GROUP, dim=1)[:, : self.in_features])

    def parts(self, dtype: torch.dtype) -> list[Part]:
        """Rows of q in a type, a few at a time; those of int4, and of int8 in float16, times s."""
        columns, half = self.in_features, len(self.weight)
        most = chunk_rows(columns, dtype.itemsize, self.weight.device.type)
        buffer = workspace(min(most, half), columns, dtype, self.weight.device)
        if self.minimum is None:

            def plain(rows: slice) -> Callable[[], Tensor]:
                return lambda: buffer[: rows.stop - rows.start].copy_(self.weight[rows])

            def scaled(rows: slice) -> Callable[[], Tensor]:
                out = buffer[: rows.stop - rows.start]
                return lambda: torch.mul(self.weight[rows], self.scale[rows, None], out=out)

            turned_back = scaled if dtype == torch.float16 else plain
            return [(rows, turned_back(rows)) for rows in slices(half, most)]
        nibbles = workspace(len(buffer), columns, torch.uint8, buffer.device)

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

        blocks = [unpacked(rows, high) for high in (False, True) for rows in slices(half, most)]
        return [(rows, fill) for rows, fill in blocks if rows.start < rows.stop]


def quantize_model(
    model: PreTrainedModel,
    kind: Quantization,
    *,
    head: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Replace the linear layers in a language model's blocks by quantized ones, in place.

    One after the other, some rows at a time, and what was read from a file is let go of before the next: memory rises
    to the small weights and a few megabytes (and one matrix, where it lies in the file the other way round), not to
    both forms of the model. Embeddings stay as they are: a step reads a few of their rows.

    Args:
        model: A frozen causal language model.
        kind: `int8` or `int4`.
        head: Whether the head is quantized, too; of one that shares its weights with the embeddings, a copy.
        progress: Called with how many layers are done and how many there are.

    Raises:
        ConfigurationError: The kind is not known.
        BackboneError: Half of the blocks' weights or more are in no linear layers, or weights are not finite.
    """
    if kind not in QUANTIZATIONS:
        raise ConfigurationError(
            "quantization",
            expected=" or ".join(QUANTIZATIONS),
            received=repr(kind),
            remedy="Choose one of these, or none.",
        )
    layout = find_blocks(model)
    names = {module: name for name, module in model.named_modules()}
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
        for coming, its in places[done : done + AHEAD]:
            mapped.read_ahead(getattr(coming, its).weight)
        setattr(module, name, _quantized(getattr(module, name), kind, mapped, names))
        if progress is not None:
            progress(done, total)
    if head:
        model.set_output_embeddings(_quantized(layout.head, kind, mapped, names))
        if progress is not None:
            progress(total, total)


def _quantized(
    layer: nn.Module, kind: Quantization, mapped: MappedFiles, names: Mapping[nn.Module, str]
) -> QuantizedLinear:
    weight = matrix(layer)
    if weight is None:
        raise BackboneError(
            type(layer).__name__,
            expected="a linear layer",
            received="another module",
            remedy="Set quantize_head to false.",
        )
    bias, name = cast("Tensor | None", layer.bias), f"{names[layer]}.weight"
    quantized = QuantizedLinear(weight, bias, kind, mapped.let_go, name=name)
    quantized.train(layer.training)
    mapped.let_go(weight)  # pages that two parts share, too
    return quantized


def matrix(layer: nn.Module) -> Tensor | None:
    """Return the weights of a linear layer as [N, K], or None for another module.

    Args:
        layer: A layer; the one-dimensional convolution that GPT-2 calls its linear layers is one.
    """
    from transformers.pytorch_utils import Conv1D

    weight = layer._parameters.get("weight")
    if weight is None:
        return None
    if isinstance(layer, Conv1D) or (isinstance(layer, WidenedLinear) and layer.transposed):
        return weight.detach().t()
    return weight.detach() if type(layer) in (nn.Linear, WidenedLinear) else None


def _quantize(
    weight: Tensor, kind: str, let_go: Callable[[Tensor], None]
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Numbers, scales and minima of a matrix [N, K], a part of its rows at a time."""
    num_rows, columns = weight.shape
    weight = weight.contiguous()  # GPT-2 keeps its matrices the other way round
    step = max(_QUANTIZED_AT_ONCE // (4 * columns), 1)
    if kind == "int8":
        numbers = torch.empty(num_rows, columns, dtype=torch.int8, device=weight.device)
        scale = torch.empty(num_rows, dtype=torch.float32, device=weight.device)
        for rows in slices(num_rows, step):
            part = weight[rows].float()
            scale[rows] = part.abs().amax(dim=1).clamp(min=1e-30) / 127
            numbers[rows] = (part / scale[rows, None]).round_()
            let_go(weight[rows])
        return numbers, scale, None
    half = (num_rows + 1) // 2
    groups = -(-columns // GROUP)
    numbers = torch.zeros(half, columns, dtype=torch.uint8, device=weight.device)
    scale, minimum = (
        torch.empty(num_rows, groups, dtype=torch.bfloat16, device=weight.device) for _ in range(2)
    )
    for begin, shift in ((0, 0), (half, 4)):
        for place in slices(half, step):
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
            let_go(weight[rows])
    return numbers, scale, minimum


def _check_finite(name: str, scale: Tensor, minimum: Tensor | None) -> None:
    """Refuse weights that are not finite: scales and minima are not, either, and there are few of them."""
    good = scale.isfinite() if minimum is None else (scale.isfinite() & minimum.isfinite()).all(dim=1)
    if not good.all():
        rows = (~good).nonzero().flatten().tolist()
        raise BackboneError(
            name,
            expected="finite weights",
            received=f"infinity or not-a-number in {len(rows):,} of {len(good):,} rows, the first {rows[0]:,}",
            remedy="Get the files of this backbone anew: these are damaged, or no model was saved in them.",
        )


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
