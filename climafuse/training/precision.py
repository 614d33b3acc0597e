"""In which type matrices are multiplied in a training step; weights, their gradients and the loss are in float32.

bfloat16 has the range of float32, so nothing overflows as it does in half precision; it keeps eight bits of each
factor, and products are summed in float32. Evaluation and generation multiply in float32.
"""

from __future__ import annotations

import contextlib
from typing import Literal

import torch

from climafuse.backbones.native import multiplies

Precision = Literal["auto", "float32", "bfloat16"]


def products(precision: Precision, device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Within it, matrices are multiplied as configured.

    Args:
        precision: "auto" is bfloat16 where the device multiplies it natively, else float32.
        device: Of the model.
    """
    if in_bfloat16(precision, device):
        return torch.autocast(device.type, torch.bfloat16)
    return contextlib.nullcontext()


def in_bfloat16(precision: Precision, device: torch.device) -> bool:
    """Whether that is in bfloat16.

    Args:
        precision: See `products`.
        device: Of the model.
    """
    return precision == "bfloat16" or (precision == "auto" and multiplies(torch.bfloat16, device))
