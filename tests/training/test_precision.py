"""Products in bfloat16 where the processor has it; everything that is kept stays in float32."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from climafuse.training import precision
from climafuse.training.precision import products

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
    monkeypatch.setattr(precision, "multiplies", lambda dtype, device: native)
    with products("auto", CPU):
        assert torch.is_autocast_enabled("cpu") == native
    assert not torch.is_autocast_enabled("cpu")
