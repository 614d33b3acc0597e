"""The model of a workload without values, and the tensors of a step, for tracing."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from climafuse.backbones import BackboneIdentity, LoadedBackbone, find_blocks, freeze
from climafuse.backbones.compact_linear import CompactLinear, buffer_bytes
from climafuse.backbones.quantization import GROUP, QUANTIZING, matrix, stored_bytes
from climafuse.data.normalization import statistics_from_dict
from climafuse.model import ClimateTextForCausalLM, PrefixStore, SampledVocabulary
from climafuse.planning.tracing import TRAINABLE, Trace
from climafuse.planning.workload import Workload


class CompactShape(CompactLinear):
    """A compact layer without values: what it holds and computes is counted, its rows are not gone through.

    Args:
        trace: Where it is counted.
        layer: The layer in whose place it is.
        kind: `int8` or `int4`; None where weights stay as they are.
        widened: Whether products are in float32, whatever the type of the activations.
    """

    def __init__(self, trace: Trace, layer: nn.Module, kind: str | None, *, widened: bool) -> None:
        nn.Module.__init__(self)
        weight = matrix(layer)
        assert weight is not None
        self.trace = trace
        self.kind = kind or "widened"
        self.widened = widened
        self.work = ""  # kind of its work, see `flops`
        self.out_features, self.in_features = weight.shape
        self.register_parameter("bias", cast("nn.Parameter | None", layer.bias))
        if kind is None:
            self.register_parameter("weight", cast("nn.Parameter", layer.weight))
        else:
            rows = self.out_features if kind == "int8" else (self.out_features + 1) // 2
            numbers = torch.empty(rows, self.in_features).to(torch.int8)
            self.weight = nn.Parameter(numbers, requires_grad=False)
            rest = (
                stored_bytes(self.out_features, self.in_features, kind) - numbers.numel()
            )  # scales and minima
            self.register_buffer("scale", torch.empty(rest // 4))
        rows, columns = self.weight.shape if kind is None else weight.shape
        self.buffer = buffer_bytes(rows, columns, element_size=4 if widened else 2)
        # What lies the other way round is read whole, and copied.
        copied = 0 if weight.is_contiguous() else 2 * weight.nbytes
        self.quantizing = 0 if kind is None else QUANTIZING + copied

    def forward(self, input: Tensor) -> Tensor:
        """Make what a product would hold."""
        product: Tensor = _ProductOfShapes.apply(input, self.weight, self)
        return product if self.bias is None else product + self.bias.to(product.dtype)

    def rows(self, numbers: Tensor, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        """Return some rows; a gradient passes where weights are what they are."""
        if self.weight.is_floating_point():
            return self.weight[numbers].to(dtype)
        rows = torch.empty(len(numbers), self.in_features, dtype=dtype)
        self.trace.mark(rows, self.work)
        return rows


class _ProductOfShapes(torch.autograd.Function):
    """The tensors that `compact_linear._Product` makes, without their values."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, layer: CompactShape) -> Tensor:
        ctx.layer, ctx.before = layer, x.dtype
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None)
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        flat = x.reshape(-1, layer.in_features).to(torch.float32 if layer.widened else dtype)
        if layer.kind == "int4":
            flat.new_empty(len(flat), -(-layer.in_features // GROUP))
        layer.trace.add(layer.work, 2 * len(flat) * layer.in_features * layer.out_features)
        return flat.new_empty(*x.shape[:-1], layer.out_features).to(dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        layer: CompactShape = ctx.layer
        (x,) = ctx.saved_tensors
        flat = grad.float() if layer.widened else grad
        num = grad.numel() // layer.out_features
        below = by_weights = None
        if ctx.needs_input_grad[0]:
            total = grad.new_empty(num, layer.in_features, dtype=torch.float32)
            if layer.kind == "int8":
                torch.empty_like(flat)
            layer.trace.add(layer.work, 2 * num * layer.in_features * layer.out_features)
            below = total.to(ctx.before).view(*grad.shape[:-1], layer.in_features)
        if x is not None:
            x.to(flat.dtype)
            layer.trace.add(TRAINABLE, 2 * num * layer.in_features * layer.out_features)
            by_weights = torch.empty_like(layer.weight)
        return below, by_weights, None


def compact_shapes(trace: Trace, model: PreTrainedModel, workload: Workload) -> None:
    """Do what `quantize_model` and `widen_products` do, to a model without values."""
    layout = find_blocks(model)
    head = layout.head
    inside = {id(module) for module in layout.blocks.modules()}
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if matrix(child) is None:
                continue
            quantized = id(child) in inside or (child is head and workload.quantize_head)
            kind = workload.quantization if quantized else None
            if kind is not None or workload.widened:
                setattr(module, name, CompactShape(trace, child, kind, widened=workload.widened))


def make_backbone(workload: Workload) -> LoadedBackbone:
    """Make the language model: within a trace without values, else of random numbers.

    Args:
        workload: What is planned.
    """
    dtype = getattr(torch, workload.dtype)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(workload.config, dtype=dtype)
    freeze(model)
    identity = cast(
        "BackboneIdentity",
        {"id": workload.name, "architecture": type(model).__name__, "content_hash": "none: a plan"},
    )
    return LoadedBackbone(model, cast("Any", None), identity)


def make_model(workload: Workload, backbone: LoadedBackbone) -> ClimateTextForCausalLM:
    """Put the climate side of a workload around a language model."""
    names = workload.variables
    unit = {"mean": 0.0, "std": 1.0, "units": "1"}
    model = ClimateTextForCausalLM.from_backbone(
        backbone,
        statistics=statistics_from_dict({"variables": dict.fromkeys(names, unit), "provenance": {}}),
        encoder=workload.encoder,
        fusion=workload.fusion,
        sites=workload.sites,
        encoder_options=dict(workload.encoder_options),
        fusion_options=dict(workload.fusion_options),
        lora=None if workload.lora is None else dict(workload.lora),
        backbone_trainable=workload.backbone_trainable,
        history=workload.history,
    ).train()
    if workload.checkpoint_activations:
        enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
        enable({"use_reentrant": False})
    if workload.sampled_vocabulary is not None:
        size = int(workload.config.get_text_config().vocab_size)
        model.sampled_vocabulary = SampledVocabulary(
            torch.arange(min(workload.sampled_vocabulary, size)), size, num_sampled=0
        )
    return model


def make_batch(workload: Workload, windows: int, *, labels: float) -> dict[str, Tensor]:
    """Make the tensors of some windows and their texts: tokens are the first of the vocabulary.

    Args:
        workload: What is planned.
        windows: How many, B.
        labels: Labels of a text, on average.
    """
    num_texts, length = workload.texts(windows), workload.length
    height, width = workload.grid
    vocabulary = int(workload.config.get_text_config().vocab_size)
    if workload.sampled_vocabulary is not None:
        vocabulary = min(vocabulary, workload.sampled_vocabulary)
    ids = (torch.arange(num_texts * length) % vocabulary).view(num_texts, length)
    # Where labels are does not matter, how many there are does: evenly from the end of each text.
    wanted = max(round(num_texts * labels), 1)
    rank = torch.arange(length).flip(0).unsqueeze(1) * num_texts + torch.arange(num_texts)
    marked = (rank < wanted).t() & (torch.arange(length) > 0)
    shape = (windows, workload.history, len(workload.variables), height, width)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "labels": ids.where(marked, -100),
        "climate_index": torch.arange(num_texts) * windows // num_texts,
        "climate_fields": torch.randn(shape),
        "climate_mask": torch.ones(shape, dtype=torch.bool),
        "climate_latitude": torch.linspace(30.0, 46.0, height).expand(windows, -1),
        "climate_longitude": torch.linspace(0.0, 16.0, width).expand(windows, -1),
        "climate_time": torch.arange(workload.history, dtype=torch.float64).expand(windows, -1),
    }


class StoreOfShapes(PrefixStore):
    """A store whose states have no values, and take no time to compute.

    Args:
        model: Whose texts they are.
    """

    def __init__(self, model: ClimateTextForCausalLM) -> None:
        super().__init__(model.backbone, model.prefix_site)
        self._width = find_blocks(model.backbone).width(model.prefix_site)

    def lookup(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return states [N, S, D] that nobody computed."""
        return torch.zeros(*input_ids.shape, self._width, dtype=self.backbone.dtype)
