"""What the trainer relies on: hooks of the Trainer of the installed transformers, and methods of the model."""

from __future__ import annotations

import sys
from inspect import Parameter, signature
from typing import Any, cast

from torch import nn
from transformers import Trainer

from climafuse.errors import TrainingError

# The Trainer calls these; were one renamed, its override would never run and a gap would be open again.
OVERRIDDEN = (
    "_clip_grad_norm",
    "_determine_best_metric",
    "_get_dataloader",
    "_get_eval_sampler",
    "_get_grad_norm",
    "_get_num_items_in_batch",
    "_get_train_sampler",
    "_init_training_state",
    "_load_best_model",
    "_load_from_checkpoint",
    "_load_optimizer_and_scheduler",
    "_load_rng_state",
    "_prepare_for_training",
    "_prepare_inputs",
    "_save_checkpoint",
    "create_accelerator_and_postprocess",
    "create_optimizer",
    "create_scheduler",
    "evaluation_loop",
    "floating_point_ops",
    "get_batch_samples",
    "prediction_step",
    "training_step",
)


def check_hooks() -> None:
    """Refuses a transformers whose Trainer lacks a hook.

    Raises:
        TrainingError: It does.
    """
    missing = [name for name in OVERRIDDEN if not hasattr(Trainer, name)]
    if missing:
        raise TrainingError(
            "transformers",
            expected=f"a Trainer with the hooks {', '.join(missing)}",
            received=f"version {sys.modules['transformers'].__version__}, which lacks them",
            remedy="Install a version of transformers that this climafuse was tested with (see CHANGELOG).",
        )


def check_model(model: nn.Module) -> None:
    """Refuses a model that cannot be trained as a climate-text model, or whose checkpoints would lose weights.

    Args:
        model: What shall be trained.

    Raises:
        TrainingError: It lacks a method, or trains weights that it does not save.
    """
    missing = [
        name
        for name in ("save_pretrained", "load_trainable", "trainable_state_dict")
        if not hasattr(model, name)
    ]
    parameters = signature(model.forward).parameters
    takes_count = "num_items_in_batch" in parameters or any(
        parameter.kind is Parameter.VAR_KEYWORD for parameter in parameters.values()
    )
    if missing or not takes_count:
        raise TrainingError(
            type(model).__name__,
            expected="a climate-text model: forward(…, num_items_in_batch), save_pretrained, load_trainable, "
            "trainable_state_dict",
            received=f"one without {', '.join(missing) or 'num_items_in_batch in forward'}",
            remedy="Train a ClimateTextForCausalLM, or give your model these methods.",
        )
    saved = cast("Any", model).trainable_state_dict().keys()
    lost = [name for name, p in model.named_parameters() if p.requires_grad and name not in saved]
    if lost:
        raise TrainingError(
            lost[0],
            expected="a frozen weight, as no checkpoint holds it",
            received=f"one that requires a gradient (with {len(lost) - 1} others)",
            remedy="Leave the backbone frozen; to change it, set backbone.lora or backbone.trainable.",
        )
