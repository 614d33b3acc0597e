"""A model whose weights are spread over processes: FSDP2 (`fully_shard`), from Python or by accelerate.

A unit is gathered whole where it is computed, and let go of after. Here units are the blocks of the backbone, the rest
of the backbone (embeddings, last norm and head), each fusion and the encoder: each is called as a module, and the
trainable weights of a unit are of one type, as `fully_shard` wants it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from climafuse.backbones import find_blocks
from climafuse.errors import ConfigurationError
from climafuse.model import ClimateTextForCausalLM

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


def asked_for() -> bool:
    """Whether the launcher of this process asks for FSDP, in the one word that accelerate knows."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def check_request(*, on_cpu: bool) -> None:
    """Refuse FSDP where accelerate would forget it and train by DDP, before anything is loaded.

    Args:
        on_cpu: Whether the processes compute on processors.

    Raises:
        ConfigurationError: They do, for want of a GPU or as accelerate was told.
    """
    told = os.environ.get("ACCELERATE_USE_CPU", "false").lower() in ("true", "1", "yes")
    if on_cpu or told:
        raise ConfigurationError(
            "ACCELERATE_USE_FSDP",
            expected="unset on processors, where accelerate knows no FSDP",
            received="true" + (", and ACCELERATE_USE_CPU, too" if told else ", and no GPU"),
            remedy="Start it by DDP (torchrun, examples/distributed/ddp.yaml) or by ZeRO "
            "(examples/distributed/deepspeed_zero2.yaml).",
        )


def shard(model: ClimateTextForCausalLM, mesh: DeviceMesh, **options: Any) -> ClimateTextForCausalLM:
    """Spread the weights of a model over the processes of a mesh, in place.

    Make the optimizer after it. Call the model, not its backbone alone, before anything else.

    Args:
        model: The model, the same in every process.
        mesh: One dimension.
        **options: Of `fully_shard`: `reshard_after_forward`, `mp_policy`, `offload_policy`.

    Returns:
        The model.
    """
    from torch.distributed.fsdp import fully_shard

    blocks = find_blocks(model.backbone).blocks
    for unit in (*blocks, model.backbone, *model.fusions.values(), model.encoder, model):
        fully_shard(unit, mesh=mesh, **options)
    return model


def is_sharded(model: nn.Module) -> bool:
    """Whether weights of a model are spread over processes."""
    return any(hasattr(parameter, "full_tensor") for parameter in model.parameters())


def whole(tensor: Tensor) -> Tensor:
    """A tensor as it would be in one process; where it is spread, all processes must ask for it."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def spread_like(value: Tensor, example: Tensor) -> Tensor:
    """A whole tensor that every process has, spread as another one is."""
    if not hasattr(example, "full_tensor"):
        return value
    from torch.distributed.tensor import distribute_tensor

    spread: Any = example
    return distribute_tensor(value.to(spread.device), spread.device_mesh, spread.placements)


@torch.no_grad()
def load_whole(own: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    """Copy whole weights into those of a model, spread or not.

    Args:
        own: The model's, by name.
        weights: As many whole ones.
    """
    for name, value in weights.items():
        own[name].copy_(spread_like(value, own[name]))
