"""The optimizer and its learning rate: parameter groups, schedule, gradient norms by part.

Gates start at zero and are few; they learn at their own, higher rate and are never decayed towards "no
climate". Decay applies to matrices only, as decaying a bias or the scale of a norm regularizes nothing.
Adapters change a language model that can already speak: they learn at a lower rate, and its own weights at one that is
lower still.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from climafuse.errors import TrainingError
from climafuse.training.config import TrainingConfig
from climafuse.training.rounding import RoundingAdamW, pieces
from climafuse.training.sharding import whole

_UNDECAYED_MODULES = (nn.Embedding, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._NormBase)


def is_gate(name: str) -> bool:
    """Whether a parameter is a gate: its own name is `gate`, `gates` or ends in `_gate`.

    `mlp.gate_proj.weight`, the gate of a gated linear unit, is an ordinary matrix.
    """
    last = name.rpartition(".")[2]
    return last in ("gate", "gates") or last.endswith("_gate")


def part_of_backbone(name: str) -> str | None:
    """What is trained inside the language model: adapters (`lora`) or its own weights (`backbone`); None outside."""
    if not name.startswith("backbone."):
        return None
    return "lora" if ".lora_" in name else "backbone"


def parameter_groups(model: nn.Module, config: TrainingConfig) -> list[dict[str, object]]:
    """The trainable parameters of a model in up to six groups: matrices, vectors, gates, adapters, backbone.

    Args:
        model: The model; frozen parameters are left out.
        config: Learning rates and weight decay.

    Returns:
        Groups for a torch optimizer, each with `name`, `params`, `lr` and `weight_decay`; empty ones are left
        out.

    Raises:
        TrainingError: Nothing is trainable, or a trainable parameter is not float32; those of the backbone itself may
            be bfloat16 (`RoundingAdamW`).
    """
    members: dict[str, list[nn.Parameter]] = {
        name: [] for name in ("matrices", "vectors", "gates", "lora", "backbone", "backbone_vectors")
    }
    seen: set[nn.Parameter] = set()
    for prefix, module in model.named_modules():
        for own_name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or parameter in seen:
                continue
            seen.add(parameter)  # a head may share its weight with the embeddings
            name = f"{prefix}.{own_name}" if prefix else own_name
            inside = part_of_backbone(name)
            rounded = inside == "backbone" and parameter.dtype == torch.bfloat16
            if parameter.dtype != torch.float32 and not rounded:
                raise TrainingError(
                    name,
                    expected="float32, in which small updates of trainable weights survive",
                    received=parameter.dtype,
                    remedy="Keep trainable modules in float32; only the backbone may be in half precision.",
                )
            vector = parameter.ndim < 2 or isinstance(module, _UNDECAYED_MODULES)
            if inside == "lora":
                members["lora"].append(parameter)
            elif inside is not None:
                members["backbone_vectors" if vector else "backbone"].append(parameter)
            elif is_gate(name):
                members["gates"].append(parameter)
            elif vector:
                members["vectors"].append(parameter)
            else:
                members["matrices"].append(parameter)
    if not any(members.values()):
        raise TrainingError(
            "model",
            expected="at least one trainable parameter",
            received="a model that is frozen throughout",
            remedy="Unfreeze the encoder and the fusion.",
        )
    gate_rate = config.learning_rate * config.gate_learning_rate_scale
    lora_rate = config.learning_rate * config.lora_learning_rate_scale
    own_rate = config.learning_rate * config.backbone_learning_rate_scale
    settings = {
        "matrices": {"lr": config.learning_rate, "weight_decay": config.weight_decay},
        "vectors": {"lr": config.learning_rate, "weight_decay": 0.0},
        "gates": {"lr": gate_rate, "weight_decay": 0.0},
        "lora": {"lr": lora_rate, "weight_decay": config.weight_decay},
        "backbone": {"lr": own_rate, "weight_decay": config.weight_decay},
        "backbone_vectors": {"lr": own_rate, "weight_decay": 0.0},
    }
    return [{"name": name, "params": members[name], **settings[name]} for name in members if members[name]]


def make_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW over the trainable parameters, in one fused kernel (8 times faster than the loop on a CPU).

    Args:
        model: The model.
        config: Learning rates, decay and betas.

    Raises:
        TrainingError: See `parameter_groups`.
    """
    return RoundingAdamW(parameter_groups(model, config), betas=config.betas)


def schedule_factor(
    step: int,
    *,
    steps: int,
    warmup: int,
    schedule: Literal["cosine", "linear", "constant"],
    minimum: float,
    time_fraction: float = 0.0,
) -> float:
    """The learning rate of a step as a fraction of the peak.

    Linear warmup reaches 1 at its last step and does not waste the first step at rate 0; from there on, with
    progress p from 0 to 1, cosine is `minimum + (1 - minimum) · (1 + cos πp) / 2` and linear `1 - (1 -
    minimum) · p`.

    Args:
        step: Steps already done, so 0 for the first.
        steps: Steps in all.
        warmup: Steps of warmup.
        schedule: Form after the warmup.
        minimum: Fraction of the peak at the end.
        time_fraction: Share of the allowed time that is spent. Where it is ahead of the share of the steps,
            the schedule follows it, so that a run which ends by time has been annealed like one which ends by
            steps.

    Returns:
        A factor in [0, 1].

    Reference:
        Loshchilov and Hutter, SGDR, arXiv:1608.03983, equation 5.
    """
    position = max(float(step), time_fraction * steps)
    if position < warmup:
        return min((position + 1) / warmup, 1.0)
    progress = min((position - warmup) / max(steps - warmup, 1), 1.0)
    if schedule == "cosine":
        return minimum + (1 - minimum) * (1 + math.cos(math.pi * progress)) / 2
    if schedule == "linear":
        return 1 - (1 - minimum) * progress
    return 1.0


def make_scheduler(
    optimizer: torch.optim.Optimizer, config: TrainingConfig, seconds: Callable[[], float]
) -> torch.optim.lr_scheduler.LambdaLR:
    """The learning-rate schedule of a run, the same factor for every group.

    Args:
        optimizer: The optimizer.
        config: Form and length of the schedule.
        seconds: Training time spent so far; asked only when the schedule goes by seconds.
    """

    def factor(step: int) -> float:
        limit = config.max_seconds if config.schedule_by == "seconds" else None
        return schedule_factor(
            step,
            steps=config.steps,
            warmup=config.warmup,
            schedule=config.schedule,
            minimum=config.minimum_learning_rate,
            time_fraction=seconds() / limit if limit else 0.0,
        )

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def trainable_parts(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Trainable parameters by part of the model, for gradient norms: the encoder, each fusion site, ….

    A part is a child of the model, or an entry of a child that is a ModuleList or ModuleDict: `encoder`,
    `fusions.20`. Adapters are the part `lora`, the backbone's own weights `backbone`.
    """
    parts: dict[str, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        first, _, rest = name.partition(".")
        child = getattr(model, first)
        if isinstance(child, nn.ModuleList | nn.ModuleDict):
            first = f"{first}.{rest.partition('.')[0]}"
        parts.setdefault(part_of_backbone(name) or first, []).append(parameter)
    return parts


@torch.no_grad()
def gradient_norms(parts: Mapping[str, Iterable[nn.Parameter]]) -> tuple[Tensor, Tensor]:
    """The Euclidean norm of the gradient of each part and of all of them.

    Args:
        parts: Parameters by part.

    Returns:
        Norms of the parts [P], in their order, and of all together [], on the device of the gradients.
    """
    norms = [
        whole(_norm([parameter.grad for parameter in parameters if parameter.grad is not None]))
        for parameters in parts.values()
    ]
    device = max((norm.device for norm in norms), key=lambda device: device.type != "cpu")
    by_part = torch.stack([norm.to(device) for norm in norms])  # [P]
    return by_part, torch.linalg.vector_norm(by_part)


def _norm(gradients: list[Tensor]) -> Tensor:
    """Their norm in float32: that of bfloat16 would be told in bfloat16."""
    if all(gradient.dtype == torch.float32 for gradient in gradients):
        return nn.utils.get_total_norm(gradients)
    # Some rows at a time, as they are turned into float32 for it; a norm of what is spread is one of all its parts.
    parts = [
        part
        for gradient in gradients
        for part in ((gradient,) if hasattr(gradient, "full_tensor") else pieces(gradient))
    ]
    norms = [torch.linalg.vector_norm(part, dtype=torch.float32) for part in parts]
    return torch.linalg.vector_norm(torch.stack(norms))
