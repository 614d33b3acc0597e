"""How many bytes a workload holds, by what they are for, and when most.

Everything is counted in bytes. A phase of a run (storing states of texts, choosing the vocabulary, training,
evaluation, saving) holds what came before it and stays, and what it needs for a while; the largest is the peak.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import nn

from climafuse.backbones import find_blocks, num_blocks_below, prefix_states, resume
from climafuse.backbones.architectures import count_parameters
from climafuse.model import ClimateTextForCausalLM
from climafuse.planning.flops import mark_kinds
from climafuse.planning.skeleton import (
    CompactShape,
    StoreOfShapes,
    compact_shapes,
    make_backbone,
    make_batch,
    make_model,
)
from climafuse.planning.tracing import Trace, traced
from climafuse.planning.workload import Workload

LIKELY_TOKENS = 8  # as `training.pipeline` asks of the bare model
# Freed memory is not given back while something above it is in use, and a gap is filled only by what fits into it. What
# glibc's allocator held in units of what tensors needed, in five cases whose steps need 130 to 340 MB: 1.3 to 1.7.
HEAP_SLACK = 1.5
HEAP_SLACK_OF_VARIED = 1.6  # the same where texts of other lengths come in each step: 1.57
CUDA_SLACK = 1.1  # torch's own allocator keeps pieces of a size together, and rounds them up
PAGES_AT_ONCE = 64 << 10  # bytes of a mapped file that Linux hands out where one page is read


@dataclass(frozen=True)
class Footprint:
    """What tracing a workload found.

    Args:
        frozen: Parameters of the backbone, tied ones once.
        trainable: Parameters of encoder, fusions and adapters.
        frozen_bytes: Weights of the backbone, as they are held.
        mapped_bytes: Of these, what stays in its file and is held as far as it was read.
        untouched_bytes: Of these, rows of the embeddings that no text of the run reads.
        trainable_bytes: Weights of the rest.
        quantizing_bytes: Most that is held beside both forms of a matrix while it is quantized.
        gradient_bytes: Gradients.
        optimizer_bytes: Moments of AdamW.
        activation_bytes: What the backward pass of a microbatch needs of its forward pass.
        step_bytes: Most that a microbatch holds beside weights, gradients and optimizer.
        store_bytes: Stored states of all texts.
        storing_bytes: Most that is held beside weights while states are stored.
        vocabulary_bytes: Most while likely tokens are asked for.
        evaluation_bytes: Most in a batch of an evaluation.
        buffer_bytes: Rows of compact weights in the type of products, and partial sums.
        gathered_bytes: Weights that are whole at a time where they are spread over processes.
        flops: Floating-point operations of a step by kind.
        reused_flops: Those of a step that stored states spare.
        sites: Where the fusion sits.
        prefix_site: Up to where there is no graph.
        num_soft_tokens: Positions before a text that a fusion takes.
        num_blocks: Blocks of the backbone.
        blocks_below: Of these, how many have no graph.
        blocks_run: Of these, how many run in a step.
        trained_blocks: Of these, how many have weights or adapters that are trained.
    """

    frozen: int
    trainable: int
    frozen_bytes: int
    mapped_bytes: int
    untouched_bytes: int
    trainable_bytes: int
    quantizing_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    activation_bytes: int
    step_bytes: int
    store_bytes: int
    storing_bytes: int
    vocabulary_bytes: int
    evaluation_bytes: int
    buffer_bytes: int
    gathered_bytes: int
    flops: dict[str, int]
    reused_flops: int
    sites: tuple[str, ...]
    prefix_site: str
    num_soft_tokens: int
    num_blocks: int
    blocks_below: int
    blocks_run: int
    trained_blocks: int


def measure(workload: Workload, *, phases: bool = True, slack: float = HEAP_SLACK) -> Footprint:
    """Trace a workload.

    Args:
        workload: What is planned.
        phases: Trace what comes before and after the training steps, too.
        slack: What a small tensor takes of the allocator's heap, in units of its size.
    """
    with traced() as trace:
        backbone = make_backbone(workload)
        compact_shapes(trace, backbone.model, workload)
        model = make_model(workload, backbone)
        mark_kinds(trace, model)
        stores = reuses(workload, model)
        found = _weights(workload, model)
        buffers = _buffers(workload, model)
        trace.slack = slack
        if stores:
            model.prefix_store = StoreOfShapes(model)
            ids = torch.zeros(1, 1, dtype=torch.long)
            with resume(model.backbone, model.prefix_site, model.prefix_store.lookup(ids, ids)):
                pass  # asks once what a block returns, by running one
        activations, most = _microbatches(trace, workload, model)
        flops = {kind: num * workload.accumulation for kind, num in trace.flops.items()}
        reused = 0
        if stores:
            reused = _below(trace, workload, model) * workload.accumulation
        storing = vocabulary = evaluation = 0
        if phases:
            if stores:
                storing = _storing(trace, workload, model)
            if workload.sampled_vocabulary is not None:
                vocabulary = _vocabulary(trace, workload, model)
            if workload.evaluation_windows:
                evaluation = _evaluation(trace, workload, model)
        layout = find_blocks(model.backbone)
        below = num_blocks_below(model.prefix_site, layout.num_blocks)
        width = layout.width(model.prefix_site)
        stored_tokens = workload.stored_tokens
        if stored_tokens is None:
            stored_tokens = workload.texts(workload.windows) * workload.length
        return Footprint(
            **found,
            activation_bytes=activations,
            step_bytes=most,
            store_bytes=stored_tokens * width * model.backbone.dtype.itemsize if stores else 0,
            storing_bytes=storing,
            vocabulary_bytes=vocabulary,
            evaluation_bytes=evaluation,
            buffer_bytes=buffers,
            gathered_bytes=_gathered(model),
            flops=flops,
            reused_flops=reused,
            sites=tuple(map(str, model.sites)),
            prefix_site=str(model.prefix_site),
            num_soft_tokens=model.num_soft_tokens,
            num_blocks=layout.num_blocks,
            blocks_below=below,
            blocks_run=layout.num_blocks - (below if stores else 0),
            trained_blocks=sum(any(p.requires_grad for p in block.parameters()) for block in layout.blocks),
        )


def reuses(workload: Workload, model: ClimateTextForCausalLM) -> bool:
    """Whether states of texts are stored: as `training.pipeline` decides."""
    return workload.reuse_prefix and model.prefix_site not in ("input", 0)


def _weights(workload: Workload, model: ClimateTextForCausalLM) -> dict[str, int]:
    """Parameters and bytes by part."""
    trained = [p for p in model.parameters() if p.requires_grad]
    mine = {id(p) for p in trained}
    frozen = [p for p in model.parameters() if id(p) not in mine]
    held = [*frozen, *model.backbone.buffers()]
    embeddings = cast("nn.Embedding", model.get_input_embeddings()).weight
    tied = embeddings is find_blocks(model.backbone).head.weight
    read = min(
        workload.distinct_tokens * max(PAGES_AT_ONCE, embeddings.nbytes // len(embeddings)), embeddings.nbytes
    )
    trainable_bytes = sum(p.numel() * p.element_size() for p in trained)
    fine_tuned = workload.backbone_trainable is not None
    changed = [p for p in model.backbone.parameters() if fine_tuned and p.requires_grad]
    return {
        "frozen": count_parameters(workload.config) - sum(p.numel() for p in changed),
        "trainable": sum(p.numel() for p in trained),
        "frozen_bytes": sum(p.numel() * p.element_size() for p in held),
        "mapped_bytes": sum(p.nbytes for p in frozen if p.is_floating_point()) if mapped(workload) else 0,
        "untouched_bytes": 0 if tied or fine_tuned or not mapped(workload) else embeddings.nbytes - read,
        "trainable_bytes": trainable_bytes,
        "quantizing_bytes": max((layer.quantizing for layer in _compact_layers(model)), default=0),
        "gradient_bytes": trainable_bytes,
        "optimizer_bytes": 2 * 4 * sum(p.numel() for p in trained),  # moments in float32
    }


def mapped(workload: Workload) -> bool:
    """Whether weights that are not quantized stay in their file, of which a process holds what it has read."""
    return workload.file_dtype in (None, workload.dtype)


def _buffers(workload: Workload, model: ClimateTextForCausalLM) -> int:
    """Work space of compact layers, which stays: rows turned back, and a partial sum of the states below."""
    layers = _compact_layers(model)
    if not layers:
        return 0
    tokens = workload.texts(workload.microbatch) * workload.length
    rows = max(layer.buffer for layer in layers)
    nibbles = rows // (4 if workload.widened else 2) if workload.quantization == "int4" else 0
    part = 0 if workload.widened else 2 * tokens * max(layer.in_features for layer in layers)
    return rows + nibbles + part


def _compact_layers(model: ClimateTextForCausalLM) -> list[CompactShape]:
    return [module for module in model.backbone.modules() if isinstance(module, CompactShape)]


def _gathered(model: ClimateTextForCausalLM) -> int:
    """What is whole where weights are spread: all that is in no block, and two blocks, the next one being fetched.

    What is fetched is copied out of what came, so that a block, or at first the rest, is there twice.
    """
    whole = sum(p.nbytes for p in model.parameters())
    blocks = [sum(p.nbytes for p in block.parameters()) for block in find_blocks(model.backbone).blocks]
    rest = whole - sum(blocks)
    return max(2 * rest, rest + 3 * max(blocks))


def _microbatches(trace: Trace, workload: Workload, model: ClimateTextForCausalLM) -> tuple[int, int]:
    """What one holds from forward to backward, and the most that one or another holds beside gradients.

    The gradients of the first are there while the second computes its own, which are added to them.
    """
    saved, gradients, most = [], 0, 0
    for _ in range(min(workload.accumulation, 2)):
        batch = make_batch(workload, workload.microbatch, labels=workload.labels)
        before = trace.live
        trace.reset()
        autocast = torch.autocast("cpu", torch.bfloat16, enabled=workload.precision == "bfloat16")
        with autocast:
            loss = model(**batch).loss
        saved.append(trace.live - before)
        loss.backward()
        del loss
        most = max(most, trace.peak - before + gradients)
        gradients = sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
        del batch
    return saved[0], max(most - gradients, 0)


def _below(trace: Trace, workload: Workload, model: ClimateTextForCausalLM) -> int:
    """Floating-point operations of the blocks below the first site on a microbatch."""
    flops = trace.flops
    trace.reset()
    batch = make_batch(workload, workload.microbatch, labels=1)
    prefix_states(
        model.backbone,
        model.prefix_site,
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
    )
    spared, trace.flops = sum(trace.flops.values()), flops
    return spared


def _storing(trace: Trace, workload: Workload, model: ClimateTextForCausalLM) -> int:
    """Most that storing states of texts holds at a time."""
    ids = torch.zeros(workload.texts_at_once, workload.length, dtype=torch.long)
    before = trace.live
    trace.reset()
    model.eval()
    prefix_states(model.backbone, model.prefix_site, input_ids=ids, attention_mask=torch.ones_like(ids))
    model.train()
    return trace.peak - before


def _vocabulary(trace: Trace, workload: Workload, model: ClimateTextForCausalLM) -> int:
    """Most that asking for likely tokens holds at a time."""
    one_text_each = replace(workload, texts_per_window=1)
    batch = make_batch(one_text_each, workload.texts_at_once, labels=workload.all_labels)
    before = trace.live
    trace.reset()
    model.likely_tokens(batch["input_ids"], batch["attention_mask"], batch["labels"], count=LIKELY_TOKENS)
    return trace.peak - before


def _evaluation(trace: Trace, workload: Workload, model: ClimateTextForCausalLM) -> int:
    """Most that a batch of an evaluation holds at a time."""
    before = trace.live
    trace.reset()
    batch = make_batch(workload, workload.evaluation_windows, labels=workload.all_labels)
    model.eval()
    with torch.no_grad():
        model(**batch, return_logits=False)
    model.train()
    return trace.peak - before
