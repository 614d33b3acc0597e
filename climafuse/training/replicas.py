"""What several processes must have alike before they train one model, and what each must have for itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import nn

from climafuse.errors import TrainingError
from climafuse.training.group import Group


def make_alike(model: nn.Module, identity: Mapping[str, str], group: Group, *, seed: int) -> None:
    """Make the processes of a group ready to train one model. One process alone is.

    Frozen weights are the same in all of them, by their hash, and are not sent around. Random numbers are the same in
    all as long as they are drawn for all samples together (the vocabulary of a step), so that several processes draw
    what one would; where the model has dropout, each draws its own, or the samples of all would lose the same places.

    Args:
        model: The model, in the state in which training begins.
        identity: What it is trained on: a SHA-256 by name.
        group: The processes.
        seed: Of the run.

    Raises:
        TrainingError: Another process has other data or another backbone; or weights would be rounded otherwise in
            each process.
    """
    if group.size == 1:
        return
    with group:
        identities = group.exchange(dict(identity))
    for rank, other in enumerate(identities):
        for name in (*identity, *other):
            if identity.get(name) != other.get(name):
                raise TrainingError(
                    f"process {rank}",
                    expected=f"{name} of process {group.rank} (SHA-256 {identity.get(name, 'none'):.12}…)",
                    received=f"others ({other.get(name, 'none'):.12}…)",
                    remedy="Give all processes the same files.",
                )
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    buffers = [name for name, _ in model.named_buffers()]
    # Read by DistributedDataParallel, which would send them all from the first process.
    cast("Any", model)._ddp_params_and_buffers_to_ignore = [*frozen, *buffers]
    if any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules()):
        coarse = [n for n, p in model.named_parameters() if p.requires_grad and p.dtype == torch.bfloat16]
        if coarse:
            raise TrainingError(
                coarse[0],
                expected="weights in float32, or no dropout, where several processes train",
                received="bfloat16, whose updates are rounded at random, alike in all processes, and dropout, which is "
                "not",
                remedy="Set backbone.dtype: float32, or dropout to 0.",
            )
        torch.manual_seed(seed + group.rank)
