"""In which types a device multiplies matrices natively; in others it takes many times as long, or cannot."""

from __future__ import annotations

import functools
from typing import Any

import torch

# What a processor must have, by type: its own name for instructions of products in it.
_INSTRUCTIONS = {torch.bfloat16: ("avx512_bf16", "amx_bf16"), torch.float16: ("avx512_fp16", "amx_fp16")}


def multiplies(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether a device multiplies numbers of a type natively.

    Args:
        dtype: The type.
        device: Where.
    """
    if dtype not in _INSTRUCTIONS:
        return True
    if device.type == "cuda":
        return dtype == torch.float16 or torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return _processor_multiplies(dtype)
    return device.type != "meta"


def product_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """Return the type in which to multiply numbers of a type: itself, or float32 where it is not native.

    Args:
        dtype: The type.
        device: Where.
    """
    return dtype if multiplies(dtype, device) else torch.float32


@functools.cache  # asked at every product
def _processor_multiplies(dtype: torch.dtype) -> bool:
    known: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(known.get(name) for name in _INSTRUCTIONS[dtype])
