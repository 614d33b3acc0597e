"""Where a training step keeps a graph. Oracle: what autograd saves for the backward pass while a block runs."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from climafuse.backbones import find_blocks
from climafuse.backbones.quantization import quantize_model
from climafuse.model import ClimateTextForCausalLM, PrefixStore
from tests.fusion.small import SMALL, open_gates
from tests.model.build import ENCODER, make_batch, statistics
from tests.tiny import ARCHITECTURES, TYPICAL, tiny_backbone

FIRST = 2  # site of the first fusion, of four blocks


def build(architecture: str, kind: Any, lora: Any) -> ClimateTextForCausalLM:
    backbone = tiny_backbone(architecture)
    if kind is not None:
        quantize_model(backbone.model, kind)
        backbone = dataclasses.replace(backbone, quantization=kind)
    torch.manual_seed(7)
    model = ClimateTextForCausalLM.from_backbone(
        backbone,
        statistics=statistics(),
        encoder_options=ENCODER,
        fusion_options=SMALL["cross_attention"],
        sites=[FIRST, "output"],
        lora=lora,
    )
    open_gates(model.fusions, 0.5)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # zero at first, so that nothing would pass through its other half
            nn.init.normal_(parameter, std=0.1)
    return model.train()


class Watch:
    """Notes, of each block that runs, whether its output has a graph, and how many tensors are saved in it."""

    def __init__(self, model: ClimateTextForCausalLM) -> None:
        self.graph: dict[int, bool] = {}
        self.saved: dict[int, int] = {}
        self.within: int | None = None
        for number, block in enumerate(find_blocks(model.backbone).blocks):
            block.register_forward_pre_hook(lambda module, args, number=number: self.enter(number))
            block.register_forward_hook(
                lambda module, args, output, number=number: self.leave(number, output)
            )

    def enter(self, number: int) -> None:
        self.within, self.saved[number] = number, 0

    def leave(self, number: int, output: Any) -> None:
        self.within = None
        self.graph[number] = (output if isinstance(output, Tensor) else output[0]).requires_grad

    def pack(self, tensor: Tensor) -> Tensor:
        if self.within is not None:
            self.saved[self.within] += 1
        return tensor


def step(model: ClimateTextForCausalLM, watch: Watch | None = None) -> dict[str, Tensor]:
    """Gradients of a step."""
    batch = make_batch(model)
    model.zero_grad()
    if watch is None:
        model(**batch).loss.backward()
    else:
        with torch.autograd.graph.saved_tensors_hooks(watch.pack, lambda tensor: tensor):
            loss = model(**batch).loss
        loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


ADAPTERS = {"rank": 2, "layers": [3]}
CASES = [
    *(
        pytest.param(name, None, None, id=name, marks=() if name in TYPICAL else pytest.mark.slow)
        for name in ARCHITECTURES
    ),
    pytest.param("llama", "int8", ADAPTERS, id="llama, int8, adapters"),
    *(
        pytest.param(name, kind, lora, id=f"{name}, {kind}, {lora}", marks=pytest.mark.slow)
        for name in ARCHITECTURES
        for kind, lora in (("int8", ADAPTERS), (None, ADAPTERS), ("int4", None))
    ),
]


@pytest.mark.parametrize(("architecture", "kind", "lora"), CASES)
def test_blocks_below_the_first_site_have_no_graph_and_those_above_have(
    architecture: str, kind: Any, lora: Any
) -> None:
    if lora is not None:
        pytest.importorskip("peft")
    model = build(architecture, kind, lora)
    watch = Watch(model)
    expected = step(model, watch)
    assert expected.keys() == model.trainable_state_dict().keys()
    assert watch.graph == {0: False, 1: False, 2: True, 3: True}
    assert watch.saved[0] == watch.saved[1] == 0
    assert min(watch.saved[2], watch.saved[3]) > 0

    # The same gradients with activations that are computed anew, and with stored states, and with both.
    for recompute, reuse in ((False, True), (True, False), (True, True)):
        if recompute:
            model.activation_checkpointing_enable()
        model.prefix_store = PrefixStore(model.backbone, model.prefix_site) if reuse else None
        step(model)  # texts are stored
        watch.graph.clear()
        found = step(model)
        assert watch.graph == {0: False, 1: False, 2: True, 3: True}
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            size = float(gradient.abs().max())
            torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-4 * size + 1e-7)
