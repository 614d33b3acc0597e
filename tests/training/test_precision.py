"""Products in bfloat16 where the processor has it; everything that is kept stays in float32."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from climafuse.training import precision
from climafuse.training.precision import multiplies_bfloat16, products

CPU = torch.device("cpu")


def test_products_are_rounded_and_weights_are_not() -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(64, 8), torch.randn(4, 64)
    exact = layer(x)
    with products("bfloat16", CPU):
        rounded = layer(x)
    assert rounded.dtype == torch.bfloat16
    assert 0 < (rounded.float() - exact).abs().max() < 0.02
    with products("float32", CPU):
        assert torch.equal(layer(x), exact)
    rounded.float().sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("native", [True, False])
def test_auto_asks_the_processor(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "multiplies_bfloat16", lambda device: native)
    with products("auto", CPU):
        assert torch.is_autocast_enabled("cpu") == native
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize(
    ("capabilities", "native"),
    [
        ({"avx512_bf16": True}, True),
        ({"amx_bf16": True}, True),
        ({"avx512_f": True, "avx512_bf16": False}, False),
    ],
)
def test_what_the_processor_says(
    capabilities: dict[str, bool], native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert multiplies_bfloat16(CPU) == native
    assert not multiplies_bfloat16(torch.device("meta"))


def test_an_older_torch_that_does_not_say_multiplies_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert not multiplies_bfloat16(CPU)
