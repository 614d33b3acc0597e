"""The Trainer's own arguments, as a run's configuration says."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from transformers import TrainingArguments

from climafuse.training.config import EvaluationConfig, OutputConfig, RunConfig, TrainingConfig
from climafuse.training.group import Group
from climafuse.training.launch import check_shared
from climafuse.training.zero import asked_for


def training_arguments(config: RunConfig, *, evaluate: bool, group: Group | None = None) -> TrainingArguments:
    """The Trainer's own arguments for a run.

    Args:
        config: The run.
        evaluate: Whether there are validation samples.
        group: The processes that take part; None for one.

    Raises:
        ConfigurationError: The microbatches cannot be shared by the processes.
    """
    settings: TrainingConfig = config.training
    size, on_cpu = (1, False) if group is None else (group.size, group.on_cpu)
    check_shared(settings, size)
    evaluation: EvaluationConfig = config.evaluation
    output: OutputConfig = config.output
    arguments = TrainingArguments(
        output_dir=output.directory,
        max_steps=settings.steps,
        per_device_train_batch_size=settings.microbatch // size,
        per_device_eval_batch_size=evaluation.windows_per_batch,
        gradient_accumulation_steps=settings.accumulation,
        learning_rate=settings.learning_rate,
        max_grad_norm=settings.max_gradient_norm or 0.0,
        eval_strategy="steps" if evaluate else "no",
        eval_steps=settings.evaluation_interval,
        save_strategy="steps",
        save_steps=output.save_interval,
        logging_strategy="steps",
        logging_steps=settings.logging_interval,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        metric_for_best_model=settings.best_metric if evaluate else None,
        greater_is_better=not settings.best_metric.endswith("loss"),
        label_names=["labels"],
        remove_unused_columns=False,
        dataloader_num_workers=settings.workers,
        # netCDF and zarr do not survive a fork: their locks and threads stay behind.
        dataloader_multiprocessing_context="spawn" if settings.workers else None,
        dataloader_persistent_workers=settings.workers > 0,  # each takes seconds to start
        dataloader_pin_memory=torch.cuda.is_available(),
        seed=settings.seed,
        disable_tqdm=True,
        report_to="none",
        use_cpu=on_cpu and not asked_for(),
        ddp_backend="gloo" if on_cpu and asked_for() else None,
        ddp_timeout=int(settings.timeout_seconds),
        ddp_find_unused_parameters=False,
        **_activation_checkpointing(settings.checkpoint_activations),
    )
    # After construction: the Trainer would want evaluations and checkpoints at the same steps; here every
    # best one is saved whenever it comes.
    arguments.load_best_model_at_end = evaluate and settings.keep_best
    if arguments.n_gpu > 1:
        arguments._n_gpu = (
            1  # not silently DataParallel, which would split a batch across texts of one window
        )
    return arguments


def _activation_checkpointing(wanted: bool) -> dict[str, Any]:
    if not wanted:
        return {}
    known = {entry.name for entry in dataclasses.fields(TrainingArguments)}
    name = "activation_checkpointing" if "activation_checkpointing" in known else "gradient_checkpointing"
    # Reentrant checkpointing drops the gradients of a trainable module that is fed by frozen ones.
    return {name: True, f"{name}_kwargs": {"use_reentrant": False}}
