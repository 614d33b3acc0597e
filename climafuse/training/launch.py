"""The processes that train one model together, and which runs they refuse: told from the configuration alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from climafuse.errors import ConfigurationError, TrainingError
from climafuse.training import sharding
from climafuse.training.config import RunConfig, TrainingConfig
from climafuse.training.group import local_process_count, process_count

if TYPE_CHECKING:
    from climafuse.planning.workload import Spread


@dataclass(frozen=True)
class Launch:
    """The processes that train one model together.

    Args:
        processes: How many, on all machines.
        local: How many of them a machine without a GPU carries.
        spread: What each of them has a part of, as of `Workload`; None where each has all.
    """

    processes: int = 1
    local: int = 1
    spread: Spread | None = None

    @classmethod
    def of_this_process(cls) -> Launch:
        """As the launcher of this process has it."""
        return cls(process_count(), local_process_count(), _spread())


def check_launch(config: RunConfig, launch: Launch) -> None:
    """Refuse what the trainer would refuse once all is loaded.

    Args:
        config: The run.
        launch: Its processes.

    Raises:
        ConfigurationError: See `check_shared`.
        TrainingError: See `check_spread`.
    """
    check_shared(config.training, launch.processes)
    if launch.spread is not None and config.backbone.trainable is not None:
        check_spread([getattr(torch, config.backbone.dtype)])


def check_shared(settings: TrainingConfig, processes: int) -> None:
    """Refuse microbatches that cannot be shared by so many processes.

    Raises:
        ConfigurationError: They cannot.
    """
    if settings.microbatch % processes:
        raise ConfigurationError(
            "training.windows_per_step",
            expected=f"a multiple of accumulation × processes = {settings.accumulation} × {processes}",
            received=settings.windows_per_step,
            remedy="It counts the windows of all processes together; each takes as many of every microbatch.",
        )


def check_spread(trained: Iterable[torch.dtype]) -> None:
    """Refuse trained weights that no engine that spreads weights or moments rounds at random.

    Args:
        trained: Types of the weights that are trained.

    Raises:
        TrainingError: Not all are float32.
    """
    for dtype in trained:
        if dtype != torch.float32:
            raise TrainingError(
                "backbone.dtype",
                expected="float32 for weights that are trained and spread over processes",
                received=str(dtype).removeprefix("torch."),
                remedy="Set backbone.dtype: float32, or train with DDP.",
            )


def _spread() -> Spread | None:
    """What the launcher of several processes asks to be spread over them."""
    from climafuse.training import zero  # imports accelerate

    if process_count() == 1:
        return None
    if sharding.asked_for():
        return "weights"
    if zero.asked_for():
        return "moments" if zero.stage() == 1 else "gradients"
    return None
