"""What a device multiplies natively."""

from __future__ import annotations

import pytest
import torch

from climafuse.backbones import native
from climafuse.backbones.native import multiplies, product_dtype

CPU = torch.device("cpu")
HALVES = (torch.bfloat16, torch.float16)


@pytest.fixture(autouse=True)
def _asked_anew():
    native._processor_multiplies.cache_clear()
    yield
    native._processor_multiplies.cache_clear()


@pytest.mark.parametrize(
    ("capabilities", "bfloat16", "float16"),
    [
        ({"avx512_bf16": True}, True, False),
        ({"amx_bf16": True, "amx_fp16": True}, True, True),
        ({"avx512_f": True, "avx512_bf16": False}, False, False),
    ],
)
def test_what_the_processor_says(capabilities, bfloat16, float16, monkeypatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert [multiplies(dtype, CPU) for dtype in HALVES] == [bfloat16, float16]
    assert product_dtype(torch.bfloat16, CPU) == (torch.bfloat16 if bfloat16 else torch.float32)
    assert multiplies(torch.float32, CPU)
    assert not multiplies(torch.bfloat16, torch.device("meta"))


def test_an_older_torch_that_does_not_say_multiplies_float32(monkeypatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert not any(multiplies(dtype, CPU) for dtype in HALVES)
