"""Floating-point operations of a step, by kind of work.

A product of weights with a token costs two operations a weight: forward once, backward once more for the gradient of
the states, and once more for that of the weights. So a weight costs per token

- `trainable`: 6 (encoder, fusions, adapters);
- `frozen_with_gradient`: 4 (blocks above the first site, and the head, at labeled positions only: `head`);
- `frozen_without_gradient`: 2 (blocks below the first site);
- nothing, where the states of a text are stored.

Products of states with states (attention) cost by the square of the length and are counted by themselves. What
recomputing activations adds is in the kind of its weights.

Reference:
    Kaplan et al. 2020, Scaling Laws for Neural Language Models, arXiv:2001.08361, section 2.1.
"""

from __future__ import annotations

from climafuse.backbones import find_blocks, num_blocks_below
from climafuse.model import ClimateTextForCausalLM
from climafuse.planning.skeleton import CompactShape
from climafuse.planning.tracing import ATTENTION, TRAINABLE, Trace

FROZEN, BELOW, HEAD = "frozen_with_gradient", "frozen_without_gradient", "head"
KINDS = (TRAINABLE, FROZEN, HEAD, BELOW, ATTENTION)


def mark_kinds(trace: Trace, model: ClimateTextForCausalLM) -> None:
    """Tell a trace of which kind products with the weights of a model are.

    Args:
        trace: The trace that the model was made in.
        model: The model.
    """
    layout = find_blocks(model.backbone)
    head = layout.head.weight
    below = num_blocks_below(model.prefix_site, layout.num_blocks)
    for module in model.backbone.modules():
        if isinstance(module, CompactShape):
            module.work = TRAINABLE if module.weight.requires_grad else FROZEN
    for module in layout.blocks[:below].modules():
        if isinstance(module, CompactShape):
            module.work = BELOW
    if isinstance(layout.head, CompactShape):
        layout.head.work = HEAD
    for parameter in model.parameters():
        if parameter.requires_grad:
            trace.mark(parameter, TRAINABLE)
        elif parameter is head:
            trace.mark(parameter, HEAD, HEAD)
        else:
            trace.mark(parameter, FROZEN, BELOW)
