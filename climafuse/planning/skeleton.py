"""The model of a workload without values, and the tensors of a step, for tracing."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from climafuse.backbones import BackboneIdentity, LoadedBackbone, find_blocks, freeze
from climafuse.backbones.quantization import GROUP, QuantizedLinear, buffer_bytes, matrix, stored_bytes
from climafuse.data.normalization import statistics_from_dict
from climafuse.model import ClimateTextForCausalLM, PrefixStore, SampledVocabulary
from climafuse.planning.tracing import Trace
from climafuse.planning.workload import Workload


class QuantizedShape(QuantizedLinear):
    """A quantized layer without values: what it holds and computes is counted, its rows are not gone through.

    Args:
        trace: Where it is counted.
        weight: [N, K] of the layer in whose place it is.
        bias: [N], or None.
        kind: `int8` or `int4`.
    """

    def __init__(self, trace: Trace, weight: Tensor, bias: nn.Parameter | None, kind: str) -> None:
        nn.Module.__init__(self)
        self.trace = trace
        self.kind = cast("Any", kind)
        self.work = ""  # kind of its work, see `flops`
        self.out_features, self.in_features = weight.shape
        rows = self.out_features if kind == "int8" else (self.out_features + 1) // 2
        numbers = torch.empty(rows, self.in_features).to(torch.int8)
        self.weight = nn.Parameter(numbers, requires_grad=False)
        self.register_parameter("bias", bias)
        rest = stored_bytes(self.out_features, self.in_features, kind) - numbers.numel()  # scales and minima
        self.register_buffer("scale", torch.empty(rest // 4))
        self.register_buffer("minimum", None)
        self.buffer = buffer_bytes(self.out_features, self.in_features)

    def forward(self, input: Tensor) -> Tensor:
        """Make what a product would hold."""
        product: Tensor = _QuantizedProduct.apply(input, self)
        return product if self.bias is None else product + self.bias.to(product.dtype)


class _QuantizedProduct(torch.autograd.Function):
    """The tensors that `quantization._Product` makes, without their values."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: QuantizedShape) -> Tensor:
        ctx.layer, ctx.before = layer, x.dtype
        if torch.is_autocast_enabled("cpu"):
            x = x.to(torch.get_autocast_dtype("cpu"))
        flat = x.reshape(-1, layer.in_features)
        if layer.kind == "int4":
            flat.new_empty(len(flat), -(-layer.in_features // GROUP))
        layer.trace.add(layer.work, 2 * len(flat) * layer.in_features * layer.out_features)
        return flat.new_empty(*x.shape[:-1], layer.out_features)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        layer = ctx.layer
        num = grad.numel() // layer.out_features
        below = grad.new_empty(num, layer.in_features, dtype=torch.float32)
        scaled = torch.empty_like(grad) if layer.kind == "int8" else grad
        layer.trace.add(layer.work, 2 * scaled.numel() * layer.in_features)
        return below.to(ctx.before).view(*grad.shape[:-1], layer.in_features), None


def quantize_shapes(trace: Trace, model: PreTrainedModel, workload: Workload) -> None:
    """Do what `quantize_model` does, to a model without values."""
    layout = find_blocks(model)

    def quantized(layer: nn.Module) -> QuantizedShape:
        weight = matrix(layer)
        assert weight is not None
        assert workload.quantization is not None
        return QuantizedShape(trace, weight, cast("nn.Parameter | None", layer.bias), workload.quantization)

    for module in list(layout.blocks.modules()):
        for name, child in list(module.named_children()):
            if matrix(child) is not None:
                setattr(module, name, quantized(child))
    if workload.quantize_head:
        model.set_output_embeddings(quantized(layout.head))


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
